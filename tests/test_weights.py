"""Weights of others: the names they come under, and networks that compute what theirs compute."""

import errno
import json
import pickle
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from test_model import randomise

import model
from support import InputError
from support.weights import known_conventions
from train import TrainConfig

REFERENCES = {
    "timm b0": ("b0", lambda: timm.create_model("tf_efficientnet_b0")),
    "timm b7": ("b7", lambda: timm.create_model("tf_efficientnet_b7")),
    "torchvision b0": ("b0", torchvision.models.efficientnet_b0),
    "torchvision b5": ("b5", torchvision.models.efficientnet_b5),
}


@pytest.mark.parametrize("reference", REFERENCES)
@torch.no_grad()
def test_logits_equal_the_sources_of_published_weights(reference):
    name, build = REFERENCES[reference]
    torch.manual_seed(0)
    source = randomise(build()).double().eval()
    ours = model.load_pretrained(model.efficientnet(name).double(), source.state_dict()).eval()
    for size in ((64, 64), (65, 65), (64, 97), (32, 32)):
        images = torch.randn(2, 3, *size, dtype=torch.double)
        expected, logits = source(images), ours(images)
        assert (logits - expected).norm() / expected.norm() < 1e-8, size
        # Wrong padding changes the logits by 4 % or more, as long as the images matter to them.
        assert (expected[1] - expected[0]).norm() / expected.norm() > 1e-4, size


def test_released_weights_need_their_architecture_which_has_a_resolution_and_dropout(tmp_path):
    torch.save(timm.create_model("tf_efficientnet_b0").state_dict(), tmp_path / "b0.pth")
    found = model.Checkpoint.load(tmp_path / "b0.pth", "b0")
    assert (found.image_size, found.dropout) == (224, 0.2)
    with pytest.raises(InputError, match="names its model"):
        model.Checkpoint.load(tmp_path / "b0.pth")
    with pytest.raises(InputError, match="b0.pth cannot be read as a b1's .*do not fit"):
        model.Checkpoint.load(tmp_path / "b0.pth", "b1")


@pytest.mark.parametrize("key", ["state_dict", "model", "ema"])
def test_a_state_dict_under_a_key_of_its_own_is_found(tmp_path, key):
    source = model.efficientnet("0.25x0.5", 10).state_dict()
    torch.save({key: source, "epoch": 7, "optimizer": {"lr": 0.1}}, tmp_path / "wrapped.pth")
    found = model.Checkpoint.load(tmp_path / "wrapped.pth", "0.25x0.5")
    assert all(torch.equal(found.weights[name], value) for name, value in source.items())


@pytest.mark.parametrize(("contents", "said"), [
    ({"model": {"a": torch.ones(1)}, "ema": {"a": torch.ones(1)}}, "it holds model, ema: give a"),
    ({"epoch": 3}, "it holds epoch: give a file that holds a state dict alone"),
    ({}, "it holds nothing"), ([torch.ones(1)], "it holds a list"),
    (torch.ones(1), "it holds a Tensor"),
])
def test_a_file_without_a_state_dict_says_what_it_holds(tmp_path, contents, said):
    torch.save(contents, tmp_path / "other.pth")
    with pytest.raises(InputError, match=f"other.pth cannot be read as a checkpoint .{said}"):
        model.Checkpoint.load(tmp_path / "other.pth", "b0")


def test_a_plain_pickle_is_refused_without_a_word_of_pytorchs(tmp_path, recwarn, capfd):
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps({"weights": np.ones(3)}, protocol=4))
    with pytest.raises(InputError, match="plain.pkl cannot be read as a checkpoint .damaged, or"):
        model.Checkpoint.load(tmp_path / "plain.pkl", "b0")
    assert not recwarn.list and capfd.readouterr() == ("", "")


def test_a_checkpoint_that_a_disk_does_not_give_back_is_not_called_damaged(
        tmp_path, monkeypatch):
    torch.save({}, tmp_path / "a.pt")

    def fail(*arguments, **options):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(InputError, match="a.pt cannot be read as a checkpoint .*Input/output"):
        model.Checkpoint.load(tmp_path / "a.pt")


@pytest.mark.parametrize(("change", "said"), [
    ({"image_size": -4}, "-4 pixels a side"), ({"image_size": 0}, "0 pixels a side"),
    ({"image_size": "large"}, "damaged"), ({"arch": 3}, "damaged"), ({"dropout": 7.0}, "not 0.8"),
    ({"arch": "b9"}, "unknown architecture"),
])
def test_a_checkpoint_with_impossible_settings_is_one_line(tmp_path, change, said):
    network = model.efficientnet("0.25x0.5", 2)
    config = asdict(TrainConfig(arch="0.25x0.5", image_size=32)) | change
    meta = json.dumps({"config": config, "classes": ["a", "b"]})
    torch.save({"model": network.state_dict(), "meta": meta}, tmp_path / "a.pt")
    with pytest.raises(InputError, match=f"a.pt cannot be read as a checkpoint .*{said}"):
        model.Checkpoint.load(tmp_path / "a.pt")


def test_a_checkpoint_names_as_many_classes_as_it_has_logits(tmp_path):
    network = model.efficientnet("0.25x0.5", 3)
    meta = json.dumps({"config": asdict(TrainConfig(arch="0.25x0.5")), "classes": ["a", "b"]})
    torch.save({"model": network.state_dict(), "meta": meta}, tmp_path / "a.pt")
    with pytest.raises(InputError, match="names 2 classes, but has 3 logits"):
        model.Checkpoint.load(tmp_path / "a.pt")


def test_a_file_cannot_run_code(tmp_path):
    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "sprung",)

    torch.save({"model": Trap()}, tmp_path / "trap.pt")
    with pytest.raises(InputError, match="cannot be read as a checkpoint"):
        model.Checkpoint.load(tmp_path / "trap.pt", "b0")
    assert not (tmp_path / "sprung").exists()


def test_weights_that_do_not_fit_are_refused_by_name():
    source = model.efficientnet("b0", 10).state_dict()
    with pytest.raises(InputError, match=r"classifier.weight is \(10, 1280\), not \(20, 1280\)"):
        model.load_pretrained(model.efficientnet("b0", 20), source)
    del source["head.weight"]
    with pytest.raises(InputError, match="head.weight is missing"):
        model.load_pretrained(model.efficientnet("b0", 10), source)


@pytest.mark.parametrize(("name", "expected"), [
    ("efficientnet_b0.ra4_e3600_r224_in1k", (True, 1e-5, True)),
    ("efficientnet_b0_ra-3dd342df", (True, 1e-5, False)),
    ("tf_efficientnet_b0.ap_in1k", (False, 1e-3, True))])
def test_timms_names_say_how_its_networks_pad_and_normalise(name, expected):
    state = {"conv_stem.weight": torch.zeros(1)}
    assert known_conventions(state, Path(f"{name}.pth")) == expected


def test_config_json_speaks_of_weights_under_a_name_that_is_not_timms(tmp_path):
    about = {"architecture": "tf_efficientnet_b0", "pretrained_cfg": {"mean": [0.5] * 3}}
    (tmp_path / "config.json").write_text(json.dumps(about))
    state = {"conv_stem.weight": torch.zeros(1)}
    assert known_conventions(state, tmp_path / "model.pth").halves
    assert not known_conventions(state, tmp_path / "tf_efficientnet_b0_ns-c0e6a31c.pth").halves
    assert not known_conventions({"stem.weight": torch.zeros(1)}, tmp_path / "model.pth").halves
