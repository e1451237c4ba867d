"""A run's files: claimed, continued after any interruption, logged, and never mixed up."""

import dataclasses
import errno
import json
import math
import re
import signal
import subprocess
import sys
import types
from unittest import mock

import kill_training
import pytest
import tiny
import torch
from tiny import ROOT, TINY, run, same, weights, write_images

import train
from support import InputError, cli, devices, outline, runs

BRIEF = dataclasses.replace(TINY, epochs=0.4)  # one step


@pytest.fixture(scope="module")
def splits():
    return tiny.make_splits()


# ---- A run of anything that has a state ----


class Counter:
    """The least that a run can keep."""

    def __init__(self):
        self.value = torch.zeros(())

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = state["value"]


def make_run(out, total=10, log=4, evaluate=5, save=3, loop=None, **settings):
    every = {"log": log, "evaluate": evaluate, "save": save}
    return runs.Run(out, settings, total, every=every, name="count", loop=loop)


def count(out, until=math.inf, **settings):
    """A run that adds up its steps, as far as step `until`; the sum, and the first step."""
    run, counter = make_run(out, **settings), Counter()
    if run.finished:
        return None
    first = run.resume(network=counter)
    for step, batch in run.steps([batch] for batch in range(first, 10)):
        if step == until:
            raise KeyboardInterrupt
        assert batch == [step]
        counter.value += step
        if run.due("log", step):
            run.log(step, loss=float(counter.value), learning_rate=0.1)
        if run.due("save", step):
            run.save(step)
    run.finish(total=counter.value)
    return int(counter.value), first


@pytest.mark.parametrize(("total", "between"), [(40, 10), (1000, 50), (100_000, 500)])
def test_states_lie_a_twentieth_of_the_run_apart_but_10_to_500_steps(total, between, tmp_path):
    run = make_run(tmp_path / "a.pt", total, save=None)
    saves = [step + 1 for step in range(total) if run.due("save", step)]
    assert saves == [*range(between, total, between)]


def test_processes_that_see_other_states_of_a_run_do_not_part(tmp_path, monkeypatch):
    """As with a disk of its own for each machine."""
    run = make_run(tmp_path / "a.pt")
    monkeypatch.setattr(devices, "gathered", lambda value: [value, value + 1])
    with pytest.raises(InputError, match="states of a run: they need the same disk"):
        run.resume(network=Counter())
    with pytest.raises(InputError, match="states of a run: they need the same disk"):
        make_run(tmp_path / "a.pt")


def test_each_task_is_due_after_its_number_of_steps_and_the_last_one(tmp_path):
    run = make_run(tmp_path / "a.pt")
    due = {what: [step for step in range(10) if run.due(what, step)] for what in run.every}
    assert due["evaluate"] == [4, 9] and due["save"] == [2, 5, 8]
    assert due["log"] == [2, 3, 5, 7, 8, 9]  # with each state, too


def test_the_last_step_saves_no_state_even_if_it_is_its_turn(tmp_path):
    run = make_run(tmp_path / "a.pt", total=9)
    assert [step for step in range(9) if run.due("save", step)] == [2, 5]
    assert run.due("log", 8) and run.due("evaluate", 8)


def test_a_run_goes_on_from_its_last_state_and_ends_with_the_same(tmp_path):
    whole, part = tmp_path / "whole.pt", tmp_path / "part.pt"
    assert count(whole) == (45, 0)
    with pytest.raises(KeyboardInterrupt):
        count(part, until=8)
    assert not part.exists() and (tmp_path / "part.resume").exists()
    assert count(part) == (45, 6)  # after the state of step 5
    steps = [[line["step"] for line in tiny.log_lines(path)] for path in (whole, part)]
    assert steps[0] == steps[1] == [2, 3, 5, 7, 8, 9]
    assert not (tmp_path / "part.resume").exists() and count(part) is None  # finished


