"""Files are whole or not there, and belong to the settings that they were made with."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from support import InputError, files

# ---- Several processes ----


def test_processes_that_find_different_images_are_refused(monkeypatch):
    files.require_agreement({"pool": "a"})
    monkeypatch.setattr(files.devices, "gathered", lambda value: [value, {"pool": "b"}])
    with pytest.raises(InputError, match="find different images, settings or states of a run"):
        files.require_agreement({"pool": "a"})


# ---- Written whole ----


def test_interrupted_write_leaves_the_old_file_and_no_other(tmp_path):
    def fail(file):
        file.write(b"half")
        raise KeyboardInterrupt

    files.write_atomically(tmp_path / "file", lambda file: file.write(b"whole"))
    with pytest.raises(KeyboardInterrupt):
        files.write_atomically(tmp_path / "file", fail)
    assert (tmp_path / "file").read_bytes() == b"whole"
    assert len([*tmp_path.iterdir()]) == 1


def test_a_link_to_a_file_stays_a_link(tmp_path):
    """As where a large output, or /dev/stdout, lies elsewhere."""
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for contents in b"old", b"new":
        files.write_atomically(tmp_path / "link", lambda file: file.write(contents))  # noqa: B023
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "elsewhere").read_bytes() == contents
    assert len([*tmp_path.iterdir()]) == 2


def test_a_full_disk_is_one_clear_line_and_leaves_the_old_file_and_no_other(tmp_path):
    def fail(file):
        try:
            raise OSError(28, "No space left on device")
        except OSError:
            raise RuntimeError("PytorchStreamWriter failed")  # noqa: B904  (as torch.save does)

    files.write_json(tmp_path / "file", {"a": 1})
    with pytest.raises(InputError, match="file: not written .*No space left.*; make room"):
        files.write_atomically(tmp_path / "file", fail)
    assert json.loads((tmp_path / "file").read_text()) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("error", [InputError("broken.jpg"), RuntimeError("a worker was killed")])
def test_what_goes_wrong_while_the_contents_are_made_is_no_full_disk(tmp_path, error):
    def fail(file):
        file.write(b"a half")
        raise error

    with pytest.raises(type(error), match=str(error)):
        files.write_atomically(tmp_path / "file", fail)
    assert not list(tmp_path.iterdir())


# ---- Contents ----


def test_a_digest_is_of_contents_and_their_order():
    values = torch.arange(6)
    assert files.digest(values) == files.digest(values.numpy()) == files.digest(values.clone())
    assert files.digest(values) != files.digest(values.flip(0))
    assert files.digest("one", values) == files.digest(b"one", values)
    assert files.digest("one", "two") != files.digest("two", "one")
    assert len({files.digest(), files.digest("one"), files.digest("one", values)}) == 3


def test_a_digest_does_not_depend_on_how_an_array_lies_in_memory():
    values = np.arange(12).reshape(3, 4)
    assert files.digest(values.T) == files.digest(np.ascontiguousarray(values.T))
    assert files.digest(values.T) != files.digest(values)
    assert len(files.digest("b\udcff.png")) == 32  # a file's name that is not text


# ---- Settings ----

SETTINGS = {"seed": 1, "classes": ("cat", "dog"), "config": {"rate": 0.1, "steps": 5},
            "start": None}


def test_settings_are_the_same_after_a_trip_through_json():
    files.require_same("x.pt", json.loads(json.dumps(SETTINGS)), SETTINGS)
    files.require_same("x.pt", {"1": [2, [3]]}, {1: (2, (3,))})


@pytest.mark.parametrize(("change", "named"), [
    ({"seed": 2, "start": "x"}, "seed: 2, not 1"),
    ({"classes": ["dog", "cat"]}, r"classes: \['dog', 'cat'\], not \['cat', 'dog'\]"),
    ({"classes": ["ant", "dog"]}, r"classes: \['ant'\], not \['cat'\]"),  # the rest is equal
    ({"config": {"rate": 0.1, "steps": 6}, "start": "x"}, "steps: 6, not 5"),
    ({"config": {"rate": 0.1}}, "steps: None, not 5"),
    ({"config": None}, "None, not"),
    ({"start": "x"}, "start: 'x', not None"),
])
def test_the_first_setting_that_differs_is_named(change, named):
    with pytest.raises(InputError, match=f"^x.pt belongs to a run with other .*{named}") as raised:
        files.require_same("x.pt", json.loads(json.dumps(SETTINGS | change)), SETTINGS)
    assert "\n" not in str(raised.value)


def test_a_part_that_only_the_file_has_is_a_difference_within_a_setting():
    found = {"images": {"labeled": "a", "pseudo": "b"}, "top1": 3}
    files.require_same("x.pt", found, {"images": {"labeled": "a", "pseudo": "b"}})
    with pytest.raises(InputError, match="pseudo: 'b', not None"):
        files.require_same("x.pt", found, {"images": {"labeled": "a"}})


def test_what_is_no_dict_of_settings_is_no_run_of_them():
    with pytest.raises(InputError, match="other settings"):
        files.require_same("x.pt", ["seed", 1], SETTINGS)


# ---- Claims ----


def test_a_lock_is_one_processs_at_a_time_and_leaves_nothing_behind(tmp_path):
    with files.lock("a run", tmp_path / "a.lock"):
        said = f"^a run: another process is at this run .number {os.getpid()} on .*; wait for it"
        with pytest.raises(InputError, match=said):
            with files.lock("a run", tmp_path / "a.lock"):
                raise AssertionError("two at once")
        with files.lock("another run", tmp_path / "b.lock"):
            pass
    assert list(tmp_path.iterdir()) == []
    with files.lock("a run", tmp_path / "a.lock"):
        pass


def test_a_lock_that_a_killed_process_left_behind_is_free(tmp_path):
    code = f'''
import os, signal
from support import files
with files.lock("x", {str(tmp_path / "a.lock")!r}):
    os.kill(os.getpid(), signal.SIGKILL)
'''
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent)
    assert (tmp_path / "a.lock").exists()
    with files.lock("x", tmp_path / "a.lock"):
        pass


def test_worker_processes_do_not_hold_the_lock_of_a_process_that_was_killed(tmp_path):
    code = f'''
import os, signal, time
from support import files
with files.lock("x", {str(tmp_path / "a.lock")!r}):
    worker = os.fork()
    if worker == 0:
        time.sleep(60)
        os._exit(0)
    print(worker, flush=True)
    time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGKILL)
'''
    with subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parent.parent,
                          stdout=subprocess.PIPE, text=True) as job:
        worker = int(job.stdout.readline())
        job.wait()
        with files.lock("x", tmp_path / "a.lock"):
            os.kill(worker, signal.SIGKILL)


def test_of_many_processes_that_start_together_one_alone_claims_a_run(tmp_path):
    code = f'''
import sys, time
from pathlib import Path
from support import InputError, files
Path({str(tmp_path)!r}, "ready" + sys.argv[1]).touch()
while len(list(Path({str(tmp_path)!r}).glob("ready*"))) < 4:
    pass
try:
    with files.claim(Path({str(tmp_path)!r}, "run"), {{"job": sys.argv[1]}}):
        time.sleep(2)
        print("claimed", flush=True)
except InputError as error:
    print(error)
'''
    jobs = [subprocess.Popen([sys.executable, "-c", code, str(number)], stdout=subprocess.PIPE,
                             text=True, cwd=Path(__file__).parent.parent) for number in range(4)]
    said = [job.communicate()[0] for job in jobs]
    winner = said.index("claimed\n")
    assert sum(line == "claimed\n" for line in said) == 1
    assert json.loads((tmp_path / "run" / "config.json").read_text()) == {"job": str(winner)}


@pytest.mark.parametrize("out", ["pool", "pool/labels", "pool/deep/../labels", "link/labels"])
def test_an_output_among_the_images_is_refused(tmp_path, out):
    (tmp_path / "pool").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "pool")
    with pytest.raises(InputError, match="would become a part of it"):
        files.require_place(tmp_path / out, [None, tmp_path / "other", tmp_path / "pool"])
    files.require_place(tmp_path / "pool labels", [None, tmp_path / "pool"])


def test_a_place_that_cannot_be_written_is_refused_before_any_work(tmp_path):
    with pytest.raises(InputError, match="^/proc/x/y: /proc cannot be written to"):
        files.require_place("/proc/x/y", [])
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file/x: .*file cannot be written to .Not a directory"):
        files.require_place(tmp_path / "file" / "x", [])
    files.require_place(tmp_path / "x" / "y", [])
    assert not (tmp_path / "x").exists()


def test_a_claim_of_other_settings_is_refused_and_changes_nothing(tmp_path):
    with files.claim(tmp_path, {"seed": 1, "sizes": (2, 3)}):
        pass
    before = (tmp_path / "config.json").read_bytes()
    with files.claim(tmp_path, {"seed": 1, "sizes": [2, 3]}):
        pass
    with pytest.raises(InputError, match=f"{tmp_path}.*other settings .seed: 1, not 2"):
        with files.claim(tmp_path, {"seed": 2, "sizes": (2, 3)}):
            raise AssertionError("claimed")
    assert (tmp_path / "config.json").read_bytes() == before


def test_a_place_that_cannot_be_claimed_stays_as_it_is(tmp_path):
    damaged, taken = tmp_path / "run" / "config.json", tmp_path / "file"
    damaged.parent.mkdir()
    for place, kept, complaint in ((damaged.parent, damaged, "is damaged"),
                                   (taken, taken, "File exists: '.*file'")):
        kept.write_text("{")
        with pytest.raises((InputError, OSError), match=complaint), files.claim(
                place, {"seed": 1}):
            raise AssertionError("claimed")
        assert kept.read_text() == "{"


def test_a_digest_takes_weights_in_bfloat16():
    weights = torch.tensor([1.5, -2.0], dtype=torch.bfloat16)
    assert files.digest(weights) == files.digest(weights.float())


def test_the_place_of_an_output_is_itself_or_its_nearest_parent(tmp_path):
    (tmp_path / "out").mkdir()
    assert files.require_place(tmp_path / "out", []) == tmp_path / "out"
    assert files.require_place(tmp_path / "out" / "new" / "a.pt", []) == tmp_path / "out"


def test_a_lock_on_a_file_that_was_replaced_meanwhile_is_taken_again(tmp_path, monkeypatch):
    path, taken, flock = tmp_path / "a.lock", [], files.fcntl.flock

    def late(file, how):
        flock(file, how)
        taken.append(file)
        if len(taken) == 1:  # the one before released it meanwhile, and another one made it anew
            path.unlink()
            path.touch()

    monkeypatch.setattr(files.fcntl, "flock", late)
    with files.lock("a run", path):
        assert len(taken) == 2
