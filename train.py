"""Train a teacher or a student: the joint loss of Noisy Student Training (Algorithm 1, step 3).

A teacher sees labelled images alone. A student sees, at each step, B labelled and r * B pseudo-
labelled images as one batch, both noised: RandAugment on the images, dropout and stochastic depth
in the model (section 2). TrainConfig's defaults are the paper's EfficientNet-B7 on ImageNet
(section 3.1).

    python train.py --labeled DIR --val DIR --arch b0 --batch-size 128 --out teacher.pt
    python train.py --labeled DIR --val DIR --arch b0 --batch-size 128 --out student.pt \\
        --unlabeled DIR --pseudo-label-dir LABELS

What no flag says is as in the paper for that architecture, such as 700 epochs for b0. The same
command again continues where the last one stopped.
"""

import argparse
import contextlib
import copy
import hashlib
import inspect
import itertools
import json
import math
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

import augment
import data
import device as devices
import model
import pseudo_label
from data import ImageSet, InputError

# ------------------------------------------------------------------ configuration


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides the result of a training run.

    Defaults: B7 of sections 3.1 and 3.2. Label smoothing, RMSProp, warm-up, weight decay and the
    average of weights are the authors' code's; the paper does not speak of them.
    """

    # Model
    arch: str = "b7"  # b0 to b7, l0 to l2, or WIDTHxDEPTH
    image_size: int = 600  # pixels; up to 64 with CIFAR's crops and Cutout, above with ImageNet's
    small_images: bool = False  # stages 2 and 3 at stride 1; image_size does not set it

    # Noise on the model (section 2)
    dropout: float = 0.5  # probability of dropping a feature before the classifier
    survival_prob: float = 0.8  # of the last block; linear decay from 1

    # Noise on the images (section 2)
    rand_augment_operations: int = 2  # an image; 0: crops, flips (and Cutout up to 64 pixels) stay
    rand_augment_magnitude: float = 27.0  # in tenths of AutoAugment's range
    flip: bool = True  # mirror images at random; digits should not be

    # Ablation of table 6 (noise of the pseudo-labelled images alone), and the resolution fix.
    # paper: "Aug" is RandAugment with 130 M images, translation and flips with 1.3 M; here: all.
    augment_labeled: bool = True  # noise on labelled images; without it clean centre crops
    augment_unlabeled: bool = True  # noise on pseudo-labelled images
    model_noise_unlabeled: bool = True  # dropout and stochastic depth for pseudo-labelled images
    frozen_stages: int = 0  # the stem and so many stages keep their weights; 0: all is trained

    # Joint loss (Algorithm 1, step 3; the ratio of labelled and unlabelled images: section 3.2)
    joint: bool = True  # both losses; without: pseudo-labelled images alone (finding 6)
    unlabeled_ratio: int = 3  # pseudo-labelled images per labelled one in a batch
    pseudo_labels: str = "soft"  # the teacher's distribution, or hard: its largest entry alone
    normalization: str = "concat"  # of the two losses: see joint_loss
    label_smoothing: float = 0.1  # on labels and hard pseudo labels

    # Optimisation (section 3.1)
    batch_size: int = 2048  # labelled images a step; steps and epochs count them
    accumulation_steps: int = 1  # parts of a batch, one after another; BatchNorm sees a part
    labeled_images: int = 1_281_167  # an epoch; train() sets it to the size of its labelled set
    epochs: float = 350.0  # of labelled images; the paper: 700 for B4 and smaller
    learning_rate: float = 0.016  # per 256 labelled images in the batch
    warmup_epochs: float = 5.0  # linear, from zero
    schedule: str = "exponential"  # decay of the learning rate; cosine ends at zero
    decay_rate: float = 0.97  # factor of the exponential schedule
    decay_epochs: float = 2.4  # between two such factors; 4.8 for 700 epochs
    optimizer: str = "rmsprop"  # rmsprop in TensorFlow's form, sgd with Nesterov, or adamw
    momentum: float = 0.9  # of rmsprop and sgd; adamw's first beta
    weight_decay: float = 1e-5  # L2 in the loss, in adamw apart from it; not on BatchNorm
    ema_decay: float = 0.9999  # of the average of weights that is evaluated and that labels
    precision: str = "float32"  # bfloat16: autocast
    evaluate_epochs: float = 5.0  # between two evaluations on the validation set
    seed: int = 0  # of the weights, the order of the images and the noise

    def __post_init__(self):
        model.scaling(self.arch)
        for name, values in CHOICES.items():
            if getattr(self, name) not in values:
                raise ValueError(
                    f"{name} {getattr(self, name)!r} is unknown: use {' or '.join(values)}"
                )
        for name, (low, high) in RANGES.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} must be {low} to {high}, not {getattr(self, name)}")
        for name in ("epochs", "evaluate_epochs", "decay_rate", "decay_epochs", "survival_prob"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be more than 0, not {getattr(self, name)}")
        if self.batch_size % self.accumulation_steps:
            raise ValueError(f"batch_size {self.batch_size} is not a multiple of "
                             f"accumulation_steps {self.accumulation_steps}")

    @property
    def steps_per_epoch(self) -> float:
        return self.labeled_images / self.batch_size

    @property
    def total_steps(self) -> int:
        return max(1, round(self.epochs * self.steps_per_epoch))


# Smallest and largest value of each number; what is outside is a slip of the hand.
LARGEST = 10**9
RANGES = {
    "image_size": (1, 10_000), "batch_size": (1, LARGEST), "accumulation_steps": (1, LARGEST),
    "labeled_images": (1, 10 * LARGEST), "unlabeled_ratio": (0, LARGEST), "seed": (0, 2**63),
    "dropout": (0, 0.999), "survival_prob": (0, 1), "rand_augment_operations": (0, 100),
    "rand_augment_magnitude": (0, 100), "frozen_stages": (0, len(model.STAGES)),
    "label_smoothing": (0, 1), "learning_rate": (0, 1e30), "warmup_epochs": (0, LARGEST),
    "momentum": (0, 0.9999), "weight_decay": (0, LARGEST), "ema_decay": (0, 0.999999),
}
CHOICES = {
    "pseudo_labels": ("soft", "hard"),
    "normalization": ("concat", "algorithm1", "official"),
    "schedule": ("exponential", "cosine"),
    "optimizer": ("rmsprop", "sgd", "adamw"),
    "precision": ("float32", "bfloat16"),
}


# RandAugment in the authors' scripts; B0 and B1 have flips and crops alone, larger models 27.
MAGNITUDES = {"b0": 0, "b1": 0, "b2": 6, "b3": 12, "b4": 15, "b5": 18, "b6": 24}


def recipe(arch: str) -> TrainConfig:
    """The settings of sections 3.1 and 3.2 and of the authors' scripts for an architecture.

    Not published: 14 unlabelled images for each labelled one with l0 and l1 (here as with L2), and
    anything for WIDTHxDEPTH, which gets B7's settings at its own resolution.
    """
    width, depth, resolution, dropout = model.scaling(arch)
    magnitude, long = MAGNITUDES.get(arch, 27), arch in ("b0", "b1", "b2", "b3", "b4")
    return TrainConfig(
        arch=arch, image_size=resolution, dropout=dropout,
        rand_augment_operations=2 if magnitude else 0, rand_augment_magnitude=magnitude,
        unlabeled_ratio=1 if arch == "b0" else 14 if arch.startswith("l") else 3,
        epochs=700 if long else 350, decay_epochs=4.8 if long else 2.4,
    )


def resolution_fix(config: TrainConfig, image_size: int) -> TrainConfig:
    """Fine-tuning for the resolution (pixels) of the test, a stage of its own after training.

    "Then we finetune the model with a larger resolution for 1.5 epochs on unaugmented labeled
    images. Similar to [86], we fix the shallow layers during finetuning" (section 3.1).
    paper: neither which layers nor the learning rate; here: all but stages 6, 7 and the head, which
    hold most of the parameters, at a tenth of the rate, falling to zero.
    """
    return replace(
        config, image_size=image_size, epochs=1.5, augment_labeled=False, frozen_stages=5,
        unlabeled_ratio=0, learning_rate=config.learning_rate / 10, warmup_epochs=0.0,
        schedule="cosine", evaluate_epochs=1.5,
    )


def check_batch(config: TrainConfig, device: torch.device) -> None:
    """InputError for a batch that the devices cannot share, or that BatchNorm cannot use."""
    labeled, parts = config.batch_size, config.accumulation_steps
    shares = devices.world_size() * devices.mesh_size(device)
    if labeled % (shares * parts):
        raise InputError(f"a batch of {labeled} labelled images cannot be shared by {shares} "
                         f"devices in {parts} parts: change --batch-size")
    unlabeled, smallest_map = labeled * config.unlabeled_ratio, 8 if config.small_images else 32
    images = (unlabeled + labeled * (config.joint or not unlabeled)) // parts
    if images < 2 and config.image_size <= smallest_map:
        raise InputError("BatchNorm needs two images or more at once: raise --batch-size, or lower "
                         "--accumulation-steps")


def check_device(device: torch.device, compiled: bool, checkpoint_blocks: bool) -> None:
    """InputError for what the device cannot do."""
    if device.type == "xla" and (compiled or checkpoint_blocks):
        raise InputError("--compile and --checkpoint-blocks are not for XLA, which compiles by "
                         "itself: leave them out, or raise --accumulation-steps to save memory")


def build_model(config: TrainConfig, num_classes: int) -> model.EfficientNet:
    """The network of a configuration, freshly initialised from its seed."""
    torch.manual_seed(config.seed)
    network = model.efficientnet(
        config.arch, num_classes, dropout=config.dropout, survival_prob=config.survival_prob,
        small_images=config.small_images,
    )
    if config.frozen_stages:
        model.freeze_shallow(network, config.frozen_stages)
    return network


# ------------------------------------------------------------------ the joint loss


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over images of -sum_c targets_c log softmax(logits)_c; both (N, num_classes)."""
    return -(targets * F.log_softmax(logits.float(), dim=1)).sum(1).mean()


