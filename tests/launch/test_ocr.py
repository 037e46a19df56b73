"""RapidOCR as `launch.synthesize --ocr` uses it, where the extra is installed."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from launch import ocr
from mg_jax.errors import UserError


def test_without_the_package_it_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    with pytest.raises(UserError, match="make setup EXTRAS=ocr"):
        ocr.Reader()


def test_words_come_as_regions(monkeypatch):
    """The package's form of results: words with boxes where it has them, else lines."""
    lines = [[[10, 10], [90, 12], [90, 30], [10, 28]], [[0, 40], [50, 40], [50, 60], [0, 60]]]
    found = SimpleNamespace(
        boxes=np.array(lines),
        txts=("MAIN STREET", "EXIT"),
        scores=(0.9, 0.8),
        word_results=(
            (("MAIN", 0.95, [[10, 10], [40, 10], [40, 30], [10, 30]]),
             ("STREET", 0.85, [[45, 10], [120, 10], [120, 30], [45, 30]])),
            (("EXIT", 0.8, None),),
        ),
    )  # fmt: skip
    seen = []

    class Engine:
        def __init__(self, **_):
            pass

        def __call__(self, image, **options):
            seen.append((image.copy(), options))
            return found

    monkeypatch.setitem(sys.modules, "rapidocr", SimpleNamespace(RapidOCR=Engine))
    image = np.zeros((80, 100, 3), np.uint8)
    image[..., 0] = 255  # red
    words = ocr.Reader()(image)
    assert [(w.label, w.score) for w in words] == [("MAIN", 0.95), ("STREET", 0.85), ("EXIT", 0.8)]
    assert words[0].box == pytest.approx((0.1, 0.125, 0.4, 0.375))
    assert words[1].box[2] == 1.0  # cut at the border
    assert seen[0][0][0, 0].tolist() == [0, 0, 255]  # as cv2 has it: blue first
    found.boxes = found.txts = None
    assert ocr.Reader()(image) == []


def test_printed_words_are_read():
    pytest.importorskip("rapidocr")
    pytest.importorskip("onnxruntime")
    picture = Image.new("RGB", (400, 200), "white")
    pen = ImageDraw.Draw(picture)
    pen.text((40, 30), "MAIN STREET", "black", ImageFont.load_default(size=40))
    pen.text((200, 120), "EXIT", "black", ImageFont.load_default(size=40))
    words = ocr.Reader()(np.asarray(picture))
    assert "".join(w.label for w in words).replace(" ", "") == "MAINSTREETEXIT"
    exit_box = next(w.box for w in reversed(words) if "EXIT" in w.label)
    assert exit_box == pytest.approx((0.5, 0.63, 0.73, 0.82), abs=0.06)
