"""Noisy Student Training from end to end (Algorithm 1): the loop, and the report on it.

    step 1    teacher <- train on labelled images, noised
    step 2    pseudo labels <- the un-noised teacher on the unlabelled pool, filtered and balanced
    step 3    student, equal or larger <- train on labelled and pseudo-labelled images, noised
    step 4    teacher <- student, and back to step 2

    python iterate.py                                      built-in images, minutes on a CPU
    python iterate.py --dataset cifar10 --labels-per-class 400    4,000 labels, on a GPU
    python iterate.py --labeled DIR --unlabeled DIR --test DIR --arch b0

The run directory holds config.json, log.jsonl, report.json, report.png and each generation's
checkpoint, pseudo labels and robustness. The same command again continues where it stopped.
"""

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import eval_robust
import model
import pseudo_label
import train
from model import Checkpoint
from pseudo_label import Labelling
from support import advice, batches, cli, devices, files, images, outline, plans, report, sources
from support.images import ImageSet, Splits
from support.label_store import PseudoLabels


@dataclass(frozen=True)
class Generation:
    """One model of the loop, how its teacher labels the pool, and the ablations"""

    name: Annotated[str, cli.NO_FLAG]
    config: Annotated[train.TrainConfig, cli.NO_FLAG]
    labelling: Annotated[Labelling, cli.NO_FLAG] = Labelling()
    fixed_resolution: cli.Pixels | None = None  # of a last fine-tuning (train.resolution_fix)
    joint: bool = True  # both losses at once, not first pseudo labels and then labels (finding 6)
    from_teacher: bool = False  # start from the teacher's weights, not from scratch (finding 8)
    start_from: cli.File | None = None  # checkpoint or released weights to start from

    def seeded(self, number: int) -> "Generation":
        """With its own seed, derived from the run's seed and the generation's number."""
        seed = batches.seed_of(self.config.seed, number)
        return replace(self, config=replace(self.config, seed=seed))


L2 = train.recipe("l2")  # trained at 475 pixels, tested at 800
PAPER = Labelling(per_class=130_000)
# paper: one recipe; here: the small plans change it (AdamW, cosine, "concat"): support/plans.py.
PLANS: dict[str, tuple[Generation, ...]] = {
    name: tuple(Generation(title, replace(train.recipe(config["arch"]), **config),
                           Labelling(**labelling),
                           from_teacher=name in plans.FROM_TEACHER and title != "teacher")
                for title, config, labelling in generations)
    for name, generations in plans.GENERATIONS.items()
} | {
    # Section 4.2: B7, then L2 three times, the last with twice the unlabelled images in a batch.
    "paper": (
        Generation("teacher", train.recipe("b7")),
        Generation("student 1", L2, PAPER, fixed_resolution=800),
        Generation("student 2", L2, PAPER, fixed_resolution=800),
        Generation("student 3", replace(L2, unlabeled_ratio=28), PAPER, fixed_resolution=800),
    ),
}


def train_phases(generation: Generation, learn: Callable[..., Path],
                 pseudo: PseudoLabels | None, start: Path | None) -> Path:
    """Train one generation in its phases, usually only one; returns its checkpoint's path.

    learn(config, name, pseudo, start) runs a phase: train.train on the images of the loop.
    """
    config, name = generation.config, generation.name
    if pseudo is None:  # a teacher, or a student's model on the labels alone
        config = replace(config, unlabeled_ratio=0)
    if generation.joint:  # step 1, or step 3: the joint loss
        checkpoint = learn(config, name, pseudo, start)
    else:
        pretrained = learn(replace(config, joint=False), f"{name}, pretrained", pseudo, start)
        # paper: does not say how; here: a tenth of the learning rate, for as many epochs again.
        finetuning = replace(config, unlabeled_ratio=0, warmup_epochs=0.0,
                             learning_rate=config.learning_rate / 10)
        checkpoint = learn(finetuning, name, None, pretrained)
    if pixels := generation.fixed_resolution:
        fixed = train.resolution_fix(config, pixels)
        checkpoint = learn(fixed, f"{name}, {pixels} px", None, checkpoint)
    return checkpoint


