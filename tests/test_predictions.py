"""Tables of predictions, and of the pseudo labels that were chosen."""

import csv

import numpy as np
import pytest
import torch
from doubles import label, write_folders, write_teacher

import pseudo_label
from model import Checkpoint
from support import cli, datasets, predictions


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return write_teacher(tmp_path_factory.mktemp("teacher") / "teacher.pt")


@pytest.fixture
def pool(tmp_path):
    return write_folders(tmp_path) / "pool"


def table(path):
    with open(path, newline="") as file:
        return list(csv.reader(file))


def listed(teacher, pool, out, *flags):
    return cli.run(pseudo_label.main, ["--teacher", str(teacher), "--unlabeled", str(pool), "--csv",
                                       str(out), "--device", "cpu", "--workers", "0", *flags])


def test_several_processes_do_not_wait_for_one_to_write_a_list(
        teacher, pool, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(predictions.devices, "world_size", lambda: 2)
    assert listed(teacher, pool, tmp_path / "list.csv") == 2
    assert "--csv is for one process: start it without torchrun" in capsys.readouterr().err


def test_each_image_is_listed_with_its_most_probable_classes(teacher, pool, tmp_path):
    assert listed(teacher, pool, tmp_path / "list.csv", "--top", "3") == 0
    head, *rows = table(tmp_path / "list.csv")
    assert head == ["file", "class", "probability", "class_2", "probability_2", "class_3",
                    "probability_3"]
    found, images = Checkpoint.load(teacher), datasets.read_pool(pool, ())
    expected = pseudo_label.predict(found.network(), images, 32).numpy()
    assert [row[0] for row in rows] == list(images.files) and len(rows) == 12
    for (_, *cells), probabilities in zip(rows, expected, strict=True):
        best = np.argsort(-probabilities)[:3]
        assert cells[::2] == [found.classes[number] for number in best]
        assert [float(cell) for cell in cells[1::2]] == pytest.approx(probabilities[best], abs=1e-4)


def test_one_image_is_listed_by_itself(teacher, pool, tmp_path):
    file = sorted(pool.rglob("*.png"))[0]
    assert listed(teacher, file, tmp_path / "list.csv") == 0
    head, row = table(tmp_path / "list.csv")
    assert head == ["file", "class", "probability"] and row[0] == str(file)


def test_files_that_are_no_images_are_named_and_have_no_class(teacher, pool, tmp_path, capsys):
    (pool / "notes.txt").write_text("no image")
    assert listed(teacher, pool, tmp_path / "new" / "list.csv", "--top", "2") == 0
    rows = table(tmp_path / "new" / "list.csv")[1:]  # in a folder that was not there
    assert len(rows) == 13 and [row[1:] for row in rows if "notes.txt" in row[0]] == [[""] * 4]
    assert sum(row[1] != "" for row in rows) == 12
    said = capsys.readouterr().out
    assert "1 files are listed without a class" in said
    assert "notes.txt" in said and ": 12 images" in said


@pytest.mark.parametrize(("flags", "said"), [
    ((), "give --out DIR for pseudo labels, or --csv FILE"),
    (("--csv", "a.csv", "--out", "labels"), "--out does not go with --csv"),
    (("--csv", "a.csv", "--threshold", "0.5"), "--threshold does not go with --csv"),
    (("--out", "labels", "--top", "3"), "--top does not go with --out"),
])
def test_a_list_and_a_labelling_are_different_things(teacher, pool, flags, said, capsys):
    assert cli.run(pseudo_label.main, ["--teacher", str(teacher), "--unlabeled", str(pool),
                                       "--device", "cpu", *flags]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("in_memory", [False, True])
def test_chosen_labels_are_listed_for_the_eye(in_memory, teacher, pool, tmp_path):
    found = Checkpoint.load(teacher)
    images = datasets.read_pool(pool, found.classes)
    if in_memory:
        images, _ = datasets.read_set(images, 32)
    labels = label(found, images, tmp_path / "labels", threshold=0.0, per_class=4)
    head, *rows = table(tmp_path / "labels" / "labels.csv")
    assert head == ["file", "class", "confidence", "copies"]
    probabilities = pseudo_label.predict(found.network(), images, 32)
    assert [row[0] for row in rows] == [images.files[place] for place in labels.unique]
    for (_, name, confidence, _), place in zip(rows, labels.unique.tolist(), strict=True):
        assert name == found.classes[probabilities[place].argmax()]
        assert float(confidence) == pytest.approx(probabilities[place].max().item(), abs=1e-4)
    copies = torch.from_numpy(np.array(labels.balanced)).bincount(minlength=len(rows)).tolist()
    assert [int(row[3]) for row in rows] == copies


def test_a_list_goes_on_after_its_first_part(teacher, pool, tmp_path, monkeypatch):
    def rows(name):
        assert listed(teacher, pool, tmp_path / name, "--top", "99") == 0
        return table(tmp_path / name)[1:]

    whole = rows("whole.csv")
    monkeypatch.setattr(predictions, "PART", 5)
    assert len(whole[0]) == 1 + 2 * 10  # all classes that there are
    for one, other in zip(rows("parts.csv"), whole, strict=True):
        assert one[:2] == other[:2] and float(one[2]) == pytest.approx(float(other[2]), abs=2e-4)


def test_a_list_that_fails_leaves_the_older_one(teacher, pool, tmp_path, monkeypatch):
    (tmp_path / "list.csv").write_text("older")

    def fails(*_, **__):
        yield 1 / 0

    monkeypatch.setattr(pseudo_label, "predict_parts", fails)
    with pytest.raises(ZeroDivisionError):
        listed(teacher, pool, tmp_path / "list.csv")
    assert (tmp_path / "list.csv").read_text() == "older"
