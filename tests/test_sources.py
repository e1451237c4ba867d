"""Which images the flags of a command line ask for, and which plan fits them.

Stand-ins are in the place of torchvision's readers of published sets.
"""

import re
import urllib.error
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision
from doubles import planned
from noise_images import images_of, noise, write_classes

import iterate
import train
from support import InputError, cli, datasets, devices, files, label_store, sources
from support.images import UNKNOWN
from support.label_store import PseudoLabels
from support.sources import Source


@pytest.fixture
def own(tmp_path):
    """The flags of 20 labelled, 4 unlabelled and 4 test images in two classes."""
    write_classes(tmp_path / "labeled", ["cat", "dog"], 10)
    write_classes(tmp_path / "test", ["cat", "dog"], 2, first_seed=100)
    write_classes(tmp_path / "pool", ["deep/er"], 4, first_seed=200)
    return Source(*(str(tmp_path / name) for name in ("labeled", "pool", "test")))


def sizes(splits):
    return [len(splits.labeled), len(splits.unlabeled), len(splits.validation), len(splits.test)]


# ---- The images of a loop ----


def choose(source, plan, image_size, seed):
    config = train.TrainConfig(image_size=image_size, seed=seed)
    machine = devices.Machine("cpu", workers=0)
    return sources.choose(source, plan, config, machine, Path("runs"))


def test_without_flags_the_demo_is_drawn_with_the_seed_and_sizes_asked_for():
    source = Source(labels_per_class=1, unlabeled_images=40, val_per_class=2, test_per_class=3)
    splits = choose(source, "demo", 32, 5)
    assert sizes(splits) == [10, 40, 20, 30]
    expected = datasets.demo(5, 1, 40, 2, 3)
    assert splits.unlabeled.pixels.equal(expected.unlabeled.pixels)


@pytest.mark.parametrize("with_val", [True, False])
def test_of_own_labelled_images_only_the_first_of_each_class_are_learned_from(
        own, tmp_path, with_val):
    val = str(write_classes(tmp_path / "val", ["cat", "dog"], 3, first_seed=300))
    splits = choose(replace(own, labels_per_class=4, val=val if with_val else None), "own", 8, 0)
    assert sizes(splits) == [8, 4, 6 if with_val else 2, 4]
    first = [f"labeled/{name}/000{i}.png" for name in ("cat", "dog") for i in range(4)]
    assert [str(Path(file).relative_to(tmp_path)) for file in splits.labeled.files] == first


def test_a_labeled_folder_is_split(own):
    source = Source(train=own.labeled, test=own.test, labels_per_class=3)
    assert sizes(choose(source, "own", 8, 0)) == [6, 12, 2, 4]


def test_a_folder_may_be_called_as_that_of_torchvision_is(own, tmp_path, monkeypatch):
    (tmp_path / "labeled").rename(tmp_path / "datasets")
    monkeypatch.chdir(tmp_path)
    splits = choose(replace(own, labeled="datasets"), "own", 8, 0)
    assert sizes(splits) == [18, 4, 2, 4]


def test_a_published_set_is_read_with_what_the_flags_say(monkeypatch):
    called = []
    monkeypatch.setattr(sources, "read_published", lambda *given: called.append(given) or "splits")
    source = Source(dataset="svhn", labels_per_class=9, root="elsewhere")
    assert choose(source, "cifar10", 32, 7) == "splits"
    assert called == [(source, 32, 7, 0)]


@pytest.mark.parametrize(("flags", "expected"), [
    ({"unlabeled": "x"}, "--unlabeled does not go with the demo's images, only with others: leave"),
    ({"train": "x", "unlabeled": "y"}, "--unlabeled does not go with --train"),
    ({"dataset": "svhn", "test": "x"}, "--test does not go with --dataset"),
    ({"labeled": "x", "root": "y"}, "--root does not go with --labeled"),
    ({"labeled": "x", "test": "y"}, "--labeled needs --unlabeled DIR and --test DIR"),
    ({"labeled": "x", "unlabeled": "y"}, "--labeled needs --unlabeled DIR and --test DIR"),
    ({"train": "x", "labels_per_class": 3}, "--train needs --test DIR and --labels-per-class N"),
    ({"train": "x", "test": "y"}, "--train needs --test DIR and --labels-per-class N"),
    ({}, "plan own needs images: give --labeled, --unlabeled and --test"),
])
def test_flags_that_nothing_would_read_or_that_are_missing_are_named(flags, expected):
    with pytest.raises(InputError, match=f"^{expected}"):
        choose(Source(**flags), "own", 32, 0)


# ---- Published sets ----


