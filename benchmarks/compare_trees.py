"""Is a tree slower than another one? The same work in both by turns, and the ratio of the times.

    git worktree add ../old 807b427
    OMP_NUM_THREADS=1 python benchmarks/compare_trees.py ../old . [--alternations 20] [--only NAME]

One process for each tree stays alive and does what it is told through a pipe; which of the two
begins changes from turn to turn, and the first turn warms up. A ratio is the old tree's seconds by
the new one's: above 1 the new tree is faster. The interval holds the median with 95 % probability
whatever the ratios' distribution (it is between two of them in order); it takes six turns.
"""

import sys

sys.path.pop(0)  # the files beside this one have the names of the trees' and of Python's own
import argparse
import contextlib
import json
import math
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

WARM_UP, STEPS, WORKERS = 6, 20, 2  # of a training

# ---- What differs between the trees ----


class Tree:
    """The modules of the tree in the current directory."""

    def __init__(self):
        sys.path.insert(0, os.getcwd())
        import augment
        import iterate
        import model
        import pseudo_label
        import train

        self.augment, self.model, self.pseudo_label = augment, model, pseudo_label
        self.train, self.demo = train, iterate.PLANS["demo"][-1].config
        self.has_floor = Path("support").is_dir()
        if self.has_floor:
            from support import datasets, devices, images
            self.image_set, self.read_folder = images.ImageSet, datasets.read_folder
        else:
            import data
            import device as devices
            self.image_set, self.read_folder = data.ImageSet, data.read_folder
        devices.choose("cpu")  # freed memory is kept
        self.machine = devices.Machine("cpu", WORKERS) if self.has_floor else None

    def learn(self, config, images, out: Path) -> Path:
        """Train on images that are their own pool, if the configuration wants one."""
        targets = torch.full((len(images), len(images.classes)), 0.1).half().numpy()
        options = {"out": out, "log_steps": WARM_UP, "checkpoint_steps": 10**9}
        if not self.has_floor:
            pool = (images, targets) if config.unlabeled_ratio else ()
            return self.train.train(config, images, None, *pool, workers=WORKERS, **options)
        from support.label_store import PseudoLabels
        pseudo = PseudoLabels(images, targets, np.arange(len(images)))
        return self.train.train(config, images, None, pseudo if config.unlabeled_ratio else None,
                                machine=self.machine, **options)


# ---- The work: each gives a function that returns its seconds ----

Work = Callable[[], float]


def timed(work: Callable[[], object], times: int = 1) -> Work:
    def measure() -> float:
        started = time.perf_counter()
        for _ in range(times):
            work()
        return time.perf_counter() - started

    return measure


def network_step(tree: Tree, arch: str, size: int, batch: int, train: bool, times: int) -> Work:
    network = tree.model.efficientnet(arch).to(memory_format=torch.channels_last).train(train)
    images = torch.randn(batch, 3, size, size).contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(batch, dtype=torch.int64)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, foreach=True)

    def step() -> None:
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return timed(step if train else torch.inference_mode()(lambda: network(images)), times)


def pictures(count: int, size: int) -> Tensor:
    """Blurred noise: uint8 (count, 3, size, size)."""
    rough = 255 * torch.rand(count, 3, 12, 12)
    return F.interpolate(rough, size=(size, size), mode="bicubic").clamp(0, 255).to(torch.uint8)


def rand_augment(tree: Tree, count: int, size: int, times: int) -> Work:
    images, generator = pictures(count, size), torch.Generator().manual_seed(0)
    noise = tree.augment.RandAugment(2, 9)
    return timed(lambda: noise(images, generator), times)


def training(tree: Tree, from_files: bool) -> Work:
    """All steps but the first few, by the log: those share memory with the workers' start."""
    config, labels, classes = tree.demo, torch.arange(960) % 10, tuple("0123456789")
    folder = tempfile.TemporaryDirectory()
    if from_files:
        config = replace(config, image_size=96, batch_size=32, unlabeled_ratio=0)
        for number, picture in enumerate(pictures(960, 200).permute(0, 2, 3, 1).numpy()):
            place = Path(folder.name, classes[number % 10])
            place.mkdir(exist_ok=True)
            Image.fromarray(picture).save(place / f"{number}.jpg", quality=90)
        images = tree.read_folder(folder.name, 96)
    else:
        images = tree.image_set(labels, classes, pictures(960, 32))
    batch = config.batch_size * (1 + config.unlabeled_ratio)
    config = replace(config, epochs=(WARM_UP + STEPS) * config.batch_size / 960,
                     evaluate_epochs=1e9)

    def measure() -> float:
        out = Path(tempfile.mkdtemp(dir=folder.name), "a.pt")
        log = tree.learn(config, images, out).with_suffix(".jsonl")
        lines = [line for line in map(json.loads, log.open()) if "images_per_second" in line]
        first, last = ((line["step"] + 1) * batch / line["images_per_second"]
                       for line in (lines[0], lines[-1]))
        return last - first

    return measure


