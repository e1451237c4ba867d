"""The studies of results/studies.py, and how results/measure.py measures their runs."""

import contextlib
import csv
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import TINY, write_images

import iterate
from iterate import Generation
from model import Checkpoint
from pseudo_label import Labelling
from results import measure, studies, verdicts
from results.measure import Run
from results.studies import AS_MANY_IMAGES, NOISY, STUDIES, SUPERVISED
from support import InputError, datasets, files, images

CONFIG = dataclasses.replace(TINY, epochs=1.0)
TEACHER = Generation("teacher", CONFIG)
STUDENT = Generation("student", CONFIG, Labelling(threshold=0.0, per_class=4))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Folders of drawn images; a third of the pool shows none of the classes."""
    folder = tmp_path_factory.mktemp("data")
    splits = datasets.demo(0, labels_per_class=4, unlabeled=48, val_per_class=1, test_per_class=1)
    for name, part in (("labeled", splits.labeled), ("val", splits.validation),
                       ("test", splits.test)):
        write_images(part, folder / name)
    write_images(dataclasses.replace(splits.unlabeled, labels=torch.zeros(48)), folder)
    (folder / "0").rename(folder / "pool")
    with open(folder / "pool-truth.csv", "w", newline="") as file:
        csv.writer(file).writerows([("file", "class"), *(
            (f"{number}.png", "" if number % 3 == 0 else "0") for number in range(48))])
    return str(folder)


# ---- The studies ----


@pytest.mark.parametrize("study", STUDIES.values(), ids=STUDIES)
def test_a_contrast_is_between_runs_of_its_study(study):
    for contrast in (study.contrast, *study.beside):
        assert {*contrast.sides[0], *contrast.sides[1]} <= study.runs.keys()
        assert contrast.figure in verdicts.FIGURES
    keys = [run.key for run in study.runs.values()]
    assert len(set(keys)) == len(keys)


def test_findings_1_to_8_and_the_tables_each_have_a_study():
    findings = {f"finding-{number}" for number in range(1, 9)}
    assert findings | {"table-6", "table-7", "figure-2"} < STUDIES.keys()


def last(study: str, run: str) -> Generation:
    return STUDIES[study].runs[run].generations[-1]


def test_the_runs_differ_by_what_the_paper_compares():
    """Table 6, figure 2, findings 1, 2, 4 and 7: what is switched off, shared or multiplied."""
    clean = last("table-6", "student w/o Aug")
    bare = last("table-6", "student w/o Aug, SD, Dropout")
    assert clean.config.augment_labeled and bare.config.augment_labeled
    assert not clean.config.augment_unlabeled and not bare.config.augment_unlabeled
    assert clean.config.model_noise_unlabeled and not bare.config.model_noise_unlabeled
    assert last("table-6", "teacher w. Aug, SD, Dropout").labelling.noised_teacher
    kept = [last("finding-2", pool).labelling.per_class for pool in (
        "1/16", "1/8", "1/4", "1/2", "all of the pool")]
    assert kept == [12, 25, 50, 100, 200]
    for name, run in STUDIES["figure-2"].runs.items():
        assert {one.config.arch for one in run.generations} == {name.split(",")[0]}
    for study, place in ("finding-1", 0), ("finding-4", -1):
        for name, run in STUDIES[study].runs.items():
            assert run.generations[place].config.arch == name.split(" ")[-1]
    for name in STUDIES["table-6-small"].runs.keys() - {"supervised"}:
        ratio = last("table-6", name).config.unlabeled_ratio
        assert ratio == 1 == last("table-6-small", name).config.unlabeled_ratio
    ratios = [last("finding-7", f"ratio {ratio}").config.unlabeled_ratio for ratio in (1, 3, 7, 14)]
    assert ratios == [1, 3, 7, 14]


def test_the_labels_and_starts_differ_by_what_the_paper_compares():
    """Findings 3, 5, 6 and 8, section 2."""
    for kind in "soft", "hard":
        for pool in "in-domain", "out-of-domain":
            name = f"{kind}, {pool.replace('-', ' ')}"
            assert last("finding-3", name).labelling.kind == kind
            assert last("finding-3", name).labelling.threshold == 0
            assert STUDIES["finding-3"].runs[name].pool == pool
    for arch in "0.25x0.5", "0.5x0.5":
        for name, balance in ("balanced", True), ("as it is", False):
            labelling = last("finding-5", f"{arch}, {name}").labelling
            assert labelling.balance == balance
            assert labelling.per_class == 8_000 or not balance  # the whole pool: no class is cut
    for name, joint in ("joint", True), ("pretrained, fine-tuned", False):
        assert last("finding-6", name).joint == joint
    for name in "from scratch", "from the teacher":
        short, whole = last("finding-8", f"{name}, short"), last("finding-8", name)
        assert short.from_teacher == whole.from_teacher == (name == "from the teacher")
        assert short.config.epochs * 4 == whole.config.epochs
    for value in 0, 0.3, 0.6, 0.9:
        labelling = last("threshold", f"threshold {value}").labelling
        assert (labelling.threshold, labelling.per_class) == (value, None)
    for value in 1, 0.5:
        assert last("temperature", f"temperature {value}").labelling.temperature == value


@pytest.mark.parametrize(("study", "higher", "lower"), [
    ("table-6", "Noisy Student", "student w/o Aug, SD, Dropout"),
    ("table-6-teacher", "Noisy Student", "teacher w. Aug, SD, Dropout"),
    ("losses", "Noisy Student", "student w/o Aug, SD, Dropout"),
    ("table-6-small", "Noisy Student", "student w/o Aug, SD, Dropout"),
    ("table-7", "iteration 2", "iteration 1"),
    ("table-7-longer", "iteration 3", "iteration 1, three times the steps"),
    ("figure-2-longer", "student", "supervised, four times the steps"),
    ("finding-1", "teacher 0.75x0.5", "teacher 0.25x0.5"),
    ("finding-2", "all of the pool", "1/16"),
    ("finding-3", "soft, out of domain", "hard, out of domain"),
    ("finding-4", "student 0.5x0.5", "student 0.35x0.5"),
    ("finding-5", "0.25x0.5, balanced", "0.25x0.5, as it is"),
    ("finding-6", "joint", "pretrained, fine-tuned"),
    ("finding-7", "ratio 7", "ratio 1"),
    ("finding-8", "from scratch", "from the teacher"),
    ("finding-8-short", "from the teacher", "from the teacher, short"),
    ("robustness-c", "student", "supervised"),
    ("robustness-p", "student", "supervised"),
    ("robustness-fgsm", "student", "supervised"),
    ("threshold", "threshold 0.3", "threshold 0"),
    ("temperature", "temperature 1", "temperature 0.5"),
])
def test_what_the_paper_finds_better_is_on_the_higher_side(study, higher, lower):
    contrast = STUDIES[study].contrast
    assert (contrast.higher, contrast.lower) == (higher, lower)


def test_figure_2_compares_the_mean_student_with_the_mean_of_its_networks():
    names = [f"{arch}, {{}}" for arch in ("0.25x0.5", "0.35x0.5", "0.5x0.5", "0.75x0.5")]
    assert STUDIES["figure-2"].contrast.sides == tuple(
        tuple(name.format(which) for name in names) for which in ("student", "supervised"))


def test_each_contrast_compares_the_paper_s_figure_and_controls_are_no_claims():
    figures = {"losses": "loss_gap", "robustness-c": "corruptions", "robustness-p": "flips",
               "robustness-fgsm": "fgsm"}
    for name, study in STUDIES.items():
        contrast = study.contrast
        assert contrast.figure == figures.get(name, "test_top1")
        assert contrast.control == (name in ("table-7-longer", "figure-2-longer", "temperature"))
        assert contrast.null == (name == "temperature")
        assert contrast.sometimes == (name in ("finding-3", "finding-8"))  # "in certain cases"


def test_the_page_is_made_of_the_results_that_lie_beside_it():
    """Made anew by: python results/studies.py"""
    folder = Path(studies.__file__).parent
    known = json.loads((folder / "studies.json").read_text())
    assert (folder / "studies.md").read_text() == verdicts.page(
        STUDIES, known, studies.ABOUT + studies.OURS)


def test_robustness_is_measured_for_what_its_studies_compare():
    assert {NOISY.key, SUPERVISED.key, AS_MANY_IMAGES.key} == studies.ROBUST


def test_a_supervised_model_sees_as_many_images_as_a_student():
    (alone,), (_, student) = (run.generations for run in (AS_MANY_IMAGES, NOISY))
    seen = student.config.epochs * (1 + student.config.unlabeled_ratio)
    assert alone.config == dataclasses.replace(student.config, epochs=seen)


def test_runs_share_their_teachers_whatever_they_are_called():
    assert NOISY.before.key == SUPERVISED.key and SUPERVISED.before is None
    renamed = Run((dataclasses.replace(TEACHER, name="first"),))
    assert renamed.key == Run((TEACHER,)).key


@pytest.mark.parametrize("other", [
    Run((TEACHER, STUDENT), "1/8"),
    Run((TEACHER, dataclasses.replace(STUDENT, joint=False))),
    Run((TEACHER, dataclasses.replace(STUDENT, labelling=Labelling()))),
    Run((dataclasses.replace(TEACHER, config=TINY), STUDENT)),
])
def test_a_key_changes_with_all_that_decides_the_result(other):
    assert other.key != Run((TEACHER, STUDENT)).key


def test_a_teacher_does_not_depend_on_the_pool_but_later_teachers_do():
    assert Run((TEACHER, STUDENT), "1/8").before.pool == "all"
    assert Run((TEACHER, STUDENT, STUDENT), "1/8").before.pool == "1/8"


# ---- One run ----


def test_checkpoints_are_chosen_on_validation(data, tmp_path, monkeypatch):
    seen, learn = [], iterate.train.train
    monkeypatch.setattr(iterate.train, "train", lambda config, labeled, validation, *rest, **more: (
        seen.append(validation) or learn(config, labeled, validation, *rest, **more)))
    for run in Run((TEACHER,)), Run((TEACHER, STUDENT)):
        measure.measure(run, 0, data, 2, tmp_path, False)
    validation = measure.read_splits(data, 2, CONFIG.image_size).validation
    assert all(torch.equal(one.pixels, validation.pixels) for one in seen) and len(seen) == 2


def test_images_of_no_class_wrong_labels_and_copies_are_counted(tmp_path):
    truth = {"0.jpg": "cat", "1.jpg": "dog", "2.jpg": "", "3.jpg": "", "4.jpg": "cat"}
    with open(tmp_path / "labels.csv", "w", newline="") as file:
        csv.writer(file).writerows([
            ("file", "class", "confidence", "copies"), ("pool/0.jpg", "cat", 0.9, 3),
            ("pool/1.jpg", "cat", 0.9, 1), ("pool/2.jpg", "cat", 0.9, 1),
            ("pool/3.jpg", "dog", 0.9, 5), ("pool/4.jpg", "cat", 0.9, 2)])
    assert measure.shares(tmp_path, truth) == pytest.approx({
        "unique": 5, "of_a_class": 100 * 3 / 5, "of_these_right": 100 * 2 / 3,
        "right_with_copies": 100 * 5 / 12})


# ---- The images ----


def test_images_of_other_classes_are_as_many_as_those_of_the_classes(data, monkeypatch):
    truth = {f"{number}.png": "" if number % 3 else "0" for number in range(48)}
    monkeypatch.setattr(measure, "read_truth", lambda file: truth)
    read = measure.read_splits.__wrapped__
    assert [len(read(data, 2, 32, pool).unlabeled)
            for pool in ("in-domain", "out-of-domain")] == [16, 16]


def test_pools_are_shares_of_the_whole_or_of_one_origin(data):
    whole = measure.read_splits(data, 2, 32).unlabeled
    names = {Path(file).name for file in whole.files}
    assert len(names) == len(whole) == 48

    def numbers(pool):
        return {int(Path(file).stem) for file in
                measure.read_splits(data, 2, 32, pool).unlabeled.files}

    small, large = numbers("1/8"), numbers("1/2")
    assert len(small) == 6 and len(large) == 24 and small < large
    assert numbers("in-domain") == {number for number in range(48) if number % 3}
    assert numbers("out-of-domain") == set(range(0, 48, 3))


def test_each_seed_has_labelled_images_and_shares_of_the_pool_of_its_own(data):
    splits = [measure.read_splits(data, 1, 32, "1/8", seed) for seed in range(2)]
    first, second = (set(map(str, one.labeled.files)) for one in splits)
    assert len(first) == len(second) == 10 and not first & second
    assert all(one.labeled.labels.bincount().tolist() == [1] * 10 for one in splits)
    assert splits[0].unlabeled.files != splits[1].unlabeled.files
    assert len({one.validation.files for one in splits}) == 1
    with pytest.raises(InputError, match="seed 4 needs 5 images of each class"):
        measure.read_splits(data, 1, 32, seed=4)


# ---- Measuring ----


def test_a_run_trains_its_last_generation_after_the_others(data, tmp_path):
    teacher, student = Run((TEACHER,)), Run((TEACHER, STUDENT))
    rows = [measure.measure(run, 1, data, 2, tmp_path, False) for run in (teacher, student)]
    assert {path.name for path in tmp_path.glob("*.pt")} == {
        f"1-{teacher.key}.pt", f"1-{student.key}.pt"}
    labels = json.loads((tmp_path / f"1-{student.key}" / "labels.json").read_text())
    assert labels["counts"]["pool"] == 48
    found = Checkpoint.load(tmp_path / f"1-{student.key}.pt")
    network, test = found.network(), measure.read_splits(data, 2, 32).test
    assert rows[1]["test_top1"] == iterate.train.accuracy(network, test, 32, iterate.devices.CPU)
    assert rows[0]["loss_unlabeled"] is None and "corruptions" not in rows[0]
    assert "unique" not in rows[0] and rows[1]["unique"] == labels["counts"]["unique"]
    lines = [json.loads(line) for line in (tmp_path / f"1-{student.key}.jsonl").open()]
    last = [line for line in lines if "loss_unlabeled" in line][-1]
    assert rows[1]["loss_unlabeled"] == last["loss_unlabeled"]
    assert rows[1]["loss_gap"] == rows[1]["loss_labeled"] - rows[1]["loss_unlabeled"]


def test_a_run_gives_the_figures_of_the_loop(data, tmp_path):
    """iterate.iterate, with the same seeds, on the same images."""
    generations = tuple(dataclasses.replace(one, config=dataclasses.replace(one.config, seed=1))
                        for one in (TEACHER, STUDENT))
    loop = iterate.iterate(generations, measure.read_splits(data, 2, 32, seed=1),
                           tmp_path / "loop", iterate.devices.CPU, labels_only=False,
                           robustness=False)
    found = tmp_path / "found"
    found.mkdir()
    for row, run in zip(loop["generations"], (Run((TEACHER,)), Run((TEACHER, STUDENT))),
                        strict=True):
        measured = measure.measure(run, 1, data, 2, found, False)
        assert measured["test_top1"] == row["test_top1"]
    for name, run in (("teacher", Run((TEACHER,))), ("student", Run((TEACHER, STUDENT)))):
        weights = [torch.load(file, weights_only=True)["model"] for file in (
            tmp_path / "loop" / f"{name}.pt", found / f"1-{run.key}.pt")]
        assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_a_student_may_be_pretrained_or_start_from_its_teacher(data, tmp_path):
    before = Run((TEACHER,))
    measure.measure(before, 0, data, 2, tmp_path, False)
    for changes, names in (({"joint": False}, {"", "-pretrained"}), ({"from_teacher": True}, {""})):
        run = Run((TEACHER, dataclasses.replace(STUDENT, **changes)))
        measure.measure(run, 0, data, 2, tmp_path, False)
        assert {path.stem for path in tmp_path.glob(f"0-{run.key}*.pt")} == {
            f"0-{run.key}{name}" for name in names}
        meta = json.loads(torch.load(tmp_path / f"0-{run.key}.pt", weights_only=True)["meta"])
        assert (meta["start"] is not None) and (meta["config"]["joint"] is True)


def test_the_quick_suite_adds_figures_that_rise_with_robustness(data, tmp_path):
    row = measure.measure(Run((TEACHER,)), 0, data, 2, tmp_path, True)
    suite = json.loads((tmp_path / f"0-{Run((TEACHER,)).key}-robustness.json").read_text())
    assert row["corruptions"] == -suite["parts"]["all"]["unnormalized_mce"]
    assert row["flips"] == -suite["parts"]["all"]["unnormalized_mfr"]
    assert row["fgsm"] == suite["parts"]["all"]["fgsm_top1"]["4"]


def test_missing_runs_bring_the_teachers_whose_checkpoints_are_lost(tmp_path):
    teacher, student = Run((TEACHER,)), Run((TEACHER, STUDENT))
    both = {(0, teacher.key): teacher, (0, student.key): student}
    known = {teacher.key: {}}
    assert measure.missing([teacher, student], 0, known, tmp_path) == both
    teacher.checkpoint(0, tmp_path).touch()
    assert measure.missing([teacher, student], 0, known, tmp_path) == {
        (0, student.key): student}
    assert measure.missing([teacher, student], 1, known, tmp_path).keys() == {
        (1, teacher.key), (1, student.key)}
    assert not measure.missing([student], 0, {student.key: {}}, tmp_path)


class Executor:
    """In this process, in the order in which runs were submitted; those of `failing` fail."""

    failing, error = (), InputError("no image is confident")

    def __init__(self, processes, *rest):
        self.processes, self.open, self.seen = processes, [], []
        Executor.last = self

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def submit(self, function, run, seed, *rest):
        self.open.append(Future())
        self.seen.append((seed, run.key))
        assert len(self.open) <= self.processes
        return self.open[-1]

    def wait(self, running, return_when):
        assert set(running) == set(self.open)
        done, place = self.open.pop(0), self.seen[len(self.seen) - len(self.open) - 1]
        if place in self.failing:
            done.set_exception(self.error)
        else:
            done.set_result({"done": True})
        return type("Done", (), {"done": {done}})


@pytest.fixture
def chain(monkeypatch):
    """Three runs of which each builds on the one before, and an executor that trains nothing."""
    monkeypatch.setattr(measure, "ProcessPoolExecutor", Executor)
    monkeypatch.setattr(measure, "wait", lambda *args, **options: Executor.last.wait(
        *args, **options))
    monkeypatch.setattr(measure.os, "environ", {})
    return [Run((TEACHER,)), Run((TEACHER, STUDENT)), Run((TEACHER, STUDENT, STUDENT))]


@pytest.mark.parametrize("error", [InputError("no image is confident"), OSError("disk full")])
def test_a_run_that_fails_is_left_out_with_those_that_build_on_it(
        chain, monkeypatch, tmp_path, capsys, error):
    monkeypatch.setattr(Executor, "error", error)
    other = Run((TEACHER, dataclasses.replace(STUDENT, from_teacher=True)))
    monkeypatch.setattr(Executor, "failing", {(0, chain[1].key)})
    waiting = {(seed, run.key): run for seed in (0, 1) for run in (*chain, other)}
    done = [(seed, run) for seed, run, _ in measure.measure_all(waiting, 2, "", 2, tmp_path, ())]
    assert sorted((seed, run.key) for seed, run in done) == sorted(
        place for place in waiting if place not in ((0, chain[1].key), (0, chain[2].key)))
    assert f"0-{chain[1].key}.pt: {type(error).__name__}: {error}; it is left out" in (
        capsys.readouterr().out)


def test_a_killed_process_ends_the_command_which_can_be_given_again(chain, monkeypatch, tmp_path):
    monkeypatch.setattr(Executor, "failing", {(0, chain[0].key)})
    monkeypatch.setattr(Executor, "error", BrokenProcessPool("a process died"))
    with pytest.raises(InputError, match="was killed, .* the same command continues"):
        [*measure.measure_all({(0, chain[0].key): chain[0]}, 2, "", 2, tmp_path, ())]


def test_a_training_ends_with_the_command_that_started_it(tmp_path):
    """A killed command leaves no process behind, which would keep the locks of its runs."""
    script = tmp_path / "command.py"
    script.write_text(f"""
