"""Wrong inputs by the hundred, each through a whole command: a table of what became of it.

    python tests/wrong_inputs.py [WORD ...]     all of them, or those with a word in their line

Refused is right: the exit code 2, one line on stderr that begins with the script's name and says
what the case expects, no traceback, no output and nothing else new. A few inputs are no mistakes
but must be said ("says") or read ("reads"): they end with 0. The exit code here is 1 if anything
else happened, such as a hang of two minutes. Not a part of pytest: it takes some minutes.
"""

import importlib
import io
import json
import multiprocessing
import os
import pickle
import re
import shutil
import signal
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))
from support import cli

SMALL = "--device cpu --workers 0"
COMMANDS = {
    "train": "--labeled labeled --val val --arch 0.25x0.34 --image-size 32 --batch-size 4 "
             f"--epochs 1 {SMALL} --out out.pt",
    "pseudo_label": f"--teacher teacher.pt --unlabeled pool --threshold 0 {SMALL} --out out",
    "student": "--labeled labeled --arch 0.25x0.34 --image-size 32 --batch-size 4 --epochs 1 "
               f"--unlabeled pool --pseudo-label-dir labels {SMALL} --out out.pt",
    "iterate": "--plan cifar10-cpu --no-small-images --labeled labeled --unlabeled pool "
               "--test test --val val --arch 0.25x0.34 --image-size 32 --batch-size 4 --epochs 1 "
               f"--threshold 0 --no-robustness --no-labels-only --allow-chance {SMALL} --out out",
    "demo": "--epochs 1 --unlabeled-images 60 --labels-per-class 2 --val-per-class 2 "
            f"--test-per-class 2 --threshold 0 --no-robustness --allow-chance {SMALL} "
            "--out out",
    "eval_robust": f"--checkpoint teacher.pt --suite imagenet --data-dir test {SMALL} "
                   "--out out.json",
    "draw": "--out out.png",
}
SCRIPTS = {"student": "train", "demo": "iterate", "draw": "results.draw_operations"}


# ---- What is there before a mistake is made ----


def picture(seed: int, size: tuple[int, int] = (32, 32)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8)
    return Image.fromarray(pixels)


def begin(folder: Path) -> None:
    """Small sets of images, a teacher, its labels, and a finished student and loop."""
    for number, part in enumerate(("labeled", "val", "test")):
        for label in "ab":
            (folder / part / label).mkdir(parents=True)
            for count in range(6):
                seed = 1000 * number + 100 * ord(label) + count
                picture(seed).save(folder / part / label / f"{count}.png")
    (folder / "pool").mkdir()
    for count in range(12):
        picture(90_000 + count).save(folder / "pool" / f"{count}.png")
    os.chdir(folder)
    for script, change in (("train", "--out teacher.pt"), ("pseudo_label", "--out labels"),
                           ("eval_robust", "--out old.json"), ("iterate", "--out old")):
        code, _, said = run(script, f"{COMMANDS[script]} {change}".split())
        assert code == 0, said


def run(name: str, arguments: list[str], seconds: int = 120) -> tuple[int | str, str, str]:
    """Exit code or "hang", and what was written to stdout and stderr, of a forked process."""
    def child() -> None:
        for stream, file in (1, "stdout"), (2, "stderr"):
            os.dup2(os.open(f"/tmp/{os.getppid()}-{file}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
                    stream)
        sys.stdout, sys.stderr = (io.TextIOWrapper(os.fdopen(stream, "wb"), line_buffering=True)
                                  for stream in (1, 2))
        torch.set_num_threads(1)
        script = importlib.import_module(SCRIPTS.get(name, name))
        code = cli.run(script.main, arguments)
        sys.stdout.flush()
        os._exit(code)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(seconds)
    code = process.exitcode if process.exitcode is not None else "hang"
    if code == "hang":
        os.kill(process.pid, signal.SIGKILL)
    return code, *(Path(f"/tmp/{os.getpid()}-{file}").read_text(errors="replace")
                   for file in ("stdout", "stderr"))


# ---- The mistakes ----


def write(path: str, contents: bytes | str = b"") -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(contents.encode() if isinstance(contents, str) else contents)


def move(old: str, new: str) -> None:
    Path(new).parent.mkdir(parents=True, exist_ok=True)
    Path(old).rename(new)


def edit_meta(**changes: object) -> None:
    """Change what teacher.pt says of itself."""
    contents = torch.load("teacher.pt", weights_only=True)
    meta = json.loads(contents["meta"])
    for key, value in changes.items():
        (meta if key in meta else meta["config"])[key] = value
    torch.save(contents | {"meta": json.dumps(meta)}, "teacher.pt")


def edit_weights(change) -> None:
    contents = torch.load("teacher.pt", weights_only=True)
    change(contents["model"])
    torch.save(contents, "teacher.pt")


def edit_json(path: str, change) -> None:
    contents = json.loads(Path(path).read_text())
    change(contents)
    Path(path).write_text(json.dumps(contents))


def edit_array(path: str, change) -> None:
    np.save(path, change(np.load(path)))


def lying_png() -> bytes:
    """A PNG of 60,000 x 60,000 pixels in some hundred bytes."""
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (len(data).to_bytes(4, "big") + kind + data
                + zlib.crc32(kind + data).to_bytes(4, "big"))

    header = (60_000).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
            + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b""))


