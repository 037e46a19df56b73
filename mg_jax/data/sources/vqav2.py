"""VQAv2: open questions on COCO pictures, ten answers each.

    v2_OpenEnded_mscoco_train2014_questions.json:
    {"data_subtype": "train2014",
     "questions": [{"question_id": 458752000, "image_id": 458752, "question": ...}]}

    v2_mscoco_train2014_annotations.json:
    {"annotations": [{"question_id": 458752000, "image_id": 458752,
                      "multiple_choice_answer": "net",
                      "answers": [{"answer": "net", "answer_confidence": ..., "answer_id": 1}]}]}

Pictures are COCO_train2014_000000458752.jpg, or 000000458752.jpg as in the folders of 2017.
"""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mg_jax.data.sources.base import MAX_BAD, Folder, existing, fields
from mg_jax.data.sources.json_rows import rows_of
from mg_jax.data.sources.pictured import AskedSource
from mg_jax.errors import BadRecord, UserError

PARTS = ("train2014", "val2014", "test2015")


def by_frequency(answers: Iterable[str], first: str = "") -> list[str]:
    """The answers with their repeats, `first` in front, then the frequent before the rare."""
    answers = list(answers)
    count = Counter(answers)
    place = {a: n for n, a in reversed(list(enumerate(answers)))}
    return sorted(answers, key=lambda a: (a != first, -count[a], place[a]))


class VqaSource(AskedSource):
    """The questions of VQAv2 with their answers.

    The answers keep their repeats, which the accuracy of VQA counts; the one that the data set
    calls the answer comes first. Kinds of questions and confidences are not kept. Raises
    UserError for a missing or malformed file, or when no picture of it is in the folder.
    """

    def __init__(
        self,
        questions: str | Path = "",
        annotations: str | Path = "",
        images: str | Path = "",
        per: str = "picture",
        head: str = "coco",
        name: str = "",
        max_bad: float | str = MAX_BAD,
    ):
        path = existing(questions, "VQAv2 questions")
        notes = existing(annotations, "VQAv2 annotations")
        folder = Folder(existing(images, f"pictures of {path.name}", folder=True))
        super().__init__(name or path.stem, path, folder, head, max_bad, per=per)
        answers: dict[Any, tuple[str, ...]] = {}
        total = 0
        for n, row in rows_of(notes, "annotations", "VQAv2 annotations"):
            total += 1
            try:
                fields(row, {"question_id": int, "answers": list})
                answers[row["question_id"]] = _answers(row)
            except BadRecord as e:
                self.problem(f"{notes}: annotations[{n}]", str(e))
        for n, row in rows_of(path, "questions", "VQAv2 questions"):
            total += 1
            try:
                fields(row, {"question_id": int, "image_id": int, "question": str})
                stem = f"{row['image_id']:012d}.jpg"
                names = (f"COCO_{part}_{stem}" for part in PARTS)
                picture = self.picture(row["image_id"], *names, stem)
                if picture is not None:
                    given = answers.get(row["question_id"], ())
                    self.ask(picture, row["question_id"], row["question"], given)
            except BadRecord as e:
                self.problem(f"{path}: questions[{n}]", str(e))
        if answers and not self._ids and self.counts["questions without an answer"]:
            raise UserError(f"{notes}: has no answer to the questions of {path}")
        self.finish(total)


def _answers(row: dict[str, Any]) -> tuple[str, ...]:
    given: list[Any] = [a.get("answer") if isinstance(a, dict) else a for a in row["answers"]]
    first = row.get("multiple_choice_answer", "")
    if not all(isinstance(a, str) for a in [*given, first]):
        raise BadRecord(f"answers {row['answers']!r} hold no texts")
    return tuple(by_frequency(given, first)) or (first,)
