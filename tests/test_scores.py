"""The results file of a test set: kept part by part, renewed or refused, and summed up."""

import json

import pytest
import torch

from support import InputError, archives, devices, scores


@pytest.fixture
def kept(tmp_path):
    """scores.keep in one file, of parts with a number each, which says how often it measured."""
    measured = []

    def keep(settings, names, images=3, **options):
        def measure(name):
            measured.append(name)
            return {"images": images, "top1": float(len(measured))}

        return scores.keep(tmp_path / "new" / "out.json", settings, names, measure, **options)

    keep.path, keep.measured = tmp_path / "new" / "out.json", measured
    return keep


def test_parts_are_measured_once_and_others_added_later(kept):
    first = kept({"steps": 1}, ["a", "b"])
    assert first == {"a": {"images": 3, "top1": 1.0}, "b": {"images": 3, "top1": 2.0}}
    assert kept({"steps": 1}, ["b", "c"]) == first | {"c": {"images": 3, "top1": 3.0}}
    assert kept.measured == ["a", "b", "c"]


def test_other_settings_are_refused_or_on_request_measured_anew(kept):
    kept({"steps": 1}, ["a"])
    before = kept.path.read_text()
    with pytest.raises(InputError, match=r"out.json .*steps: 1, not 2"):
        kept({"steps": 2}, ["a"])
    assert kept.path.read_text() == before and kept.measured == ["a"]
    assert kept({"steps": 2}, ["a"], renew=True) == {"a": {"images": 3, "top1": 2.0}}
    assert kept({"steps": 2}, ["a"], renew=True) == {"a": {"images": 3, "top1": 2.0}}


def test_two_processes_at_one_results_file_are_refused_and_no_part_is_lost(kept):
    def measure(name):
        with pytest.raises(InputError, match="out.json: another process is at this run"):
            kept({}, ["b"])
        return {"images": 3}

    scores.keep(kept.path, {}, ["a"], measure)
    assert list(kept({}, ["b"])) == ["a", "b"]
    assert [path.name for path in kept.path.parent.iterdir()] == ["out.json"]


def test_a_part_with_another_number_of_images_is_refused_and_not_kept(kept):
    kept({}, ["a"])
    with pytest.raises(InputError, match="part b: 4 images, but 3 in a; .*remove .*out.json"):
        kept({}, ["b"], images=4)
    assert list(json.loads(kept.path.read_text())["parts"]) == ["a"]


def test_a_score_counts_all_frames_and_has_what_is_defined():
    def rate(predictions, noise):
        return predictions.shape, predictions[:, 0].tolist(), noise

    source = archives.TestSet("imagenet-p", "", "")
    labels = torch.tensor([1, 2]).repeat_interleave(31)
    ranked = torch.stack([labels, 1 - labels], dim=1)
    ranked[0], ranked[1], ranked[31] = torch.tensor([[0, 1], [2, 0], [1, 0]])
    assert scores.score(source, "tilt", ranked, labels, rate) == {
        "images": 2, "top1": pytest.approx(100 * 59 / 62), "top5": pytest.approx(100 * 60 / 62),
        "flip_rate": ((2, 31), [0, 1], False)}
    assert scores.score(source, "shot_noise", ranked, labels, rate)["flip_rate"][2]
    source, labels = archives.TestSet("fgsm", "", ""), torch.tensor([-1] * 62)
    assert scores.score(source, "4", ranked, labels, rate) == {"images": 62}


def test_the_first_process_alone_sums_up(kept, monkeypatch, capsys):
    kept({}, ["all"])
    before = kept.path.read_text()
    monkeypatch.setattr(devices, "rank", lambda: 1)
    scores.summarize(kept.path, "imagenet", None, None)
    assert kept.path.read_text() == before and not capsys.readouterr().out
