"""Train a teacher or a student of Noisy Student Training (Algorithm 1, steps 1 and 3).

A teacher trains on labelled images; a student, at each step, on B labelled and r * B pseudo-
labelled images as one batch. Both are noised: RandAugment on the images, dropout and stochastic
depth in the model (section 2).

    python train.py --labeled DIR --val DIR --arch b0 --batch-size 128 --out teacher.pt
    python train.py --labeled DIR --val DIR --arch b0 --batch-size 128 --out student.pt \\
        --unlabeled POOL --pseudo-label-dir LABELS

Settings not given as flags are `recipe`'s for the architecture, such as 700 epochs for b0. The
same command again continues where the last one stopped.
"""

import math
import sys
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import augment
import model
from model import Checkpoint
from pseudo_label import predict
from support import InputError, batches, cli, devices, reading, runs, sources, weights
from support.batches import Batch, Chance
from support.data_parallel import accumulate, distribute
from support.images import ImageSet
from support.label_store import PseudoLabels
from support.optimization import Best, ModelEMA, RMSpropTF, make_optimizer  # noqa: F401


@dataclass(frozen=True)
class TrainConfig:
    """The settings of one training

    Defaults: B7's in sections 3.1 and 3.2. Crops, label smoothing, RMSProp, warm-up, weight decay
    and the moving average of weights follow the authors' code; the paper does not mention them.
    """

    # Model
    arch: str = "b7"  # b0 to b7, l0 to l2, WIDTHxDEPTH (default: b7); decides the other defaults
    image_size: cli.Pixels = 600  # pixels a side
    small_images: bool = False  # stages 2 and 3 at stride 1, for about 32 pixels; never implied

    # Noise on the model (section 2)
    dropout: cli.BelowOne = 0.5  # probability of dropping a feature before the classifier
    survival_prob: cli.Probability = 0.8  # stochastic depth; block i of n: 1 - (1 - this) * i / n

    # Noise on the images (section 2)
    rand_augment_operations: cli.UpTo100 = 2  # per image; 0: none, nor cifar's Cutout
    rand_augment_magnitude: cli.Magnitude = 27.0  # strength; AutoAugment's scale ends at 10
    flip: bool = True  # mirror images at random; not for digits
    crops: Literal["auto", "cifar", "imagenet"] = "auto"  # the pipeline; auto: cifar's up to 64 px

    # Switched off in table 6 for pseudo-labelled images, in the resolution fix for labelled ones.
    # paper: "Aug" is RandAugment (130 M) or translation and flips (1.3 M); here: all image noise.
    augment_labeled: bool = True  # noise on labelled images; without it, clean centre crops
    augment_unlabeled: bool = True  # noise on pseudo-labelled images
    model_noise_unlabeled: bool = True  # dropout and stochastic depth for pseudo-labelled images
    frozen_stages: Annotated[int, cli.Range(0, 7, "0 to 7"), "N"] = 0  # and the stem; 0: none

    # Joint loss (Algorithm 1, step 3; unlabelled images per labelled one: sections 3.1, 3.2)
    # paper: the sum of two means, or section 3.1's average over one batch; here: the authors' sum.
    joint: bool = True  # labels and pseudo labels; else the latter alone, finding 6's first phase
    unlabeled_ratio: cli.UpTo100 = 3  # pseudo-labelled images per labelled one in a batch
    normalization: Literal["concat", "algorithm1", "official"] = "official"  # joint_loss
    label_smoothing: cli.Share = 0.1  # on labels and hard pseudo labels

    # Optimisation (section 3.1)
    batch_size: cli.Batch = 2048  # labelled images a step, over all devices; epochs count them
    accumulation_steps: cli.Count = 1  # micro-batches of a step; BatchNorm sees one at a time
    labeled_images: Annotated[int, cli.NO_FLAG] = 1_281_167  # train() fills this in
    epochs: cli.Positive = 350.0  # of labelled images; the paper: 700 for B4 and smaller
    learning_rate: cli.NonNegative = 0.016  # per 256 labelled images in the batch
    warmup_epochs: cli.NonNegative = 5.0  # linear, from zero
    schedule: Literal["exponential", "cosine"] = "exponential"  # of the rate; cosine ends at zero
    decay_rate: cli.Positive = 0.97  # factor of the exponential schedule
    decay_epochs: cli.Positive = 2.4  # from one such decay to the next; 4.8 for 700 epochs
    optimizer: Literal["rmsprop", "sgd", "adamw"] = "rmsprop"  # as in TensorFlow; sgd: Nesterov
    momentum: cli.BelowOne = 0.9  # of rmsprop and sgd; adamw's first beta
    weight_decay: cli.NonNegative = 1e-5  # L2 in the loss, decoupled in adamw; none on BatchNorm
    ema_decay: cli.BelowOne = 0.9999  # of the averaged weights, used to evaluate and label
    precision: Literal["float32", "bfloat16"] = "float32"  # bfloat16: autocast, for GPUs
    evaluate_epochs: cli.Positive = 5.0  # between two evaluations on the validation set
    seed: cli.Whole = 0  # of the weights, the order of the images and the noise

    def __post_init__(self):
        cli.check(type(self), vars(self))
        model.scaling(self.arch)
        if self.batch_size % self.accumulation_steps:
            raise InputError(f"--batch-size {self.batch_size}: give a multiple of "
                             f"--accumulation-steps, {self.accumulation_steps}")

    @property
    def steps_per_epoch(self) -> float:
        return self.labeled_images / self.batch_size

    @property
    def cifar_crops(self) -> bool:
        return self.crops == "cifar" or self.crops == "auto" and self.image_size <= 64

    @property
    def total_steps(self) -> int:
        return max(1, round(self.epochs * self.steps_per_epoch))


