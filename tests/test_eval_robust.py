"""Robustness as sections 3.3 and 3.4 report it: the metrics, the attacks, the quick suite."""

import copy
import inspect
import itertools
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import eval_robust
from model import efficientnet
from support import datasets, demo_images, devices, folders, reading
from support.archives import ALEXNET_ERROR, ALEXNET_FLIP_RATE, IMAGENET
from support.images import ImageSet

CPU = torch.device("cpu")

# ---- mCE and mFR ----


def test_the_baseline_is_alexnet():
    """Its mean error over the severities of each corruption, as AugMix' evaluation code has it."""
    published = {
        "gaussian_noise": 88.6428, "shot_noise": 89.4468, "impulse_noise": 92.264,
        "defocus_blur": 81.988, "glass_blur": 82.6268, "motion_blur": 78.5948,
        "zoom_blur": 79.836, "snow": 86.6816, "frost": 82.6572, "fog": 81.9324,
        "brightness": 56.4592, "contrast": 85.3204, "elastic_transform": 64.6056,
        "pixelate": 71.784, "jpeg_compression": 60.65}
    assert {name: 20 * sum(row) for name, row in ALEXNET_ERROR.items()} == pytest.approx(published)
    assert eval_robust.mean_corruption_error(ALEXNET_ERROR) == pytest.approx(100.0)
    assert eval_robust.mean_corruption_error(ALEXNET_ERROR, baseline=None) == pytest.approx(
        sum(published.values()) / 15)


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


@pytest.mark.parametrize("errors", [
    {},
    {"fog": [0.5] * 5},  # the mean of one corruption is no mCE
    ALEXNET_ERROR | {"fog": [0.5] * 4},
    ALEXNET_ERROR | {"fog": [50.0] * 5},  # percent
    ALEXNET_ERROR | {"spatter": [0.5] * 5},
])
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


def test_flip_rate_needs_two_frames():
    with pytest.raises(ValueError):
        eval_robust.flip_rate(torch.zeros(3, 1, dtype=torch.long), noise=True)


# ---- ImageNet-A ----


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


# ---- FGSM and PGD ----


