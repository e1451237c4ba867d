"""Tables and findings of the paper, measured on a small scale (sections 2 to 4.3).

    python results/studies.py --data DIR                                all of it, five seeds
    python results/studies.py --data DIR --only finding-3 --seeds 0     one study, one seed
    python results/studies.py                                           only the page, anew

A study is a claim of the paper, some runs, and the one contrast that decides it, which was
written here before it was measured. A run is a chain of generations, as in iterate.py, on one
of the pools. Only runs of one seed are compared: they share their teachers, and their n-th
generations start from the same weights if they have the same architecture. studies.json holds what
was measured: the same command goes on from there, and results/verdicts.py makes studies.md and
studies.png from it alone.

DIR holds labeled, val and test with a folder for each class, pool, and pool-truth.csv, which says
what the pool's images show: it serves to form pools of one origin, never to train.
"""

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import train
from iterate import Generation
from pseudo_label import Labelling
from results import verdicts
from results.measure import Run, measure_all, missing, processor, read_all, read_splits
from results.verdicts import Contrast, Study
from support import InputError, cli, files, images, plans

# ---- The studies ----

SMALLER, ARCH, LARGER = "0.25x0.5", "0.35x0.5", "0.5x0.5"
BASE = replace(train.recipe(ARCH), **plans.TINY | {"arch": ARCH, "image_size": 32})


def teacher(arch: str = ARCH) -> Generation:
    return Generation("teacher", replace(BASE, arch=arch))


def student(arch: str = ARCH, labels: dict | None = None, joint: bool = True,
            from_teacher: bool = False, **changes) -> Generation:
    """The plan's student, with some fields of its labelling, itself and its training changed."""
    labelling = Labelling(**plans.TINY_LABELS | (labels or {}))
    return Generation("student", replace(BASE, arch=arch, **changes), labelling,
                      joint=joint, from_teacher=from_teacher)


def chain(*students: Generation, by: str = ARCH, pool: str = "all") -> Run:
    """Students, one after the other, of a teacher of architecture `by`."""
    return Run((teacher(by), *students), pool)


NOISY, SUPERVISED = chain(student()), Run((teacher(),))
NO_AUG = {"augment_unlabeled": False}
NO_NOISE = NO_AUG | {"model_noise_unlabeled": False}
# As many of each class as the pool has images, so that both keep all confident images.
EVENLY, AS_IT_IS = {"per_class": 8_000}, {"balance": False}
LARGEST = "0.75x0.5"
SIZES = SMALLER, ARCH, LARGER, LARGEST
LONG = BASE.epochs * 3
# As many images as a student sees, with three pseudo-labelled ones for each labelled one.
AS_MANY_IMAGES = Run((replace(teacher(), config=replace(
    BASE, epochs=BASE.epochs * (1 + BASE.unlabeled_ratio))),))


def of_share(parts: int, noised_teacher: bool = False, **changes) -> Run:
    """A run on 1 / parts of the pool, keeping 1 / parts as many images of each class."""
    labels = {"per_class": plans.TINY_LABELS["per_class"] // parts,
              "noised_teacher": noised_teacher}
    return chain(student(labels=labels, **changes), pool="all" if parts == 1 else f"1/{parts}")


def table_6(parts: int) -> dict[str, Run]:
    """The rows of the paper's table, all with as many unlabelled as labelled images in a batch."""
    return {
        "supervised": SUPERVISED,
        "Noisy Student": of_share(parts, unlabeled_ratio=1),
        "student w/o Aug": of_share(parts, unlabeled_ratio=1, **NO_AUG),
        "student w/o Aug, SD, Dropout": of_share(parts, unlabeled_ratio=1, **NO_NOISE),
        "teacher w. Aug, SD, Dropout": of_share(parts, noised_teacher=True, unlabeled_ratio=1),
    }


# So short a training may need all the fit it gets: does noise help in three times the steps?
TABLE_6 = table_6(1) | {
    f"{name}, longer": of_share(1, unlabeled_ratio=1, epochs=LONG, **changes)
    for name, changes in (("Noisy Student", {}), ("student w/o Aug, SD, Dropout", NO_NOISE))}
FROM_TEACHER = {
    "from scratch, short": chain(student(epochs=BASE.epochs / 4)),
    "from the teacher, short": chain(student(from_teacher=True, epochs=BASE.epochs / 4)),
    "from scratch": NOISY,
    "from the teacher": chain(student(from_teacher=True)),
}
LONGER = {"supervised": SUPERVISED, "supervised, four times the steps": AS_MANY_IMAGES,
          "student": NOISY}
