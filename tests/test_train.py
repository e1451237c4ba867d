"""The joint loss, the optimisation of section 3.1, and a training run that survives its end."""

import dataclasses
import functools
import json
import math
import re
import signal
import subprocess
import sys
import types
from pathlib import Path
from unittest import mock

import kill_training
import numpy as np
import pytest
import timm.optim
import torch
from PIL import Image

import data
import model
import pseudo_label
import train
from train import TrainConfig

ROOT = Path(__file__).parent.parent
TINY = TrainConfig(
    arch="0.25x0.34", image_size=32, batch_size=8, unlabeled_ratio=2, epochs=3, warmup_epochs=0.5,
    learning_rate=0.03, optimizer="adamw", schedule="cosine", rand_augment_magnitude=5,
    dropout=0.2, ema_decay=0.9, evaluate_epochs=1,
)


@pytest.fixture(scope="module")
def splits():
    return data.demo(0, labels_per_class=2, unlabeled=60, val_per_class=2, test_per_class=2)


def run(config, splits, out, students=True, **options):
    targets = unlabeled = None
    if students:
        unlabeled = splits.unlabeled
        random = np.random.default_rng(0).random((len(unlabeled), 10))
        targets = (random / random.sum(1, keepdims=True)).astype(np.float16)
    return train.train(config, splits.labeled, splits.validation, unlabeled, targets, out=out,
                       log_steps=1, **options)


def write_images(images, folder):
    for number, (label, pixels) in enumerate(zip(images.labels, images.pixels, strict=True)):
        place = folder / str(int(label))
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(place / f"{number}.png")


def weights(path):
    return torch.load(path, weights_only=True)["model"]


def same(one, other):
    return all(torch.equal(one[key], other[key]) for key in one)


# ------------------------------------------------------------------ joint loss


def log_softmax(logits):
    shifted = logits - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


@pytest.mark.parametrize("ratio", [0, 1, 3, 14])
@pytest.mark.parametrize("normalization", ["concat", "algorithm1", "official"])
@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_joint_loss_equals_a_plain_computation(ratio, normalization, kind):
    random = np.random.default_rng(ratio)
    logits = random.normal(size=(4 + 4 * ratio, 7))
    labels = random.integers(0, 7, 4)
    targets = random.dirichlet(np.ones(7), 4 * ratio)
    if kind == "hard" and ratio:
        targets = np.eye(7)[targets.argmax(1)]
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
    result = train.joint_loss(
        torch.tensor(logits), torch.tensor(labels),
        torch.tensor(targets) if ratio else None, 0.1, normalization,
    )
    assert result.item() == pytest.approx(total, rel=1e-5)


# ------------------------------------------------------------------ optimisation


def test_the_defaults_are_the_papers():
    config = TrainConfig()
    assert config.learning_rate * config.batch_size / 256 == pytest.approx(0.128)
    assert (config.epochs, config.decay_rate, config.decay_epochs) == (350, 0.97, 2.4)
    assert (config.batch_size, config.rand_augment_magnitude, config.dropout) == (2048, 27, 0.5)
    assert (config.survival_prob, config.ema_decay, config.weight_decay) == (0.8, 0.9999, 1e-5)


@pytest.mark.parametrize(("arch", "magnitude", "epochs", "ratio"), [
    ("b0", 0, 700, 1), ("b1", 0, 700, 3), ("b2", 6, 700, 3), ("b3", 12, 700, 3), ("b4", 15, 700, 3),
    ("b5", 18, 350, 3), ("b6", 24, 350, 3), ("b7", 27, 350, 3), ("l2", 27, 350, 14),
])
def test_recipes_of_the_published_models(arch, magnitude, epochs, ratio):
    config = train.recipe(arch)
    assert config.rand_augment_magnitude == magnitude
    assert (config.rand_augment_operations > 0) == (magnitude > 0)
    assert (config.epochs, config.unlabeled_ratio) == (epochs, ratio)
    assert config.decay_epochs == (2.4 if epochs == 350 else 4.8)
    assert (config.image_size, config.dropout) == model.SCALING[arch][2:]


def test_the_default_configuration_is_b7s():
    assert train.recipe("b7") == TrainConfig()


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


