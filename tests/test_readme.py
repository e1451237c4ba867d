"""What the README shows works as it stands there."""

import re
from pathlib import Path

import tiny
import torch
from PIL import Image

from support import demo_images

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_a_checkpoint_in_python_classifies_a_photograph_and_is_exported(
        tmp_path, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    splits = tiny.make_splits()
    out = tmp_path / "runs" / "finetune" / "student-2.pt"
    tiny.run(tiny.TINY, splits, out, students=False)
    Image.new("RGB", (90, 60), (200, 30, 30)).save(tmp_path / "photograph.jpg")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code, names)
    assert capsys.readouterr().out.splitlines()[-1] in demo_images.CLASSES
    program = torch.export.load(tmp_path / "student.pt2").module()
    logits = names["network"](names["pixels"])
    torch.testing.assert_close(program(names["pixels"]), logits)


def test_the_readme_is_read_in_minutes():
    assert len(README.splitlines()) <= 220
