"""The demo's images: ten classes of 32x32 pictures, drawn from random numbers alone.

They need some learning: shapes and textures in any place, pose and colour, among clutter and
noise. Some pictures show none of the ten: other shapes, bare backgrounds, and blends of two
classes, as the paper's pool is full of what ImageNet has no name for.

A shape is a signed distance, negative inside and positive outside: a function of coordinates in
which the shape has a radius of about one. That makes every shape one line, every pose a change of
coordinates, and every edge smooth: clip(1/2 - distance) of a pixel is covered.
"""

import numpy as np
import torch
from torch import Tensor


def box(x: np.ndarray, y: np.ndarray, width: float, height: float) -> np.ndarray:
    return np.maximum(abs(x) - width, abs(y) - height)


def polygon(x: np.ndarray, y: np.ndarray, corners: int, inner: float, rank: int = 0) -> np.ndarray:
    """Points beyond at most `rank` of the edges: 0 is a regular polygon, 1 the star around it."""
    angles = 2 * np.pi * np.arange(corners) / corners
    return np.sort([x * np.cos(a) + y * np.sin(a) - inner for a in angles], axis=0)[-1 - rank]


def blob(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.hypot(x, y) - 0.95 - 0.15 * np.sin(3 * np.arctan2(y, x))


def repeat(x: np.ndarray, period: float) -> np.ndarray:
    """Coordinates that start again every `period`, from -period / 2 to period / 2."""
    return x - period * np.round(x / period)


SHAPES = {
    "disc": lambda x, y: np.hypot(x, y) - 0.9,
    "ring": lambda x, y: abs(np.hypot(x, y) - 0.75) - 0.2,
    "square": lambda x, y: box(x, y, 0.8, 0.8),
    "triangle": lambda x, y: polygon(x, y, 3, 0.55),
    "star": lambda x, y: polygon(x, y, 5, 0.36, rank=1),
    "cross": lambda x, y: np.minimum(box(x, y, 1, 0.3), box(x, y, 0.3, 1)),
    "crescent": lambda x, y: np.maximum(np.hypot(x, y) - 1, 0.8 - np.hypot(x - 0.6, y)),
    "stripes": lambda x, y: np.maximum(blob(x, y), abs(repeat(y, 0.6)) - 0.15),
    "checkerboard": lambda x, y: np.maximum(blob(x, y), 0.16 * np.sin(6.3 * x) * np.sin(6.3 * y)),
    "dots": lambda x, y: np.maximum(blob(x, y), np.hypot(repeat(x, 0.6), repeat(y, 0.6)) - 0.18),
}
OTHER_SHAPES = {
    "angle": lambda x, y: np.minimum(box(x + 0.6, y, 0.25, 0.9), box(x, y - 0.65, 0.85, 0.25)),
    "arrow": lambda x, y: np.minimum(box(x + 0.5, y, 0.5, 0.18), polygon(x - 0.3, y, 3, 0.35)),
    "half moon": lambda x, y: np.maximum(np.hypot(x, y) - 1, x),
    "bar": lambda x, y: box(x, y, 1, 0.3),
    "waves": lambda x, y: abs(repeat(y + 0.25 * np.sin(4 * x), 0.7)) - 0.17,
    "nothing": lambda x, y: np.ones_like(x),
}
CLASSES = tuple(SHAPES)


def draw_kinds(kinds: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """One picture of each of the n shapes named in `kinds`: (n, 3, 32, 32) float32 in 0..1."""
    row, column = np.mgrid[:32, :32].astype(np.float32) - 15.5  # from the centre

    def uniform(low: float, high: float, *shape: int) -> np.ndarray:
        """(n, *shape, 1, 1), to be combined with the (32, 32) coordinates."""
        return random.uniform(low, high, (len(kinds), *shape, 1, 1)).astype(np.float32)

    def paint(distance: np.ndarray, colour: np.ndarray, chance: float) -> None:
        """Lay colour (n, 3, 1, 1) over the canvas where distance (n, 32, 32), in pixels, is < 0."""
        coverage = (0.5 - distance).clip(0, 1) * (uniform(0, 1) < chance)
        canvas[:] += coverage[:, None] * (colour - canvas)

    def paint_line(narrow: float = 0.3, wide: float = 1.0, chance: float = 0.25) -> None:
        """Paint a line between two random points, in a random colour."""
        x, y, dx, dy = uniform(-20, 20), uniform(-20, 20), uniform(-30, 30), uniform(-30, 30)
        along = (((column - x) * dx + (row - y) * dy) / (dx**2 + dy**2 + 1)).clip(0, 1)
        distance = np.hypot(column - x - along * dx, row - y - along * dy) - uniform(narrow, wide)
        paint(distance, uniform(0, 1, 3), chance)

    # The background: a dark colour gradient under a faint grating; then perhaps clutter.
    background = uniform(0, 0.55, 3)
    canvas = background + uniform(-0.01, 0.01, 3) * row + uniform(-0.01, 0.01, 3) * column
    phase = uniform(-0.8, 0.8) * row + uniform(-0.8, 0.8) * column + uniform(0, 6.3)
    canvas += (uniform(0, 0.1) * np.sin(phase))[:, None]
    paint_line()
    paint_line()
    spot = np.hypot(column - uniform(-16, 16), row - uniform(-16, 16)) - uniform(1.5, 4)
    paint(spot, uniform(0, 1, 3), chance=0.25)

    # The shape: its own coordinates are the image's, moved, turned, scaled and stretched.
    radius, angle, stretch = uniform(9, 12), uniform(-0.4, 0.4), uniform(-0.15, 0.15)
    margin = (16 - radius).clip(0)  # how far it can move within the picture
    x, y = column - uniform(-0.6, 0.6) * margin, row - uniform(-0.6, 0.6) * margin
    x, y = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    x, y = x / radius * np.exp(stretch), y / radius * np.exp(-stretch)
    distance = np.empty_like(x)
    for kind in np.unique(kinds):
        distance[kinds == kind] = (SHAPES | OTHER_SHAPES)[kind](x[kinds == kind], y[kinds == kind])
    colour = uniform(0.45, 1, 3)  # bright
    close = np.linalg.norm(colour - background, axis=1, keepdims=True) < 0.35
    paint(distance * radius, np.where(close, (background + 0.5) % 1, colour), chance=1)

    # Lines in front of it, one of them thick, and noise of a standard deviation of up to 0.08.
    paint_line()
    paint_line(1.5, 2.5, chance=0.15)
    canvas += uniform(0, 0.08, 1) * random.standard_normal(canvas.shape, np.float32)
    return canvas.clip(0, 1)


def draw(classes: np.ndarray, stream: tuple[int, int]) -> Tensor:
    """Pictures of `classes` (N,), negative for none of them: (N, 3, 32, 32) uint8.

    stream: seeds the random numbers; another one gives other pictures.
    """
    random, names, pixels = np.random.default_rng(stream), np.array(CLASSES), []
    for some in np.array_split(classes, len(classes) // 250 + 1):  # few at a time: fits the cache
        others = random.choice([*OTHER_SHAPES, "blend"], len(some))
        kinds = np.where(some < 0, others, names[some])
        blend = kinds == "blend"  # the mean of pictures of two classes
        first = random.integers(len(names), size=len(some))
        second = (first + random.integers(1, len(names), size=len(some))) % len(names)
        pictures = draw_kinds(np.where(blend, names[first], kinds), random)
        pictures[blend] = (pictures[blend] + draw_kinds(names[second[blend]], random)) / 2
        pixels.append(torch.from_numpy((pictures * 255).round().astype(np.uint8)))
    return torch.cat(pixels)
