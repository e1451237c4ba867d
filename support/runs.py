"""A training run: its checkpoint, the state to continue from, its log.

The run of x.pt has four files:

    x.pt        the checkpoint, written last: where it exists the run is finished
    x.resume    until then, the state to continue from
    x.lock      while a process works on it
    x.jsonl     the log, one JSON object per line (a loop of several runs shares one log)

The first two carry the settings they were made with. Only the first of a run's processes
writes.
"""

import contextlib
import json
import math
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from support import InputError, devices
from support.files import lock, require_agreement, require_same, write_atomically
from support.outline import Loop


def to_host(state: object) -> object:
    """A state dict, nested or not, with its tensors on the CPU."""
    if isinstance(state, Tensor):
        return state.detach().cpu()
    if isinstance(state, dict):
        return {key: to_host(value) for key, value in state.items()}
    return [to_host(value) for value in state] if isinstance(state, list) else state


def stem(out: str | Path) -> Path:
    """A checkpoint's path without .pt or .pth: the paths of the files beside it begin with it."""
    out = Path(out)
    return out.with_suffix("") if out.suffix in (".pt", ".pth") else out


class Run:
    """One training run, of anything that has `state_dict` and `load_state_dict`.

    Args:
        out: the checkpoint to write.
        settings: all that decides the result; JSON-able. InputError if `out`, or the state beside
            it, was made with others.
        steps: how many there are.
        every: for each of "log", "evaluate" and "save", the steps from one to the next. ("save"
            may be None: a 20th of the run, 10 to 500.)
        name: of the run, in the log and before the progress bar.
        loop: the one this run is a phase of; its log replaces the one beside the checkpoint.
    """

    def __init__(self, out: str | Path, settings: dict, steps: int, *, every: dict[str, int | None],
                 name: str, loop: Loop | None = None):
        self.out, self.settings, self.total = Path(out), settings, steps
        if self.out.suffix in (".resume", ".jsonl", ".lock"):
            raise InputError(f"{out}: files beside a checkpoint have such names; use "
                             f"{self.out.stem}.pt")
        for other in (Path(f"{stem(out)}{ending}") for ending in ("", ".pt", ".pth")):
            if other != self.out and other.is_file():
                raise InputError(f"{other} is there, and the files beside {out} would be named as "
                                 "those beside it: choose another output")

        self.state = Path(f"{stem(out)}.resume")
        self.log_file = loop.log if loop else Path(f"{stem(out)}.jsonl")
        self.every = every | {"save": every["save"] or min(500, max(10, steps // 20))}
        self.name, self.first, self.images, self.figures = name, 0, 0, {}
        self.loop, self.seconds = loop, 0.0  # seconds: of the processes before this one
        self.finished, self.lock = self.out.exists(), Path(f"{stem(out)}.lock")
        require_agreement(self.finished)
        if self.finished:
            self._read(self.out)
            if devices.rank() == 0:
                self.state.unlink(missing_ok=True)  # the run was killed just before it did so
                if not (loop and name in loop.ended):
                    tqdm.write(f"{out}: finished already")
        else:
            with lock(self.out, self.lock):  # to fail early; `steps` then takes the lock
                pass

    def _read(self, path: Path) -> dict:
        """What `_write` wrote; InputError if it is something else or belongs to another run."""
        try:
            contents = torch.load(path, map_location="cpu", weights_only=True)
            found = json.loads(contents["meta"])
        except Exception as error:  # another kind of file, or a directory, raises nearly anything
            if isinstance(error, OSError) and not path.is_dir():
                raise InputError(f"{path} was not read ({error}): the same command continues once "
                                 "it can be") from None
            raise InputError(f"{path} is in the way and not a checkpoint of train.py: remove it, "
                             "or choose another output") from None
        require_same(path, found, self.settings)
        return contents

    def _write(self, path: Path, contents: dict) -> None:
        if devices.rank() == 0:
            contents = {"meta": json.dumps(self.settings)} | contents
            write_atomically(path, lambda file: torch.save(contents, file))
        devices.wait_for_all()

    def resume(self, **parts: object) -> int:
        """The step to continue from, counted from 0; puts the parts back as they were then."""
        self.parts = parts
        if self.state.exists():
            state = self._read(self.state)
            for name, part in parts.items():
                part.load_state_dict(state[name])
            self.first, self.seconds = state["step"], state.get("seconds", 0.0)
        require_agreement(self.first)
        return self.first

    def steps(self, batches: Iterable) -> Iterator[tuple]:
        """(step, batch) to the last one, under a progress bar and with the lock held."""
        with contextlib.ExitStack() as held:
            held.enter_context(lock(self.out, self.lock))
            trim_log(self.log_file, self.name, self.first)
            self.bar = tqdm(batches, self.name, self.total, initial=self.first, unit="step",
                            disable=devices.rank() > 0,
                            mininterval=0.5 if sys.stderr.isatty() else 20)
            self.started = time.perf_counter()
            for step, batch in enumerate(self.bar, start=self.first):
                self.images += len(batch)
                yield step, batch
            self.held = held.pop_all()  # until the checkpoint is written

    def due(self, what: str, step: int) -> bool:
        """Whether to "log", "evaluate" or "save" after this step; a save comes with a log."""
        if step + 1 == self.total:
            return what != "save"
        return (step + 1) % self.every[what] == 0 or what == "log" and self.due("save", step)

    def log(self, step: int, **figures: float) -> None:
        """Add a line to the log, and to the progress bar; FloatingPointError if the loss is NaN."""
        seconds = time.perf_counter() - self.started
        if "loss" in figures:
            figures |= {"images_per_second": round(self.images / seconds, 1),
                        "seconds": round(self.seconds + seconds, 1)}
        self.figures |= figures
        if not math.isfinite(figures.get("loss", 0)):
            raise self._diverged(f"the loss is {figures['loss']} at step {step}")
        if devices.rank() == 0:
            try:
                with open(self.log_file, "a") as file:
                    file.write(json.dumps({"name": self.name, "step": step, **figures}) + "\n")
            except OSError as error:
                raise InputError(f"{self.log_file}: not written ({error}); make room: the same "
                                 "command continues") from None

        said = [f"{name}={self.figures[key]:{form}}" for name, key, form in (
            ("loss", "loss", ".3f"), ("val", "val_top1", ".1f"),
            ("images_s", "images_per_second", ".0f")) if key in self.figures]
        if self.loop:
            whole = seconds * self.total / (step + 1 - self.first)
            said.append(self.loop.left(self.name, (step + 1) / self.total, whole))
        self.bar.set_postfix_str(", ".join(said), refresh=False)

    def save(self, step: int) -> None:
        """Keep the state after this step; FloatingPointError if a weight is not finite."""
        state = {"network": to_host(self.parts["network"].state_dict())}
        if not all(value.isfinite().all() for value in state["network"].values()):
            raise self._diverged(f"weights are not finite after step {step}")
        if devices.rank() == 0:  # the others write nothing
            state |= {name: to_host(part.state_dict()) for name, part in self.parts.items()
                      if name != "network"}
        seconds = self.seconds + time.perf_counter() - self.started
        self._write(self.state, {"step": step + 1, "seconds": seconds, **state})

    def finish(self, **contents: object) -> Path:
        """Write the checkpoint, which ends the run, and return its path; FloatingPointError if a
        weight is not finite.
        """
        if not all(value.isfinite().all() for value in contents.get("model", {}).values()):
            raise self._diverged("weights are not finite in the end")
        with self.held:
            self._write(self.out, contents)
            if self.loop:
                self.loop.ended.add(self.name)
            if devices.rank() == 0:
                self.state.unlink(missing_ok=True)
        return self.out

    def _diverged(self, what: str) -> FloatingPointError:
        kept = f"; {self.state} holds the last finite state" if self.state.exists() else ""
        return FloatingPointError(
            f"{self.name}: {what}, learning rate {self.figures['learning_rate']:.3g}. Try a lower "
            f"one or a longer warm-up, and another output{kept}")


def trim_log(path: Path, name: str, first: int) -> None:
    """Drop the lines that an interrupted run wrote from step `first` on: they are written again."""
    if devices.rank() > 0 or not path.exists():
        return
    kept, line = [], ""
    try:
        *lines, _ = path.read_text().split("\n")  # after the last line's end: one that was cut off
        for line in lines:
            known = json.loads(line)
            if known["name"] != name or known["step"] < first:
                kept.append(line + "\n")
    except (OSError, ValueError, TypeError, KeyError):
        raise InputError(f"{path} is in the way and not a log of train.py ({line!r:.60}): choose "
                         "another output") from None
    write_atomically(path, lambda file: file.write("".join(kept).encode()))
