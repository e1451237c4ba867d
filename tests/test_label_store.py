"""The folder of pseudo labels: refused if incomplete or foreign, filled by many, or killed."""

import collections
import dataclasses
import json
import multiprocessing
import os
import signal
import sys
from unittest import mock

import numpy as np
import pytest
import torch
from doubles import SMALL, Linear, assert_same_labels, label, small_pool
from PIL import Image

import pseudo_label
from support import InputError, datasets, label_store, predictions, reading
from support.label_store import Unfinished

# ---- What is refused ----


@pytest.fixture
def pool():
    return small_pool()


@pytest.fixture
def teacher():
    return Linear()


def test_stale_or_foreign_labels_are_refused(teacher, pool, tmp_path):
    label(teacher, pool, tmp_path / "labels")
    label(teacher, pool, tmp_path / "labels")  # the same: read again
    with pytest.raises(InputError, match="threshold"):
        label(teacher, pool, tmp_path / "labels", threshold=0.06)
    with pytest.raises(InputError, match="pool"):
        label(teacher, pool.subset(torch.arange(50)), tmp_path / "labels")
    other = dataclasses.replace(pool, classes=pool.classes[::-1])
    with pytest.raises(InputError, match="classes"):
        label(teacher, other, tmp_path / "labels")
    teacher.weight.data += 1
    with pytest.raises(InputError, match="teacher"):
        label(teacher, pool, tmp_path / "labels")


def test_labels_begun_with_other_settings_or_for_another_pool_are_not_mixed(
        teacher, pool, tmp_path):
    with pytest.raises(Unfinished):
        label(teacher, pool, tmp_path / "labels", shard="1/2", batch_size=20)
    with pytest.raises(InputError, match="temperature: 1.0, not 0.5"):
        label(teacher, pool, tmp_path / "labels", temperature=0.5, batch_size=20)
    other = dataclasses.replace(pool, pixels=255 - pool.pixels)
    with pytest.raises(InputError, match="settings.json .*pool"):
        label(teacher, other, tmp_path / "labels", batch_size=20)


def test_labels_are_complete_only_with_labels_json(teacher, pool, tmp_path):
    label(teacher, pool, tmp_path / "labels")
    (tmp_path / "labels" / "labels.json").unlink()
    with pytest.raises(InputError, match="no complete pseudo labels"):
        label_store.read(tmp_path / "labels", pool)


@pytest.mark.parametrize("name", ["unique", "targets", "balanced"])
def test_a_missing_short_or_foreign_array_is_refused(name, tmp_path):
    pool, folder = small_pool(), tmp_path / "labels"
    label(Linear(), pool, folder)
    path, whole = folder / f"{name}.npy", np.load(folder / f"{name}.npy")
    for damage in (path.unlink, lambda: path.write_bytes(b""),
                   lambda: path.write_bytes(b"\x93NUMPY"), lambda: np.save(path, whole[:-1])):
        damage()
        with pytest.raises(InputError, match="no complete pseudo labels"):
            label_store.read(folder, pool)
    np.save(path, whole)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match="no complete pseudo labels"):
        label_store.read(folder, pool)


@pytest.mark.parametrize(("name", "row", "value", "said"), [
    ("unique", -1, 60, "unique.npy must hold whole numbers from 0 to 59"),
    ("unique", 0, -1, "unique.npy must hold whole numbers from 0 to 59"),
    ("unique", 1, 0, "unique.npy is not in ascending order"),
    ("balanced", 3, -2, "balanced.npy must hold whole numbers"),
    ("balanced", 0, 1000, "balanced.npy must hold whole numbers"),
    ("targets", 2, np.nan, "targets.npy holds rows that are not probabilities"),
    ("targets", 2, 0.9, "targets.npy holds rows that are not probabilities"),
])
def test_numbers_that_cannot_be_right_are_refused(name, row, value, said, teacher, pool, tmp_path):
    label(teacher, pool, tmp_path)
    rows = np.load(tmp_path / f"{name}.npy")
    rows[row] = value
    np.save(tmp_path / f"{name}.npy", rows)
    with pytest.raises(InputError, match=said):
        label_store.read(tmp_path, pool)
    with pytest.raises(InputError, match=said):
        label(teacher, pool, tmp_path / "again", images_of=tmp_path, threshold=0.3, per_class=6)


def test_rows_that_are_no_whole_numbers_are_refused(teacher, pool, tmp_path):
    label(teacher, pool, tmp_path)
    np.save(tmp_path / "balanced.npy", np.load(tmp_path / "balanced.npy").astype(float))
    with pytest.raises(InputError, match="balanced.npy must hold whole numbers"):
        label_store.read(tmp_path, pool)


def test_labels_that_were_begun_and_damaged_are_one_clear_line(teacher, pool, tmp_path):
    with pytest.raises(Unfinished):
        label(teacher, pool, tmp_path / "labels", shard="1/2", batch_size=20)
    (tmp_path / "labels" / "progress" / "settings.json").write_bytes(b"")
    with pytest.raises(InputError, match="settings.json is damaged: remove it"):
        label(teacher, pool, tmp_path / "labels", batch_size=20)


