"""Robustness as sections 3.3 and 3.4 report it: the metrics, the attacks, and the archives."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

import eval_robust
import model as models
from eval_robust import ALEXNET_ERROR, ALEXNET_FLIP_RATE, IMAGENET

# ---------------------------------------------------------------------------------- mCE and mFR


def test_alexnet_is_the_yardstick():
    assert eval_robust.mean_corruption_error(ALEXNET_ERROR) == pytest.approx(100.0)
    assert eval_robust.mean_flip_rate(ALEXNET_FLIP_RATE) == pytest.approx(100.0)


def test_alexnet_unnormalized():
    """Mean AlexNet error over 15 corruptions, from the list in AugMix' evaluation code."""
    assert eval_robust.mean_corruption_error(ALEXNET_ERROR, baseline=None) == pytest.approx(
        78.8993, abs=1e-3
    )


def test_published_mean_flip_rate_of_resnext_wsl():
    """Table 5 quotes 27.8 for ResNeXt-101 WSL; these are its published raw rates, in percent."""
    raw = [5.847, 6.991, 2.842, 2.323, 3.667, 1.536, 2.416, 3.469, 2.149, 4.619]
    rates = {name: rate / 100 for name, rate in zip(ALEXNET_FLIP_RATE, raw, strict=True)}
    assert eval_robust.mean_flip_rate(rates) == pytest.approx(27.8, abs=0.05)


def test_mce_sums_the_severities_before_it_divides():
    """By hand: (0.2 + 0.4) / (0.3 + 0.9) = 0.5 and 0.3 / 0.4 = 0.75, whose mean is 62.5 %."""
    errors = {"fog": (0.2, 0.4, 0, 0, 0), "snow": (0.3, 0, 0, 0, 0)}
    baseline = {"snow": (0.4, 0, 0, 0, 0), "fog": (0.3, 0.9, 0, 0, 0)}
    assert eval_robust.mean_corruption_error(errors, baseline) == pytest.approx(62.5)
    assert eval_robust.mean_corruption_error(errors, None) == pytest.approx(100 * 0.9 / 10)


fraction = st.floats(0, 1)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(*[fraction] * 5), min_size=15, max_size=15))
def test_mce_equals_a_slow_reference(rows):
    ratios = []
    for row, alexnet in zip(rows, ALEXNET_ERROR.values(), strict=True):
        ratios.append(np.mean(row) / np.mean(alexnet))
    errors = dict(zip(ALEXNET_ERROR, rows, strict=True))
    assert eval_robust.mean_corruption_error(errors) == pytest.approx(100 * np.mean(ratios))


@pytest.mark.parametrize("errors", [
    {},
    {"fog": [0.5] * 5},  # the mean of one corruption is no mCE
    ALEXNET_ERROR | {"fog": [0.5] * 4},
    ALEXNET_ERROR | {"fog": [50.0] * 5},  # percent
    ALEXNET_ERROR | {"spatter": [0.5] * 5},
])  # fmt: skip
def test_mce_refuses_what_is_not_the_benchmark(errors):
    with pytest.raises(ValueError):
        eval_robust.mean_corruption_error(errors)


def test_mfr_refuses_a_part_of_the_benchmark():
    with pytest.raises(ValueError, match="tilt"):
        eval_robust.mean_flip_rate({"tilt": 0.1})


def test_flip_rate_by_hand():
    predictions = torch.tensor([[1, 1, 2, 2, 1], [3, 3, 3, 3, 3]])
    # Frame to frame: two changes in eight. Against the first: 2, 2 differ from 1, again two.
    assert eval_robust.flip_rate(predictions, noise=False) == 2 / 8
    assert eval_robust.flip_rate(predictions, noise=True) == 2 / 8
    once = torch.tensor([[1, 2, 2, 2, 2]])  # one change for good
    assert eval_robust.flip_rate(once, noise=False) == 1 / 4
    assert eval_robust.flip_rate(once, noise=True) == 4 / 4


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(2, 6), st.booleans(), st.data())
def test_flip_rate_equals_a_slow_reference(sequences, frames, noise, draw):
    row = st.lists(st.integers(0, 2), min_size=frames, max_size=frames)
    predictions = draw.draw(st.lists(row, min_size=sequences, max_size=sequences))
    flips = []
    for sequence in predictions:
        for j in range(1, frames):
            flips.append(sequence[j] != sequence[0 if noise else j - 1])
    assert eval_robust.flip_rate(torch.tensor(predictions), noise) == pytest.approx(np.mean(flips))


