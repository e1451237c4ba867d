"""Files of weights, read as data, and the names that other libraries give the weights.

There are three sources of a state dict, recognised by their keys:

    our own        what train.py saves
    timm           tf_efficientnet_*: TensorFlow's weights, among them all released Noisy
                   Students; and timm's own efficientnet_*, known by the file's name or config.json
    torchvision    efficientnet_*

`our_names` translates the last two. Where their networks compute differently, a file has
`Conventions`, which `imitate` adopts and every checkpoint trained from such weights keeps.
"""

import contextlib
import json
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch
from torch import Tensor, nn

from support import InputError, files
from support.images import DEVIATION, MEAN, say_once

# The 1000 classes of ImageNet ("wnids", in the order of the logits), which released weights know.
IMAGENET = json.loads(Path(__file__).with_name("classes.json").read_text())


class Conventions(NamedTuple):
    """How the network that some weights were trained in pads and normalises; ours by default."""

    symmetric: bool = False  # padding by kernel // 2 on every side, not TensorFlow's SAME
    epsilon: float = 1e-3  # of BatchNorm
    halves: bool = False  # images normalised by a mean and deviation of 0.5, not by ImageNet's


@contextlib.contextmanager
def read_checkpoint(path: str | Path, arch: str | None = None) -> Iterator[dict]:
    """The fields of model.Checkpoint that a file holds: a checkpoint of train.py holds all of them.

    Released weights (a state dict, in PyTorch's or the safetensors format) need their `arch`. The
    file is read as data: no file can run code here. Whatever goes wrong, also inside the `with`
    statement, comes out as an InputError of one line.
    """
    if not Path(path).is_file():
        raise InputError(f"there is no checkpoint {path}: train one with train.py, "
                         "or give a file of released weights")
    kind = "checkpoint"
    try:
        if Path(path).suffix == ".safetensors":
            contents = safetensors.torch.load_file(path)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of PyTorch, about files of other programs
                contents = torch.load(path, map_location="cpu", weights_only=True)
        if isinstance(contents, dict) and "meta" in contents:
            yield _fields(json.loads(contents["meta"]), contents)
        elif arch is None:
            raise InputError("released weights: only a checkpoint of train.py names its model; "
                             "train one with --start-from")
        else:
            state, kind = _unwrapped(contents), f"{arch}'s weights: give --arch"
            if "classifier.bias" not in our_names(state):
                raise InputError("these are not an EfficientNet's: the layers are "
                                 f"{', '.join([*state][:3])}, ...")
            of_imagenet = len(our_names(state)["classifier.bias"]) == 1000
            yield {"arch": arch, "weights": state,
                   "classes": tuple(IMAGENET["wnids"]) if of_imagenet else None,
                   "conventions": known_conventions(state, Path(path))}
    except Exception as error:  # a broken file, or one of another kind, raises nearly anything
        reason = "damaged, or holds other objects than tensors"
        if isinstance(error, (ValueError, OSError)):
            reason = " ".join(str(error).split())
        raise InputError(f"{path} cannot be read as a {kind} ({reason})") from None


def _unwrapped(contents: object) -> dict[str, Tensor]:
    """A file's state dict, which may lie under a key of its own beside other things."""
    def is_state(value: object) -> bool:
        return isinstance(value, dict) and value and all(
            isinstance(weight, Tensor) for weight in value.values())

    if is_state(contents):  # of a network that was distributed, or compiled, names begin so
        return {re.sub(r"^(module\.|_orig_mod\.)+", "", name): weight
                for name, weight in contents.items()}
    if not isinstance(contents, dict):
        raise InputError(f"it holds a {type(contents).__name__}, not a state dict")
    found = [key for key, value in contents.items() if is_state(value)]
    if len(found) != 1:
        raise InputError(f"it holds {', '.join(map(str, contents)) or 'nothing'}: give a file "
                         "that holds a state dict alone")
    return _unwrapped(contents[found[0]])


def _fields(meta: dict, contents: dict) -> dict:
    """model.Checkpoint's fields in a file that train.py has written."""
    if "network" in contents:
        raise InputError("the state of a training: its command, given again, finishes it")
    config = meta["config"]
    same = ("arch", "image_size", "dropout", "survival_prob", "small_images")
    if not 0 < config["image_size"] <= 10_000:
        raise InputError(f"its images have {config['image_size']} pixels a side")
    if len(meta["classes"]) != len(contents["model"]["classifier.bias"]):
        raise InputError(f"it names {len(meta['classes'])} classes, but has "
                         f"{len(contents['model']['classifier.bias'])} logits")
    return {key: config[key] for key in same} | {
        "weights": contents["model"], "classes": tuple(meta["classes"]),
        "rand_augment": (config["rand_augment_operations"], config["rand_augment_magnitude"]),
        "val_top1": contents.get("val_top1"),
        "conventions": Conventions(*contents.get("conventions", ())),
    }


def fingerprint(found) -> str:
    """A hash of a model.Checkpoint's weights and, unless they are ours, its conventions."""
    foreign = [str(found.conventions)] if found.conventions != Conventions() else []
    return files.digest(*found.weights.values(), *foreign)


def check_start(path: str | Path, found, config, classes: tuple[str, ...]) -> bool:
    """Whether a training that starts from a checkpoint needs a classifier for other classes.

    InputError if the training cannot start from that checkpoint.

    Args:
        found, config: model.Checkpoint and train.TrainConfig; classes: the labelled images'.
    """
    fresh = found.classes != classes
    if fresh:
        outputs = len(our_names(found.weights)["classifier.bias"])
        if config.frozen_stages:
            raise InputError(f"{path} knows other classes than the labelled images: the resolution "
                             "fix and --frozen-stages need the same ones")
        say_once(f"{path}: its classifier of {outputs:,} classes is replaced by a fresh one of "
                 f"{len(classes)}")
    if (found.arch, found.small_images) != (config.arch, config.small_images):
        small = "--small-images" if found.small_images else "--no-small-images"
        raise InputError(f"{path} holds a {found.arch}, not a {config.arch}, or one of other "
                         f"strides: give --arch {found.arch} {small}, or do not start from it")
    return fresh


