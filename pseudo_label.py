"""Pseudo labels: the clean teacher's predictions, filtered and balanced (section 3.1).

    teacher -> probabilities of every unlabelled image      predict
    -> images it is sure of, equally many a class           select
    -> soft or hard targets for the student                 make_targets

The teacher is never noised: evaluation mode, its averaged weights, centre-cropped images
("a normal (i.e., not noised) teacher model", Algorithm 1, step 2).

    python pseudo_label.py --teacher teacher.pt --unlabeled DIR --out LABELS

writes LABELS/index.npy (K,), LABELS/targets.npy (K, num_classes) float16 and LABELS/labels.json.
"""


import argparse
import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

import augment
import data
import device as devices
import model
from data import ImageSet, InputError


def load_teacher(path: str | Path, device: torch.device) -> tuple[model.EfficientNet, dict]:
    """The network of a checkpoint of train.py, in evaluation mode, and what is known of it.

    The description holds "config", "classes", "name", "val_top1" and "step". Raises InputError if
    there is no such file or it is something else: never a network with random weights.
    """
    try:
        network, known = model.load_checkpoint(path)
    except ValueError as error:
        raise InputError(str(error)) from None
    if known["classes"] is None:
        raise InputError(f"{path} does not name its classes: label with a checkpoint of train.py")
    return network.to(device), known


@torch.no_grad()
def predict(network: nn.Module, images: ImageSet | Tensor, image_size: int | None = None,
            batch_size: int = 500, device: torch.device | str = "cpu", workers: int = 2,
            progress: str | None = None) -> Tensor:
    """Class probabilities of clean images: step 2 of Algorithm 1.

    The network is put into evaluation mode and back afterwards, so a student in training keeps
    its noise.

    Args:
        images: an ImageSet, or (M, 3, H, W) uint8.
        image_size: side of the centre crop of images read from files, in pixels.
        progress: name of a progress bar; None: no bar.

    Returns:
        (M, num_classes) float32 on the CPU; the rows sum to one.
    """
    if isinstance(images, Tensor):
        images = ImageSet(torch.full((len(images),), data.UNKNOWN), (), images)
    if images.pixels is not None:
        image_size = images.pixels.shape[-1]
    device = torch.device(device)
    order = torch.arange(len(images)).split(batch_size)
    batches = data.read_batches(images, order, image_size, train=False, workers=workers)
    modes = {module: module.training for module in network.modules()}
    network.eval()
    probabilities = []
    try:
        for batch in tqdm(batches, progress, len(order), unit="batch", disable=progress is None):
            batch = augment.normalize(devices.place(batch, device))
            logits = network(batch.contiguous(memory_format=torch.channels_last))
            probabilities.append(logits.float().softmax(dim=1).cpu())
    finally:
        for module, mode in modes.items():
            module.training = mode
    return torch.cat(probabilities)