class PixelNet(nn.Module):
    """A small network with BatchNorm and dropout, from pixels (0 to 255) to 3 logits."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5),
            nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 3),
        )

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


def test_the_command_aims_targeted_attacks_at_any_other_class(monkeypatch):
    seen = []

    def pgd(model, images, labels, epsilon, steps, step_size, random_start, targets, generator):
        seen.append((labels, targets))
        return images

    monkeypatch.setattr(eval_robust, "pgd", pgd)
    images, labels = torch.zeros(90, 3, 2, 2), torch.arange(90) % 3
    source = SimpleNamespace(
        suite="pgd", classes="abc", allowed=lambda: None, frames=lambda name: 1,
        read=lambda name: zip(images.split(40), labels.split(40), strict=True))

    def measure(**flags):
        seen.clear()
        return eval_robust.measure(lambda images: torch.zeros(len(images), 3), source,
                                   eval_robust.Flags("a.pt", **flags), "4")

    assert measure(targeted=True)["images"] == 90
    truth, targets = (torch.cat(tensors) for tensors in zip(*seen, strict=True))
    assert torch.equal(truth, labels) and (targets != labels).all()
    assert len(set(zip(truth.tolist(), targets.tolist(), strict=True))) == 6
    assert measure()["images"] == 90 and len(seen) == 3
    assert all(targets is None for _, targets in seen)


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
    foolbox = pytest.importorskip("foolbox")
    network, images, labels = trained

    class UnitRange(nn.Module):  # the library's images are 0 to 1
        def forward(self, images):
            return network(images * 255)

    unit, scaled = foolbox.PyTorchModel(UnitRange().eval(), bounds=(0, 1)), images.float() / 255
    fgsm = foolbox.attacks.LinfFastGradientAttack(random_start=False)
    pgd = foolbox.attacks.LinfPGD(abs_stepsize=1 / 255, steps=5, random_start=False)
    for ours, theirs in (
        (eval_robust.fgsm(*trained, 4), fgsm.run(unit, scaled, labels, epsilon=4 / 255)),
        (eval_robust.pgd(*trained, 4, steps=5, step_size=1),
         pgd.run(unit, scaled, labels, epsilon=4 / 255)),
    ):
        # Rounding decides the sign of gradients that are next to zero.
        assert ((ours - 255 * theirs).abs() < 1e-2).float().mean() > 0.998


def test_from_pixels_switches_dropout_off():
    network = efficientnet("0.2x0.2", 10, dropout=0.5).train()
    model = eval_robust.from_pixels(network, CPU)
    images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    assert torch.equal(model(images), model(images))


# ---- The quick suite ----


class Glance(nn.Module):
    """Classifies into four by whether the left is brighter than the right, and top than bottom."""

    def forward(self, pixels):
        pixels = pixels.float().mean(1)
        x = pixels[:, :, :16].mean((1, 2)) - pixels[:, :, 16:].mean((1, 2))
        y = pixels[:, :16].mean((1, 2)) - pixels[:, 16:].mean((1, 2))
        return torch.stack([x + y, x - y, y - x, -x - y], dim=1)


@pytest.fixture(scope="module")
def pictures():
    """30 pictures of the demo."""
    return demo_images.draw(np.arange(30) % 10, (0, 9))


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


def test_quick_suite_leaves_the_global_random_numbers_alone(pictures):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    eval_robust.quick_suite(Glance().eval(), pictures, torch.zeros(30, dtype=torch.long), limit=5)
    assert torch.equal(torch.rand(1), expected)


def test_quick_suite_reports_all_of_it(quick):
    results, _ = quick
    assert json.loads(json.dumps(results)) == results
    assert "not comparable" in results["note"]
    assert results["clean_top1"] == 100 and results["images"] == 30
    assert list(results["corruption_error"]) == list(ALEXNET_ERROR)
    assert results["unnormalized_mce"] == pytest.approx(
        100 * np.mean(list(results["corruption_error"].values())))
    assert results["unnormalized_mfr"] == pytest.approx(
        100 * np.mean(list(results["flip_rate"].values())))


def test_quick_attacks_begin_at_the_clean_accuracy_and_grow(quick):
    results, _ = quick
    assert list(results["fgsm_top1"]) == ["0", "1", "2", "4", "8", "16"]
    strengths = list(results["fgsm_top1"].values())
    assert strengths[0] == results["clean_top1"]
    assert strengths == sorted(strengths, reverse=True) and strengths[-1] < 100
    for epsilon, top1 in results["pgd_top1"].items():
        assert top1 <= results["fgsm_top1"][epsilon]


def test_quick_suite_measures_each_severity_on_its_own_fifth(pictures):
    """A model that knows images by heart, and only clean ones: every corrupted image is wrong."""
    known = {picture.numpy().tobytes(): number for number, picture in enumerate(pictures)}

    def model(pixels):
        numbers = [known.get(p.round().byte().numpy().tobytes(), -1) for p in pixels.float()]
        return nn.functional.one_hot(torch.tensor(numbers) + 1, 31).float() + 0 * pixels.sum()

    results = eval_robust.quick_suite(model, pictures, torch.arange(30) + 1)
    assert results["clean_top1"] == 100
    for name in ("gaussian_noise", "contrast", "jpeg_compression"):
        assert results["corruption_error"][name] == [1.0] * 5
    # The lightest blur and elastic transform of CIFAR-10-C may leave a picture as it is.
    assert results["flip_rate"]["gaussian_noise"] == 1.0
    assert results["flip_rate"]["translate"] < 1.0  # two frames that are both unknown are equal


def test_each_image_meets_another_severity_from_one_corruption_to_the_next(pictures, monkeypatch):
    number = {picture.numpy().tobytes(): row for row, picture in enumerate(pictures)}
    met = {name: {} for name in ALEXNET_ERROR}  # corruption -> image -> severities

    def corrupt(images, name, severity, generator):
        for image in images:
            met[name].setdefault(number[image.numpy().tobytes()], []).append(severity)
        return images

    monkeypatch.setattr(eval_robust.corruptions, "corrupt", corrupt)
    eval_robust.quick_suite(Glance().eval(), pictures, torch.zeros(30, dtype=torch.long),
                            fgsm_epsilons=(), pgd_epsilons=())
    for before, name in itertools.pairwise(met):
        assert sorted(sum(met[name].values(), [])) == sorted([1, 2, 3, 4, 5] * 6)
        for image in range(30):
            (one,), (other,) = met[before][image], met[name][image]
            assert one != other


def test_quick_attacks_count_true_labels_not_unchanged_answers(pictures):
    wrong = (Glance()(pictures).argmax(1) + 1) % 4
    results = eval_robust.quick_suite(Glance().eval(), pictures, wrong)
    assert results["clean_top1"] == results["fgsm_top1"]["0"] == 0


def test_the_progress_bars_of_the_quick_suite_say_what_runs(pictures, capsys):
    labels = torch.zeros(30, dtype=torch.long)
    eval_robust.quick_suite(Glance().eval(), pictures, labels, limit=5, progress="teacher")
    shown = capsys.readouterr().err
    for what in ("corruptions", "perturbations", "FGSM", "PGD"):
        assert f"teacher: {what}: " in shown


def test_quick_suite_takes_no_more_than_the_limit(pictures):
    labels = torch.zeros(30, dtype=torch.long)
    results = eval_robust.quick_suite(Glance().eval(), pictures, labels, limit=10,
                                      fgsm_epsilons=(8,), pgd_epsilons=(2,))
    assert (results["images"], results["attacked"], results["sequences"]) == (10, 5, 1)
    assert list(results["fgsm_top1"]) == ["8"] and list(results["pgd_top1"]) == ["2"]


def test_quick_suite_refuses_other_images():
    with pytest.raises(ValueError, match="uint8"):
        eval_robust.quick_suite(Glance(), torch.zeros(9, 3, 32, 32), torch.zeros(9))


def figures(error, flips):
    return {"corruption_error": {"fog": [error] * 5, "snow": [2 * error] * 5},
            "flip_rate": {"scale": flips, "rotate": 0.4}}


def test_relative_figures_make_the_other_network_the_baseline():
    """By hand: every error is half the other's; (0.1 / 0.2 + 0.4 / 0.4) / 2 is 75 %."""
    assert eval_robust.relative_to(figures(0.4, 0.2), figures(0.2, 0.1)) == {
        "teacher_normalized_mce": pytest.approx(50), "teacher_normalized_mfr": pytest.approx(75)}


