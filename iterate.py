"""Noisy Student Training from end to end (Algorithm 1): the loop, and the report on it.

    teacher  <- train on labelled images
    repeat:
        pseudo labels <- the clean teacher on the unlabelled pool, filtered and balanced
        student       <- train on labelled and pseudo-labelled images, noised, equal or larger
        teacher       <- student

    python iterate.py                                      built-in images, a few minutes on a CPU
    python iterate.py --dataset cifar10 --labels-per-class 400    4,000 labels, on a GPU
    python iterate.py --labeled DIR --unlabeled DIR --test DIR --arch b0
    python iterate.py --train DIR --labels-per-class 400 --val-per-class 500 --test DIR

The run directory holds config.json, log.jsonl, a checkpoint, the pseudo labels and the robustness
of each generation, report.json and report.png. The same command again continues where it stopped.
"""

import argparse
import contextlib
import fcntl
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

import data
import device as devices
import eval_robust
import model
import pseudo_label
import report
import train
from data import ImageSet, InputError, Splits
from train import TrainConfig


@dataclass(frozen=True)
class Generation:
    """One model of the loop, and how its pseudo labels are chosen (a teacher has none)."""

    name: str
    config: TrainConfig
    threshold: float = 0.3  # of confidence, section 3.1
    # Images of each class after balancing. paper, section 3.1: 130,000 of 300 M images and 1000
    # classes; None: the pool's size over the number of classes.
    per_class: int | None = None
    temperature: float = 1.0  # of soft pseudo labels
    # Pixels of the fine-tuning after the training, train.resolution_fix; None: there is none.
    fixed_resolution: int | None = None

    def __post_init__(self):
        if not 0 <= self.threshold < 1:
            raise ValueError(f"threshold must be 0 or more and below 1, not {self.threshold}")
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"temperature must be more than 0, not {self.temperature}")
        for name in ("per_class", "fixed_resolution"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, not {getattr(self, name)}")
        if self.fixed_resolution and self.fixed_resolution < self.config.image_size:
            raise ValueError(f"fixed_resolution {self.fixed_resolution} must not be smaller than "
                             f"image_size {self.config.image_size}")


# What the small plans change, and why: a hundred or a few thousand labels are seen hundreds of
# times in minutes instead of days, so Adam's step replaces RMSProp's (which needs a warm-up of many
# epochs), a cosine to zero the decay by 0.97, and the averages are over shorter spans.
SMALL = TrainConfig(
    image_size=32, rand_augment_magnitude=5, optimizer="adamw", weight_decay=0.02,
    schedule="cosine",
)
# paper: two operations, pseudo labels as they are; here: one operation, since two leave models of
# this size underfit, and pseudo labels sharpened by a temperature, both chosen on validation.
DEMO = replace(
    SMALL, arch="0.25x0.5", rand_augment_operations=1, dropout=0.2, batch_size=64,
    unlabeled_ratio=2, learning_rate=0.04, ema_decay=0.98, epochs=750, evaluate_epochs=75,
)
# Half the rate, at which 4,000 labels train more steadily (results/cifar10.md), and as many
# pseudo-labelled images as labelled ones, for the time's sake.
CIFAR_CPU = replace(DEMO, arch="0.5x0.5", unlabeled_ratio=1, learning_rate=0.02, ema_decay=0.99,
                    epochs=150, evaluate_epochs=10)
# Its teacher as the authors' B0: no RandAugment; with it, it is worse on validation.
CIFAR_CPU_TEACHER = replace(CIFAR_CPU, rand_augment_operations=0)
# authors: no RandAugment for B0 and B1 on ImageNet; here: some, as own sets have fewer labels.
OWN = replace(
    SMALL, arch="b0", image_size=224, dropout=0.2, batch_size=64, unlabeled_ratio=3,
    rand_augment_magnitude=6, learning_rate=0.002, ema_decay=0.999, epochs=100, evaluate_epochs=5,
)
CIFAR = replace(
    SMALL, arch="b0", small_images=True, dropout=0.2, batch_size=128, unlabeled_ratio=7,
    learning_rate=0.004, ema_decay=0.999, epochs=200, evaluate_epochs=10, precision="bfloat16",
)
L2 = train.recipe("l2")  # trained at 475 pixels, tested at 800

PLANS: dict[str, tuple[Generation, ...]] = {
    "demo": (
        Generation("teacher", DEMO),
        Generation("student 1", DEMO, per_class=800, temperature=0.5),
        Generation("student 2", replace(DEMO, arch="0.35x0.5"), per_class=800, temperature=0.5),
    ),
    "cifar10-cpu": (
        Generation("teacher", CIFAR_CPU_TEACHER),
        Generation("student 1", CIFAR_CPU, temperature=0.5),
        Generation("student 2", CIFAR_CPU, temperature=0.5),
    ),
    "cifar10": (
        Generation("teacher", CIFAR),
        Generation("student 1", CIFAR),
        Generation("student 2", CIFAR),
    ),
    "own": (Generation("teacher", OWN), Generation("student 1", OWN), Generation("student 2", OWN)),
    # Table 7: B7, then L2 three times, the last with twice the unlabelled images in a batch.
    "paper": (
        Generation("teacher", train.recipe("b7")),
        Generation("student 1", L2, per_class=130_000, fixed_resolution=800),
        Generation("student 2", L2, per_class=130_000, fixed_resolution=800),
        Generation("student 3", replace(L2, unlabeled_ratio=28), per_class=130_000,
                   fixed_resolution=800),
    ),
}


def check_sizes(generations: tuple[Generation, ...], classes: int) -> list[int]:
    """Parameters of each generation; InputError if a student is smaller than its teacher."""
    sizes = []
    for generation in generations:
        with torch.device("meta"):
            sizes.append(model.count_parameters(train.build_model(generation.config, classes)))
    for number in range(1, len(sizes)):
        if sizes[number] < sizes[number - 1]:
            raise InputError(
                f"{generations[number].name} ({generations[number].config.arch}, {sizes[number]:,} "
                f"parameters) is smaller than its teacher ({generations[number - 1].config.arch}, "
                f"{sizes[number - 1]:,}): the method wants it equal or larger; choose a larger "
                "--arch, or pass --allow-smaller-student"
            )
    return sizes


def measure_robustness(network: model.EfficientNet, images: ImageSet, path: Path,
                       device: torch.device, name: str) -> dict | None:
    """The quick suite on 32x32 images, kept in `path` for a second start; None for other images."""
    if images.pixels is None or images.pixels.shape[-1] != 32 or len(images) < 5:
        return None
    of = {"weights": pseudo_label.teacher_hash(network), **pseudo_label.pool_settings(images)}
    if devices.rank() == 0 and (not path.exists() or json.loads(path.read_text())["of"] != of):
        results = eval_robust.quick_suite(eval_robust.from_pixels(network, device), images.pixels,
                                          images.labels, progress=name)
        data.write_json(path, {"of": of, "results": results})
    devices.wait_for_all()
    return json.loads(path.read_text())["results"]


def iterate(generations: tuple[Generation, ...], splits: Splits, out: Path,
            device: torch.device, *, filter_pool: bool = True, balance: bool = True,
            joint: bool = True, from_teacher: bool = False, labels_only: bool = True,
            noised_teacher: bool = False, robustness: bool = True, workers: int = 2,
            **options) -> dict:
    """Run Algorithm 1 and return the report; what is complete in `out` already is not run again.

    Args:
        generations: the teacher and its students, in order.
        filter_pool, balance: False leaves that step of section 3.1 out.
        joint: False trains a student on the pseudo labels first and then on the labels (finding 6).
        from_teacher: a student starts from its teacher's weights, not from scratch (finding 8).
        noised_teacher: label with the noise of the teacher's training (table 6).
        labels_only: also train each student's model on the labels alone, with the student's noise
            and as many steps, so that what it gains is neither the model's, nor RandAugment's, nor
            that of a longer training.
        robustness: also run eval_robust.quick_suite on 32x32 test images.
        options: what else train.train takes: compiled, checkpoint_blocks.
    """
    common, checkpoints, rows = {"device": device, "workers": workers}, [], []
    alone, alone_of = {}, []  # configuration -> checkpoint trained on labels alone; each student's
    fair_share = max(1, len(splits.unlabeled) // len(splits.labeled.classes))

    def learn(config: TrainConfig, name: str, *pseudo_labelled, start: Path | None = None) -> Path:
        return train.train(
            config, splits.labeled, splits.validation, *pseudo_labelled, start=start,
            out=out / f"{name.replace(', ', '-').replace(' ', '-')}.pt", log=out / "log.jsonl",
            name=name, **common, **options,
        )

    def fix_resolution(checkpoint: Path, config: TrainConfig, size: int | None, name: str) -> Path:
        if size is None:
            return checkpoint
        fixed = train.resolution_fix(config, size)
        return learn(fixed, f"{name}, {size} px", start=checkpoint)

    for number, generation in enumerate(generations):
        config, name = generation.config, generation.name
        row = {"name": name, "arch": config.arch, "unlabeled": None, "pseudo_label_top1": None}
        if number == 0:  # Algorithm 1, step 1
            checkpoint = learn(replace(config, unlabeled_ratio=0), name)
        else:
            # Steps 2 and 4: the last model is the teacher.
            # paper: B0 chooses the images once, later teachers only label them again (that is
            # pseudo_label.py --images-of); here: every teacher chooses, since labelling a small
            # pool costs seconds and the later ones are better at it.
            teacher, known = pseudo_label.load_teacher(checkpoint, device)
            noise = pseudo_label.noise_of(known) if noised_teacher else None
            labels = pseudo_label.label(
                teacher, splits.unlabeled, out / f"{name.replace(' ', '-')}-labels",
                image_size=known["image_size"], kind=config.pseudo_labels,
                threshold=generation.threshold if filter_pool else 0.0,
                temperature=generation.temperature,
                per_class=generation.per_class or fair_share, balance=balance, seed=config.seed,
                noise=noise, progress=f"{name}: labelling", **common,
            )
            row |= {"unlabeled": labels.counts, "pseudo_label_top1": labels.top1}
            chosen = splits.unlabeled.subset(torch.tensor(labels.index))
            pseudo_labelled = (chosen, labels.targets, labels.selection)
            start = checkpoint if from_teacher else None
            if joint:  # step 3, the joint loss
                checkpoint = learn(config, name, *pseudo_labelled, start=start)
            else:
                pretrained = learn(replace(config, joint=False), f"{name}, pretrained",
                                   *pseudo_labelled, start=start)
                # paper: does not say how; here: a tenth of the learning rate, as long as before.
                finetuned = replace(config, unlabeled_ratio=0, warmup_epochs=0.0,
                                    learning_rate=config.learning_rate / 10)
                checkpoint = learn(finetuned, name, start=pretrained)
        checkpoint = fix_resolution(checkpoint, config, generation.fixed_resolution, name)
        # The student without the pool: its model, its noise on labelled images, its steps.
        # section 3.2: "We apply RandAugment to all EfficientNet baselines"
        settings = replace(config, unlabeled_ratio=0, augment_unlabeled=True,
                           model_noise_unlabeled=True)
        if number == 0:
            alone[settings] = checkpoint
        elif labels_only and settings not in alone:
            title = f"{name}, labels only"
            alone[settings] = fix_resolution(learn(settings, title), settings,
                                             generation.fixed_resolution, title)
        alone_of.append(alone.get(settings) if number else None)
        checkpoints.append(checkpoint)
        rows.append(row)

    # Every choice is made: only now is the test set read.
    def test(checkpoint: Path) -> tuple[float, model.EfficientNet, dict]:
        network, known = pseudo_label.load_teacher(checkpoint, device)
        return train.top1(network, splits.test, known["image_size"], **common), network, known

    for row, checkpoint, without_pool in zip(rows, checkpoints, alone_of, strict=True):
        row["test_top1"], network, known = test(checkpoint)
        row["val_top1"], row["parameters"] = known["val_top1"], model.count_parameters(network)
        row["labels_only_test_top1"] = test(without_pool)[0] if without_pool else None
        row["robustness"] = None
        if robustness:
            kept = checkpoint.with_name(f"{checkpoint.stem}-robustness.json")
            row["robustness"] = measure_robustness(network, splits.test, kept, device, row["name"])
        if row["robustness"]:
            row["robustness"] |= eval_robust.relative_to(rows[0]["robustness"], row["robustness"])
    return {"seed": generations[0].config.seed, "notes": splits.notes, "generations": rows}


# ------------------------------------------------------------------ command line


# Where images come from, and the flags that each source reads.
SOURCES = {
    "train": ("test", "labels_per_class", "val_per_class"),
    "labeled": ("unlabeled", "test", "val", "val_per_class"),
    "dataset": ("labels_per_class", "val_per_class"),
    "demo": ("labels_per_class", "val_per_class", "test_per_class", "unlabeled_images"),
}


def read_splits(arguments: argparse.Namespace, plan: str, image_size: int) -> Splits:
    """The images that the command line asks for; InputError for a flag that nothing would read."""
    given = {name for name in {*SOURCES, *sum(SOURCES.values(), ())} - {"demo"}
             if getattr(arguments, name) is not None}
    source = next((name for name in SOURCES if name in given), "demo")
    if unread := sorted(given - {source, *SOURCES[source]}):
        with_what = "the demo's images" if source == "demo" else f"--{source}"
        raise InputError(f"--{unread[0].replace('_', '-')} does not go with {with_what}: leave it "
                         "out, or give --labeled, --unlabeled and --test")
    if arguments.train:
        if not arguments.test or arguments.labels_per_class is None:
            raise InputError("--train needs --test DIR and --labels-per-class N")
        return data.split_folder(arguments.train, arguments.test, arguments.labels_per_class,
                                 arguments.val_per_class, image_size)
    if arguments.labeled:
        if not arguments.test or not arguments.unlabeled:
            raise InputError("--labeled needs --unlabeled DIR and --test DIR")
        return data.folders(arguments.labeled, arguments.unlabeled, arguments.test, arguments.val,
                            arguments.val_per_class, image_size=image_size)
    if arguments.dataset:
        return data.torchvision_splits(
            arguments.dataset, arguments.root, arguments.labels_per_class,
            arguments.val_per_class, image_size=image_size, seed=arguments.seed,
        )
    if plan == "demo":
        sizes = {"labels_per_class": arguments.labels_per_class,
                 "val_per_class": arguments.val_per_class,
                 "test_per_class": arguments.test_per_class,
                 "unlabeled": arguments.unlabeled_images}
        return data.demo(arguments.seed, **{k: v for k, v in sizes.items() if v is not None})
    raise InputError(f"plan {plan} needs images: give --labeled, --unlabeled and --test, or "
                     "--train and --test, or --dataset")


def choose_generations(arguments: argparse.Namespace, plan: str) -> tuple[Generation, ...]:
    """The plan's generations with the command line's changes."""
    if plan not in PLANS:
        raise InputError(f"unknown plan {plan!r}: use one of {', '.join(PLANS)}")
    generations, changes = PLANS[plan], train.config_overrides(arguments)
    changes = {key: value for key, value in changes.items() if key not in ("arch", "joint")}
    archs = arguments.arch or [generation.config.arch for generation in generations]
    if len(archs) == 1:
        archs = archs * len(generations)
    chosen = []
    for number, arch in enumerate(archs):
        generation = generations[min(number, len(generations) - 1)]
        config, own = generation.config, {"arch": arch}
        if plan == "paper" and arch != config.arch:  # 800 pixels are L2's
            config = train.recipe(arch)
            generation = replace(generation, fixed_resolution=800 if arch == "l2" else None)
        elif arguments.arch and arch in model.SCALING:
            own["dropout"] = model.SCALING[arch].dropout
            if plan == "own":
                own["image_size"] = model.SCALING[arch].resolution
        if not arguments.noise and number > 0:  # table 6, "student w/o Aug, SD, Dropout"
            own |= {"augment_unlabeled": False, "model_noise_unlabeled": False}
        name = "teacher" if number == 0 else f"student {number}"
        config = replace(config, **own | changes)
        chosen.append(replace(
            generation, name=name, config=config,
            **{name: getattr(arguments, name)
               for name in ("threshold", "per_class", "temperature", "fixed_resolution")
               if getattr(arguments, name) is not None},
        ))
    return tuple(chosen)


def default_plan(arguments: argparse.Namespace) -> tuple[str, int | None]:
    """The plan for images that come without one, and the pixels that replace the plan's.

    Both by the size of the images, of which a folder's first one tells.
    """
    folder = arguments.labeled or arguments.train
    if arguments.dataset:
        return "own" if arguments.dataset in ("stl10", "imagenette") else "cifar10", None
    if folder is None:
        return "demo", None
    first = next(file for files in data.list_classes(folder).values() for file in files)
    side = max(data.read_image(first).size)
    return ("cifar10", max(side, 32)) if side <= 64 else ("own", None)


@contextlib.contextmanager
def claim_directory(out: Path, config: dict) -> Iterator[None]:
    """Make the run directory, or check that it belongs to this very run; no other may run in it."""
    path = out / "config.json"
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            data.write_json(path, config)
        same = json.loads(path.read_text()) == json.loads(json.dumps(config))
    except OSError as error:
        raise InputError(f"{out}: no place for a run ({error}); choose another --out") from None
    except ValueError:
        raise InputError(f"{path} is damaged: remove it, or choose another --out") from None
    if not same:
        raise InputError(f"{out} holds a run with other settings: choose another --out")
    with open(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{out}: another process is at this run; wait for it, or choose "
                             "another --out") from None
        except OSError:
            pass  # a file system without locks
        yield


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Noisy Student Training: teacher, pseudo labels, student, and again.",
        epilog="Without any flag: the demo on built-in images.",
    )
    add = parser.add_argument
    add("--plan", choices=tuple(PLANS), help="generations and their training (default: demo; for "
        "other images own, or cifar10 up to 64 pixels)")
    add("--out", metavar="DIR", help="run directory (default: runs/PLAN); continued if it exists")
    add("--device", default="auto", choices=devices.NAMES)
    add("--workers", type=int, default=2, help="processes that decode images")
    add("--seed", type=int, default=0)
    train.add_run_flags(parser)
    images = parser.add_argument_group("images")
    add = images.add_argument
    add("--labeled", metavar="DIR", help="your labelled images, one folder a class")
    add("--unlabeled", metavar="DIR", help="your unlabelled images, nested as you like")
    add("--test", metavar="DIR", help="your test images, one folder a class")
    add("--val", metavar="DIR", help="your validation images (default: some of the labelled ones)")
    add("--train", metavar="DIR", help="a fully labelled folder to split, for research")
    add("--labels-per-class", type=int, metavar="N", help="labelled images of each class")
    add("--val-per-class", type=int, metavar="N", help="validation images of each class "
        "(default: a tenth; 50 in the demo)")
    add("--test-per-class", type=int, metavar="N", help="the demo's test images of each class")
    add("--unlabeled-images", type=int, metavar="N", help="size of the demo's pool")
    add("--dataset", help="cifar10, cifar100, svhn, stl10 or imagenette, through torchvision")
    add("--root", default="datasets", metavar="DIR", help="where torchvision keeps its datasets")
    loop = parser.add_argument_group("the loop")
    add = loop.add_argument
    add("--arch", nargs="+", help="b0 to b7, l0 to l2 or WIDTHxDEPTH: one for all generations, or "
        "one for each, the teacher first")
    add("--threshold", type=float, help="confidence that a pseudo label must exceed (0.3)")
    add("--per-class", type=int, metavar="N", help="images of each class after balancing")
    add("--temperature", type=float, help="of soft pseudo labels; below 1 they are sharper")
    add("--filter", action=argparse.BooleanOptionalAction, default=True,
        help="keep confident images only (section 3.1)")
    add("--balance", action=argparse.BooleanOptionalAction, default=True,
        help="equally many images of each class (section 3.1)")
    add("--noise", action=argparse.BooleanOptionalAction, default=True,
        help="noise the unlabelled images of the students (table 6)")
    add("--noised-teacher", action="store_true",
        help="label with the RandAugment, dropout and stochastic depth of the teacher's training "
             "(table 6)")
    add("--fixed-resolution", type=int, metavar="PIXELS",
        help="fine-tune each generation at this larger size (default: in --plan paper L2 at 800)")
    add("--joint", action=argparse.BooleanOptionalAction, default=True,
        help="both losses at once, not pseudo labels first and labels then (finding 6)")
    add("--from-teacher", action="store_true",
        help="start students from their teacher's weights (finding 8)")
    add("--labels-only", action=argparse.BooleanOptionalAction, default=True,
        help="compare with each architecture trained on the labels alone")
    add("--robustness", action=argparse.BooleanOptionalAction, default=True,
        help="corrupt, move and attack the test images, if they are 32x32 (sections 3.3 and 3.4)")
    add("--allow-smaller-student", action="store_true", help="against the paper's advice")
    train.add_config_flags(parser, "those of the plan", skip=("arch", "seed", "joint"))
    arguments = parser.parse_args(argv)
    try:
        return run(arguments)
    except (InputError, FloatingPointError, OSError) as error:
        print(f"iterate.py: {error}", file=sys.stderr)
        return 2
    except (torch.OutOfMemoryError, MemoryError):
        print(f"iterate.py: {train.OUT_OF_MEMORY}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\niterate.py: interrupted; the same command continues", file=sys.stderr)
        return 130


def check_run(generations: tuple[Generation, ...], splits: Splits, device: torch.device,
              from_teacher: bool) -> None:
    """InputError, before anything is written, for what would stop the loop in the middle."""
    configs = [generation.config for generation in generations]
    for config in configs:  # the teacher's batch, and that of labels alone
        train.check_batch(replace(config, unlabeled_ratio=0), device)
    for teacher, student in zip(configs, configs[1:], strict=False):
        if from_teacher and (teacher.arch, teacher.small_images) != (
                student.arch, student.small_images):
            raise InputError(f"--from-teacher: a {student.arch} cannot start from the weights of a "
                             f"{teacher.arch}; give one --arch for all generations")
    if splits.labeled.pixels is not None:
        size = splits.labeled.pixels.shape[-1]
        sizes = [config.image_size for config in configs]
        sizes += [generation.fixed_resolution or size for generation in generations]
        if other := set(sizes) - {size}:
            raise InputError(f"these images are {size} pixels large in memory: --image-size and "
                             f"--fixed-resolution cannot be {other.pop()} here")


def describe_images(splits: Splits, out: Path, device: torch.device) -> None:
    """Say and log how many images there are, and what was left out."""
    sizes = {name: len(getattr(splits, name))
             for name in ("labeled", "unlabeled", "validation", "test")}
    removed, skipped = splits.notes["removed_from_pool"], splits.notes["skipped_files"]
    print(f"{out}: " + ", ".join(f"{count:,} {name}" for name, count in sizes.items())
          + f" images of {len(splits.labeled.classes)} classes, on {device}")
    print(f"{removed} unlabelled images equal to validation or test images removed, "
          f"{len(skipped)} unreadable files skipped" + (": " if skipped else "")
          + data.first_names(skipped))
    if twice := splits.notes["labeled_and_held_out"]:
        print(f"Warning: {twice} labelled images are validation or test images, too")
    if not (out / "log.jsonl").exists():
        line = json.dumps({"name": "images", **sizes, **splits.notes}) + "\n"
        data.write_atomically(out / "log.jsonl", lambda file: file.write(line.encode()))


def run(arguments: argparse.Namespace) -> int:
    """What main() does once the command line is read."""
    if arguments.plan is None:
        arguments.plan, pixels = default_plan(arguments)
        arguments.image_size = pixels if arguments.image_size is None else arguments.image_size
    plan = arguments.plan
    if arguments.dataset == "stl10" and arguments.image_size is None:
        arguments.image_size = 96  # as they are: its 113,000 images are held in memory
    if arguments.dataset == "svhn" and arguments.flip is None:
        arguments.flip = False  # as the authors: a mirrored digit is none
    try:
        generations = choose_generations(arguments, plan)
        device = devices.choose(arguments.device)
    except ValueError as error:
        raise InputError(str(error)) from None
    if arguments.workers < 0:
        raise InputError(f"--workers {arguments.workers}: give 0 or more")
    if arguments.dataset and devices.rank() > 0:
        devices.wait_for_all()  # one process downloads
    splits = read_splits(arguments, plan, generations[0].config.image_size)
    if arguments.dataset and devices.rank() == 0:
        devices.wait_for_all()
    check_run(generations, splits, device, arguments.from_teacher)
    train.check_device(device, arguments.compiled, arguments.checkpoint_blocks)
    if not arguments.allow_smaller_student:
        check_sizes(generations, len(splits.labeled.classes))
    out = Path(arguments.out or f"runs/{plan}")
    claimed = {
        "arguments": {key: value for key, value in vars(arguments).items() if key not in (
            "out", "device", "workers", "compiled", "checkpoint_blocks", "robustness")},
        "generations": [asdict(generation) for generation in generations],
    }
    with claim_directory(out, claimed) if devices.rank() == 0 else contextlib.nullcontext():
        if devices.rank() == 0:
            describe_images(splits, out, device)
        devices.wait_for_all()
        options = ("balance", "joint", "from_teacher", "noised_teacher", "labels_only",
                   "robustness", "workers", "compiled", "checkpoint_blocks")
        results = iterate(generations, splits, out, device, filter_pool=arguments.filter,
                          **{name: getattr(arguments, name) for name in options})
        if devices.rank() > 0:
            return 0
        data.write_json(out / "report.json", results)
        tables = report.table(results), report.robustness_table(results)
        print("\n\n".join(filter(None, tables)))
        last_labels = out / f"{generations[-1].name.replace(' ', '-')}-labels"
        report.picture(results, splits, last_labels, out / "report.png")
    print(f"\n{out}/report.json, {out}/report.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
