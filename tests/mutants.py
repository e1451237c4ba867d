"""Change the code in one place after the other, and show which changes the tests notice.

    python tests/mutants.py [--only WORD]

A mutant is one changed number, choice, sign or formula. By program: the defaults of the settings,
the tables of the networks, the recipes and the plans. By hand: PLACES. For each, the test files
that cover it run until one test fails, in a copy of the tree; a mutant that none notices has
survived. --only takes the mutants with WORD in their place or description.

Exit code 1 if less than 95 % are caught, if a test fails without any change, or if a text of PLACES
is not found exactly once in its file. Every run is forked from this process, which has imported the
packages but not the code, so that a mutant takes seconds; all of them take an hour or two.
"""

import argparse
import ast
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}  # for child processes, too
sys.dont_write_bytecode = True
sys.path.pop(0)  # what the tests import comes from the copy

import hypothesis  # noqa: E402, F401
import matplotlib.figure  # noqa: E402, F401
import numpy  # noqa: E402, F401
import PIL.Image  # noqa: E402, F401
import pytest  # noqa: E402
import timm  # noqa: E402, F401
import torch  # noqa: E402, F401
import torchvision  # noqa: E402, F401

ROOT = Path(__file__).parent.parent
WANTED = 95.0  # percent
LEFT_OUT = "not xla and not torchrun and not picture and not compiled"  # slow: other processes


class Mutant(NamedTuple):
    """The bytes from `start` to `end` of a file become `new`; `tests` cover them."""

    file: str
    start: int
    end: int
    new: bytes
    what: str
    tests: tuple[str, ...]

    @property
    def place(self) -> str:
        before = (ROOT / self.file).read_bytes()[: self.start]
        return f"{self.file}:{before.count(bytes([10])) + 1}"


# ---- By program ----

# Constants, functions and, of classes, the defaults.
TABLES = {
    ("train.py", "published train"): "TrainConfig MAGNITUDES recipe resolution_fix",
    ("model.py", "published model"): "SCALING STAGES BatchNorm scaling",
    ("augment.py", "published augment"): "RandAugment",
    ("pseudo_label.py", "published pseudo_label"): "Labelling",
    ("iterate.py", "published plans"): "Generation L2 PAPER PLANS",
    ("support/plans.py", "published plans"): (
        "FEW_LABELS DEMO SHARP CIFAR_CPU TINY TINY_LABELS OWN CIFAR SVHN B5 PLAIN_B5 GENERATIONS"),
    ("support/optimization.py", "published optimization"): "RMSpropTF ModelEMA",
}


