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

import pytest
import torch
from doubles import write_folders
from PIL import Image

import iterate
import pseudo_label
import train
from iterate import Generation
from model import Checkpoint
from pseudo_label import Labelling
from support import InputError, batches, cli, datasets, devices, files, plans, runs

SHORT = ["--unlabeled-images", "120", "--labels-per-class", "3", "--test-per-class", "10",
         "--epochs", "2", "--per-class", "8", "--threshold", "0.05", "--device", "cpu",
         "--allow-chance"]


def run(*arguments):
    return cli.run(iterate.main, [str(argument) for argument in arguments])


def report(out):
    return json.loads((out / "report.json").read_text())


def result(out):
    """The report but for the time it took."""
    return {key: value for key, value in report(out).items() if key != "seconds"}


def weights_of(checkpoint):
    """The hash of a checkpoint's weights."""
    return files.digest(*Checkpoint.load(checkpoint).weights.values())


def settings_of(checkpoint):
    """The settings that a checkpoint was trained with."""
    return json.loads(torch.load(checkpoint, weights_only=True)["meta"])


@pytest.fixture(scope="module")
def short_demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "demo"
    assert run(*SHORT, "--out", out) == 0
    return out


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
    settings = json.loads((short_demo / "student-2-labels" / "labels.json").read_text())["settings"]
    assert settings["teacher"] == weights_of(short_demo / "student-1.pt")


def test_test_accuracy_is_that_of_the_checkpoint(short_demo):
    network = Checkpoint.load(short_demo / "student-2.pt").network()
    splits = datasets.demo(0, labels_per_class=3, unlabeled=120, test_per_class=10)
    assert train.accuracy(network, splits.test, 32, devices.CPU) == report(
        short_demo)["generations"][2]["test_top1"]


def test_checkpoints_are_chosen_on_the_validation_images(tmp_path):
    splits, seen = datasets.demo(0, 2, 40, 1, 2), []

    def stop(config, labeled, validation, *rest, **options):
        seen.extend([labeled, validation])
        raise InputError("far enough")

    with mock.patch.object(train, "train", stop), pytest.raises(InputError):
        iterate.iterate(iterate.PLANS["demo"], splits, tmp_path, devices.CPU)
    assert seen[0] is splits.labeled and seen[1] is splits.validation


@pytest.mark.parametrize(("flags", "expected"), [
    ((), {"threshold": 0.05, "balance": True, "noised_teacher": False, "temperature": 1.0,
          "per_class": 8, "kind": "soft"}),
    (("--no-filter",), {"threshold": 0.0, "balance": True}),
    (("--no-balance",), {"threshold": 0.05, "balance": False}),
    (("--noised-teacher",), {"noised_teacher": True}),
    (("--temperature", "0.7"), {"temperature": 0.7}),
    (("--pseudo-labels", "hard"), {"kind": "hard"}),
])
def test_pseudo_labels_are_made_as_the_plan_and_the_flags_say(flags, expected, tmp_path):
    made = []

    def stop(teacher, pool, out, how, **options):
        made.append((teacher, how))
        raise InputError("far enough")

    short = [*SHORT]
    for flag, other in ("--no-filter", "--threshold"), ("--no-balance", "--per-class"):
        if flag in flags:  # with which the other does not go
            del short[short.index(other): short.index(other) + 2]
    with mock.patch.object(pseudo_label, "label", stop):
        assert run(*short, *flags, "--epochs", "1", "--out", tmp_path / "r") == 2
    teacher, how = made[0]
    assert teacher.rand_augment == (1, 5.0)
    assert {key: getattr(how, key) for key in expected} == expected


def test_another_plan_in_the_same_place_names_the_setting_that_differs(short_demo, capsys):
    assert run(*SHORT, "--temperature", "0.9", "--out", short_demo) == 2
    assert "temperature: 1.0, not 0.9" in capsys.readouterr().err


def test_a_second_process_does_not_disturb_a_run(short_demo, capsys):
    before = {path: path.stat().st_mtime_ns for path in short_demo.iterdir()}
    config = json.loads((short_demo / "config.json").read_text())
    with files.claim(short_demo, config):
        assert run(*SHORT, "--out", short_demo) == 2
    assert "another process is at this run" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in short_demo.iterdir()} == before


