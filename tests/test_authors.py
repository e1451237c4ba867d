"""The authors' code and ours on the same inputs.

authors_step.npz and authors_randaugment.npz are figures of google-research/noisystudent, run in
TensorFlow 1.15.5 on made-up inputs: of each variable the value before six training steps, and of
its first 400 numbers the value after them; of the images what each operation made of one.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

import augment
import train
from model import EfficientNet
from support.optimization import ModelEMA

HERE = Path(__file__).parent
STEP = np.load(HERE / "authors_step.npz")
OPERATIONS = np.load(HERE / "authors_randaugment.npz")

# ---- Six training steps ----


def our_name(name: str) -> str:
    """Our name of a variable of theirs, such as "blocks_3/se/conv2d_1/kernel"."""
    blocks = [(stage, number) for stage, count in enumerate((1, 1, 1, 2, 2, 2, 1))
              for number in range(count)]
    place, *layer, leaf = name.split("/")
    layer = "/".join(layer)
    if place.startswith("blocks"):
        stage, number = blocks[int(place.removeprefix("blocks_"))]
        layers = {"conv2d": "expand", "conv2d_1": "project", "depthwise_conv2d": "depthwise",
                  "se/conv2d": "squeeze", "se/conv2d_1": "excite",
                  "tpu_batch_normalization": "expand_norm",
                  "tpu_batch_normalization_1": "depthwise_norm",
                  "tpu_batch_normalization_2": "project_norm"}
        if stage == 0:  # no expansion
            layers |= {"conv2d": "project", "tpu_batch_normalization": "depthwise_norm",
                       "tpu_batch_normalization_1": "project_norm"}
        layer = f"stages.{stage}.{number}.{layers[layer]}"
    else:
        layer = {"conv2d": place, "tpu_batch_normalization": f"{place}_norm",
                 "dense": "classifier"}[layer]
    return f"{layer}." + {"kernel": "weight", "depthwise_kernel": "weight", "gamma": "weight",
                          "beta": "bias", "bias": "bias", "moving_mean": "running_mean",
                          "moving_variance": "running_var"}[leaf]


def as_ours(name: str, value: np.ndarray) -> torch.Tensor:
    """A kernel (height, width, in, out), depthwise (height, width, channels, 1), as PyTorch's."""
    if value.ndim == 4:
        value = value.transpose((2, 3, 0, 1) if "depthwise" in name else (3, 2, 0, 1))
    return torch.from_numpy(np.ascontiguousarray(value.T if value.ndim == 2 else value))


def as_theirs(name: str, value: torch.Tensor) -> np.ndarray:
    """The first 400 numbers in the order of the authors' variable."""
    value = value.numpy()
    if value.ndim == 4:
        value = value.transpose((2, 3, 0, 1) if "depthwise" in name else (2, 3, 1, 0))
    return (value.T if value.ndim == 2 else value).reshape(-1)[:400]


@pytest.fixture(scope="module")
def trained():
    """Our network after the six steps, its average, and the losses."""
    network = EfficientNet(0.25, 0.5, 10, dropout=0.0, survival_prob=1.0, small_images=True)
    state = network.state_dict()
    for number, name in enumerate(STEP["names"]):
        state[our_name(name)] = as_ours(name, STEP[f"v0_{number}"])
    network.load_state_dict(state)
    network.train()
    config = train.TrainConfig(arch="0.25x0.5")  # RMSProp, weight decay 1e-5, "official"
    optimizer, average = train.make_optimizer(network, config), ModelEMA(network)
    losses = []
    for step, rate in enumerate(STEP["lr"]):
        images = torch.from_numpy(STEP["X"][step]).permute(0, 3, 1, 2)
        labels = torch.from_numpy(STEP["Y"][step]).long()
        loss = train.joint_loss(network(images), labels, torch.from_numpy(STEP["P"][step]), 0.1,
                                config.normalization)
        decayed = sum(value.square().sum() / 2 for name, value in network.named_parameters()
                      if "norm" not in name)
        losses.append((loss + config.weight_decay * decayed).item())
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = float(rate)
        optimizer.step()
        average.update(network, step)
    return network.state_dict(), average.network.state_dict(), losses


def test_the_loss_of_six_steps_is_the_authors(trained):
    np.testing.assert_allclose(trained[2], STEP["loss"], rtol=1e-5)


