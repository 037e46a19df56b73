"""What is left out, by which rule, and how much of it: the thresholds of the task builders
(`mg_jax.data.tasks.filters`) and what making data adds to them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from mg_jax.data.tasks.filters import Filters, area
from mg_jax.errors import UserError
from mg_jax.example import Box, Region

# Everything that can be left out, in the order of the report.
FILTERS: dict[str, str] = {
    "no names": "pictures in which nothing is named",
    "no texts": "pictures without question or dialogue",
    "not found": "names of which no box is found, or left",
    "low confidence": "boxes with a score under --min-confidence",
    "too many boxes": "names with more than --max-boxes boxes",
    "too small": "things under --min-area: no object images",
    "too large": "things over --max-area: no object images",
    "overlapping options": "object images that overlap another option by --option-iou",
    "too few options": "choices left with fewer than two options",
    "overlapping regions": "regions dropped until none overlap and --max-regions are left",
    "too few regions": "pictures with fewer than --min-regions regions left",
    "malformed": "entries of answers that are not in the form asked for",
    "unreadable": "answers that could not be used, after --tries attempts",
    "refused": "answers withheld by a content filter",
    "repeated": "questions asked twice of a picture",
    "ungrounded": "conversations that point at nothing",
}


@dataclass(frozen=True)
class Limits(Filters):
    """The thresholds of `Filters`, and of numbered regions: two overlap from an IoU of region_iou;
    min_regions to max_regions may be left."""

    region_iou: float = 0.5
    min_regions: int = 3
    max_regions: int = 10

    def __post_init__(self):
        super().__post_init__()
        if not 1 <= self.min_regions <= self.max_regions:
            raise UserError(
                f"filters: min_regions={self.min_regions} must be from 1 to "
                f"max_regions={self.max_regions}"
            )


@dataclass(frozen=True)
class Thing:
    """A named place in the picture."""

    name: str
    region: Region

    @property
    def box(self) -> Box:
        """xyxy in [0, 1] of the picture."""
        return self.region.box


@dataclass
class Drops:
    """What was left out of one picture: (filter, what), in order."""

    entries: list[tuple[str, str]] = field(default_factory=list)

    def add(self, name: str, what: str) -> None:
        """Note something that the filter of that name took out."""
        if name not in FILTERS:
            raise KeyError(name)
        self.entries.append((name, what))


def sure(things: Sequence[Thing], limits: Limits, drops: Drops) -> list[Thing]:
    """The things whose score, where they have one, is high enough."""
    kept = []
    for thing in things:
        if why := limits.why_not_sure(thing.region):
            drops.add(why, f"{thing.name} {thing.region.score:.2f}")
        else:
            kept.append(thing)
    return kept


def few_boxes(things: Sequence[Thing], limits: Limits, drops: Drops) -> list[Thing]:
    """The things whose name has no more boxes than it may have."""
    crowded = limits.crowded(thing.name for thing in things)
    for name, count in crowded.items():
        drops.add("too many boxes", f"{name} x{count}")
    return [thing for thing in things if thing.name not in crowded]


def shown(things: Sequence[Thing], limits: Limits, drops: Drops) -> list[int]:
    """Numbers of the things that make object images."""
    kept = []
    for n, thing in enumerate(things):
        if why := limits.why_not_shown(thing.region):
            drops.add(why, f"{thing.name} {area(thing.region):.2%}")
        else:
            kept.append(n)
    return kept


def apart(things: Sequence[Thing], limits: Limits, drops: Drops) -> list[Thing] | None:
    """Things of which no two overlap, `max_regions` of them at most, in their order; None where
    fewer than `min_regions` are left (Groma's rule for pictures with numbered marks).

    Of the two that overlap most the less certain one goes, else the smaller one; when none overlap
    too much, those that overlap most at all, and then the smallest, go until few enough are left.
    """
    from mg_jax.boxes import iou  # here, since it brings jax along

    left = list(range(len(things)))
    boxes = np.array([thing.box for thing in things], np.float64).reshape(-1, 4)
    ious = np.array(iou(boxes, boxes))
    np.fill_diagonal(ious, 0.0)
    while len(left) > 1:
        part = ious[np.ix_(left, left)]
        worst = float(part.max())
        if worst < limits.region_iou and len(left) <= limits.max_regions:
            break
        pair = np.unravel_index(int(part.argmax()), part.shape) if worst > 0 else range(len(left))
        gone = min((left[k] for k in pair), key=lambda n: _rank(things[n]))
        drops.add("overlapping regions", things[gone].name)
        left.remove(gone)
    if len(left) < limits.min_regions:
        drops.add("too few regions", f"{len(left)} left")
        return None
    return [things[n] for n in left]


def _rank(thing: Thing) -> tuple[float, float]:
    score = thing.region.score
    return 1.0 if score is None else score, area(thing.region)
