"""The four sets of images that Noisy Student Training needs, from any of three places.

Section 3.1 of the paper, "Labeled dataset" and "Unlabeled dataset": a labelled set (ImageNet), a
much larger unlabelled pool of another origin (JFT), and held-out images. Here they come from

    demo(...)                        pictures drawn on the fly: nothing to download, a few seconds
    torchvision_splits(...)          CIFAR-10, CIFAR-100, SVHN, STL-10 or Imagenette
    split_folder(...), folders(...)  anyone's own folders of images

and always arrive as one `Splits`, uint8. Small images are held in memory as one tensor; larger ones
remain files, which worker processes decode when `read_batches` asks for them.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
import torchvision
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

import demo_images

UNKNOWN = -1  # label of an image whose class nobody has told us
NO_CLASS = -2  # label of an image known to show none of the classes: a part of the demo's pool
LARGEST_IN_MEMORY = 64  # pixels a side; larger images stay files until a batch needs them
MEMORY_LIMIT = 2 * 1024**3  # bytes of all four sets; above it small images stay files, too
IMAGE_SUFFIXES = tuple(".jpg .jpeg .jfif .png .bmp .gif .webp .tif .tiff .ppm .pgm".split())
Crop = Callable[[Image.Image, int, torch.Generator], Image.Image]  # image, size, random numbers


class InputError(Exception):
    """What the user gave cannot be used. One line: what is wrong, where, and what to do."""


def write_atomically(path: str | Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a file that takes its name only when complete: killed, the old one stays.

    InputError if the disk is full or the place cannot be written to; the old file stays then too.
    """
    temporary = Path(f"{path}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        # torch.save raises others on top of a full disk's OSError.
        while error.__context__ and not isinstance(error, OSError):
            error = error.__context__
        raise InputError(f"{path}: not written ({error}); make room or choose another place"
                         ) from None


def write_json(path: str | Path, contents: dict) -> None:
    """Write a dict as a JSON file, as `write_atomically` does."""
    text = json.dumps(contents, indent=1).encode()
    write_atomically(path, lambda file: file.write(text))


def first_names(files: Sequence[str]) -> str:
    """The first three names, for a message; bytes that are not UTF-8 come as escapes."""
    names = ", ".join(files[:3]) + (", ..." if len(files) > 3 else "")
    return names.encode(errors="backslashreplace").decode()


@dataclass(frozen=True, eq=False)
class ImageSet:
    """N images with their labels; either `pixels` or `files` holds the images."""

    labels: Tensor  # (N,) int64: a class, UNKNOWN or NO_CLASS
    classes: tuple[str, ...]
    pixels: Tensor | None = None  # (N, 3, S, S) uint8
    files: tuple[str, ...] = ()  # or N paths, decoded on demand

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Tensor) -> ImageSet:
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


# ----------------------------------------------------------------------------------------------
# The built-in images.

POOL_IMBALANCE = 8  # the demo pool's most frequent class has this many times the rarest's images
POOL_NO_CLASS = 0.3  # share of the pool that shows none of the classes


