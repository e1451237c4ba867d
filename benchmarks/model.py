"""EfficientNet-B0 side by side with timm's and torchvision's: images per second and memory.

    OMP_NUM_THREADS=2 python benchmarks/model.py [--rounds 15]
    python benchmarks/model.py --device cuda            bfloat16, batch 256, also compiled

One process, contestants interleaved, medians over the rounds; the ratio is to the fastest of the
others. A training step is forward, cross entropy, backward and SGD's step; every network is
channels_last and drops paths with probability 0.2 and features with 0.2. Memory is the peak of a
training step above what was held before it: of its tensors and, on the CPU, also of a fresh process
(median of five), which depends on how the C library fills the holes between them.
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import model
from benchmarks.by_turns import medians
from support import devices

NETWORKS = {
    "model.py": lambda: model.efficientnet("b0"),
    "timm efficientnet_b0": lambda: timm.create_model(
        "efficientnet_b0", drop_rate=0.2, drop_path_rate=0.2),
    "timm tf_efficientnet_b0": lambda: timm.create_model(
        "tf_efficientnet_b0", drop_rate=0.2, drop_path_rate=0.2),
    "torchvision efficientnet_b0": lambda: torchvision.models.efficientnet_b0(),
}


def contestant(name: str, images: Tensor, train: bool, compiled: bool = False) -> Callable:
    """One training step, or one inference, of a fresh network on the images' device."""
    network = NETWORKS[name]().to(images.device, memory_format=torch.channels_last).train(train)
    labels = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, foreach=True)
    forward = torch.compile(network) if compiled else network
    half = torch.autocast(images.device.type, torch.bfloat16, enabled=images.device.type == "cuda")

    def step() -> None:
        with half:
            logits = forward(images)
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    def infer() -> None:
        with torch.inference_mode(), half:
            forward(images)

    return step if train else infer


def example(batch_size: int, size: int, device: str) -> Tensor:
    images = torch.randn(batch_size, 3, size, size, device=device)
    return images.contiguous(memory_format=torch.channels_last)


def compare(batch_size: int, size: int, train: bool, rounds: int, device: str,
            compiled: bool = False) -> dict[str, float]:
    """Median images per second of every network; two rounds warm up."""
    images = example(batch_size, size, device)
    work = {name: contestant(name, images, train, compiled) for name in NETWORKS}
    seconds = medians(work, rounds, warm_up=2)
    return {name: batch_size / median for name, median in seconds.items()}


def tensor_memory(name: str, batch_size: int, size: int, device: str) -> float:
    """MiB of tensors that a training step holds at most, beyond the network and the images."""
    step = contestant(name, example(batch_size, size, device), True)
    step()
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with torch.profiler.profile(profile_memory=True) as profile:
        step()
    with tempfile.TemporaryDirectory() as folder:
        profile.export_chrome_trace(f"{folder}/trace.json")
        events = json.loads(Path(folder, "trace.json").read_text())["traceEvents"]
    changes = sorted((event["ts"], event["args"]["Bytes"]) for event in events
                     if event.get("name") == "[memory]")
    return max(itertools.accumulate(change for _, change in changes)) / 2**20


def high_water() -> float:
    """The most memory that this process has held, in MiB."""
    (line,) = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


def process_memory(name: str, batch_size: int, size: int) -> float:
    """MiB that a fresh process grows by in two training steps on the CPU."""
    command = [sys.executable, __file__, "--memory", name, str(batch_size), str(size)]
    return statistics.median(
        float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        for _ in range(5)
    )


def print_table(title: str, figures: dict[str, float], unit: str, higher_is_better: bool) -> None:
    others = [figure for name, figure in figures.items() if name != "model.py"]
    best = max(others) if higher_is_better else min(others)
    print(f"\n{title}\n")
    for name, figure in figures.items():
        print(f"    {name:30s}{figure:10.1f} {unit}   {figure / best:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of EfficientNet-B0.")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--memory", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    devices.choose(arguments.device)  # on a CPU freed memory is kept, for all of them
    if arguments.memory:  # the fresh process of process_memory
        name, batch_size, size = arguments.memory
        step = contestant(name, example(int(batch_size), int(size), "cpu"), True)
        before = high_water()
        step()
        step()
        print(high_water() - before)
        return

    device = arguments.device
    hardware = (torch.cuda.get_device_name() if device == "cuda"
                else f"{torch.get_num_threads()} threads")
    print(f"torch {torch.__version__}, torchvision {torchvision.__version__}, "
          f"timm {timm.__version__}, {hardware}")
    settings = [(256, 224)] if device == "cuda" else [(16, 224), (128, 32)]
    for batch_size, size in settings:
        for compiled in (False, True) if device == "cuda" else (False,):
            for train in (True, False):
                figures = compare(batch_size, size, train, arguments.rounds, device, compiled)
                title = f"{'training step' if train else 'inference'}, {batch_size} images of " \
                        f"{size}x{size}{', compiled' if compiled else ''}"
                print_table(title, figures, "images/s", higher_is_better=True)
        measures = {"tensors": partial(tensor_memory, device=device)}
        if device == "cpu":
            measures["fresh process"] = process_memory
        for what, measure in measures.items():
            memory = {name: measure(name, batch_size, size) for name in NETWORKS}
            print_table(f"peak memory of a training step, {what}, {batch_size} images of "
                        f"{size}x{size}", memory, "MiB", higher_is_better=False)


if __name__ == "__main__":
    main()
