"""The report of a loop: its images at the start; at the end two tables and report.png.

The first table is the method's: what became of the pool, and the accuracy of each generation. The
second is the paper's table 1 without ImageNet-A and with the attacks of section 3.4, on images made
on the fly and with the teacher in AlexNet's place. Both, and the picture, are made from what
report.json holds.
"""

import json
from pathlib import Path

import torch

from support import devices, files, images, label_store
from support.images import Splits
from support.label_store import PseudoLabels


def describe_images(splits: Splits, out: Path, device: torch.device) -> None:
    """Say how many images there are and what was left out, and begin the log with it."""
    if devices.rank() > 0:
        return
    notes, skipped = splits.notes, images.first_names(splits.notes["skipped_files"])
    sizes = {name: len(getattr(splits, name))
             for name in ("labeled", "unlabeled", "validation", "test")}
    print(f"{out}: " + ", ".join(f"{count:,} {name}" for name, count in sizes.items())
          + f" images of {len(splits.labeled.classes)} classes, on {device}")
    print(f"{notes['removed_from_pool']} unlabelled images equal to validation or test images "
          f"removed, {len(notes['skipped_files'])} unreadable files skipped"
          + (f": {skipped}" if skipped else ""))
    for one, other in ("labeled", "validation"), ("labeled", "test"), ("validation", "test"):
        if twice := notes[f"{one}_and_{other}"]:
            print(f"Warning: {twice} {other} images are {one} images, too")
    if not (out / "log.jsonl").exists():
        line = json.dumps({"name": "images", **sizes, **notes}) + "\n"
        files.write_atomically(out / "log.jsonl", lambda file: file.write(line.encode()))


def show(report: dict, pool: images.ImageSet, out: Path) -> None:
    """Print the tables, and draw report.png in `out`, the run's directory."""
    print("\n\n".join(filter(None, (table(report), robustness_table(report)))))
    last = files.slug(report["generations"][-1]["name"])
    picture(report, label_store.read(out / f"{last}-labels", pool), out / "report.png")
    print(f"\n{out}/report.json, {out}/report.png")


# ---- The tables ----


def align(lines: list[list]) -> str:
    """A head and rows as text: words to the left, numbers to the right, None as "-"."""
    columns = []
    for head, *cells in zip(*lines, strict=True):
        words, forms = isinstance(cells[0], str), {str: "", int: ",d", float: ".2f"}
        texts = [head, *("-" if cell is None else format(cell, forms[type(cell)])
                         for cell in cells)]
        width = max(map(len, texts))
        columns.append([text.ljust(width) if words else text.rjust(width) for text in texts])
    return "\n".join("  ".join(line).rstrip() for line in zip(*columns, strict=True))


def table(report: dict) -> str:
    """One line a generation; accuracies in percent."""
    lines = [["generation", "model", "parameters", "pool", "confident", "unique", "balanced",
              "pseudo-label top-1", "val top-1", "test top-1", "labels only"]]
    for row in report["generations"]:
        counts = row["unlabeled"] or {}
        lines.append([row["name"], row["arch"], row["parameters"],
                      *map(counts.get, ("pool", "confident", "unique", "balanced")),
                      row["pseudo_label_top1"], row["val_top1"], row["test_top1"],
                      row["labels_only_test_top1"]])
    return align(lines)


def robustness_table(report: dict) -> str:
    """The quick suite, one line a generation, in percent; empty where it was not run."""
    rows = [(row["name"], row["robustness"]) for row in report["generations"] if row["robustness"]]
    if not rows:
        return ""
    figures = rows[0][1]
    epsilons = list(figures["pgd_top1"])
    lines = [["generation", "clean top-1", "corruption error", "mCE", "flip rate", "mFR",
              *(f"{attack} {epsilon}" for attack in ("FGSM", "PGD") for epsilon in epsilons)]]
    lines += [[name, row["clean_top1"], row["unnormalized_mce"], row["teacher_normalized_mce"],
               row["unnormalized_mfr"], row["teacher_normalized_mfr"],
               *map(row["fgsm_top1"].get, epsilons), *map(row["pgd_top1"].get, epsilons)]
              for name, row in rows]
    return (f"Robustness on {figures['images']:,} test images, made on the fly: not comparable "
            "with published figures.\n"
            "mCE, mFR: corruption error and flip rate over the teacher's, which is 100 (in the "
            "paper AlexNet's);\nlower is better. FGSM, PGD: top-1 after an attack that changes "
            f"each pixel by at most {' or '.join(epsilons)} of 255.\n\n" + align(lines))


# ---- The picture ----


