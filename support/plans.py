"""Plans: for each generation its name, what it changes of train.recipe, and of Labelling; how a
command line changes a plan, and what a plan would cost.

A hundred or a few thousand labels are seen hundreds of times in minutes instead of days, so Adam's
step replaces RMSProp's (which needs a warm-up of many epochs), a cosine to zero the decay by 0.97,
and the averages are over shorter spans. Adam's step does not grow with the loss, so they take its
average, section 3.1's "concat", in place of the authors' sum. All was chosen on validation
(results/).
"""

from collections.abc import Callable, Sequence
from dataclasses import fields, replace

import torch

from support import InputError, batches, report
from support.devices import Machine
from support.images import ImageSet

FEW_LABELS = {
    "image_size": 32, "rand_augment_operations": 2, "rand_augment_magnitude": 5.0,
    "unlabeled_ratio": 3, "optimizer": "adamw", "weight_decay": 0.02,
    "schedule": "cosine", "dropout": 0.2, "normalization": "concat",
}
# paper: two operations; here: one, since two leave models of this size underfit.
# authors: strides of 1 in stages 2 and 3 on 32x32 images; here: of 2, as the maps of stages 3 to 7
# would be 16 times as large, too much for minutes on a CPU.
DEMO = FEW_LABELS | {
    "arch": "0.25x0.5", "rand_augment_operations": 1, "batch_size": 64, "unlabeled_ratio": 2,
    "learning_rate": 0.04, "ema_decay": 0.98, "epochs": 750.0, "evaluate_epochs": 75.0,
}
# paper: pseudo labels as they are; here: sharpened by a temperature.
SHARP = {"temperature": 0.5}
# Half the rate, at which 4,000 labels train more steadily (results/cifar10.md), and as many
# pseudo-labelled images as labelled ones, for the time's sake.
CIFAR_CPU = DEMO | {
    "arch": "0.5x0.5", "unlabeled_ratio": 1, "learning_rate": 0.02, "ema_decay": 0.99,
    "epochs": 150.0, "evaluate_epochs": 10.0,
}
# authors: no RandAugment for B0 and B1 on ImageNet; here: some, as own sets have fewer labels.
OWN = FEW_LABELS | {
    "arch": "b0", "image_size": 224, "batch_size": 64, "rand_augment_magnitude": 6.0,
    "learning_rate": 0.002, "ema_decay": 0.999, "epochs": 100.0,
}
CIFAR = FEW_LABELS | {
    "arch": "b0", "small_images": True, "batch_size": 128, "unlabeled_ratio": 7,
    "learning_rate": 0.004, "ema_decay": 0.999, "epochs": 200.0, "evaluate_epochs": 10.0,
    "precision": "bfloat16",
}
# authors: their recipe for SVHN, with `extra` as the pool, where they report 97.9 % for the teacher
# and 98.6 % for the student; here: the same, and what it does not say, the number of epochs and the
# decay, so that the rate ends at the 0.0002 per 256 images that it says.
SVHN = {
    "arch": "b0", "image_size": 32, "small_images": True, "rand_augment_operations": 2,
    "rand_augment_magnitude": 5.0, "flip": False, "batch_size": 128, "unlabeled_ratio": 5,
    "weight_decay": 1e-4, "epochs": 100.0, "decay_epochs": 0.695,  # 0.97**143.9 is 1 / 80
}
# Table 6: unlabelled batches as large as labelled ones; with 1.3 M images standard augmentation.
B5 = {"arch": "b5", "unlabeled_ratio": 1}
PLAIN_B5 = B5 | {"rand_augment_operations": 0}

