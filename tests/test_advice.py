"""Warnings of a loop: what cannot lead far is said when it is known."""

import json
import math
from dataclasses import replace
from fractions import Fraction
from types import SimpleNamespace

import pytest
import torch
from doubles import write_folders

import iterate
from support import InputError, advice, cli, outline
from support.images import ImageSet, Splits

CLASSES = ("ant", "bee")


def make_splits(validation=(50, 50), labeled=(10, 10)):
    """Sets of so many images of each class."""
    def images(counts):
        return ImageSet(torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)), CLASSES)
    return Splits(images(labeled), images((9, 9)), images(validation), images((9, 9)))


@pytest.mark.parametrize(("correct", "count", "chance"), [
    (60, 100, 0.5), (27, 100, 0.2), (0, 10, 0.3), (10, 10, 0.1), (520, 1000, 0.5)])
def test_the_chance_of_guessing_as_well_is_the_binomial_tail(correct, count, chance):
    chance = Fraction(str(chance))
    expected = sum(math.comb(count, right) * chance**right * (1 - chance)**(count - right)
                   for right in range(correct, count + 1))
    found = advice.tail(correct, count, float(chance))
    assert found == pytest.approx(float(expected), rel=1e-6)


def test_a_teacher_at_chance_is_an_error_unless_it_is_allowed(capsys):
    """58 of 100 right at a chance of 0.5 has a probability of 0.067, 59 one of 0.044."""
    splits = make_splits()
    with pytest.raises(InputError, match="teacher cannot be told from chance: 58.0 % of 100 valid"):
        advice.of_teacher("teacher", 58.0, splits, False)
    advice.of_teacher("teacher", 59.0, splits, False)
    assert splits.notes == {} and capsys.readouterr().out == ""
    advice.of_teacher("teacher", 58.0, splits, True)
    assert "Warning: teacher cannot be told from chance" in capsys.readouterr().out
    assert len(splits.notes["warnings"]) == 1


def test_chance_is_naming_the_most_frequent_class():
    splits = make_splits(validation=(90, 10))
    with pytest.raises(InputError, match="90.0 % are of one class"):
        advice.of_teacher("teacher", 92.0, splits, False)
    advice.of_teacher("teacher", 96.0, splits, False)


@pytest.mark.parametrize(("pool", "labeled", "warned"), [
    ((95, 5), (10, 10), True), ((89, 11), (10, 10), False), ((95, 5), (95, 5), False)])
def test_a_pool_of_which_nearly_all_gets_one_class_is_warned_of(pool, labeled, warned, capsys):
    splits = make_splits(labeled=labeled)
    labels = SimpleNamespace(per_class={"pool": pool}, images=splits.unlabeled)
    advice.of_labels(f"student {pool} {labeled}", labels, splits)
    assert ("95 % of the pool get one class, ant" in capsys.readouterr().out) == warned
    assert bool(splits.notes) == warned


def test_few_validation_images_and_a_threshold_that_filters_nothing_are_warned_of(capsys):
    splits = make_splits(validation=(5, 5))
    advice.before(splits, iterate.PLANS["own"], False)  # 0.3, with two classes
    said = capsys.readouterr().out
    assert "Warning: 10 validation images choose" in said and "one of them is 10 points" in said
    assert "--threshold 0.3 filters nothing: with 2 classes" in said
    splits = make_splits()
    generations = [one for one in iterate.PLANS["own"]]
    generations = [one.__class__(one.name, one.config, iterate.Labelling(threshold=0.9))
                   for one in generations]
    advice.before(splits, generations, False)
    assert splits.notes == {}


def test_a_training_that_is_mostly_warm_up_is_warned_of(capsys):
    for epochs, warned in ((8, True), (20, False)):
        generations = [replace(one, config=replace(one.config, epochs=epochs, warmup_epochs=5.0))
                       for one in iterate.PLANS["own"]]
        advice.before(make_splits(), generations, False)
        said = capsys.readouterr().out
        assert (f"of {epochs} epochs the learning rate rises for 5" in said) == warned