def other(value: object, choices: list[tuple]) -> object:
    """Another value of the same kind; None where there is none to choose."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1 if value < 10 else 2 * value
    if isinstance(value, float):
        return round(0.9 * value, 12) or 0.1
    if isinstance(value, str) and re.fullmatch(r"[bl]\d|[\d.]+x[\d.]+", value):
        return "b2" if value == "b1" else "b1"
    return next((group[group.index(value) - 1] for group in choices if value in group), None)


def constants(node: ast.AST, name: str) -> Iterator[tuple[str, ast.Constant]]:
    """Those of a table or function; of a class the defaults of its fields and of __init__.

    Each comes with its name: those of the table and of the field or key in it.
    """
    if isinstance(node, ast.Constant):
        yield name, node
    elif isinstance(node, ast.ClassDef):
        for part in node.body:
            if isinstance(part, ast.AnnAssign) and part.value:
                yield from constants(part.value, f"{name}.{part.target.id}")
            elif isinstance(part, ast.FunctionDef) and part.name == "__init__":
                names = [argument.arg for argument in part.args.args]
                for key, value in zip(names[::-1], part.args.defaults[::-1], strict=False):
                    yield from constants(value, f"{name}.{key}")
    elif isinstance(node, ast.Dict):
        for key, value in zip(node.keys, node.values, strict=True):
            yield from constants(value, f"{name}[{ast.unparse(key)}]")
    elif isinstance(node, ast.keyword):
        yield from constants(node.value, f"{name}, {node.arg}")
    elif not isinstance(node, ast.JoinedStr | ast.arguments):
        for child in ast.iter_child_nodes(node):
            yield from constants(child, name)


def by_program() -> Iterator[Mutant]:
    """The mutants of TABLES."""
    settings = [ast.parse((ROOT / file).read_bytes()) for file in ("train.py", "pseudo_label.py")]
    choices = [ast.literal_eval(node.slice) for tree in settings for node in ast.walk(tree)
               if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "Literal"]
    for (file, tests), tables in TABLES.items():
        source = (ROOT / file).read_bytes()
        lines, nodes = source.splitlines(keepends=True), {}
        for node in ast.parse(source).body:
            target = getattr(node, "target", getattr(node, "targets", [node])[0])
            nodes[getattr(target, "id", getattr(target, "name", None))] = node
        for table in tables.split():
            for name, node in constants(nodes[table], table):
                if (new := other(node.value, choices)) is not None:
                    before = sum(map(len, lines[: node.lineno - 1]))
                    yield Mutant(file, before + node.col_offset, before + node.end_col_offset,
                                 repr(new).encode(), f"{name}: {node.value!r} -> {new!r}",
                                 tuple(tests.split()))


# ---- By hand ----

# (file, test files that cover it): (what it does wrong, the text, what takes its place).
PLACES = {
    ("model.py", "published model"): [
        ("SE of the expanded width", "max(1, inputs // 4)", "max(1, inputs * expansion // 4)"),
        ("widths rounded down by 20 %", "rounded < 0.9 * scaled", "rounded < 0.8 * scaled"),
        ("widths at multiples of 4", "int(scaled + 4) // 8 * 8", "int(scaled + 2) // 4 * 4"),
        ("survivors not divided by p", "survives.to(branch.dtype) / survival_prob",
         "survives.to(branch.dtype)"),
        ("survival and drop exchanged", "device=branch.device) < survival_prob",
         "device=branch.device) > survival_prob"),
        ("one draw for the whole batch", "torch.rand(len(branch), 1, 1, 1,",
         "torch.rand(1, 1, 1, 1,"),
        ("stochastic depth: mask inverted", "masked_fill(~noised",
         "masked_fill(noised"),
        ("stochastic depth: mask ignored", "if noised is not None:\n        scale",
         "if False:\n        scale"),
        ("stochastic depth in evaluation mode", "self.residual and self.training and",
         "self.residual and"),
        ("SAME: the extra zero first", "[zeros // 2, zeros - zeros // 2]",
         "[zeros - zeros // 2, zeros // 2]"),
        ("symmetric padding by default", "self.symmetric = False", "self.symmetric = True"),
        ("survival falls to the last block", "* index / total", "* (index + 1) / total"),
        ("no linear decay of survival", "(1 - survival_prob) * index / total",
         "(1 - survival_prob)"),
        ("survival counted within a stage", "blocks, outputs = nn.ModuleList(), scale",
         "index = 0; blocks, outputs = nn.ModuleList(), scale"),
        ("small images: other stages", "number in (2, 3)", "number in (3, 4)"),
        ("depth rounded down", "in range(math.ceil(count * depth))",
         "in range(math.floor(count * depth) or 1)"),
        ("stride in every block of a stage", "channels, stride, index = outputs, 1, index + 1",
         "channels, index = outputs, index + 1"),
        ("no dropout of features", "F.dropout(features, self.dropout, self.training)",
         "features.clone()"),
        ("dropout in evaluation mode", "self.dropout, self.training)", "self.dropout, True)"),
        ("dropout: mask inverted", "noised.view(-1, 1), dropped, features)",
         "noised.view(-1, 1), features, dropped)"),
        ("no shortcut", "return hidden + images if self.residual else hidden", "return hidden"),
        ("no gate of squeeze-and-excitation", "conv_norm(hidden * gate,", "conv_norm(hidden,"),
        ("gate without swish", "self.excite(swish(self.squeeze(gate)))",
         "self.excite(self.squeeze(gate))"),
        ("fan-out of depthwise kernels", "* module.out_channels // module.groups",
         "* module.out_channels"),
        ("initial deviation sqrt(1 / fan-out)", "math.sqrt(2 / fan_out)",
         "math.sqrt(1 / fan_out)"),
        ("classifier's start by the classes alone", "max(module.out_features, 1000)",
         "module.out_features"),
        ("fixed layers in training mode", "mode and next(module.parameters()).requires_grad",
         "mode"),
        ("the stem's convolution is not fixed", "(network.stem, network.stem_norm, *network",
         "(network.stem_norm, *network"),
        ("the stem is fixed without stages", " if stages else ()", ""),
        ("one stage fewer is fixed", "*network.stages[:stages])", "*network.stages[:stages - 1])"),
        ("checkpoint: dropout forgotten", "num_classes, dropout=self.dropout,\n",
         "num_classes, dropout=0.0,\n"),
        ("stem at stride 1", "3, channels, 3, stride=2)", "3, channels, 3, stride=1)"),
        ("head not widened", "features = scale_channels(1280, width)", "features = 1280"),
    ],
    ("support/weights.py", "model weights start_from"): [
        ("torchvision's epsilon for all", '"features.2.4.block.0.0.weight" in state_dict',
         "False"),
        ("our epsilon for torchvision's", "state_dict else 1e-5)", "state_dict else 1e-3)"),
        ("torchvision's padding ignored", "module.symmetric = how.symmetric",
         "module.symmetric = False"),
        ("the source's epsilon ignored", "module.eps = how.epsilon", "module.eps = 1e-3"),
        ("AdvProp as ImageNet", "if how.halves:", "if False:"),
        ("config.json speaks of all files", 'if "efficientnet_" not in name:', "if True:"),
        ("AdvProp scaled by two alone", "(2 * (images * std + mean) - 1, *others)",
         "(2 * (images * std + mean), *others)"),
        ("AdvProp's mean by the name alone", "mean == 0.5 if mean else", "False if mean else"),
        ("timm's own as TensorFlow's", "own, 1e-5 if own else 1e-3", "own, 1e-3"),
        ("conventions not saved", 'contents.get("conventions", ())', "()"),
        ("the old classifier for other classes", "    return fresh\n", "    return False\n"),
        ("a fresh classifier for the same classes", "    return fresh\n", "    return True\n"),
        ("ImageNet's classes not known", "== 1000\n", "== 999\n"),
    ],
    ("support/kernels.py", "model kernels"): [
        ("ReLU in place of swish", "F.silu(values, inplace", "F.relu(values, inplace"),
        ("statistics twice when recomputing", "norm.momentum = 0.0", "pass"),
        ("folded BatchNorm without the mean", "norm.bias - norm.running_mean * scale",
         "norm.bias"),
    ],
    ("augment.py", "augment"): [
        ("smaller crops", "0.08 + 0.92 * share)", "0.08 + 0.92 * share**2)"),
        ("27 is of 30", "slope * (magnitude / 10)", "slope * (magnitude / 30)"),
        ("rotations without a sign", "Strength(slope=30, signed=True)", "Strength(slope=30)"),
        ("factors from zero", '"Color": Strength(start=0.1', '"Color": Strength(start=0.0'),
        ("SolarizeAdd 100", "slope=110", "slope=100"),
        ("Posterize by the bits removed", "8 - min((8 - math.floor(bits)) % 256, 7)",
         "max(1, 8 - math.floor(bits))"),
        ("Cutout by its side", '"Cutout": Strength(slope=40', '"Cutout": Strength(slope=20'),
        ("translations of large images", 'X": Strength(slope=100, signed',
         'X": Strength(slope=150, signed'),
        ("small images move by a quarter", "slope = image_size // 8", "slope = image_size // 4"),
        ("empty pixels black", "EMPTY = 128", "EMPTY = 0"),
        ("rotation clockwise", "return cosine, -sine, x - cosine * x + sine * y, sine, cosine, "
         "y - sine * x - cosine * y", "return cosine, sine, x - cosine * x - sine * y, -sine, "
         "cosine, y + sine * x - cosine * y"),
        ("rotation about the corner", "affine(value, width / 2, height / 2)",
         "affine(value, 0, 0)"),
        ("ShearX to the other side", "(1, value, 0, 0, 1, 0)", "(1, -value, 0, 0, 1, 0)"),
        ("ShearY to the other side", "(1, 0, 0, value, 1, 0)", "(1, 0, 0, -value, 1, 0)"),
        ("TranslateX to the right", "(1, 0, value, 0, 1, 0)", "(1, 0, -value, 0, 1, 0)"),
        ("TranslateY down", "(1, 0, 0, 0, 1, value)", "(1, 0, 0, 0, 1, -value)"),
        ("Invert from 256", "255 - levels,\n    \"Posterize\"", "256 - levels,\n    \"Posterize\""),
        ("Solarize includes its threshold", "torch.where(levels < start, levels",
         "torch.where(levels <= start, levels"),
        ("SolarizeAdd up to 128", "levels < 128, (levels", "levels <= 128, (levels"),
        ("luma of one channel", "alpha=38470", "alpha=38400"),
        ("Sharpness: center counted once", "1:-1, 1:-1], alpha=4)", "1:-1, 1:-1], alpha=5)"),
        ("operations without replacement", "chance.randint(len(OPERATIONS), shape), chance",
         "torch.rand(chance.whole, 16, generator=chance.generator).argsort(1)"
         "[chance.rows, : self.num_ops], chance"),
        ("one operation whatever is asked for", "shape = (self.num_ops,)", "shape = (1,)"),
        ("no negative values", "[operation, sign]", "[drawn, 0 * sign]"),
        ("Cutout always in the middle", "chance.randint(height, shape), chance.randint(width",
         "0 * drawn + height // 2, chance.randint(width"),
        ("cifar: a square of half the side", "half, pad = min(height, width) // 4",
         "half, pad = min(height, width) // 8"),
        ("cifar: padding by a quarter", "min(height, width) // 8\n", "min(height, width) // 4\n"),
        ("cifar: always mirrored", "view(-1, 1, 1) == 1", "view(-1, 1, 1) >= 0"),
        ("cifar: crops of one side only", "y + top.view(-1, 1, 1) - pad",
         "y + top.view(-1, 1, 1)"),
        ("cifar: flips against --no-flip", "    if flip:\n        mirrored = devices.send("
         "chance.randint(2), images.device).view(-1, 1, 1) ==", "    if True:\n        mirrored = "
         "devices.send(chance.randint(2), images.device).view(-1, 1, 1) =="),
        ("imagenet: flips against --no-flip", "    if flip:\n        mirrored = devices.send("
         "chance.randint(2), images.device).view(-1, 1, 1, 1)", "    if True:\n        mirrored = "
         "devices.send(chance.randint(2), images.device).view(-1, 1, 1, 1)"),
        ("imagenet: upside down", "images.flip(3)", "images.flip(2)"),
        ("crops of 50 % and more", "(0.08 + 0.92 * share)", "(0.5 + 0.5 * share)"),
        ("square crops only", "(4 / 3) ** (2 * exponent - 1)", "1.0"),
        ("crops from the left", "left = int(torch.randint(width - crop_width + 1, ()",
         "left = 0 * int(torch.randint(width - crop_width + 1, ()"),
        ("mean and deviation exchanged", "[MEAN, DEVIATION]", "[DEVIATION, MEAN]"),
        ("deviation left out", "/ (255 * std)", "/ 255"),
    ],
    ("pseudo_label.py", "published pseudo_label"): [
        ("select: threshold 0.5", "threshold: float = 0.3,", "threshold: float = 0.5,"),
        ("select: 260,000 a class", "per_class: int = 130_000", "per_class: int = 260_000"),
        ("the default balance doubled", "np.count_nonzero(confidence) //",
         "2 * np.count_nonzero(confidence) //"),
        ("balance ignored", "if balance and len(positions):", "if False:"),
        ("balance where none is wanted", "if balance and len(positions):",
         "if len(positions):"),
        ("no limit for frequent classes", "wanted = per_class if balance else len(confidence)",
         "wanted = len(confidence)"),
        ("one image gets all the rest", "copies[random.permutation(len(positions))"
         "[: per_class % len(positions)]] += 1", "copies[0] += per_class % len(positions)"),
        ("the most confident repeat", "random.permutation(len(positions))[:",
         "np.arange(len(positions))[:"),
        ("the same duplicates for each seed", "np.random.default_rng(seed), [",
         "np.random.default_rng(0), ["),
        ("temperature inverted", ".log() / temperature)", ".log() * temperature)"),
        ("targets: kind ignored", "make_targets(rows, how.kind, how",
         "make_targets(rows, 'soft', how"),
        ("targets: temperature ignored", "how.kind, how.temperature)", "how.kind)"),
        ("hard labels of the least likely", "F.one_hot(probabilities.argmax(1)",
         "F.one_hot(probabilities.argmin(1)"),
        ("logits for probabilities", ".float().softmax(dim=1)\n\n    with", ".float()\n\n    with"),
        ("the teacher is always noised", "if how.noised_teacher else None", "if True else None"),
        ("a noised teacher without RandAugment", "pixels if noise is None else noise(pixels)",
         "pixels"),
        ("a noised teacher without dropout", "noised=noise is not None", "noised=False"),
        ("the same chance for both passes", "seed=(seed, 2)", "seed=(seed, 1)"),
        ("the same chance for each seed in pass 1", "seed=(seed, 1)", "seed=(1,)"),
        ("the same chance for each seed in pass 2", "seed=(seed, 2)", "seed=(2,)"),
        ("held-out images are labelled", "seed=(seed, 1), held_out=held_out)", "seed=(seed, 1))"),
        ("threshold ignored", "how.threshold, per_class, seed, how.balance", "0.0, "
         "per_class, seed, how.balance"),
        ("a class's share of all files", "np.count_nonzero(confidence)", "len(confidence)"),
        ("balance not handed on", "per_class, seed, how.balance", "per_class, seed"),
        ("the second pass on other images", "pool.subset(torch.tensor(store.once(choose)))",
         "pool.subset(torch.arange(len(store.once(choose))))"),
    ],
    ("support/ranking.py", "ranking"): [
        (">= the threshold", "BLOCK] > threshold)", "BLOCK] >= threshold)"),
        ("the least confident of those kept", "values >= np.partition(values, -wanted)[-wanted]",
         "values <= np.partition(values, wanted)[wanted]"),
        ("least confident first", "(-values).argsort(kind", "values.argsort(kind"),
        ("ties in any order", "(-values).argsort(kind=\"stable\")[:wanted]",
         "values.argsort(kind=\"stable\")[::-1][:wanted]"),
    ],
    ("support/label_store.py", "label_store pseudo_label"): [
        ("rows of the next image", "used.cumsum()[positions] - 1", "used.cumsum()[positions] % "
         "used.sum()"),
        ("top-1 of images of no class, too", "[truth[unique] >= 0]", "[truth[unique] >= -9]"),
        ("balanced without duplicates", "used.cumsum()[positions] - 1",
         "np.arange(used.sum())"),
    ],
    ("support/reading.py", "reading pseudo_label"): [
        ("parts of any size", "min(AT_ONCE, max(1, 2**24 // (3 * side**2)))", "AT_ONCE"),
        ("the first files for all", "rows = torch.randperm(len(source), generator="
         "torch.Generator().manual_seed(0))[:limit]", "rows = torch.arange(len(source))[:limit]"),
        ("the teacher stays noised", "module.training = noised and not",
         "module.training = module.training and not"),
        ("a noised teacher's BatchNorm learns", "noised and not isinstance(module, nn.BatchNorm2d)",
         "noised"),
        ("held-out files are usable", "isinstance(fingerprint, str) or fingerprint in held_out",
         "isinstance(fingerprint, str)"),
        ("the mode does not come back", "module.training = mode\n", "pass\n"),
        ("rows out of place", "rows[~torch.cat(usable)] = 0", "pass"),
        ("each part with the first one's noise", "(*seed, part.start, number)",
         "(*seed, number)"),
        ("each batch of a part with the same noise", "(*seed, part.start, number)",
         "(*seed, part.start)"),
    ],
    ("train.py", "published train batches"): [
        ("loss summed over images", ".sum(1).mean()\n\n\ndef joint_loss", ".sum(1).sum()\n\n\n"
         "def joint_loss"),
        ("loss averaged over classes, too", ".sum(1).mean()\n\n\ndef joint_loss",
         ".mean()\n\n\ndef joint_loss"),
        ("no smoothing of labels", "labels, label_smoothing=label_smoothing)", "labels)"),
        ("no smoothing of hard pseudo labels", "hard * (1 - label_smoothing) + label_smoothing / "
         "logits.shape[1]", "hard.float()"),
        ("soft pseudo labels smoothed, too", "unlabeled = cross_entropy(logits[len(labels):], "
         "pseudo_targets)", "unlabeled = cross_entropy(logits[len(labels):], pseudo_targets * (1 - "
         "label_smoothing) + label_smoothing / logits.shape[1])"),
        ("unlabelled images first", "cross_entropy(logits[len(labels):], pseudo",
         "cross_entropy(logits[: len(pseudo_targets)], pseudo"),
        ("the ratio inverted", "ratio = len(pseudo_targets) / len(labels)",
         "ratio = len(labels) / len(pseudo_targets)"),
        ("the ratio left out", "total = labeled + ratio * unlabeled",
         "total = labeled + unlabeled"),
        ("no loss on labels", "total = labeled + ratio * unlabeled", "total = ratio * unlabeled"),
        ("algorithm1 with the ratio", "return labeled + unlabeled",
         "return labeled + ratio * unlabeled"),
        ("concat divided by the ratio", "total / (1 + ratio)", "total / ratio"),
        ("official for concat", 'if normalization == "official"', 'if normalization == "concat"'),
        ("rate not scaled by the batch", "config.learning_rate * config.batch_size / 256",
         "config.learning_rate"),
        ("rate per 128 images", "config.batch_size / 256", "config.batch_size / 128"),
        ("no warm-up", "peak * epoch / config.warmup_epochs", "peak"),
        ("warm-up longer by an epoch", "epoch < config.warmup_epochs:",
         "epoch < config.warmup_epochs + 1:"),
        ("decay without a staircase", "math.floor(epoch / config.decay_epochs + 1e-9)",
         "(epoch / config.decay_epochs)"),
        ("staircase late by rounding", "config.decay_epochs + 1e-9)", "config.decay_epochs)"),
        ("decay counted after the warm-up", "math.floor(epoch / config.decay_epochs",
         "math.floor((epoch - config.warmup_epochs) / config.decay_epochs"),
        ("cosine ends at a half", "peak * 0.5 * (1 + math.cos(", "peak * (0.75 + 0.25 * math.cos("),
        ("cosine from the start of warm-up", "(epoch - config.warmup_epochs) / max",
         "epoch / max"),
        ("cifar's crops up to 32 pixels", "self.image_size <= 64", "self.image_size <= 32"),
        ("an epoch of all images", "self.labeled_images / self.batch_size",
         "self.labeled_images / self.batch_size / (1 + self.unlabeled_ratio)"),
        ("l0 and l1 at 3 to 1", 'startswith("l")', 'startswith("l2")'),
        ("the fix at the first rate", "* (0.1 if config.schedule == \"cosine\" else last)", ""),
        ("the fix of a cosine at a rate of zero", '0.1 if config.schedule == "cosine" else last',
         '0.0 if config.schedule == "cosine" else last'),
        ("survival not handed on", "survival_prob=config.survival_prob,", ""),
        ("the same start for each seed", "torch.manual_seed(config.seed)", "torch.manual_seed(0)"),
        ("no layers fixed", "model.freeze_shallow(network, config.frozen_stages)", "pass"),
        ("noise without the step", "seed_of(config.seed, 2, step)", "seed_of(config.seed, 2)"),
        ("noise without the seed", "seed_of(config.seed, 2, step)", "seed_of(2, step)"),
        ("labelled images lose their noise", "first = 0 if config.augment_labeled else labeled",
         "first = 0 if config.augment_unlabeled else labeled"),
        ("unlabelled images keep their noise", "last = len(images) if config.augment_unlabeled "
         "else labeled", "last = len(images)"),
        ("the two kinds exchanged", "first = 0 if config.augment_labeled else labeled  # table 6: "
         "one kind of image may stay clean\n    last = len(images) if config.augment_unlabeled",
         "first = 0 if config.augment_unlabeled else labeled\n"
         "    last = len(images) if config.augment_labeled"),
        ("always mirrored at random", "chance, config.flip)", "chance)"),
        ("cifar's pipeline for large images", "if config.cifar_crops else augment.augment_imagenet",
         "if not config.cifar_crops else augment.augment_imagenet"),
        ("magnitude not handed on", "augment.RandAugment(config.rand_augment_operations,\n"
         "                                       config.rand_augment_magnitude)",
         "augment.RandAugment(config.rand_augment_operations)"),
        ("accuracy as a fraction", "return 100 * (predicted", "return (predicted"),
        ("accuracy of the second most likely", "machine)[:, 0]\n", "machine, 2)[:, 1]\n"),
        ("started from its own weights",
         "model.load_pretrained(network, initial.weights, fresh_classifier, initial.conventions)",
         "pass"),
        ("average of another decay", "ModelEMA(network, config.ema_decay)", "ModelEMA(network)"),
        ("never cropped at random", "None if config.cifar_crops else augment.random_resized_crop",
         "None"),
        ("dropout without the step", "seed_of(config.seed, 3, step, devices.rank())",
         "seed_of(config.seed, 3, devices.rank())"),
        ("dropout alike in all processes", "seed_of(config.seed, 3, step, devices.rank())",
         "seed_of(config.seed, 3, step)"),
        ("a rate that stays", 'group["lr"] = rate', 'group["lr"] = learning_rate(0, config)'),
        ("gradients never cleared", "optimizer.zero_grad()\n", "pass\n"),
        ("pixels not normalised", "augment.normalize(noise(micro_batch, config, step))",
         "noise(micro_batch, config, step).float()"),
        ("table 6: the mask inverted", "else micro_batch.is_labeled",
         "else ~micro_batch.is_labeled"),
        ("table 6: the mask ignored", "None if config.model_noise_unlabeled else "
         "micro_batch.is_labeled", "None"),
        ("smoothing not handed on", "config.label_smoothing, config.normalization)",
         "0.1, config.normalization)"),
        ("normalisation not handed on", "config.label_smoothing, config.normalization)",
         "config.label_smoothing)"),
        ("micro-batches summed, not averaged", "(loss / config.accumulation_steps)", "loss"),
        ("only the last micro-batch counts", "(loss / config.accumulation_steps).backward()",
         "optimizer.zero_grad(); (loss / config.accumulation_steps).backward()"),
        ("the average of the raw start", "average.update(network, step)\n", "pass\n"),
        ("the average counts one step more", "average.update(network, step)",
         "average.update(network, step + 1)"),
        ("the raw network is evaluated", "accuracy(average.network, validation",
         "accuracy(network, validation"),
        ("the raw network is saved", "best.offer(top1, average.network, step)",
         "best.offer(top1, network, step)"),
        ("the last average is saved", "best.offer(top1, average", "best.offer(None, average"),
        ("an architecture without its recipe", 'recipe(changes.get("arch", "b7"))',
         "TrainConfig()"),
    ],
    ("train.py", "start_from"): [
        ("started without conventions", "initial.weights, fresh_classifier, initial.conventions)",
         "initial.weights, fresh_classifier)"),
        ("conventions not handed on", "[*initial.conventions] if initial else []", "[]"),
    ],
    ("support/optimization.py", "published optimization"): [
        ("epsilon outside of the root", "roots = torch._foreach_add(squares, group[\"eps\"])\n"
         "            torch._foreach_sqrt_(roots)", "roots = torch._foreach_sqrt(squares)\n"
         "            torch._foreach_add_(roots, group[\"eps\"])"),
        ("squares from zero", "torch.ones_like(weight)", "torch.zeros_like(weight)"),
        ("epsilon 1e-8", "eps: float = 1e-3", "eps: float = 1e-8"),
        ("decay 0.99", "decay: float = 0.9, momentum", "decay: float = 0.99, momentum"),
        ("momentum 0.8", "RMSpropTF(groups, lr=1.0, momentum=config.momentum)",
         "RMSpropTF(groups, lr=1.0, momentum=0.8)"),
        ("uphill", "torch._foreach_sub_(weights, buffers)",
         "torch._foreach_add_(weights, buffers)"),
        ("rate outside of the buffer", "gradients, roots, group[\"lr\"])\n            "
         "torch._foreach_sub_(weights, buffers)", "gradients, roots, 1.0)\n            "
         "torch._foreach_sub_(weights, torch._foreach_mul(buffers, group[\"lr\"]))"),
        ("no weight decay", 'if group["weight_decay"]:', "if False:"),
        ("weight decay for growth", 'alpha=group["weight_decay"]', 'alpha=-group["weight_decay"]'),
        ("weight decay on BatchNorm, too", '{"params": plain, "weight_decay": 0.0}',
         '{"params": plain, "weight_decay": config.weight_decay}'),
        ("weight decay on BatchNorm alone", "plain if isinstance(module, nn.BatchNorm2d) else "
         "decayed", "decayed if isinstance(module, nn.BatchNorm2d) else plain"),
        ("no Nesterov", "nesterov=config.momentum > 0", "nesterov=False"),
        ("Adam's second beta 0.99", "(config.momentum, 0.999)", "(config.momentum, 0.99)"),
        ("average from the start at full length", "decay = min(self.decay, (2 + step) / "
         "(11 + step))", "decay = self.decay"),
        ("average: step counted from 0", "(2 + step) / (11 + step))", "(1 + step) / (10 + step))"),
        ("average: the longer one", "decay = min(self.decay", "decay = max(self.decay"),
        ("average: weights exchanged", "averages, values, 1 - decay)", "averages, values, decay)"),
        ("statistics not averaged", "zip(self.network.state_dict().values(),\n"
         "                                  network.state_dict().values(), strict=True)",
         "zip(self.network.parameters(), network.parameters(), strict=True)"),
        ("the first of equals", "top1 >= self.kept", "top1 > self.kept"),
        ("the worst", "top1 >= self.kept", "top1 <= self.kept"),
        ("best: not a copy", 'value.to("cpu", copy=True)', 'value.to("cpu")'),
        ("best: forgotten on resuming", "self.kept = state\n", "pass\n"),
    ],
    ("support/batches.py", "published batches"): [
        ("the same order in each epoch", "manual_seed(seed_of(seed, number))",
         "manual_seed(seed_of(seed))"),
        ("not shuffled", "torch.randperm(size, generator=generator)", "torch.arange(size)"),
        ("crops without the step", "SeedSequence((seed, step, row))",
         "SeedSequence((seed, row))"),
        ("crops without the row", "SeedSequence((seed, step, row))",
         "SeedSequence((seed, step))"),
        ("crops without the seed", "SeedSequence((seed, step, row))",
         "SeedSequence((step, row))"),
        ("labelled large images not cropped", "labeled, torch.arange(len(labeled)), count, 0, "
         "config.augment_labeled)", "labeled, torch.arange(len(labeled)), count, 0, False)"),
        ("labelled crops by the other flag", "count, 0, config.augment_labeled)",
         "count, 0, config.augment_unlabeled)"),
        ("unlabelled large images not cropped", "pseudo_count, 1, config.augment_unlabeled)",
         "pseudo_count, 1, False)"),
        ("unlabelled crops by the other flag", "pseudo_count, 1, config.augment_unlabeled)",
         "pseudo_count, 1, config.augment_labeled)"),
        ("crops although noise is off", "crop if noised else None", "crop"),
        ("both kinds in the same order", "pseudo_count, 1, config", "pseudo_count, 0, config"),
        ("duplicates left out", "torch.from_numpy(np.array(pseudo.balanced))",
         "torch.from_numpy(np.unique(pseudo.balanced))"),
        ("one unlabelled image for each labelled", "0 if pseudo is None else count * "
         "config.unlabeled_ratio", "0 if pseudo is None else count"),
        ("hard labels not hard", 'if pseudo.kind == "hard":', "if False:"),
        ("unlabelled images first", "torch.cat([pixels, pseudo_pixels])",
         "torch.cat([pseudo_pixels, pixels])"),
        ("the mask of labelled images inverted", "len(self.images)) < len(self.labels)",
         "len(self.images)) >= len(self.labels)"),
        ("micro-batches: other targets", "targets[number::count], device)",
         "targets[: len(targets) // count], device)"),
        ("chance of the part, not the whole", "return numbers[self.rows]",
         "return numbers[: len(numbers[self.rows])]"),
    ],
    ("iterate.py", "published plans iterate"): [
        ("generations share a seed", "batches.seed_of(self.config.seed, number)",
         "batches.seed_of(self.config.seed)"),
        ("finding 6: the rate not lowered", "learning_rate=config.learning_rate / 10)",
         "learning_rate=config.learning_rate)"),
        ("finding 6: a warm-up again", "config, unlabeled_ratio=0, warmup_epochs=0.0,",
         "config, unlabeled_ratio=0,"),
        ("finding 6: fine-tuned from scratch", "learn(finetuning, name, None, pretrained)",
         "learn(finetuning, name, None, start)"),
        ("finding 6: fine-tuned on pseudo labels", "learn(finetuning, name, None, pretrained)",
         "learn(finetuning, name, pseudo, pretrained)"),
        ("finding 6: pretrained on both losses", "learn(replace(config, joint=False), f",
         "learn(config, f"),
        ("finding 6 ignored", "if generation.joint:", "if True:"),
        ("finding 6 always", "if generation.joint:", "if False:"),
        ("the fix from scratch", 'px", None, checkpoint)', 'px", None, None)'),
        ("the fix on pseudo labels", 'px", None, checkpoint)', 'px", pseudo, checkpoint)'),
        ("the fix left out", "if pixels := generation.fixed_resolution:", "if pixels := None:"),
        ("the first teacher labels for all", "teacher = train_phases(generation, learn, pseudo, "
         "start)", "teacher = teacher or train_phases(generation, learn, pseudo, start)"),
        ("every student starts from its teacher", "teacher if generation.from_teacher else gen",
         "teacher if number else gen"),
        ("no student starts from its teacher", "teacher if generation.from_teacher else gen",
         "gen"),
        ("the plan's teacher, too, has a teacher", 'plans.FROM_TEACHER and title != "teacher"',
         "plans.FROM_TEACHER"),
        ("labelled as by default", "                generation.labelling, seed",
         "                Labelling(), seed"),
        ("all pools labelled with one seed", "seed=generation.config.seed, machine",
         "seed=generations[0].config.seed, machine"),
        ("checkpoints chosen on the test set", "splits.labeled, splits.validation, pseudo, name",
         "splits.labeled, splits.test, pseudo, name"),
        ("the pool is the labelled set", "                labeller, splits.unlabeled,",
         "                labeller, splits.labeled,"),
        ("labels alone with the pool", "last = train_phases(student, learn, None,",
         "last = train_phases(student, learn, pseudo,"),
        ("labels alone from scratch", "last if student.from_teacher else student.start_from",
         "None"),
        ("labels alone never from the one before", "last if student.from_teacher else student",
         "student"),
        ("labels alone always from the one before", "last if student.from_teacher else "
         "student.start_from", "last"),
        ("labels alone from their student", "alone, last = [None] * len(models), models[0][1]",
         "alone, last = [None] * len(models), teacher"),
        ("validation accuracy reported as test", "path, splits.test, machine",
         "path, splits.validation, machine"),
    ],
    ("iterate.py", "start_from advice"): [
        ("nobody starts from the file", "else generation.start_from\n", "else None\n"),
        ("a guessing teacher labels", "splits, allow_chance)", "splits, True)"),
    ],
    ("support/plans.py", "published plans iterate"): [
        ("labels alone with the student's noise on images", "ratio=0, **noise)", "ratio=0)"),
        ("labels alone with the teacher's operations only",
         '("rand_augment_operations", "rand_augment_magnitude")}', '("rand_augment_operations",)}'),
        ("every student has labels alone of its own", "different.setdefault(same, alone)",
         "alone"),
        ("other models share labels alone", "different.setdefault(same, alone)",
         'different.setdefault("", alone)'),
        ("students from their teachers share labels alone",
         'name=number if student.from_teacher else ""', 'name=""'),
        ("labels alone with the student's seed", ".seeded(number).seeded(1)", ".seeded(number)"),
        ("labels alone from trained weights with the teacher's noise",
         "{} if student.from_teacher else of_teacher", "of_teacher"),
        ("labels alone for half the steps", "ratio=0, **noise)",
         "ratio=0, epochs=student.config.epochs / 2, **noise)"),
        ("labels alone without RandAugment", "ratio=0, **noise)",
         "ratio=0, rand_augment_operations=0)"),
        ("a student's labels not sharpened", '"student 1", CIFAR_CPU, SHARP',
         '"student 1", CIFAR_CPU, {}'),
        ("the next student's labels not sharpened", '"student 2", CIFAR_CPU, SHARP',
         '"student 2", CIFAR_CPU, {}'),
        ("a larger student from its teacher", 'and "from_teacher" not in ablations', "and False"),
        ("students from scratch", 'FROM_TEACHER = ("cifar10-cpu",)', "FROM_TEACHER = ()"),
        ("the teacher with RandAugment", 'CIFAR_CPU | {"rand_augment_operations": 0, ',
         "CIFAR_CPU | {"),
    ],
    ("eval_robust.py", "eval_robust archives"): [
        ("top-k among all classes", "logits[:, classes].topk(", "logits.topk("),
        ("top-k: numbers among the allowed", "return classes[logits[:, classes].topk(min(k, "
         "len(classes))).indices]", "return logits[:, classes].topk(min(k, len(classes))).indices"),
        ("flips of noise from frame to frame", "predictions[:, :1] if noise else",
         "predictions[:, :-1] if noise else"),
        ("all flips against the first frame", "predictions[:, :1] if noise else predictions[:, "
         ":-1]", "predictions[:, :1]"),
        ("flips of frames, not of changes", "(predictions[:, 1:] != reference).double().mean()",
         "(predictions[:, 1:] != reference).double().sum() / predictions.numel()"),
        ("mFR: ratio of the means", "sum(rate / baseline[name] for name, rate in rates.items()) / "
         "len(rates)", "sum(rates.values()) / sum(baseline.values())"),
        ("mFR as a fraction", "return 100 * sum(rate", "return sum(rate"),
        ("mCE: mean of the severities' ratios", "sum(sum(row) / sum(baseline[name]) for",
         "sum(sum(e / b for e, b in zip(row, baseline[name], strict=True) if b) / 5 for"),
        ("mCE as a fraction", "return 100 * sum(sum(row)", "return sum(sum(row)"),
        ("PGD downhill", "adversarial + step * gradient.sign()", "adversarial - step * "
         "gradient.sign()"),
        ("PGD by the gradient, not its sign", "step * gradient.sign()", "step * gradient"),
        ("PGD out of the ball", "gradient.sign(), lowest, highest)", "gradient.sign(), 0, 255)"),
        ("PGD out of the pixels' range", "(clean - epsilon).clamp(min=0), (clean + "
         "epsilon).clamp(max=255)", "clean - epsilon, clean + epsilon"),
        ("PGD's step epsilon / steps", "step = 2.5 * epsilon / steps", "step = epsilon / steps"),
        ("PGD away from its targets", "labels, step = targets, -step", "labels = targets"),
        ("random starts of one sign", "(2 * torch.rand(clean.shape, generator=generator) - 1)",
         "torch.rand(clean.shape, generator=generator)"),
        ("PGD in 5 steps", "steps: int = 10,\n", "steps: int = 5,\n"),
        ("FGSM by half", "steps=1, step_size=epsilon)", "steps=1, step_size=epsilon / 2)"),
        ("attacked in training mode", "network.to(device).eval()", "network.to(device)"),
        ("attacked without normalisation", "network(augment.normalize(placed))",
         "network(placed.float())"),
        ("quick: every severity on all", "(torch.arange(len(images)) + turn) % 5",
         "torch.arange(len(images)) % 5"),
        ("quick: severity 1 alone", "corruptions.corrupt(images[fifth], name, level, generator)",
         "corruptions.corrupt(images[fifth], name, 1, generator)"),
        ("quick: noise flips from frame to frame", 'dim=1), "noise" in name)',
         "dim=1), False)"),
        ("quick: no limit", "manual_seed(seed))[:limit]", "manual_seed(seed))"),
        ("quick: attacks without labels", "== batch[1] for batch",
         "== predict(batch[0]) for batch"),
        ("top-1 and top-4", "top_k(model(images).cpu(), 5,", "top_k(model(images).cpu(), 4,"),
        ("targets may be the true class", "torch.randint(1, len(source.classes)",
         "torch.randint(0, len(source.classes)"),
        ("attacks without their epsilon", "images = fgsm(model, images, labels, float(name))",
         "images = fgsm(model, images, labels, 1.0)"),
        ("relative to itself", "baseline=teacher[key])", "baseline=results[key])"),
    ],
    ("support/archives.py", "published archives"): [
        ("ImageNet-C cropped",
         '("imagenet-c", "imagenet-p", "tiny-imagenet-c"):\n            # sec',
         '("imagenet-p", "tiny-imagenet-c"):\n            # sec'),
        ("ImageNet-P cropped",
         '("imagenet-c", "imagenet-p", "tiny-imagenet-c"):\n            # sec',
         '("imagenet-c", "tiny-imagenet-c"):\n            # sec'),
        ("both cropped", "views = [view.resize(size, bicubic) for view in views]", "pass"),
        ("resized to the nearest pixel", "view.resize(size, bicubic)",
         "view.resize(size, Image.Resampling.NEAREST)"),
        ("ImageNet-A cropped as ImageNet", "views = [ImageOps.fit(view, size, bicubic) for view in "
         "views]", "pass"),
        ("ImageNet-A among 1000 classes", 'IMAGENET["imagenet_a"] if self.suite == "imagenet-a" '
         "else None", "None"),
        ("turned by EXIF data", "upright = self.classes != tuple", "upright = () != tuple"),
        ("translate has 31 frames", '| {"translate": 41}', '| {"translate": 31}'),
        ("four severities", "for severity in range(1, 6)}", "for severity in range(1, 5)}"),
        ("the wrong block of CIFAR-10-C", "int(severity) - 1", "5 - int(severity)"),
        ("PGD at 8", '"pgd": {"16": 1}', '"pgd": {"8": 1}'),
    ],
    ("support/scores.py", "scores archives"): [
        ("top-5 is top-1", "correct.sum(1).mean()", "correct[:, 0].mean()"),
        ("flips of noise from frame to frame", 'frames), "noise" in name)', "frames), False)"),
        ("accuracy for error", "1 - parts[f\"{corruption}/{severity}\"][\"top1\"] / 100",
         "parts[f\"{corruption}/{severity}\"][\"top1\"] / 100"),
        ("mCE without AlexNet", "summary[name] = mean(measured)",
         "summary[name] = mean(measured, baseline=None)"),
    ],
    ("support/images.py", "images archives augment"): [
        ("a lost disk's images are broken ones", "number not in OF_FILES or not there",
         "not there"),
        ("nobody may read it: broken", "errno.EINVAL, errno.EOVERFLOW}",
         "errno.EINVAL, errno.EOVERFLOW, errno.EACCES}"),
        ("broken only while inspected", "        require_present(file, error)\n"
         "        raise Unreadable", "        raise Unreadable"),
        ("sizes that the disk does not tell", "        require_present(file, error)\n"
         "        return 0", "        return 0"),
        ("sizes in no order", "for row in rows], parts)", "for row in rows[::-1]], parts)"),
        ("thumbnails of raw data", "or file.lower().endswith(RAW):", "or False:"),
        ("mean of another order", "(0.485, 0.456, 0.406)", "(0.406, 0.456, 0.485)"),
        ("crop of size / (size + 16)", "int(side * size / (size + 32))",
         "int(side * size / (size + 16))"),
        ("the whole square of large images", "    if size > 64:\n", "    if size > 10**6:\n"),
        ("a part of small images", "    if size > 64:\n", "    if size > 16:\n"),
        ("crops from the top", "left, top = (image.width - side + 1) // 2, (image.height - side + "
         "1) // 2", "left, top = (image.width - side + 1) // 2, 0"),
        ("bilinear", "image.resize((size, size), Image.Resampling.BICUBIC, corners)",
         "image.resize((size, size), Image.Resampling.BILINEAR, corners)"),
    ],
    ("support/datasets.py", "datasets sources"): [
        ("the last labels of each class", "rows.tensor_split((first, len(rows) - last))",
         "rows.flip(0).tensor_split((first, len(rows) - last))"),
        ("fewer labels than asked for", "last < 0 or first + last > len(rows)", "last < 0"),
        ("validation images stay in the pool", "held_out = contents(validation) | contents(test)",
         "held_out = contents(test)"),
        ("test images stay in the pool", "held_out = contents(validation) | contents(test)",
         "held_out = contents(validation)"),
        ("held-out images stay in the pool", "isinstance(seen, bytes) and seen not in "
         "(held_out or ())]", "isinstance(seen, bytes)]"),
        ("labelled images in the pool", "rows.tensor_split((first, len(rows) - last))",
         "(rows[:first], rows[: len(rows) - last], rows[len(rows) - last :])"),
        ("the pool's labels forgotten", "np.full(unlabeled - counts.sum(), NO_CLASS)",
         "np.full(unlabeled - counts.sum(), 0)"),
        ("a balanced pool", "POOL_IMBALANCE = 8", "POOL_IMBALANCE = 1"),
        ("a pool of classes alone", "POOL_NO_CLASS = 0.3", "POOL_NO_CLASS = 0.0"),
        ("a pool of the demo in order", "np.random.default_rng((seed, 1)).permutation(pool)",
         "pool"),
    ],
    ("support/folders.py", "images datasets names"): [
        ("a lost disk's files are no images", "            images.require_present(file, error)\n",
         ""),
        ("twins of another case are two classes", ".casefold() for name", " for name"),
        ("the pool in the system's order", "for name in sorted(names)", "for name in names"),
        ("folders in the system's order", "sorted((one for one in inner if not _hidden(one)), "
         "key=lambda one: one + \"/\")", "[one for one in inner if not _hidden(one)]"),
        ("links that lead round in a circle", "in visited:", "in ():"),
        ("classes in any order", "entries = sorted(", "entries = list("),
    ],
    ("support/names.py", "names"): [
        ("the first name begins at the last one's start", "self.ends[row - 1] if row else 0",
         "self.ends[row - 1]"),
        ("a part of a part", "rows if names.rows is None else names.rows[rows]", "rows"),
        ("ends of each name alone", "written += letters.write", "written = letters.write"),
    ],
    ("support/sources.py", "sources"): [
        ("labels of other images", "part.pixels for part in (pool, *extra)",
         "part.pixels for part in (*extra, pool)"),
    ],
    ("support/demo_images.py", "demo_images"): [
        ("pictures of no class show one", '[*OTHER_SHAPES, "blend"]', '[*SHAPES, "blend"]'),
    ],
    ("support/advice.py", "advice"): [
        ("guesses counted without ties", "torch.arange(correct, count + 1,",
         "torch.arange(correct + 1, count + 1,"),
        ("chance is one over the classes",
         ".labels.bincount().max().item() / len(splits.validation)",
         ".labels.unique().numel() ** -1"),
        ("a threshold below one half warned of", "0 < threshold < 1 / classes",
         "0 < threshold < 2 / classes"),
        ("a pool as uneven as the labels warned of", "share > NEARLY_ALL > usual[winner]",
         "share > NEARLY_ALL"),
    ],
    ("support/outline.py", "advice plans"): [
        ("time of stages that are done", "sum(self.costs[number:])", "sum(self.costs)"),
        ("width not squared", "width**2 * depth", "width * depth"),
        ("pixels not squared", "config.image_size**2))", "config.image_size))"),
        ("nothing of the labelling is named", "here |= vars(labelling) |", "here |="),
        ("the teacher's labelling is named", "    if student:\n        paper |=",
         "    if True:\n        paper |="),
    ],
    ("support/corruptions.py", "corruptions"): [
        ("clouds as small as pixels", "decay**-octave", "decay**octave"),
        ("CIFAR's severities at all sizes", "224 / 32), 0), 1)", "224 / 32), 0), 0)"),
    ],
    ("support/predictions.py", "predictions"): [
        ("copies of another image", "minlength=len(unique))", "minlength=len(unique))[::-1]"),
        ("probabilities of another class", ".topk(top))", ".flip(1).topk(top))"),
    ],
    ("results/verdicts.py", "verdicts"): [
        ("the deviation of a population", "statistics.stdev(", "statistics.pstdev("),
        ("a degree of freedom too many", "QUANTILES[min(count, 10) - 3]",
         "QUANTILES[min(count, 10) - 2]"),
        ("the mean decides", "inside, outside = low > 0, high < 0",
         "inside, outside = mean > 0, mean < 0"),
        ("the mean decides about a null", "-BOUND <= low and high <= BOUND",
         "-BOUND <= mean <= BOUND"),
        ("a null is contradicted on one side only", "low > BOUND or high < -BOUND", "low > BOUND"),
        ("the paper's sign turned", "mean(higher, seed) - mean(lower, seed)",
         "mean(lower, seed) - mean(higher, seed)"),
        ("two seeds decide", "if count < 3:", "if count < 2:"),
        ("the higher side in orange", 'zip(contrast.sides, ("C0", "C1"), strict=True)',
         'zip(contrast.sides, ("C1", "C0"), strict=True)'),
        ("both tails called reproduced", "len(words) * 0.025", "len(words) * 0.05"),
        ("seeds without the contrast are drawn", "if seed in found and row.get", "if row.get"),
        ("a missing figure counts", ".get(contrast.figure) is not None for name", " for name"),
        ("what lies beside a verdict is left out", "for other in study.beside:",
         "for other in ():"),
        ("controls among the claims", "(controls if contrast.control else claims)", "claims"),
    ],
    ("results/measure.py", "studies"): [
        ("classes that nobody has", "{*splits.labeled.classes, \"\"}", "{*truth.values()}"),
        ("images of no class count as right", 'if truth[row["name"]]]', "]"),
        ("copies not counted", 'sum(int(row["copies"]) for row in rows)', "len(rows)"),
        ("a teacher for each pool", '"all" if len(self.generations) == 2 else self.pool',
         "self.pool"),
        ("later teachers of the whole pool", '"all" if len(self.generations) == 2 else self.pool',
         '"all"'),
        ("keys by name", 'replace(one, name="")', "one"),
        ("one key for all pools", "[chain, self.pool]", "[chain]"),
        ("pools of the other origin", '== (pool == "in-domain")', '!= (pool == "in-domain")'),
        ("seeds of another generation", ".seeded(number)", ".seeded(number + 1)"),
        ("no student starts from its teacher", "teacher if generation.from_teacher else None",
         "None"),
        ("losses of the whole training", "losses[-max(1, len(losses) // 10):]", "losses"),
        ("lost teachers stay lost", "not run.before.checkpoint(seed, folder).exists()", "False"),
        ("known runs again", "if run.key not in known:", "if True:"),
        ("students do not wait", "(seed, run.before.key) not in busy", "True"),
        ("three at once", "ready[: processes - len(running)]", "ready"),
        ("the same labelled images for each seed", ".roll(-seed * labels)", ""),
        ("labelled images of an earlier seed", "< (seed + 1) * labels", "< labels"),
        ("the same shares of the pool for each seed", "default_rng(seed)", "default_rng(0)"),
        ("runs go on without their teacher", "not builds_on(other, run)", "True"),
        ("checkpoints chosen on the test set", "splits.labeled, splits.validation, pseudo",
         "splits.labeled, splits.test, pseudo"),
        ("a larger pool of other classes", '(pool == "in-domain")][: own.sum()]',
         '(pool == "in-domain")]'),
    ],
    ("results/studies.py", "studies"): [
        ("seeds of two processors", 'and not here.items() <= found.items()', "and False"),
        ("complete seeds begin anew, too", "wanted.keys() - found[\"runs\"].keys() and not here",
         "not here"),
        ("figures of other images", 'known["images"] != contents', "False"),
        ("checkpoints of another processor",
         "files.digest(*here.values(), json.dumps(contents))[:8]", '"all"'),
        ("checkpoints of other images", "*here.values(), json.dumps(contents)", "*here.values()"),
        ("table 6 spares the labelled images", '{"augment_unlabeled": False}',
         '{"augment_labeled": False}'),
        ("a share of the pool keeps as many images", 'TINY_LABELS["per_class"] // parts',
         'TINY_LABELS["per_class"]'),
        ("one teacher for all of figure 2", '("student", chain(student(arch), by=arch))',
         '("student", chain(student(arch)))'),
        ("a seed is lost before its first new row", "begun[seed] = found\n",
         'begun[seed] = known["seeds"][str(seed)] = found\n'),
        ("figure 2 turned round", 'Contrast(tuple(f"{arch}, student" for arch in SIZES),\n'
         '               tuple(f"{arch}, supervised" for arch in SIZES)),',
         'Contrast(tuple(f"{arch}, supervised" for arch in SIZES),\n'
         '               tuple(f"{arch}, student" for arch in SIZES)),'),
        ("a page of other results", "known, studies, about = files.read_json(file),",
         'known, studies, about = {"seeds": {}},'),
        ("notes on figures of other results", 'if file.resolve() != HERE / "studies.json":',
         "if False:"),
        ("finding 7 turned round", 'Contrast("ratio 7", "ratio 1")',
         'Contrast("ratio 1", "ratio 7")'),
    ],
    ("results/summarize.py", "summarize"): [
        ("flips in the place of errors", '"corruption error": "unnormalized_mce"',
         '"corruption error": "unnormalized_mfr"'),
    ],
    ("support/runs.py", "runs train"): [
        ("resumed a step late", 'self._write(self.state, {"step": step + 1,',
         'self._write(self.state, {"step": step,'),
        ("resumed without the average", "for name, part in parts.items():\n",
         "for name, part in [*parts.items()][::2]:\n"),
        ("never evaluated at the end", 'return what != "save"', 'return what == "log"'),
        ("weights that are not finite are kept", "if not all(value.isfinite().all() for value in "
         'state["network"].values()):', "if False:"),
    ],
}


def by_hand() -> Iterator[Mutant]:
    """The mutants of PLACES; SystemExit if a text is not there exactly once."""
    wrong = []
    for (file, tests), changes in PLACES.items():
        source = (ROOT / file).read_bytes()
        for what, old, new in changes:
            if (count := source.count(old.encode())) != 1:
                wrong.append(f"{file}: {count} times, not once: {old!r} ({what})")
                continue
            start = source.index(old.encode())
            yield Mutant(file, start, start + len(old.encode()), new.encode(), what,
                         tuple(tests.split()))
    if wrong:
        raise SystemExit("\n".join(wrong))


# ---- Running the tests ----


def run_tests(tree: Path, tests: tuple[str, ...], seconds: float) -> tuple[bool, str]:
    """Whether these test files pass in a tree, and the first test that does not, or why."""
    output, until = tree / "output.txt", time.monotonic() + seconds
    child = os.fork()
    if child == 0:
        os.setsid()
        os.chdir(tree)
        with open(output, "w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        files = [f"tests/test_{name}.py" for name in tests]
        os._exit(pytest.main(["-x", "-q", "-k", LEFT_OUT, "-p", "no:cacheprovider", *files]))
    found = 0
    while not found and time.monotonic() < until:
        time.sleep(0.05)
        found, status = os.waitpid(child, os.WNOHANG)
    if not found:
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return False, f"hung: stopped after {seconds:.0f} s"
    if status == 0:
        return True, ""
    failed = re.search(r"^(?:FAILED|ERROR) tests/(\S+)", output.read_text(errors="replace"), re.M)
    return False, failed[1] if failed else f"exit status {os.waitstatus_to_exitcode(status)}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", metavar="WORD")
    only = parser.parse_args().only
    mutants = [mutant for mutant in (*by_program(), *by_hand())
               if only in mutant.place or only in mutant.what]
    caught, survived, seconds = 0, [], {}
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder, "tree")
        shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(
            ".*", "__pycache__", "runs", "datasets", "*.png"))
        for name in dict.fromkeys(name for mutant in mutants for name in mutant.tests):
            begun = time.monotonic()
            passed, by = run_tests(tree, (name,), 3600)
            if not passed:
                print(f"without any change: {by}\n{(tree / 'output.txt').read_text()}")
                return 1
            seconds[name] = time.monotonic() - begun
            print(f"without any change: test_{name}.py passes in {seconds[name]:.0f} s", flush=True)
        for mutant in mutants:
            source = (tree / mutant.file).read_bytes()
            changed = source[: mutant.start] + mutant.new + source[mutant.end:]
            ast.parse(changed)
            (tree / mutant.file).write_bytes(changed)
            limit = 60 + 5 * sum(seconds[name] for name in mutant.tests)
            passed, by = run_tests(tree, mutant.tests, limit)
            (tree / mutant.file).write_bytes(source)
            caught += not passed
            if passed:
                by = f"all of {', '.join(f'test_{name}.py' for name in mutant.tests)}"
                survived.append(mutant)
            row = "SURVIVED" if passed else "caught", mutant.place, mutant.what, by
            print(" | ".join(row), flush=True)
    share = 100 * caught / max(1, len(mutants))
    print(f"\n{len(mutants)} mutants, {caught} caught, {len(survived)} survived: {share:.1f} %")
    for mutant in survived:
        print(f"survived: {mutant.place} | {mutant.what}")
    return 0 if share >= WANTED else 1


if __name__ == "__main__":
    sys.exit(main())
