"""Command lines from dataclasses, and errors as one line.

A script's main function takes dataclasses, and their fields are its flags:

    @dataclass(frozen=True)
    class Flags:
        checkpoint: cli.File  # of train.py, or released weights
        steps: cli.Count = 10  # of the attack

    def main(flags: Flags, changes: cli.Given[TrainConfig]) -> None: ...

    sys.exit(cli.run(main))

The comment behind a field is its help, a field without a default is required, `Literal` gives the
choices, bool a pair --x and --no-x, and the types below set a range. `Given[T]` are the fields of T
that the user gave, as a dict, for settings whose defaults are found elsewhere; `Annotated[T, "x"]`
has flags for the named fields alone. A field named in an earlier dataclass is not a flag again.
"""

import argparse
import inspect
import math
import re
import sys
import typing
from collections.abc import Callable, Iterator
from dataclasses import MISSING
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from torch import distributed

from support import InputError


class Given(dict):
    """The fields of a dataclass that the command line gives."""


class Range(NamedTuple):
    """Numbers from `low` to `high`, both included; `wanted` says so in words."""

    low: float
    high: float
    wanted: str


NO_FLAG = "no flag"
LEAST, BELOW_ONE = math.nextafter(0, 1), math.nextafter(1, 0)
Count = Annotated[int, Range(1, 10**9, "1 to 1,000,000,000"), "N"]
Batch = Annotated[int, Range(1, 100_000, "1 to 100,000"), "N"]
Workers = Annotated[int, Range(0, 1000, "0 to 1,000"), "N"]
Whole = Annotated[int, Range(0, 2**63, "0 or more"), "N"]
NonNegative = Annotated[float, Range(0, 1e30, "0 or more"), "X"]
Positive = Annotated[float, Range(LEAST, 1e30, "more than 0"), "X"]
Temperature = Annotated[float, Range(0.01, 100, "0.01 to 100"), "X"]
Share = Annotated[float, Range(0, 1, "0 to 1"), "X"]
BelowOne = Annotated[float, Range(0, BELOW_ONE, "0 or more and below 1"), "X"]
Probability = Annotated[float, Range(LEAST, 1, "more than 0 and up to 1"), "X"]
Pixels = Annotated[int, Range(1, 10_000, "1 to 10,000"), "PIXELS"]
UpTo100 = Annotated[int, Range(0, 100, "0 to 100"), "N"]
Magnitude = Annotated[float, Range(0, 100, "0 to 100"), "X"]
Level = Annotated[float, Range(0, 255, "0 to 255"), "X"]  # of pixels
File = Annotated[str, "FILE"]
Folder = Annotated[str, "DIR"]
# What PyTorch says when a limit of the machine is reached, and what to do.
KNOWN = {
    "out of memory|MemoryError|DefaultCPUAllocator|not enough memory|size calculation overflowed":
        "out of memory: lower --batch-size or --image-size; when training, also try "
        "--accumulation-steps and, in the same --out, --checkpoint-blocks (other settings need "
        "another one)",
    "DataLoader worker|shared memory|process pool":
        "a worker that reads images was killed, most likely as the memory, or a container's shared "
        "memory, is full: give --workers 0, or start the container with --ipc=host or a larger "
        "--shm-size; the same command continues",
}


def _fields(config: type) -> Iterator[tuple[str, type, tuple, bool]]:
    """Name and type of each field, what `Annotated` adds to that, and whether it is a list."""
    for name, hint in typing.get_type_hints(config, include_extras=True).items():
        if type(None) in typing.get_args(hint):
            hint = typing.get_args(hint)[0]
        many = typing.get_origin(hint) is list
        hint = typing.get_args(hint)[0] if many else hint
        extras = getattr(hint, "__metadata__", ())
        yield name, hint.__origin__ if extras else hint, extras, many


