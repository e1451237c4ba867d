"""Published values against the code, and behaviours that no other test would notice.

The tables are typed from the paper (sections 3.1 and 3.2, table 7; table 8 in the arXiv version),
from EfficientNet's release and from the authors' scripts. Nobody has published the small plans:
their table says what they change of the paper's recipe. tests/mutants.py shows what is noticed.
"""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from tiny import TINY

import augment
import iterate
import model
import pseudo_label
import train
from pseudo_label import Labelling
from support import archives, batches, corruptions, devices, optimization
from support.batches import Batch
from support.images import ImageSet
from train import TrainConfig

# ---- The networks ----

# Width, depth, pixels of the training, dropout before the classifier.
NETWORKS = {
    "b0": (1.0, 1.0, 224, 0.2),
    "b1": (1.0, 1.1, 240, 0.2),
    "b2": (1.1, 1.2, 260, 0.3),
    "b3": (1.2, 1.4, 300, 0.3),
    "b4": (1.4, 1.8, 380, 0.4),
    "b5": (1.6, 2.2, 456, 0.4),
    "b6": (1.8, 2.6, 528, 0.5),
    "b7": (2.0, 3.1, 600, 0.5),
    "l0": (2.8, 3.7, 380, 0.5),
    "l1": (3.9, 3.7, 380, 0.5),
    "l2": (4.3, 5.3, 475, 0.5),
}
# Of b0: blocks, kernel, first stride, expansion, channels in and out, ratio of the squeeze.
STAGES = [
    (1, 3, 1, 1, 32, 16, 0.25),
    (2, 3, 2, 6, 16, 24, 0.25),
    (2, 5, 2, 6, 24, 40, 0.25),
    (3, 3, 2, 6, 40, 80, 0.25),
    (3, 5, 1, 6, 80, 112, 0.25),
    (4, 5, 2, 6, 112, 192, 0.25),
    (1, 3, 1, 6, 192, 320, 0.25),
]


def test_networks_have_the_published_sizes():
    found = {name: (one.width, one.depth, one.resolution, one.dropout)
             for name, one in model.SCALING.items()}
    assert found == NETWORKS


def test_stages_are_those_of_b0():
    with torch.device("meta"):
        network = model.efficientnet("b0")
    assert (network.stem.out_channels, network.stem.stride) == (32, (2, 2))
    assert (network.head.in_channels, network.head.out_channels) == (320, 1280)
    for stage, expected in zip(network.stages, STAGES, strict=True):
        first, *rest = stage
        for block in stage:
            convolution = block.depthwise
            inputs = (block.expand or convolution).in_channels
            assert (
                len(stage), *set(convolution.kernel_size), *set(convolution.stride),
                convolution.in_channels / inputs, inputs, block.project.out_channels,
                block.squeeze.out_channels / inputs,
            ) == expected
            blocks, kernel, _, expansion, _, outputs, squeeze = expected
            expected = blocks, kernel, 1, expansion, outputs, outputs, squeeze  # of all but one


def test_batch_norm_keeps_99_percent_of_its_average_and_adds_a_thousandth():
    norms = [module for module in model.efficientnet("0.25x0.34").modules()
             if isinstance(module, torch.nn.BatchNorm2d)]
    assert {(norm.momentum, norm.eps) for norm in norms} == {(0.01, 1e-3)}


# ---- The recipes ----

