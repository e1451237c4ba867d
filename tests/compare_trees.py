"""Show that a rebuilding changed nothing but the shape: two trees train the same, bit for bit.

    git worktree add ../old 807b427
    python tests/compare_trees.py ../old . --data DIR [--only demo,gloo] [--out DIR]

Each case runs in both trees by turns, through their command lines alone, with one thread and one
seed; then all weights, reports, confidences and logged losses must be equal (exit code 0). DIR
holds image files in cifar10/{train,test}/<class>/ and flowers/{train,test}/<class>/. What finished
in --out with these very files of a tree is not run again.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

# ---- Cases ----

# {out}: a directory of this case and tree; {data}: --data; {images}: what `make_images` makes;
# {old}/x: what case x left in the old tree. Filter and balance have something to do in all of them.
TORCHRUN = "-m torch.distributed.run --standalone --nproc-per-node 2 "
DEMO = ("iterate.py --device cpu --seed 0 --out {out} --labels-per-class 8 --unlabeled-images 1500 "
        "--test-per-class 20 --per-class 150 ")
TINY = "--arch 0.1x0.1 0.15x0.1 --learning-rate 0.1 "
FOLDERS = ("iterate.py --device cpu --seed 0 --out {out} --labeled {images}/labeled --unlabeled "
           "{images}/pool --test {images}/test --val-per-class 2 --arch 0.25x0.34 --image-size 96 "
           "--epochs 30 --batch-size 8 --unlabeled-ratio 2 --learning-rate 0.1 --ema-decay 0.9 "
           "--threshold 0.3 ")
TRAIN = ("train.py --device cpu --seed 0 --labeled {images}/labeled --val {images}/val "
         "--image-size 96 --batch-size 8 --warmup-epochs 1 --learning-rate 0.05 --ema-decay 0.9 ")
STUDENT = "--unlabeled {images}/pool --pseudo-label-dir {out}/labels --out {out}/student.pt "
LABEL = "pseudo_label.py --device cpu --out {out}/labels --unlabeled {images}/pool "
HELD_OUT = "--held-out {images}/val {images}/test --threshold 0.3 "
FLAGS = ("--no-joint", "--from-teacher", "--noised-teacher", "--fixed-resolution 128", "--no-noise",
         "--pseudo-labels hard", "--threshold 0 --no-balance", "--accumulation-steps 2",
         "--checkpoint-blocks", "--optimizer sgd --normalization official --threshold 0",
         "--precision bfloat16 --normalization algorithm1 --no-augment-labeled --no-flip")

CASES: dict[str, list[str]] = {
    "demo": [DEMO + "--epochs 200 --threshold 0.2"],
    "cifar": ["iterate.py --device cpu --seed 0 --out {out} --plan cifar10-cpu --no-robustness "
              "--train {data}/cifar10/train --test {data}/cifar10/test --labels-per-class 400 "
              "--val-per-class 500 --epochs 5 --threshold 0.2"],  # 4 networks, 312 steps each
    "folders": [FOLDERS],
    **{"folders" + flags.replace(" ", "-"): [FOLDERS + flags] for flags in FLAGS},
    "steps": [TRAIN + "--arch 0.25x0.34 --epochs 30 --out {out}/teacher.pt",
              LABEL + "--teacher {out}/teacher.pt " + HELD_OUT,
              TRAIN + "--arch 0.35x0.34 --epochs 4 --small-images " + STUDENT],
    "gloo": [TORCHRUN + DEMO + TINY + "--epochs 100 --threshold 0.15"],
    "xla": [DEMO.replace("cpu", "xla") + TINY + "--epochs 25 --batch-size 32 --learning-rate 0.2 "
            "--unlabeled-ratio 1 --threshold 0.125 --no-labels-only --no-robustness"],
    # Checkpoints of the old tree are read by both.
    "checkpoints": [LABEL + "--teacher {old}/steps/teacher.pt " + HELD_OUT,
                    TRAIN + "--arch 0.25x0.34 --epochs 2 --start-from {old}/steps/teacher.pt "
                    + STUDENT,
                    "eval_robust.py --device cpu --suite quick --data-dir {images}/cifar "
                    "--checkpoint {old}/cifar/student-2.pt --out {out}/report.json"]}
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1", "PJRT_DEVICE": "CPU", "CPU_NUM_DEVICES": "2",
    "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
}


def make_images(data: Path, folder: Path) -> Path:
    """Folders of a few JPEG files, with duplicates and held-out images in the pool."""
    def copy(source: Path, target: Path, first: int, last: int) -> None:
        for kind in sorted(source.iterdir()):
            (target / kind.name).mkdir(parents=True, exist_ok=True)
            for file in sorted(kind.iterdir())[first:last]:
                shutil.copyfile(file, target / kind.name / file.name)

    pool = folder / "pool"
    copy(data / "flowers/train", folder / "labeled", 0, 14)
    copy(data / "flowers/train", folder / "val", 14, 18)
    copy(data / "flowers/train", pool, 18, 48)
    copy(data / "flowers/test", folder / "test", 0, 10)
    copy(data / "cifar10/test", folder / "cifar", 0, 20)
    for number, file in enumerate(sorted(pool.glob("*/*.jpg"))[::5]):
        shutil.copyfile(file, pool / f"again-{number}.jpg")
    known = [file for kind in ("labeled", "val", "test") for file in folder.glob(f"{kind}/*/*")]
    for number, file in enumerate(sorted(known)[::7]):  # 6 and 13 of each labelled class, ...
        shutil.copyfile(file, pool / f"known-{number}.jpg")
        Image.open(file).save(pool / f"known-{number}.png")
    (pool / "broken.jpg").write_bytes(file.read_bytes()[:300])
    return folder


# ---- Running ----


def digest(tree: Path) -> str:
    """Of the files that decide what the tree computes."""
    places = ("*.py", "*.json", "support/*.py", "support/*.json")
    files = sorted(file for place in places for file in tree.glob(place))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def run(name: str, tree: Path, side: Path, places: dict[str, Path]) -> str:
    """Run a case's commands in a tree, if it has not finished before; "" or what went wrong."""
    out, finished = side / name, side / f"{name}.json"
    commands = [[part.format(out=out, **places) for part in command.split()]
                for command in CASES[name]]
    claim = {"tree": digest(tree), "commands": commands}
    if finished.exists() and claim.items() <= json.loads(finished.read_text()).items():
        return ""
    finished.unlink(missing_ok=True)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    started = sum(os.times()[2:4])  # of child processes: seconds of one core
    with open(side / f"{name}.txt", "w") as log:
        for command in commands:
            code = subprocess.call([sys.executable, *command], cwd=tree, stdout=log, stderr=log,
                                   env=os.environ | ENVIRONMENT)
            if code:
                return f"exit code {code} in {tree}: {' '.join(command)} (see {log.name})"
    seconds = round(sum(os.times()[2:4]) - started)
    finished.write_text(json.dumps(claim | {"seconds": seconds}, indent=1))
    return ""