# paper: RandAugment for all baselines (section 3.2); here: like the authors, none for B0 and B1.
MAGNITUDES = {"b0": 0, "b1": 0, "b2": 6, "b3": 12, "b4": 15, "b5": 18, "b6": 24}


def recipe(arch: str) -> TrainConfig:
    """The settings of sections 3.1 and 3.2 and of the authors' scripts for an architecture.

    Not published, so a choice of ours: for l0 and l1, L2's 14 unlabelled images for each labelled
    one; for WIDTHxDEPTH, B7's settings at its own resolution and dropout.
    """
    # paper: gives the epochs of students; here: their teachers have as many.
    _, _, resolution, dropout = model.scaling(arch)
    magnitude, long = MAGNITUDES.get(arch, 27), arch in ("b0", "b1", "b2", "b3", "b4")
    return TrainConfig(
        arch=arch, image_size=resolution, dropout=dropout,
        rand_augment_operations=2 if magnitude else 0, rand_augment_magnitude=magnitude,
        unlabeled_ratio=1 if arch == "b0" else 14 if arch.startswith("l") else 3,
        epochs=700 if long else 350, decay_epochs=4.8 if long else 2.4,
    )


def resolution_fix(config: TrainConfig, image_size: int) -> TrainConfig:
    """The settings of the fine-tuning at the test resolution (pixels), a phase after training.

    "Then we finetune the model with a larger resolution for 1.5 epochs on unaugmented labeled
    images. Similar to [86], we fix the shallow layers during finetuning" (section 3.1).
    """
    # paper: does not say which layers; here: the stem and stages 1 to 5, a sixth of b0's weights.
    # authors: training's last rate (0.0015 after 350 epochs); here: the same; cosine: peak / 10.
    # paper: "unaugmented"; here: the layers that learn keep their noise, which is no augmentation.
    last = config.decay_rate ** (math.ceil(config.epochs / config.decay_epochs - 1e-9) - 1)
    rate = config.learning_rate * (0.1 if config.schedule == "cosine" else last)
    return replace(
        config, image_size=image_size, epochs=1.5, evaluate_epochs=1.5, augment_labeled=False,
        frozen_stages=config.frozen_stages or 5, unlabeled_ratio=0, learning_rate=rate,
        warmup_epochs=0.0, decay_rate=1.0)


def build_model(config: TrainConfig, num_classes: int) -> model.EfficientNet:
    """The network of a configuration, freshly initialised from its seed."""
    torch.manual_seed(config.seed)
    network = model.efficientnet(
        config.arch, num_classes, dropout=config.dropout, survival_prob=config.survival_prob,
        small_images=config.small_images,
    )
    model.freeze_shallow(network, config.frozen_stages)
    return network


# ---- The joint loss ----


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over images of -sum_c targets_c log softmax(logits)_c; both (N, num_classes)."""
    return -(targets * F.log_softmax(logits.float(), dim=1)).sum(1).mean()


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
        pseudo_targets: (U, num_classes) probabilities, used as they are, or (U,) int64 classes,
            smoothed; None: labels alone.
    """
    if pseudo_targets is not None:
        if pseudo_targets.dim() == 1:
            hard = F.one_hot(pseudo_targets, logits.shape[1])
            pseudo_targets = hard * (1 - label_smoothing) + label_smoothing / logits.shape[1]
        unlabeled = cross_entropy(logits[len(labels):], pseudo_targets)
        if len(labels) == 0:  # finding 6: u in all three
            return unlabeled
    labeled = F.cross_entropy(
        logits[: len(labels)].float(), labels, label_smoothing=label_smoothing)
    if pseudo_targets is None:  # a teacher: l in all three
        return labeled
    ratio = len(pseudo_targets) / len(labels)
    if normalization == "algorithm1":
        return labeled + unlabeled
    total = labeled + ratio * unlabeled
    return total if normalization == "official" else total / (1 + ratio)


