"""Which images a step sees, which numbers chance gives them, and what cannot be trained."""

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from noise_images import in_memory, write_files
from tiny import TINY

import augment
import train
from support import InputError, batches, datasets, devices, images, reading
from support.batches import Batch, Chance
from support.images import ImageSet


@pytest.fixture(scope="module")
def splits():
    return tiny.make_splits()


# ---- The order of the images ----


def test_every_image_comes_once_an_epoch_and_in_another_order():
    order = torch.cat(list(batches.shuffled(12, 4, 0, 6, seed=0)))
    first, second = order[:12], order[12:]
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(12))
    assert first.tolist() != second.tolist()


def test_a_batch_may_be_larger_than_the_set():
    (batch,) = batches.shuffled(3, 8, 0, 1, seed=0)
    assert len(batch) == 8 and torch.bincount(batch).tolist().count(3) == 2


# ---- Chance ----


@pytest.mark.parametrize("columns", [(), (2,), (2, 3)])
def test_chance_gives_rows_the_numbers_that_they_get_in_the_whole(columns):
    whole = torch.randint(100, (9, *columns), generator=torch.Generator().manual_seed(4))
    rows = torch.tensor([7, 0, 3])
    part = Chance(torch.Generator().manual_seed(4), rows, 9)
    numbers = part.randint(100, columns)
    assert numbers.dtype == torch.int64 and torch.equal(numbers, whole[rows])


def test_chance_goes_on_as_the_generator_does_for_whatever_rows():
    def draw(rows):
        chance = Chance(torch.Generator().manual_seed(1), rows, 6)
        return [chance.randint(1000), chance.randint(50, (2,)), chance.randint(1000)]

    rows = torch.tensor([1, 4])
    for part, whole in zip(draw(rows), draw(slice(None)), strict=True):
        assert torch.equal(part, whole[rows])
    assert not torch.equal(*draw(slice(None))[::2])


def test_chance_of_a_whole_batch_is_the_generators_own():
    chance = Chance.of(torch.zeros(5, 3, 8, 8), torch.Generator().manual_seed(2))
    expected = torch.randint(10, (5,), generator=torch.Generator().manual_seed(2))
    assert torch.equal(chance.randint(10), expected)
    torch.manual_seed(2)  # without a generator it is torch's
    assert torch.equal(Chance.of(torch.zeros(5, 3, 8, 8)).randint(10), expected)


# ---- Batches and micro-batches ----


