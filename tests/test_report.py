"""The end of a run: its tables and its picture."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

import augment
import eval_robust
import iterate
from model import Checkpoint
from support import cli, datasets, images, label_store, picture, report
from support.archives import ALEXNET_ERROR
from support.images import ImageSet


def generation(name, errors=0.5, robust=True):
    figures = {
        "note": "not comparable", "images": 2000, "clean_top1": 70.0,
        "unnormalized_mce": 100 * errors, "teacher_normalized_mce": 200 * errors,
        "unnormalized_mfr": 4.0, "teacher_normalized_mfr": None,
        "fgsm_top1": {"0": 70.0, "1": 60.0, "4": 31.25},
        "pgd_top1": {"1": 59.0, "4": 28.0}, "flip_rate": {"scale": 0.04},
        "corruption_error": {name: [errors] * 5 for name in ALEXNET_ERROR},
    }
    return {"name": name, "arch": "0.25x0.5", "parameters": 202032, "unlabeled": None,
            "image_size": 32,
            "pseudo_label_top1": None, "val_top1": 71.0, "test_top1": 70.0, "test_top5": None,
            "labels_only_test_top1": None, "robustness": figures if robust else None}


def columns(text, head):
    """The rows below the line that begins with `head`, as lists of words."""
    lines = text.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith(head))
    return [line.split() for line in lines[first + 1:]]


def test_the_table_shows_a_dash_where_a_figure_does_not_apply():
    row, = columns(report.table({"generations": [generation("teacher")]}), "generation")
    assert row == ["teacher", "0.25x0.5", "202,032", *"-----", "71.00", "70.00", "-"]


def test_top_5_has_a_column_where_there_are_more_than_five_classes():
    row = generation("teacher") | {"test_top5": 95.5}
    row, = columns(report.table({"generations": [row]}), "generation")
    assert row[-3:] == ["70.00", "95.50", "-"]


def test_figures_of_a_test_set_equal_counts_by_hand():
    labels, classes = torch.tensor([0, 0, 1, 2, 2, 2]), tuple("abcdef")
    answers = torch.tensor([[0, 1], [1, 0], [1, 0], [0, 1], [0, 2], [2, 0]])
    found = report.figures(answers, ImageSet(labels, classes))
    assert found["test_top1"] == pytest.approx(50) and found["test_top5"] == pytest.approx(500 / 6)
    assert [row[:3] for row in found["confusion"][:3]] == [[1, 1, 0], [0, 1, 0], [2, 0, 1]]
    few = report.figures(answers, ImageSet(labels, tuple("abc")))
    assert few["test_top5"] is None and few["confusion"] == [[1, 1, 0], [0, 1, 0], [2, 0, 1]]


def test_the_table_by_class_names_what_a_class_is_mistaken_for():
    confusion = [[3, 1, 0], [0, 2, 2], [0, 0, 5]]
    rows = [generation("teacher") | {"confusion": confusion[::-1]},
            generation("student 1") | {"confusion": confusion}]
    text = report.class_table({"generations": rows, "classes": ["ant", "bee", "fly"]})
    assert columns(text, "test top-1 by class") == [
        ["ant", "5", "0.00", "75.00", "bee", "(1)"], ["bee", "4", "50.00", "50.00", "fly", "(2)"],
        ["fly", "4", "0.00", "100.00", "-"]]
    many = {"generations": rows, "classes": ["a"] * 31}
    assert report.class_table(many) == ""


def test_the_robustness_table_has_the_shape_of_table_1():
    generations = [generation("teacher"), generation("student 1", errors=0.25)]
    text = report.robustness_table({"generations": generations})
    assert "not comparable" in text and "2,000 test images (attacks on half of them" in text
    assert "other sizes" not in text
    generations[1]["image_size"] = 64
    assert "nor between generations that see images at other sizes" in report.robustness_table(
        {"generations": generations})
    assert columns(text, "generation") == [
        ["teacher", "70.00", "50.00", "100.00", "4.00", "-", "60.00", "31.25", "59.00", "28.00"],
        ["student", "1", "70.00", "25.00", "50.00", "4.00", "-", "60.00", "31.25", "59.00",
         "28.00"],
    ]


def test_there_is_no_robustness_table_where_nothing_was_measured():
    assert report.robustness_table({"generations": [generation("teacher", robust=False)]}) == ""


# ---- A whole run ----

RUN = ["--unlabeled-images", "120", "--labels-per-class", "3", "--test-per-class", "3", "--epochs",
       "2", "--per-class", "8", "--threshold", "0.05", "--arch", "0.2x0.2", "--no-labels-only",
       "--device", "cpu", "--allow-chance"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "demo"
    assert cli.run(iterate.main, [*RUN, "--out", str(out)]) == 0
    return out


def test_each_generation_reports_its_robustness_relative_to_the_teacher(run):
    generations = json.loads((run / "report.json").read_text())["generations"]
    teacher = generations[0]["robustness"]
    assert len(generations) == 3
    for row in generations:
        robustness = row["robustness"]
        assert robustness["images"] == 30 and robustness["clean_top1"] == pytest.approx(
            row["test_top1"])
        relative = eval_robust.mean_corruption_error(robustness["corruption_error"],
                                                     baseline=teacher["corruption_error"])
        assert robustness["teacher_normalized_mce"] == pytest.approx(relative)
    assert teacher["teacher_normalized_mce"] == pytest.approx(100)


def test_the_report_holds_the_curves_whose_best_point_is_the_checkpoint(run):
    found = json.loads((run / "report.json").read_text())
    assert list(found["curves"]) == ["teacher", "student 1", "student 2"]
    for row in found["generations"]:
        steps, top1 = zip(*found["curves"][row["name"]], strict=True)
        assert list(steps) == sorted(set(steps)) and max(top1) == row["val_top1"]


def test_the_report_holds_what_happened_to_each_class_and_how_long_each_phase_took(run):
    found = json.loads((run / "report.json").read_text())
    assert len(found["classes"]) == 10 and list(found["seconds"]) == [
        "teacher", "student 1", "student 2"]
    assert all(seconds > 0 for seconds in found["seconds"].values())
    for row in found["generations"]:
        right = sum(line[number] for number, line in enumerate(row["confusion"]))
        assert [sum(line) for line in row["confusion"]] == [3] * 10
        assert row["test_top1"] == pytest.approx(100 * right / 30)


def test_a_finished_run_started_again_reads_its_robustness_and_ends_with_its_warnings(
        run, monkeypatch, capsys):
    before = (run / "report.json").read_bytes()
    monkeypatch.delattr(eval_robust, "quick_suite")
    assert cli.run(iterate.main, [*RUN, "--out", str(run)]) == 0
    assert (run / "report.json").read_bytes() == before
    said = capsys.readouterr().out
    assert "corruption error" in said
    for text in json.loads(before)["notes"]["warnings"]:
        assert said.rindex(f"Warning: {text}") > said.index("test top-1 by class")
    assert "--threshold 0.05 filters nothing: with 10 classes" in said


def test_robustness_is_left_out_on_request_and_can_be_added_later(run, capsys):
    assert cli.run(iterate.main, [*RUN, "--no-robustness", "--out", str(run)]) == 0
    generations = json.loads((run / "report.json").read_text())["generations"]
    assert [row["robustness"] for row in generations] == [None] * 3
    assert "corruption error" not in capsys.readouterr().out
    short = Image.open(run / "report.png").height
    assert cli.run(iterate.main, [*RUN, "--out", str(run)]) == 0
    assert Image.open(run / "report.png").height > short


def test_any_name_of_a_class_can_be_drawn(run, tmp_path):
    pool = datasets.demo(0, labels_per_class=3, unlabeled=120, test_per_class=3).unlabeled
    names = ("$^$", "caf\udce9", *pool.classes[2:])  # no formula, and no UTF-8
    labels = label_store.read(run / "student-2-labels", pool)
    renamed = dataclasses.replace(labels.images, classes=names)
    labels = dataclasses.replace(labels, images=renamed)
    results = json.loads((run / "report.json").read_text())
    picture.draw(results, labels, picture.curves(run / "log.jsonl"), [], tmp_path / "report.png")
    assert Image.open(tmp_path / "report.png").width > 500


def test_top_5_is_the_share_of_test_images_whose_class_is_among_five(run):
    test = datasets.demo(0, labels_per_class=3, unlabeled=120, test_per_class=3).test
    for row in json.loads((run / "report.json").read_text())["generations"]:
        network = Checkpoint.load(run / row["checkpoint"]).network()
        logits = network(augment.normalize(test.pixels)).detach().numpy()
        ranks = (logits > np.take_along_axis(logits, test.labels[:, None].numpy(), 1)).sum(1)
        assert row["test_top1"] == pytest.approx(100 * (ranks < 1).mean())
        assert row["test_top5"] == pytest.approx(100 * (ranks < 5).mean())


def test_curves_are_what_the_log_holds(run):
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    found = picture.curves(run / "log.jsonl")
    assert list(found) == ["teacher", "student 1", "student 2"]
    for name, figure in (("teacher", "val_top1"), ("student 1", "loss_labeled"),
                         ("student 2", "loss_unlabeled")):
        assert found[name][figure] == [(line["step"] + 1, line[figure]) for line in lines
                                       if line["name"] == name and figure in line]
        assert len(found[name][figure]) > 0
    assert "loss_unlabeled" not in found["teacher"]


def test_a_log_that_is_cut_off_or_lost_costs_curves_and_minutes_alone(run, tmp_path):
    text = (run / "log.jsonl").read_text()
    (tmp_path / "log.jsonl").write_text(text[:-5])
    found, whole = picture.curves(tmp_path / "log.jsonl"), picture.curves(run / "log.jsonl")
    assert found["teacher"] == whole["teacher"] and found != whole
    assert picture.curves(tmp_path / "lost.jsonl") == {}
    assert report.time_table({"seconds": {}}) == ""


def test_examples_are_corrupted_test_images_that_the_student_alone_gets_right():
    test = datasets.demo(0, labels_per_class=1, unlabeled=20, test_per_class=40).test
    mean = test.pixels.float().mean((1, 2, 3))

    def as_class(classes):
        """A network that takes dark images for a class of their own, and others for class 3."""
        def network(pixels):
            dark = pixels.float().mean((1, 2, 3)) < mean.median()
            return torch.nn.functional.one_hot(torch.where(dark, *map(torch.tensor, classes)), 10)

        return network

    shown = picture.examples(test, 32, 32, as_class((3, 3)), as_class((5, 3)))
    assert 5 < len(shown) <= 15 and len({name for name, *_ in shown}) == len(shown)
    clean = {truth: test.pixels[test.labels == truth] for truth in (3, 5)}
    for name, image, guess, truth in shown:
        assert (guess, truth) == (3, 5) and name in ALEXNET_ERROR
        assert not (clean[5] == image).flatten(1).all(1).any()  # it is corrupted
    assert picture.examples(test, 32, 32, as_class((5, 3)), as_class((5, 3))) == []


def test_in_examples_each_network_sees_images_of_the_size_it_is_tested_at():
    test, seen = datasets.demo(0, labels_per_class=1, unlabeled=20, test_per_class=2).test, []

    def network(pixels):
        seen.append((tuple(pixels.shape[-2:]), pixels.float().mean().item()))
        return torch.zeros(len(pixels), 10)

    picture.examples(test, 32, 24, network, network)
    (small, mean), (large, other) = seen[:2]
    assert (small, large) == ((24, 24), (32, 32)) and mean == pytest.approx(other, rel=0.02)


def test_a_picture_of_the_papers_81_million_pseudo_labels_reads_none_beyond_the_last():
    """float32 has no 80,999,999: it would be 81,000,000."""
    read = []

    class Items:
        def __getitem__(self, row):
            read.append(row)
            return np.zeros((200, 200, 3), np.uint8)

    class Pool:
        pixels, items = None, Items()
        labels = torch.full((), images.UNKNOWN).expand(81_000_000)

        def __len__(self):
            return 81_000_000

    class Targets:
        def __getitem__(self, row):
            return np.array([0.0, 1.0])

    labels = SimpleNamespace(images=Pool(), targets=Targets())
    picture._draw_images(Figure(), labels, ["a", "b"])
    assert len(read) == 40 and read[0] == 0 and read[-1] == 80_999_999


def test_minutes_are_minutes():
    text = report.time_table({"seconds": {"teacher": 90.0}})
    assert text.splitlines()[-1].split() == ["teacher", "1.50"]
