"""Input noise: RandAugment, crops, flips and normalisation, on whole batches of uint8 images.

Noisy Student Training (https://arxiv.org/abs/1911.04252), section 2 ("Noising Student") and 3.1:
the student sees RandAugment images (two operations, magnitude 27), its teacher labels clean ones.
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
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Generator, Tensor

from data import center_crop

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
    signed: bool = False  # half of the draws have start - slope * m / 10


# The authors' scale (AutoAugment's): magnitude 27 is 2.7 times AutoAugment's maximum. Many
# re-implementations read it as 27/30 of that maximum, which is magnitude 9 here.
STRENGTHS = {                                                # value at magnitude 0 to 10; identity
    "AutoContrast": Strength(),                              # none
    "Equalize": Strength(),                                  # none
    "Invert": Strength(),                                    # none
    "Rotate": Strength(slope=30, signed=True),               # 0 to 30 degrees counter-clockwise; 0
    # As in AutoAugment the next two grow weaker with magnitude. From 20 and 10 on the authors'
    # code leaves their domain; here: PIL's largest 8 and 256, both "no change".
    "Posterize": Strength(slope=4, limit=8, whole=True),     # 0 to 4 bits kept; 8
    "Solarize": Strength(slope=256, limit=256, whole=True),  # inverts from level 0 to 256 on; 256
    "SolarizeAdd": Strength(slope=110, whole=True),          # adds 0 to 110 to levels below 128; 0
    "Color": Strength(start=0.1, slope=1.8),                 # factor 0.1 to 1.9 from grey; 1
    "Contrast": Strength(start=0.1, slope=1.8),              # factor 0.1 to 1.9 from mean grey; 1
    "Brightness": Strength(start=0.1, slope=1.8),            # factor 0.1 to 1.9 from black; 1
    "Sharpness": Strength(start=0.1, slope=1.8),             # factor 0.1 to 1.9 from smooth; 1
    "ShearX": Strength(slope=0.3, signed=True),              # 0 to 0.3 columns per row; 0
    "ShearY": Strength(slope=0.3, signed=True),              # 0 to 0.3 rows per column; 0
    "TranslateX": Strength(slope=100, signed=True),          # 0 to 100 pixels; 0
    "TranslateY": Strength(slope=100, signed=True),          # 0 to 100 pixels; 0
    "Cutout": Strength(slope=40, whole=True),                # 0 to 40 pixels, half of the side; 0
}
# The other scale, torchvision's: m / 30 for m / 10, and m up to 30. Rotations and shears are the
# same thirtieths; so are here SolarizeAdd and Cutout, which torchvision lacks.
FACTOR = Strength(start=1, slope=0.9, signed=True)           # value at magnitude 0 to 30: 1 to 1.9
TORCHVISION = STRENGTHS | {
    "Posterize": Strength(start=8.5, slope=-4, whole=True),  # 8 to 4 bits, rounded to the nearest
    "Solarize": Strength(start=255, slope=-255),             # from level 255 to 0 on
    "Color": FACTOR, "Contrast": FACTOR, "Brightness": FACTOR, "Sharpness": FACTOR,
    "TranslateX": Strength(slope=150 / 331, signed=True),    # 0 to 45 % of the image's side
    "TranslateY": Strength(slope=150 / 331, signed=True),
}
OPERATIONS = tuple(STRENGTHS)
SCALES = {"autoaugment": (STRENGTHS, 10), "torchvision": (TORCHVISION, 30)}


def level_to_value(name: str, magnitude: float, image_size: int,
                   scale: str = "autoaugment") -> float:
    """The physical value (units: `STRENGTHS`) of an operation at a magnitude, sign positive.

    `image_size` is the side in pixels: at magnitude 10 the authors move by 100 and cut out 40 px
    of ImageNet's images, and image_size // 8 of 32x32 ones, which here holds up to 128 px.
    Raises KeyError for an unknown name or scale, ValueError for a magnitude outside of the scale.
    """
    strengths, maximum = SCALES[scale]
    start, slope, limit, whole, _ = strengths[name]
    if magnitude < 0 or (scale == "torchvision" and magnitude > maximum):
        raise ValueError(f"magnitude {magnitude} is not on the scale {scale}")
    if scale == "torchvision" and name.startswith("Translate"):
        slope *= image_size
    elif name in ("TranslateX", "TranslateY", "Cutout") and image_size <= 128:
        slope = image_size // 8
    value = min(start + slope * (magnitude / maximum), limit)
    return float(math.floor(value)) if whole else float(value)


# --- Mechanism 1: look-up tables ----------------------------------------------------------------
# A table function maps images (N, 3, H, W), the levels 0..255 as (1, 1, 256) int32, and values
# (N, 1, 1) to tables that broadcast to (N, 3, 256).


def look_up(images: Tensor, tables: Tensor) -> Tensor:
    """Replaces levels by their tables' entries: uint8 (N, 3, H, W), (1 or N, 1 or 3, 256)."""
    tables = tables.to(torch.uint8).expand(images.shape[0], -1, -1)
    if images.device.type != "cpu":
        levels = images.flatten(2).long()
        return tables.expand(-1, images.shape[1], -1).gather(2, levels).view(images.shape)
    # On a CPU nothing looks up faster than Python's bytes.
    tables = tables.flatten(0, 1).numpy()
    pixels = images.reshape(len(tables), -1).numpy()
    changed = (part.tobytes().translate(table.tobytes())
               for part, table in zip(pixels, tables, strict=True))
    return torch.frombuffer(bytearray().join(changed), dtype=torch.uint8).view(images.shape)


