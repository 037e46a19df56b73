"""Neutral markup: parse, format, strip, absence."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mg_jax.errors import UserError
from mg_jax.text import instructions, markup, templates
from mg_jax.text.markup import ABSENT, Segment, parse, says_absent

PIECES = st.sampled_from(
    ["<p>", "</p>", "a dog", " ", "<r:0>", "<r:12>", "<r:x>", "<object:3>", "<image>", "<", "\n"]
)


def test_every_kind():
    text = "See <image> <p>a dog</p><r:0> <r:3>, like <r:2> and <object:4>; <p>no place</p>."
    assert parse(text) == [
        Segment("text", "See "),
        Segment("image"),
        Segment("text", " "),
        Segment("phrase", "a dog", (0, 3)),
        Segment("text", ", like "),
        Segment("region", regions=(2,)),
        Segment("text", " and "),
        Segment("object", regions=(4,)),
        Segment("text", "; "),
        Segment("phrase", "no place"),
        Segment("text", "."),
    ]
    assert markup.strip(text) == "See a dog, like and; no place."
    assert markup.regions_of(text) == [0, 3, 2, 4]
    assert markup.renumber("<p>x</p><r:0><object:1>", 5) == "<p>x</p><r:5><object:6>"


@given(st.lists(PIECES, max_size=12).map("".join))
def test_format_and_parse(text):
    segments = parse(text)
    assert parse(markup.format(segments)) == segments
    assert "<r:0>" not in markup.strip(text)


@given(st.text(max_size=30))
def test_plain_text_is_itself(text):
    if "<" not in text:
        assert parse(text) == ([Segment("text", text)] if text else [])


def test_index_beyond_the_regions():
    markup.check("<r:1>", 2, "example 'a'")
    with pytest.raises(UserError, match=r"example 'a'.*region 2.*2 regions"):
        markup.check("<p>x</p><r:2>", 2, "example 'a'")


@pytest.mark.parametrize("thing", ["red ball", "dogs", "small blue cube with stripes"])
@pytest.mark.parametrize("template", ABSENT)
def test_absent(template, thing):
    assert says_absent(template.format(thing))
    assert says_absent(template.format(thing).rstrip("."))
    assert says_absent(template.format(f"<p>{thing}</p>"))


@pytest.mark.parametrize(
    "text",
    [
        "No, there is no dog in the picture.",
        "Sorry. I can't see any dog here.",
        "No such object is visible.",
        "The image does not contain a dog",
        "Dogs are not present.",
    ],
)
def test_absent_paraphrases(text):
    assert says_absent(text)


@pytest.mark.parametrize(
    "text", ["", "A red ball.", "No.", "There is a dog, no cat.", "The sky shows no.", "Yes, one."]
)
def test_not_absent(text):
    assert not says_absent(text)


def test_instructions_and_templates():
    assert len(instructions.INSTRUCTIONS["rec"]) == 6
    assert len(instructions.INSTRUCTIONS["all_instances"]) == 6
    assert len(instructions.INSTRUCTIONS["grounded_caption"]) == 7
    assert len(instructions.INSTRUCTIONS["region_caption"]) == 4
    assert len(instructions.INSTRUCTIONS["region_description"]) == 5
    assert instructions.fill("rec", 0, phrase="dog") == "Locate <p>dog</p> in the image."
    assert instructions.fill("region_caption", 0, region=2) == "What is <r:2>?"
    for task, texts in instructions.INSTRUCTIONS.items():
        assert all((text.count("{}") == 1) != (task == "grounded_caption") for text in texts)
    with pytest.raises(UserError, match="choose default, llava"):
        templates.get("vicuna")
