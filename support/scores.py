"""The results file of eval_robust.py: settings, a result for each part of a test set, a summary.

The metrics are eval_robust.py's own; the functions here take them as arguments.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor

from support import InputError, devices, files
from support.archives import ALEXNET_ERROR, TestSet


def _read(path: Path, settings: dict) -> dict:
    """The parts that a file of these settings holds."""
    if not path.exists():
        return {}
    try:
        results = json.loads(path.read_text())
        found, parts = results["settings"], results["parts"]
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{path}: not a result file; name another --out") from None
    files.require_same(path, found, settings)
    return parts


def keep(path: str | Path, settings: dict, names: Sequence[str], measure: Callable[[str], dict],
         renew: bool = False) -> dict:
    """{name: measure(name)}, kept in a JSON file: what it holds already is not measured again.

    The first process measures, others wait. InputError if parts differ in their number of images,
    or if the file is of other settings or something else; with `renew` all is measured anew.
    """
    path = Path(path)
    if devices.rank() == 0:
        with files.lock(path, f"{path}.lock"):
            try:
                parts = _read(path, settings)
            except InputError:
                if not renew:
                    raise
                parts = {}
            for name in [name for name in names if name not in parts]:
                parts[name] = measure(name)
                first, count = next(iter(parts)), parts[name]["images"]
                if count != parts[first]["images"]:
                    raise InputError(f"part {name}: {count} images, but {parts[first]['images']} "
                                     f"in {first}; complete --data-dir, and remove {path} if "
                                     f"{first} was not whole")
                files.write_json(path, {"settings": settings, "parts": parts})
    devices.wait_for_all()
    return _read(path, settings)


def score(source: TestSet, name: str, ranked: Tensor, labels: Tensor, flip_rate: Callable) -> dict:
    """A part's number of images, accuracies in percent and flip rate, where they are defined.

    ranked: (N * frames, 5) the most likely classes, best first; labels: (N * frames,).
    """
    frames = source.frames(name)
    result = {"images": len(labels) // frames}
    if (labels >= 0).all():
        correct = (ranked == labels[:, None]).double()
        result |= {"top1": 100 * correct[:, 0].mean().item(),
                   "top5": 100 * correct.sum(1).mean().item()}
    if frames > 1:
        result["flip_rate"] = flip_rate(ranked[:, 0].view(-1, frames), "noise" in name)
    return result


def summarize(path: str | Path, suite: str, mean_corruption_error: Callable,
              mean_flip_rate: Callable) -> None:
    """Print, and add to a results file, the figures of the suite in percent."""
    if devices.rank() > 0:
        return
    results = json.loads(Path(path).read_text())
    parts = results["parts"]

    if "all" in parts:
        summary = parts["all"]
    elif suite in ("fgsm", "pgd"):
        summary = {"top1": {epsilon: part["top1"] for epsilon, part in parts.items()}}
    else:
        if suite.endswith("-c"):
            name, mean = "mce", mean_corruption_error
            measured = {corruption: [1 - parts[f"{corruption}/{severity}"]["top1"] / 100
                                     for severity in range(1, 6)] for corruption in ALEXNET_ERROR}
        else:
            name, mean = "mfr", mean_flip_rate
            measured = {perturbation: part["flip_rate"] for perturbation, part in parts.items()}

        summary = {"images": next(iter(parts.values()))["images"],
                   f"unnormalized_{name}": mean(measured, baseline=None)}
        if suite.startswith("imagenet"):
            summary[name] = mean(measured)
        if suite != "cifar10-p":
            # paper: "Top-1 Acc." of table 5 is not defined; here: frames' mean, then the parts'.
            summary["top1"] = sum(part["top1"] for part in parts.values()) / len(parts)

    files.write_json(path, results | {"summary": summary})
    print(json.dumps(summary, indent=1))
