"""Input noise: every operation against PIL, the draws, the crops, and XLA against the CPU."""

import importlib.util
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps
from torchvision import transforms

import augment
from augment import EMPTY, OPERATIONS, STRENGTHS, RandAugment, apply_operation, level_to_value
from results.draw_operations import example_image
from support.batches import Chance

IDENTITY = {
    "Rotate": 0, "Posterize": 8, "Solarize": 256, "SolarizeAdd": 0, "Color": 1, "Contrast": 1,
    "Brightness": 1, "Sharpness": 1, "ShearX": 0, "ShearY": 0, "TranslateX": 0, "TranslateY": 0,
    "Cutout": 0,
}  # fmt: skip


def to_pil(image: torch.Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())


def from_pil(image: Image.Image) -> torch.Tensor:
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return pixels.view(image.height, image.width, 3).permute(2, 0, 1)


def noise(count: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (count, 3, height, width)
    return torch.randint(256, shape, dtype=torch.uint8, generator=generator)


def test_images() -> dict[str, torch.Tensor]:
    """Batches of random and of awkward images."""
    generator = torch.Generator().manual_seed(1)
    y, x = torch.meshgrid(torch.arange(33), torch.arange(47), indexing="ij")
    smooth = torch.stack([3 * y + x, 2 * x + 60, 200 - y - x]).to(torch.uint8)
    narrow = torch.randint(256, (40, 3, 1, 1), generator=generator) // 2
    width = torch.randint(1, 128, (40, 3, 1, 1), generator=generator)
    spread = torch.rand(40, 3, 9, 11, generator=generator)
    one_pixel = torch.full((1, 3, 20, 20), 7, dtype=torch.uint8)
    one_pixel[:, :, 3, 4] = 250
    return {
        "random": noise(3, 32, 32),
        "large, not square": noise(2, 70, 101),
        "of ImageNet's size": from_pil(example_image()).unsqueeze(0),
        "smooth": torch.stack([smooth, smooth.flip(2)]),
        "narrow ranges": (narrow + spread * (width + 1)).to(torch.uint8),
        "constant": torch.tensor([0, 77, 128, 255], dtype=torch.uint8).view(4, 1, 1, 1).expand(
            4, 3, 16, 16
        ),
        "two values": torch.where(noise(2, 24, 24) > 100, 200, 31).to(torch.uint8),
        "black and white": torch.where(noise(2, 24, 24) > 50, 255, 0).to(torch.uint8),
        "all but one pixel equal": one_pixel,
        "full range": torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16),
        "tiny": noise(2, 1, 2),
    }  # fmt: skip


test_images.__test__ = False
IMAGES = test_images()


def affine(image: Image.Image, *matrix: float) -> Image.Image:
    gray = (EMPTY,) * 3
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST, fillcolor=gray
    )


def cut_out(image: Image.Image, half: int, row: int, column: int) -> Image.Image:
    image = image.copy()
    box = (max(column - half, 0), max(row - half, 0), column + half, row + half)
    image.paste((EMPTY,) * 3, box)
    return image


