"""Dialogues in the form of LLaVA."""

import json

import numpy as np
import pytest
from PIL import Image

from mg_jax.data.sources import open_source
from mg_jax.data.sources.free_text import from_markup, to_markup
from mg_jax.data.write import write_llava
from mg_jax.errors import BadRecord, UserError
from mg_jax.example import Example, Region, Turn
from mg_jax.text import markup

HUMAN, GPT = "human", "gpt"


def row(*messages, **keys):
    said = [{"from": who, "value": text} for who, text in messages]
    return {"id": "1", "conversations": said} | keys


def opened(tmp_path, rows, options="", lines=False, size=(40, 20)):
    folder = tmp_path / "coco/train2017"
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(folder / "a.png")
    path = tmp_path / "talk.json"
    path.write_text(
        "\n".join(map(json.dumps, rows)) if lines else json.dumps(rows), encoding="utf-8"
    )
    return open_source(f"llava:{path},{tmp_path}{options}")


PICTURE = {"image": "coco/train2017/a.png"}


def test_written_scenes_are_read_back(tmp_path):
    scenes = open_source("scenes:seed=5,n=6,size=160x120,tasks=rec+region+presence,turns=4")
    rows = [scenes[i] for i in range(len(scenes))]
    rows.append(Example(None, 0, 0, turns=(Turn("Hello?", "Hi."),), id="text"))
    file, folder = write_llava(rows, tmp_path, decimals=6)
    source = open_source(f"llava:{file},{folder},boxes=regions")
    assert len(source) == len(rows) and not source.counts and not source.bad
    for i, want in enumerate(rows):
        got = source[i]
        assert got.meta["id"] == want.id
        assert len(got.turns) == len(want.turns)
        for a, b in zip(got.turns, want.turns, strict=True):
            for said, wanted in ((a.user, b.user), (a.assistant, b.assistant)):
                assert markup.strip(said) == markup.strip(wanted)
                for k, n in zip(markup.regions_of(said), markup.regions_of(wanted), strict=True):
                    box = got.regions[k].box
                    np.testing.assert_allclose(box, want.regions[n].box, atol=2e-6)
        if want.image is None:
            assert got.image is None and (got.width, got.height) == (0, 0)
        else:
            np.testing.assert_array_equal(got.pixels(), want.pixels())
    again = open_source(f"llava:{file},{folder},text=drop")
    assert len(again) == len(rows) - 1 and again.counts == {"texts without a picture": 1}
    said = "".join(t.user + t.assistant for i in range(6) for t in again[i].turns)
    assert again[0].regions == () and "[0." in said and "<r:" not in said


@pytest.mark.parametrize("lines", [False, True])
def test_where_the_picture_stands(tmp_path, lines):
    source = opened(
        tmp_path,
        [
            row((HUMAN, "<image>\nWhat is this?"), (GPT, "A bus."), (HUMAN, "Red?"), (GPT, "Yes"),
                **PICTURE, model="x"),
            row((HUMAN, "What is this?\n<image>"), (GPT, "A bus."), **PICTURE),
            row((HUMAN, "<image>"), (GPT, "a café"), **PICTURE),
            row((HUMAN, "Hi"), (GPT, "Hello"), image=""),
            row((HUMAN, "Hi"), (GPT, "Hello"), idx="heR0"),
        ],
        lines=lines,
    )  # fmt: skip
    assert [source[i].turns for i in range(5)] == [
        (Turn("What is this?", "A bus."), Turn("Red?", "Yes")),
        (Turn("What is this?", "A bus."),),
        (Turn("", "a café"),),
        (Turn("Hi", "Hello"),),
        (Turn("Hi", "Hello"),),
    ]
    assert (source[0].width, source[0].height) == (40, 20) and source[0].pixels().shape[1] == 40
    assert source[3].image is None
    ids = [source[i].id for i in range(5)]
    assert len(set(ids)) == 5  # though the ids in the file are equal
    assert [source[i].meta["id"] for i in range(5)] == ["1"] * 5


