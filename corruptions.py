"""Corrupted images and short films of an image that moves: ImageNet-C and -P, made on the fly.

The benchmarks of section 3.3 (Hendrycks & Dietterich, 2019) ask two questions of a network:

    ImageNet-C    is the class still found when the image is corrupted? 15 ways, which stand for
                  the sensor, the lens, the weather and the file format, at five severities
    ImageNet-P    is the answer, right or wrong, the same from one frame to the next, while a
                  perturbation grows or the view moves by a little?

Here the like is made of any 32x32 images, at the severities of CIFAR-10-C and -P, to compare one's
own networks. Scores cannot be compared with published ones. Simplified are

    frost               fractal noise, not photographs of frost
    fog                 octaves of smooth noise, not the diamond-square algorithm
    glass blur          every pixel takes the place of a neighbour; neighbours do not swap places
    elastic transform   one warp, not an affine one and then an elastic one
    motion blur, snow   linear between pixels, where ImageMagick rounds
    borders             what lies beyond an image repeats its border
    perturbations       eight of the ten: tilt and spatter are left out
"""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Generator, Tensor
from torchvision.io import decode_jpeg, encode_jpeg

# Severities 1 to 5 of CIFAR-10-C (github.com/hendrycks/robustness, create_c/make_cifar_c.py).
SEVERITIES = {
    "gaussian_noise": (0.04, 0.06, 0.08, 0.09, 0.10),  # standard deviation; white is 1
    "shot_noise": (500, 250, 100, 75, 50),  # photons of a white pixel
    "impulse_noise": (0.01, 0.02, 0.03, 0.05, 0.07),  # share of values set to black or white
    "defocus_blur": ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),  # radius, softness
    # Blur, how far a pixel may come from, and how often.
    "glass_blur": ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
    "motion_blur": ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),  # radius, sigma
    "zoom_blur": (1.06, 1.11, 1.16, 1.21, 1.26),  # largest zoom
    # Flakes: mean and deviation of the noise, zoom, threshold, motion blur (two); the image's part.
    "snow": ((0.1, 0.2, 1, 0.6, 8, 3, 0.95), (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
             (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9), (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
             (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8)),
    "frost": ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),  # weights: image, frost
    "fog": ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),  # amount, decay of the octaves
    "brightness": (0.05, 0.1, 0.15, 0.2, 0.3),  # added to the V of HSV
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),  # factor around the mean
    # Of the side: amplitude and smoothness of the displacement, largest shift of the affine map.
    "elastic_transform": ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06),
                          (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
    "pixelate": (0.95, 0.9, 0.85, 0.75, 0.65),  # of the side
    "jpeg_compression": (80, 65, 58, 50, 40),  # quality
}
PERTURBATIONS = ("gaussian_noise", "shot_noise", "motion_blur", "zoom_blur", "brightness",
                 "translate", "rotate", "scale")
FRAMES = {"motion_blur": 21, "translate": 16}  # of CIFAR-10-P; the others have 31

# ------------------------------------------------------------------ what they are made of
# Below, x is (N, C, S, S) float from 0 to 1. Positions are as PyTorch counts them: (column, row),
# the image reaching from -1 to 1, so that a pixel is 2 / S wide.


def _grid(x: Tensor, matrix: Tensor | tuple = ((1, 0, 0), (0, 1, 0))) -> Tensor:
    """Where each pixel comes from under (2, 3) or (N, 2, 3) affine matrices: (N, S, S, 2)."""
    matrix = torch.as_tensor(matrix, dtype=x.dtype).expand(len(x), 2, 3)
    return F.affine_grid(matrix, list(x.shape), align_corners=False)


def _sample(x: Tensor, grid: Tensor) -> Tensor:
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def _zoom(x: Tensor, factor: float) -> Tensor:
    """Magnify around the centre, linear between pixels."""
    return _sample(x, _grid(x, ((1 / factor, 0, 0), (0, 1 / factor, 0))))


def _blur(x: Tensor, sigma: float) -> Tensor:
    """Gaussian blur, sigma in pixels: one matrix mixes the rows and then the columns."""
    pixel = torch.arange(x.shape[-1])
    weights = torch.exp(-0.5 * ((pixel[:, None] - pixel) / max(sigma, 1e-3)) ** 2)
    weights = weights / weights.sum(1, keepdim=True)
    return weights @ x @ weights.T


def _motion_blur(x: Tensor, radius: int, sigma: float, degrees: Tensor) -> Tensor:
    """Weighted mean along a line that starts at each pixel, (N,) degrees clockwise from right."""
    taps = torch.arange(min(2 * radius, int(4 * sigma)) + 1)
    weights = torch.exp(-0.5 * (taps / sigma) ** 2)
    step = torch.stack([degrees.deg2rad().cos(), degrees.deg2rad().sin()], dim=1)  # (N, 2)
    grid, step = _grid(x), step[:, None, None] * 2 / x.shape[-1]
    return sum(weight * _sample(x, grid + tap * step)
               for tap, weight in zip(taps, weights / weights.sum(), strict=True))


def _brighten(x: Tensor, value: float) -> Tensor:
    """Add to V of HSV, which is the largest channel: hue and saturation stay."""
    peak = x.amax(1, keepdim=True)
    raised = (peak + value).clamp(0, 1)
    return torch.where(peak > 0, x * raised / peak.clamp(min=1e-6), raised)


