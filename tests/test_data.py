"""The sets of images: the built-in ones, folders of files, published sets, and their batches."""

import itertools
import json
import os
import sys
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))
import data


def small_demo(**changes):
    sizes = {"labels_per_class": 2, "unlabeled": 200, "val_per_class": 2, "test_per_class": 3}
    return data.demo(**{"seed": 0, **sizes, **changes})


def noise(seed, width=8, height=8):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def write_classes(folder, classes, count, first_seed=0):
    """`count` different PNG files in each class folder; returns the folder."""
    for i, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for j in range(count):
            noise(first_seed + 1000 * i + j).save(folder / name / f"{j:04}.png")
    return folder


@pytest.fixture
def own(tmp_path):
    """Arguments for data.folders: 20 labelled, 4 unlabelled and 2 test images in two classes."""
    write_classes(tmp_path / "labeled", ["cat", "dog"], 10)
    write_classes(tmp_path / "test", ["cat", "dog"], 1, first_seed=100)
    write_classes(tmp_path / "pool", ["2019/summer", "2020"], 2, first_seed=200)
    return {
        "labeled_dir": tmp_path / "labeled",
        "unlabeled_dir": tmp_path / "pool",
        "test_dir": tmp_path / "test",
        "image_size": 8,
    }


def images_of(splits):
    return {
        name: {image.numpy().tobytes() for image in getattr(splits, name).pixels}
        for name in ("labeled", "unlabeled", "validation", "test")
    }


# ------------------------------------------------------------------ built-in images


def test_demo_is_a_function_of_its_seed():
    first, again, other = small_demo(), small_demo(), small_demo(seed=1)
    for name in ("labeled", "unlabeled", "validation", "test"):
        assert torch.equal(getattr(first, name).pixels, getattr(again, name).pixels)
        assert torch.equal(getattr(first, name).labels, getattr(again, name).labels)
        assert not torch.equal(getattr(first, name).pixels, getattr(other, name).pixels)


def test_demo_images_are_32x32_bytes_that_use_the_whole_range():
    pixels = small_demo().unlabeled.pixels
    assert pixels.shape == (200, 3, 32, 32) and pixels.dtype == torch.uint8
    assert pixels.min() == 0 and pixels.max() == 255


def test_demo_labelled_validation_and_test_sets_are_balanced():
    splits = small_demo()
    for images, count in ((splits.labeled, 2), (splits.validation, 2), (splits.test, 3)):
        assert torch.equal(images.labels.bincount(), torch.full((10,), count))


def test_demo_pool_is_imbalanced_and_holds_images_of_no_class():
    labels = small_demo(unlabeled=2000).unlabeled.labels
    counts = labels[labels >= 0].bincount()
    assert len(labels) == 2000
    assert (labels == data.NO_CLASS).sum() == 600
    assert counts.diff().max() < 0  # each class is rarer than the one before
    assert 7 < counts[0] / counts[9] < 9


def test_demo_pool_is_shuffled():
    labels = small_demo().unlabeled.labels
    assert (labels.diff() == 0).float().mean() < 0.5


def test_demo_sets_share_no_image():
    sets = images_of(small_demo(unlabeled=500, labels_per_class=3, val_per_class=3))
    for one, other in itertools.combinations(sets.values(), 2):
        assert not one & other


def test_demo_images_of_a_set_do_not_depend_on_the_sizes_of_the_others():
    small, large = small_demo(), small_demo(unlabeled=300, labels_per_class=4)
    assert torch.equal(small.test.pixels, large.test.pixels)
    assert torch.equal(small.validation.pixels, large.validation.pixels)


@pytest.mark.parametrize("wrong", [{"seed": -1}, {"labels_per_class": 0}, {"unlabeled": 0}])
def test_demo_refuses_a_negative_seed_and_empty_sets(wrong):
    with pytest.raises(data.InputError, match="demo data"):
        small_demo(**wrong)


# ------------------------------------------------------------------ a labelled folder, split


