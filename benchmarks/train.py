"""The whole training against its bare step, and against timm's, in images per second.

    OMP_NUM_THREADS=2 python benchmarks/train.py [--rounds 5]
    python benchmarks/train.py --device cuda            b0 with small_images, bfloat16, compiled

The bare step is forward, loss, backward, RMSProp and the average of the weights on random tensors
that are there already: what is lost between the two goes into reading, decoding, augmenting and
logging. timm's training is put together from its own parts (loader, augmentation, model, RMSpropTF,
ModelEmaV2) as its train.py does, which the package does not contain, with channels_last. Everything
in one process (loaders have workers), interleaved, medians over the rounds. Each round of either
training starts its own workers; the first steps are left out, in which the process also takes back
the pages of memory that it shares with them.
"""

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import timm
import timm.data
import timm.loss
import timm.optim
import timm.utils
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import iterate
import train
from results.draw_operations import example_image
from support import datasets, devices, plans
from support.images import ImageSet
from support.label_store import PseudoLabels

MAGNITUDE, WORKERS = 9, 2


def write_jpegs(folder: Path, count: int) -> None:
    """`count` pictures of 400x400 pixels in ten class folders."""
    picture = example_image(400)
    for number in range(count):
        place = folder / str(number % 10)
        place.mkdir(parents=True, exist_ok=True)
        picture.rotate(number).save(place / f"{number}.jpg", quality=90)


def measure_training(config: train.TrainConfig, images: ImageSet, steps: int, warm_up: int,
                     machine: devices.Machine) -> float:
    """Images per second of train.train over `steps` steps, after `warm_up` others."""
    total = warm_up + steps
    config = replace(config, epochs=total * config.batch_size / len(images), evaluate_epochs=1e9)
    ratio = config.unlabeled_ratio
    targets = torch.full((len(images), len(images.classes)), 0.1).half().numpy()
    pseudo = PseudoLabels(images, targets, np.arange(len(images))) if ratio else None
    with tempfile.TemporaryDirectory() as folder:
        path = train.train(config, images, None, pseudo, out=Path(folder, "a.pt"),
                           machine=machine, log_steps=warm_up, checkpoint_steps=10**9)
        lines = [json.loads(line) for line in path.with_suffix(".jsonl").open()]
    lines = [line for line in lines if "images_per_second" in line]
    batch = config.batch_size * (1 + ratio)
    first, last = [(line["step"] + 1) * batch for line in (lines[0], lines[-1])]
    return (last - first) / (last / lines[-1]["images_per_second"]
                             - first / lines[0]["images_per_second"])


def bare_step(config: train.TrainConfig, machine: devices.Machine) -> tuple:
    """A function that runs `steps` steps on random tensors, and the images a step has."""
    labeled, unlabeled = config.batch_size, config.batch_size * config.unlabeled_ratio
    device = machine.device
    network = train.build_model(config, 10).to(device, memory_format=torch.channels_last).train()
    forward = torch.compile(network) if machine.compile else network
    average, optimizer = train.ModelEMA(network), train.make_optimizer(network, config)
    size = config.image_size
    inputs = torch.randn(labeled + unlabeled, 3, size, size, device=device)
    inputs = inputs.contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(labeled, dtype=torch.int64, device=device)
    targets = torch.full((unlabeled, 10), 0.1, device=device) if unlabeled else None

    def run(steps: int) -> None:
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = 1e-4
            optimizer.zero_grad()
            with devices.autocast(device, config.precision):
                logits = forward(inputs)
            train.joint_loss(logits, labels, targets).backward()
            optimizer.step()
            average.update(network, step)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return run, labeled + unlabeled


