"""What stands in for pretraining where there is none: named boxes for the towers, and where in the
prompt answers look, for `MGLLaVAConfig.label_words` and `pointing_weight`."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mg_jax.boxes import iou
from mg_jax.data.detections import to_canvas
from mg_jax.data.samples.teaching import (
    Look,
    answer_starts,
    as_gaze,
    before_answer,
    by_head,
    looks_at,
    middle,
)
from mg_jax.data.transforms import LABEL_WORDS, label_ids
from mg_jax.errors import UserError
from mg_jax.example import Example

SAME = 0.4  # IoU from which on a detected box is that of a region


def label_words(config: Any, cfg: Any) -> tuple[str, ...]:
    """The words that towers learn to tell. Raises UserError where the model's count is another."""
    words = tuple(config.label_words)
    if len(words) != cfg.label_words:
        raise UserError(
            f"config.label_words names {len(words)} words, but config.model.label_words is "
            f"{cfg.label_words}: set the one to the other"
        )
    return words


def named_boxes(
    example: Example,
    words: Sequence[str],
    slots: int,
    canvas: int | None,
    rng: np.random.Generator,
) -> dict[str, np.ndarray] | None:
    """label_boxes [slots,4] float32 in canvas units (None: in [0, 1] of the picture), label_mask
    [slots], and of each box the labels [slots,LABEL_WORDS], numbers in `words` as `label_ids` gives
    them.

    Where there are more boxes than slots a random choice stays; boxes without a known word are left
    out; None where none is left.
    """
    labels = label_ids(example, words)
    (known,) = np.nonzero((labels >= 0).any(1))
    if not len(known):
        return None
    chosen = known[np.sort(rng.permutation(len(known))[:slots])]
    out = {
        "label_boxes": np.zeros((slots, 4), np.float32),
        "label_mask": np.arange(slots) < len(chosen),
        "labels": np.full((slots, LABEL_WORDS), -1, np.int32),
    }
    boxes = np.asarray([example.objects[n].box for n in chosen])
    if canvas is not None:
        boxes = to_canvas(boxes, example.width, example.height, canvas)
    out["label_boxes"][: len(chosen)] = boxes
    out["labels"][: len(chosen)] = labels[chosen]
    return out


def looks(
    record: Mapping[str, np.ndarray],
    example: Example,
    boxes: Sequence[np.ndarray],
    size: tuple[int, int],
    codec: Any,
    canvas: int,
) -> dict[str, np.ndarray]:
    """gaze [P,4] int32 and gaze_weight [P] of an encoded example, as `as_gaze` has them.

    Before an answer begins the model looks at what its turn is `about`: of each thing at the token
    of its box, the best of those that have tokens if one has found it, and at the image token over
    its middle, which alone tells where it is; at the first token where it is about nothing. What
    the others are placed by has a head of its own; landmarks are seen in the last picture. One
    layer before all that the box token of a thing in the last frame looks at its own in the first,
    where the example has its meta["ends"], boxes of `objects` in the last frame: what moves can
    then be told. boxes: [n,4] of each picture, in canvas units; size: (width, height) of one.
    """
    tokens, mask = record["tokens"], record["loss_mask"]
    images = np.flatnonzero(tokens == codec.image_id)
    side = math.isqrt(len(images) // max(len(boxes), 1))
    slots = np.flatnonzero(tokens == codec.box_id)
    firsts = np.cumsum([0, *map(len, boxes)])  # the number in slots of each picture's first box

    def slot_of(place: np.ndarray, frame: int) -> int | None:
        """The position of the box token of a picture that is nearest to a box."""
        if not len(boxes[frame]):
            return None
        overlap = iou(place[None], boxes[frame])[0]
        return int(slots[firsts[frame] + overlap.argmax()]) if overlap.max() >= SAME else None

    rows: list[Look] = []
    for begin, turn in zip(answer_starts(mask), example.turns, strict=True):
        if turn.about is None or not boxes or begin < images[0]:  # not shown as yet
            continue
        at: tuple[list[int], list[int]] = ([], [])  # by head
        for own, things in zip(at, by_head(turn), strict=True):
            found = [example.regions[k].box for k in things]
            for k, place in zip(things, to_canvas(found, *size, canvas), strict=True):
                frame = len(boxes) - 1 if k in turn.landmarks else 0
                if (slot := slot_of(place, frame)) is not None:
                    own.append(slot)
                at_middle = np.array(middle(place)) * (side / canvas)
                x, y = np.clip(at_middle.astype(int), 0, side - 1).tolist()
                own.append(int(images[(frame * side + y) * side + x]))
        rows += before_answer(begin, *at)
    ends = example.meta.get("ends") if len(boxes) > 1 else None
    for thing, end in zip(example.objects, ends, strict=True) if ends else ():
        if end is not None:
            start, now = to_canvas([thing.box, end], *size, canvas)
            first, last = slot_of(start, 0), slot_of(now, len(boxes) - 1)
            if first is not None and last is not None:
                rows += looks_at([last], [first], layer=-1)
    return as_gaze(rows)
