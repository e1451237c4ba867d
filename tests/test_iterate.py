"""The loop of Algorithm 1 from the command line: what it reports, continues and refuses."""

import dataclasses
import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from doubles import write_folders
from PIL import Image
from tiny import write_images

import iterate
import model
import pseudo_label
import train
from iterate import Generation
from model import Checkpoint
from pseudo_label import Labelling
from support import cli, datasets, devices, files, outline, plans, runs

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
    out = tmp_path_factory.mktemp("here") / "runs" / "demo"  # as by default: neither is there
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


def test_a_second_process_does_not_disturb_a_run(short_demo, capsys):
    before = {path: path.stat().st_mtime_ns for path in short_demo.iterdir()}
    config = json.loads((short_demo / "config.json").read_text())
    with files.claim(short_demo, config):
        assert run(*SHORT, "--out", short_demo) == 2
    assert "another process is at this run" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in short_demo.iterdir()} == before


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
    before = (out / "teacher.pt").stat().st_mtime_ns
    assert run(*arguments, "--out", out) == 0
    assert result(out) == result(tmp_path / "whole")
    for name in ("student-1.pt", "student-2.pt"):
        assert weights_of(out / name) == weights_of(tmp_path / "whole" / name)
    assert (out / "teacher.pt").stat().st_mtime_ns == before
    assert not list(out.glob("*.resume"))


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


@pytest.mark.parametrize(("flags", "said"), [
    (("--unlabeled-images", "121"), "unlabeled images: "), (("--seed", "1"), "seed: 0, not 1"),
    (("--temperature", "0.9"), "temperature: 1.0, not 0.9"), (("--no-flip",), "flip: True, not"),
    (("--from-teacher", "--arch", "0.25x0.5"), "from_teacher: False, not True"),
])
def test_whatever_decides_the_report_is_a_setting_of_the_run(flags, said, short_demo, capsys):
    before = (short_demo / "report.json").read_bytes()
    assert run(*SHORT, *flags, "--out", short_demo) == 2
    assert f"other settings ({said}" in capsys.readouterr().err
    assert (short_demo / "report.json").read_bytes() == before


TWO = ["--arch", "0.25x0.34", "0.25x0.34", "--no-labels-only", "--plan", "cifar10-cpu",
       "--no-small-images", "--no-robustness"]


@pytest.fixture(scope="module")
def small_pictures(tmp_path_factory):
    """--train and --test folders of 32x32 files, and a hundred more images than labels."""
    folder = tmp_path_factory.mktemp("pictures")
    splits = datasets.demo(0, labels_per_class=12, unlabeled=20, val_per_class=1, test_per_class=2)
    for name in ("labeled", "test"):
        write_images(getattr(splits, name), folder / name)
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
    # With three stages instead of seven, whose graphs compile in half the time.
    fewer = ("import runpy, sys, model; model.STAGES = model.STAGES[:5:2]; del sys.argv[0]; "
             "runpy.run_path(sys.argv[0], run_name='__main__')")
    result = start(arguments, "-c", fewer, PJRT_DEVICE="CPU")
    assert result.returncode == 0, result.stderr[-3000:]
    rows = report(tmp_path / "r")["generations"]
    assert [row["name"] for row in rows] == ["teacher", "student 1"]
    assert (tmp_path / "r" / "report.png").exists()


@pytest.mark.parametrize(("pixels", "larger"), [(66, 72), (32, 48)])
def test_every_generation_may_be_fine_tuned_at_a_larger_resolution(
        pixels, larger, small_pictures, tmp_path):
    """Files; and the demo's images, which are there at 32 pixels alone."""
    demo = ["--unlabeled-images", "60", "--labels-per-class", "4", "--val-per-class", "2",
            "--test-per-class", "2", "--threshold", "0.05", "--allow-chance",
            "--arch", "0.25x0.34", "0.25x0.34", "--no-labels-only", "--no-robustness"]
    out = tmp_path / "r"
    assert run(*(small_pictures if pixels > 64 else demo), "--device", "cpu", "--image-size",
               str(pixels), "--epochs", "1", "--fixed-resolution", str(larger), "--out", out) == 0
    for name, size in (("student-1", pixels), (f"student-1-{larger}-px", larger)):
        assert Checkpoint.load(out / f"{name}.pt").image_size == size
    settings = json.loads((out / "student-1-labels" / "labels.json").read_text())["settings"]
    assert settings["teacher"] == weights_of(out / f"teacher-{larger}-px.pt")
    assert settings["image_size"] == larger


QUICK = train.TrainConfig(**plans.DEMO | {"batch_size": 10, "epochs": 1.0})


