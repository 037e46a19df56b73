"""The tasks by name, and the run: questions to answers to numbers."""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from mg_jax.errors import UserError
from mg_jax.evals import asking
from mg_jax.evals.base import Predict, Propose, Task
from mg_jax.evals.choosing import WhichBox, WhichFree, WhichPoint
from mg_jax.evals.classes import Detection, Naming
from mg_jax.evals.facts import Direction, Moved, Reading, Vqa
from mg_jax.evals.locating import Absent, AllInstances, Proposals, Rec
from mg_jax.evals.objects import ObjectChoice, ObjectMatch, ObjectRelation
from mg_jax.evals.probing import Pope
from mg_jax.evals.questions import Item, is_scenes
from mg_jax.evals.wording import GroundedCaption, Presence, Regions

_ALL = (
    Rec, Regions, Presence, AllInstances, Proposals, GroundedCaption, Absent, WhichBox, WhichPoint,
    WhichFree, ObjectMatch, ObjectChoice, ObjectRelation, Pope, Vqa, Reading, Moved, Direction,
    Naming, Detection,
)  # fmt: skip
TASKS: dict[str, Task] = {task.name: task() for task in _ALL}


class NothingToAsk(UserError):
    """Data that hold nothing for a task."""


def get(name: str) -> Task:
    """The task of a name. Raises UserError listing the known ones."""
    if name not in TASKS:
        raise UserError(f"unknown task {name!r}: choose from {', '.join(TASKS)}")
    return TASKS[name]


@dataclass(frozen=True)
class Result:
    """What a run found. answers: as `predict` or `propose` gave them, one an item.

    metrics: name to number. majority: the same of the best constant strategy. invalid: how many
    answers could not be read. seconds: asking and answering, drawing the pictures included.
    """

    task: Task
    data: str
    blind: bool
    items: list[Item]
    answers: list[Any]
    predictions: list[Any]
    metrics: dict[str, float]
    majority: dict[str, float]
    invalid: int
    seconds: float


def questions(
    task: Task, data: str, limit: int | None = None, problems: list[str] | None = None
) -> list[Item]:
    """The items of a data text for a task, at most `limit`.

    problems: gets a line for each example that is malformed or whose picture cannot be read; they
    are left out. Raises UserError for a malformed text, data that holds nothing for the task, or
    two questions of one id.
    """
    if task.scenes is None and is_scenes(data):
        raise UserError(f"data {data!r}: task {task.name} is for annotated pictures, not scenes")
    items = task.items(data, limit, problems)
    if not items or not task.count(items):
        hint = f": {task.lacking}" if task.lacking and not is_scenes(data) else ""
        raise NothingToAsk(f"data {data!r} has nothing to ask for task {task.name}{hint}")
    seen: set[str] = set()
    for item in items:
        if item.key in seen:
            raise UserError(
                f"data {data!r}: two questions have the id {item.key!r}: give every example an id "
                "of its own"
            )
        seen.add(item.key)
    return items


def evaluate(
    task: Task,
    data: str,
    predict: Predict | None = None,
    propose: Propose | None = None,
    *,
    items: list[Item] | None = None,
    system: str = "",
    batch_size: int = 16,
    blind: bool = False,
    progress: bool = False,
) -> Result:
    """Ask all questions, `batch_size` at a time, and score the answers.

    predict(queries) gives an Answer each, propose(pictures) gives (boxes [n, 4] xyxy pixels,
    scores [n]) each; a task needs one of them, detection both. items: of `questions`, made here
    if absent. system: whose own words locate (`asking.reworded`); "" leaves the questions as they
    are. blind: noise in place of every picture. progress: a bar on stderr.
    """
    items = questions(task, data) if items is None else items
    if system and not is_scenes(data):  # those are worded as every system has learnt it from them
        items = asking.reworded(items, system)
    start = time.perf_counter()
    answers: list[Any] = []
    chunks = [items[i : i + batch_size] for i in range(0, len(items), batch_size)]
    for chunk in _bar(chunks, len(items), task.name, progress):
        found = task.ask(chunk, predict, propose, blind)
        if len(found) != len(chunk):
            raise ValueError(f"{len(chunk)} questions, but {len(found)} answers")
        answers += found
    seconds = time.perf_counter() - start
    predictions = [task.read(i, a) for i, a in zip(items, answers, strict=True)]
    rivals = [dict(task.score(items, p)) for p in task.strategies(items)]
    return Result(
        task,
        data,
        blind,
        items,
        answers,
        predictions,
        dict(task.score(items, predictions)),
        max(rivals, key=lambda scores: np.nan_to_num(scores[task.headline])),
        sum(task.invalid(i, p) for i, p in zip(items, predictions, strict=True)),
        seconds,
    )


def _bar(chunks: list[list[Item]], total: int, name: str, show: bool) -> Iterable[list[Item]]:
    """The chunks, with a progress bar on stderr while they are worked through."""
    if not show:
        yield from chunks
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Left

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Left())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        job = bar.add_task(name, total=total)
        for chunk in chunks:
            yield chunk
            bar.advance(job, len(chunk))