def test_equal_seeds_give_equal_reports(short_demo, tmp_path):
    assert run(*SHORT, "--out", tmp_path / "again") == 0
    assert result(tmp_path / "again") == result(short_demo)


def test_the_same_command_again_continues(short_demo, tmp_path, capsys):
    out = tmp_path / "copy"
    shutil.copytree(short_demo, out)
    for name in ("student-2.pt", "report.json", "report.png"):
        (out / name).unlink()
    before = (out / "student-1.pt").stat().st_mtime_ns
    assert run(*SHORT, "--out", out) == 0
    assert (out / "student-1.pt").stat().st_mtime_ns == before
    assert result(out) == result(short_demo)


def test_a_run_interrupted_in_the_middle_of_a_training_ends_as_one_that_was_not(
        monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(train, "train", functools.partial(train.train, checkpoint_steps=2))
    arguments = [*SHORT, "--batch-size", "10", "--no-robustness", "--no-labels-only"]
    assert run(*arguments, "--out", tmp_path / "whole") == 0
    write, out = runs.write_atomically, tmp_path / "run"

    def interrupt(path, *rest):
        write(path, *rest)
        if Path(path).name == "student-1.resume":
            raise KeyboardInterrupt

    with monkeypatch.context() as interrupted:
        interrupted.setattr(runs, "write_atomically", interrupt)
        assert run(*arguments, "--out", out) == 130
    assert "the same command continues" in capsys.readouterr().err
    assert (out / "student-1.resume").exists() and not (out / "student-1.pt").exists()
    assert run(*arguments, "--out", out) == 0
    assert result(out) == result(tmp_path / "whole")
    assert not list(out.glob("*.resume"))


def test_the_plan_by_name_is_the_same_run_as_without(short_demo, capsys):
    before = (short_demo / "report.json").read_bytes()
    assert run(*SHORT, "--plan", "demo", "--out", short_demo) == 0
    assert (short_demo / "report.json").read_bytes() == before


def test_a_run_directory_of_another_run_is_not_overwritten(short_demo, capsys):
    before = (short_demo / "report.json").read_bytes()
    assert run(*SHORT, "--seed", "1", "--out", short_demo) == 2
    assert "other settings" in capsys.readouterr().err
    assert (short_demo / "report.json").read_bytes() == before


def test_labels_only_may_be_left_out_or_added_later(short_demo, tmp_path):
    """It trains nothing anew, and comes out the same."""
    out, before = tmp_path / "run", report(short_demo)["generations"]
    shutil.copytree(short_demo, out)
    for file in out.glob("*labels-only*"):
        file.unlink()
    assert run(*SHORT, "--no-labels-only", "--out", out) == 0
    assert {row["labels_only_test_top1"] for row in report(out)["generations"]} == {None}
    assert run(*SHORT, "--out", out) == 0
    assert report(out)["generations"] == before


@pytest.mark.parametrize("flags", [
    ("--unlabeled-images", "121"), ("--threshold", "0.06"),
    ("--flip", "--no-flip"), ("--from-teacher", "--arch", "0.25x0.5"),
])
def test_whatever_decides_the_report_is_a_setting_of_the_run(flags, short_demo, capsys):
    assert run(*SHORT, *flags, "--out", short_demo) == 2
    assert "other settings" in capsys.readouterr().err


TWO = ["--arch", "0.25x0.34", "0.25x0.34", "--no-labels-only", "--plan", "cifar10-cpu",
       "--no-small-images", "--no-robustness"]


@pytest.fixture(scope="module")
def small_pictures(tmp_path_factory):
    """--train and --test folders of 32x32 files, and a hundred more images than labels."""
    folder = tmp_path_factory.mktemp("pictures")
    splits = datasets.demo(0, labels_per_class=12, unlabeled=20, val_per_class=1, test_per_class=2)
    for name in ("labeled", "test"):
        images = getattr(splits, name)
        for number, (label, pixels) in enumerate(zip(images.labels, images.pixels, strict=True)):
            place = folder / name / images.classes[label]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(place / f"{number:03d}.png")
    return ["--train", str(folder / "labeled"), "--test", str(folder / "test"),
            "--labels-per-class", "4", "--val-per-class", "2", "--epochs", "2",
            "--threshold", "0.05", "--allow-chance", *TWO]


def start(arguments, *launcher, **environment):
    return subprocess.run(
        [sys.executable, *launcher, str(Path(iterate.__file__)), *map(str, arguments)],
        env=os.environ | environment, capture_output=True, text=True,
    )


def test_two_processes_of_torchrun_write_one_report(small_pictures, tmp_path):
    arguments = [*small_pictures, "--device", "cpu", "--out", tmp_path / "r"]
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
                 "--out", tmp_path / "r"]
    result = start(arguments, PJRT_DEVICE="CPU")
    assert result.returncode == 0, result.stderr[-3000:]
    rows = report(tmp_path / "r")["generations"]
    assert [row["name"] for row in rows] == ["teacher", "student 1"]
    assert (tmp_path / "r" / "report.png").exists()


