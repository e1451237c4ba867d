"""Which pseudo labels to keep, of a pool that mostly shows none of the classes.

    python results/thresholds.py --data DIR

The ten classes of DIR (see studies.py) are taken in twos, in fives, and all at once; in each trial
the others join the images of no class. A teacher learns from 20 images of each class, then for each
way of keeping its labels a student learns from them, all with studies.py's network at 32 pixels.
The students are compared on validation; the test set is not read, as this chooses the plan.

thresholds.jsonl holds what was measured: the same command, or several at once for other numbers of
classes, goes on from there, and prints the tables. On another kind of processor, or with other
images, all begins anew.
"""

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import pseudo_label
import train
from model import Checkpoint
from pseudo_label import Labelling
from results.check_labels import read_truth, shares
from results.measure import processor, read_all
from results.studies import BASE
from results.summarize import table
from results.verdicts import in_words
from support import InputError, cli, devices, files, images
from support.images import ImageSet, Splits

LABELS, STEPS = 20, 1_000  # labelled images of each class; steps of a training
TRIALS = {2: 5, 5: 2, 10: 2}  # by number of classes; each has labelled images of its own
ALL = "all, balanced"


def ways(classes: int) -> dict[str, Labelling]:
    """What is compared; fixed numbers per class still respect the paper's threshold of 0.3."""
    return {
        ALL: Labelling(threshold=0.0),
        "all, at a temperature of 0.5": Labelling(threshold=0.0, temperature=0.5),
        "all, as they are": Labelling(threshold=0.0, balance=False),
        "confidence over 0.8": Labelling(threshold=0.8),
        "a quarter, equally many of each class": Labelling(per_class=2_000 // classes),
        "200 of each class": Labelling(per_class=200),
    }


def choose(whole: Splits, classes: int, trial: int) -> Splits:
    """The trial's classes alone; labelled images that it leaves aside join the validation set."""
    labels = [(trial * classes + place) % 10 for place in range(classes)]
    names = tuple(whole.labeled.classes[label] for label in labels)

    def of_classes(source: ImageSet, first: int, last: int | None) -> ImageSet:
        rows = [(source.labels == label).nonzero().flatten().roll(-trial * LABELS)[first:last]
                for label in labels]
        number = torch.cat([torch.full_like(found, place) for place, found in enumerate(rows)])
        return replace(source.subset(torch.cat(rows)), labels=number, classes=names)

    aside, known = of_classes(whole.labeled, LABELS, None), of_classes(whole.validation, 0, None)
    validation = ImageSet(torch.cat([aside.labels, known.labels]), names,
                          torch.cat([aside.pixels, known.pixels]))
    return replace(whole, labeled=of_classes(whole.labeled, 0, LABELS), validation=validation,
                   unlabeled=replace(whole.unlabeled, classes=names))


def measure(splits: Splits, truth: dict[str, str], seed: int, folder: Path,
            known: set[str]) -> Iterator[dict]:
    """The teacher's row and then each student's, unless known already; accuracies in percent."""
    machine, epochs = devices.CPU.chosen(), STEPS * BASE.batch_size / len(splits.labeled)
    config = replace(BASE, epochs=epochs, evaluate_epochs=epochs / 10, seed=seed)
    teacher = train.train(replace(config, unlabeled_ratio=0), splits.labeled, splits.validation,
                          None, out=folder / "teacher.pt", machine=machine, name="teacher")
    found = Checkpoint.load(teacher)
    if "teacher" not in known:
        yield {"kept": "teacher", "val_top1": found.val_top1}
    for way, labelling in ways(len(splits.labeled.classes)).items():
        if way in known:
            continue
        begun, out = time.monotonic(), folder / f"{files.slug(way)}.pt"
        try:
            pseudo = pseudo_label.label(found, splits.unlabeled, out.with_suffix(""), labelling,
                                        seed=seed + 1, machine=machine, progress=None)
        except InputError as error:  # no image is confident enough
            print(f"{way}: {error}; left out")
            continue
        train.train(replace(config, seed=seed + 1), splits.labeled, splits.validation, pseudo,
                    out=out, machine=machine, name=way)
        yield {"kept": way, "val_top1": Checkpoint.load(out).val_top1,
               "shares": shares(out.with_suffix(""), truth),
               "minutes": (time.monotonic() - begun) / 60}


def page(rows: list[dict], classes: int) -> str:
    """A table of the trials with `classes` classes; differences from ALL with 95 % intervals."""
    found: dict[str, dict] = {}
    for row in rows:
        if row["classes"] == classes:
            found.setdefault(row["kept"], {})[row["trial"]] = row
    lines = []
    for kept, trials in found.items():
        labels = [row["shares"] for row in trials.values() if "shares" in row]
        unique, *parts = map(mean, zip(*labels, strict=True)) if labels else ["-"] * 4
        tops = [row["val_top1"] for row in trials.values()]
        gains = [row["val_top1"] - found[ALL][trial]["val_top1"] for trial, row in trials.items()
                 if trial in found.get(ALL, {})]
        lines.append([
            kept, f"{unique:,.0f}" if labels else "-",
            *(f"{part:.1f}" if labels else "-" for part in parts), f"{mean(tops):.1f}",
            ", ".join(f"{top:.1f}" for top in tops),
            in_words(gains) if gains and kept != ALL else "-"])
    return table([f"{classes} classes: kept", "unique", "of a class, %",
                  "correct among these, %", "correct, with copies, %", "validation top-1",
                  "by trial", "minus all, balanced"], lines)


@dataclass(frozen=True)
class Flags:
    """Measure what is missing in thresholds.jsonl, and print the tables"""

    data: cli.Folder  # labeled, val, test, pool, and pool-truth.csv
    classes: list[cli.Count] | None = None  # numbers of classes (default: 2 5 10)
    runs: cli.Folder = "runs/thresholds"  # checkpoints and labels
    results: cli.File = Path(__file__).with_suffix(".jsonl")


def main(flags: Flags) -> None:
    if unknown := set(flags.classes or ()) - TRIALS.keys():
        raise InputError(f"--classes {min(unknown)}: choose from 2, 5 and 10")
    torch.set_num_threads(1)
    whole, file = read_all(flags.data, BASE.image_size), Path(flags.results)
    files.make_folder(file.parent)
    classes_of = read_truth(f"{flags.data}/pool-truth.csv")
    here = {"processor": processor(),
            "images": files.digest(*images.digests(whole).values())[:16]}

    def measured() -> list[dict]:
        lines = file.read_text().splitlines() if file.exists() else []
        return [row for row in map(json.loads, lines) if here.items() <= row.items()]

    for classes in flags.classes or TRIALS:
        for trial in range(TRIALS[classes]):
            splits = choose(whole, classes, trial)
            truth = {name: found if found in splits.labeled.classes else ""
                     for name, found in classes_of.items()}
            known = {row["kept"] for row in measured()
                     if (row["classes"], row["trial"]) == (classes, trial)}
            if known >= {"teacher", *ways(classes)}:
                continue
            folder = Path(flags.runs, f"{files.digest(*here.values())[:8]}-{classes}-{trial}")
            for row in measure(splits, truth, trial, folder, known):
                row |= {"classes": classes, "trial": trial} | here
                with open(file, "a") as lines:
                    lines.write(json.dumps(row) + "\n")
                print(f"{classes} classes, trial {trial}: {row['kept']} {row['val_top1']:.2f}",
                      flush=True)
    for classes in sorted({row["classes"] for row in measured()}):
        print("\n" + page(measured(), classes))


if __name__ == "__main__":
    sys.exit(cli.run(main))
