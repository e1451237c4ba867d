"""Folders of images: which files in them are images, and of which classes."""

import functools
import os
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from support import InputError, images, reading
from support.images import ImageSet, first_names, say_once

# Thumbnails, deleted files and settings, which systems put among a user's own.
OF_SYSTEMS = ("@eaDir", "__MACOSX", "#recycle", "$RECYCLE.BIN", "System Volume Information",
              "lost+found", "Thumbs.db", "ehthumbs.db", "desktop.ini")


def _hidden(name: str) -> bool:
    return name[0] == "." or name in OF_SYSTEMS


def walk(folder: str | Path) -> Iterator[str]:
    """Every file below `folder` at any depth, in a fixed order; or `folder` itself, if a file.

    Links are followed, hidden names and those OF_SYSTEMS are not. InputError if a folder cannot be
    listed. Memory holds no more than the folders on the way down to a file.
    """
    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename}: cannot be listed ({error.strerror}); check the path")

    if os.path.isfile(folder):
        yield str(folder)
        return
    visited = set()
    for path, inner, names in os.walk(folder, onerror=refuse, followlinks=True):
        if (real := os.path.realpath(path)) in visited:  # links may lead round in a circle
            inner.clear()
            continue
        visited.add(real)
        inner[:] = sorted((one for one in inner if not _hidden(one)), key=lambda one: one + "/")
        yield from (os.path.join(path, name) for name in sorted(names) if not _hidden(name))


def list_images(folder: str | Path) -> list[str]:
    """The images below `folder`, by name or by content; others are reported. InputError if none."""
    def is_image(file: str) -> bool:
        if file.lower().endswith(images.SUFFIXES):
            return True  # an image, or a broken one
        try:
            with images.open_image(file):
                return True
        except Exception as error:  # whatever Pillow raises for what is no image
            images.require_present(file, error)
            return False

    everything = list(walk(folder))
    found = [file for file in everything if is_image(file)]
    if others := sorted(set(everything) - set(found)):
        say_once(f"{folder}: {len(others)} files left out that cannot be read as images (HEIC "
                 f"and a camera's raw data: convert them to JPEG): {first_names(others)}")
    if not found:
        raise InputError(f"{folder}: no images in it; add some, remove it (a class: from all "
                         "folders), or check the path")
    return found


_composed = functools.partial(unicodedata.normalize, "NFC")


def list_classes(folder: str | Path, expected: Iterable[str] = ()) -> ImageSet:
    """The images of `folder`/<class>/, not yet decoded; classes sorted by name.

    InputError if there are none, or if the classes are not the `expected` ones.
    """
    if not os.path.isdir(folder):
        raise InputError(f"{folder}: no such folder; expected {folder}/<class>/<images>")
    entries = sorted((e.name, e.is_dir()) for e in os.scandir(folder) if not _hidden(e.name))
    names = [name for name, is_folder in entries if is_folder]
    if not names:
        raise InputError(f"{folder}: no class folders; expected {folder}/<class>/<images>")
    if loose := [name for name, is_folder in entries if not is_folder]:
        say_once(f"{folder}: {len(loose)} files left out that lie beside the class folders: "
                 + first_names(loose))
    if not expected and len(names) == 1:
        raise InputError(f"{folder}: only one class folder, {names[0]}; give the folder that holds "
                         "the class folders, two or more")

    if expected and set(names) != set(expected):
        missing, extra = sorted(set(expected) - set(names)), sorted(set(names) - set(expected))
        alike = set(map(_composed, missing)) & set(map(_composed, extra))
        raise InputError(f"{folder}: not the classes of the labelled folder; add "
                         f"{first_names(missing) or 'none'} and remove "
                         f"{first_names(extra) or 'none'}"
                         + " (letters in another Unicode form: rename)" * bool(alike))

    if len({_composed(name.strip()).casefold() for name in names}) < len(names):
        say_once(f"Warning: some classes of {folder} have names that differ only by case, spaces "
                 "or Unicode form: are they meant to be one?")
    inner = [sorted(e.name for e in os.scandir(Path(folder, name))
                    if e.is_dir() and not _hidden(e.name)) for name in names]
    if len(inner[0]) > 1 and all(found == inner[0] for found in inner):
        say_once(f"Warning: the classes of {folder} are {first_names(names)}, and each holds "
                 f"{first_names(inner[0])}: if these are the classes, give {folder}/{names[0]}")

    files, labels = [], []
    for label, name in enumerate(names):
        files += (found := list_images(Path(folder, name)))
        labels += [label] * len(found)
    return ImageSet(torch.tensor(labels), tuple(names), files=tuple(files))


def fingerprints(folders: Iterable[str | Path], workers: int = 0) -> frozenset[bytes]:
    """Fingerprints of all images in `folders`; InputError if one is broken or a folder has none."""
    found = [file for folder in folders for file in list_images(folder)]
    seen = [fingerprint for _, fingerprint in reading.inspect_all(found, None, workers)]
    if broken := [wrong for wrong in seen if isinstance(wrong, str)]:
        raise InputError(broken[0])
    return frozenset(seen)
