"""Weights of others: the names they come under, and networks that compute what theirs compute."""

from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
import torchvision
from test_model import randomise

import model
from support import InputError

REFERENCES = {
    "timm b0": ("b0", lambda: timm.create_model("tf_efficientnet_b0")),
    "timm b3": ("b3", lambda: timm.create_model("tf_efficientnet_b3")),
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


def test_released_weights_are_read_from_both_formats(tmp_path):
    source = randomise(timm.create_model("tf_efficientnet_b0")).eval()
    torch.save(source.state_dict(), tmp_path / "b0.pth")
    safetensors.torch.save_file(source.state_dict(), tmp_path / "b0.safetensors")
    images = torch.randn(1, 3, 64, 64)
    for name in ("b0.pth", "b0.safetensors"):
        checkpoint = model.Checkpoint.load(tmp_path / name, "b0")
        network = checkpoint.network()
        assert not network.training
        assert (checkpoint.image_size, checkpoint.classes, checkpoint.dropout) == (224, None, 0.2)
        torch.testing.assert_close(network(images), source(images), rtol=1e-3, atol=1e-4)
    with pytest.raises(InputError, match="names its model"):
        model.Checkpoint.load(tmp_path / "b0.pth")
    with pytest.raises(InputError, match="b0.pth cannot be read.*do not fit"):
        model.Checkpoint.load(tmp_path / "b0.pth", "b1")


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
    with pytest.raises(InputError, match="fresh_classifier"):
        model.load_pretrained(model.efficientnet("b0", 20), source)
    del source["head.weight"]
    with pytest.raises(InputError, match="head.weight is missing"):
        model.load_pretrained(model.efficientnet("b0", 10), source)


def test_another_number_of_classes_gets_a_fresh_classifier_when_asked():
    source = model.efficientnet("b0", 10)
    target = model.efficientnet("b0", 20)
    fresh = target.classifier.weight.detach().clone()
    kept = {key: value.clone() for key, value in source.state_dict().items()}
    model.load_pretrained(target, source.state_dict(), fresh_classifier=True)
    assert all(torch.equal(value, kept[key]) for key, value in source.state_dict().items())
    assert torch.equal(target.classifier.weight, fresh)
    assert torch.equal(target.head.weight, source.head.weight)
