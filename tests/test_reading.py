"""Images are read in batches, clean, by any number of processes; a network without noise."""

import multiprocessing
import os
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from noise_images import in_memory, write_classes, write_files
from PIL import Image
from torch import nn

from support import InputError, cli, datasets, folders, images, reading

BATCHES = (torch.tensor([0, 1, 0]), torch.tensor([5, 2]), torch.tensor([0, 1, 0]))


@pytest.fixture
def filed(tmp_path):
    """Six images of 96x96 pixels that stay files."""
    return write_files(tmp_path)


def double(key):
    """What a worker process makes of a key."""
    if key < 0:
        raise InputError(f"{key}: no key")
    return np.full((2, 3), 2 * key)


# ---- The reader ----


@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_read_comes_stacked_and_in_order(workers):
    found = list(reading.read(double, [[1], [2, 3], [4]], workers))
    assert [tuple(batch.shape) for batch in found] == [(1, 2, 3), (2, 2, 3), (1, 2, 3)]
    assert [batch[:, 0, 0].tolist() for batch in found] == [[2], [4, 6], [8]]


def pair(key):
    return np.full(2, key), key % 2 == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_large_batches_are_decoded_in_parts_and_come_whole(workers):
    """Several tensors of each image too; the last part of a batch may be smaller."""
    batches = [list(range(300)), [300], list(range(301, 301 + 2 * reading.AT_ONCE))]
    found = list(reading.read(pair, batches, workers))
    for (values, even), keys in zip(found, batches, strict=True):
        assert values.tolist() == [[key, key] for key in keys]
        assert even.tolist() == [key % 2 == 0 for key in keys]


@pytest.mark.parametrize(("side", "parts"), [(32, [128, 128, 44]), (224, [111, 111, 78]),
                                             (600, [15] * 20), (10_000, [1] * 300)])
def test_large_images_come_from_a_worker_in_parts_of_16_mebibytes(monkeypatch, side, parts):
    seen = []
    monkeypatch.setattr(reading, "DataLoader", lambda decoder, sampler, **rest: (
        seen.append(len(keys)) or decoder[keys] for keys in sampler))
    (batch,) = reading.read(double, [list(range(300))], side=side)
    assert seen == parts and len(batch) == 300


def test_no_batches_are_none():
    assert list(reading.read(double, [])) == []


@pytest.mark.parametrize(("size", "workers", "most"), [(1, 2, 4), (1000, 2, 8), (1000, 16, 32)])
def test_workers_are_together_a_batch_ahead_not_each(monkeypatch, size, workers, most):
    """Counted in parts; for small batches each worker has one part to read and one to come."""
    seen = {}

    def loader(decoder, sampler, num_workers, prefetch_factor, **rest):
        seen["ahead"] = num_workers * prefetch_factor
        return (decoder[keys] for keys in sampler)

    monkeypatch.setattr(reading, "DataLoader", loader)
    (batch,) = reading.read(double, [list(range(size))], workers)
    assert len(batch) == size and seen["ahead"] == most


@pytest.mark.parametrize("workers", [0, 1])
def test_wrong_input_to_a_worker_is_one_clear_line(workers):
    found = reading.read(double, [[1], [-1], [2]], workers)
    assert len(next(found)) == 1
    with pytest.raises(InputError, match="^-1: no key$"):
        next(found)


def test_workers_end_with_the_reading_even_while_its_error_is_kept():
    found = reading.read(double, [[1], [-1]], workers=2)
    with pytest.raises(InputError) as kept:
        list(found)
    assert kept.tb and not multiprocessing.active_children()


# ---- Clean images ----