def test_shards_that_end_together_write_the_list_for_people_under_names_of_their_own(
        teacher, pool, tmp_path, monkeypatch):
    names, real = [], label_store.predictions.list_labels

    def list_labels(file, *arguments):
        names.append(file.name)
        real(file, *arguments)

    monkeypatch.setattr(label_store.predictions, "list_labels", list_labels)
    of_files = dataclasses.replace(pool, files=[f"{number}.png" for number in range(len(pool))])
    label(teacher, of_files, tmp_path)
    assert str(os.getpid()) in names[0] and len(names) == 1
    assert len((tmp_path / "labels.csv").read_text().splitlines()) > 2
    assert [path.name for path in tmp_path.iterdir() if str(os.getpid()) in path.name] == []


def test_the_same_shard_twice_at_once_is_refused_and_another_one_is_not(tmp_path):
    pool, tried = small_pool(), []

    class Slow(Linear):
        def forward(self, images):
            if not tried:
                tried.append(True)
                with pytest.raises(InputError, match="shard 0/2: another process is at this run"):
                    label(Linear(), pool, tmp_path, shard="0/2", **SMALL)
                with pytest.raises(Unfinished):
                    label(Linear(), pool, tmp_path, shard="1/2", **SMALL)
            return super().forward(images)

    with pytest.raises(Unfinished):  # pass 2 of the other shard
        label(Slow(), pool, tmp_path, shard="0/2", **SMALL)
    assert tried