def test_a_student_may_be_pretrained_and_start_from_its_teacher(small_pictures, tmp_path):
    out = tmp_path / "r"
    assert run(*small_pictures, "--device", "cpu", "--no-joint", "--from-teacher",
               "--out", out) == 0
    pretrained = settings_of(out / "student-1-pretrained.pt")
    finetuned = settings_of(out / "student-1.pt")
    assert pretrained["start"] == weights_of(out / "teacher.pt")
    assert finetuned["start"] == weights_of(out / "student-1-pretrained.pt")
    assert not pretrained["config"]["joint"] and finetuned["config"]["unlabeled_ratio"] == 0


def test_every_generation_may_be_fine_tuned_at_a_larger_resolution(small_pictures, tmp_path):
    out = tmp_path / "r"
    assert run(*small_pictures, "--device", "cpu", "--image-size", "66", "--epochs", "1",
               "--fixed-resolution", "72", "--out", out) == 0
    for name, size in (("student-1", 66), ("student-1-72-px", 72)):
        assert Checkpoint.load(out / f"{name}.pt").image_size == size
    settings = json.loads((out / "student-1-labels" / "labels.json").read_text())["settings"]
    assert settings["teacher"] == weights_of(out / "teacher-72-px.pt")
    assert settings["image_size"] == 72


def test_labels_alone_get_the_same_fine_tuning(small_pictures, tmp_path):
    pictures = [flag for flag in small_pictures if flag != "--no-labels-only"]
    pictures[pictures.index("--arch") + 2] = "0.25x0.6"
    assert run(*pictures, "--device", "cpu", "--image-size", "66", "--epochs", "1",
               "--fixed-resolution", "72", "--out", tmp_path / "r") == 0
    alone = Checkpoint.load(tmp_path / "r" / "student-1-labels-only-72-px.pt").network()
    test = datasets.read_folder(pictures[3], 72)
    assert report(tmp_path / "r")["generations"][1]["labels_only_test_top1"] == train.accuracy(
        alone, test, 72, devices.CPU)


QUICK = train.TrainConfig(**plans.DEMO | {"batch_size": 10, "epochs": 1.0})


def quick_loop(out, seed=0, **changes):
    """A teacher and a student of its size, in a second; `changes` are the student's."""
    config = dataclasses.replace(QUICK, seed=seed)
    generations = (Generation("teacher", config), dataclasses.replace(
        Generation("student 1", config, Labelling(threshold=0.0, per_class=4)), **changes))
    splits = datasets.demo(0, labels_per_class=2, unlabeled=40, val_per_class=1, test_per_class=1)
    return iterate.iterate(generations, splits, out, devices.CPU, robustness=False)


def test_labels_alone_get_the_students_model_and_steps_and_the_teachers_noise_on_images(tmp_path):
    """Section 3.2, "We apply RandAugment to all EfficientNet baselines": as much as the teacher."""
    student = dataclasses.replace(QUICK, epochs=2.0, rand_augment_operations=2,
                                  rand_augment_magnitude=9.0, dropout=0.4, survival_prob=0.7)
    quick_loop(tmp_path, config=student)
    alone = settings_of(tmp_path / "student-1-labels-only.pt")["config"]
    expected = dataclasses.replace(
        student, unlabeled_ratio=0, labeled_images=20, rand_augment_operations=1,
        rand_augment_magnitude=QUICK.rand_augment_magnitude)
    assert alone == dataclasses.asdict(expected) | {"seed": alone["seed"]}