def test_rmsprop_equals_timms_tensorflow_form():
    torch.manual_seed(0)
    start = [torch.randn(5, 3).double(), torch.randn(7).double()]
    ours = [value.clone().requires_grad_() for value in start]
    theirs = [value.clone().requires_grad_() for value in start]
    options = {"lr": 0.016, "momentum": 0.9, "eps": 1e-3, "weight_decay": 1e-2}
    optimizers = [
        train.RMSpropTF(ours, decay=0.9, **options),
        timm.optim.RMSpropTF(theirs, alpha=0.9, **options),
    ]
    for step in range(50):
        for values, optimizer in zip((ours, theirs), optimizers, strict=True):
            for number, value in enumerate(values):
                value.grad = torch.sin(value.detach() * (step + 1) + number)
            optimizer.step()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_ema_equals_its_closed_form_for_weights_and_batch_norm_statistics():
    network = model.efficientnet("0.25x0.34", 10)
    average = train.ModelEMA(network, decay=0.6)
    weight, mean = network.classifier.weight, network.stem_norm.running_mean
    expected = [weight.detach().double().clone(), mean.double().clone()]
    for step in range(8):
        weight.data.normal_()
        mean.normal_()
        network.stem_norm.num_batches_tracked += 1
        decay = min(0.6, (1 + step) / (10 + step))
        expected = [decay * old + (1 - decay) * new.detach().double()
                    for old, new in zip(expected, (weight, mean), strict=True)]
        average.update(network, step)
    torch.testing.assert_close(
        average.network.classifier.weight.double(), expected[0], rtol=1e-4, atol=1e-6
    )
    torch.testing.assert_close(
        average.network.stem_norm.running_mean.double(), expected[1], rtol=1e-4, atol=1e-6
    )
    assert average.network.stem_norm.num_batches_tracked == 8


def test_weight_decay_is_on_everything_but_batch_norm():
    network = model.efficientnet("0.25x0.34", 10)
    decayed, plain = train.make_optimizer(network, TINY).param_groups
    norms = {id(parameter) for module in network.modules()
             if isinstance(module, torch.nn.BatchNorm2d) for parameter in module.parameters()}
    assert {id(parameter) for parameter in plain["params"]} == norms
    assert len(plain["params"]) + len(decayed["params"]) == len(list(network.parameters()))
    assert plain["weight_decay"] == 0 and decayed["weight_decay"] == TINY.weight_decay


# ------------------------------------------------------------------ batches


def test_every_image_comes_once_an_epoch_and_in_another_order():
    batches = torch.cat(list(train.shuffled_batches(12, 4, 0, 6, seed=0)))
    first, second = batches[:12], batches[12:]
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(12))
    assert first.tolist() != second.tolist()


def test_a_run_that_starts_in_the_middle_sees_the_same_images():
    whole = list(train.shuffled_batches(10, 7, 0, 9, seed=3))
    rest = list(train.shuffled_batches(10, 7, 4, 9, seed=3))
    assert all(torch.equal(one, other) for one, other in zip(whole[4:], rest, strict=True))


def test_a_batch_may_be_larger_than_the_set():
    (batch,) = train.shuffled_batches(3, 8, 0, 1, seed=0)
    assert len(batch) == 8 and torch.bincount(batch).tolist().count(3) == 2


def test_without_augmentation_unlabeled_images_stay_as_they_are():
    torch.manual_seed(0)
    images = torch.randint(0, 256, (10, 3, 32, 32), dtype=torch.uint8)
    clean = train.noise_images(images, dataclasses.replace(TINY, augment_unlabeled=False), 4, 0)
    assert torch.equal(clean[4:], images[4:]) and not torch.equal(clean[:4], images[:4])
    noised = train.noise_images(images, TINY, 4, 0)
    assert torch.equal(train.noise_images(images, TINY, 4, 0), noised)
    assert not torch.equal(train.noise_images(images, TINY, 4, 1), noised)  # each step has its own
    assert all(not torch.equal(one, other) for one, other in zip(noised, images, strict=True))


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("size", [32, 72])
def test_random_resized_crops_are_for_images_over_64_pixels_wherever_they_are(
        size, in_memory, splits, tmp_path):
    write_images(splits.labeled, tmp_path)
    files = data.read_folder(tmp_path, 72)
    clean = next(data.read_batches(files, [torch.arange(8)], size, train=False))
    images = data.ImageSet(files.labels[:8], files.classes, clean) if in_memory else files
    config = dataclasses.replace(TINY, image_size=size)
    reader = train.read_training_images(images, torch.arange(8), torch.arange(8), 8, config, 0, 0,
                                        stream=0)
    index, read = next(reader)
    cropped = [not torch.equal(a, b) for a, b in zip(read, clean[index], strict=True)]
    assert cropped == [size > 64] * 8