def test_text_that_looks_like_marks(tmp_path):
    html = "<p>one</p> and <image> and <r:0>, <p> open"
    source = opened(
        tmp_path,
        [
            row((HUMAN, html), (GPT, html)),
            row((HUMAN, "<image>\nWrite " + html), (GPT, "1 < 2 <p>"), **PICTURE),
        ],
    )
    for text in (source[0].turns[0].user, source[0].turns[0].assistant, source[1].turns[0].user):
        assert [s.kind for s in markup.parse(text)] == ["text"]
        assert "<p >one</p >" in text
    assert from_markup(source[0].turns[0].user) == html
    assert source[1].turns[0].assistant == "1 < 2 <p>"  # an open mark is literal as it is
    assert "<image" in source[0].turns[0].user and "<image" not in source[1].turns[0].user


def test_free_text_round_trip():
    for text in (
        "",
        "a < b > c",
        "<p>x</p>",
        "<r:12>",
        "<object:1>",
        "</p><p>",
        "x <p>",
        "<image>",
    ):
        assert from_markup(to_markup(text)) == text
        assert all(s.kind == "text" for s in markup.parse(to_markup(text)))
    assert from_markup("see <p>a dog</p><r:0> ,<r:1>.") == "see a dog,."


def test_odd_turns(tmp_path):
    source = opened(
        tmp_path,
        [
            row(("system", "Be brief."), (HUMAN, "One"), (HUMAN, "and two?"), (GPT, "Yes.")),
            row((GPT, "Welcome."), (HUMAN, "Q"), (GPT, "A"), (HUMAN, "more?")),
            row((HUMAN, "Q"), (GPT, " "), (HUMAN, "R"), (GPT, "B"), (GPT, "C")),
            row((HUMAN, "Q"), (GPT, "")),
            row((HUMAN, "only a question")),
            row(),
            row(("user", "Q"), ("Assistant", "A")),
        ],
    )
    assert [source[i].turns for i in range(len(source))] == [
        (Turn("One\nand two?", "Yes."),),
        (Turn("Q", "A"),),
        (Turn("R", "B\nC"),),
        (Turn("Q", "A"),),
    ]
    assert source[0].meta["system"] == "Be brief." and "system" not in source[1].meta
    assert source.counts == {
        "system messages": 1,
        "answers before a question": 1,
        "questions without an answer": 2,
        "empty answers": 2,
        "conversations without an answer": 3,
    }


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([], "expected an object"),
        ({"id": 1}, "lacks 'conversations'"),
        (row((HUMAN, 3)), r"conversations\[0\]: value is 3"),
        (row((HUMAN, "Q"), ("bot", "A")), r"conversations\[1\]: from is 'bot', expected human"),
        ({"conversations": ["Q"]}, r"conversations\[0\]: expected an object"),
        (row((HUMAN, "Q"), (GPT, "A"), image=["a.png", "b.png"]), "image is .* one file"),
        (row((HUMAN, "Q"), (GPT, "A"), image=7), "image is 7"),
        (row((HUMAN, "Q"), (GPT, "A"), image="a", video="b"), "names a picture and a video"),
        (row((HUMAN, "[0.5, 0.1, 0.2, 0.9]"), (GPT, "A"), **PICTURE), "box .* is reversed"),
    ],
)
def test_malformed_rows_are_named_and_left_out(tmp_path, bad, message):
    good = row((HUMAN, "Q"), (GPT, "A"), **PICTURE)
    source = opened(tmp_path, [good, bad, good], ",max_bad=0.5,boxes=regions")
    assert len(source) == 2 and source.bad == 1
    with pytest.raises(UserError, match=rf"talk\.json: \[1\]: {message}.*1 of 3 records"):
        opened(tmp_path, [good, bad, good], ",boxes=regions")
    line = opened(tmp_path, [good, bad, good], ",max_bad=0.5,boxes=regions", lines=True)
    assert line.problems[0].startswith(f"{tmp_path / 'talk.json'}:2: ")


def test_missing_pictures(tmp_path):
    good = row((HUMAN, "Q"), (GPT, "A"), **PICTURE)
    gone = row((HUMAN, "Q"), (GPT, "A"), image="gqa/images/1.jpg")
    source = opened(tmp_path, [good, gone, gone])
    assert len(source) == 1 and source.counts == {"pictures without a file": 2}
    with pytest.raises(UserError, match=r"holds none of the 1 pictures .* gqa/images/1\.jpg"):
        opened(tmp_path, [gone])
    with pytest.raises(UserError, match="holds no conversation"):
        opened(tmp_path, [])
    with pytest.raises(UserError, match="boxes=x: choose text or regions"):
        opened(tmp_path, [good], ",boxes=x")
    with pytest.raises(UserError, match="text=x: choose keep or drop"):
        opened(tmp_path, [good], ",text=x")