def fake_arrays(channels_last, size, labels_name, num_classes, names=None):
    """A class in the shape of torchvision's array datasets: six training images of each class."""

    class Fake:
        def __init__(self, root, part, download=True):
            part = {True: "train", False: "test"}.get(part, part)
            count = num_classes * {"train": 6, "test": 2}.get(part, 3)
            shape = (count, size, size, 3) if channels_last else (count, 3, size, size)
            self.data = np.random.default_rng([*part.encode()]).integers(0, 256, shape, np.uint8)
            labels = np.arange(count) % num_classes if part != "unlabeled" else np.full(count, -1)
            setattr(self, labels_name, labels.tolist() if channels_last else labels)
            if names:
                self.classes = names

    return Fake


@pytest.fixture
def stand_in(monkeypatch):
    """A function that puts a fake in the place of the torchvision class that reads a set."""

    def replace(name, original, fake):
        assert sources.PUBLISHED[name][0] == original
        monkeypatch.setattr(torchvision.datasets, original, fake)

    return replace


def published(name, root, labels_per_class, val_per_class, image_size=32, seed=0):
    source = Source(dataset=name, root=root, labels_per_class=labels_per_class,
                    val_per_class=val_per_class)
    return sources.read_published(source, image_size, seed)


@pytest.mark.parametrize(("name", "reader"), [("cifar10", "CIFAR10"), ("cifar100", "CIFAR100")])
def test_cifar_is_split_by_seed_and_its_rest_is_the_pool(name, reader, stand_in, tmp_path):
    fake = fake_arrays(True, 32, "targets", 2, ["cat", "dog"])
    stand_in(name, reader, fake)
    splits = published(name, tmp_path, 2, 1)
    again = published(name, tmp_path, 2, 1)
    other = published(name, tmp_path, 2, 1, seed=1)
    assert splits.labeled.classes == ("cat", "dog")
    assert [len(s) for s in (splits.labeled, splits.unlabeled, splits.validation)] == [4, 6, 2]
    sets = images_of(splits)
    source = fake(None, "train").data.transpose(0, 3, 1, 2)
    for i, image in enumerate(splits.labeled.pixels):
        (row,) = [j for j in range(12) if np.array_equal(source[j], image.numpy())]
        assert splits.labeled.labels[i] == row % 2
    assert len(sets["labeled"] | sets["unlabeled"] | sets["validation"]) == 12
    assert torch.equal(splits.labeled.pixels, again.labeled.pixels)
    assert images_of(other)["labeled"] != sets["labeled"]


def test_svhn_takes_all_labels_and_its_extra_images_are_the_pool(stand_in, tmp_path):
    stand_in("svhn", "SVHN", fake_arrays(False, 32, "labels", 10))
    splits = published("svhn", tmp_path, None, 1)
    assert len(splits.labeled) == 50 and len(splits.validation) == 10
    assert splits.unlabeled.labels.tolist() == [*range(10)] * 3
    assert splits.labeled.classes == tuple("0123456789")


def test_svhn_without_scipy_says_which_package_it_needs(stand_in, tmp_path):
    def fail(*arguments, **options):
        raise ImportError("No module named 'scipy'", name="scipy")

    stand_in("svhn", "SVHN", fail)
    with pytest.raises(InputError, match="svhn needs a package: pip install scipy; the same"):
        published("svhn", tmp_path, 2, 1)


def test_the_labels_of_a_pool_belong_to_its_images(stand_in, tmp_path):
    fake = fake_arrays(False, 32, "labels", 10)
    stand_in("svhn", "SVHN", fake)
    pool = published("svhn", tmp_path, 3, 1).unlabeled
    truth = {image.tobytes(): label for part in (fake(None, "train"), fake(None, "extra"))
             for image, label in zip(part.data, part.labels, strict=True)}
    assert [truth[image.numpy().tobytes()] for image in pool.pixels] == pool.labels.tolist()


def test_stl10_pool_has_unknown_labels_and_the_left_over_training_images(stand_in, tmp_path):
    stand_in("stl10", "STL10", fake_arrays(False, 96, "labels", 2, ["cat", "dog"]))
    splits = published("stl10", tmp_path, 4, 1, image_size=32)
    assert splits.unlabeled.labels.tolist() == [0, 1] + [UNKNOWN] * 6
    assert splits.test.pixels.shape == (4, 3, 32, 32)


@pytest.mark.parametrize(("pixels", "edition"), [(160, 160), (161, 320), (224, 320)])
def test_imagenette_is_read_whole_from_the_folders_of_its_edition(
        stand_in, monkeypatch, tmp_path, pixels, edition):
    def fake(root, split, download, size):
        assert size == f"{edition}px" and download
        if not (tmp_path / f"imagenette2-{edition}" / split).exists():
            write_classes(tmp_path / f"imagenette2-{edition}" / split, ["n01", "n02"], 4,
                          {"train": 1, "val": 2}[split] * 100)

        return range(8)

    stand_in("imagenette", "Imagenette", fake)
    with pytest.raises(InputError, match=f"imagenette2-{edition} is not whole: delete it"):
        published("imagenette", tmp_path, 1, 1, pixels)  # as after a download that was killed
    monkeypatch.setattr(sources, "IMAGENETTE", (8, 8))
    splits = published("imagenette", tmp_path, 1, 1, pixels)
    assert splits.labeled.classes == ("n01", "n02")
    assert len(splits.unlabeled.files) == 4 and len(splits.test.files) == 8