# ------------------------------------------------------------------ runs


def test_equal_seeds_give_equal_weights(splits, tmp_path):
    one, other = (run(TINY, splits, tmp_path / name) for name in ("a.pt", "b.pt"))
    assert same(weights(one), weights(other))


CHANGES = {
    "arch": "0.25x0.6", "image_size": None, "small_images": True, "dropout": 0.6,
    "survival_prob": 0.3, "rand_augment_operations": 0, "rand_augment_magnitude": 20.0,
    "flip": False, "augment_unlabeled": False, "model_noise_unlabeled": False,
    "unlabeled_ratio": 1, "pseudo_labels": "hard", "normalization": "official",
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


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(TrainConfig)])
def test_every_field_of_the_configuration_changes_the_training(field, splits, tmp_path, baseline):
    if field == "labeled_images":  # set by train() itself: what an epoch is
        assert train.learning_rate(100, TINY) != train.learning_rate(
            100, dataclasses.replace(TINY, labeled_images=1000)
        )
        return
    if field == "image_size":
        with pytest.raises(data.InputError, match="32 px"):  # those in memory are not 48 px
            run(dataclasses.replace(TINY, image_size=48), splits, tmp_path / "c.pt")
        return
    config = TINY
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


def test_log_tells_both_losses_and_the_agreement(splits, tmp_path):
    run(TINY, splits, tmp_path / "a.pt")
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == list(range(round(3 * 20 / 8)))
    assert {"loss_labeled", "loss_unlabeled", "accuracy_labeled", "agreement_unlabeled",
            "learning_rate", "images_per_second"} <= steps[0].keys()


def test_a_teacher_is_trained_on_labels_alone(splits, tmp_path):
    run(TINY, splits, tmp_path / "a.pt", students=False)
    assert "loss_unlabeled" not in (tmp_path / "a.jsonl").read_text()


def test_the_checkpoint_is_the_average_with_the_best_validation_accuracy(splits, tmp_path):
    path = run(TINY, splits, tmp_path / "a.pt")
    network, meta = pseudo_label.load_teacher(path, torch.device("cpu"))
    assert not network.training
    assert train.top1(network, splits.validation, 32) == pytest.approx(meta["val_top1"])
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert meta["val_top1"] == max(line.get("val_top1", -1) for line in lines)


def test_a_loss_that_is_not_finite_stops_the_run_and_says_where(splits, tmp_path):
    config = dataclasses.replace(TINY, learning_rate=1e30, optimizer="sgd", warmup_epochs=0)
    with pytest.raises(FloatingPointError, match="step [0-9]+, learning rate.*longer warm-up") as e:
        run(config, splits, tmp_path / "a.pt", checkpoint_steps=500)
    assert not (tmp_path / "a.pt").exists() and "a.resume" not in str(e.value)  # there is none
    with mock.patch.object(train, "learning_rate", lambda step, _: 1e-3 if step < 2 else math.inf):
        with pytest.raises(FloatingPointError, match="after step 2.*a.resume holds the last"):
            run(config, splits, tmp_path / "a.pt", checkpoint_steps=1)
    state = torch.load(tmp_path / "a.resume", weights_only=True)
    assert all(value.isfinite().all() for value in state["network"].values())


def test_a_finished_run_is_not_run_again_and_not_mixed_up_with_another(splits, tmp_path):
    path = run(TINY, splits, tmp_path / "a.pt")
    before = path.stat().st_mtime_ns
    run(TINY, splits, path)
    assert path.stat().st_mtime_ns == before
    with pytest.raises(data.InputError, match="other settings"):
        run(dataclasses.replace(TINY, seed=9), splits, path)