def test_relative_figures_are_none_beside_a_teacher_of_images_too_small_to_corrupt():
    assert set(eval_robust.relative_to(None, figures(0.2, 0.2)).values()) == {None}


def test_relative_figures_are_none_where_the_baseline_never_errs_or_flips():
    assert eval_robust.relative_to(figures(0.0, 0.2), figures(0.2, 0.2)) == {
        "teacher_normalized_mce": None, "teacher_normalized_mfr": pytest.approx(100)}
    assert eval_robust.relative_to(figures(0.2, 0.0), figures(0.2, 0.2)) == {
        "teacher_normalized_mce": pytest.approx(100), "teacher_normalized_mfr": None}


# ---- Robustness that is measured once and kept ----


@pytest.fixture
def measure(tmp_path, monkeypatch):
    """eval_robust.robustness with a counter in the place of the suite's work."""
    calls = []

    def quick_suite(*arguments, **options):
        calls.append(arguments)
        return {"images": 20, "clean_top1": float(len(calls))}

    monkeypatch.setattr(eval_robust, "quick_suite", quick_suite)
    network = efficientnet("0.2x0.2", 10).eval()
    images = datasets.demo(0, 1, 20, 1, 2).test

    def measure(network=network, images=images, size=32):
        path = tmp_path / "teacher-robustness.json"
        return eval_robust.robustness(network, images, size, path, devices.CPU, "teacher")

    measure.network, measure.images = network, images
    return measure


def test_large_images_are_attacked_a_few_at_a_time_and_small_ones_many(monkeypatch):
    """All maps are kept for the gradient: of 250 images of B7 at 600 pixels, 700 GB."""
    sizes = {size: reading.size_to_attack(size) for size in (32, 64, 224, 600, 800, 5000)}
    assert sizes == {32: 250, 64: 250, 224: 20, 600: 2, 800: 1, 5000: 1}
    seen, pixels = [], torch.randint(256, (70, 3, 128, 128), dtype=torch.uint8)

    def network(images):
        seen.append(len(images))
        return images.flatten(1)[:, :10].float()

    monkeypatch.setattr(eval_robust.corruptions, "corrupt", lambda images, *_: images)
    monkeypatch.setattr(eval_robust.corruptions, "perturb", lambda images, *_: [images] * 2)
    eval_robust.quick_suite(network, pixels, torch.zeros(70, dtype=torch.int64))
    assert max(seen) == 250 // 4


def test_robustness_is_kept_and_not_measured_again(measure, tmp_path):
    assert measure() == {"images": 20, "clean_top1": 1.0}
    assert [path.name for path in tmp_path.iterdir()] == ["teacher-robustness.json"]
    assert measure() == {"images": 20, "clean_top1": 1.0}


def test_robustness_of_other_weights_or_images_is_measured_again(measure):
    measure()
    other = copy.deepcopy(measure.network)
    with torch.no_grad():
        other.classifier.bias[0] += 1
    assert measure(network=other) == {"images": 20, "clean_top1": 2.0}
    images = datasets.demo(1, 1, 20, 1, 2).test
    assert measure(network=other, images=images) == {"images": 20, "clean_top1": 3.0}


