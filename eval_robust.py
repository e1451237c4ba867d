"""How far a network holds when its images are hard, corrupted, moved or attacked.

Sections 3.3 and 3.4 of Noisy Student Training: the student, never trained for robustness, gains
most on these tests. What is measured, and where the paper reports it:

    imagenet-a   hard natural photographs: top-1 and top-5 accuracy                  table 3
    imagenet-c   15 corruptions at 5 severities: mean corruption error, mCE          table 4
    imagenet-p   10 perturbations drawn as short films: mean flip rate, mFR          table 5
    FGSM, PGD    gradients of the loss with respect to the image                     figure 4
    cifar10-c, cifar10-p    the same two benchmarks at 32x32; imagenet: a validation folder
    quick        everything above made on the fly from ordinary 32x32 images, in about a minute

    python eval_robust.py --checkpoint b0.pth --arch b0 --suite imagenet-c --data-dir ImageNet-C \\
        --out results.json

Archives are read as they unpack (Zenodo 2235448 and 3565846, imagenet-a.tar, CIFAR-10-C and -P).
What is measured is kept in --out after each part, and the same command continues from there.
Images travel as pixels, 0 to 255, and `model` is always a callable from such (N, 3, H, W) pixels to
(N, num_classes) logits, with a network in evaluation mode and its normalisation inside:

    quick_suite(lambda pixels: network(augment.normalize(pixels)), images, labels)
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.io import decode_jpeg, encode_jpeg
from tqdm import tqdm

import augment
import data
import device as devices
import model as models
from data import InputError

# AlexNet's top-1 errors at the five severities, the yardstick of ImageNet-C: measured by Hendrycks
# & Dietterich (2019), github.com/hendrycks/robustness, issue 10. The order is the benchmark's.
ALEXNET_ERROR = {
    "gaussian_noise": (0.69528, 0.82542, 0.93554, 0.98138, 0.99452),
    "shot_noise": (0.71224, 0.85108, 0.93574, 0.98182, 0.99146),
    "impulse_noise": (0.78374, 0.89808, 0.94870, 0.98720, 0.99548),
    "defocus_blur": (0.65624, 0.73202, 0.85036, 0.91364, 0.94714),
    "glass_blur": (0.64308, 0.75054, 0.88806, 0.91622, 0.93344),
    "motion_blur": (0.58430, 0.70048, 0.82108, 0.89750, 0.92638),
    "zoom_blur": (0.70008, 0.76992, 0.80784, 0.84198, 0.87198),
    "snow": (0.71726, 0.88392, 0.86468, 0.91870, 0.94952),
    "frost": (0.61390, 0.79734, 0.88790, 0.89942, 0.93430),
    "fog": (0.67474, 0.76050, 0.84378, 0.87260, 0.94500),
    "brightness": (0.45140, 0.48502, 0.54048, 0.62166, 0.72440),
    "contrast": (0.64548, 0.76150, 0.88874, 0.97760, 0.99270),
    "elastic_transform": (0.52596, 0.70116, 0.55686, 0.64076, 0.80554),
    "pixelate": (0.52218, 0.54620, 0.73728, 0.87092, 0.91262),
    "jpeg_compression": (0.51002, 0.54718, 0.57294, 0.65458, 0.74778),
}
# AlexNet's flip rates on ImageNet-P, as listed in github.com/clovaai/assembled-cnn, mce/.
ALEXNET_FLIP_RATE = {
    "gaussian_noise": 0.23653, "shot_noise": 0.30062, "motion_blur": 0.09297,
    "zoom_blur": 0.05942, "snow": 0.11928, "brightness": 0.04889, "translate": 0.11007,
    "rotate": 0.13104, "tilt": 0.07050, "scale": 0.23531,
}  # fmt: skip
# CIFAR-10-P has spatter in the place of snow. Sequences have 31 frames, with these exceptions.
CIFAR_P = [name if name != "snow" else "spatter" for name in ALEXNET_FLIP_RATE]
FRAMES = {"imagenet-p": {"translate": 41}, "cifar10-p": {"motion_blur": 21, "translate": 16}}
# The 1000 classes ("wnids", in the order of the logits) and the 200 of them in ImageNet-A.
IMAGENET = json.loads((Path(__file__).parent / "imagenet_classes.json").read_text())
SUITES = ("imagenet", "imagenet-a", "imagenet-c", "imagenet-p", "cifar10-c", "cifar10-p", "quick")

Model = Callable[[Tensor], Tensor]  # (N, 3, H, W) pixels, 0 to 255 -> (N, num_classes) logits


# ------------------------------------------------------------------------------------ metrics


def top_k(logits: Tensor, k: int, classes: Sequence[int] | None = None) -> Tensor:
    """The k most likely classes, best first: (N, num_classes) -> (N, k) int64, k clipped.

    classes: the only ones that may win. ImageNet-A (table 3) has 200 of ImageNet's 1000, and the
    other 800 logits are left out; the answer stays in the numbering of the logits.
    """
    if classes is None:
        return logits.topk(min(k, logits.shape[1])).indices
    classes = torch.as_tensor(classes, device=logits.device)
    return classes[top_k(logits[:, classes], k)]


def _check_names(measured: Mapping, baseline: Mapping | None) -> None:
    if not measured or (baseline is not None and measured.keys() != baseline.keys()):
        raise ValueError(f"the mean needs exactly {', '.join(baseline or ['something'])}: got "
                         f"{', '.join(measured) or 'nothing'}")  # fmt: skip


def mean_corruption_error(
    errors: Mapping[str, Sequence[float]],
    baseline: Mapping[str, Sequence[float]] | None = ALEXNET_ERROR,
) -> float:
    """mCE in percent (table 4): AlexNet's own is 100, lower is better.

    CE_c = (sum_s E[s, c]) / (sum_s E_AlexNet[s, c]) of a corruption c; mCE is their mean.

    Args:
        errors: corruption -> its errors at the 5 severities, as fractions.
        baseline: the same of the yardstick; None: the plain mean error (as CIFAR-10-C reports).

    Raises:
        ValueError: corruptions that differ from the baseline's, not 5 severities, not fractions.
    """
    _check_names(errors, baseline)
    for name, row in errors.items():
        if len(row) != 5 or not all(0 <= error <= 1 for error in row):
            raise ValueError(f"{name} needs five errors between 0 and 1: got {list(row)}")
    ratios = [sum(row) / (sum(baseline[name]) if baseline else 5) for name, row in errors.items()]
    return 100 * sum(ratios) / len(ratios)


def flip_rate(predictions: Tensor, noise: bool) -> float:
    """How often the prediction changes within a sequence, as a fraction (Hendrycks & Dietterich).

    Args:
        predictions: (sequences, frames) int classes.
        noise: compare each frame with the first, clean one: independent noise has no order.
            Otherwise each is compared with the frame before it.

    Raises ValueError unless there are two frames at least.
    """
    predictions = torch.as_tensor(predictions)
    if predictions.ndim != 2 or predictions.shape[1] < 2 or not len(predictions):
        raise ValueError(f"need (sequences, frames >= 2), got {tuple(predictions.shape)}")
    reference = predictions[:, :1] if noise else predictions[:, :-1]
    return (predictions[:, 1:] != reference).double().mean().item()


def mean_flip_rate(
    rates: Mapping[str, float], baseline: Mapping[str, float] | None = ALEXNET_FLIP_RATE
) -> float:
    """mFR in percent (table 5): the mean over perturbations of flip rate / AlexNet's flip rate.

    rates: perturbation -> fraction. baseline None: the plain mean (as CIFAR-10-P reports). Raises
    ValueError where the perturbations differ from the baseline's.
    """
    _check_names(rates, baseline)
    ratios = [rate / (baseline[name] if baseline else 1) for name, rate in rates.items()]
    return 100 * sum(ratios) / len(ratios)


# ------------------------------------------------------------------------------------ attacks


def _loss_gradient(model: Model, images: Tensor, labels: Tensor) -> Tensor:
    """Gradient of the cross entropy with respect to the pixels: (N, 3, H, W).

    `autograd.grad` computes this one gradient and leaves the parameters' `.grad` alone. The loss is
    summed, so an image's gradient does not depend on the rest of its batch.
    """
    if isinstance(model, torch.nn.Module) and model.training:
        raise ValueError("the attacked network is in training mode: call .eval() first")
    with torch.enable_grad():
        images = images.detach().requires_grad_()
        logits = model(images)
        loss = F.cross_entropy(logits, labels.to(logits.device), reduction="sum")
        return torch.autograd.grad(loss, images)[0]


def fgsm(model: Model, images: Tensor, labels: Tensor, epsilon: float) -> Tensor:
    """Fast gradient sign method (section 3.4): one step that moves every pixel by epsilon.

    Args:
        model: from pixels to logits. The attack is on the pixels after resizing and before the
            normalisation, which is the model's own.
        images: (N, 3, H, W) pixels, 0 to 255, uint8 or float.
        labels: (N,) int64, the true classes.
        epsilon: pixel units, 0 to 255. paper: "epsilon", no unit; here: pixels, which is what
            its values (2 and 16) must be.

    Returns:
        (N, 3, H, W) float, within epsilon of the images and within 0 to 255, not rounded.
    """
    return pgd(model, images, labels, epsilon, steps=1, step_size=epsilon)


def pgd(
    model: Model,
    images: Tensor,
    labels: Tensor,
    epsilon: float,
    steps: int = 10,
    step_size: float | None = None,
    random_start: bool = False,
    targets: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Projected gradient descent (section 3.4, "PGD with 10 iterations", after Madry et al.).

    x <- clip(x + step_size * sign(gradient)), into the epsilon ball and the pixel range.

    paper: only the number of iterations and epsilon = 16; here: the rest is a choice. The step is
    2.5 * epsilon / steps, the rule of Madry's group: wherever in the ball the attack starts, it can
    reach the boundary and move along it. The code of C. Xie, whom the paper thanks for this
    evaluation, uses max(1, epsilon / steps), a random start and random targets: a weaker attack,
    which the arguments below can express.

    Args:
        model, images, labels, epsilon: as in `fgsm`.
        step_size: pixel units; None: 2.5 * epsilon / steps.
        random_start: begin at a uniform point of the ball instead of at the image.
        targets: (N,) int64; lower the loss of these classes instead of raising that of `labels`.
        generator: draws the random start, on the host.

    Returns:
        As `fgsm`.
    """
    clean = images.float()
    lowest, highest = (clean - epsilon).clamp(min=0), (clean + epsilon).clamp(max=255)
    step = 2.5 * epsilon / steps if step_size is None else step_size
    adversarial = clean
    if random_start:
        offset = (2 * torch.rand(clean.shape, generator=generator) - 1) * epsilon
        adversarial = (clean + offset.to(clean.device)).clamp(0, 255)
    if targets is not None:
        labels, step = targets, -step
    for _ in range(steps):
        direction = _loss_gradient(model, adversarial, labels).sign()
        adversarial = torch.clamp(adversarial + step * direction, lowest, highest)
    return adversarial


