"""The demo's images: distinct classes, drawn anew from each seed."""

import itertools

import numpy as np
import torch

from support import demo_images


def test_pictures_follow_their_seed():
    classes = np.arange(-1, 10)
    pictures = demo_images.draw(classes, (0, 1))
    assert pictures.shape == (11, 3, 32, 32) and pictures.dtype == torch.uint8
    assert torch.equal(pictures, demo_images.draw(classes, (0, 1)))
    assert not torch.equal(pictures, demo_images.draw(classes, (0, 2)))


def test_pictures_of_no_class_show_other_shapes_or_blends(monkeypatch):
    kinds, real = [], demo_images.draw_kinds
    monkeypatch.setattr(demo_images, "draw_kinds", lambda names, random: (
        kinds.append({*names.tolist()}) or real(names, random)))
    demo_images.draw(np.full(99, -2), (0, 1))
    assert {*demo_images.OTHER_SHAPES} < kinds[0]
    assert kinds[0] - {*demo_images.OTHER_SHAPES} <= {*demo_images.CLASSES} >= kinds[1]
    assert not {*demo_images.OTHER_SHAPES} & {*demo_images.CLASSES}


def test_every_demo_shape_is_distinct_and_neither_empty_nor_full():
    x, y = np.meshgrid(np.linspace(-1.5, 1.5, 60), np.linspace(-1.5, 1.5, 60))
    shapes = {name: shape(x, y) < 0 for name, shape in demo_images.SHAPES.items()}
    for shape in shapes.values():
        assert 0.05 < shape.mean() < 0.6
    for one, other in itertools.combinations(shapes.values(), 2):
        assert (one != other).mean() > 0.04