def test_labels_alone_get_the_students_model_and_steps_and_the_teachers_noise_on_images():
    """Section 3.2, "We apply RandAugment to all EfficientNet baselines": as much as the teacher."""
    student = dataclasses.replace(QUICK, epochs=2.0, rand_augment_operations=2,
                                  rand_augment_magnitude=9.0, dropout=0.4, survival_prob=0.7)
    (alone,) = plans.on_labels_only(
        (Generation("teacher", QUICK), Generation("student 1", student)))
    assert alone.config == dataclasses.replace(
        student, unlabeled_ratio=0, rand_augment_operations=1,
        rand_augment_magnitude=QUICK.rand_augment_magnitude, seed=alone.config.seed)


def test_students_that_differ_in_their_use_of_the_pool_share_one_training_on_labels_alone():
    twice = dataclasses.replace(QUICK, unlabeled_ratio=1)
    wider = dataclasses.replace(QUICK, arch="0.35x0.5")
    found = plans.on_labels_only((
        Generation("teacher", QUICK), Generation("student 1", QUICK, Labelling(per_class=4)),
        Generation("student 2", twice, Labelling(temperature=0.5)),
        Generation("student 3", wider, Labelling(temperature=0.5))))
    assert found[0] is found[1] and [one.name for one in found[1:]] == [
        "student 1, labels only", "student 3, labels only"]


def test_labels_alone_start_where_their_student_does_or_the_one_before_on_labels_alone(tmp_path):
    """Else more steps behind a student would look like the pool's doing."""
    labelling = Labelling(threshold=0.0, per_class=4)
    splits = datasets.demo(0, labels_per_class=2, unlabeled=40, val_per_class=1, test_per_class=1)
    iterate.iterate((
        Generation("teacher", dataclasses.replace(QUICK, rand_augment_operations=0)),
        Generation("student 1", QUICK, labelling, from_teacher=True),
        Generation("student 2", QUICK, labelling, from_teacher=True),
        Generation("student 3", QUICK, labelling),
    ), splits, tmp_path, devices.CPU, robustness=False)
    alone = [settings_of(tmp_path / f"student-{number}-labels-only.pt") for number in (1, 2, 3)]
    # From trained weights the student's noise is the better one, from scratch the teacher's.
    assert [one["config"]["rand_augment_operations"] for one in alone] == [1, 1, 0]
    starts = {number: one["start"] for number, one in enumerate(alone, 1)}
    assert starts[1] == weights_of(tmp_path / "teacher.pt")
    assert starts[2] == weights_of(tmp_path / "student-1-labels-only.pt")
    assert starts[3] is None


@pytest.mark.parametrize(("changes", "phases"), [
    ({}, 1), ({"joint": False}, 2), ({"fixed_resolution": 48}, 2),
    ({"joint": False, "fixed_resolution": 48}, 3), ({"from_teacher": True}, 1),
])
def test_labels_alone_take_as_many_steps_as_the_student_in_every_phase(changes, phases):
    generations = Generation("teacher", QUICK), Generation("student 1", QUICK, **changes)
    found = outline.phases(generations, (20, 10, 40), True, iterate.train_phases, model.scaling)
    steps = {phase.name: phase.steps for phase in found}
    student = {name: count for name, count in steps.items() if name.startswith("student 1")
               and "labels only" not in name}
    alone = {name.replace(", labels only", ""): count for name, count in steps.items()
             if "labels only" in name}
    assert student == alone and len(student) == phases


def test_the_seeds_of_a_loop_follow_from_its_own(tmp_path):
    def loop(name, seed):
        config = dataclasses.replace(QUICK, seed=seed)
        student = Generation("student 1", config, Labelling(threshold=0.0, per_class=4))
        splits = datasets.demo(0, 2, unlabeled=40, val_per_class=1, test_per_class=1)
        return iterate.iterate((Generation("teacher", config), student), splits, tmp_path / name,
                               devices.CPU, robustness=False)

    first, again, other = loop("a", 0), loop("b", 0), loop("c", 1)
    assert first == again and (first["seed"], other["seed"]) == (0, 1)
    one, same, different = (weights_of(tmp_path / name / "student-1.pt") for name in "abc")
    assert one == same != different


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


@pytest.mark.parametrize(("more", "expected"), [
    (["--labeled", "nowhere"], "nowhere"),
    (["--arch", "0.5x0.5", "0.25x0.34"], "smaller than its teacher"),
    (["--arch", "b99"], "b99"),
    (["--temperature", "0"], "--temperature 0.0: give 0.01 to 100"),
    (["--fixed-resolution", "24"], "--fixed-resolution 24: give 32, the --image-size, or more"),
    (["--fixed-resolution", "0"], "--fixed-resolution 0: give 1 to 10,000"),
    (["--batch-size", "1"], "BatchNorm needs two images"),
    (["--arch", "0.25x0.34", "0.5x0.34", "--from-teacher"], "--from-teacher: a 0.5x0.34"),
])
def test_wrong_input_ends_with_one_clear_line(more, expected, folders, capsys):
    assert run(*own(folders, *more)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert expected in error and error.startswith("iterate.py: ")
    assert not (folders / "out").exists()  # nothing half-written
