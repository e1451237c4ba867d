"""Pseudo labels: the un-noised teacher's predictions, filtered and balanced (section 3.1).

The paper labels a pool of 300 M images and trains on 81 M of them. All probabilities would fill
600 GB (in float16), so here the teacher makes two passes, the second over fewer images:

    pass 1    confidence and class of every image                    predict
    between   the confident images, equally many per class           select
    pass 2    soft or hard targets of the selected images alone      make_targets

While it labels, the teacher is not noised: evaluation mode, its averaged weights, centre-cropped
images ("a normal (i.e., not noised) teacher model"); --noised-teacher is table 6's ablation.

    python pseudo_label.py --teacher teacher.pt --unlabeled POOL --held-out VAL TEST --out LABELS

If it is killed, the same command continues. The GPUs of a machine share a pool under `torchrun
--nproc-per-node 8`, jobs that only share a disk by --shard 0/8 to 7/8. Such jobs are started twice:
for pass 1 and, when all of them have ended, for pass 2. Each says which shards are still missing.
"""

import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import augment
from model import Checkpoint
from support import InputError, cli, devices, files, label_store, predictions, reading, sources
from support.images import ImageSet
from support.label_store import PseudoLabels
from support.ranking import ranked
from support.weights import fingerprint


@dataclass(frozen=True)
class Labelling:
    """How a pool is labelled, filtered and balanced"""

    kind: Annotated[Literal["soft", "hard"], "--pseudo-labels"] = "soft"  # distribution, or one-hot
    temperature: cli.Temperature = 1.0  # of soft pseudo labels; below 1 they are sharper
    threshold: cli.BelowOne = 0.3  # confidence to exceed (0.3 in section 3.1); 0 keeps all
    # paper: 130 K, of a pool with 300 K a class; here: pool / classes, which suits any pool.
    per_class: cli.Count | None = None  # images of each class (default: pool / classes)
    balance: bool = True  # equally many images of each class (section 3.1)
    noised_teacher: bool = False  # label with RandAugment, dropout, stochastic depth (table 6)

    def __post_init__(self):
        cli.check(type(self), vars(self))


def predict(model: nn.Module, images: ImageSet | Tensor, image_size: int | None = None,
            batch_size: int | None = None, device: torch.device | str = "cpu", workers: int = 2,
            progress: str | None = None, noise: augment.RandAugment | None = None,
            seed: tuple[int, ...] = (), held_out: frozenset[bytes] | None = None) -> Tensor:
    """Class probabilities of images, clean unless `noise` is given.

    Args:
        images: an ImageSet, or (M, 3, H, W) uint8.
        image_size: pixels of centre crops (None: as in memory). batch_size: images at once.
        noise: a noised teacher's RandAugment (table 6), with dropout and stochastic depth, too.
            All randomness comes from `seed`; torch's own generator goes on as before.
        held_out: fingerprints of images not to label; unreadable files are left out with them.
            None: every image is labelled, and an unreadable file is an InputError.

    Returns (M, num_classes) float32 on the CPU; rows of unreadable or held-out files are zero.
    """
    (rows,) = predict_parts(
        model, images, [range(len(images))], noise, seed, image_size=image_size,
        batch_size=batch_size, device=device, workers=workers, progress=progress, held_out=held_out)
    return rows


def predict_parts(model: nn.Module, images: ImageSet | Tensor, parts: list[range],
                  noise: augment.RandAugment | None, seed: tuple, **more) -> Iterator[Tensor]:
    """`predict` for each of `parts`, ranges of the images; more: for `reading.evaluate`."""
    def classify(pixels: Tensor) -> Tensor:
        pixels = pixels if noise is None else noise(pixels)
        inputs = augment.normalize(pixels).contiguous(memory_format=torch.channels_last)
        return model(inputs).float().softmax(dim=1)

    with reading.evaluation_mode(model, noised=noise is not None):
        yield from reading.evaluate(classify, images, parts, seed=seed if noise else None, **more)