def smooth(targets: Tensor, label_smoothing: float) -> Tensor:
    """Mix targets (N, num_classes) with the uniform distribution."""
    return targets * (1 - label_smoothing) + label_smoothing / targets.shape[1]


def joint_loss(logits: Tensor, labels: Tensor, pseudo_targets: Tensor | None,
               label_smoothing: float = 0.1, normalization: str = "concat") -> Tensor:
    """Cross entropy on labelled and pseudo-labelled images (Algorithm 1, step 3).

    With the mean losses l over the B labelled and u over the U unlabelled images, r = U / B:
        "concat"      (l + r u) / (1 + r): section 3.1's average over the concatenated batch
        "algorithm1"  l + u
        "official"    l + r u: the authors' code

    Args:
        logits: (B + U, num_classes), the labelled images first.
        labels: (B,) int64; they are smoothed.
        pseudo_targets: (U, num_classes) probabilities, used as they are; None: labels alone.
            With B = 0 they are alone.
    """
    if len(labels) == 0:
        return cross_entropy(logits, pseudo_targets)
    labeled = F.cross_entropy(
        logits[: len(labels)].float(), labels, label_smoothing=label_smoothing
    )
    if pseudo_targets is None:
        return labeled
    unlabeled = cross_entropy(logits[len(labels):], pseudo_targets)
    ratio = len(pseudo_targets) / len(labels)
    if normalization == "algorithm1":
        return labeled + unlabeled
    total = labeled + ratio * unlabeled
    return total if normalization == "official" else total / (1 + ratio)


