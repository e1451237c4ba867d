"""The joint loss, the settings and the schedule of section 3.1, and what a training makes of them.

What a run does with its files is in test_runs.py.
"""

import dataclasses
import functools
import math
import re
import shutil
from unittest import mock

import numpy as np
import pytest
import tiny
import torch
from tiny import TINY, run, same, weights, write_images
from torch.nn.functional import cross_entropy

import model
import train
from support import InputError, cli, data_parallel, datasets, devices, runs
from support.batches import Batch
from train import TrainConfig


@pytest.fixture(scope="module")
def splits():
    return tiny.make_splits()


# ---- The joint loss ----


def log_softmax(logits):
    shifted = logits - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


@pytest.mark.parametrize("ratio", [0, 1, 3, 14])
@pytest.mark.parametrize("normalization", ["concat", "algorithm1", "official"])
@pytest.mark.parametrize("kind", ["soft", "one-hot", "hard"])
def test_joint_loss_equals_a_plain_computation(ratio, normalization, kind):
    random = np.random.default_rng(ratio)
    logits = random.normal(size=(4 + 4 * ratio, 7))
    labels = random.integers(0, 7, 4)
    targets = random.dirichlet(np.ones(7), 4 * ratio)
    if kind != "soft" and ratio:
        targets = np.eye(7)[targets.argmax(1)]
    given = torch.tensor(targets)
    if kind == "hard" and ratio:  # classes, which the loss smooths as it does labels
        given, targets = given.argmax(1), 0.9 * targets + 0.1 / 7
    logs = log_softmax(logits)
    smoothed = 0.9 * np.eye(7)[labels] + 0.1 / 7
    total = labeled = -(smoothed * logs[:4]).sum() / 4
    if ratio:
        unlabeled = -(targets * logs[4:]).sum() / (4 * ratio)
        total = {
            "concat": (-(smoothed * logs[:4]).sum() - (targets * logs[4:]).sum()) / len(logits),
            "algorithm1": labeled + unlabeled,
            "official": labeled + ratio * unlabeled,
        }[normalization]
    how = () if normalization == "concat" else (0.1, normalization)  # without them: by default
    result = train.joint_loss(
        torch.tensor(logits), torch.tensor(labels), given if ratio else None, *how)
    assert result.item() == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("labeled", [0, 4])
def test_hard_pseudo_labels_are_one_hot_targets_smoothed_as_labels(smoothing, labeled):
    torch.manual_seed(0)
    logits, labels = torch.randn(labeled + 6, 5), torch.arange(labeled)
    classes = torch.tensor([0, 1, 2, 3, 4, 0])
    one_hot = torch.nn.functional.one_hot(classes, 5).float()
    targets = one_hot * (1 - smoothing) + smoothing / 5
    hard, soft = (train.joint_loss(logits, labels, given, smoothing)
                  for given in (classes, targets))
    assert torch.equal(hard, soft)  # bit for bit
    if not labeled:
        theirs = torch.nn.functional.cross_entropy(logits, classes, label_smoothing=smoothing)
        torch.testing.assert_close(hard, theirs)


# ---- Settings and schedule ----


