"""Which objects may be shown as images, offered as options or asked about (TinyGroundingGPT).

The paper drops object images that are too large or too small, options that overlap, and objects of
low confidence or with too many boxes, and gives no number (spec 5); these are ours.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from mg_jax.errors import UserError
from mg_jax.example import Region


@dataclass(frozen=True)
class Filters:
    """Thresholds. min_area, max_area: share of the picture that an object image covers.
    option_iou: options of a choice overlap by less. min_score: confidence of a box that has one.
    max_boxes: boxes of one name.
    """

    min_area: float = 0.005
    max_area: float = 0.6
    option_iou: float = 0.3
    min_score: float = 0.35
    max_boxes: int = 3

    def __post_init__(self):
        for name in ("min_area", "max_area", "option_iou", "min_score"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise UserError(f"filters: {name}={value:g} is no share between 0 and 1")
        if self.min_area >= self.max_area:
            raise UserError(
                f"filters: min_area={self.min_area:g} must be below max_area={self.max_area:g}"
            )
        if self.max_boxes < 1:
            raise UserError(f"filters: max_boxes={self.max_boxes}: give at least 1")

    def why_not_shown(self, region: Region) -> str | None:
        """Why a region makes no object image ("too small", "too large", "low confidence"), None
        for one that does."""
        share = area(region)
        if share < self.min_area:
            return "too small"
        if share > self.max_area:
            return "too large"
        return self.why_not_sure(region)

    def why_not_sure(self, region: Region) -> str | None:
        """ "low confidence" of a region that has less than `min_score`."""
        low = region.score is not None and region.score < self.min_score
        return "low confidence" if low else None

    def shown(self, regions: Iterable[Region], drops: Counter[str] | None = None) -> list[Region]:
        """The regions that make object images, each place once; `drops` counts the others."""
        kept: dict[tuple[float, ...], Region] = {}
        for region in regions:
            if why := self.why_not_shown(region):
                if drops is not None:
                    drops[why] += 1
            else:
                kept.setdefault(region.box, region)
        return list(kept.values())

    def crowded(self, names: Iterable[str]) -> dict[str, int]:
        """How many boxes the names have that have more than `max_boxes`; names: of every box."""
        return {name: n for name, n in Counter(names).items() if n > self.max_boxes}

    def named(
        self, things: Sequence[tuple[str, Region]], drops: Counter[str] | None = None
    ) -> list[tuple[str, Region]]:
        """The (name, region) pairs of sure boxes whose name has no more than `max_boxes`."""
        crowded = self.crowded(name for name, _ in things)
        kept = []
        for name, region in things:
            why = "too many boxes" if name in crowded else self.why_not_sure(region)
            if why is None:
                kept.append((name, region))
            elif drops is not None:
                drops[why] += 1
        return kept

    def apart(
        self, first: Region, others: Iterable[Region], count: int, drops: Counter[str] | None = None
    ) -> list[Region]:
        """`first` and the next of `others` that overlap none before them, up to `count` in all."""
        from mg_jax.boxes import iou  # here, since it brings jax along

        kept = [first]
        for region in others:
            if len(kept) == count:
                break
            boxes = np.array([r.box for r in kept], np.float64)
            if (iou(np.array([region.box]), boxes) < self.option_iou).all():
                kept.append(region)
            elif drops is not None:
                drops["overlapping options"] += 1
        return kept


def area(region: Region) -> float:
    """Share of the picture that the box of a region takes."""
    x0, y0, x1, y1 = region.box
    return (x1 - x0) * (y1 - y0)
