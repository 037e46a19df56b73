"""A few fixed views of every picture, where outputs of a frozen encoder are to be kept for each."""

import functools
import zlib
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from PIL import Image

from mg_jax.data.sources.base import Source, number
from mg_jax.data.transforms import Augment, View, draw_view
from mg_jax.example import Example, Region
from mg_jax.text.words import noun

VISIBLE = 0.3  # of an object's area: with less in view it is not asked for, nor called absent


class Views(Source):
    """Example k * views is example k of `source` as it is; the others are cut and mirrored at
    random, as the detector's pictures are, the same way in every run.

    Objects are cut at the border of the view; what shows less than VISIBLE of its area goes to
    `Example.crowd`, and a label that is wholly out of view becomes absent where absences are
    known. Examples with text (turns, captions, expressions, questions, relations) are shown as
    they are in every view: words such as "left" would be wrong, and things named be gone.
    Raises UserError for a number of views below 1.
    """

    def __init__(self, source: Source, views: int | str):
        super().__init__(source.name, source.head, source.max_bad)
        self.views = number(source.name, "views", views, low=1)
        self.source, self.tasks, self.exhaustive = source, source.tasks, source.exhaustive
        self.counts, self.bad, self.problems = source.counts, source.bad, source.problems

    @property
    def frequency(self) -> Mapping[str, int]:
        return self.source.frequency

    def file_name(self, i: int) -> str:
        return self.source.file_name(i // self.views)

    def measures(self) -> np.ndarray | None:
        found = self.source.measures()
        return None if found is None else np.repeat(found, self.views, 0)

    def __len__(self) -> int:
        return len(self.source) * self.views

    def __getitem__(self, i: int) -> Example:
        k, view = divmod(i, self.views)
        example = self.source[k]
        texts = ("turns", "captions", "expressions", "questions", "relations")
        if not view or not example.objects or any(getattr(example, name) for name in texts):
            return replace(example, id=f"{example.id}/view{view}")
        rng = np.random.default_rng([zlib.crc32(self.file_name(i).encode()), view])
        boxes = np.array([r.box for r in example.objects], np.float64)
        return seen(example, draw_view(example.width, example.height, boxes, rng, Augment()), view)


def seen(example: Example, view: View, name: int = 1) -> Example:
    """The example as `view` shows it, its picture of the view's own size."""
    x0, y0, x1, y1 = view.box
    width, height = max(round(x1 - x0), 1), max(round(y1 - y0), 1)
    objects: list[Region] = []
    partly: list[Region] = []
    gone: list[str | None] = []
    for regions, kept in ((example.objects, objects), (example.crowd, partly)):
        for region in regions:
            whole = view.boxes(np.array([region.box], np.float64))[0]
            box = np.clip(whole, 0, 1)
            share = _area(box) / max(_area(whole), 1e-12)
            if not share > 0:
                gone.append(region.label)
                continue
            cut = Region.from_box(box.tolist(), region.label, region.score)
            (kept if share >= VISIBLE else partly).append(cut)
    absent = example.absent
    if absent:  # what is lacking is known, so also what the view leaves out
        there = {noun(r.label) for r in (*objects, *partly)}
        unseen = dict.fromkeys(label for label in gone if label and noun(label) not in there)
        absent = (*absent, *unseen)
    return replace(
        example,
        image=functools.partial(_cut, example, view, width, height),
        width=width,
        height=height,
        id=f"{example.id}/view{name}",
        objects=tuple(objects),
        crowd=tuple(partly),
        absent=absent,
        meta={**example.meta, "view": name},
    )


def _area(box: np.ndarray) -> float:
    return float(np.prod(np.maximum(box[2:] - box[:2], 0)))


def _cut(example: Example, view: View, width: int, height: int) -> np.ndarray:
    picture = Image.fromarray(example.pixels())
    method = Image.Transform.EXTENT, view.box, Image.Resampling.BILINEAR
    out = np.asarray(picture.transform((width, height), *method))
    return out[:, ::-1] if view.mirrored else out
