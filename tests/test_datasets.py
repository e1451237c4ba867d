"""Where the four sets come from: the built-in images, a folder that is split, own folders."""

import itertools
import os
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from noise_images import images_of, noise, write_classes
from PIL import Image

from support import InputError, datasets, folders, images, report, sources
from support.images import NO_CLASS, UNKNOWN
from support.sources import Source


def small_demo(**changes):
    sizes = {"labels_per_class": 2, "unlabeled": 200, "val_per_class": 2, "test_per_class": 3}
    return datasets.demo(**{"seed": 0, **sizes, **changes})


@pytest.fixture
def own(tmp_path):
    """The flags of 20 labelled, 4 unlabelled and 2 test images in two classes."""
    write_classes(tmp_path / "labeled", ["cat", "dog"], 10)
    write_classes(tmp_path / "test", ["cat", "dog"], 1, first_seed=100)
    write_classes(tmp_path / "pool", ["2019/summer", "2020"], 2, first_seed=200)
    return {"labeled": tmp_path / "labeled", "unlabeled": tmp_path / "pool",
            "test": tmp_path / "test"}


def read(image_size=8, **flags):
    return sources.read_folders(Source(**flags), image_size)


# ---- Built-in images ----


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


def test_demo_labeled_validation_and_test_sets_are_balanced():
    splits = small_demo()
    for part, count in ((splits.labeled, 2), (splits.validation, 2), (splits.test, 3)):
        assert torch.equal(part.labels.bincount(), torch.full((10,), count))


def test_demo_pool_is_imbalanced_and_holds_images_of_no_class():
    labels = small_demo(unlabeled=2000).unlabeled.labels
    counts = labels[labels >= 0].bincount()
    assert len(labels) == 2000
    assert (labels == NO_CLASS).sum() == 600
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


# ---- A labelled folder, split ----


def test_split_folder_takes_first_names_as_labeled_and_last_as_validation(tmp_path):
    train = write_classes(tmp_path / "train", ["b", "a"], 7)
    test = write_classes(tmp_path / "test", ["a", "b"], 2, first_seed=100)
    splits = read(80, train=train, test=test, labels_per_class=2, val_per_class=3)
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


@pytest.mark.parametrize("labels, val", [(5, 3), (0, 3), (8, 0), (-1, 3)])
def test_split_folder_refuses_impossible_counts_and_names_the_class(tmp_path, labels, val):
    train = write_classes(tmp_path / "train", ["a", "b"], 7)
    test = write_classes(tmp_path / "test", ["a", "b"], 1, first_seed=100)
    with pytest.raises(InputError, match=f"class a: {labels} labelled and {val} .* of 7"):
        read(train=train, test=test, labels_per_class=labels, val_per_class=val)


def test_more_validation_images_than_there_are_leave_one_labelled_image_to_ask_for(tmp_path):
    labeled = folders.list_classes(write_classes(tmp_path / "labeled", ["a", "b"], 7))
    with pytest.raises(InputError, match="class a: 1 labelled and 9 validation images .* of 7"):
        datasets.split(labeled, labels_per_class=None, val_per_class=9)


def test_split_folder_refuses_to_leave_no_pool(tmp_path):
    train = write_classes(tmp_path / "train", ["a", "b"], 7)
    test = write_classes(tmp_path / "test", ["a", "b"], 1, first_seed=100)
    with pytest.raises(InputError, match="no images for the unlabelled pool"):
        read(train=train, test=test, labels_per_class=4, val_per_class=3)


def test_a_folder_with_one_class_is_taken_for_the_wrong_level(tmp_path):
    write_classes(tmp_path / "all" / "train", ["a", "b"], 1)
    with pytest.raises(InputError, match="only one class folder, train; give the folder"):
        datasets.read_folder(tmp_path / "all", 8)


@pytest.mark.parametrize(("inner", "said"), [
    (("a", "b"), "and each holds a, b: if these are the classes, give"), (("a", "c"), "")])
def test_training_and_validation_folders_are_not_silently_two_classes(tmp_path, capsys, inner,
                                                                      said):
    write_classes(tmp_path / "train", ["a", "b"], 1)
    write_classes(tmp_path / "val", inner, 1, first_seed=50)
    assert datasets.read_folder(tmp_path, 8).classes == ("train", "val")
    assert said in (out := capsys.readouterr().out) and bool(out) == bool(said)


def test_an_image_in_two_classes_is_named(tmp_path, capsys):
    write_classes(tmp_path, ["a", "b"], 2)
    assert not (datasets.read_folder(tmp_path, 8), capsys.readouterr().out)[1]
    (tmp_path / "b" / "link").symlink_to(tmp_path / "a")
    datasets.read_folder(tmp_path, 8)
    assert (f"Warning: 2 images are in two classes: {tmp_path}/b/link/0000.png, "
            f"{tmp_path}/b/link/0001.png") in capsys.readouterr().out


