"""Tables for people to read: predictions for any images, and the pseudo labels that were chosen."""

import codecs
import csv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from torch import Tensor

from support import InputError, devices, files, images
from support.images import ImageSet

PART = 1_000  # images that are predicted together
FOR_THE_EYE = 100_000  # at most so many labels are listed


def write(path: str, top: int, pool: ImageSet, predict: Callable[..., Iterator[Tensor]], found,
          machine: devices.Machine) -> None:
    """Write a CSV file with one line per file: its name, and the `top` most probable classes with
    their probabilities, which are left empty for a file that is broken or not an image.

    predict: pseudo_label.predict_parts; found: model.Checkpoint.
    """
    if devices.world_size() > 1:
        raise InputError("--csv is for one process: start it without torchrun")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    top, left_out = min(top, len(pool.classes)), []
    parts = [range(len(pool))[first: first + PART] for first in range(0, len(pool), PART)]
    predicted = predict(
        found.network().to(machine.device), pool, parts, None, (), image_size=found.image_size,
        batch_size=None, device=machine.device, workers=machine.workers, progress="predicting",
        held_out=frozenset())
    head = ["file", *(f"{word}{'' if rank == 1 else f'_{rank}'}"
                      for rank in range(1, top + 1) for word in ("class", "probability"))]

    def fill(file: BinaryIO) -> None:
        writer = csv.writer(codecs.getwriter("utf-8")(file, "backslashreplace"))
        writer.writerow(head)
        for part, probabilities in zip(parts, predicted, strict=True):
            best = map(Tensor.tolist, probabilities.topk(top))
            for place, values, numbers in zip(part, *best, strict=True):
                name, cells = pool.files[place], [""] * 2 * top
                if values[0] == 0:
                    left_out.append(name)
                else:
                    cells[::2] = [pool.classes[number] for number in numbers]
                    cells[1::2] = [f"{value:.4f}" for value in values]
                writer.writerow([name, *cells])

    files.write_atomically(path, fill)
    if left_out:
        print(f"{len(left_out)} files are listed without a class, as they are not readable images: "
              + images.first_names(left_out))
    print(f"{path}: {len(pool) - len(left_out):,} images")


def list_labels(file: BinaryIO, pool: ImageSet, unique: np.ndarray, balanced: np.ndarray,
                label: np.ndarray, confidence: np.ndarray) -> None:
    """Write a CSV file of the chosen images: file, class, confidence when chosen, copies.

    Of more than FOR_THE_EYE only every n-th is listed.
    """
    step = -(-len(unique) // FOR_THE_EYE)
    copies = np.bincount(balanced, minlength=len(unique))
    writer = csv.writer(codecs.getwriter("utf-8")(file, "backslashreplace"))
    writer.writerow(["file", "class", "confidence", "copies"])
    for row in range(0, len(unique), step):
        place = unique[row]
        writer.writerow([pool.files[place], pool.classes[label[row]],
                         f"{confidence[place]:.4f}", copies[row]])