def test_flip_rate_needs_two_frames():
    with pytest.raises(ValueError):
        eval_robust.flip_rate(torch.zeros(3, 1, dtype=torch.long), noise=True)


# ---------------------------------------------------------------------------------- ImageNet-A


def test_the_200_classes_of_imagenet_a():
    chosen = [IMAGENET["wnids"][number] for number in IMAGENET["imagenet_a"]]
    assert len(set(IMAGENET["wnids"])) == 1000 and IMAGENET["wnids"] == sorted(IMAGENET["wnids"])
    assert len(set(chosen)) == 200
    assert chosen[:4] == ["n01498041", "n01531178", "n01534433", "n01558993"]
    assert chosen[-2:] == ["n12144580", "n12267677"]
    assert (IMAGENET["imagenet_a"][0], IMAGENET["imagenet_a"][-1]) == (6, 988)


def test_only_the_200_logits_of_imagenet_a_compete():
    logits = torch.zeros(1, 1000)
    logits[0, 0], logits[0, 988], logits[0, 6] = 9.0, 5.0, 7.0  # 0 (tench) is not among the 200
    assert eval_robust.top_k(logits, 2).tolist() == [[0, 6]]
    assert eval_robust.top_k(logits, 2, IMAGENET["imagenet_a"]).tolist() == [[6, 988]]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5))
def test_top_k_equals_a_slow_reference(seed, k):
    logits = torch.randn(3, 1000, generator=torch.Generator().manual_seed(seed))
    expected = []
    for row in logits.tolist():
        ranking = sorted(IMAGENET["imagenet_a"], key=lambda number: -row[number])
        expected.append(ranking[:k])
    assert eval_robust.top_k(logits, k, IMAGENET["imagenet_a"]).tolist() == expected


# ---------------------------------------------------------------------------------- FGSM and PGD


class PixelNet(nn.Module):
    """A small network with BatchNorm and dropout, from pixels (0 to 255) to 3 logits."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5),
            nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 3),
        )  # fmt: skip

    def forward(self, pixels):
        return self.layers(pixels.float() / 127.5 - 1)


@pytest.fixture(scope="module")
def trained():
    """A network that tells apart three faint patterns, with 96 images and their labels."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = PixelNet()
        patterns = 20 * torch.randn(3, 3, 8, 8, generator=generator)
        labels = torch.arange(96) % 3
        images = 128 + patterns[labels] + 25 * torch.randn(96, 3, 8, 8, generator=generator)
        images = images.clamp(0, 255).to(torch.uint8)
        images[0, 0], images[1, 0] = 0, 255  # at the ends of the pixel range
        optimizer = torch.optim.Adam(network.parameters(), 0.01)
        for _ in range(60):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(images), labels).backward()
            optimizer.step()
    optimizer.zero_grad()
    network.eval()
    assert (network(images).argmax(1) == labels).float().mean() > 0.9
    return network, images, labels


@pytest.mark.parametrize("epsilon", [0.5, 2, 16, 300])
@pytest.mark.parametrize("random_start", [False, True])
def test_attacks_stay_within_epsilon_and_the_pixel_range(trained, epsilon, random_start):
    generator = torch.Generator().manual_seed(1)
    for attacked in (
        eval_robust.fgsm(*trained, epsilon),
        eval_robust.pgd(*trained, epsilon, random_start=random_start, generator=generator),
        eval_robust.pgd(*trained, epsilon, steps=3, step_size=2 * epsilon),
    ):
        assert attacked.shape == trained[1].shape and attacked.dtype == torch.float32
        assert (attacked - trained[1].float()).abs().max() <= epsilon + 1e-4
        assert attacked.min() >= 0 and attacked.max() <= 255


def test_fgsm_moves_every_pixel_by_epsilon(trained):
    """Section 3.4: "one gradient descent step ... with the update on each pixel set to epsilon"."""
    network, images, labels = trained
    pixels = images.float().requires_grad_()
    nn.functional.cross_entropy(network(pixels), labels).backward()
    network.zero_grad()
    expected = (images.float() + 2 * pixels.grad.sign()).clamp(0, 255)
    torch.testing.assert_close(eval_robust.fgsm(*trained, 2), expected)


