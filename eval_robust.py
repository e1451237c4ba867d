"""Robustness to hard, corrupted, perturbed and attacked images.

Sections 3.3 and 3.4 of Noisy Student Training. In the paper the student, never trained to be
robust, gains most on these tests. What is measured, and where the paper reports it:

    imagenet-a   table 3      hard natural photographs: top-1 and top-5 accuracy
    imagenet-c   table 4      15 corruptions at 5 severities: mean corruption error, mCE
    imagenet-p   table 5      10 perturbations, each a short sequence: mean flip rate, mFR
    fgsm         figure 4     pixels moved by epsilon along the sign of the loss's gradient
    pgd          section 3.4  the same in several smaller steps
    imagenet     section 3.2  ordinary images: top-1 and top-5 accuracy
    cifar10-c, cifar10-p, cifar100-c, tiny-imagenet-c      tables 4 and 5 for small images
    quick                     corruptions, perturbations and both attacks, made from any images

    python eval_robust.py --checkpoint b0.pth --suite imagenet-c --data-dir IN-C --out c.json

Archives are read in the layout they unpack to (support/archives.py); imagenet, fgsm, pgd and quick
take any folder of class folders. --out keeps results part by part; the same command goes on there.
"""

import contextlib
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

import augment
from model import Checkpoint
from support import archives, cli, corruptions, devices, files, reading, scores, weights
from support.archives import ALEXNET_ERROR, ALEXNET_FLIP_RATE
from support.images import ImageSet

FromPixels = Callable[[Tensor], Tensor]  # (N, 3, H, W), 0 to 255 -> logits (N, num_classes)


def from_pixels(network: nn.Module, device: torch.device) -> FromPixels:
    """The network on `device`, in evaluation mode, as a function of pixels on the host."""
    network = network.to(device).eval()

    def model(pixels: Tensor) -> Tensor:
        # An attack's gradient comes back through .to(), but not through place()'s pinned memory.
        placed = pixels.to(device) if pixels.requires_grad else devices.place(pixels, device)
        return network(augment.normalize(placed))

    return model


# ---- Metrics ----


def top_k(logits: Tensor, k: int, classes: Sequence[int] | None = None) -> Tensor:
    """The k most likely classes (all, if fewer), best first: (N, num_classes) -> (N, k) int64.

    classes: the only ones considered, such as 200 of the 1000 by ImageNet-A's own protocol.
    """
    classes = torch.arange(logits.shape[1]) if classes is None else torch.as_tensor(classes)
    return classes[logits[:, classes].topk(min(k, len(classes))).indices]


def flip_rate(predictions: Tensor, noise: bool) -> float:
    """How often the prediction changes within a sequence, as a fraction (Hendrycks & Dietterich).

    predictions: (sequences, frames >= 2) classes; ValueError for another shape. Each frame is
    compared with the one before it; with `noise`, unordered, with the first, clean one.
    """
    predictions = torch.as_tensor(predictions)
    if predictions.ndim != 2 or predictions.shape[1] < 2 or not len(predictions):
        raise ValueError(f"need (sequences, frames >= 2), got {tuple(predictions.shape)}")
    reference = predictions[:, :1] if noise else predictions[:, :-1]
    return (predictions[:, 1:] != reference).double().mean().item()


def mean_flip_rate(rates: Mapping[str, float],
                   baseline: Mapping[str, float] | None = ALEXNET_FLIP_RATE) -> float:
    """mFR in percent (table 5): the mean over perturbations of flip rate / AlexNet's flip rate.

    Both map perturbations to fractions; baseline None: the plain mean (as reported for CIFAR-10-P).
    ValueError for names other than the baseline's, ZeroDivisionError if a baseline is 0.
    """
    baseline = baseline or dict.fromkeys(rates, 1)
    if not rates or rates.keys() != baseline.keys():
        raise ValueError(f"the mean needs exactly {[*baseline]}: got {[*rates]}")
    return 100 * sum(rate / baseline[name] for name, rate in rates.items()) / len(rates)


def mean_corruption_error(errors: Mapping[str, Sequence[float]],
                          baseline: Mapping[str, Sequence[float]] | None = ALEXNET_ERROR) -> float:
    """mCE in percent (table 4): the mean over corruptions c of
    CE_c = (sum_s E[s, c]) / (sum_s E_AlexNet[s, c]). AlexNet's own is 100; lower is better.

    Both map corruptions to 5 fractions, by severity; ValueError for other `errors` or names,
    ZeroDivisionError for a baseline of zeros. None: the plain mean (for CIFAR-10-C).
    """
    baseline = baseline or dict.fromkeys(errors, [1] * 5)
    if not errors or errors.keys() != baseline.keys() or any(
            len(row) != 5 or not all(0 <= error <= 1 for error in row) for row in errors.values()):
        raise ValueError(f"the mean needs five errors between 0 and 1 for each of {[*baseline]}")
    return 100 * sum(sum(row) / sum(baseline[name]) for name, row in errors.items()) / len(errors)


