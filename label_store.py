"""A folder of pseudo labels: filled by many processes, complete at once or refused.

    index.npy, targets.npy, selection.npy    see PseudoLabels
    confidence.npy, class.npy                of every image of the pool, from pass 1
    target_class.npy                         (U,) largest entry of the targets, from pass 2
    labels.json                              settings, counts, accuracy; written last
    progress/                                what is done, until then

pseudo_label.py says what is in them and in which order they are made.
"""

import hashlib
import json
import os
import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn
from tqdm import tqdm

import data
import device as devices
from data import ImageSet, InputError


@dataclass(frozen=True)
class PseudoLabels:
    """The selected images of a pool with their targets, as a student trains on them."""

    index: np.ndarray  # (U,) int64: the selected images, rising positions in the pool
    targets: np.ndarray  # (U, num_classes) float16
    selection: np.ndarray  # (K,) int64: rows of both in the order of `select`, with duplicates
    counts: dict  # images: pool, confident, unique, balanced; of_no_class, left_out if there are
    top1: float | None  # accuracy in percent of the unique ones whose true class is known
    per_class: dict  # the same counts by class


def read_labels(folder: str | Path, settings: dict | None = None) -> PseudoLabels:
    """The pseudo labels of a folder, the arrays memory-mapped.

    Raises InputError if they are not complete, or made with other settings than these.
    """
    folder = Path(folder)
    try:
        known = read_settings(folder / "labels.json", settings or {})
        unique, balanced = known["counts"]["unique"], known["counts"]["balanced"]
        shapes = {"index": (unique,), "targets": (unique, len(known["settings"]["classes"])),
                  "selection": (balanced,)}
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in shapes}
        for name, shape in shapes.items():
            if arrays[name].shape != shape:
                raise ValueError(f"{name}.npy has the shape {arrays[name].shape}, not {shape}")
        return PseudoLabels(counts=known["counts"], top1=known["top1"],
                            per_class=known["per_class"], **arrays)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder} holds no complete pseudo labels ({error}): delete it and run "
                         "pseudo_label.py again") from None


# ------------------------------------------------------------------ what they are labels of


def pool_settings(pool: ImageSet) -> dict:
    """What tells one pool from another: a hash of its images (or file names), and its classes."""
    digest = hashlib.blake2b(digest_size=16)
    if pool.pixels is not None:
        digest.update(pool.pixels.numpy())
    for first in range(0, len(pool.files), 2**16):
        digest.update(os.fsencode("\n".join(pool.files[first: first + 2**16])) + b"\n")
    return {"pool": digest.hexdigest(), "classes": list(pool.classes)}


def teacher_hash(network: nn.Module) -> str:
    """A hash of a network's weights."""
    digest = hashlib.blake2b(digest_size=16)
    for value in network.state_dict().values():
        digest.update(value.cpu().numpy().tobytes())
    return digest.hexdigest()


def read_settings(path: Path, settings: dict) -> dict:
    """The JSON file `path` of a folder; InputError if its settings are not these."""
    known = json.loads(path.read_text())
    for key, value in settings.items():
        if (found := known["settings"].get(key)) != value:
            raise InputError(f"{path} is of {key} {found!r:.70}, not {value!r:.70}: give what it "
                             "is of, or label again into another folder")
    return known


def write(path: Path, contents: dict | np.ndarray) -> None:
    """A JSON or .npy file, complete or not there; several shards may write the same one at once."""
    own = path.with_name(f"{path.name}-{platform.node()}-{os.getpid()}")
    if isinstance(contents, dict):
        data.write_json(own, contents)
    else:
        data.write_atomically(own, lambda file: np.save(file, contents))
    os.replace(own, path)


def claim(folder: Path, settings: dict) -> None:
    """Begin labels of these settings, or go on with them; InputError if others were begun."""
    path = folder / "progress" / "settings.json"
    try:
        begun = bool(read_settings(path, settings))
    except OSError:  # nothing was begun, or another shard has just completed it
        begun = (folder / "labels.json").exists()
    if not begun and devices.rank() == 0:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            for name in ("index", "selection"):  # of labels whose labels.json was removed
                (folder / f"{name}.npy").unlink(missing_ok=True)
        except OSError as error:
            raise InputError(f"{folder}: not made ({error}); choose another place") from None
        write(path, {"settings": settings})
    devices.wait_for_all()


# ------------------------------------------------------------------ arrays that many processes fill


def write_rows(path: Path, rows: np.ndarray, first: int, total: int) -> None:
    """Put rows first, first + 1, ... of an array of `total` rows into its file, and on the disk.

    Each process writes its own bytes and the same header. (A memory map would write whole pages,
    and with them the rows of others as this machine saw them last.)
    """
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT, 0o666), "wb") as file:
            header = np.lib.format.header_data_from_array_1_0(rows)
            np.lib.format.write_array_header_1_0(file, header | {"shape": (total, *rows.shape[1:])})
            file.seek(first * rows[0].nbytes, os.SEEK_CUR)
            file.write(rows.tobytes())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise InputError(f"{path}: not written ({error}); make room or choose another place"
                         ) from None


