"""The picture of a loop, report.png: accuracy, balance, curves, robustness, and some images."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from support import corruptions, images, reading
from support.images import ImageSet
from support.label_store import PseudoLabels

# ---- What is drawn but not in the report ----


def curves(log: Path) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """The figures that each training logged: name -> figure -> (step, value) pairs."""
    found = {}
    for text in log.read_text().splitlines() if log.exists() else ():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:  # a line that a crash has cut off
            continue
        if "step" in line:
            for key in line.keys() - {"name", "step"}:
                pairs = found.setdefault(line["name"], {}).setdefault(key, [])
                pairs.append((line["step"] + 1, line[key]))
    return found


@torch.no_grad()
def examples(test: ImageSet, size: int, teacher_size: int, teacher: Callable[[Tensor], Tensor],
             student: Callable[[Tensor], Tensor]) -> list[tuple[str, Tensor, int, int]]:
    """As in figure 3: corrupted test images that the student gets right and the teacher wrong.

    For each corruption, at severity 3, one such image of 300, if any: the corruption, the image
    (3, size, size) uint8, the teacher's class and the true one. size, teacher_size: what the
    networks are tested at.
    """
    generator, found = torch.Generator().manual_seed(0), []
    test = reading.in_memory(test, size)
    chosen = test.subset(torch.randperm(len(test), generator=generator)[:300])
    for name in corruptions.SEVERITIES:
        corrupted = corruptions.corrupt(chosen.pixels, name, 3, generator)
        resized = corrupted if teacher_size == size else F.interpolate(
            corrupted.float(), teacher_size, mode="bicubic", antialias=True).clamp(0, 255)
        guess, right = (torch.cat([model(part).argmax(1).cpu() for part in pixels.split(
            reading.size_for(pixels.shape[-1]))]) for model, pixels in (
                (teacher, resized), (student, corrupted)))
        rows = ((right == chosen.labels) & (guess != chosen.labels)).nonzero().flatten()
        if len(rows):
            row = int(rows[len(found) % len(rows)])  # not always of the same class
            found.append((name, corrupted[row], int(guess[row]), int(right[row])))
    return found


# ---- The picture ----


def draw(report: dict, labels: PseudoLabels, logged: dict, shown: list, path: Path) -> None:
    """report.png: accuracy, balance, curves, robustness, some test and pool images.

    labels: the pseudo labels of the last student; logged: from `curves`; shown: from `examples`.
    """
    from matplotlib.figure import Figure

    rows = report["generations"]
    robust = all(row["robustness"] for row in rows)
    few = len(report["classes"]) <= 30
    heights = (1, 1, *[1] * few, *[1] * robust, *[0.45] * bool(shown), 1.35)
    figure = Figure(figsize=(13, 4.2 * sum(heights)), layout="constrained")
    upper, second, *middle, lower = figure.subfigures(len(heights), 1, height_ratios=heights)

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

    # Names as matplotlib can draw them: short, no formulas, and bytes that are not text escaped.
    classes = [" ".join(name.encode(errors="backslashreplace").decode().split())
               for name in labels.images.classes]
    classes = [name if len(name) < 25 else f"{name[:22]}..." for name in classes]
    classes = [name.replace("$", r"\$") for name in classes]
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

    _draw_curves(*second.subplots(1, 2), [row["name"] for row in rows], logged)
    if few:
        _draw_classes(*middle.pop(0).subplots(1, 2, width_ratios=(1.4, 1)), rows, classes)
    if robust:
        _draw_robustness(*middle[0].subplots(1, 2, width_ratios=(1, 1.6)), rows)
    if shown:
        _draw_examples(middle[-1], shown, classes)
    _draw_images(lower, labels, classes)
    figure.savefig(path, dpi=80)


def _draw_bars(axes, names: list[str], heights: dict[str, list[float]]) -> None:
    """A group of bars for each name, with one bar from each list of heights."""
    width = 0.8 / len(heights)
    for number, (label, values) in enumerate(heights.items()):
        shift = (number - (len(heights) - 1) / 2) * width
        axes.bar([place + shift for place in range(len(names))], values, width, label=label)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")


def _draw_curves(accuracy, loss, names: list[str], logged: dict) -> None:
    """Validation accuracy and the training losses against the step."""
    for number, name in enumerate(names):
        own, alone = (logged.get(key, {}) for key in (name, f"{name}, labels only"))
        for axes, key, style, label, found in (
                (accuracy, "val_top1", "-", name, own),
                (accuracy, "val_top1", ":", f"{name}, labels only", alone),
                (loss, "loss_labeled", "-", f"{name}, labelled images", own),
                (loss, "loss_unlabeled", "--", f"{name}, unlabelled images", own)):
            if pairs := [(step, value) for step, value in found.get(key, ()) if value is not None]:
                axes.plot(*zip(*pairs, strict=True), style, color=f"C{number}", label=label,
                          alpha=0.8, marker="." if axes is accuracy else "")
    accuracy.set(title="Validation accuracy of the average", xlabel="step", ylabel="top-1 (%)")
    loss.set(title="Training losses (section 4.1)", xlabel="step", ylabel="cross entropy")
    for axes in (accuracy, loss):
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)


def _draw_classes(accuracy, confusion, rows: list[dict], classes: list[str]) -> None:
    """Accuracy by class of every generation, and the last one's confusion matrix."""
    _draw_bars(accuracy, classes, {row["name"]: [
        100 * found[number] / max(1, sum(found)) for number, found in enumerate(row["confusion"])]
        for row in rows})
    accuracy.set(title="Test accuracy by class", ylabel="top-1 (%)", ylim=(0, 115),
                 yticks=range(0, 101, 20))
    accuracy.legend(fontsize=8, ncols=len(rows), loc="upper center")  # above all bars
    matrix = torch.tensor(rows[-1]["confusion"])
    shares = matrix / matrix.sum(1, keepdim=True).clamp(min=1)
    confusion.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    for row, column in matrix.nonzero().tolist():
        confusion.text(column, row, int(matrix[row, column]), ha="center", va="center", fontsize=7,
                       color="white" if shares[row, column] > 0.5 else "black")
    confusion.set_xticks(range(len(classes)), classes, rotation=45, ha="right", fontsize=8)
    confusion.set_yticks(range(len(classes)), classes, fontsize=8)
    confusion.set(title=f"Test images of {rows[-1]['name']}", xlabel="answer", ylabel="class")