def _clouds(count: int, size: int, decay: float, generator: Generator | None) -> Tensor:
    """Fractal noise from 0 to 1, (count, 1, size, size): each octave 1 / decay as strong."""
    clouds = torch.zeros(count, 1, size, size)
    for octave in range(size.bit_length() - 1):
        side = 2 ** (octave + 1)
        noise = (2 * torch.rand(count, 1, side, side, generator=generator) - 1) * decay**-octave
        clouds += F.interpolate(noise, size=size, mode="bilinear", align_corners=True)
    clouds -= clouds.amin((2, 3), keepdim=True)
    return clouds / clouds.amax((2, 3), keepdim=True)


# ------------------------------------------------------------------ the two benchmarks


def corrupt(images: Tensor, name: str, severity: int, generator: Generator | None = None) -> Tensor:
    """One of the 15 corruptions of ImageNet-C, at CIFAR-10-C's severities.

    Args:
        images: (N, 3, S, S) uint8 on the host, S about 32.
        name: a key of SEVERITIES.
        severity: 1 to 5.

    Returns:
        (N, 3, S, S) uint8.
    """
    x, value = images.float() / 255, SEVERITIES[name][severity - 1]
    count, size = len(x), x.shape[-1]

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=generator)

    match name:
        case "gaussian_noise":
            x = x + value * torch.randn(x.shape, generator=generator)
        case "shot_noise":
            x = torch.poisson(x * value, generator) / value
        case "impulse_noise":
            chance = uniform(0, 1, *x.shape)
            x = x.masked_fill(chance < value / 2, 0).masked_fill(chance > 1 - value / 2, 1)
        case "defocus_blur":
            radius, softness = value
            across = torch.arange(-2, 3)
            disk = (across[:, None] ** 2 + across**2 <= radius**2).float()
            kernel = _blur(disk / disk.sum(), softness)
            padded = F.pad(x.flatten(0, 1)[:, None], (2, 2, 2, 2), mode="reflect")
            x = F.conv2d(padded, kernel[None, None]).view_as(x)
        case "glass_blur":
            sigma, reach, rounds = value
            x, grid = _blur(x, sigma), _grid(x)
            for _ in range(rounds):  # a neighbour from -reach to reach - 1, as in the release
                moves = torch.randint(-reach, reach, grid.shape, generator=generator)
                x = _sample(x, grid + moves * 2 / size)
            x = _blur(x, sigma)
        case "motion_blur":
            x = _motion_blur(x, *value, uniform(-45, 45, count))
        case "zoom_blur":
            factors = torch.arange(1, value, 0.01).tolist()
            x = (x + sum(_zoom(x, factor) for factor in factors)) / (len(factors) + 1)
        case "snow":
            mean, deviation, zoom, threshold, radius, sigma, kept = value
            flakes = mean + deviation * torch.randn(count, 1, size, size, generator=generator)
            flakes = _zoom(flakes, zoom)
            flakes = flakes.masked_fill(flakes < threshold, 0).clamp(0, 1)
            flakes = _motion_blur(flakes, radius, sigma, uniform(-135, -45, count))
            gray = (x * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
            x = kept * x + (1 - kept) * torch.maximum(x, 1.5 * gray + 0.5)
            x = x + flakes + flakes.rot90(2, (2, 3))
        case "frost":
            veins = 1 - (2 * _clouds(count, size, 1.5, generator) - 1).abs()
            x = value[0] * x + value[1] * veins * torch.tensor([0.85, 0.95, 1]).view(3, 1, 1)
        case "fog":
            amount, decay = value
            peak = x.amax((1, 2, 3), keepdim=True)
            x = (x + amount * _clouds(count, size, decay, generator)) * peak / (peak + amount)
        case "brightness":
            x = _brighten(x, value)
        case "contrast":
            mean = x.mean((2, 3), keepdim=True)
            x = (x - mean) * value + mean
        case "elastic_transform":
            amplitude, sigma, affine = value
            corners = 2 * (size // 3) / size * torch.tensor([[1.0, 1], [1, -1], [-1, -1]])
            moved = corners + 2 * uniform(-affine, affine, count, 3, 2)
            moved = torch.cat([moved, torch.ones(count, 3, 1)], dim=2)
            back = torch.linalg.solve(moved, corners.expand(count, 3, 2))  # output -> input
            shift = 2 * amplitude * _blur(uniform(-1, 1, 2, count, size, size), size * sigma)
            x = _sample(x, _grid(x, back.mT) + shift.permute(1, 2, 3, 0))
        case "pixelate":
            side, box = int(size * value), Image.Resampling.BOX
            pictures = [Image.fromarray(picture).resize((side, side), box).resize((size, size), box)
                        for picture in images.permute(0, 2, 3, 1).contiguous().numpy()]
            x = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 255
        case "jpeg_compression":
            x = torch.stack([decode_jpeg(code) for code in encode_jpeg([*images], value)]) / 255
    return (255 * x).round().clamp(0, 255).to(torch.uint8)


def perturb(images: Tensor, name: str, generator: Generator | None = None) -> Iterator[Tensor]:
    """The frames of one of the PERTURBATIONS of CIFAR-10-P: (N, 3, S, S) uint8 each, as `images`.

    The films of noise and of zoom blur begin with the clean image, the others pass through it.
    """
    x, total = images.float() / 255, 0
    for frame in range(FRAMES.get(name, 31)):
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
                moved = _sample(x, _grid(x, ((1, 0, -2 * (frame - 7) / x.shape[-1]), (0, 1, 0))))
            case "rotate":
                turn = torch.tensor(frame - 15.0).deg2rad()
                cos, sin = turn.cos(), turn.sin()
                moved = _sample(x, _grid(x, ((cos, sin, 0), (-sin, cos, 0))))
            case "scale":
                moved = _zoom(x, 0.7 + 0.02 * frame)
        yield (255 * moved).round().clamp(0, 255).to(torch.uint8)