def test_a_pool_that_cannot_be_labelled_at_all_says_why(teacher, pool, tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.jpg").write_bytes(b"no image")
    files = datasets.read_pool(tmp_path, pool.classes, tmp_path.with_name("labels"))
    with pytest.raises(InputError, match="none of the 3 files of the pool can be labelled: they "
                                         "are unreadable or equal to held-out images"):
        label(teacher, files, tmp_path.with_name("labels"), held_out=frozenset())


def test_of_many_files_left_out_all_are_counted_and_the_first_are_named(
        teacher, pool, tmp_path, monkeypatch):
    monkeypatch.setattr(predictions, "FOR_THE_EYE", 3)
    tmp_path.joinpath("pool").mkdir()
    for number in range(6):
        file = tmp_path / "pool" / f"{number}.png"
        Image.new("RGB", (32, 32), "red").save(file) if number == 5 else file.write_bytes(b"cut")
    files = datasets.read_pool(tmp_path / "pool", pool.classes, tmp_path / "labels")
    assert label(teacher, files, tmp_path / "labels", held_out=frozenset()).counts["left_out"] == 5
    named = json.loads((tmp_path / "labels" / "labels.json").read_text())["left_out"]
    assert named == [str(tmp_path / "pool" / f"{number}.png") for number in range(3)]


@pytest.mark.parametrize("contents", [
    "", "{}", "[]", '{"settings": {}}', '{"settings": [], "counts": {}}',
])
def test_a_damaged_labels_json_is_one_clear_line(contents, tmp_path):
    label(Linear(), small_pool(), tmp_path)
    (tmp_path / "labels.json").write_text(contents)
    with pytest.raises(InputError, match="no complete pseudo labels"):
        label_store.read(tmp_path, small_pool())


@pytest.mark.parametrize("key", ["settings", "counts", "top1", "per_class"])
def test_a_labels_json_of_another_kind_is_one_clear_line(key, tmp_path):
    label(Linear(), small_pool(), tmp_path)
    contents = json.loads((tmp_path / "labels.json").read_text())
    del contents[key]
    (tmp_path / "labels.json").write_text(json.dumps(contents))
    with pytest.raises(InputError, match="no complete pseudo labels"):
        label_store.read(tmp_path, small_pool())


@pytest.mark.parametrize("shard", ["2/2", "2/1", "1", "a/b", "-1/2", "0/0", "1/2/3"])
def test_an_impossible_shard_is_refused(shard, tmp_path):
    with pytest.raises(InputError, match=f"--shard {shard}: give"):
        label(Linear(), small_pool(), tmp_path / "labels", shard=shard)
    assert not (tmp_path / "labels").exists()


@pytest.mark.parametrize("written", range(10))  # settings, arrays, marks, labels.json
def test_a_full_disk_is_one_clear_line_and_the_same_command_continues(written, tmp_path):
    teacher, pool, folder = Linear(), small_pool(), tmp_path / "labels"
    effects = [None] * written + [OSError(28, "No space left on device")]
    with mock.patch("os.fsync", side_effect=effects):
        with pytest.raises(InputError, match="No space left on device.*make room"):
            label(teacher, pool, folder)
    assert_same_labels(label(teacher, pool, folder), label(teacher, pool, tmp_path / "other"))


def test_classes_take_two_bytes_an_image(tmp_path):
    """Of the paper's 300 M images: 0.6 GB."""
    label(Linear(), small_pool(), tmp_path)
    for name in ("class", "target_class"):
        assert np.load(tmp_path / f"{name}.npy").dtype == np.int16


# ---- Interrupted, and shared ----


@pytest.fixture
def whole(tmp_path):
    """Labels by one process that nobody stopped."""
    return label(Linear(), small_pool(), tmp_path / "whole", **SMALL)


@pytest.mark.parametrize("noised_teacher", [False, True])
def test_shards_in_any_order_give_the_labels_of_a_single_run(noised_teacher, tmp_path):
    options = SMALL | {"noised_teacher": noised_teacher}
    whole = label(Linear(), small_pool(), tmp_path / "whole", **options)
    teacher, folder = Linear(), tmp_path / "labels"

    def run(number):
        return label(teacher, small_pool(), folder, shard=f"{number}/3", **options)

    for number, missing in (2, "0, 1"), (0, "1"):
        with pytest.raises(Unfinished, match=f"pass 1 of shard {number}/3 is done, but that of "
                                             f"{missing} is missing"):
            run(number)
    # the last of pass 1 goes on to pass 2
    with pytest.raises(Unfinished, match="pass 2 of shard 1/3 is done, but that of 0, 2"):
        run(1)
    with pytest.raises(Unfinished, match="pass 2 of shard 2/3"):
        run(2)
    labels = run(0)
    assert_same_labels(labels, whole)
    assert_same_labels(run(1), whole)
    batches = -(-len(small_pool()) // 10) + -(-len(labels.unique) // 10)
    assert len(teacher.shown) == batches  # no image twice


def test_one_reader_serves_all_chunks_of_a_pass(tmp_path):
    """Workers that start anew with every chunk would keep a GPU waiting."""
    pool, folder = small_pool(), tmp_path / "pool"
    folder.mkdir()
    for number, pixels in enumerate(pool.pixels.permute(0, 2, 3, 1).numpy()):
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
    filed = datasets.read_pool(folder, pool.classes)
    with mock.patch.object(reading, "DataLoader", wraps=reading.DataLoader) as loader:
        labels = label(Linear(), filed, tmp_path / "labels", **SMALL)
    assert loader.call_count == 2 and labels.counts["pool"] == 60
    known = dataclasses.replace(pool, labels=filed.labels)  # as little: not their true classes
    assert_same_labels(labels, label(Linear(), known, tmp_path / "in-memory", **SMALL))


def label_shard(number, out):
    try:
        label(Linear(), small_pool(), out, **SMALL, shard=f"{number}/3")
    except Unfinished:
        pass


def test_shards_that_run_at_the_same_time_do_not_disturb_each_other(whole, tmp_path):
    process, out = multiprocessing.get_context("fork"), tmp_path / "labels"
    for _ in range(4):  # pass 1, pass 2, and each time once more if all ended at once
        jobs = [process.Process(target=label_shard, args=(number, out)) for number in range(3)]
        for job in jobs:
            job.start()
        for job in jobs:
            job.join()
            assert job.exitcode == 0
    assert_same_labels(label_store.read(out, small_pool()), whole)
    assert sorted(path.name for path in out.iterdir()) == [
        "balanced.npy", "class.npy", "confidence.npy", "labels.json", "target_class.npy",
        "targets.npy", "unique.npy"]


def test_a_shard_that_comes_as_another_one_completes_takes_nothing_away(tmp_path, whole):
    """Between its first look and its second the folder is completed."""
    folder, complete = tmp_path / "whole", label_store.LabelStore.complete
    looks = iter([False])

    def late(store):
        return next(looks, None) is None and complete(store)

    with mock.patch.object(label_store.LabelStore, "complete", late):
        labels = label(Linear(), small_pool(), folder, shard="0/3", **SMALL)
    assert_same_labels(labels, whole)
    assert not (folder / "progress").exists()


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

    def predict_parts(network, images, parts, real=pseudo_label.predict_parts, **options):
        for part, rows in zip(parts, real(network, images, parts, **options), strict=True):
            numbers = images.pixels[part.start: part.stop, 0, 0, 0].tolist()
            seed, marks = [*options["seed"], part.start], os.listdir(out / "progress")
            with open(log, "a") as file:
                file.write(json.dumps([seed, numbers, marks]) + "\n")
            yield rows

    os.fsync, pseudo_label.predict_parts = fsync, predict_parts
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
            with pytest.raises(InputError, match="no complete"):
                label_store.read(out, small_pool())
    assert kills > 10
    assert_same_labels(label_store.read(out, small_pool()), whole)
    labelled = collections.defaultdict(set)
    for line in log.read_text().splitlines():
        (_, number, first), images, marks = json.loads(line)
        labelled[number].update(images)
        assert f"pass {number}-{first // 10:06}" not in marks  # what is done is not done again
    assert labelled == {1: set(range(60)), 2: set(whole.unique.tolist())}


def test_where_labels_json_was_removed_images_are_selected_anew(tmp_path):
    label(Linear(), small_pool(), tmp_path / "old")
    (tmp_path / "old" / "labels.json").unlink()
    again, new = (label(Linear(), small_pool(), tmp_path / name, per_class=2)
                  for name in ("old", "new"))
    assert_same_labels(again, new)