def test_learning_rate_is_warm_up_and_staircase_at_every_step_of_350_epochs():
    config = TrainConfig(labeled_images=2048 * 20)  # 20 steps an epoch
    for step in range(config.total_steps):
        epochs_done, remainder = divmod(step, 20)
        if epochs_done < 5:
            expected = 0.128 * step / 100
        else:
            # whole decays so far: 2.4 epochs are 48 steps
            expected = 0.128 * 0.97 ** (step // 48)
        assert train.learning_rate(step, config) == pytest.approx(expected, rel=1e-12), step


def test_cosine_schedule_ends_at_zero():
    config = TrainConfig(labeled_images=2048 * 10, schedule="cosine", epochs=20)
    rates = [train.learning_rate(step, config) for step in range(50, 201)]
    assert rates[0] == pytest.approx(0.128) and rates[-1] == pytest.approx(0, abs=1e-12)
    assert rates == sorted(rates, reverse=True)


def test_warm_up_may_be_longer_than_the_run():
    config = TrainConfig(labeled_images=2048, epochs=2, schedule="cosine")
    assert all(math.isfinite(train.learning_rate(step, config)) for step in range(3))


@pytest.mark.parametrize(("crops", "size", "cifar"), [
    ("auto", 32, True), ("auto", 64, True), ("auto", 65, False), ("auto", 224, False),
    ("cifar", 224, True), ("imagenet", 32, False),
])
def test_crops_follow_the_size_of_the_images_unless_they_are_asked_for(crops, size, cifar):
    assert TrainConfig(crops=crops, image_size=size).cifar_crops == cifar


def test_unknown_settings_are_refused():
    for wrong in ({"arch": "b9"}, {"optimizer": "lion"}, {"epochs": 0}, {"normalization": "mean"},
                  {"crops": "svhn"}):
        with pytest.raises(InputError):
            TrainConfig(**wrong)
    with pytest.raises(TypeError):
        TrainConfig(learning_rte=0.1)


@pytest.mark.parametrize(("field", "value"), [
    ("image_size", 0), ("batch_size", -1), ("dropout", 1.0), ("survival_prob", 0.0),
    ("epochs", math.nan), ("epochs", math.inf), ("learning_rate", -1.0), ("momentum", 1.0),
    ("weight_decay", math.nan), ("ema_decay", 1.5), ("rand_augment_magnitude", -5.0), ("seed", -1),
    ("unlabeled_ratio", -1), ("frozen_stages", 8), ("label_smoothing", 1.1), ("schedule", "step"),
])
def test_a_value_out_of_range_is_refused_by_name(field, value):
    with pytest.raises(InputError, match=f"--{field.replace('_', '-')} {value!r}.*(give|use)"):
        dataclasses.replace(TINY, **{field: value})


def test_a_batch_that_cannot_be_cut_into_its_micro_batches_is_refused():
    with pytest.raises(InputError, match="--batch-size 8.*multiple of --accumulation-steps, 3"):
        dataclasses.replace(TINY, accumulation_steps=3)


# ---- Noise ----


def make_batch(images, labeled):
    return Batch(images, torch.zeros(labeled, dtype=torch.int64), None, torch.arange(len(images)),
                 whole=len(images))


def test_without_augmentation_unlabeled_images_stay_as_they_are():
    torch.manual_seed(0)
    images = torch.randint(0, 256, (10, 3, 32, 32), dtype=torch.uint8)
    batch, config = make_batch(images, 4), dataclasses.replace(TINY, batch_size=4)
    clean = train.noise(batch, dataclasses.replace(config, augment_unlabeled=False), 0)
    assert torch.equal(clean[4:], images[4:]) and not torch.equal(clean[:4], images[:4])
    noised = train.noise(batch, config, 0)
    assert torch.equal(train.noise(batch, config, 0), noised)
    assert not torch.equal(train.noise(batch, config, 1), noised)  # each step has its own
    assert all(not torch.equal(one, other) for one, other in zip(noised, images, strict=True))


def test_without_augmentation_labelled_images_stay_as_they_are():
    torch.manual_seed(0)
    images = torch.randint(0, 256, (10, 3, 32, 32), dtype=torch.uint8)
    config = dataclasses.replace(TINY, batch_size=4, augment_labeled=False)
    noised = train.noise(make_batch(images, 4), config, 0)
    assert torch.equal(noised[:4], images[:4])
    assert all(not torch.equal(*pair) for pair in zip(noised[4:], images[4:], strict=True))


def test_cifar_and_imagenet_crops_are_different_noise():
    torch.manual_seed(0)
    images = torch.randint(0, 256, (4, 3, 72, 72), dtype=torch.uint8)
    auto, cifar, imagenet = (train.noise(make_batch(images, 4), dataclasses.replace(
        TINY, image_size=72, crops=crops), 0) for crops in ("auto", "cifar", "imagenet"))
    assert torch.equal(auto, imagenet) and not torch.equal(auto, cifar)


@pytest.mark.parametrize("normalization", ["concat", "algorithm1", "official"])
def test_one_kind_of_images_alone_counts_as_its_mean_whatever_the_normalization(normalization):
    logits, labels = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    loss = train.joint_loss(logits, labels, None, 0.1, normalization)
    torch.testing.assert_close(loss, cross_entropy(logits, labels, label_smoothing=0.1))
    targets = torch.softmax(torch.randn(6, 4), 1)
    loss = train.joint_loss(logits, labels[:0], targets, 0.1, normalization)
    torch.testing.assert_close(loss, cross_entropy(logits, targets))


# ---- Trainings ----


CHANGES = {
    "arch": "0.25x0.6", "image_size": 48, "small_images": True, "dropout": 0.6,
    "survival_prob": 0.3, "rand_augment_operations": 0, "rand_augment_magnitude": 20.0,
    "flip": False, "crops": "imagenet", "augment_unlabeled": False, "model_noise_unlabeled": False,
    "unlabeled_ratio": 1, "normalization": "concat",
    "label_smoothing": 0.3, "batch_size": 4, "labeled_images": None, "epochs": 2.0,
    "learning_rate": 0.01, "warmup_epochs": 1.0, "schedule": "exponential", "decay_rate": 0.5,
    "decay_epochs": 0.4, "optimizer": "sgd", "momentum": 0.5, "weight_decay": 0.5,
    "ema_decay": 0.1, "precision": "bfloat16", "evaluate_epochs": 0.4, "seed": 1,
    "augment_labeled": False, "frozen_stages": 3, "joint": False, "accumulation_steps": 2,
}


@pytest.fixture(scope="module")
def baseline(splits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("baseline")
    exponential = dataclasses.replace(TINY, schedule="exponential")
    return {"cosine": run(TINY, splits, folder / "a.pt"),
            "exponential": run(exponential, splits, folder / "b.pt")}


def test_equal_seeds_give_equal_weights(splits, tmp_path, baseline):
    assert same(weights(run(TINY, splits, tmp_path / "a.pt")), weights(baseline["cosine"]))


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(TrainConfig)])
def test_every_field_of_the_configuration_changes_the_training(field, splits, tmp_path, baseline):
    if field == "labeled_images":  # set by train() itself: what an epoch is
        assert train.learning_rate(100, TINY) != train.learning_rate(
            100, dataclasses.replace(TINY, labeled_images=1000)
        )
        return
    config = TINY
    if field == "frozen_stages":  # of the network to start from
        start = baseline["cosine"]
        config = dataclasses.replace(config, frozen_stages=3)
        stems = [weights(path)["stem.weight"] for path in (
            start, run(config, splits, tmp_path / "c.pt", start=start),
            run(TINY, splits, tmp_path / "d.pt", start=start))]
        assert torch.equal(stems[0], stems[1]) and not torch.equal(stems[0], stems[2])
        return
    if field in ("decay_rate", "decay_epochs"):
        config = dataclasses.replace(config, schedule="exponential")
    changed = run(dataclasses.replace(config, **{field: CHANGES[field]}), splits, tmp_path / "c.pt")
    log = changed.with_suffix(".jsonl").read_text()
    reference = baseline[config.schedule]
    if field == "evaluate_epochs":
        assert log.count("val_top1") > reference.with_suffix(".jsonl").read_text().count("val_top1")
    elif field == "arch":
        assert weights(changed).keys() != weights(reference).keys()
    else:
        assert not same(weights(changed), weights(reference))


