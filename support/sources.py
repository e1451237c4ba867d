"""Where the images come from, as the flags of a script say: folders, torchvision, or the demo."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from support import InputError, advice, cli, datasets, devices, files, folders, images, label_store
from support.images import ImageSet, Splits
from support.label_store import PseudoLabels

# Torchvision's reader, and its names for training set, test set and more images for the pool; the
# plan of iterate.PLANS that fits, and what these images change in train.TrainConfig.
PUBLISHED = {
    "cifar10": ("CIFAR10", (True, False), "cifar10", {}),
    "cifar100": ("CIFAR100", (True, False), "cifar10", {}),
    # authors: no flips; a mirrored digit is not a digit.
    "svhn": ("SVHN", ("train", "test", "extra"), "svhn", {"flip": False}),
    # At their own size: the 113,000 images are held in memory.
    "stl10": ("STL10", ("train", "test", "unlabeled"), "own", {"image_size": 96}),
    "imagenette": ("Imagenette", ("train", "val"), "own", {}),
}
IMAGENETTE = 9_469, 3_925  # its images for training and test


@dataclass(frozen=True)
class Source:
    """The images: your own, a published set, or by default the demo's"""

    labeled: cli.Folder | None = None  # your labelled images, one folder a class
    unlabeled: cli.Folder | None = None  # your unlabelled images, nested as you like
    test: cli.Folder | None = None  # your test images, one folder a class
    val: cli.Folder | None = None  # your validation images (default: some of the labelled ones)
    train: cli.Folder | None = None  # a fully labelled folder to split, for research
    labels_per_class: cli.Count | None = None  # labelled images per class; from folders, the first
    val_per_class: cli.Count | None = None  # validation images (default: a tenth; 50 in the demo)
    test_per_class: cli.Count | None = None  # the demo's test images of each class
    unlabeled_images: cli.Count | None = None  # size of the demo's pool
    dataset: Literal[tuple(PUBLISHED)] | None = None  # a published set, read by torchvision
    root: cli.Folder = "datasets"  # where torchvision keeps its datasets


# ---- Their images ----


def read_folders(source: Source, image_size: int, workers: int = 0) -> Splits:
    """Labelled, test and validation folders (<class>/<image>), and a pool of any nesting.

    Without `val` the labelled folder is split, and without `unlabeled` the pool is what
    `datasets.split` leaves of it, with its labels, as in research.
    """
    base = source.labeled or source.train
    for name in ("unlabeled", "test", "val"):
        folder = getattr(source, name)
        if folder and Path(base).resolve() in Path(folder).resolve().parents:
            raise InputError(f"--{name} {folder} lies in {base}, whose folders are classes: move "
                             "it elsewhere")
    labeled = folders.list_classes(base)
    test = folders.list_classes(source.test, labeled.classes)
    if source.val and source.val_per_class:
        raise InputError("--val and --val-per-class are both given; give one of the two")
    labeled, pool, validation = datasets.split(
        labeled, source.labels_per_class, 0 if source.val else source.val_per_class)
    if source.val:
        validation = folders.list_classes(source.val, labeled.classes)
    if source.unlabeled:
        pool = datasets.read_pool(source.unlabeled, labeled.classes)
    return datasets.read_splits(Splits(labeled, pool, validation, test), image_size, workers)