def test_fgsm_of_a_linear_model_is_known():
    """Cross entropy of a linear model grows where the other class' weight exceeds the label's."""
    weights = torch.tensor([[1.0, -2, 0.5, 3]]) / 100

    def model(pixels):
        score = pixels.flatten(1) @ weights.T
        return torch.cat([score, torch.zeros_like(score)], dim=1)

    image = torch.full((1, 1, 2, 2), 100.0)
    attacked = eval_robust.fgsm(model, image, torch.tensor([0]), 3)
    assert (attacked - image).flatten().tolist() == [-3, 3, -3, -3]


def accuracy(network, images, labels):
    return (network(images).argmax(1) == labels).float().mean().item()


def loss(network, images, labels):
    return nn.functional.cross_entropy(network(images), labels).item()


@pytest.mark.parametrize("epsilon", [2, 4, 8, 16])
def test_pgd_is_at_least_as_strong_as_fgsm(trained, epsilon):
    network, images, labels = trained
    fgsm, pgd = eval_robust.fgsm(*trained, epsilon), eval_robust.pgd(*trained, epsilon)
    assert loss(network, pgd, labels) >= loss(network, fgsm, labels)
    assert accuracy(network, pgd, labels) <= accuracy(network, fgsm, labels)
    assert loss(network, fgsm, labels) > loss(network, images, labels)


def test_targeted_pgd_pulls_towards_its_targets(trained):
    network, images, labels = trained
    targets = (labels + 1) % 3
    attacked = eval_robust.pgd(*trained, 16, targets=targets)
    assert loss(network, attacked, targets) < loss(network, images, targets)
    assert (network(attacked).argmax(1) == targets).float().mean() > 0.5


def test_default_step_is_two_and_a_half_epsilon_over_the_steps(trained):
    default = eval_robust.pgd(*trained, 16)
    assert torch.equal(default, eval_robust.pgd(*trained, 16, steps=10, step_size=4))
    assert not torch.equal(default, eval_robust.pgd(*trained, 16, step_size=1.6))


def test_random_start_is_drawn_from_the_generator(trained):
    def attack(seed):
        generator = torch.Generator().manual_seed(seed)
        return eval_robust.pgd(*trained, 16, steps=1, random_start=True, generator=generator)

    assert torch.equal(attack(0), attack(0)) and not torch.equal(attack(0), attack(1))


def test_attacks_leave_the_network_alone(trained):
    network, images, labels = trained
    before = {name: value.clone() for name, value in network.state_dict().items()}
    eval_robust.fgsm(*trained, 4)
    eval_robust.pgd(*trained, 4, random_start=True)
    assert all(parameter.grad is None for parameter in network.parameters())
    for name, value in network.state_dict().items():  # BatchNorm's statistics among them
        assert torch.equal(value, before[name]), name
    assert not images.is_floating_point()


def test_attacks_work_inside_no_grad(trained):
    with torch.no_grad():
        attacked = eval_robust.fgsm(*trained, 4)
    assert not torch.equal(attacked, trained[1].float()) and not attacked.requires_grad


def test_attacks_refuse_a_network_in_training_mode(trained):
    network, images, labels = trained
    network.train()
    try:
        with pytest.raises(ValueError, match="training mode"):
            eval_robust.fgsm(network, images, labels, 4)
    finally:
        network.eval()


def test_attacks_equal_a_public_library(trained):
    torchattacks = pytest.importorskip("torchattacks")
    network, images, labels = trained

    class UnitRange(nn.Module):  # the library's images are 0 to 1
        def forward(self, images):
            return network(images * 255)

    unit, scaled = UnitRange().eval(), images.float() / 255
    fgsm = torchattacks.FGSM(unit, eps=4 / 255)(scaled, labels) * 255
    pgd = torchattacks.PGD(unit, eps=4 / 255, alpha=1 / 255, steps=5, random_start=False)(
        scaled, labels
    ) * 255  # fmt: skip
    for ours, theirs in (
        (eval_robust.fgsm(*trained, 4), fgsm),
        (eval_robust.pgd(*trained, 4, steps=5, step_size=1), pgd),
    ):
        # Rounding decides the sign of gradients that are next to zero.
        assert ((ours - theirs).abs() < 1e-2).float().mean() > 0.998


# ---------------------------------------------------------------------------------- quick suite