@pytest.mark.parametrize("rank", [0, 1])
def test_processes_with_and_without_a_validation_image_sum_the_same_type(rank, splits, monkeypatch):
    summed = []
    monkeypatch.setattr(train.devices, "rank", lambda: rank)
    monkeypatch.setattr(train.devices, "world_size", lambda: 2)
    monkeypatch.setattr(train.devices, "mean", lambda value: summed.append(value) or value)
    network = train.build_model(TINY, 10)
    train.top1(network, splits.validation.subset(torch.arange(1)), 32)  # rank 1 has none
    assert summed[0].dtype == torch.float64 and summed[0].shape == ()


def test_a_run_belongs_to_its_validation_images(splits, tmp_path):
    path = run(TINY, splits, tmp_path / "a.pt")
    others = [dataclasses.replace(splits, validation=None),
              dataclasses.replace(splits, validation=splits.test),
              dataclasses.replace(splits, validation=dataclasses.replace(
                  splits.validation, labels=splits.validation.labels.flip(0)))]
    for other in others:
        with pytest.raises(data.InputError, match="other settings, images"):
            run(TINY, other, path)


@pytest.mark.parametrize("content", ['{"text": "mine"}\n', "mine\nall mine\n", "[1]\n[2]\n"])
def test_a_file_in_the_place_of_the_log_stays_as_it_is(content, splits, tmp_path):
    (tmp_path / "a.jsonl").write_text(content * 2)
    with pytest.raises(data.InputError, match="a.jsonl is in the way and not a log"):
        run(TINY, splits, tmp_path / "a.pt")
    assert (tmp_path / "a.jsonl").read_text() == content * 2


def test_a_teacher_is_not_taken_for_a_student_nor_for_one_of_other_pseudo_labels(splits, tmp_path):
    path = run(TINY, splits, tmp_path / "a.pt", students=False)
    with pytest.raises(data.InputError, match="other settings, images or pseudo labels"):
        run(TINY, splits, path)
    student = run(TINY, splits, tmp_path / "b.pt")
    with pytest.raises(data.InputError, match="other settings, images or pseudo labels"):
        run(TINY, splits, student, selection=np.arange(40))
    fewer = dataclasses.replace(splits, labeled=splits.labeled.subset(torch.arange(20).flip(0)))
    with pytest.raises(data.InputError, match="other settings, images or pseudo labels"):
        run(TINY, fewer, student)


@pytest.mark.parametrize("name", ["folder.pt", "text.pt", "weights.pt", "text.pt/below.pt",
                                  "a.resume", "a.jsonl", "log.pt"])
def test_an_output_that_cannot_be_written_is_an_error_and_stays_as_it_is(name, splits, tmp_path):
    (tmp_path / "folder.pt").mkdir()
    (tmp_path / "log.jsonl").mkdir()
    (tmp_path / "text.pt").write_text("text")
    torch.save({"stem.weight": torch.zeros(1)}, tmp_path / "weights.pt")
    with pytest.raises(data.InputError, match=re.escape(str(tmp_path))):
        run(TINY, splits, tmp_path / name)
    assert (tmp_path / "text.pt").read_text() == "text" and (tmp_path / "folder.pt").is_dir()
    assert "stem.weight" in torch.load(tmp_path / "weights.pt", weights_only=True)


def test_a_state_that_was_left_behind_by_a_finished_run_is_removed(splits, tmp_path):
    path = run(TINY, splits, tmp_path / "a.pt")
    (tmp_path / "a.resume").write_bytes(path.read_bytes())  # killed before it removed it
    run(TINY, splits, path)
    assert not (tmp_path / "a.resume").exists()



KILLED = """
import os, signal, sys
sys.path[:0] = [{root!r}, {tests!r}]
import data, train, test_train
splits = data.demo(0, labels_per_class=2, unlabeled=60, val_per_class=2, test_per_class=2)
count, write = 0, data.write_atomically
def killing_write(path, writer):
    global count
    count += 1
    if count == {kill_at}:  # in the middle of the write
        with open(str(path) + ".tmp", "wb") as file:
            file.write(b"half")
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
    write(path, writer)
data.write_atomically = killing_write
test_train.run(test_train.TINY, splits, {out!r}, checkpoint_steps=2)
"""