@pytest.mark.parametrize(("given", "said"), [
    ({"kind": "hard", "temperature": 0.5}, "--temperature is of soft pseudo labels"),
    ({"balance": False, "per_class": 9}, "--per-class does not go with --no-balance"),
])
def test_a_flag_of_the_labelling_that_another_one_leaves_unread_is_refused(given, said):
    with pytest.raises(InputError, match=said):
        advice.of_labelling(given)
    for name in given:
        advice.of_labelling({name: given[name]})


@pytest.mark.parametrize(("validation", "enough"), [
    ((2, 2), False), ((20, 2), False), ((3, 2), False), ((5, 5), True), ((30, 2), False)])
def test_images_with_which_no_teacher_could_pass_are_refused_before_it_is_trained(
        validation, enough, capsys):
    """All right by naming the most frequent class: a probability of share^count, 0.5^4 = 0.06."""
    splits, count = make_splits(validation), sum(validation)
    assert ((max(validation) / count) ** count <= 0.05) == enough
    if enough:
        return advice.before(splits, iterate.PLANS["own"], False)
    with pytest.raises(InputError, match=f"with {count} validation images even a teacher that"):
        advice.before(splits, iterate.PLANS["own"], False)
    advice.before(splits, iterate.PLANS["own"], True)


def test_the_loop_stops_at_a_teacher_that_guesses_and_goes_on_when_told_to(tmp_path, capsys):
    """Two classes, a rate of zero: in the end the run of 50.0 % that was reported as a result."""
    folders = write_folders(tmp_path)
    flags = ["--labeled", str(folders / "labeled"), "--unlabeled", str(folders / "pool"), "--test",
             str(folders / "test"), "--val-per-class", "3", "--plan", "own", "--arch",
             "0.25x0.34", "--image-size", "40", "--learning-rate", "0", "--epochs", "1",
             "--batch-size", "4", "--device", "cpu", "--workers", "0", "--no-labels-only",
             "--no-robustness", "--out", str(tmp_path / "run")]
    assert cli.run(iterate.main, [*flags, "--val-per-class", "1"]) == 2
    assert "with 2 validation images even a teacher" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert cli.run(iterate.main, flags) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("iterate.py: teacher cannot be told from chance: 50.0 % of 6 ")
    assert "--allow-chance" in error and not (tmp_path / "run" / "student-1.pt").exists()
    assert cli.run(iterate.main, [*flags, "--allow-chance"]) == 0  # the same run
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert any("told from chance" in text for text in report["notes"]["warnings"])


# ---- How long it takes ----


def test_the_time_that_is_left_counts_the_stages_after_this_one(tmp_path, capsys):
    """Phases of 100, 300 and 100 images: after half of the first in 50 s another 450 s."""
    phases = [outline.Phase(name, "b0", 32, count, 1) for name, count in (
        ("teacher", 100), ("student 1", 300), ("student 1, labels only", 100))]
    loop = outline.Loop(tmp_path / "log.jsonl", phases)
    assert loop.left("teacher", 0.5, 100.0) == "phase 1 of 3, all done in 8 min"  # 450 s
    assert loop.left("student 1", 0.5, 300.0) == "phase 2 of 3, all done in 4 min"  # 250 s
    assert loop.left("student 1, labels only", 1.0, 100.0) == "phase 3 of 3, all done in 0 s"
    said = capsys.readouterr().out
    assert said.count("--no-labels-only") == 1 and "teacher: phase 1 of 3" in said


def test_larger_networks_and_images_take_longer():
    """A width of two and half the depth: 4 * 0.5 times as long; 64 pixels for 32: 4 times."""
    teacher, student = iterate.PLANS["demo"][::2]
    changes = {"arch": "1x1", "image_size": 32}
    generations = [iterate.replace(one, config=iterate.replace(one.config, **changes | more))
                   for one, more in ((teacher, {}), (student, {"arch": "2x0.5", "image_size": 64}))]
    first, second = outline.phases(generations, (80, 10, 100), False, iterate.train_phases,
                                   iterate.model.scaling)
    assert second.cost / first.cost == pytest.approx(8)


@pytest.mark.parametrize(("seconds", "text"), [
    (5, "5 s"), (119.6, "2 min"), (3600, "60 min"), (7200, "2 h 0 min"), (9000, "2 h 30 min")])
def test_durations_in_words(seconds, text):
    assert outline.duration(seconds) == text