# ------------------------------------------------------------------ optimisation


def learning_rate(step: int, config: TrainConfig) -> float:
    """Learning rate of a step (from 0): linear warm-up, then exponential or cosine decay.

    paper, section 3.1: "starts at 0.128 for labeled batch size 2048 and decays by 0.97 every 2.4
    epochs"; the warm-up over 5 epochs and the staircase are the authors' code's.
    """
    epoch = step / config.steps_per_epoch
    peak = config.learning_rate * config.batch_size / 256
    if epoch < config.warmup_epochs:
        return peak * epoch / config.warmup_epochs
    if config.schedule == "cosine":
        # paper: exponential; here, for the small plans and resolution_fix: zero at the end,
        # whatever the number of epochs
        progress = (epoch - config.warmup_epochs) / max(config.epochs - config.warmup_epochs, 1e-9)
        return peak * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return peak * config.decay_rate ** math.floor(epoch / config.decay_epochs + 1e-9)


class RMSpropTF(torch.optim.Optimizer):
    """RMSProp as in TensorFlow, which EfficientNet's recipe relies on.

    Unlike torch.optim.RMSprop, epsilon is inside the square root, the squared average starts at
    one, and the learning rate is inside the momentum buffer:

        square  <- decay * square + (1 - decay) * gradient^2
        buffer  <- momentum * buffer + learning rate * gradient / sqrt(square + epsilon)
        weight  <- weight - buffer

    `weight_decay` is L2 in the loss: it adds weight_decay * weight to the gradient.
    """

    def __init__(self, params, lr: float = 0.016, decay: float = 0.9, momentum: float = 0.9,
                 eps: float = 1e-3, weight_decay: float = 0.0):
        super().__init__(params, dict(lr=lr, decay=decay, momentum=momentum, eps=eps,
                                      weight_decay=weight_decay))

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if not weights:
                continue
            for weight in weights:
                if not self.state[weight]:
                    self.state[weight]["square"] = torch.ones_like(weight)
                    self.state[weight]["buffer"] = torch.zeros_like(weight)
            gradients = [weight.grad for weight in weights]
            squares = [self.state[weight]["square"] for weight in weights]
            buffers = [self.state[weight]["buffer"] for weight in weights]
            if group["weight_decay"]:
                gradients = torch._foreach_add(gradients, weights, alpha=group["weight_decay"])
            torch._foreach_mul_(squares, group["decay"])
            torch._foreach_addcmul_(squares, gradients, gradients, 1 - group["decay"])
            roots = torch._foreach_add(squares, group["eps"])
            torch._foreach_sqrt_(roots)
            torch._foreach_mul_(buffers, group["momentum"])
            torch._foreach_addcdiv_(buffers, gradients, roots, group["lr"])
            torch._foreach_sub_(weights, buffers)
        return loss