def predict(tree: Tree) -> Work:
    network = tree.model.efficientnet("0.35x0.5", 10).to(memory_format=torch.channels_last)
    images = pictures(2000, 32)
    return timed(lambda: tree.pseudo_label.predict(network, images), 2)


def select(tree: Tree) -> Work:
    random = np.random.default_rng(0)
    confidence = random.random(10**6, dtype=np.float32)
    label = (1000 * random.random(10**6) ** 2).astype(np.int16)  # uneven classes
    return timed(lambda: tree.pseudo_label.select(confidence, label, 1000, 0.3, 433), 5)


CASES: dict[str, tuple] = {
    "model, training, b0 at 224": (network_step, "b0", 224, 8, True, 1),
    "model, inference, b0 at 224": (network_step, "b0", 224, 8, False, 3),
    "model, training, 0.35x0.5 at 32": (network_step, "0.35x0.5", 32, 192, True, 5),
    "model, inference, 0.35x0.5 at 32": (network_step, "0.35x0.5", 32, 192, False, 20),
    "augment, 32": (rand_augment, 512, 32, 20),
    "augment, 224": (rand_augment, 32, 224, 20),
    "train, from memory": (training, False),
    "train, from JPEG files": (training, True),
    "predict": (predict,),
    "select": (select,),
}


# ---- One process a tree ----


def worker() -> None:
    """Read the number of a case, do its work, answer with the seconds; until there is no more."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a tree prints is no answer
    tree, work = Tree(), {}
    for line in sys.stdin:
        name = line.strip()
        if name not in work:
            torch.manual_seed(0)
            build, *arguments = CASES[name]
            work = {name: build(tree, *arguments)}
        with open(os.devnull, "w") as nothing, contextlib.redirect_stderr(nothing):  # no bars
            seconds = work[name]()
        print(seconds, file=answers, flush=True)


def ask(process: subprocess.Popen, name: str) -> float:
    print(name, file=process.stdin, flush=True)
    return float(process.stdout.readline() or sys.exit("a worker died"))


def interval(ratios: list[float]) -> tuple[float, float]:
    """Two of the ratios that have the median between them with a probability of 95 % or more.

    A ratio is as likely below the median as above it. Fewer than six ratios: all of them.
    """
    count, beyond, outside = len(ratios), 0, 2 / 2 ** len(ratios)
    while outside <= 0.05:
        beyond += 1
        outside += 2 * math.comb(count, beyond) / 2**count
    beyond = max(0, beyond - 1)
    return sorted(ratios)[beyond], sorted(ratios)[count - 1 - beyond]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old", type=Path, nargs="?")
    parser.add_argument("new", type=Path, nargs="?")
    parser.add_argument("--alternations", type=int, default=20)
    parser.add_argument("--only", default="", help="cases whose names begin so")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker()
        return
    workers = [subprocess.Popen(
        [sys.executable, __file__, "--worker"], cwd=tree, text=True, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) for tree in (arguments.old, arguments.new)]
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {os.cpu_count()} cores, "
          f"load {os.getloadavg()[0]:.1f}\n")
    print("| work | old, s | new, s | old / new | 95 % interval |\n|---|---|---|---|---|")
    for name in filter(lambda name: name.startswith(arguments.only), CASES):
        seconds = []
        for turn in range(arguments.alternations + 1):
            first = turn % 2
            times = {number: ask(workers[number], name) for number in (first, 1 - first)}
            seconds.append((times[0], times[1]))
        old, new = zip(*seconds[1:], strict=True)
        ratios = [before / after for before, after in zip(old, new, strict=True)]
        low, high = interval(ratios)
        print(f"| {name} | {statistics.median(old):.3f} | {statistics.median(new):.3f} | "
              f"{statistics.median(ratios):.3f} | {low:.3f} to {high:.3f} |", flush=True)
    for process in workers:
        process.stdin.close()
        process.wait()


if __name__ == "__main__":
    main()