ITERATIONS = {
    "iteration 1": NOISY,
    "iteration 2": chain(student(), student()),
    "iteration 3": chain(student(), student(), student()),
    "iteration 3, twice the ratio":
        chain(student(), student(), student(unlabeled_ratio=2 * BASE.unlabeled_ratio)),
    "iteration 1, three times the steps": chain(student(epochs=LONG)),
}

STUDIES = {
    "table-6": Study(
        "without noise on its unlabelled images the student is worse", "4.1, table 6, 130M",
        Contrast("Noisy Student", "student w/o Aug, SD, Dropout"), TABLE_6,
        "Nor is it in three times the steps:",
        (Contrast("Noisy Student, longer", "student w/o Aug, SD, Dropout, longer"),)),
    "table-6-teacher": Study(
        "labels of a noised teacher make a worse student", "4.1, table 6, 130M",
        Contrast("Noisy Student", "teacher w. Aug, SD, Dropout"), TABLE_6),
    "losses": Study(
        "without noise on unlabelled images the training loss falls more on labelled than on "
        "unlabelled ones",
        "4.1, 130M", Contrast("Noisy Student", "student w/o Aug, SD, Dropout", figure="loss_gap"),
        TABLE_6,
        "Images without noise are easier, which lowers the loss on unlabelled ones here as in "
        "the paper. But there the loss on labelled images, noised as before, falls by more, "
        "and here it hardly falls. The authors suppose that so large a pool is hard to "
        "overfit: 130 M images with copies, seen 3.4 times each (here 2,000, seen 26 times). "
        "Then three times the steps, or an eighth of the pool (next table), should put the "
        "difference further below zero, which is not seen:",
        (Contrast("Noisy Student, longer", "student w/o Aug, SD, Dropout, longer",
                  figure="loss_gap"),)),
    "table-6-small": Study(
        "without noise the student is worse with a small pool, too (here with RandAugment, "
        "which the paper leaves out there)", "4.1, table 6, 1.3M",
        Contrast("Noisy Student", "student w/o Aug, SD, Dropout"), table_6(8),
        "The losses:",
        (Contrast("Noisy Student", "student w/o Aug, SD, Dropout", figure="loss_gap"),)),
    "table-7": Study(
        "a second iteration improves on the first", "4.2, table 7",
        Contrast("iteration 2", "iteration 1"), ITERATIONS),
    "table-7-longer": Study(
        "three iterations are better than one with as many steps as all three", "4.2, table 7",
        Contrast("iteration 3", "iteration 1, three times the steps", control=True), ITERATIONS),
    "figure-2": Study(
        "with equal teacher and student the method helps (the paper: at every size; here: on "
        "the mean of four)", "3.2, figure 2",
        Contrast(tuple(f"{arch}, student" for arch in SIZES),
               tuple(f"{arch}, supervised" for arch in SIZES)),
        {f"{arch}, {name}": run for arch in SIZES for name, run in (
            ("supervised", Run((teacher(arch),))), ("student", chain(student(arch), by=arch)))},
        "At each of the four sizes the student is better with every seed."),
    "figure-2-longer": Study(
        "a student is better than its network trained four times as long on the labels alone",
        "3.2, figure 2",
        Contrast("student", "supervised, four times the steps", control=True), LONGER),
    "finding-1": Study(
        "a larger teacher makes a better student (in the paper it is the better teacher, too; "
        "here mostly the worse one)", "4.3, finding 1",
        Contrast(f"teacher {LARGEST}", f"teacher {SMALLER}"),
        {f"teacher {arch}": chain(student(), by=arch) for arch in (SMALLER, ARCH, LARGEST)}
        | {f"itself, {arch}": Run((teacher(arch),)) for arch in (SMALLER, ARCH, LARGEST)},
        "In so short a training the larger networks are mostly the worse teachers: in seeds 0 "
        "to 3 the order by accuracy is the reverse of that by size, so that these cannot tell "
        "the two apart. Seed 4 can: there the largest is the best teacher, as in the paper, "
        "and its student is above the smallest one's. In every seed the worst teacher has the "
        "worst student, but in seeds 0, 2 and 3 two students are within 0.2 points. The "
        "verdict hangs on single runs: with the first measurement of seed 2 (above) it was "
        "contradicted, by -5.28 [-10.09, -0.47]."),
    "finding-2": Study(
        "a large amount of unlabelled data is needed", "4.3, finding 2",
        Contrast("all of the pool", "1/16"),
        {f"1/{parts}": of_share(parts) for parts in (16, 8, 4, 2)} | {"all of the pool": NOISY},
        "The gain lies between an eighth and a quarter of the pool. From there on more makes "
        "no difference that can be seen here:",
        (Contrast("1/8", "1/16"), Contrast("1/4", "1/8"), Contrast("all of the pool", "1/4"))),
    "finding-3": Study(
        "soft labels are better than hard ones on images of other classes, in certain cases",
        "4.3, finding 3",
        Contrast("soft, out of domain", "hard, out of domain", sometimes=True),
        # Without a threshold, which would spare hard labels most images that they fit badly. In
        # the loss hard labels are smoothed, as the authors' are.
        {f"{kind}, {pool.replace('-', ' ')}": chain(
            student(labels={"kind": kind, "threshold": 0.0}), pool=pool)
         for pool in ("in-domain", "out-of-domain") for kind in ("soft", "hard")}),
    "finding-4": Study(
        "a larger student of the same teacher is better", "4.3, finding 4",
        Contrast(f"student {LARGER}", f"student {ARCH}"),
        {f"student {arch}": chain(student(arch)) for arch in (ARCH, LARGER)}
        | {f"supervised {arch}": Run((teacher(arch),)) for arch in (ARCH, LARGER)}),
    "finding-5": Study(
        "balancing the classes helps small models (here by duplicates alone)", "4.3, finding 5",
        Contrast(f"{SMALLER}, balanced", f"{SMALLER}, as it is"),
        {f"{arch}, {name}": chain(student(arch, labels), by=arch) for arch in (SMALLER, LARGER)
         for name, labels in (("balanced", EVENLY), ("as it is", AS_IT_IS),
                              ("balanced, 200 of each class", None))},
        "The paper: less so with a larger model. Here:",
        (Contrast(f"{LARGER}, balanced", f"{LARGER}, as it is"),)),
    "finding-6": Study(
        "joint training is better than pretraining on the pool and fine-tuning on the labels",
        "4.3, finding 6", Contrast("joint", "pretrained, fine-tuned"),
        {"joint": NOISY, "pretrained, fine-tuned": chain(student(joint=False))}),
    "finding-7": Study(
        "many unlabelled images for each labelled one in a batch are better", "4.3, finding 7",
        Contrast("ratio 7", "ratio 1"),
        {f"ratio {ratio}": chain(student(unlabeled_ratio=ratio)) for ratio in (1, 3, 7, 14)}),
    "finding-8": Study(
        "training from scratch is sometimes better than from the teacher's weights",
        "4.3, finding 8", Contrast("from scratch", "from the teacher", sometimes=True),
        FROM_TEACHER,
        "Perhaps a matter of length: in a quarter of the steps a student from scratch falls "
        "behind by far more, in all 1,600 it still has the higher losses, and the teacher's "
        "weights have learned for as many steps already. Longer trainings, in which the order "
        "might turn, were not measured; the paper's 350 epochs are over 200,000 steps.",
        (Contrast("from scratch, short", "from the teacher, short"),)),
    "finding-8-short": Study(
        "a student that starts from the teacher's weights needs many epochs, too", "4.3, finding 8",
        Contrast("from the teacher", "from the teacher, short"), FROM_TEACHER),
    **{f"robustness-{short}": Study(
        f"a student is more robust to {words}", where,
        Contrast("student", "supervised", figure=figure), LONGER,
        f"{note}Beside four times the steps on the labels alone:",
        (Contrast("student", "supervised, four times the steps", figure=figure),))
        for short, words, where, figure, note in (
            ("c", "corruptions (error on corrupted images)", "3.3, table 4", "corruptions",
             "No more than on clean images, so that nothing is seen of the paper's larger gain "
             "on corrupted ones. "),
            ("p", "perturbations (flip rate)", "3.3, table 5", "flips", ""),
            ("fgsm", "FGSM at epsilon 4", "3.4, figure 4", "fgsm", ""))},
    "threshold": Study(
        "leaving out images of low confidence, usually out of domain, helps (the paper: "
        "together with balancing)", "2, 3.1",
        Contrast("threshold 0.3", "threshold 0"),  # higher ones leave few images of some classes
        {f"threshold {value:g}": chain(student(labels={"threshold": value, "per_class": None}))
         for value in (0.0, 0.3, 0.6, 0.9)} | {"0.3, only the 200 most confident": NOISY},
        "Of the images that 0.3 leaves out 81 % show none of the classes, of those that it "
        "keeps 72 %.",
        (Contrast("threshold 0.3", "threshold 0.6"),
         Contrast("threshold 0.3", "0.3, only the 200 most confident"))),
    "temperature": Study(
        "soft labels as they are do as well as sharpened ones", "2",
        Contrast("temperature 1", "temperature 0.5", null=True, control=True),
        {f"temperature {value:g}": chain(student(labels={"temperature": value}))
         for value in (1.0, 0.5)}),
}
# The runs that the quick suite measures, too.
ROBUST = {run.key for name, study in STUDIES.items() if name.startswith("robustness")
          for run in study.runs.values()}


