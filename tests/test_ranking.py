"""The ranking of a pool's confident images against its textbook definition."""

from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support import ranking


def textbook(confidence, label, num_classes, threshold, wanted):
    """The docstring of `ranked`."""
    for c in range(num_classes):
        positions = np.flatnonzero((label == c) & (confidence > threshold))
        yield positions[(-confidence[positions]).argsort(kind="stable")][:wanted]


@st.composite
def labelled_pools(draw):
    """Confidences and labels: often equal ones, few images, empty classes."""
    count, classes = draw(st.integers(0, 60)), draw(st.integers(1, 6))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    levels = draw(st.sampled_from([1, 2, 5, 2**30]))
    kind = draw(st.sampled_from([np.float32, np.float64]))
    confidence = (random.integers(0, levels + 1, count) / levels).astype(kind)
    used = random.permutation(classes)[: draw(st.integers(1, classes))]
    return confidence, random.choice(used, count).astype(np.int16), classes


def assert_textbook(confidence, label, *arguments):
    found = list(ranking.ranked(confidence, label, *arguments))
    expected = list(textbook(confidence, label, *arguments))
    assert [positions.tolist() for positions in found] == [
        positions.tolist() for positions in expected]


@settings(max_examples=200, deadline=None)
@given(labelled_pools(), st.sampled_from([0.0, 0.3, 0.5, 0.9]), st.integers(1, 70),
       st.sampled_from([1, 7, 2**22]))
def test_ranked_equals_its_textbook_definition(pool, threshold, wanted, block):
    confidence, label, classes = pool
    with mock.patch.object(ranking, "BLOCK", block):
        assert_textbook(confidence, label, classes, threshold, wanted)


def test_ties_keep_their_order_across_blocks():
    confidence, label = np.array([0.5, 0.9, 0.5, 0.9, 0.5, 0.5]), np.zeros(6, int)
    with mock.patch.object(ranking, "BLOCK", 2):
        (positions,) = ranking.ranked(confidence, label, 1, 0.3, 4)
    assert positions.tolist() == [1, 3, 0, 2]


def test_a_class_without_a_confident_image_is_empty_and_keeps_its_place():
    confidence, label = np.array([0.9, 0.1, 0.8]), np.array([3, 1, 0])
    found = [positions.tolist() for positions in ranking.ranked(confidence, label, 5, 0.3, 9)]
    assert found == [[2], [], [], [0], []]
    assert [len(positions) for positions in ranking.ranked(np.zeros(0), label[:0], 3, 0.3, 9)] == [
        0, 0, 0]


# Positions and classes are held in as few bytes as they need: around the steps of 8 and 16 bits.
@pytest.mark.parametrize("count", [255, 256, 257, 65_535, 65_536, 65_537])
@pytest.mark.parametrize("classes", [255, 256, 257])
def test_positions_and_classes_need_not_fit_into_a_byte(count, classes):
    random = np.random.default_rng(count)
    confidence = random.random(count, np.float32)
    label = (np.arange(count) * (classes - 1) // (count - 1)).astype(np.int16)
    assert label[-1] == classes - 1
    with mock.patch.object(ranking, "BLOCK", 10_000):
        assert_textbook(confidence, label, classes, 0.3, 40)