@pytest.mark.parametrize("size", [(40, 20), (20, 40), (41, 20), (30, 30), (20, 41)])
def test_boxes_come_out_of_the_padded_square(tmp_path, size):
    width, height = size
    side = max(size)
    left, top = (side - width) // 2, (side - height) // 2
    pixels = (4.0, 3.0, 17.0, 19.0)
    x0, y0, x1, y1 = pixels
    text = str([(x0 + left) / side, (y0 + top) / side, (x1 + left) / side, (y1 + top) / side])
    asked = f"<image>\nPlease provide a short description for this region: {text}."
    source = opened(
        tmp_path,
        [row((HUMAN, asked), (GPT, f"A bus, {text}"), (HUMAN, "[1, 2, 3, 4]?"), (GPT, "[0.0,0.2]"),
             **PICTURE)],
        ",boxes=regions", size=size,
    )  # fmt: skip
    e = source[0]
    assert e.turns[0] == Turn(
        "Please provide a short description for this region: <r:0>.", "A bus, <r:0>"
    )
    assert e.turns[1] == Turn("[1, 2, 3, 4]?", "[0.0,0.2]") and len(e.regions) == 1
    np.testing.assert_allclose(
        e.regions[0].box, np.array(pixels) / (width, height, width, height), atol=1e-9
    )


def test_rounded_boxes(tmp_path):
    talk = ((HUMAN, "<image>\nWhere?"), (GPT, "[0.0, 0.2, 1.0, 0.7] [0.5, 0.3, 0.5, 0.42]"))
    e = opened(tmp_path, [row(*talk, **PICTURE)], ",boxes=regions")[0]
    assert e.turns[0].assistant == "<r:0> <r:1>"
    np.testing.assert_allclose(e.regions[0].box, (0, 0, 1, 0.9), atol=1e-9)  # cut at the border
    np.testing.assert_allclose(e.regions[1].box, (0.495, 0.1, 0.505, 0.34), atol=1e-9)
    beside = row((HUMAN, "<image>\nWhere?"), (GPT, "[0.1, 0.05, 0.9, 0.2]"), **PICTURE)
    with pytest.raises(BadRecord, match=r"box \[0\.1, 0\.05.* lies beside the picture of 40x20"):
        opened(tmp_path, [beside], ",boxes=regions")[0]


def test_two_decimals_as_in_the_mix(tmp_path):
    picture = np.zeros((20, 40, 3), np.uint8)
    regions = (Region.from_box((0.0, 0.0, 1.0, 1.0)), Region.from_box((0.1, 0.2, 0.3, 0.9)))
    e = Example(picture, 40, 20, regions=regions, id="e",
                turns=(Turn("<p>dog</p><r:0><r:1> or <object:1>?", "<r:1>"),))  # fmt: skip
    file, _ = write_llava([e], tmp_path)
    (written,) = json.loads(file.read_text())
    assert written == {
        "id": "e",
        "image": "images/e.png",
        "conversations": [
            {
                "from": "human",
                "value": "<image>\ndog [0.0, 0.25, 1.0, 0.75] [0.1, 0.35, 0.3, 0.7] or "
                "[0.1, 0.35, 0.3, 0.7]?",
            },
            {"from": "gpt", "value": "[0.1, 0.35, 0.3, 0.7]"},
        ],
    }


def test_rotated_and_cmyk_photos(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(tmp_path / "turned.jpg", exif=exif)
    Image.new("CMYK", (40, 20)).save(tmp_path / "print.jpg")
    talk = ((HUMAN, "Q [0.0, 0.0, 1.0, 1.0]"), (GPT, "A"))
    rows = [row(*talk, image="turned.jpg"), row(*talk, image="print.jpg")]
    source = opened(tmp_path, rows, ",boxes=regions")
    assert source[0].pixels().shape == (40, 20, 3) and source[1].pixels().shape == (20, 40, 3)
    for i in range(2):
        np.testing.assert_allclose(source[i].regions[0].box, (0, 0, 1, 1))
    (tmp_path / "turned.jpg").write_text("no picture")
    with pytest.raises(BadRecord, match=r"turned\.jpg: is not a picture"):
        source[0]