def maps(name: str) -> int:
    """How many values of a channel a BatchNorm sees: 16 images, 16x16 pixels, stem at stride 2."""
    stage, number = (int(name[7]), int(name[9])) if name.startswith("stages") else (
        (0, 0) if name.startswith("stem") else (6, 0))
    sides = (8, 8, 8, 4, 4, 2, 2)
    entering = sides[stage - 1] if number == 0 and "expand" in name and stage else sides[stage]
    return 16 * entering**2


def change_of(number: int, name: str, state: dict) -> tuple[np.ndarray, np.ndarray]:
    """Our change of a variable in six steps, and theirs."""
    before = STEP[f"v0_{number}"].reshape(-1)[:400]
    ours = as_theirs(name, state[our_name(name)])
    if name.endswith("moving_variance"):  # PyTorch divides by one less than the count
        count, kept = maps(our_name(name)), 0.99**6
        ours = kept * before + (ours - kept * before) * (count - 1) / count
    return ours - before, STEP[f"v1_{number}"] - before


def test_every_variable_changes_in_six_steps_as_the_authors(trained):
    """To 1e-4 of the change, the variables of a kind together, and one by one to 1e-3 (or to what
    single precision leaves of biases that hardly change)."""
    kinds = {}
    for number, name in enumerate(STEP["names"]):
        ours, theirs = change_of(number, name, trained[0])
        kinds.setdefault(name.split("/")[-1], []).append((ours, theirs))
        assert np.linalg.norm(ours - theirs) <= 1e-3 * np.linalg.norm(theirs) + 1e-7, name
    for kind, changes in kinds.items():
        ours, theirs = map(np.concatenate, zip(*changes, strict=True))
        assert np.linalg.norm(ours - theirs) <= 1e-4 * np.linalg.norm(theirs), kind
    assert len(STEP["names"]) == len([key for key in trained[0] if "tracked" not in key])


def test_the_average_of_the_weights_is_the_authors(trained):
    ours, theirs, before = [], [], []
    for number, name in enumerate(STEP["names"]):
        if f"e1_{number}" in STEP.files and not name.endswith("moving_variance"):
            ours.append(as_theirs(name, trained[1][our_name(name)]))
            theirs.append(STEP[f"e1_{number}"])
            before.append(STEP[f"v0_{number}"].reshape(-1))
    ours, theirs, before = map(np.concatenate, (ours, theirs, before))
    assert np.linalg.norm(ours - theirs) <= 1e-4 * np.linalg.norm(theirs - before)


# ---- RandAugment ----


IMAGE = torch.from_numpy(OPERATIONS["image"]).permute(2, 0, 1)[None]
STORED = [key for key in OPERATIONS.files if key != "image"]


def apply(name: str, magnitude: float, image: torch.Tensor = IMAGE) -> np.ndarray:
    value = augment.level_to_value(name, magnitude, 32)
    changed = augment.apply_operation(image, name, torch.tensor([value]))
    return changed[0].permute(1, 2, 0).numpy().astype(int)


@pytest.mark.parametrize("key", STORED)
def test_every_operation_is_the_authors_at_every_stored_magnitude(key):
    name, magnitude = key.split("_")
    theirs = OPERATIONS[key].astype(int)
    difference = np.abs(apply(name, float(magnitude)) - theirs)
    if name in ("Color", "Sharpness"):  # rounding, times the factor: theirs rounds gray to bytes
        factor = augment.level_to_value(name, float(magnitude), 32)
        assert difference.max() <= max(1, abs(factor - 1) + 1)
    elif name in ("ShearX", "ShearY"):  # half a pixel: theirs turns about corners, PIL's centers
        assert (difference.max(2) > 0).mean() <= 0.3
    elif name == "Contrast":  # their slip: gray is not the mean but height * width / 256
        factor = augment.level_to_value(name, float(magnitude), 32)
        blended = 4 + factor * (OPERATIONS["image"].astype(float) - 4)
        assert np.abs(np.clip(blended, 0, 255) - theirs).max() < 1.001
    else:
        assert difference.max() == 0


def test_all_operations_but_cutout_which_draws_its_place_are_stored():
    assert {key.split("_")[0] for key in STORED} == {*augment.OPERATIONS} - {"Cutout"}
    assert sum(key.startswith("Rotate") for key in STORED) == 13
