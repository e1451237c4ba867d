"""One notion of device: what is there, what is not, and equal numbers on XLA."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import device

ROOT = Path(__file__).parent.parent


def test_auto_finds_a_device():
    assert device.choose("auto").type in ("cpu", "cuda", "mps")


def test_an_unknown_device_is_an_error():
    with pytest.raises(ValueError, match="unknown device 'gpu'"):
        device.choose("gpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="the device is there")
def test_a_missing_gpu_is_an_error_that_says_what_to_do():
    with pytest.raises(ValueError, match="cuda is not there.*--device auto"):
        device.choose("cuda")


TRAIN = """
import dataclasses, json, sys
sys.path[:0] = [{root!r}, {tests!r}]
import device
chosen = device.choose({name!r})
import data, pseudo_label, test_train, train
config = dataclasses.replace(test_train.TINY, dropout=0.0, survival_prob=1.0, epochs=1)
splits = data.demo(0, labels_per_class=2, unlabeled=60, val_per_class=2, test_per_class=2)
path = test_train.run(config, splits, {out!r}, device=chosen)
network, _ = pseudo_label.load_teacher(path, chosen)
rows = pseudo_label.predict(network, splits.test, device=chosen)
fallbacks = compilations = 0
if chosen.type == "xla":
    import torch_xla.debug.metrics as metrics
    fallbacks = [name for name in metrics.counter_names() if name.startswith("aten::")]
    fallbacks = [name for name in fallbacks if name != "aten::_local_scalar_dense"]
    compilations = metrics.metric_data("CompileTime")[0]
lines = [json.loads(line) for line in path.with_suffix(".jsonl").read_text().splitlines()]
print(json.dumps({{"loss": [line["loss"] for line in lines if "loss" in line],
                   "rows": rows.tolist(), "fallbacks": fallbacks,
                   "compilations": compilations}}))
"""


def test_two_virtual_xla_devices_train_and_label_as_the_cpu_does(tmp_path):
    pytest.importorskip("torch_xla")
    results = {}
    for name in ("cpu", "xla"):
        code = TRAIN.format(root=str(ROOT), tests=str(ROOT / "tests"), name=name,
                            out=str(tmp_path / f"{name}.pt"))
        environment = os.environ | {"PJRT_DEVICE": "CPU", "CPU_NUM_DEVICES": "2"}
        result = subprocess.run([sys.executable, "-c", code], env=environment,
                                capture_output=True, text=True)
        assert result.returncode == 0, result.stderr[-3000:]
        results[name] = json.loads(result.stdout.splitlines()[-1])
    assert results["xla"]["fallbacks"] == []
    torch.testing.assert_close(
        torch.tensor(results["xla"]["loss"]), torch.tensor(results["cpu"]["loss"]),
        rtol=2e-3, atol=2e-3,
    )
    torch.testing.assert_close(
        torch.tensor(results["xla"]["rows"]), torch.tensor(results["cpu"]["rows"]),
        rtol=0, atol=5e-3,
    )
