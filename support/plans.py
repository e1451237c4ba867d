"""Plans: for each generation its name and what it changes in train.recipe and in Labelling; and how
a command line changes a plan.

A hundred or a few thousand labels are seen hundreds of times in minutes instead of days, so Adam's
step replaces RMSProp's (which needs a warm-up of many epochs), a cosine schedule to zero replaces
the decay by 0.97, and the averages are over shorter spans. Adam's step does not grow with the loss,
so the plans take the average loss, section 3.1's "concat", in place of the authors' sum. All of
this was chosen on validation (results/).
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import cache
from itertools import chain
from pathlib import Path

import torch

from support import InputError, advice, batches, files, images, weights
from support.devices import Machine
from support.images import ImageSet

FEW_LABELS = {
    "image_size": 32, "rand_augment_operations": 2, "rand_augment_magnitude": 5.0,
    "unlabeled_ratio": 3, "optimizer": "adamw", "weight_decay": 0.02,
    "schedule": "cosine", "dropout": 0.2, "normalization": "concat",
}
# paper: two operations; here: one, since two leave models of this size underfit.
# authors: strides of 1 in stages 2 and 3 on 32x32 images; here: of 2; with 1 the maps of stages 3
# to 7 would be 16 times as large, too much for minutes on a CPU.
DEMO = FEW_LABELS | {
    "arch": "0.25x0.5", "rand_augment_operations": 1, "batch_size": 64, "unlabeled_ratio": 2,
    "learning_rate": 0.04, "ema_decay": 0.98, "epochs": 750.0, "evaluate_epochs": 75.0,
}
# paper: pseudo labels as they are; here: sharpened by a temperature.
SHARP = {"temperature": 0.5}
# Wide rather than deep, which learns more in a minute (results/cifar10.md); from a depth of 0.3 on
# there is a residual block, and so stochastic depth.
CIFAR_CPU = FEW_LABELS | {
    "arch": "0.5x0.3", "small_images": True, "rand_augment_operations": 1, "batch_size": 32,
    "learning_rate": 0.056, "ema_decay": 0.99, "epochs": 36.0, "evaluate_epochs": 4.0,
}
# Ten classes of ImageNet with few labels, and a pool that mostly shows none of them: the 200 most
# confident images of each class were better than all, and than all over a higher threshold.
TINY = DEMO | {
    "arch": "0.35x0.5", "image_size": 64, "batch_size": 32, "unlabeled_ratio": 3,
    "learning_rate": 0.056, "ema_decay": 0.99, "epochs": 256.0, "evaluate_epochs": 16.0,
}
TINY_LABELS = {"per_class": 200}
# Photographs: the crops are ImageNet's at any size, and labels are repeated so often that
# the pool decides the last points of accuracy (results/photographs.md).
# authors: no RandAugment for B0 and B1 on ImageNet; here: some, as users' sets have fewer labels.
OWN = FEW_LABELS | {
    "arch": "b0", "image_size": 224, "crops": "imagenet", "batch_size": 64, "unlabeled_ratio": 1,
    "rand_augment_operations": 1, "rand_augment_magnitude": 6.0, "learning_rate": 0.012,
    "ema_decay": 0.99, "epochs": 200.0, "evaluate_epochs": 10.0,
}
# From trained weights, ours or released: a smaller rate, which keeps them, and a third of the time.
FINETUNE = OWN | {"learning_rate": 0.004, "epochs": 60.0}
CIFAR = FEW_LABELS | {
    "arch": "b0", "small_images": True, "batch_size": 128, "unlabeled_ratio": 7,
    "learning_rate": 0.004, "ema_decay": 0.999, "epochs": 200.0, "evaluate_epochs": 10.0,
    "precision": "bfloat16",
}
# authors: their recipe for SVHN, with `extra` as the pool: 97.9 % for the teacher, 98.6 % for
# the student; here: the same but for what the essays note, and on 69,257 images (--val-per-class
# 400) as many steps. Their decay would end at 0.0002 if it began after the warm-up's 5 epochs.
SVHN = {
    "arch": "b0", "image_size": 32, "small_images": True, "rand_augment_operations": 2,
    "rand_augment_magnitude": 5.0, "flip": False, "batch_size": 128, "unlabeled_ratio": 5,
    "weight_decay": 1e-4, "epochs": 202.3, "decay_epochs": 1.372,
}
# Table 6: unlabelled batches as large as labelled; for 1.3 M images, standard augmentation alone.
# paper: that is translation and flips; here: crops and flips, and none for a noised teacher.
B5 = {"arch": "b5", "unlabeled_ratio": 1}
PLAIN_B5 = B5 | {"rand_augment_operations": 0}

GENERATIONS = {
    "demo": (
        ("teacher", DEMO, {}),
        ("student 1", DEMO, {"per_class": 800}),
        ("student 2", DEMO | {"arch": "0.35x0.5"}, {"per_class": 800}),
    ),
    "cifar10-cpu": (
        # Without RandAugment, like the authors' B0: that hurts so small a network on labels alone.
        # The teacher needs twice a student's steps to converge.
        ("teacher", CIFAR_CPU | {"rand_augment_operations": 0, "epochs": 72.0}, {}),
        ("student 1", CIFAR_CPU, SHARP),
        ("student 2", CIFAR_CPU, SHARP),
    ),
    "tiny-imagenet": (
        ("teacher", TINY, {}),
        ("student 1", TINY, TINY_LABELS),
        # The last one has the best labels, and learns from them for twice as long.
        ("student 2", TINY | {"epochs": 512.0}, TINY_LABELS),
    ),
    "cifar10": (("teacher", CIFAR, {}), ("student 1", CIFAR, {}), ("student 2", CIFAR, {})),
    "own": (("teacher", OWN, {}), ("student 1", OWN, {}), ("student 2", OWN, {})),
    "finetune": (("teacher", FINETUNE, {}), ("student 1", FINETUNE, {}),
                 ("student 2", FINETUNE, {})),
    "svhn": (("teacher", SVHN, {}), ("student 1", SVHN, {})),
    # The paper's own: figure 2 (--arch b0 to b7) and the two halves of table 6.
    "figure2": (("teacher", {"arch": "b7"}, {}),
                ("student 1", {"arch": "b7"}, {"per_class": 130_000})),
    "table6": (("teacher", B5, {}), ("student 1", B5, {"per_class": 130_000})),
    "table6-1.3m": (("teacher", PLAIN_B5, {}), ("student 1", PLAIN_B5, {"per_class": 1_300})),
}
# paper: students from scratch, which is "sometimes better" (finding 8); here: from their teachers'
# weights, as minutes are too short to learn all of it again.
FROM_TEACHER = ("cifar10-cpu",)


def with_flags(plan: str, generations: Sequence, flags, labelling: dict, ablations: dict,
               changes: dict, load: Callable, recipe: Callable) -> tuple:
    """A plan's generations with the command line's changes.

    Args:
        generations: iterate.Generation, the teacher and its students; flags: iterate.Flags.
        labelling, ablations, changes: new values for their labelling, themselves, their config.
        load, recipe: model.Checkpoint.load and train.recipe.

    With --start-from the teacher starts from a checkpoint, and so does every student of the
    same architecture, at the checkpoint's image size, unless it starts from its teacher.
    """
    if not flags.filter:
        if "threshold" in labelling:
            raise InputError("--threshold does not go with --no-filter: give one of the two")
        labelling = labelling | {"threshold": 0.0}
    advice.of_labelling(labelling)

    # The first teacher has no teacher to start from, and no pseudo labels to train on first.
    of_teacher = {key: value for key, value in ablations.items()
                  if key in ("fixed_resolution", "start_from")}
    file, chosen = ablations.get("start_from"), []
    start = load(file, (flags.arch or ["b0"])[0]) if file else None
    archs = flags.arch or ([start.arch] if start else [one.config.arch for one in generations])
    if start and start.arch != archs[0]:
        raise InputError(f"--start-from: {file} holds a {start.arch}, not the teacher's "
                         f"{archs[0]}: give --arch {start.arch} first, or leave it out")

    for number, arch in enumerate(archs * len(generations) if len(archs) == 1 else archs):
        generation = generations[min(number, len(generations) - 1)]
        config, published = generation.config, recipe(arch)
        if plan in ("paper", "figure2") and arch != config.arch:  # only L2 goes to 800 pixels
            config = published
            generation = replace(generation, fixed_resolution=800 if arch == "l2" else None)
        elif flags.arch and "x" not in arch:
            config = replace(config, dropout=published.dropout)
            if plan in ("own", "finetune"):
                config = replace(config, image_size=published.image_size)
        if start and arch == start.arch:
            config = replace(config, image_size=start.image_size, dropout=published.dropout,
                             small_images=start.small_images)
        if number and not flags.noise:  # table 6, "student w/o Aug, SD, Dropout"
            config = replace(config, augment_unlabeled=False, model_noise_unlabeled=False)
        config = replace(config, **{"arch": arch, "seed": flags.seed} | changes)
        if config.optimizer == "adamw" and "learning_rate" not in changes:
            # The rate is per 256 images. For Adam it follows the root of the batch; else the steps
            # of a batch of 16, a quarter of the plan's, would be too small to learn anything.
            ratio = generation.config.batch_size / config.batch_size
            config = replace(config, learning_rate=config.learning_rate * ratio**0.5)
        chosen.append(replace(
            generation, name=f"student {number}" if number else "teacher", config=config,
            labelling=replace(generation.labelling, **labelling),
            **(ablations if number else of_teacher)))
        if number and arch != chosen[-2].config.arch and "from_teacher" not in ablations:
            chosen[-1] = replace(chosen[-1], from_teacher=False)  # the weights do not fit
        if start and arch != start.arch:
            images.say_once(f"{chosen[-1].name} ({arch}) starts from scratch: {file} holds a "
                            f"{start.arch}")
            chosen[-1] = replace(chosen[-1], start_from=None)
    return tuple(chosen)


def on_labels_only(generations: Sequence) -> list:
    """Each student's model trained on the labels alone, for as many steps and phases.

    Its noise is the student's; but a model from scratch has the teacher's image noise, which a plan
    chooses for the labels alone. Where a student starts from its teacher, this model starts from
    its predecessor: the first teacher, or the previous model on the labels alone. Students from
    scratch that differ only in their use of the pool share one model, which is trained once.
    """
    # paper: RandAugment for all baselines (section 3.2); here: a plan's teacher may have less, if
    # that is better on labels alone; from trained weights it is not (results/cifar10.md).
    of_teacher = {name: getattr(generations[0].config, name)
                  for name in ("rand_augment_operations", "rand_augment_magnitude")}
    found, different = [], {}
    for number, student in enumerate(generations[1:], 1):
        alone = student.seeded(number).seeded(1)
        noise = {} if student.from_teacher else of_teacher
        alone = replace(alone, name=f"{student.name}, labels only",
                        config=replace(alone.config, unlabeled_ratio=0, **noise))
        same = replace(alone, name=number if student.from_teacher else "", labelling=None,
                       config=replace(alone.config, seed=0))
        found.append(different.setdefault(same, alone))
    return found


def check(generations: Sequence, labeled: ImageSet, machine: Machine, build_model: Callable,
          load: Callable, flags) -> None:
    """InputError, before anything is written, for what would stop the loop in the middle.

    load: model.Checkpoint.load; flags: iterate.Flags.
    """
    parameters, load = [], cache(load)  # most generations start from the same file
    for generation in generations:
        if (file := generation.start_from) and not generation.from_teacher:
            found = load(file, generation.config.arch)
            weights.check_start(file, found, generation.config, labeled.classes)
        size, fixed = generation.config.image_size, generation.fixed_resolution
        if fixed and fixed < size:
            raise InputError(f"--fixed-resolution {fixed}: give {size}, the --image-size, or more")
        # Without a pool: the batch of the teacher and of the models on the labels alone.
        batches.check(generation.config, labeled, None, machine, file or generation.from_teacher)
        with torch.device("meta"):
            network = build_model(generation.config, len(labeled.classes))
        parameters.append(sum(weight.numel() for weight in network.parameters()))
        depth = [block for block in chain(*network.stages)
                 if block.residual and block.survival_prob < 1]
        if generation.config.survival_prob < 1 and not depth:
            images.say_once(f"Warning: a {generation.config.arch} has no stochastic depth, as no "
                            "block after its first has a shortcut; from a depth of 0.3 on "
                            "some have one")

    for number in range(1, len(generations)):
        teacher, student = (one.config for one in generations[number - 1: number + 1])
        if not student.unlabeled_ratio:
            raise InputError("--unlabeled-ratio 0 leaves the pseudo labels out: give 1 or more")
        if generations[number].from_teacher and (teacher.arch, teacher.small_images) != (
                student.arch, student.small_images):
            raise InputError(f"--from-teacher: a {student.arch} cannot start from the weights of a "
                             f"{teacher.arch}; give one --arch for all generations")
        before, now = parameters[number - 1: number + 1]
        if now < before and not flags.allow_smaller_student:
            raise InputError(
                f"{generations[number].name} ({student.arch}, {now:,} parameters) is smaller than "
                f"its teacher ({teacher.arch}, {before:,}): the method wants it equal or larger; "
                "choose a larger --arch, or pass --allow-smaller-student")


def settings(generations: Sequence, contents: dict) -> dict:
    """All that decides what a loop trains. contents: hashes of the images."""
    chosen = {one.name: asdict(one) for one in generations}
    for one in chosen.values():
        if file := one.pop("start_from"):
            one["start"] = files.digest(Path(file).read_bytes())
    return {"generations": chosen, "images": contents}
