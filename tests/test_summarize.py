"""The tables and the picture that results/summarize.py makes of the reports of several seeds."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from results import summarize
from support import InputError

TEST = {"teacher": [60.0, 62.0, 70.0], "student": [66.0, 65.0, 70.5]}
ALONE = [61.0, 66.0, 63.5]


@pytest.fixture
def reports(tmp_path):
    """Of three seeds, with a teacher and a student."""
    files = []
    for seed in range(3):
        rows = [{"name": name, "arch": "b0", "pseudo_label_top1": 64.0 + seed if number else None,
                 "val_top1": 50.0, "test_top1": values[seed], "robustness": None,
                 "labels_only_test_top1": ALONE[seed] if number else None}
                for number, (name, values) in enumerate(TEST.items())]
        curves = {name: [[10, 20.0], [20, 40.0 + seed]] for name in TEST}
        files.append(tmp_path / f"{seed}.json")
        files[-1].write_text(json.dumps({"seed": seed, "generations": rows, "curves": curves}))
    return [str(file) for file in files]


def test_means_and_sample_deviations_are_over_the_seeds(reports, capsys):
    summarize.main(summarize.Flags(reports))
    head, _, teacher, student = capsys.readouterr().out.splitlines()[:4]
    assert head == ("| seeds 0, 1, 2 | model | pseudo-label top-1 | validation top-1 | test top-1 "
                    "| labels only, test top-1 |")
    found = f"{np.mean(TEST['teacher']):.2f} +- {np.std(TEST['teacher'], ddof=1):.2f}"
    assert teacher == f"| teacher | b0 | - | 50.00 +- 0.00 | {found} | - |"
    assert f"| 65.00 +- 1.00 | 50.00 +- 0.00 | 67.17 +- {np.std(TEST['student'], ddof=1):.2f} | " \
        f"63.50 +- {np.std(ALONE, ddof=1):.2f} |" in student


def test_the_last_student_is_compared_with_the_others_seed_by_seed(reports, capsys):
    summarize.main(summarize.Flags(reports))
    *_, by_seed, teacher, alone = capsys.readouterr().out.replace("\n\n", "\n").splitlines()
    assert by_seed == "| 2 | 70.00 | 70.50 | 63.50 |"
    deviation = np.std([6, 3, 0.5], ddof=1)
    assert teacher == f"student over teacher: 3.17 +- {deviation:.2f} points (+6.00, +3.00, +0.50)."
    assert alone.startswith("student over student, labels only: 3.67 +- ")
    assert alone.endswith("(+5.00, -1.00, +7.00).")


def test_each_column_of_robustness_has_its_own_figure(reports, capsys):
    found = json.loads(Path(reports[0]).read_text())
    for row in found["generations"]:
        row["robustness"] = {
            "clean_top1": 1.0, "unnormalized_mce": 2.0, "teacher_normalized_mce": 3.0,
            "unnormalized_mfr": 4.0, "teacher_normalized_mfr": 5.0,
            "fgsm_top1": {"1": 6.0, "4": 7.0}, "pgd_top1": {"1": 8.0, "4": 9.0}}
    Path(reports[0]).write_text(json.dumps(found))
    summarize.main(summarize.Flags(reports[:1]))
    said = capsys.readouterr().out
    assert f"| teacher | {' | '.join(f'{number}.00' for number in range(1, 10))} |" in said
    assert ("| clean top-1 | corruption error | mCE | flip rate | mFR | FGSM 1 | FGSM 4 | PGD 1 "
            "| PGD 4 |") in said


def test_the_curves_are_drawn(reports, tmp_path):
    summarize.main(summarize.Flags(reports, str(tmp_path / "curves.png")))
    saturation = np.asarray(Image.open(tmp_path / "curves.png").convert("HSV"))[..., 1]
    assert (saturation > 100).sum() > 500  # axes and letters are black or grey


def test_runs_of_other_lengths_are_not_summarised_together(reports):
    found = json.loads(Path(reports[1]).read_text())
    Path(reports[1]).write_text(json.dumps(found | {"generations": found["generations"][:1]}))
    with pytest.raises(InputError, match="1.json has another number of generations than .*0.json"):
        summarize.main(summarize.Flags(reports))


def test_a_json_that_is_no_report_is_named(tmp_path):
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(InputError, match="other.json is no report.json"):
        summarize.main(summarize.Flags([str(tmp_path / "other.json")]))