@pytest.fixture(scope="module")
def pictures():
    """30 smooth images with a bright square each, (30, 3, 32, 32) uint8."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(30, 3, 5, 5, generator=generator) * 160 + 40
    images = nn.functional.interpolate(coarse, size=32, mode="bilinear")
    images[:, :, 10:18, 8:20] = 230
    return images.to(torch.uint8)


def distortion(images, name, severity):
    corrupted = eval_robust.corrupt(images, name, severity, torch.Generator().manual_seed(0))
    assert corrupted.shape == images.shape and corrupted.dtype == torch.uint8
    return (corrupted.float() - images.float()).abs().mean().item()


def test_the_fifteen_corruptions():
    assert list(eval_robust.SEVERITIES) == list(ALEXNET_ERROR)
    assert all(len(values) == 5 for values in eval_robust.SEVERITIES.values())


@pytest.mark.parametrize("name", eval_robust.SEVERITIES)
def test_corruption_distorts_and_is_reproducible(pictures, name):
    assert 0.1 < distortion(pictures, name, 3) < 100
    assert distortion(pictures, name, 3) == distortion(pictures, name, 3)


# The others' parameters are not ordered: CIFAR-10-C's third elastic transform, for example, bends
# the image less than its second.
@pytest.mark.parametrize("name", ["gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur",
                                  "zoom_blur", "brightness", "contrast", "jpeg_compression"])
def test_severity_grows_the_distortion(pictures, name):
    amounts = [distortion(pictures, name, severity) for severity in range(1, 6)]
    assert amounts == sorted(amounts) and amounts[0] < amounts[-1]


@pytest.mark.parametrize("name", ["glass_blur", "motion_blur", "snow", "frost", "fog",
                                  "pixelate"])  # fmt: skip
def test_the_last_severity_distorts_more_than_the_first(pictures, name):
    assert distortion(pictures, name, 5) > distortion(pictures, name, 1)


def test_noise_has_the_stated_strength():
    gray = torch.full((50, 3, 32, 32), 128, dtype=torch.uint8)
    generator = torch.Generator().manual_seed(0)
    gaussian = eval_robust.corrupt(gray, "gaussian_noise", 5, generator).float() / 255
    assert gaussian.std().item() == pytest.approx(0.10, rel=0.02)
    shot = eval_robust.corrupt(gray, "shot_noise", 5, generator).float() / 255
    assert shot.std().item() == pytest.approx((128 / 255 / 50) ** 0.5, rel=0.02)
    impulse = eval_robust.corrupt(gray, "impulse_noise", 5, generator)
    assert (impulse == 0).float().mean().item() == pytest.approx(0.035, rel=0.1)
    assert (impulse == 255).float().mean().item() == pytest.approx(0.035, rel=0.1)


def test_contrast_and_brightness_by_definition(pictures):
    x = pictures.double().numpy() / 255
    mean = x.mean(axis=(2, 3), keepdims=True)
    contrast = eval_robust.corrupt(pictures, "contrast", 2, None).numpy()
    assert np.abs(contrast - 255 * ((x - mean) * 0.5 + mean)).max() < 0.51
    hsv = np.stack([np.array(Image.fromarray(i).convert("HSV"))
                    for i in eval_robust.corrupt(pictures, "brightness", 2, None)
                    .permute(0, 2, 3, 1).numpy()])  # fmt: skip
    expected = np.minimum(x.max(axis=1) + 0.1, 1) * 255
    assert np.abs(hsv[..., 2] - expected).max() < 0.51


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_pixelate_equals_pillow(pictures, severity):
    side = int(32 * eval_robust.SEVERITIES["pixelate"][severity - 1])
    ours = eval_robust.corrupt(pictures, "pixelate", severity, None).permute(0, 2, 3, 1).numpy()
    for picture, result in zip(pictures.permute(0, 2, 3, 1).numpy(), ours, strict=True):
        small = Image.fromarray(picture).resize((side, side), Image.Resampling.BOX)
        theirs = np.asarray(small.resize((32, 32), Image.Resampling.BOX), dtype=int)
        assert np.abs(theirs - result).max() <= 1


def test_motion_blur_of_a_dot_is_a_line_in_the_stated_direction():
    dot = torch.zeros(2, 1, 32, 32)
    dot[:, :, 16, 16] = 1
    across, down = eval_robust._motion_blur(dot, 6, 2.5, torch.tensor([0.0, 90.0]))[:, 0]
    assert across[16].sum() == pytest.approx(1, abs=1e-4)
    assert across[16, 16] > across[16, 15] > across[16, 10] > 0 == across[16, 17].round(decimals=4)
    torch.testing.assert_close(down, across.T, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", eval_robust.QUICK_PERTURBATIONS)
def test_sequences_have_the_released_lengths(pictures, name):
    frames = list(eval_robust.perturb(pictures, name, torch.Generator().manual_seed(0)))
    assert len(frames) == {"motion_blur": 21, "translate": 16}.get(name, 31)
    assert all(frame.shape == pictures.shape and frame.dtype == torch.uint8 for frame in frames)
    assert not torch.equal(frames[-1], frames[-2])
    if "noise" in name or name == "zoom_blur":
        assert torch.equal(frames[0], pictures), "begins with the clean image"
    middle = {"brightness": 15, "translate": 7, "rotate": 15, "scale": 15}.get(name)
    if middle:
        assert torch.equal(frames[middle], pictures), "passes through the clean image"


def test_translation_moves_by_whole_pixels(pictures):
    frames = list(eval_robust.perturb(pictures, "translate", None))
    assert torch.equal(frames[10][..., 3:], pictures[..., :-3])
    assert torch.equal(frames[5][..., :-2], pictures[..., 2:])


class Glance(nn.Module):
    """Classifies into four by whether the left is brighter than the right, and top than bottom."""

    def forward(self, pixels):
        pixels = pixels.float().mean(1)
        x = pixels[:, :, :16].mean((1, 2)) - pixels[:, :, 16:].mean((1, 2))
        y = pixels[:, :16].mean((1, 2)) - pixels[:, 16:].mean((1, 2))
        return torch.stack([x + y, x - y, y - x, -x - y], dim=1)


@pytest.fixture(scope="module")
def quick(pictures):
    labels = Glance()(pictures).argmax(1)
    return eval_robust.quick_suite(Glance().eval(), pictures, labels, seed=3), labels


def test_quick_suite_is_deterministic_for_a_seed(quick, pictures):
    results, labels = quick
    model = Glance().eval()
    assert eval_robust.quick_suite(model, pictures, labels, seed=3) == results
    assert eval_robust.quick_suite(model, pictures, labels, seed=3, batch_size=7) == results
    other = eval_robust.quick_suite(model, pictures, labels, seed=4)
    assert other["corruption_error"] != results["corruption_error"]


def test_quick_suite_reports_all_of_it(quick):
    results, _ = quick
    assert json.loads(json.dumps(results)) == results
    assert "not comparable" in results["note"]
    assert results["clean_top1"] == 100 and results["images"] == 30
    errors = results["corruption_error"]
    assert list(errors) == list(ALEXNET_ERROR)
    assert results["unnormalized_mce"] == pytest.approx(100 * np.mean(list(errors.values())))
    assert results["unnormalized_mfr"] == pytest.approx(
        100 * np.mean(list(results["flip_rate"].values()))
    )
    assert list(results["fgsm_top1"]) == ["1", "2", "4", "8"] and list(results["pgd_top1"]) == ["1"]
    strengths = list(results["fgsm_top1"].values())
    assert strengths == sorted(strengths, reverse=True) and strengths[-1] < 100
    assert results["flip_rate"]["brightness"] < results["flip_rate"]["translate"]


def test_quick_suite_takes_no_more_than_the_limit(pictures):
    seen = []

    def model(pixels):
        seen.append(len(pixels))
        return Glance()(pixels)

    labels = torch.zeros(30, dtype=torch.long)
    results = eval_robust.quick_suite(model, pictures, labels, limit=10, epsilons=(8,))
    assert results["images"] == results["flip_sequences"] == results["attacked_images"] == 10
    assert list(results["fgsm_top1"]) == list(results["pgd_top1"]) == ["8"]


def test_quick_suite_refuses_other_images():
    with pytest.raises(ValueError, match="uint8"):
        eval_robust.quick_suite(Glance(), torch.zeros(9, 3, 32, 32), torch.zeros(9))


# ---------------------------------------------------------------------------------- the archives

ARCH = "0.2x0.2"
WNIDS = ["n01498041", "n12267677"]  # stingray and acorn: 6 and 988; both are in ImageNet-A


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A random network of 1000 classes and one of 10, the second as train.py writes them."""
    folder = tmp_path_factory.mktemp("checkpoints")
    torch.manual_seed(0)
    torch.save(models.efficientnet(ARCH).state_dict(), folder / "imagenet.pth")
    cifar = models.efficientnet(ARCH, 10, small_images=True)
    config = {"arch": ARCH, "small_images": True, "image_size": 32}
    meta = json.dumps({"config": config, "classes": [f"class{n}" for n in range(10)]})
    torch.save({"model": cifar.state_dict(), "meta": meta}, folder / "cifar.pt")
    return folder


