"""Mean and standard deviation over runs with different seeds, as a Markdown table.

    python results/summarize.py runs/demo-0 runs/demo-1 runs/demo-2
"""

import functools
import json
import operator
import statistics
import sys
from pathlib import Path

# The head of each column, and the keys that lead to its figure in a report.
ACCURACY = {"model": "arch", "pseudo-label top-1": "pseudo_label_top1",
            "validation top-1": "val_top1", "test top-1": "test_top1",
            "labels only, test top-1": "labels_only_test_top1"}
ROBUSTNESS = {"clean top-1": "clean_top1", "corruption error": "unnormalized_mce",
              "mCE": "teacher_normalized_mce", "flip rate": "unnormalized_mfr",
              "mFR": "teacher_normalized_mfr", "FGSM 1": "fgsm_top1 1", "FGSM 4": "fgsm_top1 4",
              "PGD 1": "pgd_top1 1", "PGD 4": "pgd_top1 4"}


def spread(values: list) -> str:
    """"mean +- sample standard deviation"; "-" where a figure does not apply; a word as it is."""
    if None in values or isinstance(values[0], str):
        return "-" if None in values else values[0]
    deviation = f" +- {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{deviation}"


reports = [json.loads(Path(folder, "report.json").read_text()) for folder in sys.argv[1:]]
seeds = ", ".join(str(report["seed"]) for report in reports)
generations = [*zip(*(report["generations"] for report in reports), strict=True)]
robust = all(row.get("robustness") for rows in generations for row in rows)
for columns in (ACCURACY, ROBUSTNESS)[: 1 + robust]:
    print(f"| seeds {seeds} | {' | '.join(columns)} |\n|---|" + "---|" * len(columns))
    for rows in generations:
        flat = [row | (row.get("robustness") or {}) for row in rows]
        figures = [spread([functools.reduce(operator.getitem, keys.split(), row) for row in flat])
                   for keys in columns.values()]
        print(f"| {rows[0]['name']} | {' | '.join(figures)} |")
    print()
gains = [last["test_top1"] - first["test_top1"]
         for first, last in zip(generations[0], generations[-1], strict=True)]
print(f"Last student over the teacher, by seed: {spread(gains)} points "
      f"({', '.join(f'{gain:+.2f}' for gain in gains)}).")
