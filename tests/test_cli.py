"""Command lines from dataclasses, and what becomes of errors."""

import contextlib
import io
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest
import torch

import eval_robust
import iterate
import pseudo_label
import train
from support import InputError, cli

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Flags:
    """What to do

    This second paragraph is not for the help.
    """

    checkpoint: cli.File  # of train.py, or released weights
    out: cli.Folder | None = None  # where the results go
    steps: cli.Count = 10  # of the attack; 100 % of them
    kind: Literal["soft", "hard"] = "soft"  # of targets
    balance: bool = True  # equally many images of each class
    fast: bool = False
    arch: list[str] | None = None  # one for each generation
    epsilon: list[cli.NonNegative] | None = None  # of the attack
    shard: Annotated[str, "I/N"] | None = None  # of the pool
    secret: Annotated[int, cli.NO_FLAG] = 7  # for the program alone


@dataclass(frozen=True)
class Config:
    """How to do it"""

    seed: cli.Whole = 0  # of all chance
    rate: cli.Positive = 0.1  # of learning
    dropout: cli.BelowOne = 0.5  # share of features
    survival: cli.Probability = 0.8  # of a block
    smoothing: cli.Share = 0.1  # of labels
    decay: cli.NonNegative = 0.0  # of weights
    steps: cli.Count = 99  # not the attack's
    labels: Annotated[Literal["soft", "hard"], "--pseudo-labels"] = "soft"  # their kind
    noise: bool = True  # in the model


def flags_alone(flags: Flags) -> None:
    """Help comes from the module, not from here."""


def all_fields(config: Config) -> None:
    pass


def given_fields(flags: Flags, changes: cli.Given[Config]) -> None:
    pass


def two_fields(config: Annotated[Config, "rate", "noise"]) -> None:
    pass


def given_two_fields(changes: Annotated[cli.Given[Config], "rate", "noise"]) -> None:
    pass


def both(flags: Flags, config: Config) -> None:
    pass


def parse(main, *argv):
    return cli.parse(main, [*argv])


def help_of(main, capsys):
    with pytest.raises(SystemExit) as end:
        parse(main, "--help")
    assert end.value.code == 0
    return " ".join(capsys.readouterr().out.split())


# ---- From a dataclass to flags ----


def test_a_field_is_a_flag_and_its_default_holds_without_it():
    assert parse(flags_alone, "--checkpoint", "a.pt") == [Flags("a.pt")]
    (flags,) = parse(flags_alone, "--checkpoint", "a.pt", "--out", "x", "--steps", "3", "--kind",
                     "hard", "--no-balance", "--fast", "--shard", "0/8")
    assert flags == Flags("a.pt", "x", 3, "hard", False, True, None, None, "0/8")


def test_underscores_are_hyphens():
    (machine,) = parse(machine_alone, "--checkpoint-blocks")
    assert machine.checkpoint_blocks and not machine.compile


def machine_alone(machine: train.devices.Machine) -> None:
    pass


def test_a_list_takes_one_or_more():
    for values in (["b0"], ["b0", "b1", "0.5x0.5"]):
        (flags,) = parse(flags_alone, "--checkpoint", "a.pt", "--arch", *values)
        assert flags.arch == values


def test_a_field_without_a_default_is_required(capsys):
    with pytest.raises(SystemExit) as end:
        parse(flags_alone)
    assert end.value.code == 2
    assert "required: --checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [
    ["--kind", "firm"], ["--steps", "many"], ["--stepps", "3"], ["--arch"], ["--secret", "8"],
    ["loose"],
])
def test_what_is_no_flag_or_no_value_exits_with_2(argv, capsys):
    with pytest.raises(SystemExit) as end:
        parse(flags_alone, "--checkpoint", "a.pt", *argv)
    assert end.value.code == 2
    assert argv[0] in capsys.readouterr().err


def test_another_name_of_a_flag():
    for name in ("--labels", "--pseudo-labels"):
        (config,) = parse(all_fields, name, "hard")
        assert config.labels == "hard"


def test_given_are_only_the_fields_that_the_user_gave():
    flags, changes = parse(given_fields, "--checkpoint", "a.pt")
    assert flags == Flags("a.pt") and changes == {}
    _, changes = parse(given_fields, "--checkpoint", "a.pt", "--rate", "0.1", "--no-noise",
                       "--seed", "0", "--pseudo-labels", "soft")
    assert changes == {"rate": 0.1, "noise": False, "seed": 0, "labels": "soft"}


def test_named_fields_alone_have_flags():
    (config,) = parse(two_fields, "--rate", "2", "--no-noise")
    assert config == Config(rate=2.0, noise=False)
    (changes,) = parse(given_two_fields, "--rate", "2")
    assert changes == {"rate": 2.0}
    for main in (two_fields, given_two_fields):
        with pytest.raises(SystemExit):
            parse(main, "--seed", "1")