def truncated_jpeg() -> bytes:
    file = io.BytesIO()
    picture(1, (64, 64)).save(file, "JPEG")
    return file.getvalue()[:900]


def break_all(folder: str) -> None:
    for file in Path(folder).rglob("*.png"):
        file.write_bytes(b"broken")


IMAGE = "labeled/a/0.png"
# What is given: a command, flags that come last (and so count), what was done to the files before;
# and what must be said.
CASES = [
    # Folders
    ("train", "--labeled nowhere", None, "nowhere"),
    ("train", "--labeled teacher.pt", None, "teacher.pt"),
    ("train", "--labeled labeled/a", None, "no class folders"),
    ("train", "--labeled pool", None, "no class folders"),
    ("train", "--labeled .", None, "lies in"),
    ("train", "--val test/a", None, "no class folders"),
    ("train", "--val labeled", None, "every validation image is also a labelled one"),
    ("train", "", lambda: shutil.rmtree("labeled/b"), "only one class folder"),
    ("train", "", lambda: shutil.rmtree("val/b"), "not the classes"),
    ("train", "", lambda: move("val/b", "val/B"), "not the classes"),
    ("train", "", lambda: [move(f"labeled/b/{n}.png", f"aside/{n}.png") for n in range(6)],
     "no images in it"),
    ("train", "", lambda: break_all("labeled/b"), "not a readable image"),
    ("train", "", lambda: write("labeled/c", b"a file"), "says 1 files left out"),
    ("train", "", lambda: [os.makedirs(f"labeled/{c}/{name}") for c in "ab"
                           for name in (".thumbnails", "@eaDir")], "reads"),
    ("train", "", lambda: write("labeled/a/list.csv", "0.png"), "says 1 files left out"),
    ("train", "", lambda: write("labeled/a/clip.mp4", b"\0" * 99), "says clip.mp4"),
    ("train", "", lambda: write("labeled/a/._0.png", b"\0"), "reads"),
    ("train", "", lambda: os.symlink("..", "labeled/a/up"), "reads"),
    ("train", "", lambda: os.symlink("nowhere.png", "labeled/a/gone.png"), "gone.png"),
    ("train", "", lambda: os.mkfifo("labeled/a/pipe.png"), "pipe.png"),
    ("iterate", "--test labeled", None, "every test image is also a labelled one"),
    ("iterate", "--test val", None, "every test image is also a validation one"),
    ("iterate", "--val labeled", None, "every validation image is also a labelled one"),
    ("iterate", "--unlabeled test", None, "no images for the unlabelled pool"),
    ("iterate", "--unlabeled empty", lambda: os.mkdir("empty"), "empty"),
    ("iterate", "--unlabeled pool/0.png", None, "reads"),
    ("iterate", "", lambda: break_all("pool"), "12 unreadable"),
    ("iterate", "", lambda: shutil.copy("test/a/0.png", "val/a/copy.png"),
     "says 1 test images are validation images"),
    ("iterate", "", lambda: shutil.copy("labeled/a/0.png", "test/b/copy.png"),
     "says 1 test images are labeled images"),
    ("iterate", "", lambda: [move(f"pool/{n}.png", f"pool/@eaDir/{n}.png") for n in range(12)],
     "no images in the unlabelled"),
    ("iterate", "--out pool/run", None, "lies in pool"),
    ("iterate", "--out labeled/c", None, "lies in labeled"),
    ("iterate", "--out test/../test/x", None, "lies in"),
    ("pseudo_label", "--out pool/labels", None, "lies in pool"),
    ("pseudo_label", "--held-out pool", None, "none of the 12 files"),
    ("pseudo_label", "--held-out empty", lambda: os.mkdir("empty"), "no images in it"),
    ("pseudo_label", "--held-out val nowhere", None, "nowhere"),
    ("pseudo_label", "", lambda: break_all("pool"), "none of the 12 files"),
    ("train", "--out labeled/x.pt", None, "lies in labeled"),
    # Images
    ("train", "", lambda: write(IMAGE), "labeled/a/0.png"),
    ("train", "", lambda: write(IMAGE, "<html>not found</html>"), "labeled/a/0.png"),
    ("train", "", lambda: write(IMAGE, truncated_jpeg()), "truncated"),
    ("train", "", lambda: write(IMAGE, lying_png()), "--megapixels"),
    ("train", "", lambda: write(IMAGE, "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
     "labeled/a/0.png"),
    ("train", "", lambda: write(IMAGE, "<svg xmlns='http://www.w3.org/2000/svg'/>"),
     "labeled/a/0.png"),
    ("train", "", lambda: write(IMAGE, b"%PDF-1.7\n"), "labeled/a/0.png"),
    ("train", "", lambda: Image.fromarray(np.full((9, 9), np.nan, np.float32)).save(
        "labeled/a/0.tif"), "which level is white"),
    ("train", "", lambda: picture(5, (1, 1)).save(IMAGE), "reads"),
    ("train", "", lambda: picture(5, (3000, 2)).save(IMAGE), "reads"),
    ("train", "", lambda: picture(5).convert("CMYK").save("labeled/a/c.jpg"), "reads"),
    ("train", "", lambda: write("labeled/a/emoji \U0001f600 $x.png",
                                Path(IMAGE).read_bytes()), "reads"),
    ("train", "", lambda: shutil.move("labeled/a", b"labeled/\xff\xfe"), "not the classes"),
    ("train", "--megapixels 0.0001", None, "--megapixels"),
    ("pseudo_label", "", lambda: write("pool/0.png", lying_png()), "says 1 files left out"),
    ("eval_robust", "", lambda: write("test/a/0.png", b"broken"), "not a readable image"),
    ("draw", "--image nowhere.png", None, "nowhere.png"),
    ("draw", "--image labeled", None, "labeled"),
    ("draw", "--image teacher.pt", None, "not a readable image"),
    ("draw", "--out nowhere/x.png", None, "nowhere"),
    ("draw", "--out labeled", None, "labeled"),
    # Numbers
    *[("train", f"{flag} {value}", None, flag.strip("-")) for flag, value in (
        ("--epochs", "inf"), ("--epochs", "1e400"), ("--epochs", "-0.0"), ("--epochs", "many"),
        ("--batch-size", "4.0"), ("--batch-size", "1,000"), ("--batch-size", "1000000000"),
        ("--image-size", "0x20"), ("--image-size", "10000000"), ("--dropout", "1"),
        ("--dropout", "nan"), ("--survival-prob", "0"), ("--ema-decay", "1.0"),
        ("--label-smoothing", "-0.1"), ("--learning-rate", "-1"), ("--weight-decay", "inf"),
        ("--decay-rate", "0"), ("--seed", "-3"), ("--workers", "-1"), ("--frozen-stages", "8"),
        ("--rand-augment-operations", "101"), ("--rand-augment-magnitude", "-1"),
        ("--accumulation-steps", "3"), ("--arch", "b8"), ("--arch", "0x1"), ("--arch", "1x"),
        ("--optimizer", "adam"), ("--crops", "none"), ("--checkpoint-steps", "0"),
        ("--megapixels", "0"), ("--device", "tpu"), ("--seed", "99999999999999999999"))],
    *[("pseudo_label", f"{flag} {value}", None, flag.strip("-")) for flag, value in (
        ("--threshold", "1"), ("--threshold", "nan"), ("--temperature", "1e-30"),
        ("--temperature", "1000"), ("--per-class", "99999999999"), ("--batch-size", "0"),
        ("--shard", "2/2"), ("--shard", "0"), ("--pseudo-labels", "firm"))],
    *[("eval_robust", f"--suite {flags}", None, said) for flags, said in (
        ("fgsm --epsilon 1e9", "epsilon"), ("fgsm --epsilon nan", "epsilon"),
        ("pgd --step-size 0", "step-size"), ("imagenet --epsilon 4", "epsilon"),
        ("imagenet --targeted", "targeted"), ("fgsm --random-start", "random-start"),
        ("imagenet --arch b7", "arch"), ("quick --image-size 16", "32x32"),
        ("imagenet-c", "1000 classes"), ("cifar10-c", "cifar10-c"), ("imagenet-d", "suite"))],
    # Flags that do not go together
    ("train", "--unlabeled pool", None, "go together"),
    ("train", "--pseudo-labels hard --pseudo-label-dir labels", None, "go together"),
    ("student", "--pseudo-labels hard", None, "kind"),
    ("student", "--unlabeled val", None, "pool"),
    ("student", "--labeled val --pseudo-label-dir pool", None, "no complete pseudo labels"),
    ("pseudo_label", "--images-of labels --seed 3", None, "--images-of"),
    ("demo", "--unlabeled pool", None, "does not go with the demo"),
    ("demo", "--root elsewhere --train labeled", None, "--train"),
    ("demo", "--plan paper", None, "paper"),
    ("demo", "--from-teacher --arch 0.25x0.34 0.35x0.34", None, "--from-teacher"),
    ("demo", "--arch 0.5x0.5 0.25x0.34", None, "smaller than its teacher"),
    ("demo", "--no-filter=yes", None, "filter"),
    ("iterate", "--labels-per-class 300", None, "300 labelled"),
    ("iterate", "--val-per-class 3", None, "--val"),
    # Checkpoints
    ("pseudo_label", "--teacher nowhere.pt", None, "no checkpoint nowhere.pt"),
    ("pseudo_label", "--teacher labels", None, "labels"),
    ("pseudo_label", "--teacher labeled/a/0.png", None, "cannot be read as a checkpoint"),
    ("pseudo_label", "", lambda: write("teacher.pt"), "cannot be read as a checkpoint"),
    ("pseudo_label", "", lambda: write("teacher.pt", Path("teacher.pt").read_bytes()[:-99]),
     "cannot be read as a checkpoint"),
    ("pseudo_label", "", lambda: write("teacher.pt", pickle.dumps({"a": np.ones(2)})),
     "cannot be read as a checkpoint"),
    ("pseudo_label", "", lambda: write("teacher.pt", pickle.dumps(Path("x"))),
     "cannot be read as a checkpoint"),
    ("pseudo_label", "", lambda: torch.save({"state_dict": {}}, "teacher.pt"), "teacher.pt"),
    ("pseudo_label", "", lambda: edit_meta(image_size=-4), "-4 pixels"),
    ("pseudo_label", "", lambda: edit_meta(image_size=1e9), "pixels"),
    ("pseudo_label", "", lambda: edit_meta(arch=None), "teacher.pt"),
    ("pseudo_label", "", lambda: edit_meta(arch="b0"), "do not fit"),
    ("pseudo_label", "", lambda: edit_meta(classes=["a"]), "1 classes"),
    ("pseudo_label", "", lambda: edit_meta(classes=7), "teacher.pt"),
    ("pseudo_label", "", lambda: edit_meta(dropout=2), "not 0.8 and 2"),
    ("pseudo_label", "", lambda: edit_weights(
        lambda weights: weights["head.weight"].fill_(float("nan"))), "not finite"),
    ("pseudo_label", "", lambda: edit_weights(lambda weights: weights.pop("head.weight")),
     "head.weight is missing"),
    ("eval_robust", "", lambda: edit_weights(
        lambda weights: weights["classifier.bias"].fill_(float("inf"))), "not finite"),
    ("eval_robust", "", lambda: edit_meta(classes=["a", "c"]), "not a class of this"),
    ("eval_robust", "", lambda: shutil.rmtree("test/b"), "says no images of 1 of 2 classes: b"),
    ("train", "--start-from nowhere.pt", None, "nowhere.pt"),
    ("train", "--start-from teacher.pt --arch 0.25x0.6", None, "0.25x0.34"),
    ("train", "--start-from teacher.pt", lambda: [move(f"{part}/a", f"{part}/z") for part in (
        "labeled", "val")], "other classes"),
    # Pseudo labels
    ("student", "", lambda: os.remove("labels/targets.npy"), "targets.npy"),
    ("student", "", lambda: os.remove("labels/labels.json"), "no complete pseudo labels"),
    ("student", "", lambda: write("labels/labels.json", "null"), "no complete pseudo labels"),
    ("student", "", lambda: edit_array("labels/unique.npy", lambda rows: rows - 1), "unique.npy"),
    ("student", "", lambda: edit_array("labels/unique.npy", lambda rows: rows[::-1]),
     "unique.npy"),
    ("student", "", lambda: edit_array("labels/balanced.npy", lambda rows: rows + 99),
     "balanced.npy"),
    ("student", "", lambda: edit_array("labels/balanced.npy", lambda rows: rows * 1.0),
     "balanced.npy"),
    ("student", "", lambda: edit_array("labels/targets.npy", lambda rows: rows * np.nan),
     "targets.npy"),
    ("student", "", lambda: edit_array("labels/targets.npy", lambda rows: rows[:, :1]),
     "targets.npy"),
    ("student", "", lambda: os.remove("pool/3.png"), "other settings"),
    ("student", "", lambda: picture(3, (60, 60)).save("pool/3.png"), "other settings"),
    # Outputs, and what lies there already
    ("train", "--out labeled", None, "labeled"),
    ("train", "--out /proc/x/out.pt", None, "/proc"),
    ("train", "--out teacher.pt/x.pt", None, "teacher.pt"),
    ("train", "--out old.jsonl", None, "old"),
    ("train", "--out old.json", None, "not a checkpoint"),
    ("train", "--out teacher.pt --epochs 2", None, "epochs"),
    ("train", "", lambda: write("out.resume", b"broken"), "out.resume"),
    ("train", "", lambda: os.mkdir("out.jsonl"), "out.jsonl"),
    ("train", "", lambda: write("out.jsonl", "my notes\nof today\n"), "out.jsonl"),
    ("pseudo_label", "--out teacher.pt", None, "teacher.pt"),
    ("pseudo_label", "--out labels --temperature 0.5", None, "temperature"),
    ("pseudo_label", "--out /proc/x", None, "/proc"),
    ("eval_robust", "--out labeled", None, "labeled"),
    ("eval_robust", "--out /proc/x.json", None, "/proc"),
    ("eval_robust", "--out old.json --image-size 40", None, "other settings"),
    ("eval_robust", "--out teacher.pt", None, "not a result file"),
    ("iterate", "--out old --epochs 2", None, "epochs"),
    ("iterate", "--out old", lambda: write("old/config.json"), "config.json"),
    ("iterate", "--out old", lambda: write("old/config.json", "[]"), "other settings"),
    ("iterate", "--out old", lambda: picture(7).save("val/a/0.png"), "validation images"),
    ("iterate", "--out /proc/x", None, "/proc"),
    ("iterate", "--out teacher.pt", None, "teacher.pt"),
]


def judge(expected: str, code: int | str, out: str, err: str, new: set[str]) -> str:
    """"good", or what was wrong with the answer."""
    lines = [line for line in re.split("[\r\n]", err) if line.strip() and "it/s" not in line
             and "step/s" not in line and " images/s" not in line and "batch/s" not in line]
    lines = [line for line in lines if not line.startswith(("usage:", "  "))]
    if "Traceback" in err + out:
        return "traceback"
    if expected == "reads" or expected.startswith("says "):
        said = expected.removeprefix("says ").removeprefix("reads")
        return "good" if code == 0 and said in out + err else f"code {code}, not said"
    if code != 2:
        return f"code {code}"
    if len(lines) != 1 or not re.match(r"\w+\.py: ", lines[0]):
        return f"{len(lines)} lines"
    if new and "out/progress" not in new:  # labels may be continued
        return f"left {', '.join(sorted(new))}"
    return "good" if expected in lines[0] else "not said"


def main() -> int:
    base = Path(tempfile.mkdtemp())
    begin(base / "begun")
    wrong = 0
    for number, (name, flags, harm, expected) in enumerate(CASES, start=1):
        if sys.argv[1:] and not any(word in f"{name} {flags} {expected}" for word in sys.argv[1:]):
            continue
        folder = base / str(number)
        shutil.copytree(base / "begun", folder, symlinks=True)
        os.chdir(folder)
        if harm:
            harm()
        before = {os.fsdecode(path) for path in Path(".").rglob("*")}
        code, out, err = run(name, COMMANDS[name].split() + flags.split())
        new = {os.fsdecode(path) for path in Path(".").rglob("*")} - before
        verdict = judge(expected, code, out, err, new)
        wrong += verdict != "good"
        said = [line for line in re.split("[\r\n]", err) if ".py: " in line]
        said = " ".join(said or out.splitlines()[-1:])[:110]
        print(f"{number:3} | {name} {flags} | {expected} | {said} | {verdict}", flush=True)
        os.chdir(base)
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{len(CASES)} inputs, {wrong} answered wrongly")
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main())
