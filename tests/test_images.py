"""Sets of images: files are found, decoded, cropped and recognised."""

import dataclasses
import errno
import os
import signal
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from noise_images import in_memory, noise, write_classes, write_files
from PIL import Image, ImageOps

from support import InputError, cli, files, folders, images, reading

# ---- Sets ----


def test_subset_keeps_order_and_repeats(tmp_path):
    filed = write_files(tmp_path)
    subset = filed.subset(torch.tensor([4, 1, 4]))
    assert subset.labels.tolist() == [0, 1, 0]
    assert subset.files == (filed.files[4], filed.files[1], filed.files[4])
    held = in_memory(filed)
    assert torch.equal(held.subset(torch.tensor([3, 3])).pixels, held.pixels[[3, 3]])


def test_the_digest_of_a_set_is_of_its_pixels_or_of_the_names_of_its_files(tmp_path):
    filed = write_files(tmp_path)
    held = in_memory(filed)
    for source in (filed, held):
        same, other = (source.subset(torch.tensor(rows)) for rows in ([*range(6)], [1, 0, 2]))
        assert images.digest(same) == images.digest(source) != images.digest(other)
    assert images.digest(filed) != images.digest(held)


# ---- Finding files ----


def test_a_pool_of_links_hidden_names_and_circles_is_listed_once_and_in_order(tmp_path):
    pool = write_classes(tmp_path / "pool", ["b", "a"], 1)
    (tmp_path / "elsewhere").mkdir()
    noise(500).save(tmp_path / "elsewhere" / "a.png")
    (pool / "link").symlink_to(tmp_path / "elsewhere")
    (pool / "circle").symlink_to(pool)
    (pool / ".hidden").mkdir()
    noise(501).save(pool / ".hidden" / "a.png")
    (pool / "notes.txt").write_text("not an image")
    found = ["notes.txt", "a/0000.png", "b/0000.png", "link/a.png"]
    assert list(folders.walk(pool)) == [str(pool / name) for name in found]
    assert folders.list_images(pool) == [str(pool / name) for name in found[1:]]


def test_names_that_are_not_text_can_be_shown():
    shown = images.first_names(["a.png", "b\udcff.png", "c.png", "d.png"])
    assert shown == "a.png, b\\udcff.png, c.png, ... (4 in all)"
    assert images.first_names(["a.png"]) == "a.png"


# ---- Decoding ----


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1"])
def test_every_kind_of_color_becomes_rgb(tmp_path, mode):
    file = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    Image.new("RGB", (4, 4), (255, 255, 255)).convert(mode).save(file)
    image = images.read_image(str(file))
    assert image.mode == "RGB" and image.getpixel((1, 1)) == (255, 255, 255)


def test_sixteen_bit_gray_keeps_its_range(tmp_path):
    Image.fromarray(np.full((4, 4), 128 * 256, np.uint16)).save(tmp_path / "gray.png")
    assert images.read_image(str(tmp_path / "gray.png")).getpixel((0, 0)) == (128, 128, 128)
    Image.fromarray(np.full((4, 4), 128 * 256, np.uint16)).save(
        tmp_path / "black.png", transparency=0)
    assert images.read_image(str(tmp_path / "black.png")).getpixel((0, 0)) == (128, 128, 128)
    (tmp_path / "gray.pgm").write_bytes(b"P5 4 4 65535 " + b"\x80\x00" * 16)
    assert images.read_image(str(tmp_path / "gray.pgm")).getpixel((0, 0)) == (128, 128, 128)


@pytest.mark.parametrize("pixels", [np.full((4, 4), 0.5, np.float32), np.full((4, 4), 2**20)])
def test_pixels_without_a_known_white_are_an_error(tmp_path, pixels):
    Image.fromarray(pixels.astype(np.float32 if pixels.dtype == np.float32 else np.int32)).save(
        tmp_path / "deep.tif")
    with pytest.raises(InputError, match="deep.tif: not a readable image"):
        images.read_image(str(tmp_path / "deep.tif"))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif"])
