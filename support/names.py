"""The names of a large pool's files: in a file that all processes map, not in each one's memory.

A name of 41 letters takes 98 bytes in a Python list: for 300 M files, 29 GB in every process. Here
it takes 41 + 8 bytes on disk, which the system caches once in memory, as far as there is room.
"""

import os
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from support import InputError, devices


class Names(Sequence):
    """N names, read as a tuple of strings would be, one at a time.

    Args:
        letters: (L,) uint8, all names one after the other.
        ends: (N,) int64, where each one ends.
        rows: (K,) which of them, in this order; None: all.
    """

    def __init__(self, letters: np.ndarray, ends: np.ndarray, rows: np.ndarray | None = None):
        self.letters, self.ends, self.rows = letters, ends, rows

    def __len__(self) -> int:
        return len(self.ends if self.rows is None else self.rows)

    def __getitem__(self, index: int) -> str:
        place = range(len(self))[index]
        row = int(place if self.rows is None else self.rows[place])
        first = self.ends[row - 1] if row else 0
        return os.fsdecode(self.letters[first: self.ends[row]].tobytes())


def take(names: Sequence[str], rows: np.ndarray) -> Sequence[str]:
    """The names at `rows`, an int64 array: a view if `names` is a `Names`, else a tuple."""
    if not isinstance(names, Names):
        return tuple(names[row] for row in rows.tolist())
    return Names(names.letters, names.ends, rows if names.rows is None else names.rows[rows])


def write(found: Iterable[str], folder: str | Path) -> Sequence[str]:
    """Write names to nameless files in `folder`, which must exist and have room, and map them.

    On each machine torchrun's first process writes, the others map what it has open. The space
    is free again when the last process ends, however it ends. Only the processes that write use
    `found`. InputError if the disk is full.
    """
    written = 0
    try:
        with tempfile.TemporaryFile(dir=folder) as letters, tempfile.TemporaryFile(
                dir=folder) as ends:
            if devices.local_rank() == 0:
                for name in map(os.fsencode, found):
                    written += letters.write(name)
                    ends.write(written.to_bytes(8, sys.byteorder))
                letters.flush()
                ends.flush()

            own = [f"/proc/{os.getpid()}/fd/{file.fileno()}" for file in (letters, ends)]
            written, places = devices.of_this_machine((written, own))
            if devices.local_rank() == 0:
                places = letters, ends
            mapped = written and [np.asarray(np.memmap(place, kind, "r"))
                                  for place, kind in zip(places, (np.uint8, np.int64), strict=True)]
            devices.wait_for_all()
            return Names(*mapped) if mapped else ()
    except OSError as error:
        raise InputError(f"{folder}: the names of the images were not written ({error}); make room "
                         "or choose another output") from None