def learning_rate(step: int, config: TrainConfig) -> float:
    """Learning rate of a step (from 0): linear warm-up, then exponential or cosine decay.

    Section 3.1: "starts at 0.128 for labeled batch size 2048 and decays by 0.97 every 2.4 epochs".
    From the authors: 5 epochs of warm-up, during which the decay counts already; a staircase.
    """
    epoch = step / config.steps_per_epoch
    peak = config.learning_rate * config.batch_size / 256
    if epoch < config.warmup_epochs:
        return peak * epoch / config.warmup_epochs
    if config.schedule == "cosine":
        # paper: exponential; here, for the small plans and their resolution fix: zero at the end,
        # whatever the number of epochs
        progress = (epoch - config.warmup_epochs) / max(config.epochs - config.warmup_epochs, 1e-9)
        return peak * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return peak * config.decay_rate ** math.floor(epoch / config.decay_epochs + 1e-9)


# ---- Training ----


def noise(batch: Batch, config: TrainConfig, step: int) -> Tensor:
    """The images of a micro-batch with their input noise (section 2): uint8 (N, 3, H, W).

    An image's row in the step's batch picks its random numbers. (`batches.training` has cropped
    photographs already.)
    """
    generator = torch.Generator().manual_seed(batches.seed_of(config.seed, 2, step))
    rand_augment = augment.RandAugment(config.rand_augment_operations,
                                       config.rand_augment_magnitude)
    pipeline = augment.augment_cifar if config.cifar_crops else augment.augment_imagenet
    images, labeled = batch.images, len(batch.labels)
    first = 0 if config.augment_labeled else labeled  # table 6: one kind of image may stay clean
    last = len(images) if config.augment_unlabeled else labeled
    whole = batch.whole if config.augment_unlabeled else config.batch_size  # rows to draw for
    chance = Chance(generator, batch.rows[first:last], whole)
    if first == last:  # XLA cannot gather from an empty batch
        return images
    augmented = pipeline(images[first:last], rand_augment, chance, config.flip)
    return torch.cat([images[:first], augmented, images[last:]])


def top_classes(network: nn.Module, images: ImageSet, image_size: int, machine: devices.Machine,
                k: int = 1) -> Tensor:
    """The k most probable classes (N, k) of clean, centre-cropped images, split among processes."""
    probabilities = partial(predict, network, image_size=image_size, device=machine.device,
                            workers=machine.workers)
    return reading.top_classes(probabilities, images, k)


def accuracy(network: nn.Module, images: ImageSet, image_size: int,
             machine: devices.Machine) -> float:
    """Top-1 accuracy in percent on clean, centre-cropped images."""
    predicted = top_classes(network, images, image_size, machine)[:, 0]
    return 100 * (predicted == images.labels).double().mean().item()


