"""How far a network holds when its images are hard, corrupted, moved or attacked.

Sections 3.3 and 3.4 of Noisy Student Training: the student, never trained for robustness, gains
most on these tests. What is measured, and where the paper reports it:

    imagenet-a   hard natural photographs: top-1 and top-5 accuracy                  table 3
    imagenet-c   15 corruptions at 5 severities: mean corruption error, mCE          table 4
    imagenet-p   10 perturbations, each a short sequence: mean flip rate, mFR        table 5
    fgsm         images changed along the gradient of the loss, by at most epsilon   figure 4
    pgd          the same in several smaller steps                                   section 3.4
    cifar10-c, cifar10-p    ImageNet-C and -P for networks of 32x32 images
    quick        all of it in small, made on the fly from any 32x32 images (corruptions.py)

    python eval_robust.py --checkpoint b0.pth --arch b0 --suite imagenet-c --data-dir ImageNet-C \\
        --out results.json

Archives are read as they unpack (archives.py); imagenet, fgsm, pgd and quick take any folder of
class folders. What is measured is kept in --out part by part, and the same command continues there.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

import archives
import augment
import corruptions
import data
import device as devices
import model as models
from archives import ALEXNET_ERROR, ALEXNET_FLIP_RATE, IMAGENET
from data import InputError

# A network in evaluation mode with its normalisation: (N, 3, H, W) pixels, 0 to 255 -> logits.
Model = Callable[[Tensor], Tensor]


def from_pixels(network: nn.Module, device: torch.device) -> Model:
    """The network on `device`, put into evaluation mode, as a function of pixels on the host."""
    network = network.to(device).eval()

    def model(pixels: Tensor) -> Tensor:
        # An attack's gradient comes back through .to(), but not through place()'s pinned memory.
        placed = pixels.to(device) if pixels.requires_grad else devices.place(pixels, device)
        return network(augment.normalize(placed))

    return model


# ------------------------------------------------------------------ metrics


def top_k(logits: Tensor, k: int, classes: Sequence[int] | None = None) -> Tensor:
    """The k most likely classes, best first: (N, num_classes) -> (N, k) int64, k clipped.

    classes: the only ones that may win, as the 200 of ImageNet-A (table 3) among 1000 logits.
    """
    classes = torch.arange(logits.shape[1]) if classes is None else torch.as_tensor(classes)
    return classes[logits[:, classes].topk(min(k, len(classes))).indices]


def _mean_ratio(measured: Mapping[str, float], baseline: Mapping[str, float]) -> float:
    """The mean of measured / baseline in percent; both must have the same names."""
    if not measured or measured.keys() != baseline.keys():
        raise ValueError(f"the mean needs exactly {', '.join(baseline) or 'something'}: got "
                         f"{', '.join(measured) or 'nothing'}")
    return 100 * sum(value / baseline[name] for name, value in measured.items()) / len(measured)


def mean_corruption_error(errors: Mapping[str, Sequence[float]],
                          baseline: Mapping[str, Sequence[float]] | None = ALEXNET_ERROR) -> float:
    """mCE in percent (table 4): AlexNet's own is 100, lower is better.

    CE_c = (sum_s E[s, c]) / (sum_s E_AlexNet[s, c]) of a corruption c; mCE is their mean.

    Args:
        errors: corruption -> its errors at the 5 severities, as fractions.
        baseline: the same of the yardstick; None: the plain mean error (as CIFAR-10-C reports).

    Raises:
        ValueError: corruptions that differ from the baseline's, not 5 severities, not fractions.
        ZeroDivisionError: the yardstick makes no error.
    """
    for name, row in errors.items():
        if len(row) != 5 or not all(0 <= error <= 1 for error in row):
            raise ValueError(f"{name} needs five errors between 0 and 1: got {list(row)}")
    yardstick = baseline or {name: [1] * 5 for name in errors}
    return _mean_ratio({name: sum(row) for name, row in errors.items()},
                       {name: sum(row) for name, row in yardstick.items()})


def flip_rate(predictions: Tensor, noise: bool) -> float:
    """How often the prediction changes within a film, as a fraction (Hendrycks & Dietterich).

    Args:
        predictions: (sequences, frames >= 2) int classes; ValueError for another shape.
        noise: compare each frame with the first, clean one: independent noise has no order.
            Otherwise each is compared with the frame before it.
    """
    predictions = torch.as_tensor(predictions)
    if predictions.ndim != 2 or predictions.shape[1] < 2 or not len(predictions):
        raise ValueError(f"need (sequences, frames >= 2), got {tuple(predictions.shape)}")
    reference = predictions[:, :1] if noise else predictions[:, :-1]
    return (predictions[:, 1:] != reference).double().mean().item()


def mean_flip_rate(rates: Mapping[str, float],
                   baseline: Mapping[str, float] | None = ALEXNET_FLIP_RATE) -> float:
    """mFR in percent (table 5): the mean over perturbations of flip rate / AlexNet's flip rate.

    rates: perturbation -> fraction. baseline None: the plain mean (as CIFAR-10-P reports). Raises
    as `mean_corruption_error`.
    """
    return _mean_ratio(rates, baseline or dict.fromkeys(rates, 1))


# ------------------------------------------------------------------ attacks


def pgd(model: Model, images: Tensor, labels: Tensor, epsilon: float = 16, steps: int = 10,
        step_size: float | None = None, random_start: bool = False, targets: Tensor | None = None,
        generator: torch.Generator | None = None) -> Tensor:
    """Projected gradient descent (section 3.4, "PGD with 10 iterations", after Madry et al.).

    x <- clip(x + step_size * sign(gradient)), into the epsilon ball and the pixel range.

    paper: only the number of iterations and epsilon = 16, which must be of 255; here: the rest is a
    choice. The step is 2.5 * epsilon / steps, the rule of Madry's group: wherever in the ball the
    attack starts, it can reach the boundary and move along it. The code of C. Xie, whom the paper
    thanks for this evaluation, uses max(1, epsilon / steps), a random start and random targets: a
    weaker attack, which the arguments can express.

    Args:
        model: from pixels to logits. The attack is on the pixels after resizing and before the
            normalisation, which is the model's own.
        images: (N, 3, H, W) pixels, 0 to 255, uint8 or float.
        labels: (N,) int64, the true classes.
        epsilon, step_size: in pixel units, 0 to 255.
        random_start: begin at a uniform point of the ball, drawn on the host by `generator`,
            instead of at the image.
        targets: (N,) int64; lower the loss of these classes instead of raising that of `labels`.

    Returns:
        (N, 3, H, W) float, within epsilon of the images and within 0 to 255, not rounded.

    Raises ValueError for a network in training mode.
    """
    if isinstance(model, nn.Module) and model.training:
        raise ValueError("the attacked network is in training mode: call .eval() first")
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
        with torch.enable_grad():
            pixels = adversarial.detach().requires_grad_()
            logits = model(pixels)
            # Summed, so that an image's gradient does not depend on the rest of its batch.
            loss = F.cross_entropy(logits, labels.to(logits.device), reduction="sum")
            (gradient,) = torch.autograd.grad(loss, pixels)  # none for the parameters
        adversarial = torch.clamp(adversarial + step * gradient.sign(), lowest, highest)
    return adversarial


def fgsm(model: Model, images: Tensor, labels: Tensor, epsilon: float) -> Tensor:
    """Fast gradient sign method: `pgd` in one step "with the update on each pixel set to epsilon".

    The arguments and the result are as there.
    """
    return pgd(model, images, labels, epsilon, steps=1, step_size=epsilon)


# ------------------------------------------------------------------ the quick suite


def quick_suite(
    model: Model, images: Tensor, labels: Tensor, seed: int = 0, *, limit: int = 2000,
    fgsm_epsilons: Sequence[float] = (0, 1, 2, 4, 8, 16), pgd_epsilons: Sequence[float] = (1, 4),
    batch_size: int = 250, progress: str | None = None,
) -> dict:
    """All of sections 3.3 and 3.4 in small, on ordinary 32x32 images: to compare one's networks.

    A random choice of `limit` images is used, in an order drawn from the seed. Each corruption
    meets every image once, a fifth of them at each of the five severities; these fifths move on by
    one from corruption to corruption. Half of the images are attacked; a tenth become sequences
    for the flip rates.

    Args:
        images: (N, 3, 32, 32) uint8, N at least 5; ValueError for others.
        labels: (N,) int64.
        fgsm_epsilons, pgd_epsilons: in pixels (0 to 255). paper: PGD at 16; here: smaller ones, at
            which networks for small images still differ.
        progress: name of a progress bar; None: no bar.

    Returns:
        Plain numbers for JSON: `*_top1` and `unnormalized_*` in percent, `corruption_error`
        (corruption -> 5 severities) and `flip_rate` as fractions; equal for equal arguments.
    """
    if images.dtype != torch.uint8 or images.shape[1:] != (3, 32, 32) or len(images) < 5:
        raise ValueError(f"the quick suite needs at least five (3, 32, 32) uint8 images, got "
                         f"{tuple(images.shape)} {images.dtype}")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:limit]
    images, labels = images[order], labels[order]
    generator = torch.Generator().manual_seed(seed)
    films, half = max(1, len(images) // 10), len(images) // 2
    bar = partial(tqdm, leave=False, disable=progress is None)

    def predict(pixels: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.cat([model(part).argmax(1).cpu() for part in pixels.split(batch_size)])

    def top1(attack: Callable, epsilon: float) -> float:
        parts = [tensor[:half].split(batch_size) for tensor in (images, labels)]
        attacked = torch.cat([attack(model, *part, epsilon) for part in zip(*parts, strict=True)])
        return 100 * (predict(attacked) == labels[:half]).double().mean().item()

    errors, rates = {}, {}
    for first, name in enumerate(bar(corruptions.SEVERITIES, f"{progress}: corruptions")):
        shown, severity = images.clone(), (torch.arange(len(images)) + first) % 5 + 1
        for level in range(1, 6):
            chosen = severity == level
            shown[chosen] = corruptions.corrupt(images[chosen], name, level, generator)
        wrong = (predict(shown) != labels).double()
        errors[name] = [wrong[severity == level].mean().item() for level in range(1, 6)]
    for name in bar(corruptions.PERTURBATIONS, f"{progress}: perturbations"):
        frames = torch.stack([*corruptions.perturb(images[:films], name, generator)], dim=1)
        predictions = predict(frames.flatten(0, 1)).view(films, -1)
        rates[name] = flip_rate(predictions, noise="noise" in name)
    return {
        "note": "made on the fly from 32x32 images: not comparable with published figures",
        "seed": seed,
        "images": len(images), "films": films, "attacked": half,
        "clean_top1": 100 * (predict(images) == labels).double().mean().item(),
        "unnormalized_mce": mean_corruption_error(errors, baseline=None),
        "unnormalized_mfr": mean_flip_rate(rates, baseline=None),
        "fgsm_top1": {str(epsilon): top1(fgsm, epsilon)
                      for epsilon in bar(fgsm_epsilons, f"{progress}: FGSM")},
        "pgd_top1": {str(epsilon): top1(pgd, epsilon)
                     for epsilon in bar(pgd_epsilons, f"{progress}: PGD")},
        "corruption_error": errors,
        "flip_rate": rates,
    }


def relative_to(teacher: dict, results: dict) -> dict:
    """mCE and mFR with the teacher in AlexNet's place: its own are 100; None where it never errs.

    (Hendrycks' "relative mCE" is another thing: how much is lost from the clean images on.)
    """
    def ratio(mean: Callable, key: str) -> float | None:
        try:
            return mean(results[key], baseline=teacher[key])
        except ZeroDivisionError:
            return None

    return {"teacher_normalized_mce": ratio(mean_corruption_error, "corruption_error"),
            "teacher_normalized_mfr": ratio(mean_flip_rate, "flip_rate")}


# ------------------------------------------------------------------ the released archives

CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck".split()
# What is measured at once, and kept: a corruption at one severity, a perturbation, an epsilon.
PARTS = {"imagenet": ["all"], "imagenet-a": ["all"], **archives.PARTS,
         "fgsm": ["0", "1", "2", "4", "8", "16"], "pgd": ["16"], "quick": ["all"]}


def attack(model: Model, batches: Iterable[Tensor], labels: Tensor, epsilon: float,
           targeted: bool, num_classes: int, **options: object) -> Iterator[Tensor]:
    """The batches after `pgd`; targeted: towards a random other class for each image."""
    generator = torch.Generator().manual_seed(0)
    for batch in batches:
        truth, labels = labels[:len(batch)], labels[len(batch):]
        shift = torch.randint(1, num_classes, truth.shape, generator=generator)
        targets = (truth + shift) % num_classes if targeted else None
        yield pgd(model, batch, truth, epsilon, targets=targets, generator=generator, **options)


def measure(model: Model, suite: str, part: str, classes: Sequence[str], options: dict,
            **source: object) -> dict:
    """One part of a test set: accuracies in percent, the flip rate as a fraction.

    options are those of `attack`, source and classes those of `archives.read_part`.
    """
    batches, labels, frames = archives.read_part(suite, part, classes, **source)
    if suite == "quick":
        if len(labels) < 5:
            raise InputError(f"{source['root']}: {len(labels)} images; the quick suite needs five")
        return quick_suite(model, torch.cat([*batches]), labels, progress="quick")
    if suite in ("fgsm", "pgd"):
        if suite == "fgsm":
            options = {"targeted": False, "steps": 1, "step_size": float(part)}
        batches = attack(model, batches, labels, float(part), num_classes=len(classes), **options)
    allowed = IMAGENET["imagenet_a"] if suite == "imagenet-a" else None
    with torch.no_grad():
        ranked = torch.cat([top_k(model(batch).cpu(), 5, allowed) for batch in batches])
    result = {"images": len(ranked) // frames}
    if labels is not None:
        correct = (ranked == labels.repeat_interleave(frames)[:, None]).double()
        result |= {"top1": 100 * correct[:, 0].mean().item(),
                   "top5": 100 * correct.sum(1).mean().item()}
    if frames > 1:
        result["flip_rate"] = flip_rate(ranked[:, 0].view(-1, frames), noise="noise" in part)
    return result


def summarize(suite: str, parts: Mapping[str, dict]) -> dict:
    """The figures of tables 3, 4 and 5, in percent, from all parts of a suite."""
    if "all" in parts:
        return parts["all"]
    if suite in ("fgsm", "pgd"):
        return {"top1": {epsilon: part["top1"] for epsilon, part in parts.items()}}
    if suite.endswith("-c"):
        name, mean = "mce", mean_corruption_error
        measured = {corruption: [1 - parts[f"{corruption}/{severity}"]["top1"] / 100
                                 for severity in range(1, 6)] for corruption in ALEXNET_ERROR}
    else:
        name, mean = "mfr", mean_flip_rate
        measured = {perturbation: part["flip_rate"] for perturbation, part in parts.items()}
    summary = {f"unnormalized_{name}": mean(measured, baseline=None)}
    if suite.startswith("imagenet"):
        summary[name] = mean(measured)
    if suite != "cifar10-p":
        # paper: "Top-1 Acc." of table 5 is not defined; here: over all frames.
        summary["top1"] = sum(part["top1"] for part in parts.values()) / len(parts)
    return summary


# ------------------------------------------------------------------ command line


def run(args: argparse.Namespace) -> dict:
    """Measure what --out does not hold yet, and write it there after each part."""
    try:
        network, known = models.load_checkpoint(args.checkpoint, args.arch)
        device = devices.choose(args.device)
    except ValueError as error:
        raise InputError(str(error)) from None
    for name in ("steps", "batch_size", "image_size"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise InputError(f"--{name.replace('_', '-')} {value}: give 1 or more")
    if not all(0 <= epsilon < float("inf") for epsilon in args.epsilon or ()):
        raise InputError(f"--epsilon {args.epsilon}: give 0 or more, of 255")
    if args.step_size is not None and not 0 < args.step_size < float("inf"):
        raise InputError(f"--step-size {args.step_size}: give more than 0, of 255")
    classes = known["classes"] or IMAGENET["wnids"]
    needed = 10 if args.suite.startswith("cifar10") else 1000
    if "-" in args.suite and len(classes) != needed:
        raise InputError(f"{args.checkpoint}: {args.suite} needs a network of {needed} classes, "
                         f"this one has {len(classes)}")
    if args.suite.startswith("cifar10") and list(classes) not in (CIFAR10, [*"0123456789"]):
        raise InputError(f"{args.checkpoint}: {args.suite} is of {', '.join(CIFAR10)}, this "
                         f"network of {', '.join(classes)}: name class folders as CIFAR-10 does")
    image_size = args.image_size or known["image_size"]
    if args.suite == "quick" and image_size != 32:
        raise InputError(f"--suite quick: its corruptions are made for 32x32 images, not for "
                         f"{image_size}; use another suite, or --image-size 32")
    options = {name: getattr(args, name)
               for name in ("steps", "step_size", "random_start", "targeted")}
    settings = {"suite": args.suite, "data_dir": str(args.data_dir), "image_size": image_size,
                "checkpoint": hashlib.sha256(args.checkpoint.read_bytes()).hexdigest(), **options}
    results = {"settings": settings, "parts": {}}
    if args.out.exists():
        try:
            results = json.loads(args.out.read_text())
            different = [key for key in settings if results["settings"][key] != settings[key]]
        except (OSError, ValueError, KeyError, TypeError):
            raise InputError(f"{args.out}: not a result file; name another --out") from None
        if different:
            raise InputError(f"{args.out}: is of another {different[0]}; name another --out")

    try:
        args.out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{args.out.parent}: not made ({error}); name another --out") from None
    model = from_pixels(network, device)
    wanted, parts = PARTS[args.suite], results["parts"]
    if args.suite in ("fgsm", "pgd") and args.epsilon:
        wanted = [f"{epsilon:g}" for epsilon in args.epsilon]
    for part in [part for part in wanted if part not in parts]:
        result = measure(model, args.suite, part, classes, options, root=args.data_dir,
                         image_size=image_size, batch_size=args.batch_size)
        for other, earlier in parts.items():
            if earlier["images"] != result["images"]:
                raise InputError(f"{args.data_dir / part}: {result['images']} images, but "
                                 f"{earlier['images']} in {other}; is it whole?")
        parts[part] = result
        data.write_json(args.out, results)
    data.write_json(args.out, results | {"summary": summarize(args.suite, parts)})
    return summarize(args.suite, parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, metavar="FILE",
        help="of train.py, or released (timm tf_efficientnet_*, torchvision)")
    add("--arch", default="b0", help="of released weights; ours know theirs")
    add("--suite", choices=PARTS, required=True)
    add("--data-dir", type=Path, required=True, metavar="DIR",
        help="the unpacked archive, or <class>/ folders")
    add("--out", type=Path, required=True, metavar="FILE", help="JSON; continued if it exists")
    add("--device", choices=devices.NAMES, default="auto")
    add("--batch-size", type=int, default=256, help="in frames for films")
    add("--image-size", type=int, help="pixels; default: what the network was trained on (the "
        "paper's L2: corruptions before its fine-tuning at 800, attacks at 800)")
    add("--epsilon", type=float, nargs="+", help="of fgsm (0 1 2 4 8 16) or pgd (16), of 255")
    add("--steps", type=int, default=10, help="of pgd")
    add("--step-size", type=float, help="of pgd, in pixel units (default: 2.5 * epsilon / steps)")
    add("--random-start", action="store_true", help="begin pgd in a random point of the ball")
    add("--targeted", action="store_true", help="pgd towards a random other class")
    try:
        summary = run(parser.parse_args())
    except InputError as error:
        print(f"eval_robust.py: {error}", file=sys.stderr)
        sys.exit(2)
    print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
