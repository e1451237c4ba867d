"""Warnings about settings and images that cannot work well, as soon as a loop can know of them.

Each warning is printed and kept in the notes of the splits, and so in report.json.
"""

from collections.abc import Sequence

import torch

from support import InputError, images
from support.images import Splits
from support.label_store import PseudoLabels

FEW = 50  # validation images; two standard deviations of accuracy on 50 are up to 14 points
NEARLY_ALL = 0.9  # share of a pool that is given one class
SURE = 0.05  # a teacher may label if guessing does as well with at most this probability


def warn(notes: dict, text: str) -> None:
    notes.setdefault("warnings", []).append(text)
    images.say_once(f"Warning: {text}")


def before(splits: Splits, generations: Sequence, allowed: bool) -> None:
    """Warn of faults known before the first step; unless `allowed`, InputError if validation images
    are too few for `of_teacher`. generations: of iterate.Generation.
    """
    classes, validation = len(splits.labeled.classes), len(splits.validation)
    if tail(validation, validation, _chance(splits)) > SURE and not allowed:
        raise InputError(f"with {validation} validation images even a teacher that has all of them "
                         "right cannot be told from chance: give more of each class (--val, "
                         "--val-per-class), or --allow-chance to go on all the same")
    if validation < FEW:
        warn(splits.notes, f"{validation} validation images choose the checkpoints and measure "
             f"progress: one of them is {100 / validation:.0f} points of accuracy; give more "
             "(--val, --val-per-class)")

    for epochs, warmup in sorted({(one.config.epochs, one.config.warmup_epochs)
                                  for one in generations}):
        if warmup > epochs / 2:
            warn(splits.notes, f"of {epochs:g} epochs the learning rate rises for {warmup:g}: "
                 "give a smaller --warmup-epochs, too")

    for threshold in sorted({one.labelling.threshold for one in generations[1:]}):
        if 0 < threshold < 1 / classes:
            warn(splits.notes, f"--threshold {threshold} filters nothing: with {classes} classes "
                 f"every image has a confidence of {1 / classes:.2f} or more; 0.3 is the paper's "
                 "for 1000 classes, and a higher one filters")


def of_labelling(given: dict) -> None:
    """InputError if one of the given fields of pseudo_label.Labelling leaves another unread."""
    if given.get("kind") == "hard" and "temperature" in given:
        raise InputError("--temperature is of soft pseudo labels: leave it out, or give "
                         "--pseudo-labels soft")
    if not given.get("balance", True) and "per_class" in given:
        raise InputError("--per-class does not go with --no-balance: give one of the two")


def tail(correct: int, count: int, chance: float) -> float:
    """The probability that guessing gets `correct` or more of `count` right (binomial)."""
    guesses = torch.distributions.Binomial(count, torch.tensor(chance, dtype=torch.float64))
    right = torch.arange(correct, count + 1, dtype=torch.float64)
    return guesses.log_prob(right).exp().sum().item()


def _chance(splits: Splits) -> float:
    """The share of validation images that are of their most frequent class."""
    return splits.validation.labels.bincount().max().item() / len(splits.validation)


def of_teacher(name: str, top1: float, splits: Splits, allowed: bool) -> None:
    """Check that a teacher beats always naming the most frequent class; if not, InputError or,
    where that is `allowed`, a warning. top1: percent, on validation images.
    """
    count, chance = len(splits.validation), _chance(splits)
    if tail(round(top1 * count / 100), count, chance) <= SURE:
        return
    text = (f"{name} cannot be told from chance: {top1:.1f} % of {count} validation images "
            f"are right, {100 * chance:.1f} % are of one class. Its labels would teach nothing: "
            "give it, with another --out, more steps (--epochs), another --learning-rate, more "
            "images, or weights to start from (--start-from)")
    if not allowed:
        raise InputError(f"{text}; --allow-chance goes on all the same")
    warn(splits.notes, text)


def of_labels(name: str, labels: PseudoLabels, splits: Splits) -> None:
    """Warn if nearly all of the pool was given one class, unlike the labelled images."""
    pool, labeled = torch.tensor(labels.per_class["pool"]), splits.labeled.labels
    usual = labeled.bincount(minlength=len(pool)) / len(labeled)
    share, winner = (pool / pool.sum()).max(0)
    if share > NEARLY_ALL > usual[winner]:
        warn(splits.notes, f"{name}: {100 * share:.0f} % of the pool get one class, "
             f"{labels.images.classes[winner]}: does the pool show these classes, and is the "
             "teacher trained well enough?")