def timm_training(folder: Path, batch_size: int) -> Callable[[int, int], float]:
    """A function that gives the images/s of timm's parts on class folders, at 224 pixels."""
    network = timm.create_model("tf_efficientnet_b0", num_classes=10, drop_rate=0.2,
                                drop_path_rate=0.2).to(memory_format=torch.channels_last)
    dataset = timm.data.create_dataset("", str(folder), is_training=True, batch_size=batch_size)
    loader = timm.data.create_loader(
        dataset, (3, 224, 224), batch_size, is_training=True, interpolation="bicubic",
        auto_augment=f"rand-m{MAGNITUDE}-n2-p1.0", num_workers=WORKERS, use_prefetcher=False,
        color_jitter=None, device=torch.device("cpu"), persistent_workers=False,
    )
    optimizer = timm.optim.create_optimizer_v2(network, "rmsproptf", lr=1e-4, weight_decay=1e-5)
    average = timm.utils.ModelEmaV2(network, decay=0.9999)
    smoothed = timm.loss.LabelSmoothingCrossEntropy(0.1)

    def run(steps: int, warm_up: int) -> float:
        network.train()
        for number, (images, labels) in enumerate(itertools.islice(loader, warm_up + steps)):
            if number == warm_up:
                started = time.perf_counter()
            images = images.contiguous(memory_format=torch.channels_last)
            optimizer.zero_grad()
            smoothed(network(images), labels).backward()
            optimizer.step()
            average.update(network)
        return steps * batch_size / (time.perf_counter() - started)

    return run


def rate(run: tuple, steps: int) -> float:
    """Images per second of the steps."""
    work, images = run
    started = time.perf_counter()
    work(steps)
    return steps * images / (time.perf_counter() - started)


def compare(title: str, contestants: dict, rounds: int) -> None:
    """Print the medians of interleaved measurements, and their ratio to the first."""
    figures = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, measure in contestants.items():
            figures[name].append(measure())
    medians = {name: statistics.median(values) for name, values in figures.items()}
    reference = next(iter(medians.values()))
    print(f"\n{title}\n")
    for name, value in medians.items():
        print(f"    {name:34s}{value:10.1f} images/s   {value / reference:.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of the whole training.")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    device, rounds = devices.choose(arguments.device), arguments.rounds
    print(f"torch {torch.__version__}, timm {timm.__version__}, {torch.get_num_threads()} threads, "
          f"{torch.cuda.get_device_name() if device.type == 'cuda' else 'CPU'}")
    rms = {"optimizer": "rmsprop", "rand_augment_operations": 2}

    def in_memory(title: str, config: train.TrainConfig, steps: int, warm_up: int,
                  compiled: bool = False) -> None:
        machine = devices.Machine(device, WORKERS, compiled)
        images = ImageSet(torch.arange(4096) % 10, tuple("0123456789"),
                          torch.randint(0, 256, (4096, 3, 32, 32), dtype=torch.uint8))
        bare = bare_step(config, machine)
        rate(bare, 2)
        compare(title, {
            "bare step": lambda: rate(bare, steps),
            "whole training, images in memory": lambda: measure_training(
                config, images, steps, warm_up, machine),
        }, rounds)

    if device.type == "cuda":
        in_memory("b0 with small_images at 32x32, bfloat16, compiled",
                  train.TrainConfig(**plans.CIFAR | rms), 60, 20, compiled=True)
        return
    in_memory("b0 at 32x32, 32 labelled and 96 pseudo-labelled images",
              train.TrainConfig(**plans.FEW_LABELS | rms | {
                  "arch": "b0", "batch_size": 32, "unlabeled_ratio": 3}), 20, 6)
    in_memory("the demo's last student, as in its plan", iterate.PLANS["demo"][-1].config, 60, 10)
    with tempfile.TemporaryDirectory() as folder:
        write_jpegs(Path(folder), 26 * 16)
        files = datasets.read_folder(folder, 224)
        config = train.TrainConfig(**plans.OWN | rms | {
            "batch_size": 16, "unlabeled_ratio": 0, "rand_augment_magnitude": MAGNITUDE})
        machine = devices.Machine(device, WORKERS)
        bare, theirs = bare_step(config, machine), timm_training(Path(folder), 16)
        rate(bare, 2)
        compare("b0 at 224x224, 16 labelled images from JPEG files", {
            "bare step": lambda: rate(bare, 20),
            "whole training, images from files": lambda: measure_training(
                config, files, 20, 6, machine),
            "timm's training": lambda: theirs(20, 6),
        }, rounds)


if __name__ == "__main__":
    main()
