"""The four sets of images that Noisy Student Training needs, as one `Splits`: split and read.

Section 3.1 of the paper, "Labeled dataset" and "Unlabeled dataset": a labelled set (ImageNet), a
much larger unlabelled pool of another origin (JFT), and held-out images.
"""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from support import InputError, demo_images, devices, files, folders, images, names, reading
from support.images import NO_CLASS, UNKNOWN, ImageSet, Splits

LARGEST_IN_MEMORY = 64  # pixels a side; larger images stay files until a batch needs them
MEMORY_LIMIT = 2 * 1024**3  # bytes of all four sets; above it these stay files, too

# ---- The built-in images ----

POOL_IMBALANCE = 8  # images of the demo pool's most frequent class for each image of its rarest
POOL_NO_CLASS = 0.3  # share of the pool that shows none of the classes


def demo(seed: int = 0, labels_per_class: int = 8, unlabeled: int = 6_000,
         val_per_class: int = 50, test_per_class: int = 200) -> Splits:
    """Ten classes of 32x32 pictures. The size of one set does not change the images of another.

    As in the paper the pool is of another origin than the labelled set: its classes are unevenly
    frequent and a part of it shows none of them; `unlabeled.labels` holds the truth.
    """
    def draw(labels: np.ndarray, stream: int) -> ImageSet:
        pixels = demo_images.draw(labels, (seed, stream))
        return ImageSet(torch.from_numpy(labels), demo_images.CLASSES, pixels)

    classes = np.arange(len(demo_images.CLASSES))
    share = float(POOL_IMBALANCE) ** -(classes / classes[-1])
    bounds = share.cumsum() / share.sum() * round(unlabeled * (1 - POOL_NO_CLASS))
    counts = np.diff(bounds.round().astype(int), prepend=0)
    pool = np.r_[classes.repeat(counts), np.full(unlabeled - counts.sum(), NO_CLASS)]
    return read_splits(Splits(
        labeled=draw(classes.repeat(labels_per_class), 0),
        unlabeled=draw(np.random.default_rng((seed, 1)).permutation(pool), 2),
        validation=draw(classes.repeat(val_per_class), 3),
        test=draw(classes.repeat(test_per_class), 4)), image_size=32)


# ---- Any sets, split and read ----


