"""What a loop will do, before it does it: its phases, their images, and the hours they take."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from support import images, plans

# Labelled images, classes and unlabelled images that a plan is for; --dry-run assumes them.
IMAGENET = 1_281_167, 1000, 300_000_000
SIZES = {"demo": (80, 10, 6_000), "svhn": (65_937, 10, 531_131),
         "cifar10-cpu": (4_000, 10, 41_000), "cifar10": (4_000, 10, 41_000),
         "tiny-imagenet": (200, 10, 8_000),
         "own": (1_000, 10, 10_000), "finetune": (1_000, 10, 10_000),
         "table6-1.3m": (*IMAGENET[:2], 1_300_000)}


class Phase(NamedTuple):
    """One training of a loop."""

    name: str
    arch: str
    pixels: int
    steps: int
    images_a_step: int
    cost: float = 1.0  # of an image, relative to the others
    labels_made: int | None = None  # pool images labelled before it, both passes together

    @property
    def images(self) -> int:
        return self.steps * self.images_a_step


def phases(generations: Sequence, sizes: tuple[int, int, int], labels_only: bool,
           train_phases: Callable, scaling: Callable) -> list[Phase]:
    """All trainings in their order: every generation, then those on the labels alone.

    `train_phases` is rehearsed with a `learn` that only notes what it would train.

    Args:
        generations: iterate.Generation.
        sizes: labelled images, classes and unlabelled images.
        train_phases, scaling: iterate.train_phases and model.scaling.
    """
    (labeled, classes, pool), found = sizes, []

    def learn(config, name: str, pseudo: bool | None, start: object) -> None:
        """Note a phase instead of training it."""
        steps = replace(config, labeled_images=labeled).total_steps
        kinds = (config.joint or not pseudo) + (config.unlabeled_ratio if pseudo else 0)
        width, depth, *_ = scaling(config.arch)
        found.append(Phase(name, config.arch, config.image_size, steps, config.batch_size * kinds,
                           width**2 * depth * config.image_size**2))

    for number, generation in enumerate(generations):
        first = len(found)
        train_phases(generation, learn, bool(number) or None, None)
        if number:
            how = generation.labelling  # not balanced: at most the whole pool
            selected = (how.per_class or pool // classes) * classes if how.balance else pool
            found[first] = found[first]._replace(labels_made=pool + min(selected, pool))
    for generation in dict.fromkeys(plans.on_labels_only(generations) if labels_only else ()):
        train_phases(generation, learn, None, None)
    return found


def align(lines: list[list]) -> str:
    """A header and rows as aligned text: words left, numbers right, None as "-"."""
    columns = []
    for head, *cells in zip(*lines, strict=True):
        words, forms = isinstance(cells[0], str), {str: "", int: ",d", float: ".2f"}
        texts = [head, *("-" if cell is None else format(cell, forms[type(cell)])
                         for cell in cells)]
        width = max(map(len, texts))
        columns.append([text.ljust(width) if words else text.rjust(width) for text in texts])
    return "\n".join("  ".join(line).rstrip() for line in zip(*columns, strict=True))


def table(found: Sequence[Phase]) -> str:
    """One line per phase."""
    return align([
        ["training", "model", "pixels", "steps", "images a step", "images", "labels made"],
        *([*phase[:5], phase.images, phase.labels_made] for phase in found)])


def outline(plan: str, generations: Sequence, flags, source, train_phases: Callable,
            scaling: Callable, recipe: Callable) -> str:
    """What a loop would do, as a table, and where it departs from train.recipe.

    Args:
        flags: iterate.Flags; source: sources.Source, whose numbers replace those of SIZES.
        train_phases, scaling, recipe: iterate.train_phases, model.scaling and train.recipe.
    """
    labeled, classes, pool = SIZES.get(plan, IMAGENET)
    labeled = classes * source.labels_per_class if source.labels_per_class else labeled
    pool = source.unlabeled_images or pool
    found = phases(generations, (labeled, classes, pool), flags.labels_only, train_phases, scaling)
    trained = sum(phase.images for phase in found)
    labelled = sum(phase.labels_made or 0 for phase in found)
    own = source.dataset or source.labeled or source.train
    text = [f"plan {plan}: {labeled:,} labelled images of {classes:,} classes, a pool of {pool:,}"
            + " (assumed: a dry run reads no images)" * bool(own),
            table(found), f"in all {trained:,} images trained on, {labelled:,} labelled"]
    if flags.images_per_second:
        hours = (trained + labelled / 3) / flags.images_per_second / 3600
        text.append(f"{hours:,.1f} device hours at {flags.images_per_second:g} images a second "
                    "(labelling: three times that speed), without validation and test")
    changed = {}  # generation names by what they change
    for number, generation in enumerate(generations):
        changed.setdefault(_changes(generation, recipe, number > 0), []).append(generation.name)
    text += [f"{', '.join(names)}: {changes}" for changes, names in changed.items()]
    return "\n\n".join(text)


def _changes(generation, recipe: Callable, student: bool) -> str:
    """How a generation departs from train.recipe for its model."""
    config, labelling = generation.config, generation.labelling
    paper, here = vars(recipe(config.arch)) | {"start_from": None}, vars(config) | vars(generation)
    if student:
        paper |= vars(type(labelling)(per_class=130_000)) | {"joint": True, "from_teacher": False}
        here |= vars(labelling) | {"per_class": labelling.per_class or "pool / classes"}
    changed = ", ".join(f"{name} {here[name]} ({value})" for name, value in paper.items()
                        if here[name] != value and name not in ("seed", "labeled_images"))
    return f"not as in train.recipe (its values): {changed}" if changed else "as in train.recipe"


class Loop:
    """What the runs of a loop share: a log, and how long all that remains will take.

    Making it prints the phases.
    """

    def __init__(self, log: Path, found: Sequence[Phase]):
        images.say_once(f"\n{table(found)}\n")
        self.log, self.names, self.said = log, [phase.name for phase in found], False
        self.ended = set()  # names of those that this process has ended
        self.costs = [phase.images * phase.cost for phase in found]

    def left(self, name: str, share: float, whole: float) -> str:
        """"phase 2 of 5, all done in 2 h 20 min", if phase `name` takes `whole` seconds and `share`
        of it is done.
        """
        number = self.names.index(name)
        rest = sum(self.costs[number:]) / self.costs[number] - share
        text = f"phase {number + 1} of {len(self.names)}, all done in {duration(whole * rest)}"
        if not self.said:
            self.said = True
            images.say_once(f"{name}: {text} (about, after {whole * share:.0f} s). Less: "
                            "--no-labels-only or, with another --out, a smaller --arch, "
                            "--image-size, --epochs or --unlabeled-ratio")
        return text


def duration(seconds: float) -> str:
    """A duration in words, such as 2 h 5 min."""
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