def blend(degenerate: Tensor, images: Tensor, factor: Tensor) -> Tensor:
    """degenerate + factor * (images - degenerate) in float32, cut off to uint8, as in PIL."""
    degenerate = degenerate.float()
    # The first clamp changes no value: it keeps a compiler from fusing the product and the sum
    # into one rounding, which would move some levels by one.
    change = (images.float() - degenerate).mul_(factor).clamp_(-65536, 65536)
    # By way of int16, which a CPU converts to four times faster.
    return change.add_(degenerate).clamp_(0, 255).short().to(torch.uint8)


def _luma(images: Tensor) -> Tensor:
    """ITU-R 601 luma in PIL's fixed point: uint8 (N, 3, H, W) -> int32 (N, 1, H, W)."""
    red, green, blue = images.int().split(1, dim=1)
    luma = red.mul_(19595).add_(green, alpha=38470).add_(blue, alpha=7471)
    return luma.add_(32768).bitwise_right_shift_(16)


def _histogram(pixels: Tensor) -> Tensor:
    """The number of pixels at each level: uint8 (N, 3, H*W) -> int32 (N, 3, 256)."""
    if pixels.device.type == "cpu":  # three times faster
        counts = [channel.bincount(minlength=256) for channel in pixels.flatten(0, 1)]
        return torch.stack(counts).int().view(*pixels.shape[:2], 256)
    counts = torch.zeros(*pixels.shape[:2], 256, dtype=torch.int32, device=pixels.device)
    ones = torch.ones((), dtype=torch.int32, device=pixels.device).expand(pixels.shape)
    return counts.scatter_add_(2, pixels.long(), ones)


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
    histogram = _histogram(pixels)
    brightest = histogram.gather(2, pixels.amax(2, keepdim=True).long())
    step = (pixels.shape[2] - brightest) // 255  # pixels per output level
    below = histogram.cumsum(2, dtype=torch.int32) - histogram
    table = ((below + step // 2) // step.clamp(min=1)).clamp(max=255)
    return torch.where(step > 0, table, levels)


def _contrast(images: Tensor, levels: Tensor, factor: Tensor) -> Tensor:
    # authors' code: blends with grey height * width / 256, a slip; here: the mean luma, as in PIL.
    total = _luma(images).sum(3, dtype=torch.int32).sum(2, keepdim=True)
    count = images.shape[2] * images.shape[3]
    return blend((2 * total + count) // (2 * count), levels, factor)  # the mean, rounded half up


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


# --- Mechanism 2: blends with a degenerate image -------------------------------------------------


def _smooth(images: Tensor) -> Tensor:
    """3x3 mean, the centre counted five times; border pixels stay (PIL's SMOOTH). To float32."""
    pixels, smooth = images.short(), images.float()
    rows = (pixels[:, :, :-2] + pixels[:, :, 1:-1]).add_(pixels[:, :, 2:])
    total = (rows[..., :-2] + rows[..., 1:-1]).add_(rows[..., 2:])
    total.add_(pixels[:, :, 1:-1, 1:-1], alpha=4)
    smooth[:, :, 1:-1, 1:-1].copy_(total).mul_(1 / 13).round_()  # 13 is odd: there are no ties
    return smooth


DEGENERATES = {"Color": _luma, "Sharpness": _smooth}


# --- Mechanism 3: warps --------------------------------------------------------------------------
# A matrix (a, b, c, d, e, f) takes the output's point (x, y) to the source's (a x + b y + c,
# d x + e y + f). x points right and y down from the top left corner; pixel centres lie at halves.

WARPS = ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY")


def _matrix(name: str, value: float, height: int, width: int) -> list[int]:
    """From pixel indices to source pixels, in PIL's 16.16 fixed point; identity for no warp."""
    a, b, c, d, e, f = 1.0, 0.0, 0.0, 0.0, 1.0, 0.0
    if name == "Rotate":  # counter-clockwise about the image's centre
        x, y = width / 2, height / 2
        cosine, sine = math.cos(math.radians(value)), math.sin(math.radians(value))
        a, b, c = cosine, -sine, x - cosine * x + sine * y
        d, e, f = sine, cosine, y - sine * x - cosine * y
    elif name == "ShearX":  # the top left corner stays
        b = value
    elif name == "ShearY":
        d = value
    elif name == "TranslateX":  # positive: the picture moves left
        c = value
    elif name == "TranslateY":  # positive: up
        f = value
    entries = (a, b, c + (a + b) / 2, d, e, f + (d + e) / 2)
    return [math.floor(entry * 65536 + 0.5) for entry in entries]


def _positions(images: Tensor) -> tuple[Tensor, Tensor]:
    """The row numbers (1, H, 1) and column numbers (1, 1, W) of the images, int32."""
    y, x = (torch.arange(n, dtype=torch.int32, device=images.device) for n in images.shape[2:])
    return y.view(1, -1, 1), x.view(1, 1, -1)


def _sample(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """(N, 3, *, *) at rows and columns that broadcast to (N, H, W) -> (N, 3, H, W)."""
    index = torch.add(columns, rows, alpha=images.shape[3])
    index_of_channels = index.flatten(1).long().unsqueeze(1).expand(-1, images.shape[1], -1)
    return images.flatten(2).gather(2, index_of_channels).unflatten(2, index.shape[1:])


def warp(images: Tensor, matrices: Tensor) -> Tensor:
    """Nearest-neighbour affine maps: uint8 (N, 3, H, W), (N, 6) int32 of `_matrix`."""
    (height, width), (y, x) = images.shape[2:], _positions(images)
    matrices = matrices.view(-1, 2, 3, 1, 1)
    # A frame of empty pixels, one wide, takes all coordinates outside of the image; 1 << 16 is
    # the step from the framed image's corner to the image's. The shift rounds down.
    framed = F.pad(images, (1, 1, 1, 1), value=EMPTY)
    fixed = matrices[:, :, 0] * x + (matrices[:, :, 1] * y + (matrices[:, :, 2] + (1 << 16)))
    columns, rows = fixed.bitwise_right_shift_(16).unbind(1)  # (N, H, W) each
    return _sample(framed, rows.clamp_(0, height + 1), columns.clamp_(0, width + 1))


def shear_rows(images: Tensor, matrices: Tensor) -> Tensor:
    """`warp` for ShearX, whose rows stay whole: copies rows, three times as fast on a CPU."""
    count, channels, height, width = images.shape
    y = torch.arange(height, dtype=torch.int32, device=images.device)
    across = ((matrices[:, 1:2] * y + matrices[:, 2:3]) >> 16).clamp_(-width, width)  # (N, H)
    # With empty pixels before each row and after the last one, every row of the result is a window
    # of the memory; `first` are the places of the channels' first pixels in it.
    framed = F.pad(images, (width, 0, 0, 1), value=EMPTY)
    size = 2 * width * (height + 1)
    first = torch.arange(width, count * channels * size, size, device=images.device)
    start = first.view(count, channels, 1) + (2 * width * y + across).unsqueeze(1)
    windows = framed.flatten().unfold(0, width, 1)
    return windows.index_select(0, start.flatten()).view(images.shape)


def translate(images: Tensor, matrices: Tensor) -> Tensor:
    """`warp` for TranslateX/Y: copies rectangles, six times as fast on a CPU."""
    (height, width), moved = images.shape[2:], torch.full_like(images, EMPTY)
    for source, target, (_, _, c, _, _, f) in zip(images, moved, matrices.tolist(), strict=True):
        x, y = max(-width, min(c >> 16, width)), max(-height, min(f >> 16, height))
        part = source[:, max(y, 0) : height + min(y, 0), max(x, 0) : width + min(x, 0)]
        target[:, max(-y, 0) : height - max(y, 0), max(-x, 0) : width - max(x, 0)] = part
    return moved


# --- Mechanism 4: the mask -----------------------------------------------------------------------


def _where(mask: Tensor, chosen: Tensor | int, images: Tensor) -> Tensor:
    """torch.where for uint8, modulo 256, with a mask of 0 and 1: on a CPU ten times faster."""
    return (chosen - images).mul_(mask.to(torch.uint8)).add_(images)


def cutout(images: Tensor, centres: Tensor, half: Tensor) -> Tensor:
    """Grey squares on uint8 (N, 3, H, W): centres (N, 2) as row and column, half sides (N,).

    Rows and columns from centre - half up to and without centre + half, as far as they exist.
    """
    y, x = _positions(images)
    row, column, half = (edge.view(-1, 1, 1) for edge in (*centres.unbind(1), half))
    rows = (row - half <= y) & (y < row + half)
    columns = (column - half <= x) & (x < column + half)
    mask = rows.to(torch.uint8) * columns.to(torch.uint8)
    return _where(mask.unsqueeze(1), EMPTY, images)


# --- RandAugment ---------------------------------------------------------------------------------


def apply_operation(images: Tensor, name: str, values: Tensor,
                    centres: Tensor | None = None) -> Tensor:
    """One operation on a batch: uint8 (N, 3, H, W), values (N,) -> uint8 (N, 3, H, W).

    `values` are physical (`STRENGTHS`), signed where a sign applies and within the operation's
    domain. `centres` (N, 2) are Cutout's rows and columns, by default the middle. Both are on
    the CPU. Raises ValueError for an unknown name.
    """
    if name not in OPERATIONS:
        raise ValueError(f"unknown operation {name!r}; known are {', '.join(OPERATIONS)}")
    (count, _, height, width), device = images.shape, images.device
    if centres is None:
        centres = torch.tensor([height // 2, width // 2]).expand(count, 2)
    if not count:
        return images
    if device.type == "xla":
        index = torch.full_like(values, OPERATIONS.index(name))
        return _apply_static(images, torch.column_stack([index, values, centres]).double())
    if name in WARPS:
        matrices = [_matrix(name, value, height, width) for value in values.tolist()]
        matrices = torch.tensor(matrices, dtype=torch.int32)
        if name in ("TranslateX", "TranslateY"):
            return translate(images, matrices)
        return (shear_rows if name == "ShearX" else warp)(images, matrices.to(device))
    if name == "Cutout":  # as `cutout`, but without a mask: on a CPU three times as fast
        images, half = images.clone(), values.view(-1, 1)
        edges = torch.cat([centres - half, centres + half], dim=1).ceil().int().clamp(min=0)
        for image, (top, left, bottom, right) in zip(images, edges.tolist(), strict=True):
            image[:, top:bottom, left:right] = EMPTY
        return images
    values = values.float().to(device)
    if name in ("Invert", "Posterize"):  # one instruction per pixel, cheaper than a look-up
        return TABLES[name](images, images, values.view(-1, 1, 1, 1))
    if name in TABLES:
        levels = torch.arange(256, dtype=torch.int32, device=device).view(1, 1, 256)
        return look_up(images, TABLES[name](images, levels, values.view(-1, 1, 1)))
    # Color and Sharpness; a CPU takes parts whose floats fit into its cache.
    part = max(1, 2**18 // images[0].numel()) if device.type == "cpu" else count
    parts = zip(images.split(part), values.view(-1, 1, 1, 1).split(part), strict=True)
    return torch.cat([blend(DEGENERATES[name](part), part, factor) for part, factor in parts])


def _apply_grouped(images: Tensor, draws: Tensor) -> Tensor:
    """For eager devices: images that drew the same operation pass it together, and no other."""
    results = list(images)
    for step in draws.unbind(1):  # one operation after the other
        drawn = step[:, 0].long()
        order, counts = drawn.argsort(), drawn.bincount(minlength=len(OPERATIONS)).tolist()
        groups = zip(OPERATIONS, order.split(counts), step[order].split(counts), strict=True)
        for name, members, numbers in groups:
            if members := members.tolist():
                group = torch.stack([results[member] for member in members])
                group = apply_operation(group, name, numbers[:, 1], numbers[:, 2:])
                for member, image in zip(members, group.unbind(), strict=True):
                    results[member] = image
    return torch.stack(results)


def _apply_static(images: Tensor, step: Tensor) -> Tensor:
    """For XLA, one step of draws: all images pass all four mechanisms, most with the identity.

    The same as `_apply_grouped`, but no shape depends on the draw: one compilation serves all.
    """
    (height, width), device = images.shape[2:], images.device
    matrices = [_matrix(OPERATIONS[int(operation)], value, height, width)
                for operation, value in step[:, :2].tolist()]
    matrices = torch.tensor(matrices, dtype=torch.int32).to(device)
    drawn, values = step[:, 0].long().to(device), step[:, 1].float().to(device)
    centres = step[:, 2:].float().to(device)

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
    return cutout(warp(look_up(images, tables), matrices), centres, half)


@dataclass(frozen=True)
class RandAugment:
    """`num_ops` operations per image, drawn uniformly with replacement and always applied.

    paper, section 3.1: two operations, magnitude 27. That is for B7 and L2; the authors' scripts
    have none for B0 and B1, then 6, 12, 15, 18, 24 for B2 to B6, and 5 for SVHN. `scale` is the
    magnitude's: "autoaugment", the authors', or "torchvision", whose 30 is about 10 here.
    """

    num_ops: int = 2
    magnitude: float = 27
    scale: str = "autoaugment"

    def draw(self, count: int, height: int, width: int,
             generator: Generator | None = None) -> Tensor:
        """All chance for `count` images of height x width pixels, from a CPU generator.

        Returns (count, num_ops, 4) float64 on the CPU: the operation's index in OPERATIONS, its
        signed value, the row and the column of Cutout's centre.
        """
        values = []  # of each operation, with either sign
        for name, strength in SCALES[self.scale][0].items():
            value = level_to_value(name, self.magnitude, min(height, width), self.scale)
            values.append((value, 2 * strength.start - value if strength.signed else value))
        shape = (count, self.num_ops)
        drawn = torch.randint(len(OPERATIONS), shape, generator=generator)
        sign = torch.randint(2, shape, generator=generator)
        value = torch.tensor(values, dtype=torch.float64)[drawn, sign]
        row = torch.randint(height, shape, generator=generator)
        column = torch.randint(width, shape, generator=generator)
        return torch.stack([drawn, value, row, column], dim=2)

    def apply(self, images: Tensor, draws: Tensor) -> Tensor:
        """The pixel part: uint8 (N, 3, H, W), draws (N, num_ops, 4) on the CPU -> uint8."""
        if not draws.numel():
            return images
        if images.device.type != "xla":
            return _apply_grouped(images, draws)
        for step in draws.unbind(1):
            images = _apply_static(images, step)
        return images

    def __call__(self, images: Tensor, generator: Generator | None = None) -> Tensor:
        """uint8 (N, 3, H, W) -> uint8 (N, 3, H, W), with chance from a CPU generator."""
        return self.apply(images, self.draw(len(images), *images.shape[2:], generator))


# --- The students' pipelines ---------------------------------------------------------------------
# Both take uint8 (N, 3, H, W) to uint8 (N, 3, H, W), with chance from a CPU generator. For a part
# of a batch, `rows` (N,) are its positions and `batch_size` is the whole's: numbers are drawn for
# the whole, so that processes with equally seeded generators together do what one alone would.


def augment_small(images: Tensor, rand_augment: RandAugment | None,
                  generator: Generator | None = None, flip: bool = True,
                  rows: Tensor | None = None, batch_size: int | None = None) -> Tensor:
    """32x32 images in the authors' order: RandAugment, a 16x16 Cutout, a random crop after
    reflect-padding by 4, a flip (not for SVHN). Square and padding grow with the image.
    """
    height, width = images.shape[2:]
    if rows is None:
        rows, batch_size = slice(None), len(images)
    if rand_augment is not None:
        draws = rand_augment.draw(batch_size, height, width, generator)
        images = rand_augment.apply(images, draws[rows])

    def draw(high: int) -> Tensor:
        numbers = torch.randint(high, (batch_size,), dtype=torch.int32, generator=generator)
        return numbers[rows].to(images.device)

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


def augment_large(images: Tensor, rand_augment: RandAugment | None,
                  generator: Generator | None = None, flip: bool = True,
                  rows: Tensor | None = None, batch_size: int | None = None) -> Tensor:
    """ImageNet's order, after `random_resized_crop` in the data workers: flip, RandAugment."""
    if rows is None:
        rows, batch_size = slice(None), len(images)
    if flip:
        mirrored = torch.randint(2, (batch_size, 1, 1, 1), generator=generator)[rows]
        images = _where(mirrored.to(images.device), images.flip(3), images)
    if rand_augment is not None:
        draws = rand_augment.draw(batch_size, *images.shape[2:], generator)
        images = rand_augment.apply(images, draws[rows])
    return images


def normalize(images: Tensor) -> Tensor:
    """(images / 255 - mean) / std with ImageNet's statistics.

    (N, 3, H, W), uint8 or float in 0..255, to float32; differentiable for float images.
    """
    mean = torch.tensor(IMAGENET_MEAN, device=images.device).view(1, 3, 1, 1)
    std = torch.tensor(IMAGENET_STD, device=images.device).view(1, 3, 1, 1)
    return (images - 255 * mean) / (255 * std)


# --- Crops of decoded images, in the data workers ------------------------------------------------


def random_resized_crop(image: Image.Image, size: int,
                        generator: Generator | None = None) -> Image.Image:
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
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    images = pixels.view(1, image.height, image.width, 3).permute(0, 3, 1, 2)
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
                     stroke_fill="black")
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
