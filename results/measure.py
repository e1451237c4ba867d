"""The runs of studies.py: what each is, its training and its test, and the order in which many run.

A run is a chain of generations on a pool. Only its last generation is trained here, with the run
that lacks it as its teacher: so runs that begin alike share what they begin with.
"""

import csv
import json
import os
import platform
import re
import threading
import time
from collections.abc import Container, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from functools import cache
from multiprocessing import get_context, parent_process
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import iterate
import pseudo_label
import train
from iterate import Generation
from model import Checkpoint, scaling
from support import InputError, datasets, devices, files, images, outline, sources
from support.label_store import PseudoLabels


@dataclass(frozen=True)
class Run:
    """A chain of generations, the teacher first, and the pool of its students"""

    generations: tuple[Generation, ...]
    pool: str = "all"  # or a share such as "1/8", or "in-domain", "out-of-domain"

    @property
    def before(self) -> "Run | None":
        """The run of all generations but the last; None for a teacher."""
        if len(self.generations) == 1:
            return None
        return Run(self.generations[:-1], "all" if len(self.generations) == 2 else self.pool)

    @property
    def key(self) -> str:
        """All that decides its result, hashed to 16 hexadecimal digits."""
        chain = [asdict(replace(one, name="")) for one in self.generations]
        return files.digest(json.dumps([chain, self.pool], sort_keys=True))[:16]

    def checkpoint(self, seed: int, folder: Path) -> Path:
        return folder / f"{seed}-{self.key}.pt"

    def costs(self, sizes: tuple[int, int, int]) -> float:
        """The relative cost of all its trainings. sizes: Splits.sizes."""
        phases = outline.phases(self.generations, sizes, False, iterate.train_phases, scaling)
        return sum(phase.images * phase.cost for phase in phases)


def read_table(file: Path) -> list[dict]:
    """The lines of a CSV file about images, each with the image's name."""
    with open(file, newline="") as lines:
        rows = csv.DictReader(lines)
        if not {"file", "class"} <= {*(rows.fieldnames or ())}:
            raise InputError(f"{file}: its first line must name the columns: file,class")
        return [row | {"name": Path(row["file"]).name} for row in rows]


@cache
def read_truth(data: str) -> dict[str, str]:
    """The class of each image of the pool by its name; empty: none of the classes."""
    return {row["name"]: row["class"] for row in read_table(Path(data, "pool-truth.csv"))}


@cache
def read_all(data: str, size: int) -> images.Splits:
    """All images, at `size` pixels; InputError if an image of the pool has no truth, or a class
    that is not among the labelled ones.
    """
    folders = {name: f"{data}/{name}" for name in ("labeled", "val", "test")}
    splits = sources.read_folders(sources.Source(unlabeled=f"{data}/pool", **folders), size)
    truth = read_truth(data)
    if unknown := [file for file in splits.unlabeled.files if Path(file).name not in truth]:
        raise InputError(f"{data}/pool-truth.csv: {unknown[0]} is not in it")
    if strange := {*truth.values()} - {*splits.labeled.classes, ""}:
        raise InputError(f"{data}/pool-truth.csv: no class is called {min(strange)}")
    return splits


