"""Pictures with questions or captions, kept in few bytes: what VQA and caption sets become.

The largest (DVQA, GQA) hold millions of questions, many with the same words; each text is kept
once.
"""

import sys
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mg_jax.data.sources.base import MAX_BAD, Folder, Source, check_choices
from mg_jax.data.sources.free_text import to_markup
from mg_jax.data.sources.measures import PICTURE, TEXT, UNKNOWN
from mg_jax.errors import BadRecord, UserError
from mg_jax.example import Example, Question
from mg_jax.vision.preprocess import image_size


class PicturedSource(Source):
    """The base of readers whose annotations name pictures of one folder.

    Pictures whose file is missing are left out and counted. Width and height are read from the
    head of the picture when the example is taken.
    """

    def __init__(
        self,
        name: str,
        file: Path,
        folder: Folder,
        head: str = "coco",
        max_bad: float | str = MAX_BAD,
    ):
        super().__init__(name, head, max_bad)
        self.file, self.folder = file, folder
        self._numbers: dict[Any, int | None] = {}
        self._files: list[str] = []
        self._keys: list[Any] = []

    def picture(self, key: Any, *names: str) -> int | None:
        """The number of the picture known by `key`, the first of the names that has a file; None
        where none of them has. No names: an example without a picture."""
        if key not in self._numbers:
            found = next(filter(None, map(self.folder.find, names)), None) if names else ""
            if found is None:
                self.counts["pictures without a file"] += 1
                self._numbers[key] = None
                self._absent = names[0]
            else:
                self._numbers[key] = len(self._files)
                self._files.append(found)
                self._keys.append(key)
        return self._numbers[key]

    def found(self, records: int) -> None:
        """Readers call this at the end. records: malformed and good ones together.

        Raises UserError when too many are malformed, or when no picture is there.
        """
        self.opened(records)
        missing = self.counts["pictures without a file"]
        if missing and not any(self._files):
            raise UserError(
                f"{self.folder.path}: holds none of the {missing} pictures of {self.file}, "
                f"for example {self._absent}"
            )
        self._numbers = {}

    def example(self, picture: int, **annotations: Any) -> Example:
        """The example of a picture, its size read from the file."""
        file, meta = self._files[picture], annotations.pop("meta", {})
        try:
            width, height = image_size(file) if file else (0, 0)
        except UserError as e:
            raise BadRecord(str(e)) from None
        key = self._keys[picture]
        return Example(
            image=file or None,
            width=width,
            height=height,
            source=self.name,
            meta={"image_id": key, "file_name": Path(file).name} | meta,
            **{"id": f"{self.name}-{key}"} | annotations,
        )


class CaptionSource(PicturedSource):
    """The base of caption readers: they call `picture`, `caption` and at the end `finish`."""

    medium = PICTURE

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._captions: dict[int, list[str]] = {}

    def caption(self, picture: int, text: str) -> None:
        """A free text on the picture; one it has already is not added again."""
        texts, text = self._captions.setdefault(picture, []), to_markup(text.strip())
        if not text:
            self.counts["empty captions"] += 1
        elif text not in texts:
            texts.append(text)

    def finish(self, records: int) -> None:
        """As `found`; pictures without a caption are left out."""
        self.found(records)
        self._order = sorted(k for k, texts in self._captions.items() if texts)
        if not self._order:
            raise UserError(f"{self.file}: holds no caption")

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, i: int) -> Example:
        k = self._order[i]
        return self.example(k, captions=tuple(self._captions[k]), meta={"task": "captions"})


class AskedSource(PicturedSource):
    """The base of question readers: they call `picture`, `ask` and at the end `finish`.

    An example is a picture with all its questions; with per="question" one question.
    meta["question_ids"]: the data set's numbers of them. Questions without an answer (test sets)
    are left out and counted.
    """

    def __init__(self, *args: Any, per: str = "picture", **kwargs: Any):
        super().__init__(*args, **kwargs)
        if per not in ("picture", "question"):
            raise UserError(f"data {self.name}: per={per}: choose picture or question")
        self.per = per
        self._of = array("i")
        self._ids: list[Any] = []
        self._said = [array("i") for _ in range(3)]  # places in the pools of texts
        self._pools: list[dict[Any, int]] = [{}, {}, {}]

    def ask(
        self,
        picture: int,
        question_id: Any,
        text: str,
        answers: Iterable[str],
        choices: Sequence[str] = (),
        hint: str = "",
    ) -> None:
        """A question on the picture, all free texts. Raises BadRecord for an empty question, or
        one with a single choice."""
        if not text.strip():
            raise BadRecord("the question is empty")
        check_choices(choices, f"the question {text.strip()[:60]!r} ")
        given = tuple(sys.intern(to_markup(a.strip())) for a in answers if a.strip())
        if not given:
            self.counts["questions without an answer"] += 1
            return
        rest = (tuple(to_markup(c.strip()) for c in choices), to_markup(hint.strip()))
        self._of.append(picture)
        self._ids.append(question_id)
        for said, pool, value in zip(
            self._said, self._pools, (to_markup(text.strip()), given, rest), strict=True
        ):
            said.append(pool.setdefault(value, len(pool)))

    def finish(self, records: int) -> None:
        """As `found`, then questions are put in the order of the pictures."""
        self.found(records)
        if not self._ids:
            raise UserError(f"{self.file}: holds no question with an answer")
        of = np.frombuffer(self._of, np.int32)
        self._order = np.argsort(of, kind="stable")
        used, starts = np.unique(of[self._order], return_index=True)
        self._pictures = used.tolist()
        self._starts = [*starts.tolist(), len(of)]
        self._texts = [list(pool) for pool in self._pools]
        self._pools = []

    def __len__(self) -> int:
        return len(self._ids) if self.per == "question" else len(self._pictures)

    def measures(self) -> np.ndarray:
        shown: Iterable[int] = self._pictures
        if self.per == "question":
            shown = (self._of[n] for n in self._order)
        media = [PICTURE if self._files[k] else TEXT for k in shown]
        return np.array([(medium, UNKNOWN) for medium in media], np.int32)

    def question(self, n: int) -> Question:
        """Question n, in the order of the file."""
        text, answers, (choices, hint) = (
            texts[said[n]] for texts, said in zip(self._texts, self._said, strict=True)
        )
        return Question(text, answers, choices, hint)

    def __getitem__(self, i: int) -> Example:
        if not 0 <= i < len(self):
            raise IndexError(i)
        names = {}
        if self.per == "question":
            rows = [int(self._order[i])]
            picture, names = self._of[rows[0]], {"id": f"{self.name}-{self._ids[rows[0]]}"}
        else:
            picture = self._pictures[i]
            rows = self._order[self._starts[i] : self._starts[i + 1]].tolist()
        return self.example(
            picture,
            questions=tuple(map(self.question, rows)),
            meta={"task": "questions", "question_ids": [self._ids[n] for n in rows]},
            **names,
        )