# ---- Own folders ----


def test_folders_finds_the_pool_at_any_depth_without_labels(own):
    splits = read(**own)
    assert splits.unlabeled.labels.tolist() == [UNKNOWN] * 4


def test_folders_holds_out_a_tenth_but_at_least_one_of_each_class(own):
    write_classes(own["labeled"] / "dog", ["more"], 20, first_seed=600)
    (own["labeled"] / "cat" / "0000.png").unlink()
    splits = read(**own)
    assert splits.validation.labels.tolist() == [0, 1, 1, 1]
    assert splits.labeled.labels.bincount().tolist() == [8, 27]
    assert not images_of(splits)["labeled"] & images_of(splits)["validation"]


def test_folders_holds_out_as_many_as_asked(own):
    splits = read(**own, val_per_class=4)
    assert splits.validation.labels.tolist() == [0] * 4 + [1] * 4
    assert splits.labeled.labels.tolist() == [0] * 6 + [1] * 6


def test_folders_uses_a_validation_folder_and_leaves_the_labeled_one_whole(own, tmp_path):
    held = write_classes(tmp_path / "val", ["cat", "dog"], 3, first_seed=300)
    splits = read(**own, val=held)
    assert len(splits.labeled) == 20 and len(splits.validation) == 6


def test_folders_refuses_a_validation_folder_together_with_a_count(own, tmp_path):
    held = write_classes(tmp_path / "val", ["cat", "dog"], 3, first_seed=300)
    with pytest.raises(InputError, match="one of the two"):
        read(**own, val=held, val_per_class=2)


@pytest.mark.parametrize("which", ["labeled", "unlabeled", "test"])
def test_missing_folder_is_named(own, which, tmp_path):
    with pytest.raises(InputError, match="nowhere"):
        read(**{**own, which: tmp_path / "nowhere"})


@pytest.mark.parametrize("which", ["labeled", "unlabeled", "test"])
def test_folder_without_images_is_named(own, which, tmp_path):
    (tmp_path / "void").mkdir()
    with pytest.raises(InputError, match="void: no "):
        read(**{**own, which: tmp_path / "void"})


def test_empty_class_folder_is_named(own):
    (own["labeled"] / "eel").mkdir()
    (own["test"] / "eel").mkdir()
    with pytest.raises(InputError, match="labeled/eel: no images in it"):
        read(**own)


@pytest.mark.parametrize("which", ["test", "val"])
def test_different_classes_are_named(own, tmp_path, which):
    other = write_classes(tmp_path / "other", ["dog", "eel"], 1, first_seed=400)
    with pytest.raises(InputError, match="other: .* add cat and remove eel"):
        read(**{**own, which: other})


@pytest.mark.parametrize("which", ["labeled", "test"])
def test_truncated_image_outside_the_pool_is_an_error_that_names_it(own, tmp_path, which):
    file = tmp_path / which / "cat" / "0000.png"
    file.write_bytes(file.read_bytes()[:-60])
    with pytest.raises(InputError, match=f"{which}/cat/0000.png: not a readable image"):
        read(**own)


def test_broken_files_in_the_pool_are_skipped_and_named(own):
    truncated, text = own["unlabeled"] / "2020" / "0000.png", own["unlabeled"] / "notes.txt"
    truncated.write_bytes(truncated.read_bytes()[:-60])
    text.write_text("not an image")
    splits = read(**own)
    assert len(splits.unlabeled) == 3
    assert splits.notes["skipped_files"] == [str(text), str(truncated)]


def test_pool_of_broken_files_only_is_an_error(own, tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.jpg").write_bytes(b"")
    with pytest.raises(InputError, match="unlabelled pool: 1 unreadable"):
        read(**{**own, "unlabeled": tmp_path / "broken"})


@pytest.mark.parametrize("image_size", [8, 80])  # in memory, and as files
@pytest.mark.parametrize("held_out", ["test/cat/0000.png", "labeled/dog/0009.png"])
def test_copies_of_held_out_images_are_removed_from_the_pool(own, tmp_path, held_out, image_size):
    (own["unlabeled"] / "copy.png").write_bytes((tmp_path / held_out).read_bytes())
    splits = read(image_size, **own)
    assert len(splits.unlabeled) == 4
    assert splits.notes["removed_from_pool"] == 1


def test_labeled_images_that_are_held_out_are_counted_and_all_of_them_are_an_error(own, tmp_path):
    first, second = (tmp_path / "test" / name for name in ("cat/0000.png", "dog/0000.png"))
    (own["labeled"] / "cat" / "0001.png").write_bytes(first.read_bytes())
    assert read(**own).notes["labeled_and_test"] == 1
    (own["labeled"] / "dog" / "0001.png").write_bytes(second.read_bytes())
    with pytest.raises(InputError, match="every test image is also a labelled one"):
        read(**own)


def copy_all(source, target):
    for number, file in enumerate(sorted(source.rglob("*.png"))):
        copy = target / file.parent.name / f"copy {number}.png"
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())


