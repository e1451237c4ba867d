"""What iterate.py says at the end: two tables for the terminal, and report.png.

The first table is the method's: what became of the pool, and the accuracy of each generation. The
second is the paper's table 1 without ImageNet-A and with the attacks of section 3.4, on images made
on the fly and with the teacher in AlexNet's place. Both, and the picture, are made from what
report.json holds.
"""

from pathlib import Path

import torch

import data
import pseudo_label
from data import Splits


def _align(lines: list[tuple[str, ...]], left: int) -> str:
    """Rows of cells as text; the first `left` columns are words, the others numbers."""
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) if number < left else cell.rjust(width)
                  for number, (cell, width) in enumerate(zip(line, widths, strict=True))).rstrip()
        for line in lines
    )


def _drawn(name: str) -> str:
    """A class's name as matplotlib can draw it: no formulas, and bytes that are no text escaped."""
    return name.encode(errors="backslashreplace").decode().replace("$", r"\$")


def _number(value: float | None, form: str = ".2f") -> str:
    return "-" if value is None else format(value, form)


def table(report: dict) -> str:
    """One line a generation; accuracies in percent."""
    lines = [("generation", "model", "parameters", "pool", "confident", "unique", "balanced",
              "pseudo-label top-1", "val top-1", "test top-1", "labels only")]
    for row in report["generations"]:
        counts = row["unlabeled"] or {}
        pool = [counts.get(key) for key in ("pool", "confident", "unique", "balanced")]
        accuracies = [row[key] for key in ("pseudo_label_top1", "val_top1", "test_top1",
                                           "labels_only_test_top1")]
        lines.append((row["name"], row["arch"], f"{row['parameters']:,}",
                      *(_number(count, ",d") for count in pool), *map(_number, accuracies)))
    return _align(lines, left=2)


def robustness_table(report: dict) -> str:
    """The quick suite, one line a generation, in percent; empty where it was not run."""
    rows = [(row["name"], row["robustness"]) for row in report["generations"]
            if row.get("robustness")]
    if not rows:
        return ""
    epsilons = list(rows[0][1]["pgd_top1"])
    lines = [("generation", "clean top-1", "corruption error", "mCE", "flip rate", "mFR",
              *(f"{attack} {epsilon}" for attack in ("FGSM", "PGD") for epsilon in epsilons))]
    for name, figures in rows:
        attacked = [figures[key][epsilon] for key in ("fgsm_top1", "pgd_top1")
                    for epsilon in epsilons]
        lines.append((name, *(_number(figures[key]) for key in (
            "clean_top1", "unnormalized_mce", "teacher_normalized_mce", "unnormalized_mfr",
            "teacher_normalized_mfr")), *map(_number, attacked)))
    return (f"Robustness on {rows[0][1]['images']:,} test images, made on the fly: not comparable "
            "with published figures.\n"
            "mCE, mFR: corruption error and flip rate over the teacher's, which is 100 (in the "
            "paper AlexNet's);\nlower is better. FGSM, PGD: top-1 after an attack that changes "
            f"each pixel by at most {' or '.join(epsilons)} of 255.\n\n" + _align(lines, left=1))


# ------------------------------------------------------------------ the picture


