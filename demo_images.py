"""The demo's images: ten classes of 32x32 pictures, drawn from random numbers alone.

They need some learning: shapes and textures in any place, pose and colour, behind clutter and
noise. Beside the ten classes there are pictures of none of them: other shapes, bare backgrounds,
and blends of two classes, as the paper's pool is full of what ImageNet has no name for.

A shape is a signed distance: a function of coordinates in which the shape has about radius one;
negative inside, positive outside. That makes every shape one line, every pose a change of
coordinates, and every edge smooth: a pixel is covered by clip(1/2 - distance).

    python demo_images.py --out demo.png    draw some of them, one row for each class
"""

import argparse

import numpy as np
import torch
import torchvision
from PIL import Image, ImageDraw, ImageOps
from torch import Tensor

SIZE = 32  # pixels a side
RADIUS = (9.0, 12.0)  # pixels
TURN = 0.4  # radians, to either side
SHIFT = 0.6  # how far from the middle the shape may lie; 1 is as far as it stays in the picture
STRETCH = 0.15  # the aspect ratio varies within exp(+-2 * STRETCH)
OVERLAP = 0.1  # backgrounds are dark and shapes bright; this part of 0..1 is open to both
CONTRAST = 0.35  # least distance of a shape's colour from its background's; black to white: 1.73
CLUTTER = 0.25  # chance of each distractor: two lines and a disc behind the shape, a line before it
OCCLUSION = 0.15  # chance of a thick line before the shape
NOISE = 0.08  # largest standard deviation of the pixel noise; 1 is the way from black to white


def disc(x: np.ndarray, y: np.ndarray, radius: float | np.ndarray) -> np.ndarray:
    return np.hypot(x, y) - radius


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
    "disc": lambda x, y: disc(x, y, 0.9),
    "ring": lambda x, y: abs(disc(x, y, 0.75)) - 0.2,
    "square": lambda x, y: box(x, y, 0.8, 0.8),
    "triangle": lambda x, y: polygon(x, y, 3, 0.55),
    "star": lambda x, y: polygon(x, y, 5, 0.36, rank=1),
    "cross": lambda x, y: np.minimum(box(x, y, 1, 0.3), box(x, y, 0.3, 1)),
    "crescent": lambda x, y: np.maximum(disc(x, y, 1), -disc(x - 0.6, y, 0.8)),
    "stripes": lambda x, y: np.maximum(blob(x, y), abs(repeat(y, 0.6)) - 0.15),
    "checkerboard": lambda x, y: np.maximum(blob(x, y), 0.16 * np.sin(6.3 * x) * np.sin(6.3 * y)),
    "dots": lambda x, y: np.maximum(blob(x, y), disc(repeat(x, 0.6), repeat(y, 0.6), 0.18)),
}
OTHER_SHAPES = {
    "angle": lambda x, y: np.minimum(box(x + 0.6, y, 0.25, 0.9), box(x, y - 0.65, 0.85, 0.25)),
    "arrow": lambda x, y: np.minimum(box(x + 0.5, y, 0.5, 0.18), polygon(x - 0.3, y, 3, 0.35)),
    "half moon": lambda x, y: np.maximum(disc(x, y, 1), x),
    "bar": lambda x, y: box(x, y, 1, 0.3),
    "waves": lambda x, y: abs(repeat(y + 0.25 * np.sin(4 * x), 0.7)) - 0.17,
    "nothing": lambda x, y: np.ones_like(x),
}
CLASSES = tuple(SHAPES)