@pytest.mark.parametrize("rank", [0, 1])
def test_only_the_process_that_writes_copies_the_whole_state_to_the_host(
        rank, tmp_path, monkeypatch):
    """Eight processes with L2's would need 61 GB."""
    run, parts = make_run(tmp_path / "a.pt"), {"network": Counter(), "average": mock.MagicMock()}
    parts["average"].state_dict.return_value = {}
    run.resume(**parts)
    next(run.steps([[0]]))
    monkeypatch.setattr(runs.devices, "rank", lambda: rank)
    run.save(0)
    assert parts["average"].state_dict.called is (rank == 0) is run.state.exists()


def test_the_seconds_of_a_run_count_those_before_an_interruption(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        count(tmp_path / "a.pt", until=8)
    state = torch.load(tmp_path / "a.resume", weights_only=True)
    assert 0 < state["seconds"] < 100
    torch.save(state | {"seconds": 1000.0}, tmp_path / "a.resume")
    count(tmp_path / "a.pt")
    seconds = [line["seconds"] for line in tiny.log_lines(tmp_path / "a.pt")]
    assert seconds[2] < 100 and 1000 <= seconds[3] <= seconds[-1] < 1100  # after step 5


def test_a_state_or_checkpoint_of_other_settings_is_named_with_the_first_that_differs(tmp_path):
    out = tmp_path / "a.pt"
    with pytest.raises(KeyboardInterrupt):
        count(out, until=5, seed=3, size=[1, 2])
    with pytest.raises(InputError, match=r"a.resume .*other settings \(seed: 3, not 4\): .*other"):
        count(out, seed=4, size=[1, 2])
    count(out, seed=3, size=(1, 2))
    with pytest.raises(InputError, match=r"a.pt .*other settings \(size: \[1, 2\], not \[2\]\)"):
        count(out, seed=3, size=[2])


def test_runs_that_share_a_log_keep_each_others_lines(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_text(json.dumps({"name": "other", "step": 9}) + "\n"
                   + json.dumps({"name": "count", "step": 5}) + "\n")
    runs.trim_log(log, "count", 5)
    assert log.read_text() == json.dumps({"name": "other", "step": 9}) + "\n"


# ---- Finished, interrupted and foreign runs ----


def test_two_processes_at_one_output_are_refused_and_the_first_goes_on(tmp_path):
    first, counter = make_run(tmp_path / "a.pt"), Counter()
    first.resume(network=counter)
    steps = first.steps([[number] for number in range(10)])
    for number, (step, _) in enumerate(steps):
        if number == 4:
            with pytest.raises(InputError, match="a.pt: another process is at this run"):
                make_run(tmp_path / "a.pt")
            make_run(tmp_path / "b.pt")
        counter.value += step
    with pytest.raises(InputError, match="another process is at this run"):
        make_run(tmp_path / "a.pt")  # not yet written
    first.finish(total=counter.value)
    assert make_run(tmp_path / "a.pt").finished
    assert not (tmp_path / "a.lock").exists()


def test_an_interrupted_run_gives_its_place_free(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        count(tmp_path / "a.pt", until=5)
    assert not (tmp_path / "a.lock").exists()
    assert count(tmp_path / "a.pt") == (45, 3)


def test_a_loop_is_not_told_of_what_it_has_finished_itself(tmp_path, capsys):
    """Students of one architecture share their model on the labels alone."""
    loop = outline.Loop(tmp_path / "log.jsonl", [outline.Phase("count", "b0", 32, 3, 1)])
    run = make_run(tmp_path / "a.pt", total=3, loop=loop)
    run.resume(network=Counter())
    assert len([*run.steps([[1]] * 3)]) == 3
    run.finish(total=3)
    capsys.readouterr()
    assert make_run(tmp_path / "a.pt", total=3, loop=loop).finished
    assert "finished already" not in capsys.readouterr().out


def test_a_finished_run_says_so(tmp_path, capsys):
    count(tmp_path / "a.pt")
    capsys.readouterr()
    assert count(tmp_path / "a.pt") is None
    assert capsys.readouterr().out == f"{tmp_path / 'a.pt'}: finished already\n"


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
    path = run(BRIEF, splits, tmp_path / "a.pt")
    before = path.stat().st_mtime_ns
    run(BRIEF, splits, path)
    assert path.stat().st_mtime_ns == before
    with pytest.raises(InputError, match=r"a.pt .*other settings \(seed: 0, not 9\)"):
        run(dataclasses.replace(BRIEF, seed=9), splits, path)


def test_a_run_belongs_to_its_images_and_its_start(splits, tmp_path):
    """What tells images apart is in test_batches.py."""
    start = run(BRIEF, splits, tmp_path / "start.pt", students=False)
    path = run(BRIEF, splits, tmp_path / "a.pt", start=start)
    assert run(BRIEF, splits, path, start=start) == path
    with pytest.raises(InputError, match=r"other settings \(start: "):
        run(BRIEF, splits, path)
    with pytest.raises(InputError, match=r"other settings \(pseudo: "):
        run(BRIEF, splits, path, students=False, start=start)
    other = dataclasses.replace(splits, validation=splits.test)
    with pytest.raises(InputError, match=r"other settings \(validation: "):
        run(BRIEF, other, path, start=start)


@pytest.mark.parametrize("name", ["folder.pt", "text.pt", "weights.pt", "text.pt/below.pt",
                                  "a.resume", "a.jsonl", "log.pt"])
def test_an_output_that_cannot_be_written_is_an_error_and_stays_as_it_is(name, splits, tmp_path):
    (tmp_path / "folder.pt").mkdir()
    (tmp_path / "log.jsonl").mkdir()
    (tmp_path / "text.pt").write_text("text")
    torch.save({"stem.weight": torch.zeros(1)}, tmp_path / "weights.pt")
    with pytest.raises((InputError, OSError), match=re.escape(str(tmp_path))):
        run(TINY, splits, tmp_path / name)
    assert (tmp_path / "text.pt").read_text() == "text" and (tmp_path / "folder.pt").is_dir()
    assert "stem.weight" in torch.load(tmp_path / "weights.pt", weights_only=True)


def test_a_state_that_was_left_behind_by_a_finished_run_is_removed(splits, tmp_path):
    path = run(BRIEF, splits, tmp_path / "a.pt")
    (tmp_path / "a.resume").write_bytes(path.read_bytes())  # killed before it removed it
    run(BRIEF, splits, path)
    assert not (tmp_path / "a.resume").exists()


def test_names_with_a_dot_do_not_share_files(splits, tmp_path):
    for name in ("teacher.0", "teacher.1"):
        run(BRIEF, splits, tmp_path / name, students=False)
    assert {"teacher.0.jsonl", "teacher.1.jsonl"} <= {path.name for path in tmp_path.iterdir()}


# ---- Killed ----


KILLED = """
import os, signal, sys
sys.path[:0] = [{root!r}, {tests!r}]
import tiny
from support import runs
count, write = 0, runs.write_atomically
def killing_write(path, writer):
    global count
    count += 1
    if count == {kill_at}:  # in the middle of the write
        with open(str(path) + ".tmp", "wb") as file:
            file.write(b"half")
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
    write(path, writer)
runs.write_atomically = killing_write
tiny.run(tiny.TINY, tiny.make_splits(), {out!r}, checkpoint_steps=2)
"""


@pytest.mark.parametrize("kill_at", [1, 4])  # the first state; after three of them, the checkpoint
def test_a_run_killed_while_it_saves_ends_with_the_same_weights(kill_at, splits, tmp_path):
    reference = run(TINY, splits, tmp_path / "whole.pt", checkpoint_steps=2)
    out = tmp_path / "killed.pt"
    for kill in (kill_at, 0):
        code = KILLED.format(root=str(ROOT), tests=str(ROOT / "tests"), kill_at=kill, out=str(out))
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert result.returncode == (-signal.SIGKILL if kill else 0), result.stderr
    assert same(weights(out), weights(reference))

    def steps(path):
        return [line["step"] for line in tiny.log_lines(path) if "loss" in line]

    assert steps(out) == steps(reference)  # no line twice, none lost


def test_a_run_killed_at_random_moments_ends_with_the_same_weights(tmp_path):
    whole, killed = tmp_path / "whole.pt", tmp_path / "killed.pt"
    kill_training.train_and_kill(whole, 12, kills=0, seed=0)
    assert len(kill_training.train_and_kill(killed, 12, kills=3, seed=0)) == 3
    assert same(weights(killed), weights(whole))


# ---- A full disk ----


FULL = """
import resource, sys
sys.path.insert(0, {root!r})
import train
from support import cli, runs
count, write = 0, runs.write_atomically
def limited_write(path, writer):
    global count
    count += path.suffix == ".resume"
    if count == 3:  # from here on no file of this process may grow beyond 100 kB
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    write(path, writer)
runs.write_atomically = limited_write
sys.exit(cli.run(train.main, {arguments!r}))
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
    assert cli.run(train.main, arguments) == 0  # with room again it goes on


def test_a_state_that_a_disk_does_not_give_back_is_not_called_another_file(
        splits, tmp_path, monkeypatch):
    """Whoever reads "remove it" would lose the training."""
    run(BRIEF, splits, tmp_path / "a.pt")
    (tmp_path / "a.pt").rename(tmp_path / "a.resume")

    def fail(*arguments, **options):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(runs.torch, "load", fail)
    with pytest.raises(InputError, match="a.resume was not read .*continues once it can be"):
        run(BRIEF, splits, tmp_path / "a.pt")


# ---- The log ----


@pytest.mark.parametrize("content", ['{"text": "mine"}\n', "mine\nall mine\n", "[1]\n[2]\n"])
def test_a_file_in_the_place_of_the_log_stays_as_it_is(content, splits, tmp_path):
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(InputError, match="a.jsonl is in the way and not a log"):
        run(TINY, splits, tmp_path / "a.pt")
    assert (tmp_path / "a.jsonl").read_text() == content


@pytest.mark.parametrize(("first", "second"), [("a.pt", "a.pth"), ("a.pth", "a"), ("a", "a.pt")])
def test_checkpoints_whose_logs_would_have_one_name_are_refused(first, second, splits, tmp_path):
    run(BRIEF, splits, tmp_path / first)
    log = (tmp_path / "a.jsonl").read_text()
    with pytest.raises(InputError, match=f"{first} is there, .*{second} .* another output"):
        run(dataclasses.replace(BRIEF, seed=9), splits, tmp_path / second)
    assert (tmp_path / "a.jsonl").read_text() == log


@pytest.mark.parametrize("validated", [True, False])
def test_weights_that_the_last_step_breaks_are_no_result(validated, splits, tmp_path):
    rate, last = train.learning_rate, dataclasses.replace(
        TINY, labeled_images=len(splits.labeled)).total_steps - 1
    with mock.patch.object(train, "learning_rate", lambda step, config: (
            math.inf if step == last else rate(step, config))):
        with pytest.raises(FloatingPointError, match="weights are not finite in the end"):
            train.train(TINY, splits.labeled, splits.validation if validated else None,
                        out=tmp_path / "a.pt")
    assert not (tmp_path / "a.pt").exists()


def test_a_log_that_cannot_be_written_ends_with_one_line(splits, tmp_path):
    full = types.SimpleNamespace(dumps=mock.Mock(side_effect=OSError("full")))
    with mock.patch.object(runs, "json", full):
        with pytest.raises(InputError, match="a.jsonl: not written .full.; make room"):
            run(TINY, splits, tmp_path / "a.pt")
