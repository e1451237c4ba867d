"""The demo's images: distinct classes, and others in a part of the pool."""

import itertools

import numpy as np

from support import demo_images


def test_images_of_no_class_show_other_shapes_or_blends(monkeypatch):
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