def select(confidence: np.ndarray, label: np.ndarray, num_classes: int, threshold: float = 0.3,
           per_class: int = 130_000, seed: int = 0, balance: bool = True) -> np.ndarray:
    """Which images to train on, and how often: the filter and the balance of section 3.1.

    "We then select images that have confidence of the label higher than 0.3. For each class, we
    select at most 130K images that have the highest confidence. Finally, for classes that have
    less than 130K images, we duplicate some images at random so that each class can have 130K."

    Duplicates are as even as can be: of n images of a class each comes per_class // n times, and a
    random per_class % n of them once more. A class without any candidate is left out.

    Args:
        confidence: (M,) largest probability of each image.
        label: (M,) class of that probability.
        threshold: keep confidences above it; 0 keeps all.
        per_class: images of each class after balancing.
        balance: False keeps every confident image once.

    Returns:
        (K,) int64, sorted by class and, inside a class, by falling confidence (ties by index).

    Raises:
        ValueError: a confidence is NaN.
    """
    confidence, label = np.asarray(confidence), np.asarray(label)
    if len(bad := np.flatnonzero(np.isnan(confidence))):
        raise ValueError(f"the confidence of image {bad[0]} is NaN: the teacher is broken")
    candidates = np.flatnonzero(confidence > threshold)
    order = np.lexsort((candidates, -confidence[candidates], label[candidates]))
    candidates = candidates[order]
    if not balance:
        return candidates.astype(np.int64)
    bounds = np.searchsorted(label[candidates], np.arange(num_classes + 1))
    random, chosen = np.random.default_rng(seed), []
    for first, last in zip(bounds[:-1], bounds[1:], strict=True):
        images = candidates[first: min(last, first + per_class)]
        if len(images) == 0:
            continue
        copies = np.full(len(images), per_class // len(images))
        copies[random.permutation(len(images))[: per_class % len(images)]] += 1
        chosen.append(np.repeat(images, copies))
    return np.concatenate(chosen or [candidates]).astype(np.int64)


def make_targets(probabilities: Tensor, kind: str = "soft", temperature: float = 1.0) -> Tensor:
    """Targets (K, num_classes) for the student from the teacher's probabilities.

    "soft": the distribution itself, at another temperature p^(1/T) / sum p^(1/T) if asked for.
    "hard": one-hot at its largest entry.
    """
    if kind == "hard":
        return torch.nn.functional.one_hot(
            probabilities.argmax(1), probabilities.shape[1]
        ).to(probabilities.dtype)
    if kind != "soft":
        raise ValueError(f"unknown kind of pseudo labels {kind!r}: use soft or hard")
    if temperature == 1.0:
        return probabilities
    return (probabilities.clamp_min(1e-30).log() / temperature).softmax(dim=1)


# ------------------------------------------------------------------ a pool, labelled and stored


@dataclass(frozen=True)
class PseudoLabels:
    """The selected images of a pool with their targets, as a student trains on them."""

    index: np.ndarray  # (K,) int64 into the pool, duplicates included
    targets: np.ndarray  # (K, num_classes) float16
    counts: dict  # images: pool, confident, unique, balanced; of_no_class where that is known
    top1: float | None  # accuracy in percent of the unique ones whose true class is known
    per_class: dict  # class -> images labelled so: before the filter, after it, after balancing


def write_labels(folder: Path, labels: PseudoLabels, settings: dict) -> None:
    """Store pseudo labels; labels.json comes last, so a folder that has it is complete."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("index", "targets"):
        array = getattr(labels, name)
        data.write_atomically(folder / f"{name}.npy", lambda file, a=array: np.save(file, a))
    described = {"settings": settings, "counts": labels.counts, "top1": labels.top1,
                 "per_class": labels.per_class}
    text = json.dumps(described, indent=1).encode()
    data.write_atomically(folder / "labels.json", lambda file: file.write(text))


def read_labels(folder: str | Path, settings: dict | None = None) -> PseudoLabels:
    """Read what write_labels stored, the arrays memory-mapped.

    Raises InputError if the folder is incomplete, or made with other settings than these.
    """
    folder = Path(folder)
    if not (folder / "labels.json").is_file():
        raise InputError(f"{folder} holds no complete pseudo labels: run pseudo_label.py again")
    described = json.loads((folder / "labels.json").read_text())
    for key, value in (settings or {}).items():
        if described["settings"].get(key) != value:
            raise InputError(
                f"{folder} was made with {key} {described['settings'].get(key)!r}, not {value!r}: "
                "label again into another folder"
            )
    index, targets = (
        np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("index", "targets")
    )
    return PseudoLabels(index, targets, described["counts"], described["top1"],
                        described["per_class"])


def pool_settings(pool: ImageSet) -> dict:
    """What tells one pool from another: a hash of its images (or file names), and its classes."""
    if pool.pixels is None:
        contents = "\n".join(pool.files).encode()
    else:
        contents = pool.pixels.numpy().tobytes()
    return {"pool": hashlib.blake2b(contents, digest_size=16).hexdigest(),
            "classes": list(pool.classes)}


def teacher_hash(network: nn.Module) -> str:
    """A hash of a network's weights."""
    digest = hashlib.blake2b(digest_size=16)
    for value in network.state_dict().values():
        digest.update(value.cpu().numpy().tobytes())
    return digest.hexdigest()


def label(network: nn.Module, pool: ImageSet, out: str | Path, *, image_size: int,
          kind: str = "soft", temperature: float = 1.0, threshold: float = 0.3,
          per_class: int = 130_000, balance: bool = True, seed: int = 0,
          device: torch.device | str = "cpu", workers: int = 2,
          progress: str | None = "labelling") -> PseudoLabels:
    """Label a pool with a clean teacher, select and balance, store it all in `out`.

    Labels that are there already, of the same teacher, pool and settings, are read instead. A
    class without any confident image is named in a warning and left out.

    Raises InputError when no image is confident, or when `out` holds other labels.
    """
    settings = pool_settings(pool) | {
        "teacher": teacher_hash(network), "image_size": image_size, "kind": kind,
        "temperature": temperature,
        "threshold": threshold, "per_class": per_class, "balance": balance, "seed": seed,
    }
    if (Path(out) / "labels.json").exists():
        return read_labels(out, settings)
    probabilities = predict(network, pool, image_size, device=device, workers=workers,
                            progress=progress)
    confidence, guess = (values.numpy() for values in probabilities.max(1))
    index = select(confidence, guess, len(pool.classes), threshold, per_class, seed, balance)
    if len(index) == 0:
        raise InputError(
            f"no unlabelled image has a confidence over {threshold} (the largest is "
            f"{confidence.max():.3f}): train the teacher longer, or lower the threshold"
        )
    unique, known = np.unique(index), pool.labels.numpy()
    counts = {"pool": len(pool), "confident": int((confidence > threshold).sum()),
              "unique": len(unique), "balanced": len(index)}
    if (known == data.NO_CLASS).any():
        counts["of_no_class"] = int((known[unique] == data.NO_CLASS).sum())
    with_truth = unique[known[unique] >= 0]
    top1 = None
    if len(with_truth):
        top1 = 100 * float((guess[with_truth] == known[with_truth]).mean())
    stages = {"pool": guess, "confident": guess[confidence > threshold], "balanced": guess[index]}
    per_stage = {
        stage: np.bincount(labels, minlength=len(pool.classes)).tolist()
        for stage, labels in stages.items()
    }
    empty = [name for name, n in zip(pool.classes, per_stage["balanced"], strict=True) if n == 0]
    if empty:
        tqdm.write(f"no pseudo label for {', '.join(empty)}: the student learns these classes "
                   "from the labels alone")
    targets = make_targets(probabilities[index], kind, temperature).half().numpy()
    labels = PseudoLabels(index, targets, counts, top1, per_stage)
    write_labels(Path(out), labels, settings)
    return read_labels(out, settings)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Label a pool of images with a teacher; filter and balance the labels."
    )
    add = parser.add_argument
    add("--teacher", required=True, metavar="FILE", help="checkpoint of train.py or iterate.py")
    add("--unlabeled", required=True, metavar="DIR", help="images, nested as you like")
    add("--out", required=True, metavar="DIR", help="where the labels go, for train.py")
    add("--kind", choices=("soft", "hard"), default="soft")
    add("--temperature", type=float, default=1.0, help="of soft labels; below 1 they are sharper")
    add("--threshold", type=float, default=0.3, help="confidence to exceed; 0 keeps every image")
    add("--per-class", type=int, help="images of each class after balancing (default: the pool's "
        "size over the number of classes; the paper: 130,000)")
    add("--balance", action=argparse.BooleanOptionalAction, default=True)
    add("--seed", type=int, default=0, help="of the duplicates")
    add("--device", choices=devices.NAMES, default="auto")
    add("--workers", type=int, default=2, help="processes that decode images")
    arguments = vars(parser.parse_args(argv))
    try:
        try:
            device = devices.choose(arguments.pop("device"))
        except ValueError as error:
            raise InputError(str(error)) from None
        teacher, known = load_teacher(arguments.pop("teacher"), device)
        size = known["config"]["image_size"]
        pool = data.read_pool(arguments.pop("unlabeled"), size, tuple(known["classes"]))
        arguments["per_class"] = arguments["per_class"] or len(pool) // len(pool.classes) or 1
        labels = label(teacher, pool, image_size=size, device=device, **arguments)
    except InputError as error:
        print(f"pseudo_label.py: {error}", file=sys.stderr)
        return 2
    print(", ".join(f"{name} {count:,}" for name, count in labels.counts.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
