"""The small plans, and what the command line makes of a plan."""

import dataclasses
import functools
import json

import pytest
import torch
from doubles import planned

import iterate
import model
import train
from support import InputError, cli, devices, plans
from support.images import ImageSet

LOAD = model.Checkpoint.load


def test_the_plans_by_name_are_those_without_a_flag(capsys):
    for name in plans.GENERATIONS:
        assert planned("--plan", name)[:2] == [iterate.PLANS[name], name]


def test_the_papers_models_by_name_are_the_papers_plan():
    assert planned("--plan", "paper", "--arch", "b7", "l2", "l2", "l2")[0] == iterate.PLANS["paper"]


def test_other_models_in_the_papers_plan_bring_their_own_settings():
    generations, *_ = planned("--plan", "paper", "--arch", "b5")
    assert [generation.config for generation in generations] == [train.recipe("b5")] * 4
    assert {generation.fixed_resolution for generation in generations} == {None}
    generations, *_ = planned("--plan", "paper", "--arch", "l2")
    assert {generation.fixed_resolution for generation in generations} == {800}


def test_a_published_model_in_a_small_plan_brings_its_dropout_and_resolution():
    generations, *_ = planned("--plan", "own", "--arch", "b3")
    assert {(one.config.dropout, one.config.image_size) for one in generations} == {(0.3, 300)}
    generations, *_ = planned("--plan", "cifar10", "--arch", "b3")
    assert {(one.config.dropout, one.config.image_size) for one in generations} == {(0.3, 32)}
    generations, *_ = planned("--plan", "own", "--arch", "0.5x0.5")  # these keep the plan's
    assert {(one.config.dropout, one.config.image_size) for one in generations} == {(0.2, 224)}
    generations, *_ = planned("--plan", "own", "--arch", "b3", "--image-size", "96")
    assert {one.config.image_size for one in generations} == {96}


def test_one_model_is_for_all_generations_and_more_are_one_each():
    generations, *_ = planned("--arch", "0.5x0.5")
    assert [(one.name, one.config.arch) for one in generations] == [
        ("teacher", "0.5x0.5"), ("student 1", "0.5x0.5"), ("student 2", "0.5x0.5")]
    generations, *_ = planned("--arch", "0.25x0.5", "0.5x0.5", "0.5x0.6", "0.5x0.7")
    assert [(one.name, one.config.arch) for one in generations] == [
        ("teacher", "0.25x0.5"), ("student 1", "0.5x0.5"), ("student 2", "0.5x0.6"),
        ("student 3", "0.5x0.7")]


def test_changes_reach_every_generation():
    generations, *_ = planned("--seed", "3", "--epochs", "9", "--no-joint", "--per-class", "7")
    assert [one.joint for one in generations] == [True, False, False]  # a teacher has no pool
    for one in generations:
        assert (one.config.seed, one.config.epochs) == (3, 9.0)
        assert one.config.joint  # of train.py alone: here it is the generation's
        assert one.labelling.per_class == 7


@pytest.mark.parametrize(("flags", "expected"), [
    ((), {"threshold": 0.3, "balance": True, "noised_teacher": False, "temperature": 1.0,
          "per_class": 800, "kind": "soft"}),
    (("--threshold", "0.05"), {"threshold": 0.05}), (("--no-filter",), {"threshold": 0.0}),
    (("--no-balance",), {"threshold": 0.3, "balance": False}),
    (("--noised-teacher",), {"noised_teacher": True}),
    (("--temperature", "0.7"), {"temperature": 0.7}),
    (("--pseudo-labels", "hard"), {"kind": "hard"}),
])
def test_pseudo_labels_are_made_as_the_plan_and_the_flags_say(flags, expected):
    for student in planned(*flags)[0][1:]:
        assert vars(student.labelling).items() >= expected.items()


def test_noise_can_be_taken_from_the_unlabeled_images_alone():
    teacher, *students = (generation.config for generation in planned("--no-noise")[0])
    for student in students:
        assert not student.augment_unlabeled and not student.model_noise_unlabeled
        assert student.rand_augment_operations > 0  # labelled images keep their noise
    assert teacher.augment_unlabeled and teacher.model_noise_unlabeled


def test_students_of_every_plan_are_equal_or_larger():
    files = tuple(map(str, range(4096)))
    labeled = ImageSet(torch.zeros(len(files)), tuple(map(str, range(1000))), files=files)
    build = functools.cache(train.build_model)  # L2 takes seconds
    for plan in iterate.PLANS.values():
        with torch.device("meta"):
            sizes = [model.count_parameters(build(one.config, 1000)) for one in plan]
        assert sizes == sorted(sizes)
        plans.check(plan, labeled, devices.CPU, build, LOAD, iterate.Flags())
    with pytest.raises(InputError, match="smaller than its teacher"):
        plans.check(plan[::-1], labeled, devices.CPU, build, LOAD, iterate.Flags())
    allowing = iterate.Flags(allow_smaller_student=True)
    plans.check(plan[::-1], labeled, devices.CPU, build, LOAD, allowing)


