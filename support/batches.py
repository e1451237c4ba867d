"""The batches of a training: which images a step sees, and each image's random numbers.

All of it is a function of the run's seed and the step, so that a run continued in the middle sees
what it would have seen, and so that micro-batches, worker processes and the processes of torchrun
together get what one process alone would.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Generator, Tensor

from support import InputError, devices, files, images
from support.images import ImageSet
from support.label_store import PseudoLabels
from support.reading import clean, read

Crop = Callable[[Image.Image, int, Generator], Image.Image]  # image, pixels, generator -> image


def seed_of(*numbers: int) -> int:
    """One well-mixed seed from several numbers, such as a run's seed and a step."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


@dataclass(frozen=True)
class Chance:
    """Random numbers for images that are rows of a larger batch: the same as in the whole batch.

    Numbers are drawn from a CPU generator for the whole batch, and belong to positions in that.
    """

    generator: Generator | None  # None: torch's own
    rows: Tensor | slice  # (N,) positions of the images in the whole batch
    whole: int  # images of the whole batch

    @classmethod
    def of(cls, batch: Tensor, generator: Generator | None = None) -> "Chance":
        """For images (N, ...) that are a whole batch themselves."""
        return cls(generator, slice(None), len(batch))

    def randint(self, high: int, columns: tuple[int, ...] = ()) -> Tensor:
        """Integers from 0 to high - 1 for each image: (N, *columns) int64 on the CPU."""
        numbers = torch.randint(high, (self.whole, *columns), generator=self.generator)
        return numbers[self.rows]


@dataclass(frozen=True)
class Batch:
    """Images of a step, or a micro-batch of them: B labelled and then U pseudo-labelled ones."""

    images: Tensor  # (B + U, 3, H, W) uint8
    labels: Tensor  # (B,) int64
    targets: Tensor | None  # (U, num_classes) float32 or, if hard, (U,) int64; None: U = 0
    rows: Tensor  # (B + U,) positions in the step's whole batch
    whole: int  # rows of the step's whole batch, over all processes
    last: bool = True  # whether it is a step's last micro-batch

    def __len__(self) -> int:
        return len(self.images) * devices.world_size()

    @property
    def is_labeled(self) -> Tensor:
        """(B + U,) bool, on the images' device."""
        return devices.place(torch.arange(len(self.images)) < len(self.labels), self.images.device)

    def split(self, count: int, device: torch.device) -> Iterator["Batch"]:
        """`count` micro-batches with equal shares of both kinds of images, on the device."""
        labeled, order = len(self.labels), torch.arange(len(self.images))
        for number in range(count):
            chosen = slice(None) if count == 1 else torch.cat(
                [order[number:labeled:count], order[labeled + number:: count]])
            targets = self.targets
            if targets is not None:
                targets = devices.place(targets[number::count], device)
            yield Batch(devices.place(self.images[chosen], device),
                        devices.place(self.labels[number::count], device), targets,
                        self.rows[chosen], self.whole, last=number == count - 1)


def shuffled(size: int, batch_size: int, first: int, last: int, seed: int) -> Iterator[Tensor]:
    """Index batches `first` to `last` - 1 of an endless chain of shuffles of range(size).

    Batch t is a function of (size, batch_size, seed, t) alone. A batch may be larger than the set.
    """
    @lru_cache(maxsize=1)
    def order(number: int) -> Tensor:
        generator = Generator().manual_seed(seed_of(seed, number))
        return torch.randperm(size, generator=generator)

    for step in range(first, last):
        places = torch.arange(step * batch_size, (step + 1) * batch_size)  # in the chain
        numbers, rows = places // size, places % size
        yield torch.cat([order(n)[rows[numbers == n]] for n in numbers.unique().tolist()])


def _crop(key: tuple[int, int, int], source: ImageSet, image_size: int, seed: int,
          crop: Crop) -> np.ndarray:
    """A random crop of an image, determined by the seed, the step and the row in the batch alone.
    """
    index, step, row = key
    mixed = np.random.SeedSequence((seed, step, row)).generate_state(1, "u8")
    generator = Generator().manual_seed(int(mixed[0]))
    return images.to_array(crop(images.read_item(source.items[index]), image_size, generator))


