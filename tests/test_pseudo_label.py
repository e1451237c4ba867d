"""Section 3.1 on pseudo labels: a clean teacher, the filter, the balance, soft and hard targets."""

import collections
import dataclasses
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import augment
import data
import model
import pseudo_label

ROOT = Path(__file__).parent.parent


def make_network(dropout=0.5, survival_prob=0.5):
    torch.manual_seed(0)
    return model.EfficientNet(0.25, 0.5, 10, dropout=dropout, survival_prob=survival_prob)


@pytest.fixture
def network():
    return make_network()


@pytest.fixture
def pool():
    return data.demo(0, unlabeled=60, val_per_class=1, test_per_class=1).unlabeled


class Linear(torch.nn.Module):
    """A teacher that is quick, and keeps what it was shown."""

    def __init__(self, size=8, classes=4):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.nn.Parameter(torch.randn(3 * size**2, classes, generator=generator))
        self.shown = []

    def forward(self, images):
        self.shown.append(images)
        return images.flatten(1) @ self.weight


def small_pool(count=60, classes=4):
    """8x8 images; the first channel of an image is its number."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(256, (count, 3, 8, 8), generator=generator, dtype=torch.uint8)
    pixels[:, 0] = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1)
    truth = torch.randint(classes, (count,), generator=generator)
    return data.ImageSet(truth, tuple(f"class {n}" for n in range(classes)), pixels)


# ------------------------------------------------------------------ predict


def test_probabilities_are_the_softmax_of_the_clean_network(network, pool):
    probabilities = pseudo_label.predict(network, pool, batch_size=17)
    with torch.no_grad():
        expected = network.eval()(augment.normalize(pool.pixels)).softmax(1)
    torch.testing.assert_close(probabilities, expected)


def test_the_teacher_has_no_noise_even_in_training_mode(network, pool):
    network.train()
    one, other = (pseudo_label.predict(network, pool) for _ in range(2))
    assert torch.equal(one, other)


def test_the_teacher_sees_the_images_of_memory_as_they_are():
    teacher, pool = Linear(), small_pool(20)
    pseudo_label.predict(teacher, pool, batch_size=20)
    assert torch.equal(teacher.shown[0], augment.normalize(pool.pixels))


def test_the_teacher_sees_the_central_square_of_files(tmp_path):
    pixels = np.random.default_rng(0).integers(256, size=(8, 12, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    pool = data.ImageSet(torch.tensor([-1]), ("a", "b"), files=(str(tmp_path / "image.png"),))
    teacher = Linear(classes=2)
    pseudo_label.predict(teacher, pool, image_size=8, workers=0)
    square = torch.tensor(pixels[:, 2:10].transpose(2, 0, 1))
    assert torch.equal(teacher.shown[0][0], augment.normalize(square[None])[0])


def test_all_batches_have_one_shape_and_none_but_the_images_count():
    teacher, pool = Linear(), small_pool(20)
    probabilities = pseudo_label.predict(teacher, pool, batch_size=8)
    assert [len(batch) for batch in teacher.shown] == [8, 8, 8]
    torch.testing.assert_close(probabilities, pseudo_label.predict(teacher, pool))


@pytest.mark.parametrize("side", [8, 256])
def test_batches_of_large_images_are_smaller(side):
    teacher = Linear(side, classes=2)
    pseudo_label.predict(teacher, torch.zeros(130, 3, side, side, dtype=torch.uint8))
    assert [len(batch) for batch in teacher.shown] == {8: [130], 256: [125, 125]}[side]


@pytest.mark.parametrize(("dropout", "survival_prob"), [(0.5, 1.0), (0.0, 0.5)])
def test_labelling_leaves_the_student_noised_and_its_statistics_alone(dropout, survival_prob, pool):
    network = make_network(dropout, survival_prob).train()
    network.stem_norm.eval()  # a layer that was fixed before stays fixed
    before = {key: value.clone() for key, value in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    pseudo_label.predict(network, pool)
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    for layer in network.modules():  # what differs now is noise, not statistics of the batch
        layer.training = layer.training and not isinstance(layer, torch.nn.BatchNorm2d)
    images = augment.normalize(pool.pixels[:8])
    assert not torch.equal(network(images), network(images))


def test_the_mode_comes_back_after_an_error(network):
    network.train()
    with pytest.raises(RuntimeError):
        pseudo_label.predict(network, torch.zeros(2, 5, 32, 32, dtype=torch.uint8))
    assert network.training and network.head_norm.training


@pytest.mark.parametrize("noise", [None, augment.RandAugment(2, 9)])
def test_random_numbers_of_others_stay_as_they_are(network, pool, noise):
    before = torch.get_rng_state()
    pseudo_label.predict(network, pool, noise=noise, seed=(0,))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(("dropout", "survival_prob", "operations"),
                         [(0.5, 1.0, 0), (0.0, 0.5, 0), (0.0, 1.0, 2)])
def test_a_noised_teacher_has_every_kind_of_noise(dropout, survival_prob, operations, pool):
    network, noise = make_network(dropout, survival_prob), augment.RandAugment(operations, 9)
    noised = pseudo_label.predict(network, pool, noise=noise)
    assert not torch.equal(noised, pseudo_label.predict(network, pool))


def test_noise_of_the_teacher_follows_the_seed_and_is_not_of_batch_norm(network, pool):
    noise, before = augment.RandAugment(2, 9), network.stem_norm.running_mean.clone()
    one, again, other = (
        pseudo_label.predict(network, pool, noise=noise, seed=(seed,)) for seed in (0, 0, 1)
    )
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert torch.equal(network.stem_norm.running_mean, before)
    quiet, nothing = make_network(dropout=0.0, survival_prob=1.0), augment.RandAugment(0)
    torch.testing.assert_close(pseudo_label.predict(quiet, pool, noise=nothing),
                               pseudo_label.predict(quiet, pool))


# ------------------------------------------------------------------ select


def slow_select(confidence, label, num_classes, threshold, per_class, seed, balance):
    """The same choice in the plainest way: lists, and a sort of everything."""
    random, chosen = np.random.default_rng(seed), []
    for number in range(num_classes):
        images = [i for i in range(len(label)) if label[i] == number and confidence[i] > threshold]
        images.sort(key=lambda i: (-confidence[i], i))
        if not balance:
            chosen += images
            continue
        images = images[:per_class]
        if not images:
            continue
        once_more = random.permutation(len(images))[: per_class % len(images)].tolist()
        for place, image in enumerate(images):
            chosen += [image] * (per_class // len(images) + (place in once_more))
    return chosen


@st.composite
def labelled_pools(draw):
    """Confidences and labels: often equal ones, few images, empty classes."""
    count, classes = draw(st.integers(0, 60)), draw(st.integers(1, 6))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    levels = draw(st.sampled_from([1, 2, 5, 2**30]))
    kind = draw(st.sampled_from([np.float32, np.float64]))
    confidence = (random.integers(0, levels + 1, count) / levels).astype(kind)
    used = random.permutation(classes)[: draw(st.integers(1, classes))]
    return confidence, random.choice(used, count).astype(np.int16), classes


@settings(max_examples=2000, deadline=None)
@given(labelled_pools(), st.sampled_from([0.0, 0.3, 0.5, 0.9]), st.integers(1, 15),
       st.integers(0, 3), st.booleans(), st.sampled_from([1, 7, 2**22]))
def test_selection_equals_a_slow_reference(pool, threshold, per_class, seed, balance, block):
    confidence, label, classes = pool
    with mock.patch.object(pseudo_label, "BLOCK", block):
        index = pseudo_label.select(
            confidence, label, classes, threshold, per_class, seed, balance
        )
    assert index.dtype == np.int64
    # As numbers of one type: 0.3 is not the same in float32.
    threshold = confidence.dtype.type(threshold)
    assert index.tolist() == slow_select(
        confidence, label, classes, threshold, per_class, seed, balance
    )


@settings(max_examples=200, deadline=None)
@given(labelled_pools(), st.integers(1, 200))
def test_no_image_comes_much_more_often_than_another_of_its_class(pool, per_class):
    confidence, label, classes = pool
    index = pseudo_label.select(confidence, label, classes, 0.3, per_class)
    for number in range(classes):
        copies = collections.Counter(index[label[index] == number].tolist()).values()
        if copies:
            share = per_class / len(copies)
            assert sum(copies) == per_class
            assert set(copies) <= {int(np.floor(share)), int(np.ceil(share))}


def test_confidence_must_exceed_the_threshold_strictly():
    index = pseudo_label.select(np.array([0.3, 0.31, 0.29]), np.zeros(3, int), 1, 0.3, 1)
    assert index.tolist() == [1]


def test_the_papers_numbers_are_the_defaults():
    index = pseudo_label.select(np.array([0.9, 0.2]), np.array([0, 0]), 1)
    assert index.tolist() == [0] * 130_000


def test_a_class_without_candidates_is_left_out_and_does_not_hang():
    index = pseudo_label.select(np.array([0.9, 0.8]), np.array([2, 2]), 4, per_class=3)
    assert set(index.tolist()) == {0, 1} and len(index) == 3
    assert len(pseudo_label.select(np.array([0.1]), np.array([0]), 4, per_class=3)) == 0


def test_which_images_are_duplicated_is_random_and_follows_the_seed():
    confidence, label = np.linspace(0.5, 0.9, 10), np.zeros(10, int)
    picks = {tuple(pseudo_label.select(confidence, label, 1, per_class=13, seed=seed))
             for seed in range(10)}
    assert len(picks) > 5


def test_without_balancing_every_confident_image_comes_once():
    confidence, label = np.array([0.9, 0.2, 0.5, 0.8]), np.array([0, 0, 0, 1])
    index = pseudo_label.select(confidence, label, 2, per_class=2, balance=False)
    assert sorted(index.tolist()) == [0, 2, 3]


def test_a_broken_confidence_is_an_error_that_names_the_image():
    with pytest.raises(ValueError, match="image 1 is NaN"):
        pseudo_label.select(np.array([0.5, np.nan]), np.zeros(2, int), 1)


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_that_is_no_class_is_an_error(label):
    with pytest.raises(ValueError, match="not of 3 classes"):
        pseudo_label.select(np.array([0.5, 0.9]), np.array([0, label]), 3)


# ------------------------------------------------------------------ targets


def test_soft_targets_are_the_teachers_distribution():
    probabilities = torch.rand(5, 4).softmax(1)
    assert torch.equal(pseudo_label.make_targets(probabilities), probabilities)


def test_hard_targets_are_one_hot_at_the_largest():
    targets = pseudo_label.make_targets(torch.tensor([[0.2, 0.5, 0.3]]), "hard")
    assert targets.tolist() == [[0, 1, 0]]


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_temperature_is_that_of_the_logits(temperature):
    logits = torch.randn(6, 5)
    targets = pseudo_label.make_targets(logits.softmax(1), "soft", temperature)
    torch.testing.assert_close(targets, (logits / temperature).softmax(1))


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="soft or hard"):
        pseudo_label.make_targets(torch.ones(1, 2), "firm")


# ------------------------------------------------------------------ a labelled pool


def label(network, pool, out, **options):
    options = {"image_size": 32, "threshold": 0.05, "per_class": 6, "progress": None} | options
    return pseudo_label.label(network, pool, out, **options)


def assert_same_labels(labels, expected):
    for name in ("index", "targets", "selection"):
        assert np.array_equal(getattr(labels, name), getattr(expected, name)), name
    assert labels.counts == expected.counts and labels.per_class == expected.per_class
    assert labels.top1 == expected.top1


def test_the_selected_images_come_once_and_the_selection_repeats_them(network, pool, tmp_path):
    labels = label(network, pool, tmp_path / "labels", per_class=9)
    confidence, guess = pseudo_label.predict(network, pool).max(1)
    expected = pseudo_label.select(confidence.numpy(), guess.numpy(), 10, 0.05, 9)
    assert np.array_equal(labels.index, np.unique(expected))
    assert np.array_equal(labels.index[labels.selection], expected)


@pytest.mark.parametrize("options", [{}, {"temperature": 0.5}, {"kind": "hard"}])
def test_stored_targets_are_those_of_the_selected_images(network, pool, tmp_path, options):
    labels = label(network, pool, tmp_path / "labels", **options)
    expected = pseudo_label.make_targets(pseudo_label.predict(network, pool), **options)
    assert labels.targets.dtype == np.float16
    assert np.array_equal(labels.targets, expected.half().numpy()[labels.index])


def test_counts_say_what_became_of_the_images_in_all_and_by_class(network, pool, tmp_path):
    confidence, guess = (values.numpy() for values in pseudo_label.predict(network, pool).max(1))
    threshold = float(np.median(confidence))
    labels = label(network, pool, tmp_path / "labels", threshold=threshold)
    counts = {"pool": len(pool), "confident": int((confidence > threshold).sum()),
              "unique": len(labels.index), "balanced": len(labels.selection)}
    assert 0 < counts["unique"] < counts["confident"] < counts["pool"]
    assert labels.counts == counts | {
        "of_no_class": int((pool.labels.numpy()[labels.index] == data.NO_CLASS).sum())}
    assert {stage: sum(numbers) for stage, numbers in labels.per_class.items()} == counts
    assert labels.per_class["pool"] == np.bincount(guess, minlength=10).tolist()
    assert set(labels.per_class["balanced"]) == {0, 6}


def test_accuracy_of_the_labels_is_measured_on_images_that_have_a_class(network, pool, tmp_path):
    labels = label(network, pool, tmp_path / "labels")
    guess, truth = pseudo_label.predict(network, pool).argmax(1).numpy(), pool.labels.numpy()
    used = [i for i in labels.index if truth[i] >= 0]
    assert labels.top1 == pytest.approx(100 * np.mean([guess[i] == truth[i] for i in used]))
    unknown = dataclasses.replace(pool, labels=torch.full_like(pool.labels, data.UNKNOWN))
    assert label(network, unknown, tmp_path / "unknown").top1 is None


def test_a_class_without_any_candidate_is_reported_by_name(network, pool, tmp_path, capsys):
    labels = label(network, pool, tmp_path / "labels")
    empty = [pool.classes[n] for n, count in enumerate(labels.per_class["balanced"]) if not count]
    assert empty and ", ".join(empty) in capsys.readouterr().out


def test_a_better_teacher_labels_the_images_of_earlier_labels_again(network, pool, tmp_path):
    earlier = label(network, pool, tmp_path / "earlier")
    network.classifier.weight.data *= -1
    labels = label(network, pool, tmp_path / "labels", images_of=tmp_path / "earlier")
    assert np.array_equal(labels.index, earlier.index)
    assert np.array_equal(labels.selection, earlier.selection)
    probabilities = pseudo_label.predict(network, pool)[torch.tensor(labels.index)]
    assert np.array_equal(labels.targets, probabilities.half().numpy())
    truth = pool.labels[torch.tensor(labels.index)]
    right = (probabilities.argmax(1) == truth)[truth >= 0]
    assert labels.top1 == pytest.approx(100 * right.double().mean().item()) != earlier.top1
    with pytest.raises(data.InputError, match="images_of"):
        label(network, pool, tmp_path / "labels")


def test_a_noised_teacher_is_part_of_the_settings(network, pool, tmp_path):
    clean = label(network, pool, tmp_path / "clean")
    noise = augment.RandAugment(2, 9)
    noised = label(network, pool, tmp_path / "noised", noise=noise)
    assert not np.array_equal(clean.targets, noised.targets)
    assert_same_labels(label(network, pool, tmp_path / "again", noise=noise), noised)
    with pytest.raises(data.InputError, match="noise"):
        label(network, pool, tmp_path / "clean", noise=noise)


# ------------------------------------------------------------------ what is refused


def test_stale_or_foreign_labels_are_refused(network, pool, tmp_path):
    label(network, pool, tmp_path / "labels")
    label(network, pool, tmp_path / "labels")  # the same: read again
    with pytest.raises(data.InputError, match="threshold"):
        label(network, pool, tmp_path / "labels", threshold=0.06)
    with pytest.raises(data.InputError, match="pool"):
        label(network, pool.subset(torch.arange(50)), tmp_path / "labels")
    other = dataclasses.replace(pool, classes=pool.classes[::-1])
    with pytest.raises(data.InputError, match="classes"):
        label(network, other, tmp_path / "labels")
    network.classifier.weight.data += 1
    with pytest.raises(data.InputError, match="teacher"):
        label(network, pool, tmp_path / "labels")


def test_labels_that_were_begun_with_other_settings_are_not_mixed(network, pool, tmp_path):
    assert label(network, pool, tmp_path / "labels", shard=(1, 2), batch_size=20) is None
    with pytest.raises(data.InputError, match="temperature 1.0, not 0.5"):
        label(network, pool, tmp_path / "labels", temperature=0.5, batch_size=20)


def test_labels_are_complete_only_with_labels_json(network, pool, tmp_path):
    label(network, pool, tmp_path / "labels")
    (tmp_path / "labels" / "labels.json").unlink()
    with pytest.raises(data.InputError, match="no complete pseudo labels"):
        pseudo_label.read_labels(tmp_path / "labels")


@pytest.mark.parametrize("name", ["index", "targets", "selection"])
def test_a_missing_short_or_foreign_array_is_refused(name, tmp_path):
    pool, folder = small_pool(), tmp_path / "labels"
    label(Linear(), pool, folder, image_size=8)
    path, whole = folder / f"{name}.npy", np.load(folder / f"{name}.npy")
    for damage in (path.unlink, lambda: path.write_bytes(b"\x93NUMPY"),
                   lambda: np.save(path, whole[:-1])):
        damage()
        with pytest.raises(data.InputError, match="no complete pseudo labels"):
            pseudo_label.read_labels(folder)
    np.save(path, whole)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(data.InputError, match="no complete pseudo labels"):
        pseudo_label.read_labels(folder)


def test_a_teacher_that_is_sure_of_nothing_is_an_error(network, pool, tmp_path):
    with pytest.raises(data.InputError, match="confidence over 0.999"):
        label(network, pool, tmp_path / "labels", threshold=0.999)


def test_a_teacher_that_answers_nan_is_an_error_that_names_the_image(tmp_path):
    teacher = Linear()
    teacher.weight.data[0] = float("nan")
    with pytest.raises(data.InputError, match="image 0 is NaN"):
        label(teacher, small_pool(), tmp_path / "labels", image_size=8)


@pytest.mark.parametrize(("name", "value"), [
    ("per_class", 0), ("temperature", 0.0), ("temperature", float("nan")), ("threshold", 1.0),
    ("threshold", float("nan")), ("seed", -1), ("batch_size", 0), ("workers", -1),
    ("shard", (2, 2)),
])
def test_impossible_settings_are_refused(name, value, tmp_path):
    with pytest.raises(data.InputError, match=f"{name} .*: give"):
        label(Linear(), small_pool(), tmp_path / "labels", **{"image_size": 8, name: value})
    assert not (tmp_path / "labels").exists()


@pytest.mark.parametrize("written", range(10))  # settings, arrays, marks, labels.json
def test_a_full_disk_is_one_clear_line_and_the_same_command_continues(written, tmp_path):
    teacher, pool, folder = Linear(), small_pool(), tmp_path / "labels"
    effects = [None] * written + [OSError(28, "No space left on device")]
    with mock.patch("os.fsync", side_effect=effects):
        with pytest.raises(data.InputError, match="No space left on device.*make room"):
            label(teacher, pool, folder, image_size=8)
    assert_same_labels(label(teacher, pool, folder, image_size=8),
                       label(teacher, pool, tmp_path / "other", image_size=8))


def test_a_place_that_cannot_be_written_to_is_one_clear_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(data.InputError, match="file/labels: not made"):
        label(Linear(), small_pool(), tmp_path / "file" / "labels", image_size=8)


# ------------------------------------------------------------------ interrupted, and shared


SMALL = {"image_size": 8, "batch_size": 10, "per_class": 12}  # chunks of ten images


@pytest.fixture
def whole(tmp_path):
    """Labels by one process that nobody stopped."""
    return label(Linear(), small_pool(), tmp_path / "whole", **SMALL)


@pytest.mark.parametrize("noise", [None, augment.RandAugment(2, 9)])
def test_shards_in_any_order_give_the_labels_of_a_single_run(noise, tmp_path, capsys):
    options = SMALL | {"noise": noise}
    whole = label(Linear(), small_pool(), tmp_path / "whole", **options)
    teacher, folder = Linear(), tmp_path / "labels"

    def run(number):
        return label(teacher, small_pool(), folder, shard=(number, 3), **options)

    for number, missing in (2, "0, 1"), (0, "1"):
        assert run(number) is None
        assert f"pass 1 of shard {number}/3 is done, that of {missing} is missing" \
            in capsys.readouterr().out
    assert run(1) is None  # the last of pass 1 goes on to pass 2
    assert "pass 2 of shard 1/3 is done, that of 0, 2 is missing" in capsys.readouterr().out
    assert run(2) is None
    labels = run(0)
    assert_same_labels(labels, whole)
    assert_same_labels(run(1), whole)
    batches = -(-len(small_pool()) // 10) + -(-len(labels.index) // 10)
    assert len(teacher.shown) == batches  # no image twice


def test_shards_that_run_at_the_same_time_do_not_disturb_each_other(whole, tmp_path):
    process, out = multiprocessing.get_context("fork"), tmp_path / "labels"
    for _ in range(4):  # pass 1, pass 2, and each time once more if all ended at once
        jobs = [process.Process(target=label, args=(Linear(), small_pool(), out),
                                kwargs=SMALL | {"shard": (number, 3)}) for number in range(3)]
        for job in jobs:
            job.start()
        for job in jobs:
            job.join()
            assert job.exitcode == 0
    assert_same_labels(pseudo_label.read_labels(out), whole)
    assert sorted(path.name for path in out.iterdir()) == [
        "class.npy", "confidence.npy", "index.npy", "labels.json", "selection.npy",
        "target_class.npy", "targets.npy"]


def killed_at(event, pool, out, log):
    """Label in this process, and kill it at the n-th thing it does with a file below `out`."""
    seen = 0

    def watch(name, arguments):
        nonlocal seen
        if str(out) in str(arguments[:1]):
            seen += 1
            if seen == event:
                os.kill(os.getpid(), signal.SIGKILL)

    def fsync(number, real=os.fsync):  # the one thing that Python's auditing does not tell of
        watch("fsync", (out,))
        real(number)

    def predict(network, images, *arguments, real=pseudo_label.predict, **options):
        numbers, marks = images.pixels[:, 0, 0, 0].tolist(), os.listdir(out / "progress")
        with open(log, "a") as file:
            file.write(json.dumps([options["seed"], numbers, marks]) + "\n")
        return real(network, images, *arguments, **options)

    os.fsync, pseudo_label.predict = fsync, predict
    sys.addaudithook(watch)
    label(Linear(), pool, out, **SMALL)


def test_killed_again_and_again_it_ends_as_if_nothing_had_happened(whole, tmp_path):
    out, log = tmp_path / "labels", tmp_path / "log"
    process = multiprocessing.get_context("fork")
    for kills in range(1, 100):  # first at the first event, then at the second, ...
        labelling = process.Process(target=killed_at, args=(kills, small_pool(), out, log))
        labelling.start()
        labelling.join()
        if labelling.exitcode == 0:
            break
        assert labelling.exitcode == -signal.SIGKILL
        if not (out / "labels.json").exists():
            with pytest.raises(data.InputError, match="no complete"):
                pseudo_label.read_labels(out)
    assert kills > 10
    assert_same_labels(pseudo_label.read_labels(out), whole)
    labelled = collections.defaultdict(set)
    for line in log.read_text().splitlines():
        (_, number, first), images, marks = json.loads(line)
        labelled[number].update(images)
        assert f"pass {number}-{first // 10:06}" not in marks  # what is done is not done again
    assert labelled == {1: set(range(60)), 2: set(whole.index.tolist())}


TEACHER = {"arch": "0.25x0.5", "image_size": 32, "small_images": False, "dropout": 0.5,
           "survival_prob": 0.5, "rand_augment_operations": 1, "rand_augment_magnitude": 5}


@pytest.fixture
def command(network, pool, tmp_path):
    """The command line for a teacher and a folder of 60 images, without --out."""
    meta = json.dumps({"config": TEACHER, "classes": pool.classes, "name": "teacher"})
    torch.save({"meta": meta, "model": network.state_dict()}, tmp_path / "teacher.pt")
    (tmp_path / "pool").mkdir()
    for number, image in enumerate(pool.pixels):
        file = tmp_path / "pool" / f"{number:02}.png"
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file)
    return ["--teacher", str(tmp_path / "teacher.pt"), "--unlabeled", str(tmp_path / "pool"),
            "--threshold", "0.05", "--batch-size", "10", "--device", "cpu"]


def test_two_processes_of_torchrun_give_the_labels_of_one(command, tmp_path, capsys):
    assert pseudo_label.main([*command, "--out", str(tmp_path / "one")]) == 0
    assert " of 60 images kept" in capsys.readouterr().out
    result = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         "pseudo_label.py", *command, "--out", str(tmp_path / "two")],
        cwd=ROOT, capture_output=True, text=True,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count("images kept") == 1
    assert_same_labels(*(pseudo_label.read_labels(tmp_path / name) for name in ("two", "one")))


def test_shards_of_the_command_line_say_what_is_missing(command, tmp_path, capsys):
    shards = [[*command, "--out", str(tmp_path / "labels"), "--shard", f"{n}/2"] for n in (0, 1)]
    for shard, said in (0, "of 1 is missing"), (1, "of 0 is missing"), (0, "images kept"):
        assert pseudo_label.main(shards[shard]) == 0
        assert said in capsys.readouterr().out
    assert pseudo_label.main([*command, "--out", str(tmp_path / "labels"), "--seed", "1"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("pseudo_label.py: ") and error.count("\n") == 1


def test_broken_and_held_out_images_of_the_pool_are_never_chosen(command, pool, tmp_path, capsys):
    for name, file in ("held", "000.png"), ("pool", "copy.png"):  # an image of the validation set
        (tmp_path / name).mkdir(exist_ok=True)
        Image.new("RGB", (40, 30), "red").save(tmp_path / name / file)
    (tmp_path / "pool" / "05.png").write_bytes(b"cut off")
    arguments = [*command, "--threshold", "0", "--no-balance", "--out", str(tmp_path / "labels"),
                 "--held-out", str(tmp_path / "held")]
    assert pseudo_label.main(arguments) == 0
    labels = pseudo_label.read_labels(tmp_path / "labels")
    files = data.read_pool(tmp_path / "pool", pool.classes).files
    chosen = {Path(files[i]).name for i in labels.index}
    assert chosen == {f"{number:02}.png" for number in range(60) if number != 5}
    assert labels.counts["pool"] == 59 and labels.counts["left_out"] == 2
    said = capsys.readouterr().out
    assert "05.png" in said and "copy.png" in said
    assert pseudo_label.main(arguments[:-2]) == 2  # other images held out: other labels
    (tmp_path / "held" / "001.png").write_bytes(b"no image")
    assert pseudo_label.main(arguments) == 2
    assert "001.png" in capsys.readouterr().err


@pytest.mark.parametrize(("flag", "value"), [
    ("--threshold", ["0.5"]), ("--per-class", ["3"]), ("--seed", ["1"]), ("--no-balance", []),
    ("--held-out", ["pool"]),
])
def test_images_that_are_chosen_already_are_not_chosen_anew(flag, value, command, tmp_path, capsys):
    command = [text for text in command if text not in ("--threshold", "0.05")]
    arguments = [*command, "--out", str(tmp_path / "labels"), "--images-of", str(tmp_path / "old")]
    assert pseudo_label.main([*arguments, flag, *value]) == 2
    named = f"{flag.replace('no-', '')} does not go with --images-of"
    assert named in capsys.readouterr().err
    assert not (tmp_path / "labels").exists()


def test_names_of_files_need_not_be_utf8(command, tmp_path, capsys):
    (tmp_path / "pool" / os.fsdecode(b"caf\xe9.png")).write_bytes(b"cut off")
    assert pseudo_label.main([*command, "--out", str(tmp_path / "labels")]) == 0
    assert "caf\\udce9.png" in capsys.readouterr().out


def test_the_noised_teacher_of_the_command_line_has_the_noise_of_its_training(command, tmp_path):
    assert pseudo_label.main([*command, "--out", str(tmp_path / "out"), "--noised-teacher"]) == 0
    described = json.loads((tmp_path / "out" / "labels.json").read_text())
    assert described["settings"]["noise"] == [1, 5]


XLA = """
import sys
sys.path[:0] = [{root!r}, {tests!r}]
import device
xla = device.choose("xla")
import torch_xla.debug.metrics as metrics
import test_pseudo_label as tests

def compilations():
    return metrics.metric_data("CompileTime")[0] if metrics.metric_data("CompileTime") else 0

def finish_step(place, real=device.finish_step):
    before = compilations()
    real(place)
    steps.append(compilations() - before)

steps, device.finish_step = [], finish_step
teacher = tests.Linear().to(xla)
tests.label(teacher, tests.small_pool(), {out!r}, device=xla, **tests.SMALL)
print(steps)
"""


def test_two_virtual_xla_devices_label_as_the_cpu_does_and_compile_once(whole, tmp_path):
    pytest.importorskip("torch_xla")
    code = XLA.format(root=str(ROOT), tests=str(ROOT / "tests"), out=str(tmp_path / "xla"))
    environment = os.environ | {"PJRT_DEVICE": "CPU", "CPU_NUM_DEVICES": "2"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True,
                            text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    steps = json.loads(result.stdout.splitlines()[-1])
    assert len(steps) == 10 and sum(steps) == 1  # batches of both passes, one graph
    labels = pseudo_label.read_labels(tmp_path / "xla")
    assert np.array_equal(labels.index, whole.index)
    assert np.array_equal(labels.selection, whole.selection)
    np.testing.assert_allclose(labels.targets, whole.targets, rtol=2e-3, atol=1e-6)