def picture(report: dict, splits: Splits, folder: Path, path: Path) -> None:
    """report.png: accuracy, the balancing, robustness, and images with their pseudo labels.

    folder: the pseudo labels of the last student.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = report["generations"]
    robust = all(row.get("robustness") for row in rows)
    figure = plt.figure(figsize=(13, 14 if robust else 9.5), layout="constrained")
    upper, *middle, lower = figure.subfigures(
        3 if robust else 2, 1, height_ratios=(1, 1, 1.35) if robust else (1, 1.35))
    labels = pseudo_label.read_labels(folder)
    accuracy, balance = upper.subplots(1, 2)
    _draw_accuracy(accuracy, rows)
    _draw_balance(balance, splits.labeled.classes, labels)
    if robust:
        attacks, corruptions = middle[0].subplots(1, 2, width_ratios=(1, 1.6))
        _draw_attacks(attacks, rows)
        _draw_corruptions(corruptions, rows)
    _draw_images(lower, splits, labels)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def _draw_accuracy(axes, rows: list[dict]) -> None:
    names = [f"{row['name']}\n{row['arch']}" for row in rows]
    axes.plot(names, [row["test_top1"] for row in rows], "o-", label="test")
    axes.plot(names, [row["val_top1"] for row in rows], "s--", label="validation", alpha=0.6)
    alone = [row["labels_only_test_top1"] for row in rows]
    axes.plot(names, [float("nan") if value is None else value for value in alone], "x",
              markersize=9, color="gray", label="same model, labels only (test)")
    for name, row in zip(names, rows, strict=True):
        axes.annotate(f"{row['test_top1']:.1f}", (name, row["test_top1"]), (0, 8),
                      textcoords="offset points", ha="center")
    axes.margins(y=0.2)
    axes.set(title="Accuracy by generation", ylabel="top-1 (%)")
    axes.legend()


def _draw_balance(axes, classes: tuple[str, ...], labels: pseudo_label.PseudoLabels) -> None:
    before, after = labels.per_class["pool"], labels.per_class["balanced"]
    if len(classes) <= 30:
        place = range(len(classes))
        axes.bar([x - 0.2 for x in place], before, 0.4, label="pool, as the teacher labels it")
        axes.bar([x + 0.2 for x in place], after, 0.4, label="after filter and balance")
        axes.set_xticks(place, [*map(_drawn, classes)], rotation=45, ha="right")
    else:  # more classes than fit as bars: from the most to the least frequent
        axes.plot(sorted(before, reverse=True), label="pool, as the teacher labels it")
        axes.plot(sorted(after, reverse=True), label="after filter and balance")
        axes.set_xlabel("classes, by frequency")
    axes.set(title="Images of each class for the last student", ylabel="images")
    axes.legend()


def _draw_attacks(axes, rows: list[dict]) -> None:
    """Figure 4: accuracy against epsilon, a line a generation."""
    for number, row in enumerate(rows):
        for key, style in (("fgsm_top1", "o-"), ("pgd_top1", "v:")):
            curve = row["robustness"][key]
            # Each doubling of epsilon is one step to the right, and 0 is the first.
            epsilons = list(rows[0]["robustness"]["fgsm_top1"])
            axes.plot([epsilons.index(epsilon) for epsilon in curve], list(curve.values()), style,
                      color=f"C{number}",
                      label=row["name"] + (" (FGSM)" if key == "fgsm_top1" else " (PGD)"))
    axes.set_xticks(range(len(epsilons)), epsilons)
    axes.set_ylim(bottom=0)
    axes.set(title="Accuracy under attack", xlabel="epsilon (of 255)", ylabel="top-1 (%)")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)


def _draw_corruptions(axes, rows: list[dict]) -> None:
    names = list(rows[0]["robustness"]["corruption_error"])
    width = 0.8 / len(rows)
    for number, row in enumerate(rows):
        errors = [20 * sum(row["robustness"]["corruption_error"][name]) for name in names]
        place = [x + (number - (len(rows) - 1) / 2) * width for x in range(len(names))]
        axes.bar(place, errors, width, color=f"C{number}",
                 label=f"{row['name']}, mean {row['robustness']['unnormalized_mce']:.1f}")
    axes.set_xticks(range(len(names)), [name.replace("_", " ") for name in names],
                    rotation=45, ha="right")
    axes.set(title="Error under corruption, mean of five severities", ylabel="error (%)")
    axes.legend(fontsize=8)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)


def _draw_images(figure, splits: Splits, labels: pseudo_label.PseudoLabels) -> None:
    figure.suptitle(
        "Pseudo labels of the last student: class and probability (red: wrong or of no class)")
    shown = torch.linspace(0, len(labels.index) - 1, min(40, len(labels.index))).long().tolist()
    pool, positions = splits.unlabeled, torch.tensor(labels.index[shown])
    size = pool.pixels.shape[-1] if pool.pixels is not None else 160
    images = next(data.read_batches(pool, [positions], size, train=False))
    for axes, image, truth, target in zip(
        figure.subplots(4, 10).flat, images, pool.labels[positions].tolist(),
        labels.targets[shown], strict=False,
    ):
        guess = int(target.argmax())
        axes.imshow(image.permute(1, 2, 0).numpy())
        axes.set_title(f"{_drawn(splits.labeled.classes[guess])} {float(target.max()):.2f}",
                       fontsize=8, color="red" if truth not in (data.UNKNOWN, guess) else "black")
    for axes in figure.axes:
        axes.axis("off")
