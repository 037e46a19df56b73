"""Metrics against hand-worked cases and against pycocotools."""

import math

import numpy as np
import pytest

from mg_jax.errors import UserError
from mg_jax.evals import metrics
from mg_jax.evals.metrics import Detections, Grounded

UNIT = [0, 0, 10, 10]


def test_iou_by_hand():
    got = metrics.iou_matrix([UNIT, [5, 0, 15, 10]], [UNIT, [20, 20, 30, 30]])
    np.testing.assert_allclose(got, [[1, 0], [1 / 3, 0]])
    got = metrics.iou_matrix([UNIT], [[0, 0, 5, 10], [0, 0, 5, 10]], crowd=[False, True])
    np.testing.assert_allclose(got, [[0.5, 0.5]])
    assert metrics.iou_matrix([], [UNIT]).shape == (0, 1)


@pytest.mark.parametrize(
    "bad", [[3, 3, 3, 8], [8, 8, 2, 2], [math.nan, 0, 1, 1], [0, 0, math.inf, 1]]
)
def test_degenerate_boxes_overlap_nothing(bad):
    assert metrics.iou_matrix([bad], [UNIT, bad]).max() == 0


def test_referring_is_strict_at_one_half_and_counts_missing():
    targets = {"a": UNIT, "b": UNIT, "c": UNIT, "d": UNIT}
    half = [0, 0, 5, 10]  # IoU exactly 0.5: not right
    got = metrics.referring({"a": UNIT, "b": half, "c": None}, targets)
    assert got == {"acc@0.5": 0.25, "mean_iou": 0.375, "missing": 2}


def test_referring_refuses_a_key_that_is_no_expression():
    with pytest.raises(UserError, match="expression"):
        metrics.referring({"picture 7": UNIT}, {"expression 1": UNIT})
    with pytest.raises(UserError):
        metrics.referring({}, {})


def test_average_recall_by_hand():
    # IoU 0.8 with the first truth (right at .5 to .8: 7 of 10), the second truth is not found.
    one = Detections([[0, 0, 8, 10]], [0.9], [UNIT, [50, 50, 60, 60]])
    assert metrics.average_recall([one]) == pytest.approx(0.35)
    assert metrics.average_recall([one], thresholds=[0.5]) == 0.5
    assert math.isnan(metrics.average_recall([Detections([UNIT], [1.0], [])]))


def test_recall_takes_each_truth_once_and_the_limit_by_score():
    twice = Detections([UNIT, UNIT], [0.9, 0.8], [UNIT, [20, 20, 30, 30]])
    assert metrics.average_recall([twice]) == 0.5
    low = Detections([[20, 20, 30, 30], UNIT], [0.1, 0.9], [UNIT, [20, 20, 30, 30]])
    assert metrics.average_recall([low], limit=1) == 0.5
    assert metrics.average_recall([low], limit=2) == 1.0


def test_as_many_keeps_as_many_boxes_as_targets():
    other, far = [20, 20, 30, 30], [50, 50, 60, 60]
    one = Detections([far, UNIT, other], [0.9, 0.8, 0.7], [UNIT, other])
    assert metrics.as_many_recall([one]) == 0.5  # `other` is third by score, k is 2
    tied = Detections([UNIT, far], [1.0, 1.0], [UNIT])
    assert metrics.as_many_recall([tied]) == 1.0  # ties go by the given order
    empty = Detections([], [], [UNIT])
    assert metrics.as_many_recall([tied, empty]) == 0.5


def test_average_precision_by_hand():
    # Right, wrong, right of 2 truths: precision 1 up to recall .5, then 2/3.
    item = Detections([UNIT, [70, 70, 80, 80], [20, 20, 30, 30]], [0.9, 0.8, 0.7],
                      [UNIT, [20, 20, 30, 30]])  # fmt: skip
    assert metrics.average_precision([item]) == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert metrics.average_precision([Detections([], [], [UNIT])]) == 0.0
    assert math.isnan(metrics.average_precision([]))


def test_boxes_and_scores_must_be_as_many():
    with pytest.raises(ValueError, match="1 boxes but 2 scores"):
        metrics.average_recall([Detections([UNIT], [0.1, 0.2], [UNIT])])


def _random_items(rng, pictures, crowd):
    items = []
    for _ in range(pictures):
        m = int(rng.integers(0, 7))
        corner = rng.integers(0, 60, (m, 2))
        truth = np.concatenate([corner, corner + rng.integers(4, 40, (m, 2))], 1)
        noisy = np.repeat(truth, 2, 0)[: int(rng.integers(0, 2 * m + 1))]
        noisy = noisy + rng.integers(-4, 5, noisy.shape)
        corner = rng.integers(0, 60, (5, 2))
        stray = np.concatenate([corner, corner + rng.integers(4, 40, (5, 2))], 1)
        boxes = np.concatenate([noisy, stray])
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
        scores = rng.integers(0, 12, len(boxes)) / 12  # many ties
        crowded = rng.random(m) < 0.3 if crowd else None
        items.append(Detections(boxes, scores, truth, crowded))
    return items


