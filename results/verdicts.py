"""What studies.json says: the page studies.md, with a verdict on each claim, and studies.png.

A contrast is decided by its differences within the seeds: their mean, and its 95 % confidence
interval (Student's t).

    reproduced      the interval lies on the paper's side of zero
    contradicted    it lies on the other side
    not seen here   the same for what the paper finds only in some cases
    not decided     it contains zero

A control, which the paper does not claim, holds or does not hold. A control of equality holds if
the whole interval lies within BOUND points of zero, and does not hold if it lies wholly outside.
"""

import math
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from matplotlib.figure import Figure

from results.measure import Run
from results.summarize import spread, table

BOUND = 2.0  # points by which things that are said to be equally good may differ
# The 97.5 % quantile of Student's t for 2 to 9 degrees of freedom.
QUANTILES = 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622
# What is measured of a run, beside its accuracy and as what a contrast compares.
COLUMNS = {"images": "unique", "of a class, %": "of_a_class",
           "correct of these, %": "of_these_right",
           "correct of all, with copies, %": "right_with_copies", "loss, labelled": "loss_labeled",
           "loss, unlabelled": "loss_unlabeled"}
FIGURES = {"test_top1": "test top-1", "loss_gap": "loss on labelled minus unlabelled images",
           "corruptions": "minus corruption error", "flips": "minus flip rate",
           "fgsm": "top-1 under FGSM"}