def fill(folder: Path, step: str, total: int, batch_size: int, shard: tuple[int, int],
         make: Callable[[int, int], dict[str, np.ndarray]], progress: str | None) -> bool:
    """Fill arrays of `total` rows, of which make(first, last) makes a part: file name -> rows.

    The rows are cut into chunks, of which shard i of n makes the i-th, the (i + n)-th, ... A chunk
    is done when its rows are on the disk and then, as a mark of that, an empty file: it is never
    made again. True if all chunks are done; otherwise the missing shards are named on stdout.
    """
    complete = folder / "labels.json"  # another shard may write it, and remove the marks, any time
    # About a hundred chunks, so that little is lost, but of no more than a hundred batches each.
    size = batch_size * min(max(total // (100 * batch_size), 1), 100)
    bounds = [*range(0, max(total - size, 0) + 1, size), total]  # the last one takes the rest, too
    marks = [folder / "progress" / f"{step}-{chunk:06}" for chunk in range(len(bounds) - 1)]
    parts = [(marks[chunk], *bounds[chunk: chunk + 2])
             for chunk in range(shard[0], len(marks), shard[1])]
    with tqdm(desc=f"{progress}, {step}", total=sum(last - first for _, first, last in parts),
              unit=" images", disable=progress is None or devices.rank() > 0) as bar:
        for mark, first, last in parts:
            if not mark.exists() and not complete.exists():
                for array, rows in make(first, last).items():
                    write_rows(folder / f"{array}.npy", rows, first, total)
                data.write_atomically(mark, lambda file: None)
            bar.update(last - first)
    devices.wait_for_all()
    missing = {chunk % shard[1] for chunk, mark in enumerate(marks) if not mark.exists()}
    if not missing or complete.exists():
        return True
    print(f"{folder}: {step} of shard {shard[0]}/{shard[1]} is done, that of "
          f"{', '.join(map(str, sorted(missing)))} is missing: run them, then this one again")
    return False


# ------------------------------------------------------------------ which images, and how many

CHOOSING = "threshold", "per_class", "balance", "seed", "held_out"  # settings of the choice

def write_selection(folder: Path, chosen: np.ndarray, total: int) -> None:
    """Store what `select` chose of `total` images: each one once, and the rows to train on."""
    used = np.zeros(total, bool)
    used[chosen] = True
    for name, rows in ("index", np.flatnonzero(used)), ("selection", used.cumsum()[chosen] - 1):
        write(folder / f"{name}.npy", rows)


def selection_settings(folder: Path, pool: ImageSet) -> dict:
    """The settings by which complete labels of this pool were chosen, and their teacher."""
    read_labels(folder, pool_settings(pool))
    chosen_by = read_settings(folder / "labels.json", {})["settings"]
    return {key: chosen_by[key] for key in CHOOSING} | {"images_of": chosen_by["teacher"]}


def copy_selection(source: Path, folder: Path) -> None:
    """Take over which images to train on."""
    for name in ("confidence", "class", "index", "selection"):  # in this order: see `label`
        write(folder / f"{name}.npy", np.load(source / f"{name}.npy", mmap_mode="r"))


def complete(folder: Path, pool: ImageSet, settings: dict) -> None:
    """Count, and write labels.json."""
    arrays = ("confidence", "class", "index", "selection", "target_class")
    confidence, guess, index, selection, label = (
        np.load(folder / f"{name}.npy", mmap_mode="r") for name in arrays
    )
    labelled = confidence > 0  # zero: a file that cannot be read, or a held-out image
    stages = {"pool": guess[labelled], "confident": guess[confidence > settings["threshold"]],
              "unique": guess[index], "balanced": guess[index[selection]]}
    counts, truth = {name: len(stage) for name, stage in stages.items()}, pool.labels.numpy()
    if (truth == data.NO_CLASS).any():
        counts["of_no_class"] = int((truth[index] == data.NO_CLASS).sum())
    left_out = [pool.files[i] for i in np.flatnonzero(~labelled)]
    if left_out:
        counts["left_out"] = len(left_out)
        tqdm.write(f"{len(left_out)} files left out, unreadable or equal to held-out images: "
                   + data.first_names(left_out))
    right = (label == truth[index])[truth[index] >= 0]
    per_class = {name: np.bincount(stage, minlength=len(pool.classes)).tolist()
                 for name, stage in stages.items()}
    empty = [name for name, n in zip(pool.classes, per_class["unique"], strict=True) if n == 0]
    if empty:
        tqdm.write(f"no pseudo label for {', '.join(empty)}: the student learns these classes "
                   "from the labels alone")
    write(folder / "labels.json", {
        "settings": settings, "counts": counts,
        "top1": 100 * float(right.mean()) if len(right) else None, "per_class": per_class,
        "left_out": left_out,
    })
    shutil.rmtree(folder / "progress", ignore_errors=True)
