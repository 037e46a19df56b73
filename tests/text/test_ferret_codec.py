"""Ferret's codec: templates, coordinates, what is trained on, and answers read back."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mg_jax.errors import UserError
from mg_jax.example import Example, Region, Turn
from mg_jax.text import codecs, markup, templates
from mg_jax.text.bpe import load_tokenizer
from mg_jax.text.codecs.ferret import FerretCodec
from mg_jax.text.codecs.ferret_decode import Reader, phrase_start
from mg_jax.text.codecs.ferret_places import coordinates, format_place, parse_box
from mg_jax.text.codecs.marked import encode_marked
from mg_jax.text.instructions.ferret import COORDINATES, COORDINATES_UI
from mg_jax.text.tokenizer import Tokenizer
from tests.text import reading_ids
from tests.text.reading_ids import answers

GOLDEN = Path(__file__).parents[1] / "golden" / "groma_tokenizer"
PLAIN = Tokenizer.from_model_file(GOLDEN / "tokenizer.model")
TOKENIZER = Tokenizer.from_model_file(GOLDEN / "tokenizer.model", ["<region_fea>"])
REGIONS = (
    Region.from_box((0.1, 0.2, 0.5, 0.9)),
    Region.from_point(0.25, 0.5),
    Region.from_box((0.0, 0.0, 1.0, 1.0)),
)
SIZE = (640, 480)


@pytest.fixture(scope="module")
def codec():
    return FerretCodec(PLAIN, image_tokens=3, text_tokens=600)


def example(*pairs, regions=REGIONS):
    return Example(None, *SIZE, regions, tuple(Turn(*p) for p in pairs), id="e1")


def written(codec, tokens):
    """The text of ids; I and R for the ids of pictures and regions."""
    return reading_ids.written(codec, tokens, {codec.image_id: "I", codec.region_id: "R"})


# -- to ids -----------------------------------------------------------------------------------


def test_a_conversation(codec):
    e = example(
        ("What is <p>the thing</p><r:0>, and what is <r:1>?", "<p>A dog</p><r:0><r:2>."),
        ("[grounding] Where is <p>the cat</p>?", "<r:2>"),
    )
    encoded = codec.encode(e, image_tokens=3)
    text = written(codec, encoded["tokens"])
    assert text == (
        f"<s> {templates.DIALOGUES['ferret_v1'].start}USER: III\nWhat is the thing "
        "[100, 200, 500, 900]R, and what is [250, 500]R? ASSISTANT: "
        "A dog [100, 200, 500, 900] [0, 0, 998, 997].</s>USER: Where is the cat? "
        f"{COORDINATES} ASSISTANT: the cat [0, 0, 998, 997]</s>"
    )
    assert answers(codec, encoded) == [
        "A dog [100, 200, 500, 900] [0, 0, 998, 997].</s>", "the cat [0, 0, 998, 997]</s>",
    ]  # fmt: skip
    assert encoded["refer"].tolist() == [0, 1]


def test_ids_are_those_of_the_whole_text(codec):
    """Answers are not tokenised by themselves."""
    e = example(("What is it?", "A dog."), ("And?", "No."))
    encoded = codec.encode(e, image_tokens=0)
    text = codec.prompt(e.turns, e.regions, SIZE).replace("<image>\n", "")
    assert encoded["tokens"].tolist() == PLAIN.encode(text)


def test_a_prompt_is_the_beginning_of_a_sample(codec):
    turns = (Turn("What is <r:0>?", "A dog."), Turn("Sure?", "Yes."))
    whole = codec.encode(example(*((t.user, t.assistant) for t in turns)), image_tokens=3)
    for count in (1, 2):
        prompt = codec.encode_prompt(turns[:count], REGIONS, size=SIZE, image_tokens=3)
        assert set(prompt) == {"tokens", "refer"}
        n = len(prompt["tokens"])
        assert (whole["tokens"][:n] == prompt["tokens"]).all()
        assert whole["loss_mask"][n] and not whole["loss_mask"][n - 1]


@pytest.mark.parametrize(
    ("refer", "text", "count"),
    [("hybrid", "Is [100, 200, 500, 900]Rred?", 1), ("feature", "IsRred?", 1),
     ("coordinates", "Is [100, 200, 500, 900] red?", 0)],
)  # fmt: skip
def test_ways_to_refer(refer, text, count):
    codec = FerretCodec(PLAIN, refer=refer, text_tokens=300)
    encoded = codec.encode_prompt([Turn("Is <r:0> red?")], REGIONS, size=SIZE, image_tokens=1)
    assert text in written(codec, encoded["tokens"])
    assert len(encoded["refer"]) == (encoded["tokens"] == codec.region_id).sum() == count


@pytest.mark.parametrize(
    ("template", "request_"),
    [("ferret_v1", f" {COORDINATES}"), ("ferret_vicuna_v1", f"\n{COORDINATES_UI}")],
)
@pytest.mark.parametrize("text", ["[grounding] Where?", f"Where? {COORDINATES}",
                                  f"[grounding] Where? {COORDINATES} "])  # fmt: skip
def test_the_request_for_boxes(template, request_, text):
    """Each release has its own words, once."""
    codec = FerretCodec(PLAIN, template, text_tokens=300)
    made = codec.prompt([Turn(text)], (), SIZE)
    assert made.endswith(f"<image>\nWhere?{request_} ASSISTANT:")
    alone = codec.prompt([Turn("[grounding]")], (), SIZE)
    assert alone.endswith(f"<image>\n{request_.strip()} ASSISTANT:")


def test_the_region_token_of_a_vocabulary():
    token = TOKENIZER.id("<region_fea>")
    codec = FerretCodec(TOKENIZER, region_token=token, text_tokens=300)
    encoded = codec.encode_prompt([Turn("Is <r:0> red?")], REGIONS, size=SIZE, image_tokens=1)
    assert (encoded["tokens"] == token).sum() == 1 and codec.image_id == TOKENIZER.size
    typed = codec.encode_prompt([Turn("Is <region_fea> red?")], size=SIZE, image_tokens=1)
    assert token not in typed["tokens"]  # a user's text is never read as a token


def test_marks_at_the_edges_of_runs():
    pieces = [("a dog", False), (" runs", True), (5, True), ("x", False)]
    ids, marks = encode_marked(PLAIN, pieces, bos=True)
    assert ids == PLAIN.encode_parts(["a dog runs", 5, "x"])
    assert PLAIN.decode([i for i, m in zip(ids, marks, strict=True) if m]).startswith("runs")
    assert encode_marked(PLAIN, [], bos=True) == ([PLAIN.bos_id], [False])


def test_a_caption_alone():
    codec = FerretCodec(PLAIN, "plain", text_tokens=300)
    encoded = codec.encode(example(("Describe the picture.", "A dog.")), image_tokens=2)
    assert written(codec, encoded["tokens"]) == "<s>IIA dog.\n"
    assert answers(codec, encoded) == ["A dog.\n"]


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([], "no question"),
        ([Turn("<image> a"), Turn("b <image>")], "2 <image> marks"),
        ([Turn("a"), Turn("b")], "turn 0 of 2 has no answer"),
        ([Turn("What is <r:9>?")], "region 9, but there are 3"),
        ([Turn("x " * 900)], "begin a new conversation"),
    ],
)
def test_refusals(codec, turns, message):
    with pytest.raises(UserError, match=message):
        codec.encode_prompt(turns, REGIONS, size=SIZE, image_tokens=3)


def test_more_refusals(codec):
    with pytest.raises(UserError, match="there is no picture"):
        codec.encode_prompt([Turn("<image> a")], image_tokens=0)
    with pytest.raises(UserError, match="'e1': turn 0 has no answer"):
        codec.encode(example(("a", None)), image_tokens=0)
    with pytest.raises(UserError, match="choose hybrid"):
        FerretCodec(PLAIN, refer="both")
    with pytest.raises(UserError, match="do not belong together"):
        FerretCodec(PLAIN, vocab=5)
    with pytest.raises(UserError, match="unknown chat template 'x': choose ferret_v1"):
        FerretCodec(PLAIN, "x")
    with pytest.raises(UserError, match="which is no token"):
        _ = FerretCodec(PLAIN, "ferret_llama_3").end_id
    assert codecs.get("ferret") is FerretCodec and codec.end_id == PLAIN.eos_id


def test_with_the_shipped_tokenizer():
    folder = Path(templates.__file__).parents[1] / "releases" / "tokenizer-tiny"
    codec = FerretCodec(load_tokenizer(folder), text_tokens=300)
    e = example(("What is <r:0>?", "<p>A dog</p><r:0>."))
    encoded = codec.encode(e, image_tokens=2)
    (said,) = answers(codec, encoded)
    assert said == "A dog [100, 200, 500, 900].</s>"
    ids = encoded["tokens"][encoded["loss_mask"]]
    answer = codec.decode(ids, np.log(np.full(len(ids), 0.5)), *SIZE)
    assert answer.text == "A dog." and answer.phrases[0].text == "A dog"
    assert answer.phrases[0].boxes == ((64.0, 96.0, 320.0, 432.0),)
    assert answer.phrases[0].scores == pytest.approx((0.5,))
    again = codec.encode_prompt(
        [Turn("What is <r:0>?", answer.markup.replace("<r:0>", "<r:3>")), Turn("Sure?")],
        (*REGIONS, *answer.regions()), size=SIZE, image_tokens=2,
    )  # fmt: skip
    assert (again["tokens"][: len(encoded["tokens"])] == encoded["tokens"]).all()


def test_collate(codec):
    samples = [codec.encode(example(("a", "b" * n)), image_tokens=3) for n in (1, 9)]
    batch = codec.collate(samples, [500, 600])
    assert batch["tokens"].shape == batch["loss_mask"].shape == (2, 500)
    assert batch["valid"].sum(1).tolist() == [len(s["tokens"]) for s in samples]


# -- recordings -------------------------------------------------------------------------------

UPSTREAM = {
    "ferret:v1": "ferret_v1", "ferret:ferret_v1": "ferret_v1", "ferretui:v1": "vicuna_v1",
}  # fmt: skip


@pytest.mark.shared
def test_prompts_are_as_recorded(shared, codec):
    recorded = json.loads((shared / "golden/ferret/tables/prompts.json").read_text())
    regions = [Region.from_box(b) for b in ((0.1, 0.05, 0.2, 0.3), (0.1, 0.15, 0.3, 0.2))]
    turns = [Turn("What is in the region <r:0>?", "<p>A dog</p><r:1>."), Turn("Where is the cat?")]
    checked = 0
    for name, row in recorded.items():
        if isinstance(row["prompt"], dict):
            continue  # upstream cannot render these
        template = UPSTREAM.get(name, name.partition(":")[2])
        mine = FerretCodec(PLAIN, template, text_tokens=900)
        assert mine.prompt(turns, regions, (1000, 1000)) == row["prompt"], name
        assert next(iter(mine.template.stops), "") == row["stop_str"]
        checked += 1
    assert checked == 8


@pytest.mark.shared
def test_coordinates_are_as_recorded(shared):
    for row in json.loads((shared / "golden/ferret/tables/coordinate_strings.json").read_text()):
        assert format_place(row["box"], row["w"], row["h"]) == row["text"]


# -- places -----------------------------------------------------------------------------------


@given(
    st.tuples(*[st.integers(0, 3000)] * 4), st.tuples(st.integers(1, 3000), st.integers(1, 3000))
)
def test_whole_pixels_are_written_as_published(corners, size):
    """A box kept as shares of the picture is written like its pixels, which upstream clamps."""
    x0, x1 = sorted(v % size[0] for v in corners[::2])
    y0, y1 = sorted(v % size[1] for v in corners[1::2])
    pixels = (x0, y0, x1, y1)
    region = Region("box", tuple(v / size[n % 2] for n, v in enumerate(pixels)))
    assert coordinates(region, *size) == pixels
    text = format_place(pixels, *size)
    read = parse_box(text)
    assert not isinstance(read, str)
    for n, (a, b) in enumerate(zip(read, region.box, strict=True)):
        assert abs(a - b) <= 0.0010001 + (pixels[n % 2] == pixels[n % 2 + 2]) * 0.001


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("[1, 2, 3, 4]", (0.001, 0.002, 0.003, 0.004)),
        ("[001,020, 300 ,0400]", (0.001, 0.02, 0.3, 0.4)),
        ("[1000, 5, 1000, 5]", (0.999, 0.005, 1.0, 0.006)),
        ("[1, 2, 3]", "box that is not four whole numbers"),
        ("[1, 2, 3, 4, 5]", "box that is not four whole numbers"),
        ("[0.1, 0.2, 0.3, 0.4]", "box that is not four whole numbers"),
        ("[300, 400, 100, 500]", "reversed box"),
        ("[-5, 10, 20, 30]", "box outside the picture"),
        ("[5, 10, 20, 3000]", "box outside the picture"),
        (f"[{'9' * 6000}, 1, 2, 3]", "box outside the picture"),
        ("[1, 2, 3", "box without end"),
    ],
)
def test_parse_box(text, found):
    assert parse_box(text) == found


# -- from ids ---------------------------------------------------------------------------------


def read(text, asked=()):
    reader = Reader(Counter(), asked)
    reader.read(text)
    return reader.pieces, dict(reader.faults)


@pytest.mark.parametrize(
    ("text", "phrases"),
    [
        ("A man [1, 2, 3, 4] and a dog [5, 6, 7, 8] are here.", ["A man", "a dog"]),
        ("The objects are: 1: cat [1, 2, 3, 4], 2: big dog [5, 6, 7, 8].", ["cat", "big dog"]),
        ("There are two men [1, 2, 3, 4], [5, 6, 7, 8] here.", ["two men"]),
        ("a man in a red shirt [1, 2, 3, 4]", ["a man in a red shirt"]),
        ("It is below the brown sign [1, 2, 3, 4].", ["the brown sign"]),
        ("It is to the left of a black and white dog [1, 2, 3, 4].", ["a black and white dog"]),
        ("The location of it is [1, 2, 3, 4].", [""]),
        ("[1, 2, 3, 4]", [""]),
        ("A [dog] [1, 2, 3, 4] of [2021]", ["A [dog]"]),
    ],
)
def test_phrases_are_found(text, phrases):
    pieces, faults = read(text)
    assert [words for _, words, boxes in pieces if boxes] == phrases and not faults


def test_a_phrase_that_was_asked_for():
    pieces, _ = read("Answer: man, left of it [1, 2, 3, 4].", ["man, left of it"])
    assert pieces[1] == ("phrase", "man, left of it", [0])
    assert read("a woman, left of it [1, 2, 3, 4]", ["man, left of it"])[0][-1][1] != "man"
    assert phrase_start("no box follows") == 0


@pytest.mark.parametrize(
    ("text", "left", "fault"),
    [
        ("the dog [100, 200, 300]", "the dog", "box that is not four whole numbers"),
        ("the dog [100, 200, 300, 400", "the dog", "box without end"),
        ("cat [300, 400, 100, 200].", "cat .", "reversed box"),
        ("a <region_fea> b", "a b", "region token in the answer"),
        ("cat [1, 2, 3, 4] [1, 2, 3, 4]", "cat", "repeated box"),
    ],
)
def test_faults_are_counted(text, left, fault):
    pieces, faults = read(text)
    assert " ".join(words for _, words, _ in pieces) == left and faults == {fault: 1}


@given(st.lists(st.integers(-5, 1400), max_size=60), st.text(max_size=20))
def test_decoding_never_raises(ids, question):
    codec = FerretCodec(PLAIN)
    answer = codec.decode(ids, [-0.1] * len(ids), 30, 20, question)
    assert markup.strip(answer.markup) is not None


@given(st.text(alphabet="[]0123456789,. -<>adogn", max_size=60))
def test_reading_never_raises(text):
    pieces, _ = read(text)
    assert all(isinstance(words, str) for _, words, _ in pieces)


def test_notes_say_what_was_wrong(codec):
    ids = PLAIN.encode("a dog [1, 2, 3] and a cat [1, 2, 30, 40]", bos=False)
    answer = codec.decode(ids, None, 100, 100, notes=("before",))
    assert answer.notes == (
        "before", "1 malformed mark in the answer: 1 box that is not four whole numbers",
    )  # fmt: skip
    (phrase,) = answer.phrases
    assert (phrase.text, phrase.boxes) == ("a cat", ((0.1, 0.2, 3.0, 4.0),))
    assert answer.text[slice(*phrase.span)] == "a cat"