@dataclass(frozen=True)
class Contrast:
    """Two runs, or means of several: the first has the higher figure if the claim is right"""

    higher: str | tuple[str, ...]
    lower: str | tuple[str, ...]
    figure: str = "test_top1"  # a key of FIGURES
    null: bool = False  # a control of equality: neither is said to be higher
    sometimes: bool = False  # the first is higher in some cases: no case contradicts that
    control: bool = False  # not a claim of the paper

    @property
    def sides(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The names of the runs on the higher and on the lower side."""
        return tuple((side,) if isinstance(side, str) else side
                     for side in (self.higher, self.lower))

    def __str__(self) -> str:
        return " minus ".join(f"({'mean of ' * (len(side) > 1)}{'; '.join(side)})"
                              for side in self.sides)


@dataclass(frozen=True)
class Study:
    """A claim of the paper, where it is made, and what would show it"""

    claim: str
    section: str
    contrast: Contrast
    runs: Mapping[str, Run]
    note: str = ""  # what the runs say of the reason, once they are measured
    beside: tuple[Contrast, ...] = ()  # what the note speaks of: chosen after measuring, no verdict


def interval(differences: Sequence[float]) -> tuple[float, float]:
    """Mean, and how far the 95 % interval reaches on either side: infinitely for 1 or 2 seeds."""
    count = len(differences)
    if count < 3:  # two of them may be equal by chance
        return statistics.mean(differences), math.inf
    error = statistics.stdev(differences) / math.sqrt(count)
    return statistics.mean(differences), QUANTILES[min(count, 10) - 3] * error


def verdict(contrast: Contrast, differences: Sequence[float]) -> str:
    """The verdict in words, from the interval."""
    mean, half = interval(differences)
    low, high = mean - half, mean + half
    if contrast.null:
        inside, outside = -BOUND <= low and high <= BOUND, low > BOUND or high < -BOUND
    else:
        inside, outside = low > 0, high < 0
    if inside:
        return "holds" if contrast.control else "reproduced"
    if outside and contrast.control:
        return "does not hold"
    if outside:
        return "not seen here" if contrast.sometimes else "contradicted"
    return f"not decided by {len(differences)} seed{'s' * (len(differences) > 1)}"


def rows_of(study: Study, known: Mapping) -> dict[str, dict[str, dict]]:
    """For each of a study's runs, what was measured of it, by seed."""
    return {name: {seed: found["runs"][run.key] for seed, found in known["seeds"].items()
                   if run.key in found["runs"]} for name, run in study.runs.items()}


def differences(contrast: Contrast, rows: Mapping[str, Mapping[str, dict]]) -> dict[str, float]:
    """The contrast's difference by seed, for the seeds that have its figure of all of its runs."""
    higher, lower = contrast.sides
    seeds = [seed for seed in rows[higher[0]] if all(
        rows[name].get(seed, {}).get(contrast.figure) is not None for name in (*higher, *lower))]

    def mean(names: Sequence[str], seed: str) -> float:
        return statistics.mean(rows[name][seed][contrast.figure] for name in names)

    return {seed: mean(higher, seed) - mean(lower, seed) for seed in seeds}


def in_words(found: Sequence[float]) -> str:
    """The mean difference with its interval."""
    mean, half = interval(found)
    return f"{mean:+.2f}" + (f" [{mean - half:+.2f}, {mean + half:+.2f}]" if len(found) > 2 else "")


def section(studies: Mapping[str, Study], known: Mapping) -> str:
    """The part of the page on studies of the same runs: these, and each claim's contrast."""
    rows = rows_of([*studies.values()][0], known)
    seeds = sorted({seed for values in rows.values() for seed in values}, key=int)
    figures = {study.contrast.figure for study in studies.values()} - {"test_top1", "loss_gap"}
    columns, lines = {FIGURES[figure]: figure for figure in sorted(figures)} or COLUMNS, []

    for run, values in rows.items():
        tops = [values[seed]["test_top1"] for seed in seeds if seed in values]
        by_seed = [f"{values[seed]['test_top1']:.1f}" if seed in values else "-" for seed in seeds]
        lines.append([run, *by_seed, spread(tops), *(
            spread([row.get(key) for row in values.values()]) for key in columns.values())])

    heads = ["run", *(f"seed {seed}" for seed in seeds), "mean +- std", *columns]
    parts = [f"## {', '.join(studies)}", table(heads, lines)]
    for study in studies.values():
        found = differences(study.contrast, rows)
        each = ", ".join(f"{value:+.2f} ({seed})" for seed, value in found.items())
        values, figure = [*found.values()], FIGURES[study.contrast.figure]
        said = (f"Section {study.section}: {study.claim}. {study.contrast}, {figure}: "
                f"{in_words(values)}; by seed {each}: **{verdict(study.contrast, values)}**.")
        parts.append(f"{said} {study.note}".strip())
        for other in study.beside:
            if found := differences(other, rows):
                parts.append(f"- {other}, {FIGURES[other.figure]}: {in_words([*found.values()])}")
    return "\n\n".join(parts)


def page(studies: Mapping[str, Study], known: Mapping, about: str) -> str:
    """studies.md, with a text about the whole; studies without a measured contrast are left out."""
    claims, controls, shown, reaches = [], [], {}, []
    for name, study in studies.items():
        if found := differences(study.contrast, rows_of(study, known)):
            contrast, values, shown[name] = study.contrast, [*found.values()], study
            (controls if contrast.control else claims).append(
                [study.section, study.claim, in_words(values), verdict(contrast, values)])
            if contrast.figure == "test_top1" and len(found) > 2:
                reaches.append(interval(values)[1])

    sections = [section(dict(group), known)
                for _, group in groupby(shown.items(), lambda item: item[1].runs)]
    minutes = sum(row["minutes"] for one in known["seeds"].values() for row in one["runs"].values())

    measured = [[seed, str(len(one["runs"])), one["processor"], one["torch"],
                 ", ".join(dict.fromkeys(row["commit"] for row in one["runs"].values()))]
                for seed, one in sorted(known["seeds"].items(), key=lambda item: int(item[0]))]

    words = [said for *_, here, said in claims if "[" in here]
    against = words.count("contradicted") + words.count("not seen here")
    chance = (f"Of the {len(words)} claims with an interval {words.count('reproduced')} are "
              f"reproduced, and {against} come out the other way. If nothing had any effect, "
              f"chance alone would be expected to give {len(words) * 0.025:.2f} of each at one "
              "look at the page, more if it is read again after each seed; and as claims share "
              "runs, several may err together. ")
    scale = (f"The interval of a difference in accuracy reaches {statistics.median(reaches):.1f} "
             "points to either side (the median). One of less than 1 is narrow by luck, and its "
             "verdict weaker than it looks: with a standard deviation of 1.6 points, which 1,000 "
             "test images alone may cause, five seeds give 2.0. The same differences in the "
             "paper's tables 6 and 7 are 0.5 to 0.8 points: \"not decided\" casts no doubt on "
             "them. ") if reaches else ""
    return "\n\n".join([
        "# The paper's tables and findings, measured on a small scale", about,
        f"In all {minutes / 60:.1f} hours of one core, without what was interrupted or replaced.",
        table(["seed", "runs", "processor", "torch", "commit"], measured),
        "A difference is paired within the seeds, and positive where the claim holds; in "
        "brackets, from three seeds on, is the 95 % confidence interval of its mean "
        "(Student's t). A claim is reproduced if that lies above zero, contradicted if below "
        "(not seen here, if the paper finds it only in some cases), and otherwise not "
        "decided. Below the tables, differences in a list were chosen after measuring, and have "
        "no verdict.",
        table(["paper", "claim", "here", "verdict"], claims),
        chance * bool(words) + scale
        + "All seeds have the same images for validation and test and, where a study takes all "
        "of it, the same pool: the intervals do not cover the choice of these.",
        "Controls, which the paper does not claim; for one of equality the whole interval must "
        f"lie within {BOUND:g} points of zero:",
        table(["paper", "control", "here", "verdict"], controls),
        "![Each study's runs](studies.png)",
        "By seed: test top-1 in percent. Images: chosen from the pool, without copies; of a "
        "class: how many of them show one of the classes; correct of these: how many of those "
        "have the right pseudo label; correct of all: of everything the student is shown of "
        "the pool. Losses: in training, the mean of the log's last tenth. A row's mean is "
        "over its own seeds.",
        *sections]) + "\n"


def draw(studies: Mapping[str, Study], known: Mapping, file: Path) -> None:
    """A panel for each study: the figure of each run by seed, and their mean, of the seeds that
    have the contrast.
    """
    shown = {name: rows for name, study in studies.items()
             if differences(study.contrast, rows := rows_of(study, known))}
    high = max(1, -(-len(shown) // 3))
    figure = Figure(figsize=(15, 2.9 * high), layout="constrained")
    figure.suptitle("A dot for each seed, a line for their mean; where a claim holds, blue "
                    "lies to the right of orange; grey: the study's other runs")
    panels = figure.subplots(high, 3, squeeze=False).flatten()
    for panel in panels[len(shown):]:
        panel.set_axis_off()

    for panel, (name, rows) in zip(panels, shown.items(), strict=False):
        contrast = studies[name].contrast
        colors = {run: color for side, color in zip(contrast.sides, ("C0", "C1"), strict=True)
                  for run in side}
        found = differences(contrast, rows)
        points = {run: figures for run, values in rows.items() if (figures := [
            row[contrast.figure] for seed, row in values.items()
            if seed in found and row.get(contrast.figure) is not None])}
        for place, (run, figures) in enumerate(reversed(points.items())):
            color = colors.get(run, "gray")
            panel.plot(figures, [place] * len(figures), "o", color=color, alpha=0.5)
            panel.plot(statistics.mean(figures), place, "|", color=color, markersize=16)
        names = [textwrap.fill(run, 28) for run in reversed(points)]
        panel.set_yticks(range(len(points)), names, fontsize=8)
        values = [*found.values()]
        panel.set_title(f"{name}\n{in_words(values)}, {verdict(contrast, values)}", fontsize=10)
        equal = f"; blue and orange within {BOUND:g} points" * contrast.null
        panel.set_xlabel(FIGURES[contrast.figure] + equal, fontsize=8)
        panel.margins(y=0.15)
        panel.grid(axis="x", alpha=0.3)
    figure.savefig(file, dpi=70)