def test_log_tells_both_losses_and_the_agreement(baseline):
    steps = [line for line in tiny.log_lines(baseline["cosine"]) if "loss" in line]
    assert [line["step"] for line in steps] == list(range(round(3 * 20 / 8)))
    assert {"loss_labeled", "loss_unlabeled", "accuracy_labeled", "agreement_unlabeled",
            "learning_rate", "images_per_second"} <= steps[0].keys()


def test_the_checkpoint_is_the_average_with_the_best_validation_accuracy(splits, baseline):
    path = baseline["cosine"]
    checkpoint = model.Checkpoint.load(path)
    network = checkpoint.network()
    assert not network.training
    accuracy = train.accuracy(network, splits.validation, 32, devices.CPU)
    assert accuracy == pytest.approx(checkpoint.val_top1)
    assert checkpoint.val_top1 == max(line.get("val_top1", -1) for line in tiny.log_lines(path))


@pytest.mark.parametrize("rank", [0, 1])
def test_processes_with_and_without_a_validation_image_sum_the_same_type(rank, splits, monkeypatch):
    summed = []
    monkeypatch.setattr(devices, "rank", lambda: rank)
    monkeypatch.setattr(devices, "world_size", lambda: 2)
    monkeypatch.setattr(devices, "total", lambda value: summed.append(value) or value)
    network = train.build_model(TINY, 10)
    one = splits.validation.subset(torch.arange(1))  # rank 1 has none
    train.accuracy(network, one, 32, devices.CPU)
    assert summed[0].dtype == torch.int64 and summed[0].shape == (1, 1)


