"""Input noise: RandAugment, crops, flips and normalisation, on whole batches of uint8 images.

Noisy Student Training (https://arxiv.org/abs/1911.04252), section 2 ("Noising Student") and 3.1:
the student sees RandAugment images (two operations, magnitude 27), its teacher clean ones.
RandAugment is https://arxiv.org/abs/1909.13719. Its sixteen operations are AutoAugment's, each
equal to its counterpart in PIL bit for bit, and all of them are one of four mechanisms:

    look-up   a 256-entry table per image and channel   AutoContrast, Equalize, Invert, Posterize,
                                                        Solarize, SolarizeAdd, Contrast, Brightness
    blend     with a degenerate copy of the image       Color, Sharpness
    warp      nearest neighbour, empty pixels grey      Rotate, ShearX/Y, TranslateX/Y
    mask      a grey square                             Cutout

Chance is kept apart from pixels: `draw` takes a few numbers per image from a CPU generator, `apply`
is a function of images and numbers alone. So equal seeds give equal batches on CPU, CUDA and XLA,
and the pixel part can have static shapes, which XLA compiles once for all draws.

    python augment.py --out results/randaugment.png [--image FILE]    a picture of every operation
"""

import argparse
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Generator, Tensor

EMPTY = 128  # grey level of the pixels that a warp or Cutout leaves without content
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


# --- The operations and their strengths ---------------------------------------------------------


class Strength(NamedTuple):
    """How magnitude m becomes a physical value: start + slope * m / 10, at most `limit`."""

    start: float = 0.0
    slope: float = 0.0  # the value gained at magnitude 10, AutoAugment's maximum
    limit: float = math.inf
    whole: bool = False  # rounded down to an integer
    signed: bool = False  # drawn with a random sign


# The scale is the authors' (AutoAugment's): magnitude 27 is 2.7 times AutoAugment's maximum. Many
# re-implementations read it as 27/30 of that maximum, which is magnitude 9 here.
# fmt: off
STRENGTHS = {                                             # unit of the value; where it is identity
    "AutoContrast": Strength(),                           # none
    "Equalize": Strength(),                               # none
    "Invert": Strength(),                                 # none
    "Rotate": Strength(slope=30, signed=True),            # degrees counter-clockwise; 0
    # As in AutoAugment the next two grow weaker with magnitude. From 20 and 10 on the authors'
    # code leaves their domain; here: PIL's largest 8 and 256, both "no change".
    "Posterize": Strength(slope=4, limit=8, whole=True),  # bits kept; 8
    "Solarize": Strength(slope=256, limit=256, whole=True),  # level from which to invert; 256
    "SolarizeAdd": Strength(slope=110, whole=True),       # added to levels below 128; 0
    "Color": Strength(start=0.1, slope=1.8),              # factor from grey; 1
    "Contrast": Strength(start=0.1, slope=1.8),           # factor from the mean grey; 1
    "Brightness": Strength(start=0.1, slope=1.8),         # factor from black; 1
    "Sharpness": Strength(start=0.1, slope=1.8),          # factor from smooth; 1
    "ShearX": Strength(slope=0.3, signed=True),           # columns per row; 0
    "ShearY": Strength(slope=0.3, signed=True),           # rows per column; 0
    "TranslateX": Strength(slope=100, signed=True),       # pixels; 0
    "TranslateY": Strength(slope=100, signed=True),       # pixels; 0
    "Cutout": Strength(slope=40, whole=True),             # pixels, half of the side; 0
}
# fmt: on
OPERATIONS = tuple(STRENGTHS)


def level_to_value(name: str, magnitude: float, image_size: int) -> float:
    """The unsigned physical value (units: `STRENGTHS`) of an operation at a magnitude.

    `image_size` is the side in pixels: at magnitude 10 the authors move by 100 and cut out 40 px
    of ImageNet's images, and image_size // 8 of 32x32 ones, which here holds up to 128 px.
    Raises KeyError for an unknown name.
    """
    strength = STRENGTHS[name]
    slope = strength.slope
    if name in ("TranslateX", "TranslateY", "Cutout") and image_size <= 128:
        slope = image_size // 8
    value = min(strength.start + slope * (magnitude / 10), strength.limit)
    return float(math.floor(value)) if strength.whole else float(value)


# --- Mechanism 1: look-up tables ----------------------------------------------------------------
# A table function maps images (N, 3, H, W), the levels 0..255 as (1, 1, 256) int32, and values
# (N, 1, 1) to tables that broadcast to (N, 3, 256).