PIL_OPERATIONS = {
    "AutoContrast": lambda image, _: ImageOps.autocontrast(image),
    "Equalize": lambda image, _: ImageOps.equalize(image),
    "Invert": lambda image, _: ImageOps.invert(image),
    "Rotate": lambda image, degrees: image.rotate(degrees, fillcolor=(EMPTY,) * 3),
    "Posterize": lambda image, bits: ImageOps.posterize(image, int(bits)),
    "Solarize": lambda image, threshold: ImageOps.solarize(image, threshold),
    "SolarizeAdd": lambda image, add: image.point(
        [min(i + int(add), 255) if i < 128 else i for i in range(256)] * 3
    ),
    "Color": lambda image, factor: ImageEnhance.Color(image).enhance(factor),
    "Contrast": lambda image, factor: ImageEnhance.Contrast(image).enhance(factor),
    "Brightness": lambda image, factor: ImageEnhance.Brightness(image).enhance(factor),
    "Sharpness": lambda image, factor: ImageEnhance.Sharpness(image).enhance(factor),
    "ShearX": lambda image, shear: affine(image, 1, shear, 0, 0, 1, 0),
    "ShearY": lambda image, shear: affine(image, 1, 0, 0, shear, 1, 0),
    "TranslateX": lambda image, pixels: affine(image, 1, 0, pixels, 0, 1, 0),
    "TranslateY": lambda image, pixels: affine(image, 1, 0, 0, 0, 1, pixels),
    "Cutout": lambda image, half: cut_out(image, int(half), image.height // 2, image.width // 2),
}

# ---- Equal to PIL ----


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("kind", IMAGES)
def test_every_operation_equals_pil(name, kind):
    """Bit for bit, at all magnitudes in use and both signs."""
    images = IMAGES[kind]
    for magnitude in (0, 1, 2, 5, 7, 9, 10, 15, 18, 24, 27, 30):
        value = level_to_value(name, magnitude, min(images.shape[2:]))
        for signed in {value, -value} if STRENGTHS[name].signed else {value}:
            expected = [from_pil(PIL_OPERATIONS[name](to_pil(image), signed)) for image in images]
            actual = apply_operation(images, name, torch.full((len(images),), signed).double())
            assert torch.equal(actual, torch.stack(expected)), (magnitude, signed)


@pytest.mark.parametrize("name", ["Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY"])
@pytest.mark.parametrize("shape", [(37, 52), (61, 17), (17, 61)])
def test_warps_equal_pil_at_any_value(name, shape):
    images = noise(2, *shape)
    for value in torch.linspace(-95, 95, 60).tolist():
        value = value / 90 if name.startswith("Shear") else value
        expected = [from_pil(PIL_OPERATIONS[name](to_pil(image), value)) for image in images]
        actual = apply_operation(images, name, torch.tensor([value, value]).double())
        assert torch.equal(actual, torch.stack(expected)), value


def test_directions():
    """Positive rotations are counter-clockwise; positive translations move left and up."""
    images = torch.zeros(1, 3, 9, 9, dtype=torch.uint8)
    images[:, :, 4, 7] = 255  # right of the centre
    turned = apply_operation(images, "Rotate", torch.tensor([90.0]))
    assert turned[0, 0, 1, 4] == 255 and (turned == 255).sum() == 3
    moved = apply_operation(images, "TranslateX", torch.tensor([2.0]))
    assert moved[0, 0, 4, 5] == 255 and (moved[..., 7:] == EMPTY).all()
    moved = apply_operation(images, "TranslateY", torch.tensor([-3.0]))
    assert moved[0, 0, 7, 7] == 255 and (moved[:, :, :3] == EMPTY).all()


def test_cutout_is_cut_off_at_the_border():
    images = noise(3, 20, 30)
    centres = [(0, 0), (19, 29), (7, 12)]
    actual = apply_operation(
        images, "Cutout", torch.full((3,), 5.0), torch.tensor(centres, dtype=torch.float64)
    )
    for image, result, centre in zip(images, actual, centres, strict=True):
        assert torch.equal(result, from_pil(cut_out(to_pil(image), 5, *centre)))


# ---- Properties ----


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(OPERATIONS),
    magnitude=st.floats(0, 40),
    count=st.integers(1, 4),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    seed=st.integers(0, 1000),
)
def test_shape_dtype_and_independence_of_neighbours(name, magnitude, count, height, width, seed):
    images = noise(count, height, width, seed)
    before = images.clone()
    values = torch.full((count,), level_to_value(name, magnitude, min(height, width)))
    values *= torch.linspace(0.3, 1, count)  # every image its own
    if name in ("Posterize", "Solarize", "SolarizeAdd", "Cutout"):
        values = values.floor()
    together = apply_operation(images, name, values)
    assert together.shape == images.shape and together.dtype == torch.uint8
    assert torch.equal(images, before), "the input was changed"
    alone = [apply_operation(images[i : i + 1], name, values[i : i + 1]) for i in range(count)]
    assert torch.equal(together, torch.cat(alone))


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_empty_batch_stays_empty(name):
    images = noise(0, 20, 30)
    assert apply_operation(images, name, torch.zeros(0)).shape == (0, 3, 20, 30)