def test_batches_from_memory_are_looked_up(filed):
    held = in_memory(filed)
    batches = list(reading.clean(held, BATCHES, 96))
    assert len(batches) == len(BATCHES) and all(usable.all() for _, usable in batches)
    assert all(torch.equal(b, held.pixels[i]) for (b, _), i in zip(batches, BATCHES, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_images_in_memory_are_resized_to_another_size(filed, workers):
    held = in_memory(filed)
    (found, _), *_ = reading.clean(held, BATCHES, 40, workers)
    for image, row in zip(found, BATCHES[0].tolist(), strict=True):
        picture = Image.fromarray(held.pixels[row].permute(1, 2, 0).numpy())
        resized = np.asarray(picture.resize((40, 40), Image.Resampling.BICUBIC))
        assert torch.equal(image, torch.tensor(resized).permute(2, 0, 1))


def test_another_size_than_that_in_memory_is_read_from_the_files(filed):
    held = replace(in_memory(filed), files=filed.files)
    for (one, _), (other, _) in zip(reading.clean(held, BATCHES, 40),
                                    reading.clean(filed, BATCHES, 40), strict=True):
        assert torch.equal(one, other)


def test_clean_batches_from_files_are_center_crops(filed):
    batches, usable = zip(*reading.clean(filed, BATCHES, 80), strict=True)
    assert [tuple(b.shape) for b in batches] == [(3, 3, 80, 80), (2, 3, 80, 80), (3, 3, 80, 80)]
    assert torch.cat(usable).tolist() == [True] * 8
    expected = images.center_crop(images.read_image(filed.files[5]), 80)
    assert np.array_equal(batches[1][0].permute(1, 2, 0), np.asarray(expected))


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_files_and_held_out_images_show_when_the_pool_is_opened(tmp_path, workers):
    own = write_classes(tmp_path / "pool", ["2019/summer", "2020"], 2, first_seed=200)
    held_out = write_classes(tmp_path / "test", ["cat", "dog"], 1, first_seed=100) / "cat"
    copy = own / "copy.bmp"  # the same pixels in another format
    Image.open(next(folders.walk(held_out))).save(copy)
    (own / "notes.txt").write_text("not an image")
    pool = datasets.read_pool(own, ("cat", "dog"))
    batches = reading.clean(pool, torch.arange(6).split(4), 8, workers,
                            folders.fingerprints([held_out]))
    pixels, usable = (torch.cat(part) for part in zip(*batches, strict=True))
    left_out = {file for file, good in zip(pool.files, usable, strict=True) if not good}
    assert left_out == {str(copy), str(own / "notes.txt")}
    rest = pool.subset(usable.nonzero().flatten())
    assert torch.equal(pixels[usable], datasets.read_set(rest, 8)[0].pixels)
    assert not pixels[~usable].any()


# ---- A function of all images ----


def network_with_a_frozen_part():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Sequential(nn.Dropout()))
    network.train()
    network[1].eval()
    return network


@pytest.mark.parametrize("noised", [False, True])
def test_each_module_is_in_its_own_mode_again_afterwards(noised):
    network = network_with_a_frozen_part()
    before = [module.training for module in network.modules()]
    assert before == [True, True, False, True, True]
    with reading.evaluation_mode(network, noised):
        found = [module.training for module in network.modules()]
        assert found == ([True, True, False, True, True] if noised else [False] * 5)
    assert [module.training for module in network.modules()] == before
    with pytest.raises(KeyboardInterrupt), reading.evaluation_mode(network, noised):
        raise KeyboardInterrupt
    assert [module.training for module in network.modules()] == before


def test_a_noised_teacher_keeps_the_statistics_of_batch_norm():
    network = network_with_a_frozen_part().eval()
    with reading.evaluation_mode(network, noised=True):
        assert network[2][0].training and not network[1].training
    assert not any(module.training for module in network.modules())


def rows_of(function, source, size, parts=None, chance=None, held_out=None):
    return reading.evaluate(function, source, parts or [range(6)], image_size=96, batch_size=size,
                            device="cpu", workers=0, seed=chance, held_out=held_out)


def test_few_of_many_files_are_drawn_from_all_of_them(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    source = images.ImageSet(torch.arange(1000) // 500, ("a", "b"),
                             files=(str(tmp_path / "0.png"),) * 1000)
    labels = reading.in_memory(source, 320).labels
    assert len(labels) == 200 and 70 < labels.sum() < 130


@pytest.mark.parametrize("size", [1, 4, None])
def test_a_function_gets_each_image_once_and_nothing_else_whatever_the_size_of_a_batch(filed, size):
    seen = []

    def mean(batch):
        seen.append(len(batch))
        return batch.float().mean((1, 2, 3)).unsqueeze(1)

    held = in_memory(filed)
    (found,) = rows_of(mean, held, size)
    assert torch.equal(found, held.pixels.float().mean((1, 2, 3)).unsqueeze(1))
    assert sum(seen) == 6 and max(seen) == (size or 6)


def test_files_without_a_size_are_one_clear_line(filed):
    with pytest.raises(InputError, match="images that are files need an image_size"):
        next(reading.evaluate(len, filed, [range(6)], image_size=None, batch_size=None,
                              device="cpu", workers=0, seed=None))


@pytest.mark.parametrize("source", ["files", "memory"])
def test_the_rows_of_each_part_come_by_themselves_and_in_order(filed, source):
    held, parts = in_memory(filed), [range(4), range(5, 6), range(1, 3)]
    found = rows_of(lambda batch: batch.float().mean((1, 2, 3)),
                    filed if source == "files" else held, 3, parts)
    for part, rows in zip(parts, found, strict=True):
        assert torch.equal(rows, held.pixels[part.start: part.stop].float().mean((1, 2, 3)))


def test_no_part_is_read_before_the_one_before_it_is_taken(filed):
    seen = []
    rows = rows_of(lambda batch: seen.append(len(batch)) or batch.float().mean((1, 2, 3)), filed, 2,
                   [range(4), range(4, 6)])
    assert seen == [] and len(next(rows)) == 4 and seen == [2, 2] and len(next(rows)) == 2


def test_rows_of_images_that_are_not_usable_are_zero(filed):
    held_out = frozenset([images.inspect(filed.files[2], None)[1]])
    Path(filed.files[4]).write_bytes(b"broken since")
    (found,) = rows_of(lambda batch: batch.float().mean((1, 2, 3)).unsqueeze(1) + 1, filed, 4,
                       held_out=held_out)
    assert (found.flatten() == 0).tolist() == [False, False, True, False, True, False]


def test_batches_of_larger_images_are_smaller_and_never_empty():
    assert [reading.size_for(size) for size in (32, 128, 224, 800)] == [500, 500, 163, 12]
    assert reading.size_for(10**6) == 1


# ---- Workers that die ----


@dataclass(frozen=True)
class Nothing:
    """No flags"""


def killed_at_5(key):
    if key == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return np.zeros(3)


def cut_off(key):
    raise ConnectionResetError(104, "Connection reset by peer")


def without_shared_memory(key):
    raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: "
                       "No space left on device (28)")


@pytest.mark.parametrize("decode", [killed_at_5, cut_off, without_shared_memory])
def test_a_worker_that_dies_is_one_line_with_the_flag_that_helps(decode, capsys):
    def main(flags: Nothing) -> None:
        for _ in reading.read(decode, ([key] for key in range(100)), workers=2):
            time.sleep(0.01)

    assert cli.run(main, []) == 2
    error = capsys.readouterr().err
    assert error.startswith("test_reading.py: a worker that reads images was killed, most likely")
    assert "--workers 0" in error and "--shm-size" in error and error.count("\n") == 1


def test_each_batch_has_chance_of_its_own(filed):
    def draw(seed, parts):
        return torch.cat([*rows_of(lambda batch: torch.rand(len(batch), 1), in_memory(filed), 2,
                                   parts, chance=(seed,))])

    parts = [range(2), range(2, 6)]
    one, again, other = (draw(seed, parts) for seed in (0, 0, 1))
    assert len(one.unique()) == 6 and torch.equal(one, again) and not torch.equal(one, other)
    assert torch.equal(one[2:], draw(0, parts[1:]))  # as by the process that has this part alone
