"""Corrupted images, and short sequences of an image that moves: ImageNet-C and -P on the fly.

The benchmarks of section 3.3 (Hendrycks & Dietterich, 2019) ask two questions of a network:

    ImageNet-C    is the class still found when sensor, lens, weather or file format corrupt it?
    ImageNet-P    is the answer, right or wrong, the same when the view moves by a little?

Here similar corruptions are applied to any images, to compare one's own networks: at the severities
of CIFAR-10-C for 32x32 pixels, at those of ImageNet-C from 224x224 on, and interpolated in between;
perturbations are CIFAR-10-P's at every size. Scores cannot be compared with published ones:
"authors: ..." says where github.com/hendrycks/robustness does more than the code here.
"""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Generator, Tensor

from support import InputError
from support.images import to_array

# CIFAR-10-C's numbers for each corruption at severities 1 to 5, and ImageNet-C's; `corrupt` says
# what they mean.
_TABLES = json.loads(Path(__file__).with_name("severities.json").read_text())
SEVERITIES, AT_224 = _TABLES["severities"], _TABLES["at_224"]
# authors: two more, tilt and spatter.
PERTURBATIONS = {"gaussian_noise": 31, "shot_noise": 31, "motion_blur": 21, "zoom_blur": 31,
                 "brightness": 31, "translate": 16, "rotate": 31, "scale": 31}  # frames

# ---- What the corruptions are made of ----
# Below, x is (N, C, S, S) float from 0 to 1. Positions are PyTorch's: (column, row), with the image
# reaching from -1 to 1, so that a pixel is 2 / S wide.


def _warp(x: Tensor, matrix: Tensor | tuple = ((1, 0, 0), (0, 1, 0)),
          shift: Tensor | float = 0.0) -> Tensor:
    """Fetch each pixel from matrix (2, 3) or (N, 2, 3) times its position + shift (N, S, S, 2)."""
    matrix = torch.as_tensor(matrix, dtype=x.dtype).expand(len(x), 2, 3)
    grid = F.affine_grid(matrix, list(x.shape), align_corners=False) + shift
    # authors: black beyond the border, or reflected by elastic; here: the border repeats.
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def _zoom(x: Tensor, factor: float) -> Tensor:
    """Magnify around the centre, interpolating linearly between pixels."""
    # authors: a crop of whole pixels, so that zoom blur changes a 32x32 image more (8.6 grey levels
    # on average at severity 1, against 4.8); here: exact, at every size of image.
    return _warp(x, ((1 / factor, 0, 0), (0, 1 / factor, 0)))


def _blur(x: Tensor, sigma: float) -> Tensor:
    """Gaussian blur, sigma in pixels: one matrix mixes the rows and then the columns."""
    pixel = torch.arange(x.shape[-1])
    weights = torch.exp(-0.5 * ((pixel[:, None] - pixel) / max(sigma, 1e-3)) ** 2)
    weights = weights / weights.sum(1, keepdim=True)
    return weights @ x @ weights.T


def _motion_blur(x: Tensor, radius: float, sigma: float, degrees: Tensor) -> Tensor:
    """Weighted mean along a line from each pixel; degrees (N,) are clockwise from the right."""
    taps = torch.arange(int(min(2 * radius, 4 * sigma)) + 1)
    weights = torch.exp(-0.5 * (taps / sigma) ** 2)
    step = torch.stack([degrees.deg2rad().cos(), degrees.deg2rad().sin()], dim=1)  # (N, 2)
    step = step[:, None, None] * 2 / x.shape[-1]
    # authors: ImageMagick, which rounds to whole pixels; here: linear between pixels.
    return sum(weight * _warp(x, shift=tap * step)
               for tap, weight in zip(taps, weights / weights.sum(), strict=True))


def _brighten(x: Tensor, value: float) -> Tensor:
    """Add to V of HSV, which is the largest channel: hue and saturation stay."""
    peak = x.amax(1, keepdim=True)
    raised = (peak + value).clamp(0, 1)
    return torch.where(peak > 0, x * raised / peak.clamp(min=1e-6), raised)


def _uniform(low: float, high: float, shape: Sequence[int], generator: Generator | None) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator)


