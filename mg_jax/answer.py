"""What a user gets back: text, phrases with their boxes in the original picture, a drawing."""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mg_jax.example import Region
from mg_jax.text import markup as neutral

if TYPE_CHECKING:
    from PIL import Image

PixelBox = tuple[float, float, float, float]


@dataclass(frozen=True)
class Phrase:
    """A phrase of the answer and where it is.

    span: start and end of `text` in Answer.text; both equal, with text "", for regions that the
    answer gives without words. boxes: xyxy in pixels of the original picture, y down.
    scores: one a box in [0, 1], the proposer's objectness.
    """

    text: str
    span: tuple[int, int]
    boxes: tuple[PixelBox, ...]
    scores: tuple[float, ...]


@dataclass(frozen=True)
class Answer:
    """An answer about one picture of width x height pixels.

    text: plain text; an answer of regions alone reads as the phrase that was asked for.
    phrases: those that have boxes, in order of the text. absent: the answer says that the thing
    asked for is not there, and gives no box. notes: what the user should know (a polygon passed as
    its tightest box, malformed marks). markup: the answer in neutral markup, region k being the
    k-th box of all phrases. written: of a system that writes coordinates as text, what it wrote,
    which published scores are made of; else "".
    """

    text: str
    phrases: tuple[Phrase, ...] = ()
    absent: bool = False
    notes: tuple[str, ...] = ()
    width: int = 0
    height: int = 0
    markup: str = ""
    written: str = ""

    def regions(self) -> tuple[Region, ...]:
        """All boxes in order as regions in [0, 1], with phrase and score."""
        size = np.array([self.width, self.height, self.width, self.height], np.float64)
        return tuple(
            Region("box", tuple((np.array(box) / size).tolist()), label=phrase.text, score=score)
            for phrase in self.phrases
            for box, score in zip(phrase.boxes, phrase.scores, strict=True)
        )

    def history(self, first: int) -> tuple[str, tuple[Region, ...]]:
        """(marked text, regions) for the turns of a longer conversation.

        first: number of regions the conversation has so far; the text points at the returned
        regions as first, first + 1, ...
        """
        return neutral.renumber(self.markup or self.text, first), self.regions()

    def to_json(self) -> dict[str, Any]:
        """Plain dict for `json.dumps`; boxes in pixels, rounded to 0.01, scores to 0.0001."""
        return {
            "text": self.text,
            "absent": self.absent,
            "phrases": [
                {
                    "text": phrase.text,
                    "span": list(phrase.span),
                    "boxes": [[round(v, 2) for v in box] for box in phrase.boxes],
                    "scores": [round(score, 4) for score in phrase.scores],
                }
                for phrase in self.phrases
            ],
            "notes": list(self.notes),
            "width": self.width,
            "height": self.height,
        }

    def draw(self, image: "Image.Image | np.ndarray | str") -> "Image.Image":
        """The picture (PIL, uint8 RGB array, or path) with boxes and labels, as an RGB image;
        read as it was for the answer: turned by its EXIF data, transparency on white.

        Each phrase has its colour; a label is phrase and score. A picture whose longer side is
        under 512 px is enlarged by a whole factor first, or no label could be read on it.
        """
        from mg_jax.draw import draw_boxes

        labels, boxes, colours = [], [], []
        for n, phrase in enumerate(self.phrases):
            for box, score in zip(phrase.boxes, phrase.scores, strict=True):
                labels.append(re.sub(r"\s+", " ", f"{phrase.text} {score:.2f}").strip())
                boxes.append(box)
                colours.append(n)
        return draw_boxes(image, boxes, labels, colours, self.width, self.height)