B7 = {
    "arch": "b7", "image_size": 600, "small_images": False,
    # section 3.1, "Noise"
    "dropout": 0.5, "survival_prob": 0.8,
    "rand_augment_operations": 2, "rand_augment_magnitude": 27, "flip": True, "crops": "auto",
    # nothing of tables 6 and of the resolution fix
    "augment_labeled": True, "augment_unlabeled": True, "model_noise_unlabeled": True,
    "frozen_stages": 0,
    # Algorithm 1, section 3.2 and, for the sum of both losses and the smoothing, the authors' code
    "joint": True, "unlabeled_ratio": 3, "normalization": "official", "label_smoothing": 0.1,
    # section 3.1, "Training details": a rate of 0.128 at a batch of 2048; ImageNet's images
    "batch_size": 2048, "accumulation_steps": 1, "labeled_images": 1_281_167, "epochs": 350,
    "learning_rate": 0.128 * 256 / 2048, "schedule": "exponential", "decay_rate": 0.97,
    "decay_epochs": 2.4,
    # the authors' code
    "warmup_epochs": 5, "optimizer": "rmsprop", "momentum": 0.9, "weight_decay": 1e-5,
    "ema_decay": 0.9999,
    # nothing published: no digit of the figures depends on them
    "precision": "float32", "evaluate_epochs": 5, "seed": 0,
}
# Pixels, dropout, RandAugment's operations and magnitude, epochs and those between two decays,
# unlabelled images for a labelled one. (The ratio of l0 and l1 is not published, nor is 0.35x0.5.)
COLUMNS = ("image_size", "dropout", "rand_augment_operations", "rand_augment_magnitude", "epochs",
           "decay_epochs", "unlabeled_ratio")
RECIPES = {
    "b0": (224, 0.2, 0, 0, 700, 4.8, 1),
    "b1": (240, 0.2, 0, 0, 700, 4.8, 3),
    "b2": (260, 0.3, 2, 6, 700, 4.8, 3),
    "b3": (300, 0.3, 2, 12, 700, 4.8, 3),
    "b4": (380, 0.4, 2, 15, 700, 4.8, 3),
    "b5": (456, 0.4, 2, 18, 350, 2.4, 3),
    "b6": (528, 0.5, 2, 24, 350, 2.4, 3),
    "b7": (600, 0.5, 2, 27, 350, 2.4, 3),
    "l0": (380, 0.5, 2, 27, 350, 2.4, 14),
    "l1": (380, 0.5, 2, 27, 350, 2.4, 14),
    "l2": (475, 0.5, 2, 27, 350, 2.4, 14),
    "0.35x0.5": (32, 0.2, 2, 27, 350, 2.4, 3),
}
LABELS = {"kind": "soft", "temperature": 1, "threshold": 0.3, "per_class": None, "balance": True,
          "noised_teacher": False}


def published(arch, **changes):
    return B7 | {"arch": arch} | dict(zip(COLUMNS, RECIPES[arch], strict=True)) | changes


def test_the_defaults_are_b7s():
    assert dataclasses.asdict(TrainConfig()) == B7
    assert RECIPES["b7"] == tuple(B7[column] for column in COLUMNS)
    assert augment.RandAugment() == augment.RandAugment(2, 27)
    assert dataclasses.asdict(Labelling()) == LABELS


@pytest.mark.parametrize("arch", RECIPES)
def test_recipes_are_the_published_ones(arch):
    assert dataclasses.asdict(train.recipe(arch)) == published(arch)


