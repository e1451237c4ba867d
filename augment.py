"""Input noise: RandAugment, Cutout, crops and flips, on whole batches of uint8 images.

Noisy Student Training (https://arxiv.org/abs/1911.04252), sections 2 ("Noising Student") and 3.1:
the student gets RandAugment images (two operations, magnitude 27); its teacher labels clean ones.
RandAugment: https://arxiv.org/abs/1909.13719. The authors chose the sixteen operations; here each
equals PIL's, or a chain of PIL's functions, bit for bit. Each works by one of four mechanisms:

    blend     with a degenerate copy of the image       Color, Sharpness
    look-up   a 256-entry table per image and channel   AutoContrast, Equalize, Invert, Contrast,
                                                        Posterize, Solarize, SolarizeAdd, Brightness
    warp      nearest neighbour, empty pixels grey      Rotate, ShearX/Y, TranslateX/Y
    mask      a grey square                             Cutout

Randomness is kept apart from pixels: `RandAugment.draw` samples a few numbers per image on the
CPU, `apply` is a function of images and numbers alone. So equal seeds give equal batches on
CPU, CUDA and XLA, whichever process noises an image.

    python results/draw_operations.py --out results/randaugment.png   plots every operation
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Generator, Tensor

from support import batches, devices, kernels
from support.images import DEVIATION, MEAN, center_crop

EMPTY = 128  # grey level of the pixels that a warp or Cutout leaves without content

# ---- The operations and their strengths ----


class Strength(NamedTuple):
    """How magnitude m becomes a physical value: rounded(start + slope * m / 10)."""

    start: float = 0.0
    slope: float = 0.0  # the value gained at magnitude 10, AutoAugment's maximum
    rounded: Callable[[float], float] = float
    signed: bool = False  # half of the draws are negative


# authors: AutoAugment's scale ends at 10, so that 27 is 2.7 times its maximum (timm clips at 10).
# Torchvision's scale ends at 30: its 27 rotates and shears like 9 here.
STRENGTHS = {  # values at magnitudes 0 and 10; after the semicolon the one that changes nothing
    "AutoContrast": Strength(), "Equalize": Strength(), "Invert": Strength(),
    "Rotate": Strength(slope=30, signed=True),               # 0 to 30° counter-clockwise; 0
    # Posterize: bits kept, 1 to 4; 8. Solarize: first level inverted, 0 to 255, 0 at 10; 256.
    # authors: both weaken with m, then wrap around; m = 27 keeps 1 bit, and inverts from 179 on.
    "Posterize": Strength(slope=4, rounded=lambda bits: 8 - min((8 - math.floor(bits)) % 256, 7)),
    "Solarize": Strength(slope=256, rounded=lambda level: math.floor(level) % 256),
    "SolarizeAdd": Strength(slope=110, rounded=math.floor),  # adds 0 to 110 to levels < 128; 0
    "Color": Strength(start=0.1, slope=1.8),                 # factor 0.1 to 1.9, 0 is grey; 1
    "Contrast": Strength(start=0.1, slope=1.8),              # factor 0.1 to 1.9, 0: mean grey; 1
    "Brightness": Strength(start=0.1, slope=1.8),            # factor 0.1 to 1.9, 0 is black; 1
    "Sharpness": Strength(start=0.1, slope=1.8),             # factor 0.1 to 1.9, 0: smooth; 1
    "ShearX": Strength(slope=0.3, signed=True),              # 0 to 0.3 columns per row; 0
    "ShearY": Strength(slope=0.3, signed=True),              # 0 to 0.3 rows per column; 0
    "TranslateX": Strength(slope=100, signed=True),          # 0 to 100 pixels; 0
    "TranslateY": Strength(slope=100, signed=True),          # 0 to 100 pixels; 0
    "Cutout": Strength(slope=40, rounded=math.floor),        # half side of 0 to 40 pixels; 0
}
OPERATIONS = tuple(STRENGTHS)


def level_to_value(name: str, magnitude: float, image_size: int) -> float:
    """The physical value (units: `STRENGTHS`) of an operation at a magnitude, sign positive, for
    `image_size` pixels a side. KeyError for an unknown name, ValueError for a negative magnitude.
    """
    start, slope, rounded, _ = STRENGTHS[name]
    if magnitude < 0:
        raise ValueError(f"magnitude {magnitude} is not on the scale, which begins at 0")
    # authors: 100 and 40 px on ImageNet, side // 8 at 32x32; here: side // 8 up to 128 px.
    if name in ("TranslateX", "TranslateY", "Cutout") and image_size <= 128:
        slope = image_size // 8
    return float(rounded(start + slope * (magnitude / 10)))


# ---- Mechanism 1: blends with a degenerate image ----


def blend(degenerate: Tensor, images: Tensor, factor: Tensor) -> Tensor:
    """degenerate + factor * (images - degenerate) in float32, truncated to uint8, as in PIL."""
    degenerate = degenerate.float()
    # The first clamp changes no value: it keeps a compiler from fusing the product and the sum
    # into one rounding, which would move some levels by one.
    change = (images.float() - degenerate).mul_(factor).clamp_(-65536, 65536)
    # By way of int16: a CPU converts to that four times faster.
    return change.add_(degenerate).clamp_(0, 255).short().to(torch.uint8)


def _luma(images: Tensor) -> Tensor:
    """ITU-R 601 luma in PIL's fixed point: uint8 (N, 3, H, W) -> int32 (N, 1, H, W)."""
    # authors: truncate it for Color; here: rounded, as in PIL.
    red, green, blue = images.int().split(1, dim=1)
    luma = red.mul_(19595).add_(green, alpha=38470).add_(blue, alpha=7471)
    return luma.add_(32768).bitwise_right_shift_(16)


