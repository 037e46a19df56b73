"""TinyGroundingGPT's codec: pictures, object images and boxes of the padded square in text."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mg_jax.errors import UserError
from mg_jax.example import Example, Region, Turn
from mg_jax.text import codecs
from mg_jax.text.bpe import load_tokenizer
from mg_jax.text.codecs.tiny_grounding_gpt import (
    TinyGroundingGPTCodec,
    from_square,
    split_name,
    square,
)
from mg_jax.text.tokenizer import Tokenizer
from tests.text import reading_ids
from tests.text.reading_ids import answers

GOLDEN = Path(__file__).parents[1] / "golden" / "groma_tokenizer"
WIDTH, HEIGHT = 20, 10  # a padded square of 20, the picture from 5 to 15
REGIONS = (
    Region.from_box((0.1, 0.2, 0.5, 0.9)),
    Region.from_box((0.25, 0.5, 0.75, 1.0)),
    Region.from_polygon([(0.0, 0.0), (0.5, 0.2), (0.2, 0.4)]),
)
TEXTS = ("[0.100,0.350,0.500,0.700]", "[0.250,0.500,0.750,0.750]", "[0.000,0.250,0.500,0.450]")
SIDES = st.integers(1, 4000)


@pytest.fixture(scope="module")
def codec():
    tokenizer = Tokenizer.from_model_file(GOLDEN / "tokenizer.model")
    return TinyGroundingGPTCodec(tokenizer, "vicuna", 3, 2, object_slots=3, text_tokens=200)


@pytest.fixture(scope="module")
def qwen(shared):
    tokenizer = load_tokenizer(shared / "tokenizers" / "qwen")
    return TinyGroundingGPTCodec(tokenizer, image_tokens=3, object_tokens=2, vocab=151936)


def example(*pairs, image="x.jpg"):
    return Example(image, WIDTH, HEIGHT, REGIONS, tuple(Turn(*p) for p in pairs), id="e1")


def written(codec, tokens):
    """The text of ids; I and O for the ids of the picture and of object images."""
    return reading_ids.written(codec, tokens, {codec.image_id: "I", codec.object_id: "O"})


def read(codec, text, width=WIDTH, height=HEIGHT, question=None):
    ids = codec.tokenizer.encode_parts([text], bos=False)
    return codec.decode(ids, None, width, height, question)


def boxes(answer):
    return [b for p in answer.phrases for b in p.boxes]


# -- to ids -----------------------------------------------------------------------------------


def test_get():
    assert codecs.get("tiny_grounding_gpt") is TinyGroundingGPTCodec


def test_chatml_as_qwen_has_it(qwen):
    """The picture before its question, both turns trained on with their end."""
    encoded = qwen.encode(example(("What is it?", "A dog."), ("Where?", "<r:0>")))
    assert written(qwen, encoded["tokens"]) == (
        "<|im_start|>user\nIII\nWhat is it?<|im_end|>\n<|im_start|>assistant\nA dog.<|im_end|>\n"
        f"<|im_start|>user\nWhere?<|im_end|>\n<|im_start|>assistant\n{TEXTS[0]}<|im_end|>\n"
    )
    assert answers(qwen, encoded) == ["A dog.<|im_end|>", f"{TEXTS[0]}<|im_end|>"]
    assert qwen.end_id == qwen.tokenizer.id("<|im_end|>") and qwen.pad_id < 151936
    assert (qwen.image_id, qwen.object_id) == (151936, 151937)
    assert encoded["tokens"].max() == qwen.image_id


def test_text_alone_equals_the_tokenizers_own_template(qwen, shared):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("jinja2")  # comes with PyTorch
    theirs = transformers.AutoTokenizer.from_pretrained(shared / "tokenizers" / "qwen")
    turns = [("Hello <|im_end|>?", "Hi."), ("And?", None)]
    messages = []
    for user, answer in (("Hello?", "Hi."), ("And?", None)):
        messages.append({"role": "user", "content": user})
        if answer:
            messages.append({"role": "assistant", "content": answer})
    want = theirs.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    mine = qwen.encode_prompt([Turn("Hello?", "Hi."), Turn("And?")])
    assert written(qwen, mine["tokens"]) == want
    spoofed = qwen.encode_prompt([Turn(*t) for t in turns])["tokens"]
    assert (spoofed == qwen.end_id).sum() == 3  # what a user writes is no token


def test_object_images_and_coordinates_in_questions(codec):
    pairs = [
        ("Is <object:1> beside <p>this</p><r:0> or <object:0>?", "It is <r:1><r:2>."),
        ("And <object:1>?", "<p>A dog</p><r:0> and <p>a cat</p>."),
    ]
    encoded = codec.encode(example(*pairs))
    text = re.sub(r"\s+", "", written(codec, encoded["tokens"]))
    assert f"USER:IIIIsOObesidethis{TEXTS[0]}orOO?ASSISTANT" in text and "AndOO?ASSI" in text
    assert answers(codec, encoded) == [
        f"It is {TEXTS[1]}{TEXTS[2]}.</s>", f"A dog {TEXTS[0]} and a cat.</s>",
    ]  # fmt: skip
    want = [REGIONS[k].box for k in (1, 0, 1)]
    np.testing.assert_allclose(encoded["object_boxes"], want, atol=1e-6)
    assert (encoded["tokens"] == codec.object_id).sum() == 6


def test_a_prompt_is_the_beginning_of_the_sample(codec):
    turns = ("What is <object:0>?", "A dog."), ("Why?", "So.")
    sample = codec.encode(example(*turns))["tokens"]
    prompt = codec.encode_prompt([Turn(*t) for t in turns], REGIONS, (WIDTH, HEIGHT))
    assert "loss_mask" not in prompt
    np.testing.assert_array_equal(prompt["tokens"], sample[: len(prompt["tokens"])])
    np.testing.assert_allclose(prompt["object_boxes"], [REGIONS[0].box], atol=1e-6)


def test_text_alone_has_no_placeholder(codec):
    tokens = codec.encode(example(("What?", "A dog."), image=None))["tokens"]
    assert tokens.max() < codec.vocab


@pytest.mark.parametrize(("pairs", "image", "message"), [
    ([("Is it <object:0>, <object:1>, <object:0> or <object:2>?", "No")], "x",
     r"'e1': 4 object images, but there are 3 slots: show fewer or raise object_slots"),
    ([("What?", "<object:0>")], "x", "an answer cannot show an object image"),
    ([("Where is <r:0>?", "No")], None, "points at a region, but there is no picture"),
    ([("Where is <object:7>?", "No")], "x", "region 7, but there are 3"),
    ([("<image> or <image>?", "No")], "x", "2 <image> marks, but TinyGroundingGPT takes one"),
    ([("word " * 300, "No")], "x", "tokens of text, but text_tokens is 200"),
    ([("What?", None)], "x", "turn 0 has no answer to train on"),
])  # fmt: skip
def test_bad_input_is_one_clear_line(codec, pairs, image, message):
    with pytest.raises(UserError, match=message) as e:
        codec.encode(example(*pairs, image=image))
    assert "\n" not in str(e.value)


def test_vocabulary_may_be_padded_but_not_cut(codec):
    tokenizer = codec.tokenizer
    padded = TinyGroundingGPTCodec(tokenizer, "vicuna", vocab=tokenizer.size + 7)
    assert padded.image_id == tokenizer.size + 7
    with pytest.raises(UserError, match="do not belong together"):
        TinyGroundingGPTCodec(tokenizer, "vicuna", vocab=tokenizer.size - 1)
    with pytest.raises(UserError, match="no token of this tokenizer"):
        _ = TinyGroundingGPTCodec(tokenizer).end_id
    beyond = padded.decode([tokenizer.size + 3, *tokenizer.encode("yes", bos=False)], None, 9, 9)
    assert beyond.text == "yes" and "1 id outside the vocabulary" in beyond.notes[0]


def test_collate(codec):
    samples = [
        codec.encode(example(("Is it <object:0>?", "No"))),
        codec.encode(example(("A", "B"))),
    ]
    batch = codec.collate(samples, [64, 128], 2)
    assert batch["tokens"].shape == (2, 64) and batch["object_boxes"].shape == (2, 2, 4)
    np.testing.assert_array_equal(batch["object_mask"], [[True, False], [False, False]])
    with pytest.raises(UserError, match="first: 1 object regions, but there are 0 slots"):
        codec.collate(samples, [64], 0, names=["first", "second"])


# -- from ids ----------------------------------------------------------------------------------


@given(w=SIDES, h=SIDES, corners=st.lists(st.floats(0, 1), min_size=4, max_size=4))
def test_boxes_come_back_from_the_padded_square(codec, w, h, corners):
    """Within the rounding of three decimals, which is of the longer side."""
    x0, x1 = sorted(corners[:2])
    y0, y1 = sorted(corners[2:])
    step = 0.001 * max(w, h)
    if (x1 - x0) * w < 2 * step or (y1 - y0) * h < 2 * step:
        return
    region = Region.from_box((x0, y0, x1, y1))
    encoded = codec.encode(Example("x", w, h, (region,), (Turn("Where?", "<r:0>"),)))
    target = encoded["tokens"][encoded["loss_mask"]]
    (found,) = boxes(codec.decode(target, None, w, h))
    np.testing.assert_allclose(
        found, np.array(region.box) * [w, h, w, h], atol=0.5 * step + 1e-3, rtol=0
    )


@pytest.mark.parametrize("text", [
    "[0.100,0.350,0.500,0.700]", "[0.100, 0.350, 0.500, 0.700]", "[ 0.1 ,0.35,.5, 0.7000 ]",
])  # fmt: skip
def test_with_and_without_spaces(codec, text):
    answer = read(codec, text)
    np.testing.assert_allclose(boxes(answer), [[2, 2, 10, 9]], atol=1e-6)
    assert not answer.notes and answer.phrases[0].text == ""


def test_several_boxes_and_their_names(codec):
    text = (
        f"The image shows a red ball {TEXTS[0]}, two dogs {TEXTS[1]}{TEXTS[2]} and it {TEXTS[0]}."
    )
    answer = read(codec, text)
    assert answer.text == "The image shows a red ball, two dogs and it."
    assert [(p.text, len(p.boxes)) for p in answer.phrases] == [
        ("red ball", 1), ("dogs", 2), ("", 1)
    ]  # fmt: skip
    assert [answer.text[slice(*p.span)] for p in answer.phrases] == ["red ball", "dogs", ""]
    again, regions = answer.history(0)
    assert again.startswith("The image shows a <p>red ball</p><r:0>, two <p>dogs</p><r:1><r:2>")
    np.testing.assert_allclose(regions[0].box, REGIONS[0].box, atol=1e-6)


def test_boxes_alone_are_named_by_the_question(codec):
    answer = read(codec, TEXTS[0] + TEXTS[1], question="Where is <p>the dog</p>?")
    assert answer.text == "the dog" and len(boxes(answer)) == 2


@pytest.mark.parametrize(("text", "fault"), [
    ("[0.1,0.2,0.3]", "box that is not four numbers"),
    ("[0.1,0.4,0.3,0.5,0.6]", "box that is not four numbers"),
    ("[0.1.2,0.4,0.3,0.5]", "box that is not four numbers"),
    ("[0.5,0.4,0.3,0.6]", "reversed or empty box"),
    ("[0.1,0.4,1.3,0.5]", "box outside the picture"),
    ("[0.1,0.0,0.3,0.2]", "box beside the picture"),
    ("[0.1,0.4,0.3,0.5", "box without end"),
    ("[0.1,0.2]", "box that is not four numbers"),
    ("[0.1 0.4 0.3 0.5]", "box that is not four numbers"),
    ("[1, 2, 3, 4]", "box outside the picture"),
    ("[0, 1]", "box that is not four numbers"),
    ("[0, 0, 0, 0]", "reversed or empty box"),
    ("[0, 0, 1", "box without end"),
    ("[0.1;0.35;0.5;0.7]", "box that is not four numbers"),
    ("[1e-1,0.35,0.5,0.7]", "box that is not four numbers"),
    ("[0.1,0.35,5E-1,0.7]", "box that is not four numbers"),
    ("[+0.1,0.35,0.5,0.7]", "box that is not four numbers"),
    ("[nan,nan,nan,nan]", "box that is not four numbers"),
    ("[0.1, 0.35, -Inf, 0.7]", "box that is not four numbers"),
])  # fmt: skip
def test_malformed_boxes_are_no_box_and_are_counted(codec, text, fault):
    answer = read(codec, f"a dog {text}")
    assert not boxes(answer) and answer.notes == (
        f"1 malformed mark in the answer: 1 {fault}",
    )  # fmt: skip
    for parts in ((TEXTS[0], "[0.9,0.9,0.1,0.1]", text), (text, TEXTS[0], "[0.9,0.9,0.1,0.1]")):
        if parts[0] == text and text[-1] != "]":
            continue  # what has no end has nothing behind it
        among = read(codec, "a dog " + " ".join(parts))
        np.testing.assert_allclose(boxes(among), [[2, 2, 10, 9]], atol=1e-6)
        (note,) = among.notes
        assert (
            note.startswith("2 malformed marks") and fault in note and "reversed or empty" in note
        )


def test_whole_numbers_are_a_box(codec):
    for text in ("[0,0,1,1]", "[0, 0, 1, 1]", "[0,0.0,1.,1]"):
        answer = read(codec, f"a dog {text}")
        np.testing.assert_allclose(boxes(answer), [[0, 0, 20, 10]], atol=1e-9)
        assert answer.phrases[0].text == "dog" and not answer.notes


@pytest.mark.parametrize(
    "text",
    [
        "See [1] and [12].",
        "It is [a, b].",
        "[1, 2 and 3",
        "[1-2] []",
        "[1, nancy]",
        "[nan]",
        "[1e5]",
    ],
)
def test_other_brackets_are_words(codec, text):
    answer = read(codec, text)
    assert answer.text == text and not answer.notes


def test_padding_is_cut_off_a_box(codec):
    (found,) = boxes(read(codec, "[0.000,0.100,1.000,0.500]"))
    np.testing.assert_allclose(found, [0, 0, 20, 5], atol=1e-9)
    assert from_square((0.2, 0.0, 0.4, 0.25), square(20, 10)) == "box beside the picture"


def test_without_a_picture_nothing_is_divided_by_nothing(codec):
    answer = read(codec, f"It is {TEXTS[0]}", 0, 0)
    assert answer.text == "It is"


@pytest.mark.parametrize(("text", "name"), [
    ("The man in the blue shirt", "blue shirt"), ("It is at", ""),
    ("From left to right: ball", "ball"),
    ("to the left of dogs", "dogs"), ("a cup of tea", "cup of tea"), ("Dog", "Dog"), ("Yes,", ""),
    ("There is no other one", ""), ("a very long name of a thing that is not one at all", ""),
])  # fmt: skip
def test_names_end_where_a_box_begins(text, name):
    before, found = split_name(text)
    assert found == name and (before + " " + found).split() == text.split()


def test_agrees_with_groundinggpts_postprocessing(codec, shared):
    """Theirs rounds to whole pixels of the square and to three decimals on the way (spec 2)."""
    rows = json.loads((shared / "golden/ferret/tables/groundinggpt_postprocess.json").read_text())
    compared = 0
    for row in rows:
        width, height = row["image_size_wh"]
        theirs = re.findall(r"\[[\d.]+, [\d.]+, [\d.]+, [\d.]+\]", row["postprocessed"])
        mine = boxes(read(codec, row["output"], width, height))
        if len(mine) != len(theirs):
            # a box without decimals, or without spaces, is one to one of the two alone
            assert row["output"] in ("[1, 2, 3, 4]", "[0.5,0.5,0.6,0.6]")
            continue
        for text, box in zip(theirs, mine, strict=True):
            shares = [float(v) for v in text.strip("[]").split(",")]
            want = np.array(shares) * np.tile([width, height], 2)
            np.testing.assert_allclose(box, want, atol=0.5 + 0.0005 * max(width, height) + 1e-6)
            compared += 1
    assert compared >= 20
