"""The loop of Algorithm 1 from the command line: what it reports, continues and refuses."""

import dataclasses
import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

import data
import iterate
import pseudo_label
import train

SHORT = ["--unlabeled-images", "120", "--labels-per-class", "3", "--test-per-class", "10",
         "--epochs", "2", "--per-class", "8", "--threshold", "0.05", "--device", "cpu"]


@pytest.fixture(scope="module")
def short_demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "demo"
    assert iterate.main([*SHORT, "--out", str(out)]) == 0
    return out


def report(out):
    return json.loads((out / "report.json").read_text())


def test_the_run_directory_holds_everything(short_demo):
    names = {path.name for path in short_demo.iterdir()}
    assert {"config.json", "log.jsonl", "teacher.pt", "student-1.pt", "student-2.pt",
            "report.json", "report.png"} <= names
    assert not [name for name in names if name.endswith(".tmp")]


def test_the_report_has_a_row_for_each_generation(short_demo):
    rows = report(short_demo)["generations"]
    assert [row["name"] for row in rows] == ["teacher", "student 1", "student 2"]
    teacher, *students = rows
    assert teacher["unlabeled"] is None and teacher["labels_only_test_top1"] is None
    for row in students:
        assert row["unlabeled"]["pool"] == 120
        assert row["unlabeled"]["unique"] <= row["unlabeled"]["confident"] <= 120
        assert row["unlabeled"]["balanced"] % 8 == 0
        assert 0 <= row["pseudo_label_top1"] <= 100 and row["labels_only_test_top1"] is not None
    assert students[0]["labels_only_test_top1"] == teacher["test_top1"]  # the same architecture
    sizes = [row["parameters"] for row in rows]
    assert sizes == sorted(sizes)


def test_the_last_student_is_the_next_teacher(short_demo):
    teacher, _ = pseudo_label.load_teacher(short_demo / "student-1.pt", torch.device("cpu"))
    settings = json.loads((short_demo / "student-2-labels" / "labels.json").read_text())["settings"]
    assert settings["teacher"] == pseudo_label.teacher_hash(teacher)


def test_test_accuracy_is_that_of_the_checkpoint(short_demo):
    network, _ = pseudo_label.load_teacher(short_demo / "student-2.pt", torch.device("cpu"))
    splits = data.demo(0, labels_per_class=3, unlabeled=120, test_per_class=10)
    assert train.top1(network, splits.test, 32) == report(short_demo)["generations"][2]["test_top1"]


def test_checkpoints_are_chosen_on_the_validation_images(tmp_path):
    splits, seen = data.demo(0, 2, 40, 1, 2), []

    def stop(config, labeled, validation, *rest, **options):
        seen.extend([labeled, validation])
        raise data.InputError("far enough")

    with mock.patch.object(train, "train", stop), pytest.raises(data.InputError):
        iterate.iterate(iterate.PLANS["demo"], splits, tmp_path, torch.device("cpu"))
    assert seen[0] is splits.labeled and seen[1] is splits.validation


@pytest.mark.parametrize(("flags", "expected"), [
    ((), {"threshold": 0.05, "balance": True, "noise": None, "temperature": 0.5, "per_class": 8}),
    (("--no-filter",), {"threshold": 0.0, "balance": True}),
    (("--no-balance",), {"threshold": 0.05, "balance": False}),
    (("--noised-teacher",), {"noise": [1, 5.0]}),
    (("--temperature", "0.7"), {"temperature": 0.7}),
])
def test_pseudo_labels_are_made_as_the_plan_and_the_flags_say(flags, expected, tmp_path):
    made = []

    def stop(*arguments, **options):
        made.append(options)
        raise data.InputError("far enough")

    with mock.patch.object(pseudo_label, "label", stop):
        assert iterate.main([*SHORT, *flags, "--epochs", "1", "--out", str(tmp_path / "r")]) == 2
    if made[0]["noise"] is not None:
        made[0]["noise"] = [made[0]["noise"].num_ops, made[0]["noise"].magnitude]
    assert {key: made[0][key] for key in expected} == expected


def test_a_second_process_does_not_disturb_a_run(short_demo, capsys):
    before = {path: path.stat().st_mtime_ns for path in short_demo.iterdir()}
    config = json.loads((short_demo / "config.json").read_text())
    with iterate.claim_directory(short_demo, config):
        assert iterate.main([*SHORT, "--out", str(short_demo)]) == 2
    assert "another process is at this run" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in short_demo.iterdir()} == before


