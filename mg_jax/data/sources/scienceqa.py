"""ScienceQA: multiple choice from school books, half of it with a picture.

problems.json:   {"1": {"question": ..., "choices": ["...", "..."], "answer": 0,
                        "hint": "", "image": "image.png" or null, "split": "train",
                        "lecture": ..., "solution": ..., "subject": ..., "grade": ...}}
pid_splits.json: {"train": ["1", ...], "val": [...], "test": [...], "minival": [...], ...}
images/SPLIT/1/image.png, SPLIT as problems.json says
"""

from pathlib import Path
from typing import Any

from mg_jax.data.sources.base import MAX_BAD, Folder, existing, fields, list_in, read_json
from mg_jax.data.sources.free_text import to_markup
from mg_jax.data.sources.pictured import AskedSource
from mg_jax.errors import BadRecord, UserError
from mg_jax.example import Example


class ScienceQaSource(AskedSource):
    """The problems of a ScienceQA folder that pid_splits.json lists under `split`.

    The answer is the text of the right choice; the hint is the problem's context. The lecture and
    the solution are in meta, as "lecture" and "solution". text="drop" leaves out, and counts, the
    problems without a picture. Subject, topic, skill and grade are not kept. Raises UserError for
    a missing or malformed file, or when none of the pictures is there.
    """

    def __init__(
        self,
        folder: str | Path = "",
        split: str = "train",
        text: str = "keep",
        head: str = "coco",
        name: str = "",
        max_bad: float | str = MAX_BAD,
    ):
        root = existing(folder, "ScienceQA folder", folder=True)
        path = existing(root / "problems.json", "ScienceQA problems")
        splits = existing(root / "pid_splits.json", "ScienceQA splits")
        super().__init__(name or f"scienceqa-{split}", path, Folder(root), head, max_bad)
        if text not in ("keep", "drop"):
            raise UserError(f"data {self.name}: text={text}: choose keep or drop")
        problems, parts = read_json(path), read_json(splits)
        if not isinstance(problems, dict):
            raise UserError(f"{path}: not ScienceQA problems: expected an object")
        if isinstance(parts, dict) and split not in parts:
            raise UserError(f"data {self.name}: split={split}: choose from {', '.join(parts)}")
        numbers = list_in(parts, split, splits, "ScienceQA splits")
        self._notes: dict[Any, tuple[str, str]] = {}
        for number in numbers:
            try:
                self._read(str(number), problems.get(str(number)), text == "keep")
            except BadRecord as e:
                self.problem(f'{path}: ["{number}"]', str(e))
        self.finish(len(numbers))

    def _read(self, number: str, row: Any, text_only: bool) -> None:
        fields(row, {"question": str, "choices": list, "answer": int})
        choices, answer = row["choices"], row["answer"]
        if not all(isinstance(c, str) for c in choices):
            raise BadRecord(f"choices {choices!r} are no texts")
        if not 0 <= answer < len(choices):
            raise BadRecord(f"answer {answer} of {len(choices)} choices: they count from 0")
        hint, lecture, solution = (row.get(k) or "" for k in ("hint", "lecture", "solution"))
        if not all(isinstance(t, str) for t in (hint, lecture, solution)):
            raise BadRecord("hint, lecture or solution is no text")
        if row.get("image"):
            fields(row, {"image": str, "split": str})
            picture = self.picture(number, f"images/{row['split']}/{number}/{row['image']}")
        elif text_only:
            picture = self.picture(number)
        else:
            self.counts["problems without a picture"] += 1
            return
        if picture is not None:
            self.ask(picture, number, row["question"], [choices[answer]], choices, hint)
            self._notes[number] = to_markup(lecture), to_markup(solution)

    def __getitem__(self, i: int) -> Example:
        example = super().__getitem__(i)
        lecture, solution = self._notes[example.meta["image_id"]]
        example.meta.update(lecture=lecture, solution=solution)
        return example