def split(source: ImageSet, labels_per_class: int | None,
          val_per_class: int | None) -> list[ImageSet]:
    """Split each class in its order: labelled set, pool, validation.

    The first `labels_per_class` images are labelled (None: all but the validation images), the last
    `val_per_class` are for validation (None: a tenth, at least one; 0: there are others), and the
    pool is the rest. InputError if there are too few.
    """
    parts = []
    for label, name in enumerate(source.classes):
        rows = (source.labels == label).nonzero().flatten()
        last = max(1, len(rows) // 10) if val_per_class is None else val_per_class
        first = max(1, len(rows) - last) if labels_per_class is None else labels_per_class
        if last and len(rows) == 1:
            raise InputError(f"class {name}: a single image cannot be both labelled and held out: "
                             "add some, or give separate images for validation (--val)")
        if first < 1 or last < 0 or first + last > len(rows):
            raise InputError(f"class {name}: {first} labelled and {last} validation images asked "
                             f"for of {len(rows)}; give one or more labelled, and no more in all")
        parts.append(rows.tensor_split((first, len(rows) - last)))
    return [source.subset(torch.cat(part)) for part in zip(*parts, strict=True)]


def size_to_read(image_size: int, *sets: ImageSet) -> int | None:
    """image_size if the images of these sets are decoded now; None if they stay as they are."""
    few = sum(map(len, sets)) * 3 * image_size**2 <= MEMORY_LIMIT
    small = few and image_size <= LARGEST_IN_MEMORY
    return image_size if small and sets[0].size != image_size else None


def read_set(source: ImageSet, size: int | None, workers: int = 0,
             held_out: frozenset[bytes] | None = None) -> tuple[ImageSet, dict]:
    """Open every image once; return the set, with its fingerprints, and notes on what was left out.

    The images are decoded unless `size` is None. For a pool `held_out` is given: images that equal
    one of these, and files that cannot be read, are left out; elsewhere such files are an
    InputError. InputError, too, if nothing remains.
    """
    items = source.items
    found = reading.inspect_all(items, size, workers)
    broken = [row for row, (_, seen) in enumerate(found) if isinstance(seen, str)]
    good = [row for row, (pixels, seen) in enumerate(found)
            if isinstance(seen, bytes) and seen not in (held_out or ())]
    skipped = [items[row] for row in broken]
    if broken and held_out is None:
        others = f"; and {len(broken) - 1} more: {images.first_names(skipped[1:])}"
        if len(broken) > 4 and devices.rank() == 0:
            tqdm.write("\n".join(found[row][1] for row in broken))
        raise InputError(found[broken[0]][1] + others * (len(broken) > 1))
    removed = len(found) - len(good) - len(skipped)
    if not good:
        raise InputError(f"no images for the unlabelled pool: {len(skipped)} unreadable, {removed} "
                         "equal to held-out images; add images, or ask for fewer labels")

    labels, first = source.labels.tolist(), {}  # the first label of each image
    twice = [row for row in good if first.setdefault(found[row][1], labels[row]) != labels[row]]
    if twice and source.pixels is None:
        images.say_once(f"Warning: {len(twice)} images are in two classes: "
                        + images.first_names([items[row] for row in twice]))

    kept = source if len(good) == len(found) else source.subset(torch.tensor(good))
    if size:
        pixels = torch.from_numpy(np.stack([found[row][0] for row in good]))
        kept = replace(kept, pixels=pixels)
    known = np.frombuffer(b"".join(found[row][1] for row in good), np.uint8).reshape(-1, 16)
    notes = {"removed_from_pool": removed, "skipped_files": skipped}
    return replace(kept, fingerprints=known), notes


def contents(source: ImageSet) -> frozenset[bytes]:
    """The fingerprints of a set that `read_set` has opened."""
    return frozenset(map(bytes, source.fingerprints))


def shared(one: ImageSet, other: ImageSet, names: tuple[str, str]) -> int:
    """How many images are in both of two sets; InputError if that is all of the second one."""
    twice = contents(one) & contents(other)
    if twice == contents(other):
        raise InputError(f"every {names[1]} image is also a {names[0]} one: accuracy on them would "
                         "say nothing; give other images")
    return len(twice)


def read_splits(found: Splits, image_size: int, workers: int = 0) -> Splits:
    """Open the images of all four sets, and clear the pool of held-out images and broken files."""
    size = size_to_read(image_size, found.labeled, found.unlabeled, found.validation, found.test)
    labeled, validation, test = (read_set(part, size, workers)[0] for part in (
        found.labeled, found.validation, found.test))
    twice = {"labeled_and_validation": shared(labeled, validation, ("labelled", "validation")),
             "labeled_and_test": shared(labeled, test, ("labelled", "test")),
             "validation_and_test": shared(validation, test, ("validation", "test"))}
    shared(test, validation, ("test", "validation"))
    # "We filter the ImageNet validation set images from the dataset", section 3.1.
    # paper: leaves the method to its reference [58]; here: equality of all pixels, which needs no
    # model and never takes away an image that only looks alike.
    held_out = contents(validation) | contents(test)
    pool, notes = read_set(found.unlabeled, size, workers, held_out)
    twice["labeled_and_unlabeled"] = len(contents(labeled) & contents(pool))
    return Splits(labeled, pool, validation, test, notes | twice)


# ---- One folder ----


def read_folder(folder: str | Path, image_size: int, classes: Iterable[str] = (),
                workers: int = 0) -> ImageSet:
    """A labelled folder (<class>/<image>) on its own; InputError unless it has these classes."""
    found = folders.list_classes(folder, classes)
    return read_set(found, size_to_read(image_size, found), workers)[0]


def read_pool(folder: str | Path, classes: Iterable[str],
              out: str | Path | None = None) -> ImageSet:
    """An unlabelled folder of any nesting: its files by name; InputError if there are none, or if
    the output, `out`, would lie among them.

    No file is opened here, as a large pool takes hours to decode: `read_splits` opens a loop's, and
    a teacher one that it labels on its own; broken files and held-out images are found then.
    """
    if out is None:
        found = tuple(folders.walk(folder))
    else:
        found = names.write(folders.walk(folder), files.require_place(out, [folder]))
    if not found:
        raise InputError(f"{folder}: no images in the unlabelled folder; add some")
    labels = torch.tensor([UNKNOWN]).expand(len(found))  # one number in memory, not N
    return ImageSet(labels, tuple(classes), files=found)
