"""How many pseudo labels of runs are right, by the true classes of their pool: a Markdown table.

    python results/check_labels.py --truth pool-truth.csv --labels runs/tiny-*/student-*-labels

The truth has the columns file and class, which is empty for an image of none of the classes. It
only measures the labels; nothing is trained on it.
"""

import csv
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from results.summarize import spread, table
from support import InputError, cli


@dataclass(frozen=True)
class Flags:
    """What to check, and against what"""

    truth: cli.File  # CSV file with the columns file and class
    labels: list[str]  # folders of pseudo labels; those of the same name are averaged


def read(file: Path) -> list[dict]:
    """The lines of a CSV file of images, each with the image's name."""
    with open(file, newline="") as lines:
        return [row | {"name": Path(row["file"]).name} for row in csv.DictReader(lines)]


@cache
def read_truth(file: str) -> dict[str, str]:
    """The class of each image of a pool by its name; empty: none of the classes."""
    return {row["name"]: row["class"] for row in read(file)}


def shares(folder: Path, truth: dict[str, str]) -> list[float]:
    """Of the images chosen in a folder of labels: their number; in percent how many show one of the
    classes, how many of these are labelled correctly, and how many of a student's images, copies
    counted, are right. truth: see `read_truth`.
    """
    chosen = read(folder / "labels.csv")
    if unknown := [row["file"] for row in chosen if row["name"] not in truth]:
        raise InputError(f"{folder}/labels.csv: there is no truth of {len(unknown)} images, "
                         f"{unknown[0]} among them: give that of this pool")
    own = [row for row in chosen if truth[row["name"]]]
    right = [row for row in own if truth[row["name"]] == row["class"]]
    copies = [sum(int(row["copies"]) for row in rows) for rows in (right, chosen)]
    return [len(chosen), 100 * len(own) / len(chosen), 100 * len(right) / max(len(own), 1),
            100 * copies[0] / copies[1]]


def main(flags: Flags) -> None:
    truth = read_truth(flags.truth)
    found: dict[str, list] = {}
    for folder in map(Path, flags.labels):
        found.setdefault(folder.name, []).append(shares(folder, truth))
    heads = ["labels", "unique images", "of a class", "correct among these", "correct, with copies"]
    print(table(heads, [[name, *map(spread, zip(*rows, strict=True))]
                        for name, rows in found.items()]))


if __name__ == "__main__":
    sys.exit(cli.run(main))
