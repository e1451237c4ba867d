"""The names of a pool in a mapped file: a tuple of strings that takes no memory."""

import multiprocessing
import os
import signal

import numpy as np
import pytest

from support import InputError, devices, files, folders, names

FOUND = ["pool/a.jpg", "pool/é/b c.jpg", "pool/" + os.fsdecode(b"\xff.png"), "pool/z" * 30]


@pytest.fixture
def mapped(tmp_path):
    return names.write(iter(FOUND), tmp_path)


def test_they_are_read_as_a_tuple_is(mapped):
    assert len(mapped) == 4 and list(mapped) == FOUND and FOUND[1] in mapped
    assert [mapped[i] for i in range(-4, 4)] == FOUND * 2
    assert mapped[np.int64(2)] == FOUND[2]
    for outside in (4, -5):
        with pytest.raises(IndexError):
            mapped[outside]


def test_some_of_them_and_some_of_those_are_views(mapped):
    some = names.take(mapped, np.array([3, 1, 1, 0]))
    assert list(some) == [FOUND[3], FOUND[1], FOUND[1], FOUND[0]]
    assert list(names.take(some, np.array([2, 0]))) == [FOUND[1], FOUND[3]]
    assert some.letters is mapped.letters and some.ends is mapped.ends
    assert names.take(tuple(FOUND), np.array([3, 1])) == (FOUND[3], FOUND[1])


def test_their_digest_is_that_of_a_tuple(mapped):
    assert files.digest(mapped) == files.digest(tuple(FOUND)) != files.digest(tuple(FOUND[:3]))


def test_nothing_stays_behind(mapped, tmp_path):
    assert os.listdir(tmp_path) == [] and mapped[0] == FOUND[0]
    assert names.write([], tmp_path) == () and os.listdir(tmp_path) == []

    def fails():
        yield "a.jpg"
        raise InputError("pool/locked: cannot be listed")

    with pytest.raises(InputError, match="cannot be listed"):
        names.write(fails(), tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_process_that_is_killed_while_it_writes_leaves_nothing(tmp_path):
    def killed():
        yield FOUND[0]
        assert os.listdir(tmp_path) == []
        os.kill(os.getpid(), signal.SIGKILL)

    process = multiprocessing.get_context("fork").Process(
        target=names.write, args=(killed(), tmp_path))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL and os.listdir(tmp_path) == []


def test_of_several_machines_each_one_takes_the_names_of_its_own_first_process(monkeypatch):
    """Processes 2 and 3 are the second machine's."""
    monkeypatch.setattr(devices.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(devices.dist, "get_world_size", lambda: 4)
    monkeypatch.setattr(devices.dist, "get_rank", lambda: 3)
    monkeypatch.setenv("LOCAL_RANK", "1")

    def gather(values, own, **group):
        values[:] = "abc" + own

    monkeypatch.setattr(devices.dist, "all_gather_object", gather)
    assert devices.of_this_machine("d") == "c"


def test_no_room_is_one_line(tmp_path):
    with pytest.raises(InputError, match="gone: the names of the images were not written .*room"):
        names.write(FOUND, tmp_path / "gone")


def test_a_folder_is_walked_by_name_its_files_before_its_folders(tmp_path):
    made = ["a.jpg", "a0.jpg", "B/x.jpg", "a-b/x.jpg", "a/lost", "a/x.jpg", "a/y.jpg", "a/y/z.jpg",
            "é/x.jpg"]
    for name in set(made) - {"a/lost"}:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "a" / "again").symlink_to(tmp_path)  # round in a circle
    (tmp_path / "a" / "lost").symlink_to(tmp_path / "nowhere")
    expected = [str(tmp_path / name) for name in made]
    assert list(folders.walk(tmp_path)) == list(folders.walk(f"{tmp_path}/")) == expected
    assert list(folders.walk(tmp_path / "a.jpg")) == [str(tmp_path / "a.jpg")]
