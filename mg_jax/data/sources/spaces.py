"""Boxes in another space or order than a reader expects: told by where they fall."""

from typing import Any

import numpy as np

from mg_jax.errors import UserError

# How the four numbers of a box may stand in a file.
FORMS = {
    "xyxy": "x0, y0, x1, y1",
    "xywh": "x, y, width, height",
    "cxcywh": "centre x, centre y, width, height",
}
# Shares of boxes that fit, from which on nothing is suspected: many small boxes fit with x and y
# exchanged, fewer with another order of corners and sides.
_RIGHT, _RIGHT_FORM = 0.8, 0.6
_CERTAIN = 0.95  # share of boxes that another reading must fit
_FEW = 10  # below so many boxes a misfit proves little, unless none of them fits


def looks_like(boxes: Any, sizes: Any, form: str = "xyxy") -> str:
    """What the boxes of a data set look like, when that is not what they were read as; else "".

    boxes: [N, 4], x0, y0, x1, y1 as they were read, not cut at the border, in pixels.
    sizes: [N, 2], width and height of their pictures, or [1, 1] where boxes are shares of 1.
    form: how the numbers stood in the file, a key of FORMS.

    Tells shares of 1, percent, bins of 0 to 1000 and pixels apart, another order of the numbers,
    and y before x. Boxes that fit their pictures in most cases, or fit no other reading, are
    taken as right.
    """
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    sizes = np.asarray(sizes, np.float64).reshape(-1, 2)
    sound = np.isfinite(boxes).all(1)
    boxes, sizes = boxes[sound], sizes[sound]
    if not len(boxes):
        return ""
    raw = _written(boxes, form)
    in_shares = bool((sizes == 1).all())
    if not in_shares and sizes.min() >= 8 and _mostly(abs(raw).max(1) <= 1):
        # whole numbers may be boxes of one pixel
        return "shares of 1" if (raw != np.round(raw)).any() else ""
    if not in_shares and len(boxes) >= 50:  # larger pictures, and no box goes beyond
        if _binned(boxes) and _mostly(sizes.min(1) > 1010):
            return "bins of 0 to 1000"
        if _end(boxes, 99, 100) and _mostly(sizes.min(1) > 110):
            return "percent"
    right = _fit(boxes, sizes)
    if right >= _RIGHT or (len(boxes) < _FEW and right > 0):
        return ""
    if in_shares and np.median(raw.max(1)) > 1.5:
        if raw.max() <= 100:
            return "percent"
        return "bins of 0 to 1000" if _binned(boxes) or _binned(raw) else "pixels"
    readings = {"y before x": _fit(boxes[:, [1, 0, 3, 2]], sizes)}
    if right < _RIGHT_FORM:
        readings |= {FORMS[f]: _fit(_edges(raw, f), sizes) for f in FORMS if f != form}
    if not in_shares and (_binned(boxes) or _binned(raw)):
        readings["bins of 0 to 1000"] = max(_fit(b / 1000, 1 + 0 * sizes) for b in (boxes, raw))
    best = max(readings, key=lambda k: readings[k])
    return best if readings[best] >= _CERTAIN else ""


def refuse_misfits(name: str, boxes: Any, sizes: Any, form: str, lost: int, total: int) -> None:
    """Raises UserError when the boxes of a data set are in another space than expected, or most of
    them have no area inside their picture; it says what they look like.

    boxes, sizes: a sample, as `looks_like` takes them. lost: how many of all `total` boxes have no
    area.
    """
    if not total:
        return
    guess = looks_like(boxes, sizes, form)
    if not guess and (lost < total if total < _FEW else 2 * lost <= total):
        out = _beyond(np.asarray(boxes, np.float64), np.asarray(sizes, np.float64))
        if total >= _FEW and out > 0.5:
            raise UserError(
                f"data {name}: {out:.0%} of its boxes reach beyond their picture: they look like "
                "those of a picture of another size; scale them to the files that are there"
            )
        return
    reach = np.nanmax(np.where(np.isfinite(boxes), boxes, np.nan), 0, initial=-np.inf)
    unit = "pixels" if (np.asarray(sizes) > 1).any() else "shares of 1"
    what = f"{lost} of its {total} boxes have no area inside their picture, " if lost else ""
    raise UserError(
        f"data {name}: {what}the boxes reach to x {reach[2]:g} and y {reach[3]:g}; expected "
        f"{FORMS[form]} in {unit}"
        + (f", they look like {guess}" if guess else ": check the unit and the order")
    )


def _fit(boxes: np.ndarray, sizes: np.ndarray) -> float:
    """Share of boxes that are boxes and lie in their picture, a pixel or a hundredth forgiven."""
    slack = _slack(sizes)
    inside = (boxes[:, :2] >= -slack) & (boxes[:, 2:] <= sizes + slack)
    return float((inside & (boxes[:, 2:] > boxes[:, :2])).all(1).mean())


def _slack(sizes: np.ndarray) -> np.ndarray:
    return np.where(sizes > 1, np.maximum(1, 0.01 * sizes), 0.01)


def _beyond(boxes: np.ndarray, sizes: np.ndarray) -> float:
    """Share of boxes that reach out of their picture, by more than `_fit` forgives."""
    slack = _slack(sizes)
    out = (boxes[:, :2] < -slack) | (boxes[:, 2:] > sizes + slack)
    return float(out.any(1).mean()) if len(boxes) else 0.0


def _mostly(flags: np.ndarray) -> bool:
    return float(flags.mean()) >= 0.99


def _binned(boxes: np.ndarray) -> bool:
    """Whole numbers of at least 0 that on both axes end at 999 or 1000."""
    return _mostly((boxes == np.round(boxes)).all(1)) and _end(boxes, 999, 1000)


def _end(boxes: np.ndarray, low: float, high: float) -> bool:
    """Whether boxes are of numbers of at least 0 that on both axes end between these."""
    ends = boxes[:, 2:].max(0)
    return bool(boxes.min() >= 0 and ((ends >= low) & (ends <= high)).all())


def _written(boxes: np.ndarray, form: str) -> np.ndarray:
    """The numbers of the file that were read as these edges."""
    if form == "xyxy":
        return boxes
    low, high = boxes[:, :2], boxes[:, 2:]
    return np.concatenate([low if form == "xywh" else (low + high) / 2, high - low], 1)


def _edges(raw: np.ndarray, form: str) -> np.ndarray:
    if form == "xyxy":
        return raw
    low = raw[:, :2] if form == "xywh" else raw[:, :2] - raw[:, 2:] / 2
    return np.concatenate([low, low + raw[:, 2:]], 1)