@pytest.mark.parametrize(("arch", "said"), [("0.5x0.25", True), ("0.5x0.3", False)])
def test_a_network_without_shortcuts_is_said_to_have_no_stochastic_depth(arch, said, capsys):
    labeled = ImageSet(torch.zeros(100), ("ant", "bee"), files=tuple(map(str, range(100))))
    plan, *_ = planned("--plan", "cifar10-cpu", "--arch", arch)
    plans.check(plan, labeled, devices.CPU, train.build_model, LOAD, iterate.Flags())
    assert (f"a {arch} has no stochastic depth" in capsys.readouterr().out) == said


def test_students_of_another_architecture_than_their_teachers_start_from_scratch():
    for more, starts in (([], [False, True, False]), (["--from-teacher"], [False, True, True]),
                         (["--no-from-teacher"], [False] * 3)):
        generations, *_ = planned("--plan", "cifar10-cpu", "--arch", "0.5x0.3", "0.5x0.3",
                                  "0.6x0.3", *more)
        assert [one.from_teacher for one in generations] == starts


# ---- What a plan would cost ----


def outlined(capsys, *flags):
    """The lines of a dry run, as lists of words, and its whole text."""
    assert cli.run(iterate.main, [*flags, "--dry-run"]) == 0
    text = capsys.readouterr().out
    return {line.split("  ")[0]: line.split() for line in text.splitlines()}, text


def test_a_dry_run_of_table_7_counts_as_the_paper_does(capsys, tmp_path, monkeypatch):
    """350 epochs of 1,281,167 images, 2,048 a step; ratios 14, 14, 28; 300 M, then 130 M labels."""
    monkeypatch.chdir(tmp_path)
    lines, text = outlined(capsys, "--plan", "paper", "--no-labels-only",
                           "--images-per-second", "1000")
    steps = round(350 * 1_281_167 / 2048)
    assert lines["teacher"][1:] == ["b7", "600", f"{steps:,}", "2,048", f"{2048 * steps:,}", "-"]
    for name, ratio in (("student 1", 14), ("student 2", 14), ("student 3", 28)):
        batch = 2048 * (1 + ratio)
        assert lines[name][2:] == ["l2", "475", f"{steps:,}", f"{batch:,}", f"{batch * steps:,}",
                                   "430,000,000"]
        fix = round(1.5 * 1_281_167 / 2048)
        assert lines[f"{name}, 800 px"][4:8] == ["l2", "800", f"{fix:,}", "2,048"]
    trained = 2048 * (steps * (1 + 15 + 15 + 29) + 3 * fix)
    assert f"in all {trained:,} images trained on, 1,290,000,000 labelled" in text
    assert f"{(trained + 430e6) / 1000 / 3600:,.1f} device hours" in text
    assert list(tmp_path.iterdir()) == []


def test_dry_runs_of_table_6_and_figure_2(capsys):
    lines, text = outlined(capsys, "--plan", "table6", "--no-labels-only")
    assert lines["student 1"][2:4] == ["b5", "456"] and lines["student 1"][5] == "4,096"
    assert "unlabeled_ratio 1 (3)" in text and "rand_augment" not in text
    lines, text = outlined(capsys, "--plan", "table6-1.3m", "--no-labels-only")
    assert lines["student 1"][-1] == "2,600,000" and "rand_augment_operations 0 (2)" in text
    for arch, ratio, epochs in (("b0", 1, 700), ("b4", 3, 700), ("b7", 3, 350)):
        lines, text = outlined(capsys, "--plan", "figure2", "--arch", arch, "--no-labels-only")
        steps = round(epochs * 1_281_167 / 2048)
        assert lines["teacher"][1] == lines["student 1"][2] == arch
        assert lines["student 1"][4:6] == [f"{steps:,}", f"{2048 * (1 + ratio):,}"]
        assert "teacher, student 1: as in train.recipe" in text


def test_a_dry_run_counts_what_the_loop_does(capsys, tmp_path):
    flags = ["--epochs", "4", "--batch-size", "10", "--labels-per-class", "2", "--val-per-class",
             "2", "--test-per-class", "2", "--unlabeled-images", "60", "--per-class", "4",
             "--threshold", "0", "--no-joint", "--no-robustness", "--device", "cpu",
             "--allow-chance"]
    lines, _ = outlined(capsys, *flags)
    assert cli.run(iterate.main, [*flags, "--out", str(tmp_path / "run")]) == 0
    log = map(json.loads, (tmp_path / "run" / "log.jsonl").read_text().splitlines())
    steps = {line["name"]: f"{line['step'] + 1:,}" for line in log if "step" in line}
    for name, count in steps.items():
        assert lines[name][len(name.split()) + 2] == count, name
    assert len(steps) == len([name for name in lines if name.startswith(("teacher", "student"))
                              and ":" not in name])


def test_a_dry_run_of_own_images_says_that_their_number_is_assumed(capsys):
    _, text = outlined(capsys, "--dataset", "cifar100", "--labels-per-class", "400")
    assert "(assumed: a dry run reads no images)" in text
    _, text = outlined(capsys, "--plan", "paper")
    assert "assumed" not in text


