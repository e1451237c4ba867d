"""Pseudo labels: the clean teacher's predictions, filtered and balanced (section 3.1).

The paper labels 300 M images and trains on 81 M of them. The probabilities of all 300 M would fill
600 GB (in float16), so the teacher goes over the pool twice:

    pass 1    confidence and class of every image                    predict
    between   the images it is sure of, equally many a class         select
    pass 2    soft or hard targets of the selected images alone      make_targets

The teacher is never noised: evaluation mode, its averaged weights, centre-cropped images ("a normal
(i.e., not noised) teacher model", Algorithm 1, step 2); --noised-teacher is table 6's ablation.

    python pseudo_label.py --teacher teacher.pt --unlabeled POOL --held-out VAL TEST --out LABELS

Killed at any moment, the same command continues. XLA uses all devices of a host by itself. The GPUs
of a machine, or jobs that only share a disk (--shard 0/8, 1/8, ... 7/8), divide the pool:

    torchrun --nproc-per-node 8 pseudo_label.py ...
    python pseudo_label.py ... --shard 0/8

All shards run once for pass 1 and once more for pass 2, at the same time or not. Each says which
others are missing; the last one completes the folder LABELS (label_store.py), for train.py to read.
"""

import argparse
import hashlib
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

import augment
import data
import device as devices
import label_store
import model
from data import ImageSet, InputError
from label_store import PseudoLabels, pool_settings, read_labels, teacher_hash


def load_teacher(path: str | Path, device: torch.device) -> tuple[model.EfficientNet, dict]:
    """The network of a checkpoint, in evaluation mode, and what is known of it; or InputError."""
    try:
        network, known = model.load_checkpoint(path)
    except ValueError as error:
        raise InputError(str(error)) from None
    if known["classes"] is None:
        raise InputError(f"{path} does not name its classes: label with a checkpoint of train.py")
    return network.to(device), known


def noise_of(known: dict) -> augment.RandAugment:
    """Table 6, "teacher w. Aug, SD, Dropout": the RandAugment of the teacher's own training.

    paper: whose magnitude is not said; here: crops and flips are left out, and teachers that were
    trained without RandAugment (B0, B1) have dropout and stochastic depth alone.
    """
    return augment.RandAugment(known["config"]["rand_augment_operations"],
                               known["config"]["rand_augment_magnitude"])