def read_published(source: Source, image_size: int, seed: int, workers: int = 0) -> Splits:
    """A set of PUBLISHED, read from `root` by torchvision and downloaded there if missing.

    The seed draws the labelled images (None: all others) and the validation images (None: a tenth)
    of each class from the training set; for Imagenette they follow the file names. The pool is the
    rest of the training set and, for SVHN and STL-10, their extra and unlabelled images. InputError
    if there is neither data nor network.
    """
    from torchvision import datasets as tv  # which takes as long to import as torch
    name, root, (reader, parts, _, _) = source.dataset, source.root, PUBLISHED[source.dataset]
    native = 160 if image_size <= 160 else 320  # Imagenette comes in both sizes
    edition = {"size": f"{native}px"} if name == "imagenette" else {}
    with devices.first_alone():  # until it has downloaded them
        try:
            found = [getattr(tv, reader)(root, part, download=True, **edition) for part in parts]
        except ImportError as error:  # SciPy, to read SVHN
            raise InputError(f"{name} needs a package: pip install {error.name}; the same command "
                             "then goes on") from error
        except (OSError, RuntimeError) as error:  # no network, damaged, ...
            reason = " ".join(str(error).split())
            raise InputError(f"{name}: neither found in {root} nor downloaded ({reason}); "
                             "put it there or connect this machine to the network") from error
    if name == "imagenette":
        home = Path(root, f"imagenette2-{native}")
        if tuple(map(len, found)) != IMAGENETTE:  # torchvision asks for the folder alone
            raise InputError(f"{home} is not whole: delete it, and run the same command again")
        source = replace(source, train=home / "train", test=home / "val")
        return read_folders(source, image_size, workers)

    train, test, *extra = map(as_set, found)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(train)))
    labeled, pool, validation = datasets.split(
        train.subset(order), source.labels_per_class, source.val_per_class)
    pool = replace(pool, labels=torch.cat([part.labels for part in (pool, *extra)]),
                   pixels=torch.cat([part.pixels for part in (pool, *extra)]))
    return datasets.read_splits(Splits(labeled, pool, validation, test), image_size, workers)


def as_set(dataset: object) -> ImageSet:
    """A torchvision dataset of arrays, as an ImageSet; if it names no classes, they are digits."""
    pixels, labels = torch.from_numpy(dataset.data), getattr(dataset, "targets", None)
    if pixels.shape[3] == 3:
        pixels = pixels.permute(0, 3, 1, 2)
    labels = torch.tensor(labels or dataset.labels, dtype=torch.int64)
    return ImageSet(labels, tuple(getattr(dataset, "classes", "0123456789")), pixels.contiguous())


# ---- By the flags of the loop ----

# The flags that each kind of source reads.
READS = {
    "train": ("test", "labels_per_class", "val_per_class"),
    "labeled": ("unlabeled", "test", "val", "val_per_class", "labels_per_class"),
    "dataset": ("labels_per_class", "val_per_class", "root"),
    "demo": ("labels_per_class", "val_per_class", "test_per_class", "unlabeled_images"),
}