def _coco(items, limit):
    """AR@limit and AP50 of pycocotools for the same boxes, one class."""
    coco = pytest.importorskip("pycocotools.coco")
    from pycocotools.cocoeval import COCOeval

    def xywh(box):
        x0, y0, x1, y1 = (float(v) for v in box)
        return [x0, y0, x1 - x0, y1 - y0]

    annotations, results = [], []
    for i, item in enumerate(items):
        crowd = np.zeros(len(item.targets)) if item.crowd is None else item.crowd
        for box, many in zip(item.targets, crowd, strict=True):
            w, h = xywh(box)[2:]
            annotations.append(dict(id=len(annotations) + 1, image_id=i, category_id=1,
                                    bbox=xywh(box), area=w * h, iscrowd=int(many)))  # fmt: skip
        for box, score in zip(item.boxes, item.scores, strict=True):
            results.append(dict(image_id=i, category_id=1, bbox=xywh(box), score=float(score)))
    truth = coco.COCO()
    truth.dataset = dict(
        images=[dict(id=i, width=200, height=200) for i in range(len(items))],
        annotations=annotations,
        categories=[dict(id=1, name="thing")],
    )
    truth.createIndex()
    e = COCOeval(truth, truth.loadRes(results), "bbox")
    e.params.maxDets = [limit]
    e.evaluate()
    e.accumulate()
    recall, precision = e.eval["recall"], e.eval["precision"]  # [T,K,A,M], [T,R,K,A,M]
    return recall[:, 0, 0, 0].mean(), precision[0, :, 0, 0, 0].mean()


@pytest.mark.parametrize("crowd", [False, True])
@pytest.mark.parametrize("limit", [3, 100])
def test_recall_and_precision_equal_pycocotools(crowd, limit, capsys):
    for seed in range(4):
        items = _random_items(np.random.default_rng(seed), 12, crowd)
        recall, precision = _coco(items, limit)
        assert metrics.average_recall(items, limit) == pytest.approx(recall, abs=1e-12)
        assert metrics.average_precision(items, 0.5, limit) == pytest.approx(precision, abs=1e-12)
        assert 0 < recall < 1 and 0 < precision < 1


def test_phrase_grounding_by_hand():
    objects = [[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]]
    yes, no = True, False
    item = Grounded(
        phrases=[
            ("a red star", [objects[0]]),  # right
            ("a red star", [objects[0]]),  # said again: counts once
            ("a blue cup", [objects[0]]),  # a true name on the wrong thing: invented
            ("a green fish", [objects[2]]),  # no such thing: invented, wrong words
            ("a red thing", [[20, 0, 25, 10]]),  # fits 0 and 1, IoU .5 with 1: right
        ],
        objects=objects,
        fits=[[yes, no, no], [yes, no, no], [no, no, yes], [no, no, no], [yes, yes, no]],
        expected=[0, 1, 2],
    )
    got = metrics.phrase_grounding([item])
    assert got == pytest.approx(
        {"phrase_recall": 2 / 3, "invented": 2 / 4, "wrong_words": 1 / 4, "phrases": 4.0}
    )


def test_phrase_grounding_without_boxes_or_phrases():
    item = Grounded([("a red star", []), ("a dog", [])], [UNIT], [[True], [False]], [0])
    got = metrics.phrase_grounding([item])
    assert got["phrase_recall"] == 0.0 and got["invented"] == 0.5
    got = metrics.phrase_grounding([Grounded([], [UNIT], [], [0])])
    assert got["phrase_recall"] == 0.0 and got["invented"] == 0.0


def test_one_pair_finds_one_object():
    same = Grounded([("stars", [UNIT])], [UNIT, UNIT], [[True, True]], [0, 1])
    assert metrics.phrase_grounding([same])["phrase_recall"] == 0.5


def test_yes_no_by_hand():
    got = metrics.yes_no([True, True, False, None], [True, False, False, False])
    assert got == pytest.approx(
        {
            "accuracy": 0.5,
            "balanced_accuracy": (1 + 1 / 3) / 2,
            "precision": 0.5,
            "recall": 1.0,
            "f1": 2 / 3,
            "yes_ratio": 0.5,
        }
    )
    assert metrics.yes_no([None, None], [True, False])["accuracy"] == 0.0


def test_absence_counts_both_errors():
    got = metrics.absence([True, False, True, False], [True, True, False, False])
    assert got == {"absent_accuracy": 0.5, "false_absent": 0.5}


def test_descriptions_need_shape_and_colour():
    got = metrics.descriptions([(True, True), (True, False), (False, True), (False, False)])
    assert got == {"accuracy": 0.25, "shape": 0.5, "color": 0.5}