@pytest.mark.parametrize("name", IDENTITY)
def test_identity(name):
    for images in IMAGES.values():
        values = torch.full((len(images),), float(IDENTITY[name]))
        assert torch.equal(apply_operation(images, name, values), images)


@pytest.mark.parametrize(
    "name", [name for name in IDENTITY if name not in ("Posterize", "Solarize")]
)
def test_a_larger_magnitude_changes_more(name):
    image = from_pil(example_image(64)).unsqueeze(0)

    def distance(magnitude: float) -> float:
        value = torch.tensor([level_to_value(name, magnitude, 64)]).double()
        return (apply_operation(image, name, value).float() - image).abs().mean().item()

    # Factors are the identity at magnitude 5; a rotation, once it is large, turns colours back.
    first, last = (5, 30) if STRENGTHS[name].start else (0, 12 if name == "Rotate" else 30)
    distances = [distance(first + (last - first) * i / 6) for i in range(7)]
    assert distances[0] == 0 and distances[-1] > 2
    assert all(a <= b + 1e-6 for a, b in zip(distances, distances[1:], strict=False)), distances


# ---- Strengths ----


def test_names_are_autoaugments():
    assert OPERATIONS == (
        "AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize", "SolarizeAdd",
        "Color", "Contrast", "Brightness", "Sharpness", "ShearX", "ShearY", "TranslateX",
        "TranslateY", "Cutout",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "at_10", "at_27"),
    [
        ("AutoContrast", 0, 0), ("Equalize", 0, 0), ("Invert", 0, 0), ("Rotate", 30, 81),
        ("Posterize", 4, 1), ("Solarize", 0, 179), ("SolarizeAdd", 110, 297),
        ("Color", 1.9, 4.96), ("Contrast", 1.9, 4.96), ("Brightness", 1.9, 4.96),
        ("Sharpness", 1.9, 4.96), ("ShearX", 0.3, 0.81), ("ShearY", 0.3, 0.81),
        ("TranslateX", 100, 270), ("TranslateY", 100, 270), ("Cutout", 40, 108),
    ],
)  # fmt: skip
def test_magnitude_27_is_2_7_times_autoaugments_maximum(name, at_10, at_27):
    """Twenty-seven tenths, not 27/30; the bytes of posterize and solarize overflow."""
    assert level_to_value(name, 10, 224) == pytest.approx(at_10)
    assert level_to_value(name, 27, 224) == pytest.approx(at_27)


def test_images_up_to_128_pixels_move_by_an_eighth():
    for size, moved, half in ((32, 10.8, 10), (96, 32.4, 32), (128, 43.2, 43), (129, 270, 108)):
        for name in ("TranslateX", "TranslateY"):
            assert level_to_value(name, 27, size) == pytest.approx(moved)
        assert level_to_value("Cutout", 27, size) == half


def test_posterize_and_solarize_are_not_reversed():
    """A larger magnitude keeps more bits, and inverts fewer levels."""
    assert [level_to_value("Posterize", m, 224) for m in (3, 5, 10, 15, 20)] == [1, 2, 4, 6, 8]
    assert [level_to_value("Solarize", m, 224) for m in (0, 5, 9)] == [0, 128, 230]
    levels = IMAGES["full range"]
    assert apply_operation(levels, "Posterize", torch.tensor([2.0])).unique().numel() == 4
    solarized = apply_operation(levels, "Solarize", torch.tensor([200.0])).flatten(2)[0, 0]
    assert solarized[:200].tolist() == list(range(200)) and solarized[200] == 55


def test_posterize_and_solarize_overflow_a_byte_as_in_the_released_code():
    """Seen when it was run: thresholds of Solarize, levels that Posterize leaves."""
    thresholds = {10: 0, 12: 51, 15: 128, 18: 204, 20: 0, 24: 102, 27: 179, 30: 0}
    assert {m: level_to_value("Solarize", m, 224) for m in thresholds} == thresholds
    levels = IMAGES["full range"]
    for magnitude, count in ((0, 2), (10, 16), (20, 256), (24, 2), (27, 2), (30, 2)):
        bits = torch.tensor([level_to_value("Posterize", magnitude, 224)])
        assert apply_operation(levels, "Posterize", bits).unique().numel() == count
    assert level_to_value("Posterize", 27, 224) == 1