def _smooth(images: Tensor) -> Tensor:
    """3x3 mean, the centre counted five times; border pixels stay (PIL's SMOOTH). As float32."""
    # authors: truncate the mean to a byte; here: rounded, as in PIL.
    pixels, smooth = images.short(), images.float()
    rows = (pixels[:, :, :-2] + pixels[:, :, 1:-1]).add_(pixels[:, :, 2:])
    total = (rows[..., :-2] + rows[..., 1:-1]).add_(rows[..., 2:])
    total.add_(pixels[:, :, 1:-1, 1:-1], alpha=4)
    smooth[:, :, 1:-1, 1:-1].copy_(total).mul_(1 / 13).round_()  # 13 is odd: there are no ties
    return smooth


DEGENERATES = {"Color": _luma, "Sharpness": _smooth}


# ---- Mechanism 2: look-up tables ----
# `kernels.look_up` replaces every level by its table's entry: tables.gather(2, images.flatten(2)).
# Tables broadcast to (N, 3, 256); they are computed from images (N, 3, H, W), the levels 0..255 as
# (1, 1, 256) int32, and values (N, 1, 1). For Contrast and Brightness, which blend with
# a single grey level, a table is enough, too.


def _auto_contrast(images: Tensor, levels: Tensor, _: Tensor) -> Tensor:
    """Maps the darkest level to 0, the brightest to 255, in double precision as in PIL."""
    # Apple's GPUs have no doubles: there, some entries differ by one level.
    real = torch.float32 if images.device.type == "mps" else torch.float64
    low = images.flatten(2).amin(2, keepdim=True).to(real)
    high = images.flatten(2).amax(2, keepdim=True).to(real)
    span = (high - low).clamp(min=1)
    scale = torch.full_like(span, 255) / span  # 255 * (1 / span) would round twice
    stretched = (levels * scale).clamp(min=0) - (low * scale).clamp(min=0)  # clamps as in `blend`
    return torch.where(high > low, stretched.clamp(0, 255).int(), levels)


