"""The names of a large pool's files: in a file that all processes map, not in each one's memory.

A name of 41 letters takes 98 bytes in a Python list: for 300 M files, 29 GB in every process. Here
it takes 41 + 8 bytes on disk, which the system caches once in memory, and only as far as it likes.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from support import InputError, devices

AT_ONCE = 2**16  # names that are written together


class Names(Sequence):
    """N names, read as a tuple of strings would be. A slice is a list.

    Args:
        letters: (L,) uint8, all names one after the other.
        ends: (N,) int64, where each one ends.
        rows: (K,) which of them, in this order; None: all.
    """

    def __init__(self, letters: np.ndarray, ends: np.ndarray, rows: np.ndarray | None = None):
        self.letters, self.ends, self.rows = letters, ends, rows

    def __len__(self) -> int:
        return len(self.ends if self.rows is None else self.rows)

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        row = int(place if self.rows is None else self.rows[place])
        first = self.ends[row - 1] if row else 0
        return os.fsdecode(self.letters[first: self.ends[row]].tobytes())


def take(names: Sequence[str], rows: np.ndarray) -> Sequence[str]:
    """The names at `rows`, an int64 array: a view if `names` is a `Names`, else a tuple."""
    if not isinstance(names, Names):
        return tuple(names[row] for row in rows.tolist())
    return Names(names.letters, names.ends, rows if names.rows is None else names.rows[rows])


def _sweep(folder: str | Path) -> None:
    """Remove the names of processes that were killed while they wrote: nobody locks them."""
    for old in Path(folder).glob(".names-*"):
        with contextlib.suppress(OSError), open(old / "letters", "rb") as letters:
            fcntl.flock(letters, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(old)


def write(found: Iterable[str], folder: str | Path) -> Sequence[str]:
    """Write names to files in `folder`, which must exist and have room, and map them.

    torchrun's first process writes, and all map the same files, which are unlinked when this
    returns: their space is freed when the last process ends, however it ends. Only the first
    process uses `found`. InputError if the disk is full.
    """
    place = None
    try:
        if devices.rank() == 0:
            _sweep(folder)
            place = tempfile.mkdtemp(prefix=".names-", dir=folder)
            found, written = iter(found), 0
            with open(f"{place}/letters", "wb") as letters, open(f"{place}/ends", "wb") as ends:
                with contextlib.suppress(OSError):  # a file system without locks
                    fcntl.flock(letters, fcntl.LOCK_EX)
                while part := [os.fsencode(name) for name in islice(found, AT_ONCE)]:
                    letters.write(b"".join(part))
                    lengths = np.fromiter(map(len, part), np.int64, len(part))
                    ends.write((written + lengths.cumsum()).tobytes())
                    written += int(lengths.sum())
        place = devices.from_first(place)
        some = os.path.getsize(f"{place}/letters")  # an empty file cannot be mapped
        mapped = some and [np.asarray(np.memmap(f"{place}/{name}", kind, "r"))
                           for name, kind in (("letters", np.uint8), ("ends", np.int64))]
        devices.wait_for_all()
        return Names(*mapped) if mapped else ()
    except OSError as error:
        raise InputError(f"{folder}: the names of the images were not written ({error}); make room "
                         "or choose another output") from None
    finally:
        if place and devices.rank() == 0:
            shutil.rmtree(place, ignore_errors=True)
