"""Section 3.1 on pseudo labels: a clean teacher, the filter, the balance, soft and hard targets."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import augment
import data
import model
import pseudo_label


@pytest.fixture
def network():
    torch.manual_seed(0)
    return model.EfficientNet(0.25, 0.5, 10, dropout=0.5, survival_prob=0.5)


@pytest.fixture
def pool():
    return data.demo(0, unlabeled=60, val_per_class=1, test_per_class=1).unlabeled


# ------------------------------------------------------------------ predict


def test_probabilities_are_the_softmax_of_the_clean_network(network, pool):
    probabilities = pseudo_label.predict(network, pool, batch_size=17)
    with torch.no_grad():
        expected = network.eval()(augment.normalize(pool.pixels)).softmax(1)
    torch.testing.assert_close(probabilities, expected)


def test_the_teacher_has_no_noise_even_in_training_mode(network, pool):
    network.train()
    one, other = (pseudo_label.predict(network, pool) for _ in range(2))
    assert torch.equal(one, other)


def test_labelling_leaves_the_student_noised_and_its_statistics_alone(network, pool):
    network.train()
    network.stem_norm.eval()  # a layer that was fixed before stays fixed
    before = {key: value.clone() for key, value in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    pseudo_label.predict(network, pool)
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    images = augment.normalize(pool.pixels[:8])
    assert not torch.equal(network(images), network(images))  # dropout is on


def test_the_mode_comes_back_after_an_error(network):
    network.train()
    with pytest.raises(RuntimeError):
        pseudo_label.predict(network, torch.zeros(2, 5, 32, 32, dtype=torch.uint8))
    assert network.training and network.head_norm.training


# ------------------------------------------------------------------ select


def slow_select(confidence, label, num_classes, threshold, per_class):
    """Per class: the candidates to use, best first, and how many copies each must have at least."""
    chosen = {}
    for number in range(num_classes):
        candidates = [i for i in range(len(label)) if label[i] == number]
        candidates = [i for i in candidates if confidence[i] > threshold]
        candidates.sort(key=lambda i: (-confidence[i], i))
        chosen[number] = candidates[:per_class]
    return chosen


@settings(max_examples=300, deadline=None)
@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=40),
    levels=st.integers(1, 6), per_class=st.integers(1, 12),
    threshold=st.sampled_from([0.0, 0.3, 0.5, 0.9]), seed=st.integers(0, 3),
)
def test_selection_equals_a_slow_reference(labels, levels, per_class, threshold, seed):
    label = np.array(labels)
    confidence = np.random.default_rng(seed).integers(0, levels + 1, len(label)) / levels
    index = pseudo_label.select(confidence, label, 5, threshold, per_class, seed)
    expected = slow_select(confidence, label, 5, threshold, per_class)
    for number, images in expected.items():
        chosen = index[label[index] == number].tolist()
        assert list(dict.fromkeys(chosen)) == images  # the most confident, in order
        if images:
            assert len(chosen) == per_class
            copies = [chosen.count(image) for image in images]
            assert max(copies) - min(copies) <= 1  # no image much more often than another
    assert np.array_equal(
        index, pseudo_label.select(confidence, label, 5, threshold, per_class, seed)
    )


def test_confidence_must_exceed_the_threshold_strictly():
    index = pseudo_label.select(np.array([0.3, 0.31, 0.29]), np.zeros(3, int), 1, 0.3, 1)
    assert index.tolist() == [1]


def test_the_papers_numbers_are_the_defaults():
    index = pseudo_label.select(np.array([0.9, 0.2]), np.array([0, 0]), 1)
    assert index.tolist() == [0] * 130_000


def test_a_class_without_candidates_is_left_out_and_does_not_hang():
    index = pseudo_label.select(np.array([0.9, 0.8]), np.array([2, 2]), 4, per_class=3)
    assert set(index.tolist()) == {0, 1} and len(index) == 3
    assert len(pseudo_label.select(np.array([0.1]), np.array([0]), 4, per_class=3)) == 0


def test_which_images_are_duplicated_is_random_and_follows_the_seed():
    confidence, label = np.linspace(0.5, 0.9, 10), np.zeros(10, int)
    picks = {tuple(pseudo_label.select(confidence, label, 1, per_class=13, seed=seed))
             for seed in range(10)}
    assert len(picks) > 5


def test_without_balancing_every_confident_image_comes_once():
    confidence, label = np.array([0.9, 0.2, 0.5, 0.8]), np.array([0, 0, 0, 1])
    index = pseudo_label.select(confidence, label, 2, per_class=2, balance=False)
    assert sorted(index.tolist()) == [0, 2, 3]


def test_a_broken_confidence_is_an_error_that_names_the_image():
    with pytest.raises(ValueError, match="image 1"):
        pseudo_label.select(np.array([0.5, np.nan]), np.zeros(2, int), 1)


# ------------------------------------------------------------------ targets


def test_soft_targets_are_the_teachers_distribution():
    probabilities = torch.rand(5, 4).softmax(1)
    assert torch.equal(pseudo_label.make_targets(probabilities), probabilities)


def test_hard_targets_are_one_hot_at_the_largest():
    targets = pseudo_label.make_targets(torch.tensor([[0.2, 0.5, 0.3]]), "hard")
    assert targets.tolist() == [[0, 1, 0]]


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_temperature_is_that_of_the_logits(temperature):
    logits = torch.randn(6, 5)
    targets = pseudo_label.make_targets(logits.softmax(1), "soft", temperature)
    torch.testing.assert_close(targets, (logits / temperature).softmax(1))


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="soft or hard"):
        pseudo_label.make_targets(torch.ones(1, 2), "firm")


# ------------------------------------------------------------------ a labelled pool


def label(network, pool, out, **options):
    options = {"image_size": 32, "threshold": 0.05, "per_class": 6, "progress": None} | options
    return pseudo_label.label(network, pool, out, **options)


def test_stored_labels_hold_the_targets_of_the_selected_images(network, pool, tmp_path):
    labels = label(network, pool, tmp_path / "labels")
    probabilities = pseudo_label.predict(network, pool)
    torch.testing.assert_close(
        torch.tensor(labels.targets).float(), probabilities[torch.tensor(labels.index)],
        atol=1e-3, rtol=1e-3,
    )
    assert labels.counts["pool"] == len(pool) and labels.counts["balanced"] == len(labels.index)
    assert labels.counts["unique"] == len(np.unique(labels.index))


def test_accuracy_of_the_labels_is_measured_on_images_that_have_a_class(network, pool, tmp_path):
    labels = label(network, pool, tmp_path / "labels")
    guess, truth = pseudo_label.predict(network, pool).argmax(1).numpy(), pool.labels.numpy()
    used = [i for i in np.unique(labels.index) if truth[i] >= 0]
    assert labels.top1 == pytest.approx(100 * np.mean([guess[i] == truth[i] for i in used]))
    unknown = dataclasses.replace(pool, labels=torch.full_like(pool.labels, data.UNKNOWN))
    assert label(network, unknown, tmp_path / "unknown").top1 is None


def test_stale_or_foreign_labels_are_refused(network, pool, tmp_path):
    label(network, pool, tmp_path / "labels")
    label(network, pool, tmp_path / "labels")  # the same: read again
    with pytest.raises(data.InputError, match="threshold"):
        label(network, pool, tmp_path / "labels", threshold=0.06)
    with pytest.raises(data.InputError, match="pool"):
        label(network, pool.subset(torch.arange(50)), tmp_path / "labels")
    network.classifier.weight.data += 1
    with pytest.raises(data.InputError, match="teacher"):
        label(network, pool, tmp_path / "labels")


def test_half_written_labels_are_made_again(network, pool, tmp_path):
    whole = label(network, pool, tmp_path / "labels")
    (tmp_path / "labels" / "labels.json").unlink()
    with pytest.raises(data.InputError, match="complete"):
        pseudo_label.read_labels(tmp_path / "labels")
    again = label(network, pool, tmp_path / "labels")
    assert np.array_equal(whole.index, again.index)


def test_a_teacher_that_is_sure_of_nothing_is_an_error(network, pool, tmp_path):
    with pytest.raises(data.InputError, match="confidence over 0.999"):
        label(network, pool, tmp_path / "labels", threshold=0.999)
