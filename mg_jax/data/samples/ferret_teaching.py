"""Where in the prompt answers look, for `FerretConfig.pointing_weight`."""

from collections.abc import Sequence
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
    plain,
    while_written,
)
from mg_jax.example import Box, Example, Region, Turn
from mg_jax.text import markup


class Gaze:
    """The looks of encoded examples, for one codec.

    Words look at what they are about: at the vector of a region that the question points at, else
    at the token over the middle of the thing, a tile's where there are tiles, since it sees most;
    at the first token where there is nothing. So it is with all things that an answer rests on
    (`Turn.about`, else its regions, else the question's) before it begins, with the words before a
    box in it, and with the names in a list of what several regions are. Digits of a box look at its
    middle and at its edges (`while_written`). What others are placed by has a head of its own.
    """

    def __init__(self, codec: Any):
        self.codec, self.texts = codec, Texts(codec)

    def __call__(self, record: Record, example: Example, picture: Any) -> Record:
        """gaze [P,4] int32 and gaze_weight [P] of an encoded example, as `as_gaze` has them.

        record: with `places`, the regions of its questions that have a vector. picture: a
        samples.ferret.Picture, None without one.
        """
        tokens, mask = record["tokens"], record["loss_mask"]
        images = np.flatnonzero(tokens == self.codec.image_id)
        if picture is None or not len(images):
            return as_gaze([])

        def over(box: Box) -> int:
            """The position of the token over the middle of a box."""
            return int(images[picture.cell(*middle(box))])

        shown = self._vectors(tokens, record["places"])
        rows: list[Look] = []
        for begin, turn in zip(answer_starts(mask), example.turns, strict=True):
            count = len(markup.regions_of(turn.user)) if shown else 0
            own, shown = shown[:count], shown[count:]
            boxes = ([example.regions[k].box for k in ks] for ks in by_head(turn))
            things, landmarks = ([_vector(own, b) or over(b) for b in found] for found in boxes)
            rows += before_answer(begin, things, landmarks)
            if _lists(turn):
                named = self._names(tokens, mask, begin)
                for (position, _), words in zip(own, named, strict=False):
                    rows += looks_at(words, [position])
        written = (
            example.regions[k].box
            for turn in example.turns
            for k in markup.regions_of(turn.assistant or "")
        )
        for box, (words, digits) in zip(written, self.texts.boxes(tokens, mask), strict=False):
            rows += looks_at(words, [over(box)])
            at = [int(images[picture.cell(*point)]) for point in edges(box)]
            rows += while_written(self.texts.coordinates(tokens, digits), over(box), at)
        return as_gaze(rows)

    def _vectors(self, tokens: np.ndarray, found: Sequence[Region]) -> list[tuple[int, Region]]:
        """(position of its vector, region) of the questions' regions; none where they go by their
        coordinates alone."""
        slots = np.flatnonzero(tokens == self.codec.region_id).tolist()
        return list(zip(slots, found, strict=True))

    def _names(self, tokens: np.ndarray, mask: np.ndarray, begin: int) -> list[list[int]]:
        """Of each entry `1: name` of an answer the positions that its words are predicted from."""
        found: list[list[int]] = []
        before = ""
        for position in range(begin + 1, len(tokens) - 1):
            if not mask[position]:
                break
            text = self.texts(int(tokens[position]))
            if text.endswith(":") and (before + text)[-2:-1].isdigit():
                found.append([])
            after = self.texts(int(tokens[position + 1]))
            if found and mask[position + 1] and not after[-1:].isdigit():
                found[-1].append(position)
            before = text
        return found


def _lists(turn: Turn) -> bool:
    """Whether an answer may name several regions of the question one after the other."""
    return len(plain(turn.user)) > 1 and not markup.regions_of(turn.assistant or "")


def _vector(shown: Sequence[tuple[int, Region]], box: Box) -> int | None:
    """The position of the region that shows the thing in a box: its middle lies there; of several
    the one nearest to the box's."""
    x0, y0, x1, y1 = box
    found = []
    for position, region in shown:
        x, y = middle(region.box)
        if x0 <= x <= x1 and y0 <= y <= y1:
            found.append((abs(x - (x0 + x1) / 2) + abs(y - (y0 + y1) / 2), position))
    return min(found)[1] if found else None