def make_optimizer(network: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer of a configuration; weight decay on everything but BatchNorm."""
    decayed, plain = [], []
    for module in network.modules():
        group = plain if isinstance(module, nn.BatchNorm2d) else decayed
        group.extend(module.parameters(recurse=False))
    groups = [{"params": decayed, "weight_decay": config.weight_decay},
              {"params": plain, "weight_decay": 0.0}]
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            groups, lr=1.0, momentum=config.momentum, nesterov=config.momentum > 0, foreach=True
        )
    if config.optimizer == "adamw":
        return torch.optim.AdamW(
            groups, lr=1.0, betas=(config.momentum, 0.999), foreach=True
        )
    return RMSpropTF(groups, lr=1.0, momentum=config.momentum)


class ModelEMA:
    """Exponential moving average of weights and BatchNorm statistics.

    `network` holds the average, in evaluation mode: it is what is evaluated, saved and labels.
    """

    def __init__(self, network: nn.Module, decay: float = 0.9999):
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Average in the weights after step `step` (from 0), with decay min(d, (1+t)/(10+t))."""
        decay = min(self.decay, (1 + step) / (10 + step))
        averages, values = [], []
        for average, value in zip(self.network.state_dict().values(),
                                  network.state_dict().values(), strict=True):
            if value.is_floating_point():
                averages.append(average)
                values.append(value)
            else:
                average.copy_(value)  # BatchNorm's count of batches
        torch._foreach_lerp_(averages, values, 1 - decay)


# ------------------------------------------------------------------ batches


def seed_of(*numbers: int) -> int:
    """One well-mixed seed from several numbers, such as a run's seed and a step."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def shuffled_batches(size: int, batch_size: int, first: int, last: int,
                     seed: int) -> Iterator[Tensor]:
    """Index batches `first` to `last` - 1 of an endless chain of shuffles of range(size).

    Batch t is a function of (size, batch_size, seed, t) alone, so a run that starts again in the
    middle sees the images it would have seen. A batch may be larger than the set.
    """
    shuffle_number, order = -1, None
    for step in range(first, last):
        batch, position = [], step * batch_size
        while position < (step + 1) * batch_size:
            number, offset = divmod(position, size)
            if number != shuffle_number:
                generator = torch.Generator().manual_seed(seed_of(seed, number))
                shuffle_number, order = number, torch.randperm(size, generator=generator)
            taken = order[offset: offset + (step + 1) * batch_size - position]
            batch.append(taken)
            position += len(taken)
        yield torch.cat(batch)


def read_training_images(images: ImageSet, selection: Tensor, rows: Tensor, batch_size: int,
                         config: TrainConfig, first: int, workers: int, stream: int,
                         ) -> Iterator[tuple[Tensor, Tensor]]:
    """(indices, uint8 images) of steps `first` to the last.

    Args:
        selection: (K,) indices of the images that make up an epoch; one may come more than once.
        rows: (n,) positions in a batch of `batch_size` images, those of this process.
        stream: 0 for labelled images, 1 for pseudo-labelled ones: other random numbers.
    """
    seed = seed_of(config.seed, stream)
    large = config.image_size > data.LARGEST_IN_MEMORY

    def indices() -> Iterator[Tensor]:
        batches = shuffled_batches(len(selection), batch_size, first, config.total_steps, seed)
        return (selection[batch[rows]] for batch in batches)

    pixels = data.read_batches(
        images, indices(), config.image_size,
        train=config.augment_unlabeled if stream else config.augment_labeled,
        seed=seed, first=first, workers=workers, rows=rows,
        crop=augment.random_resized_crop if large else None,  # augment_small has a crop of its own
    )
    return zip(indices(), pixels, strict=True)


def noise_images(images: Tensor, config: TrainConfig, labeled: int, step: int,
                 rows: Tensor | None = None, batch_size: int | None = None) -> Tensor:
    """Input noise (section 2) on a uint8 batch whose first `labeled` images have labels.

    rows, batch_size: the images' positions (N,) in the step's whole batch and its size, if they are
    a part of it. Noise belongs to a position, so the parts together get the noise of the whole.
    """
    generator = torch.Generator().manual_seed(seed_of(config.seed, 2, step))
    rand_augment = None
    if config.rand_augment_operations:
        rand_augment = augment.RandAugment(
            config.rand_augment_operations, config.rand_augment_magnitude
        )
    large = config.image_size > data.LARGEST_IN_MEMORY
    noise = augment.augment_large if large else augment.augment_small
    noised = slice(0 if config.augment_labeled else labeled,
                   len(images) if config.augment_unlabeled else labeled)
    if noised.start >= noised.stop:
        return images
    if rows is not None:
        rows = rows[noised]
        batch_size = batch_size if config.augment_unlabeled else config.batch_size
    changed = noise(images[noised], rand_augment, generator, flip=config.flip, rows=rows,
                    batch_size=batch_size)
    if len(changed) == len(images):  # no copy
        return changed
    return torch.cat([images[: noised.start], changed, images[noised.stop:]])


# ------------------------------------------------------------------ training


def top1(network: nn.Module, images: ImageSet, image_size: int, **options) -> float:
    """Accuracy in percent on clean, centre-cropped images; processes share the work."""
    mine = images.subset(torch.arange(devices.rank(), len(images), devices.world_size()))
    correct = torch.zeros((), dtype=torch.float64)  # of a process without an image
    if len(mine):
        probabilities = pseudo_label.predict(network, mine, image_size, **options)
        correct = (probabilities.argmax(1) == mine.labels).double().sum()
    return 100 * devices.mean(correct).item() * devices.world_size() / len(images)


def content_hashes(sets: dict[str, ImageSet | None], *arrays: np.ndarray | None) -> dict:
    """What tells the images of a run, and their labels, from those of another.

    Of each array, which may have millions of rows, some thousand rows are read.
    """
    digest, hashes = hashlib.blake2b(digest_size=16), {}
    for name, images in sets.items():
        if images is not None:
            digest.update(np.ascontiguousarray(images.labels))
            hashes[name] = pseudo_label.pool_settings(images)["pool"]
    for values in arrays:
        if values is not None:
            digest.update(np.ascontiguousarray(values[:: len(values) // 4096 + 1]))
    return {"labels": digest.hexdigest(), **hashes}


def load_state(path: Path, meta: str) -> dict:
    """What `save` wrote; InputError if it is something else or belongs to another run."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        found = state["meta"]
    except Exception:  # another kind of file, or a directory, raises nearly anything
        raise InputError(f"{path} is in the way and not a checkpoint of train.py: remove it, or "
                         "choose another output") from None
    if found != meta:
        raise InputError(f"{path} belongs to a run with other settings, images or pseudo labels: "
                         "continue with those, or choose another output")
    return state


def beside(out: Path, suffix: str) -> Path:
    """The file that belongs to a checkpoint: x.resume to x.pt, x.0.resume to x.0."""
    return Path(f"{out.with_suffix('') if out.suffix in ('.pt', '.pth') else out}{suffix}")


def save(path: Path, contents: dict) -> None:
    """Save tensors and plain values; the file is either the old one or complete."""
    if devices.rank() == 0:
        data.write_atomically(path, lambda file: torch.save(contents, file))
    devices.wait_for_all()


def train(config: TrainConfig, labeled: ImageSet, validation: ImageSet | None = None,
          unlabeled: ImageSet | None = None, pseudo_targets: np.ndarray | None = None,
          selection: np.ndarray | None = None, *, out: str | Path, start: str | Path | None = None,
          device: torch.device | str = "cpu", workers: int = 2, compiled: bool = False,
          checkpoint_blocks: bool = False, checkpoint_steps: int | None = None, log_steps: int = 20,
          log: str | Path | None = None, name: str = "train") -> Path:
    """Train one model, teacher or student; returns the path of its checkpoint.

    The checkpoint holds the EMA with the best validation accuracy (the last one of equals), or the
    last EMA where there is no validation set. If `out` exists the run is finished and nothing is
    done; if only its `.resume` file exists the run goes on from there.

    Args:
        unlabeled, pseudo_targets: pseudo-labelled images and their targets (U, num_classes); None:
            labels alone.
        selection: (K,) rows of both, duplicates included, that make up the balanced set; None:
            every image once.
        out: the checkpoint to write.
        start: a checkpoint of the same architecture to take the first weights from (finding 8);
            None: from scratch.
        workers: processes that decode image files.
        compiled: run the network through torch.compile; faster on GPUs after a minute.
        checkpoint_blocks: compute activations twice instead of keeping them; saves memory.
        checkpoint_steps: steps between two states to resume from; None: a twentieth of the run,
            but no more than 500.
        log_steps: steps between two lines of the log.
        log: JSON-lines file to append to; default: beside the checkpoint.

    Raises:
        InputError: sizes do not fit, or the run to continue had another configuration.
        FloatingPointError: the loss or a weight is not finite; the last finite state stays, to
            resume from.
    """
    out, device, world = Path(out), torch.device(device), devices.world_size()
    resume, log = beside(out, ".resume"), Path(log or beside(out, ".jsonl"))
    if out.suffix in (".resume", ".jsonl"):
        raise InputError(f"{out}: such a name is taken beside a checkpoint; use {out.stem}.pt")
    if checkpoint_steps is not None and checkpoint_steps < 1:
        raise InputError(f"--checkpoint-steps {checkpoint_steps}: give 1 or more")
    if len(labeled) == 0:
        raise InputError("there are no labelled images to train on")
    if unlabeled is not None and len(unlabeled) != len(pseudo_targets):
        raise InputError(
            f"{len(unlabeled)} images do not match {len(pseudo_targets)} pseudo labels"
        )
    parts = config.accumulation_steps
    check_batch(config if unlabeled is not None else replace(config, unlabeled_ratio=0), device)
    check_device(device, compiled, checkpoint_blocks)
    config = replace(config, labeled_images=len(labeled))
    checkpoint_steps = checkpoint_steps or min(500, math.ceil(config.total_steps / 20))
    source, known = (pseudo_label.load_teacher(start, torch.device("cpu")) if start
                     else (None, None))
    if known and tuple(known["classes"]) != labeled.classes:
        raise InputError(f"{start} knows other classes than the labelled images: start from a "
                         "checkpoint of these, or from none")
    sets = {"labeled": labeled, "validation": validation, "unlabeled": unlabeled}
    meta = json.dumps({"config": asdict(config), "classes": labeled.classes, "name": name,
                       "start": source and pseudo_label.teacher_hash(source),
                       "images": content_hashes(sets, pseudo_targets, selection)})
    if out.exists():
        load_state(out, meta)
        if devices.rank() == 0:
            resume.unlink(missing_ok=True)  # killed just before it did so itself
        return out
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out.parent}: not made ({error}); choose another place") from None

    # The network, its average, and the optimizer. channels_last is faster on CPU and CUDA.
    network = build_model(config, len(labeled.classes))
    if source:
        try:
            model.load_pretrained(network, source.state_dict())
        except ValueError as error:
            raise InputError(f"cannot start from {start}: {error}") from None
    network.checkpoint_blocks = checkpoint_blocks
    network = network.to(device, memory_format=torch.channels_last).train()
    average = ModelEMA(network, config.ema_decay)
    optimizer = make_optimizer(network, config)
    first, best = 0, {"top1": None}
    if resume.exists():
        state = load_state(resume, meta)
        network.load_state_dict(state["network"])
        average.network.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        first, best = state["step"], state["best"]
    forward = devices.distribute(network, device)
    if compiled:
        forward = torch.compile(forward)

    # Batches: B labelled images, and r B pseudo-labelled ones. A process takes every world-th row.
    def read(images: ImageSet, chosen: Tensor, rows: Tensor, size: int, stream: int) -> Iterator:
        return read_training_images(images, chosen, rows, size, config, first, workers, stream)

    batch_size, pseudo_size = config.batch_size, config.batch_size * config.unlabeled_ratio
    rows, pseudo_rows = torch.arange(devices.rank(), batch_size, world), torch.arange(0)
    batches = read(labeled, torch.arange(len(labeled)), rows, batch_size, stream=0)
    pseudo_batches, whole = itertools.repeat((None, None)), batch_size
    if unlabeled is not None and pseudo_size:
        pseudo_rows, whole = torch.arange(devices.rank(), pseudo_size, world), whole + pseudo_size
        chosen = np.arange(len(unlabeled)) if selection is None else selection
        pseudo_batches = read(unlabeled, torch.tensor(chosen), pseudo_rows, pseudo_size, stream=1)

    def diverged(what: str, rate: float) -> FloatingPointError:
        kept = f"; {resume} holds the last finite state" if resume.exists() else ""
        return FloatingPointError(f"{name}: {what}, learning rate {rate:.3g}. Try a lower one or a "
                                  f"longer warm-up, and another output{kept}")

    evaluate_steps = max(1, round(config.evaluate_epochs * config.steps_per_epoch))
    bar = tqdm(zip(batches, pseudo_batches, strict=False), name, config.total_steps, initial=first,
               unit="step", disable=devices.rank() > 0,
               mininterval=0.5 if sys.stderr.isatty() else 20)
    seen, started = 0, time.perf_counter()
    with open_log(log, name, first) as write_log:
        for step, ((index, images), (pseudo_index, pseudo_images)) in enumerate(bar, start=first):
            # Every random number of a step comes from the run's seed and the step, so a run that
            # was interrupted ends with the same weights as one that was not.
            devices.manual_seed(seed_of(config.seed, 3, step, devices.rank()), device)
            rate, results = learning_rate(step, config), []
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad()
            for part in range(parts):
                # One part of the batch: labelled images first, then pseudo-labelled ones.
                mine = slice(part, None, parts)
                labels, targets, noised = labeled.labels[index[mine]], None, None
                inputs, positions = images[mine], rows[mine]
                if pseudo_images is not None:
                    if not config.joint:
                        labels, inputs, positions = labels[:0], inputs[:0], positions[:0]
                    inputs = torch.cat([inputs, pseudo_images[mine]])
                    positions = torch.cat([positions, batch_size + pseudo_rows[mine]])
                    targets = torch.from_numpy(pseudo_targets[pseudo_index[mine]]).float()
                    if config.pseudo_labels == "hard":  # smoothed as labels, in the authors' code
                        targets = smooth(targets, config.label_smoothing)
                    targets = devices.place(targets, device)
                    # Table 6, "student w/o Aug, SD, Dropout"; Aug is noise_images' part.
                    if not config.model_noise_unlabeled:
                        noised = devices.place(torch.arange(len(inputs)) < len(labels), device)
                inputs, labels = devices.place(inputs, device), devices.place(labels, device)
                inputs = noise_images(inputs, config, len(labels), step, positions, whole)
                inputs = augment.normalize(inputs).contiguous(memory_format=torch.channels_last)

                with devices.keep_gradients_local(forward, part < parts - 1):
                    with devices.autocast(device, config.precision):
                        logits = forward(inputs, noised)
                    loss = joint_loss(logits, labels, targets, config.label_smoothing,
                                      config.normalization)
                    (loss / parts).backward()
                results.append((loss.detach(), logits.detach(), labels, targets))
            optimizer.step()
            average.update(network, step)
            devices.finish_step(device)
            seen += world * (len(images) + len(pseudo_rows))
            done = step + 1

            last, saves = done == config.total_steps, done % checkpoint_steps == 0
            if done % log_steps == 0 or saves or last:
                line = {"step": step, "epoch": round(step / config.steps_per_epoch, 3),
                        "learning_rate": rate} | describe(results)
                line["images_per_second"] = round(seen / (time.perf_counter() - started), 1)
                if not math.isfinite(line["loss"]):
                    raise diverged(f"the loss is {line['loss']} at step {step}", rate)
                write_log(line)
                shown = {} if best["top1"] is None else {"val": f"{best['top1']:.1f}%"}
                bar.set_postfix(loss=f"{line['loss']:.3f}", **shown,
                                images_s=f"{line['images_per_second']:.0f}", refresh=False)
            if done % evaluate_steps == 0 or last:
                accuracy = None
                if validation is not None:
                    accuracy = top1(average.network, validation, config.image_size, device=device,
                                    workers=workers)
                    write_log({"step": step, "val_top1": accuracy})
                if accuracy is None or best["top1"] is None or accuracy >= best["top1"]:
                    best = {"top1": accuracy, "step": step,
                            "model": to_host(average.network.state_dict())}
            if saves and not last:
                state = {"meta": meta, "step": done, "best": best,
                         "network": to_host(network.state_dict()),
                         "average": to_host(average.network.state_dict()),
                         "optimizer": to_host(optimizer.state_dict())}
                if not all(value.isfinite().all() for value in state["network"].values()):
                    raise diverged(f"weights are not finite after step {step}", rate)
                save(resume, state)
    save(out, {"meta": meta, "model": best["model"], "val_top1": best["top1"],
               "step": best["step"]})
    if devices.rank() == 0:
        resume.unlink(missing_ok=True)
    return out


