"""What systems share that are shown where in the prompt answers look (`pointing_weight`)."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from mg_jax.data.samples.base import Record
from mg_jax.example import Box, Turn
from mg_jax.text import markup

_INSIDE = 0.05  # of a box's side: so far from its edge a token lies that still sees the thing


class Look(NamedTuple):
    """A position, the position that a head of it looks at, and the look's weight.

    head: 0, or 1 for landmarks, of which `mg_jax.lm.TAUGHT` leave their maps. layer: counted from
    `pointing_layer`.
    """

    position: int
    at: int
    weight: float
    head: int = 0
    layer: int = 0


def looks_at(
    positions: Iterable[int], at: Sequence[int], head: int = 0, layer: int = 0
) -> list[Look]:
    """Every position looks at every one of `at`; equal weights, 1 in sum; none of nothing."""
    positions = list(positions)
    share = 1 / max(len(positions) * len(at), 1)
    return [Look(p, target, share, head, layer) for p in positions for target in at]


def before_answer(
    begin: int, things: Sequence[int], landmarks: Sequence[int], layer: int = 0
) -> list[Look]:
    """The looks from which an answer's first token comes: at what it rests on, at the first token
    where that is nothing; and at landmarks."""
    return looks_at([begin], things or [0], 0, layer) + looks_at([begin], landmarks, 1)


def as_gaze(rows: Sequence[Look]) -> Record:
    """gaze [P,4] int32 (position, position looked at, head, layer), and gaze_weight [P].

    Looks at what comes later, which is not seen as yet, are left out.
    """
    rows = [row for row in rows if row.at <= row.position]
    columns = [(r.position, r.at, r.head, r.layer) for r in rows]
    return {
        "gaze": np.asarray(columns, np.int32).reshape(-1, 4),
        "gaze_weight": np.asarray([row.weight for row in rows], np.float32),
    }


def answer_starts(mask: np.ndarray) -> list[int]:
    """The position before each answer, from which its first token is predicted."""
    starts: list[int] = np.flatnonzero(mask[1:] & ~mask[:-1]).tolist()
    return starts


def rests_on(turn: Turn) -> list[int]:
    """The regions that an answer rests on, as far as the turn tells."""
    if turn.about is not None:
        return list(turn.about)
    named = markup.regions_of(turn.assistant or "")
    return list(dict.fromkeys(named or plain(turn.user)))


def by_head(turn: Turn) -> tuple[list[int], list[int]]:
    """`rests_on` of a turn, what each head looks at: landmarks have one of their own, for a sum of
    both would not tell how they lie to each other."""
    rests = rests_on(turn)
    landmarks = [k for k in rests if k in turn.landmarks]
    return [k for k in rests if k not in turn.landmarks] or landmarks, landmarks


def plain(text: str) -> list[int]:
    """The regions that a text points at otherwise than as object images."""
    return [k for s in markup.parse(text) if s.kind != "object" for k in s.regions]


def middle(box: Box | Sequence[float]) -> tuple[float, float]:
    """(x, y) of the middle of a box xyxy."""
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def edges(box: Box | Sequence[float]) -> list[tuple[float, float]]:
    """(x, y) just inside of the middles of a box's left, upper, right and lower edge, in the order
    of its coordinates."""
    (x0, y0, x1, y1), (x, y) = box, middle(box)
    dx, dy = _INSIDE * (x1 - x0), _INSIDE * (y1 - y0)
    return [(x0 + dx, y), (x, y0 + dy), (x1 - dx, y), (x, y1 - dy)]


def while_written(
    coordinates: Sequence[Sequence[int]], middle: int, edges: Sequence[int]
) -> list[Look]:
    """The looks while a box is written, of `Texts.coordinates`: every digit's at the token of its
    middle, which knows its place roughly, and, with the second head, there and in the next layer at
    the token of the edge that it is a digit of, which knows that better."""
    rows = looks_at([position for part in coordinates for position in part], [middle])
    if len(coordinates) == len(edges):
        for layer in (0, 1):
            for positions, at in zip(coordinates, edges, strict=True):
                found = looks_at(positions, [at], 1, layer)
                rows += [look._replace(weight=look.weight / len(edges)) for look in found]
    return rows


class Texts:
    """The text of each token of a codec's vocabulary, by itself."""

    def __init__(self, codec: Any):
        self.codec = codec
        self._known: dict[int, str] = {}

    def __call__(self, token: int) -> str:
        """The token's text, "" of one that is none."""
        if token not in self._known:
            known = token < self.codec.tokenizer.size
            self._known[token] = self.codec.tokenizer.decode([token]) if known else ""
        return self._known[token]

    def coordinates(self, tokens: np.ndarray, digits: Sequence[int]) -> list[list[int]]:
        """Positions that the digits of a box are predicted from, by coordinate."""
        found: list[list[int]] = []
        for position in digits:
            if not found or not self(int(tokens[position]))[-1:].isdigit():
                found.append([])
            found[-1].append(position)
        return found

    def boxes(self, tokens: np.ndarray, mask: np.ndarray) -> list[tuple[list[int], list[int]]]:
        """Of each box that answers write: (the positions of the answer's words before it, since the
        box before, up to that which its bracket is predicted from; those that digits are predicted
        from)."""
        found: list[tuple[list[int], list[int]]] = []
        words: list[int] = []
        inside, last = False, -1
        for position in np.flatnonzero(mask).tolist():
            if position != last + 1:  # another answer
                words, inside = [], False
            last, text = position, self(int(tokens[position]))
            if "[" in text:
                found.append((words, []))
                inside = True
            inside = inside and "]" not in text
            if inside:
                after = tokens[position + 1 : position + 2].tolist()
                if any(c.isdigit() for token in after for c in self(token)):
                    found[-1][1].append(position)
            words = [] if inside or "]" in text else [*words, position]
        return [box for box in found if box[1]]