@pytest.mark.parametrize("same", ["the folder", "a copy", "a part"])
def test_validation_images_that_are_the_test_images_are_an_error(own, tmp_path, same):
    own["val"] = own["test"]
    if same != "the folder":
        own["val"] = tmp_path / "val"
        copy_all(own["test"], own["val"])
    if same == "a part":  # every validation image is a test image, but not the other way round
        noise(600).save(own["test"] / "cat" / "more.png")
    with pytest.raises(InputError, match="every (test|validation) image is also a"):
        read(**own)


def test_validation_images_that_are_test_images_too_are_counted(own, tmp_path):
    own["val"] = write_classes(tmp_path / "val", ["cat", "dog"], 2, first_seed=300)
    (own["val"] / "cat" / "copy.png").write_bytes((own["test"] / "cat/0000.png").read_bytes())
    notes = read(**own).notes
    assert (notes["validation_and_test"], notes["labeled_and_test"]) == (1, 0)
    (own["val"] / "dog" / "copy.png").write_bytes((own["labeled"] / "cat/0000.png").read_bytes())
    assert read(**own).notes["labeled_and_validation"] == 1


def test_labelled_images_in_the_pool_are_counted(own):
    (own["unlabeled"] / "copy.png").write_bytes((own["labeled"] / "cat/0000.png").read_bytes())
    assert read(**own).notes["labeled_and_unlabeled"] == 1


def test_all_broken_images_of_a_labelled_folder_are_named_at_once(own):
    """Else each would cost another start, which reads all images before it."""
    for name in ("cat/0000.png", "dog/0001.png", "dog/0002.png"):
        (own["labeled"] / name).write_bytes(b"cut off")
    with pytest.raises(InputError, match="cat/0000.png: not a readable image .*; and 2 more: "
                                         ".*dog/0001.png, .*dog/0002.png$"):
        read(**own)


def test_more_broken_images_than_a_line_holds_are_listed(own, capsys):
    for number in range(6):  # the last one becomes a validation image
        (own["labeled"] / "cat" / f"broken-{number}.png").write_bytes(b"cut off")
    with pytest.raises(InputError, match="and 4 more"):
        read(**own)
    said = capsys.readouterr().out
    assert all(f"broken-{number}.png: not a readable image" in said for number in range(5))


def test_images_in_two_sets_are_named_before_the_training_and_beside_its_figures(own, tmp_path):
    copy = own["test"] / "cat" / "copy.png"
    copy.write_bytes((own["labeled"] / "cat/0000.png").read_bytes())
    splits = read(**own)
    report.describe_images(splits, "own", tmp_path, torch.device("cpu"))
    assert splits.notes["warnings"] == [f"1 test images are labeled images, too: {copy}"]


def test_class_names_that_look_the_same_are_pointed_out(own, capsys):
    images.say_once.cache_clear()
    for name in "labeled", "test":
        (own[name] / "Cat").mkdir()
        for number in range(3):
            noise(number + (name == "test") * 9).save(own[name] / "Cat" / f"{number}.png")
    read(**own)
    assert "have names that differ only by case" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["unlabeled", "test", "val"])
def test_a_folder_among_the_classes_is_refused(own, name):
    own[name] = own["labeled"] / "more" / name
    own[name].mkdir(parents=True)
    with pytest.raises(InputError, match=f"--{name} .*more/{name} lies in .*labeled, whose"):
        read(**own)


def test_class_names_in_another_unicode_form_are_said_to_be_so(own):
    (own["labeled"] / "cat").rename(own["labeled"] / "caf\u00e9")
    (own["test"] / "cat").rename(own["test"] / "cafe\u0301")
    with pytest.raises(InputError, match="letters in another Unicode form: rename"):
        read(**own)


@pytest.mark.parametrize("image_size", [8, 80])  # in memory, and as files
@pytest.mark.parametrize("part", ["labeled", "test", "unlabeled"])
def test_sets_are_known_by_their_contents_not_by_the_names_of_their_files(own, part, image_size):
    before = images.digest(getattr(read(image_size, **own), part))
    file = sorted(own[part].rglob("*.png"))[0]
    pixels = np.asarray(Image.open(file)).copy()
    pixels[0, 0] ^= 255
    Image.fromarray(pixels).save(file)
    assert images.digest(getattr(read(image_size, **own), part)) != before
    pixels[0, 0] ^= 255
    Image.fromarray(pixels).save(file, compress_level=0)  # other bytes, the same image
    own[part].rename(own[part].with_name("elsewhere"))
    moved = own | {part: own[part].with_name("elsewhere")}
    assert images.digest(getattr(read(image_size, **moved), part)) == before