def test_without_the_joint_loss_the_labels_do_not_matter(splits, tmp_path):
    alone = dataclasses.replace(TINY, joint=False)
    shifted = dataclasses.replace(splits, labeled=dataclasses.replace(
        splits.labeled, labels=(splits.labeled.labels + 1) % 10))
    one, other = (run(alone, images, tmp_path / f"{number}.pt")
                  for number, images in enumerate((splits, shifted)))
    assert same(weights(one), weights(other))
    assert "loss_labeled" not in (tmp_path / "0.jsonl").read_text()


def test_recomputed_activations_change_no_weight_and_are_a_flag(splits, tmp_path):
    kept, again = (run(TINY, splits, tmp_path / f"{recomputed}.pt",
                       machine=devices.Machine("cpu", checkpoint_blocks=recomputed))
                   for recomputed in (False, True))
    assert same(weights(kept), weights(again))
    write_images(splits.labeled, tmp_path / "images")
    flags = ["--labeled", tmp_path / "images", "--arch", "0.25x0.34", "--image-size", "32",
             "--batch-size", "8", "--epochs", "1", "--device", "cpu", "--checkpoint-blocks"]
    with mock.patch.object(model, "recompute", wraps=model.recompute) as recompute:
        assert cli.run(train.main, [*map(str, flags), "--out", str(tmp_path / "c.pt")]) == 0
    assert recompute.called


def test_a_compiled_network_that_recomputes_trains_as_the_plain_one(splits, tmp_path, monkeypatch):
    # Without code generation, which takes minutes here and draws other random numbers.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    config = dataclasses.replace(TINY, dropout=0.0, survival_prob=1.0, optimizer="rmsprop")
    plain, compiled = (
        weights(run(config, splits, tmp_path / f"{new}.pt",
                    machine=devices.Machine("cpu", compile=new, checkpoint_blocks=new)))
        for new in (False, True)
    )
    for key in plain:
        torch.testing.assert_close(compiled[key], plain[key], rtol=1e-3, atol=1e-4)


def test_each_training_of_a_loop_is_compiled_for_its_own_size_of_batch(monkeypatch):
    compiled = []

    def backend(graph, inputs):
        compiled.append({size for tensor in inputs for size in tensor.shape})
        return graph.forward

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    for size in range(2, 12):
        devices.compiled(torch.nn.Linear(30, 50))(torch.ones(size, 30))
    assert compiled == [{30, 50, size} for size in range(2, 12)]


# ---- Starting from other weights ----


def test_a_student_may_start_from_its_teachers_weights(splits, tmp_path):
    teacher = run(TINY, splits, tmp_path / "teacher.pt", students=False)
    still = dataclasses.replace(TINY, learning_rate=0.0, seed=5)
    student = run(still, splits, tmp_path / "student.pt", start=teacher)
    learned = weights(teacher)
    for key, value in weights(student).items():
        if "running" not in key and "tracked" not in key:  # BatchNorm sees the student's images
            torch.testing.assert_close(value, learned[key])


def test_a_start_of_another_architecture_is_an_error(splits, tmp_path):
    teacher = run(TINY, splits, tmp_path / "teacher.pt", students=False)
    for change, said in (
            ({"arch": "0.5x0.34"}, "a 0.25x0.34, not a 0.5x0.34.* give --arch 0.25x0.34"),
            ({"small_images": True}, "give --arch 0.25x0.34 --no-small-images")):
        with pytest.raises(InputError, match=f"teacher.pt holds .*{said}"):
            run(dataclasses.replace(TINY, **change), splits, tmp_path / "a.pt", start=teacher)
    with pytest.raises(InputError, match="there is no checkpoint .*missing.pt"):
        run(TINY, splits, tmp_path / "a.pt", start=tmp_path / "missing.pt")