def test_students_that_differ_in_their_use_of_the_pool_share_one_training_on_labels_alone(tmp_path):
    twice = dataclasses.replace(QUICK, unlabeled_ratio=1)
    wider = dataclasses.replace(QUICK, arch="0.35x0.5")
    labelling = Labelling(threshold=0.0, per_class=4), Labelling(threshold=0.0, temperature=0.5)
    splits = datasets.demo(0, labels_per_class=2, unlabeled=40, val_per_class=1, test_per_class=1)
    rows = iterate.iterate((
        Generation("teacher", QUICK), Generation("student 1", QUICK, labelling[0]),
        Generation("student 2", twice, labelling[1]),
        Generation("student 3", wider, labelling[1]),
    ), splits, tmp_path, devices.CPU, robustness=False)["generations"]
    alone = {path.stem for path in tmp_path.glob("*labels-only.pt")}
    assert alone == {"student-1-labels-only", "student-3-labels-only"}
    assert {"student 1, labels only", "student 3, labels only"} < set(steps_of(tmp_path))
    for row, name in zip(rows[1:], (1, 1, 3), strict=True):
        network = Checkpoint.load(tmp_path / f"student-{name}-labels-only.pt").network()
        assert row["labels_only_test_top1"] == train.accuracy(
            network, splits.test, 32, devices.CPU)


def test_labels_alone_start_where_their_student_does_or_the_one_before_on_labels_alone(tmp_path):
    """Else more steps behind a student would look like the pool's doing."""
    labelling = Labelling(threshold=0.0, per_class=4)
    splits = datasets.demo(0, labels_per_class=2, unlabeled=40, val_per_class=1, test_per_class=1)
    rows = iterate.iterate((
        Generation("teacher", dataclasses.replace(QUICK, rand_augment_operations=0)),
        Generation("student 1", QUICK, labelling, from_teacher=True),
        Generation("student 2", QUICK, labelling, from_teacher=True),
        Generation("student 3", QUICK, labelling),
    ), splits, tmp_path, devices.CPU, robustness=False)["generations"]
    alone = [settings_of(tmp_path / f"student-{number}-labels-only.pt") for number in (1, 2, 3)]
    # From trained weights the student's noise is the better one, from scratch the teacher's.
    assert [one["config"]["rand_augment_operations"] for one in alone] == [1, 1, 0]
    starts = {number: one["start"] for number, one in enumerate(alone, 1)}
    assert starts[1] == weights_of(tmp_path / "teacher.pt")
    assert starts[2] == weights_of(tmp_path / "student-1-labels-only.pt")
    assert starts[3] is None
    for row, number in zip(rows[1:], starts, strict=True):
        network = Checkpoint.load(tmp_path / f"student-{number}-labels-only.pt").network()
        assert row["labels_only_test_top1"] == train.accuracy(
            network, splits.test, 32, devices.CPU)


def steps_of(folder):
    """The last step of each training of a loop, by its name."""
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return {line["name"]: line["step"] + 1 for line in lines}


@pytest.mark.parametrize(("changes", "phases"), [
    ({}, 1), ({"joint": False}, 2), ({"fixed_resolution": 48}, 2),
    ({"joint": False, "fixed_resolution": 48}, 3), ({"from_teacher": True}, 1),
])
def test_labels_alone_take_as_many_steps_as_the_student_in_every_phase(changes, phases, tmp_path):
    quick_loop(tmp_path, **changes)
    steps = steps_of(tmp_path)
    student = {name: count for name, count in steps.items() if name.startswith("student 1")
               and "labels only" not in name}
    alone = {name.replace(", labels only", ""): count for name, count in steps.items()
             if "labels only" in name}
    assert student == alone and len(student) == phases


