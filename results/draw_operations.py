"""Draw every operation of RandAugment at several magnitudes, each with its physical value.

    python results/draw_operations.py --out results/randaugment.png [--image FILE]
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from augment import OPERATIONS, apply_operation, level_to_value
from support import cli
from support.images import center_crop, read_image, to_array


@dataclass(frozen=True)
class Flags:
    """What to draw"""

    out: cli.File  # picture to write, such as results/randaugment.png
    image: cli.File | None = None  # picture to show instead of the generated landscape


def example_image(size: int = 224) -> Image.Image:
    """A generated landscape with smooth colours, edges and fine stripes."""
    y, x = torch.meshgrid(*[torch.linspace(0, 1, size)] * 2, indexing="ij")
    sky = torch.stack([0.35 + 0.6 * y, 0.5 + 0.3 * y, 0.85 - 0.2 * y])
    sun = (x - 0.7) ** 2 + (y - 0.3) ** 2 < 0.02
    hills = y > 0.7 + 0.08 * torch.sin(7 * x)
    fence = (y > 0.8) & (x < 0.4) & ((40 * x).long() % 2 == 0)
    for region, color in ((sun, (1, 0.85, 0.3)), (hills, (0.2, 0.5, 0.25)), (fence, (0.8, 0, 0))):
        sky = torch.where(region, torch.tensor(color).view(3, 1, 1), sky)
    return Image.fromarray((255 * sky).byte().permute(1, 2, 0).contiguous().numpy())


def main(flags: Flags) -> None:
    image = center_crop(read_image(flags.image), 224) if flags.image else example_image()
    pixels, magnitudes = torch.from_numpy(to_array(image))[None], (0, 5, 10, 15, 20, 27)
    figure = Figure(figsize=(14, 10), layout="constrained")
    for half, names in zip(figure.subfigures(1, 2), (OPERATIONS[:8], OPERATIONS[8:]), strict=True):
        for name, row in zip(names, half.subplots(8, len(magnitudes)), strict=True):
            row[0].set_ylabel(name, rotation=0, ha="right", va="center")
            for magnitude, cell in zip(magnitudes, row, strict=True):
                value = level_to_value(name, magnitude, 224)
                changed = apply_operation(pixels, name, torch.tensor([value]))
                cell.imshow(changed[0].permute(1, 2, 0))
                cell.set(xticks=[], yticks=[], title=f"{value:.4g}")
        half.suptitle(f"Values at the magnitudes {', '.join(map(str, magnitudes))}")
    figure.savefig(flags.out, format="png")


if __name__ == "__main__":
    sys.exit(cli.run(main))