@pytest.mark.parametrize(("epochs", "decay_epochs", "decays"), [
    (90, 30, 2), (24, 2.4, 9), (91, 30, 3), (2, 2.4, 0)])
def test_a_decay_that_no_step_has_seen_is_none_of_resolution_fixs(epochs, decay_epochs, decays):
    before = TrainConfig(epochs=epochs, decay_epochs=decay_epochs, decay_rate=0.1)
    assert train.resolution_fix(before, 800).learning_rate == pytest.approx(0.016 * 0.1**decays)
    rate = train.learning_rate(before.total_steps - 1, before)
    if decays:  # else it is still warming up
        assert rate == pytest.approx(0.128 * 0.1**decays)


def test_resolution_fix_is_one_flag(splits, tmp_path, capsys):
    write_images(splits.labeled, tmp_path / "images")
    teacher = run(TINY, splits, tmp_path / "teacher.pt", students=False)
    flags = ["--labeled", str(tmp_path / "images"), "--arch", "0.25x0.34", "--image-size", "32",
             "--fixed-resolution", "48", "--device", "cpu", "--out", str(tmp_path / "a.pt")]
    with mock.patch.object(train, "train") as started:
        assert cli.run(train.main, [*flags, "--start-from", str(teacher)]) == 0
    expected = dataclasses.replace(train.recipe("0.25x0.34"), image_size=32)
    assert started.call_args.args[0] == train.resolution_fix(expected, 48)
    assert started.call_args.kwargs["start"] == str(teacher)
    assert cli.run(train.main, flags) == 2
    assert "--fixed-resolution needs --start-from" in capsys.readouterr().err
    assert cli.run(train.main, [*flags, "--start-from", str(teacher), "--unlabeled", "x",
                                "--pseudo-label-dir", "y"]) == 2
    assert "on labelled images alone: leave out --unlabeled" in capsys.readouterr().err


def test_resolution_fix_leaves_the_shallow_layers_as_they_were(splits, tmp_path):
    before = run(TINY, splits, tmp_path / "before.pt", students=False)
    config = dataclasses.replace(train.resolution_fix(TINY, 32), epochs=2)
    after = run(config, splits, tmp_path / "after.pt", students=False, start=before)
    old, new = weights(before), weights(after)
    for key in old:
        shallow = key.startswith(("stem", *(f"stages.{number}." for number in range(5))))
        assert torch.equal(old[key], new[key]) == shallow or "tracked" in key, key


def test_the_larger_resolution_is_read_from_the_files(splits, tmp_path):
    write_images(splits.labeled, tmp_path / "images")
    files = datasets.read_folder(tmp_path / "images", 72)
    config = dataclasses.replace(TINY, image_size=72, epochs=1)
    before = train.train(config, files, files, out=tmp_path / "before.pt")
    after = train.train(train.resolution_fix(config, 96), files, files, out=tmp_path / "after.pt",
                        start=before)
    assert model.Checkpoint.load(after).image_size == 96


# ---- Command line ----


def test_changed_images_under_the_same_names_do_not_keep_the_old_checkpoint(
        splits, tmp_path, capsys):
    """Above 64 pixels the images stay files, and the same command finds other ones there."""
    write_images(splits.labeled, tmp_path / "labeled")
    write_images(splits.validation, tmp_path / "val")
    arguments = ["--labeled", str(tmp_path / "labeled"), "--val", str(tmp_path / "val"), "--arch",
                 "0.25x0.34", "--image-size", "72", "--batch-size", "8", "--epochs", "1",
                 "--device", "cpu", "--workers", "0", "--out", str(tmp_path / "a.pt")]
    assert cli.run(train.main, arguments) == 0
    assert cli.run(train.main, arguments) == 0  # finished already
    (tmp_path / "val/0/0.png").write_bytes((tmp_path / "val/1/2.png").read_bytes())
    assert cli.run(train.main, arguments) == 2
    assert "other settings (" in capsys.readouterr().err