import os, signal, sys, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
sys.path.insert(0, {str(Path(measure.__file__).resolve().parent.parent)!r})
from results.measure import _alone

def wait(place):
    place.write_text(str(os.getpid()))
    time.sleep(600)

if __name__ == "__main__":
    place = Path({str(tmp_path)!r}, "process")
    with ProcessPoolExecutor(1, get_context("spawn"), _alone, (place.with_name("out"),)) as pool:
        pool.submit(wait, place)
        while not place.exists() or not place.read_text():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGKILL)
""")
    subprocess.run([sys.executable, script])
    process = int((tmp_path / "process").read_text())
    for _ in range(200):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, 0)
            time.sleep(0.05)
            continue
        return
    os.kill(process, signal.SIGKILL)
    pytest.fail("the training's process outlived the command")


def test_two_runs_at_once_each_after_the_one_before_it(chain, tmp_path):
    waiting = {(seed, run.key): run for seed in (0, 1, 2) for run in reversed(chain)}
    done = []
    for seed, run, row in measure.measure_all(waiting, 2, "", 2, tmp_path, ()):
        started = Executor.last.seen
        assert row == {"done": True} and (seed, run.key) in started
        done.append((seed, run))
        for later in chain[chain.index(run) + 2:]:
            assert (seed, later.key) not in started
    assert sorted((seed, run.key) for seed, run in done) == sorted(waiting)
    for seed in (0, 1, 2):
        assert [run for one, run in done if one == seed] == chain


# ---- The command ----


@pytest.fixture
def command(monkeypatch, tmp_path, data):
    """studies.main with runs that cost nothing; what was measured is in `command.seen`."""
    def main(*only, seeds=(0,), here="some", results="studies.json", failing=0, better=0.0):
        def measure_all(waiting, processes, place, labels, folder, robust):
            for (seed, key), run in [*waiting.items()][failing:]:
                run.checkpoint(seed, folder).touch()
                main.seen.append((seed, key))
                top1 = float(np.frombuffer(key.encode(), np.uint8).mean()) + seed + better
                row = {"test_top1": top1, "minutes": 1.0, "loss_labeled": 1.0,
                       "loss_unlabeled": 2.0}
                suite = dict.fromkeys(("corruptions", "flips", "fgsm"), top1)
                yield seed, run, row | (suite if key in robust else {})
        main.seen = []
        monkeypatch.setattr(studies, "measure_all", measure_all)
        monkeypatch.setattr(studies, "processor", lambda: here)
        studies.main(studies.Flags(data, [*only], [*seeds], str(tmp_path / "runs"),
                                   str(tmp_path / results)))
        return json.loads((tmp_path / results).read_text())["seeds"]
    monkeypatch.setattr(studies, "LABELS", 2)
    return main


def test_one_study_is_measured_and_continued(command, tmp_path, capsys):
    found = command("finding-3")
    runs = {run.key for run in STUDIES["finding-3"].runs.values()}
    assert found["0"]["runs"].keys() == runs | {SUPERVISED.key}
    assert len(command.seen) == 5
    page = (tmp_path / "studies.md").read_text()
    assert "## finding-3" in page and "## finding-1" not in page
    assert "Seed 2 was measured twice" not in page  # of the published page
    assert (tmp_path / "studies.png").stat().st_size > 1000
    command("finding-3", "finding-6", seeds=(0, 1))
    new = {run.key for run in STUDIES["finding-6"].runs.values()}
    assert sorted(command.seen) == sorted(
        [*((0, key) for key in new), *((1, key) for key in new | runs | {SUPERVISED.key})])
    assert "holds all of these runs" not in capsys.readouterr().out
    command("finding-3")
    assert not command.seen
    assert "studies.json holds all of these runs: to measure" in capsys.readouterr().out


def test_a_seed_begins_anew_on_another_processor_unless_it_is_complete(command, capsys):
    command("finding-3")
    assert command("finding-3", here="other")["0"]["processor"] == "some" and not command.seen
    with pytest.raises(InputError, match="measured on some with .*: give another --results"):
        command("finding-6", here="other")  # finding-3 would be lost
    found = command("finding-3", "finding-6", here="other")["0"]
    assert found["processor"] == "other"
    assert "seed 0 was measured on some with torch " in capsys.readouterr().out
    assert len(command.seen) == len(found["runs"]) == 7  # all of them


def test_a_seed_keeps_its_runs_until_one_is_measured_on_the_other_processor(command, tmp_path):
    before = command("finding-3", seeds=(0, 1))
    with pytest.raises(InputError, match="runs that failed.*: 13 "):
        command("finding-3", "finding-6", seeds=(0, 1), here="other", failing=13)
    after = json.loads((tmp_path / "studies.json").read_text())["seeds"]
    assert after["0"] == before["0"] and after["1"]["processor"] == "other"
    assert "| 0 | 5 | some |" in (tmp_path / "studies.md").read_text()


def test_another_torch_is_like_another_processor(command, monkeypatch):
    command("finding-3")
    monkeypatch.setattr(torch, "__version__", "0.1")
    found = command("finding-3", "finding-6")["0"]
    assert found["torch"] == "0.1" and len(command.seen) == len(found["runs"]) == 7


def test_the_page_alone_is_made_without_images(command, tmp_path, monkeypatch):
    command("finding-6", "finding-8")
    page = (tmp_path / "studies.md").read_text()
    assert "## finding-8" in page and "a matter of length" not in page  # of the published page
    for name in "studies.md", "studies.png":
        (tmp_path / name).unlink()
    monkeypatch.setattr(studies, "measure_all", None)
    studies.main(studies.Flags(results=str(tmp_path / "studies.json")))
    assert (tmp_path / "studies.md").read_text() == page
    assert (tmp_path / "studies.png").exists()


@pytest.mark.parametrize("chosen", [{"only": ["finding-3"]}, {"seeds": [0]}])
def test_what_to_measure_needs_images(chosen, command, tmp_path):
    command("finding-6")
    with pytest.raises(InputError, match="give --data DIR, too"):
        studies.main(studies.Flags(results=str(tmp_path / "studies.json"), **chosen))


def test_a_page_of_nothing_is_refused(tmp_path):
    with pytest.raises(InputError, match="studies.json is not there: measure something"):
        studies.main(studies.Flags(results=str(tmp_path / "studies.json")))


def test_damaged_results_are_refused_in_one_line(command, tmp_path):
    (tmp_path / "studies.json").write_text("{")
    with pytest.raises(InputError, match="studies.json is damaged"):
        command("finding-6")
    assert not command.seen


def test_a_teacher_that_is_trained_again_must_be_the_one_its_students_had(command, tmp_path):
    command("finding-6")
    shutil.rmtree(tmp_path / "runs")
    assert (0, SUPERVISED.key) in (command("finding-3"), command.seen)[1]
    shutil.rmtree(tmp_path / "runs")
    with pytest.raises(InputError, match="a teacher, trained again, is not the one of .*json"):
        command("finding-4", better=1.0)


def test_two_processes_at_one_results_file_are_refused(command, tmp_path):
    with files.lock(tmp_path, tmp_path / "studies.json.lock"):
        with pytest.raises(InputError, match="another process is at this run"):
            command("finding-3")


def test_a_pool_of_which_not_all_is_known_is_refused_before_anything_is_trained(
        command, monkeypatch):
    monkeypatch.setattr(measure, "read_truth", lambda data: {"0.png": "cat"})
    measure.read_all.cache_clear()
    measure.read_splits.cache_clear()
    with pytest.raises(InputError, match="pool-truth.csv: .*png is not in it"):
        command("finding-6")
    assert not command.seen


@pytest.mark.parametrize(("text", "message"), [
    ("name,class\n0.png,cat\n", "its first line must name the columns: file,class"),
    ("", "its first line must name the columns: file,class"),
    (None, "no class is called kat"),
])
def test_a_list_of_the_pool_that_cannot_be_right_is_refused(data, tmp_path, text, message):
    for name in "labeled", "val", "test", "pool":
        (tmp_path / name).symlink_to(Path(data, name))
    truth = Path(data, "pool-truth.csv").read_text() + "48.png,kat\n"
    (tmp_path / "pool-truth.csv").write_text(truth if text is None else text)
    with pytest.raises(InputError, match=f"pool-truth.csv: {message}"):
        measure.read_all(str(tmp_path), 32)


def test_a_page_does_not_take_the_place_of_its_results(command):
    with pytest.raises(InputError, match="give a name that ends in .json"):
        command("finding-6", results="studies.md")


def test_a_command_whose_runs_failed_is_no_success(command):
    with pytest.raises(InputError, match="runs that failed, or build on one that did: 1 "):
        command("finding-6", failing=1)


def test_an_unknown_study_is_refused(command):
    with pytest.raises(InputError, match="--only finding-9: choose from table-6, "):
        command("finding-9")


def test_other_images_are_refused(command, tmp_path, monkeypatch):
    command("finding-6")
    monkeypatch.setattr(images, "digests", lambda splits: {"labeled": "other"})
    with pytest.raises(InputError, match="was measured on other images: give another --results"):
        command("finding-6")


def test_a_teacher_of_other_images_is_not_built_on(command, monkeypatch):
    first = command("finding-6")
    monkeypatch.setattr(images, "digests", lambda splits: {"labeled": "other"})
    second = command("finding-6", results="other.json")
    assert SUPERVISED.key in first["0"]["runs"].keys() == second["0"]["runs"].keys()