def make_batch(labeled=4, unlabeled=8, size=32, first=0):
    """A batch of random images whose rows start at `first`."""
    torch.manual_seed(0)
    images = torch.randint(0, 256, (labeled + unlabeled, 3, size, size), dtype=torch.uint8)
    targets = torch.rand(unlabeled, 10) if unlabeled else None
    rows = first + torch.arange(len(images))
    return Batch(images, torch.arange(labeled), targets, rows, whole=first + len(images))


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("unlabeled", [0, 8])
def test_micro_batches_share_out_both_kinds_of_images(count, unlabeled):
    batch = make_batch(unlabeled=unlabeled)
    parts = list(batch.split(count, torch.device("cpu")))
    assert [part.last for part in parts] == [False] * (count - 1) + [True]
    assert sorted(torch.cat([part.rows for part in parts]).tolist()) == list(range(len(batch)))
    for part in parts:
        assert part.whole == batch.whole and len(part) == len(batch) // count
        assert (len(part.labels), len(part.images)) == (4 // count, (4 + unlabeled) // count)
        assert torch.equal(part.images, batch.images[part.rows])
        assert torch.equal(part.labels, batch.labels[part.rows[part.is_labeled]])
        assert part.is_labeled.tolist() == [row < 4 for row in part.rows.tolist()]
        if unlabeled:
            assert torch.equal(part.targets, batch.targets[part.rows[~part.is_labeled] - 4])
        else:
            assert part.targets is None


@pytest.mark.parametrize("changes", [
    {}, {"augment_labeled": False}, {"augment_unlabeled": False}, {"crops": "imagenet"},
    {"flip": False}, {"rand_augment_operations": 0},
])
def test_noise_belongs_to_a_position_so_micro_batches_get_that_of_the_whole(changes):
    config, batch = dataclasses.replace(TINY, batch_size=4, **changes), make_batch()
    whole = train.noise(batch, config, step=3)
    for part in batch.split(2, torch.device("cpu")):
        assert torch.equal(train.noise(part, config, step=3), whole[part.rows])


def test_processes_share_a_batch_as_one_alone_would_have_it(splits, monkeypatch):
    pseudo = tiny.pseudo_labels(splits.unlabeled)

    def read(rank, world_size, crop=augment.random_resized_crop):
        monkeypatch.setattr(devices, "rank", lambda: rank)
        monkeypatch.setattr(devices, "world_size", lambda: world_size)
        config = dataclasses.replace(TINY, labeled_images=len(splits.labeled))
        found = list(batches.training(config, splits.labeled, pseudo, crop))
        return found, [train.noise(batch, config, step) for step, batch in enumerate(found)]

    whole, noised = read(0, 1)
    for rank in (0, 1):
        for one, other, of_one, of_other in zip(whole, *read(rank, 2)[:1], noised,
                                                read(rank, 2)[1], strict=True):
            assert len(other) == len(one.images) == 24 and len(other.images) == 12
            assert torch.equal(other.images, one.images[other.rows])
            assert torch.equal(other.labels, one.labels[rank::2])
            assert torch.equal(other.targets, one.targets[rank::2])
            assert torch.equal(of_other, of_one[other.rows])


def test_batches_that_go_on_in_the_middle_are_the_same(splits):
    config = dataclasses.replace(TINY, labeled_images=len(splits.labeled))
    pseudo = tiny.pseudo_labels(splits.unlabeled, balanced=np.array([5, 5, 7, 1, 0, 59]))
    whole, rest = (list(batches.training(config, splits.labeled, pseudo,
                                         augment.random_resized_crop, first, workers))
                   for first, workers in ((0, 0), (4, 1)))
    assert len(whole) == config.total_steps == len(rest) + 4
    for one, other in zip(whole[4:], rest, strict=True):
        assert torch.equal(one.images, other.images) and torch.equal(one.targets, other.targets)
        assert torch.equal(one.labels, other.labels) and torch.equal(one.rows, other.rows)


def test_only_balanced_images_come_and_hard_ones_with_their_class(splits):
    config = dataclasses.replace(TINY, labeled_images=len(splits.labeled))
    chosen = np.array([5, 5, 7, 1])
    soft, hard = (tiny.pseudo_labels(splits.unlabeled, chosen, kind) for kind in ("soft", "hard"))
    expected = torch.from_numpy(soft.targets).float()
    for one, other in zip(batches.training(config, splits.labeled, soft, None),
                          batches.training(config, splits.labeled, hard, None), strict=True):
        images = one.images[len(one.labels):]
        numbers = [int((splits.unlabeled.pixels == image).flatten(1).all(1).nonzero()[0])
                   for image in images]
        assert numbers.count(5) == 8 and set(numbers) == {1, 5, 7}  # 16 images: each 4 times
        assert one.targets.dtype == torch.float32 and torch.equal(one.targets, expected[numbers])
        assert other.targets.dtype == torch.int64
        assert torch.equal(other.targets, expected[numbers].argmax(1))


def test_pseudo_labelled_images_alone_keep_their_places(splits):
    config = dataclasses.replace(TINY, labeled_images=len(splits.labeled))
    pseudo = tiny.pseudo_labels(splits.unlabeled)
    joint, alone = (next(batches.training(dataclasses.replace(config, joint=joint), splits.labeled,
                                          pseudo, None)) for joint in (True, False))
    assert len(alone.labels) == 0 and len(alone.images) == 16
    assert (len(joint), len(alone)) == (24, 16)  # what is read, and counted as images a second
    assert torch.equal(alone.images, joint.images[8:]) and torch.equal(alone.rows, joint.rows[8:])
    assert torch.equal(alone.targets, joint.targets)


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_one_pseudo_labelled_image_a_step_is_a_batch_too(splits, kind):
    config = dataclasses.replace(TINY, labeled_images=len(splits.labeled), batch_size=1,
                                 unlabeled_ratio=1)
    pseudo = dataclasses.replace(tiny.pseudo_labels(splits.unlabeled), kind=kind)
    batch = next(batches.training(config, splits.labeled, pseudo, None))
    assert batch.targets.shape == ((1,) if kind == "hard" else (1, 10))


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize(("size", "crops"), [(32, "auto"), (72, "auto"), (32, "imagenet"),
                                             (72, "cifar")])
def test_random_resized_crops_are_for_images_over_64_pixels_wherever_they_are(
        size, crops, in_memory, splits, tmp_path):
    tiny.write_images(splits.labeled, tmp_path)
    files = datasets.read_folder(tmp_path, 72)
    clean, _ = next(reading.clean(files, [torch.arange(8)], size))
    images = ImageSet(files.labels[:8], files.classes, clean) if in_memory else files.subset(
        torch.arange(8))
    config = dataclasses.replace(TINY, image_size=size, crops=crops, labeled_images=8)
    crop = None if config.cifar_crops else augment.random_resized_crop
    batch = next(batches.training(config, images, None, crop))
    index = next(batches.shuffled(8, 8, 0, 1, batches.seed_of(config.seed, 0)))
    assert torch.equal(batch.labels, images.labels[index])
    cropped = [not torch.equal(a, b) for a, b in zip(batch.images, clean[index], strict=True)]
    assert cropped == [size > 64 if crops == "auto" else crops == "imagenet"] * 8


# ---- Checks ----


@pytest.mark.parametrize("batch", [{"batch_size": 1}, {"batch_size": 4, "accumulation_steps": 4}])
def test_one_image_alone_is_refused_where_batch_norm_cannot_use_it(batch, splits, tmp_path):
    config = dataclasses.replace(TINY, **batch)
    with pytest.raises(InputError, match="BatchNorm needs two images"):
        tiny.run(config, splits, tmp_path / "a.pt", students=False)
    assert not list(tmp_path.iterdir())
    # with two pseudo-labelled images
    tiny.run(dataclasses.replace(config, epochs=0.2), splits, tmp_path / "a.pt")


def test_several_devices_of_xla_need_a_batch_that_they_can_share(splits, monkeypatch):
    monkeypatch.setattr(devices, "mesh_size", lambda device: 2)
    machine = devices.Machine("xla")
    batches.check(dataclasses.replace(TINY, batch_size=4), splits.labeled, None, machine)
    with pytest.raises(InputError, match="5 labelled images cannot be shared by 2 devices"):
        batches.check(dataclasses.replace(TINY, batch_size=5), splits.labeled, None, machine)


def test_xla_compiles_by_itself_and_keeps_its_activations(splits, monkeypatch):
    monkeypatch.setattr(devices, "mesh_size", lambda device: 1)
    for options in ({"compile": True}, {"checkpoint_blocks": True}):
        batches.check(TINY, splits.labeled, None, devices.Machine("cpu", **options))
        with pytest.raises(InputError, match="not for (XLA|xla)"):
            batches.check(TINY, splits.labeled, None, devices.Machine("xla", **options))


def test_mps_would_not_draw_a_blocks_noise_again(splits):
    batches.check(TINY, splits.labeled, None, devices.Machine("mps"))
    with pytest.raises(InputError, match="--checkpoint-blocks is not for mps"):
        batches.check(TINY, splits.labeled, None, devices.Machine("mps", checkpoint_blocks=True))


def test_only_layers_that_were_trained_are_frozen(splits):
    frozen = dataclasses.replace(TINY, frozen_stages=1)
    batches.check(frozen, splits.labeled, None, devices.CPU, "start.pt")
    with pytest.raises(InputError, match="untrained layers: give --start-from"):
        batches.check(frozen, splits.labeled, None, devices.CPU)


@pytest.mark.parametrize("native", [True, False])
def test_a_device_that_may_only_imitate_bfloat16_is_named(native, splits, monkeypatch, capsys):
    def supported(including_emulation):
        return native or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    for config in (TINY, dataclasses.replace(TINY, precision="bfloat16")):
        assert capsys.readouterr().out == ""
        batches.check(config, splits.labeled, None, devices.Machine("cuda"))
    assert ("give --precision float32" in capsys.readouterr().out) is not native
    images.say_once.cache_clear()
    batches.check(dataclasses.replace(TINY, precision="bfloat16"), splits.labeled, None,
                  devices.CPU)
    assert "most CPUs" in capsys.readouterr().out


def test_an_empty_set_is_refused(splits):
    empty = splits.labeled.subset(torch.arange(0))
    with pytest.raises(InputError, match="no labelled images"):
        batches.check(TINY, empty, None, devices.CPU)


# ---- What a training saw ----


def test_contents_tell_images_and_labels_apart(splits):
    labeled, pseudo = splits.labeled, tiny.pseudo_labels(splits.unlabeled)
    order = torch.arange(len(labeled)).flip(0)
    other_targets = np.roll(pseudo.targets, 1, axis=0)
    variants = [
        (labeled, splits.validation, pseudo), (labeled, None, pseudo),
        (labeled, splits.validation, None), (labeled, splits.test, pseudo),
        (labeled.subset(order), splits.validation, pseudo),
        (dataclasses.replace(labeled, labels=labeled.labels.flip(0)), splits.validation, pseudo),
        (labeled, splits.validation, dataclasses.replace(pseudo, targets=other_targets)),
        (labeled, splits.validation, dataclasses.replace(pseudo, balanced=np.arange(40))),
        (labeled, splits.validation, dataclasses.replace(pseudo, kind="hard")),
        (labeled, splits.validation, dataclasses.replace(
            pseudo, images=splits.unlabeled.subset(torch.arange(60).flip(0)))),
    ]
    found = [json.dumps(batches.contents(*variant)) for variant in variants]
    assert len(set(found)) == len(variants)
    assert found[0] == json.dumps(batches.contents(*variants[0]))


def test_a_pool_that_was_just_compared_with_its_labels_is_not_looked_up_again(splits, monkeypatch):
    """Of millions of files that would take hours."""
    pool = dataclasses.replace(splits.unlabeled, pixels=None, files=tuple(map(str, range(60))))
    pseudo = dataclasses.replace(tiny.pseudo_labels(splits.unlabeled), images=pool,
                                 unique=np.arange(60), settings={images.OF_POOL: "a hash"})
    monkeypatch.setattr(images.os, "stat", None)
    found = batches.contents(splits.labeled, None, pseudo)
    for change in {"settings": {images.OF_POOL: "another"}}, {"unique": np.arange(1, 61)}:
        other = dataclasses.replace(pseudo, **change)
        assert batches.contents(splits.labeled, None, other) != found


# ---- Reading for training ----

BATCHES = (torch.tensor([0, 1, 0]), torch.tensor([5, 2]), torch.tensor([0, 1, 0]))


@pytest.fixture
def filed(tmp_path):
    """Six images of 96x96 pixels that stay files."""
    return write_files(tmp_path)


def random_corner(image, size, generator):
    left, top = torch.randint(0, 17, (2,), generator=generator).tolist()
    return image.crop((left, top, left + size, top + size))


def stream(source, order=BATCHES, *, seed=0, rows=(0, 1, 2), workers=0, crop=random_corner,
           size=80):
    """The images of these batches as a training reads them, each checked to come with its index."""
    order, found = list(order), []
    for index, pixels in batches._stream(source, iter(order), size, torch.tensor(rows), 0, seed,
                                         crop, workers):
        assert torch.equal(index, order[len(found)])
        found.append(pixels)
    assert len(found) == len(order)
    return found


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_from_memory_are_cropped_as_those_from_files(filed, workers):
    def smaller(image, size, generator):
        return random_corner(image, size - 16, generator)

    one, other = (stream(images, workers=workers, crop=smaller, size=96)
                  for images in (in_memory(filed), filed))
    for a, b in zip(one, other, strict=True):
        assert a.shape[1:] == (3, 80, 80) and torch.equal(a, b)


def test_batches_from_memory_have_the_size_that_is_asked_for(splits):
    for crop in (None, random_corner):
        assert {batch.shape[1:] for batch in stream(splits.labeled, crop=crop, size=24)} == {
            (3, 24, 24)}


def test_training_crops_differ_between_seeds_rows_and_batches(filed):
    first, _, third = stream(filed)
    other = stream(filed, seed=1)[0]
    assert not torch.equal(first[0], first[2])
    assert not torch.equal(first[0], third[0])
    assert not torch.equal(first, other)


@pytest.mark.parametrize("crop", [None, random_corner])
@pytest.mark.parametrize("workers", [0, 2])
def test_endless_batches_are_drawn_only_as_far_as_needed(filed, workers, crop):
    drawn = itertools.count()
    endless = (torch.tensor([next(drawn) % 6]) for _ in itertools.count())
    found = batches._stream(filed, endless, 80, torch.tensor([0]), 0, 0, crop, workers)
    for _ in range(3):
        next(found)
    assert next(drawn) <= 3 + 2 * workers


@pytest.mark.parametrize("crop", [None, random_corner])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_breaks_after_it_was_listed_is_one_clear_line(filed, workers, crop):
    Path(filed.files[3]).write_bytes(b"broken since")
    with pytest.raises(InputError) as raised:
        stream(filed, [torch.arange(6)], rows=range(6), workers=workers, crop=crop)
    assert filed.files[3] in str(raised.value) and "\n" not in str(raised.value)


def test_reading_for_training_leaves_torch_random_numbers_alone(filed):
    torch.manual_seed(0)
    stream(filed)
    drawn = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.rand(1))


