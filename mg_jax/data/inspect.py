"""What is in a data set before anything is trained on it: numbers, problems, a drawn sheet."""

import dataclasses
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from mg_jax.data.sources import Source
from mg_jax.data.sources.spaces import refuse_misfits
from mg_jax.data.sources.split import PARTS, parts
from mg_jax.draw import draw_boxes, grid
from mg_jax.errors import BadRecord, UserError, some
from mg_jax.example import Example

_MOST = 20_000  # examples that are looked at; of a larger set an even sample
_PICTURES = 64  # pictures that are decoded, to find broken ones
_RAW = 5_000  # boxes that are compared with other spaces
_TINY = 0.01  # of the picture's side: below that a detector sees two pixels or less
_SHOWN = 12  # classes, and lines of problems, that are printed


@dataclasses.dataclass(frozen=True)
class Findings:
    """What `inspect` found; sizes and counts are percentiles: min, p10, median, p90, max.

    examples: of the whole source; examined: how many of them the numbers below are of. malformed:
    records; misread: those of them that were found so only when they were asked for. classes: boxes
    by label. pictures_of: pictures by label. box_side: root of the area in pixels, box_share: the
    same as a share of the picture's. spellings: labels that may be one class. tiny: boxes with a
    side below a hundredth of the picture's. space: why the boxes cannot be of their pictures, ""
    where they can. text: examples with each kind of text. parts: examples by split. max_bad: share
    of malformed records, and of unreadable pictures, from which on the data are refused.
    """

    name: str
    examples: int
    examined: int
    left_out: Mapping[str, int]
    malformed: int
    misread: int
    problems: Sequence[str]
    boxes: int
    crowd: int
    unlabelled: int
    classes: Mapping[str, int]
    pictures_of: Mapping[str, int]
    boxes_per_picture: Mapping[str, float]
    box_side: Mapping[str, float]
    box_share: Mapping[str, float]
    width: Mapping[str, float]
    height: Mapping[str, float]
    empty: int
    tiny: int
    duplicated: int
    spellings: Sequence[Sequence[str]]
    space: str
    decoded: int
    unreadable: Sequence[str]
    text: Mapping[str, int]
    parts: Mapping[str, int]
    max_bad: float

    def as_dict(self) -> dict[str, Any]:
        """Everything as JSON takes it."""
        return dataclasses.asdict(self)

    def warnings(self) -> list[str]:
        """What may be wrong without being refused, a line each."""
        lines = [f"{n} {reason}" for reason, n in sorted(self.left_out.items())]
        for names in self.spellings:
            counts = ", ".join(f"{name!r} ({self.classes[name]} boxes)" for name in names)
            lines.append(f"one class spelled in several ways? {counts}")
        if self.tiny:
            lines.append(f"{self.tiny} boxes are tiny: a side below 1 % of the picture's")
        if self.duplicated:
            lines.append(f"{self.duplicated} boxes stand twice in their picture")
        if self.empty:
            lines.append(f"{self.empty} pictures have no box")
        if self.unlabelled and self.classes:
            lines.append(f"{self.unlabelled} boxes have no label")
        elif self.unlabelled:
            lines.append(
                "no box has a label, so none is learnt: unless that is meant, check that the "
                "annotations have names of classes (COCO: categories, category_id)"
            )
        if self.malformed:
            lines.append(f"{self.malformed} malformed records, left out")
        if self.unreadable:
            lines.append(f"{len(self.unreadable)} of {self.decoded} pictures cannot be read")
        for part in PARTS:
            if not self.parts.get(part) and self.examples:
                lines.append(f"no picture falls into the part {part!r}: give more pictures")
        return lines + some([*self.problems, *self.unreadable], _SHOWN)

    def refusal(self) -> str:
        """Why this cannot be trained on, "" if it can."""
        left = ", ".join(f"{n} {reason}" for reason, n in sorted(self.left_out.items()))
        if not self.examples:
            return f"data {self.name}: holds no example to train on" + (f": {left}" if left else "")
        if self.space:
            return self.space
        if self.malformed and not self.boxes and not any(self.text.values()):
            return f"data {self.name}: no record can be used; the first: {self.problems[0]}"
        if not self.boxes and not any(self.text.values()):
            return f"data {self.name}: has no boxes and no text: there is nothing to train on"
        if self.decoded and len(self.unreadable) == self.decoded:
            return f"data {self.name}: no picture can be read; the first: {self.unreadable[0]}"
        for count, of, what, first in (
            (self.misread, self.examined, "records are malformed", self.problems[:1]),
            (len(self.unreadable), self.decoded, "pictures cannot be read", self.unreadable[:1]),
        ):
            # of a sample two deviations more, which its share may be off by
            slack = 2 * (self.max_bad * of) ** 0.5 if of < self.examples else 0
            if count > self.max_bad * of + slack:
                most = f"more than max_bad={self.max_bad:g} allows"
                return f"data {self.name}: {count} of {of} {what}, {most}; the first: {first[0]}"
        if not self.parts.get("train"):
            return f"data {self.name}: {self.examples} examples, none of them to train on by hash"
        return ""

    def lines(self) -> list[str]:
        """The findings for people."""
        even = "" if self.examined == self.examples else f" (an even sample of {self.examined})"
        split = ", ".join(f"{part} {self.parts.get(part, 0)}" for part in PARTS)
        out = [f"{self.name}: {self.examples} examples{even}; by hash of file name: {split}"]
        if self.boxes:
            out += [
                f"  boxes    {self.boxes} of {len(self.classes)} classes, {self.crowd} crowds",
                f"  boxes per picture   {spread(self.boxes_per_picture)}",
                f"  box side, px        {spread(self.box_side)}",
                f"  box side, share     {spread(self.box_share, 3)}",
            ]
        if self.width:
            out.append(f"  picture width, px   {spread(self.width)}")
            out.append(f"  picture height, px  {spread(self.height)}")
        said = ", ".join(f"{kind} {n}" for kind, n in self.text.items() if n)
        out.append(f"  examples with text  {said or 'none'}")
        frequent = sorted(self.classes, key=lambda name: -self.classes[name])
        rows = [
            f"class {name}: {self.classes[name]} boxes in {self.pictures_of[name]} pictures"
            for name in frequent
        ]
        out += [f"  {row}" for row in some(rows, _SHOWN)]
        return out + [f"  warning: {line}" for line in self.warnings()]