# ---- Attacks ----


def pgd(model: FromPixels, images: Tensor, labels: Tensor, epsilon: float = 16, steps: int = 10,
        step_size: float | None = None, random_start: bool = False, targets: Tensor | None = None,
        generator: torch.Generator | None = None) -> Tensor:
    """Projected gradient descent (section 3.4, "PGD with 10 iterations", after Madry et al.):
    x <- clip(x + step_size * sign(gradient)), into the epsilon ball and the pixel range.

    Args:
        images: (N, 3, H, W) pixels after resizing, uint8 or float; labels: (N,) int64.
        epsilon, step_size: on the pixels' scale of 0 to 255.
        random_start: begin anywhere in the ball, uniformly drawn by `generator` on the host.
        targets: (N,) int64: lower their loss instead of raising that of `labels`.

    Returns (N, 3, H, W) float within epsilon, not rounded. ValueError for a model in training mode.
    """
    if isinstance(model, nn.Module) and model.training:
        raise ValueError("the attacked network is in training mode: call .eval() first")
    clean = adversarial = images.float()
    lowest, highest = (clean - epsilon).clamp(min=0), (clean + epsilon).clamp(max=255)
    # paper: gives epsilon without a unit; here: on the scale of 0 to 255, before normalisation.
    # paper: gives neither step size nor start; here, as in the library of Madry's group: the
    # clean image, and steps long enough to cross the whole ball, from a random start, too.
    # paper: thanks Cihang Xie and others "for robustness evaluation"; the attack he published is
    # weaker: steps of max(1, epsilon / steps), random start, random targets (see the arguments).
    step = 2.5 * epsilon / steps if step_size is None else step_size
    if random_start:
        offset = (2 * torch.rand(clean.shape, generator=generator) - 1) * epsilon
        adversarial = (clean + offset.to(clean.device)).clamp(0, 255)
    if targets is not None:
        labels, step = targets, -step
    for _ in range(steps):
        with torch.enable_grad():
            pixels = adversarial.detach().requires_grad_()
            logits = model(pixels)
            # Summed, so that an image's gradient does not depend on the rest of its batch.
            loss = F.cross_entropy(logits, labels.to(logits.device), reduction="sum")
            (gradient,) = torch.autograd.grad(loss, pixels)  # none for the parameters
        adversarial = torch.clamp(adversarial + step * gradient.sign(), lowest, highest)
    return adversarial


def fgsm(model: FromPixels, images: Tensor, labels: Tensor, epsilon: float) -> Tensor:
    """FGSM (figure 4): `pgd` in one step "with the update on each pixel set to epsilon"."""
    return pgd(model, images, labels, epsilon, steps=1, step_size=epsilon)


# ---- The quick suite ----