@pytest.mark.parametrize("size", [32, 224])
def test_torchvisions_strengths_are_magnitudes_here(size):
    """Bins 0 to 30 of torchvision's RandAugment, signs included; it lacks the other three."""
    space = transforms.RandAugment()._augmentation_space(31, (size, size))
    shared = set(OPERATIONS) & set(space)
    assert set(OPERATIONS) - shared == {"Invert", "SolarizeAdd", "Cutout"}
    pixels = 100 if size > 128 else size // 8
    for name in shared:
        magnitudes, signed = space[name]
        factor = name in ("Color", "Contrast", "Brightness", "Sharpness")
        assert STRENGTHS[name].signed == (signed and not factor), name
        for number in range(31) if magnitudes.ndim else ():
            theirs = factor + magnitudes[number].item()
            if name == "Solarize" and theirs > 255:  # nothing inverted there, everything here
                continue
            magnitude = {
                "Rotate": number / 3, "ShearX": number / 3, "ShearY": number / 3,
                "TranslateX": number / 3 * (size * 150 / 331 / pixels),
                "TranslateY": number / 3 * (size * 150 / 331 / pixels),
                "Posterize": theirs * 2.5, "Solarize": theirs / 25.6,
            }.get(name, 5 + number / 6)  # fmt: skip
            ours = level_to_value(name, magnitude, size)
            tolerance = 1 if name == "Solarize" else 1e-4  # thresholds here are whole
            assert ours == pytest.approx(theirs, abs=tolerance), (name, number)


def test_magnitudes_outside_of_the_scale_are_errors():
    with pytest.raises(ValueError, match="is not on the scale"):
        level_to_value("Posterize", -1, 224)


def test_unknown_names():
    with pytest.raises(KeyError):
        level_to_value("Blur", 10, 224)
    with pytest.raises(ValueError, match="unknown operation 'Blur'"):
        apply_operation(noise(1, 8, 8), "Blur", torch.zeros(1))


# ---- Draws ----


def test_operations_are_uniform_and_signs_balanced():
    count = 20_000
    chance = Chance(torch.Generator().manual_seed(0), slice(None), count)
    draws = RandAugment(2, 27).draw(chance, 32, 48)
    assert draws.shape == (count, 2, 4) and draws.device.type == "cpu"
    for step in draws.unbind(1):
        observed = step[:, 0].long().bincount(minlength=16).double()
        expected = count / 16
        chi_square = ((observed - expected) ** 2 / expected).sum().item()
        assert observed.min() > 0 and chi_square < 37.7  # 99.9 % at 15 degrees of freedom
    pairs = (draws[:, 0, 0] * 16 + draws[:, 1, 0]).long().bincount(minlength=256).double()
    assert ((pairs - count / 256) ** 2 / (count / 256)).sum() < 330.5  # 99.9 % at 255
    for index, name in enumerate(OPERATIONS):
        values = draws[..., 1][draws[..., 0] == index]
        size = level_to_value(name, 27, 32)
        assert torch.allclose(values.abs(), torch.tensor(size).double())
        positive = (values > 0).double().mean().item()
        if STRENGTHS[name].signed:
            assert abs(positive - 0.5) < 4 * math.sqrt(0.25 / len(values))
        else:
            assert positive == (size > 0)
    rows, columns = draws[..., 2].flatten(), draws[..., 3].flatten()
    assert rows.unique().tolist() == list(range(32))
    assert columns.unique().tolist() == list(range(48))


@pytest.mark.parametrize("num_ops", [0, 1, 2, 3])
def test_operations_follow_one_another(num_ops):
    images, rand_augment = noise(40, 24, 24), RandAugment(num_ops, 12)
    draws = rand_augment.draw(Chance.of(images, torch.Generator().manual_seed(3)), 24, 24)
    expected = []
    for image, steps in zip(images.split(1), draws, strict=True):
        for operation, value, *centre in steps.tolist():
            centres = torch.tensor([centre])
            image = apply_operation(
                image, OPERATIONS[int(operation)], torch.tensor([value]).double(), centres
            )
        expected.append(image)
    assert torch.equal(augment.apply(images, draws), torch.cat(expected))