def describe(results: list[tuple]) -> dict:
    """The losses of both parts of a step and how often the student agrees, over all processes.

    results: (loss, logits, labels, targets) of each part of this process's batch.
    """
    values = {}
    for loss, logits, labels, targets in results:
        logits = logits.float()
        labeled, unlabeled = logits[: len(labels)], logits[len(labels):]
        values.setdefault("loss", []).append(loss)
        if len(labels):
            correct = (labeled.argmax(1) == labels).float().mean()
            values.setdefault("loss_labeled", []).append(F.cross_entropy(labeled, labels))
            values.setdefault("accuracy_labeled", []).append(100 * correct)
        if targets is not None:
            agreement = (unlabeled.argmax(1) == targets.argmax(1)).float().mean()
            values.setdefault("loss_unlabeled", []).append(cross_entropy(unlabeled, targets))
            values.setdefault("agreement_unlabeled", []).append(100 * agreement)
    means = devices.mean(torch.stack([torch.stack(value).mean() for value in values.values()]))
    return dict(zip(values, means.tolist(), strict=True))


@contextlib.contextmanager
def open_log(path: Path, name: str, first: int) -> Iterator[Callable[[dict], None]]:
    """A function that adds a line to the log, and to TensorBoard where that is installed."""
    if devices.rank() > 0:
        yield lambda line: None
        return
    try:
        trim_log(path, name, first)
        file = open(path, "a")
    except OSError as error:
        raise InputError(f"{path}: not written ({error}); choose another place") from None
    try:
        from torch.utils.tensorboard import SummaryWriter
        board = SummaryWriter(str(path.parent / "tensorboard" / name), purge_step=first)
    except ImportError:
        board = None
    with file:
        def write(line: dict) -> None:
            try:
                file.write(json.dumps({"name": name, **line}) + "\n")
                file.flush()
            except OSError as error:
                raise InputError(f"{path}: not written ({error}); make room: the same command "
                                 "continues") from None
            for key in (line.keys() - {"step"} if board else ()):
                board.add_scalar(key, line[key], line["step"])

        yield write
    if board:
        board.close()


