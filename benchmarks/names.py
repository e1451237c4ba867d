"""The names of a large pool: a tuple in each process against a file that all of them map.

    python benchmarks/names.py --names 10000000

Made-up names of 41 letters. Memory is what a process keeps for itself (Private_Dirty in Linux's
/proc/self/smaps_rollup): of the one that made them, and what a worker that was forked from it adds
by reading random batches of 2,048 names. Listing is measured on real, empty files, fewer of them.
"""

import argparse
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from support import folders, names

BATCH, BATCHES = 2048, 200


def private() -> float:
    """MiB that this process alone keeps in memory."""
    with open("/proc/self/smaps_rollup") as file:
        return sum(int(line.split()[1]) for line in file if line.startswith("Private_Dirty")) / 1024


def made_up(count: int) -> Iterator[str]:
    return (f"pool/{number // 10_000:08}/photograph-{number:012}.jpg" for number in range(count))


def read_batches(found: tuple[str, ...] | names.Names, seed: int) -> tuple[float, float]:
    """(milliseconds of a batch, MiB that this process kept for itself meanwhile)."""
    rows = np.random.default_rng(seed).integers(0, len(found), (BATCHES, BATCH))
    before, start = private(), time.perf_counter()
    for batch in rows:
        [found[row] for row in batch.tolist()]
    return 1000 * (time.perf_counter() - start) / BATCHES, private() - before


def work(found: tuple[str, ...] | names.Names, seed: int, results: multiprocessing.Queue) -> None:
    results.put(read_batches(found, seed))


def measure(title: str, make: Callable) -> None:
    before, start = private(), time.perf_counter()
    found = make()
    seconds, memory = time.perf_counter() - start, private() - before
    batch, _ = read_batches(found, 0)
    fork = multiprocessing.get_context("fork")
    results = fork.Queue()
    workers = [fork.Process(target=work, args=(found, seed, results)) for seed in (1, 2)]
    for worker in workers:
        worker.start()
        worker.join()
    grown = max(results.get()[1] for _ in workers)
    print(f"{title:10} {len(found):>12,} names {seconds:8.1f} s {memory:10,.0f} MiB "
          f"{batch:8.1f} ms a batch {grown:8,.0f} MiB more in a worker", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--names", type=int, default=1_000_000)
    parser.add_argument("--files", type=int, default=200_000, help="real ones, to list")
    parser.add_argument("--no-tuple", action="store_true", help="only the mapped file")
    parser.add_argument("--folder", default=".", help="where the names go")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=flags.folder) as folder:
        for number in range(flags.files):
            if number % 1000 == 0:
                (part := Path(folder, f"{number // 1000:06}")).mkdir()
            (part / f"photograph-{number:012}.jpg").touch()
        start = time.perf_counter()
        found = sum(1 for _ in folders.walk(folder))
        seconds = time.perf_counter() - start
        print(f"listed     {found:>12,} files {seconds:8.1f} s", flush=True)
    measure("mapped", lambda: names.write(made_up(flags.names), flags.folder))
    if not flags.no_tuple:
        measure("tuple", lambda: tuple(made_up(flags.names)))


if __name__ == "__main__":
    main()