@pytest.mark.parametrize(("config", "machine", "processes", "said"), [
    ({"unlabeled_ratio": 0}, {}, 1, "--unlabeled-ratio 0 leaves the pseudo labels out"),
    ({}, {"compile": True, "checkpoint_blocks": True}, 2, "is for one process"),
])
def test_trainings_that_would_not_be_what_was_asked_for_are_refused(
        splits, monkeypatch, config, machine, processes, said):
    monkeypatch.setattr(devices, "world_size", lambda: processes)
    with pytest.raises(InputError, match=said):
        batches.check(dataclasses.replace(TINY, **config), splits.labeled,
                      tiny.pseudo_labels(splits.unlabeled), devices.Machine("cpu", **machine))


def test_the_log_is_in_nats_and_percent():
    logits = torch.tensor([[4.0, 0], [4, 0], [0, 4], [0, 4], [0, 4], [4, 0]])
    batch = Batch(None, torch.tensor([0, 1]), torch.tensor([[0.1, 0.9]] * 4), torch.arange(6), 6)
    logs = logits.log_softmax(1)
    assert batches.describe([(torch.tensor(3.0), logits, batch)]) == pytest.approx({
        "loss": 3.0, "loss_labeled": -(logs[0, 0] + logs[1, 1]).item() / 2,
        "accuracy_labeled": 50.0,
        "loss_unlabeled": -(0.1 * logs[2:, 0] + 0.9 * logs[2:, 1]).mean().item(),
        "agreement_unlabeled": 75.0})
