"""Mean and standard deviation over runs with different seeds, as a Markdown table.

    python results/summarize.py runs/demo-0 runs/demo-1 runs/demo-2
"""

import json
import statistics
import sys
from pathlib import Path

COLUMNS = {"pseudo-label top-1": "pseudo_label_top1", "validation top-1": "val_top1",
           "test top-1": "test_top1", "labels only, test top-1": "labels_only_test_top1"}

ROBUSTNESS = {
    "clean top-1": lambda figures: figures["clean_top1"],
    "corruption error": lambda figures: figures["unnormalized_mce"],
    "mCE": lambda figures: figures["teacher_normalized_mce"],
    "flip rate": lambda figures: figures["unnormalized_mfr"],
    "mFR": lambda figures: figures["teacher_normalized_mfr"],
    "FGSM 1": lambda figures: figures["fgsm_top1"]["1"],
    "FGSM 4": lambda figures: figures["fgsm_top1"]["4"],
    "PGD 1": lambda figures: figures["pgd_top1"]["1"],
    "PGD 4": lambda figures: figures["pgd_top1"]["4"],
}


def spread(values: list[float | None]) -> str:
    """"mean +- sample standard deviation", or "-" where a figure does not apply."""
    if None in values:
        return "-"
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{statistics.mean(values):.2f} +- {statistics.stdev(values):.2f}"


def main(folders: list[str]) -> None:
    reports = [json.loads(Path(folder, "report.json").read_text()) for folder in folders]
    seeds = ", ".join(str(report["seed"]) for report in reports)
    print(f"| seeds {seeds} | model | " + " | ".join(COLUMNS) + " |")
    print("|---|---|" + "---|" * len(COLUMNS))
    for rows in zip(*(report["generations"] for report in reports), strict=True):
        figures = [spread([row[key] for row in rows]) for key in COLUMNS.values()]
        print(f"| {rows[0]['name']} | {rows[0]['arch']} | " + " | ".join(figures) + " |")
    if all(row.get("robustness") for report in reports for row in report["generations"]):
        print("\n| seeds " + seeds + " | " + " | ".join(ROBUSTNESS) + " |")
        print("|---|" + "---|" * len(ROBUSTNESS))
        for rows in zip(*(report["generations"] for report in reports), strict=True):
            figures = [spread([get(row["robustness"]) for row in rows])
                       for get in ROBUSTNESS.values()]
            print(f"| {rows[0]['name']} | " + " | ".join(figures) + " |")
    last = [report["generations"][-1] for report in reports]
    gains = [row["test_top1"] - report["generations"][0]["test_top1"]
             for row, report in zip(last, reports, strict=True)]
    print(f"\nLast student over the teacher, by seed: {spread(gains)} points "
          f"({', '.join(f'{gain:+.2f}' for gain in gains)}).")


if __name__ == "__main__":
    main(sys.argv[1:])