# ------------------------------------------------------------------- corruptions made on the fly

# The severities of CIFAR-10-C (github.com/hendrycks/robustness, create_c/make_cifar_c.py).
SEVERITIES = {
    "gaussian_noise": (0.04, 0.06, 0.08, 0.09, 0.10),  # standard deviation
    "shot_noise": (500, 250, 100, 75, 50),  # photons of a white pixel
    "impulse_noise": (0.01, 0.02, 0.03, 0.05, 0.07),  # share of values set to black or white
    "defocus_blur": ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),  # radius, softness
    # Blur, how far a pixel may come from, and how often.
    "glass_blur": ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
    "motion_blur": ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),  # radius, sigma
    "zoom_blur": (1.06, 1.11, 1.16, 1.21, 1.26),  # largest zoom
    # Mean and deviation of the noise, zoom, threshold, motion blur (two), weight of the image.
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
}  # fmt: skip


def _gaussian(size: int, sigma: float) -> Tensor:
    """(size, size) matrix that blurs an axis: blurred = matrix @ image @ matrix.T."""
    distance = torch.arange(size)[:, None] - torch.arange(size)
    weights = torch.exp(-0.5 * (distance / max(sigma, 1e-3)) ** 2)
    return weights / weights.sum(1, keepdim=True)


