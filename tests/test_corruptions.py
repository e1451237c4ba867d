"""The corruptions and perturbations: at the stated strength, reproducible, and equal to Pillow."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from support import corruptions
from support.archives import ALEXNET_ERROR
from support.corruptions import AT_224, PERTURBATIONS, SEVERITIES


@pytest.fixture(scope="module")
def pictures():
    """30 smooth images with a bright square each, (30, 3, 32, 32) uint8."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(30, 3, 5, 5, generator=generator) * 160 + 40
    images = nn.functional.interpolate(coarse, size=32, mode="bilinear")
    images[:, :, 10:18, 8:20] = 230
    return images.to(torch.uint8)


def distortion(images, name, severity):
    corrupted = corruptions.corrupt(images, name, severity, torch.Generator().manual_seed(0))
    assert corrupted.shape == images.shape and corrupted.dtype == torch.uint8
    return (corrupted.float() - images.float()).abs().mean().item()


def test_fifteen_corruptions_in_the_benchmarks_order_each_with_five_severities():
    assert list(SEVERITIES) == list(ALEXNET_ERROR)
    assert all(len(values) == 5 for values in SEVERITIES.values())


@pytest.mark.parametrize("name", SEVERITIES)
def test_severities_are_cifars_at_32_pixels_imagenets_from_224_on_and_between_them_in_between(name):
    for severity in range(1, 6):
        small, large = (np.array(table[name][severity - 1], float)
                        for table in (SEVERITIES, AT_224))
        for size, expected in ((32, small), (224, large), (600, large), (20, small)):
            assert corruptions.numbers_of(name, severity, size) == pytest.approx(expected)
        middle = corruptions.numbers_of(name, severity, (32 * 224) ** 0.5)  # geometrically
        assert middle == pytest.approx((small + large) / 2)


@pytest.mark.parametrize("name", ["fog", "frost"])
def test_clouds_and_frost_are_larger_than_pixels(name):
    grey = torch.full((8, 3, 32, 32), 128, dtype=torch.uint8)
    levels = corruptions.corrupt(grey, name, 3, torch.Generator().manual_seed(0)).float()
    pairs = torch.stack([levels[..., 1:].flatten(), levels[..., :-1].flatten()])
    assert torch.corrcoef(pairs)[0, 1] > 0.6


@pytest.mark.parametrize("name", SEVERITIES)
def test_large_images_are_corrupted_at_imagenet_cs_strength(name):
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(2, 3, 9, 9, generator=generator) * 160 + 40
    images = nn.functional.interpolate(coarse, size=224, mode="bilinear").to(torch.uint8)
    images[:, :, ::16] = 230
    assert 0.3 < distortion(images, name, 3) < 110


@pytest.mark.parametrize("name", SEVERITIES)
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
                                  "pixelate"])
def test_the_last_severity_distorts_more_than_the_first(pictures, name):
    assert distortion(pictures, name, 5) > distortion(pictures, name, 1)


def test_noise_has_the_stated_strength():
    gray = torch.full((50, 3, 32, 32), 128, dtype=torch.uint8)
    generator = torch.Generator().manual_seed(0)
    gaussian = corruptions.corrupt(gray, "gaussian_noise", 5, generator).float() / 255
    assert gaussian.std().item() == pytest.approx(0.10, rel=0.02)
    shot = corruptions.corrupt(gray, "shot_noise", 5, generator).float() / 255
    assert shot.std().item() == pytest.approx((128 / 255 / 50) ** 0.5, rel=0.02)
    impulse = corruptions.corrupt(gray, "impulse_noise", 5, generator)
    assert (impulse == 0).float().mean().item() == pytest.approx(0.035, rel=0.1)
    assert (impulse == 255).float().mean().item() == pytest.approx(0.035, rel=0.1)


def test_noise_of_large_images_has_imagenet_cs_strength():
    gray, generator = torch.full((1, 3, 224, 224), 128, dtype=torch.uint8), torch.Generator()
    noised = corruptions.corrupt(gray, "gaussian_noise", 3, generator.manual_seed(0)).float() / 255
    assert noised.std().item() == pytest.approx(0.18, rel=0.02)  # CIFAR-10-C's is 0.08
    impulse = corruptions.corrupt(gray, "impulse_noise", 3, generator.manual_seed(0))
    assert (impulse != 128).float().mean().item() == pytest.approx(0.09, rel=0.05)  # 0.03