def plan_for(source: Source, plan: str | None, start: str | None = None) -> tuple[str, dict]:
    """The plan, and what the images change in its train.TrainConfig.

    Where `plan` is None: finetune if training starts from the file `start`; else by the size of the
    images: in a folder, the median of about 50.
    """
    plan = plan or ("finetune" if start else None)
    if source.dataset:
        _, _, own, changes = PUBLISHED[source.dataset]
        return plan or own, changes
    folder = source.labeled or source.train
    if plan or folder is None:
        return plan or "demo", {}
    found = folders.list_classes(folder).files
    sides = sorted(max(images.read_image(file).size) for file in found[:: len(found) // 50 + 1])
    side = sides[len(sides) // 2]
    return ("cifar10", {"image_size": max(side, 32)}) if side <= 64 else ("own", {})


def choose(source: Source, plan: str, config, machine: devices.Machine, out: Path) -> Splits:
    """The images that the flags ask for, at the size and by the seed of a train.TrainConfig.

    InputError for a flag that nothing would read, or if `out`, where the loop's files will be,
    cannot be written or lies among the images.
    """
    image_size, workers = config.image_size, machine.workers
    files.require_place(out, [source.labeled, source.unlabeled, source.test, source.val,
                              source.train])
    given = {name: value for name, value in vars(source).items() if value != getattr(Source, name)}
    kind = next((name for name in READS if name in given), "demo")
    if unread := sorted(set(given) - {kind, *READS[kind]}):
        with_what = "the demo's images, only with others" if kind == "demo" else f"--{kind}"
        raise InputError(f"--{unread[0].replace('_', '-')} does not go with {with_what}: leave it "
                         "out")

    if kind == "train" and not (source.test and source.labels_per_class):
        raise InputError("--train needs --test DIR and --labels-per-class N")
    if kind == "labeled" and not (source.test and source.unlabeled):
        raise InputError("--labeled needs --unlabeled DIR and --test DIR")
    if kind in ("train", "labeled"):
        return read_folders(source, image_size, workers)
    if kind == "dataset":
        return read_published(source, image_size, config.seed, workers)
    if plan != "demo":
        raise InputError(f"plan {plan} needs images: give --labeled, --unlabeled and --test, or "
                         "--train and --test, or --dataset")
    if "unlabeled_images" in given:
        given["unlabeled"] = given.pop("unlabeled_images")
    return datasets.demo(config.seed, **given)


# ---- By the flags of one training ----


def read_training(flags, image_size: int,
                  workers: int = 0) -> tuple[ImageSet, ImageSet | None, PseudoLabels | None]:
    """(labelled, validation, pseudo-labelled) images by the flags of train.py."""
    if (flags.unlabeled is None) != (flags.pseudo_label_dir is None):
        raise InputError("--unlabeled and --pseudo-label-dir go together: give both or neither")
    if flags.pseudo_labels and not flags.pseudo_label_dir:
        raise InputError("--pseudo-labels says of what kind those in --pseudo-label-dir must "
                         "be: give both, or leave it out")
    if flags.fixed_resolution and not flags.start_from:
        raise InputError("--fixed-resolution needs --start-from: the network to fine-tune")
    if flags.fixed_resolution and flags.unlabeled:
        raise InputError("--fixed-resolution trains on labelled images alone: leave out "
                         "--unlabeled and --pseudo-label-dir")
    files.require_place(flags.out, [flags.labeled, flags.val, flags.unlabeled])
    listed, pseudo = folders.list_classes(flags.labeled), None
    if flags.unlabeled:
        pool = datasets.read_pool(flags.unlabeled, listed.classes, flags.out)
        kind = flags.pseudo_labels and {"kind": flags.pseudo_labels}
        pseudo = label_store.read(flags.pseudo_label_dir, pool, kind)
        if flags.val and pseudo.settings.get("held_out") == files.digest():  # of no image
            images.say_once("Warning: the pool may hold images of --val: none were --held-out")
    # All in memory or none: crops are cut from the central squares there, else from whole files.
    size = datasets.size_to_read(image_size, *([listed, pseudo.images] if pseudo else [listed]))
    labeled, validation = datasets.read_set(listed, size, workers)[0], None
    if flags.val:
        validation = datasets.read_folder(flags.val, image_size, labeled.classes, workers)
        if twice := datasets.shared(labeled, validation, ("labelled", "validation")):
            images.say_once(f"Warning: {twice} validation images are labelled images, too")
    if pseudo and size:
        pseudo = replace(pseudo, images=datasets.read_set(pseudo.images, size, workers)[0])
    return labeled, validation, pseudo


# ---- By the flags of one labelling ----


def read_unlabeled(flags, how: dict, classes: tuple[str, ...],
                   workers: int) -> tuple[ImageSet, frozenset[bytes]]:
    """The pool, and the fingerprints of the held-out images, as the flags of pseudo_label.py say.

    flags: pseudo_label.Flags; how: the fields of pseudo_label.Labelling that are given. InputError
    for flags that do not go together.
    """
    given = how | {name: value for name, value in vars(flags).items() if value}
    advice.of_labelling(how)
    if not flags.out and not flags.csv:
        raise InputError("give --out DIR for pseudo labels, or --csv FILE for predictions")
    if flags.csv and Path(flags.csv).is_dir():
        raise InputError(f"--csv {flags.csv} is a folder: give a file in it")
    if flags.shard and devices.world_size() > 1:
        raise InputError("--shard is for jobs without torchrun: torchrun's processes share the "
                         "pool by themselves: leave it out")

    if flags.csv:
        without, wrong = "--csv", given.keys() - {"teacher", "unlabeled", "csv", "top"}
    else:
        without, wrong = "--out, only with --csv", given.keys() & {"top"} if flags.top > 1 else ()
    if flags.images_of and not wrong:
        without = "--images-of, whose images are chosen already"
        wrong = given.keys() & set(label_store.SELECTION)
    if wrong:
        raise InputError(f"--{min(wrong).replace('_', '-')} does not go with {without}: leave it "
                         "out")
    files.require_place(flags.out or flags.csv, flags.held_out or ())
    pool = datasets.read_pool(flags.unlabeled, classes, flags.out or flags.csv)
    return pool, folders.fingerprints(flags.held_out or (), workers)
