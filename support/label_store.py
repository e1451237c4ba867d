"""A folder of pseudo labels, filled by many processes; it is read only if complete, else refused.

    confidence.npy, class.npy     (M,) of every image of the pool, from pass 1
    unique.npy                    (U,) the selected images: ascending positions in the pool
    balanced.npy                  (K,) the images to train on: rows of unique, with duplicates
    targets.npy                   (U, num_classes) float16, from pass 2
    target_class.npy              (U,) the teacher's class for each of these images
    labels.csv                    to read, and for results/: file, class, confidence, copies
    labels.json                   settings, counts, accuracy; written last
    progress/                     until then: what is done so far
"""

import json
import os
import platform
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from support import InputError, devices, files, images, predictions
from support.images import ImageSet


@dataclass(frozen=True, eq=False)
class PseudoLabels:
    """The selected images of a pool with their targets, as a student trains on them."""

    images: ImageSet  # the U unique ones
    targets: np.ndarray  # (U, num_classes) float16
    balanced: np.ndarray  # (K,) int64: rows of both, with duplicates
    kind: str = "soft"  # of the targets; "hard": only their largest entry counts
    unique: np.ndarray | None = None  # (U,) int64: ascending positions in the pool
    settings: dict = field(default_factory=dict)  # all that decided the labels; JSON-able
    counts: dict = field(default_factory=dict)  # images: pool, confident, unique, balanced, ...
    top1: float | None = None  # accuracy in percent of the unique ones whose true class is known
    per_class: dict = field(default_factory=dict)  # the same counts by class

SELECTION = "threshold", "per_class", "balance", "seed", "held_out"  # the settings of `select`


class Unfinished(Exception):
    """Other shards of this pool have not been labelled yet; the message names them."""


def read(folder: str | Path, pool: ImageSet, settings: dict | None = None) -> PseudoLabels:
    """The pseudo labels of a folder, memory-mapped; InputError if incomplete, broken, or of other
    settings or pool. (Of the targets, perhaps millions, only a few thousand are checked.)
    """
    folder, settings = Path(folder), settings or {}
    if images.OF_POOL not in settings:
        settings = images.identify(pool) | settings
    try:
        known = json.loads((folder / "labels.json").read_text())
        made_with, counts = known["settings"], known["counts"]
        shapes = {"unique": (counts["unique"],), "balanced": (counts["balanced"],),
                  "targets": (counts["unique"], len(made_with["classes"]))}
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in shapes}
        for name, shape in shapes.items():
            if arrays[name].shape != shape:
                raise ValueError(f"{name}.npy has the shape {arrays[name].shape}, not {shape}")
        facts = {key: known[key] for key in ("settings", "counts", "top1", "per_class")}
        files.require_same(folder / "labels.json", made_with, settings)
        for name, rows in ("unique", len(pool)), ("balanced", counts["unique"]):
            found = arrays[name]
            if found.dtype.kind != "i" or not 0 <= found.min() <= found.max() < rows:
                raise ValueError(f"{name}.npy must hold whole numbers from 0 to {rows - 1}")
        if not (arrays["unique"][1:] > arrays["unique"][:-1]).all():
            raise ValueError("unique.npy is not in ascending order")
        sums = arrays["targets"][:: counts["unique"] // 4096 + 1].sum(1, dtype=np.float32)
        if not np.allclose(sums, 1, atol=0.05):
            raise ValueError("targets.npy holds rows that are not probabilities")
        return PseudoLabels(pool.subset(torch.tensor(arrays["unique"])), kind=made_with["kind"],
                            **facts, **arrays)
    except InputError:
        raise
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder} holds no complete pseudo labels ({error}): the command that "
                         "began them continues; if they are broken, delete them first") from None


