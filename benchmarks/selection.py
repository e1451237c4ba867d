"""How `select` grows from 1 M to the paper's 300 M images.

    python benchmarks/selection.py [--largest 300e6]

Random images of 1000 classes, the n-th most frequent with a share of 1/n; confidences uniform in
0..1; threshold 0.3 and, of 300 M images, 130,000 a class, of fewer in proportion. Each size runs in
a process of its own; the peak is that of its memory beyond the inputs (float32 and int16). The
histogram, for comparison, is one pass that only counts confidences.
"""

import argparse
import math
import multiprocessing
import os
import resource
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import pseudo_label

SIZES = (1_000_000, 3_000_000, 10_000_000, 30_000_000, 100_000_000, 300_000_000)
CLASSES, PAPER, PER_CLASS = 1000, 300_000_000, 130_000
BLOCK = 2**22  # images that are drawn or counted at once


def draw(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Confidences (count,) float32 and labels (count,) int16."""
    random, shares = np.random.default_rng(0), 1 / np.arange(1, CLASSES + 1)
    bounds = (shares.cumsum() / shares.sum() * 2**16).round().astype(int)
    classes = np.arange(CLASSES, dtype=np.int16).repeat(np.diff(bounds, prepend=0))
    confidence, label = np.empty(count, np.float32), np.empty(count, np.int16)
    for first in range(0, count, BLOCK):
        block = slice(first, min(first + BLOCK, count))
        random.random(out=confidence[block], dtype=np.float32)
        label[block] = classes[random.integers(2**16, size=block.stop - first, dtype=np.uint16)]
    return confidence, label


def measure(count: int) -> dict[str, float]:
    """Seconds, GiB, and numbers of images for one size."""
    confidence, label = draw(count)
    start = time.perf_counter()
    histogram = np.zeros(256, np.int64)
    for first in range(0, count, BLOCK):
        levels = (confidence[first: first + BLOCK] * 256).astype(np.uint8)
        histogram += np.bincount(levels, minlength=256)
    counted = time.perf_counter()
    before, worked = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()  # KiB
    chosen = pseudo_label.select(
        confidence, label, CLASSES, 0.3, max(1, PER_CLASS * count // PAPER)
    )
    seconds, worked = time.perf_counter() - counted, time.process_time() - worked
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    used = np.zeros(count, bool)
    used[chosen] = True
    return {"seconds": seconds, "cpu": worked, "peak": peak / 2**20,
            "histogram": counted - start, "balanced": len(chosen), "unique": int(used.sum())}


def main() -> None:
    parser = argparse.ArgumentParser(description="How select grows.")
    parser.add_argument("--largest", type=float, default=300e6, help="images")
    arguments = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n")
    print("| images | seconds | CPU seconds | ns / (n log2 n) | peak, GiB | histogram, s | "
          "balanced | unique |")
    print("|---|---|---|---|---|---|---|---|")
    for count in (size for size in SIZES if size <= arguments.largest):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            row = pool.apply(measure, (count,))
        scaled = 1e9 * row["seconds"] / (count * math.log2(count))
        print(f"| {count:,} | {row['seconds']:.2f} | {row['cpu']:.2f} | {scaled:.2f} | "
              f"{row['peak']:.2f} | {row['histogram']:.2f} | {row['balanced']:,} | "
              f"{row['unique']:,} |", flush=True)


if __name__ == "__main__":
    main()