def test_a_pool_that_nobody_has_opened_is_known_by_names_and_sizes(own):
    pool = datasets.read_pool(own["unlabeled"], ("cat", "dog"))
    before = images.digest(pool)
    with open(pool.files[0], "ab") as file:
        file.write(b"more")
    assert images.digest(pool) != before


def test_a_class_of_one_image_cannot_be_split_and_val_is_suggested(own):
    for file in sorted((own["labeled"] / "cat").iterdir())[1:]:
        file.unlink()
    with pytest.raises(InputError, match="class cat: a single image .*--val"):
        read(**own)


def test_a_thousand_missing_classes_are_a_short_message(own):
    with pytest.raises(InputError) as error:
        datasets.read_folder(own["labeled"], 8, tuple(f"class {n}" for n in range(1200)))
    assert len(str(error.value)) < 400 and "1,200 in all" in str(error.value)


def test_hidden_files_and_folders_are_ignored(own):
    for folder in (own["labeled"], own["labeled"] / "cat", own["unlabeled"]):
        (folder / ".DS_Store").write_bytes(b"binary")
        (folder / ".thumbnails").mkdir()
        noise(500).save(folder / ".thumbnails" / "a.png")
        (folder / "._0000.jpg").write_bytes(b"binary")
        (folder / "Thumbs.db").write_bytes(b"binary")
        (folder / "lost+found").mkdir()
        noise(501).save(folder / "lost+found" / "a.png")
    splits = read(**own)
    assert len(splits.labeled) == 18 and len(splits.unlabeled) == 4
    assert splits.notes["skipped_files"] == []


def test_upper_case_suffixes_are_images_and_other_files_in_classes_are_not(own):
    noise(500).save(own["labeled"] / "cat" / "A.JPG")
    (own["labeled"] / "cat" / "list.csv").write_text("0000.png")
    assert len(read(**own).labeled) == 19


def test_a_pipe_in_the_pool_is_skipped(own):
    os.mkfifo(own["unlabeled"] / "pipe.png")
    splits = read(**own)
    assert len(splits.unlabeled) == 4
    assert [Path(file).name for file in splits.notes["skipped_files"]] == ["pipe.png"]


def test_a_labeled_folder_is_read_on_its_own(own):
    labeled = datasets.read_folder(own["labeled"], 8)
    assert labeled.labels.tolist() == [0] * 10 + [1] * 10
    with pytest.raises(InputError, match="add eel"):
        datasets.read_folder(own["test"], 8, ("cat", "dog", "eel"))


def test_a_pool_on_its_own_is_a_list_of_files_that_nobody_has_opened(own, monkeypatch):
    monkeypatch.setattr(images, "read_image", None)
    pool = datasets.read_pool(own["unlabeled"], ("cat", "dog"))
    assert pool.files == tuple(folders.walk(own["unlabeled"]))
    assert pool.labels.tolist() == [UNKNOWN] * 4 and pool.classes == ("cat", "dog")


def test_a_pool_is_read_by_users_who_may_write_nowhere(own, monkeypatch):
    monkeypatch.setattr(tempfile, "TemporaryFile", mock.Mock(side_effect=PermissionError))
    assert len(datasets.read_pool(own["unlabeled"], ("cat", "dog"))) == 4
    with pytest.raises(InputError, match="cannot be written to"):
        datasets.read_pool(own["unlabeled"], ("cat", "dog"), own["test"].with_name("labels"))


def test_images_are_decoded_into_memory_only_if_they_are_small_and_few(own, monkeypatch):
    pool = datasets.read_pool(own["unlabeled"], ("cat", "dog"))
    assert [datasets.size_to_read(size, pool) for size in (8, 64, 65, 72)] == [8, 64, None, None]
    monkeypatch.setattr(datasets, "MEMORY_LIMIT", 8 * 3 * 8 * 8 - 1)
    assert datasets.size_to_read(8, pool) == 8 and datasets.size_to_read(8, pool, pool) is None


def test_sets_too_large_for_memory_stay_files(own, monkeypatch):
    assert read(**own).labeled.pixels.shape == (18, 3, 8, 8)
    monkeypatch.setattr(datasets, "MEMORY_LIMIT", 8 * 8 * 3 * 25)
    splits = read(**own)  # 26 images
    assert splits.labeled.pixels is None and len(splits.labeled.files) == 18


def test_the_demo_has_the_sizes_of_its_results():
    assert datasets.demo.__defaults__ == (0, 8, 6_000, 50, 200)
