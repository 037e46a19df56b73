"""Regions, masks, examples, and the drawing of answers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from mg_jax.answer import Answer, Phrase
from mg_jax.draw import SMALLEST_SIDE
from mg_jax.errors import UserError
from mg_jax.example import POINT_SIDE, Example, Region
from mg_jax.rle import decode_rle, encode_rle


def test_kinds_have_their_tightest_box():
    assert Region.from_box([0, 0, 1, 1 + 1e-7]).box == (0, 0, 1, 1)
    assert Region.from_box((-0.5, 0.2, 0.5, 1.5), clip=True).box == (0, 0.2, 0.5, 1)
    point = Region.from_point(0.5, 0.0)
    assert point.box == pytest.approx((0.5 - POINT_SIDE / 2, 0, 0.5 + POINT_SIDE / 2, 0.025))
    flat = [(0.5, 0.5), (0.6, 0.5)]
    assert Region.from_polygon(flat).box == Region.from_scribble(flat).box
    straight = Region.from_polygon([*flat, (0.7, 0.5)])
    assert straight.box == pytest.approx((0.5, 0.475, 0.7, 0.525))
    polygon = Region.from_polygon([(0.1, 0.2), (0.5, 0.4), (0.3, 0.9)], label="x")
    assert polygon.box == (0.1, 0.2, 0.5, 0.9) and polygon.kind == "polygon"
    mask = np.zeros((10, 20), bool)
    mask[2:5, 4:8] = True
    region = Region.from_mask(mask)
    assert region.box == (0.2, 0.2, 0.4, 0.5)
    assert (region.mask_array() == mask).all()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Region.from_box((0.1, float("nan"), 1, 1)), "NaN"),
        (lambda: Region.from_box((0.5, 0, 0.1, 1)), "reversed"),
        (lambda: Region.from_box((0.5, 0, 0.5, 1)), "no area"),
        (lambda: Region.from_box((0.5, 0, 1.5, 1)), "outside"),
        (lambda: Region.from_box((2, 2, 3, 3), clip=True), "no area"),
        (lambda: Region.from_box((0.5, 0, 1)), "3 numbers, expected 4"),
        (lambda: Region.from_box("abcd"), "not 4 numbers"),
        (lambda: Region.from_point(0.5, -0.2), "point .* outside"),
        (lambda: Region.from_point(0.5, float("inf")), "NaN or infinity"),
        (lambda: Region.from_polygon([(0.5, 0.5)]), "1 point"),
        (lambda: Region.from_polygon(None), "polygon None is no list of points"),
        (lambda: Region.from_scribble(0.5), "scribble 0.5 is no list of points"),
        (lambda: Region.from_mask([[1, 2], [3]]), "mask is no array: give"),
        (lambda: Region.from_mask(np.zeros((3, 3))), "empty"),
        (lambda: Region.from_mask(np.zeros(3)), "shape"),
        (lambda: Region.from_mask({"counts": [1]}), "no COCO RLE"),
        (lambda: Region.from_mask({"size": [2, 2], "counts": [1, 2]}), "sum to 3"),
        (lambda: Region.from_mask({"size": [2, 2], "counts": "?~"}), "character|cut off|sum"),
        (lambda: Region.from_mask({"size": [2, 2], "counts": ["a"]}), "neither"),
    ],
)
def test_region_errors(make, words):
    with pytest.raises(UserError, match=words):
        make()


@given(hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12)))
def test_rle(mask):
    assert (decode_rle(encode_rle(mask)) == mask).all()
    coco = pytest.importorskip("pycocotools.mask")
    rle = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert (decode_rle(rle) == mask).all()
    assert (decode_rle({**rle, "counts": rle["counts"].decode()}) == mask).all()


@given(st.lists(st.floats(0, 1, width=32), min_size=4, max_size=4))
def test_any_box_is_valid_or_refused(numbers):
    try:
        x0, y0, x1, y1 = Region.from_box(numbers).box
    except UserError:
        assert numbers[2] <= numbers[0] or numbers[3] <= numbers[1]
    else:
        assert 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1


def test_example_pixels():
    picture = np.full((4, 6, 3), 7, np.uint8)
    assert (Example(lambda: picture, 6, 4).pixels() == picture).all()
    assert Example(picture, 6, 4).pixels() is picture
    with pytest.raises(UserError, match=r"example 'a'.*6x4 px.*says 4x6"):
        Example(picture, 4, 6, id="a").pixels()
    with pytest.raises(UserError, match="uint8"):
        Example(picture / 255, 6, 4).pixels()


def answer(width, height, boxes=4):
    grid = [
        (x * width / 4, y * height / 4, (x + 1.5) * width / 4, (y + 1.2) * height / 4)
        for x in range(2)
        for y in range(2)
    ][:boxes]
    phrases = tuple(
        Phrase(f"thing number {n}", (0, 0), (box,), (0.5,)) for n, box in enumerate(grid)
    )
    return Answer("", phrases, width=width, height=height)


@pytest.mark.parametrize("size", [(64, 64), (30, 300), (640, 480), (2000, 1500)])
def test_draw_on_any_size(size):
    picture = Image.new("RGB", size, (128, 128, 128))
    drawn = answer(*size).draw(picture)
    factor = drawn.width // size[0]
    assert drawn.size == (size[0] * factor, size[1] * factor)
    assert max(drawn.size) >= min(SMALLEST_SIDE, max(drawn.size))
    changed = (np.asarray(drawn) != 128).any(-1).mean()
    assert 0.01 < changed < 0.9
    assert picture.getextrema() == ((128, 128),) * 3, "the given picture is left alone"


def test_draw_takes_arrays_other_modes_and_odd_boxes():
    odd = Answer(
        "",
        (Phrase("word " * 60, (0, 0), ((0, 0, 0, 0), (-5, -5, 900, 900)), (1.0, 0.0)),),
        width=50,
        height=50,
    )
    assert odd.draw(np.zeros((50, 50, 3), np.uint8)).mode == "RGB"
    assert odd.draw(Image.new("RGBA", (50, 50))).size[0] >= 500
    assert Answer("nothing").draw(Image.new("L", (600, 20))).size == (600, 20)


def test_plates_do_not_cover_each_other():
    from mg_jax import draw

    placed = []
    original = draw._place

    def watched(*args):
        placed.append(original(*args))
        return placed[-1]

    draw._place = watched
    try:
        boxes = [(100 + 10 * n, 100 + 10 * n, 300, 300) for n in range(5)]
        draw.draw_boxes(Image.new("RGB", (640, 480)), boxes, ["a red ball 0.90"] * 5, range(5))
    finally:
        draw._place = original
    plates = [plate for _, plate in placed]
    assert all(draw._shared(a, b) == 0 for i, a in enumerate(plates) for b in plates[:i])