@pytest.mark.parametrize("size", [32, 64, 128, 224])
@pytest.mark.parametrize("name", ["defocus_blur", "glass_blur", "motion_blur", "zoom_blur",
                                  "elastic_transform", "pixelate"])
def test_what_only_moves_or_mixes_pixels_leaves_a_grey_image_as_it_is(name, size):
    gray = torch.full((1, 3, size, size), 200, dtype=torch.uint8)
    for severity in range(1, 6):
        assert (corruptions.corrupt(gray, name, severity, None) == 200).all()


def test_contrast_and_brightness_by_definition(pictures):
    x = pictures.double().numpy() / 255
    mean = x.mean(axis=(2, 3), keepdims=True)
    contrast = corruptions.corrupt(pictures, "contrast", 2, None).numpy()
    assert np.abs(contrast - 255 * ((x - mean) * 0.5 + mean)).max() < 0.51
    hsv = np.stack([np.array(Image.fromarray(i).convert("HSV"))
                    for i in corruptions.corrupt(pictures, "brightness", 2, None)
                    .permute(0, 2, 3, 1).numpy()])
    expected = np.minimum(x.max(axis=1) + 0.1, 1) * 255
    assert np.abs(hsv[..., 2] - expected).max() < 0.51


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_pixelate_equals_pillow(pictures, severity):
    side = int(32 * SEVERITIES["pixelate"][severity - 1])
    ours = corruptions.corrupt(pictures, "pixelate", severity, None).permute(0, 2, 3, 1).numpy()
    for picture, result in zip(pictures.permute(0, 2, 3, 1).numpy(), ours, strict=True):
        small = Image.fromarray(picture).resize((side, side), Image.Resampling.BOX)
        theirs = np.asarray(small.resize((32, 32), Image.Resampling.BOX), dtype=int)
        assert np.array_equal(theirs, result)


def test_motion_blur_of_a_dot_is_a_line_in_the_stated_direction():
    dot = torch.zeros(2, 1, 32, 32)
    dot[:, :, 16, 16] = 1
    across, down = corruptions._motion_blur(dot, 6, 2.5, torch.tensor([0.0, 90.0]))[:, 0]
    assert across[16].sum() == pytest.approx(1, abs=1e-4)
    assert across[16, 16] > across[16, 15] > across[16, 10] > 0 == across[16, 17].round(decimals=4)
    torch.testing.assert_close(down, across.T, atol=1e-4, rtol=0)


def test_glass_blur_takes_a_pixel_from_the_left_or_above():
    """At severity 1 the blur of 0.05 pixels is none, and neighbours lie at -1 or 0."""
    numbers = torch.randperm(256, generator=torch.Generator().manual_seed(0)).view(16, 16)
    image = numbers.to(torch.uint8).expand(1, 3, 16, 16)
    blurred = corruptions.corrupt(image, "glass_blur", 1, torch.Generator().manual_seed(0))[0, 0]
    neighbours = nn.functional.pad(image[:, :1].float(), (1, 0, 1, 0), "replicate")[0, 0]
    taken = torch.stack([blurred == neighbours[down:down + 16, right:right + 16]
                         for down in (0, 1) for right in (0, 1)])
    assert taken.any(0).all()
    assert all(200 > way.sum() > 30 for way in taken)


def test_elastic_transform_is_affine_at_severity_1_and_bends_lines_at_severity_5():
    ramp = (4 * torch.arange(32) + 64).expand(8, 3, 32, 32).to(torch.uint8)
    y, x = torch.meshgrid(torch.arange(8.0, 24), torch.arange(8.0, 24), indexing="ij")
    plane = torch.stack([x.flatten(), y.flatten(), torch.ones(256)], dim=1)

    def bend(severity):
        warped = corruptions.corrupt(ramp, "elastic_transform", severity,
                                     torch.Generator().manual_seed(0))
        values = warped[:, 0, 8:24, 8:24].flatten(1).float().T
        return (plane @ torch.linalg.lstsq(plane, values).solution - values).abs().max().item()

    assert bend(1) < 1 < 2 < bend(5)