@pytest.fixture
def evaluate(checkpoints, tmp_path, monkeypatch, capsys):
    """Runs the command line in this process: (exit status, results or None, stderr)."""

    def evaluate(suite, data_dir, *more):
        network = "cifar.pt" if suite.startswith(("cifar", "quick")) else "imagenet.pth"
        out = tmp_path / f"{suite}.json"
        arguments = ["--checkpoint", checkpoints / network, "--arch", ARCH, "--suite", suite,
                     "--data-dir", data_dir, "--out", out, "--device", "cpu",
                     "--image-size", 32, *more]  # fmt: skip
        monkeypatch.setattr(sys, "argv", ["eval_robust.py", *map(str, arguments)])
        try:
            eval_robust.main()
            status = 0
        except SystemExit as stop:
            status = stop.code
        lines = capsys.readouterr().err.splitlines()
        message = [line for line in lines if "eval_robust.py:" in line]
        return status, json.loads(out.read_text()) if out.exists() else None, message

    return evaluate


def save_image(path: Path, size, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(pixels).resize(size).save(path, quality=85)


def imagenet_c(root, group=False, size=(224, 224)):
    groups = {"gaussian_noise": "noise", "fog": "weather"} if group else {}
    for name in ALEXNET_ERROR:
        for severity in range(1, 6):
            for wnid in WNIDS:
                folder = root / groups.get(name, "") / name / str(severity) / wnid
                save_image(folder / "ILSVRC2012_val_00000001.JPEG", size, severity)
    return root


@pytest.mark.parametrize("group", [False, True])
def test_imagenet_c(evaluate, tmp_path, group):
    status, results, _ = evaluate("imagenet-c", imagenet_c(tmp_path / "c", group))
    assert status == 0
    assert len(results["parts"]) == 75 and results["parts"]["fog/3"]["images"] == 2
    errors = {name: [1 - results["parts"][f"{name}/{s}"]["top1"] / 100 for s in range(1, 6)]
              for name in ALEXNET_ERROR}  # fmt: skip
    assert results["summary"]["mce"] == eval_robust.mean_corruption_error(errors)
    assert results["summary"]["top1"] == pytest.approx(100 * (1 - np.mean(list(errors.values()))))


def test_a_missing_severity_is_named_and_the_run_continues_later(evaluate, tmp_path):
    root = imagenet_c(tmp_path / "c")
    (root / "fog" / "3").rename(root / "aside")
    status, results, message = evaluate("imagenet-c", root)
    assert status == 2 and len(message) == 1 and str(root / "fog" / "3") in message[0]
    assert len(results["parts"]) == 9 * 5 + 2 and "summary" not in results

    (root / "aside").rename(root / "fog" / "3")
    for measured in ("gaussian_noise", "snow"):  # kept results are not measured again
        (root / measured).rename(root / f"gone_{measured}")
    status, results, _ = evaluate("imagenet-c", root)
    assert status == 0 and len(results["parts"]) == 75 and "summary" in results


@pytest.mark.parametrize("damage, named", [
    ("unknown class", "n99999999"), ("broken image", "val_1.JPEG"), ("size", "val_1.JPEG"),
    ("fewer images", "gaussian_noise/2"),
])  # fmt: skip
def test_broken_imagenet_c(evaluate, tmp_path, damage, named):
    root = imagenet_c(tmp_path / "c")
    folder = root / "gaussian_noise" / "2"
    extra = folder / WNIDS[0] / "val_1.JPEG"
    if damage == "unknown class":
        (folder / WNIDS[0]).rename(folder / "n99999999")
    elif damage == "broken image":
        save_image(extra, (224, 224))
        extra.write_bytes(extra.read_bytes()[:300])
    elif damage == "size":
        save_image(extra, (256, 200))
    else:
        next((folder / WNIDS[0]).iterdir()).unlink()
    status, results, message = evaluate("imagenet-c", root)
    assert status == 2 and len(message) == 1 and named in message[0]
    assert list(results["parts"]) == ["gaussian_noise/1"]


@pytest.mark.parametrize("suite", ["imagenet-a", "imagenet"])
def test_folders_of_classes(evaluate, checkpoints, tmp_path, suite):
    """Images are filed by a slow reference's ranking, so that the accuracies are known."""
    network, _, _ = eval_robust.load_network(checkpoints / "imagenet.pth", ARCH)
    allowed = IMAGENET["imagenet_a"] if suite == "imagenet-a" else range(1000)
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 3, 1, 1)
    sizes = [(100, 80), (64, 90), (70, 70), (224, 96)]
    for seed, (size, rank) in enumerate(zip(sizes, [0, 0, 4, 5], strict=True)):
        save_image(tmp_path / "1.JPEG", size, seed)
        image, short = Image.open(tmp_path / "1.JPEG"), min(size)
        side = short if suite == "imagenet-a" else short * 96 // (96 + 32)
        left, top = (size[0] - side + 1) // 2, (size[1] - side + 1) // 2
        crop = image.resize((96, 96), Image.Resampling.BICUBIC,
                            (left, top, left + side, top + side))  # fmt: skip
        pixels = torch.from_numpy(np.array(crop)).permute(2, 0, 1)[None]
        logits = network((pixels / 255 - mean) / std)[0].tolist()
        ranking = sorted(allowed, key=lambda number: -logits[number])
        folder = tmp_path / "data" / IMAGENET["wnids"][ranking[rank]]
        folder.mkdir(parents=True, exist_ok=True)
        (tmp_path / "1.JPEG").rename(folder / f"{seed}.JPEG")
    status, results, _ = evaluate(
        suite, tmp_path / "data", "--image-size", 96, "--batch-size", 3
    )  # fmt: skip
    assert status == 0
    assert results["summary"] == {"images": 4, "top1": 50.0, "top5": 75.0}


