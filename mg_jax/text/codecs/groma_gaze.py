"""Where the answers of a training sample look, for `GromaConfig.pointing_weight`."""

from collections.abc import Sequence

import numpy as np

from mg_jax.example import Region, Turn


def add_gaze(
    record: dict[str, np.ndarray],
    turns: Sequence[Turn],
    regions: Sequence[Region],
    ground_box: int,
    phrase: int,
) -> None:
    """Add gaze and gaze_weight to an encoded sample, and to its ground_boxes what they need.

    Rows of gaze [P, 2] int32: a position, and the number in ground_boxes of a box whose region is
    looked at from there, -1 for no region; gaze_weight [P] float32, of one position 1 in all.
    Before each `<ground_box>` that box; before the words of a grounded phrase its boxes; before an
    answer begins what its turn is `about`. ground_box, phrase: ids of `<ground_box>` and `<p>`.
    """
    tokens, mask = record["tokens"], record["loss_mask"]
    boxes = [tuple(box) for box in record["ground_boxes"].tolist()]
    rows: list[tuple[int, int, float]] = []

    def look(position: int, numbers: Sequence[int]) -> None:
        rows.extend((position, n, 1 / len(numbers)) for n in numbers)

    marked = np.flatnonzero(mask & (tokens == ground_box))
    for n, position in enumerate(marked):
        look(int(position) - 1, [n])
    phrases = np.flatnonzero(mask & (tokens == phrase))
    starts = np.flatnonzero(mask[1:] & ~mask[:-1])
    for begin in phrases:
        end = min([len(tokens), *phrases[phrases > begin], *starts[starts > begin]])
        if found := np.flatnonzero((marked > begin) & (marked < end)).tolist():
            look(int(begin), found)
    for begin, turn in zip(starts, turns, strict=True):
        if turn.about is None:
            continue
        numbers = []
        for k in turn.about:
            box = tuple(np.asarray(regions[k].box, np.float32).tolist())
            if box not in boxes:
                boxes.append(box)
            numbers.append(boxes.index(box))
        look(int(begin), numbers or [-1])
    record["ground_boxes"] = np.asarray(boxes, np.float32).reshape(-1, 4)
    record["gaze"] = np.asarray([row[:2] for row in rows], np.int32).reshape(-1, 2)
    record["gaze_weight"] = np.asarray([row[2] for row in rows], np.float32)
