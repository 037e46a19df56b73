"""What every task of evaluation is, and how a locating answer is read."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mg_jax.answer import Answer
from mg_jax.evals import metrics
from mg_jax.evals.questions import Item, collect

Scores = Iterator[tuple[str, float]]


@dataclass(frozen=True, eq=False)
class Located:
    """What a locating answer says: boxes [n, 4] in pixels in the order given, scores [n], or that
    the thing is not there."""

    boxes: np.ndarray
    scores: np.ndarray
    denied: bool = False


def located(answer: Answer) -> Located:
    """The boxes of all phrases in order."""
    boxes = metrics.as_boxes([b for p in answer.phrases for b in p.boxes])
    scores = [s for p in answer.phrases for s in p.scores]
    return place(boxes, scores, bool(answer.absent) and not len(boxes))


def place(boxes: Any, scores: Any = (), denied: bool = False) -> Located:
    """Boxes with scores; 0 for those that have none."""
    array = metrics.as_boxes(boxes)
    given = np.asarray(scores, np.float64).reshape(-1)
    return Located(array, np.append(given, np.zeros(len(array)))[: len(array)], denied)


class Task:
    """One kind of question.

    headline: the metric that the strategies compete in. rule: the strategies in words.
    scenes: options of the procedural scenes. asks: False where pictures alone are given to
    `propose`. max_new_tokens: enough for a right answer.
    A prediction is what `read` makes of an answer.
    """

    name: str
    headline: str
    rule: str
    scenes: Mapping[str, Any]
    asks = True
    max_new_tokens = 48

    def items(self, data: str, limit: int | None = None) -> list[Item]:
        """The questions of a data text, at most `limit`."""
        return collect(data, self.accepts, self.scenes, self.asks, limit)

    def count(self, items: Sequence[Item]) -> int:
        """The number that the headline metric is a share of."""
        return len(items)

    def accepts(self, item: Item) -> bool:
        """True when the item is a question of this task."""
        raise NotImplementedError

    def read(self, item: Item, answer: Any) -> Any:
        """The prediction in an answer; never raises."""
        raise NotImplementedError

    def invalid(self, item: Item, prediction: Any) -> bool:
        """True when the answer could not be read as one of this task's."""
        return not len(prediction.boxes)

    def right(self, item: Item, prediction: Any) -> bool:
        """True when this single answer is wholly right."""
        raise NotImplementedError

    def score(self, items: Sequence[Item], predictions: Sequence[Any]) -> Scores:
        """(name, value) pairs."""
        raise NotImplementedError

    def strategies(self, items: Sequence[Item]) -> Iterator[list[Any]]:
        """Predictions of each constant strategy."""
        raise NotImplementedError

    def expected(self, item: Item) -> str:
        """The annotated answer, for people."""
        return item.reference

    def expected_boxes(self, item: Item) -> np.ndarray:
        """Boxes [n, 4] of the right answer in pixels."""
        return item.pixel_boxes(item.targets)

    def drawn(self, prediction: Any) -> list[tuple[str, np.ndarray]]:
        """(label, box in pixels) of what a picture of the answer shows."""
        return [("answer", box) for box in prediction.boxes]
