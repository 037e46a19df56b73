"""AI2D: multiple choice about diagrams of school books (ai2d-all.zip).

    questions/0.png.json:
    {"imageName": "0.png",
     "questions": {"What is A in the diagram?": {"questionId": "0.png-0", "abcLabel": true,
                                                 "answerTexts": ["ears", "nose", "mouth", "face"],
                                                 "correctAnswer": 3}}}
    annotations/0.png.json:
    {"text": {"T0": {"rectangle": [[x0, y0], [x1, y1]], "replacementText": "A", ...}}, ...}
    images/0.png
    ai2d_test_ids.csv: the numbers of the test pictures, one a line (a download of its own)

Questions with abcLabel speak of letters that the pictures do not show: they were asked with the
words of the diagram covered by letters.
"""

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mg_jax.data.sources.base import MAX_BAD, Folder, existing, fields, read_text
from mg_jax.data.sources.pictured import AskedSource
from mg_jax.errors import BadRecord, UserError
from mg_jax.example import Example
from mg_jax.vision.preprocess import load_image

SPLITS = ("train", "test", "all")
_NULL = "{}"  # stands in some lists of choices for none
_FILL = (25, 249, 255)

Words = tuple[tuple[str, float, float, float, float], ...]


class Ai2dSource(AskedSource):
    """The questions of an AI2D folder.

    split: "train" (the default), "test" or "all"; the first two need ai2d_test_ids.csv. letters:
    "drop" leaves out, and counts, questions about letters; "draw" asks them on a picture of their
    own, in which the letters of annotations/ cover the words. Choices that are "{}" are left out.
    Arrows, blobs and relations are not kept. Raises UserError for a missing folder, or one with
    too many malformed files.
    """

    def __init__(
        self,
        folder: str | Path = "",
        split: str = "train",
        letters: str = "drop",
        per: str = "picture",
        head: str = "coco",
        name: str = "",
        max_bad: float | str = MAX_BAD,
    ):
        root = existing(folder, "AI2D folder", folder=True)
        asked = existing(root / "questions", "AI2D questions", folder=True)
        pictures = Folder(existing(root / "images", "AI2D pictures", folder=True))
        super().__init__(name or f"ai2d-{split}", asked, pictures, head, max_bad, per=per)
        if split not in SPLITS:
            raise UserError(f"data {self.name}: split={split}: choose from {', '.join(SPLITS)}")
        if letters not in ("drop", "draw"):
            raise UserError(f"data {self.name}: letters={letters}: choose drop or draw")
        files = sorted(asked.glob("*.json"))
        if not files:
            raise UserError(f"{asked}: holds no .json file")
        if split != "all":
            listed = existing(root / "ai2d_test_ids.csv", "AI2D's list of test pictures")
            tests = set(read_text(listed).split())
            files = [f for f in files if (f.name.partition(".")[0] in tests) == (split == "test")]
        self._words: dict[str, Words] = {}
        self._annotations = root / "annotations" if letters == "draw" else None
        for path in files:
            try:
                self._read(path)
            except BadRecord as e:
                self.problem(str(path), str(e))
        self.finish(len(files))

    def _read(self, path: Path) -> None:
        row = _load(path)
        fields(row, {"imageName": str, "questions": dict})
        image, asked = row["imageName"], []
        for text, q in row["questions"].items():
            fields(q, {"answerTexts": list, "correctAnswer": int})
            choices, answer = q["answerTexts"], q["correctAnswer"]
            if not all(isinstance(c, str) for c in choices):
                raise BadRecord(f"answerTexts {choices!r} are no texts")
            if not 0 <= answer < len(choices) or choices[answer] == _NULL:
                raise BadRecord(f"correctAnswer {answer} of {choices!r}: they count from 0")
            rest = [c for c in choices if c != _NULL]
            asked.append(
                (q.get("abcLabel"), q.get("questionId", text), text, choices[answer], rest)
            )
        for on_letters, number, text, answer, choices in asked:
            key = image
            if on_letters:
                if self._annotations is None:
                    self.counts["questions about letters"] += 1
                    continue
                key = f"{image}-letters"
                if key not in self._words:
                    self._words[key] = _words(self._annotations / path.name)
            picture = self.picture(key, image)
            if picture is not None:
                self.ask(picture, number, text, [answer], choices)

    def __getitem__(self, i: int) -> Example:
        example = super().__getitem__(i)
        words = self._words.get(example.meta["image_id"])
        if words is not None:
            example.image = functools.partial(draw_letters, str(example.image), words)
        return example


def draw_letters(file: str, words: Words) -> np.ndarray:
    """The picture with letters on coloured rectangles; words: (letter, x0, y0, x1, y1) in pixels.

    Raises UserError for a file that is no picture.
    """
    picture = Image.fromarray(load_image(file))
    draw = ImageDraw.Draw(picture)
    for letter, x0, y0, x1, y1 in words:
        draw.rectangle((x0, y0, x1, y1), fill=_FILL)
        font = ImageFont.load_default(size=min(max((y1 - y0) * 0.8, 8.0), 22.0))
        draw.text(((x0 + x1) / 2, (y0 + y1) / 2), letter, fill="black", font=font, anchor="mm")
    return np.asarray(picture)


def _load(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as e:
        raise BadRecord(f"no valid JSON: {e}") from None


def _words(path: Path) -> Words:
    """The words of a diagram that have a letter; rectangles without area are left out."""
    row = _load(path)
    fields(row, {"text": dict})
    words = []
    for key, word in row["text"].items():
        try:
            (ax, ay), (bx, by) = word["rectangle"]
            letter = str(word["replacementText"])
            corners = min(ax, bx), min(ay, by), max(ax, bx), max(ay, by)
            x0, y0, x1, y1 = map(float, corners)
        except (KeyError, TypeError, ValueError):
            raise BadRecord(
                f"{path.name}: text[{key!r}] lacks rectangle or replacementText"
            ) from None
        if x1 > x0 and y1 > y0:
            words.append((letter, x0, y0, x1, y1))
    return tuple(words)
