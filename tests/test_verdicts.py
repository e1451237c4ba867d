"""The page that results/verdicts.py makes of measured studies, against closed forms."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.axes import Axes
from PIL import Image

from results import verdicts
from results.verdicts import Contrast


@pytest.mark.parametrize("freedom", range(2, 10))
def test_the_quantiles_are_student_s(freedom):
    """The density, integrated from 0 to the quantile, is 0.475."""
    t = np.linspace(0, verdicts.QUANTILES[freedom - 2], 200_001)
    factor = math.gamma((freedom + 1) / 2) / math.gamma(freedom / 2) / math.sqrt(freedom * math.pi)
    density = factor * (1 + t**2 / freedom) ** (-(freedom + 1) / 2)
    assert np.trapezoid(density, t) == pytest.approx(0.475, abs=2e-6)


def test_the_interval_of_five_seeds_is_that_of_the_textbook():
    mean, half = verdicts.interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert mean == 3 and half == pytest.approx(2.7764 * math.sqrt(2.5 / 5))


def test_two_seeds_say_nothing_of_the_true_mean_even_if_they_are_equal():
    assert verdicts.interval([1.0, 1.0]) == (1, math.inf)


def test_more_seeds_than_there_are_quantiles_have_the_wider_interval_of_ten():
    mean, half = verdicts.interval([0.0, 1.0] * 8)
    assert half == pytest.approx(2.2622 * math.sqrt(4 / 15) / 4)


@pytest.mark.parametrize(("differences", "null", "expected"), [
    ([1.0, 2.0, 3.0, 4.0, 5.0], False, "reproduced"),
    ([-1.0, -2.0, -3.0, -4.0, -5.0], False, "contradicted"),
    ([-1.0, 2.0, 3.0], False, "not decided by 3 seeds"),
    ([3.0], False, "not decided by 1 seed"),
    ([3.0, 3.0], False, "not decided by 2 seeds"),
    ([0.1, 0.2, -0.1, 0.0, 0.1], True, "holds"),
    ([1.6, 1.7, 1.8, 1.6, 1.7], True, "holds"),
    ([2.6, 2.7, 2.8, 2.6, 2.7], True, "does not hold"),
    ([-2.6, -2.7, -2.8, -2.6, -2.7], True, "does not hold"),
    ([1.0, 3.0, 2.0], True, "not decided by 3 seeds"),
    ([-4.0, 4.0, 0.0], True, "not decided by 3 seeds"),
])
def test_a_verdict_needs_the_whole_interval(differences, null, expected):
    contrast = Contrast("a", "b", null=null, control=null)
    assert verdicts.verdict(contrast, differences) == expected


def test_what_the_paper_finds_only_sometimes_is_not_contradicted_by_one_setting():
    contrast = Contrast("a", "b", sometimes=True)
    assert verdicts.verdict(contrast, [-1.0, -2.0, -3.0, -4.0]) == "not seen here"
    assert verdicts.verdict(contrast, [1.0, 2.0, 3.0, 4.0]) == "reproduced"
    assert verdicts.verdict(contrast, [-1.0, 2.0, 3.0]) == "not decided by 3 seeds"


def test_a_control_is_no_claim_and_has_words_of_its_own():
    contrast = Contrast("a", "b", control=True)
    assert verdicts.verdict(contrast, [-1.0, -2.0, -3.0, -4.0]) == "does not hold"
    assert verdicts.verdict(contrast, [1.0, 2.0, 3.0, 4.0]) == "holds"
    assert verdicts.verdict(contrast, [-1.0, 2.0, 3.0]) == "not decided by 3 seeds"


def run(key):
    return SimpleNamespace(key=key)


STUDIES = {
    "gain": SimpleNamespace(
        claim="a student beats its teacher", section="3.2", contrast=Contrast("student", "teacher"),
        runs={"teacher": run("t"), "student": run("s"), "other": run("o")}, note="By more steps.",
        beside=(Contrast("other", "teacher"), Contrast("student", "teacher", figure="flips"))),
    "mean": SimpleNamespace(
        claim="so do two", section="3.2", contrast=Contrast(("student", "other"), ("teacher",)),
        runs={"teacher": run("t"), "student": run("s"), "other": run("o")}, note="", beside=()),
    "robust": SimpleNamespace(
        claim="it is more robust", section="3.3",
        contrast=Contrast("student", "teacher", figure="corruptions"),
        runs={"teacher": run("t"), "student": run("s")}, note="", beside=()),
    "flips": SimpleNamespace(
        claim="and steadier", section="3.3",
        contrast=Contrast("student", "teacher", figure="flips", control=True),
        runs={"teacher": run("t"), "student": run("s")}, note="", beside=()),
    "unmeasured": SimpleNamespace(
        claim="nothing yet", section="4", contrast=Contrast("new", "teacher"),
        runs={"teacher": run("t"), "new": run("n")}),
}


@pytest.fixture
def known():
    """Three seeds, the last without the run "o"."""
    seeds = {}
    for seed, (teacher, student, other) in enumerate(((50, 54, 52), (51, 56, 53), (52, 58, None))):
        rows = {key: {"test_top1": float(top1), "corruptions": -90.0 + top1, "flips": -9.0,
                      "minutes": 30.0, "commit": "abc" if seed else "old", "loss_labeled": 1.0,
                      "loss_unlabeled": 2.0} | ({"unique": 99} if key == "s" else {})
                for key, top1 in (("t", teacher), ("s", student), ("o", other)) if top1}
        seeds[str(seed)] = {"processor": "some", "torch": "2", "runs": rows}
    return {"seeds": seeds}


def test_the_contrast_is_paired_within_the_seeds(known):
    found = {name: verdicts.differences(study.contrast, verdicts.rows_of(study, known))
             for name, study in STUDIES.items()}
    assert found == {"gain": {"0": 4, "1": 5, "2": 6}, "mean": {"0": 3, "1": 3.5},
                     "robust": {"0": 4, "1": 5, "2": 6},
                     "flips": {"0": 0, "1": 0, "2": 0}, "unmeasured": {}}


def test_a_run_that_lacks_the_contrast_s_figure_does_not_count(known):
    del known["seeds"]["1"]["runs"]["t"]["corruptions"]
    study = STUDIES["robust"]
    found = verdicts.differences(study.contrast, verdicts.rows_of(study, known))
    assert found == {"0": 4, "2": 6}


def test_the_page_has_each_claim_its_figures_and_its_verdict(known):
    page = verdicts.page(STUDIES, known, "Ten classes.")
    half = 4.3027 / math.sqrt(3)  # of 4, 5, 6: a standard deviation of 1
    line = f"+5.00 [+{5 - half:.2f}, +{5 + half:.2f}]"
    assert f"| 3.2 | a student beats its teacher | {line} | reproduced |" in page
    assert "| 3.2 | so do two | +3.25 | not decided by 2 seeds |" in page
    assert "\n\nTen classes.\n\n" in page
    assert "unmeasured" not in page and "nothing yet" not in page
    assert "| student | 54.0 | 56.0 | 58.0 | 56.00 +- 2.00 | 99.00 +- 0.00 | - | - |" in page
    assert "| other | 52.0 | 53.0 | - | 52.50 +- 0.71 |" in page
    assert "by seed +4.00 (0), +5.00 (1), +6.00 (2): **reproduced**. By more steps.\n" in page
    assert "In all 4.0 hours of one core, " in page  # eight runs of half an hour
    assert "Of the 2 claims with an interval 2 are reproduced, and 0 come out the other way" in page
    assert "to give 0.05 of each at one look" in page
    assert f"difference in accuracy reaches {half:.1f} points to either side" in page
    assert "\n- (other) minus (teacher), test top-1: +2.00\n" in page  # of two seeds: no interval
    assert "\n- (student) minus (teacher), minus flip rate: +0.00 [+0.00, +0.00]\n" in page
    claims, controls = page.split("| paper | control | here | verdict |")
    assert "and steadier" not in claims
    assert "| 3.3 | and steadier | +0.00 [+0.00, +0.00] | not decided by 3 seeds |" in controls
    assert "| 0 | 3 | some | 2 | old |" in page and "| 2 | 2 | some | 2 | abc |" in page


def test_studies_of_the_same_runs_share_a_table_with_the_figures_of_both(known):
    page = verdicts.page(STUDIES, known, "")
    (shared,) = [part for part in page.split("\n## ") if part.startswith("robust, flips\n")]
    (head,) = [line for line in shared.splitlines() if line.startswith("| run |")]
    assert head.endswith("| mean +- std | minus corruption error | minus flip rate |")
    assert "| student | 54.0 | 56.0 | 58.0 | 56.00 +- 2.00 | -34.00 +- 2.00 | -9.00 +- 0.00 |" in (
        shared)
    assert "it is more robust. " in shared and "and steadier. " in shared


def test_each_study_is_drawn_with_its_higher_side_in_blue(known, tmp_path):
    verdicts.draw(STUDIES, known, tmp_path / "studies.png")
    red, green, blue = np.asarray(Image.open(tmp_path / "studies.png").convert("RGB"), int).T
    high, orange = blue > red + 60, red > blue + 60
    thirds = range(0, len(red), len(red) // 3 + 1)
    shown = [(high[x: x + len(red) // 3], orange[x: x + len(red) // 3]) for x in thirds]
    assert all(part.any() for panel in shown for part in panel)  # three studies in the first row
    student, teacher = (part.nonzero()[0].mean() for part in shown[0])  # along x
    assert student > teacher


def test_a_panel_shows_only_the_seeds_that_have_the_contrast(known, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(Axes, "plot", lambda self, values, *rest, **more: drawn.append(values))
    verdicts.draw({"mean": STUDIES["mean"]}, known, tmp_path / "studies.png")
    assert drawn == [[52, 53], 52.5, [54, 56], 55, [50, 51], 50.5]  # not the third seed's


def test_a_picture_is_drawn_before_any_contrast_is_measured(tmp_path):
    """As after an interruption in the first training."""
    verdicts.draw(STUDIES, {"seeds": {"0": {"runs": {}}}}, tmp_path / "studies.png")
    assert (tmp_path / "studies.png").exists()
