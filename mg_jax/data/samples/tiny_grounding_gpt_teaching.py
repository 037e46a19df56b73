"""Where in the prompt answers look, for `TinyGroundingGPTConfig.pointing_weight`."""

import math
import re
from typing import Any

import numpy as np

from mg_jax.data.samples.base import Record
from mg_jax.data.samples.teaching import (
    Look,
    Texts,
    answer_starts,
    as_gaze,
    before_answer,
    by_head,
    edges,
    looks_at,
    middle,
    while_written,
)
from mg_jax.example import Example, Turn
from mg_jax.text import markup
from mg_jax.text.codecs.tiny_grounding_gpt import square

_LETTER = re.compile(r"([A-Z])\W*")


class Gaze:
    """The looks of encoded examples, for one codec.

    Before an answer begins the model looks at the picture's tokens over the middles of what the
    answer rests on (`Turn.about`, else the regions of the answer, else of the question and its
    object images), or at the object image of the option that it names; at the first token where it
    rests on nothing. Where a thing is placed by another, object images of the two are looked at
    rather than their middles, and the other has a head of its own; so have options, which the
    answer looks at one layer later, when they know how they lie to it; of options in words it looks
    at the right one then. While the model writes coordinates it looks at the middle and the edges
    of what they are of (`while_written`). The middle of an object image looks, one layer before all
    that, at where it was cut from.
    """

    def __init__(self, codec: Any):
        self.codec = codec
        self.side = math.isqrt(codec.image_tokens)
        self.texts = Texts(codec)

    def __call__(self, record: Record, example: Example) -> Record:
        """gaze [P,4] int32 and gaze_weight [P] of an encoded example, as `as_gaze` has them."""
        tokens, mask = record["tokens"], record["loss_mask"]
        rows: list[Look] = []
        images = np.flatnonzero(tokens == self.codec.image_id)
        if len(images):
            space = square(example.width, example.height)

            def cell(x: float, y: float) -> int:
                """The position of the token over a point in [0, 1] of the picture."""
                seen = space.to_view(np.array([x, y], np.float64)) * self.side
                column, row = np.clip(seen.astype(int), 0, self.side - 1).tolist()
                return int(images[row * self.side + column])

            shown = self._middles(tokens)
            before = 0  # object images of the turns so far
            for begin, turn in zip(answer_starts(mask), example.turns, strict=True):
                objects = _objects(turn.user)
                own = shown[before : before + len(objects)]
                before += len(objects)
                shown_at = dict(zip(objects, own, strict=True)) if turn.landmarks else {}
                things, landmarks = (
                    [shown_at.get(k) or cell(*middle(example.regions[k].box)) for k in ks]
                    for ks in by_head(turn)
                )
                if (option := chosen(turn)) is not None:
                    things = [own[option]]
                    offered = [p for k, p in shown_at.items() if k not in turn.landmarks]
                    rows += looks_at(offered, landmarks, 1)
                elif turn.about is None and not markup.regions_of(turn.assistant or ""):
                    things += own
                later = int(bool(turn.landmarks) and option is not None)
                rows += before_answer(begin, things, landmarks, later)
                if turn.landmarks and option is None:
                    rows += looks_at([begin], self._worded(tokens, begin, turn), layer=1)
            for position, box in zip(shown, record["object_boxes"].tolist(), strict=True):
                rows += looks_at([position], [cell(*middle(box))], layer=-1)
            written = (
                example.regions[k].box
                for turn in example.turns
                for k in markup.regions_of(turn.assistant or "")
            )
            for box, places in zip(written, self._digits(tokens, mask), strict=False):
                at = [cell(*point) for point in edges(box)]
                rows += while_written(
                    self.texts.coordinates(tokens, places), cell(*middle(box)), at
                )
        return as_gaze(rows)

    def _middles(self, tokens: np.ndarray) -> list[int]:
        """Of each object image the position of its middle token, which is of no padding."""
        count = self.codec.object_tokens
        side = math.isqrt(count)
        at = np.flatnonzero(tokens == self.codec.object_id).reshape(-1, count)
        return [int(position) for position in at[:, (side // 2) * side + side // 2]]

    def _worded(self, tokens: np.ndarray, begin: int, turn: Turn) -> list[int]:
        """The position of the longest word of the option that the answer, a letter, stands for, by
        which it differs from others; none of another answer."""
        line = _option(turn, ".+")
        if line is None:
            return []
        said = [self.texts(token) for token in tokens[:begin].tolist()]
        starts = [
            k for k in range(begin - 2) if (said[k].strip(), said[k + 1]) == (line[0][0], ".")
        ]
        words: list[int] = []
        for position in range(starts[-1] + 2, begin) if starts else ():
            if len("".join(said[k] for k in words).strip()) >= len(line[1].strip()):
                break
            words.append(position)
        return [max(words, key=lambda k: len(said[k].strip()))] if words else []

    def _digits(self, tokens: np.ndarray, mask: np.ndarray) -> list[list[int]]:
        """Of each box in the answers the positions that its digits behind the point are predicted
        from."""
        found = (
            [p for p in digits if self.texts(int(tokens[p]))[-1:] not in ("[", ",", "")]
            for _, digits in self.texts.boxes(tokens, mask)
        )
        return [places for places in found if places]


def chosen(turn: Turn) -> int | None:
    """Which of the question's object images a letter names, None for another answer."""
    option = _option(turn, r"<object:\d+>")
    return None if option is None else len(_objects(turn.user[: option.start()]))


def _option(turn: Turn, what: str) -> re.Match[str] | None:
    """The line of a question whose letter is the answer, and `what` it says; None of another
    answer, or where it says something else."""
    letter = _LETTER.fullmatch(turn.assistant or "")
    return letter and re.search(rf"^{letter[1]}\. *({what})", turn.user, re.M)


def _objects(text: str) -> list[int]:
    return [s.regions[0] for s in markup.parse(text) if s.kind == "object"]
