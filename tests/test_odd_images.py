"""Images as people have them are read rightly, and by every command that reads images."""

import json
import os

import numpy as np
import pytest
from odd_images import write_odd_images
from PIL import EpsImagePlugin, Image

import eval_robust
import iterate
import pseudo_label
import train
from support import InputError, cli, folders, images

KINDS = 15


def test_every_kind_is_read_as_it_should_be_seen(tmp_path):
    expected = write_odd_images(tmp_path)
    assert len(expected) == KINDS
    for name, image in expected.items():
        found = images.read_image(str(tmp_path / name))
        assert (found.mode, found.size) == ("RGB", image.size), name
        difference = np.abs(np.asarray(found).astype(int) - np.asarray(image))
        assert difference.mean() < 4, name  # a lossy format's; a lost disc has 60 and more
        if name.endswith(("png", "gif", "tif")):
            assert difference.max() == 0, name


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_turned_by_its_orientation_unless_a_protocol_says_otherwise(
        tmp_path, orientation):
    upright = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6) * 10).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright.save(tmp_path / "a.png", exif=exif)
    # The eight symmetries of the square, by what the standard says of rows and columns.
    pixels = np.asarray(upright)
    expected = {1: pixels, 2: pixels[:, ::-1], 3: pixels[::-1, ::-1], 4: pixels[::-1],
                5: pixels.swapaxes(0, 1), 6: np.rot90(pixels, -1),
                7: np.rot90(pixels, 2).swapaxes(0, 1), 8: np.rot90(pixels)}[orientation]
    file = str(tmp_path / "a.png")
    assert np.array_equal(np.asarray(images.read_image(file)), expected)
    assert np.array_equal(np.asarray(images.read_image(file, upright=False)), pixels)


def test_only_raster_formats_are_opened_whatever_a_file_is_called(tmp_path, monkeypatch):
    def start(*_, **__):
        pytest.fail("Ghostscript was started")  # read_image would catch any Exception

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", start)
    Image.new("RGB", (8, 8)).save(tmp_path / "page.eps")
    (tmp_path / "page.eps").rename(tmp_path / "photo.jpg")
    with pytest.raises(InputError, match="photo.jpg: not a readable image"):
        images.read_image(str(tmp_path / "photo.jpg"))


# ---- Every command ----


SMALL = ["--device", "cpu", "--workers", "0", "--batch-size", "8", "--epochs", "1"]


@pytest.fixture
def sets(tmp_path, monkeypatch):
    """Folders of odd images alone, different ones in each."""
    monkeypatch.chdir(tmp_path)
    for number, part in enumerate(("labeled", "val", "test")):
        for label in ("a", "b"):
            write_odd_images(tmp_path / part / label, 100 * number + ord(label))
    write_odd_images(tmp_path / "pool", 1000)
    return tmp_path


def run(script, *arguments):
    return cli.run(script.main, [*map(str, arguments)])


def test_all_commands_read_all_of_them(sets, capsys):
    assert run(train, "--labeled", "labeled", "--val", "val", "--arch", "0.25x0.34", *SMALL,
               "--out", "teacher.pt") == 0
    assert run(pseudo_label, "--teacher", "teacher.pt", "--unlabeled", "pool", "--held-out", "val",
               "test", "--threshold", "0", "--out", "labels", "--device", "cpu") == 0
    assert json.loads((sets / "labels" / "labels.json").read_text())["counts"]["pool"] == KINDS
    assert run(train, "--labeled", "labeled", "--unlabeled", "pool", "--pseudo-label-dir", "labels",
               "--arch", "0.25x0.34", *SMALL, "--out", "student.pt") == 0
    assert run(eval_robust, "--checkpoint", "student.pt", "--suite", "imagenet", "--data-dir",
               "test", "--out", "test.json", "--device", "cpu") == 0
    assert json.loads((sets / "test.json").read_text())["parts"]["all"]["images"] == 2 * KINDS
    assert run(iterate, "--labeled", "labeled", "--val", "val", "--test", "test", "--unlabeled",
               "pool", "--arch", "0.25x0.34", *SMALL, "--threshold", "0", "--allow-chance",
               "--plan", "demo", "--image-size", "40", "--out", "run") == 0
    said = capsys.readouterr().out
    assert f"{2 * KINDS} labeled, {KINDS} unlabeled, {2 * KINDS} validation, " in said
    assert f"validation, {2 * KINDS} test images" in said and "left out" not in said
    assert "0 unreadable files skipped" in said


def test_files_that_are_no_images_are_counted_and_named_by_every_command(sets, capsys):
    for part in ("labeled", "val", "test"):
        (sets / part / "a" / f"notes of {part}.txt").write_text("not an image")
    (sets / "pool" / "notes of pool.txt").write_text("not an image")
    assert run(train, "--labeled", "labeled", "--val", "val", "--arch", "0.25x0.34", *SMALL,
               "--out", "teacher.pt") == 0
    said = capsys.readouterr().out
    assert "labeled/a: 1 files left out that cannot be read as images" in said
    assert all(f"{part}/a/notes of {part}.txt" in said for part in ("labeled", "val"))
    assert run(pseudo_label, "--teacher", "teacher.pt", "--unlabeled", "pool", "--held-out", "test",
               "--threshold", "0", "--out", "labels", "--device", "cpu") == 0
    said = capsys.readouterr().out
    assert "test/a/notes of test.txt" in said and "notes of pool.txt" in said


def test_a_held_out_folder_without_images_is_an_error(tmp_path):
    with pytest.raises(InputError, match=f"{tmp_path}: no images in it"):
        folders.fingerprints([tmp_path])


@pytest.mark.parametrize("system", ["@eaDir", "__MACOSX", ".thumbnails"])
def test_thumbnails_of_the_system_are_no_images_and_no_classes(tmp_path, system):
    for folder in (tmp_path, tmp_path / "a", tmp_path / "b"):
        write_odd_images(folder / system)
    write_odd_images(tmp_path / "a", 1)
    write_odd_images(tmp_path / "b", 2)
    found = folders.list_classes(tmp_path)
    assert found.classes == ("a", "b") and len(found) == 2 * KINDS
    assert len(list(folders.walk(tmp_path))) == 2 * KINDS


def test_a_pipe_among_the_images_is_left_out_and_waited_for_by_nobody(tmp_path, capsys):
    write_odd_images(tmp_path, 1)
    os.mkfifo(tmp_path / "pipe")
    assert len(folders.list_images(tmp_path)) == KINDS