GENERATIONS = {
    "demo": (
        ("teacher", DEMO, {}),
        ("student 1", DEMO, {"per_class": 800}),
        ("student 2", DEMO | {"arch": "0.35x0.5"}, {"per_class": 800}),
    ),
    "cifar10-cpu": (
        # Without RandAugment, as the authors' B0; with it, it is worse on validation.
        ("teacher", CIFAR_CPU | {"rand_augment_operations": 0}, {}),
        ("student 1", CIFAR_CPU, SHARP),
        ("student 2", CIFAR_CPU, SHARP),
    ),
    "cifar10": (("teacher", CIFAR, {}), ("student 1", CIFAR, {}), ("student 2", CIFAR, {})),
    "own": (("teacher", OWN, {}), ("student 1", OWN, {}), ("student 2", OWN, {})),
    "svhn": (("teacher", SVHN, {}), ("student 1", SVHN, {})),
    # The paper's own: figure 2 (--arch b0 to b7) and the two halves of table 6.
    "figure2": (("teacher", {"arch": "b7"}, {}),
                ("student 1", {"arch": "b7"}, {"per_class": 130_000})),
    "table6": (("teacher", B5, {}), ("student 1", B5, {"per_class": 130_000})),
    "table6-1.3m": (("teacher", PLAIN_B5, {}), ("student 1", PLAIN_B5, {"per_class": 1_300})),
}
# Labelled images, classes and unlabelled images that a plan is for: what --dry-run counts with.
IMAGENET = 1_281_167, 1000, 300_000_000
SIZES = {"demo": (80, 10, 6_000), "cifar10-cpu": (4_000, 10, 41_000), "svhn": (65_937, 10, 531_131),
         "cifar10": (4_000, 10, 41_000), "own": (1_000, 10, 10_000), "table6-1.3m": (
             *IMAGENET[:2], 1_300_000)}


def with_flags(plan: str, generations: Sequence, flags, labelling: dict, ablations: dict,
               changes: dict, scaling: Callable, recipe: Callable) -> tuple:
    """A plan's generations with the command line's changes.

    Args:
        generations: iterate.Generation, the teacher and its students; flags: iterate.Flags.
        labelling, ablations, changes: fields of their labelling, of themselves, of their config.
        scaling, recipe: model.scaling and train.recipe.
    """
    if not flags.filter:
        labelling = labelling | {"threshold": 0.0}
    # The first teacher has no teacher to start from, and no pseudo labels to train on first.
    of_teacher = {key: value for key, value in ablations.items() if key == "fixed_resolution"}
    archs, chosen = flags.arch or [generation.config.arch for generation in generations], []
    for number, arch in enumerate(archs * len(generations) if len(archs) == 1 else archs):
        generation = generations[min(number, len(generations) - 1)]
        config, (_, _, resolution, dropout) = generation.config, scaling(arch)
        if plan in ("paper", "figure2") and arch != config.arch:  # 800 pixels are L2's
            config = recipe(arch)
            generation = replace(generation, fixed_resolution=800 if arch == "l2" else None)
        elif flags.arch and "x" not in arch:
            config = replace(config, dropout=dropout)
            if plan == "own":
                config = replace(config, image_size=resolution)
        if number and not flags.noise:  # table 6, "student w/o Aug, SD, Dropout"
            config = replace(config, augment_unlabeled=False, model_noise_unlabeled=False)
        config = replace(config, **{"arch": arch, "seed": flags.seed} | changes)
        chosen.append(replace(
            generation, name=f"student {number}" if number else "teacher", config=config,
            labelling=replace(generation.labelling, **labelling),
            **(ablations if number else of_teacher)))
    return tuple(chosen)


