"""Contestants in one process, by turns: what slows the machine down slows all of them."""

import statistics
import time
from collections.abc import Callable, Mapping

import torch


def medians(contestants: Mapping[str, Callable], rounds: int, warm_up: int = 1) -> dict[str, float]:
    """Median seconds of each; the first rounds warm up."""
    seconds = {name: [] for name in contestants}
    for _ in range(warm_up + rounds):
        for name, work in contestants.items():
            started = time.perf_counter()
            work()
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(times[warm_up:]) for name, times in seconds.items()}
