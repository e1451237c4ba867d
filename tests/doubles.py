"""What several test files share: a quick teacher, small pools and folders, labels, plans."""

import json
from unittest import mock

import numpy as np
import torch
from PIL import Image

import iterate
import pseudo_label
from model import Checkpoint, EfficientNet
from pseudo_label import Labelling
from support import InputError, cli, demo_images, devices, plans, sources
from support.images import ImageSet
from support.weights import Conventions


class Linear(torch.nn.Module):
    """A teacher that is quick, keeps what it was shown, and is a checkpoint of itself."""

    rand_augment, conventions = (2, 9), Conventions()

    def __init__(self, size=8, classes=4):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.nn.Parameter(torch.randn(3 * size**2, classes, generator=generator))
        self.shown, self.image_size = [], size

    def forward(self, images):
        self.shown.append(images)
        return images.flatten(1) @ self.weight

    def network(self):
        return self

    @property
    def weights(self):
        return {name: value.cpu() for name, value in self.state_dict().items()}


def make_network(dropout=0.5, survival_prob=0.5):
    torch.manual_seed(0)
    network = EfficientNet(0.25, 0.5, 10, dropout=dropout, survival_prob=survival_prob)
    network.classifier.weight.data *= 1e5  # untrained, it hardly tells images apart
    return network


def checkpoint_of(network, pool, rand_augment=(2, 9)):
    """The checkpoint of a network of `make_network`, as it is now, for the classes of a pool."""
    return Checkpoint("0.25x0.5", 32, pool.classes, network.state_dict(), network.dropout,
                      survival_prob=0.5, rand_augment=rand_augment)


def write_teacher(file, classes=demo_images.CLASSES):
    """The network of `make_network` in a checkpoint of train.py."""
    config = {"arch": "0.25x0.5", "image_size": 32, "small_images": False, "dropout": 0.5,
              "survival_prob": 0.5, "rand_augment_operations": 1, "rand_augment_magnitude": 5}
    meta = json.dumps({"config": config, "classes": classes, "name": "teacher"})
    torch.save({"meta": meta, "model": make_network().state_dict()}, file)
    return file


def small_pool(count=60, classes=4):
    """8x8 images; the first channel of an image is its number."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(256, (count, 3, 8, 8), generator=generator, dtype=torch.uint8)
    pixels[:, 0] = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1)
    truth = torch.randint(classes, (count,), generator=generator)
    return ImageSet(truth, tuple(f"class {n}" for n in range(classes)), pixels)


HOW = {"threshold": 0.05, "per_class": 6}  # for pools of 60 images
SMALL = {"batch_size": 10, "per_class": 12}  # chunks of ten images
LABELLING = Labelling.__dataclass_fields__


def label(teacher, pool, out, machine=devices.CPU, **options):
    """pseudo_label.label with the options of Labelling among the others."""
    how = Labelling(**HOW | {key: options.pop(key) for key in [*options] if key in LABELLING})
    options = {"machine": machine, "progress": None} | options
    return pseudo_label.label(teacher, pool, str(out), how, **options)


def assert_same_labels(labels, expected):
    for name in ("unique", "targets", "balanced"):
        assert np.array_equal(getattr(labels, name), getattr(expected, name)), name
    assert labels.counts == expected.counts and labels.per_class == expected.per_class
    assert labels.top1 == expected.top1 and labels.kind == expected.kind


def planned(*flags):
    """What iterate.py makes of its flags before any image is read: generations, plan, pixels."""
    found, real = [], plans.with_flags

    def with_flags(*given, **named):
        found.append(real(*given, **named))
        return found[0]

    def stop(source, plan, config, machine, out):
        found.extend([plan, config.image_size])
        raise InputError("far enough")

    replaced = mock.patch.multiple(plans, with_flags=with_flags)
    with replaced, mock.patch.object(sources, "choose", stop):
        assert cli.run(iterate.main, [*flags, "--device", "cpu", "--out", "nowhere"]) == 2
    return found


def write_folders(folder):
    """Two classes, 40x36 pixels: bright and dark, with an unlabelled pool nested in folders."""
    random = np.random.default_rng(0)

    def write(path, low):
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(low, low + 100, (40, 36, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)

    for number in range(6):
        for low, name in ((0, "dark"), (150, "bright")):
            write(folder / "labeled" / name / f"{number}.png", low)
            write(folder / "test" / name / f"{number}.png", low)
            write(folder / "pool" / "deep" / "er" / f"{name}{number}.png", low)
    return folder