@pytest.mark.parametrize("kill_at", [1, 2, 3])
def test_a_run_killed_while_it_saves_ends_with_the_same_weights(kill_at, splits, tmp_path):
    reference = run(TINY, splits, tmp_path / "whole.pt", checkpoint_steps=2)
    out = tmp_path / "killed.pt"
    for kill in (kill_at, 0):
        code = KILLED.format(root=str(ROOT), tests=str(ROOT / "tests"), kill_at=kill, out=str(out))
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert result.returncode == (-signal.SIGKILL if kill else 0), result.stderr
    assert same(weights(out), weights(reference))

    def steps(path):
        lines = map(json.loads, path.with_suffix(".jsonl").read_text().splitlines())
        return [line["step"] for line in lines if "loss" in line]

    assert steps(out) == steps(reference)  # no line twice, none lost


def test_a_run_killed_at_random_moments_ends_with_the_same_weights(tmp_path):
    whole, killed = tmp_path / "whole.pt", tmp_path / "killed.pt"
    kill_training.train_and_kill(whole, 12, kills=0, seed=0)
    assert len(kill_training.train_and_kill(killed, 12, kills=3, seed=0)) == 3
    assert same(weights(killed), weights(whole))


FULL = """
import resource, sys
sys.path.insert(0, {root!r})
import data, train
count, write = 0, data.write_atomically
def limited_write(path, writer):
    global count
    count += path.suffix == ".resume"
    if count == 3:  # from here on no file of this process may grow beyond 100 kB
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    write(path, writer)
data.write_atomically = limited_write
sys.exit(train.main({arguments!r}))
"""


def test_a_full_disk_ends_with_one_line_and_leaves_the_older_checkpoint(splits, tmp_path):
    write_images(splits.labeled, tmp_path / "images")
    arguments = ["--labeled", str(tmp_path / "images"), "--out", str(tmp_path / "run" / "a.pt"),
                 "--arch", "0.25x0.34", "--image-size", "32", "--batch-size", "10", "--epochs", "4",
                 "--checkpoint-steps", "2", "--device", "cpu"]
    code = FULL.format(root=str(ROOT), arguments=arguments)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 2
    complaint = result.stderr.splitlines()[-1]
    assert complaint.startswith("train.py: ") and "File too large" in complaint
    assert "Traceback" not in result.stderr
    state = torch.load(tmp_path / "run" / "a.resume", weights_only=True)
    assert state["step"] == 4
    assert not list((tmp_path / "run").glob("*.tmp"))
    assert train.main(arguments) == 0  # with room again it goes on


def test_a_log_that_cannot_be_written_ends_with_one_line(splits, tmp_path):
    with mock.patch.object(train.json, "dumps", side_effect=["the meta data", OSError("full")]):
        with pytest.raises(data.InputError, match="a.jsonl: not written .full.; make room"):
            run(TINY, splits, tmp_path / "a.pt")


def test_validation_images_of_other_classes_are_an_error(splits, tmp_path, capsys):
    write_images(splits.labeled, tmp_path / "images")
    write_images(splits.labeled, tmp_path / "val")
    (tmp_path / "val" / "9").rename(tmp_path / "val" / "nine")
    assert train.main(["--labeled", str(tmp_path / "images"), "--val", str(tmp_path / "val"),
                       "--arch", "0.25x0.34", "--out", str(tmp_path / "a.pt")]) == 2
    assert "nine" in capsys.readouterr().err and not (tmp_path / "a.pt").exists()


def test_an_architecture_brings_its_recipe_and_flags_change_it(splits, tmp_path):
    write_images(splits.labeled, tmp_path / "images")
    with mock.patch.object(train, "train") as started:
        assert train.main(["--labeled", str(tmp_path / "images"), "--arch", "b2", "--epochs", "9",
                           "--device", "cpu", "--out", str(tmp_path / "a.pt")]) == 0
    assert started.call_args.args[0] == dataclasses.replace(train.recipe("b2"), epochs=9.0)