# ---- The command ----

HERE = Path(__file__).resolve().parent
LABELS = 20  # labelled images of each class and seed
STEPS = replace(BASE, labeled_images=10 * LABELS).total_steps
ABOUT = f"""\
Tiny-ImageNet-10: ten classes of ImageNet with {LABELS} labelled images each, new ones for
each of five seeds, 500 images for validation, 1,000 for the test, and a pool of 8,000, of
which 6,000 show none of the classes ([more of them](tiny_imagenet.md)); all at
{BASE.image_size} pixels.

Unless a run says otherwise teacher and student are a {ARCH}, which is EfficientNet-B0 with
0.35 of its width and half its depth, trained for {STEPS:,} steps of {BASE.batch_size}
labelled images. For each of these a student has {BASE.unlabeled_ratio} pseudo-labelled ones:
of those with a confidence over {Labelling().threshold} the {plans.TINY_LABELS["per_class"]}
most confident of each class, with copies where there are fewer. (The 200 was chosen on
validation, partly with labelled images of the first two seeds.) The noise is one operation of
RandAugment at magnitude {BASE.rand_augment_magnitude:g} (the paper's: two at 27), crops, flips
and Cutout; dropout of {BASE.dropout}, and stochastic depth. "w/o Aug" leaves out all noise of
pseudo-labelled images, "SD, Dropout" the network's on them; labelled images keep both. A noised
teacher labels under RandAugment, dropout and stochastic depth, and chooses the images, too.

Table 6 has one pseudo-labelled image for each labelled one, as in the paper; a share of the
pool has its share of the 200; finding 3 has no threshold and pools of 2,000, finding 5 no
limit for a class, the study of thresholds one of 800. Fine-tuning after pretraining has as
many steps again, with labelled images alone, at a tenth of the learning rate, which was not
tuned. Although the steps are few, each pseudo-labelled image is seen many times even at a
ratio of 1. Noise may need longer to help: the rows "longer" have three times the steps.

The checkpoint is the best on validation; the test set is read once a run, after all choices.
With 1,000 test images a figure has a standard error of 1.6 points, and a difference within a
seed about as much (attacks: 500 images; flips: 100). Corruptions, flips and FGSM are those of
the quick suite ([what they are](robustness.md)), not divided by AlexNet's. Losses are not
smoothed.

    python results/studies.py --data DIR --results mine.json

It trains two networks at once, and makes mine.md and mine.png; --only finding-3 takes the
studies under that heading, --seeds 0 one seed. Without --results it adds to studies.json what
that lacks. DIR holds labeled (100 images of each class for five seeds), val and test with a
folder for each class, pool, and pool-truth.csv (columns file and class). Its images are not in
this repository; [their page](tiny_imagenet.md) names the classes."""
OURS = """

Seed 2 was measured twice: first 31 of its runs on an Intel Xeon (studies.json of commit
789ce3d), then all of them on the AMD EPYC, which the page has. The same runs differ between the
two, which round differently, with a standard deviation of 2.4 points (up to 6.5), and contrasts
of accuracies by up to 4.1: expect no less on your processor."""
BAR = "{desc}: {percentage:.0f}% |{bar:30}| {elapsed}, {remaining} left"


