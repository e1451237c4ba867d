"""The small plans, and what the command line makes of a plan."""

import dataclasses

import pytest
import torch
from doubles import planned

import iterate
import model
import train
from support import InputError, devices, plans
from support.images import ImageSet


def test_in_the_small_plans_the_teacher_is_noised_as_its_students_are():
    for plan in ("demo", "cifar10", "own"):
        teacher, *students = (generation.config for generation in iterate.PLANS[plan])
        assert teacher.rand_augment_operations > 0
        for student in students:
            assert dataclasses.replace(student, arch=teacher.arch) == teacher


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


def meta_parameters(config, classes):
    with torch.device("meta"):
        return model.count_parameters(train.build_model(config, classes))


def test_students_of_every_plan_are_equal_or_larger():
    files = tuple(map(str, range(4096)))
    labeled = ImageSet(torch.zeros(len(files)), tuple(map(str, range(1000))), files=files)
    for plan in iterate.PLANS.values():
        sizes = [meta_parameters(generation.config, 1000) for generation in plan]
        assert sizes == sorted(sizes)
        plans.check(plan, labeled, devices.CPU, train.build_model, False)
    with pytest.raises(InputError, match="smaller than its teacher"):
        plans.check(plan[::-1], labeled, devices.CPU, train.build_model, False)
    plans.check(plan[::-1], labeled, devices.CPU, train.build_model, True)