@pytest.mark.parametrize(
    "error", [urllib.error.URLError("no route"), RuntimeError("bad\nfile")]
)
def test_published_set_without_data_or_network_is_one_clear_line(error, stand_in, tmp_path):
    def fail(*_, **__):
        raise error

    stand_in("svhn", "SVHN", fail)
    with pytest.raises(InputError, match="svhn: neither found in .* nor downloaded") as caught:
        published("svhn", tmp_path, 2, 1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("flag", "known"), [("--dataset", "cifar10"), ("--plan", "tiny-imagenet")])
def test_unknown_published_sets_and_plans_list_the_known_ones(flag, known, capsys):
    with pytest.raises(SystemExit):
        cli.run(iterate.main, [flag, "mnist"])
    assert re.search(f"{flag}: invalid choice: 'mnist' .*{known}", capsys.readouterr().err)


# ---- The plan that fits ----


@pytest.mark.parametrize(("dataset", "plan", "changes"), [
    ("cifar10", "cifar10", {}), ("cifar100", "cifar10", {}), ("svhn", "svhn", {"flip": False}),
    ("stl10", "own", {"image_size": 96}), ("imagenette", "own", {}),
])
def test_a_published_set_has_a_plan_and_keeps_its_needs_in_another(dataset, plan, changes):
    source = Source(dataset=dataset)
    assert sources.plan_for(source, None) == (plan, changes)
    assert sources.plan_for(source, "paper") == ("paper", changes)