def test_exif_orientation_is_honored_once(tmp_path, name, orientation):
    """Pillow turns TIFFs by itself."""
    exif, upright = Image.Exif(), noise(0, width=8, height=4)
    exif[0x0112] = orientation
    upright.save(tmp_path / name, exif=exif, lossless=True)
    with Image.open(tmp_path / name) as image:
        expected = ImageOps.exif_transpose(image.convert("RGB") if name == "a.tif" else image)
    found = images.read_image(str(tmp_path / name))
    assert found.size == ((8, 4) if orientation < 5 else (4, 8))
    assert np.array_equal(found, expected.convert("RGB"))


def test_raw_data_of_a_camera_are_no_image_but_a_thumbnail(tmp_path):
    """A TIFF, to Pillow: beside its JPEG the same photograph would come twice."""
    for name in "photo.NEF", "photo.dng", "photo.tiff":
        noise(0).save(tmp_path / name, "TIFF")
    assert folders.list_images(tmp_path) == [str(tmp_path / "photo.tiff")]
    with pytest.raises(InputError, match="photo.NEF: not a readable image .*camera's raw data"):
        images.read_image(str(tmp_path / "photo.NEF"))


@pytest.mark.parametrize(("size", "box"), [
    (224, (125, 19, 387, 281)),  # int(300 * 224 / 256) = 262, rounded to the right and down
    (65, (156, 50, 357, 251)), (64, (106, 0, 406, 300)), (32, (106, 0, 406, 300))])
def test_a_center_crop_is_the_authors_fraction_and_of_small_images_the_whole_square(size, box):
    image = noise(0, width=512, height=300)
    expected = image.resize((size, size), Image.Resampling.BICUBIC, box)
    assert images.center_crop(image, size).tobytes() == expected.tobytes()
    assert images.center_crop(expected, size) is expected


# ---- Recognising images ----


def test_a_fingerprint_is_of_pixels_and_shape_not_of_name_and_format(tmp_path):
    noise(0).save(tmp_path / "a.png")
    noise(0).save(tmp_path / "b.bmp")
    noise(1).save(tmp_path / "c.png")
    Image.fromarray(np.asarray(noise(0)).reshape(4, 16, 3)).save(tmp_path / "wide.png")
    first, same, other, wide = (images.inspect(str(tmp_path / name), None)[1]
                                for name in ("a.png", "b.bmp", "c.png", "wide.png"))
    assert first == same == images.inspect(np.asarray(noise(0)), 8)[1]
    assert len({first, other, wide}) == 3


@pytest.mark.parametrize("error", [
    OSError(errno.ESTALE, "Stale file handle"), OSError(errno.EMFILE, "Too many open files"),
    OSError(errno.EHOSTDOWN, "Host is down"), OSError(errno.ESHUTDOWN, "Endpoint is shut down"),
    PermissionError(errno.EACCES, "Permission denied"), MemoryError()])
def test_a_failing_disk_or_machine_is_not_a_broken_image(monkeypatch, tmp_path, error):
    """Neither where images are listed (by content), nor where they are opened."""
    for name in "0", "0.png":
        noise(0).save(tmp_path / name, "PNG")

    def fail(*arguments, **options):
        raise error

    def read(file):
        return images.inspect(file, 8)

    def find(file):
        return folders.list_images(tmp_path)

    for module, function, act in ((images.Image, "open", read), (images.os, "stat", read),
                                  (images.Image, "open", images.read_image),
                                  (images.Image, "open", find)):
        with monkeypatch.context() as patch, pytest.raises(
                InputError, match="0(.png)?: cannot be opened at present .*continues") as caught:
            patch.setattr(module, function, fail)
            act(str(tmp_path / "0.png"))
        assert type(error).__name__ in str(caught.value)  # MemoryError says nothing itself
        assert not isinstance(caught.value, images.Unreadable)


def test_a_size_that_the_disk_does_not_tell_is_no_size(monkeypatch, tmp_path):
    """Else labels would belong to another pool; a broken link, a file's own fault, has none."""
    filed = write_files(tmp_path)
    before = images.digest(filed)
    (tmp_path / "dead").symlink_to("nowhere")
    images.digest(dataclasses.replace(filed, files=(*filed.files[:-1], str(tmp_path / "dead"))))

    def fail(file):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch, pytest.raises(InputError, match="opened at present"):
        patch.setattr(images.os.path, "getsize", fail)
        images.digest(filed)
    assert images.digest(filed) == before


