"""Numbers from predictions and truths. NumPy only, no model, no data set.

Boxes are xyxy [n, 4] float in any one unit per call (pixels or [0, 1]). Every function says what
counts as right; nothing is dropped silently: what is missing or unreadable counts as wrong.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mg_jax.errors import UserError

THRESHOLDS = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))  # COCO's .5:.05:.95
_RECALL_POINTS = np.linspace(0.0, 1.0, 101)


def as_boxes(boxes: Any) -> np.ndarray:
    """`boxes` as float64 [n, 4]; an empty sequence gives [0, 4]."""
    array = np.asarray(boxes, np.float64)
    return array.reshape(-1, 4) if array.size else np.zeros((0, 4))


def iou_matrix(a: Any, b: Any, crowd: Any = None) -> np.ndarray:
    """IoU [n, m] of boxes a [n, 4] and b [m, 4]; 0 where a box has no area or is not finite.

    crowd: bool [m]; against a crowd box the intersection is divided by a's own area (COCO).
    """
    a, b = (np.where(np.isfinite(x).all(1, keepdims=True), x, 0.0) for x in map(as_boxes, (a, b)))
    corner = np.maximum(a[:, None, :2], b[None, :, :2])
    size = np.minimum(a[:, None, 2:], b[None, :, 2:]) - corner
    inside = np.clip(size, 0.0, None).prod(-1)
    area_a, area_b = (np.clip(x[:, 2:] - x[:, :2], 0.0, None).prod(-1) for x in (a, b))
    total = area_a[:, None] + area_b[None] - inside
    if crowd is not None:
        total = np.where(np.asarray(crowd, bool)[None], area_a[:, None], total)
    return np.where(total > 0, inside, 0.0) / np.where(total > 0, total, 1.0)


# -- one box per question ---------------------------------------------------------------------


def referring(predictions: Mapping[Any, Any], targets: Mapping[Any, Any]) -> dict[str, float]:
    """Referring expression comprehension: one box asked for, one given.

    Both are keyed by the *expression's* id (several expressions share a picture). A prediction is
    a box xyxy or None. Right means IoU > 0.5, strictly, as Groma's eval_rec.py counts. An
    expression without prediction is wrong with IoU 0, and counted in `missing`.

    Returns acc@0.5, mean_iou, missing (a count). Raises UserError for a prediction whose id no
    target has, and for no targets.
    """
    if not targets:
        raise UserError("no referring expressions to score")
    strange = [k for k in predictions if k not in targets]
    if strange:
        raise UserError(
            f"prediction for expression {strange[0]!r}, which is not among the {len(targets)} "
            "targets: key both by the expression's id, not the picture's"
        )
    ious, missing = [], 0
    for key, target in targets.items():
        box = predictions.get(key)
        missing += box is None
        ious.append(0.0 if box is None else float(iou_matrix([box], [target])[0, 0]))
    values = np.asarray(ious)
    return {
        "acc@0.5": float((values > 0.5).mean()),
        "mean_iou": float(values.mean()),
        "missing": missing,
    }


# -- many boxes per picture -------------------------------------------------------------------


@dataclass(frozen=True)
class Detections:
    """One picture's (or question's) predictions and truths, without class.

    boxes [n, 4], scores [n]: predictions. targets [m, 4]: truths.
    crowd: bool [m]: truths that are regions of many; they count neither as found nor as missed.
    """

    boxes: Any
    scores: Any
    targets: Any
    crowd: Any = None


def _match(
    item: Detections, thresholds: np.ndarray, limit: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """COCO's greedy matching of one picture.

    In order of falling score (ties: given order) each prediction takes the free truth of highest
    IoU >= threshold (ties: the later one); a crowd truth is taken only for want of another, and
    any number of times. Returns scores [k], hit [T, k], ignored [T, k], count of targets.
    """
    targets = as_boxes(item.targets)
    crowd = np.zeros(len(targets), bool) if item.crowd is None else np.asarray(item.crowd, bool)
    order = np.argsort(crowd, kind="stable")  # ordinary truths first
    targets, crowd = targets[order], crowd[order]
    scores = np.asarray(item.scores, np.float64).reshape(-1)
    boxes = as_boxes(item.boxes)
    if len(boxes) != len(scores):
        raise ValueError(f"{len(boxes)} boxes but {len(scores)} scores")
    rank = np.argsort(-scores, kind="stable")[:limit]
    ious = iou_matrix(boxes[rank], targets, crowd)
    hit, ignored = np.zeros((2, len(thresholds), len(rank)), bool)
    for t, threshold in enumerate(thresholds):
        taken = np.zeros(len(targets), bool)
        for d in range(len(rank)):
            best, found = min(threshold, 1 - 1e-10), -1
            for g in range(len(targets)):
                if taken[g] and not crowd[g]:
                    continue
                if found >= 0 and not crowd[found] and crowd[g]:
                    break
                if ious[d, g] >= best:
                    best, found = ious[d, g], g
            if found >= 0:
                taken[found] = True
                hit[t, d], ignored[t, d] = not crowd[found], crowd[found]
    return scores[rank], hit, ignored, int((~crowd).sum())


def average_recall(
    items: Sequence[Detections], limit: int = 100, thresholds: Sequence[float] = THRESHOLDS
) -> float:
    """AR@limit: recall of all truths together, averaged over the IoU thresholds (COCO's AR).

    At most `limit` predictions a picture, those of highest score. NaN when there are no truths.
    """
    found, total = np.zeros(len(thresholds)), 0
    for item in items:
        _, hit, _, count = _match(item, np.asarray(thresholds), limit)
        found += hit.sum(1)
        total += count
    return float((found / total).mean()) if total else float("nan")


def average_precision(
    items: Sequence[Detections], threshold: float = 0.5, limit: int = 100
) -> float:
    """AP at one IoU threshold, class-agnostic, by COCO's 101 recall points.

    Needs scores comparable between pictures. NaN when there are no truths.
    """
    scores, hits, total = [np.zeros(0)], [np.zeros(0, bool)], 0
    for item in items:
        score, hit, ignored, count = _match(item, np.asarray([threshold]), limit)
        keep = ~ignored[0]
        scores.append(score[keep])
        hits.append(hit[0, keep])
        total += count
    if not total:
        return float("nan")
    order = np.argsort(-np.concatenate(scores), kind="stable")
    right = np.concatenate(hits)[order].cumsum()
    recall = right / total
    precision = right / np.arange(1, len(right) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]  # best at this recall or beyond
    at = np.searchsorted(recall, _RECALL_POINTS, side="left")
    return float(np.append(precision, 0.0)[at].mean())  # beyond the highest recall it is 0


def as_many_recall(items: Sequence[Detections], thresholds: Sequence[float] = THRESHOLDS) -> float:
    """AS-MANY AR: of a question with k truths the k predictions of highest score count.

    Recall of all truths together, averaged over the IoU thresholds, so naming more boxes than
    there are things gains nothing. Ties of score go by the given order. NaN without truths.
    """
    found, total = np.zeros(len(thresholds)), 0
    for item in items:
        _, hit, _, count = _match(item, np.asarray(thresholds), len(as_boxes(item.targets)))
        found += hit.sum(1)
        total += count
    return float((found / total).mean()) if total else float("nan")


# -- phrases ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Grounded:
    """One picture with a grounded answer.

    phrases: (text, boxes) of the answer. objects [n, 4]: every object of the picture.
    fits: bool [phrases, n]: the words of phrase i (shape, and colour if it names one) are true of
        object j.
    expected: indices of the objects that a right answer grounds.
    """

    phrases: Sequence[tuple[str, Any]]
    objects: Any
    fits: Any
    expected: Sequence[int]


def phrase_grounding(items: Sequence[Grounded], threshold: float = 0.5) -> dict[str, float]:
    """Scores of grounded captions. The unit is a pair of a phrase and one of its boxes; a phrase
    without box is a pair without box; the same words with the same box count once a picture.

    phrase_recall: share of the expected objects that some pair names rightly (`fits`) with
        IoU >= threshold; pairs take objects in their order, best IoU first, one object a pair.
    invented: share of pairs that are invented: the words fit no object of the picture, or the
        box has IoU >= threshold with no object that the words fit. A phrase without box is
        invented only by its words. 0 without pairs.
    wrong_words: the part of `invented` whose words fit no object.
    phrases: mean number of pairs a picture.
    """
    expected = recalled = pairs = invented = wrong_words = 0
    for item in items:
        objects = as_boxes(item.objects)
        fits = np.asarray(item.fits, bool).reshape(len(item.phrases), len(objects))
        free = np.ones(len(objects), bool)
        wanted = np.zeros(len(objects), bool)
        wanted[list(item.expected)] = True
        seen = set()
        for (text, boxes), fit in zip(item.phrases, fits, strict=True):
            rows: list[np.ndarray | None] = [*as_boxes(boxes)] or [None]
            for box in rows:
                key = (" ".join(text.lower().split()), None if box is None else tuple(box))
                if key in seen:
                    continue
                seen.add(key)
                pairs += 1
                wrong_words += not fit.any()
                if box is None:
                    invented += not fit.any()
                    continue
                iou = np.where(fit, iou_matrix([box], objects)[0], 0.0)
                invented += not (iou >= threshold).any()
                iou = np.where(free, iou, 0.0)
                if len(iou) and iou.max() >= threshold:
                    best = int(iou.argmax())
                    free[best] = False
                    recalled += bool(wanted[best])
        expected += int(wanted.sum())
    return {
        "phrase_recall": recalled / expected if expected else float("nan"),
        "invented": invented / pairs if pairs else 0.0,
        "wrong_words": wrong_words / pairs if pairs else 0.0,
        "phrases": pairs / len(items) if items else 0.0,
    }


# -- words ------------------------------------------------------------------------------------


def yes_no(predictions: Sequence[bool | None], truths: Sequence[bool]) -> dict[str, float]:
    """Yes/no answers; None is an answer that says neither, and is wrong.

    accuracy: share right. balanced_accuracy: mean of the share right among "yes" truths and among
    "no" truths (those that occur). precision, recall, f1: of "yes". yes_ratio: share answered
    "yes".
    """
    if not truths:
        raise UserError("no yes/no questions to score")
    pairs = list(zip(predictions, truths, strict=True))
    right = sum(p is t for p, t in pairs)
    hits = sum(p is True and t for p, t in pairs)
    said = sum(p is True for p, _ in pairs)
    rates = [
        sum(p is t for p, t in pairs if t is side) / count
        for side in (True, False)
        if (count := sum(t is side for t in truths))
    ]
    precision = hits / said if said else 0.0
    positives = sum(truths)
    recall = hits / positives if positives else 0.0
    both = precision + recall
    return {
        "accuracy": right / len(pairs),
        "balanced_accuracy": sum(rates) / len(rates),
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / both if both else 0.0,
        "yes_ratio": said / len(pairs),
    }


def absence(said: Sequence[bool], truths: Sequence[bool]) -> dict[str, float]:
    """Questions for a thing that may not be there. said[i]: the answer denies it and gives no
    box; truths[i]: it is absent.

    absent_accuracy: share of absent things that are denied. false_absent: share of present
    things that are denied. NaN where there are none of the kind.
    """
    pairs = list(zip(said, truths, strict=True))
    absent = [bool(s) for s, t in pairs if t]
    present = [bool(s) for s, t in pairs if not t]
    return {
        "absent_accuracy": float(np.mean(absent)) if absent else float("nan"),
        "false_absent": float(np.mean(present)) if present else float("nan"),
    }


def descriptions(matches: Sequence[tuple[bool, bool]]) -> dict[str, float]:
    """Region descriptions: (shape right, colour right) each.

    accuracy: both right. shape, color: each alone.
    """
    if not matches:
        raise UserError("no region descriptions to score")
    shape, color = np.asarray(matches, bool).T
    return {
        "accuracy": float((shape & color).mean()),
        "shape": float(shape.mean()),
        "color": float(color.mean()),
    }