@pytest.mark.parametrize(("field", "value"), [
    ("image_size", 0), ("batch_size", -1), ("dropout", 1.0), ("survival_prob", 0.0),
    ("epochs", math.nan), ("epochs", math.inf), ("learning_rate", -1.0), ("momentum", 1.0),
    ("weight_decay", math.nan), ("ema_decay", 1.5), ("rand_augment_magnitude", -5.0), ("seed", -1),
    ("unlabeled_ratio", -1), ("frozen_stages", 8), ("label_smoothing", 1.1), ("schedule", "step"),
])
def test_a_value_out_of_range_is_refused_by_name(field, value):
    with pytest.raises(ValueError, match=field):
        dataclasses.replace(TINY, **{field: value})


@pytest.mark.parametrize("batch", [{"batch_size": 1}, {"batch_size": 4, "accumulation_steps": 4}])
def test_one_image_alone_is_refused_where_batch_norm_cannot_use_it(batch, splits, tmp_path):
    config = dataclasses.replace(TINY, **batch)
    with pytest.raises(data.InputError, match="BatchNorm needs two images"):
        run(config, splits, tmp_path / "a.pt", students=False)
    assert not list(tmp_path.iterdir())
    run(dataclasses.replace(config, epochs=0.2), splits, tmp_path / "a.pt")  # with two unlabelled


def test_names_with_a_dot_do_not_share_files(splits, tmp_path):
    for name in ("teacher.0", "teacher.1"):
        run(TINY, splits, tmp_path / name, students=False)
    assert {"teacher.0.jsonl", "teacher.1.jsonl"} <= {path.name for path in tmp_path.iterdir()}


def test_the_labelled_images_are_no_validation_images(splits, tmp_path, capsys):
    write_images(splits.labeled, tmp_path / "images")
    assert train.main(["--labeled", str(tmp_path / "images"), "--val", f"{tmp_path}/images/",
                       "--device", "cpu", "--out", str(tmp_path / "a.pt")]) == 2
    assert "these are the labelled images" in capsys.readouterr().err


def test_several_devices_of_xla_need_a_batch_that_they_can_share(monkeypatch):
    monkeypatch.setattr(train.devices, "mesh_size", lambda device: 2)
    train.check_batch(dataclasses.replace(TINY, batch_size=4), torch.device("xla"))
    with pytest.raises(data.InputError, match="5 labelled images cannot be shared by 2 devices"):
        train.check_batch(dataclasses.replace(TINY, batch_size=5), torch.device("xla"))


def test_xla_compiles_by_itself_and_keeps_its_activations():
    for options in ((True, False), (False, True)):
        train.check_device(torch.device("cpu"), *options)
        with pytest.raises(data.InputError, match="not for XLA"):
            train.check_device(torch.device("xla"), *options)


# ------------------------------------------------------------------ starting from other weights


def test_a_student_may_start_from_its_teachers_weights(splits, tmp_path):
    teacher = run(TINY, splits, tmp_path / "teacher.pt", students=False)
    still = dataclasses.replace(TINY, learning_rate=0.0, seed=5)
    student = run(still, splits, tmp_path / "student.pt", start=teacher)
    learned = weights(teacher)
    for key, value in weights(student).items():
        if "running" not in key and "tracked" not in key:  # BatchNorm sees the student's images
            torch.testing.assert_close(value, learned[key])


def test_a_start_of_other_classes_is_an_error(splits, tmp_path):
    other = dataclasses.replace(splits, labeled=dataclasses.replace(
        splits.labeled, classes=tuple("0123456789")))
    start = run(TINY, splits, tmp_path / "digits.pt", students=False)
    with pytest.raises(data.InputError, match="digits.pt knows other classes"):
        run(TINY, other, tmp_path / "a.pt", students=False, start=start)


def test_a_start_of_another_architecture_is_an_error(splits, tmp_path):
    teacher = run(TINY, splits, tmp_path / "teacher.pt", students=False)
    with pytest.raises(data.InputError, match="cannot start from .*teacher.pt"):
        run(dataclasses.replace(TINY, arch="0.5x0.34"), splits, tmp_path / "a.pt", start=teacher)


