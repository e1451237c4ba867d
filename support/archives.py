"""The released test sets of section 3.3: their names, AlexNet's results, and how they are read.

    imagenet-a   <wnid>/*.jpg                               7,500 images, 200 of ImageNet's classes
    imagenet-c   <corruption>/<1..5>/<wnid>/*.JPEG          224x224 (Zenodo 2235448) or 299x299
    imagenet-p   <perturbation>/<wnid>/*.mp4                same sizes; 31 frames, 41 of translate;
                                                            Zenodo 3565846
    cifar10-c    <corruption>.npy, labels.npy               (50000, 32, 32, 3); Zenodo 2535967
    cifar100-c   <corruption>.npy, labels.npy               the same for CIFAR-100; Zenodo 3555552
    cifar10-p    <perturbation>.npy                         (10000, frames, 32, 32, 3)
    tiny-imagenet-c  <corruption>/<1..5>/<wnid>/*.JPEG      64x64, 200 classes; Zenodo 2536630
    others       <class>/*                                  any folder of class folders

ImageNet-C and -P may lie below the folders of their tar files (noise, blur, weather, digital).
One part is read at a time: a corruption at one severity, or a perturbation. InputErrors name the
file that is not as it should be.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from support import InputError, cli, corruptions, files, folders, images, reading
from support.images import ImageSet
from support.weights import IMAGENET, our_names

CIFAR100 = IMAGENET["cifar100"]
CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck".split()
# The baselines of ImageNet-C and -P: AlexNet's top-1 errors at the five severities of each of the
# 15 corruptions, in the benchmark's order, and its flip rates under the 10 perturbations.
_ALEXNET = json.loads(Path(__file__).with_name("alexnet.json").read_text())
ALEXNET_ERROR, ALEXNET_FLIP_RATE = _ALEXNET["error"], _ALEXNET["flip_rate"]

# The parts of a suite, measured and saved one by one: a corruption at one severity, a perturbation,
# an epsilon. The numbers are frames in a sequence; an image is a sequence of one.
SEVERE = {f"{name}/{severity}": 1 for name in ALEXNET_ERROR for severity in range(1, 6)}
MOVING = dict.fromkeys(ALEXNET_FLIP_RATE, 31) | {"translate": 41}
# CIFAR-10-P has spatter in the place of snow.
MOVING_CIFAR = {"spatter" if name == "snow" else name: corruptions.PERTURBATIONS.get(name, 31)
                for name in MOVING}
CLASSES = {"cifar10-c": 10, "cifar10-p": 10, "cifar100-c": 100, "tiny-imagenet-c": 200}
PARTS = {"imagenet": {"all": 1}, "imagenet-a": {"all": 1}, "imagenet-c": SEVERE,
         "imagenet-p": MOVING, "cifar10-c": SEVERE, "cifar100-c": SEVERE,
         "tiny-imagenet-c": SEVERE, "cifar10-p": MOVING_CIFAR,
         "fgsm": dict.fromkeys(["0", "1", "2", "4", "8", "16"], 1), "pgd": {"16": 1},
         "quick": {"all": 1}}


@dataclass(frozen=True)
class TestSet:
    """The test set"""

    suite: Literal[tuple(PARTS)]  # quick, imagenet, fgsm, pgd: any folder; others: archives
    data_dir: cli.Folder  # the unpacked archive, or <class>/ folders
    out: cli.File  # JSON; continued if it exists
    batch_size: cli.Batch | None = None  # images, or frames (default: as fit into a few GB)
    # paper: L2 is tested on corruptions before its fine-tuning at 800 pixels, on attacks after it.
    image_size: cli.Pixels | None = None  # pixels; default: those the network was trained on
    epsilon: list[cli.Level] | None = None  # white is 255 (default: fgsm 0 1 2 4 8 16, pgd 16)
    classes: Annotated[tuple[str, ...], cli.NO_FLAG] = ()  # in the order of the logits
    workers: Annotated[int, cli.NO_FLAG] = 0

    def fit(self, checkpoint, flags, workers: int) -> "TestSet":
        """This test set, set up for a network (of ImageNet's classes if its checkpoint names none).

        checkpoint: model.Checkpoint; flags: eval_robust.Flags. InputError if the test set cannot
        measure that network, or for a flag that nothing would read.
        """
        if flags.arch not in (None, checkpoint.arch):
            raise InputError(f"--arch {flags.arch}: {flags.checkpoint} is a {checkpoint.arch} and "
                             "says so itself; leave --arch out")
        for name in ("steps", "step_size", "random_start", "targeted"):
            if self.suite != "pgd" and getattr(flags, name) != getattr(type(flags), name):
                raise InputError(f"--{name.replace('_', '-')} is not for --suite {self.suite}, but "
                                 "for pgd: leave it out")
        if self.epsilon and self.suite not in ("fgsm", "pgd"):
            raise InputError(f"--epsilon is not for --suite {self.suite}, but for fgsm and pgd")
        if not Path(self.data_dir).is_dir():
            raise InputError(f"--data-dir {self.data_dir}: there is no such folder")

        classes, size = checkpoint.classes, self.image_size or checkpoint.image_size
        if self.suite == "quick" and size < 32:
            raise InputError(f"--suite quick needs 32 pixels or more, not {size}: give a larger "
                             "--image-size")
        if classes is None:
            outputs = len(our_names(checkpoint.weights)["classifier.bias"])
            raise InputError(f"released weights of {outputs} classes, not of ImageNet's 1000, do "
                             "not say which: train such a network with train.py")

        needed = CLASSES.get(self.suite, 1000)
        if "-" in self.suite and len(classes) != needed:
            raise InputError(f"--suite {self.suite} needs a network of {needed} classes, and this "
                             f"one has {len(classes)}; give another --checkpoint")
        known = {10: CIFAR10, 100: CIFAR100}.get(needed, classes)
        digits = [f"{number:0{len(str(needed - 1))}}" for number in range(needed)]
        if list(classes) not in ([*known], digits):
            raise InputError(f"--suite {self.suite} is of {images.first_names(known)}, this "
                             f"network of {images.first_names(classes)}: name class folders alike")

        # One's own images are told from others by all files of their folder.
        files.require_place(self.out, [] if "-" in self.suite else [self.data_dir])
        attacks = self.suite in ("fgsm", "pgd", "quick")
        most = reading.size_to_attack if attacks else reading.size_for
        return replace(self, classes=classes, image_size=size, workers=workers,
                       batch_size=self.batch_size or most(size),
                       data_dir=str(Path(self.data_dir).resolve()))

    def names(self) -> list[str]:
        """The parts to measure."""
        found = dict.fromkeys(f"{epsilon:g}" for epsilon in self.epsilon or ())  # each once
        return [*(found or PARTS[self.suite])]

    def digest(self) -> str:
        """A hash of the names and sizes of the user's own images; "" for a released archive."""
        if "-" in self.suite:
            return ""
        found = (*folders.walk(self.data_dir),)
        return images.digest(ImageSet(torch.zeros(len(found)), self.classes, files=found))

    def allowed(self) -> Sequence[int] | None:
        """The only classes that may be predicted; None: all."""
        return IMAGENET["imagenet_a"] if self.suite == "imagenet-a" else None

    def frames(self, name: str) -> int:
        """The length of a part's sequences."""
        return PARTS[self.suite].get(name, 1)

    def read(self, name: str, limit: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """A part's images (n * frames, 3, S, S) uint8 and labels (n * frames,) int64, as many whole
        sequences at a time as the batch size allows; a warning if it lacks some of the classes.

        limit: read only so many images or sequences, always the same ones, drawn from all.
        """
        (folder, _, severity), frames = name.partition("/"), self.frames(name)
        find = self._find_rows if self.suite.startswith("cifar") else self._find_files
        items, labels, decode = find(folder, severity, frames)
        if limit and len(items) > limit:
            chosen = torch.randperm(len(items), generator=torch.Generator().manual_seed(0))
            chosen = chosen[:limit].sort().values
            items, labels = [items[row] for row in chosen.tolist()], labels[chosen]
        count = max(1, self.batch_size // frames)
        chunks = [items[first: first + count] for first in range(0, len(items), count)]
        labels = labels.repeat_interleave(frames).split(count * frames)
        decoded = tqdm(reading.read(decode, chunks, self.workers, self.image_size), name,
                       len(chunks))
        for pixels, truth in zip(decoded, labels, strict=True):
            yield pixels.flatten(0, 1), truth

    # Both return a part's items (files, or rows of an array), their labels (N,) int64, and the
    # function that decodes one item to (frames, 3, S, S) uint8 in a worker process:

    def _find_files(self, folder: str, severity: str, frames: int) -> tuple:
        root = Path(self.data_dir)
        if self.suite in ("imagenet-c", "imagenet-p", "tiny-imagenet-c"):
            places = root / folder, *root.glob(f"[!.]*/{folder}")
            found = [path for path in places if path.is_dir()] or [root / folder]
            if len(found) > 1:
                raise InputError(f"{found[0]}, {found[1]}: give --data-dir the folder of one "
                                 "archive")
            root = found[0] / severity
        found = folders.list_images(root) if frames == 1 else [
            file for file in folders.walk(root) if file.lower().endswith(".mp4")]
        if not found:
            raise InputError(f"{root}: no <class>/*.mp4 in it")

        files, allowed = [*map(Path, found)], self.allowed() or range(len(self.classes))
        numbers = {self.classes[number]: number for number in allowed}
        found = [file.relative_to(root).parts[0] for file in files]
        for name in found:
            if name not in numbers:
                raise InputError(f"{root / name}: not a class of this test set and network")
        if lacking := sorted(numbers.keys() - set(found)):
            images.say_once(f"Warning: {root} has no images of {len(lacking)} of {len(numbers)} "
                            f"classes: {images.first_names(lacking)}")
        labels = torch.tensor([numbers[name] for name in found])
        return files, labels, partial(self._decode_file, frames=frames)

    def _find_rows(self, name: str, severity: str, frames: int) -> tuple:
        file = Path(self.data_dir, f"{name}.npy")
        rows = _read_array(file, (32, 32, 3) if severity else (frames, 32, 32, 3))
        decode = partial(_decode_row, size=self.image_size)
        if not severity:  # CIFAR-10-P has no labels
            return rows, torch.full((len(rows),), images.UNKNOWN), decode
        labels = _read_array(file.parent / "labels.npy", ()).astype(np.int64)
        if len(labels) != len(rows) or len(rows) % 5:
            raise InputError(f"{file}: {len(rows)} images, but {len(labels)} labels in five blocks")
        block = int(severity) - 1  # of the five, each in the order of the test set
        labels = torch.from_numpy(labels.reshape(5, -1)[block])
        return rows.reshape(5, -1, 32, 32, 3)[block], labels, decode

    def _decode_file(self, file: Path, frames: int) -> np.ndarray:
        # Sets of ImageNet's classes are not turned as EXIF says: their loaders do not, either.
        upright = self.classes != tuple(IMAGENET["wnids"])
        views = (_decode_video(file, frames) if frames > 1 else
                 [images.read_image(str(file), upright)])
        size, bicubic = (self.image_size, self.image_size), Image.Resampling.BICUBIC
        if self.suite in ("imagenet-c", "imagenet-p", "tiny-imagenet-c"):
            # section 3.3: "resize images to the resolution EfficientNet trained on": no crop.
            sides = (64,) if self.suite == "tiny-imagenet-c" else (224, 299)
            if views[0].size not in [(side, side) for side in sides]:
                raise InputError(f"{file}: {views[0].width}x{views[0].height} pixels; "
                                 f"{self.suite} has {' or '.join(map(str, sides))} a side")
            views = [view.resize(size, bicubic) for view in views]
        elif self.suite == "imagenet-a":
            # paper: silent on ImageNet-A; here: the whole central square, as A. E. Orhan, whom
            # it thanks, evaluated these networks.
            views = [ImageOps.fit(view, size, bicubic) for view in views]
        return np.stack([images.to_array(images.center_crop(view, size[0])) for view in views])


def _decode_row(pixels: np.ndarray, size: int) -> np.ndarray:
    frames = map(Image.fromarray, pixels.reshape(-1, 32, 32, 3))
    return np.stack([images.to_array(images.center_crop(frame, size)) for frame in frames])


def _read_array(file: Path, shape: tuple[int, ...]) -> np.ndarray:
    """An .npy of uint8 (N, *shape), left on the disk until it is indexed."""
    try:
        array = np.lib.format.open_memmap(file, mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{file}: cannot be read ({error})") from None
    if array.dtype != np.uint8 or array.shape[1:] != shape or not len(array):
        raise InputError(f"{file}: {array.dtype} {array.shape} instead of uint8 (N, *{shape})")
    return array


def _decode_video(file: Path, frames: int) -> list[Image.Image]:
    """The frames of a video of ImageNet-P."""
    try:
        import av
    except ImportError:
        raise InputError(f"{file}: videos need the package av (pip install av)") from None
    try:
        with av.open(str(file)) as video:
            decoded = [frame.to_image() for frame in video.decode(video=0)]
    except (av.FFmpegError, IndexError) as error:  # IndexError: no video in the file
        raise InputError(f"{file}: not a readable video ({error})") from None
    if len(decoded) != frames:
        raise InputError(f"{file}: {len(decoded)} frames instead of {frames}; is it truncated?")
    return decoded