def trim_log(log: Path, name: str, first: int) -> None:
    """Drop the lines that an interrupted run wrote from step `first` on: they come again."""
    if not log.exists():
        return
    kept, lines = [], log.read_text(errors="replace").splitlines()
    for number, text in enumerate(lines, start=1):
        try:
            line = json.loads(text)
            if line["name"] != name or line["step"] < first:
                kept.append(text + "\n")
        except (ValueError, TypeError, KeyError):
            if number < len(lines):  # else cut off in the middle
                raise InputError(f"{log} is in the way and not a log of train.py (line {number}): "
                                 "choose another output") from None
    data.write_atomically(log, lambda file: file.write("".join(kept).encode()))


def to_host(state: dict) -> dict:
    """A copy of a state dict, nested or not, with its tensors on the CPU."""
    if isinstance(state, Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {key: to_host(value) for key, value in state.items()}
    return [to_host(value) for value in state] if isinstance(state, list) else state


# ------------------------------------------------------------------ command line


def add_config_flags(parser: argparse.ArgumentParser, defaults: str,
                     skip: tuple[str, ...] = ()) -> None:
    """One flag for each field of TrainConfig; the comment beside the field is its help."""
    comments = dict(re.findall(r"^    (\w+): .*?# (.*)$", inspect.getsource(TrainConfig), re.M))
    group = parser.add_argument_group(f"training (defaults: {defaults})")
    for field in fields(TrainConfig):
        if field.name in skip or field.name == "labeled_images":
            continue
        flag = "--" + field.name.replace("_", "-")
        text = comments.get(field.name, "").replace("%", "%%") or None
        if field.type is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=text)
        else:
            group.add_argument(flag, type=field.type, default=None, help=text,
                               choices=CHOICES.get(field.name), metavar=None
                               if field.name in CHOICES else field.type.__name__.upper())


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    """Flags that decide how fast and in how much memory it runs, not what comes out."""
    parser.add_argument("--compile", action="store_true", dest="compiled",
                        help="compile the network; faster on GPUs after a minute")
    parser.add_argument("--checkpoint-blocks", action="store_true",
                        help="compute activations twice instead of keeping them: less memory")