def _stream(source: ImageSet, order: Iterator[Tensor], image_size: int, rows: Tensor, first: int,
            seed: int, crop: Crop | None, workers: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(indices, uint8 images) for each (n,) tensor of indices that `order` yields."""
    order, ahead = itertools.tee(order)  # worker processes are some batches ahead
    if crop is None:
        return zip(order, (batch for batch, _ in clean(source, ahead, image_size, workers)),
                   strict=True)
    source = source.at(image_size)
    keys = (list(zip(batch.tolist(), itertools.repeat(step), rows.tolist(), strict=False))
            for step, batch in enumerate(ahead, first))
    decode = partial(_crop, source=source, image_size=image_size, seed=seed, crop=crop)
    return zip(order, read(decode, keys, workers, image_size), strict=True)


def training(config, labeled: ImageSet, pseudo: PseudoLabels | None, crop: Crop | None,
             first: int = 0, workers: int = 0) -> Iterator[Batch]:
    """This process's batches of a training run, from step `first` to the last.

    Each has its share of B labelled and, with pseudo labels, r * B pseudo-labelled images.

    Args:
        config: train.TrainConfig.
        crop: crops the noised images, in the workers; None: their central squares.
    """
    world = devices.world_size()

    def stream(source: ImageSet, chosen: Tensor, size: int, number: int, noised: bool) -> Iterator:
        rows, seed = torch.arange(devices.rank(), size, world), seed_of(config.seed, number)
        steps = shuffled(len(chosen), size, first, config.total_steps, seed)
        return _stream(source, (chosen[batch[rows]] for batch in steps), config.image_size, rows,
                       first, seed, crop if noised else None, workers)

    count = config.batch_size
    pseudo_count = 0 if pseudo is None else count * config.unlabeled_ratio
    rows = torch.arange(devices.rank(), count, world)
    batches = stream(labeled, torch.arange(len(labeled)), count, 0, config.augment_labeled)
    if not pseudo_count:
        for index, pixels in batches:
            yield Batch(pixels, labeled.labels[index], None, rows, count)
        return
    pseudo_rows = count + torch.arange(devices.rank(), pseudo_count, world)
    pseudo_batches = stream(pseudo.images, torch.from_numpy(np.array(pseudo.balanced)),
                            pseudo_count, 1, config.augment_unlabeled)
    if not config.joint:  # pseudo-labelled images alone, at their rows of a joint batch
        rows, batches = rows[:0], itertools.repeat((rows[:0], labeled.pixels))
    for (index, pixels), (pseudo_index, pseudo_pixels) in zip(batches, pseudo_batches,
                                                              strict=False):
        targets = torch.from_numpy(pseudo.targets[pseudo_index.numpy()]).float()
        if pseudo.kind == "hard":
            targets = targets.argmax(1)
        pixels = torch.cat([pixels, pseudo_pixels]) if config.joint else pseudo_pixels
        yield Batch(pixels, labeled.labels[index], targets, torch.cat([rows, pseudo_rows]),
                    count + pseudo_count)


def check(config, labeled: ImageSet, pseudo: PseudoLabels | None, machine: devices.Machine,
          start: object = None) -> None:
    """InputError for a run that the devices or BatchNorm cannot handle, or that lacks a part."""
    device = torch.device(machine.device)
    if pseudo and not config.unlabeled_ratio:
        raise InputError("--unlabeled-ratio 0 leaves the pseudo labels out: give 1 or more")
    if config.frozen_stages and not start:
        raise InputError("--frozen-stages would freeze untrained layers: give --start-from")
    if not len(labeled):
        raise InputError("there are no labelled images to train on")

    if device.type == "xla" and machine.compile:
        raise InputError("--compile is not for XLA, which compiles by itself: leave it out")
    # On MPS a block that is computed again would draw other noise.
    if device.type in ("xla", "mps") and machine.checkpoint_blocks:
        raise InputError(f"--checkpoint-blocks is not for {device.type}: leave it out, or raise "
                         "--accumulation-steps to save memory")
    if machine.compile and machine.checkpoint_blocks and devices.world_size() > 1:
        raise InputError("--compile with --checkpoint-blocks is for one process: a compiled "
                         "SyncBatchNorm would see recomputed images as new ones; leave one out")
    if config.precision == "bfloat16" and (device.type == "cpu" or device.type == "cuda" and not (
            torch.cuda.is_bf16_supported(including_emulation=False))):
        images.say_once("Warning: most CPUs and old GPUs imitate bfloat16, slowly: give "
                        "--precision float32")

    count, parts = config.batch_size, config.accumulation_steps
    shares = devices.world_size() * devices.mesh_size(device)
    if count % (shares * parts):
        raise InputError(f"a batch of {count} labelled images cannot be shared by {shares} devices "
                         f"in {parts} micro-batches: change --batch-size")
    unlabeled, smallest_map = count * config.unlabeled_ratio, 8 if config.small_images else 32
    if pseudo is None:
        unlabeled = 0
    at_once = (unlabeled + count * (config.joint or not unlabeled)) // parts
    if at_once < 2 and config.image_size <= smallest_map:
        raise InputError("BatchNorm needs two images or more at once: raise --batch-size, or lower "
                         "--accumulation-steps")


def contents(labeled: ImageSet, validation: ImageSet | None,
             pseudo: PseudoLabels | None) -> dict[str, str]:
    """Hashes that tell one training run's images and labels from those of another.

    Of the pseudo labels, which may be millions, a few thousand are read.
    """
    def sample(rows: np.ndarray) -> np.ndarray:
        return rows[:: len(rows) // 4096 + 1]

    found = {name: files.digest(images.digest(source), source.labels)
             for name, source in (("labeled", labeled), ("validation", validation)) if source}
    if pseudo is not None:
        known = pseudo.images.pixels is None and pseudo.settings.get(images.OF_POOL)
        these = (known, pseudo.unique) if known else (images.digest(pseudo.images),)
        found["pseudo"] = files.digest(*these, pseudo.kind, sample(pseudo.targets),
                                       sample(pseudo.balanced))
    return found


def describe(results: list[tuple[Tensor, Tensor, Batch]]) -> dict[str, float]:
    """Losses on both kinds of images and agreement with their labels, over all processes.

    results: loss, logits (N, num_classes) and batch of each of this process's micro-batches.
    """
    values = {}
    for loss, logits, batch in results:
        logits = logits.float()
        labeled, unlabeled = logits[: len(batch.labels)], logits[len(batch.labels):]
        found = {"loss": loss}
        if len(labeled):
            found["loss_labeled"] = F.cross_entropy(labeled, batch.labels)
            found["accuracy_labeled"] = 100 * (labeled.argmax(1) == batch.labels).float().mean()
        if batch.targets is not None:
            hard = batch.targets if batch.targets.dim() == 1 else batch.targets.argmax(1)
            found["loss_unlabeled"] = F.cross_entropy(unlabeled, batch.targets)  # not smoothed
            found["agreement_unlabeled"] = 100 * (unlabeled.argmax(1) == hard).float().mean()
        for name, value in found.items():
            values.setdefault(name, []).append(value)
    means = devices.total(torch.stack([torch.stack(value).mean() for value in values.values()]))
    return dict(zip(values, (means / devices.world_size()).tolist(), strict=True))
