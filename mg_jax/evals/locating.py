"""Tasks that are answered with boxes: rec, absent, all_instances, proposals."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from mg_jax.answer import Answer
from mg_jax.evals import asking, metrics
from mg_jax.evals.base import Located, Scores, Task, by_class, located, mean_of, place
from mg_jax.evals.metrics import Detections
from mg_jax.evals.questions import Item, collect, is_scenes, with_classes
from mg_jax.example import Example, Region
from mg_jax.text import markup
from mg_jax.text.words import noun


def largest_first(item: Item) -> np.ndarray:
    """All annotated boxes in pixels, largest first; the whole picture where there are none."""
    boxes = item.pixel_boxes(item.example.objects)
    if not len(boxes):
        return np.asarray([[0.0, 0.0, item.example.width, item.example.height]])
    return boxes[np.argsort(-(boxes[:, 2:] - boxes[:, :2]).prod(1), kind="stable")]


def central(item: Item) -> np.ndarray:
    """The box [1, 4] of the object nearest to the middle of the picture, in pixels."""
    boxes = largest_first(item)
    middle = np.asarray([item.example.width, item.example.height]) / 2
    offset = (boxes[:, :2] + boxes[:, 2:]) / 2 - middle
    return boxes[[int((offset**2).sum(1).argmin())]]


def grid(items: Sequence[Item]) -> Iterator[np.ndarray]:
    """For each picture 100 boxes in pixels, of the data set's median size, on a 10x10 grid."""
    every = np.concatenate([[r.box for r in item.example.objects] for item in items])
    side = np.median(every[:, 2:] - every[:, :2], axis=0)
    y, x = np.divmod(np.arange(100), 10)
    corner = (np.stack([x, y], 1) + 0.5) / 10 - side / 2
    boxes = np.clip(np.concatenate([corner, corner + side], 1), 0, 1)
    for item in items:
        yield boxes * np.tile([item.example.width, item.example.height], 2)


def labelled(regions: Sequence[Region]) -> dict[str, list[Region]]:
    """The regions that have a label, by its noun."""
    found: dict[str, list[Region]] = {}
    for region in regions:
        if name := noun(region.label):
            found.setdefault(name, []).append(region)
    return found


class Rec(Task):
    """Locate the one thing an expression fits: acc@0.5 on things that are there; and on as many
    things that are not, absent_accuracy: the answer denies it and gives no box.

    Scenes: at least 4 objects, one or more of them sharing the target's shape or colour. Of
    annotations: the expressions of one region, and those of none. The first box of an answer
    counts, as in Groma's eval_rec.py.
    """

    name, headline = "rec", "acc@0.5"
    rule = "always the largest, or always the most central, of the picture's objects"
    scenes = {"tasks": "rec", "min_objects": 4}
    absent_scenes = {"tasks": "rec_absent", "min_objects": 4}

    def items(
        self, data: str, limit: int | None = None, problems: list[str] | None = None
    ) -> list[Item]:
        present = collect(data, self.accepts, self.scenes, True, limit, self.write, problems)
        absent = collect(
            data, self.accepts_absent, self.absent_scenes, True, limit, self.write_absent, problems
        )
        return present + [replace(i, key=f"{i.key}/absent") for i in absent]

    def count(self, items: Sequence[Item]) -> int:
        return sum(not i.absent for i in items)

    def accepts(self, item: Item) -> bool:
        if item.record.get("task") == "rec":
            return bool(item.record.get("same_shape") or item.record.get("same_color"))
        only_a_box = "task" not in item.record and not markup.strip(item.reference)
        return only_a_box and len(item.targets) == 1

    def write(self, example: Example) -> Example | None:
        return asking.rec(example)

    def write_absent(self, example: Example) -> Example | None:
        """As `write`, for what is not there."""
        return asking.rec_absent(example)

    def accepts_absent(self, item: Item) -> bool:
        """True for a question of this kind whose thing is not there."""
        known = item.record.get("task")
        if known:
            return known == "rec_absent"
        return item.absent and not re.match(r"\W*(yes|no)\b", item.reference, re.I)

    def read(self, item: Item, answer: Answer) -> Located:
        return located(answer)

    def invalid(self, item: Item, prediction: Located) -> bool:
        return not len(prediction.boxes) and not prediction.denied

    def right(self, item: Item, prediction: Located) -> bool:
        if item.absent or not len(prediction.boxes):
            return item.absent and prediction.denied
        iou = metrics.iou_matrix(prediction.boxes[:1], self.expected_boxes(item))
        return bool(iou.max() > 0.5)

    def score(self, items: Sequence[Item], predictions: Sequence[Located]) -> Scores:
        pairs = list(zip(items, predictions, strict=True))
        present = [(i, p) for i, p in pairs if not i.absent]
        yield from _referring(self, present).items()
        styles = sorted({str(i.record["style"]) for i, _ in present if "style" in i.record})
        for style in styles:
            some = [(i, p) for i, p in present if i.record.get("style") == style]
            yield f"acc@0.5/{style}", _referring(self, some)["acc@0.5"]
        yield from _absence(pairs).items()
        yield "n_absent", sum(i.absent for i in items)

    def strategies(self, items: Sequence[Item]) -> Iterator[list[Located]]:
        yield [place(largest_first(item)[:1]) for item in items]
        yield [place(central(item)) for item in items]