class LabelStore:
    """The folder while it is being filled, by this process and others.

    Args:
        folder: begun here, or continued; InputError if it was begun with other settings.
        settings: all that decides the labels, except the pool; JSON-able. Rows are made and kept in
            multiples of its "batch_size".
        images_of: earlier labels of the pool, whose choice of images is reused; or None.
        shard: "i/n": this process makes shard i of n; None: one shard for each process of torchrun.
        progress: name of the progress bars; None: no bars.
    """

    def __init__(self, folder: str | Path, pool: ImageSet, settings: dict,
                 images_of: str | Path | None = None, shard: str | None = None,
                 progress: str | None = None):
        self.folder, self.pool, self.progress = Path(folder), pool, progress
        shard = shard or f"{devices.rank()}/{devices.world_size()}"
        match = re.fullmatch(r"(\d+)/(\d+)", shard)
        self.shard = tuple(map(int, match.groups())) if match else (0, 0)
        if self.shard[0] >= self.shard[1]:
            raise InputError(f"--shard {shard}: give I/N, a shard from 0/N to N-1/N")
        self.settings = settings | (identity := images.identify(pool)) | {"images_of": None}
        self.source = images_of and Path(images_of)
        if images_of:
            earlier = read(self.source, pool, identity).settings
            self.settings |= {key: earlier[key] for key in SELECTION}
            self.settings["images_of"] = earlier["teacher"]
        if self.complete():
            return
        begun = self.folder / "progress" / "settings.json"
        try:
            files.require_same(begun, files.read_json(begun), self.settings)
        except OSError:  # nothing was begun, or another shard has just completed it
            if devices.rank() == 0 and not self.complete():
                begun.parent.mkdir(parents=True, exist_ok=True)
                for name in ("unique", "balanced"):  # left over: their labels.json was removed
                    (self.folder / f"{name}.npy").unlink(missing_ok=True)
                self._write("progress/settings.json", self.settings)
        files.require_agreement(self.settings)

    def complete(self) -> bool:
        """Whether all is done, perhaps by others. (On NFS exists() may be a minute late.)"""
        return self.folder.is_dir() and "labels.json" in os.listdir(self.folder)

    def _write(self, name: str, contents: dict | np.ndarray | Callable) -> None:
        """Write a JSON, .npy or other file, whole or not at all; other shards may, too."""
        path = self.folder / name
        own = path.with_name(f"{path.name}-{platform.node()}-{os.getpid()}")
        if isinstance(contents, dict):
            files.write_json(own, contents)
        else:
            write = contents if callable(contents) else partial(np.save, arr=contents)
            files.write_atomically(own, write)
        os.replace(own, path)

    def load(self, name: str) -> np.ndarray:
        """One of the arrays, memory-mapped."""
        return np.load(self.folder / f"{name}.npy", mmap_mode="r")

    def fill(self, step: str, names: tuple[str, ...], make: Callable[[Tensor], tuple[Tensor, ...]],
             total: int, predict: Callable[[list[range]], Iterator[Tensor]]) -> list[np.ndarray]:
        """Fill arrays of `total` rows: what `make` makes of what `predict` gives for parts of them.

        The rows are cut into chunks, of which shard i of n makes the i-th, the (i + n)-th, ... A
        chunk is done once its rows are on the disk and, after them, an empty file that marks it: it
        is never made again. Raises Unfinished while chunks of other shards are missing.
        """
        # About a hundred chunks, so that a kill loses little, but none of over a hundred batches.
        batch = self.settings["batch_size"]
        size = batch * min(max(total // (100 * batch), 1), 100)
        bounds = [*range(0, max(total - size, 0) + 1, size), total]  # the last takes the rest, too
        marks = [self.folder / "progress" / f"{step}-{n:06}" for n in range(len(bounds) - 1)]
        number, count = self.shard
        parts = [(marks[n], range(*bounds[n: n + 2])) for n in range(number, len(marks), count)]
        bar = tqdm(desc=f"{self.progress}, {step}", total=sum(len(part) for _, part in parts),
                   unit=" images", disable=self.progress is None or devices.rank() > 0)
        place = f"{self.folder}, shard {number}/{count}"
        with bar, files.lock(place, self.folder / f"{number}-of-{count}.lock"):
            due = [] if self.complete() else [one for one in parts if not one[0].exists()]
            bar.update(bar.total - sum(len(part) for _, part in due))
            predicted = predict([part for _, part in due])
            for (mark, part), probabilities in zip(due, predicted, strict=True):
                if self.complete():  # by others, who have made this part, too
                    break
                for name, rows in zip(names, make(probabilities), strict=True):
                    if rows.dtype == torch.int64:  # classes
                        rows = rows.short() if len(self.pool.classes) <= 2**15 else rows.int()
                    path = self.folder / f"{name}.npy"
                    files.write_rows(path, rows.numpy(), part.start, total)
                self._write(f"progress/{mark.name}", lambda file: None)
                bar.update(len(part))
        devices.wait_for_all()
        missing = {n % count for n, mark in enumerate(marks) if not mark.exists()}
        if missing and not self.complete():
            raise Unfinished(f"{self.folder}: {step} of shard {number}/{count} is done, but that "
                             f"of {', '.join(map(str, sorted(missing)))} is missing: run those "
                             "shards, then this one again")
        return [self.load(name) for name in names]

    def once(self, select: Callable[[], np.ndarray]) -> np.ndarray:
        """The unique images, from the positions that `select` gives: selected by one process, or
        copied from `images_of`. InputError if there are none.
        """
        if devices.rank() == 0 and not (self.folder / "balanced.npy").exists():
            if self.source:
                for name in ("confidence", "class", "unique", "balanced"):  # balanced marks the end
                    self._write(f"{name}.npy", np.load(self.source / f"{name}.npy", mmap_mode="r"))
            else:
                positions, confidence = select(), self.load("confidence")
                if not confidence.any():
                    raise InputError(f"none of the {len(confidence):,} files of the pool can be "
                                     "labelled: they are unreadable or equal to held-out images")
                if not len(positions):
                    raise InputError(
                        f"no unlabelled image has a confidence over {self.settings['threshold']} "
                        f"(the largest is {confidence.max():.3f}): with another --out lower "
                        "--threshold (in iterate.py, copy teacher.pt there), or train longer")
                used = np.zeros(len(confidence), bool)
                used[positions] = True
                self._write("unique.npy", np.flatnonzero(used))
                self._write("balanced.npy", used.cumsum()[positions] - 1)
        devices.wait_for_all()
        return self.load("unique")

    def finish(self) -> PseudoLabels:
        """Count, write labels.json, and return the labels."""
        if devices.rank() == 0 and not self.complete():
            self._write("labels.json", {"settings": self.settings} | self._count())
            shutil.rmtree(self.folder / "progress", ignore_errors=True)
        devices.wait_for_all()
        return read(self.folder, self.pool, self.settings)

    def _count(self) -> dict:
        """How many images each step kept, in all and by class, and how many labels are right."""
        confidence, guess, unique, balanced, label = map(
            self.load, ("confidence", "class", "unique", "balanced", "target_class"))
        if self.pool.files:
            self._write("labels.csv", lambda file: predictions.list_labels(
                file, self.pool, unique, balanced, label, confidence))
        usable = confidence > 0  # zero: a file that cannot be read, or a held-out image
        chosen = label if self.source else guess[unique]  # selected by another teacher's guess?
        kept = {"pool": guess[usable], "confident": guess[confidence > self.settings["threshold"]],
                "unique": chosen, "balanced": chosen[balanced]}
        counts = {name: len(classes) for name, classes in kept.items()}
        classes, truth = self.pool.classes, self.pool.labels.numpy()
        per_class = {name: np.bincount(numbers, minlength=len(classes)).tolist()
                     for name, numbers in kept.items()}
        if (truth == images.NO_CLASS).any():
            counts["of_no_class"] = int((truth[unique] == images.NO_CLASS).sum())
        lost = np.flatnonzero(~usable)
        left_out = [self.pool.files[row] for row in lost[: predictions.FOR_THE_EYE]]
        if left_out:
            counts["left_out"] = len(lost)
            tqdm.write(f"{len(lost):,} files left out, unreadable or equal to held-out images: "
                       + images.first_names(left_out[:3]) + ", ..." * (len(lost) > 3))
        empty = [name for name, n in zip(classes, per_class["unique"], strict=True) if n == 0]
        if empty:
            tqdm.write(f"no pseudo label for {images.first_names(empty)}: the student learns these "
                       "classes from the labels alone")
        right = (label == truth[unique])[truth[unique] >= 0]
        return {"counts": counts, "top1": 100 * float(right.mean()) if len(right) else None,
                "per_class": per_class, "left_out": left_out}
