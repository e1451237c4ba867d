"""RandAugment's speed side by side with torchvision's and timm's, in images per second.

    OMP_NUM_THREADS=1 python benchmarks/augment.py [--rounds 15]

One process, one thread, two operations per image, contestants interleaved, medians over the rounds.
Ours takes a uint8 batch; the others take one image at a time, which the benchmark holds ready in
the form they want (a PIL image or a uint8 tensor), so no conversion is counted for anybody. The
last column is all of a training image's way from a decoded 500x375 PIL image to a uint8 batch:
random resized crop (bicubic) to 224x224, flip, RandAugment, and everybody's conversions.
All run at the same strength: magnitude 9 here is 27 of torchvision's 30 and 9 of timm's 10.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from torchvision import transforms
from torchvision.transforms import v2
from torchvision.transforms.functional import pil_to_tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from augment import EMPTY, RandAugment, augment_imagenet, random_resized_crop
from benchmarks.by_turns import medians
from results.draw_operations import example_image
from support.batches import Chance

GRAY = [EMPTY] * 3
BICUBIC = transforms.InterpolationMode.BICUBIC


def example_batch(count: int, size: int) -> torch.Tensor:
    """Different pictures: uint8 (count, 3, size, size)."""
    picture = pil_to_tensor(example_image(size)).float()
    generator = torch.Generator().manual_seed(0)
    gain = torch.rand(count, 3, 1, 1, generator=generator)
    grain = 10 * torch.randn(count, 3, size, size, generator=generator)
    return (picture * gain + grain).clamp(0, 255).to(torch.uint8).contiguous()


def peers(size: int) -> dict[str, Callable]:
    """Each maps one image of size x size pixels to its augmented copy."""
    options = {"translate_const": size // 3, "img_mean": tuple(GRAY)}
    return {
        "torchvision transforms": transforms.RandAugment(2, 27, 31, fill=GRAY),
        "torchvision v2": v2.RandAugment(2, 27, 31, fill=GRAY),
        "timm": rand_augment_transform("rand-m9-n2-p1.0", options),  # p1.0: no operation is skipped
    }


def rand_augment(count: int, size: int) -> dict[str, Callable]:
    """What is timed: each callable augments `count` images of size x size pixels once."""
    batch = example_batch(count, size)
    pil = [Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()) for image in batch]
    ours, generator = RandAugment(2, 9), torch.Generator().manual_seed(0)
    timed = {"augment.py": lambda: ours(batch, generator)}
    for name, peer in peers(size).items():
        timed[name + ", PIL"] = lambda peer=peer: [peer(image) for image in pil]
        if name != "timm":
            timed[name + ", tensor"] = lambda peer=peer: [peer(image) for image in batch]
    return timed


def pipeline(count: int) -> dict[str, Callable]:
    """What is timed: each callable makes a batch (count, 3, 224, 224) of decoded images once."""
    box = (0, 60, 500, 435)
    photos = [Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).crop(box)
              for image in example_batch(count, 500)]
    noise, generator = RandAugment(2, 9), torch.Generator().manual_seed(0)

    def ours() -> torch.Tensor:
        crops = [pil_to_tensor(random_resized_crop(photo, 224, generator)) for photo in photos]
        batch = torch.stack(crops)
        return augment_imagenet(batch, noise, Chance.of(batch, generator))

    timed = {"augment.py": ours}
    for name, peer in peers(224).items():
        form = v2 if name == "torchvision v2" else transforms
        steps = form.Compose([form.RandomResizedCrop(224, interpolation=BICUBIC),
                              form.RandomHorizontalFlip(), peer, form.PILToTensor()])
        timed[name + ", PIL"] = lambda steps=steps: torch.stack([steps(photo) for photo in photos])
    return timed


def main() -> None:
    parser = argparse.ArgumentParser(description="RandAugment against torchvision and timm.")
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds; medians are shown")
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    print("| 2 operations, images/s | 32x32, batch 512 | 224x224, batch 64 | with crop and flip |")
    print("|---|---|---|---|")
    speeds = [
        {name: count / seconds for name, seconds in medians(timed, rounds).items()}
        for count, timed in (
            (512, rand_augment(512, 32)), (64, rand_augment(64, 224)), (64, pipeline(64)))
    ]
    for name in speeds[0]:
        columns = (f"{speed[name]:,.0f}" if name in speed else "-" for speed in speeds)
        print(f"| {name} | " + " | ".join(columns) + " |")
    ratios = [
        speed["augment.py"] / max(other for name, other in speed.items() if name != "augment.py")
        for speed in speeds
    ]
    print("| ours / the fastest other | " + " | ".join(f"{ratio:.2f}x" for ratio in ratios) + " |")


if __name__ == "__main__":
    main()
