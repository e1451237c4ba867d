"""Mean and standard deviation over runs with different seeds, as Markdown tables; and their curves.

    python results/summarize.py --reports runs/demo-*/report.json [--curves PICTURE]
"""

import functools
import operator
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from support import InputError, cli, files


@dataclass(frozen=True)
class Flags:
    """What to summarise"""

    reports: list[str]  # report.json of runs that differ in their seed
    curves: cli.File | None = None  # PNG to write: validation accuracy by step


# The heading of each column, and the keys that lead to its figure in a report.
ACCURACY = {"model": "arch", "pseudo-label top-1": "pseudo_label_top1",
            "validation top-1": "val_top1", "test top-1": "test_top1",
            "labels only, test top-1": "labels_only_test_top1"}
ROBUSTNESS = {"clean top-1": "clean_top1", "corruption error": "unnormalized_mce",
              "mCE": "teacher_normalized_mce", "flip rate": "unnormalized_mfr",
              "mFR": "teacher_normalized_mfr", "FGSM 1": "fgsm_top1 1", "FGSM 4": "fgsm_top1 4",
              "PGD 1": "pgd_top1 1", "PGD 4": "pgd_top1 4"}


def spread(values: list) -> str:
    """"mean +- sample standard deviation"; "-" where a figure does not apply; a word as it is."""
    if not values or None in values:
        return "-"
    if isinstance(values[0], str):
        return values[0]
    deviation = f" +- {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{deviation}"


def table(heads: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [heads, ["---"] * len(heads), *rows])


def compare(name: str, higher: list[float], lower: list[float]) -> str:
    """The difference between two figures, on average and for each seed."""
    gains = [one - other for one, other in zip(higher, lower, strict=True)]
    return f"{name}: {spread(gains)} points ({', '.join(f'{gain:+.2f}' for gain in gains)})."


def draw(reports: list[dict], file: str) -> None:
    """Validation accuracy by step: a colour for each training, a line for each seed."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for report in reports:
        for number, (name, curve) in enumerate(report["curves"].items()):
            label, style = name if report is reports[0] else None, ":" if "," in name else "-"
            axes.plot(*zip(*curve, strict=True), style, color=f"C{number}", label=label, alpha=0.8)
    axes.set(xlabel="step", ylabel="validation top-1 (%)")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(file, dpi=80, format="png")


def main(flags: Flags) -> None:
    reports = [files.read_json(Path(file)) for file in flags.reports]
    for file, report in zip(flags.reports, reports, strict=True):
        if "generations" not in report:
            raise InputError(f"{file} is no report.json of iterate.py")
        if len(report["generations"]) != len(reports[0]["generations"]):
            raise InputError(f"{file} has another number of generations than {flags.reports[0]}")

    seeds = ", ".join(str(report["seed"]) for report in reports)
    generations = [*zip(*(report["generations"] for report in reports), strict=True)]
    robust = all(row.get("robustness") for rows in generations for row in rows)
    for columns in (ACCURACY, ROBUSTNESS)[: 1 + robust]:
        lines = []
        for rows in generations:
            flat = [row | (row.get("robustness") or {}) for row in rows]
            lines.append([rows[0]["name"], *(
                spread([functools.reduce(operator.getitem, keys.split(), row) for row in flat])
                for keys in columns.values())])
        print(table([f"seeds {seeds}", *columns], lines), end="\n\n")

    by_seed = {f"{rows[0]['name']}{name}": [row[key] for row in rows] for rows in generations
               for name, key in (("", "test_top1"), (", labels only", "labels_only_test_top1"))
               if None not in [row[key] for row in rows]}
    print(table(["seed", *by_seed], [
        [str(report["seed"]), *(f"{values[number]:.2f}" for values in by_seed.values())]
        for number, report in enumerate(reports)]), end="\n\n")

    last = generations[-1][0]["name"]
    for name, values in by_seed.items():
        if name != last:
            print(compare(f"{last} over {name}", by_seed[last], values))
    if flags.curves:
        draw(reports, flags.curves)


if __name__ == "__main__":
    sys.exit(cli.run(main))