def test_without_balancing_a_dry_run_counts_labels_for_up_to_the_whole_pool(capsys):
    _, text = outlined(capsys, "--plan", "table6", "--no-balance", "--no-labels-only")
    assert "600,000,000 labelled" in text  # a pool of 300 million, twice


def test_a_student_that_would_see_no_pseudo_labels_is_refused_before_anything_is_written(
        capsys, tmp_path):
    assert cli.run(iterate.main, ["--unlabeled-ratio", "0", "--device", "cpu", "--out",
                                  str(tmp_path / "run")]) == 2
    assert "--unlabeled-ratio 0 leaves the pseudo labels out" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_dry_run_says_what_a_small_plan_changes_of_the_papers_recipe(capsys):
    _, demo = outlined(capsys)
    for change in ("optimizer adamw (rmsprop)", "schedule cosine (exponential)",
                   "rand_augment_operations 1 (2)", "rand_augment_magnitude 5.0 (27)"):
        assert change in demo
    assert "temperature" not in demo and "from_teacher" not in demo
    _, cifar = outlined(capsys, "--plan", "cifar10-cpu")
    changes = {line.split(":")[0]: line for line in cifar.splitlines() if "not as in" in line}
    for change in ("temperature 0.5 (1.0)", "from_teacher True (False)"):
        assert change in changes["student 1, student 2"] and change not in changes["teacher"]


def test_a_dry_run_names_the_ablations_and_how_labels_are_kept(capsys):
    _, text = outlined(capsys, "--plan", "figure2", "--no-joint", "--noised-teacher",
                       "--pseudo-labels", "hard", "--no-balance", "--no-filter", "--from-teacher")
    teacher, student = (line for line in text.splitlines() if "train.recipe" in line)
    assert teacher == "teacher: as in train.recipe"
    for change in ("joint False (True)", "noised_teacher True (False)", "kind hard (soft)",
                   "balance False (True)", "threshold 0.0 (0.3)",
                   "from_teacher True (False)"):
        assert change in student
    _, own = outlined(capsys, "--plan", "own")
    assert "per_class pool / classes (130000)" in own


# ---- SVHN ----


def test_the_plan_of_svhn_is_the_authors_recipe():
    """Their public script: 0.0002 per 256 images is the rate it aims at, 5 epochs too early."""
    for generation in iterate.PLANS["svhn"]:
        config = dataclasses.replace(generation.config, labeled_images=69_257)
        assert (config.arch, config.image_size, config.small_images) == ("b0", 32, True)
        assert (config.batch_size, config.unlabeled_ratio) == (128, 5)
        assert (config.rand_augment_operations, config.rand_augment_magnitude) == (2, 5)
        assert (config.optimizer, config.weight_decay, config.flip) == ("rmsprop", 1e-4, False)
        assert config.normalization == "official" and config.cifar_crops
        last = train.learning_rate(config.total_steps - 1, config) * 256 / 128
        assert last * 0.97 ** (-5 / config.decay_epochs) == pytest.approx(0.0002, rel=0.02)
        assert config.total_steps == pytest.approx(109_474, rel=0.001)


@pytest.mark.parametrize(("plan", "arch", "per_class"), [
    ("figure2", "b7", 130_000), ("table6", "b5", 130_000), ("table6-1.3m", "b5", 1_300),
])
def test_the_papers_other_experiments_have_its_models_and_pools(plan, arch, per_class):
    """Section 3.2, "the same model as both the teacher and the student"; 130 M or 1.3 M images."""
    teacher, student = iterate.PLANS[plan]
    assert teacher.config.arch == student.config.arch == arch
    assert student.labelling.per_class == per_class and student.labelling.threshold == 0.3


@pytest.mark.parametrize(("batch", "factor"), [(64, 1), (16, 0.5), (256, 2)])
def test_adams_step_follows_the_root_of_the_batch(batch, factor):
    """The rate is per 256 images: by itself a batch of 16 would have a quarter of the step."""
    def step(*flags):
        config = planned("--plan", "own", "--labeled", "x", *flags)[0][1].config
        return config.learning_rate * config.batch_size / 256

    assert step("--batch-size", str(batch)) / step() == pytest.approx(factor)
    assert step("--batch-size", str(batch), "--learning-rate", "0.1") == 0.1 * batch / 256


def test_the_papers_rate_follows_the_batch_itself():
    config = planned("--plan", "paper", "--batch-size", "512")[0][1].config
    assert train.learning_rate(10**5, config) < config.learning_rate * 2 == 0.032


@pytest.mark.parametrize(("flags", "said"), [
    (["--no-filter", "--threshold", "0.9"], "--threshold does not go with --no-filter"),
    (["--no-balance", "--per-class", "9"], "--per-class does not go with --no-balance"),
])
def test_a_flag_that_another_one_leaves_unread_is_refused(flags, said, capsys):
    assert cli.run(iterate.main, ["--dry-run", *flags]) == 2
    assert said in capsys.readouterr().err
