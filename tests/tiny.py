"""A training of a few seconds that many tests run, and what they ask of its files."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import train
from support import datasets
from support.images import ImageSet, Splits
from support.label_store import PseudoLabels
from train import TrainConfig

ROOT = Path(__file__).parent.parent
TINY = TrainConfig(
    arch="0.25x0.34", image_size=32, batch_size=8, unlabeled_ratio=2, epochs=3, warmup_epochs=0.5,
    learning_rate=0.03, optimizer="adamw", schedule="cosine", rand_augment_magnitude=5,
    dropout=0.2, ema_decay=0.9, evaluate_epochs=1,
)


def make_splits() -> Splits:
    return datasets.demo(0, labels_per_class=2, unlabeled=60, val_per_class=2, test_per_class=2)


def pseudo_labels(pool: ImageSet, balanced=None, kind="soft") -> PseudoLabels:
    """Random ones."""
    random = np.random.default_rng(0).random((len(pool), len(pool.classes)))
    targets = (random / random.sum(1, keepdims=True)).astype(np.float16)
    return PseudoLabels(pool, targets, np.arange(len(pool)) if balanced is None else balanced, kind)


def run(config, splits, out, students=True, balanced=None, kind="soft", **options) -> Path:
    pseudo = pseudo_labels(splits.unlabeled, balanced, kind) if students else None
    return train.train(config, splits.labeled, splits.validation, pseudo, out=out, log_steps=1,
                       **options)


def write_images(images: ImageSet, folder: Path) -> None:
    for number, (label, pixels) in enumerate(zip(images.labels, images.pixels, strict=True)):
        place = folder / str(int(label))
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(place / f"{number}.png")


def weights(path: Path) -> dict:
    return torch.load(path, weights_only=True)["model"]


def same(one: dict, other: dict) -> bool:
    return all(torch.equal(one[key], other[key]) for key in one)


def log_lines(path: Path) -> list[dict]:
    """Of the log beside a checkpoint."""
    return [json.loads(line) for line in path.with_suffix(".jsonl").read_text().splitlines()]
