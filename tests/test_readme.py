"""What the README shows works as it stands there."""

import re
from pathlib import Path

import pytest
import torch
from doubles import write_teacher
from PIL import Image

import augment
import eval_robust
import iterate
import model
import pseudo_label
import train
from model import Checkpoint
from support import cli
from support.images import UNKNOWN, ImageSet

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_a_checkpoint_in_python_classifies_a_photograph_and_is_exported(
        tmp_path, monkeypatch, capsys):
    guide = (ROOT / "results/photographs.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", guide, re.S)
    out = tmp_path / "runs" / "finetune" / "student-2.pt"
    out.parent.mkdir(parents=True)
    write_teacher(out)
    Image.new("RGB", (90, 60), (200, 30, 30)).save(tmp_path / "photograph.jpg")
    monkeypatch.chdir(tmp_path)
    names, found = {}, Checkpoint.load(out)
    exec(code, names)
    pool = ImageSet(torch.tensor([UNKNOWN]), found.classes, files=("photograph.jpg",))
    expected = pseudo_label.predict(found.network(), pool, found.image_size, workers=0)
    name, probability = capsys.readouterr().out.splitlines()[-1].rsplit(" ", 1)
    assert name == found.classes[expected.argmax()]
    assert float(probability) == pytest.approx(expected.max().item())
    program = torch.export.load(tmp_path / "student.pt2").module()
    logits = names["network"](names["pixels"])
    torch.testing.assert_close(logits.softmax(1), expected)
    torch.testing.assert_close(program(names["pixels"]), logits)


def test_every_flag_in_the_readme_exists(capsys):
    for script in (iterate, train, pseudo_label, eval_robust):
        with pytest.raises(SystemExit):
            cli.parse(script.main, ["--help"])
    known = set(re.findall(r"--[a-z][a-z-]*", capsys.readouterr().out))
    of_others = {"--nproc-per-node", "--numprocesses", "--dist"}  # torchrun, pytest
    assert set(re.findall(r"--[a-z][a-z-]*", README)) <= known | of_others


def test_what_the_readme_names_in_the_code_is_there():
    modules = {"iterate": iterate, "train": train, "pseudo_label": pseudo_label, "augment": augment,
               "eval_robust": eval_robust, "model": model}
    for module, name in re.findall(r"`([a-z_]+)\.(?!py\b)([A-Za-z_]+)", README):
        if module in modules:
            assert hasattr(modules[module], name), f"{module}.{name}"


@pytest.mark.parametrize("link", re.findall(r"\]\((?!http)([^)]+)\)", README))
def test_what_the_readme_links_to_is_there(link):
    assert (ROOT / link).exists()


def test_the_paper_s_claims_have_the_verdicts_of_their_page():
    def claims(text: str) -> str:
        return text.split("| paper | claim | here | verdict |\n")[1].split("\n\n")[0]

    assert claims(README) == claims((ROOT / "results/studies.md").read_text())


def test_the_readme_is_read_in_minutes():
    assert len(README.splitlines()) <= 220
