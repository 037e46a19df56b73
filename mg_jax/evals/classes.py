"""Tasks about the classes of a data set, for annotated pictures: naming, detection."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mg_jax.answer import Answer
from mg_jax.evals import asking, metrics
from mg_jax.evals.base import Located, Predict, Propose, Scores, Task, by_class, mean_of, place
from mg_jax.evals.locating import grid, labelled
from mg_jax.evals.metrics import Detections
from mg_jax.evals.questions import Item, with_classes
from mg_jax.example import Example, Query, Region
from mg_jax.text.instructions import fill
from mg_jax.text.words import noun


class Naming(Task):
    """Name what is in an annotated box ("What is <r:0>?"), at most `asking.BOXES` of a picture.

    An answer stands for the class of the data set that it names (`names.ClassNames`). accuracy:
    share of boxes with their own class; class_accuracy: the mean of accuracy/CLASS over the
    classes that occur. classes: how many an answer could name.
    """

    name, headline = "naming", "accuracy"
    rule = "always the most frequent class"
    scenes = None
    max_new_tokens = 32

    def items(
        self, data: str, limit: int | None = None, problems: list[str] | None = None
    ) -> list[Item]:
        return with_classes(super().items(data, limit, problems))

    def accepts(self, item: Item) -> bool:
        return False  # which of a conversation's answers are names of classes is not known

    def write(self, example: Example) -> Example | None:
        return asking.naming(example)

    def read(self, item: Item, answer: Answer) -> str | None:
        return item.record["classes"].find(answer.text)

    def invalid(self, item: Item, prediction: str | None) -> bool:
        return prediction is None

    def drawn(self, prediction: str | None) -> list[tuple[str, np.ndarray]]:
        return []

    def right(self, item: Item, prediction: str | None) -> bool:
        return prediction == _truth(item)

    def score(self, items: Sequence[Item], predictions: Sequence[str | None]) -> Scores:
        right = [self.right(i, p) for i, p in zip(items, predictions, strict=True)]
        groups: dict[str, list[bool]] = {}
        for item, one in zip(items, right, strict=True):
            groups.setdefault(_truth(item), []).append(one)
        each = {name: float(np.mean(own)) for name, own in groups.items()}
        yield "accuracy", float(np.mean(right))
        yield "class_accuracy", mean_of(each)
        yield "classes", len(items[0].record["classes"].names)
        yield from by_class("accuracy", each)

    def strategies(self, items: Sequence[Item]) -> Iterator[list[str]]:
        yield [Counter(map(_truth, items)).most_common(1)[0][0]] * len(items)

    def expected_boxes(self, item: Item) -> np.ndarray:
        return item.pixel_boxes(tuple(item.example.regions[k] for k in item.record["refers"]))


def _truth(item: Item) -> str:
    return noun(item.reference) or ""


@dataclass(frozen=True, eq=False)
class Detected(Located):
    """Boxes with the class that each was named, None for what is no class."""

    classes: tuple[str | None, ...] = ()


class Detection(Task):
    """Detect and name: the detector's boxes, each named by asking "What is <r:0>?", scored by the
    detector. ap50/CLASS: AP at IoU 0.5 of the class, crowds ignored (COCO); map50: the mean over
    the classes that occur.

    One question a box, of which there are up to MOST a picture.
    """

    MOST = 100
    name, headline, asks = "detection", "map50", False
    rule = "100 boxes of the data set's median size on a 10x10 grid, of the most frequent class"
    scenes = None
    max_new_tokens = 32

    def items(
        self, data: str, limit: int | None = None, problems: list[str] | None = None
    ) -> list[Item]:
        return with_classes(super().items(data, limit, problems))

    def accepts(self, item: Item) -> bool:
        return bool(labelled(item.example.objects))

    def ask(
        self, items: Sequence[Item], predict: Predict | None, propose: Propose | None, blind: bool
    ) -> list[tuple[Any, Any, list[str]]]:
        """(boxes, scores, what is said about each box) for each item."""
        if predict is None or propose is None:
            raise ValueError(f"task {self.name} needs predict and propose")
        pictures = [item.picture(blind) for item in items]
        proposed = propose(pictures)
        if len(proposed) != len(items):
            raise ValueError(f"{len(items)} pictures, but proposals for {len(proposed)}")
        found: list[tuple[Any, Any, list[str]]] = []
        queries: list[Query] = []
        for item, picture, answer in zip(items, pictures, proposed, strict=True):
            located = place(*answer)
            size = np.tile([item.example.width, item.example.height], 2)
            shares = np.clip(located.boxes / size, 0.0, 1.0)
            # False also for a box that is not finite
            sound = np.flatnonzero((shares[:, 2:] > shares[:, :2]).all(1))
            best = sound[np.argsort(-located.scores[sound], kind="stable")][: self.MOST]
            for x0, y0, x1, y1 in shares[best].tolist():
                region = Region("box", (x0, y0, x1, y1))
                queries.append(Query(picture, fill("region_caption", 0, region=0), (region,)))
            found.append((located.boxes[best], located.scores[best], []))
        answers = predict(queries) if queries else []
        if len(answers) != len(queries):
            raise ValueError(f"{len(queries)} questions, but {len(answers)} answers")
        said = iter(answers)
        for boxes, _, texts in found:
            texts += [next(said).text for _ in boxes]
        return found

    def read(self, item: Item, answer: tuple[Any, Any, list[str]]) -> Detected:
        located = place(*answer[:2])
        classes = tuple(map(item.record["classes"].find, answer[2]))
        return Detected(located.boxes, located.scores, classes=classes)

    def right(self, item: Item, prediction: Detected) -> bool:
        return dict(self.score([item], [prediction]))["map50"] == 1.0

    def score(self, items: Sequence[Item], predictions: Sequence[Detected]) -> Scores:
        groups = self._of_classes(items, predictions)
        each = {name: metrics.average_precision(group) for name, group in groups.items()}
        each = {name: value for name, value in each.items() if not np.isnan(value)}
        named = [c is not None for p in predictions for c in p.classes]
        yield "map50", mean_of(each)
        yield "boxes", len(named) / len(items)
        yield "named", float(np.mean(named)) if named else 0.0
        yield from by_class("ap50", each)

    def _of_classes(
        self, items: Sequence[Item], predictions: Sequence[Detected]
    ) -> dict[str, list[Detections]]:
        """By class the pictures that have it, or for which it was said."""
        groups: dict[str, list[Detections]] = {}
        for item, prediction in zip(items, predictions, strict=True):
            objects, crowd = labelled(item.example.objects), labelled(item.example.crowd)
            classes = np.asarray([c or "" for c in prediction.classes], object)
            for name in {*objects, *crowd, *filter(None, prediction.classes)}:
                own = np.flatnonzero(classes == name)
                regions = (*objects.get(name, ()), *crowd.get(name, ()))
                targets = item.pixel_boxes(regions)
                many = np.arange(len(targets)) >= len(objects.get(name, ()))
                one = Detections(prediction.boxes[own], prediction.scores[own], targets, many)
                groups.setdefault(name, []).append(one)
        return groups

    def strategies(self, items: Sequence[Item]) -> Iterator[list[Detected]]:
        counts: Counter[str] = Counter()
        for item in items:
            counts.update({n: len(r) for n, r in labelled(item.example.objects).items()})
        common = counts.most_common(1)[0][0]
        yield [Detected(b, np.zeros(len(b)), classes=(common,) * len(b)) for b in grid(items)]

    def drawn(self, prediction: Detected) -> list[tuple[str, np.ndarray]]:
        return [
            (name or "?", box)
            for name, box in zip(prediction.classes, prediction.boxes, strict=True)
        ]

    def expected(self, item: Item) -> str:
        return ", ".join(r.label or "object" for r in item.example.objects)

    def expected_boxes(self, item: Item) -> np.ndarray:
        return item.pixel_boxes(item.example.objects)