def config_overrides(arguments: argparse.Namespace) -> dict:
    """The fields of TrainConfig that the command line gives."""
    given = vars(arguments)
    names = [field.name for field in fields(TrainConfig)]
    return {name: given[name] for name in names if given.get(name) is not None}


OUT_OF_MEMORY = ("out of memory: raise --accumulation-steps, lower --batch-size or --image-size, "
                 "or add --checkpoint-blocks")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Train one teacher (labels alone) or one student (with pseudo labels)."
    )
    parser.add_argument("--labeled", required=True, metavar="DIR", help="class folders of images")
    parser.add_argument("--val", metavar="DIR", help="class folders to choose the checkpoint by")
    parser.add_argument("--unlabeled", metavar="DIR", help="the pool that was pseudo-labelled, by "
                        "the same path")
    parser.add_argument("--pseudo-label-dir", metavar="DIR", help="what pseudo_label.py wrote")
    parser.add_argument("--out", required=True, metavar="FILE", help="checkpoint to write")
    parser.add_argument("--device", default="auto", choices=devices.NAMES)
    parser.add_argument("--workers", type=int, default=2, help="processes that decode images")
    parser.add_argument("--checkpoint-steps", type=int, help="steps between two states to resume "
                        "from (default: a twentieth of the run, at most 500)")
    parser.add_argument("--start-from", metavar="FILE", help="checkpoint to take weights from")
    add_run_flags(parser)
    add_config_flags(parser, "the paper's for the architecture, b7 if none is given")
    arguments = parser.parse_args(argv)
    try:
        if (arguments.unlabeled is None) != (arguments.pseudo_label_dir is None):
            raise InputError("--unlabeled and --pseudo-label-dir go together: give both or none")
        try:
            config = replace(recipe(arguments.arch or "b7"), **config_overrides(arguments))
            device = devices.choose(arguments.device)
        except ValueError as error:
            raise InputError(str(error)) from None
        if arguments.val and Path(arguments.val).resolve() == Path(arguments.labeled).resolve():
            raise InputError(f"--val {arguments.val}: these are the labelled images; give others")
        labeled = data.read_folder(arguments.labeled, config.image_size)
        validation = arguments.val and data.read_folder(arguments.val, config.image_size,
                                                        labeled.classes)
        unlabeled = targets = selection = None
        if arguments.unlabeled:
            pool = data.read_pool(arguments.unlabeled, labeled.classes)
            labels = pseudo_label.read_labels(
                arguments.pseudo_label_dir,
                pseudo_label.pool_settings(pool) | {"kind": config.pseudo_labels},
            )
            unlabeled = data.into_memory(pool.subset(torch.tensor(labels.index)),
                                         config.image_size)
            targets, selection = labels.targets, labels.selection
        train(config, labeled, validation, unlabeled, targets, selection, out=arguments.out,
              start=arguments.start_from, device=device, workers=arguments.workers,
              compiled=arguments.compiled, checkpoint_blocks=arguments.checkpoint_blocks,
              checkpoint_steps=arguments.checkpoint_steps,
              name=beside(Path(arguments.out), "").name)
    except (InputError, FloatingPointError, OSError) as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 2
    except (torch.OutOfMemoryError, MemoryError):
        print(f"train.py: {OUT_OF_MEMORY}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ntrain.py: interrupted; the same command continues", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
