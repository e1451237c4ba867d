"""Section 3.1 on pseudo labels: a clean teacher, the filter, the balance, soft and hard targets."""

import collections
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from doubles import (
    SMALL,
    Linear,
    assert_same_labels,
    checkpoint_of,
    label,
    make_network,
    small_pool,
    write_teacher,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_ranking import labelled_pools

import augment
import pseudo_label
from pseudo_label import Labelling
from support import InputError, cli, datasets, label_store, ranking
from support.images import NO_CLASS, UNKNOWN, ImageSet

ROOT = Path(__file__).parent.parent


@pytest.fixture
def network():
    return make_network()


@pytest.fixture
def pool():
    return datasets.demo(0, unlabeled=60, val_per_class=1, test_per_class=1).unlabeled


@pytest.fixture
def teacher(network, pool):
    return checkpoint_of(network, pool)


# ---- predict ----


def test_probabilities_are_the_softmax_of_the_clean_network(network, pool):
    probabilities = pseudo_label.predict(network.train(), pool, batch_size=17)
    assert network.training and network.stem_norm.training  # as before
    with torch.no_grad():
        expected = network.eval()(augment.normalize(pool.pixels)).softmax(1)
    torch.testing.assert_close(probabilities, expected)


def test_the_teacher_sees_the_images_of_memory_as_they_are():
    teacher, pool = Linear(), small_pool(20)
    pseudo_label.predict(teacher, pool, batch_size=20)
    assert torch.equal(teacher.shown[0], augment.normalize(pool.pixels))


def test_the_teacher_sees_the_central_square_of_files(tmp_path):
    pixels = np.random.default_rng(0).integers(256, size=(8, 12, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    pool = ImageSet(torch.tensor([-1]), ("a", "b"), files=(str(tmp_path / "image.png"),))
    teacher = Linear(classes=2)
    pseudo_label.predict(teacher, pool, image_size=8, workers=0)
    square = torch.tensor(pixels[:, 2:10].transpose(2, 0, 1))
    assert torch.equal(teacher.shown[0][0], augment.normalize(square[None])[0])


def test_the_last_batch_holds_what_is_left_and_the_size_of_batches_changes_nothing():
    teacher, pool = Linear(), small_pool(20)
    probabilities = pseudo_label.predict(teacher, pool, batch_size=8)
    assert [len(batch) for batch in teacher.shown] == [8, 8, 4]
    torch.testing.assert_close(probabilities, pseudo_label.predict(teacher, pool))


@pytest.mark.parametrize("side", [8, 256])
def test_batches_of_large_images_are_smaller(side):
    teacher = Linear(side, classes=2)
    pseudo_label.predict(teacher, torch.zeros(130, 3, side, side, dtype=torch.uint8))
    assert [len(batch) for batch in teacher.shown] == {8: [130], 256: [125, 5]}[side]


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


# ---- select ----


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


@settings(max_examples=300, deadline=None)
@given(labelled_pools(), st.sampled_from([0.0, 0.3, 0.5, 0.9]), st.integers(1, 15),
       st.integers(0, 3), st.booleans(), st.sampled_from([1, 7, 2**22]))
def test_selection_equals_a_slow_reference(pool, threshold, per_class, seed, balance, block):
    confidence, label, classes = pool
    with mock.patch.object(ranking, "BLOCK", block):
        chosen = pseudo_label.select(
            confidence, label, classes, threshold, per_class, seed, balance
        )
    assert chosen.dtype == np.int64
    # As numbers of one type: 0.3 is not the same in float32.
    threshold = confidence.dtype.type(threshold)
    assert chosen.tolist() == slow_select(
        confidence, label, classes, threshold, per_class, seed, balance
    )


@settings(max_examples=200, deadline=None)
@given(labelled_pools(), st.integers(1, 200))
def test_no_image_comes_much_more_often_than_another_of_its_class(pool, per_class):
    confidence, label, classes = pool
    chosen = pseudo_label.select(confidence, label, classes, 0.3, per_class)
    for number in range(classes):
        copies = collections.Counter(chosen[label[chosen] == number].tolist()).values()
        if copies:
            share = per_class / len(copies)
            assert sum(copies) == per_class
            assert set(copies) <= {int(np.floor(share)), int(np.ceil(share))}


def test_the_papers_numbers_are_the_defaults():
    chosen = pseudo_label.select(np.array([0.9, 0.2]), np.array([0, 0]), 1)
    assert chosen.tolist() == [0] * 130_000


def test_a_class_without_candidates_is_left_out_and_does_not_hang():
    chosen = pseudo_label.select(np.array([0.9, 0.8]), np.array([2, 2]), 4, per_class=3)
    assert set(chosen.tolist()) == {0, 1} and len(chosen) == 3
    assert len(pseudo_label.select(np.array([0.1]), np.array([0]), 4, per_class=3)) == 0


def test_which_images_are_duplicated_is_random_and_follows_the_seed():
    confidence, label = np.linspace(0.5, 0.9, 10), np.zeros(10, int)
    picks = {tuple(pseudo_label.select(confidence, label, 1, per_class=13, seed=seed))
             for seed in range(10)}
    assert len(picks) > 5


def test_without_balancing_every_confident_image_comes_once():
    confidence, label = np.array([0.9, 0.2, 0.5, 0.8]), np.array([0, 0, 0, 1])
    chosen = pseudo_label.select(confidence, label, 2, per_class=2, balance=False)
    assert sorted(chosen.tolist()) == [0, 2, 3]


def test_a_broken_confidence_is_an_error_that_names_the_image():
    with pytest.raises(ValueError, match="image 1 is NaN"):
        pseudo_label.select(np.array([0.5, np.nan]), np.zeros(2, int), 1)


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_that_is_no_class_is_an_error(label):
    with pytest.raises(ValueError, match="do not fit 3 classes"):
        pseudo_label.select(np.array([0.5, 0.9]), np.array([0, label]), 3)


# ---- make_targets ----


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


# ---- A labelled pool ----


def test_the_unique_images_come_once_and_the_balanced_ones_repeat_them(network, pool, tmp_path):
    labels = label(checkpoint_of(network, pool), pool, tmp_path / "labels", per_class=9)
    confidence, guess = pseudo_label.predict(network, pool).max(1)
    expected = pseudo_label.select(confidence.numpy(), guess.numpy(), 10, 0.05, 9)
    assert np.array_equal(labels.unique, np.unique(expected))
    assert np.array_equal(labels.unique[labels.balanced], expected)
    assert torch.equal(labels.images.pixels, pool.pixels[torch.tensor(labels.unique)])


@pytest.mark.parametrize("options", [{}, {"temperature": 0.5}, {"kind": "hard"}])
def test_stored_targets_are_those_of_the_selected_images(network, pool, tmp_path, options):
    labels = label(checkpoint_of(network, pool), pool, tmp_path / "labels", **options)
    expected = pseudo_label.make_targets(pseudo_label.predict(network, pool), **options)
    assert labels.targets.dtype == np.float16
    assert np.array_equal(labels.targets, expected.half().numpy()[labels.unique])
    assert labels.kind == options.get("kind", "soft")


def test_counts_say_what_became_of_the_images_in_all_and_by_class(network, pool, tmp_path):
    confidence, guess = (values.numpy() for values in pseudo_label.predict(network, pool).max(1))
    threshold = float(np.median(confidence))
    labels = label(checkpoint_of(network, pool), pool, tmp_path / "labels", threshold=threshold)
    counts = {"pool": len(pool), "confident": int((confidence > threshold).sum()),
              "unique": len(labels.unique), "balanced": len(labels.balanced)}
    assert 0 < counts["unique"] < counts["confident"] < counts["pool"]
    assert labels.counts == counts | {
        "of_no_class": int((pool.labels.numpy()[labels.unique] == NO_CLASS).sum())}
    assert {step: sum(numbers) for step, numbers in labels.per_class.items()} == counts
    assert labels.per_class["pool"] == np.bincount(guess, minlength=10).tolist()
    assert set(labels.per_class["balanced"]) == {0, 6}


def test_accuracy_of_the_labels_is_measured_on_images_that_have_a_class(network, pool, tmp_path):
    teacher = checkpoint_of(network, pool)
    labels = label(teacher, pool, tmp_path / "labels")
    guess, truth = pseudo_label.predict(network, pool).argmax(1).numpy(), pool.labels.numpy()
    used = [i for i in labels.unique if truth[i] >= 0]
    assert labels.top1 == pytest.approx(100 * np.mean([guess[i] == truth[i] for i in used]))
    unknown = dataclasses.replace(pool, labels=torch.full_like(pool.labels, UNKNOWN))
    assert label(teacher, unknown, tmp_path / "unknown").top1 is None


def test_a_class_without_any_candidate_is_reported_by_name(teacher, pool, tmp_path, capsys):
    labels = label(teacher, pool, tmp_path / "labels")
    empty = [pool.classes[n] for n, count in enumerate(labels.per_class["balanced"]) if not count]
    assert empty and ", ".join(empty) in capsys.readouterr().out


def test_a_better_teacher_labels_the_images_of_earlier_labels_again(network, pool, tmp_path):
    earlier = label(checkpoint_of(network, pool), pool, tmp_path / "earlier")
    network.classifier.weight.data *= -1
    teacher = checkpoint_of(network, pool)
    labels = label(teacher, pool, tmp_path / "labels", images_of=tmp_path / "earlier")
    assert np.array_equal(labels.unique, earlier.unique)
    assert np.array_equal(labels.balanced, earlier.balanced)
    probabilities = pseudo_label.predict(network, pool)[torch.tensor(labels.unique)]
    assert np.array_equal(labels.targets, probabilities.half().numpy())
    truth = pool.labels[torch.tensor(labels.unique)]
    right = (probabilities.argmax(1) == truth)[truth >= 0]
    assert labels.top1 == pytest.approx(100 * right.double().mean().item()) != earlier.top1
    counts = probabilities.argmax(1).bincount(minlength=len(pool.classes)).tolist()
    assert labels.per_class["unique"] == counts != earlier.per_class["unique"]
    with pytest.raises(InputError, match="images_of"):
        label(teacher, pool, tmp_path / "labels")


def test_a_noised_teacher_is_part_of_the_settings(teacher, pool, tmp_path):
    clean = label(teacher, pool, tmp_path / "clean")
    noised = label(teacher, pool, tmp_path / "noised", noised_teacher=True)
    assert not np.array_equal(clean.targets, noised.targets)
    assert_same_labels(label(teacher, pool, tmp_path / "again", noised_teacher=True), noised)
    with pytest.raises(InputError, match="noise"):
        label(teacher, pool, tmp_path / "clean", noised_teacher=True)


def test_by_default_a_class_gets_its_share_of_the_pool(tmp_path):
    labels = label(Linear(), small_pool(61), tmp_path / "labels", per_class=None)
    assert set(labels.per_class["balanced"]) == {61 // 4}


def test_a_teacher_that_is_sure_of_nothing_is_an_error(teacher, pool, tmp_path):
    with pytest.raises(InputError, match="confidence over 0.999"):
        label(teacher, pool, tmp_path / "labels", threshold=0.999)


def test_a_teacher_that_answers_nan_is_an_error_that_names_the_image(tmp_path):
    teacher = Linear()
    teacher.weight.data[0] = float("nan")
    with pytest.raises(InputError, match="image 0 is NaN"):
        label(teacher, small_pool(), tmp_path / "labels")


@pytest.mark.parametrize(("name", "value"), [
    ("per_class", 0), ("temperature", 0.0), ("temperature", float("nan")), ("threshold", 1.0),
    ("threshold", float("nan")), ("kind", "firm"),
])
def test_impossible_settings_are_refused(name, value):
    with pytest.raises(InputError, match=f"--{name.replace('_', '-')} .*: (give|use)"):
        Labelling(**{name: value})


# ---- The command line ----


@pytest.fixture
def command(pool, tmp_path):
    """The command line for a teacher and a folder of 60 images, without --out."""
    write_teacher(tmp_path / "teacher.pt")
    (tmp_path / "pool").mkdir()
    for number, image in enumerate(pool.pixels):
        file = tmp_path / "pool" / f"{number:02}.png"
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file)
    return ["--teacher", str(tmp_path / "teacher.pt"), "--unlabeled", str(tmp_path / "pool"),
            "--threshold", "0.05", "--batch-size", "10", "--device", "cpu"]


def run(*arguments):
    return cli.run(pseudo_label.main, [str(argument) for argument in arguments])


@pytest.fixture
def read(pool, tmp_path):
    """Read a folder of labels of the pool's folder."""
    def read(name):
        files = datasets.read_pool(tmp_path / "pool", pool.classes)
        return label_store.read(tmp_path / name, files)

    return read


@pytest.mark.parametrize(("flag", "value"), [
    ("--threshold", "nan"), ("--seed", "-1"), ("--batch-size", "0"), ("--shard", "2/2")])
def test_impossible_flags_are_refused(flag, value, command, tmp_path, capsys):
    assert run(*command, "--out", tmp_path / "labels", f"{flag}={value}") == 2
    error = capsys.readouterr().err
    assert error.startswith(f"pseudo_label.py: {flag} {value}: give ") and error.count("\n") == 1
    assert not (tmp_path / "labels").exists()


def test_two_processes_of_torchrun_give_the_labels_of_one(command, read, tmp_path, capsys):
    assert run(*command, "--out", tmp_path / "one") == 0
    counts = json.loads((tmp_path / "one" / "labels.json").read_text())["counts"]
    assert (f"{counts['unique']} of 60 images kept, of {counts['confident']} over the threshold; "
            f"counts by class: {tmp_path}/one/labels.json\n") in capsys.readouterr().out
    result = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         "pseudo_label.py", *command, "--out", str(tmp_path / "two")],
        cwd=ROOT, capture_output=True, text=True,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count("images kept") == 1
    assert_same_labels(read("two"), read("one"))


def test_shards_of_the_command_line_say_what_is_missing(command, tmp_path, capsys):
    shards = [[*command, "--out", tmp_path / "labels", "--shard", f"{n}/2"] for n in (0, 1)]
    for shard, said in (0, "of 1 is missing"), (1, "of 0 is missing"), (0, "images kept"):
        assert run(*shards[shard]) == 0
        assert said in capsys.readouterr().out
    assert run(*command, "--out", tmp_path / "labels", "--seed", "1") == 2
    error = capsys.readouterr().err
    assert error.startswith("pseudo_label.py: ") and error.count("\n") == 1


def test_broken_and_held_out_images_of_the_pool_are_never_chosen(
        command, read, pool, tmp_path, capsys):
    for name, file in ("held", "000.png"), ("pool", "copy.png"):  # an image of the validation set
        (tmp_path / name).mkdir(exist_ok=True)
        Image.new("RGB", (40, 30), "red").save(tmp_path / name / file)
    (tmp_path / "pool" / "05.png").write_bytes(b"cut off")
    (tmp_path / "pool" / "gone.png").symlink_to("nowhere.png")
    arguments = [*command, "--threshold", "0", "--no-balance", "--out", tmp_path / "labels",
                 "--held-out", tmp_path / "held"]
    assert run(*arguments) == 0
    labels = read("labels")
    files = datasets.read_pool(tmp_path / "pool", pool.classes).files
    chosen = {Path(files[i]).name for i in labels.unique}
    assert chosen == {f"{number:02}.png" for number in range(60) if number != 5}
    assert {Path(file).name for file in labels.images.files} == chosen
    assert labels.counts["pool"] == 59 and labels.counts["left_out"] == 3
    said = capsys.readouterr().out
    assert all(name in said for name in ("05.png", "copy.png", "gone.png"))
    assert run(*arguments[:-2]) == 2  # other images held out: other labels
    (tmp_path / "held" / "001.png").write_bytes(b"no image")
    assert run(*arguments) == 2
    assert "001.png" in capsys.readouterr().err


def test_a_class_gets_its_share_of_the_images_not_of_all_files(command, read, pool, tmp_path):
    """By default pool / classes each; a pool may hold other files, such as texts beside images."""
    for number in range(40):
        (tmp_path / "pool" / f"{number:02}.json").write_text("{}")
    assert run(*command, "--threshold", "0", "--out", tmp_path / "labels") == 0
    kept = {count for count in read("labels").per_class["balanced"] if count}
    assert kept == {len(pool) // len(pool.classes)}


@pytest.mark.parametrize(("flag", "value"), [
    ("--threshold", ["0.5"]), ("--per-class", ["3"]), ("--seed", ["1"]), ("--no-balance", []),
    ("--held-out", ["pool"]),
])
def test_images_that_are_chosen_already_are_not_chosen_anew(flag, value, command, tmp_path, capsys):
    command = [text for text in command if text not in ("--threshold", "0.05")]
    arguments = [*command, "--out", tmp_path / "labels", "--images-of", tmp_path / "old"]
    assert run(*arguments, flag, *value) == 2
    named = f"{flag.replace('no-', '')} does not go with --images-of"
    assert named in capsys.readouterr().err
    assert not (tmp_path / "labels").exists()


def test_names_of_files_need_not_be_utf8(command, tmp_path, capsys):
    (tmp_path / "pool" / os.fsdecode(b"caf\xe9.png")).write_bytes(b"cut off")
    assert run(*command, "--out", tmp_path / "labels") == 0
    assert "caf\\udce9.png" in capsys.readouterr().out


def test_the_noised_teacher_of_the_command_line_has_the_noise_of_its_training(command, tmp_path):
    noises, real = [], pseudo_label.predict_parts

    def predict_parts(*arguments, **options):
        noises.append((options["noise"].num_ops, options["noise"].magnitude))
        return real(*arguments, **options)

    with mock.patch.object(pseudo_label, "predict_parts", predict_parts):
        assert run(*command, "--out", tmp_path / "out", "--noised-teacher") == 0
    assert set(noises) == {(1, 5)}
    settings = json.loads((tmp_path / "out" / "labels.json").read_text())["settings"]
    assert settings["noised_teacher"] and settings["rand_augment"] == [1, 5]


# ---- XLA ----


XLA = """
import sys
sys.path[:0] = [{root!r}, {tests!r}]
from support import devices
xla = devices.choose("xla")
import torch_xla.debug.metrics as metrics
import doubles

def compilations():
    return metrics.metric_data("CompileTime")[0] if metrics.metric_data("CompileTime") else 0

def finish_step(place, real=devices.finish_step):
    before = compilations()
    real(place)
    steps.append(compilations() - before)

steps, devices.finish_step = [], finish_step
teacher, machine = doubles.Linear().to(xla), devices.Machine(xla)
doubles.label(teacher, doubles.small_pool(), {out!r}, machine, **doubles.SMALL)
print(steps)
"""


def test_two_virtual_xla_devices_label_as_the_cpu_does_and_compile_once(tmp_path):
    pytest.importorskip("torch_xla")
    whole = label(Linear(), small_pool(), tmp_path / "whole", **SMALL)
    code = XLA.format(root=str(ROOT), tests=str(ROOT / "tests"), out=str(tmp_path / "xla"))
    environment = os.environ | {"PJRT_DEVICE": "CPU", "CPU_NUM_DEVICES": "2"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True,
                            text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    steps = json.loads(result.stdout.splitlines()[-1])
    assert len(steps) == 10 and sum(steps) == 1  # batches of both passes, one graph
    labels = label_store.read(tmp_path / "xla", small_pool())
    assert np.array_equal(labels.unique, whole.unique)
    assert np.array_equal(labels.balanced, whole.balanced)
    np.testing.assert_allclose(labels.targets, whole.targets, rtol=2e-3, atol=1e-6)


def test_a_noised_teacher_has_other_chance_for_every_seed_pass_and_part(network, tmp_path):
    """120 copies of an image in chunks of ten, all of them kept."""
    pool = datasets.demo(0, unlabeled=20, val_per_class=1, test_per_class=1).unlabeled
    pool = pool.subset(torch.zeros(120, dtype=torch.long))
    teacher, passes = checkpoint_of(network, pool), []
    for seed in (0, 1):
        folder = tmp_path / str(seed)
        label(teacher, pool, folder, noised_teacher=True, seed=seed, batch_size=10, threshold=0.0,
              balance=False)
        targets = np.load(folder / "targets.npy").astype(np.float32)
        passes += [np.load(folder / "confidence.npy"), targets.max(1)]
    for number, one in enumerate(passes):
        assert np.abs(one[:10] - one[10:20]).max() > 0.01
        for other in passes[:number]:
            assert np.abs(one - other).max() > 0.01


def test_the_command_labels_the_images_of_earlier_labels_again(command, read, tmp_path):
    assert run(*command, "--per-class", "3", "--out", tmp_path / "old") == 0
    flags = [text for text in command if text not in ("--threshold", "0.05")]
    assert run(*flags, "--temperature", "0.5", "--images-of", tmp_path / "old",
                     "--out", tmp_path / "new") == 0
    old, new = read("old"), read("new")
    assert np.array_equal(new.unique, old.unique) and new.counts == old.counts
    assert {key: new.settings[key] for key in ("threshold", "per_class", "temperature")} == {
        "threshold": 0.05, "per_class": 3, "temperature": 0.5}
