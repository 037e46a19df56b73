"""Regions written as text, in pixels."""

import json

import numpy as np
import pytest
from PIL import Image

from mg_jax import places
from mg_jax.errors import UserError
from mg_jax.example import Region
from mg_jax.rle import encode_rle


def test_kinds_in_pixels_of_the_picture(tmp_path):
    assert places.parse("box", "20,10,60,40", 80, 50) == Region.from_box((0.25, 0.2, 0.75, 0.8))
    assert places.parse("point", "40,25", 80, 50) == Region.from_point(0.5, 0.5)
    drawn = places.parse("polygon", "0,0,80,0,40,50", 80, 50)
    assert drawn == Region.from_polygon([(0, 0), (1, 0), (0.5, 1)])
    marked = np.zeros((50, 80), np.uint8)
    marked[10:40, 20:60] = 9
    Image.fromarray(marked).save(tmp_path / "m.png")
    found = places.parse("mask", str(tmp_path / "m.png"), 80, 50)
    assert found == Region.from_mask(marked > 0) and found.box == (0.25, 0.2, 0.75, 0.8)
    stroke = places.parse("scribble", "0,0,80,0,40,50", 80, 50)
    assert stroke == Region.from_scribble([(0, 0), (1, 0), (0.5, 1)])
    assert places.parse("object", "20,10,60,40", 80, 50).box == (0.25, 0.2, 0.75, 0.8)
    assert set(places.KINDS) == {"box", "point", "polygon", "scribble", "mask", "object"}


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("box", "1,2,3", "1,2,3: expected 4 numbers separated by commas, in pixels"),
        ("box", "1,2,x,4", "1,2,x,4: expected 4 numbers"),
        ("box", "1,2,nan,4", "1,2,nan,4: box 0"),
        ("box", "9,2,3,4", "9,2,3,4: box 0 [9, 2, 3, 4] is reversed"),
        ("point", "81,2", "81,2: (81, 2) is outside the 80x50 picture"),
        ("point", "nan,2", "nan,2: (nan, 2) is outside"),
        ("polygon", "1,2,3", "1,2,3: expected an even count of numbers"),
        ("polygon", "", ": expected an even count"),
        ("polygon", "1,2,1,9,1,99", "1,2,1,9,1,99: "),
        ("mask", "no.png", "no.png: no such file"),
    ],
)
def test_what_cannot_be_placed_is_named(kind, text, message):
    with pytest.raises(UserError) as caught:
        places.parse(kind, text, 80, 50)
    assert str(caught.value).startswith(message)


def test_masks_must_fit_the_picture(tmp_path):
    file = tmp_path / "m.png"
    for shape, message in (((20, 30), "30x20, but the picture is 80x50"), ((50, 80), "mask of si")):
        Image.fromarray(np.zeros(shape, np.uint8)).save(file)
        with pytest.raises(UserError) as caught:
            places.parse("mask", str(file), 80, 50)
        assert str(caught.value).startswith(f"{file}: {message}")


def test_masks_in_run_lengths(tmp_path):
    marked = np.zeros((50, 80), bool)
    marked[10:40, 20:60] = True
    file = tmp_path / "M.JSON"
    file.write_text(json.dumps(encode_rle(marked)))
    assert places.parse("mask", str(file), 80, 50) == Region.from_mask(marked)
    file.write_text('{"size": [2, 2], "counts": "112"}')  # one pixel, compressed
    found = places.parse("mask", str(file), 2, 2)
    np.testing.assert_array_equal(found.mask_array(), [[False, False], [True, False]])
    for content, message in (
        ('{"size": [2, 2], "counts": [1, 3]}', "2x2, but the picture is 80x50"),
        ('{"counts": [1, 3]}', "mask is no COCO RLE"),
        ('{"size": [50, 80], "counts": [4000]}', "mask of size [50, 80] is empty"),
        ("[1, 2]", "holds no JSON object"),
    ):
        file.write_text(content)
        with pytest.raises(UserError) as caught:
            places.parse("mask", str(file), 80, 50)
        assert str(caught.value).startswith(f"{file}: {message}")