def look_up(images: Tensor, tables: Tensor) -> Tensor:
    """Replaces levels by their tables' entries: uint8 (N, 3, H, W), (N, 1 or 3, 256)."""
    tables = tables.to(torch.uint8).expand(*images.shape[:2], 256)
    if images.device.type != "cpu":
        return tables.gather(2, images.flatten(2).long()).view(images.shape)
    # On a CPU nothing looks up faster than Python's bytes.
    channels = zip(images.flatten(0, 1).numpy(), tables.flatten(0, 1).numpy(), strict=True)
    looked_up = bytearray().join(c.tobytes().translate(table.tobytes()) for c, table in channels)
    return torch.frombuffer(looked_up, dtype=torch.uint8).view(images.shape)


def blend(degenerate: Tensor, images: Tensor, factor: Tensor) -> Tensor:
    """degenerate + factor * (images - degenerate) in float32, cut off to uint8, as in PIL."""
    degenerate = degenerate.float()
    # The first clamp changes no value: it keeps a compiler from fusing the product and the sum
    # into one rounding, which would move some levels by one.
    change = (images.float() - degenerate).mul_(factor).clamp_(-65536, 65536)
    return change.add_(degenerate).clamp_(0, 255).to(torch.uint8)


def _luma(images: Tensor) -> Tensor:
    """ITU-R 601 luma in PIL's fixed point: uint8 (N, 3, H, W) -> int32 (N, 1, H, W)."""
    red, green, blue = images.split(1, dim=1)
    luma = red.int().mul_(19595).add_(green, alpha=38470).add_(blue, alpha=7471)
    return luma.add_(32768).bitwise_right_shift_(16)


def _auto_contrast(images: Tensor, levels: Tensor, _: Tensor) -> Tensor:
    """Stretches the darkest level to 0, the brightest to 255, in double precision as PIL does."""
    # Apple's GPUs have no doubles: there, some entries differ by one level.
    real = torch.float32 if images.device.type == "mps" else torch.float64
    low = images.flatten(2).amin(2, keepdim=True).to(real)
    high = images.flatten(2).amax(2, keepdim=True).to(real)
    span = (high - low).clamp(min=1)
    scale = torch.full_like(span, 255) / span  # `255 / span` would round a reciprocal, too
    stretched = (levels * scale).clamp(min=0) - (low * scale).clamp(min=0)  # clamps: see `blend`
    return torch.where(high > low, stretched.clamp(0, 255).int(), levels)


