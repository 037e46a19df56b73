"""Every filter at its threshold, on either side of it."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from mg_jax.data.synthesis import filters, pictures
from mg_jax.data.synthesis.filters import Drops, Limits, Thing
from mg_jax.errors import UserError
from mg_jax.example import Region


def thing(name, box, score=None):
    return Thing(name, Region.from_box(box, score=score))


def square(name, x, y, side, score=None):
    return thing(name, (x, y, x + side, y + side), score)


def test_names_of_filters_are_known():
    with pytest.raises(KeyError):
        Drops().add("typo", "x")


def test_confidence():
    drops = Drops()
    things = [square("a", 0, 0, 0.5, 0.35), square("b", 0, 0, 0.5, 0.349), square("c", 0, 0, 0.5)]
    assert [t.name for t in filters.sure(things, Limits(), drops)] == ["a", "c"]
    assert drops.entries == [("low confidence", "b 0.35")]
    assert filters.sure(things, Limits(min_score=0.2), Drops()) == things


def test_number_of_boxes():
    drops = Drops()
    things = [square("a", k / 10, 0, 0.1) for k in range(4)] + [
        square("b", k / 10, 0.5, 0.1) for k in range(3)
    ]
    assert [t.name for t in filters.few_boxes(things, Limits(), drops)] == ["b"] * 3
    assert drops.entries == [("too many boxes", "a x4")]
    assert filters.few_boxes(things, Limits(max_boxes=4), Drops()) == things


def test_area_of_object_images():
    drops = Drops()
    things = [
        thing("speck", (0, 0, 0.0499, 0.1)),
        thing("small", (0, 0, 0.0501, 0.1)),
        thing("large", (0, 0, 0.599, 1)),
        thing("huge", (0, 0, 0.601, 1)),
    ]
    assert filters.shown(things, Limits(), drops) == [1, 2]
    assert drops.entries == [("too small", "speck 0.50%"), ("too large", "huge 60.10%")]
    assert filters.shown(things, Limits(min_area=0, max_area=1), Drops()) == [0, 1, 2, 3]


def test_regions_are_dropped_until_none_overlap():
    drops = Drops()
    things = [
        square("large", 0.0, 0.0, 0.40),
        square("inside", 0.05, 0.05, 0.33),  # IoU 0.68: goes, being smaller
        square("sure", 0.5, 0.0, 0.3, 0.9),
        thing("unsure", (0.5, 0.0, 0.85, 0.3), 0.5),  # IoU 0.86: goes, though larger
        square("beside", 0.3, 0.3, 0.3),  # IoU 0.04: stays
    ]
    kept = filters.apart(things, Limits(), drops)
    assert [t.name for t in kept] == ["large", "sure", "beside"]
    assert drops.entries == [
        ("overlapping regions", "unsure"), ("overlapping regions", "inside"),
    ]  # fmt: skip


def test_regions_are_dropped_until_few_are_left():
    drops = Drops()
    things = [square(str(k), (k % 4) / 4, (k // 4) / 4, 0.1 + 0.01 * k) for k in range(13)]
    things += [square("over", 0.0, 0.0, 0.09)]  # overlaps 0 a little under the limit
    kept = filters.apart(things, Limits(region_iou=0.9), drops)
    assert len(kept) == 10 and drops.entries[0] == ("overlapping regions", "over")
    assert [t.name for t in kept] == [str(k) for k in range(3, 13)]  # then the smallest
    assert filters.apart(things[:3], Limits(), Drops()) == things[:3]


def test_too_few_regions():
    drops = Drops()
    assert (
        filters.apart([square("a", 0, 0, 0.2), square("b", 0.5, 0, 0.2)], Limits(), drops) is None
    )
    assert drops.entries == [("too few regions", "2 left")]


@pytest.mark.parametrize(
    "wrong",
    [{"min_score": 2}, {"min_area": 0.7}, {"max_boxes": 0}, {"min_regions": 11},
     {"min_regions": 0}, {"option_iou": -1}],
)  # fmt: skip
def test_thresholds_that_make_no_sense(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        Limits(**wrong)


def test_marks_are_drawn_at_the_centres():
    grey = np.full((300, 400, 3), 128, np.uint8)
    boxes = [(0.1, 0.1, 0.3, 0.3), (0.6, 0.5, 0.9, 0.9)]
    drawn = np.asarray(pictures.with_marks(grey, boxes, 1024)).astype(int)
    changed = np.abs(drawn - 128).sum(2) > 0
    rows, columns = np.nonzero(changed[:, :200])
    assert (rows.mean(), columns.mean()) == pytest.approx((60, 80), abs=2)
    rows, columns = np.nonzero(changed[:, 200:])
    assert (rows.mean(), columns.mean() + 200) == pytest.approx((210, 300), abs=2)
    assert changed.mean() < 0.02


def test_marks_do_not_hide_each_other():
    grey = np.full((400, 400, 3), 128, np.uint8)
    one = np.asarray(pictures.with_marks(grey, [(0.2, 0.2, 0.8, 0.8)], 1024)) != 128
    two = np.asarray(pictures.with_marks(grey, [(0.2, 0.2, 0.8, 0.8), (0.3, 0.3, 0.7, 0.7)], 1024))
    assert (two != 128).any(2).sum() > 1.8 * one.any(2).sum()


def test_a_picture_is_sent_small_and_whole():
    picture = pictures.smaller(np.zeros((300, 600, 3), np.uint8), 200)
    assert picture.size == (200, 100)
    assert pictures.smaller(np.zeros((30, 60, 3), np.uint8), 200).size == (60, 30)
    head, _, data = pictures.data_url(picture).partition(",")
    assert head == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (200, 100)
