"""Sets of images, and the files they come from: listed, decoded, cropped and recognised.

An image is uint8 RGB. Small ones are held in memory as one tensor; larger ones remain files, which
worker processes decode when a batch needs them (reading.py).
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from tqdm.contrib.concurrent import process_map

from support import InputError, files

UNKNOWN = -1  # label of an image whose class nobody has told us
NO_CLASS = -2  # label of an image known to show none of the classes: a part of the demo's pool
SUFFIXES = tuple(".jpg .jpeg .jfif .png .bmp .gif .webp .tif .tiff .ppm .pgm".split())


@dataclass(frozen=True, eq=False)
class ImageSet:
    """N images with their labels; either `pixels` or `files` holds the images."""

    labels: Tensor  # (N,) int64: a class, UNKNOWN or NO_CLASS
    classes: tuple[str, ...]
    pixels: Tensor | None = None  # (N, 3, S, S) uint8
    files: tuple[str, ...] = ()  # or N paths, decoded on demand

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Tensor) -> "ImageSet":
        """The images at `indices` (K,) int64, in that order; an index may come more than once."""
        pixels = None if self.pixels is None else self.pixels[indices]
        files = tuple(self.files[i] for i in indices.tolist()) if self.files else ()
        return ImageSet(self.labels[indices], self.classes, pixels, files)

    def read(self, index: int) -> Image.Image:
        """One image; InputError if its file cannot be read."""
        if self.pixels is None:
            return read_image(self.files[index])
        return Image.fromarray(self.pixels[index].permute(1, 2, 0).contiguous().numpy())


@dataclass(frozen=True, eq=False)
class Splits:
    """The labels of `unlabeled` are never trained on: they only measure the pseudo labels."""

    labeled: ImageSet
    unlabeled: ImageSet
    validation: ImageSet  # every choice (checkpoint, hyperparameters) is made on it
    test: ImageSet  # read once, for the figure that is reported
    notes: dict = field(default_factory=dict)  # JSON-able: what was removed or skipped on the way


def digest(source: ImageSet) -> str:
    """A hash of a set's pixels, or of the names of its files."""
    return files.digest(source.files if source.pixels is None else source.pixels)


def first_names(files: Sequence[str]) -> str:
    """The first three names, for a message; bytes that are not UTF-8 come as escapes."""
    names = ", ".join(files[:3]) + (", ..." if len(files) > 3 else "")
    return names.encode(errors="backslashreplace").decode()


# ---- Finding files ----


def list_files(folder: str | Path, suffixes: str | tuple[str, ...] = "") -> list[str]:
    """Every file below `folder` at any depth that ends so, sorted.

    Links are followed, hidden names are not. InputError if a folder cannot be listed.
    """
    def fail(error: OSError) -> None:
        raise InputError(f"{error.filename}: cannot be listed ({error.strerror}); check the path")

    found, visited = [], set()
    for directory, subfolders, names in os.walk(folder, onerror=fail, followlinks=True):
        new = os.path.realpath(directory) not in visited  # links may lead round in a circle
        visited.add(os.path.realpath(directory))
        subfolders[:] = sorted(name for name in subfolders if new and name[0] != ".")
        found += [os.path.join(directory, name) for name in names
                  if new and name[0] != "." and name.lower().endswith(suffixes)]
    return sorted(found)


