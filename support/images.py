"""Sets of images: decoding and cropping their files, and recognising equal images.

An image is uint8 RGB. Small ones are held in memory as one tensor; larger ones remain files, which
worker processes decode when a batch needs them (reading.py).
"""

import contextlib
import errno
import functools
import itertools
import os
import stat
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from hashlib import blake2b

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from support import InputError, devices, files, names

warnings.filterwarnings("ignore", module="PIL")  # about files that Pillow reads all the same
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's pixels, 0 to 1
UNKNOWN = -1  # label of an image whose class nobody has told us
NO_CLASS = -2  # label of an image known to show none of the classes: a part of the demo's pool
OF_POOL = "files of the pool, as --unlabeled names them"  # a setting of its labels
# An image is what Pillow reads in one of these formats. (For EPS it would start Ghostscript.)
FORMATS = "AVIF BMP GIF ICO JPEG JPEG2000 PCX PNG PPM PSD QOI SGI TIFF WEBP".split()
SUFFIXES = tuple(suffix for suffix, name in Image.registered_extensions().items()
                 if name in FORMATS)
# To Pillow the raw data of many cameras are a TIFF, of which it shows the thumbnail.
RAW = tuple(".3fr .arw .cr2 .dng .erf .iiq .kdc .nef .nrw .pef .sr2 .srf .srw".split())
# Errors that are a file's own, as are those without a number; any other is a disk's or machine's.
OF_FILES = {None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG,
            errno.EINVAL, errno.EOVERFLOW}


@dataclass(frozen=True, eq=False)
class ImageSet:
    """N images with their labels, in `pixels` or, where that is None, in `files`."""

    labels: Tensor  # (N,) int64: a class, UNKNOWN or NO_CLASS
    classes: tuple[str, ...]
    pixels: Tensor | None = None  # (N, 3, S, S) uint8
    files: Sequence[str] = ()  # N paths, decoded on demand
    fingerprints: np.ndarray | None = None  # (N, 16) uint8, of images that have been opened

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def size(self) -> int | None:
        """Pixels a side of images in memory."""
        return None if self.pixels is None else self.pixels.shape[-1]

    def at(self, size: int) -> "ImageSet":
        """The same set; as files, if it has them and its pixels are not of that size."""
        return replace(self, pixels=None) if self.files and self.size != size else self

    def subset(self, indices: Tensor) -> "ImageSet":
        """The images at `indices` (K,) int64, in that order; an index may come more than once."""
        pixels = None if self.pixels is None else self.pixels[indices]
        files = names.take(self.files, indices.numpy()) if self.files else ()
        known = None if self.fingerprints is None else self.fingerprints[indices.numpy()]
        return ImageSet(self.labels[indices], self.classes, pixels, files, known)

    @property
    def items(self) -> Sequence[str] | np.ndarray:
        """The paths, or arrays (N, S, S, 3)."""
        return self.files if self.pixels is None else self.pixels.permute(0, 2, 3, 1).numpy()


@dataclass(frozen=True, eq=False)
class Splits:
    """The labels of `unlabeled` are never trained on: they only measure the pseudo labels."""

    labeled: ImageSet
    unlabeled: ImageSet
    validation: ImageSet  # every choice (checkpoint, hyperparameters) is made on it
    test: ImageSet  # read once, for the figure that is reported
    notes: dict = field(default_factory=dict)  # JSON-able: what was removed or skipped on the way

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Labelled images, classes, unlabelled images."""
        return len(self.labeled), len(self.labeled.classes), len(self.unlabeled)


def digest(source: ImageSet) -> str:
    """A hash of a set's contents or, for files not opened yet, of their names and sizes."""
    if source.pixels is not None:
        return files.digest(source.pixels)
    if source.fingerprints is not None:
        return files.digest(source.fingerprints)
    own = devices.local_rank() == 0  # of millions of files one process of a machine asks the disk
    return devices.of_this_machine(own and files.digest(source.files, _sizes(source.files)))


def _sizes(names: Sequence[str], part: int = 10_000) -> np.ndarray:
    """Files' sizes in bytes, asked for by threads, as a shared disk takes its time."""
    parts = (range(len(names))[first: first + part] for first in range(0, len(names), part))
    with ThreadPoolExecutor(32) as threads:
        found = threads.map(lambda rows: [_size(names[row]) for row in rows], parts)
        return np.fromiter(itertools.chain.from_iterable(found), np.int64, len(names))


def _size(file: str) -> int:
    """A file's size in bytes; 0 for a broken link, which is left out when the pool is opened."""
    try:
        return os.path.getsize(file)
    except OSError as error:
        require_present(file, error)
        return 0


def identify(pool: ImageSet) -> dict:
    """What tells one pool from another: a hash of its images, or file names, and its classes."""
    return {OF_POOL: digest(pool), "classes": list(pool.classes)}


def digests(splits: Splits) -> dict[str, str]:
    """Hashes that tell the images of one loop from those of another, whatever their paths."""
    return {f"{name} images": digest(getattr(splits, name))
            for name in ("labeled", "unlabeled", "validation", "test")}