def inspect(source: Source, most: int = _MOST, pictures: int = _PICTURES) -> Findings:
    """Look through a source (an even sample of `most` examples) and decode some pictures.

    Nothing is raised for what is malformed: it is counted, and named.
    """
    total = len(source)
    chosen = even(total, most)
    decoded = set(even(len(chosen), pictures))
    problems: list[str] = []
    unreadable: list[str] = []
    classes, pictures_of, text = Counter[str](), Counter[str](), Counter[str]()
    per_picture, boxes, sizes = [], [], []
    count = defaultdict[str, int](int)
    raw: list[Any] = []
    raw_sizes: list[tuple[int, int]] = []
    for n, i in enumerate(chosen):
        try:
            given, size = source.raw_boxes(i) if hasattr(source, "raw_boxes") else (None, (0, 0))
            if given and len(raw) < _RAW:
                raw += given
                raw_sizes += [size] * len(given)
            example = source[i]
        except BadRecord as e:
            problems.append(str(e))
            continue
        size = example.width, example.height
        if n in decoded and example.image is not None:
            count["decoded"] += 1
            try:
                example.pixels()
            except BadRecord as e:
                unreadable.append(str(e))
        sizes.append(size)
        found = np.array([r.box for r in example.objects], np.float64).reshape(-1, 4)
        if given is None and len(raw) < _RAW:
            raw += (found * np.tile(size, 2)).tolist()
            raw_sizes += [size] * len(found)
        labels = [r.label for r in example.objects]
        boxes.append(np.concatenate([found, np.tile(size, (len(found), 1))], 1))
        per_picture.append(len(found))
        classes.update(filter(None, labels))
        pictures_of.update(set(filter(None, labels)))
        text.update(kind for kind in _TEXTS if getattr(example, kind))
        keys = [(r.label, *np.round(r.box, 5)) for r in example.objects]
        count["duplicated"] += len(keys) - len(set(keys))
        count["unlabelled"] += sum(not label for label in labels)
        count["crowd"] += len(example.crowd)
        count["empty"] += not len(found) and not example.crowd
    every = np.concatenate(boxes) if boxes else np.zeros((0, 6))
    shares = every[:, 2:4] - every[:, :2]
    whole = np.array(sizes, np.float64).reshape(-1, 2)
    return Findings(
        name=source.name,
        examples=total,
        examined=len(chosen),
        left_out=dict(source.counts),
        malformed=source.bad + len(problems),
        misread=len(problems),
        problems=tuple([*problems, *source.problems]),
        boxes=len(every),
        crowd=count["crowd"],
        unlabelled=count["unlabelled"],
        classes=dict(classes),
        pictures_of=dict(pictures_of),
        boxes_per_picture=percentiles(per_picture),
        box_side=percentiles(np.sqrt((shares * every[:, 4:]).prod(1))),
        box_share=percentiles(np.sqrt(shares.prod(1))),
        width=percentiles(whole[:, 0]),
        height=percentiles(whole[:, 1]),
        empty=count["empty"],
        tiny=int((shares < _TINY).any(1).sum()),
        duplicated=count["duplicated"],
        spellings=spellings(classes),
        space=_misfits(source.name, raw, raw_sizes),
        decoded=count["decoded"],
        unreadable=tuple(unreadable),
        text=dict(text),
        parts=dict(Counter(parts(source))),
        max_bad=source.max_bad,
    )


