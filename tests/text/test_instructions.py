"""The published templates, word for word, and the wording of whole systems."""

import re

import numpy as np
import pytest

from mg_jax.errors import UserError
from mg_jax.text import instructions, words
from mg_jax.text.instructions import GROUNDING, INSTRUCTIONS, common

SYSTEMS = ("groma", "mg_llava", "ferret", "tiny_grounding_gpt", "llava")
# What a text of a key may hold at `{}` and at names
PARTS = {
    "relation": {"", "other"}, "related": {"", "predicate"},
    "relation_yes_no": {"", "predicate", "other"}, "grounded_description": set(),
    "caption": set(), "detailed_caption": set(), "grounded_caption": set(),
    "dense_detection": set(),
}  # fmt: skip
FIXED = {("presence_yes", "llava"), ("presence_no", "llava"), ("presence_yes", "mg_llava"),
         ("presence_no", "mg_llava")}  # fmt: skip


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_system_words_every_task(system):
    texts = instructions.get(system).texts
    assert set(texts) == {*common.TEXTS, "vqa", "choice"}
    for key, choices in texts.items():
        parts = set() if (key, system) in FIXED else PARTS.get(key, {""})
        for text in choices:
            assert set(re.findall(r"\{(\w*)\}", text)) == parts and text.count("{}") <= 1
    with pytest.raises(UserError, match=f"choose from {', '.join(SYSTEMS)}"):
        instructions.get("clip")


def test_published_groma():
    groma = instructions.get("groma")
    assert {key: groma.texts[key] for key in INSTRUCTIONS} == INSTRUCTIONS
    for key in common.BOXED:
        assert all(text.startswith(GROUNDING) for text in groma.texts[key])
    assert "Detect and list each {} that appears in this photo." in groma.texts["all_instances"]
    assert (
        "[grounding]Give me a concise description of the image." in INSTRUCTIONS["grounded_caption"]
    )
    assert not groma.repeats_phrase


def test_published_ferret():
    ferret = instructions.get("ferret")
    for key, text in {
        "rec": "What is the location of {} in the image?",
        "all_instances": "What are the locations of {}?",
        "dense_referring": "Please classify the objects in the following locations. {}",
        "dense_referring_answer": "Here are the categories: {}",
        "dense_detection": "Please localize visible objects in the image in a raster scan order.",
        "dense_detection_answer": "The objects are: {}",
    }.items():
        assert ferret.texts[key] == (text,)
    for key in ("grounded_caption", "relation", "related", "nearest"):
        for text in ferret.texts[key]:
            assert text.endswith(" Include the coordinates for each mentioned object.")
    assert ferret.located("a dog", "<r:0>") == "<p>a dog</p><r:0>"


def test_published_format_prompts():
    for system in SYSTEMS:
        texts = instructions.get(system).texts
        assert texts["vqa"] == ("{}\nAnswer the question using a single word or phrase.",)
        assert texts["choice"] == (
            "{}\nAnswer with the option's letter from the given choices directly.",
        )
    for system in ("llava", "mg_llava"):
        texts = instructions.get(system).texts
        assert texts["rec"] == (
            "Please provide the bounding box coordinate of the region this sentence describes: {}.",
        )
        assert texts["region_caption"] == (
            "Please provide a short description for this region: {}.",
        )
        assert texts["caption"] == ("Provide a one-sentence caption for the provided image.",)
    assert instructions.get("mg_llava").texts["presence"] == (
        "Is there {} in the image?\nPlease answer the question with yes or no.",
    )
    assert instructions.get("tiny_grounding_gpt").texts["rec"][0] == "Output the coordinate of {}"


def test_drawing():
    rng = np.random.default_rng(0)
    groma = instructions.get("groma")
    drawn = {groma.draw("rec", rng, "<p>{x} of {}</p>") for _ in range(60)}
    assert drawn == {text.replace("{}", "<p>{x} of {}</p>") for text in INSTRUCTIONS["rec"]}
    text = groma.draw("relation", rng, "<r:0>", other="<r:{}>")
    assert "<r:0>" in text and "<r:{}>" in text


def test_articles_and_nouns():
    for phrase in ("dog", "unicorn", "uniform", "user", "european flag", "one-way sign", "heron"):
        assert words.a(phrase) == f"a {phrase}"
    for phrase in ("apple", "umbrella", "urn", "unlit candle", "hourglass", "honest man", "Orange"):
        assert words.a(phrase) == f"an {phrase}"
    assert words.noun(" Stop_sign\n") == "stop sign"
    for label in (None, "", " ", "</p>", "a <r:1>", "<p>x</p>", "<image>"):
        assert words.noun(label) is None
    assert words.phrase("a < b, <i>") == "a < b, <i>"
    for text in ("The man in a hat", "a man in a hat", "man in a hat"):
        assert words.without_article(text) == "man in a hat"
    assert words.without_article("bathe the dog") == "bathe the dog"