def test_validation_images_that_are_labeled_images_are_counted_or_refused(
        splits, tmp_path, capsys):
    write_images(splits.labeled, tmp_path / "labeled")
    write_images(splits.validation, tmp_path / "val")
    (tmp_path / "val" / "0" / "copy.png").write_bytes(
        (tmp_path / "labeled" / "0" / "0.png").read_bytes())
    arguments = ["--labeled", str(tmp_path / "labeled"), "--arch", "0.25x0.34", "--image-size",
                 "32", "--batch-size", "8", "--epochs", "1", "--device", "cpu",
                 "--out", str(tmp_path / "a.pt")]
    assert cli.run(train.main, [*arguments, "--val", str(tmp_path / "val")]) == 0
    assert "1 validation images are labelled images, too" in capsys.readouterr().out
    shutil.copytree(tmp_path / "labeled", tmp_path / "copy")
    (tmp_path / "a.pt").unlink()
    assert cli.run(train.main, [*arguments, "--val", str(tmp_path / "copy")]) == 2
    assert "every validation image is also a labelled one" in capsys.readouterr().err
    assert not (tmp_path / "a.pt").exists()


def test_validation_images_of_other_classes_are_an_error(splits, tmp_path, capsys):
    write_images(splits.labeled, tmp_path / "images")
    write_images(splits.labeled, tmp_path / "val")
    (tmp_path / "val" / "9").rename(tmp_path / "val" / "nine")
    arguments = ["--labeled", str(tmp_path / "images"), "--val", str(tmp_path / "val"),
                 "--arch", "0.25x0.34", "--out", str(tmp_path / "a.pt")]
    assert cli.run(train.main, arguments) == 2
    assert "nine" in capsys.readouterr().err and not (tmp_path / "a.pt").exists()


def test_an_architecture_brings_its_recipe_and_flags_change_it(splits, tmp_path):
    write_images(splits.labeled, tmp_path / "images")
    arguments = ["--labeled", str(tmp_path / "images"), "--arch", "b2", "--epochs", "9",
                 "--device", "cpu", "--out", str(tmp_path / "a.pt")]
    with mock.patch.object(train, "train") as started:
        assert cli.run(train.main, arguments) == 0
    assert started.call_args.args[0] == dataclasses.replace(train.recipe("b2"), epochs=9.0)


@pytest.mark.parametrize("flags", [("--learning-rate", "1e25", "--optimizer", "sgd"),
                                   ("--out", "below/a.jsonl"), ("--out", "notes.pt")])
def test_an_error_is_the_last_line_and_stands_alone_below_the_progress_bar(
        flags, splits, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_images(splits.labeled, tmp_path / "images")
    (tmp_path / "notes.jsonl").write_text("no log\nof a run\n")
    arguments = ["--labeled", "images", "--arch", "0.25x0.34", "--image-size", "32",
                 "--batch-size", "8", "--epochs", "40", "--device", "cpu", "--out", "a.pt", *flags]
    assert cli.run(train.main, arguments) == 2
    *before, last, nothing = re.split("[\r\n]", capsys.readouterr().err)
    assert last.startswith("train.py: ") and not nothing
    assert not any("train.py: " in line for line in before)


def test_evaluations_are_apart_by_epochs_and_states_by_steps(splits, tmp_path, monkeypatch):
    seen = []

    def stop(*given, every, **rest):
        seen.append(every)
        raise InputError("far enough")

    monkeypatch.setattr(runs, "Run", stop)
    with pytest.raises(InputError, match="far enough"):
        run(dataclasses.replace(TINY, evaluate_epochs=4), splits, tmp_path / "a.pt",
            checkpoint_steps=7)
    assert seen == [{"log": 1, "save": 7, "evaluate": 10}]  # 2.5 steps an epoch


@pytest.mark.parametrize("asked", [False, True])
def test_a_network_is_compiled_if_asked_for(asked, splits, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(data_parallel, "compiled", lambda network: seen.append(network) or network)
    run(dataclasses.replace(TINY, epochs=0.4), splits, tmp_path / "a.pt",
        machine=devices.Machine("cpu", compile=asked))
    assert len(seen) == asked