_TEXTS = ("turns", "captions", "expressions", "questions", "relations")


def spellings(labels: Iterable[str]) -> list[list[str]]:
    """Labels that differ by case, white space, "_", "-" or a plural alone, in groups."""
    plain = {label: re.sub(r"[\s_-]+", "", label.casefold()) for label in labels}
    known = set(plain.values())
    groups = defaultdict[str, list[str]](list)
    for label, key in sorted(plain.items()):
        singular = [key[:-1], key[:-2], f"{key[:-3]}y"] if key.endswith("s") else []
        groups[next((s for s in singular if s in known), key)].append(label)
    return [group for group in groups.values() if len(group) > 1]


def sample_sheet(source: Source, count: int = _SHOWN) -> Image.Image | None:
    """A grid of `count` pictures with their boxes and labels, None when none can be read."""
    cells: list[Image.Image] = []
    for i in even(len(source), 3 * count):
        if len(cells) < count:
            try:
                cells.append(drawn(source[i]))
            except BadRecord:
                continue
    return grid(cells) if cells else None


def drawn(example: Example) -> Image.Image:
    """The picture with its objects (or regions). Raises BadRecord when it cannot be read."""
    regions = example.objects or example.regions
    labels = [r.label or "" for r in regions]
    colours = {label: n for n, label in enumerate(dict.fromkeys(labels))}
    scale = np.tile([example.width, example.height], 2)
    picture = Image.fromarray(example.pixels())
    picture.thumbnail((720, 720))
    boxes = [(np.array(r.box) * scale).tolist() for r in regions]
    numbers = [colours[label] for label in labels]
    return draw_boxes(picture, boxes, labels, numbers, example.width, example.height)


def even(total: int, count: int) -> list[int]:
    """`count` numbers below `total` at even distances, all of them where there are no more."""
    return [total * n // min(total, count) for n in range(min(total, count))]


def percentiles(values: Any) -> dict[str, float]:
    """Five of them by name, {} of no values."""
    if not len(values):
        return {}
    names = {"min": 0, "p10": 10, "median": 50, "p90": 90, "max": 100}
    found = np.percentile(np.asarray(values, np.float64), list(names.values()))
    return {name: round(float(v), 4) for name, v in zip(names, found, strict=True)}


def spread(values: Mapping[str, float], digits: int = 0) -> str:
    """Percentiles for people."""
    return ", ".join(f"{name} {v:.{digits}f}" for name, v in values.items())


def _misfits(name: str, boxes: Any, sizes: Any) -> str:
    """What `refuse_misfits` says of boxes [N, 4], xyxy in pixels, and pictures of sizes [N, 2]."""
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    sizes = np.asarray(sizes, np.float64).reshape(-1, 2)
    cut = np.clip(boxes, 0, np.tile(sizes, 2))
    lost = int((~(cut[:, 2:] > cut[:, :2]).all(1)).sum())
    try:
        refuse_misfits(name, boxes, sizes, "xyxy", lost, len(boxes))
    except UserError as e:
        return str(e)
    return ""