@dataclass(frozen=True)
class Flags:
    """Measure what is missing in studies.json, and make the page"""

    data: cli.Folder | None = None  # labeled, val, test, pool, pool-truth.csv; none: only the page
    only: list[str] | None = None  # names of studies (default: all)
    seeds: list[cli.Whole] | None = None  # default: 0 1 2 3 4
    runs: cli.Folder = "runs/studies"  # checkpoints and labels, which later runs build on
    results: cli.File = HERE / "studies.json"  # what was measured; the page lies beside it


def keep(rows: dict, run: Run, row: dict, file: Path) -> None:
    """Add a run's row; InputError if it was there, trained again for others to build on, and now
    gives another network.
    """
    if rows.get(run.key, row)["test_top1"] != row["test_top1"]:
        raise InputError(f"a teacher, trained again, is not the one of {file}, whose students are "
                         "measured: give another --results")
    rows[run.key] = row


def show(file: Path) -> None:
    """Make the page and the picture of what a file of results holds."""
    known, studies, about = files.read_json(file), STUDIES, ABOUT + OURS
    if file.resolve() != HERE / "studies.json":  # of which the notes speak
        studies = {name: replace(study, note="") for name, study in STUDIES.items()}
        about = ABOUT
    file.with_suffix(".md").write_text(verdicts.page(studies, known, about))
    verdicts.draw(studies, known, file.with_suffix(".png"))


