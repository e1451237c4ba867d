"""Which pseudo labels to keep: the trials of results/thresholds.py, and their table."""

import csv
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import TINY, write_images

from support import InputError, datasets
from support.images import Splits

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from results import measure, thresholds
from results.thresholds import ALL, choose, page


@pytest.fixture
def whole():
    """Ten classes, 60 labelled and 3 validation images of each; a pixel tells which one it is."""
    splits = datasets.demo(0, labels_per_class=60, unlabeled=30, val_per_class=3, test_per_class=1)
    for part in (splits.labeled, splits.validation):
        part.pixels[:, 0, 0, 0] = part.labels.byte()
    splits.labeled.pixels[:, 0, 0, 1] = torch.arange(600).byte()
    return splits


def of(splits: Splits) -> tuple[str, ...]:
    return splits.labeled.classes


def test_pairs_fives_and_all_ten_cover_the_classes_once_each(whole):
    for classes in (2, 5):
        names = [name for trial in range(thresholds.TRIALS[classes])
                 for name in of(choose(whole, classes, trial))]
        assert sorted(names) == sorted(of(whole))
    assert sorted(of(choose(whole, 10, 1))) == sorted(of(whole))


def test_a_trial_has_its_classes_alone_numbered_anew(whole):
    splits = choose(whole, 2, 3)
    assert of(splits) == of(whole)[6:8] == splits.unlabeled.classes
    for part in (splits.labeled, splits.validation):
        assert torch.equal(part.pixels[:, 0, 0, 0].long(), part.labels + 6)
    assert len(splits.unlabeled) == 30


def test_labelled_images_differ_by_trial_and_the_others_validate(whole):
    first, second = choose(whole, 10, 0), choose(whole, 10, 1)
    seen = [{image.numpy().tobytes() for image in part.pixels}
            for part in (first.labeled, second.labeled, first.validation)]
    assert [len(part.labels) for part in (first.labeled, first.validation)] == [200, 430]
    assert not seen[0] & seen[1] and not seen[0] & seen[2] and seen[1] < seen[2]


def test_differences_from_keeping_all_are_paired_by_trial():
    def row(trial, kept, top1):
        return {"classes": 2, "trial": trial, "kept": kept, "val_top1": top1,
                "shares": [10, 20.0, 30.0, 40.0]}

    rows = [row(trial, ALL, 60.0 + trial) for trial in range(3)]
    rows += [row(trial, "few", 60.0 + trial + gain) for trial, gain in enumerate((1, 2, 3))]
    rows += [row(3, "few", 0.0), row(0, "few", 99.0) | {"classes": 5}]
    last = page(rows, 2).splitlines()[-1]
    half = 4.303 * 1 / math.sqrt(3)  # of the mean of 1, 2 and 3: Student's t, two degrees
    assert f"+2.00 [{2 - half:+.2f}, {2 + half:+.2f}]" in last and "61.0, 63.0, 65.0, 0.0" in last


def test_a_quarter_of_the_pool_is_kept_whatever_the_number_of_classes():
    for classes in (2, 5, 10):
        assert thresholds.ways(classes)["a quarter, equally many of each class"].per_class * \
            classes * 4 == 8_000


def test_what_is_measured_already_is_not_measured_again(tmp_path, monkeypatch, capsys):
    splits = datasets.demo(0, labels_per_class=22, unlabeled=30, val_per_class=1, test_per_class=1)
    for name in ("labeled", "validation", "test"):
        write_images(getattr(splits, name), tmp_path / "data" / name[:3].replace("lab", "labeled")
                     .replace("tes", "test"))
    write_images(replace(splits.unlabeled, labels=torch.zeros(30)), tmp_path)
    (tmp_path / "0").rename(tmp_path / "data" / "pool")
    with open(tmp_path / "data" / "pool-truth.csv", "w", newline="") as file:
        csv.writer(file).writerows([("file", "class"), *((f"{n}.png", "cat") for n in range(30))])
    monkeypatch.setattr(thresholds, "BASE", replace(TINY, image_size=32))
    monkeypatch.setattr(thresholds, "STEPS", 2)
    monkeypatch.setattr(thresholds, "TRIALS", {2: 1})
    measure.read_all.cache_clear()
    flags = thresholds.Flags(str(tmp_path / "data"), runs=str(tmp_path / "runs"),
                             results=str(tmp_path / "thresholds.jsonl"))
    thresholds.main(flags)
    rows = [*map(json.loads, Path(flags.results).read_text().splitlines())]
    for log in (tmp_path / "runs").rglob("*.jsonl"):  # each student sees the pool
        assert ("loss_unlabeled" in log.read_text()) == (log.stem != "teacher")
    assert all(row["shares"][1] == 0 for row in rows[1:])  # "cat" is none of the two classes
    # Two steps make no teacher that is sure of anything.
    assert [row["kept"] for row in rows] == [
        "teacher", *(way for way in thresholds.ways(2) if way != "confidence over 0.8")]
    assert "no unlabelled image has a confidence over 0.8" in capsys.readouterr().out
    thresholds.main(flags)
    assert len(Path(flags.results).read_text().splitlines()) == len(rows)
    monkeypatch.setattr(thresholds, "processor", lambda: "another")
    thresholds.main(flags)
    assert len(Path(flags.results).read_text().splitlines()) == 2 * len(rows)
    monkeypatch.setattr(thresholds.images, "digests", lambda whole: {"pool": "other"})
    thresholds.main(flags)
    assert len(Path(flags.results).read_text().splitlines()) == 3 * len(rows)


def test_an_unknown_number_of_classes_is_named():
    with pytest.raises(InputError, match="--classes 3"):
        thresholds.main(thresholds.Flags("data", classes=[3]))
