"""POPE: is the object there? Three files of questions, negatives drawn at random, from frequent
objects, or from objects that go along with those of the picture.

One line a question: {"question_id": 1, "image": "COCO_val2014_000000310196.jpg",
"text": "Is there a snowboard in the image?", "label": "yes"}.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from mg_jax.disk import read_json_lines
from mg_jax.errors import UserError
from mg_jax.evals import metrics

Reading = Callable[[str], bool | None]  # what an answer says; None for neither
NAMES = ("accuracy", "precision", "recall", "f1", "yes_ratio")


def score(answers: Sequence[str], labels: Sequence[str], reading: Reading) -> dict[str, float]:
    """accuracy, precision, recall, f1 and yes_ratio of the answers to questions with these labels.

    labels: "no", or anything else for yes. reading: how a system's answers are read, for example
    `ferret_text.says_yes`; an answer that says neither is wrong. A ratio whose parts are all zero
    is 0. Raises UserError for another number of answers than labels, or none.
    """
    if len(answers) != len(labels):
        raise UserError(f"POPE: {len(answers)} answers to {len(labels)} questions")
    found = metrics.yes_no([reading(a) for a in answers], [label != "no" for label in labels])
    return {name: found[name] for name in NAMES}


def average(scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The mean of each number over the files, as tables print POPE."""
    return {name: sum(s[name] for s in scores.values()) / len(scores) for name in NAMES}


def read_questions(path: str | Path) -> list[dict[str, str]]:
    """The questions of a file. Raises UserError naming file, line and what is missing."""
    keys = ("question_id", "image", "text", "label")
    return [{key: str(row[key]) for key in keys} for row in read_json_lines(Path(path), *keys)]
