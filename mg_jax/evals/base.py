"""What every task of evaluation is, and how a locating answer is read."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mg_jax.answer import Answer
from mg_jax.evals import metrics
from mg_jax.evals.questions import Item, collect
from mg_jax.example import Example, Query

Scores = Iterator[tuple[str, float]]
Predict = Callable[[Sequence[Query]], Sequence[Answer]]
Propose = Callable[[Sequence[np.ndarray]], Sequence[tuple[Any, Any]]]
MOST_CLASSES = 100  # beyond that many classes there is no line for each


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


def by_class(metric: str, values: Mapping[str, float]) -> Scores:
    """`metric/<class>` each, unless they are more than MOST_CLASSES."""
    if len(values) <= MOST_CLASSES:
        yield from ((f"{metric}/{name}", value) for name, value in sorted(values.items()))


def mean_of(values: Mapping[str, float]) -> float:
    """The mean of the values, NaN of none."""
    return float(np.mean(list(values.values()))) if values else float("nan")


class Task:
    """One kind of question.

    headline: the metric that the strategies compete in. rule: the strategies in words.
    needs: what a system must have a part for ("object images", "videos", "proposals"), "" for what
    all have. scenes: options of the procedural scenes; None for a task that is for annotated
    pictures alone.
    lacking: what to write where annotations have nothing to ask, "" for nothing in particular.
    asks: False where pictures are given to `propose`. max_new_tokens: enough for a right answer.
    A prediction is what `read` makes of an answer.
    """

    name: str
    headline: str
    rule: str
    scenes: Mapping[str, Any] | None
    asks = True
    needs = ""
    lacking = ""
    max_new_tokens = 48

    def items(
        self, data: str, limit: int | None = None, problems: list[str] | None = None
    ) -> list[Item]:
        """The questions of a data text, at most `limit`; problems: as `questions.collect`."""
        return collect(data, self.accepts, self.scenes, self.asks, limit, self.write, problems)

    def count(self, items: Sequence[Item]) -> int:
        """The number that the headline metric is a share of."""
        return len(items)

    def accepts(self, item: Item) -> bool:
        """True when the item is a question of this task."""
        raise NotImplementedError

    def write(self, example: Example) -> Example | None:
        """An example without conversation with this task's questions about its annotations as
        turns, None where it affords none."""
        return None

    def ask(
        self, items: Sequence[Item], predict: Predict | None, propose: Propose | None, blind: bool
    ) -> Sequence[Any]:
        """An answer to each item. Raises ValueError where what the task needs is not given."""
        if self.asks and predict is not None:
            return predict([item.query(blind) for item in items])
        if not self.asks and propose is not None:
            return propose([item.picture(blind) for item in items])
        raise ValueError(f"task {self.name} needs {'predict' if self.asks else 'propose'}")

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
