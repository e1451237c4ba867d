"""Many images: the one reader of batches, opening each of a set, applying a function to all."""

import contextlib
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, default_collate
from tqdm import tqdm
from tqdm.contrib.concurrent import process_map

from support import InputError, devices, files, images
from support.images import ImageSet

AT_ONCE = 128  # images that a worker hands over together, but at most 16 MiB


@dataclass(frozen=True)
class _Decoder:
    decode: Callable

    def __getitem__(self, keys: list) -> Tensor | list[Tensor] | InputError:
        try:
            return default_collate([self.decode(key) for key in keys])
        except InputError as error:  # raised here, it would carry a worker's traceback
            return error


def read(decode: Callable, batches: Iterable[list], workers: int = 0, side: int = 32) -> Iterator:
    """For each list of keys in `batches`, what `decode(key)` returns for these, stacked.

    `workers` processes decode parts of up to AT_ONCE keys, images of `side` pixels: each at most
    two parts ahead or, for larger batches, all of them together one batch. (`batches` may be
    endless.) An array becomes (B, ...), a tuple of arrays a list of these. `decode`'s InputError
    is raised here.
    """
    at_once = min(AT_ONCE, max(1, 2**24 // (3 * side**2)))
    own = torch.Generator()  # else the loader would draw from torch's global one
    batches = iter(batches)
    first = [*itertools.islice(batches, 1)]
    batches, ahead = itertools.tee(itertools.chain(first, batches))
    parts = (keys[row: row + at_once] for keys in ahead for row in range(0, len(keys), at_once))
    each = max(2, -(-sum(map(len, first)) // (at_once * workers))) if workers else None

    decoded = iter(DataLoader(_Decoder(decode), sampler=parts, batch_size=None,
                              num_workers=workers, prefetch_factor=each, generator=own))
    try:
        for keys in batches:
            yield _joined([next(decoded) for _ in range(0, len(keys), at_once)])
    except (ConnectionError, EOFError) as error:  # a worker has died; PyTorch has yet to say so
        time.sleep(1)  # so its signal handler raises here, not in whatever comes next
        raise RuntimeError("DataLoader worker gone: its connection is broken") from error
    finally:
        del decoded  # the workers end now, not with the last traceback that holds this frame


def _joined(parts: list) -> Tensor | list[Tensor]:
    """The parts of a batch, one after the other; one that is an InputError is raised."""
    for part in parts:
        if isinstance(part, InputError):
            raise part
    if len(parts) == 1:
        return parts[0]
    if isinstance(parts[0], Tensor):
        return torch.cat(parts)
    return [torch.cat(values) for values in zip(*parts, strict=True)]


def inspect_all(items: Sequence, size: int | None, workers: int = 0) -> list[tuple]:
    """`images.inspect` for each item: by worker processes if there are many, and by all processes
    of torchrun if they stay files. If it takes more than some seconds there is a progress bar.
    """
    look = partial(images.inspect, size=size)
    world = devices.world_size() if size is None else 1
    if world > 1:
        files.require_agreement(files.digest(items))
    own = [items[row] for row in range(devices.rank() % world, len(items), world)]
    bar = {"desc": "reading images", "delay": 3, "disable": devices.rank() > 0}
    try:
        if len(own) < 200 or not workers:
            found = [look(item) for item in tqdm(own, **bar)]
        else:
            found = process_map(look, own, max_workers=workers, chunksize=10, **bar)
    except InputError as error:
        found = error  # which all processes raise
    whole = [None] * len(items)
    for number, part in enumerate(devices.gathered(found) if world > 1 else [found]):
        if isinstance(part, InputError):
            raise part
        whole[number:: world] = part
    return whole


def _view(item: str | np.ndarray, image_size: int, held_out: frozenset[bytes] | None) -> tuple:
    if held_out is None:
        return images.to_array(images.center_crop(images.read_item(item), image_size)), True
    pixels, fingerprint = images.inspect(item, image_size)
    if isinstance(fingerprint, str) or fingerprint in held_out:
        return np.zeros((3, image_size, image_size), np.uint8), False
    return pixels, True


def clean(source: ImageSet, batches: Iterable[Tensor], image_size: int, workers: int = 0,
          held_out: frozenset[bytes] | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    """For each (B,) tensor of indices the central squares of the images, and which are usable.

    held_out: fingerprints of images that must not be labelled, for files not opened before: these
    images and unreadable files come out black and not usable. None: all are usable, and an
    unreadable file is an InputError. Yields ((B, 3, S, S) uint8, (B,) bool).
    """
    source = source.at(image_size)
    if source.size == image_size:
        for batch in batches:
            yield source.pixels[batch], torch.ones(len(batch), dtype=torch.bool)
    else:
        view, items = partial(_view, image_size=image_size, held_out=held_out), source.items
        yield from read(view, ([items[i] for i in batch.tolist()] for batch in batches), workers,
                        image_size)


def in_memory(source: ImageSet, image_size: int, workers: int = 0) -> ImageSet:
    """The images as pixels: a set in memory at that size as it is; of others, 2,000 * 32 /
    image_size but at least 200, always the same ones.
    """
    if source.size == image_size:
        return source
    limit = max(200, 2000 * 32 // image_size)
    rows = torch.randperm(len(source), generator=torch.Generator().manual_seed(0))[:limit]
    chosen = source.subset(rows.sort().values)
    parts = torch.arange(len(chosen)).split(100)
    pixels = torch.cat([batch for batch, _ in clean(chosen, parts, image_size, workers)])
    return ImageSet(chosen.labels, chosen.classes, pixels)


@contextlib.contextmanager
def evaluation_mode(network: nn.Module, noised: bool = False) -> Iterator[None]:
    """Inside, every module is in evaluation mode; afterwards each is back in its own.

    noised: dropout and stochastic depth are on; BatchNorm's batch statistics, no noise, are off.
    """
    modes = {module: module.training for module in network.modules()}
    try:
        for module in modes:
            module.training = noised and not isinstance(module, nn.BatchNorm2d)
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def size_for(image_size: int) -> int:
    """How many images to predict together: 500 of 128x128 pixels, fewer of larger ones.

    So L2's largest map at 800 pixels, 276 MB an image, takes 3 GB, and B0's at 224 less than 1 GB.
    """
    return max(1, 500 * 128**2 // max(128, image_size)**2)


def size_to_attack(image_size: int) -> int:
    """How many images to attack together: 250 of 64x64 pixels, fewer of larger ones.

    All maps are kept for the gradient: 2 GB for B0 at 224 pixels, 18 for one image of L2 at 800.
    """
    return max(1, 250 * 64**2 // max(64, image_size)**2)


def top_classes(predict: Callable[[ImageSet], Tensor], source: ImageSet, k: int) -> Tensor:
    """The k most probable classes (N, k) of all images, of which each process predicts some."""
    rows = torch.arange(devices.rank(), len(source), devices.world_size())
    found = torch.zeros(len(source), k, dtype=torch.int64)
    if len(rows):
        found[rows] = predict(images=source.subset(rows)).topk(k).indices
    return devices.total(found)


@torch.no_grad()
def evaluate(function: Callable[[Tensor], Tensor], source: ImageSet | Tensor,
             parts: Sequence[range], *, image_size: int, batch_size: int | None,
             device: torch.device | str, workers: int, seed: tuple[int, ...] | None,
             progress: str | None = None,
             held_out: frozenset[bytes] | None = None) -> Iterator[Tensor]:
    """For each of `parts`, ranges of the images, the rows (M, ...) of function(batch), on the CPU.

    The images are clean, and one reader, which is ahead, serves all parts.

    Args:
        batch_size: images per batch; None: what `size_for` says.
        seed: numbers that, with the part's first image and the batch's number in it, seed the
            random numbers of `function`; None: it draws none.
        held_out: see `clean`; the rows of images that are not usable are zero.
    """
    device = torch.device(device)
    if isinstance(source, Tensor):
        source = ImageSet(torch.full((len(source),), images.UNKNOWN), (), source)
    image_size = image_size or source.size
    if image_size is None:
        raise InputError("images that are files need an image_size, in pixels")

    size = max(1, min(batch_size or size_for(image_size), len(source)))
    size += -size % devices.mesh_size(device)
    order = (rows for part in parts for rows in torch.arange(part.start, part.stop).split(size))
    reader = clean(source, order, image_size, workers, held_out)
    with tqdm(desc=progress, total=sum(map(len, parts)), unit=" images",
              disable=progress is None) as bar:
        for part in parts:
            results, usable = [], []
            for number in range(max(1, -(-len(part) // size))):
                batch, good = next(reader)
                usable.append(good)
                if len(good) < size and device.type == "xla":  # filled up: it compiles once
                    batch = F.pad(batch, (0, 0) * 3 + (0, size - len(good)))
                numbers = None if seed is None else (*seed, part.start, number)
                with devices.own_chance(device, numbers):
                    results.append(devices.collect(function(devices.place(batch, device))))
                devices.finish_step(device)
                bar.update(len(good))

            # Fetched only now: a GPU works on a batch while the next one is read.
            rows = torch.cat([rows.cpu() for rows in results])[: len(part)]
            rows[~torch.cat(usable)] = 0
            yield rows