def test_without_the_joint_loss_the_labels_do_not_matter(splits, tmp_path):
    alone = dataclasses.replace(TINY, joint=False)
    shifted = dataclasses.replace(splits, labeled=dataclasses.replace(
        splits.labeled, labels=(splits.labeled.labels + 1) % 10))
    one, other = (run(alone, images, tmp_path / f"{number}.pt")
                  for number, images in enumerate((splits, shifted)))
    assert same(weights(one), weights(other))
    assert "loss_labeled" not in (tmp_path / "0.jsonl").read_text()


def test_resolution_fix_is_a_short_clean_fine_tuning_of_the_deep_layers():
    config = train.resolution_fix(TrainConfig(arch="l2", image_size=475), 800)
    assert (config.image_size, config.epochs, config.arch) == (800, 1.5, "l2")
    images = torch.randint(0, 256, (4, 3, 80, 80), dtype=torch.uint8)
    assert torch.equal(train.noise_images(images, config, 4, 0), images)  # unaugmented
    assert config.unlabeled_ratio == 0 and config.frozen_stages == 5


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
    files = data.read_folder(tmp_path / "images", 72)
    config = dataclasses.replace(TINY, image_size=72, epochs=1)
    before = train.train(config, files, files, out=tmp_path / "before.pt")
    after = train.train(train.resolution_fix(config, 96), files, files, out=tmp_path / "after.pt",
                        start=before)
    assert pseudo_label.load_teacher(after, torch.device("cpu"))[1]["image_size"] == 96


def test_recomputed_activations_change_no_weight_and_are_a_flag(splits, tmp_path):
    kept, again = (run(TINY, splits, tmp_path / f"{recomputed}.pt", checkpoint_blocks=recomputed)
                   for recomputed in (False, True))
    assert same(weights(kept), weights(again))
    write_images(splits.labeled, tmp_path / "images")
    flags = ["--labeled", tmp_path / "images", "--arch", "0.25x0.34", "--image-size", "32",
             "--batch-size", "8", "--epochs", "1", "--device", "cpu", "--checkpoint-blocks"]
    with mock.patch.object(model, "checkpoint", wraps=model.checkpoint) as recompute:
        assert train.main([*map(str, flags), "--out", str(tmp_path / "c.pt")]) == 0
    assert recompute.called


def test_a_compiled_network_that_recomputes_trains_as_the_plain_one(splits, tmp_path, monkeypatch):
    # Without code generation, which takes minutes here and draws other random numbers.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    config = dataclasses.replace(TINY, dropout=0.0, survival_prob=1.0, optimizer="rmsprop")
    plain, compiled = (
        weights(run(config, splits, tmp_path / f"{new}.pt", compiled=new, checkpoint_blocks=new))
        for new in (False, True)
    )
    for key in plain:
        torch.testing.assert_close(compiled[key], plain[key], rtol=1e-3, atol=1e-4)


def test_tensorboard_gets_the_log_where_it_is_installed(splits, tmp_path, monkeypatch):
    written = []

    class SummaryWriter:
        def __init__(self, folder, purge_step):
            self.folder = folder

        def add_scalar(self, key, value, step):
            written.append((key, step))

        def close(self):
            written.append("closed")

    fake = types.SimpleNamespace(SummaryWriter=SummaryWriter)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    run(TINY, splits, tmp_path / "a.pt")
    assert {("loss", 0), ("val_top1", 7), ("learning_rate", 3)} <= set(written)
    assert written[-1] == "closed"


@pytest.mark.parametrize(("content", "name"), [(None, "missing.pt"), (b"nonsense", "broken.pt")])
def test_a_missing_or_broken_checkpoint_is_an_error_and_not_random_weights(content, name, tmp_path):
    if content:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(data.InputError, match=name):
        pseudo_label.load_teacher(tmp_path / name, torch.device("cpu"))


def test_unknown_settings_are_refused():
    for wrong in ({"arch": "b9"}, {"optimizer": "lion"}, {"epochs": 0}, {"normalization": "mean"}):
        with pytest.raises(ValueError):
            TrainConfig(**wrong)
    with pytest.raises(TypeError):
        TrainConfig(learning_rte=0.1)


def test_warm_up_may_be_longer_than_the_run():
    config = TrainConfig(labeled_images=2048, epochs=2, schedule="cosine")
    assert all(math.isfinite(train.learning_rate(step, config)) for step in range(3))