def test_split_folder_takes_first_names_as_labelled_and_last_as_validation(tmp_path):
    train = write_classes(tmp_path / "train", ["b", "a"], 7)
    test = write_classes(tmp_path / "test", ["a", "b"], 2, first_seed=100)
    splits = data.split_folder(train, test, labels_per_class=2, val_per_class=3, image_size=80)
    names = {
        name: [str(Path(file).relative_to(tmp_path)) for file in getattr(splits, name).files]
        for name in ("labeled", "unlabeled", "validation", "test")
    }
    assert names["labeled"] == [f"train/{c}/000{i}.png" for c in "ab" for i in (0, 1)]
    assert names["unlabeled"] == [f"train/{c}/000{i}.png" for c in "ab" for i in (2, 3)]
    assert names["validation"] == [f"train/{c}/000{i}.png" for c in "ab" for i in (4, 5, 6)]
    assert names["test"] == [f"test/{c}/000{i}.png" for c in "ab" for i in (0, 1)]
    assert splits.labeled.classes == ("a", "b")
    assert splits.unlabeled.labels.tolist() == [0, 0, 1, 1]  # the truth is kept
    assert splits.validation.labels.tolist() == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("labels, val", [(5, 3), (0, 3), (5, 0), (-1, 3)])
def test_split_folder_refuses_impossible_counts_and_names_the_class(tmp_path, labels, val):
    train = write_classes(tmp_path / "train", ["a", "b"], 7)
    test = write_classes(tmp_path / "test", ["a", "b"], 1, first_seed=100)
    with pytest.raises(data.InputError, match=f"class a: {labels} labelled and {val} .* of 7"):
        data.split_folder(train, test, labels, val, 8)


def test_split_folder_refuses_to_leave_no_pool(tmp_path):
    train = write_classes(tmp_path / "train", ["a", "b"], 7)
    test = write_classes(tmp_path / "test", ["a", "b"], 1, first_seed=100)
    with pytest.raises(data.InputError, match="no images for the unlabelled pool"):
        data.split_folder(train, test, 4, 3, 8)


def test_split_folder_refuses_an_unreadable_file_even_between(tmp_path):
    train = write_classes(tmp_path / "train", ["a", "b"], 7)
    test = write_classes(tmp_path / "test", ["a", "b"], 1, first_seed=100)
    (train / "a" / "0003.png").write_bytes(b"not an image")
    with pytest.raises(data.InputError, match="a/0003.png: not a readable image"):
        data.split_folder(train, test, 2, 2, 8)


def test_a_folder_with_one_class_is_taken_for_the_wrong_level(tmp_path):
    write_classes(tmp_path / "all" / "train", ["a", "b"], 1)
    with pytest.raises(data.InputError, match="only one class folder, train; give the folder"):
        data.read_folder(tmp_path / "all", 8)


# ------------------------------------------------------------------ own folders


def test_folders_finds_the_pool_at_any_depth_without_labels(own):
    splits = data.folders(**own)
    assert splits.unlabeled.labels.tolist() == [data.UNKNOWN] * 4


def test_folders_holds_out_a_tenth_but_at_least_one_of_each_class(own):
    write_classes(own["labeled_dir"] / "dog", ["more"], 20, first_seed=600)
    (own["labeled_dir"] / "cat" / "0000.png").unlink()
    splits = data.folders(**own)
    assert splits.validation.labels.tolist() == [0, 1, 1, 1]
    assert splits.labeled.labels.bincount().tolist() == [8, 27]
    assert not images_of(splits)["labeled"] & images_of(splits)["validation"]


def test_folders_holds_out_as_many_as_asked(own):
    splits = data.folders(**own, val_per_class=4)
    assert splits.validation.labels.tolist() == [0] * 4 + [1] * 4
    assert splits.labeled.labels.tolist() == [0] * 6 + [1] * 6


def test_folders_uses_a_validation_folder_and_leaves_the_labelled_one_whole(own, tmp_path):
    held = write_classes(tmp_path / "val", ["cat", "dog"], 3, first_seed=300)
    splits = data.folders(**own, val_dir=held)
    assert len(splits.labeled) == 20 and len(splits.validation) == 6