def iterate(generations: tuple[Generation, ...], splits: Splits, out: Path,
            machine: devices.Machine, *, labels_only: bool = True, robustness: bool = True,
            allow_chance: bool = True) -> dict:
    """Run Algorithm 1 and return the report; what is complete in `out` already is not run again.

    Args:
        labels_only: also train each student's model on the labels alone, for as many steps, from a
            similar start: what the student gains over it comes from the pool.
        robustness: also run eval_robust.quick_suite on test images.
        allow_chance: only warn of a teacher that guesses; False: raise InputError.
    """
    phases = outline.phases(generations, splits.sizes, labels_only, train_phases, model.scaling)
    loop = outline.Loop(out / "log.jsonl", phases)  # one log for all; estimates the time left

    def learn(config: train.TrainConfig, name: str, pseudo: PseudoLabels | None,
              start: str | Path | None) -> Path:
        return train.train(config, splits.labeled, splits.validation, pseudo, name=name, loop=loop,
                           out=out / f"{files.slug(name)}.pt", start=start, machine=machine)

    teacher, models = None, []
    for number, generation in enumerate(generations):
        generation, pseudo = generation.seeded(number), None
        if teacher:  # step 2, on a pool without held-out images
            # paper: B0 selects the images, B7 and L2 label them (pseudo_label.py --images-of);
            # here: every teacher selects its own, since later ones label better.
            labeller = Checkpoint.load(teacher)
            advice.of_teacher(teacher.stem, labeller.val_top1, splits, allow_chance)
            pseudo = pseudo_label.label(
                labeller, splits.unlabeled, out / f"{files.slug(generation.name)}-labels",
                generation.labelling, seed=generation.config.seed, machine=machine,
                progress=f"{generation.name}: labelling")
            advice.of_labels(generation.name, pseudo, splits)
        start = teacher if generation.from_teacher else generation.start_from
        # paper: does not say whether a fine-tuned model labels; here: it does.
        teacher = train_phases(generation, learn, pseudo, start)  # step 1 or 3, then 4: it teaches
        models.append((generation, teacher, pseudo and replace(pseudo, images=None)))  # frees them

    # Each student's model once more, on the labels alone; it may start from the one before it.
    alone, last = [None] * len(models), models[0][1]
    for number, student in enumerate(plans.on_labels_only(generations) if labels_only else (), 1):
        start = last if student.from_teacher else student.start_from
        alone[number] = last = train_phases(student, learn, None, start)

    # All choices are made: test images are predicted only now, so that none can depend on them.
    # paper: L2 meets ImageNet-C and -P before its fine-tuning (footnote 3); here: after it.
    rows = [test(generation, checkpoint, pseudo, path, splits.test, machine, robustness)
            for (generation, checkpoint, pseudo), path in zip(models, alone, strict=True)]
    for figures in [row["robustness"] for row in rows if row["robustness"]]:
        figures.update(eval_robust.relative_to(rows[0]["robustness"], figures))
    return {"seed": generations[0].config.seed, "notes": splits.notes, "generations": rows}


def test(generation: Generation, checkpoint: Path, pseudo: PseudoLabels | None,
         alone: Path | None, images: ImageSet, machine: devices.Machine, robust: bool) -> dict:
    """A row of the report, in percent; alone: the same model trained on the labels alone."""
    tested, labels_only = Checkpoint.load(checkpoint), alone and Checkpoint.load(alone)
    network, size = tested.network().to(machine.device), tested.image_size
    top5 = train.top_classes(network, images, size, machine, min(5, len(images.classes)))
    return {
        "name": generation.name, "arch": tested.arch, "checkpoint": checkpoint.name,
        "parameters": model.count_parameters(network), "image_size": size,
        "unlabeled": pseudo and pseudo.counts, "pseudo_label_top1": pseudo and pseudo.top1,
        "val_top1": tested.val_top1, **report.figures(top5, images),
        "labels_only_test_top1": labels_only and train.accuracy(
            labels_only.network().to(machine.device), images, labels_only.image_size, machine),
        "robustness": eval_robust.robustness(network, images, size, checkpoint.with_name(
            f"{checkpoint.stem}-robustness.json"), machine, generation.name) if robust else None,
    }


@dataclass(frozen=True)
class Flags:
    """Algorithm 1, and what is compared"""

    plan: Literal[tuple(PLANS)] | None = None  # generations (default: by the images)
    out: cli.Folder | None = None  # run directory (default: runs/PLAN); continued if it exists
    seed: cli.Whole = 0  # of weights, order and noise; draws the demo's images, --dataset's labels
    arch: list[str] | None = None  # b0 to b7, l0 to l2, WIDTHxDEPTH: one for all, or one for each
    filter: bool = True  # keep confident images only (section 3.1)
    noise: bool = True  # noise the unlabelled images of the students (table 6)
    labels_only: bool = True  # compare with each architecture trained on the labels alone
    robustness: bool = True  # corrupt, perturb, attack test images (sections 3.3, 3.4)
    allow_smaller_student: bool = False  # than its teacher (against the method)
    allow_chance: bool = False  # go on with a teacher that does no better than guessing
    dry_run: bool = False  # only print what would be done
    images_per_second: cli.Positive | None = None  # training speed, for hours; implies --dry-run


def main(flags: Flags, source: sources.Source, labelling: cli.Given[Labelling],
         ablations: cli.Given[Generation], machine: devices.Machine,
         changes: cli.Given[train.TrainConfig]) -> None:
    plan, wanted = sources.plan_for(source, flags.plan, ablations.get("start_from"))
    generations = plans.with_flags(plan, PLANS[plan], flags, labelling, ablations,
                                   wanted | changes, load=Checkpoint.load, recipe=train.recipe)
    if flags.dry_run or flags.images_per_second:
        return print(outline.outline(plan, generations, flags, source, train_phases=train_phases,
                                     scaling=model.scaling, recipe=train.recipe))
    machine, out = machine.chosen(), Path(flags.out or f"runs/{plan}")
    splits = sources.choose(source, plan, generations[0].config, machine, out)
    plans.check(generations, splits.labeled, machine, train.build_model, Checkpoint.load, flags)
    advice.before(splits, generations, flags.allow_chance)
    settings = plans.settings(generations, images.digests(splits))
    with files.claim(out, settings, source=asdict(source)):
        report.describe_images(splits, plan, out, machine.device)
        results = iterate(generations, splits, out, machine, labels_only=flags.labels_only,
                          robustness=flags.robustness, allow_chance=flags.allow_chance)
        report.show(results, splits, out, lambda name: eval_robust.from_pixels(
            Checkpoint.load(out / name).network(), machine.device))


if __name__ == "__main__":
    sys.exit(cli.run(main))
