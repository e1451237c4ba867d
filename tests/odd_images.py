"""Images as people have them: transparent icons, odd EXIF data, other formats, names and depths."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

# EXIF data with orientation 6 (turn by 90 degrees clockwise) and a rational number over zero, as a
# phone writes it; the same with text where a number belongs. Pillow reads but cannot write them.
ZERO_DENOMINATOR = bytes.fromhex(
    "45786966000049492a0008000000020012010300010000000600000069870400010000002600000000000000010004"
    "920a00010000003800000000000000feffffff00000000")
TEXT_FOR_NUMBER = bytes.fromhex(
    "45786966000049492a000800000003001201030001000000060000001a0102000400000033323130869207003200"
    "0000ffff000000000000")


def picture(seed: int, width: int = 40, height: int = 24) -> Image.Image:
    """Four areas of different colors, which tell how it was turned and survive compression."""
    random = np.random.default_rng(seed)
    corners = Image.fromarray(random.integers(40, 216, (2, 2, 3), np.uint8))
    return corners.resize((width, height), Image.Resampling.NEAREST)


def disc(seed: int, mode: str) -> tuple[Image.Image, Image.Image]:
    """A black disc on a transparent ground, and the same on white; the seed moves it."""
    y, x = np.mgrid[:24, :40]
    inside = (y - 12) ** 2 + (x - 12 - seed % 17) ** 2 < 80
    alpha = Image.fromarray(inside.astype(np.uint8) * 255)
    icon = Image.new("RGBA", (40, 24), (0, 0, 0, 0))
    icon.putalpha(alpha)
    white = Image.fromarray(np.where(inside[..., None], 0, 255).repeat(3, 2).astype(np.uint8))
    if mode == "P":  # black, and a transparent entry
        icon = Image.new("P", (40, 24))
        icon.putdata(inside.astype(int).ravel().tolist())
        icon.putpalette([0, 0, 0, 0, 0, 0])
        icon.info["transparency"] = 0
    return icon.convert("LA") if mode == "LA" else icon, white


def turned(seed: int, exif: bytes) -> tuple[bytes, Image.Image]:
    """A JPEG file that EXIF data says to turn, and the image as it should be seen."""
    file, image = io.BytesIO(), picture(seed)
    image.save(file, "JPEG", quality=95, subsampling=0)
    data = file.getvalue()
    segment = b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif
    return data[:2] + segment + data[2:], image.transpose(Image.Transpose.ROTATE_270)


def write_odd_images(folder: Path, seed: int = 0) -> dict[str, Image.Image]:
    """One image of each kind in the folder; by file name what is to be read from it."""
    folder.mkdir(parents=True, exist_ok=True)
    expected = {}
    for name, exif in ("phone.jpg", ZERO_DENOMINATOR), ("text.jpg", TEXT_FOR_NUMBER):
        data, expected[name] = turned(seed, exif)
        (folder / name).write_bytes(data)
    for name, mode in (("rgba.png", "RGBA"), ("la.png", "LA"), ("palette.png", "P"),
                       ("icon.webp", "RGBA"), ("icon.gif", "P"), ("icon.avif", "RGBA")):
        icon, expected[name] = disc(seed, mode)
        icon.save(folder / name, **{"lossless": True} if name.endswith("webp") else {})
    for name, format in (("photo.avif", "AVIF"), ("no suffix", "PNG"),
                         ("photo.jpg?width=640", "JPEG"), ("photo.jp2", "JPEG2000")):
        expected[name] = picture(seed + 1)
        expected[name].save(folder / name, format)
    levels = np.asarray(picture(seed + 2).convert("L")).astype(np.uint16)
    levels[0, 0] = 255  # so that the file's maximum shows how many bits are used
    for name, bits in ("12 bits.png", 12), ("16 bits.png", 16):
        Image.fromarray(levels << (bits - 8)).save(folder / name)
        expected[name] = Image.fromarray(levels.astype(np.uint8)).convert("RGB")
    Image.fromarray(levels.astype(np.int32)).save(folder / "8 of 32 bits.tif")
    expected["8 of 32 bits.tif"] = expected["12 bits.png"]
    return expected
