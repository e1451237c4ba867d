"""Images of noise, in files and in memory, that several test files read."""

import numpy as np
import torch
from PIL import Image

from support import images
from support.images import ImageSet


def noise(seed, width=8, height=8):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def write_classes(folder, classes, count, first_seed=0):
    """`count` different PNG files in each class folder; returns the folder."""
    for i, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for j in range(count):
            noise(first_seed + 1000 * i + j).save(folder / name / f"{j:04}.png")
    return folder


def write_files(folder):
    """A set of six images that stay files."""
    for i in range(6):
        noise(i, 96, 96).save(folder / f"{i}.png")
    files = tuple(str(folder / f"{i}.png") for i in range(6))
    return ImageSet(torch.tensor([0, 1] * 3), ("a", "b"), files=files)


def in_memory(source):
    """The same set with its images, which need no crop, in memory."""
    pixels = [torch.from_numpy(images.to_array(images.read_item(one))) for one in source.items]
    return ImageSet(source.labels, source.classes, torch.stack(pixels))


def images_of(splits):
    """The images of each of the four sets, as a set of bytes."""
    return {
        name: {image.numpy().tobytes() for image in getattr(splits, name).pixels}
        for name in ("labeled", "unlabeled", "validation", "test")
    }