def main(flags: Flags) -> None:
    file = Path(flags.results)
    if file.suffix != ".json":
        raise InputError(f"--results {file}: give a name that ends in .json")
    if not flags.data and (flags.only or flags.seeds):
        raise InputError("--only and --seeds choose what is measured: give --data DIR, too")
    if not flags.data and not file.exists():
        raise InputError(f"{file} is not there: measure something, with --data DIR")
    with files.lock(file, f"{file}.lock"):
        measure(flags) if flags.data else show(file)


def measure(flags: Flags) -> None:
    folder, file, names = Path(flags.runs), Path(flags.results), flags.only or [*STUDIES]
    if unknown := [name for name in names if name not in STUDIES]:
        raise InputError(f"--only {unknown[0]}: choose from {', '.join(STUDIES)}")
    seeds = flags.seeds or range(5)
    splits = read_splits(flags.data, LABELS, BASE.image_size, seed=max(seeds))

    here = {"processor": processor(), "torch": torch.__version__}
    contents = images.digests(read_all(flags.data, BASE.image_size)) | {"labels": LABELS}
    known = files.read_json(file) if file.exists() else {"images": contents, "seeds": {}}
    if known["images"] != contents:
        raise InputError(f"{file} was measured on other images: give another --results")

    # Not built on: checkpoints of other images, or of another processor, which rounds differently.
    folder /= files.digest(*here.values(), json.dumps(contents))[:8]
    folder.mkdir(parents=True, exist_ok=True)

    wanted = {run.key: run for name in names for run in STUDIES[name].runs.values()}
    commit = ""
    if shutil.which("git"):
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=HERE, text=True,
                                capture_output=True).stdout.strip()

    waiting: dict[tuple, Run] = {}
    begun: dict[int, dict] = {}  # what a seed's rows are added to; one begun anew waits for a row
    for seed in seeds:
        fresh = here | {"runs": {}}
        found = known["seeds"].get(str(seed), fresh)
        if wanted.keys() - found["runs"].keys() and not here.items() <= found.items():
            said = f"seed {seed} was measured on {found['processor']} with torch {found['torch']}"
            anew = missing(wanted.values(), seed, {}, folder)
            if found["runs"].keys() - {key for _, key in anew}:
                raise InputError(f"{said}: give another --results, or all studies, to measure it "
                                 "anew")
            print(f"{said}: all of it is measured anew")
            found = fresh
        begun[seed] = found
        waiting |= missing(wanted.values(), seed, found["runs"], folder)
    whole = {place: run.costs(splits.sizes) for place, run in waiting.items()}
    costs = {(seed, key): whole[seed, key] - (run.before.costs(splits.sizes) if run.before else 0)
             for (seed, key), run in waiting.items()}

    if not waiting:
        print(f"{file} holds all of these runs: to measure them again, give another --results")
    failed = len(costs)
    bar = tqdm(total=sum(costs.values()), desc=f"{len(costs)} trainings", bar_format=BAR,
               disable=not costs)
    try:
        for seed, run, row in measure_all(
                waiting, 2, flags.data, LABELS, folder, ROBUST):
            keep(begun[seed]["runs"], run, row | {"commit": commit}, file)
            known["seeds"][str(seed)] = begun[seed]
            files.write_json(file, known)
            bar.update(costs[seed, run.key])
            failed -= 1
    finally:
        bar.close()
        if file.exists():
            show(file)
    if failed:
        raise InputError(f"runs that failed, or build on one that did: {failed} (see above)")


if __name__ == "__main__":
    sys.exit(cli.run(main))
