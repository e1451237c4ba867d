"""Files written whole or not at all, and checks that they belong to the settings at hand."""

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from support import InputError, devices


def write_atomically(path: str | Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a file that takes its name only when complete; until then the old one stays.

    InputError if the disk is full or the place cannot be written to; the old file stays then too.
    """
    path = os.path.realpath(path)  # a link stays one
    temporary = Path(f"{path}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        cause = error  # torch.save raises a RuntimeError on top of a full disk's OSError
        while isinstance(cause, RuntimeError) and cause.__context__:
            cause = cause.__context__
        if not isinstance(cause, OSError):
            raise
        raise InputError(f"{path}: not written ({cause}); make room or choose another place"
                         ) from None


def write_json(path: str | Path, contents: dict) -> None:
    """Write a dict as a JSON file, as `write_atomically` does."""
    text = json.dumps(contents, indent=1).encode()
    write_atomically(path, lambda file: file.write(text))


def read_json(path: Path) -> dict:
    """The contents of a JSON file, which exists; InputError if it is damaged."""
    try:
        return json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise InputError(f"{path} is damaged: remove it, or choose another output") from None


def write_rows(path: Path, rows: np.ndarray, first: int, total: int) -> None:
    """Put rows first, first + 1, ... of an array of `total` rows into its file, and flush to disk.

    Each process writes its own bytes and the same header. (A memory map would write whole pages,
    and with them other processes' rows as this machine saw them last; so would NFS without DSYNC.)
    """
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_DSYNC
        with os.fdopen(os.open(path, flags, 0o666), "wb") as file:
            header = np.lib.format.header_data_from_array_1_0(rows)
            np.lib.format.write_array_header_1_0(file, header | {"shape": (total, *rows.shape[1:])})
            file.seek(first * rows[0].nbytes, os.SEEK_CUR)
            file.write(rows.tobytes())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise InputError(f"{path}: not written ({error}); make room or choose another place"
                         ) from None


def digest(*parts: bytes | str | Sequence[str] | np.ndarray | Tensor) -> str:
    """A hash of the contents of all parts, in their order, as 32 hexadecimal digits."""
    hashed = hashlib.blake2b(digest_size=16)
    for part in parts:
        if isinstance(part, Sequence) and not isinstance(part, bytes | str):  # millions of names
            for name in part:
                hashed.update(os.fsencode(name + "\n"))
            continue
        if isinstance(part, Tensor):  # numpy has no bfloat16
            part = (part.float() if part.dtype == torch.bfloat16 else part).cpu().numpy()
        named = isinstance(part, str | bytes)
        hashed.update(os.fsencode(part) if named else np.ascontiguousarray(part))
    return hashed.hexdigest()


def slug(name: str) -> str:
    """A name without commas and spaces, for a file."""
    return name.replace(", ", "-").replace(" ", "-")


def require_same(path: str | Path, found: dict, wanted: dict) -> None:
    """InputError unless the settings found in a file are the wanted ones; it names the first
    setting that differs. Settings that only the file has are ignored; parts of a setting are not.
    """
    for key, value in json.loads(json.dumps(wanted)).items():  # tuples become lists, keys text
        known = found.get(key) if isinstance(found, dict) else None
        if isinstance(value, dict) and isinstance(known, dict):
            require_same(path, known, dict.fromkeys(known) | value)
        elif known != value:
            if key == "classes" and isinstance(known, list) and {*known} != {*value}:
                known, value = sorted({*known} - {*value}), sorted({*value} - {*known})
            raise InputError(f"{path} belongs to a run with other settings ({key}: {known!r:.70}, "
                             f"not {value!r:.70}): give what it was made with, or another output")


def require_agreement(value: object) -> None:
    """Return when every process has come here; InputError unless all of them give the same."""
    if any(other != value for other in devices.gathered(value)):
        raise InputError("the processes find different images, settings or states of a run: they "
                         "need the same disk, and nothing may be added meanwhile")


def require_place(out: str | Path, folders: Iterable[str | Path | None]) -> Path:
    """InputError, before any work, if `out` cannot be written, or lies in one of these folders of
    images (None: no folder), of which it would become a part. Returns `out`, if it is a
    folder that exists, or the nearest of its parents that exists.
    """
    for folder in folders:
        if folder and Path(out).resolve().is_relative_to(Path(folder).resolve()):
            raise InputError(f"{out} lies in {folder} and would become a part of it: choose an "
                             "output elsewhere")
    place = Path(out).absolute()
    existing = next(path for path in [place] * place.is_dir() + [*place.parents] if path.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise InputError(f"{out}: {existing} cannot be written to ({error.strerror}); choose "
                         "another place") from None
    return existing


HELD = set()  # the files of this process's locks
# Worker processes close them, or the locks would outlive a killed process by some seconds.
os.register_at_fork(after_in_child=lambda: [file.close() for file in HELD])


@contextlib.contextmanager
def lock(place: str | Path, name: str | Path) -> Iterator[None]:
    """Inside, no other process works at this place; InputError if one already does.

    Meanwhile the file `name` identifies this process. One that dies leaves it behind, but unlocked.
    """
    path = Path(name)
    if devices.rank() > 0:  # of torchrun's processes the first one locks
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        try:
            file = open(path, "a+")
        except OSError as error:
            raise InputError(f"{path}: not written ({error}); choose another place") from None
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if not os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                    continue  # it was released, and removed, just before
            except FileNotFoundError:
                continue
            except BlockingIOError:
                file.seek(0)
                raise InputError(f"{place}: another process is at this run{file.read()}; wait for "
                                 "it, or choose another output") from None
            except OSError:
                pass  # a file system without locks
            HELD.add(file)
            file.truncate(0)
            file.write(f" (number {os.getpid()} on {platform.node()})")
            file.flush()
            try:
                yield
            finally:
                HELD.discard(file)
                path.unlink(missing_ok=True)
            return


@contextlib.contextmanager
def claim(folder: Path, settings: dict, **about: dict) -> Iterator[None]:
    """Make a run's folder, or continue in it; `about` is saved, but not compared.

    InputError if it belongs to other settings, or while another process is at it.
    """
    path = folder / "config.json"
    with lock(folder, folder / "run.lock"):
        if devices.rank() == 0:
            if not path.exists():
                write_json(path, settings | about)
            require_same(path, read_json(path), settings)
        devices.wait_for_all()
        yield