def test_every_training_of_a_loop_has_random_numbers_of_its_own(tmp_path):
    """A student "from scratch" starts from other weights, and sees another order of images."""
    quick_loop(tmp_path / "a")
    names = ("teacher", "student-1", "student-1-labels-only")
    seeds = [settings_of(tmp_path / "a" / f"{name}.pt")["config"]["seed"] for name in names]
    assert len({0, *seeds}) == 4
    starts = [train.build_model(dataclasses.replace(QUICK, seed=seed), 10).classifier.weight
              for seed in seeds]
    orders = [next(batches.shuffled(20, 10, 0, 1, batches.seed_of(seed, 0))) for seed in seeds]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert not torch.equal(starts[one], starts[other])
        assert not torch.equal(orders[one], orders[other])


def test_the_seeds_of_a_loop_follow_from_its_own(tmp_path):
    first, again, other = (quick_loop(tmp_path / name, seed) for name, seed in (
        ("a", 0), ("b", 0), ("c", 1)))
    assert first == again and (first["seed"], other["seed"]) == (0, 1)
    one, same, different = (settings_of(tmp_path / name / "student-1.pt")["config"]["seed"]
                            for name in "abc")
    assert one == same != different


def test_noise_can_be_taken_from_the_unlabeled_images_alone(tmp_path):
    quick = ["--no-labels-only", "--no-robustness"]
    assert run(*SHORT, "--no-noise", *quick, "--out", tmp_path / "r") == 0
    generations = json.loads((tmp_path / "r" / "config.json").read_text())["generations"]
    teacher, *students = (generation["config"] for generation in generations.values())
    for student in students:
        assert not student["augment_unlabeled"] and not student["model_noise_unlabeled"]
        assert student["rand_augment_operations"] > 0  # labelled images keep their noise
    assert teacher["augment_unlabeled"] and teacher["model_noise_unlabeled"]


# ---- Anyone's own images ----


@pytest.fixture
def folders(tmp_path):
    return write_folders(tmp_path)


def own(folders, *more, labeled="labeled", test="test"):
    return ["--plan", "cifar10-cpu", "--no-small-images",
            "--labeled", str(folders / labeled), "--unlabeled", str(folders / "pool"),
            "--test", str(folders / test), "--arch", "0.25x0.34", "--epochs", "2",
            "--batch-size", "4", "--per-class", "6", "--threshold", "0.1", "--device", "cpu",
            "--workers", "0", "--no-robustness", "--allow-chance", "--out", str(folders / "out"),
            *more]


def test_own_folders_run_end_to_end_and_broken_pool_files_are_named(folders):
    (folders / "pool" / "broken.jpg").write_bytes(b"not an image")
    assert run(*own(folders)) == 0
    result = report(folders / "out")
    assert result["generations"][1]["pseudo_label_top1"] is None  # nobody knows the truth
    assert any("broken.jpg" in name for name in result["notes"]["skipped_files"])


@pytest.mark.parametrize("image_size", ["32", "72"])  # in memory, and as files
def test_a_run_goes_on_by_any_path_to_the_same_images_and_names_other_ones(
        folders, monkeypatch, capsys, image_size):
    flags = own(folders, "--image-size", image_size, "--batch-size", "2", "--epochs", "1")
    assert run(*flags) == 0
    before = (folders / "out" / "teacher.pt").stat().st_mtime_ns
    monkeypatch.chdir(folders)
    other = ["pool/../labeled/" if flag == str(folders / "labeled") else flag for flag in flags]
    assert run(*other, "--root", "datasets", "--seed", "0", "--joint") == 0  # their defaults
    assert (folders / "out" / "teacher.pt").stat().st_mtime_ns == before
    file = sorted((folders / "test").rglob("*.png"))[0]
    Image.new("RGB", (40, 40), "red").save(file)
    capsys.readouterr()
    assert run(*flags) == 2
    assert "other settings (test images: " in capsys.readouterr().err


def test_images_larger_than_64_pixels_stay_files(folders):
    assert run(*own(folders, "--image-size", "72", "--batch-size", "2")) == 0
    assert (folders / "out" / "report.png").stat().st_size > 10_000