def _draw_examples(figure, shown: list, classes: list[str]) -> None:
    figure.suptitle("Corrupted test images that the last student gets right; below: the corruption,"
                    " and the first teacher's answer")
    bare = {"frame_on": False, "xticks": [], "yticks": []}
    cells = figure.subplots(1, len(shown), subplot_kw=bare, squeeze=False).flat
    for axes, (name, image, guess, truth) in zip(cells, shown, strict=True):
        axes.imshow(image.permute(1, 2, 0).numpy())
        axes.set_title(classes[truth], fontsize=8)
        axes.set_xlabel(f"{name.replace('_', ' ')}\n{classes[guess]}", fontsize=7)


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
    known = bool((labels.images.labels != images.UNKNOWN).any())
    figure.suptitle("Pseudo labels of the last student: class and probability"
                    + " (red: wrong or of no class)" * known)
    pool, count = labels.images, len(labels.images)
    bare = {"frame_on": False, "xticks": [], "yticks": []}
    shown = torch.linspace(0, count - 1, min(40, count), dtype=torch.float64).long().tolist()
    for axes, row in zip(figure.subplots(4, 10, subplot_kw=bare).flat, shown, strict=False):
        image, target = images.read_item(pool.items[row]), labels.targets[row]
        truth = int(pool.labels[row])
        guess = int(target.argmax())
        axes.imshow(image if pool.pixels is not None else images.center_crop(image, 160))
        axes.set_title(f"{classes[guess]} {float(target.max()):.2f}", fontsize=8,
                       color="red" if truth not in (images.UNKNOWN, guess) else "black")