def test_sizes_keep_the_order_of_the_names(tmp_path):
    names = []
    for number in range(50):
        names.append(str(tmp_path / f"{number}"))
        Path(names[-1]).write_bytes(bytes(number))
    assert images._sizes(names, part=7).tolist() == [*range(50)]


@pytest.mark.parametrize("empty", [True, False])
def test_images_that_vanish_with_their_folder_are_not_broken_ones(tmp_path, empty):
    """As after a network disk has dropped out; one that vanishes alone is left out, and named."""
    pool = tmp_path / "pool"
    if empty:
        pool.mkdir()
    with pytest.raises(InputError, match="0.png: cannot be opened at present"):
        images.inspect(str(pool / "0.png"), 8)
    pool.mkdir(exist_ok=True)
    noise(0).save(pool / "1.png")
    assert images.inspect(str(pool / "0.png"), 8)[0] is None


def test_a_huge_image_left_out_of_a_pool_tells_of_the_limit(monkeypatch, tmp_path, capsys):
    noise(0, 90, 90).save(tmp_path / "0.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert images.inspect(str(tmp_path / "0.png"), 8)[0] is None
    assert "more pixels than --megapixels allows" in "".join(capsys.readouterr())


def killed(item, size):
    if item == "the last straw":
        os.kill(os.getpid(), signal.SIGKILL)
    return None, b"\0" * 16


@dataclass(frozen=True)
class Flags:
    """Read images"""


def read_until_killed(flags: Flags) -> None:
    reading.inspect_all(["a file"] * 2500 + ["the last straw"], None, workers=2)


def test_a_killed_process_that_reads_images_is_one_line_and_no_hang(monkeypatch, capsys):
    monkeypatch.setattr(images, "inspect", killed)
    assert cli.run(read_until_killed, []) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "was killed, most likely as the memory" in said and "--workers" in said


def test_an_error_of_one_process_is_that_of_all_and_so_are_lists_that_differ(monkeypatch):
    """As the second of two processes."""
    names, fine = ["a.jpg", "b.jpg", "c.jpg"], [(None, b"0"), (None, b"2")]
    monkeypatch.setattr(images, "inspect", killed)
    monkeypatch.setattr(images.devices, "rank", lambda: 1)
    monkeypatch.setattr(images.devices, "world_size", lambda: 2)

    def found(first_names, by_first):
        monkeypatch.setattr(images.devices, "gathered", lambda own: [
            files.digest(first_names) if isinstance(own, str) else by_first, own])
        return reading.inspect_all(names, None)

    own = None, b"\0" * 16  # what `killed` makes of its share, and of all that it has to hold
    assert found(names, fine) == [fine[0], own, fine[1]]
    assert reading.inspect_all(names, 8) == [own] * 3
    with pytest.raises(InputError, match="cannot be opened at present"):
        found(names, InputError("a.jpg: cannot be opened at present"))
    with pytest.raises(InputError, match="find different images"):
        found(["a.jpg", "aa.jpg", "c.jpg"], fine)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_as_many_processes_read_many_files_as_there_are_workers(monkeypatch, workers):
    started = []

    def process_map(function, items, max_workers, **_):
        started.append(max_workers)
        return [function(item) for item in items]

    monkeypatch.setattr(reading, "process_map", process_map)
    monkeypatch.setattr(images, "inspect", killed)
    assert len(reading.inspect_all(["a file"] * 2000, None, workers=workers)) == 2000
    assert started == ([workers] if workers else [])


def test_many_files_are_read_by_worker_processes_with_the_same_result(tmp_path):
    files = [str(tmp_path / f"{i}.png") for i in range(50)]
    for i, file in enumerate(files[:-1]):
        noise(i).save(file)
    one_by_one = reading.inspect_all(files, 8)
    parallel = reading.inspect_all(files * 5, 8, workers=2)
    assert len(parallel) == 250
    for i in (0, 7, 48, 49):
        for j in (i, i + 50 * 4):
            assert np.array_equal(one_by_one[i][0], parallel[j][0])
            assert one_by_one[i][1] == parallel[j][1]
    assert parallel[49][0] is None and "49.png: not a readable image" in parallel[49][1]