def test_a_field_of_an_earlier_dataclass_is_not_a_flag_again():
    flags, config = parse(both, "--checkpoint", "a.pt", "--steps", "3", "--seed", "4")
    assert (flags.steps, config.steps, config.seed) == (3, 99, 4)
    flags, changes = parse(given_fields, "--checkpoint", "a.pt", "--steps", "3", "--seed", "4")
    assert flags.steps == 3 and changes == {"seed": 4}


# ---- Ranges and choices ----


@pytest.mark.parametrize(("flag", "good", "bad", "wanted"), [
    ("--seed", "0", "-1", "0 or more"),
    ("--rate", "1e-30", "0.0", "more than 0"),
    ("--rate", "0.5", "inf", "more than 0"),
    ("--rate", "0.5", "nan", "more than 0"),
    ("--dropout", "0.0", "1.0", "0 or more and below 1"),
    ("--dropout", "0.9999999999999999", "-1e-09", "0 or more and below 1"),
    ("--survival", "1.0", "0.0", "more than 0 and up to 1"),
    ("--smoothing", "1.0", "1.0000001", "0 to 1"),
    ("--smoothing", "0.0", "nan", "0 to 1"),
    ("--decay", "0.0", "-0.1", "0 or more"),
    ("--decay", "5.0", "inf", "0 or more"),
    ("--steps", "1", "0", "1 to 1,000,000,000"),
])
def test_a_value_out_of_range_is_refused_with_what_is_wanted(flag, good, bad, wanted):
    (config,) = parse(all_fields, f"{flag}={good}")
    assert str(getattr(config, flag[2:])) == good
    for main in (all_fields, both, given_fields):
        required = () if main is all_fields else ("--checkpoint", "a.pt")
        with pytest.raises(InputError, match=f"^{flag} {bad}: give {wanted}$"):
            parse(main, f"{flag}={bad}", *required)


def test_each_value_of_a_list_is_checked():
    (flags,) = parse(flags_alone, "--checkpoint", "a.pt", "--epsilon", "0", "0.5")
    assert flags.epsilon == [0.0, 0.5]
    for bad in ("-1.0", "nan", "inf"):
        with pytest.raises(InputError, match=f"^--epsilon {bad}: give 0 or more$"):
            parse(flags_alone, "--checkpoint", "a.pt", "--epsilon", "0", bad)


def test_check_also_holds_outside_of_a_command_line():
    cli.check(Config, vars(Config()))
    with pytest.raises(InputError, match="^--rate -1.0: give more than 0$"):
        cli.check(Config, {"rate": -1.0})
    with pytest.raises(InputError, match="^--labels 'firm' .*use one of soft, hard$"):
        cli.check(Config, {"labels": "firm"})


# ---- Help ----


def test_the_comment_behind_a_field_is_its_help(capsys):
    said = help_of(given_fields, capsys)
    for expected in ("--checkpoint FILE of train.py, or released weights",
                     "--out DIR where the results go", "--steps N of the attack; 100 % of them",
                     "--kind {soft,hard} of targets", "--fast, --no-fast",
                     "--balance, --no-balance equally many images of each class",
                     "--shard I/N of the pool", "--arch ARCH [ARCH ...] one for each generation",
                     "--epsilon X [X ...] of the attack", "--rate X of learning",
                     "--labels {soft,hard}", "--pseudo-labels"):
        assert expected in said, expected
    assert "secret" not in said and "not the attack's" not in said


def test_the_help_begins_with_the_module_and_names_each_dataclass(capsys):
    said = help_of(given_fields, capsys)
    assert said.startswith("usage: test_cli.py ")
    assert "Command lines from dataclasses, and what becomes of errors." in said
    assert "What to do:" in said and "How to do it:" in said
    assert "second paragraph" not in said and "not from here" not in said


def test_the_help_names_a_default_that_holds_and_is_not_named_by_the_comment(capsys):
    said = help_of(flags_alone, capsys)
    assert "of the attack; 100 % of them (default: 10)" in said
    assert "of targets (default: soft)" in said and said.count("(default") == 2
    assert "(default" in help_of(all_fields, capsys)
    assert "of learning (default" not in help_of(given_fields, capsys)
    assert help_of(default_in_words, capsys).count("default") == 1


@dataclass(frozen=True)
class InWords:
    """What the comment says"""

    size: cli.Count = 500  # of a batch (default: by the memory)


def default_in_words(flags: InWords) -> None:
    pass


@pytest.mark.parametrize("script", [train, iterate, pseudo_label, eval_robust])
def test_every_flag_of_the_scripts_says_what_it_is(script, capsys):
    with pytest.raises(SystemExit):
        cli.parse(script.main, ["--help"])
    entries = []  # name and text of each flag
    for line in capsys.readouterr().out.splitlines():
        if line.startswith("  -"):
            entries.append(line.strip())
        elif line.startswith("   ") and entries:
            entries[-1] += "  " + line.strip()
        elif line:
            entries.append("")
    flags = [entry for entry in entries if entry.startswith("--")]
    assert len(flags) > 5
    assert not [entry for entry in flags if "  " not in entry]