def test_equal_seeds_give_equal_reports(short_demo, tmp_path):
    assert iterate.main([*SHORT, "--out", str(tmp_path / "again")]) == 0
    assert report(tmp_path / "again") == report(short_demo)


def test_the_same_command_again_continues(short_demo, tmp_path, capsys):
    out = tmp_path / "copy"
    shutil.copytree(short_demo, out)
    for name in ("student-2.pt", "report.json", "report.png"):
        (out / name).unlink()
    before = (out / "student-1.pt").stat().st_mtime_ns
    assert iterate.main([*SHORT, "--out", str(out)]) == 0
    assert (out / "student-1.pt").stat().st_mtime_ns == before
    assert report(out) == report(short_demo)


def test_a_run_interrupted_in_the_middle_of_a_training_ends_as_one_that_was_not(
        monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(train, "train", functools.partial(train.train, checkpoint_steps=2))
    arguments = [*SHORT, "--batch-size", "10", "--no-robustness", "--no-labels-only"]
    assert iterate.main([*arguments, "--out", str(tmp_path / "whole")]) == 0
    write, out = data.write_atomically, tmp_path / "run"

    def interrupt(path, *rest):
        write(path, *rest)
        if Path(path).name == "student-1.resume":
            raise KeyboardInterrupt

    with monkeypatch.context() as interrupted:
        interrupted.setattr(data, "write_atomically", interrupt)
        assert iterate.main([*arguments, "--out", str(out)]) == 130
    assert "the same command continues" in capsys.readouterr().err
    assert (out / "student-1.resume").exists() and not (out / "student-1.pt").exists()
    assert iterate.main([*arguments, "--out", str(out)]) == 0
    assert report(out) == report(tmp_path / "whole")
    assert not list(out.glob("*.resume"))


def test_the_plan_by_name_is_the_same_run_as_without(short_demo, capsys):
    before = (short_demo / "report.json").read_bytes()
    assert iterate.main([*SHORT, "--plan", "demo", "--out", str(short_demo)]) == 0
    assert (short_demo / "report.json").read_bytes() == before


def test_a_run_directory_of_another_run_is_not_overwritten(short_demo, capsys):
    before = (short_demo / "report.json").read_bytes()
    assert iterate.main([*SHORT, "--seed", "1", "--out", str(short_demo)]) == 2
    assert "other settings" in capsys.readouterr().err
    assert (short_demo / "report.json").read_bytes() == before


TWO = ["--arch", "0.25x0.34", "0.25x0.34", "--no-labels-only", "--plan", "cifar10-cpu",
       "--no-robustness"]


@pytest.fixture(scope="module")
def small_pictures(tmp_path_factory):
    """--train and --test folders of 32x32 files, and a hundred more images than labels."""
    folder = tmp_path_factory.mktemp("pictures")
    splits = data.demo(0, labels_per_class=12, unlabeled=20, val_per_class=1, test_per_class=2)
    for name in ("labeled", "test"):
        images = getattr(splits, name)
        for number, (label, pixels) in enumerate(zip(images.labels, images.pixels, strict=True)):
            place = folder / name / images.classes[label]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(place / f"{number:03d}.png")
    return ["--train", str(folder / "labeled"), "--test", str(folder / "test"),
            "--labels-per-class", "4", "--val-per-class", "2", "--epochs", "2",
            "--threshold", "0.05", *TWO]


def start(arguments, *launcher, **environment):
    return subprocess.run(
        [sys.executable, *launcher, str(Path(iterate.__file__)), *arguments],
        env=os.environ | environment, capture_output=True, text=True,
    )


def test_two_processes_of_torchrun_write_one_report(small_pictures, tmp_path):
    arguments = [*small_pictures, "--device", "cpu", "--out", str(tmp_path / "r")]
    result = start(arguments, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    assert result.returncode == 0, result.stderr[-3000:]
    rows = report(tmp_path / "r")["generations"]
    assert [row["name"] for row in rows] == ["teacher", "student 1"]
    assert result.stdout.count("pseudo-label top-1") == 1
    lines = [json.loads(line) for line in (tmp_path / "r" / "log.jsonl").open()]
    steps = [line["step"] for line in lines if line["name"] == "teacher" and "val_top1" in line]
    assert steps == sorted(set(steps))


def test_the_loop_runs_on_xla_from_the_command_line(small_pictures, tmp_path):
    pytest.importorskip("torch_xla")
    arguments = [*small_pictures, "--arch", "0.1x0.1", "0.1x0.1", "--device", "xla",
                 "--out", str(tmp_path / "r")]
    result = start(arguments, PJRT_DEVICE="CPU")
    assert result.returncode == 0, result.stderr[-3000:]
    rows = report(tmp_path / "r")["generations"]
    assert [row["name"] for row in rows] == ["teacher", "student 1"]
    assert (tmp_path / "r" / "report.png").exists()


def test_a_student_may_be_pretrained_and_start_from_its_teacher(small_pictures, tmp_path):
    out = tmp_path / "r"
    arguments = [*small_pictures, "--device", "cpu", "--no-joint", "--from-teacher"]
    assert iterate.main([*arguments, "--out", str(out)]) == 0
    pretrained = pseudo_label.load_teacher(out / "student-1-pretrained.pt", torch.device("cpu"))
    finetuned = pseudo_label.load_teacher(out / "student-1.pt", torch.device("cpu"))
    teacher, _ = pseudo_label.load_teacher(out / "teacher.pt", torch.device("cpu"))
    assert pretrained[1]["start"] == pseudo_label.teacher_hash(teacher)
    assert finetuned[1]["start"] == pseudo_label.teacher_hash(pretrained[0])
    assert not pretrained[1]["config"]["joint"] and finetuned[1]["config"]["unlabeled_ratio"] == 0


def test_every_generation_may_be_fine_tuned_at_a_larger_resolution(small_pictures, tmp_path):
    out = tmp_path / "r"
    arguments = [*small_pictures, "--device", "cpu", "--image-size", "66", "--epochs", "1",
                 "--fixed-resolution", "72"]
    assert iterate.main([*arguments, "--out", str(out)]) == 0
    for name, size in (("student-1", 66), ("student-1-72-px", 72)):
        _, known = pseudo_label.load_teacher(out / f"{name}.pt", torch.device("cpu"))
        assert known["image_size"] == size
    teacher, _ = pseudo_label.load_teacher(out / "teacher-72-px.pt", torch.device("cpu"))
    settings = json.loads((out / "student-1-labels" / "labels.json").read_text())["settings"]
    assert settings["teacher"] == pseudo_label.teacher_hash(teacher)
    assert settings["image_size"] == 72


def test_labels_alone_get_the_same_fine_tuning(small_pictures, tmp_path):
    pictures = [flag for flag in small_pictures if flag != "--no-labels-only"]
    pictures[pictures.index("--arch") + 2] = "0.25x0.6"
    assert iterate.main([*pictures, "--device", "cpu", "--image-size", "66", "--epochs", "1",
                         "--fixed-resolution", "72", "--out", str(tmp_path / "r")]) == 0
    alone, _ = pseudo_label.load_teacher(tmp_path / "r" / "student-1-labels-only-72-px.pt",
                                         torch.device("cpu"))
    splits = data.split_folder(pictures[1], pictures[3], 4, 2, 72)
    assert report(tmp_path / "r")["generations"][1]["labels_only_test_top1"] == train.top1(
        alone, splits.test, 72)


def test_labels_alone_get_the_noise_and_the_steps_of_the_student(tmp_path):
    """Section 3.2, "We apply RandAugment to all EfficientNet baselines"."""
    quick = dataclasses.replace(iterate.DEMO, batch_size=10, epochs=1.0, rand_augment_operations=0)
    student = dataclasses.replace(quick, epochs=2.0, rand_augment_operations=1,
                                  augment_unlabeled=False)
    generations = (
        iterate.Generation("teacher", quick),
        iterate.Generation("student 1", student, threshold=0.0, per_class=4),
    )
    splits = data.demo(0, labels_per_class=2, unlabeled=40, val_per_class=1, test_per_class=1)
    iterate.iterate(generations, splits, tmp_path, torch.device("cpu"), robustness=False)
    _, alone = pseudo_label.load_teacher(tmp_path / "student-1-labels-only.pt",
                                         torch.device("cpu"))
    assert alone["config"] == dataclasses.asdict(dataclasses.replace(
        student, augment_unlabeled=True, unlabeled_ratio=0, labeled_images=20))


def test_in_the_small_plans_the_teacher_is_noised_as_its_students_are():
    for plan in ("demo", "cifar10", "own"):
        teacher, *students = (generation.config for generation in iterate.PLANS[plan])
        assert teacher.rand_augment_operations > 0
        for student in students:
            assert dataclasses.replace(student, arch=teacher.arch) == teacher


def test_digits_of_svhn_are_not_mirrored_unless_asked_for(monkeypatch, tmp_path):
    seen = []

    def stop(generations, *_, **__):
        seen.append(generations[0].config.flip)
        raise data.InputError("far enough")

    monkeypatch.setattr(data, "torchvision_splits", lambda *_, **__: data.demo(0, 2, 20, 1, 1))
    monkeypatch.setattr(iterate, "iterate", stop)
    for more in ([], ["--flip"]):
        arguments = ["--dataset", "svhn", "--plan", "cifar10-cpu", *more]
        assert iterate.main([*arguments, "--out", str(tmp_path / f"run{len(seen)}")]) == 2
    assert seen == [False, True]


def test_generations_of_the_paper_are_those_of_table_7():
    plan = iterate.PLANS["paper"]
    assert [generation.config.arch for generation in plan] == ["b7", "l2", "l2", "l2"]
    assert [generation.config.unlabeled_ratio for generation in plan[1:]] == [14, 14, 28]
    assert plan[1].threshold == 0.3 and plan[1].per_class == 130_000


@pytest.fixture
def planned(monkeypatch, tmp_path):
    """What the command line makes of its flags, before any image is read."""

    def planned(*flags):
        found = []

        def stop(arguments, plan, image_size):
            found.extend([iterate.choose_generations(arguments, plan), plan, image_size])
            raise data.InputError("far enough")

        monkeypatch.setattr(iterate, "read_splits", stop)
        assert iterate.main([*flags, "--device", "cpu", "--out", str(tmp_path / "out")]) == 2
        return found

    return planned


def test_the_papers_models_by_name_are_the_papers_plan(planned):
    assert planned("--plan", "paper", "--arch", "b7", "l2", "l2", "l2")[0] == iterate.PLANS["paper"]


def test_other_models_in_the_papers_plan_bring_their_own_settings(planned):
    generations, *_ = planned("--plan", "paper", "--arch", "b5")
    assert [generation.config for generation in generations] == [train.recipe("b5")] * 4
    assert {generation.fixed_resolution for generation in generations} == {None}
    generations, *_ = planned("--plan", "paper", "--arch", "l2")
    assert {generation.fixed_resolution for generation in generations} == {800}


@pytest.mark.parametrize(("dataset", "plan", "image_size"), [
    ("cifar10", "cifar10", 32), ("svhn", "cifar10", 32), ("stl10", "own", 96),
    ("imagenette", "own", 224),
])
def test_a_published_set_has_a_plan_that_fits_it(dataset, plan, image_size, planned):
    assert planned("--dataset", dataset)[1:] == [plan, image_size]


@pytest.mark.parametrize(("side", "plan", "image_size"), [
    (28, "cifar10", 32), (48, "cifar10", 48), (64, "cifar10", 64), (65, "own", 224),
])
def test_small_images_of_a_folder_keep_their_size(side, plan, image_size, planned, tmp_path):
    for number, folder in enumerate(("labeled/cat", "labeled/dog")):
        (tmp_path / folder).mkdir(parents=True)
        Image.new("RGB", (side, side - number)).save(tmp_path / folder / "0.png")
    source = ("--labeled", str(tmp_path / "labeled"))
    assert planned(*source)[1:] == [plan, image_size]
    assert planned(*source, "--image-size", "40")[2] == 40
    assert planned(*source, "--plan", "cifar10-cpu")[2] == 32


def test_students_of_every_plan_are_equal_or_larger():
    for plan in iterate.PLANS.values():
        sizes = iterate.check_sizes(plan, 1000)
        assert sizes == sorted(sizes)


def test_noise_can_be_taken_from_the_unlabeled_images_alone(tmp_path):
    out = str(tmp_path / "r")
    quick = ["--no-labels-only", "--no-robustness"]
    assert iterate.main([*SHORT, "--no-noise", *quick, "--out", out]) == 0
    generations = json.loads((tmp_path / "r" / "config.json").read_text())["generations"]
    teacher, *students = (generation["config"] for generation in generations)
    for student in students:
        assert not student["augment_unlabeled"] and not student["model_noise_unlabeled"]
        assert student["rand_augment_operations"] > 0  # labelled images keep their noise
    assert teacher["augment_unlabeled"] and teacher["model_noise_unlabeled"]


# ------------------------------------------------------------------ anyone's own images


@pytest.fixture
def folders(tmp_path):
    """Two classes, 40x36 pixels: bright and dark, with an unlabelled pool nested in folders."""
    random = np.random.default_rng(0)

    def write(path, low):
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(low, low + 100, (40, 36, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)

    for number in range(6):
        for low, name in ((0, "dark"), (150, "bright")):
            write(tmp_path / "labeled" / name / f"{number}.png", low)
            write(tmp_path / "test" / name / f"{number}.png", low)
            write(tmp_path / "pool" / "deep" / "er" / f"{name}{number}.png", low)
    return tmp_path


def own(folders, *more, labeled="labeled", test="test"):
    return ["--plan", "cifar10-cpu", "--labeled", str(folders / labeled), "--unlabeled",
            str(folders / "pool"), "--test", str(folders / test), "--arch", "0.25x0.34", "--epochs",
            "2", "--batch-size", "4", "--per-class", "6", "--threshold", "0.1", "--device", "cpu",
            "--workers", "0", "--no-robustness", "--out", str(folders / "out"), *more]


def test_own_folders_run_end_to_end_and_broken_pool_files_are_named(folders):
    (folders / "pool" / "broken.jpg").write_bytes(b"not an image")
    assert iterate.main(own(folders)) == 0
    result = report(folders / "out")
    assert result["generations"][1]["pseudo_label_top1"] is None  # nobody knows the truth
    assert any("broken.jpg" in name for name in result["notes"]["skipped_files"])


def test_images_larger_than_64_pixels_stay_files(folders):
    arguments = own(folders, "--image-size", "72", "--batch-size", "2")
    assert iterate.main(arguments) == 0
    assert (folders / "out" / "report.png").stat().st_size > 10_000


def test_the_steps_also_run_one_by_one(folders, capsys):
    flags = ["--arch", "0.25x0.34", "--image-size", "32", "--batch-size", "4", "--epochs", "2",
             "--labeled", str(folders / "labeled"), "--device", "cpu", "--workers", "0"]
    pool = ["--unlabeled", str(folders / "pool")]
    teacher, student, labels = (str(folders / name) for name in ("t.pt", "s.pt", "labels"))
    assert train.main([*flags, "--val", str(folders / "test"), "--out", teacher]) == 0
    assert pseudo_label.main([*pool, "--teacher", teacher, "--out", labels, "--threshold", "0.1",
                              "--device", "cpu", "--workers", "0"]) == 0
    arguments = [*flags, *pool, "--pseudo-label-dir", labels, "--out", student]
    assert train.main(arguments) == 0
    assert "loss_unlabeled" in (folders / "s.jsonl").read_text()
    hard = ["--pseudo-labels", "hard", "--out", str(folders / "hard.pt")]
    assert train.main([*arguments[:-2], *hard]) == 2
    assert "is of kind 'soft', not 'hard'" in capsys.readouterr().err
    for image in sorted((folders / "pool").rglob("*.png"))[:3]:  # other images: stale labels
        image.unlink()
    assert train.main([*arguments[:-1], str(folders / "other.pt")]) == 2
    assert "pool" in capsys.readouterr().err


def empty_class(folders):
    (folders / "labeled" / "empty").mkdir()


def other_classes(folders):
    (folders / "test" / "dark").rename(folders / "test" / "darker")


def broken_label(folders):
    (folders / "labeled" / "dark" / "broken.png").write_bytes(b"x")


def one_level_too_high(folders):
    (folders / "labeled").rename(folders / "all")
    (folders / "labeled").mkdir()
    (folders / "all").rename(folders / "labeled" / "labeled")


@pytest.mark.parametrize(("prepare", "more", "expected"), [
    (None, ["--labeled", "nowhere"], "nowhere"),
    (empty_class, [], "empty"),
    (other_classes, [], "darker"),
    (broken_label, [], "broken.png"),
    (None, ["--arch", "0.5x0.5", "0.25x0.34"], "smaller than its teacher"),
    (None, ["--arch", "b99"], "b99"),
    (None, ["--labels-per-class", "2"], "--labels-per-class does not go with --labeled"),
    (None, ["--val-per-class", "6"], "class bright: 0 labelled and 6 validation"),
    (one_level_too_high, [], "only one class folder, labeled"),
    (None, ["--dropout", "2"], "dropout must be 0 to"),
    (None, ["--survival-prob", "0"], "survival_prob must be more than 0"),
    (None, ["--epochs", "nan"], "epochs must be more than 0"),
    (None, ["--seed", "-1"], "seed must be 0 to"),
    (None, ["--unlabeled-ratio", "-1"], "unlabeled_ratio must be 0 to"),
    (None, ["--threshold", "2"], "threshold must be 0 or more and below 1"),
    (None, ["--temperature", "0"], "temperature must be more than 0"),
    (None, ["--per-class", "0"], "per_class must be 1 or more"),
    (None, ["--workers", "-1"], "--workers -1"),
    (None, ["--fixed-resolution", "48"], "--fixed-resolution cannot be 48"),
    (None, ["--fixed-resolution", "24"], "fixed_resolution 24 must not be smaller"),
    (None, ["--batch-size", "1"], "BatchNorm needs two images"),
    (None, ["--arch", "0.25x0.34", "0.5x0.34", "--from-teacher"], "--from-teacher: a 0.5x0.34"),
])
def test_wrong_input_ends_with_one_clear_line(prepare, more, expected, folders, capsys):
    if prepare:
        prepare(folders)
    assert iterate.main(own(folders, *more)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert expected in error and error.startswith("iterate.py: ")
    assert not (folders / "out").exists()  # nothing half-written


@pytest.mark.parametrize("damage", ["a file in the place", "a damaged config.json"])
def test_a_place_that_cannot_hold_a_run_is_an_error_and_stays_as_it_is(damage, tmp_path, capsys):
    out = tmp_path / "out"
    kept = out if damage == "a file in the place" else out / "config.json"
    kept.parent.mkdir(exist_ok=True)
    kept.write_text("{")
    assert iterate.main([*SHORT, "--out", str(out)]) == 2
    assert str(out) in capsys.readouterr().err and kept.read_text() == "{"


def test_a_forgotten_labeled_folder_does_not_start_the_demo(tmp_path, capsys):
    assert iterate.main(["--unlabeled", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "--unlabeled does not go with the demo's images" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_smaller_student_is_possible_when_asked_for(folders):
    arguments = own(folders, "--arch", "0.25x0.5", "0.25x0.34", "--allow-smaller-student",
                    "--no-labels-only")
    assert iterate.main(arguments) == 0


def test_validation_is_a_tenth_of_a_folder_that_is_split(folders, monkeypatch):
    found = []

    def stop(generations, splits, out, *_, **__):
        found.append(splits)
        raise data.InputError("far enough")

    monkeypatch.setattr(iterate, "iterate", stop)
    iterate.main(["--plan", "cifar10-cpu", "--train", str(folders / "labeled"), "--test",
                  str(folders / "test"), "--labels-per-class", "3", "--out", str(folders / "out")])
    assert [len(found[0].labeled), len(found[0].unlabeled), len(found[0].validation)] == [6, 4, 2]


def test_more_labels_than_there_are_is_an_error(folders, capsys):
    arguments = ["--plan", "cifar10-cpu", "--train", str(folders / "labeled"), "--test",
                 str(folders / "test"), "--labels-per-class", "6", "--val-per-class", "1",
                 "--out", str(folders / "out")]
    assert iterate.main(arguments) == 2
    assert "class bright: 6 labelled and 1 validation" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="the device is there")
def test_a_device_that_is_not_there_is_an_error(tmp_path, capsys):
    assert iterate.main(["--device", "cuda", "--out", str(tmp_path / "out")]) == 2
    assert "cuda is not there" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--plan", "imagenet"], ["--learning-rte", "1"]])
def test_an_unknown_plan_or_flag_exits_with_2(arguments):
    command = [sys.executable, str(Path(iterate.__file__)), *arguments]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2 and "Traceback" not in result.stderr