@pytest.mark.parametrize(("side", "expected"), [
    (28, ("cifar10", {"image_size": 32})), (64, ("cifar10", {"image_size": 64})), (65, ("own", {})),
])
def test_the_median_image_of_a_folder_tells_the_plan(side, expected, tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        noise(0, 40, 40).save(tmp_path / name / "0.png")  # a thumbnail decides nothing
        for number in range(1, 4):
            noise(0, side - 1, side).save(tmp_path / name / f"{number}.png")
    for source in (Source(labeled=str(tmp_path)), Source(train=str(tmp_path))):
        assert sources.plan_for(source, None) == expected
        assert sources.plan_for(source, "paper") == ("paper", {})
    assert sources.plan_for(Source(), None) == ("demo", {})
    assert sources.plan_for(Source(labeled=str(tmp_path)), None, "b0.pth") == ("finetune", {})


# ---- The images of one training ----


def read_training(own, **changes):
    flags = {"labeled": own.labeled, "val": None, "unlabeled": None, "pseudo_label_dir": None,
             "pseudo_labels": None, "fixed_resolution": None, "start_from": None, "out": "a.pt"}
    return sources.read_training(SimpleNamespace(**flags | changes), 8)


def test_a_training_reads_labeled_and_validation_images(own):
    labeled, validation, pseudo = read_training(own)
    assert (len(labeled), validation, pseudo) == (20, None, None)
    _, validation, _ = read_training(own, val=own.test)
    assert validation.labels.tolist() == [0, 0, 1, 1] and validation.classes == labeled.classes


@pytest.mark.parametrize(("changes", "expected"), [
    ({"unlabeled": "x"}, "--unlabeled and --pseudo-label-dir go together"),
    ({"pseudo_label_dir": "x"}, "--unlabeled and --pseudo-label-dir go together"),
    ({"unlabeled": "pool", "pseudo_label_dir": "x"}, "x holds no complete pseudo labels"),
    ({"pseudo_labels": "hard"}, "--pseudo-labels says of what kind those in --pseudo-label-dir"),
])
def test_a_pool_and_its_pseudo_labels_come_together(changes, expected, own):
    if changes.get("unlabeled") == "pool":
        changes = changes | {"unlabeled": own.unlabeled}
    with pytest.raises(InputError, match=f"^{expected}"):
        read_training(own, **changes)


def with_labels(own, monkeypatch, held_out=()):
    pool = datasets.read_pool(own.unlabeled, ("cat", "dog"))
    pseudo = PseudoLabels(pool, np.full((4, 2), 0.5), np.arange(4),
                          settings={"held_out": files.digest(*held_out)})
    monkeypatch.setattr(label_store, "read", lambda *_: pseudo)
    return {"unlabeled": own.unlabeled, "pseudo_label_dir": "x"}


@pytest.mark.parametrize("fits", [True, False])
def test_labelled_and_pseudo_labelled_images_are_in_memory_together_or_not_at_all(
        fits, own, monkeypatch):
    """Else random crops of the ones would come from central squares, of the others from files."""
    flags = with_labels(own, monkeypatch)
    monkeypatch.setattr(datasets, "MEMORY_LIMIT", 24 * 3 * 8 * 8 - (not fits))
    labeled, _, pseudo = read_training(own, **flags)
    assert (labeled.pixels is not None) == (pseudo.images.pixels is not None) == fits


@pytest.mark.parametrize(("held_out", "val", "warned"), [
    ([], True, True), ([], False, False), ([b"image"], True, False)])
def test_a_pool_that_may_hold_validation_images_is_mentioned(
        held_out, val, warned, own, monkeypatch, capsys):
    flags = with_labels(own, monkeypatch, held_out)
    read_training(own, **flags, val=own.test if val else None)
    assert ("may hold images of --val" in capsys.readouterr().out) == warned


def test_labeled_images_are_not_validation_images_too(own):
    with pytest.raises(InputError, match="every validation image is also a labelled one"):
        read_training(own, val=own.labeled + "/../labeled/")


# ---- The pool of one labelling ----


@pytest.mark.parametrize(("changes", "processes", "said"), [
    ({"csv": "test"}, 1, "test is a folder: give a file in it"),
    ({"out": "labels", "shard": "0/2"}, 2, "--shard is for jobs without torchrun"),
])
def test_a_labelling_that_could_not_end_well_is_refused(own, monkeypatch, changes, processes, said):
    monkeypatch.chdir(Path(own.test).parent)
    monkeypatch.setattr(devices, "world_size", lambda: processes)
    flags = {"unlabeled": own.unlabeled, "out": None, "csv": None, "top": 1, "images_of": None,
             "held_out": None, "shard": None}
    with pytest.raises(InputError, match=said):
        sources.read_unlabeled(SimpleNamespace(**flags | changes), {}, ("cat", "dog"), 0)
    with pytest.raises(InputError, match="labels lies in .* and would become a part of it"):
        sources.read_unlabeled(SimpleNamespace(**flags | {
            "out": f"{own.test}/labels", "held_out": [own.test]}), {}, ("cat", "dog"), 0)
    with pytest.raises(InputError, match="--temperature is of soft pseudo labels"):
        sources.read_unlabeled(SimpleNamespace(**flags | {"out": "labels"}),
                               {"kind": "hard", "temperature": 0.5}, ("cat", "dog"), 0)


# ---- From the command line of the loop ----


def test_digits_of_svhn_are_not_mirrored_unless_asked_for():
    for more, flip in ([], False), (["--flip"], True):
        generations, *_ = planned("--dataset", "svhn", "--plan", "cifar10-cpu", *more)
        assert {one.config.flip for one in generations} == {flip}


def test_small_images_of_a_folder_keep_their_size(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        noise(0, 48, 48).save(tmp_path / name / "0.png")
    source = ("--labeled", str(tmp_path))
    assert planned(*source)[1:] == ["cifar10", 48]
    assert planned(*source, "--image-size", "40")[2] == 40
    assert planned(*source, "--plan", "cifar10-cpu")[2] == 32


def test_a_run_among_the_images_that_are_split_is_refused(own, capsys):
    flags = ["--train", own.labeled, "--test", own.test, "--labels-per-class", "2",
             "--out", f"{own.labeled}/run", "--device", "cpu"]
    assert cli.run(iterate.main, flags) == 2
    assert "would become a part of it" in capsys.readouterr().err


@pytest.mark.parametrize("part", ["labeled", "unlabeled", "test", "val"])
def test_an_output_among_any_of_the_images_is_refused(own, tmp_path, part):
    source = replace(own, val=str(write_classes(tmp_path / "val", ["cat", "dog"], 3, 300)))
    inside, said = Path(getattr(source, part), "out"), "would become a part of it"
    with pytest.raises(InputError, match=said):
        sources.choose(source, "own", train.TrainConfig(image_size=8),
                       devices.Machine("cpu", workers=0), inside)
    if part != "test":
        with pytest.raises(InputError, match=said):
            read_training(own, val=source.val, unlabeled=own.unlabeled, pseudo_label_dir="x",
                          out=str(inside))
    if part == "unlabeled":
        flags = {"unlabeled": own.unlabeled, "top": 1, "images_of": None, "held_out": None,
                 "shard": None}
        for output in ({"out": str(inside), "csv": None}, {"csv": str(inside), "out": None}):
            with pytest.raises(InputError, match=said):
                sources.read_unlabeled(SimpleNamespace(**flags | output), {}, ("cat", "dog"), 0)