# ---- Errors and exit codes ----


def raising(error):
    def main(config: Config) -> None:
        raise error

    return main


@pytest.mark.parametrize(("error", "line"), [
    (InputError("x: not there; give another"), "x: not there; give another"),
    (FloatingPointError("the loss is nan"), "the loss is nan"),
    (FileNotFoundError(2, "No such file or directory", "x"),
     "[Errno 2] No such file or directory: 'x'"),
    (MemoryError(), "out of memory: lower --batch-size"),
    (torch.OutOfMemoryError("CUDA out of memory"), "out of memory: lower --batch-size"),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to ..."),
     "out of memory: lower --batch-size"),
    (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."),
     "a worker that reads images was killed, most likely as the memory, or a container's shared "
     "memory, is full: give --workers 0, or start the container with --ipc=host or a"),
    (RuntimeError("Caught RuntimeError in DataLoader worker process 0.\n ... unable to allocate "
                  "shared memory(shm) for file </torch_1>: No space left on device (28)"),
     "a worker that reads images was killed, most likely as"),
    (RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that "
                  "dataloader's workers are out of shared memory."),
     "a worker that reads images was killed, most likely as"),
])
def test_what_the_user_can_mend_is_one_line_and_the_code_2(error, line, capsys):
    assert cli.run(raising(error), []) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"test_cli.py: {line}") and said.count("\n") == 1


def test_an_interrupt_says_that_the_command_continues(capsys):
    assert cli.run(raising(KeyboardInterrupt()), []) == 130
    said = "interrupted; the same command continues from what is kept, if any"
    assert capsys.readouterr().err == f"\ntest_cli.py: {said}\n"


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyError("a bug"), RuntimeError("a bug")])
def test_a_bug_of_ours_keeps_its_traceback(error):
    with pytest.raises(type(error)):
        cli.run(raising(error), [])


def test_a_run_without_an_error_ends_with_0():
    assert cli.run(all_fields, []) == 0


def test_torchruns_processes_part_only_when_all_are_done(tmp_path):
    """One that leaves the others' connections open, or them alone, may abort at its exit."""
    script = tmp_path / "slow.py"
    script.write_text(f'''"""The first process takes longer"""
import sys, time
from dataclasses import dataclass
from pathlib import Path
sys.path.insert(0, {str(ROOT)!r})
from support import cli, devices

@dataclass(frozen=True)
class Flags:
    """None"""

def main(flags: Flags) -> None:
    devices.choose("cpu")
    if devices.rank() == 0:
        time.sleep(2)
        Path("done").touch()

status = cli.run(main)
assert Path("done").exists() and not devices.dist.is_initialized()
sys.exit(status)
''')
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
               "--standalone", script]
    result = subprocess.run(command, cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"},
                            capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]


def test_the_arguments_of_the_process_are_the_default(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x.py", "--rate", "0.25"])
    assert cli.parse(all_fields) == [Config(rate=0.25)]


def test_what_the_terminal_cannot_show_comes_as_an_escape(monkeypatch):
    def main(config: Config) -> None:
        print("caf\udce9 \u00e9")  # a name that is not UTF-8, and a letter that ASCII lacks
        raise InputError("na\u00efve: not there")

    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="ascii") for _ in range(2))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        assert cli.run(main, []) == 2
        sys.stdout.flush()
        sys.stderr.flush()
    assert out.buffer.getvalue() == b"caf\\udce9 \\xe9\n"
    assert err.buffer.getvalue() == b"test_cli.py: na\\xefve: not there\n"


@pytest.mark.parametrize("command", [
    "train.py --labeled x --out x", "iterate.py", "pseudo_label.py --teacher x --unlabeled x",
    "eval_robust.py --checkpoint x --suite quick --data-dir x --out x"])
def test_the_scripts_end_with_one_line_and_the_code_of_their_error(command):
    result = subprocess.run([sys.executable, *command.split(), "--workers", "-1"], cwd=ROOT,
                            capture_output=True, text=True)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    said = f"{command.split()[0]}: --workers -1: give 0 to 1,000"
    assert result.stderr.splitlines()[-1] == said


def test_a_command_does_not_wait_for_packages_that_few_commands_need():
    slow = "torchvision", "matplotlib", "torch_xla", "av", "scipy"
    code = f"import iterate, sys; print(sys.modules.keys() & {{*{slow}}})"
    root = Path(cli.__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr


def test_pip_is_told_in_one_line_how_to_run_the_scripts(tmp_path):
    root = Path(cli.__file__).parent.parent
    (tmp_path / "support").mkdir()
    for name in ("pyproject.toml", "support/no_package.py"):
        (tmp_path / name).write_bytes((root / name).read_bytes())
    command = [sys.executable, "-m", "pip", "--no-cache-dir", "install", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    said = done.stdout + done.stderr
    assert done.returncode == 1 and "Traceback" not in said
    assert "In this folder: pip install -r requirements.txt, and then python iterate.py" in said