def _clouds(count: int, size: int, decay: float, generator: Generator | None) -> Tensor:
    """Fractal noise in 0..1 (count, 1, size, size): each octave 1 / decay as strong as the last."""
    # authors: the diamond-square algorithm, and photographs of frost; here: octaves of noise.
    clouds = torch.zeros(count, 1, size, size)
    for octave in range(size.bit_length() - 1):
        side = 2 ** (octave + 1)
        noise = _uniform(-1, 1, (count, 1, side, side), generator) * decay**-octave
        clouds += F.interpolate(noise, size=size, mode="bilinear", align_corners=True)
    clouds -= clouds.amin((2, 3), keepdim=True)
    return clouds / clouds.amax((2, 3), keepdim=True)


def _snow(x: Tensor, mean: float, deviation: float, zoom: float, threshold: float, radius: int,
          sigma: float, kept: float, generator: Generator | None) -> Tensor:
    """Streaks of snow, once as drawn and once turned by 180 degrees, on a whitened image.

    They are noise above a threshold, magnified and blurred; a share `kept` of the image stays.
    """
    shape = len(x), 1, *x.shape[2:]
    flakes = _zoom(mean + deviation * torch.randn(shape, generator=generator), zoom)
    flakes = flakes.masked_fill(flakes < threshold, 0).clamp(0, 1)
    flakes = _motion_blur(flakes, radius, sigma, _uniform(-135, -45, (len(x),), generator))
    gray = (x * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
    x = kept * x + (1 - kept) * torch.maximum(x, 1.5 * gray + 0.5)
    return x + flakes + flakes.rot90(2, (2, 3))


def _elastic(x: Tensor, amplitude: float, smoothness: float, reach: float,
             generator: Generator | None) -> Tensor:
    """An affine map that moves three corners by up to `reach`, and a smooth displacement.

    All numbers are fractions of the side.
    """
    count, size = len(x), x.shape[-1]
    corners = 2 * (size // 3) / size * torch.tensor([[1.0, 1], [1, -1], [-1, -1]])
    moved = corners + 2 * _uniform(-reach, reach, (count, 3, 2), generator)
    moved = F.pad(moved, (0, 1), value=1.0)
    back = torch.linalg.solve(moved, corners.expand(count, 3, 2))  # output -> input
    shift = _uniform(-1, 1, (2, count, size, size), generator)
    shift = 2 * amplitude * _blur(shift, size * smoothness)
    # authors: one after the other, of 224 pixels with shares of 244; here: both in one warp.
    return _warp(x, back.mT, shift.permute(1, 2, 3, 0))


def _pixelated(images: Tensor, side: int) -> Tensor:
    """x of uint8 images (N, 3, S, S), shrunk to that side and enlarged again."""
    box, changed = Image.Resampling.BOX, []
    for image in map(Image.fromarray, images.permute(0, 2, 3, 1).numpy()):
        changed.append(to_array(image.resize((side, side), box).resize(image.size, box)))
    return torch.from_numpy(np.stack(changed)) / 255


# ---- The two benchmarks ----


def check(images: Tensor) -> int:
    """The images' side in pixels; InputError unless there are five or more, (N, 3, S, S) uint8 with
    S of 32 or more.
    """
    count, *shape = images.shape
    side = shape[-1]
    if images.dtype != torch.uint8 or shape != [3, side, side] or side < 32 or count < 5:
        raise InputError("the quick suite needs five or more images, uint8, of 32x32 pixels or "
                         f"more: got {tuple(images.shape)} {images.dtype}")
    return side


def numbers_of(name: str, severity: int, size: int) -> float | list[float]:
    """A corruption's numbers for images of size x size pixels."""
    small, large = (np.array(table[name][severity - 1]) for table in (SEVERITIES, AT_224))
    share = min(max(math.log(size / 32, 224 / 32), 0), 1)  # of the way from 32 to 224 pixels
    return (small + share * (large - small)).tolist()


def corrupt(images: Tensor, name: str, severity: int, generator: Generator | None = None) -> Tensor:
    """One of the 15 corruptions of ImageNet-C, at severity 1 to 5.

    images: (N, 3, S, S) uint8 on the host; so is the result. name: a key of SEVERITIES.
    """
    x, value = images.float() / 255, numbers_of(name, severity, images.shape[-1])
    match name:
        case "gaussian_noise":  # standard deviation; white is 1
            x = x + value * torch.randn(x.shape, generator=generator)
        case "shot_noise":  # photons of a white pixel
            x = torch.poisson(x * value, generator) / value
        case "impulse_noise":  # share of values set to black or white
            chance = torch.rand(x.shape, generator=generator)
            x = x.masked_fill(chance < value / 2, 0).masked_fill(chance > 1 - value / 2, 1)
        case "defocus_blur":
            (radius, softness), reach = value, max(2, math.ceil(value[0]))
            across = torch.arange(-reach, reach + 1)
            disk = (across[:, None] ** 2 + across**2 <= radius**2).float()
            kernel = _blur(disk, softness)
            padded = F.pad(x.flatten(0, 1)[:, None], (reach,) * 4, mode="reflect")
            x = F.conv2d(padded, (kernel / kernel.sum())[None, None]).view_as(x)
        case "glass_blur":
            sigma, *rest = value
            reach, rounds = map(round, rest)  # how far a pixel comes from, and how many times
            x = _blur(x, sigma)
            for _ in range(rounds):
                # authors: pixels swap places, one after the other; here: all fetch at once.
                moves = torch.randint(-reach, reach, (len(x), *x.shape[2:], 2), generator=generator)
                x = _warp(x, shift=moves * 2 / x.shape[-1])
            x = _blur(x, sigma)
        case "motion_blur":
            x = _motion_blur(x, *value, _uniform(-45, 45, (len(x),), generator))
        case "zoom_blur":  # largest zoom; authors: from severity 3 on in coarser steps, at 224
            factors = torch.arange(1, value, 0.01).tolist()
            x = (x + sum(_zoom(x, factor) for factor in factors)) / (len(factors) + 1)
        case "snow":
            x = _snow(x, *value, generator)
        case "frost":
            (kept, amount), bluish = value, torch.tensor([0.85, 0.95, 1]).view(3, 1, 1)
            veins = 1 - (2 * _clouds(len(x), x.shape[-1], 1.5, generator) - 1).abs()
            x = kept * x + amount * veins * bluish
        case "fog":
            (amount, decay), peak = value, x.amax((1, 2, 3), keepdim=True)
            clouds = _clouds(len(x), x.shape[-1], decay, generator)
            x = (x + amount * clouds) * peak / (peak + amount)
        case "brightness":  # added to V of HSV
            x = _brighten(x, value)
        case "contrast":  # factor around the mean
            mean = x.mean((2, 3), keepdim=True)
            x = (x - mean) * value + mean
        case "elastic_transform":
            x = _elastic(x, *value, generator)
        case "pixelate":  # side of the small image as a share of the side
            x = _pixelated(images, int(x.shape[-1] * value))
        case "jpeg_compression":  # quality
            from torchvision.io import decode_jpeg, encode_jpeg  # as slow to import as torch
            codes = encode_jpeg([*images], round(value))
            x = torch.stack([decode_jpeg(code) for code in codes]) / 255
    return (255 * x).round().clamp(0, 255).to(torch.uint8)


def perturb(images: Tensor, name: str, generator: Generator | None = None) -> Iterator[Tensor]:
    """The frames of one of CIFAR-10-P's PERTURBATIONS: (N, 3, S, S) uint8 each, as `images`.

    Sequences of noise and of zoom blur begin with the clean image; the others pass through it, but
    for motion blur, whose every frame is blurred.
    """
    x, total = images.float() / 255, 0
    for frame in range(PERTURBATIONS[name]):
        match name:
            case "gaussian_noise":
                moved = x + 0.02 * torch.randn(x.shape, generator=generator) if frame else x
            case "shot_noise":
                moved = torch.poisson(x * 700, generator) / 700 if frame else x
            case "motion_blur":
                moved = _motion_blur(x, 6, 1.8, torch.full((len(x),), 9.0 * (frame - 20)))
            case "zoom_blur":
                total = total + _zoom(x, 1 + 0.004 * frame)
                moved = total / (frame + 1)
            case "brightness":
                moved = _brighten(x, 0.015 * (frame - 15))
            case "translate":
                moved = _warp(x, ((1, 0, -2 * (frame - 7) / x.shape[-1]), (0, 1, 0)))
            case "rotate":
                turn = torch.tensor(frame - 15.0).deg2rad()
                moved = _warp(x, ((turn.cos(), turn.sin(), 0), (-turn.sin(), turn.cos(), 0)))
            case "scale":
                moved = _zoom(x, 0.7 + 0.02 * frame)
        yield (255 * moved).round().clamp(0, 255).to(torch.uint8)