def _equalize(images: Tensor, levels: Tensor, _: Tensor) -> Tensor:
    """Flattens the histogram: each level goes to the share of the pixels below it."""
    pixels = images.flatten(2)  # (N, 3, H*W)
    ones = torch.ones((), dtype=torch.int32, device=images.device).expand(pixels.shape)
    histogram = torch.zeros(*pixels.shape[:2], 256, dtype=torch.int32, device=images.device)
    histogram.scatter_add_(2, pixels.long(), ones)
    brightest = histogram.gather(2, pixels.amax(2, keepdim=True).long())
    step = (pixels.shape[2] - brightest) // 255  # pixels per output level
    below = histogram.cumsum(2, dtype=torch.int32) - histogram
    table = ((below + step // 2) // step.clamp(min=1)).clamp(max=255)
    return torch.where(step > 0, table, levels)


def _contrast(images: Tensor, levels: Tensor, factor: Tensor) -> Tensor:
    # authors' code: blends with grey height * width / 256, a slip; here: the mean luma, as in PIL.
    total, count = _luma(images).sum((2, 3)).unsqueeze(2), images.shape[2] * images.shape[3]
    return blend((2 * total + count) // (2 * count), levels, factor)  # the mean rounds half up


def _posterize(images: Tensor, levels: Tensor, bits: Tensor) -> Tensor:
    dropped = 8 - bits.int()
    return (levels >> dropped) << dropped


TABLES = {
    "AutoContrast": _auto_contrast,
    "Equalize": _equalize,
    "Invert": lambda images, levels, _: 255 - levels,
    "Posterize": _posterize,
    "Solarize": lambda images, levels, start: torch.where(levels < start, levels, 255 - levels),
    "SolarizeAdd": lambda images, levels, addition: torch.where(
        levels < 128, (levels + addition.int()).clamp(0, 255), levels
    ),
    "Contrast": _contrast,
    "Brightness": lambda images, levels, factor: blend(torch.zeros_like(factor), levels, factor),
}


# --- Mechanism 2: blends with a degenerate image -------------------------------------------------


def _smooth(images: Tensor) -> Tensor:
    """3x3 mean, the centre counted five times; border pixels stay (PIL's SMOOTH). To float32."""
    smooth = images.float()
    inner = smooth[:, :, 1:-1, 1:-1]
    rows = (smooth[:, :, :-2] + smooth[:, :, 1:-1]).add_(smooth[:, :, 2:])
    weighted = (rows[..., :-2] + rows[..., 1:-1]).add_(rows[..., 2:]).add_(inner, alpha=4)
    inner.copy_(weighted.add_(6.5).mul_(1 / 13).floor_())  # rounded; 13 is odd: no ties
    return smooth


DEGENERATES = {"Color": _luma, "Sharpness": _smooth}


# --- Mechanism 3: warps --------------------------------------------------------------------------
# A matrix (a, b, c, d, e, f) takes the output's point (x, y) to the source's (a x + b y + c,
# d x + e y + f). x points right and y down from the top left corner; pixel centres lie at halves.


def _rotation(degrees: float, height: int, width: int) -> tuple[float, ...]:
    """Counter-clockwise about the image's centre, as Image.rotate."""
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x, y = width / 2, height / 2
    return cosine, -sine, x - cosine * x + sine * y, sine, cosine, y - sine * x - cosine * y


MATRICES = {  # positive translations move the picture left and up; shears keep the top left corner
    "Rotate": _rotation,
    "ShearX": lambda shear, height, width: (1, shear, 0, 0, 1, 0),
    "ShearY": lambda shear, height, width: (1, 0, 0, shear, 1, 0),
    "TranslateX": lambda pixels, height, width: (1, 0, pixels, 0, 1, 0),
    "TranslateY": lambda pixels, height, width: (1, 0, 0, 0, 1, pixels),
}


def _matrix(name: str, value: float, height: int, width: int) -> list[int]:
    """From pixel indices to source pixels in PIL's 16.16 fixed point; identity for no warp."""
    identity = (1, 0, 0, 0, 1, 0)
    a, b, c, d, e, f = MATRICES[name](value, height, width) if name in MATRICES else identity
    entries = (a, b, c + (a + b) / 2, d, e, f + (d + e) / 2)
    return [math.floor(entry * 65536 + 0.5) for entry in entries]


def _positions(images: Tensor) -> tuple[Tensor, Tensor]:
    """The row numbers (1, H, 1) and column numbers (1, 1, W) of the images, int32."""
    height, width = (torch.arange(n, dtype=torch.int32) for n in images.shape[2:])
    return height.view(1, -1, 1).to(images.device), width.view(1, 1, -1).to(images.device)


def _sample(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """(N, 3, *, *) at rows and columns that broadcast to (N, H, W) -> (N, 3, H, W)."""
    index = torch.add(columns, rows, alpha=images.shape[3])
    index_of_channels = index.flatten(1).long().unsqueeze(1).expand(-1, images.shape[1], -1)
    return images.flatten(2).gather(2, index_of_channels).unflatten(2, index.shape[1:])


def warp(images: Tensor, matrices: Tensor) -> Tensor:
    """Nearest-neighbour affine maps: uint8 (N, 3, H, W), (N, 6) int32 of `_matrix`."""
    y, x = _positions(images)
    matrices = matrices.view(-1, 2, 3, 1, 1)
    # A frame of empty pixels, one wide, takes all coordinates outside of the image; 1 << 16 is
    # the step from the framed image's corner to the image's. The shift rounds down.
    framed = F.pad(images, (1, 1, 1, 1), value=EMPTY)
    fixed = matrices[:, :, 0] * x + (matrices[:, :, 1] * y + (matrices[:, :, 2] + (1 << 16)))
    columns, rows = fixed.bitwise_right_shift_(16).unbind(1)  # (N, H, W) each
    height, width = images.shape[2:]
    return _sample(framed, rows.clamp_(0, height + 1), columns.clamp_(0, width + 1))


# --- Mechanism 4: the mask -----------------------------------------------------------------------


def _where(condition: Tensor, chosen: Tensor | int, images: Tensor) -> Tensor:
    """torch.where for uint8, modulo 256: on a CPU ten times faster."""
    return images + condition.to(torch.uint8) * (chosen - images)


def cutout(images: Tensor, centres: Tensor, half: Tensor) -> Tensor:
    """Grey squares on uint8 (N, 3, H, W): centres (N, 2) as row and column, half sides (N,).

    Rows and columns from centre - half up to and without centre + half, as far as they exist.
    """
    y, x = _positions(images)
    row, column, half = (edge.view(-1, 1, 1) for edge in (*centres.unbind(1), half))
    inside_rows = (row - half <= y) & (y < row + half)
    inside_columns = (column - half <= x) & (x < column + half)
    return _where((inside_rows & inside_columns).unsqueeze(1), EMPTY, images)


# --- RandAugment ---------------------------------------------------------------------------------


def apply_operation(
    images: Tensor, name: str, values: Tensor, centres: Tensor | None = None
) -> Tensor:
    """One operation on a batch: uint8 (N, 3, H, W), values (N,) -> uint8 (N, 3, H, W).

    `values` are physical (`STRENGTHS`), signed where a sign applies and within the operation's
    domain. `centres` (N, 2) are Cutout's rows and columns, by default the middle. Both are best
    on the CPU. Raises ValueError for an unknown name.
    """
    if name not in OPERATIONS:
        raise ValueError(f"unknown operation {name!r}; known are {', '.join(OPERATIONS)}")
    (height, width), device = images.shape[2:], images.device
    if name in MATRICES:
        matrices = [_matrix(name, value, height, width) for value in values.tolist()]
        return warp(images, torch.tensor(matrices, dtype=torch.int32).to(device))
    values = values.float().to(device)
    if name in TABLES:
        levels = torch.arange(256, dtype=torch.int32, device=device).view(1, 1, 256)
        return look_up(images, TABLES[name](images, levels, values.view(-1, 1, 1)))
    if name in DEGENERATES:
        return blend(DEGENERATES[name](images), images, values.view(-1, 1, 1, 1))
    if centres is None:
        centres = torch.tensor([height // 2, width // 2]).expand(len(images), 2)
    return cutout(images, centres.float().to(device), values)


def _apply_grouped(images: Tensor, drawn: Tensor, values: Tensor, centres: Tensor) -> Tensor:
    """For eager devices: grouped by drawn operation (N,), each image passes its own only.

    Overwrites `images`: a new batch for every step would cost a tenth of the time on a CPU.
    """
    results = list(images)
    for operation in drawn.unique().tolist():
        members = (drawn == operation).nonzero().squeeze(1)
        group = images.index_select(0, members.to(images.device))
        group = apply_operation(group, OPERATIONS[operation], values[members], centres[members])
        for member, image in zip(members.tolist(), group, strict=True):
            results[member] = image
    return torch.stack(results, out=images)


def _apply_static(images: Tensor, drawn: Tensor, values: Tensor, centres: Tensor) -> Tensor:
    """For XLA: all images pass all four mechanisms, with the identity where nothing was drawn.

    The same as `_apply_grouped`, but no shape depends on the draw: one compilation serves all.
    """
    (height, width), device = images.shape[2:], images.device
    matrices = [
        _matrix(OPERATIONS[operation], value, height, width)
        for operation, value in zip(drawn.tolist(), values.tolist(), strict=True)
    ]
    matrices = torch.tensor(matrices, dtype=torch.int32).to(device)
    drawn, values = drawn.to(device), values.float().to(device)

    def choose(functions: dict, result: Tensor, *inputs: Tensor) -> Tensor:
        """The result of each image's own function, or else `result`."""
        for name, function in functions.items():
            chosen = (drawn == OPERATIONS.index(name)).view(-1, *[1] * (result.dim() - 1))
            result = torch.where(chosen, function(images, *inputs).to(result.dtype), result)
        return result

    levels = torch.arange(256, dtype=torch.int32, device=device).view(1, 1, 256)
    tables = choose(TABLES, levels, levels, values.view(-1, 1, 1))
    degenerate = choose(DEGENERATES, images.float())
    half = torch.where(drawn == OPERATIONS.index("Cutout"), values, 0)
    images = blend(degenerate, images, values.view(-1, 1, 1, 1))
    return cutout(warp(look_up(images, tables), matrices), centres.float().to(device), half)


class RandAugment:
    """`num_ops` operations per image, drawn uniformly with replacement and always applied.

    paper, section 3.1: two operations, magnitude 27. That is for B7 and L2; the authors' scripts
    have none for B0 and B1, then 6, 12, 15, 18, 24 for B2 to B6, and 5 for SVHN. The magnitude's
    scale is that of `level_to_value`.
    """

    def __init__(self, num_ops: int = 2, magnitude: float = 27) -> None:
        self.num_ops = num_ops
        self.magnitude = magnitude

    def draw(
        self, count: int, height: int, width: int, generator: Generator | None = None
    ) -> Tensor:
        """All chance for `count` images of height x width pixels, from a CPU generator.

        Returns (count, num_ops, 4) float64 on the CPU: the operation's index in OPERATIONS, its
        signed value, the row and the column of Cutout's centre.
        """
        size, shape = min(height, width), (count, self.num_ops)
        unsigned = [level_to_value(name, self.magnitude, size) for name in OPERATIONS]
        signed = torch.tensor([STRENGTHS[name].signed for name in OPERATIONS])
        drawn = torch.randint(len(OPERATIONS), shape, generator=generator)
        sign = 1 - 2 * signed[drawn] * torch.randint(2, shape, generator=generator)
        value = sign * torch.tensor(unsigned, dtype=torch.float64)[drawn]
        row = torch.randint(height, shape, generator=generator)
        column = torch.randint(width, shape, generator=generator)
        return torch.stack([drawn, value, row, column], dim=2)

    def apply(self, images: Tensor, draws: Tensor) -> Tensor:
        """The pixel part: uint8 (N, 3, H, W), draws (N, num_ops, 4) on the CPU -> uint8."""
        apply_step = _apply_static if images.device.type == "xla" else _apply_grouped
        images = images.clone()
        for step in draws.unbind(1):  # one operation after the other
            images = apply_step(images, step[:, 0].long(), step[:, 1], step[:, 2:])
        return images

    def __call__(self, images: Tensor, generator: Generator | None = None) -> Tensor:
        """uint8 (N, 3, H, W) -> uint8 (N, 3, H, W), with chance from a CPU generator."""
        return self.apply(images, self.draw(len(images), *images.shape[2:], generator))


# --- The students' pipelines ---------------------------------------------------------------------
# Both take uint8 (N, 3, H, W) to uint8 (N, 3, H, W), with chance from a CPU generator. `shard` is
# (rank, number): processes that hold equal parts of a batch and equally seeded generators draw for
# the whole of it and keep their rows, so that together they do what one process would.


def augment_small(
    images: Tensor,
    rand_augment: RandAugment | None,
    generator: Generator | None = None,
    flip: bool = True,
    shard: tuple[int, int] = (0, 1),
) -> Tensor:
    """32x32 images in the authors' order: RandAugment, a 16x16 Cutout, a random crop after
    reflect-padding by 4, a flip (not for SVHN). Square and padding grow with the image.
    """
    count, _, height, width = images.shape
    rank, shards = shard
    if rand_augment is not None:
        draws = rand_augment.draw(count * shards, height, width, generator)
        images = rand_augment.apply(images, draws.chunk(shards)[rank])

    def draw(high: int) -> Tensor:
        numbers = torch.randint(high, (count * shards,), dtype=torch.int32, generator=generator)
        return numbers.chunk(shards)[rank].to(images.device)

    def reflect(position: Tensor, size: int) -> Tensor:
        return size - 1 - (size - 1 - position.abs()).abs()

    side = min(height, width)
    centres = torch.stack([draw(height), draw(width)], dim=1)
    images = cutout(images, centres, torch.full_like(centres[:, 0], side // 4))
    pad = side // 8
    top, left = (draw(2 * pad + 1).view(-1, 1, 1) - pad for _ in range(2))
    y, x = _positions(images)
    if flip:
        x = torch.where(draw(2).view(-1, 1, 1) == 1, width - 1 - x, x)
    return _sample(images, reflect(top + y, height), reflect(left + x, width))


def augment_large(
    images: Tensor,
    rand_augment: RandAugment | None,
    generator: Generator | None = None,
    flip: bool = True,
    shard: tuple[int, int] = (0, 1),
) -> Tensor:
    """ImageNet's order, after `random_resized_crop` in the data workers: flip, RandAugment."""
    count, _, height, width = images.shape
    rank, shards = shard
    if flip:
        mirrored = torch.randint(2, (count * shards, 1, 1, 1), generator=generator)
        images = _where(mirrored.chunk(shards)[rank].to(images.device), images.flip(3), images)
    if rand_augment is not None:
        draws = rand_augment.draw(count * shards, height, width, generator)
        images = rand_augment.apply(images, draws.chunk(shards)[rank])
    return images


def normalize(images: Tensor) -> Tensor:
    """(images / 255 - mean) / std with ImageNet's statistics.

    (N, 3, H, W), uint8 or float in 0..255, to float32; differentiable for float images.
    """
    mean = torch.tensor(IMAGENET_MEAN, device=images.device).view(1, 3, 1, 1)
    std = torch.tensor(IMAGENET_STD, device=images.device).view(1, 3, 1, 1)
    return (images - 255 * mean) / (255 * std)


# --- Crops of decoded images, in the data workers ------------------------------------------------


def random_resized_crop(
    image: Image.Image, size: int, generator: Generator | None = None
) -> Image.Image:
    """A random part, 8-100 % of the area, ratio 3/4-4/3 (log-uniform), bicubic to size x size."""
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
    return center_crop(image, size)  # nothing fits into a very long image


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """The evaluation crop: the central square, bicubic to size x size.

    Its side is size / (size + 32) of the image's short side, and all of it for sizes up to 64.
    An image that has the size already comes back as it is.
    """
    if image.size == (size, size):
        return image
    width, height = image.size
    side = min(width, height)
    if size > 64:
        side = int(side * size / (size + 32))
    left, top = (width - side + 1) // 2, (height - side + 1) // 2
    box = (left, top, left + side, top + side)
    return image.resize((size, size), Image.Resampling.BICUBIC, box=box)


# --- The picture ---------------------------------------------------------------------------------


def example_image(size: int = 224) -> Image.Image:
    """A generated landscape with smooth colours, edges and fine stripes."""
    y, x = torch.meshgrid(*[torch.linspace(0, 1, size)] * 2, indexing="ij")
    sky = torch.stack([0.35 + 0.6 * y, 0.5 + 0.3 * y, 0.85 - 0.2 * y])
    sun = (x - 0.7) ** 2 + (y - 0.3) ** 2 < 0.02
    hills = y > 0.7 + 0.08 * torch.sin(7 * x)
    fence = (y > 0.8) & (x < 0.4) & ((40 * x).long() % 2 == 0)
    for region, colour in ((sun, (1, 0.85, 0.3)), (hills, (0.2, 0.5, 0.25)), (fence, (0.8, 0, 0))):
        sky = torch.where(region, torch.tensor(colour).view(3, 1, 1), sky)
    return Image.fromarray((255 * sky).byte().permute(1, 2, 0).contiguous().numpy())


def picture(image: Image.Image, magnitudes: tuple = (0, 5, 10, 15, 20, 27)) -> Image.Image:
    """Every operation (rows) at the given magnitudes (columns), with its value, signs positive."""
    cell, label, gap = 112, 100, 4
    size = (label + len(magnitudes) * (cell + gap), 24 + len(OPERATIONS) * (cell + gap))
    sheet = Image.new("RGB", size, "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    pixels = torch.tensor(list(image.tobytes()), dtype=torch.uint8)
    images = pixels.view(1, image.height, image.width, 3).permute(0, 3, 1, 2).contiguous()
    for column, magnitude in enumerate(magnitudes):
        left = label + column * (cell + gap)
        pen.text((left, 4), f"magnitude {magnitude}", "black", font)
        for row, name in enumerate(OPERATIONS):
            top = 24 + row * (cell + gap)
            value = level_to_value(name, magnitude, min(image.size))
            changed = apply_operation(images, name, torch.tensor([value]))[0].permute(1, 2, 0)
            shown = Image.fromarray(changed.contiguous().numpy()).resize((cell, cell))
            sheet.paste(shown, (left, top))
            pen.text((left + 4, top + 2), f"{value:.4g}", "white", font, stroke_width=1,
                     stroke_fill="black")  # fmt: skip
            pen.text((4, top + cell // 2 - 8), name, "black", font)
    return sheet


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Draw every operation at several magnitudes.")
    parser.add_argument("--out", required=True, help="file to write, such as randaugment.png")
    parser.add_argument("--image", help="image to show instead of the generated one")
    arguments = parser.parse_args()
    image = example_image()
    if arguments.image:
        image = center_crop(Image.open(arguments.image).convert("RGB"), 224)
    picture(image).save(arguments.out)