def _equalize(images: Tensor, levels: Tensor, _: Tensor) -> Tensor:
    """Flattens the histogram: each level becomes 255 times the share of the pixels below it."""
    counts = kernels.histogram(images)  # (N, 3, 256)
    below = counts.cumsum(2, dtype=torch.int32) - counts
    # Pixels per output level; as in PIL, those of the brightest input level do not count.
    step = (below * (counts > 0)).amax(2, keepdim=True) // 255
    table = ((below + step // 2) // step.clamp(min=1)).clamp(max=255)
    return torch.where(step > 0, table, levels)


def _contrast(images: Tensor, levels: Tensor, factor: Tensor) -> Tensor:
    """Blends with the mean luma, rounded half up."""
    # authors: blend with grey level min(255, height * width / 256), a bug; here: as in PIL.
    total = _luma(images).sum(3, dtype=torch.int32).sum(2, keepdim=True)
    count = images.shape[2] * images.shape[3]
    return blend((2 * total + count) // (2 * count), levels, factor)


TABLES = {
    "AutoContrast": _auto_contrast,
    "Equalize": _equalize,
    "Invert": lambda images, levels, _: 255 - levels,
    "Posterize": lambda images, levels, bits: levels & (-1 << (8 - bits.int())).to(levels.dtype),
    "Solarize": lambda images, levels, start: torch.where(levels < start, levels, 255 - levels),
    "SolarizeAdd": lambda images, levels, addition: torch.where(
        levels < 128, (levels + addition.int()).clamp(0, 255), levels),
    "Contrast": _contrast,
    "Brightness": lambda images, levels, factor: blend(torch.zeros_like(factor), levels, factor),
}


# ---- Mechanism 3: warps ----
# A matrix (a, b, c, d, e, f) takes the output's point (x, y) to the source's (a x + b y + c,
# d x + e y + f). x points right, y down, from the top left corner; pixel centres are at n + 1/2.


def _rotation(degrees: float, x: float, y: float) -> tuple[float, ...]:
    """Counter-clockwise about the image's centre (x, y)."""
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return cosine, -sine, x - cosine * x + sine * y, sine, cosine, y - sine * x - cosine * y


# authors: shear pixels by their corners, half a pixel off; here: by their centres, as in PIL.
MATRICES = {
    "Rotate": _rotation,
    "ShearX": lambda value, *_: (1, value, 0, 0, 1, 0),  # the top left corner stays
    "ShearY": lambda value, *_: (1, 0, 0, value, 1, 0),
    "TranslateX": lambda value, *_: (1, 0, value, 0, 1, 0),  # positive: the picture moves left
    "TranslateY": lambda value, *_: (1, 0, 0, 0, 1, value),  # positive: up
}


def matrix(name: str, value: float, height: int, width: int) -> list[int]:
    """Six integers mapping pixel indices to source pixels, in PIL's 16.16 fixed point; value: as in
    `STRENGTHS`. The identity where `name` is not a warp.
    """
    affine = MATRICES.get(name, lambda *_: (1, 0, 0, 0, 1, 0))
    a, b, c, d, e, f = affine(value, width / 2, height / 2)
    entries = (a, b, c + (a + b) / 2, d, e, f + (d + e) / 2)
    return [math.floor(entry * 65536 + 0.5) for entry in entries]


def coordinates(images: Tensor) -> tuple[Tensor, Tensor]:
    """The row numbers (1, H, 1) and column numbers (1, 1, W) of the images, int32."""
    y, x = (torch.arange(n, dtype=torch.int32, device=images.device) for n in images.shape[2:])
    return y.view(1, -1, 1), x.view(1, 1, -1)


def pixels_at(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Pixels of (N, 3, *, *) at rows and columns that broadcast to (N, H, W) -> (N, 3, H, W)."""
    index = torch.add(columns, rows, alpha=images.shape[3])
    index_of_channels = index.flatten(1).long().unsqueeze(1).expand(-1, images.shape[1], -1)
    return images.flatten(2).gather(2, index_of_channels).unflatten(2, index.shape[1:])


def warp(images: Tensor, matrices: list[list[int]]) -> Tensor:
    """Nearest-neighbour affine warps of uint8 (N, 3, H, W), by N results of `matrix`."""
    (height, width), (y, x) = images.shape[2:], coordinates(images)
    fixed = devices.send(torch.IntTensor(matrices), images.device).view(-1, 2, 3, 1, 1)
    # A frame of empty pixels, one wide, catches all coordinates outside the image; 1 << 16 is
    # the step from the framed image's corner to the image's. The shift rounds down.
    framed = F.pad(images, (1, 1, 1, 1), value=EMPTY)
    places = fixed[:, :, 0] * x + (fixed[:, :, 1] * y + (fixed[:, :, 2] + (1 << 16)))
    columns, rows = places.bitwise_right_shift_(16).unbind(1)  # (N, H, W) each
    return pixels_at(framed, rows.clamp_(0, height + 1), columns.clamp_(0, width + 1))


# ---- Mechanism 4: the mask ----


def cutout(images: Tensor, centers: Tensor, half: Tensor) -> Tensor:
    """Grey squares on uint8 (N, 3, H, W): centers (N, 2) as row and column, half sides (N,).

    They cover the image's rows and columns from center - half to center + half - 1.
    """
    y, x = coordinates(images)
    (row, column), half = centers.view(-1, 2, 1, 1).unbind(1), half.view(-1, 1, 1)
    rows = (row - half <= y) & (y < row + half)  # (N, H, 1)
    columns = (column - half <= x) & (x < column + half)  # (N, 1, W)
    mask = rows.to(torch.uint8) * columns.to(torch.uint8)
    return kernels.where(mask.unsqueeze(1), EMPTY, images)


# ---- RandAugment: draw and apply ----


@dataclass(frozen=True)
class RandAugment:
    """`num_ops` operations per image, drawn uniformly with replacement and always applied."""

    # paper: two operations, magnitude 27 (section 3.1).
    # authors: 27 for B7 and L2; none for B0 and B1; 6, 12, 15, 18, 24 for B2 to B6; 5 for SVHN.
    num_ops: int = 2
    magnitude: float = 27

    def draw(self, chance: batches.Chance, height: int, width: int) -> Tensor:
        """The operations of N images of height x width pixels, (N, num_ops, 4) float64: an index in
        OPERATIONS, its signed value, the row and the column of Cutout's centre.
        """
        values = []  # of each operation, with either sign
        for name, strength in STRENGTHS.items():
            value = level_to_value(name, self.magnitude, min(height, width))
            values.append((value, -value if strength.signed else value))
        shape = (self.num_ops,)  # of each image's numbers
        operation, sign = chance.randint(len(OPERATIONS), shape), chance.randint(2, shape)
        value = torch.tensor(values, dtype=torch.float64)[operation, sign]
        row, column = chance.randint(height, shape), chance.randint(width, shape)
        return torch.stack([operation, value, row, column], dim=2)

    def __call__(self, images: Tensor, generator: Generator | None = None) -> Tensor:
        """uint8 (N, 3, H, W) -> uint8 (N, 3, H, W); a CPU generator draws (None: torch's own)."""
        draws = self.draw(batches.Chance.of(images, generator), *images.shape[2:])
        return apply(images, draws)


def apply(images: Tensor, draws: Tensor) -> Tensor:
    """The drawn operations, one after another: uint8 (N, 3, H, W), (N, num_ops, 4) -> uint8."""
    if not draws.numel():
        return images
    if images.device.type != "xla":  # the same, grouped by operation: faster
        return kernels.grouped(images, draws, OPERATIONS, apply_operation)
    for drawn in draws.unbind(1):  # no shape depends on the draws: XLA compiles once for all
        images = apply_drawn(images, drawn)
    return images


def apply_drawn(images: Tensor, drawn: Tensor) -> Tensor:
    """Each image's own operation, drawn (N, 4); the other mechanisms leave it as it is."""
    (height, width), device = images.shape[2:], images.device
    matrices = [matrix(OPERATIONS[int(operation)], value, height, width)
                for operation, value in drawn[:, :2].tolist()]
    operations = devices.send(drawn[:, 0].long(), device)
    values = devices.send(drawn[:, 1].float(), device)

    def choose(functions: dict, result: Tensor, *inputs: Tensor) -> Tensor:
        """The result of each image's own function; `result` where it has none."""
        for name, function in functions.items():
            chosen = (operations == OPERATIONS.index(name)).view(-1, *[1] * (result.dim() - 1))
            result = torch.where(chosen, function(images, *inputs).to(result.dtype), result)
        return result

    levels = torch.arange(256, dtype=torch.int32, device=device).view(1, 1, 256)
    tables = choose(TABLES, levels, levels, values.view(-1, 1, 1))
    degenerate = choose(DEGENERATES, images.float())
    images = blend(degenerate, images, values.view(-1, 1, 1, 1))
    images = warp(kernels.look_up(images, tables), matrices)
    half = torch.where(operations == OPERATIONS.index("Cutout"), values, 0)
    return cutout(images, devices.send(drawn[:, 2:].float(), device), half)


def apply_operation(images: Tensor, name: str, values: Tensor,
                    centers: Tensor | None = None) -> Tensor:
    """The same operation on all images, by its mechanism alone: uint8 (N, 3, H, W) -> uint8.

    `values` (N,) are physical (`STRENGTHS`), signed where a sign applies and within their range.
    `centers` (N, 2) are Cutout's rows and columns, by default the middle. Both are on the CPU.
    Raises ValueError for an unknown name.
    """
    if name not in OPERATIONS:
        raise ValueError(f"unknown operation {name!r}: use one of {', '.join(OPERATIONS)}")
    (count, _, height, width), device = images.shape, images.device
    if centers is None:
        centers = torch.tensor([height // 2, width // 2]).expand(count, 2)
    if not count:
        return images
    if device.type == "xla":
        index = torch.full_like(values, OPERATIONS.index(name))
        return apply_drawn(images, torch.column_stack([index, values, centers]).double())
    if name in MATRICES:
        matrices = [matrix(name, value, height, width) for value in values.tolist()]
        faster = kernels.WARPS.get(name) if device.type == "cpu" else None
        return faster(images, matrices, EMPTY) if faster else warp(images, matrices)
    values = devices.send(values.float(), device)
    if name == "Cutout":
        return cutout(images, devices.send(centers.float(), device), values)
    if name in DEGENERATES:
        return blend(DEGENERATES[name](images), images, values.view(-1, 1, 1, 1))
    if name in ("Invert", "Posterize"):  # one instruction per pixel, cheaper than a look-up
        return TABLES[name](images, images, values.view(-1, 1, 1, 1))
    levels = torch.arange(256, dtype=torch.int32, device=device).view(1, 1, 256)
    return kernels.look_up(images, TABLES[name](images, levels, values.view(-1, 1, 1)))


# ---- The pipelines of training ----
# Both take uint8 (N, 3, H, W) to uint8 (N, 3, H, W). `chance` knows each image's place in the
# whole batch, so dividing that among micro-batches or processes changes nothing.


def augment_cifar(images: Tensor, rand_augment: RandAugment, chance: batches.Chance,
                  flip: bool = True) -> Tensor:
    """RandAugment and a square of Cutout, a random crop after reflect-padding, a flip."""
    # authors: a 16x16 square, only with RandAugment; padding by 4; here: both grow with images.
    height, width = images.shape[2:]
    images = apply(images, rand_augment.draw(chance, height, width))
    half, pad = min(height, width) // 4, min(height, width) // 8
    row, column, top, left = (devices.send(chance.randint(high).int(), images.device)
                              for high in (height, width, 2 * pad + 1, 2 * pad + 1))
    if rand_augment.num_ops:
        images = cutout(images, torch.stack([row, column], dim=1), torch.full_like(row, half))
    y, x = coordinates(images)  # from the output back to the source: the last step comes first
    if flip:
        mirrored = devices.send(chance.randint(2), images.device).view(-1, 1, 1) == 1
        x = torch.where(mirrored, width - 1 - x, x)

    def reflect(position: Tensor, size: int) -> Tensor:
        return size - 1 - (size - 1 - position.abs()).abs()

    y, x = y + top.view(-1, 1, 1) - pad, x + left.view(-1, 1, 1) - pad
    return pixels_at(images, reflect(y, height), reflect(x, width))


def augment_imagenet(images: Tensor, rand_augment: RandAugment, chance: batches.Chance,
                     flip: bool = True) -> Tensor:
    """A flip, then RandAugment; `random_resized_crop` comes before, when files are decoded."""
    if flip:
        mirrored = devices.send(chance.randint(2), images.device).view(-1, 1, 1, 1)
        images = kernels.where(mirrored, images.flip(3), images)
    return apply(images, rand_augment.draw(chance, *images.shape[2:]))


def random_resized_crop(image: Image.Image, size: int,
                        generator: Generator | None = None) -> Image.Image:
    """A random part, 8-100 % of the area, ratio 3/4-4/3 (log-uniform), bicubic to size x size."""
    # authors: TensorFlow's sampler, mean area 38.8 % of 500x375; here: torchvision's, 43.3 %.
    # authors: bicubic that skips pixels when it shrinks; here: antialiased, as in PIL.
    width, height = image.size
    for _ in range(10):
        share, exponent = torch.rand(2, generator=generator).tolist()
        area, ratio = width * height * (0.08 + 0.92 * share), (4 / 3) ** (2 * exponent - 1)
        crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left = int(torch.randint(width - crop_width + 1, (), generator=generator))
            top = int(torch.randint(height - crop_height + 1, (), generator=generator))
            box = (left, top, left + crop_width, top + crop_height)
            return image.resize((size, size), Image.Resampling.BICUBIC, box=box)
    return center_crop(image, size)  # none of ten fitted, as in a very long image


def normalize(images: Tensor) -> Tensor:
    """(images / 255 - mean) / std with ImageNet's statistics: (N, 3, H, W), uint8 or float in
    0..255, to float32; differentiable for float images.
    """
    # authors: SVHN by its own mean and deviation; here: every set by ImageNet's.
    mean, std = devices.send(torch.tensor([MEAN, DEVIATION]), images.device).view(2, 1, 3, 1, 1)
    return (images - 255 * mean) / (255 * std)