def quick_suite(model: FromPixels, images: Tensor, labels: Tensor, seed: int = 0, *,
                limit: int = 2000, batch_size: int = 250, progress: str | None = None,
                fgsm_epsilons: Sequence[float] = (0, 1, 2, 4, 8, 16),
                # paper: PGD at 16; here: smaller, where networks for small images still differ.
                pgd_epsilons: Sequence[float] = (1, 4)) -> dict:
    """Corruptions, perturbations and attacks on ordinary images: to compare your own networks.

    The seed picks `limit` of the images, (N >= 5, 3, S, S) uint8 with S >= 32. Each corruption
    meets each image once, a fifth of them at each severity, and the fifths rotate from one
    corruption to the next. Half of the images are attacked, and a tenth become sequences.

    Returns plain numbers for JSON: `*_top1` and `unnormalized_*` in percent, `corruption_error`
    (corruption -> 5 severities) and `flip_rate` as fractions.
    """
    side = corruptions.check(images)
    batch_size = min(batch_size, reading.size_to_attack(side))
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:limit]
    images, labels = images[order], labels[order]
    sequences, half = max(1, len(images) // 10), len(images) // 2
    generator = torch.Generator().manual_seed(seed)

    def bar(values: Collection, what: str) -> tqdm:
        return tqdm(values, f"{progress}: {what}", leave=False, disable=progress is None)

    def predict(pixels: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.cat([model(batch).argmax(1).cpu() for batch in pixels.split(batch_size)])

    def top1(attack: Callable, epsilon: float) -> float:
        batches = zip(*(part[:half].split(batch_size) for part in (images, labels)), strict=True)
        right = [predict(attack(model, *batch, epsilon)) == batch[1] for batch in batches]
        return 100 * torch.cat(right).double().mean().item()

    errors, rates = {}, {}
    for turn, name in enumerate(bar(corruptions.SEVERITIES, "corruptions")):
        corrupted, severity = images.clone(), (torch.arange(len(images)) + turn) % 5 + 1
        for level in range(1, 6):
            fifth = severity == level
            corrupted[fifth] = corruptions.corrupt(images[fifth], name, level, generator)
        wrong = (predict(corrupted) != labels).double()
        errors[name] = [wrong[severity == level].mean().item() for level in range(1, 6)]
    for name in bar(corruptions.PERTURBATIONS, "perturbations"):
        frames = corruptions.perturb(images[:sequences], name, generator)
        rates[name] = flip_rate(torch.stack([*map(predict, frames)], dim=1), "noise" in name)
    return {
        "note": f"made on the fly from {side}x{side} images: not comparable with published figures",
        "seed": seed, "images": len(images), "sequences": sequences, "attacked": half,
        "clean_top1": 100 * (predict(images) == labels).double().mean().item(),
        "unnormalized_mce": mean_corruption_error(errors, baseline=None),
        "unnormalized_mfr": mean_flip_rate(rates, baseline=None),
        "fgsm_top1": {str(epsilon): top1(fgsm, epsilon) for epsilon in bar(fgsm_epsilons, "FGSM")},
        "pgd_top1": {str(epsilon): top1(pgd, epsilon) for epsilon in bar(pgd_epsilons, "PGD")},
        "corruption_error": errors, "flip_rate": rates,
    }


def robustness(network: nn.Module, images: ImageSet, size: int, path: Path,
               machine: devices.Machine, name: str) -> dict | None:
    """The quick suite on a test set, kept in the file `path`; None if images are few or small."""
    if size < 32 or len(images) < 5:
        return None
    images = reading.in_memory(images, size, machine.workers)
    measured = files.digest(*network.state_dict().values(), images.pixels, images.labels)
    return scores.keep(path, {"of": measured}, ["all"], renew=True, measure=lambda _: quick_suite(
        from_pixels(network, machine.device), images.pixels, images.labels, progress=name))["all"]


def relative_to(teacher: dict | None, results: dict) -> dict:
    """mCE and mFR relative to the teacher's; None without a teacher, or if it has a 0."""
    def relative(mean: Callable, key: str) -> float | None:
        with contextlib.suppress(ZeroDivisionError):
            return mean(results[key], baseline=teacher[key]) if teacher else None

    return {"teacher_normalized_mce": relative(mean_corruption_error, "corruption_error"),
            "teacher_normalized_mfr": relative(mean_flip_rate, "flip_rate")}


# ---- The released test sets ----


@dataclass(frozen=True)
class Flags:
    """The network, and how PGD attacks it"""

    checkpoint: cli.File  # of train.py, or released (timm tf_efficientnet_*, torchvision)
    arch: str | None = None  # of released weights (default: b0); our files name theirs
    steps: cli.Count = 10  # of PGD
    step_size: cli.Positive | None = None  # of PGD; white is 255 (default: 2.5 * epsilon / steps)
    random_start: bool = False  # begin PGD at a random point of the ball
    targeted: bool = False  # PGD towards a random other class


def measure(model: FromPixels, source: archives.TestSet, flags: Flags, name: str) -> dict:
    """A part of a test set, or an epsilon: accuracies in percent, flip rate as a fraction."""
    if source.suite == "quick":
        images, labels = map(torch.cat, zip(*source.read(name, 2000), strict=True))
        return quick_suite(model, images, labels, batch_size=source.batch_size, progress="quick")
    found, generator = [], torch.Generator().manual_seed(0)
    for images, labels in source.read(name):
        if source.suite == "fgsm":
            images = fgsm(model, images, labels, float(name))
        if source.suite == "pgd":
            shift = torch.randint(1, len(source.classes), labels.shape, generator=generator)
            targets = (labels + shift) % len(source.classes) if flags.targeted else None
            images = pgd(model, images, labels, float(name), flags.steps, flags.step_size,
                         flags.random_start, targets, generator)
        with torch.no_grad():
            found.append((top_k(model(images).cpu(), 5, source.allowed()), labels))
    return scores.score(source, name, *map(torch.cat, zip(*found, strict=True)), flip_rate)


def main(flags: Flags, source: archives.TestSet,
         machine: Annotated[devices.Machine, "device", "workers", "megapixels"]) -> None:
    """Measure what --out does not hold yet, and print the figures of the tables."""
    checkpoint, machine = Checkpoint.load(flags.checkpoint, flags.arch or "b0"), machine.chosen()
    source = source.fit(checkpoint, flags, machine.workers)
    model = from_pixels(checkpoint.network(), machine.device)
    settings = vars(flags) | {key: vars(source)[key] for key in ("suite", "data_dir", "image_size")}
    settings |= {"arch": checkpoint.arch, "images": source.digest(),
                 "checkpoint": weights.fingerprint(checkpoint)}
    scores.keep(source.out, settings, source.names(), partial(measure, model, source, flags))
    scores.summarize(source.out, source.suite, mean_corruption_error, mean_flip_rate)


if __name__ == "__main__":
    sys.exit(cli.run(main))