@cache
def read_splits(data: str, labels: int, size: int, pool: str = "all",
                seed: int = 0) -> images.Splits:
    """A seed's images at `size` pixels: `labels` labelled ones of each class, those after the
    previous seed's, and one of the pools: all, a share drawn at random ("1/8"), only images of the
    classes ("in-domain"), or as many of other classes ("out-of-domain").

    InputError if a class has too few labelled images for this seed to have new ones.
    """
    whole, classes = read_all(data, size), range(len(read_all(data, size).labeled.classes))
    rows = [(whole.labeled.labels == label).nonzero().flatten() for label in classes]
    if len(fewest := min(rows, key=len)) < (seed + 1) * labels:
        raise InputError(f"{data}/labeled: seed {seed} needs {(seed + 1) * labels} images of each "
                         f"class, {labels} of them new ones, but one has {len(fewest)}: "
                         "lower --seeds")
    in_turn = torch.cat([of_class.roll(-seed * labels) for of_class in rows])
    splits = replace(whole, labeled=datasets.split(whole.labeled.subset(in_turn), labels, 0)[0])
    if pool == "all":
        return splits
    truth = read_truth(data)
    own = np.array([bool(truth[Path(file).name]) for file in splits.unlabeled.files])
    rows = np.random.default_rng(seed).permutation(len(own))
    if "/" in pool:
        rows = rows[: len(rows) // int(pool.split("/")[1])]
    else:
        rows = rows[own[rows] == (pool == "in-domain")][: own.sum()]
    return replace(splits, unlabeled=splits.unlabeled.subset(torch.tensor(np.sort(rows))))


def shares(folder: Path, truth: dict[str, str]) -> dict[str, float]:
    """Of the images chosen in a folder of labels: their number; in percent how many show one of the
    classes, how many of these are labelled correctly, and how many of a student's images, copies
    counted, are right. truth: see `read_truth`.
    """
    chosen = read_table(folder / "labels.csv")
    own = [row for row in chosen if truth[row["name"]]]
    right = [row for row in own if truth[row["name"]] == row["class"]]
    copies = [sum(int(row["copies"]) for row in rows) for rows in (right, chosen)]
    return {"unique": len(chosen), "of_a_class": 100 * len(own) / len(chosen),
            "of_these_right": 100 * len(right) / max(len(own), 1),
            "right_with_copies": 100 * copies[0] / copies[1]}


def measure(run: Run, seed: int, data: str, labels: int, folder: Path, robust: bool) -> dict:
    """Train a run's last generation and test it: accuracies in percent, losses, minutes.

    data, labels: see `read_splits`.
    robust: also by the quick suite; figures for which lower is better are negated.
    """
    begun, number = time.monotonic(), len(run.generations) - 1
    machine, generation = devices.CPU.chosen(), run.generations[-1]
    generation = replace(generation, config=replace(generation.config, seed=seed)).seeded(number)
    splits = read_splits(data, labels, generation.config.image_size, run.pool, seed)
    out, pseudo, start = run.checkpoint(seed, folder), None, None
    if run.before:
        teacher = run.before.checkpoint(seed, folder)
        start = teacher if generation.from_teacher else None
        pseudo = pseudo_label.label(
            Checkpoint.load(teacher), splits.unlabeled, out.with_suffix(""), generation.labelling,
            seed=generation.config.seed, machine=machine, progress=None)

    def learn(config: train.TrainConfig, name: str, pseudo: PseudoLabels | None,
              start: Path | None) -> Path:
        place = out.with_stem(f"{out.stem}-pretrained") if "pretrained" in name else out
        return train.train(config, splits.labeled, splits.validation, pseudo, out=place,
                           start=start, machine=machine, name=name)

    checkpoint = iterate.train_phases(generation, learn, pseudo, start)
    row = iterate.test(generation, checkpoint, pseudo, None, splits.test, machine, robust)
    lines = map(json.loads, out.with_suffix(".jsonl").read_text().splitlines())
    losses = [line for line in lines if "loss_unlabeled" in line]
    found = {name: row[name] for name in ("val_top1", "test_top1")}
    if pseudo:
        found |= shares(out.with_suffix(""), read_truth(data))
    for name in "loss_labeled", "loss_unlabeled":  # over the last tenth of the training
        last = [line[name] for line in losses[-max(1, len(losses) // 10):]]
        found[name] = float(np.mean(last)) if last else None
    if losses:
        found["loss_gap"] = found["loss_labeled"] - found["loss_unlabeled"]
    if suite := row["robustness"]:
        found |= {"corruptions": -suite["unnormalized_mce"], "flips": -suite["unnormalized_mfr"],
                  "fgsm": suite["fgsm_top1"]["4"]}
    return found | {"minutes": (time.monotonic() - begun) / 60}


def processor() -> str:
    """The kind of this machine's processor: others round differently, and give other figures."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    about = dict(re.findall(r"^(.*?)\s*: (.*)$", text, re.M))
    return ", ".join(f"{name} {about[name]}" for name in ("model name", "cpu family", "model")
                     if name in about) or platform.machine()


def missing(wanted: Iterable[Run], seed: int, known: Mapping, folder: Path) -> dict[tuple, Run]:
    """By seed and key the runs that are not `known`, and those before them that left no checkpoint
    here.
    """
    found: dict[tuple, Run] = {}

    def add(run: Run) -> None:
        found[seed, run.key] = run
        if run.before and not run.before.checkpoint(seed, folder).exists():
            add(run.before)

    for run in wanted:
        if run.key not in known:
            add(run)
    return found


def builds_on(run: Run, other: Run) -> bool:
    """Whether one of the runs before `run` is `other`."""
    return run.before is not None and (run.before.key == other.key or builds_on(run.before, other))


def _alone(output: Path) -> None:
    """Let this process compute with one thread, write its output to a file, and end with the
    process that started it: a killed command must not hold its runs' locks.
    """
    def end_too() -> None:
        parent_process().join()
        os._exit(1)

    threading.Thread(target=end_too, daemon=True).start()
    torch.set_num_threads(1)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)


def measure_all(waiting: dict[tuple, Run], processes: int, data: str, labels: int, folder: Path,
                robust: Container[str]) -> Iterator[tuple[int, Run, dict]]:
    """Measure runs, each after the one it builds on: seed, run and result of each as it is done.

    One that fails, for example because no image of the pool is confident enough, is named by its
    checkpoint and left out, with those that build on it. InputError if a process was killed.

    waiting: by seed and key; robust: the keys of those that the quick suite measures.
    """
    os.environ["OMP_NUM_THREADS"] = "1"  # read by the new processes
    with ProcessPoolExecutor(processes, get_context("spawn"), _alone,
                             (folder / "output.txt",)) as pool:
        waiting, running = dict(waiting), {}
        while waiting or running:
            busy = {*waiting, *((seed, run.key) for seed, run in running.values())}
            ready = [(seed, run) for (seed, _), run in waiting.items()
                     if not run.before or (seed, run.before.key) not in busy]
            for seed, run in ready[: processes - len(running)]:
                del waiting[seed, run.key]
                job = pool.submit(measure, run, seed, data, labels, folder, run.key in robust)
                running[job] = seed, run

            for job in wait(running, return_when=FIRST_COMPLETED).done:
                seed, run = running.pop(job)
                try:
                    yield seed, run, job.result()
                except BrokenProcessPool:
                    raise InputError("a training's process was killed, perhaps for want of memory: "
                                     "the same command continues") from None
                except Exception as error:
                    said = " ".join(f"{type(error).__name__}: {error}".split())
                    tqdm.write(f"{run.checkpoint(seed, folder).name}: {said}; it is left out")
                    waiting = {place: other for place, other in waiting.items()
                               if place[0] != seed or not builds_on(other, run)}