def test_robustness_is_measured_where_another_program_wrote_its_file(measure, tmp_path):
    for number, content in enumerate(("[]", "not JSON", '{"of": {}, "results": {}}'), 1):
        (tmp_path / "teacher-robustness.json").write_text(content)
        assert measure() == measure() == {"images": 20, "clean_top1": float(number)}


def test_robustness_is_none_for_images_below_32_pixels_and_for_four_of_them(measure):
    labels, classes = measure.images.labels, measure.images.classes
    smaller = torch.zeros(20, 3, 31, 31, dtype=torch.uint8)
    assert measure(images=ImageSet(labels, classes, smaller), size=31) is None
    assert measure(images=measure.images.subset(torch.arange(4))) is None


def test_robustness_of_large_files_is_that_of_some_of_them_at_the_networks_size(
        tmp_path, monkeypatch):
    for number in range(210):
        place = tmp_path / "test" / str(number % 2) / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(place)
    seen = []
    monkeypatch.setattr(eval_robust, "quick_suite", lambda model, images, labels, **options: seen
                        .extend([images, labels]) or {"images": len(images)})
    files = folders.list_classes(tmp_path / "test")
    result = eval_robust.robustness(efficientnet("0.2x0.2", 2), files, 400, tmp_path / "r.json",
                                    devices.CPU, "teacher")
    images, labels = seen
    numbers = images[:, 0, 200, 200]
    assert result == {"images": 200} and images.shape == (200, 3, 400, 400)
    assert len(numbers.unique()) == 200 and torch.equal(numbers % 2, labels)


@pytest.mark.parametrize("size", [33, 64])
def test_the_quick_suite_takes_images_of_other_sizes(size):
    torch.manual_seed(0)
    images = torch.randint(256, (10, 3, size, size), dtype=torch.uint8)
    results = eval_robust.quick_suite(
        Glance().eval(), images, torch.zeros(10, dtype=torch.long), fgsm_epsilons=(1,),
        pgd_epsilons=())
    assert f"{size}x{size} images: not comparable" in results["note"]
    assert set(results["corruption_error"]) == set(ALEXNET_ERROR)


def test_random_starts_are_uniform_in_the_ball():
    """A network that sees nothing leaves PGD where it begins."""
    images = torch.full((20, 3, 16, 16), 128, dtype=torch.uint8)
    generator = torch.Generator().manual_seed(0)
    blind = lambda pixels: 0 * pixels.flatten(1)[:, :2]  # noqa: E731
    begun = eval_robust.pgd(blind, images, torch.zeros(20, dtype=torch.long), epsilon=16, steps=1,
                            random_start=True, generator=generator) - 128
    quarters = torch.histc(begun, 4, -16, 16) / begun.numel()
    assert begun.abs().max() <= 16 and (quarters - 0.25).abs().max() < 0.02


def test_the_command_attacks_as_its_flags_say(monkeypatch):
    seen = []
    monkeypatch.setattr(eval_robust, "pgd", lambda model, images, labels, *how: (
        seen.append(how[:4]) or images))
    source = SimpleNamespace(
        suite="pgd", classes="abc", allowed=lambda: None, frames=lambda name: 1,
        read=lambda name: [(torch.zeros(3, 3, 2, 2), torch.arange(3))])
    for flags in ({}, {"steps": 3, "step_size": 0.7, "random_start": True}):
        eval_robust.measure(lambda images: torch.zeros(len(images), 3), source,
                            eval_robust.Flags("a.pt", **flags), "4")
    assert seen == [(4.0, 10, None, False), (4.0, 3, 0.7, True)]


def test_the_quick_suite_draws_its_images_from_all_of_a_sorted_set(monkeypatch):
    seen = []
    monkeypatch.setattr(eval_robust.corruptions, "corrupt", lambda images, *_: images)

    def model(pixels):
        seen.append(pixels[:, 0, 0, 0].tolist())
        return pixels.float().mean((2, 3))

    images = torch.arange(200, dtype=torch.uint8).view(-1, 1, 1, 1).repeat(1, 3, 32, 32)
    found = eval_robust.quick_suite(model, images, torch.zeros(200).long(), limit=100,
                                    fgsm_epsilons=())
    assert len(set(seen[0])) == 100
    assert 70 < np.mean(seen[0]) < 130 and 60 < np.mean(seen[0][:50]) < 140
    assert (found["attacked"], found["sequences"], [*found["pgd_top1"]]) == (50, 10, ["1", "4"])
    assert inspect.signature(eval_robust.quick_suite).parameters["limit"].default == 2000