def check(generations: Sequence, labeled: ImageSet, machine: Machine, build_model: Callable,
          smaller_students: bool) -> None:
    """InputError, before anything is written, for what would stop the loop in the middle."""
    parameters = []
    for generation in generations:
        size, fixed = generation.config.image_size, generation.fixed_resolution
        if fixed and fixed < size:
            raise InputError(f"--fixed-resolution {fixed}: give --image-size, {size}, or more")
        for wanted in {size, fixed or size}:
            if labeled.pixels is not None and wanted != labeled.pixels.shape[-1]:
                raise InputError(f"these images are {labeled.pixels.shape[-1]} pixels large in "
                                 "memory: --image-size and --fixed-resolution cannot be "
                                 f"{wanted} here")
        # The teacher's batch, and that of labels alone.
        batches.check(generation.on_labels_only().config, labeled, None, machine)
        with torch.device("meta"):
            network = build_model(generation.config, len(labeled.classes))
        parameters.append(sum(weight.numel() for weight in network.parameters()))
    for number in range(1, len(generations)):
        teacher, student = (one.config for one in generations[number - 1: number + 1])
        if generations[number].from_teacher and (teacher.arch, teacher.small_images) != (
                student.arch, student.small_images):
            raise InputError(f"--from-teacher: a {student.arch} cannot start from the weights of a "
                             f"{teacher.arch}; give one --arch for all generations")
        before, now = parameters[number - 1: number + 1]
        if now < before and not smaller_students:
            raise InputError(
                f"{generations[number].name} ({student.arch}, {now:,} parameters) is smaller than "
                f"its teacher ({teacher.arch}, {before:,}): the method wants it equal or larger; "
                "choose a larger --arch, or pass --allow-smaller-student")


# ---- What a plan would cost ----


def outline(plan: str, generations: Sequence, flags, source, train_phases: Callable,
            recipe: Callable) -> str:
    """What a loop would do, as a table, and what it changes of the paper's recipe.

    Args:
        flags: iterate.Flags; source: sources.Source, whose numbers replace those of SIZES.
        train_phases, recipe: iterate.train_phases and train.recipe.
    """
    labeled, classes, pool = SIZES.get(plan, IMAGENET)
    labeled = classes * source.labels_per_class if source.labels_per_class else labeled
    pool, trained, labelled = source.unlabeled_images or pool, 0, 0
    lines = [["training", "model", "pixels", "steps", "images a step", "images", "labels made"]]

    def learn(config, name: str, pseudo: bool | None, start: object) -> None:
        """A line for a phase, in the place of its training."""
        steps = replace(config, labeled_images=labeled).total_steps
        count = config.batch_size * ((config.joint or not pseudo)
                                     + (config.unlabeled_ratio if pseudo else 0))
        lines.append([name, config.arch, config.image_size, steps, count, steps * count, None])

    for number, generation in enumerate(generations):
        first = len(lines)
        train_phases(generation, learn, bool(number) or None, None)
        if number:
            selected = (generation.labelling.per_class or pool // classes) * classes
            lines[first][-1] = pool + min(selected, pool)  # the two passes
        if number and flags.labels_only:
            train_phases(generation.on_labels_only(), learn, None, None)
    trained, labelled = (sum(line[column] or 0 for line in lines[1:]) for column in (-2, -1))
    text = [f"plan {plan}: {labeled:,} labelled images of {classes:,} classes, a pool of {pool:,}",
            report.align(lines), f"in all {trained:,} images trained on, {labelled:,} labelled"]
    if flags.images_per_second:
        hours = (trained + labelled / 3) / flags.images_per_second / 3600
        text.append(f"{hours:,.1f} device hours at {flags.images_per_second:g} images a second "
                    "(labelling: three times as many), without validation and test")
    changed = {}  # the generations that change the same
    for generation in generations:
        changed.setdefault(_changes(generation, recipe), []).append(generation.name)
    text += [f"{', '.join(names)}: {changes}" for changes, names in changed.items()]
    return "\n\n".join(text)


def _changes(generation, recipe: Callable) -> str:
    """What a generation changes of the paper's recipe for its model."""
    usual, changed = recipe(generation.config.arch), []
    for field in fields(usual):
        paper, here = (getattr(config, field.name) for config in (usual, generation.config))
        if paper != here and field.name not in ("seed", "labeled_images"):
            changed.append(f"{field.name} {here} ({paper})")
    if generation.labelling.temperature != 1:
        changed.append(f"temperature {generation.labelling.temperature} (1.0)")
    return f"not as in the paper (there): {', '.join(changed)}" if changed else "as in the paper"
