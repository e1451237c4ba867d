"""How `select` grows from 1 M to the paper's 300 M images, and a plan of that whole job.

    python benchmarks/select.py [--largest 300e6] [--images-per-second 5000 500]

Random images of 1000 classes, the n-th most frequent with a share of 1/n; confidences uniform in
0..1; threshold 0.3 and, of 300 M images, 130,000 a class, of fewer in proportion. Each size runs in
a process of its own; the peak is that of its memory beyond the inputs (float32 and int16). The
histogram, for comparison, is one pass that only counts confidences.

The two speeds are the measured images/s of one accelerator with the teacher that chooses images
(pass 1) and with the one that labels them (pass 2): benchmarks/predict.py measures such.
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path = [str(HERE.parent)] + [path for path in sys.path if Path(path).resolve() != HERE]
if __name__ == "select":
    # A script beside this file, whose libraries need Python's own module of that name: pass it on.
    del sys.modules["select"]
    import select  # noqa: F401
else:
    import argparse
    import math
    import multiprocessing
    import os
    import resource
    import time

    import numpy as np

    import pseudo_label

SIZES = (1_000_000, 3_000_000, 10_000_000, 30_000_000, 100_000_000, 300_000_000)
CLASSES, PAPER, PER_CLASS, UNIQUE = 1000, 300_000_000, 130_000, 81_000_000
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


def plan(first_speed: float, second_speed: float) -> str:
    """The paper's job: disk by file, and hours of one accelerator."""
    balanced = CLASSES * PER_CLASS
    files = {
        "confidence.npy, class.npy": (PAPER, 4 + 2), "unique.npy": (UNIQUE, 8),
        "target_class.npy": (UNIQUE, 2), "targets.npy": (UNIQUE, 2 * CLASSES),
        "balanced.npy": (balanced, 8),
    }
    lines = ["| file | images | bytes each | GB |", "|---|---|---|---|"]
    lines += [f"| {name} | {count:,} | {size:,} | {count * size / 1e9:.2f} |"
              for name, (count, size) in files.items()]
    total = sum(count * size for count, size in files.values())
    lines += [f"| all | | | {total / 1e9:.1f} |", "",
              "| pass | images | images/s | hours of one accelerator |", "|---|---|---|---|"]
    hours = [PAPER / first_speed / 3600, UNIQUE / second_speed / 3600]
    lines += [f"| 1 | {PAPER:,} | {first_speed:,.0f} | {hours[0]:,.1f} |",
              f"| 2 | {UNIQUE:,} | {second_speed:,.0f} | {hours[1]:,.1f} |",
              f"| both | | | {sum(hours):,.1f} |"]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="How select grows, and the paper's job.")
    parser.add_argument("--largest", type=float, default=300e6, help="images")
    parser.add_argument("--images-per-second", type=float, nargs=2, metavar=("PASS1", "PASS2"),
                        help="print the plan for these speeds")
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
    if arguments.images_per_second:
        print("\n" + plan(*arguments.images_per_second))


if __name__ == "__main__":
    main()