def draw_kinds(kinds: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """One picture of each of the n shapes named in `kinds`: (n, 3, 32, 32) float32 in 0..1."""
    row, column = np.mgrid[:SIZE, :SIZE].astype(np.float32) - (SIZE - 1) / 2

    def uniform(low: float, high: float, *shape: int) -> np.ndarray:
        """(n, *shape, 1, 1), to be combined with the (32, 32) coordinates."""
        return random.uniform(low, high, (len(kinds), *shape, 1, 1)).astype(np.float32)

    def paint(distance: np.ndarray, colour: np.ndarray, chance: float = 1.0) -> None:
        """Lay colour (n, 3, 1, 1) over the canvas where distance (n, 32, 32), in pixels, is < 0."""
        coverage = (0.5 - distance).clip(0, 1) * (uniform(0, 1) < chance)
        canvas[:] += coverage[:, None] * (colour - canvas)

    def paint_line(narrow: float, wide: float, chance: float) -> None:
        """Between two random points, in a random colour."""
        x, y, dx, dy = uniform(-20, 20), uniform(-20, 20), uniform(-30, 30), uniform(-30, 30)
        along = (((column - x) * dx + (row - y) * dy) / (dx**2 + dy**2 + 1)).clip(0, 1)
        distance = disc(column - x - along * dx, row - y - along * dy, uniform(narrow, wide))
        paint(distance, uniform(0, 1, 3), chance)

    # The background: a slope from one colour to another under a faint grating, then clutter.
    background = uniform(0, (1 + OVERLAP) / 2, 3)
    canvas = background + uniform(-0.01, 0.01, 3) * row + uniform(-0.01, 0.01, 3) * column
    phase = uniform(-0.8, 0.8) * row + uniform(-0.8, 0.8) * column + uniform(0, 6.3)
    canvas += (uniform(0, 0.1) * np.sin(phase))[:, None]
    paint_line(0.3, 1.0, CLUTTER)
    paint_line(0.3, 1.0, CLUTTER)
    spot = disc(column - uniform(-16, 16), row - uniform(-16, 16), uniform(1.5, 4))
    paint(spot, uniform(0, 1, 3), CLUTTER)

    # The shape: its own coordinates are the image's, moved, turned, scaled and stretched.
    radius, angle, stretch = uniform(*RADIUS), uniform(-TURN, TURN), uniform(-STRETCH, STRETCH)
    margin = (SIZE / 2 - radius).clip(0)
    x, y = column - uniform(-SHIFT, SHIFT) * margin, row - uniform(-SHIFT, SHIFT) * margin
    x, y = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    x, y = x / radius * np.exp(stretch), y / radius * np.exp(-stretch)
    distance = np.empty_like(x)
    for kind in np.unique(kinds):
        distance[kinds == kind] = (SHAPES | OTHER_SHAPES)[kind](x[kinds == kind], y[kinds == kind])
    colour = uniform((1 - OVERLAP) / 2, 1, 3)
    close = np.linalg.norm(colour - background, axis=1, keepdims=True) < CONTRAST
    paint(distance * radius, np.where(close, (background + 0.5) % 1, colour))

    paint_line(0.3, 1.0, CLUTTER)
    paint_line(1.5, 2.5, OCCLUSION)
    canvas += uniform(0, NOISE, 1) * random.standard_normal(canvas.shape, np.float32)
    return canvas.clip(0, 1)


def draw(classes: np.ndarray, stream: tuple[int, int]) -> Tensor:
    """Pictures of `classes` (N,), negative for none of them: (N, 3, 32, 32) uint8.

    stream: seeds the random numbers; another one gives other pictures.
    """
    random, names, pixels = np.random.default_rng(stream), np.array(CLASSES), []
    for some in np.array_split(classes, len(classes) // 250 + 1):  # few at a time: fits the cache
        others = random.choice([*OTHER_SHAPES, "blend"], len(some))
        kinds = np.where(some < 0, others, names[some])
        # A blend is the mean of pictures of two classes.
        blend = kinds == "blend"
        first = random.integers(len(names), size=len(some))
        second = (first + random.integers(1, len(names), size=len(some))) % len(names)
        pictures = draw_kinds(np.where(blend, names[first], kinds), random)
        pictures[blend] = (pictures[blend] + draw_kinds(names[second[blend]], random)) / 2
        pixels.append(torch.from_numpy((pictures * 255).round().astype(np.uint8)))
    return torch.cat(pixels)


def contact_sheet(seed: int, columns: int = 16) -> Image.Image:
    """A row of pictures for each class, and a last one of pictures of none."""
    pixels = draw(np.array([*range(len(CLASSES)), -1]).repeat(columns), (seed, 5))
    grid = torchvision.utils.make_grid(pixels, nrow=columns, padding=2, pad_value=255)
    sheet = ImageOps.scale(Image.fromarray(grid.permute(1, 2, 0).numpy()), 2, Image.Resampling.BOX)
    sheet = ImageOps.expand(sheet, (100, 0, 0, 0), "white")
    for row, name in enumerate((*CLASSES, "no class")):
        ImageDraw.Draw(sheet).text((8, row * 68 + 30), name, fill="black")
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw some of the demo's images.")
    parser.add_argument("--out", required=True, metavar="FILE.png", help="where to write them")
    parser.add_argument("--seed", type=int, default=0, help="of the images, from 0")
    arguments = parser.parse_args()
    try:
        contact_sheet(arguments.seed).save(arguments.out)
    except (OSError, ValueError) as error:  # cannot be written; not an image's name; a seed below 0
        parser.error(str(error))


if __name__ == "__main__":
    main()