def test_fog_is_no_brighter_than_the_brightest_value_of_its_image(pictures):
    foggy = corruptions.corrupt(pictures, "fog", 5, torch.Generator().manual_seed(0))
    assert (foggy.amax((1, 2, 3)) <= pictures.amax((1, 2, 3))).all()


def test_snow_falls_twice_the_second_time_turned_by_half_a_circle():
    black = torch.zeros(5, 3, 32, 32, dtype=torch.uint8)
    snow = corruptions.corrupt(black, "snow", 5, torch.Generator().manual_seed(0))
    assert torch.equal(snow, snow.rot90(2, (2, 3)))
    assert snow.float().std() > 5 and snow.min() >= 0.2 * 127  # whitened by a fifth of 0.5


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_sequences_have_the_released_lengths(pictures, name):
    frames = list(corruptions.perturb(pictures, name, torch.Generator().manual_seed(0)))
    assert len(frames) == {"motion_blur": 21, "translate": 16}.get(name, 31)
    assert all(frame.shape == pictures.shape and frame.dtype == torch.uint8 for frame in frames)
    assert not torch.equal(frames[-1], frames[-2])
    if "noise" in name or name == "zoom_blur":
        assert torch.equal(frames[0], pictures), "begins with the clean image"
    middle = {"brightness": 15, "translate": 7, "rotate": 15, "scale": 15}.get(name)
    if middle:
        assert torch.equal(frames[middle], pictures), "passes through the clean image"


def test_rotation_turns_about_the_centre_by_a_degree_a_frame():
    """From 15 degrees counter-clockwise, as Pillow counts them, to 15 clockwise."""
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    smooth = (128 + 60 * torch.sin(x / 4) + 60 * torch.cos(y / 5)).to(torch.uint8)
    frames = list(corruptions.perturb(smooth.expand(1, 3, 32, 32), "rotate"))
    for frame in (0, 10, 22, 30):
        theirs = Image.fromarray(smooth.numpy()).rotate(15 - frame, Image.Resampling.BILINEAR)
        difference = frames[frame][0, 0].int().numpy() - np.asarray(theirs, dtype=int)
        assert np.abs(difference[8:24, 8:24]).max() <= 2


def test_scale_magnifies_about_the_centre(pictures):
    """The last frame, at 1.3 times the size, equals the central 1 / 1.3 as Pillow enlarges it."""
    last = list(corruptions.perturb(pictures[:1], "scale"))[-1][0].permute(1, 2, 0).numpy()
    margin = 16 - 16 / 1.3
    theirs = Image.fromarray(pictures[0].permute(1, 2, 0).numpy()).resize(
        (32, 32), Image.Resampling.BILINEAR, (margin, margin, 32 - margin, 32 - margin))
    assert np.abs(np.asarray(theirs, int) - last)[2:-2, 2:-2].max() <= 2


def test_translation_moves_by_whole_pixels(pictures):
    frames = list(corruptions.perturb(pictures, "translate", None))
    assert torch.equal(frames[10][..., 3:], pictures[..., :-3])
    assert torch.equal(frames[5][..., :-2], pictures[..., 2:])


def test_sequences_have_cifar_10_ps_strength():
    gray = torch.full((20, 3, 32, 32), 128, dtype=torch.uint8)

    def frame(name, number):
        frames = corruptions.perturb(gray, name, torch.Generator().manual_seed(0))
        return [*frames][number].float() / 255

    assert frame("gaussian_noise", 9).std().item() == pytest.approx(0.02, rel=0.02)
    assert frame("shot_noise", 9).std().item() == pytest.approx((128 / 255 / 700) ** 0.5, rel=0.02)
    assert frame("brightness", 30).mean().item() == pytest.approx(128 / 255 + 0.225, abs=0.002)
    dot = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    dot[:, :, 16, 16] = 255
    blurred = [*corruptions.perturb(dot, "motion_blur")][10]  # 90 degrees up from the right
    assert (blurred[0, 0, 16] > 0).sum() == 1 and (blurred[0, 0, :, 16] > 0).sum() == 6
    pictures = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    zoomed = sum(corruptions._zoom(pictures / 255, 1 + 0.004 * n) for n in range(31)) / 31
    last = [*corruptions.perturb(pictures, "zoom_blur")][-1]
    assert (last - 255 * zoomed).abs().max() < 0.51