def first_names(names: Sequence[str]) -> str:
    """The first three names, for a message; bytes that are not UTF-8 are shown as escapes."""
    more = f", ... ({len(names):,} in all)" if len(names) > 3 else ""
    return (", ".join(names[:3]) + more).encode(errors="backslashreplace").decode()


@functools.cache
def say_once(text: str) -> None:
    """Print what a user should know about the images, but never twice."""
    if devices.rank() == 0:
        tqdm.write(text)


# ---- Decoding images and recognising equal ones ----


def open_image(file: str) -> Image.Image:
    """An image, of which only the beginning has been read; an error of any kind if it is none."""
    if not stat.S_ISREG(os.stat(file).st_mode) or file.lower().endswith(RAW):  # no endless pipe
        raise ValueError("not a regular file, or a camera's raw data")
    return Image.open(file, formats=FORMATS)


class Unreadable(InputError):
    """A file that is no readable image, and will not be one later."""


def require_present(file: str, error: Exception) -> None:
    """InputError if the disk or this machine failed: all a lost disk's images would seem broken."""
    number = errno.ENOMEM if isinstance(error, MemoryError) else getattr(error, "errno", None)
    there = False  # its folder is gone, or empty, when a disk has dropped out
    with contextlib.suppress(OSError), os.scandir(os.path.dirname(file) or ".") as entries:
        there = any(entries)
    if number not in OF_FILES or not there:
        raise InputError(f"{file}: cannot be opened at present ({error!r}): the same command "
                         "continues once it can be opened, or is removed") from None


def read_image(file: str, upright: bool = True) -> Image.Image:
    """The image as RGB, over white where it is transparent. Unreadable or, as of `require_present`,
    InputError. upright: turned as its EXIF data says. (Published test sets' protocols do not.)
    """
    try:
        with open_image(file) as image:
            image.load()  # turns a TIFF, and removes its orientation
            if upright:
                try:
                    ImageOps.exif_transpose(image, in_place=True)
                except Exception as error:  # EXIF data may hold anything, and be broken
                    if isinstance(error, MemoryError):
                        raise

            if image.mode[0] in "IF":  # Pillow would make all but the darkest levels white
                found = _to_8_bits(image)
            elif image.has_transparency_data:
                found = Image.new("RGBA", image.size, "white")
                found.alpha_composite(image.convert("RGBA"))
            else:
                found = image
            return found.convert("RGB")
    except Image.DecompressionBombError:
        raise Unreadable(f"{file}: more pixels than --megapixels allows; raise it, or shrink or "
                         "remove the image") from None
    except Exception as error:  # Pillow's decoders raise far more than OSError on broken files
        require_present(file, error)
        raise Unreadable(f"{file}: not a readable image ({error}); replace or remove it") from error


def read_item(item: str | np.ndarray) -> Image.Image:
    """The image of one of a set's `items`; errors as of `read_image`."""
    return read_image(item) if isinstance(item, str) else Image.fromarray(item)


def _to_8_bits(image: Image.Image) -> Image.Image:
    """A grey image of up to 16 bits, as 8 bits; its maximum tells how many bits it uses."""
    wide = image.convert("I")
    darkest, brightest = wide.getextrema()
    if image.mode == "F" or darkest < 0 or brightest >= 2**16:
        raise ValueError("floating-point or more than 16 bits: which level is white?")
    bits = next(bits for bits in (8, 10, 12, 14, 16) if brightest < 2**bits)
    if bits < 16:
        say_once(f"some images of 16 or 32 bits use {bits}, judging by their maximum: white is "
                 f"{2**bits - 1} there")
    return wide.point(lambda value: value / 2 ** (bits - 8)).convert("L")


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """The clean (size, size) view of an image: its central square, unless it has that size."""
    if image.size == (size, size):
        return image
    # authors: cut out size / (size + 32) of the short side; here: not for sizes up to 64, where two
    # thirds or less would remain. And bicubic is antialiased here, as in PIL.
    side = min(image.size)
    if size > 64:
        side = int(side * size / (size + 32))
    left, top = (image.width - side + 1) // 2, (image.height - side + 1) // 2
    corners = (left, top, left + side, top + side)
    return image.resize((size, size), Image.Resampling.BICUBIC, corners)


def to_array(image: Image.Image) -> np.ndarray:
    """An image as a (3, H, W) uint8 array."""
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def inspect(item: str | np.ndarray, size: int | None) -> tuple[np.ndarray | None, bytes | str]:
    """Pixels (3, size, size), or None if size is None, of a file or an (H, W, 3) array, and a
    fingerprint that is equal for equal images, whatever their names and formats. Of a file that is
    no readable image: None, and what is wrong with it.
    """
    try:
        image = read_item(item)
    except Unreadable as error:
        if "--megapixels" in str(error):
            say_once("Some images have more pixels than --megapixels allows: raise it, with "
                     "another --out, or shrink them")
        return None, str(error)
    fingerprint = blake2b(image.tobytes(), digest_size=16, key=repr(image.size).encode()).digest()
    return None if size is None else to_array(center_crop(image, size)), fingerprint