def test_the_steps_also_run_one_by_one(folders, capsys):
    flags = ["--arch", "0.25x0.34", "--image-size", "32", "--batch-size", "4", "--epochs", "2",
             "--labeled", str(folders / "labeled"), "--device", "cpu", "--workers", "0"]
    pool = ["--unlabeled", str(folders / "pool")]
    teacher, student, labels = (str(folders / name) for name in ("t.pt", "s.pt", "labels"))
    assert cli.run(train.main, [*flags, "--val", str(folders / "test"), "--out", teacher]) == 0
    assert cli.run(pseudo_label.main, [
        *pool, "--teacher", teacher, "--out", labels, "--threshold", "0.1", "--device", "cpu",
        "--workers", "0"]) == 0
    arguments = [*flags, *pool, "--pseudo-label-dir", labels, "--out", student]
    assert cli.run(train.main, arguments) == 0
    assert "loss_unlabeled" in (folders / "s.jsonl").read_text()
    hard = ["--pseudo-labels", "hard", "--out", str(folders / "hard.pt")]
    assert cli.run(train.main, [*arguments[:-2], *hard]) == 2
    assert "kind: 'soft', not 'hard'" in capsys.readouterr().err
    for image in sorted((folders / "pool").rglob("*.png"))[:3]:  # other images: stale labels
        image.unlink()
    assert cli.run(train.main, [*arguments[:-1], str(folders / "other.pt")]) == 2
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
    (None, ["--labels-per-class", "9"], "class bright: 9 labelled and"),
    (None, ["--val-per-class", "6"], "class bright: 1 labelled and 6 validation"),
    (one_level_too_high, [], "only one class folder, labeled"),
    (None, ["--dropout", "2"], "--dropout 2.0: give 0 or more and below 1"),
    (None, ["--survival-prob", "0"], "--survival-prob 0.0: give more than 0 and up to 1"),
    (None, ["--epochs", "nan"], "--epochs nan: give more than 0"),
    (None, ["--seed", "-1"], "--seed -1: give 0 or more"),
    (None, ["--unlabeled-ratio", "-1"], "--unlabeled-ratio -1: give 0 to 100"),
    (None, ["--threshold", "2"], "--threshold 2.0: give 0 or more and below 1"),
    (None, ["--temperature", "0"], "--temperature 0.0: give 0.01 to 100"),
    (None, ["--per-class", "0"], "--per-class 0: give 1 to 1,000,000,000"),
    (None, ["--workers", "-1"], "--workers -1: give 0 to 1,000"),
    (None, ["--fixed-resolution", "24"], "--fixed-resolution 24: give --image-size, 32, or more"),
    (None, ["--fixed-resolution", "0"], "--fixed-resolution 0: give 1 to 10,000"),
    (None, ["--fixed-resolution", "20000"], "--fixed-resolution 20000: give 1 to 10,000"),
    (None, ["--batch-size", "1"], "BatchNorm needs two images"),
    (None, ["--arch", "0.25x0.34", "0.5x0.34", "--from-teacher"], "--from-teacher: a 0.5x0.34"),
])
def test_wrong_input_ends_with_one_clear_line(prepare, more, expected, folders, capsys):
    if prepare:
        prepare(folders)
    assert run(*own(folders, *more)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert expected in error and error.startswith("iterate.py: ")
    assert not (folders / "out").exists()  # nothing half-written


@pytest.mark.parametrize("damage", ["a file in the place", "a damaged config.json"])
def test_a_place_that_cannot_hold_a_run_is_an_error_and_stays_as_it_is(damage, tmp_path, capsys):
    out = tmp_path / "out"
    kept = out if damage == "a file in the place" else out / "config.json"
    kept.parent.mkdir(exist_ok=True)
    kept.write_text("{")
    assert run(*SHORT, "--out", out) == 2
    assert str(out) in capsys.readouterr().err and kept.read_text() == "{"


def test_a_smaller_student_is_possible_when_asked_for(folders):
    assert run(*own(folders, "--arch", "0.25x0.5", "0.25x0.34", "--allow-smaller-student",
                    "--no-labels-only")) == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="the device is there")
def test_a_device_that_is_not_there_is_an_error(tmp_path, capsys):
    assert run("--device", "cuda", "--out", tmp_path / "out") == 2
    assert "cuda is not there" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--plan", "imagenet"], ["--learning-rte", "1"]])
def test_an_unknown_plan_or_flag_exits_with_2(arguments):
    result = start(arguments)
    assert result.returncode == 2 and "Traceback" not in result.stderr