def _zoom(x: Tensor, factor: float) -> Tensor:
    """Magnify (N, C, S, S) around its centre, linear between pixels; a matrix, as in a blur."""
    pixel = torch.arange(x.shape[-1])
    centre = (x.shape[-1] - 1) / 2
    position = (centre + (pixel - centre) / factor).clamp(0, 2 * centre)
    weights = (1 - (position[:, None] - pixel).abs()).clamp(min=0)
    return weights @ x @ weights.T


def _sample(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The pixel of (N, C, S, S) at (N, S, S) positions; beyond the border, the border's."""
    grid = torch.stack([columns, rows], dim=-1) * (2 / (x.shape[-1] - 1)) - 1
    return F.grid_sample(x, grid, padding_mode="border", align_corners=True)


def _positions(x: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column of every pixel, each (N, S, S)."""
    pixel = torch.arange(x.shape[-1], dtype=x.dtype).expand(len(x), x.shape[-1], -1)
    return pixel.transpose(1, 2), pixel


def _motion_blur(x: Tensor, radius: int, sigma: float, degrees: Tensor) -> Tensor:
    """Weighted mean along a line that starts at each pixel: (N, C, S, S), (N,) degrees."""
    taps = torch.arange(min(2 * radius, int(4 * sigma)) + 1)
    weights = torch.exp(-0.5 * (taps / sigma) ** 2)
    rows, columns = _positions(x)
    down, right = degrees.deg2rad().sin().view(-1, 1, 1), degrees.deg2rad().cos().view(-1, 1, 1)
    shifted = (w * _sample(x, rows + t * down, columns + t * right)
               for t, w in zip(taps.tolist(), weights / weights.sum(), strict=True))  # fmt: skip
    return sum(shifted)


def _brighten(x: Tensor, value: float) -> Tensor:
    """Add to V of HSV, which is the largest channel: hue and saturation stay."""
    peak = x.amax(1, keepdim=True)
    raised = (peak + value).clamp(0, 1)
    return torch.where(peak > 0, x * raised / peak.clamp(min=1e-6), raised)


def _clouds(count: int, size: int, decay: float, generator: torch.Generator) -> Tensor:
    """Fractal noise from 0 to 1, (count, 1, size, size): each octave 1 / decay as strong."""
    clouds = torch.zeros(count, 1, size, size)
    for octave in range(size.bit_length() - 1):
        side = 2 ** (octave + 1)
        noise = (2 * torch.rand(count, 1, side, side, generator=generator) - 1) * decay**-octave
        clouds += F.interpolate(noise, size=size, mode="bilinear", align_corners=True)
    clouds -= clouds.amin((2, 3), keepdim=True)
    return clouds / clouds.amax((2, 3), keepdim=True)


def corrupt(images: Tensor, name: str, severity: int, generator: torch.Generator) -> Tensor:
    """One of the 15 corruptions of ImageNet-C, at CIFAR-10-C's severities.

    Simplified against the released files: frost is fractal noise, not photographs; fog sums
    octaves of noise, not diamonds and squares; glass blur draws neighbours, it does not swap them;
    elastic transform warps once, not twice; motion blur interpolates between pixels, ImageMagick
    rounds; what lies beyond the border repeats it.

    Args:
        images: (N, 3, S, S) uint8, S about 32.
        name: a key of SEVERITIES.
        severity: 1 to 5.
        generator: of the host.

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
            blur = _gaussian(5, softness)
            kernel = blur.T @ (disk / disk.sum()) @ blur
            padded = F.pad(x.flatten(0, 1)[:, None], (2, 2, 2, 2), mode="reflect")
            x = F.conv2d(padded, kernel[None, None]).view_as(x)
        case "glass_blur":
            sigma, reach, rounds = value
            blur, (rows, columns) = _gaussian(size, sigma), _positions(x)
            x = blur @ x @ blur.T
            for _ in range(rounds):  # a neighbour from -reach to reach - 1, as in the release
                moves = torch.randint(-reach, reach, (2, count, size, size), generator=generator)
                x = _sample(x, rows + moves[0], columns + moves[1])
            x = blur @ x @ blur.T
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
            amplitude, sigma, affine = (size * part for part in value)
            corners = size / 2 + size // 3 * torch.tensor([[1.0, 1], [1, -1], [-1, -1]])
            moved = corners + uniform(-affine, affine, count, 3, 2)
            moved = torch.cat([moved, torch.ones(count, 3, 1)], dim=2)
            back = torch.linalg.solve(moved, corners.expand(count, 3, 2))  # output -> input
            rows, columns = _positions(x)
            source = torch.stack([columns, rows, torch.ones_like(rows)], dim=-1)
            columns, rows = (source @ back[:, None]).unbind(-1)
            blur = _gaussian(size, sigma)
            shift = amplitude * (blur @ uniform(-1, 1, 2, count, size, size) @ blur.T)
            x = _sample(x, rows + shift[0], columns + shift[1])
        case "pixelate":
            side = int(size * value)
            pixel, centre = torch.arange(size) + 0.5, (torch.arange(side) + 0.5) * size / side
            box = ((pixel - centre[:, None]).abs() <= size / side / 2).float()  # as Pillow's BOX
            box /= box.sum(1, keepdim=True)
            x = F.interpolate(box @ x @ box.T, size=size, mode="nearest-exact")
        case "jpeg_compression":
            x = torch.stack([decode_jpeg(code) for code in encode_jpeg([*images], value)]) / 255
    return (255 * x).round().clamp(0, 255).to(torch.uint8)


def perturb(images: Tensor, name: str, generator: torch.Generator) -> Iterator[Tensor]:
    """The frames, each (N, 3, S, S) uint8, of one of eight perturbations of CIFAR-10-P.

    Tilt and spatter are left out, and what lies beyond the border repeats it.
    """
    x = images.float() / 255
    rows, columns = _positions(x)
    centre, total = (x.shape[-1] - 1) / 2, torch.zeros_like(x)
    for frame in range(FRAMES["cifar10-p"].get(name, 31)):
        match name:
            case "gaussian_noise":  # the sequences of noise begin with the clean image
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
                moved = _sample(x, rows, columns - (frame - 7))
            case "rotate":
                angle = torch.tensor(frame - 15.0).deg2rad()
                down, right = rows - centre, columns - centre
                moved = _sample(x, centre + angle.cos() * down - angle.sin() * right,
                                centre + angle.sin() * down + angle.cos() * right)  # fmt: skip
            case "scale":
                moved = _zoom(x, 0.7 + 0.02 * frame)
        yield (255 * moved).round().clamp(0, 255).to(torch.uint8)


QUICK_PERTURBATIONS = ("gaussian_noise", "shot_noise", "motion_blur", "zoom_blur", "brightness",
                       "translate", "rotate", "scale")  # fmt: skip
QUICK_SEQUENCES, QUICK_ATTACKED = 50, 150  # images of the flip rates, and of the attacks


def _predict(model: Model, images: Tensor, batch_size: int) -> Tensor:
    """(N,) classes, on the host."""
    with torch.no_grad():
        return torch.cat([model(part).argmax(1).cpu() for part in images.split(batch_size)])


def quick_suite(
    model: Model,
    images: Tensor,
    labels: Tensor,
    seed: int = 0,
    batch_size: int = 500,
    epsilons: Sequence[float] = (1, 2, 4, 8),
    limit: int = 2000,
    progress: bool = False,
) -> dict:
    """All of sections 3.3 and 3.4 in small, on ordinary 32x32 images: to compare two own networks.

    A random choice of `limit` images is used, in an order drawn from the seed. Every image meets
    every corruption once, at severities that go round, so each severity has a fifth of the images,
    another fifth than the next severity. Flip rates take the first 50 images, attacks the first
    150. PGD is run at the smallest epsilon: at larger ones an ordinary network is nearly always
    wrong.

    Args:
        model: from pixels to logits; it moves the images to its device.
        images: (N, 3, 32, 32) uint8, N at least 5, on the host.
        labels: (N,) int64.
        epsilons: of FGSM, in pixels (0 to 255).
        progress: draw a bar.

    Returns:
        A dict of plain numbers for JSON: `*_top1` and `unnormalized_*` in percent,
        `corruption_error` (corruption -> 5 severities) and `flip_rate` as fractions. Equal
        arguments give equal results.
    """
    if images.dtype != torch.uint8 or images.shape[1:] != (3, 32, 32) or len(images) < 5:
        raise ValueError(f"the quick suite needs at least five (3, 32, 32) uint8 images, got "
                         f"{tuple(images.shape)} {images.dtype}")  # fmt: skip
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:limit]
    images, labels = images[order].cpu(), labels[order].cpu()
    generator = torch.Generator().manual_seed(seed)
    bar = tqdm(total=len(SEVERITIES) + len(QUICK_PERTURBATIONS) + len(epsilons) + 1,
               desc="robustness", disable=not progress)  # fmt: skip

    errors = {}
    for index, name in enumerate(SEVERITIES):
        shown, severity = images.clone(), (torch.arange(len(images)) + index) % 5 + 1
        for level in range(1, 6):
            shown[severity == level] = corrupt(images[severity == level], name, level, generator)
        wrong = _predict(model, shown, batch_size) != labels
        errors[name] = [wrong[severity == level].double().mean().item() for level in range(1, 6)]
        bar.update()

    rates = {}
    for name in QUICK_PERTURBATIONS:
        frames = list(perturb(images[:QUICK_SEQUENCES], name, generator))
        predictions = _predict(model, torch.cat(frames), batch_size).view(len(frames), -1)
        rates[name] = flip_rate(predictions.T, noise="noise" in name)
        bar.update()

    def attacked_top1(attack: Callable, epsilon: float) -> float:
        attacked = [part[:QUICK_ATTACKED].split(batch_size) for part in (images, labels)]
        adversarial = [attack(model, *batch, epsilon) for batch in zip(*attacked, strict=True)]
        bar.update()
        predictions = _predict(model, torch.cat(adversarial), batch_size)
        return 100 * (predictions == labels[:QUICK_ATTACKED]).double().mean().item()

    correct = _predict(model, images, batch_size) == labels
    results = {
        "suite": "quick",
        "note": "made on the fly from 32x32 images: not comparable with any published figure",
        "seed": seed,
        "images": len(images),
        "clean_top1": 100 * correct.double().mean().item(),
        "unnormalized_mce": mean_corruption_error(errors, baseline=None),
        "corruption_error": errors,
        "flip_sequences": min(len(images), QUICK_SEQUENCES),
        "unnormalized_mfr": mean_flip_rate(rates, baseline=None),
        "flip_rate": rates,
        "attacked_images": min(len(images), QUICK_ATTACKED),
        "attacked_clean_top1": 100 * correct[:QUICK_ATTACKED].double().mean().item(),
        "fgsm_top1": {str(epsilon): attacked_top1(fgsm, epsilon) for epsilon in epsilons},
        "pgd_top1": {str(min(epsilons)): attacked_top1(pgd, min(epsilons))},
    }
    bar.close()
    return results


# --------------------------------------------------------------------- the released archives


def decode_film(file: Path, frames: int) -> list[Image.Image]:
    """The frames of an ImageNet-P film; InputError if it is not whole."""
    try:
        import av
    except ImportError:
        raise InputError(f"{file}: films need the package av (pip install av)") from None
    try:
        with av.open(str(file)) as film:
            images = [frame.to_image() for frame in film.decode(video=0)]
    except (av.FFmpegError, IndexError) as error:  # IndexError: no video in the file
        raise InputError(f"{file}: not a readable film ({error})") from None
    if len(images) != frames:
        raise InputError(f"{file}: {len(images)} frames instead of {frames}; is it truncated?")
    return images


def read_file(file: Path, suite: str, size: int, frames: int) -> Tensor:
    """(frames, 3, size, size) uint8 of a film, or of a picture (frames is 1). All bicubic."""
    film = suite == "imagenet-p"
    prepared = []
    for image in decode_film(file, frames) if film else [data.read_image(str(file))]:
        if suite in ("imagenet-c", "imagenet-p"):
            # Section 3.3: "resize images to the resolution EfficientNet trained on", so no crop.
            if image.size not in ((224, 224), (299, 299)):
                raise InputError(f"{file}: {image.width}x{image.height} pixels; ImageNet-C and -P "
                                 "have 224x224 or 299x299")  # fmt: skip
            image = image.resize((size, size), Image.Resampling.BICUBIC)
        elif suite == "imagenet":
            image = augment.center_crop(image, size)
        else:
            # paper: silent on ImageNet-A; here: the whole central square, as A. E. Orhan, whom
            # it thanks, evaluated these networks.
            image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
        prepared.append(torch.from_numpy(np.array(image)).permute(2, 0, 1))
    return torch.stack(prepared)


def read_array(file: Path, shape: tuple[int, ...]) -> np.ndarray:
    """An .npy of uint8 (N, *shape), left on the disk until it is indexed."""
    try:
        array = np.load(file, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{file}: cannot be read ({error})") from None
    if array.dtype != np.uint8 or array.shape[1:] != shape:
        raise InputError(f"{file}: {array.dtype} {array.shape} instead of uint8 (N, *{shape})")
    return array


def list_labelled(
    folder: Path, classes: Mapping[str, int], suffixes: tuple[str, ...]
) -> tuple[list[Path], Tensor]:
    """The files of folder/<class>/ and their labels (N,) int64, both sorted by name."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    files, labels = [], []
    for class_folder in sorted(path for path in folder.iterdir() if path.is_dir()):
        if class_folder.name not in classes:
            raise InputError(f"{class_folder}: not a class of this test set and network")
        found = sorted(f for f in class_folder.iterdir() if f.suffix.lower() in suffixes)
        files += found
        labels += [classes[class_folder.name]] * len(found)
    if not files:
        raise InputError(f"{folder}: no <class>/*{suffixes[0]} in it")
    return files, torch.tensor(labels)


def read_batches(load: Callable, items: Sequence, size: int, name: str) -> Iterator[Tensor]:
    """load(item) of `size` items, concatenated; threads decode while the caller computes."""
    chunks = [items[start : start + size] for start in range(0, len(items), size)]
    with ThreadPoolExecutor() as pool:
        upcoming = pool.map(load, chunks[0])
        for following in tqdm([*chunks[1:], []], desc=name):
            current, upcoming = upcoming, pool.map(load, following)
            yield torch.cat(list(current))


def list_parts(suite: str) -> list[str]:
    """What is measured at once, and kept: a corruption at one severity, a perturbation, or all."""
    if suite.endswith("-c"):
        return [f"{name}/{severity}" for name in ALEXNET_ERROR for severity in range(1, 6)]
    return {"imagenet-p": list(ALEXNET_FLIP_RATE), "cifar10-p": CIFAR_P}.get(suite, ["all"])


def measure(
    model: Model, suite: str, part: str, root: Path, classes: Sequence[str], image_size: int,
    batch_size: int,
) -> dict:  # fmt: skip
    """One part of an archive: accuracies in percent, the flip rate as a fraction.

    classes: the names of the network's classes, in the order of its logits.
    """
    name, _, severity = part.partition("/")
    frames = FRAMES[suite].get(name, 31) if suite in FRAMES else 1
    numbers, allowed, labels = {name: i for i, name in enumerate(classes)}, None, None
    if suite.startswith("cifar10"):
        array = read_array(root / f"{name}.npy", (32, 32, 3) if severity else (frames, 32, 32, 3))
        items = range(len(array))
        if severity:  # five blocks, one a severity, each in the order of the test set
            labels, block = read_array(root / "labels.npy", ()), len(array) // 5
            if len(labels) != len(array) or len(array) % 5:
                raise InputError(f"{root / name}.npy: {len(array)} images, {len(labels)} labels")
            items = range(block * (int(severity) - 1), block * int(severity))
            labels = torch.from_numpy(labels[items].astype(np.int64))

        def load(row: int) -> Tensor:
            pixels = torch.from_numpy(array[row].copy()).view(frames, 32, 32, 3)
            return pixels.permute(0, 3, 1, 2)
    else:
        folder = root
        if suite in ("imagenet-c", "imagenet-p"):  # perhaps below noise/, blur/, weather/, digital/
            folder = next((path for path in root.glob(f"*/{name}") if path.is_dir()), root / name)
            folder = folder / severity
        if suite == "imagenet-a":
            allowed = IMAGENET["imagenet_a"]
            numbers = {classes[number]: number for number in allowed}
        suffixes = (".mp4",) if frames > 1 else data.IMAGE_SUFFIXES
        items, labels = list_labelled(folder, numbers, suffixes)
        load = partial(read_file, suite=suite, size=image_size, frames=frames)

    batches = read_batches(load, items, max(1, batch_size // frames), f"{suite} {part}")
    if suite == "quick":
        return quick_suite(model, torch.cat(list(batches)), labels, 0, batch_size, progress=True)
    with torch.no_grad():
        ranked = torch.cat([top_k(model(batch), 5, allowed).cpu() for batch in batches])
    result = {"images": len(items)}
    if labels is not None:
        correct = (ranked == labels.repeat_interleave(frames)[:, None]).double()
        result |= {"top1": 100 * correct[:, 0].mean().item(),
                   "top5": 100 * correct.sum(1).mean().item()}  # fmt: skip
    if frames > 1:
        result["flip_rate"] = flip_rate(ranked[:, 0].view(-1, frames), noise="noise" in name)
    return result


def summarize(suite: str, parts: Mapping[str, dict]) -> dict:
    """The figures of tables 3, 4 and 5, in percent, from all parts of a suite."""
    if suite.endswith("-c"):
        errors = {
            name: [1 - parts[f"{name}/{severity}"]["top1"] / 100 for severity in range(1, 6)]
            for name in ALEXNET_ERROR
        }
        plain = mean_corruption_error(errors, baseline=None)
        normalized = {"mce": mean_corruption_error(errors)} if suite == "imagenet-c" else {}
        return {"top1": 100 - plain, "unnormalized_mce": plain, **normalized}
    if suite.endswith("-p"):
        rates = {name: part["flip_rate"] for name, part in parts.items()}
        plain = {"unnormalized_mfr": mean_flip_rate(rates, baseline=None)}
        if suite == "cifar10-p":
            return plain
        # paper: "Top-1 Acc." of table 5 is not defined; here: over all frames.
        top1 = sum(part["top1"] for part in parts.values()) / len(parts)
        return {"top1": top1, "mfr": mean_flip_rate(rates), **plain}
    return parts["all"]


# ------------------------------------------------------------------------------- command line


def load_network(path: Path, arch: str) -> tuple[models.EfficientNet, list[str], int]:
    """A network in evaluation mode, its classes' names in order, and the resolution it wants."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if "meta" in state:  # written by train.py
            meta = json.loads(state["meta"])
            config, classes, state = meta["config"], meta["classes"], state["model"]
            options = {"small_images": config["small_images"]}
            arch, image_size = config["arch"], config["image_size"]
        else:
            classes, options = IMAGENET["wnids"], {}
            image_size = models.scaling(arch).resolution
        network = models.efficientnet(arch, len(classes), **options)
        network = models.load_pretrained(network, state)
    except Exception as error:  # unpickling a file of another kind raises nearly anything
        raise InputError(f"{path}: cannot be loaded as {arch} ({error})") from None
    return network.eval().to(memory_format=torch.channels_last), list(classes), image_size


def write_results(path: Path, results: dict) -> None:
    text = json.dumps(results, indent=1).encode() + b"\n"
    data.write_atomically(path, lambda file: file.write(text))


def run(args: argparse.Namespace) -> dict:
    """Measure what --out does not hold yet, and write it there after each part."""
    network, classes, image_size = load_network(args.checkpoint, args.arch)
    needed = 10 if args.suite.startswith("cifar10") else 1000
    if "-" in args.suite and len(classes) != needed:
        raise InputError(f"{args.checkpoint}: {args.suite} needs a network of {needed} classes, "
                         f"this one has {len(classes)}")  # fmt: skip
    results = {
        "suite": args.suite,
        "checkpoint": str(args.checkpoint),
        "checkpoint_sha256": hashlib.sha256(args.checkpoint.read_bytes()).hexdigest(),
        "data_dir": str(args.data_dir),
        "image_size": 32 if args.suite == "quick" else args.image_size or image_size,
        "parts": {},
    }
    if args.out.exists():
        try:
            earlier = json.loads(args.out.read_text())
            different = [key for key in results if key != "parts" and earlier[key] != results[key]]
            results["parts"] = earlier["parts"]
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{args.out}: not a result file; name another --out") from None
        if different:
            raise InputError(f"{args.out}: is of another {different[0]}; name another --out")

    args.out.parent.mkdir(parents=True, exist_ok=True)
    device = devices.choose(args.device)
    network = network.to(device)

    def model(pixels: Tensor) -> Tensor:
        # An attack's gradient comes back through .to(), but not through place()'s pinned memory.
        placed = pixels.to(device) if pixels.requires_grad else devices.place(pixels, device)
        return network(augment.normalize(placed))

    for part in list_parts(args.suite):
        if part not in results["parts"]:
            result = measure(model, args.suite, part, args.data_dir, classes,
                             results["image_size"], args.batch_size)  # fmt: skip
            for other, earlier in results["parts"].items():
                if earlier["images"] != result["images"]:
                    raise InputError(f"{args.data_dir / part}: {result['images']} images, but "
                                     f"{earlier['images']} in {other}; is it whole?")  # fmt: skip
            results["parts"][part] = result
            write_results(args.out, results)
    results["summary"] = summarize(args.suite, results["parts"])
    write_results(args.out, results)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--checkpoint", type=Path, required=True,
                        help="of train.py, or released (timm tf_efficientnet_*, torchvision)")
    parser.add_argument("--arch", default="b0", help="of released weights; ours know theirs")
    parser.add_argument("--suite", choices=SUITES, required=True)
    parser.add_argument("--data-dir", type=Path, required=True,
                        help="the unpacked archive; for imagenet and quick, <class>/ folders")
    parser.add_argument("--out", type=Path, required=True, help="JSON file; continued if it exists")
    parser.add_argument("--device", choices=devices.NAMES, default="auto")
    parser.add_argument("--batch-size", type=int, default=256, help="in frames for films")
    parser.add_argument("--image-size", type=int,
                        help="pixels; default: what the network was trained on")
    try:
        results = run(parser.parse_args())
    except (InputError, ValueError) as error:
        print(f"eval_robust.py: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    print(json.dumps(results["summary"], indent=1))


if __name__ == "__main__":
    main()
