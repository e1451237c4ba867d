"""The released test sets of section 3.3: their names, AlexNet's results, and how they are read.

    imagenet-a   <wnid>/*.jpg                               7,500 images, 200 of ImageNet's classes
    imagenet-c   <corruption>/<1..5>/<wnid>/*.JPEG          224x224 or 299x299; Zenodo 2235448
    imagenet-p   <perturbation>/<wnid>/*.mp4                as large; 31 frames; Zenodo 3565846
    cifar10-c    <corruption>.npy, labels.npy               (50000, 32, 32, 3); Zenodo 2535967
    cifar10-p    <perturbation>.npy                         (10000, frames, 32, 32, 3)
    others       <class>/*                                  any folder of class folders

ImageNet-C and -P may lie below the folders of their tar files (noise, blur, weather, digital). One
part is read at a time: a corruption at a severity, a perturbation. An image is a film of one frame
here, so that all are read alike. What is not whole is an InputError that names the file.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

import corruptions
import data
from data import InputError

# The 1000 classes ("wnids", in the order of the logits) and the 200 of them in ImageNet-A.
IMAGENET = json.loads((Path(__file__).parent / "imagenet_classes.json").read_text())
# AlexNet's top-1 errors at the five severities, the yardstick of ImageNet-C: measured by Hendrycks
# & Dietterich (2019), in the tracker of github.com/hendrycks/robustness. The order is the
# benchmark's.
ALEXNET_ERROR = {
    "gaussian_noise": (0.69528, 0.82542, 0.93554, 0.98138, 0.99452),
    "shot_noise": (0.71224, 0.85108, 0.93574, 0.98182, 0.99146),
    "impulse_noise": (0.78374, 0.89808, 0.94870, 0.98720, 0.99548),
    "defocus_blur": (0.65624, 0.73202, 0.85036, 0.91364, 0.94714),
    "glass_blur": (0.64308, 0.75054, 0.88806, 0.91622, 0.93344),
    "motion_blur": (0.58430, 0.70048, 0.82108, 0.89750, 0.92638),
    "zoom_blur": (0.70008, 0.76992, 0.80784, 0.84198, 0.87198),
    "snow": (0.71726, 0.88392, 0.86468, 0.91870, 0.94952),
    "frost": (0.61390, 0.79734, 0.88790, 0.89942, 0.93430),
    "fog": (0.67474, 0.76050, 0.84378, 0.87260, 0.94500),
    "brightness": (0.45140, 0.48502, 0.54048, 0.62166, 0.72440),
    "contrast": (0.64548, 0.76150, 0.88874, 0.97760, 0.99270),
    "elastic_transform": (0.52596, 0.70116, 0.55686, 0.64076, 0.80554),
    "pixelate": (0.52218, 0.54620, 0.73728, 0.87092, 0.91262),
    "jpeg_compression": (0.51002, 0.54718, 0.57294, 0.65458, 0.74778),
}
# AlexNet's flip rates on ImageNet-P, as listed in github.com/clovaai/assembled-cnn, mce/.
ALEXNET_FLIP_RATE = {
    "gaussian_noise": 0.23653, "shot_noise": 0.30062, "motion_blur": 0.09297, "zoom_blur": 0.05942,
    "snow": 0.11928, "brightness": 0.04889, "translate": 0.11007, "rotate": 0.13104,
    "tilt": 0.07050, "scale": 0.23531,
}

SEVERE = [f"{name}/{severity}" for name in ALEXNET_ERROR for severity in range(1, 6)]
# CIFAR-10-P has spatter in the place of snow.
CIFAR_P = [name if name != "snow" else "spatter" for name in ALEXNET_FLIP_RATE]
PARTS = {"imagenet-c": SEVERE, "imagenet-p": [*ALEXNET_FLIP_RATE],
         "cifar10-c": SEVERE, "cifar10-p": CIFAR_P}
# Films have 31 frames, with these exceptions.
FRAMES = {"imagenet-p": {"translate": 41}, "cifar10-p": corruptions.FRAMES}


def read_film(file: Path, frames: int) -> list[Image.Image]:
    """The frames of an ImageNet-P film."""
    try:
        import av
    except ImportError:
        raise InputError(f"{file}: films need the package av (pip install av)") from None
    try:
        with av.open(str(file)) as film:
            images = [frame.to_image() for frame in film.decode(video=0)]
    except (av.FFmpegError, IndexError) as error:  # IndexError: no video in the file
        raise InputError(f"{file}: not a readable film ({error})") from None
    if len(images) != frames:
        raise InputError(f"{file}: {len(images)} frames instead of {frames}; is it truncated?")
    return images


def read_file(file: Path, suite: str, size: int, frames: int) -> Tensor:
    """(frames, 3, size, size) uint8 of a film or, where frames is 1, of an image. All bicubic."""
    prepared = []
    for image in read_film(file, frames) if frames > 1 else [data.read_image(str(file))]:
        if suite in ("imagenet-c", "imagenet-p"):
            # Section 3.3: "resize images to the resolution EfficientNet trained on", so no crop.
            if image.size not in ((224, 224), (299, 299)):
                raise InputError(f"{file}: {image.width}x{image.height} pixels; ImageNet-C and -P "
                                 "have 224x224 or 299x299")
            image = image.resize((size, size), Image.Resampling.BICUBIC)
        elif suite == "imagenet-a":
            # paper: silent on ImageNet-A; here: the whole central square, as A. E. Orhan, whom
            # it thanks, evaluated these networks.
            image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
        prepared.append(torch.from_numpy(data.to_array(data.center_crop(image, size))))
    return torch.stack(prepared)


def list_labelled(folder: Path, classes: Mapping[str, int],
                  suffixes: tuple[str, ...]) -> tuple[list[Path], Tensor]:
    """The files of folder/<class>/, sorted, and their labels (N,) int64."""
    files = [Path(file) for file in data.list_files(folder) if file.lower().endswith(suffixes)]
    if not files:
        raise InputError(f"{folder}: no <class>/*{suffixes[0]} in it")
    for file in files:
        if file.parent.name not in classes:
            raise InputError(f"{file.parent}: not a class of this test set and network")
    return files, torch.tensor([classes[file.parent.name] for file in files])


def read_array(file: Path, shape: tuple[int, ...]) -> np.ndarray:
    """An .npy of uint8 (N, *shape), left on the disk until it is indexed."""
    try:
        array = np.load(file, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{file}: cannot be read ({error})") from None
    if array.dtype != np.uint8 or array.shape[1:] != shape:
        raise InputError(f"{file}: {array.dtype} {array.shape} instead of uint8 (N, *{shape})")
    return array


def list_rows(root: Path, name: str, severity: str,
              frames: int) -> tuple[Sequence[np.ndarray], Tensor | None]:
    """Films (frames, 32, 32, 3) of CIFAR-10-C or -P, and the labels (N,) int64 that -C has."""
    file = root / f"{name}.npy"
    if not severity:
        return read_array(file, (frames, 32, 32, 3)), None
    array, labels = read_array(file, (32, 32, 3)), read_array(root / "labels.npy", ())
    if len(labels) != len(array) or len(array) % 5:
        raise InputError(f"{file}: {len(array)} images, but {len(labels)} labels in five blocks")
    block = len(array) // 5  # one a severity, each in the order of the test set
    rows = slice(block * (int(severity) - 1), block * int(severity))
    return array[rows, None], torch.from_numpy(labels[rows].astype(np.int64))


def read_row(film: np.ndarray) -> Tensor:
    return torch.from_numpy(film.transpose(0, 3, 1, 2).copy())


def read_batches(read: Callable, items: Sequence, size: int, name: str) -> Iterator[Tensor]:
    """read(item) of `size` items, concatenated; threads decode while the caller computes."""
    chunks = [items[start : start + size] for start in range(0, len(items), size)]
    with ThreadPoolExecutor() as pool:
        upcoming = pool.map(read, chunks[0])
        for following in tqdm([*chunks[1:], []], desc=name):
            current, upcoming = upcoming, pool.map(read, following)
            yield torch.cat(list(current))


def read_part(suite: str, part: str, classes: Sequence[str], root: Path, image_size: int,
              batch_size: int) -> tuple[Iterator[Tensor], Tensor | None, int]:
    """The films of one part of a test set.

    Args:
        classes: names of the network's classes, in the order of its logits.
        image_size: pixels a side, for the files of ImageNet.
        batch_size: in frames.

    Returns:
        Batches (films * frames, 3, S, S) uint8, labels (N,) int64 or None, frames of a film.
    """
    name, _, severity = part.partition("/")
    frames = FRAMES[suite].get(name, 31) if suite in FRAMES else 1
    if suite.startswith("cifar10"):
        items, labels = list_rows(root, name, severity, frames)
        read = read_row
    else:
        if suite in ("imagenet-c", "imagenet-p"):
            folders = [path for path in root.glob(f"*/{name}") if path.is_dir()]
            root = (folders or [root / name])[0] / severity
        numbers = {name: number for number, name in enumerate(classes)}
        if suite == "imagenet-a":
            numbers = {classes[number]: number for number in IMAGENET["imagenet_a"]}
        suffixes = (".mp4",) if frames > 1 else data.IMAGE_SUFFIXES
        items, labels = list_labelled(root, numbers, suffixes)
        read = partial(read_file, suite=suite, size=image_size, frames=frames)
    films = max(1, batch_size // frames)
    return read_batches(read, items, films, f"{suite} {part}"), labels, frames
