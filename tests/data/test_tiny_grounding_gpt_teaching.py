"""Where answers of TinyGroundingGPT look: the cell of a corner, the image of an option."""

from importlib import resources

import numpy as np
import pytest

from mg_jax.data.samples.tiny_grounding_gpt_teaching import Gaze, chosen, rests_on
from mg_jax.example import Example, Region, Turn
from mg_jax.text.bpe import load_tokenizer
from mg_jax.text.codecs.tiny_grounding_gpt import TinyGroundingGPTCodec

SIDE = 6  # tokens of the picture a side
WIDE = np.zeros((30, 60, 3), np.uint8)  # padded by 15 rows above and below
ONE, TWO = (0.1, 0.2, 0.3, 0.8), (0.5, 0.0, 1.0, 0.5)
REGIONS = (Region.from_box(ONE), Region.from_box(TWO))


@pytest.fixture(scope="module")
def codec():
    with resources.as_file(resources.files("mg_jax") / "releases" / "tokenizer-tiny") as folder:
        tokenizer = load_tokenizer(folder)
    return TinyGroundingGPTCodec(tokenizer, "vicuna", SIDE**2, 9, 4, 400)


def looks(codec, *turns, regions=REGIONS):
    """(record, {position: [(column, row) of the picture's token, or the token's position]})."""
    example = Example(WIDE, 60, 30, regions, turns)
    record = codec.encode(example)
    gaze = Gaze(codec)(record, example)
    assert gaze["gaze"].shape == (len(gaze["gaze_weight"]), 2)
    images = np.flatnonzero(record["tokens"] == codec.image_id).tolist()
    found = {}
    for (position, target), weight in zip(gaze["gaze"].tolist(), gaze["gaze_weight"], strict=True):
        assert target <= position and 0 < weight <= 1
        place = divmod(images.index(target), SIDE)[::-1] if target in images else target
        found.setdefault(position, []).append(place)
    return record, found


def cell(x, y):
    """(column, row) of a point in [0, 1] of the picture, by hand: its rows begin at 15 of 60."""
    return int(x * SIDE), int((y * 30 + 15) / 60 * SIDE)


def test_numbers_look_at_their_corners(codec):
    record, found = looks(codec, Turn("Where is <p>the cup</p>?", "It is here: <r:1><r:0>."))
    targets = np.flatnonzero(record["loss_mask"])
    begin = int(targets[0]) - 1
    assert set(found[begin]) == {cell(0.75, 0.25), cell(0.2, 0.5)}
    texts = [codec.tokenizer.decode([int(t)]) for t in record["tokens"]]
    opens = [p for p in targets.tolist() if "[" in texts[p]]
    assert len(opens) == 2
    for start, box in zip(opens, (TWO, ONE), strict=True):
        end = next(p for p in range(start, len(texts)) if "]" in texts[p])
        low, high = cell(*box[:2]), cell(box[2] - 1e-6, box[3] - 1e-6)
        points = [p for p in range(start, end) if texts[p] == "."]
        expected = {
            p + k: [high if n >= 2 else low] for n, p in enumerate(points) for k in range(3)
        }
        assert len(points) == 4
        assert {p: found[p] for p in range(start, end) if p in found} == expected


def test_an_option_is_looked_at_and_object_images_at_their_origin(codec):
    asked = "Which is at <r:1>?\nA. <object:1>\nB. <object:0>"
    record, found = looks(
        codec, Turn("What is <object:0>?", "A cup."), Turn(asked, "B"), Turn("Is <r:0> it?", "Yes.")
    )
    tokens = record["tokens"]
    middles = np.flatnonzero(tokens == codec.object_id).reshape(-1, 9)[:, 4].tolist()
    assert [found[m] for m in middles] == [
        [cell(0.2, 0.5)], [cell(0.75, 0.25)], [cell(0.2, 0.5)],
    ]  # fmt: skip
    targets = np.flatnonzero(record["loss_mask"][1:] & ~record["loss_mask"][:-1]).tolist()
    first, choice, last = (found[t] for t in targets)
    assert first == [0]  # an object image is no place that the question names
    assert choice == [middles[2]] and last == [cell(0.2, 0.5)]


def test_what_an_answer_rests_on():
    assert rests_on(Turn("a <r:0>", "b", about=(2, 1))) == [2, 1]
    assert rests_on(Turn("a <r:0>", "b <r:1><r:1>")) == [1]
    assert rests_on(Turn("a <r:0> <object:1>", "No.")) == [0]
    assert rests_on(Turn("a", "No.", about=())) == []
    assert chosen(Turn("A. <object:3>\nB. <object:1>", "B.")) == 1
    assert chosen(Turn("A. to the left\nB. above <object:1>", "B")) is None
    assert chosen(Turn("A. <object:3>", "A cup")) is None


def test_text_alone_looks_nowhere(codec):
    example = Example(None, 0, 0, turns=(Turn("Say A.", "A"),))
    gaze = Gaze(codec)(codec.encode(example), example)
    assert gaze["gaze"].shape == (0, 2) and gaze["gaze_weight"].shape == (0,)