def _referring(task: Task, pairs: Sequence[tuple[Item, Located]]) -> dict[str, float]:
    first = {i.key: p.boxes[0] if len(p.boxes) else None for i, p in pairs}
    return metrics.referring(first, {i.key: task.expected_boxes(i)[0] for i, _ in pairs})


def _absence(pairs: Sequence[tuple[Item, Located]]) -> dict[str, float]:
    return metrics.absence([p.denied for _, p in pairs], [i.absent for i, _ in pairs])


class Absent(Rec):
    """The same questions, half of them for things that are not there: accuracy counts a thing
    denied when it is absent and not denied when it is there (wherever the box is).

    Of annotations: expressions with and without region; where a picture has no expressions, classes
    that are there and names that the data set says are not."""

    name, headline = "absent", "accuracy"
    rule = "always deny, or never deny"

    def write(self, example: Example) -> Example | None:
        return asking.things(example)

    def write_absent(self, example: Example) -> Example | None:
        return asking.absent_things(example)

    def items(
        self, data: str, limit: int | None = None, problems: list[str] | None = None
    ) -> list[Item]:
        found = super().items(data, limit, problems)
        absent = [i for i in found if i.absent]
        present = found[: len(found) - len(absent)]
        present, absent = _as_many(present, absent), _as_many(absent, present)
        many = len(found) // 2 if is_scenes(data) or limit else len(found)
        half = min(-(-many // 2), len(absent), len(present))
        return [*present[:half], *absent[:half]]

    def count(self, items: Sequence[Item]) -> int:
        return len(items)

    def right(self, item: Item, prediction: Located) -> bool:
        return prediction.denied == item.absent

    def score(self, items: Sequence[Item], predictions: Sequence[Located]) -> Scores:
        pairs = list(zip(items, predictions, strict=True))
        yield "accuracy", float(np.mean([p.denied == i.absent for i, p in pairs]))
        yield from _absence(pairs).items()
        yield "n_absent", sum(i.absent for i in items)

    def strategies(self, items: Sequence[Item]) -> Iterator[list[Located]]:
        yield [place([], denied=True)] * len(items)
        yield [place([])] * len(items)


def _as_many(some: Sequence[Item], others: Sequence[Item]) -> list[Item]:
    """The first of `some`, no more of each form of question than there are among the others: the
    form must not tell whether a thing is there."""
    left = Counter(map(_form, others))
    kept = []
    for item in some:
        left[_form(item)] -= 1
        if left[_form(item)] >= 0:
            kept.append(item)
    return kept


def _form(item: Item) -> str:
    return str(item.record.get("task", "")).removesuffix("_absent")


class AllInstances(Task):
    """Locate everything of a class. as_many_ar: of k targets the k boxes of highest score count,
    AR over IoU .5:.95; recall@0.5 the same at IoU 0.5 alone; `/several`: only k >= 2. ar: AR of
    all boxes given, up to 100.

    Of annotations: every class of a picture's objects, but those that have a crowd there.
    """

    name, headline = "all_instances", "as_many_ar"
    rule = "always the largest of the picture's objects, as many as there are targets"
    scenes = {"tasks": "all_instances"}

    def accepts(self, item: Item) -> bool:
        known = item.record.get("task")
        only_boxes = bool(item.targets) and not markup.strip(item.reference)
        return known == "all_instances" if known else only_boxes

    def write(self, example: Example) -> Example | None:
        return asking.all_instances(example)

    def read(self, item: Item, answer: Answer) -> Located:
        return located(answer)

    def _detections(self, item: Item, prediction: Located) -> Detections:
        return Detections(prediction.boxes, prediction.scores, self.expected_boxes(item))

    def right(self, item: Item, prediction: Located) -> bool:
        many = len(prediction.boxes) == len(item.targets)
        return many and metrics.as_many_recall([self._detections(item, prediction)], [0.5]) == 1.0

    def score(self, items: Sequence[Item], predictions: Sequence[Located]) -> Scores:
        found = [self._detections(i, p) for i, p in zip(items, predictions, strict=True)]
        several = [d for d in found if len(d.targets) > 1]
        yield "as_many_ar", metrics.as_many_recall(found)
        yield "recall@0.5", metrics.as_many_recall(found, [0.5])
        yield "as_many_ar/several", metrics.as_many_recall(several)
        yield "ar", metrics.average_recall(found)
        yield "boxes", float(np.mean([len(d.boxes) for d in found]))
        yield "targets", float(np.mean([len(d.targets) for d in found]))

    def strategies(self, items: Sequence[Item]) -> Iterator[list[Located]]:
        yield [place(largest_first(item)[: len(item.targets)]) for item in items]


class Proposals(Task):
    """The detector alone, without a question: ar@100 over IoU .5:.95 without class, of what it
    proposes after selection; ap50: AP at IoU 0.5, without class.

    Of annotations with labels also recall@0.5/CLASS: how many objects of the class the boxes find,
    by COCO's matching to that class alone; class_recall@0.5: its mean.
    """

    name, headline, asks, needs = "proposals", "ar@100", False, "proposals"
    rule = "100 boxes of the data set's median size on a 10x10 grid"
    scenes = {"tasks": "none"}

    def items(
        self, data: str, limit: int | None = None, problems: list[str] | None = None
    ) -> list[Item]:
        found = super().items(data, limit, problems)
        return found if is_scenes(data) else with_classes(found)

    def accepts(self, item: Item) -> bool:
        return bool(item.example.objects)

    def read(self, item: Item, answer: tuple[Any, Any]) -> Located:
        return place(*answer)

    def _detections(self, item: Item, prediction: Located) -> Detections:
        objects, crowd = (item.pixel_boxes(r) for r in (item.example.objects, item.example.crowd))
        is_crowd = np.arange(len(objects) + len(crowd)) >= len(objects)
        targets = np.concatenate([objects, crowd])
        return Detections(prediction.boxes, prediction.scores, targets, is_crowd)

    def right(self, item: Item, prediction: Located) -> bool:
        found = self._detections(item, prediction)
        return metrics.average_recall([found], thresholds=[0.5]) == 1.0

    def score(self, items: Sequence[Item], predictions: Sequence[Located]) -> Scores:
        found = [self._detections(i, p) for i, p in zip(items, predictions, strict=True)]
        yield "ar@100", metrics.average_recall(found)
        yield "recall@0.5", metrics.average_recall(found, thresholds=[0.5])
        yield "ap50", metrics.average_precision(found)
        yield "boxes", float(np.mean([len(d.boxes) for d in found]))
        yield "targets", float(np.mean([(~d.crowd).sum() for d in found]))
        if any(item.record.get("classes") for item in items):
            recalls = {
                name: metrics.average_recall(group, thresholds=[0.5])
                for name, group in self._of_classes(items, predictions).items()
            }
            yield "class_recall@0.5", mean_of(recalls)
            yield from by_class("recall@0.5", recalls)

    def _of_classes(
        self, items: Sequence[Item], predictions: Sequence[Located]
    ) -> dict[str, list[Detections]]:
        """By class the pictures that have it, with its objects for targets."""
        groups: dict[str, list[Detections]] = {}
        for item, prediction in zip(items, predictions, strict=True):
            for name, regions in labelled(item.example.objects).items():
                targets = item.pixel_boxes(tuple(regions))
                one = Detections(prediction.boxes, prediction.scores, targets)
                groups.setdefault(name, []).append(one)
        return groups

    def strategies(self, items: Sequence[Item]) -> Iterator[list[Located]]:
        yield [place(boxes) for boxes in grid(items)]

    def expected(self, item: Item) -> str:
        return ", ".join(r.label or "object" for r in item.example.objects)

    def expected_boxes(self, item: Item) -> np.ndarray:
        return item.pixel_boxes(item.example.objects)