def check(config: type, given: dict) -> None:
    """InputError unless each given field of a dataclass is within its type's range or choices."""
    for name, kind, extras, many in _fields(config):
        flag, found = "--" + name.replace("_", "-"), given.get(name)
        choices = typing.get_args(kind) if typing.get_origin(kind) is Literal else ()
        for value in () if found is None else found if many else [found]:
            if choices and value not in choices:
                raise InputError(f"{flag} {value!r} is unknown: use one of {', '.join(choices)}")
            for extra in extras:
                if isinstance(extra, Range) and not extra.low <= value <= extra.high:
                    raise InputError(f"{flag} {value}: give {extra.wanted}")


def _add_flag(group, name: str, kind: type, extras: tuple, many: bool, default: object,
              text: str) -> None:
    """Add a flag that leaves no value if it is not given; the dataclass has the default."""
    if kind is not bool and isinstance(default, int | float | str) and "default" not in text:
        text += f" (default: {default})"
    names = [extra for extra in extras if isinstance(extra, str)]
    options = {"dest": name, "default": argparse.SUPPRESS, "required": default is MISSING,
               "help": text.replace("%", "%%")} | ({"nargs": "+"} if many else {})
    if kind is bool:
        options["action"] = argparse.BooleanOptionalAction
    elif typing.get_origin(kind) is Literal:
        options["choices"] = typing.get_args(kind)
    else:
        options |= {"type": kind, "metavar": (*names, None)[0]}
    also = [other for other in names if other.startswith("--")]
    group.add_argument("--" + name.replace("_", "-"), *also, **options)


def parse(main: Callable, argv: list[str] | None = None) -> list:
    """The arguments for `main`, read from the command line according to its annotations."""
    module = sys.modules[main.__module__]
    parser = argparse.ArgumentParser(prog=Path(module.__file__).name,
                                     description=module.__doc__.split("\n\n")[0])
    parts, owner = [], {}
    for parameter in inspect.signature(main).parameters.values():
        hint, only = parameter.annotation, getattr(parameter.annotation, "__metadata__", ())
        hint = hint.__origin__ if only else hint
        make = typing.get_origin(hint) or hint  # Given, or the dataclass itself
        (config,) = typing.get_args(hint) or (hint,)
        parts.append((make, config))
        group = parser.add_argument_group(inspect.getdoc(config).splitlines()[0])
        comments = dict(re.findall(r"^    (\w+): .*?# (.*)$", inspect.getsource(config), re.M))
        for name, *about in _fields(config):
            if name not in owner and (name in only or not only) and NO_FLAG not in about[1]:
                owner[name] = config
                default = None if make is Given else config.__dataclass_fields__[name].default
                _add_flag(group, name, *about, default, comments.get(name, ""))

    values, arguments = vars(parser.parse_args(argv)), []
    for make, config in parts:
        own = {name: value for name, value in values.items() if owner[name] is config}
        check(config, own)
        arguments.append(make(**own))
    return arguments


def run(main: Callable, argv: list[str] | None = None) -> int:
    """Call a script's main function with its command line; return the process's exit code.

    What the user can fix becomes one line on stderr and the code 2.
    """
    name = Path(sys.modules[main.__module__].__file__).name
    for stream in (sys.stdout, sys.stderr):  # names of files and classes need not be encodable
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")

    try:
        main(*parse(main, argv))
    except (InputError, FloatingPointError, OSError) as error:
        print(f"{name}: {error}", file=sys.stderr)
    except (RuntimeError, MemoryError) as error:
        known = [line for words, line in KNOWN.items() if re.search(words, repr(error))]
        if not known:
            raise
        print(f"{name}: {known[0]}", file=sys.stderr)
    except KeyboardInterrupt:
        print(f"\n{name}: interrupted; the same command continues from what is kept, if any",
              file=sys.stderr)
        return 130
    else:
        if distributed.is_initialized():  # torchrun's processes part together
            distributed.barrier()
            distributed.destroy_process_group()
        return 0
    return 2