def test_folders_refuses_a_validation_folder_together_with_a_count(own, tmp_path):
    held = write_classes(tmp_path / "val", ["cat", "dog"], 3, first_seed=300)
    with pytest.raises(data.InputError, match="one of the two"):
        data.folders(**own, val_dir=held, val_per_class=2)


@pytest.mark.parametrize("which", ["labeled_dir", "unlabeled_dir", "test_dir"])
def test_missing_folder_is_named(own, which, tmp_path):
    with pytest.raises(data.InputError, match="nowhere"):
        data.folders(**{**own, which: tmp_path / "nowhere"})


@pytest.mark.parametrize("which", ["labeled_dir", "unlabeled_dir", "test_dir"])
def test_folder_without_images_is_named(own, which, tmp_path):
    (tmp_path / "void").mkdir()
    with pytest.raises(data.InputError, match="void: no "):
        data.folders(**{**own, which: tmp_path / "void"})


def test_empty_class_folder_is_named(own):
    (own["labeled_dir"] / "eel").mkdir()
    (own["test_dir"] / "eel").mkdir()
    with pytest.raises(data.InputError, match="labeled/eel: a class without images"):
        data.folders(**own)


@pytest.mark.parametrize("which", ["test", "val"])
def test_different_classes_are_named(own, tmp_path, which):
    other = write_classes(tmp_path / "other", ["dog", "eel"], 1, first_seed=400)
    with pytest.raises(data.InputError, match="other: .* add cat and remove eel"):
        data.folders(**{**own, f"{which}_dir": other})


@pytest.mark.parametrize("which", ["labeled", "test"])
def test_truncated_image_outside_the_pool_is_an_error_that_names_it(own, tmp_path, which):
    file = tmp_path / which / "cat" / "0000.png"
    file.write_bytes(file.read_bytes()[:-60])
    with pytest.raises(data.InputError, match=f"{which}/cat/0000.png: not a readable image"):
        data.folders(**own)


def test_broken_files_in_the_pool_are_skipped_and_named(own):
    truncated, text = own["unlabeled_dir"] / "2020" / "0000.png", own["unlabeled_dir"] / "notes.txt"
    truncated.write_bytes(truncated.read_bytes()[:-60])
    text.write_text("not an image")
    splits = data.folders(**own)
    assert len(splits.unlabeled) == 3
    assert splits.notes["skipped_files"] == [str(truncated), str(text)]