def copy_weights(found: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Copy a state dict into another, or raise InputError if a name or a shape does not fit, or a
    weight is not a finite number.
    """
    count = torch.zeros((), dtype=torch.int64, device="cpu")  # of batches, which old files lack
    found = {key: count for key in own if key.endswith(".num_batches_tracked")} | dict(found)
    problems = [f"{key} is missing" for key in own.keys() - found.keys()]
    problems += [f"{key} is unknown" for key in found.keys() - own.keys()]
    problems += [
        f"{key} is {tuple(found[key].shape)}, not {tuple(own[key].shape)}"
        for key in own.keys() & found.keys() if own[key].shape != found[key].shape
    ]
    if problems:
        raise InputError(f"the weights do not fit the model in {len(problems)} places: "
                         + "; ".join(sorted(problems)[:4]))
    if broken := [key for key in own if not found[key].isfinite().all()]:
        raise InputError(f"{broken[0]} is not finite: the training that made it has diverged")
    for key, value in own.items():
        value.copy_(found[key])


# ---- Names ----

# Our name of a layer; timm's and torchvision's. In both, the blocks of stage 1, which have no
# expansion, number their layers without it.
OUTER = {
    "stem": ("conv_stem", "features.0.0"), "stem_norm": ("bn1", "features.0.1"),
    "head": ("conv_head", "features.8.0"), "head_norm": ("bn2", "features.8.1"),
    "classifier": ("classifier", "classifier.1"),
}
STAGE_1 = {
    "depthwise": ("conv_dw", "block.0.0"), "depthwise_norm": ("bn1", "block.0.1"),
    "squeeze": ("se.conv_reduce", "block.1.fc1"), "excite": ("se.conv_expand", "block.1.fc2"),
    "project": ("conv_pw", "block.2.0"), "project_norm": ("bn2", "block.2.1"),
}
OTHER_STAGES = {
    "expand": ("conv_pw", "block.0.0"), "expand_norm": ("bn1", "block.0.1"),
    "depthwise": ("conv_dw", "block.1.0"), "depthwise_norm": ("bn2", "block.1.1"),
    "squeeze": ("se.conv_reduce", "block.2.fc1"), "excite": ("se.conv_expand", "block.2.fc2"),
    "project": ("conv_pwl", "block.3.0"), "project_norm": ("bn3", "block.3.1"),
}


def known_conventions(state_dict: Mapping[str, Tensor],
                      path: Path = Path("state dict")) -> Conventions:
    """The conventions of released weights; ours for all others.

    Keys tell torchvision's from timm's; timm's own networks and AdvProp's are known by the name
    that timm gives the file or, if it has another, by the config.json beside it.
    """
    if "features.0.0.weight" in state_dict:  # b5 to b7, of 5 blocks or more in stage 2, have TF's
        return Conventions(True, 1e-3 if "features.2.4.block.0.0.weight" in state_dict else 1e-5)
    if "conv_stem.weight" not in state_dict:
        return Conventions()
    name, mean = path.stem, None
    if "efficientnet_" not in name:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            about = json.loads(path.with_name("config.json").read_text())
            name, mean = about["architecture"], about["pretrained_cfg"]["mean"][0]
    own = name.startswith("efficientnet_")
    halves = mean == 0.5 if mean else bool(re.search(r"[_.-]ap([_.-]|$)|ra4", name))
    return Conventions(own, 1e-5 if own else 1e-3, halves)


def our_names(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict with the names of model.EfficientNet, from any of the sources."""
    if "conv_stem.weight" in state_dict:
        source, block, first = 0, r"blocks\.(\d)\.(\d+)\.(.+)", 0
    elif "features.0.0.weight" in state_dict:
        source, block, first = 1, r"features\.([1-7])\.(\d+)\.(.+)", 1
    else:
        return dict(state_dict)
    outer, stage_1, others = ({names[source]: ours for ours, names in table.items()}
                              for table in (OUTER, STAGE_1, OTHER_STAGES))
    renamed = {}
    for key, value in state_dict.items():
        layer, _, leaf = key.rpartition(".")
        if match := re.fullmatch(block, layer):
            stage, number, layer = int(match[1]) - first, match[2], match[3]
            layer = f"stages.{stage}.{number}.{(others if stage else stage_1).get(layer, layer)}"
        renamed[f"{outer.get(layer, layer)}.{leaf}"] = value
    return renamed


def imitate(network: nn.Module, how: Conventions) -> nn.Module:
    """Make a model.EfficientNet pad and normalise like the network that its weights come from."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = how.epsilon
        elif hasattr(module, "symmetric"):  # model.Conv2d's padding
            module.symmetric = how.symmetric
    hooks = network._forward_pre_hooks
    for key in [key for key, hook in hooks.items() if hook is _by_halves]:  # of earlier weights
        del hooks[key]
    if how.halves:
        network.register_forward_pre_hook(_by_halves)
    return network


def _by_halves(network: nn.Module, inputs: tuple) -> tuple:
    """Images from augment.normalize, as if it had used a mean and deviation of 0.5."""
    images, *others = inputs
    mean, std = torch.tensor([MEAN, DEVIATION], device=images.device).view(2, 1, 3, 1, 1)
    return (2 * (images * std + mean) - 1, *others)