def demo(seed: int = 0, labels_per_class: int = 8, unlabeled: int = 6_000,
         val_per_class: int = 50, test_per_class: int = 200) -> Splits:
    """Ten classes of 32x32 pictures. The size of one set does not change the images of another.

    As in the paper the pool is of another origin than the labelled set: its classes are unevenly
    frequent and a part of it shows none of them; `unlabeled.labels` holds the truth. A negative
    seed or too small a set is an InputError.
    """
    smallest = min(labels_per_class, unlabeled // 20, val_per_class, test_per_class)
    if seed < 0 or smallest < 1:
        raise InputError(f"demo data: seed {seed}, {labels_per_class} labelled, {val_per_class} "
                         f"validation and {test_per_class} test images a class, a pool of "
                         f"{unlabeled}; give at least 0, 1, 1, 1 and 20")

    def draw(labels: np.ndarray, stream: int) -> ImageSet:
        pixels = demo_images.draw(labels, (seed, stream))
        return ImageSet(torch.from_numpy(labels), demo_images.CLASSES, pixels)

    classes = np.arange(len(demo_images.CLASSES))
    share = float(POOL_IMBALANCE) ** -(classes / classes[-1])
    bounds = share.cumsum() / share.sum() * round(unlabeled * (1 - POOL_NO_CLASS))
    counts = np.diff(bounds.round().astype(int), prepend=0)
    pool = np.r_[classes.repeat(counts), np.full(unlabeled - counts.sum(), NO_CLASS)]
    return Splits(
        labeled=draw(classes.repeat(labels_per_class), 0),
        unlabeled=draw(np.random.default_rng((seed, 1)).permutation(pool), 2),
        validation=draw(classes.repeat(val_per_class), 3),
        test=draw(classes.repeat(test_per_class), 4),
        notes={"removed_from_pool": 0, "skipped_files": [], "labeled_and_held_out": 0},
    )


# ----------------------------------------------------------------------------------------------
# Finding and decoding image files.


def list_files(folder: str | Path) -> list[str]:
    """Every file below `folder` at any depth, sorted; links are followed, hidden names are not."""

    def fail(error: OSError) -> None:
        raise InputError(f"{error.filename}: cannot be listed ({error.strerror}); check the path")

    found, visited = [], set()
    for directory, subfolders, names in os.walk(folder, onerror=fail, followlinks=True):
        if os.path.realpath(directory) in visited:  # links may lead round in a circle
            subfolders.clear()
            continue
        visited.add(os.path.realpath(directory))
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        found += [os.path.join(directory, name) for name in names if not name.startswith(".")]
    return sorted(found)


def list_classes(folder: str | Path, expected: Iterable[str] | None = None) -> dict[str, list[str]]:
    """The images of `folder`/<class>/ for each class; classes and files sorted by name.

    InputError if there are none, or if the classes are not the `expected` ones.
    """
    if not os.path.isdir(folder):
        raise InputError(f"{folder}: no such folder; expected {folder}/<class>/<images>")
    names = sorted(e.name for e in os.scandir(folder) if e.is_dir() and not e.name.startswith("."))
    if not names:
        raise InputError(f"{folder}: no class folders; expected {folder}/<class>/<images>")
    if expected is None and len(names) == 1:
        raise InputError(f"{folder}: only one class folder, {names[0]}; give the folder that holds "
                         "the class folders, two or more")
    if expected is not None and set(names) != set(expected):
        missing, extra = sorted(set(expected) - set(names)), sorted(set(names) - set(expected))
        raise InputError(f"{folder}: not the classes of the labelled folder; add "
                         f"{', '.join(missing) or 'none'} and remove {', '.join(extra) or 'none'}")
    classes = {}
    for name in names:
        files = list_files(Path(folder, name))
        classes[name] = [file for file in files if file.lower().endswith(IMAGE_SUFFIXES)]
        if not classes[name]:
            raise InputError(f"{Path(folder, name)}: a class without images; add some or remove it")
    return classes


def read_image(file: str) -> Image.Image:
    """The image as RGB, upright if its EXIF data says how; InputError if it cannot be read."""
    try:
        if not os.path.isfile(file):  # a pipe would keep Pillow waiting for ever
            raise ValueError("no regular file")
        with Image.open(file) as image:
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I"):  # 16 bits: for Pillow all but the darkest are white
                wide = upright.convert("I")
                if not 0 <= wide.getextrema()[0] <= wide.getextrema()[1] < 2**16:
                    raise ValueError("more than 16 bits a pixel")
                upright = wide.point(lambda value: value / 256).convert("L")
            elif upright.mode == "F":
                raise ValueError("floating-point pixels, whose white is unknown")
            elif "transparency" in upright.info:  # of a palette: Pillow warns without this step
                upright = upright.convert("RGBA")
            return upright.convert("RGB")
    except Exception as error:  # Pillow's decoders raise far more than OSError on broken files
        raise InputError(f"{file}: not a readable image ({error}); replace or remove it") from error


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """The clean (size, size) view of an image: its central square, unless it has that size."""
    if image.size == (size, size):
        return image
    # The authors' code cuts out size / (size + 32) of the short side. For small images that would
    # be two thirds of it or less: they are used whole.
    side = min(image.size)
    if size > LARGEST_IN_MEMORY:
        side = int(side * size / (size + 32))
    left, top = (image.width - side + 1) // 2, (image.height - side + 1) // 2
    corners = (left, top, left + side, top + side)
    return image.resize((size, size), Image.Resampling.BICUBIC, corners)


def to_array(image: Image.Image) -> np.ndarray:
    """(3, H, W) uint8."""
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def inspect(item: str | np.ndarray, size: int | None) -> tuple[np.ndarray | None, bytes, str]:
    """Of a file or an (H, W, 3) array: pixels (3, size, size) unless size is None; a fingerprint
    that is equal for equal images, whatever their names and formats; what is wrong, if anything."""
    try:
        image = read_image(item) if isinstance(item, str) else Image.fromarray(item)
    except InputError as error:
        return None, b"", str(error)
    fingerprint = blake2b(image.tobytes(), digest_size=16, key=repr(image.size).encode()).digest()
    return None if size is None else to_array(center_crop(image, size)), fingerprint, ""


def inspect_all(items: list, size: int | None) -> Iterator[tuple[np.ndarray | None, bytes, str]]:
    """`inspect` for each item; if they are many, by worker processes and with a progress bar."""
    look = partial(inspect, size=size)
    if len(items) < 2000:
        yield from map(look, items)
        return
    with multiprocessing.Pool(min(os.cpu_count() or 1, 16)) as pool:
        yield from tqdm(pool.imap(look, items, chunksize=100), "reading images", len(items))


# ----------------------------------------------------------------------------------------------
# From images to splits. Until they are read, an image is a file or an (H, W, 3) uint8 array.


def with_labels(classes: dict[str, Sequence]) -> list[tuple]:
    """(image, label) of every image; the label is the position of its class."""
    return [(image, label) for label, name in enumerate(classes) for image in classes[name]]


def split_classes(classes: dict[str, Sequence], labels_per_class: int | None,
                  val_per_class: int | None) -> tuple[list[tuple], list[tuple], list[tuple]]:
    """Split each class in its order, and return (image, label) of labelled set, pool, validation.

    The first `labels_per_class` images are labelled (None: all but the validation images), the last
    `val_per_class` are for validation (None: a tenth, at least one), and the pool is the rest.
    """
    labeled, pool, validation = {}, {}, {}
    for name, images in classes.items():
        last = max(1, len(images) // 10) if val_per_class is None else val_per_class
        first = len(images) - last if labels_per_class is None else labels_per_class
        if first < 1 or last < 1 or first + last > len(images):
            raise InputError(f"class {name}: {first} labelled and {last} validation images asked "
                             f"for of {len(images)}; ask for 1 or more of each and no more in all")
        end = len(images) - last
        labeled[name], pool[name] = images[:first], images[first:end]
        validation[name] = images[end:]
    return with_labels(labeled), with_labels(pool), with_labels(validation)


def fits_in_memory(images: list[tuple], image_size: int) -> bool:
    """Whether to decode these (image, label) now. Arrays are in memory anyway."""
    small = image_size <= LARGEST_IN_MEMORY and len(images) * 3 * image_size**2 <= MEMORY_LIMIT
    return small or not isinstance(images[0][0], str)


def read_set(pairs: list[tuple], classes: Iterable[str], image_size: int, in_memory: bool,
             skip_broken: bool = False, held_out: frozenset[bytes] = frozenset(),
             ) -> tuple[ImageSet, frozenset[bytes], dict]:
    """Read every (image, label) once: the set, its fingerprints, and what was left out of it.

    Images that equal one of `held_out` are left out, and so, with `skip_broken`, are files that
    cannot be read; otherwise those are an InputError, and so is a set of which nothing remains.
    """
    kept, labels, seen, removed, skipped = [], [], set(), 0, []
    results = inspect_all([image for image, _ in pairs], image_size if in_memory else None)
    for (image, label), (pixels, fingerprint, complaint) in zip(pairs, results, strict=True):
        if complaint and not skip_broken:
            raise InputError(complaint)
        if complaint:
            skipped.append(image)
        elif fingerprint in held_out:
            removed += 1
        else:
            kept.append(pixels if in_memory else image)
            labels.append(label)
            seen.add(fingerprint)
    if not kept:
        raise InputError(f"no images for the unlabelled pool: {len(skipped)} unreadable, {removed} "
                         "equal to held-out images; add images, or ask for fewer labels")
    pixels = torch.from_numpy(np.stack(kept)) if in_memory else None
    labels = torch.tensor(labels, dtype=torch.int64)
    images = ImageSet(labels, tuple(classes), pixels, () if in_memory else tuple(kept))
    return images, frozenset(seen), {"removed_from_pool": removed, "skipped_files": skipped}


def read_splits(labeled: list[tuple], pool: list[tuple], validation: list[tuple],
                test: list[tuple], classes: Iterable[str], image_size: int,
                skip_broken: bool = False) -> Splits:
    """Read the (image, label) of all four sets; `skip_broken` holds for the pool alone."""
    in_memory = fits_in_memory(labeled + pool + validation + test, image_size)
    read = partial(read_set, classes=classes, image_size=image_size, in_memory=in_memory)
    labeled, learning, _ = read(labeled)
    validation, choosing, _ = read(validation)
    test, reporting, _ = read(test)
    for name, held_out in ("validation", choosing), ("test", reporting):
        if held_out <= learning:
            raise InputError(f"every {name} image is also a labelled one: accuracy on them would "
                             "say nothing; give other images")
    # "We filter the ImageNet validation set images from the dataset", section 3.1.
    # paper: how is left to its reference [58]; here: images with the same pixels, which needs no
    # model and never takes away an image that only looks alike.
    pool, _, notes = read(pool, skip_broken=skip_broken, held_out=choosing | reporting)
    notes["labeled_and_held_out"] = len(learning & (choosing | reporting))
    return Splits(labeled, pool, validation, test, notes)


def read_folder(folder: str | Path, image_size: int,
                classes: Iterable[str] | None = None) -> ImageSet:
    """A labelled folder (<class>/<image>) on its own; InputError if it has not these classes."""
    found = list_classes(folder, classes)
    pairs = with_labels(found)
    return read_set(pairs, found, image_size, fits_in_memory(pairs, image_size))[0]


def list_pool(folder: str | Path) -> list[tuple[str, int]]:
    """(file, UNKNOWN) of all files in a folder of any nesting; InputError if there are none."""
    pool = [(file, UNKNOWN) for file in list_files(folder)]
    if not pool:
        raise InputError(f"{folder}: no images in the unlabelled folder; add some")
    return pool


def fingerprints(folders: Iterable[str | Path]) -> frozenset[bytes]:
    """Of all images below these folders; InputError where one is not readable."""
    files, found = [file for folder in folders for file in list_files(folder)
                    if file.lower().endswith(IMAGE_SUFFIXES)], set()
    for _, fingerprint, complaint in inspect_all(files, None):
        if complaint:
            raise InputError(complaint)
        found.add(fingerprint)
    return frozenset(found)


def read_pool(folder: str | Path, classes: Iterable[str]) -> ImageSet:
    """An unlabelled folder on its own: its files by name, none of them opened yet.

    A large pool takes hours to decode, so that happens once, when a teacher labels it:
    `inspect_batches` finds the broken files and the held-out images then.
    """
    files = [file for file, _ in list_pool(folder)]
    labels = torch.tensor([UNKNOWN]).expand(len(files))  # one number in memory, not N
    return ImageSet(labels, tuple(classes), files=tuple(files))


def into_memory(images: ImageSet, image_size: int) -> ImageSet:
    """The same set, its files decoded if they are small and few: they need it in each epoch."""
    pairs = list(zip(images.files, images.labels.tolist(), strict=True))
    if not fits_in_memory(pairs, image_size):
        return images
    return read_set(pairs, images.classes, image_size, in_memory=True)[0]


def split_folder(train_dir: str | Path, test_dir: str | Path, labels_per_class: int | None,
                 val_per_class: int | None, image_size: int) -> Splits:
    """Split a fully labelled folder (<class>/<image>) as research does.

    Of the sorted file names of each class the first `labels_per_class` are the labelled set, the
    last `val_per_class` (None: a tenth, at least one) the validation set, and the rest the pool,
    whose labels are kept so that the pseudo labels can be measured. InputError where the folders do
    not allow it.
    """
    train = list_classes(train_dir)
    test = with_labels(list_classes(test_dir, train))
    labeled, pool, validation = split_classes(train, labels_per_class, val_per_class)
    return read_splits(labeled, pool, validation, test, train, image_size)


def folders(labeled_dir: str | Path, unlabeled_dir: str | Path, test_dir: str | Path,
            val_dir: str | Path | None = None, val_per_class: int | None = None, *,
            image_size: int) -> Splits:
    """Labelled, test and validation folders (<class>/<image>), and a pool of any nesting.

    Without `val_dir`, the last `val_per_class` (default: a tenth, at least one) of the sorted file
    names of each class are taken out of the labelled folder. InputError where that cannot be;
    broken files are left out of the pool, and an error elsewhere.
    """
    classes = list_classes(labeled_dir)
    test = with_labels(list_classes(test_dir, classes))
    if val_dir is None:
        labeled, _, validation = split_classes(classes, None, val_per_class)
    elif val_per_class is None:
        labeled = with_labels(classes)
        validation = with_labels(list_classes(val_dir, classes))
    else:
        raise InputError(f"{val_dir}: given together with val_per_class; give one of the two")
    pool = list_pool(unlabeled_dir)
    return read_splits(labeled, pool, validation, test, classes, image_size, skip_broken=True)


def torchvision_splits(name: str, root: str | Path, labels_per_class: int | None,
                       val_per_class: int | None, image_size: int | None = None,
                       seed: int = 0) -> Splits:
    """A published set, read from `root` by torchvision and downloaded to it where missing.

    `name` is cifar10, cifar100, svhn, stl10 or imagenette. The seed draws the labelled images
    (None: all others) and the validation images (None: a tenth) of each class from the training
    set; for Imagenette the file names do, as in `split_folder`. The pool is the rest of the
    training set and, for SVHN and STL-10, their extra and unlabelled images. `image_size` None
    keeps the size of the set (Imagenette: 160). InputError without data and network.
    """
    sets = torchvision.datasets
    known = {
        "cifar10": (sets.CIFAR10, {"train": True}, {"train": False}),
        "cifar100": (sets.CIFAR100, {"train": True}, {"train": False}),
        "svhn": (sets.SVHN, {"split": "train"}, {"split": "test"}, {"split": "extra"}),
        "stl10": (sets.STL10, {"split": "train"}, {"split": "test"}, {"split": "unlabeled"}),
        "imagenette": (sets.Imagenette, {"split": "train"}, {"split": "val"}),
    }
    if name not in known:
        raise InputError(f"{name}: not a known data set; choose from {', '.join(known)}")
    reader, *parts = known[name]
    native = 160 if (image_size or 160) <= 160 else 320  # Imagenette comes in both sizes
    edition = {"size": f"{native}px"} if name == "imagenette" else {}
    try:
        train, *others = [reader(str(root), download=True, **part, **edition) for part in parts]
    except (OSError, RuntimeError, ImportError) as error:  # no network, damaged, no SciPy, ...
        reason = " ".join(str(error).split())
        raise InputError(f"{name}: neither found in {root} nor downloaded ({reason}); "
                         "put it there or connect this machine to the network") from error
    if name == "imagenette":
        home = Path(root, f"imagenette2-{native}")
        return split_folder(home / "train", home / "val", labels_per_class, val_per_class,
                            image_size or native)
    images, labels = arrays(train)
    order = np.random.default_rng(seed).permutation(len(labels))
    names = getattr(train, "classes", None) or [str(digit) for digit in range(10)]
    classes = {c: [images[i] for i in order[labels[order] == k]] for k, c in enumerate(names)}
    labeled, pool, validation = split_classes(classes, labels_per_class, val_per_class)
    test, *extra = [list(zip(*arrays(part), strict=True)) for part in others]
    pool = sum(extra, start=pool)
    size, count = image_size or images.shape[1], sum(map(len, (labeled, pool, validation, test)))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")  # bytes of this machine
    needed = 2 * count * 3 * size**2  # a list of arrays, and then one
    if size > images.shape[1] and needed > memory:
        raise InputError(f"{name}: to enlarge {count:,} images to {size} pixels takes "
                         f"{needed / 1e9:.0f} GB of memory; leave out --image-size, or give "
                         f"{images.shape[1]}")
    return read_splits(labeled, pool, validation, test, names, size)


def arrays(dataset: object) -> tuple[np.ndarray, np.ndarray]:
    """(N, H, W, 3) uint8 and labels (N,) int64 of a torchvision dataset that holds arrays."""
    images = dataset.data if dataset.data.shape[3] == 3 else dataset.data.transpose(0, 2, 3, 1)
    labels = dataset.targets if hasattr(dataset, "targets") else dataset.labels
    return images, np.asarray(labels, np.int64)


# ----------------------------------------------------------------------------------------------
# From splits to batches.


@dataclass(frozen=True)
class BatchDecoder:
    """What a worker process of `read_batches` does for one numbered batch."""

    images: ImageSet
    image_size: int
    seed: int
    crop: Crop | None
    rows: tuple[int, ...] | None

    def __getitem__(self, numbered_batch: tuple[int, Tensor]) -> Tensor:
        number, batch = numbered_batch
        images = []
        for row, index in zip(self.rows or range(len(batch)), batch.tolist(), strict=True):
            try:
                image = self.images.read(index)
            except InputError as error:  # raised here it would come with a worker's traceback
                return error
            if self.crop is None:
                image = center_crop(image, self.image_size)
            else:
                mixed = np.random.SeedSequence((self.seed, number, row)).generate_state(1, "u8")
                generator = torch.Generator().manual_seed(int(mixed[0]))
                image = self.crop(image, self.image_size, generator)
            images.append(to_array(image))
        return torch.from_numpy(np.stack(images))


def read_batches(images: ImageSet, batches: Iterable[Tensor], image_size: int, train: bool,
                 seed: int = 0, workers: int = 0, crop: Crop | None = None,
                 first: int = 0, rows: Tensor | None = None) -> Iterator[Tensor]:
    """For each (B,) tensor of indices in `batches` the images: (B, 3, S, S) uint8, S = image_size.

    Files are decoded by `workers` processes, each at most two batches ahead (so `batches` may be
    endless): for training by `crop`, without it to the central square. Images in memory are looked
    up, or cropped likewise; InputError if they are not of that size. The random numbers of an image
    depend on the seed, the number of its batch (they count from `first`, where a run resumes) and
    its row alone, hence not on the number of workers. `rows` (B,) are the rows of batches that are
    parts of larger ones.
    """
    if workers < 0:
        raise InputError(f"{workers} workers cannot be started: give 0 or more")
    if images.pixels is not None:
        if images.pixels.shape[-1] != image_size:
            raise InputError(f"the images in memory have {images.pixels.shape[-1]} px, not the "
                             f"{image_size} px asked for; read the data at that size")
        if crop is None or not train:
            yield from (images.pixels[batch] for batch in batches)
            return
    decoder = BatchDecoder(images, image_size, seed, crop if train else None,
                           None if rows is None else tuple(rows.tolist()))
    loader = DataLoader(
        decoder, sampler=enumerate(batches, first), batch_size=None, num_workers=workers,
        generator=torch.Generator(),  # its own, for it would draw from torch's global one
    )
    for batch in loader:
        if isinstance(batch, InputError):
            raise batch
        yield batch


@dataclass(frozen=True)
class BatchInspector:
    """What a worker process of `inspect_batches` does for one batch."""

    files: tuple[str, ...]
    image_size: int
    held_out: frozenset[bytes]

    def __getitem__(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        pixels = torch.zeros(len(batch), 3, self.image_size, self.image_size, dtype=torch.uint8)
        usable = torch.zeros(len(batch), dtype=torch.bool)
        for row, index in enumerate(batch.tolist()):
            image, fingerprint, complaint = inspect(self.files[index], self.image_size)
            if not complaint and fingerprint not in self.held_out:
                pixels[row], usable[row] = torch.from_numpy(image), True
        return pixels, usable


def inspect_batches(images: ImageSet, batches: Iterable[Tensor], image_size: int,
                    held_out: frozenset[bytes], workers: int = 0) -> Iterator[tuple]:
    """As `read_batches`, of files that nobody has opened yet: (images, usable (B,) bool).

    Files that cannot be read and images whose fingerprint is among `held_out` are not usable, and
    black instead.
    """
    inspector = BatchInspector(images.files, image_size, held_out)
    yield from DataLoader(inspector, sampler=batches, batch_size=None, num_workers=workers,
                          generator=torch.Generator())
