"""`predict` on images in memory against the bare inference loop, in images per second.

    python benchmarks/predict.py [--device cpu] [--rounds 11]

The bare loop is what nobody can leave out: a batch to the device, normalisation, the network, the
softmax in float32. Both take the same batches, by turns; medians over the rounds. 0.25x0.5 is the
teacher of the demo: the smaller the network, the more anything else weighs.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import augment
import model
import pseudo_label
from benchmarks.by_turns import medians
from support import devices

# Architecture, pixels a side, images, batch: the demo; the paper's choosing teacher on a CPU and on
# an accelerator.
CASES = {"cpu": (("0.25x0.5", 32, 4000, 500), ("b0", 224, 64, 16)),
         "accelerator": (("0.25x0.5", 32, 50_000, 500), ("b0", 224, 4000, 500))}


@torch.no_grad()
def bare(network: nn.Module, images: Tensor, batch_size: int, device: torch.device) -> Tensor:
    """Probabilities (M, num_classes) of uint8 images (M, 3, H, W)."""
    probabilities = []
    for batch in images.split(batch_size):
        batch = augment.normalize(batch.to(device)).contiguous(memory_format=torch.channels_last)
        probabilities.append(network(batch).float().softmax(dim=1))
        devices.finish_step(device)
    return torch.cat(probabilities).cpu()


def main() -> None:
    parser = argparse.ArgumentParser(description="predict against the bare inference loop.")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda", "mps", "xla"))
    parser.add_argument("--rounds", type=int, default=11, help="timed rounds; medians are shown")
    arguments = parser.parse_args()
    device = devices.choose(arguments.device)
    print("| model | pixels | batch | bare loop, images/s | predict, images/s | ratio |")
    print("|---|---|---|---|---|---|")
    for arch, size, count, batch_size in CASES["cpu" if device.type == "cpu" else "accelerator"]:
        network = model.efficientnet(arch).to(device, memory_format=torch.channels_last).eval()
        images = torch.randint(256, (count, 3, size, size), dtype=torch.uint8)
        common = {"batch_size": batch_size, "device": device}
        seconds = medians({"loop": partial(bare, network, images, **common), "ours": partial(
            pseudo_label.predict, network, images, **common)}, arguments.rounds)
        loop, ours = seconds.values()
        print(f"| {arch} | {size} | {batch_size} | {count / loop:,.0f} | {count / ours:,.0f} | "
              f"{loop / ours:.3f} |", flush=True)


if __name__ == "__main__":
    main()
