"""The report of a loop: its images at the start; at the end tables and report.png.

The first table is the method's: what became of the pool, and the accuracy of each generation; then
comes accuracy by class. The third is the paper's table 1 without ImageNet-A and with the attacks of
section 3.4, on images made on the fly and with the teacher in AlexNet's place; the last has the
minutes. All are made from what report.json holds. support/picture.py draws the picture.
"""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from support import advice, datasets, devices, files, images, label_store, picture
from support.images import ImageSet, Splits
from support.outline import align


def describe_images(splits: Splits, plan: str, out: Path, device: torch.device) -> None:
    """Say how many images there are and what was left out, and begin the log with it."""
    if devices.rank() > 0:
        return
    notes, skipped = splits.notes, images.first_names(splits.notes["skipped_files"])
    sizes = {name: len(getattr(splits, name))
             for name in ("labeled", "unlabeled", "validation", "test")}
    print(f"{out}, plan {plan}: " + ", ".join(f"{count:,} {name}" for name, count in sizes.items())
          + f" images of {len(splits.labeled.classes)} classes, on {device}")
    print(f"{notes['removed_from_pool']} unlabelled images equal to validation or test images "
          f"removed, {len(notes['skipped_files'])} unreadable files skipped"
          + (f": {skipped}" if skipped else ""))
    for one, other in ("labeled", "validation"), ("labeled", "test"), ("validation", "test"), (
            "labeled", "unlabeled"):
        if twice := notes[f"{one}_and_{other}"]:
            known, found = datasets.contents(getattr(splits, one)), getattr(splits, other)
            which = [file for file, mark in zip(found.files, map(bytes, found.fingerprints),
                                                strict=False) if mark in known]
            advice.warn(notes, f"{twice} {other} images are {one} images, too"
                        + f": {images.first_names(which)}" * bool(which))
    if not (out / "log.jsonl").exists():
        line = json.dumps({"name": "images", **sizes, **notes}) + "\n"
        files.write_atomically(out / "log.jsonl", lambda file: file.write(line.encode()))


def show(report: dict, splits: Splits, out: Path, network: Callable[[str], Callable]) -> None:
    """Print the tables, and write report.json and report.png in `out`, the run's directory.

    network: maps the name of a checkpoint to its function from pixels to logits.
    """
    if devices.rank() > 0:
        return
    logged = picture.curves(out / "log.jsonl")
    report |= {
        "classes": list(splits.test.classes),
        "seconds": {name: found["seconds"][-1][1]
                    for name, found in logged.items() if "seconds" in found},
        "curves": {name: found.get("val_top1", []) for name, found in logged.items()}}
    files.write_json(out / "report.json", report)

    print("\n\n".join(filter(None, (table(report), class_table(report), robustness_table(report),
                                    time_table(report)))))
    for text in report["notes"].get("warnings", ()):
        print(f"\nWarning: {text}")

    first, *_, last = report["generations"]
    labels = label_store.read(out / f"{files.slug(last['name'])}-labels", splits.unlabeled)
    shown = picture.examples(splits.test, last["image_size"], first["image_size"], *(
        network(row["checkpoint"]) for row in (first, last))) if last["robustness"] else []
    picture.draw(report, labels, logged, shown, out / "report.png")
    print(f"\n{out}/report.json, {out}/report.png")


def figures(answers: Tensor, images: ImageSet) -> dict:
    """Of a test set's most probable classes (N, k): accuracies in percent, the confusion matrix.

    confusion: for each true class, how many images got each answer; None if over 200 classes.
    """
    count, right = len(images.classes), answers == images.labels[:, None]
    confusion = None
    if count <= 200:
        pairs = (images.labels * count + answers[:, 0]).bincount(minlength=count**2)
        confusion = pairs.view(count, count).tolist()
    return {"test_top1": 100 * right[:, 0].double().mean().item(),
            "test_top5": 100 * right.any(1).double().mean().item() if count > 5 else None,
            "confusion": confusion}


# ---- The tables ----


def table(report: dict) -> str:
    """One line per generation; accuracies in percent."""
    lines = [["generation", "model", "parameters", "pool", "confident", "unique", "balanced",
              "pseudo-label top-1", "val top-1", "test top-1", "test top-5", "labels only"]]
    for row in report["generations"]:
        counts = row["unlabeled"] or {}
        lines.append([row["name"], row["arch"], row["parameters"],
                      *map(counts.get, ("pool", "confident", "unique", "balanced")),
                      row["pseudo_label_top1"], row["val_top1"], row["test_top1"],
                      row["test_top5"], row["labels_only_test_top1"]])
    if all(row["test_top5"] is None for row in report["generations"]):
        lines = [[*line[:-2], line[-1]] for line in lines]
    return align(lines)


def class_table(report: dict) -> str:
    """Accuracy in percent by class, one column per generation; empty if over 30 classes."""
    rows, classes = report["generations"], report.get("classes", ())
    if not 0 < len(classes) <= 30:
        return ""
    lines = [["test top-1 by class", "images", *(row["name"] for row in rows),
              "most often mistaken for"]]
    for number, name in enumerate(classes):
        answers = [row["confusion"][number] for row in rows]
        wrong = [0 if other == number else count for other, count in enumerate(answers[-1])]
        lines.append([name, sum(answers[0]), *(
            100 * found[number] / sum(found) if sum(found) else None for found in answers),
            f"{classes[wrong.index(max(wrong))]} ({max(wrong)})" if any(wrong) else "-"])
    return align(lines)


def time_table(report: dict) -> str:
    """Minutes by phase; empty where the log is lost."""
    lines = [[name, seconds / 60] for name, seconds in report.get("seconds", {}).items()]
    return align([["training", "minutes"], *lines]) if lines else ""


def robustness_table(report: dict) -> str:
    """The quick suite, one line per generation, in percent; empty where it was not run."""
    rows = [(row["name"], row["robustness"]) for row in report["generations"] if row["robustness"]]
    if not rows:
        return ""
    figures, sizes = rows[0][1], {row["image_size"] for row in report["generations"]}
    epsilons = list(figures["pgd_top1"])
    lines = [["generation", "clean top-1", "corruption error", "mCE", "flip rate", "mFR",
              *(f"{attack} {epsilon}" for attack in ("FGSM", "PGD") for epsilon in epsilons)]]
    lines += [[name, row["clean_top1"], row["unnormalized_mce"], row["teacher_normalized_mce"],
               row["unnormalized_mfr"], row["teacher_normalized_mfr"],
               *map(row["fgsm_top1"].get, epsilons), *map(row["pgd_top1"].get, epsilons)]
              for name, row in rows]
    return (f"Robustness on {figures['images']:,} test images (attacks on half of them, flips on a "
            "tenth), made on the fly:\nnot comparable with published figures" + (
                ", nor between generations that see images at other sizes" * (len(sizes) > 1)) +
            ".\n"
            "mCE, mFR: corruption error and flip rate relative to the teacher's, which is 100 (in "
            "the paper AlexNet's);\nlower is better. FGSM, PGD: top-1 after an attack that changes "
            f"each pixel by at most {' or '.join(epsilons)} of 255.\n\n" + align(lines))