def list_classes(folder: str | Path, expected: Iterable[str] = ()) -> ImageSet:
    """The images of `folder`/<class>/, still files; classes and files sorted by name.

    InputError if there are none, or if the classes are not the `expected` ones.
    """
    if not os.path.isdir(folder):
        raise InputError(f"{folder}: no such folder; expected {folder}/<class>/<images>")
    names = sorted(e.name for e in os.scandir(folder) if e.is_dir() and e.name[0] != ".")
    if not names:
        raise InputError(f"{folder}: no class folders; expected {folder}/<class>/<images>")
    if not expected and len(names) == 1:
        raise InputError(f"{folder}: only one class folder, {names[0]}; give the folder that holds "
                         "the class folders, two or more")
    if expected and set(names) != set(expected):
        missing, extra = sorted(set(expected) - set(names)), sorted(set(names) - set(expected))
        raise InputError(f"{folder}: not the classes of the labelled folder; add "
                         f"{', '.join(missing) or 'none'} and remove {', '.join(extra) or 'none'}")
    files, labels = [], []
    for label, name in enumerate(names):
        files += (found := list_files(Path(folder, name), SUFFIXES))
        labels += [label] * len(found)
        if not found:
            raise InputError(f"{Path(folder, name)}: a class without images; add some or remove it")
    return ImageSet(torch.tensor(labels), tuple(names), files=tuple(files))


# ---- Decoding and recognising images ----


def read_image(file: str) -> Image.Image:
    """The image as RGB, upright if its EXIF data says how; InputError if it cannot be read."""
    try:
        if not os.path.isfile(file):  # a pipe would keep Pillow waiting for ever
            raise ValueError("no regular file")
        with Image.open(file) as image:
            upright = ImageOps.exif_transpose(image)
            if upright.mode[0] in "IF":  # for Pillow all but the darkest of 16 bits are white
                wide = upright.convert("I")
                darkest, brightest = wide.getextrema()
                if upright.mode == "F" or darkest < 0 or brightest >= 2**16:
                    raise ValueError("floating-point or more than 16 bits: which level is white?")
                upright = wide.point(lambda value: value / 256).convert("L")
            elif "transparency" in upright.info:  # of a palette: Pillow warns without this step
                upright = upright.convert("RGBA")
            return upright.convert("RGB")
    except Exception as error:  # Pillow's decoders raise far more than OSError on broken files
        raise InputError(f"{file}: not a readable image ({error}); replace or remove it") from error


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """The clean (size, size) view of an image: its central square, unless it has that size."""
    if image.size == (size, size):
        return image
    # authors: cut out size / (size + 32) of the short side; here: not up to 64 pixels, where two
    # thirds or less would remain.
    side = min(image.size)
    if size > 64:
        side = int(side * size / (size + 32))
    left, top = (image.width - side + 1) // 2, (image.height - side + 1) // 2
    corners = (left, top, left + side, top + side)
    return image.resize((size, size), Image.Resampling.BICUBIC, corners)


def to_array(image: Image.Image) -> np.ndarray:
    """(3, H, W) uint8."""
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def inspect(item: str | np.ndarray, size: int | None,
            skip_broken: bool = False) -> tuple[np.ndarray | None, bytes]:
    """Of a file or an (H, W, 3) array: pixels (3, size, size) unless size is None; a fingerprint
    that is equal for equal images, whatever their names and formats.

    A file that cannot be read is an InputError or, with `skip_broken`, (None, b"").
    """
    try:
        image = read_image(item) if isinstance(item, str) else Image.fromarray(item)
    except InputError:
        if skip_broken:
            return None, b""
        raise
    fingerprint = blake2b(image.tobytes(), digest_size=16, key=repr(image.size).encode()).digest()
    return None if size is None else to_array(center_crop(image, size)), fingerprint


def inspect_all(items: Sequence, size: int | None, skip_broken: bool = False) -> list[tuple]:
    """`inspect` for each item; if they are many, by worker processes and with a progress bar."""
    look = partial(inspect, size=size, skip_broken=skip_broken)
    if len(items) < 2000:
        return [look(item) for item in items]
    return process_map(look, items, max_workers=min(os.cpu_count() or 1, 16), chunksize=100,
                       desc="reading images")


def fingerprints(folders: Iterable[str | Path]) -> frozenset[bytes]:
    """Of all images below these folders; InputError where one is not readable."""
    found = [file for folder in folders for file in list_files(folder, SUFFIXES)]
    return frozenset(fingerprint for _, fingerprint in inspect_all(found, None))