def test_imagenet_a_refuses_a_class_that_is_not_among_its_200(evaluate, tmp_path):
    save_image(tmp_path / "a" / "n01440764" / "1.JPEG", (50, 50))
    status, _, message = evaluate("imagenet-a", tmp_path / "a")
    assert status == 2 and "n01440764" in message[0]


def save_film(path: Path, frames: int, size: int = 224):
    av = pytest.importorskip("av")
    random = np.random.default_rng(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as film:
        stream = film.add_stream("mpeg4", rate=1)
        stream.width, stream.height, stream.pix_fmt = size, size, "yuv420p"
        for _ in range(frames):
            pixels = random.integers(0, 256, (4, 4, 3), np.uint8).repeat(size // 4, 0)
            frame = av.VideoFrame.from_ndarray(pixels.repeat(size // 4, 1), format="rgb24")
            film.mux(stream.encode(frame))
        film.mux(stream.encode())


def imagenet_p(root):
    for name in ALEXNET_FLIP_RATE:
        for wnid in WNIDS:
            path = root / name / wnid / "ILSVRC2012_val_00000001.mp4"
            save_film(path, 41 if name == "translate" else 31)
    return root


def test_imagenet_p(evaluate, tmp_path):
    status, results, _ = evaluate("imagenet-p", imagenet_p(tmp_path / "p"), "--batch-size", 40)
    assert status == 0
    rates = {name: part["flip_rate"] for name, part in results["parts"].items()}
    assert results["summary"]["mfr"] == eval_robust.mean_flip_rate(rates)
    assert results["parts"]["tilt"]["images"] == 2


@pytest.mark.parametrize("damage", ["truncated", "empty", "no film", "too short", "size"])
def test_broken_imagenet_p(evaluate, tmp_path, damage):
    for name in ("gaussian_noise", "shot_noise"):
        save_film(tmp_path / "p" / name / WNIDS[0] / "1.mp4", 31)
    film = tmp_path / "p" / "shot_noise" / WNIDS[0] / "1.mp4"
    if damage == "size":
        save_film(film, 31, size=64)
    elif damage == "too short":
        save_film(film, 12)
    else:
        content = {"truncated": film.read_bytes()[:-3000], "empty": b"", "no film": b"no" * 999}
        film.write_bytes(content[damage])
    status, results, message = evaluate("imagenet-p", tmp_path / "p")
    assert status == 2 and len(message) == 1 and str(film) in message[0]
    assert list(results["parts"]) == ["gaussian_noise"]


def test_films_need_their_package(evaluate, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    path = tmp_path / "p" / "gaussian_noise" / WNIDS[0] / "1.mp4"
    path.parent.mkdir(parents=True)
    path.touch()
    status, _, message = evaluate("imagenet-p", tmp_path / "p")
    assert status == 2 and "pip install av" in message[0]


def cifar10_c(root):
    root.mkdir()
    random = np.random.default_rng(0)
    for name in ALEXNET_ERROR:
        np.save(root / f"{name}.npy", random.integers(0, 256, (20, 32, 32, 3), np.uint8))
    np.save(root / "labels.npy", np.tile(np.array([0, 3, 5, 9], np.uint8), 5))
    return root


def test_cifar10_c(evaluate, checkpoints, tmp_path):
    root = cifar10_c(tmp_path / "c")
    network, _, _ = eval_robust.load_network(checkpoints / "cifar.pt", ARCH)
    images = torch.from_numpy(np.load(root / "fog.npy")).permute(0, 3, 1, 2) / 255
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])
    predictions = network((images - mean.view(3, 1, 1)) / std.view(3, 1, 1)).argmax(1)
    # Put the network's own answers in place of the labels of the third block, images 8 to 11.
    labels = np.full(20, 99, np.uint8)
    labels[8:12] = predictions[8:12].numpy()
    np.save(root / "labels.npy", labels)
    status, results, _ = evaluate("cifar10-c", root)
    assert status == 0
    assert [results["parts"][f"fog/{s}"]["top1"] for s in range(1, 6)] == [0, 0, 100, 0, 0]
    assert "mce" not in results["summary"]  # CIFAR-10-C has no yardstick
    assert results["summary"]["unnormalized_mce"] == 100 - results["summary"]["top1"]


@pytest.mark.parametrize("damage", ["truncated", "missing", "shape", "labels"])
def test_broken_cifar10_c(evaluate, tmp_path, damage):
    root = cifar10_c(tmp_path / "c")
    broken = root / "shot_noise.npy"
    if damage == "truncated":
        broken.write_bytes(broken.read_bytes()[:-1])
    elif damage == "missing":
        broken.unlink()
    elif damage == "shape":
        np.save(broken, np.zeros((20, 24, 24, 3), np.uint8))
    else:
        np.save(broken, np.zeros((25, 32, 32, 3), np.uint8))
    status, results, message = evaluate("cifar10-c", root)
    assert status == 2 and len(message) == 1 and str(broken) in message[0]
    assert len(results["parts"]) == 5


def test_cifar10_p(evaluate, tmp_path):
    random, root = np.random.default_rng(0), tmp_path / "p"
    root.mkdir()
    names = [*ALEXNET_FLIP_RATE, "spatter"]
    names.remove("snow")
    for name in names:
        frames = {"motion_blur": 21, "translate": 16}.get(name, 31)
        films = random.integers(0, 256, (3, frames, 32, 32, 3), np.uint8)
        if name == "rotate":
            films[:] = films[:, :1]  # nothing moves
        np.save(root / f"{name}.npy", films)
    status, results, _ = evaluate("cifar10-p", root)
    assert status == 0 and set(results["parts"]) == set(names)
    assert results["parts"]["rotate"]["flip_rate"] == 0
    rates = [part["flip_rate"] for part in results["parts"].values()]
    assert results["summary"] == {"unnormalized_mfr": pytest.approx(100 * np.mean(rates))}


def test_quick_from_the_command_line(evaluate, tmp_path):
    for number in range(10):
        save_image(tmp_path / "test" / f"class{number}" / "1.png", (40, 32), number)
    status, results, _ = evaluate("quick", tmp_path / "test")
    assert status == 0 and results["summary"]["images"] == 10


def test_results_of_another_network_are_not_continued(evaluate, tmp_path):
    root = cifar10_c(tmp_path / "c")
    assert evaluate("cifar10-c", root)[0] == 0
    out = tmp_path / "cifar10-c.json"
    out.write_text(out.read_text().replace('"checkpoint_sha256": "', '"checkpoint_sha256": "0'))
    status, _, message = evaluate("cifar10-c", root)
    assert status == 2 and "another checkpoint_sha256" in message[0]
    out.write_text("[]")
    assert evaluate("cifar10-c", root)[:2] == (2, [])


def test_checkpoints_that_do_not_fit(evaluate, checkpoints, tmp_path):
    status, _, message = evaluate("cifar10-c", tmp_path, "--checkpoint", tmp_path / "none.pt")
    assert status == 2 and "none.pt" in message[0]
    status, _, message = evaluate("imagenet-a", tmp_path, "--arch", "b1")
    assert status == 2 and "imagenet.pth" in message[0] and "b1" in message[0]
    status, _, message = evaluate("imagenet-a", tmp_path, "--checkpoint", checkpoints / "cifar.pt")
    assert status == 2 and "1000 classes" in message[0]


def test_the_command_itself(checkpoints, tmp_path):
    command = [sys.executable, "eval_robust.py", "--checkpoint", checkpoints / "cifar.pt",
               "--suite", "cifar10-c", "--data-dir", tmp_path, "--out", tmp_path / "out.json"]
    root = Path(__file__).parent.parent
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("eval_robust.py: ")
    assert not (tmp_path / "out.json").exists()