def train(config: TrainConfig, labeled: ImageSet, validation: ImageSet | None = None,
          pseudo: PseudoLabels | None = None, *, out: str | Path, start: str | Path | None = None,
          machine: devices.Machine = devices.CPU, checkpoint_steps: int | None = None,
          log_steps: int = 20, name: str = "train", loop: runs.Loop | None = None) -> Path:
    """Train one model, a teacher or (with pseudo labels) a student; returns its checkpoint's path.

    The checkpoint, written at the end, holds the averaged weights with the best validation accuracy
    (ties: the latest; the last without a validation set). Until then the run resumes from a state
    beside it: network, average, optimizer and best average. If `out` exists nothing is done.

    Args:
        start: a checkpoint with the initial weights (finding 8); None: from scratch.
        checkpoint_steps: between two states to resume from; None: a 20th of the run, 10 to 500.
        log_steps: steps between two lines of the log, a file beside the checkpoint.
        loop: the loop that this training belongs to; its log is used then.

    Raises:
        InputError: sizes do not fit, or the run to continue had another configuration.
        FloatingPointError: the loss (run.log) or a weight (run.save, run.finish) is not finite.
    """
    batches.check(config, labeled, pseudo, machine, start)
    config, device = replace(config, labeled_images=len(labeled)), torch.device(machine.device)
    initial = Checkpoint.load(start, config.arch) if start else None
    every = {"log": log_steps, "save": checkpoint_steps,
             "evaluate": max(1, round(config.evaluate_epochs * config.steps_per_epoch))}
    settings = {"config": asdict(config), "classes": labeled.classes, "name": name,
                "start": initial and weights.fingerprint(initial),
                "images": batches.contents(labeled, validation, pseudo)}
    run = runs.Run(out, settings, config.total_steps, every=every, name=name, loop=loop)
    if run.finished:
        return run.out

    network = build_model(config, len(labeled.classes))
    if initial:
        fresh_classifier = weights.check_start(start, initial, config, labeled.classes)
        model.load_pretrained(network, initial.weights, fresh_classifier, initial.conventions)
    network.checkpoint_blocks = machine.checkpoint_blocks
    network = network.to(device, memory_format=devices.layout(device)).train()
    average, best = ModelEMA(network, config.ema_decay), Best()
    optimizer = make_optimizer(network, config)
    first = run.resume(network=network, average=average.network, optimizer=optimizer, best=best)
    forward = distribute(network, device, machine.compile)

    crop = None if config.cifar_crops else augment.random_resized_crop
    reader = batches.training(config, labeled, pseudo, crop, first, machine.workers)
    for step, batch in run.steps(reader):  # B labelled images, then r * B pseudo-labelled ones
        # Seeds dropout and stochastic depth: a resumed run ends with the same weights.
        devices.manual_seed(batches.seed_of(config.seed, 3, step, devices.rank()), device)
        rate, to_log = learning_rate(step, config), []
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        for micro_batch in batch.split(config.accumulation_steps, device):
            images = augment.normalize(noise(micro_batch, config, step))  # section 2
            images = images.contiguous(memory_format=devices.layout(device))
            # Table 6 may noise the labelled images alone; None: all are noised.
            noised = None if config.model_noise_unlabeled else micro_batch.is_labeled
            with accumulate(forward, device, micro_batch.last):  # processes average at the last
                with devices.autocast(device, config.precision):
                    logits = forward(images, noised)
                loss = joint_loss(logits, micro_batch.labels, micro_batch.targets,
                                  config.label_smoothing, config.normalization)
                (loss / config.accumulation_steps).backward()
            to_log.append((loss.detach(), logits.detach(), replace(micro_batch, images=None)))
        optimizer.step()
        average.update(network, step)
        devices.finish_step(device)

        if run.due("log", step):
            run.log(step, epoch=round(step / config.steps_per_epoch, 3), learning_rate=rate,
                    **batches.describe(to_log))
        if run.due("evaluate", step):
            # authors: the last average; here: the one that is best on validation images.
            top1 = None
            if validation is not None:
                top1 = accuracy(average.network, validation, config.image_size, machine)
                run.log(step, val_top1=top1)
            best.offer(top1, average.network, step)
        if run.due("save", step):
            run.save(step)
    return run.finish(**best.kept, conventions=[*initial.conventions] if initial else [])


@dataclass(frozen=True)
class Flags:
    """Train one teacher (labels alone) or one student (with pseudo labels)"""

    labeled: cli.Folder  # class folders of images
    out: cli.File  # checkpoint to write
    val: cli.Folder | None = None  # class folders of images that choose the checkpoint
    unlabeled: cli.Folder | None = None  # the pool, by the same path as given to pseudo_label.py
    pseudo_label_dir: cli.Folder | None = None  # what pseudo_label.py wrote
    pseudo_labels: Literal["soft", "hard"] | None = None  # check that they are of this kind
    start_from: cli.File | None = None  # checkpoint to take weights from
    fixed_resolution: cli.Pixels | None = None  # fine-tune --start-from at it, same flags
    checkpoint_steps: cli.Count | None = None  # from state to state (default: a 20th, 10 to 500)


def main(flags: Flags, machine: devices.Machine, changes: cli.Given[TrainConfig]) -> None:
    config = replace(recipe(changes.get("arch", "b7")), **changes)
    if flags.fixed_resolution:
        config = resolution_fix(config, flags.fixed_resolution)
    machine = machine.chosen()
    labeled, validation, pseudo = sources.read_training(flags, config.image_size, machine.workers)
    train(config, labeled, validation, pseudo, out=flags.out, start=flags.start_from,
          machine=machine, checkpoint_steps=flags.checkpoint_steps, name=runs.stem(flags.out).name)


if __name__ == "__main__":
    sys.exit(cli.run(main))