def test_a_decay_comes_at_its_step_where_epochs_are_no_whole_steps():
    """By 2.4 epochs of 5000 / 96 steps: exactly 125 steps, of which floats do not know."""
    config = TrainConfig(labeled_images=5000, batch_size=96, warmup_epochs=0)
    for step in range(config.total_steps):
        expected = 0.128 * 96 / 2048 * 0.97 ** (step // 125)
        assert train.learning_rate(step, config) == pytest.approx(expected, rel=1e-12), step


def test_by_default_images_need_a_confidence_over_three_tenths():
    chosen = pseudo_label.select(np.array([0.3, 0.301, 0.299]), np.zeros(3, int), 1, per_class=2)
    assert chosen.tolist() == [1, 1]


def test_the_resolution_fix_is_short_clean_and_at_the_rate_that_the_training_ended_with():
    """At a larger resolution "for 1.5 epochs on unaugmented labeled images" (section 3.1)."""
    config = train.recipe("l2")
    fix = train.resolution_fix(config, 800)
    expected = published("l2", image_size=800, epochs=1.5, evaluate_epochs=1.5, unlabeled_ratio=0,
                         augment_labeled=False, frozen_stages=5, warmup_epochs=0, decay_rate=1)
    assert dataclasses.asdict(fix) | {"learning_rate": None} == expected | {"learning_rate": None}
    for step in (0, fix.total_steps // 2, fix.total_steps - 1):
        assert train.learning_rate(step, fix) == pytest.approx(0.128 * 0.97**145)  # 350 / 2.4
    cosine = dataclasses.replace(config, schedule="cosine", frozen_stages=3)  # these stay three
    fix = train.resolution_fix(cosine, 800)
    assert fix.learning_rate == pytest.approx(0.016 / 10) and fix.frozen_stages == 3
    assert train.learning_rate(fix.total_steps - 1, fix) < 0.01 * train.learning_rate(0, fix)


# ---- The plans ----


def test_the_papers_plan_is_table_7():
    table = [  # the model, its unlabelled images for a labelled one, pixels of its fine-tuning
        ("teacher", "b7", 3, None),  # which has no pseudo labels
        ("student 1", "l2", 14, 800),
        ("student 2", "l2", 14, 800),
        ("student 3", "l2", 28, 800),
    ]
    assert [dataclasses.asdict(generation) for generation in iterate.PLANS["paper"]] == [
        {"name": name, "config": published(arch, unlabeled_ratio=ratio), "fixed_resolution": pixels,
         "labelling": LABELS | {"per_class": None if name == "teacher" else 130_000},
         "joint": True, "from_teacher": False, "start_from": None}
        for name, arch, ratio, pixels in table]


# What the small plans change of the recipe of B7.
SMALL = ("demo", "cifar10-cpu", "tiny-imagenet", "cifar10", "own", "finetune")
CHANGES = {
    "arch": ("0.25x0.5", "0.5x0.3", "0.35x0.5", "b0", "b0", "b0"),
    "image_size": (32, 32, 64, 32, 224, 224),
    "small_images": (False, True, False, True, False, False),
    "dropout": (0.2, 0.2, 0.2, 0.2, 0.2, 0.2),
    "survival_prob": (0.8, 0.8, 0.8, 0.8, 0.8, 0.8),
    "rand_augment_operations": (1, 1, 1, 2, 1, 1),
    "rand_augment_magnitude": (5, 5, 5, 5, 6, 6),
    "unlabeled_ratio": (2, 3, 3, 7, 1, 1),
    "crops": ("auto", "auto", "auto", "auto", "imagenet", "imagenet"),
    "normalization": ("concat", "concat", "concat", "concat", "concat", "concat"),
    "batch_size": (64, 32, 32, 128, 64, 64),
    "epochs": (750, 36, 256, 200, 200, 60),
    "learning_rate": (0.04, 0.056, 0.056, 0.004, 0.012, 0.004),
    "decay_epochs": (2.4, 2.4, 2.4, 4.8, 4.8, 4.8),  # of no matter for a cosine
    "schedule": ("cosine", "cosine", "cosine", "cosine", "cosine", "cosine"),
    "optimizer": ("adamw", "adamw", "adamw", "adamw", "adamw", "adamw"),
    "weight_decay": (0.02, 0.02, 0.02, 0.02, 0.02, 0.02),
    "ema_decay": (0.98, 0.99, 0.99, 0.999, 0.99, 0.99),
    "precision": ("float32", "float32", "float32", "bfloat16", "float32", "float32"),
    "evaluate_epochs": (75, 4, 16, 10, 10, 10),
}
ONE_GENERATION = {
    ("demo", "student 2"): {"arch": "0.35x0.5"},
    ("cifar10-cpu", "teacher"): {"rand_augment_operations": 0, "epochs": 72},
    ("tiny-imagenet", "student 2"): {"epochs": 512},
}
STUDENTS_LABELS = {"demo": {"per_class": 800}, "cifar10-cpu": {"temperature": 0.5},
                   "tiny-imagenet": {"per_class": 200}}


@pytest.mark.parametrize("plan", SMALL)
def test_small_plans_change_of_the_papers_recipe_what_they_say(plan):
    column = SMALL.index(plan)
    common = B7 | {field: values[column] for field, values in CHANGES.items()}
    assert [dataclasses.asdict(generation) for generation in iterate.PLANS[plan]] == [
        {"name": name, "config": common | ONE_GENERATION.get((plan, name), {}),
         "labelling": LABELS | (STUDENTS_LABELS.get(plan, {}) if name != "teacher" else {}),
         "fixed_resolution": None, "joint": True, "start_from": None,
         "from_teacher": plan == "cifar10-cpu" and name != "teacher"}
        for name in ("teacher", "student 1", "student 2")]


@pytest.mark.parametrize(("plan", "labels", "steps"), [
    ("demo", 80, [938] * 3), ("cifar10-cpu", 4000, [9000, 4500, 4500]),
    ("tiny-imagenet", 200, [1600, 1600, 3200])])
def test_small_plans_train_for_as_many_steps_as_results_say(plan, labels, steps):
    configs = [dataclasses.replace(generation.config, labeled_images=labels)
               for generation in iterate.PLANS[plan]]
    assert [config.total_steps for config in configs] == steps


# ---- A training ----


@pytest.fixture(scope="module")
def splits():
    return tiny.make_splits()


@pytest.fixture
def seen(monkeypatch):
    """What networks are trained on: images, mask of the noised ones, seed of dropout's chance."""
    seen, forward = [], model.EfficientNet.forward

    def spy(network, images, noised=None):
        if network.training:
            seen.append((images.clone(), noised, torch.initial_seed()))
        return forward(network, images, noised)

    monkeypatch.setattr(model.EfficientNet, "forward", spy)
    return seen


def test_a_training_steps_as_the_published_rmsprop():
    """Decay 0.9, momentum 0.9, epsilon 1e-3 in the root, squares from one, 1e-5 L2 in the loss."""
    layer = torch.nn.Linear(3, 2, bias=False).double()
    weight, square, buffer = layer.weight.detach().numpy().copy(), np.ones((2, 3)), 0
    optimizer = optimization.make_optimizer(layer, TrainConfig())
    for step in range(30):
        gradient = np.sin(np.arange(6).reshape(2, 3) + step) * 0.03
        layer.weight.grad = torch.from_numpy(gradient)
        for group in optimizer.param_groups:
            group["lr"] = rate = 0.1 if step < 20 else 0.05
        optimizer.step()
        gradient = gradient + 1e-5 * weight
        square = 0.9 * square + 0.1 * gradient**2
        buffer = 0.9 * buffer + rate * gradient / np.sqrt(square + 1e-3)
        weight = weight - buffer
    assert layer.weight.detach().numpy() == pytest.approx(weight, rel=1e-9)


def test_rmsprop_alone_has_the_published_defaults():
    layer = torch.nn.Linear(3, 2)
    (group,) = optimization.RMSpropTF(layer.parameters()).param_groups
    del group["params"]
    assert group == {"lr": 0.016, "decay": 0.9, "momentum": 0.9, "eps": 1e-3, "weight_decay": 0}
    assert optimization.ModelEMA(layer).decay == 0.9999


def test_sgd_is_nesterovs():
    layer = torch.nn.Linear(1, 1, bias=False)
    before, layer.weight.grad = layer.weight.item(), torch.ones(1, 1)
    config = TrainConfig(optimizer="sgd", momentum=0.5, weight_decay=0.0)
    optimization.make_optimizer(layer, config).step()  # at a rate of 1
    assert before - layer.weight.item() == pytest.approx(1 + 0.5, rel=1e-5)


def test_both_kinds_of_images_have_an_order_of_their_own(splits):
    config = dataclasses.replace(TINY, unlabeled_ratio=1, labeled_images=20)
    pseudo = tiny.pseudo_labels(splits.labeled)
    for batch in batches.training(config, splits.labeled, pseudo, None):
        assert not torch.equal(*batch.images.split(8))


def test_another_seed_is_another_start_and_another_noise(splits):
    other = dataclasses.replace(TINY, seed=1)
    starts = [train.build_model(config, 10).head.weight for config in (TINY, TINY, other)]
    assert torch.equal(*starts[:2]) and not torch.equal(*starts[1:])
    images = splits.validation.pixels[:8]
    batch = Batch(images, torch.zeros(8).long(), None, torch.arange(8), whole=8)
    noised = [train.noise(batch, config, 3) for config in (TINY, TINY, other)]
    assert torch.equal(*noised[:2]) and not torch.equal(*noised[1:])


def copy(network):
    return {key: value.clone() for key, value in network.state_dict().items()}


def test_the_average_is_evaluated_and_saved_and_not_the_raw_network(splits, tmp_path, monkeypatch):
    config = dataclasses.replace(TINY, epochs=0.8, warmup_epochs=0)  # two steps
    raw, evaluated, update = [], [], train.ModelEMA.update
    monkeypatch.setattr(train.ModelEMA, "update", lambda average, network, step: raw.append(
        copy(network)) or update(average, network, step))
    monkeypatch.setattr(train, "accuracy", lambda network, *rest: evaluated.append(
        copy(network)) or 50.0)
    saved = tiny.weights(tiny.run(config, splits, tmp_path / "a.pt"))
    start = copy(train.build_model(config, 10))
    assert not torch.equal(raw[0]["head.weight"], start["head.weight"])
    for key, value in start.items():
        if value.is_floating_point():  # BatchNorm's statistics, too; min(0.9, (2 + t) / (11 + t))
            average = (2 * value.double() + 9 * raw[0][key].double()) / 11
            average = (3 * average + 9 * raw[1][key].double()) / 12
            torch.testing.assert_close(saved[key].double(), average, rtol=1e-4, atol=1e-6)
        assert torch.equal(evaluated[-1][key], saved[key])


@pytest.mark.parametrize("spared", [True, False])
def test_table_6_spares_the_unlabelled_images_and_never_the_labelled_ones(
        spared, splits, tmp_path, seen):
    config = dataclasses.replace(TINY, epochs=0.4, augment_unlabeled=not spared,
                                 model_noise_unlabeled=not spared)
    tiny.run(config, splits, tmp_path / "a.pt")
    ((images, noised, _),) = seen

    def clean(source):
        originals = augment.normalize(source.pixels).flatten(1)
        return [bool((image.flatten() == originals).all(1).any()) for image in images]

    assert clean(splits.unlabeled) == [False] * 8 + [spared] * 16
    assert not any(clean(splits.labeled))
    assert noised.tolist() == [True] * 8 + [False] * 16 if spared else noised is None


@pytest.mark.parametrize("labeled", [True, False])
@pytest.mark.parametrize("unlabeled", [True, False])
def test_noised_large_images_are_cropped_at_random_and_others_are_not(
        labeled, unlabeled, tmp_path, seen):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (12, 3, 72, 72), dtype=torch.uint8, generator=generator)
    images = ImageSet(torch.arange(12) % 2, ("a", "b"), pixels)
    pseudo = tiny.pseudo_labels(images.subset(torch.arange(8, 12)))
    config = dataclasses.replace(
        TINY, image_size=72, batch_size=8, unlabeled_ratio=1, epochs=1, flip=False,
        rand_augment_operations=0, augment_labeled=labeled, augment_unlabeled=unlabeled)
    train.train(config, images.subset(torch.arange(8)), None, pseudo, out=tmp_path / "a.pt")
    originals = augment.normalize(pixels).flatten(1)
    cropped = [not (image.flatten() == originals).all(1).any() for image in seen[0][0]]
    assert cropped == [labeled] * 8 + [unlabeled] * 8


def test_dropout_has_its_own_chance_in_each_step_of_each_process(
        splits, tmp_path, seen, monkeypatch):
    for rank in (0, 1):
        monkeypatch.setattr(devices, "rank", lambda rank=rank: rank)
        tiny.run(TINY, splits, tmp_path / f"{rank}.pt")
    assert len(seen) == len({seed for *_, seed in seen}) == 2 * 8


# A training without chance, on equal images, so that BatchNorm finds the same in any of them.
STILL = dataclasses.replace(
    TINY, small_images=True, epochs=2, warmup_epochs=0, dropout=0.0, survival_prob=1.0,
    augment_labeled=False, augment_unlabeled=False)


def equal_images(splits):
    pseudo = tiny.pseudo_labels(splits.unlabeled.subset(torch.zeros(16).long()))
    pseudo.targets[:] = pseudo.targets[0]
    return splits.labeled.subset(torch.zeros(8).long()), None, pseudo


def test_micro_batches_make_the_step_of_the_whole_batch(splits, tmp_path):
    whole, parts = (tiny.weights(train.train(
        dataclasses.replace(STILL, optimizer="sgd", accumulation_steps=count),
        *equal_images(splits), out=tmp_path / f"{count}.pt")) for count in (1, 4))
    for key, value in whole.items():
        if "running" not in key and "tracked" not in key:  # they are updated four times as often
            torch.testing.assert_close(parts[key], value, rtol=1e-3, atol=1e-5)


def test_every_step_has_its_own_gradient(splits, tmp_path, monkeypatch):
    found = []
    monkeypatch.setattr(optimization.RMSpropTF, "step", lambda optimizer: found.append(
        [weight.grad.clone() for weight in optimizer.param_groups[0]["params"]]))
    train.train(dataclasses.replace(STILL, optimizer="rmsprop"), *equal_images(splits),
                out=tmp_path / "a.pt")
    torch.testing.assert_close(*found)  # two steps from the same weights, which do not move


def test_accuracy_is_the_percentage_of_the_images_whose_class_is_the_likeliest():
    pixels = torch.tensor([0, 90, 200, 90], dtype=torch.uint8).view(4, 1, 1, 1)
    images = ImageSet(torch.tensor([0, 1, 0, 1]), ("dark", "bright"), pixels.expand(4, 3, 2, 2))

    class Brightness(torch.nn.Module):
        def forward(self, images):
            return torch.stack([-images.mean((1, 2, 3)), images.mean((1, 2, 3)) + 2], dim=1)

    assert train.accuracy(Brightness(), images, 2, devices.CPU) == 75.0  # 200 is taken for bright


# ---- The loop ----


def test_the_loop_is_algorithm_1(splits, tmp_path, monkeypatch):
    """Every training and labelling is only noted down: what comes after what, and from what."""
    trained, labelled, tested = {}, [], []

    def learn(config, labeled, validation, pseudo, *, start, out, name, **rest):
        assert labeled is splits.labeled and validation is splits.validation
        trained[name] = config, pseudo, start and start.stem
        return out

    def label(teacher, pool, out, how, *, seed, **rest):
        assert pool is splits.unlabeled
        labelled.append((teacher.name, how, seed))
        labels = dataclasses.make_dataclass("Labels", "counts top1 number per_class images".split())
        return labels({}, None, len(labelled), {"pool": [1] * 10}, pool)

    def load(path):
        network, size = torch.nn.Linear(1, 1), 48 if "48" in path.stem else 32
        network.name = path.stem
        return SimpleNamespace(name=path.stem, arch="", image_size=size, val_top1=100.0,
                               network=lambda: network)

    monkeypatch.setattr(train, "train", learn)
    monkeypatch.setattr(train, "accuracy", lambda network, images, size, machine: (
        tested.append(images) or f"{network.name} at {size} pixels"))
    monkeypatch.setattr(train, "top_classes", lambda network, images, *rest: (
        tested.append(images) or torch.zeros(len(images), 5, dtype=torch.int64)))
    monkeypatch.setattr(pseudo_label, "label", label)
    monkeypatch.setattr(iterate, "Checkpoint", SimpleNamespace(load=load))
    how = Labelling(temperature=0.7), Labelling(per_class=5)
    report = iterate.iterate((
        iterate.Generation("teacher", TINY),
        iterate.Generation("student 1", TINY, how[0]),
        iterate.Generation("student 2", TINY, how[1], 48, joint=False, from_teacher=True,
                           start_from="other.pt"),  # its teacher comes before the file
        iterate.Generation("student 3", TINY, how[1]),  # on labels alone it is as student 1
    ), splits, tmp_path, devices.CPU, robustness=False)

    # Section 3.2 compares with labels alone; finding 6 with both losses one after the other.
    alone = dataclasses.replace(TINY, unlabeled_ratio=0)
    before = {"joint": False}
    after = {"unlabeled_ratio": 0, "learning_rate": TINY.learning_rate / 10, "warmup_epochs": 0.0}
    fix = dataclasses.asdict(train.resolution_fix(TINY, 48))
    expected = {  # the training; its settings; the number of its labelling; where it starts
        "teacher": (alone, {}, None, None),
        "student 1": (TINY, {}, 1, None),
        "student 2, pretrained": (TINY, before, 2, "student-1"),
        "student 2": (TINY, after, None, "student-2-pretrained"),
        "student 2, 48 px": (TINY, fix, None, "student-2"),
        "student 3": (TINY, {}, 3, None),
        "student 1, labels only": (alone, {}, None, None),
        "student 2, labels only, pretrained": (alone, before, None, "student-1-labels-only"),
        "student 2, labels only": (alone, after, None, "student-2-labels-only-pretrained"),
        "student 2, labels only, 48 px": (alone, fix, None, "student-2-labels-only"),
    }
    assert [*trained] == [*expected]
    seeds = {}
    for name, (config, changes, number, start) in expected.items():
        found, pseudo, begun = trained[name]
        seeds.setdefault(name.split(", pre")[0].split(", 48")[0], set()).add(found.seed)
        wanted = dataclasses.replace(config, **changes)
        assert dataclasses.replace(found, seed=0) == dataclasses.replace(wanted, seed=0), name
        assert (pseudo and pseudo.number, begun) == (number, start), name
    assert len(set.union(*seeds.values())) == len(seeds) == 6  # each network has its own
    assert labelled == [("teacher", how[0], *seeds["student 1"]),
                        ("student-1", how[1], *seeds["student 2"]),
                        ("student-2-48-px", how[1], *seeds["student 3"])]
    assert len(tested) == 7 and all(images is splits.test for images in tested)
    assert [row["labels_only_test_top1"] for row in report["generations"]] == [
        None, "student-1-labels-only at 32 pixels", "student-2-labels-only-48-px at 48 pixels",
        "student-1-labels-only at 32 pixels"]


# ---- The released test sets ----


@pytest.mark.parametrize("pixels", [224, 299])
@pytest.mark.parametrize("suite", ["imagenet-c", "imagenet-p"])
def test_imagenet_c_and_p_are_resized_as_a_whole(suite, pixels, tmp_path, monkeypatch):
    """Section 3.3: "resize images to the resolution EfficientNet trained on"."""
    views = [Image.fromarray(np.random.default_rng(seed).integers(256, size=(pixels, pixels, 3),
                                                                  dtype=np.uint8))
             for seed in range(31 if suite == "imagenet-p" else 1)]
    part = "tilt" if suite == "imagenet-p" else "fog/2"
    file = tmp_path / part / "n01498041" / ("1.mp4" if suite == "imagenet-p" else "1.JPEG")
    file.parent.mkdir(parents=True)
    views[0].save(file, format="PNG")  # of the video the name is enough
    monkeypatch.setattr(archives, "_decode_video", lambda file, frames: views)
    source = archives.TestSet(suite, str(tmp_path), "", 64, image_size=96,
                              classes=tuple(archives.IMAGENET["wnids"]))
    ((images, labels),) = source.read(part)
    resized = [np.asarray(view.resize((96, 96), Image.Resampling.BICUBIC)) for view in views]
    assert np.array_equal(images.permute(0, 2, 3, 1).numpy(), np.stack(resized))
    assert set(labels.tolist()) == {6}


# ---- The benchmarks of robustness ----

# The numbers of make_cifar_c.py and corruptions.py in the repository of their authors, for
# severities 1 to 5 one after the other; `corruptions.corrupt` says what they are.
CIFAR_10_C = {
    "gaussian_noise": "0.04 0.06 0.08 0.09 0.1",
    "shot_noise": "500 250 100 75 50",
    "impulse_noise": "0.01 0.02 0.03 0.05 0.07",
    "defocus_blur": "0.3 0.4 0.4 0.5 0.5 0.6 1 0.2 1.5 0.1",
    "glass_blur": "0.05 1 1 0.25 1 1 0.4 1 1 0.25 1 2 0.4 1 2",
    "motion_blur": "6 1 6 1.5 6 2 8 2 9 2.5",
    "zoom_blur": "1.06 1.11 1.16 1.21 1.26",
    "snow":
        "0.1 0.2 1 0.6 8 3 0.95 0.1 0.2 1 0.5 10 4 0.9 0.15 0.3 1.75 0.55 10 4 "
        "0.9 0.25 0.3 2.25 0.6 12 6 0.85 0.3 0.3 1.25 0.65 14 12 0.8",
    "frost": "1 0.2 1 0.3 0.9 0.4 0.85 0.4 0.75 0.45",
    "fog": "0.2 3 0.5 3 0.75 2.5 1 2 1.5 1.75",
    "brightness": "0.05 0.1 0.15 0.2 0.3",
    "contrast": "0.75 0.5 0.4 0.3 0.15",
    "elastic_transform": "0 0 0.08 0.05 0.2 0.07 0.08 0.06 0.06 0.1 0.04 0.05 0.1 0.03 0.03",
    "pixelate": "0.95 0.9 0.85 0.75 0.65",
    "jpeg_compression": "80 65 58 50 40",
}
IMAGENET_C = {
    "gaussian_noise": "0.08 0.12 0.18 0.26 0.38",
    "shot_noise": "60 25 12 5 3",
    "impulse_noise": "0.03 0.06 0.09 0.17 0.27",
    "defocus_blur": "3 0.1 4 0.5 6 0.5 8 0.5 10 0.5",
    "glass_blur": "0.7 1 2 0.9 2 1 1 2 3 1.1 3 2 1.5 4 2",
    "motion_blur": "10 3 15 5 15 8 15 12 20 15",
    "zoom_blur": "1.11 1.16 1.21 1.26 1.31",
    "snow":
        "0.1 0.3 3 0.5 10 4 0.8 0.2 0.3 2 0.5 12 4 0.7 0.55 0.3 4 0.9 12 8 0.7 "
        "0.55 0.3 4.5 0.85 12 8 0.65 0.55 0.3 2.5 0.85 12 12 0.55",
    "frost": "1 0.4 0.8 0.6 0.7 0.7 0.65 0.7 0.6 0.75",
    "fog": "1.5 2 2 2 2.5 1.7 2.5 1.5 3 1.4",
    "brightness": "0.1 0.2 0.3 0.4 0.5",
    "contrast": "0.4 0.3 0.2 0.1 0.05",
    "elastic_transform": "2 0.7 0.1 2 0.08 0.2 0.05 0.01 0.02 0.07 0.01 0.02 0.12 0.01 0.02",
    "pixelate": "0.6 0.5 0.4 0.3 0.25",
    "jpeg_compression": "25 18 15 10 7",
}


@pytest.mark.parametrize(("table", "published"), [
    (corruptions.SEVERITIES, CIFAR_10_C), (corruptions.AT_224, IMAGENET_C)])
def test_severities_are_the_published_ones(table, published):
    assert {name: np.ravel(values).tolist() for name, values in table.items()} == {
        name: [*map(float, values.split())] for name, values in published.items()}