def test_equal_seeds_equal_batches():
    images, rand_augment = noise(32, 16, 16), RandAugment()
    seeded = [rand_augment(images, torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(seeded[0], seeded[1]) and not torch.equal(seeded[0], seeded[2])
    torch.manual_seed(5)
    unseeded = [rand_augment(images), rand_augment(images)]
    assert not torch.equal(*unseeded)


@pytest.mark.parametrize("num_ops", [0, 2])
def test_rand_augment_changes_no_input_and_takes_empty_batches(num_ops):
    images, rand_augment = noise(8, 24, 24), RandAugment(num_ops)
    before = images.clone()
    assert torch.equal(rand_augment(images), before) == (num_ops == 0)
    assert torch.equal(images, before)
    assert rand_augment(images[:0]).shape == (0, 3, 24, 24)


# ---- Pipelines ----


def numbered(count: int, size: int) -> torch.Tensor:
    """Images whose first two channels hold the row and the column of every pixel."""
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return torch.stack([y, x, y * 0]).to(torch.uint8).expand(count, -1, -1, -1)


NO_OPERATION = RandAugment(num_ops=0)


class NoChange(RandAugment):
    """One operation, a rotation by no angle."""

    def draw(self, chance: Chance, height: int, width: int) -> torch.Tensor:
        count = len(chance.randint(1))
        return torch.tensor([OPERATIONS.index("Rotate"), 0.0, 0, 0]).expand(count, 1, 4)


def seeded(images: torch.Tensor, seed: int = 0) -> Chance:
    return Chance.of(images, torch.Generator().manual_seed(seed))


def test_augment_cifar_crops_flips_and_cuts_out():
    count, size = 600, 32
    images = numbered(count, size)
    images = augment.augment_cifar(images, NoChange(), seeded(images))
    assert images.shape == (count, 3, size, size) and images.dtype == torch.uint8
    gray = images[:, 2] == EMPTY
    covered = gray.flatten(1).sum(1)  # 16x16, reflected by up to 4 pixels more
    assert covered.min() > 0 and 230 < covered.max() <= 20 * 20
    offsets, flips = set(), 0
    padded_range = torch.arange(-4, 36).abs()
    padded_range = 31 - (31 - padded_range).abs()
    for image, square in zip(images, gray, strict=True):
        free = (~square.all(0)).nonzero().flatten(), (~square.all(1)).nonzero().flatten()
        columns = torch.stack([image[1, (~square[:, c]).nonzero()[0, 0], c] for c in free[0]])
        rows = torch.stack([image[0, r, (~square[r]).nonzero()[0, 0]] for r in free[1]])
        matches = [
            (top, left, mirrored)
            for top in range(9)
            if torch.equal(rows.long(), padded_range[top : top + 32][free[1]])
            for left in range(9)
            for mirrored in (False, True)
            if torch.equal(
                columns.long(),
                (padded_range.flip(0) if mirrored else padded_range)[left : left + 32][free[0]],
            )
        ]
        assert len(matches) == 1
        offsets.add(matches[0][:2])
        flips += matches[0][2]
    assert len(offsets) == 81 and 230 < flips < 370


def test_augment_cifar_without_flip_and_scaled():
    images = numbered(200, 64)
    result = augment.augment_cifar(images, NoChange(), seeded(images), flip=False)
    gray = result[:, 2] == EMPTY
    assert gray.flatten(1).sum(1).max() > 30 * 30  # 32x32 at side 64
    increasing = (result[:, 1, :, 20:].float().diff(dim=2) > 0) | gray[..., 20:-1] | gray[..., 21:]
    assert increasing[..., :32].all()


def test_augment_cifar_has_no_cutout_without_rand_augment():
    """In the authors' code the square belongs to RandAugment: a plain teacher has none."""
    images = numbered(200, 32)
    assert not (augment.augment_cifar(images, NO_OPERATION, seeded(images))[:, 2] == EMPTY).any()


def test_augment_imagenet_flips_before_rand_augment():
    images = noise(64, 24, 24)
    result = augment.augment_imagenet(images, NO_OPERATION, seeded(images))
    flipped = (result == images.flip(3)).flatten(1).all(1)
    kept = (result == images).flatten(1).all(1)
    assert (flipped ^ kept).all() and 16 < flipped.sum() < 48
    rand_augment = RandAugment(2, 9)
    result = augment.augment_imagenet(images, rand_augment, seeded(images))
    generator = torch.Generator().manual_seed(0)
    flipped = augment.augment_imagenet(images, NO_OPERATION, Chance.of(images, generator))
    assert torch.equal(result, rand_augment(flipped, generator))
    unflipped = augment.augment_imagenet(images, NO_OPERATION, seeded(images), flip=False)
    assert torch.equal(unflipped, images)


PIPELINES = [augment.augment_cifar, augment.augment_imagenet]


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_pipelines_change_no_input_and_take_empty_batches(pipeline):
    images = noise(8, 32, 32)
    before = images.clone()
    pipeline(images, RandAugment(), Chance.of(images))
    assert torch.equal(images, before)
    for rand_augment in (NO_OPERATION, RandAugment()):
        assert pipeline(images[:0], rand_augment, Chance.of(images[:0])).shape == (0, 3, 32, 32)


def test_normalize():
    images = noise(2, 5, 6)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = (images.double() / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    actual = augment.normalize(images)
    assert actual.dtype == torch.float32
    assert torch.allclose(actual.double(), expected, atol=1e-5)
    pixels = images.float().requires_grad_()
    augment.normalize(pixels).sum().backward()
    assert torch.allclose(pixels.grad[:, 0], torch.full((2, 5, 6), 1 / (255 * 0.229)))


# ---- Crops ----


def test_random_resized_crop():
    """Areas are uniform in 8-100 %, ratios between 3/4 and 4/3, and the places reach everywhere."""

    class Spy:
        size = (300, 200)

        def resize(self, size, resample, box):
            assert size == (64, 64) and resample == Image.Resampling.BICUBIC
            return box

    generator = torch.Generator().manual_seed(0)
    boxes = [augment.random_resized_crop(Spy(), 64, generator) for _ in range(2000)]
    left, top, right, bottom = torch.tensor(boxes, dtype=torch.float64).T
    assert left.min() >= 0 and top.min() >= 0 and right.max() <= 300 and bottom.max() <= 200
    assert left.min() < 3 and top.min() < 3 and right.max() > 297 and bottom.max() > 197
    ratio, area = (right - left) / (bottom - top), (right - left) * (bottom - top) / 60_000
    assert 0.73 < ratio.min() < 0.78 and 1.29 < ratio.max() < 1.36
    assert abs(ratio.log().mean()) < 0.05  # uniform in the logarithm
    assert 0.07 < area.min() < 0.09 and area.max() > 0.85
    torch.manual_seed(0)
    theirs = [height * width / 60_000 for _, _, height, width in (
        transforms.RandomResizedCrop.get_params(torch.zeros(3, 200, 300), (0.08, 1), (3 / 4, 4 / 3))
        for _ in range(2000))]
    assert abs(area.mean().item() - sum(theirs) / 2000) < 0.03


def test_random_resized_crop_of_real_images():
    image = to_pil(noise(1, 50, 70)[0])
    crops = [
        augment.random_resized_crop(image, 32, torch.Generator().manual_seed(s)) for s in (1, 1, 2)
    ]
    assert crops[0].size == (32, 32) and crops[0].mode == "RGB"
    assert crops[0].tobytes() == crops[1].tobytes() != crops[2].tobytes()
    assert augment.random_resized_crop(to_pil(noise(1, 2, 900)[0]), 32).size == (32, 32)


# ---- XLA ----


XLA = """
import torch, torch_xla
import torch_xla.debug.metrics as metrics
import augment, train
from augment import OPERATIONS, RandAugment, apply_operation
from support.batches import Batch, Chance

torch.set_num_threads(1)
device = torch_xla.device()
generator = torch.Generator().manual_seed(0)
images = torch.randint(256, (64, 3, 32, 32), dtype=torch.uint8, generator=generator)
darkest = torch.randint(128, (512, 3, 1, 1), generator=generator)
span = torch.randint(1, 128, (512, 3, 1, 1), generator=generator)
narrow = (darkest + span * torch.rand(512, 3, 8, 8, generator=generator)).to(torch.uint8)

def compilations():
    data = metrics.metric_data("CompileTime")
    return data[0] if data else 0

# Exact integers before rounding are where a fused multiply-add would show.
for magnitude in (0, 10, 27):
    for name in OPERATIONS:
        values = torch.full((64,), augment.level_to_value(name, magnitude, 32))
        on_xla = apply_operation(images.to(device), name, values).cpu()
        assert torch.equal(on_xla, apply_operation(images, name, values)), (name, magnitude)

on_xla = apply_operation(narrow.to(device), "AutoContrast", torch.zeros(512)).cpu()
assert torch.equal(on_xla, apply_operation(narrow, "AutoContrast", torch.zeros(512)))

rand_augment, seen = RandAugment(2, 12), []
for seed in range(6):
    results = []
    for batch in (images, images.to(device)):
        torch_xla.sync()
        before = compilations()
        generator = torch.Generator().manual_seed(seed)
        batch = augment.augment_cifar(batch, rand_augment, Chance.of(batch, generator))
        torch_xla.sync()
        results.append(batch.cpu())
    seen.append(compilations() - before)
    assert torch.equal(*results), seed
print("compilations", seen)
assert seen[0] >= 1 and not any(seen[1:]), seen
assert seen[0] == 1, seen

results = []
for batch in (images, images.to(device)):
    chance = Chance.of(batch, torch.Generator().manual_seed(1))
    results.append(augment.augment_imagenet(batch, rand_augment, chance).cpu())
assert torch.equal(*results)
fallbacks = [name for name in metrics.counter_names() if name.startswith("aten::")]
assert not fallbacks, fallbacks

config = train.TrainConfig(image_size=32, augment_labeled=False)  # as in the resolution fix
batch = Batch(images.to(device), torch.zeros(64, dtype=torch.int64), None, torch.arange(64), 64)
assert torch.equal(train.noise(batch, config, 0).cpu(), images)
"""


@pytest.mark.skipif(not importlib.util.find_spec("torch_xla"), reason="torch_xla is missing")
def test_xla_compiles_once_and_equals_the_cpu():
    """Bit for bit, one compilation for six draws, and no operation falls back to the CPU."""
    environment = os.environ | {"PJRT_DEVICE": "CPU", "OMP_NUM_THREADS": "1"}
    environment.pop("CPU_NUM_DEVICES", None)
    root = Path(augment.__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", XLA], cwd=root, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


# ---- The picture ----


def test_picture(tmp_path):
    own = tmp_path / "own.png"
    to_pil(noise(1, 40, 60)[0]).convert("LA").save(own)
    script = Path(augment.__file__).parent / "results" / "draw_operations.py"
    pictures = []
    for number, options in enumerate(([], ["--image", str(own)])):
        out = tmp_path / f"{number}.png"
        command = [sys.executable, script, "--out", str(out), *options]
        subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        pictures.append(Image.open(out))
        assert pictures[-1].width > 1200 and pictures[-1].height > 600
    assert pictures[0].tobytes() != pictures[1].tobytes()


def test_cutout_of_small_images_comes_after_rand_augment():
    """Inverted, its grey of 128 would be 127."""
    class Inverts(RandAugment):
        def draw(self, chance, height, width):
            drawn = super().draw(chance, height, width)
            drawn[..., 0] = OPERATIONS.index("Invert")
            return drawn

    images = torch.full((8, 3, 32, 32), 10, dtype=torch.uint8)
    noised = augment.augment_cifar(images, Inverts(1, 5), Chance.of(images, None))
    assert noised.unique().tolist() == [EMPTY, 245]