def select(confidence: np.ndarray, label: np.ndarray, num_classes: int, threshold: float = 0.3,
           per_class: int = 130_000, seed: int = 0, balance: bool = True) -> np.ndarray:
    """Which images to train on, and how often: the filter and the balance of section 3.1.

    "We then select images that have confidence of the label higher than 0.3. For each class, we
    select at most 130K images that have the highest confidence. Finally, for classes that have less
    than 130K images, we duplicate some images at random so that each class can have 130K images."

    Of the n images of a class each appears per_class // n times, a random per_class % n of them
    once more. A class without a confident image is left out.

    Args:
        confidence, label: (M,) largest probability of each image, and its class.
        threshold: keep confidences above it; 0 keeps all but those of zero.
        balance: False keeps every confident image once.

    Returns:
        (K,) int64 positions in the pool, sorted by class and, inside a class, by falling confidence
        (ties by position). InputError if a confidence is NaN or a label is not a class.
    """
    confidence, label = np.asarray(confidence), np.asarray(label)
    if (broken := np.isnan(confidence)).any():
        raise InputError(f"the confidence of image {broken.argmax()} is NaN: the teacher is broken")
    if len(label) and not 0 <= label.min() <= label.max() < num_classes:
        raise InputError(f"labels {label.min()} to {label.max()} do not fit {num_classes} classes")
    wanted = per_class if balance else len(confidence)

    # Each class's images over the threshold, as positions, most confident first, at most `wanted`.
    # authors: a histogram gives each class's cut-off, coin flips its copies; here: both are exact.
    # paper: "at random"; here: as evenly as it goes, so that chance favours no image.
    random, chosen = np.random.default_rng(seed), []
    for positions in ranked(confidence, label, num_classes, threshold, wanted):
        if balance and len(positions):
            copies = np.full(len(positions), per_class // len(positions))
            copies[random.permutation(len(positions))[: per_class % len(positions)]] += 1
            positions = np.repeat(positions, copies)
        chosen.append(positions)
    return np.concatenate(chosen).astype(np.int64, copy=False)


def make_targets(probabilities: Tensor, kind: str = "soft", temperature: float = 1.0) -> Tensor:
    """Targets (K, num_classes) for the student from the teacher's probabilities.

    "soft": the distribution itself or, at another temperature T, p^(1/T) / sum p^(1/T).
    "hard": one-hot at its largest entry.
    """
    if kind == "hard":
        return F.one_hot(probabilities.argmax(1), probabilities.shape[1]).to(probabilities.dtype)
    if kind != "soft":
        raise InputError(f"unknown kind of pseudo labels {kind!r}: use soft or hard")
    if temperature == 1.0:
        return probabilities
    return (probabilities.clamp_min(1e-30).log() / temperature).softmax(dim=1)


def label(teacher: Checkpoint, pool: ImageSet, out: str, how: Labelling, *, seed: int = 0,
          machine: devices.Machine, held_out: frozenset[bytes] | None = None,
          images_of: str | None = None, shard: str | None = None,
          batch_size: int | None = None, progress: str | None = "labelling") -> PseudoLabels:
    """Algorithm 1, step 2: label a pool, filter and balance, and keep it all in the folder `out`.

    What exists is not made again; InputError if made with another teacher, pool or settings.

    Args:
        seed: decides the duplicates, and the noise of a noised teacher.
        held_out: see `predict`; in pass 1 these images get a confidence of zero.
        images_of: earlier labels, whose images alone are labelled again, as the authors do.
        shard: "i/n" labels only shard i of n; raises label_store.Unfinished if others are missing.
    """
    batch_size = batch_size or reading.size_for(teacher.image_size)
    # paper: gives no strength; here: the teacher's RandAugment, but no crop, flip or extra Cutout.
    # paper: an un-noised B0 selects; here: a noised teacher selects, too, with noise of its own.
    noise = augment.RandAugment(*teacher.rand_augment) if how.noised_teacher else None
    settings = asdict(how) | {
        "teacher": fingerprint(teacher), "rand_augment": teacher.rand_augment,
        "image_size": teacher.image_size, "batch_size": batch_size, "seed": seed,
        "held_out": files.digest(*sorted(held_out or ()))}
    store = label_store.LabelStore(out, pool, settings, images_of, shard, progress)
    if store.complete():
        return store.finish()
    run_teacher = partial(predict_parts, teacher.network().to(machine.device), noise=noise,
                          image_size=teacher.image_size, batch_size=batch_size,
                          device=machine.device, workers=machine.workers)
    if images_of is None:  # else the store copies that choice of images
        confidence, guess = store.fill(
            "pass 1", ("confidence", "class"), lambda rows: rows.max(dim=1), len(pool),
            partial(run_teacher, pool, seed=(seed, 1), held_out=held_out))

    def choose() -> np.ndarray:  # unreadable and held-out images have a confidence of zero
        per_class = how.per_class or max(1, np.count_nonzero(confidence) // len(pool.classes))
        return select(
            confidence, guess, len(pool.classes), how.threshold, per_class, seed, how.balance)

    selected = pool.subset(torch.tensor(store.once(choose)))  # without the copies
    # authors: targets in float32; here: float16, in which entries below 3e-8 become 0.
    store.fill(
        "pass 2", ("targets", "target_class"),
        lambda rows: (make_targets(rows, how.kind, how.temperature).half(), rows.argmax(dim=1)),
        len(selected), partial(run_teacher, selected, seed=(seed, 2)))
    return store.finish()


@dataclass(frozen=True)
class Flags:
    """Label a pool of images with a teacher; filter and balance the labels"""

    teacher: cli.File  # checkpoint of train.py or iterate.py
    unlabeled: cli.Folder  # images, nested as you like
    out: cli.Folder | None = None  # where the labels go, for train.py
    csv: cli.File | None = None  # only list the teacher's predictions for each image
    top: cli.Count = 1  # classes listed for each image, with --csv
    held_out: list[cli.Folder] | None = None  # validation and test images, which are left out
    seed: cli.Whole = 0  # decides the duplicates and a noised teacher's noise
    images_of: cli.Folder | None = None  # label only the images that these earlier labels chose
    shard: Annotated[str, "I/N"] | None = None  # only shard I of N, from 0; run once a pass
    batch_size: cli.Batch | None = None  # images (default: 500 up to 128 pixels, else fewer)


def main(flags: Flags, how: cli.Given[Labelling],
         machine: Annotated[devices.Machine, "device", "workers", "megapixels"]) -> None:
    teacher, machine = Checkpoint.load(flags.teacher), machine.chosen()
    pool, held_out = sources.read_unlabeled(flags, how, teacher.classes, machine.workers)
    if flags.csv:
        return predictions.write(flags.csv, flags.top, pool, predict_parts, teacher, machine)
    try:
        labels = label(teacher, pool, flags.out, Labelling(**how), seed=flags.seed, machine=machine,
                       held_out=held_out, images_of=flags.images_of, shard=flags.shard,
                       batch_size=flags.batch_size)
    except label_store.Unfinished as missing:
        return print(missing)
    if devices.rank() == 0:
        print("{unique:,} of {pool:,} images kept, of {confident:,} over the threshold; counts by "
              "class:".format(**labels.counts), f"{flags.out}/labels.json")


if __name__ == "__main__":
    sys.exit(cli.run(main))