# ---- Comparing ----

RESULTS = ("*.pt", "report.json", "confidence.npy", "*.jsonl")
IGNORED = {"images_per_second", "settings"}  # of logs; of eval_robust.py: what it was asked


def load(file: Path) -> object:
    """A checkpoint's weights, an array, or JSON, as plain containers."""
    if file.suffix == ".pt":
        return dict(torch.load(file, weights_only=True)["model"])
    if file.suffix == ".npy":
        return torch.from_numpy(np.load(file))
    if file.suffix == ".jsonl":  # whatever the order of the runs that share it
        return sorted(map(json.loads, file.open()), key=lambda line: line["name"])
    return json.loads(file.read_text())


def difference(old: object, new: object, where: str = "") -> str:
    """The first place where two such values differ, or ""."""
    if type(old) is not type(new):
        return f"{where}: {old!r} != {new!r}"
    if isinstance(old, torch.Tensor):
        same = old.dtype == new.dtype and torch.equal(old, new)
        return "" if same else f"{where} differs"
    if isinstance(old, dict):
        if other := sorted((old.keys() ^ new.keys()) - IGNORED):
            return f"{where}: only one tree has {', '.join(other)}"
        pairs = [(old[key], new[key], f"{where} {key}") for key in old if key not in IGNORED]
    elif isinstance(old, list) and len(old) == len(new):
        pairs = [(*both, f"{where}[{at}]") for at, both in enumerate(zip(old, new, strict=True))]
    else:
        return "" if old == new else f"{where}: {old!r} != {new!r}"
    return next(filter(None, (difference(*pair) for pair in pairs)), "")


def compare(old: Path, new: Path) -> dict[str, str]:
    """For each result of a case what differs, or ""."""
    found = {file.relative_to(side) for side in (old, new) for pattern in RESULTS
             for file in side.rglob(pattern)}
    pairs = {file: [side / file for side in (old, new) if (side / file).exists()]
             for file in sorted(found) or ["results"]}
    return {str(file): difference(*map(load, pair)) if len(pair) == 2 else "missing in a tree"
            for file, pair in pairs.items()}


def main() -> str | None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("trees", type=Path, nargs=2, metavar="TREE", help="the old, then the new")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR")
    parser.add_argument("--only", help="cases, with commas between", default=",".join(CASES))
    parser.add_argument("--out", type=Path, default="runs/compare", metavar="DIR")
    arguments = parser.parse_args()
    trees = dict(zip(("old", "new"), (tree.resolve() for tree in arguments.trees), strict=True))
    out, wrong = arguments.out.resolve(), 0
    places = {"data": arguments.data.resolve(), "images": out / "images", "old": out / "old"}
    if not places["images"].exists():
        make_images(places["data"], out / "making").rename(places["images"])
    for name in arguments.only.split(","):
        needed = re.findall(r"{old}/(\w+)", " ".join(CASES[name]))
        order = [(case, "old") for case in needed] + [(name, "old"), (name, "new")]
        problems = (run(case, trees[side], out / side, places) for case, side in order)
        problem = next(filter(None, problems), "")
        found = {"run": problem} if problem else compare(out / "old" / name, out / "new" / name)
        for file, problem in found.items():
            print(f"{name}, {file}: {problem or 'equal'}", flush=True)
            wrong += bool(problem)
    return f"{wrong} differences" if wrong else None


if __name__ == "__main__":
    sys.exit(main())