def picture(report: dict, labels: PseudoLabels, path: Path) -> None:
    """report.png: accuracy, balance, robustness, and some images of the pool.

    labels: the pseudo labels of the last student.
    """
    from matplotlib.figure import Figure

    rows = report["generations"]
    robust = all(row["robustness"] for row in rows)
    heights = (1, 1, 1.35) if robust else (1, 1.35)
    figure = Figure(figsize=(13, 14 if robust else 9.5), layout="constrained")
    upper, *middle, lower = figure.subfigures(len(heights), 1, height_ratios=heights)

    accuracy, balance = upper.subplots(1, 2)
    names = [f"{row['name']}\n{row['arch']}" for row in rows]
    test, validation, labels_only = ([row[key] for row in rows] for key in (
        "test_top1", "val_top1", "labels_only_test_top1"))
    accuracy.plot(names, test, "o-", label="test")
    accuracy.plot(names, validation, "s--", label="validation", alpha=0.6)
    accuracy.plot(names, labels_only, "x", markersize=9, color="gray",
                  label="same model, labels only (test)")
    for name, top1 in zip(names, test, strict=True):
        accuracy.annotate(f"{top1:.1f}", (name, top1), (0, 8), textcoords="offset points",
                          ha="center")
    accuracy.margins(y=0.2)
    accuracy.set(title="Accuracy by generation", ylabel="top-1 (%)")
    accuracy.legend()

    # Names as matplotlib can draw them: no formulas, and bytes that are no text escaped.
    classes = [name.encode(errors="backslashreplace").decode().replace("$", r"\$")
               for name in labels.images.classes]
    counts = {"pool, as the teacher labels it": labels.per_class["pool"],
              "after filter and balance": labels.per_class["balanced"]}
    if len(classes) <= 30:
        _draw_bars(balance, classes, counts)
    else:  # more classes than fit as bars: from the most to the least frequent
        for label, values in counts.items():
            balance.plot(sorted(values, reverse=True), label=label)
        balance.set_xlabel("classes, by frequency")
    balance.set(title="Images of each class for the last student", ylabel="images")
    balance.legend()

    if robust:
        _draw_robustness(*middle[0].subplots(1, 2, width_ratios=(1, 1.6)), rows)
    _draw_images(lower, labels, classes)
    figure.savefig(path, dpi=80)


def _draw_bars(axes, names: list[str], heights: dict[str, list[float]]) -> None:
    """A group of bars for each name, and in it one of each list of heights."""
    width = 0.8 / len(heights)
    for number, (label, values) in enumerate(heights.items()):
        shift = (number - (len(heights) - 1) / 2) * width
        axes.bar([place + shift for place in range(len(names))], values, width, label=label)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")


def _draw_robustness(attacks, corruptions, rows: list[dict]) -> None:
    """Figure 4, accuracy against epsilon, which doubles from step to step; and table 4 in bars."""
    errors = {}
    for number, row in enumerate(rows):
        figures = row["robustness"]
        for attack, style in (("FGSM", "o-"), ("PGD", "v:")):
            curve = figures[f"{attack.lower()}_top1"]
            attacks.plot(curve.keys(), curve.values(), style, color=f"C{number}",
                         label=f"{row['name']} ({attack})")
        errors[f"{row['name']}, mean {figures['unnormalized_mce']:.1f}"] = [
            20 * sum(five) for five in figures["corruption_error"].values()]
    names = [name.replace("_", " ") for name in figures["corruption_error"]]
    _draw_bars(corruptions, names, errors)
    attacks.set(title="Accuracy under attack", xlabel="epsilon (of 255)", ylabel="top-1 (%)")
    attacks.set_ylim(bottom=0)
    corruptions.set(title="Error under corruption, mean of five severities", ylabel="error (%)")
    corruptions.set_axisbelow(True)
    for axes, lines in ((attacks, "both"), (corruptions, "y")):
        axes.legend(fontsize=8)
        axes.grid(axis=lines, alpha=0.3)


def _draw_images(figure, labels: PseudoLabels, classes: list[str]) -> None:
    figure.suptitle(
        "Pseudo labels of the last student: class and probability (red: wrong or of no class)")
    pool, count = labels.images, len(labels.images)
    bare = {"frame_on": False, "xticks": [], "yticks": []}
    shown = torch.linspace(0, count - 1, min(40, count)).long().tolist()
    for axes, row in zip(figure.subplots(4, 10, subplot_kw=bare).flat, shown, strict=False):
        image, truth, target = pool.read(row), int(pool.labels[row]), labels.targets[row]
        guess = int(target.argmax())
        axes.imshow(image if pool.pixels is not None else images.center_crop(image, 160))
        axes.set_title(f"{classes[guess]} {float(target.max()):.2f}", fontsize=8,
                       color="red" if truth not in (images.UNKNOWN, guess) else "black")