def batch_size_for(image_size: int) -> int:
    """How many images to predict together: 500 of 128x128 pixels, of larger ones fewer.

    So L2's largest map at 800 pixels, 276 MB an image, takes 3 GB, and B0's at 224 less than 1 GB.
    """
    return max(1, 500 * 128**2 // max(128, image_size)**2)


@torch.no_grad()
def predict(network: nn.Module, images: ImageSet | Tensor, image_size: int | None = None,
            batch_size: int | None = None, device: torch.device | str = "cpu", workers: int = 2,
            progress: str | None = None, noise: augment.RandAugment | None = None,
            seed: tuple[int, ...] = (), held_out: frozenset[bytes] | None = None) -> Tensor:
    """Class probabilities of clean images: step 2 of Algorithm 1.

    Every module is in evaluation mode meanwhile, and in its own mode afterwards: a student in
    training keeps its noise.

    Args:
        images: an ImageSet, or (M, 3, H, W) uint8.
        image_size: side of the centre crop of images read from files, in pixels.
        batch_size: images of a forward pass; None: what `batch_size_for` says.
        progress: name of a progress bar; None: no bar.
        noise: of a noised teacher's images; its dropout and stochastic depth are then on, too. All
            chance comes from `seed`; torch's own random numbers stay as they are.
        held_out: fingerprints of images that must not be labelled, for files that nobody has opened
            yet; None: an unreadable file is an InputError.

    Returns:
        (M, num_classes) float32 on the CPU; the rows sum to one, those of unreadable files and of
        held-out images to zero.
    """
    if isinstance(images, Tensor):
        images = ImageSet(torch.full((len(images),), data.UNKNOWN), (), images)
    if images.pixels is not None:
        image_size = images.pixels.shape[-1]
    device = torch.device(device)
    size = min(batch_size or batch_size_for(image_size), len(images))
    size += -size % devices.mesh_size(device)
    gpus = [device] if device.type == "cuda" else []
    order = torch.arange(len(images)).split(size)
    if held_out is None:
        batches = data.read_batches(images, order, image_size, train=False, workers=workers)
    else:
        batches = data.inspect_batches(images, order, image_size, held_out, workers)
    bar = tqdm(batches, progress, len(order), unit="batch", disable=progress is None)
    modes = {module: module.training for module in network.modules()}
    probabilities, usable = [], []
    try:
        for module in modes:  # BatchNorm never: statistics of a batch are no noise
            module.training = noise is not None and not isinstance(module, nn.BatchNorm2d)
        for number, batch in enumerate(bar):
            if held_out is not None:
                usable.append(batch[1])
                batch = batch[0]
            if len(batch) < size:  # the last one: filled up, so that XLA compiles once
                batch = F.pad(batch, (0, 0) * 3 + (0, size - len(batch)))
            batch = devices.place(batch, device)
            with torch.random.fork_rng(gpus, enabled=noise is not None):
                if noise is not None:
                    chance = np.random.SeedSequence((*seed, number)).generate_state(1)
                    devices.manual_seed(int(chance[0]), device)
                    batch = noise(batch)
                batch = augment.normalize(batch).contiguous(memory_format=torch.channels_last)
                probabilities.append(devices.collect(network(batch).float().softmax(dim=1)))
            devices.finish_step(device)
            if number:  # fetched one batch late: the device works on the next one meanwhile
                probabilities[-2] = probabilities[-2].cpu()
    finally:
        for module, mode in modes.items():
            module.training = mode
    probabilities = torch.cat([batch.cpu() for batch in probabilities])[: len(images)]
    if usable:
        probabilities[~torch.cat(usable)] = 0
    return probabilities


BLOCK = 2**22  # images that `select` looks at together: some 100 MB of temporary arrays


def select(confidence: np.ndarray, label: np.ndarray, num_classes: int, threshold: float = 0.3,
           per_class: int = 130_000, seed: int = 0, balance: bool = True) -> np.ndarray:
    """Which images to train on, and how often: the filter and the balance of section 3.1.

    "We then select images that have confidence of the label higher than 0.3. For each class, we
    select at most 130K images that have the highest confidence. Finally, for classes that have
    less than 130K images, we duplicate some images at random so that each class can have 130K
    images."

    Duplicates are as even as can be: of n images of a class each comes per_class // n times, and a
    random per_class % n of them once more. A class without any candidate is left out.

    Args:
        confidence, label: (M,) largest probability of each image, and its class.
        threshold: keep confidences above it; 0 keeps all.
        balance: False keeps every confident image once.

    Returns:
        (K,) int64, sorted by class and, inside a class, by falling confidence (ties by index).
        ValueError if a confidence is NaN or a label no class.
    """
    confidence, label = np.asarray(confidence), np.asarray(label)
    if (broken := np.isnan(confidence)).any():
        raise ValueError(f"the confidence of image {broken.argmax()} is NaN: the teacher is broken")
    if len(label) and not 0 <= label.min() <= label.max() < num_classes:
        raise ValueError(f"labels {label.min()} to {label.max()} are not of {num_classes} classes")
    wanted = per_class if balance else len(confidence)

    # The candidates' indices by class. The sort is stable, so they stay in order within a class,
    # and linear, as numpy sorts integers of 16 bits.
    gathered, small = [], np.min_scalar_type(len(confidence))
    for first in range(0, len(confidence), BLOCK):
        images = np.flatnonzero(confidence[first: first + BLOCK] > threshold)
        classes = label[first: first + BLOCK][images].astype(np.min_scalar_type(num_classes))
        ends = np.bincount(classes, minlength=num_classes).cumsum()
        images = (images[classes.argsort(kind="stable")] + first).astype(small)
        gathered.append(np.split(images, ends[:-1]))

    def most_confident(parts: tuple[np.ndarray, ...]) -> np.ndarray:
        images = np.concatenate(parts)
        values = confidence[images]
        if len(images) > wanted:  # drop what is below the cut-off: finding it is linear, too
            above = values >= np.partition(values, -wanted)[-wanted]
            images, values = images[above], values[above]
        return images[(-values).argsort(kind="stable")[:wanted]]

    random, chosen = np.random.default_rng(seed), [np.zeros(0, small)]
    with ThreadPoolExecutor() as threads:
        for images in threads.map(most_confident, zip(*gathered, strict=True)):
            if balance and len(images):
                copies = np.full(len(images), per_class // len(images))
                copies[random.permutation(len(images))[: per_class % len(images)]] += 1
                images = np.repeat(images, copies)
            chosen.append(images)
    return np.concatenate(chosen).astype(np.int64)


def make_targets(probabilities: Tensor, kind: str = "soft", temperature: float = 1.0) -> Tensor:
    """Targets (K, num_classes) for the student from the teacher's probabilities.

    "soft": the distribution itself, at another temperature p^(1/T) / sum p^(1/T) if asked for.
    "hard": one-hot at its largest entry.
    """
    if kind == "hard":
        return F.one_hot(probabilities.argmax(1), probabilities.shape[1]).to(probabilities.dtype)
    if kind != "soft":
        raise ValueError(f"unknown kind of pseudo labels {kind!r}: use soft or hard")
    if temperature == 1.0:
        return probabilities
    return (probabilities.clamp_min(1e-30).log() / temperature).softmax(dim=1)


def choose_images(out: Path, settings: dict) -> None:
    """Between the passes: `select`, by what pass 1 wrote."""
    confidence, guess = np.load(out / "confidence.npy"), np.load(out / "class.npy")
    threshold, *how = (settings[key] for key in ("threshold", "per_class", "seed", "balance"))
    try:
        chosen = select(confidence, guess, len(settings["classes"]), threshold, *how)
    except ValueError as error:
        raise InputError(str(error)) from None
    if len(chosen) == 0:
        raise InputError(f"no unlabelled image has a confidence over {threshold} (the largest is "
                         f"{confidence.max():.3f}): train the teacher longer, or lower this")
    label_store.write_selection(out, chosen, len(confidence))


def label(network: nn.Module, pool: ImageSet, out: str | Path, *, image_size: int,
          kind: str = "soft", temperature: float = 1.0, threshold: float = 0.3,
          per_class: int = 130_000, balance: bool = True, seed: int = 0,
          batch_size: int | None = None, noise: augment.RandAugment | None = None,
          images_of: str | Path | None = None, held_out: frozenset[bytes] | None = None,
          shard: tuple[int, int] | None = None, device: torch.device | str = "cpu",
          workers: int = 2, progress: str | None = "labelling") -> PseudoLabels | None:
    """Label a pool with a clean teacher, select and balance, store it all in `out`.

    What is there already, of the same teacher, pool and settings, is not made again. A class
    without any confident image is named in a warning and left out.

    Args:
        noise: RandAugment of a noised teacher, for the ablation of table 6: see `predict`.
        images_of: earlier labels of this pool; their images are labelled again, none are chosen,
            and threshold, per_class, balance, seed and held_out are those of the earlier choice.
        held_out: for a pool of files that nobody has opened yet, see `predict`: they are decoded
            in the first pass, and what must or can not be labelled is left out then, with a
            confidence of zero.
        shard: (i, n) labels part i of n alone; the result is None while other parts are missing.

    Raises InputError when no image is confident, or when `out` holds other labels.
    """
    out, shard = Path(out), shard or (devices.rank(), devices.world_size())
    batch_size = batch_size_for(image_size) if batch_size is None else batch_size
    for name, value, possible, wanted in (
        ("per_class", per_class, per_class >= 1, "1 or more"),
        ("temperature", temperature, 0 < temperature < float("inf"), "more than 0"),
        ("threshold", threshold, 0 <= threshold < 1, "0 or more and below 1"),
        ("seed", seed, seed >= 0, "0 or more"),
        ("batch_size", batch_size, batch_size >= 1, "1 or more"),
        ("workers", workers, workers >= 0, "0 or more"),
        ("shard", f"{shard[0]}/{shard[1]}", 0 <= shard[0] < shard[1], "a part from 0/N to N-1/N"),
    ):
        if not possible:
            raise InputError(f"{name} {value}: give {wanted}")
    settings = pool_settings(pool) | {
        "teacher": teacher_hash(network), "image_size": image_size, "batch_size": batch_size,
        "noise": noise and [noise.num_ops, noise.magnitude], "kind": kind,
        "temperature": temperature, "threshold": threshold, "per_class": per_class,
        "balance": balance, "seed": seed, "images_of": None,
        "held_out": hashlib.blake2b(b"".join(sorted(held_out or ())), digest_size=16).hexdigest(),
    }
    if images_of is not None:
        settings |= label_store.selection_settings(Path(images_of), pool)
    if (out / "labels.json").exists():
        return read_labels(out, settings)
    label_store.claim(out, settings)
    small = np.int16 if len(pool.classes) <= 2**15 else np.int32

    def ask(images: ImageSet, first: int, last: int, number: int, **more) -> Tensor:
        return predict(network, images.subset(torch.arange(first, last)), image_size, batch_size,
                       device, workers, noise=noise, seed=(seed, number, first), **more)

    def confidence_and_class(first: int, last: int) -> dict[str, np.ndarray]:
        probabilities = ask(pool, first, last, 1, held_out=held_out)
        confidence, guess = (values.numpy() for values in probabilities.max(dim=1))
        return {"confidence": confidence, "class": guess.astype(small)}

    def targets(first: int, last: int) -> dict[str, np.ndarray]:
        probabilities = ask(selected, first, last, 2)
        return {"targets": make_targets(probabilities, kind, temperature).half().numpy(),
                "target_class": probabilities.argmax(dim=1).numpy().astype(small)}

    if images_of is None and not label_store.fill(
            out, "pass 1", len(pool), batch_size, shard, confidence_and_class, progress):
        return None
    if devices.rank() == 0 and not (out / "selection.npy").exists():
        if images_of is None:
            choose_images(out, settings)
        else:
            label_store.copy_selection(Path(images_of), out)
    devices.wait_for_all()
    selected = pool.subset(torch.from_numpy(np.load(out / "index.npy")))
    if not label_store.fill(out, "pass 2", len(selected), batch_size, shard, targets, progress):
        return None
    if devices.rank() == 0:
        label_store.complete(out, pool, settings)
    devices.wait_for_all()
    return read_labels(out, settings)


def main(argv: list[str] | None = None) -> int:
    def shard(text: str) -> tuple[int, int]:
        number, count = map(int, text.split("/"))
        return number, count

    parser = argparse.ArgumentParser(
        description="Label a pool of images with a teacher; filter and balance the labels."
    )
    add = parser.add_argument
    add("--teacher", required=True, metavar="FILE", help="checkpoint of train.py or iterate.py")
    add("--unlabeled", required=True, metavar="DIR", help="images, nested as you like")
    add("--held-out", nargs="+", default=[], metavar="DIR", help="folders of validation and test "
        "images: images of the pool that equal one of them are left out (section 3.1)")
    add("--out", required=True, metavar="DIR", help="where the labels go, for train.py")
    add("--kind", choices=("soft", "hard"), default="soft")
    add("--temperature", type=float, default=1.0, help="of soft labels; below 1 they are sharper")
    add("--threshold", type=float, default=0.3, help="confidence to exceed; 0 keeps every image")
    add("--per-class", type=int, help="images of each class after balancing (default: the pool's "
        "size over the number of classes; the paper: 130,000)")
    add("--balance", action=argparse.BooleanOptionalAction, default=True)
    add("--noised-teacher", action="store_true", help="label with the RandAugment, dropout and "
        "stochastic depth of the teacher's training, for comparison: these labels are worse")
    add("--seed", type=int, default=0, help="of the duplicates, and of that noise")
    add("--images-of", metavar="DIR", help="label again the images of these earlier labels, as the "
        "paper does with each better teacher")
    add("--shard", type=shard, metavar="I/N", help="label only part I, from 0, of N")
    add("--batch-size", type=int, help="images (default: 500 up to 128 pixels, fewer of "
        "larger ones)")
    add("--device", choices=devices.NAMES, default="auto")
    add("--workers", type=int, default=2, help="processes that decode images")
    arguments = vars(parser.parse_args(argv))
    try:
        for name in label_store.CHOOSING:
            if arguments["images_of"] and arguments[name] != parser.get_default(name):
                raise InputError(f"--{name.replace('_', '-')} does not go with --images-of, whose "
                                 "images are chosen already: leave it out")
        try:
            device = devices.choose(arguments.pop("device"))
        except ValueError as error:
            raise InputError(str(error)) from None
        teacher, known = load_teacher(arguments.pop("teacher"), device)
        size, classes = known["image_size"], tuple(known["classes"])
        pool = data.read_pool(arguments.pop("unlabeled"), classes)
        arguments["held_out"] = data.fingerprints(arguments["held_out"])
        if arguments["per_class"] is None:
            arguments["per_class"] = len(pool) // len(classes) or 1
        if arguments.pop("noised_teacher"):
            arguments["noise"] = noise_of(known)
        labels = label(teacher, pool, image_size=size, device=device, **arguments)
    except (InputError, OSError) as error:
        print(f"pseudo_label.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\npseudo_label.py: interrupted; the same command continues", file=sys.stderr)
        return 130
    if labels is not None and devices.rank() == 0:
        total, once, repeated = (labels.counts[name] for name in ("pool", "unique", "balanced"))
        print(f"{once:,} of {total:,} images kept, {total - once:,} dropped, {repeated - once:,} "
              f"duplicates added; by class: {arguments['out']}/labels.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