def test_pool_of_broken_files_only_is_an_error(own, tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.jpg").write_bytes(b"")
    with pytest.raises(data.InputError, match="unlabelled pool: 1 unreadable"):
        data.folders(**{**own, "unlabeled_dir": tmp_path / "broken"})


@pytest.mark.parametrize("image_size", [8, 80])  # in memory, and as files
@pytest.mark.parametrize("held_out", ["test/cat/0000.png", "labeled/dog/0009.png"])
def test_copies_of_held_out_images_are_removed_from_the_pool(own, tmp_path, held_out, image_size):
    (own["unlabeled_dir"] / "copy.png").write_bytes((tmp_path / held_out).read_bytes())
    splits = data.folders(**{**own, "image_size": image_size})
    assert len(splits.unlabeled) == 4
    assert splits.notes["removed_from_pool"] == 1


def test_held_out_pixels_in_another_format_are_removed_from_the_pool(own, tmp_path):
    Image.open(tmp_path / "test/cat/0000.png").save(own["unlabeled_dir"] / "copy.bmp")
    splits = data.folders(**own)
    assert len(splits.unlabeled) == 4
    assert splits.notes["removed_from_pool"] == 1


def test_same_bytes_in_another_shape_are_another_image(own, tmp_path):
    pixels = np.asarray(Image.open(tmp_path / "test/cat/0000.png"))
    Image.fromarray(pixels.reshape(4, 16, 3)).save(own["unlabeled_dir"] / "wide.png")
    assert data.folders(**own).notes["removed_from_pool"] == 0


def test_labelled_images_that_are_held_out_are_counted_and_all_of_them_are_an_error(own, tmp_path):
    first, second = (tmp_path / "test" / name for name in ("cat/0000.png", "dog/0000.png"))
    (own["labeled_dir"] / "cat" / "0001.png").write_bytes(first.read_bytes())
    assert data.folders(**own).notes["labeled_and_held_out"] == 1
    (own["labeled_dir"] / "dog" / "0001.png").write_bytes(second.read_bytes())
    with pytest.raises(data.InputError, match="every test image is also a labelled one"):
        data.folders(**own)


def test_copies_of_labelled_images_may_stay_in_the_pool(own, tmp_path):
    noise(0).save(own["unlabeled_dir"] / "copy.png")  # equals labeled/cat/0000.png
    assert len(data.folders(**own).unlabeled) == 5


def test_hidden_files_and_folders_are_ignored(own):
    for folder in (own["labeled_dir"], own["labeled_dir"] / "cat", own["unlabeled_dir"]):
        (folder / ".DS_Store").write_bytes(b"binary")
        (folder / ".thumbnails").mkdir()
        noise(500).save(folder / ".thumbnails" / "a.png")
        (folder / "._0000.jpg").write_bytes(b"binary")
    splits = data.folders(**own)
    assert len(splits.labeled) == 18 and len(splits.unlabeled) == 4
    assert splits.notes["skipped_files"] == []


def test_upper_case_suffixes_are_images_and_other_files_in_classes_are_not(own):
    noise(500).save(own["labeled_dir"] / "cat" / "A.JPG")
    (own["labeled_dir"] / "cat" / "list.csv").write_text("0000.png")
    assert len(data.folders(**own).labeled) == 19


def test_a_pipe_in_the_pool_is_skipped(own):
    os.mkfifo(own["unlabeled_dir"] / "pipe.png")
    splits = data.folders(**own)
    assert len(splits.unlabeled) == 4
    assert [Path(file).name for file in splits.notes["skipped_files"]] == ["pipe.png"]


def test_held_out_folders_may_hold_other_files_too(own):
    (own["test_dir"] / "cat" / "notes.txt").write_text("of the cats")
    assert len(data.fingerprints([own["test_dir"]])) == 2


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_breaks_after_it_was_listed_is_one_clear_line(own, workers):
    images = data.folders(**own | {"image_size": 80}).labeled
    Path(images.files[3]).write_bytes(b"broken since")
    with pytest.raises(data.InputError) as raised:
        list(data.read_batches(images, [torch.arange(6)], 80, train=False, workers=workers))
    assert images.files[3] in str(raised.value) and "\n" not in str(raised.value)


def test_links_are_followed_and_circles_end(own, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    noise(500).save(tmp_path / "elsewhere" / "a.png")
    (own["unlabeled_dir"] / "link").symlink_to(tmp_path / "elsewhere")
    (own["unlabeled_dir"] / "circle").symlink_to(own["unlabeled_dir"])
    assert len(data.folders(**own).unlabeled) == 5


def test_notes_can_be_written_as_json(own):
    assert json.loads(json.dumps(data.folders(**own).notes))["removed_from_pool"] == 0


def test_a_labelled_folder_is_read_on_its_own(own):
    labeled = data.read_folder(own["labeled_dir"], 8)
    assert labeled.labels.tolist() == [0] * 10 + [1] * 10
    with pytest.raises(data.InputError, match="add eel"):
        data.read_folder(own["test_dir"], 8, ("cat", "dog", "eel"))


def test_a_pool_on_its_own_is_a_list_of_files_that_nobody_has_opened(own, monkeypatch):
    monkeypatch.setattr(data, "read_image", None)
    pool = data.read_pool(own["unlabeled_dir"], ("cat", "dog"))
    assert pool.files == tuple(data.list_files(own["unlabeled_dir"]))
    assert pool.labels.tolist() == [data.UNKNOWN] * 4 and pool.classes == ("cat", "dog")


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_files_and_held_out_images_show_when_the_pool_is_opened(own, workers):
    held_out = own["test_dir"] / "cat"
    copy = own["unlabeled_dir"] / "copy.bmp"  # the same pixels in another format
    Image.open(data.list_files(held_out)[0]).save(copy)
    (own["unlabeled_dir"] / "notes.txt").write_text("not an image")
    pool = data.read_pool(own["unlabeled_dir"], ("cat", "dog"))
    batches = data.inspect_batches(pool, torch.arange(6).split(4), 8, data.fingerprints([held_out]),
                                   workers)
    pixels, usable = (torch.cat(part) for part in zip(*batches, strict=True))
    left_out = {file for file, good in zip(pool.files, usable, strict=True) if not good}
    assert left_out == {str(copy), str(own["unlabeled_dir"] / "notes.txt")}
    rest = pool.subset(usable.nonzero().flatten())
    assert torch.equal(pixels[usable], data.into_memory(rest, 8).pixels)
    assert not pixels[~usable].any()


def test_a_pool_is_decoded_into_memory_only_if_it_is_small(own, monkeypatch):
    pool = data.read_pool(own["unlabeled_dir"], ("cat", "dog"))
    assert data.into_memory(pool, 8).pixels.shape == (4, 3, 8, 8)
    assert data.into_memory(pool, 72) is pool
    monkeypatch.setattr(data, "MEMORY_LIMIT", 4 * 3 * 8 * 8 - 1)
    assert data.into_memory(pool, 8) is pool


def test_interrupted_write_leaves_the_old_file(tmp_path):
    def fail(file):
        file.write(b"half")
        raise KeyboardInterrupt

    data.write_atomically(tmp_path / "file", lambda file: file.write(b"whole"))
    with pytest.raises(KeyboardInterrupt):
        data.write_atomically(tmp_path / "file", fail)
    assert (tmp_path / "file").read_bytes() == b"whole"


# ------------------------------------------------------------------ decoding


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1"])
def test_every_kind_of_colour_becomes_rgb(tmp_path, mode):
    file = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    Image.new("RGB", (4, 4), (255, 255, 255)).convert(mode).save(file)
    image = data.read_image(str(file))
    assert image.mode == "RGB" and image.getpixel((1, 1)) == (255, 255, 255)


def test_sixteen_bit_grey_keeps_its_range(tmp_path):
    Image.fromarray(np.full((4, 4), 128 * 256, np.uint16)).save(tmp_path / "grey.png")
    assert data.read_image(str(tmp_path / "grey.png")).getpixel((0, 0)) == (128, 128, 128)
    Image.fromarray(np.full((4, 4), 128 * 256, np.uint16)).save(
        tmp_path / "black.png", transparency=0)
    assert data.read_image(str(tmp_path / "black.png")).getpixel((0, 0)) == (128, 128, 128)
    (tmp_path / "grey.pgm").write_bytes(b"P5 4 4 65535 " + b"\x80\x00" * 16)
    assert data.read_image(str(tmp_path / "grey.pgm")).getpixel((0, 0)) == (128, 128, 128)


@pytest.mark.parametrize("pixels", [np.full((4, 4), 0.5, np.float32), np.full((4, 4), 2**20)])
def test_pixels_without_a_known_white_are_an_error(tmp_path, pixels):
    Image.fromarray(pixels.astype(np.float32 if pixels.dtype == np.float32 else np.int32)).save(
        tmp_path / "deep.tif")
    with pytest.raises(data.InputError, match="deep.tif: not a readable image"):
        data.read_image(str(tmp_path / "deep.tif"))


def test_exif_orientation_is_honoured(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    noise(0, width=8, height=4).save(tmp_path / "turned.jpg", exif=exif)
    assert data.read_image(str(tmp_path / "turned.jpg")).size == (4, 8)


def test_center_crop_leaves_images_of_the_right_size_alone():
    image = noise(0)
    assert data.center_crop(image, 8) is image


def test_center_crop_of_small_images_is_the_whole_central_square():
    image = Image.new("RGB", (96, 32), "red")
    image.paste((0, 0, 255), (32, 0, 64, 32))
    assert np.array_equal(np.asarray(data.center_crop(image, 32)), np.asarray(image)[:, 32:64])
    assert data.center_crop(image, 16).getpixel((1, 8)) == (0, 0, 255)
    assert data.center_crop(image, 16).getpixel((14, 8)) == (0, 0, 255)


def test_center_crop_of_large_images_is_the_authors_fraction():
    image = Image.new("RGB", (512, 256), "red")  # the crop: 224 / 256 of 256 is 224
    image.paste((0, 0, 255), (144, 16, 368, 240))
    assert data.center_crop(image, 224).getcolors() == [(224 * 224, (0, 0, 255))]


def test_many_files_are_read_by_worker_processes_with_the_same_result(tmp_path):
    files = [str(tmp_path / f"{i}.png") for i in range(50)]
    for i, file in enumerate(files[:-1]):
        noise(i).save(file)
    one_by_one = list(data.inspect_all(files, 8))
    parallel = list(data.inspect_all(files * 40, 8))
    assert len(parallel) == 2000
    for i in (0, 7, 48, 49):
        for j in (i, i + 50 * 39):
            assert np.array_equal(one_by_one[i][0], parallel[j][0])
            assert one_by_one[i][1:] == parallel[j][1:]
    assert "49.png" in parallel[49][2]


def test_sets_too_large_for_memory_stay_files(own, monkeypatch):
    assert data.folders(**own).labeled.pixels.shape == (18, 3, 8, 8)
    monkeypatch.setattr(data, "MEMORY_LIMIT", 8 * 8 * 3 * 25)
    splits = data.folders(**own)  # 26 images
    assert splits.labeled.pixels is None and len(splits.labeled.files) == 18


# ------------------------------------------------------------------ published sets


def fake_arrays(channels_last, size, labels_name, num_classes, names=None):
    """A class in the shape of torchvision's array datasets: six training images of each class."""

    class Fake:
        def __init__(self, root, download, train=True, split="train"):
            part = "train" if train and split == "train" else split if train else "test"
            count = num_classes * {"train": 6, "test": 2}.get(part, 3)
            shape = (count, size, size, 3) if channels_last else (count, 3, size, size)
            self.data = np.random.default_rng([*part.encode()]).integers(0, 256, shape, np.uint8)
            labels = np.arange(count) % num_classes if part != "unlabeled" else np.full(count, -1)
            setattr(self, labels_name, labels.tolist() if channels_last else labels)
            if names:
                self.classes = names

    return Fake


def test_cifar_is_split_by_seed_and_its_rest_is_the_pool(monkeypatch, tmp_path):
    fake = fake_arrays(True, 32, "targets", 2, ["cat", "dog"])
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", fake)
    splits = data.torchvision_splits("cifar10", tmp_path, 2, 1)
    again = data.torchvision_splits("cifar10", tmp_path, 2, 1)
    other = data.torchvision_splits("cifar10", tmp_path, 2, 1, seed=1)
    assert splits.labeled.classes == ("cat", "dog")
    assert [len(s) for s in (splits.labeled, splits.unlabeled, splits.validation)] == [4, 6, 2]
    sets = images_of(splits)
    source = fake(None, True).data.transpose(0, 3, 1, 2)
    for i, image in enumerate(splits.labeled.pixels):
        (row,) = [j for j in range(12) if np.array_equal(source[j], image.numpy())]
        assert splits.labeled.labels[i] == row % 2
    assert len(sets["labeled"] | sets["unlabeled"] | sets["validation"]) == 12
    assert torch.equal(splits.labeled.pixels, again.labeled.pixels)
    assert images_of(other)["labeled"] != sets["labeled"]


def test_published_images_are_enlarged_only_if_the_memory_is_enough(monkeypatch, tmp_path):
    fake = fake_arrays(True, 32, "targets", 2, ["cat", "dog"])
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", fake)
    size = 3 * 64 * 64 * 2 * 16  # of 16 images, as a list and as one array
    monkeypatch.setattr(data.os, "sysconf", lambda name: {"SC_PAGE_SIZE": 1}.get(name, size))
    assert data.torchvision_splits("cifar10", tmp_path, 2, 1, 64).test.pixels.shape[-1] == 64
    size -= 1
    with pytest.raises(data.InputError, match="leave out --image-size, or give 32"):
        data.torchvision_splits("cifar10", tmp_path, 2, 1, 64)
    data.torchvision_splits("cifar10", tmp_path, 2, 1)


def test_svhn_takes_all_labels_and_its_extra_images_are_the_pool(monkeypatch, tmp_path):
    monkeypatch.setattr(torchvision.datasets, "SVHN", fake_arrays(False, 32, "labels", 10))
    splits = data.torchvision_splits("svhn", tmp_path, None, 1)
    assert len(splits.labeled) == 50 and len(splits.validation) == 10
    assert splits.unlabeled.labels.tolist() == [*range(10)] * 3
    assert splits.labeled.classes == tuple("0123456789")


def test_stl10_pool_has_unknown_labels_and_the_left_over_training_images(monkeypatch, tmp_path):
    fake = fake_arrays(False, 96, "labels", 2, ["cat", "dog"])
    monkeypatch.setattr(torchvision.datasets, "STL10", fake)
    splits = data.torchvision_splits("stl10", tmp_path, 4, 1, image_size=32)
    assert splits.unlabeled.labels.tolist() == [0, 1] + [data.UNKNOWN] * 6
    assert splits.test.pixels.shape == (4, 3, 32, 32)


def test_imagenette_is_read_from_its_folders(monkeypatch, tmp_path):
    def fake(root, split, size, download):
        assert size == "160px" and download
        write_classes(tmp_path / "imagenette2-160" / split, ["n01", "n02"], 4,
                      {"train": 1, "val": 2}[split] * 100)

    monkeypatch.setattr(torchvision.datasets, "Imagenette", fake)
    splits = data.torchvision_splits("imagenette", tmp_path, 1, 1)
    assert splits.labeled.classes == ("n01", "n02")
    assert len(splits.unlabeled.files) == 4 and len(splits.test.files) == 8


@pytest.mark.parametrize(
    "error", [urllib.error.URLError("no route"), RuntimeError("bad\nfile"), ImportError("scipy")]
)
def test_published_set_without_data_or_network_is_one_clear_line(monkeypatch, tmp_path, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(torchvision.datasets, "SVHN", fail)
    with pytest.raises(data.InputError, match="svhn: neither found in .* nor downloaded") as caught:
        data.torchvision_splits("svhn", tmp_path, 2, 1)
    assert "\n" not in str(caught.value)


def test_unknown_published_set_lists_the_known_ones(tmp_path):
    with pytest.raises(data.InputError, match="mnist: not a known data set; choose from cifar10"):
        data.torchvision_splits("mnist", tmp_path, 2, 1)


# ------------------------------------------------------------------ batches


def random_corner(image, size, generator):
    left, top = torch.randint(0, 17, (2,), generator=generator).tolist()
    return image.crop((left, top, left + size, top + size))


@pytest.fixture
def filed(tmp_path):
    """Six images that stay files."""
    for i in range(6):
        noise(i, 96, 96).save(tmp_path / f"{i}.png")
    files = tuple(str(tmp_path / f"{i}.png") for i in range(6))
    return data.ImageSet(torch.tensor([0, 1] * 3), ("a", "b"), files=files)


BATCHES = (torch.tensor([0, 1, 0]), torch.tensor([5, 2]), torch.tensor([0, 1, 0]))


def test_batches_from_memory_are_looked_up():
    images = small_demo().labeled
    batches = list(data.read_batches(images, BATCHES, 32, train=True))
    assert all(torch.equal(b, images.pixels[i]) for b, i in zip(batches, BATCHES, strict=True))


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_from_memory_are_cropped_as_those_from_files(filed, workers):
    pixels = torch.stack([torch.from_numpy(data.to_array(filed.read(i))) for i in range(6)])
    held = data.ImageSet(filed.labels, filed.classes, pixels)

    def smaller(image, size, generator):
        return random_corner(image, size - 16, generator)

    one, other = (data.read_batches(images, BATCHES, 96, True, workers=workers, crop=smaller)
                  for images in (held, filed))
    for a, b in zip(one, other, strict=True):
        assert a.shape[1:] == (3, 80, 80) and torch.equal(a, b)


def test_batches_from_memory_of_another_size_are_an_error():
    with pytest.raises(data.InputError, match="32 px, not the 40 px"):
        next(data.read_batches(small_demo().labeled, BATCHES, 40, train=False))


def test_clean_batches_from_files_are_center_crops(filed):
    batches = list(data.read_batches(filed, BATCHES, 80, False, crop=random_corner))
    assert [tuple(b.shape) for b in batches] == [(3, 3, 80, 80), (2, 3, 80, 80), (3, 3, 80, 80)]
    expected = data.center_crop(data.read_image(filed.files[5]), 80)
    assert np.array_equal(batches[1][0].permute(1, 2, 0), np.asarray(expected))


def test_training_crops_differ_between_seeds_rows_and_batches(filed):
    first, _, third = data.read_batches(filed, BATCHES, 80, True, crop=random_corner)
    other = next(data.read_batches(filed, BATCHES, 80, True, seed=1, crop=random_corner))
    assert not torch.equal(first[0], first[2])
    assert not torch.equal(first[0], third[0])
    assert not torch.equal(first, other)


@pytest.mark.parametrize("workers", [1, 2])
def test_training_crops_do_not_depend_on_the_number_of_workers(filed, workers):
    alone = list(data.read_batches(filed, BATCHES, 80, True, seed=3, crop=random_corner))
    helped = data.read_batches(filed, BATCHES, 80, True, 3, workers, random_corner)
    assert all(torch.equal(a, b) for a, b in zip(alone, helped, strict=True))


def test_training_crops_belong_to_the_position_in_the_whole_batch(filed):
    whole = list(data.read_batches(filed, BATCHES[:1], 80, True, crop=random_corner))[0]
    rows = torch.tensor([0, 2])
    (part,) = data.read_batches(filed, [BATCHES[0][rows]], 80, True, crop=random_corner, rows=rows)
    assert torch.equal(part, whole[rows])


def test_batches_resumed_at_a_later_number_are_the_same(filed):
    whole = list(data.read_batches(filed, BATCHES, 80, True, crop=random_corner))
    rest = list(data.read_batches(filed, BATCHES[2:], 80, True, crop=random_corner, first=2))
    assert len(rest) == 1 and torch.equal(whole[2], rest[0])


@pytest.mark.parametrize("workers", [0, 2])
def test_endless_batches_are_drawn_only_as_far_as_needed(filed, workers):
    drawn = itertools.count()
    endless = (torch.tensor([next(drawn) % 6]) for _ in itertools.count())
    batches = data.read_batches(filed, endless, 80, train=False, workers=workers)
    for _ in range(3):
        next(batches)
    assert next(drawn) <= 3 + 2 * workers


def test_reading_batches_leaves_torch_random_numbers_alone(filed):
    torch.manual_seed(0)
    list(data.read_batches(filed, BATCHES, 80, True, crop=random_corner))
    drawn = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.rand(1))


def test_subset_keeps_order_and_repeats(filed):
    subset = filed.subset(torch.tensor([4, 1, 4]))
    assert subset.labels.tolist() == [0, 1, 0]
    assert subset.files == (filed.files[4], filed.files[1], filed.files[4])
    pixels = small_demo().labeled
    assert torch.equal(pixels.subset(torch.tensor([3, 3])).pixels, pixels.pixels[[3, 3]])
