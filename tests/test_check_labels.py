"""The table that results/check_labels.py makes of pseudo labels and the pool's true classes."""

import csv
import sys
from pathlib import Path

import pytest

from support import InputError

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "results"))
import check_labels


def write(path, head, *rows):
    path.parent.mkdir(exist_ok=True)
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([head, *rows])
    return str(path)


@pytest.fixture
def truth(tmp_path):
    return write(tmp_path / "truth.csv", ("file", "class"),
                 ("0.jpg", "cat"), ("1.jpg", "dog"), ("2.jpg", ""), ("3.jpg", ""), ("4.jpg", "cat"))


HEAD = "file", "class", "confidence", "copies"


def test_images_of_no_class_wrong_labels_and_copies_are_counted(tmp_path, truth, capsys):
    labels = tmp_path / "student-1-labels"
    write(labels / "labels.csv", HEAD, ("pool/0.jpg", "cat", 0.9, 3), ("pool/1.jpg", "cat", 0.9, 1),
          ("pool/2.jpg", "cat", 0.9, 1), ("pool/3.jpg", "dog", 0.9, 5))
    check_labels.main(check_labels.Flags(truth, [str(labels)]))
    assert capsys.readouterr().out.splitlines()[-1] == (
        "| student-1-labels | 4.00 | 50.00 | 50.00 | 30.00 |")


def test_folders_of_one_name_are_averaged(tmp_path, truth, capsys):
    rows = ("0.jpg", "cat", 0.9, 1), ("2.jpg", "cat", 0.9, 1)
    folders = []
    for run, count in ("a", 1), ("b", 2):
        folders.append(tmp_path / run / "student-1-labels")
        folders[-1].parent.mkdir()
        write(folders[-1] / "labels.csv", HEAD, *rows[:count])
    check_labels.main(check_labels.Flags(truth, [str(folder) for folder in folders]))
    assert capsys.readouterr().out.splitlines()[-1] == (
        "| student-1-labels | 1.50 +- 0.71 | 75.00 +- 35.36 | 100.00 +- 0.00 | 75.00 +- 35.36 |")


def test_the_truth_of_another_pool_is_refused(tmp_path, truth):
    write(tmp_path / "labels" / "labels.csv", HEAD, ("new.jpg", "cat", 0.9, 1))
    with pytest.raises(InputError, match="no truth of 1 images, new.jpg among them"):
        check_labels.main(check_labels.Flags(truth, [str(tmp_path / "labels")]))
