"""The recipes groma and ferret."""

import json

import pytest

from mg_jax.example import Expression, Question, Region, Turn
from mg_jax.text import markup
from mg_jax.text.instructions.ferret import COORDINATES
from tests.data.synthesis.cases import PLACES, Model, check, detector, picture


def groma_picture():
    regions = tuple(Region.from_box(box, name) for name, box in PLACES.items())
    return picture(
        objects=(), regions=(*regions, Region.from_box((0.06, 0.31, 0.35, 0.7), "puppy")),
        expressions=(Expression("a brown dog asleep", (0,)),),
        captions=("<p>A dog</p><r:0> naps.",), questions=(Question("What sleeps?", ("dog",)),),
    )  # fmt: skip


def test_groma_conversations(made):
    model = Model()
    out, case = made("groma", groma_picture(), endpoint=model)
    check(out, case.example)
    (talk,) = out.conversations
    # the puppy is the dog again, and the smaller one by rounding
    assert talk.turns == (
        Turn("What is <r:0>?", "<p>A dog</p><r:0>."), Turn("Is it large?", "Quite."),
    )  # fmt: skip
    assert case.drops.entries == [("overlapping regions", "puppy")]
    (messages, _) = model.asked[0]
    assert [m["role"] for m in messages] == ["system", *["user", "assistant"] * 2, "user"]
    image, text = messages[-1]["content"]
    assert image["type"] == "image_url"
    for told in (
        "[1] dog: a brown dog asleep",
        "[3] ball",
        "- A dog naps.",
        "- What sleeps? dog",
        "Write 4 rounds",
    ):
        assert told in text["text"]
    assert "[4]" not in text["text"]


def test_groma_tells_what_is_known_of_a_region(made):
    model = Model()
    regions = tuple(Region.from_box(box, name) for name, box in PLACES.items())
    example = picture(objects=(), regions=regions, expressions=(Expression("old dog", (0,)),))
    made("groma", example, endpoint=model)
    assert "[1] dog: old dog\n[2] sofa\n" in model.asked[0][0][-1]["content"][1]["text"]


def test_groma_by_templates(made):
    out, case = made("groma", picture())
    check(out, case.example)
    (talk,) = out.conversations
    assert len(talk.turns) >= 2 and not any("[grounding]" in t.user for t in talk.turns)


def test_groma_asks_for_all_of_a_name_that_it_knows_all_of(made):
    more = [Region.from_box((k / 4, 0.05, k / 4 + 0.15, 0.2), "dog") for k in range(2)]
    twin = Region.from_box((0.01, 0.05, 0.16, 0.2), "dog")  # the first once more
    for objects, whole in ((more, True), ([*more, twin], False)):
        found = set()
        for seed in range(12):
            example = picture(objects=(*picture().objects, *objects))
            out, _ = made("groma", example, seed=seed)
            assert out.annotated.meta.get("not_exhaustive", []) == ([] if whole else ["dog"])
            found |= {
                (s.text, len(markup.regions_of(t.assistant)))
                for e in out.conversations
                for t in e.turns
                for s in markup.parse(t.user)
                if s.kind == "phrase"
            }
        assert (("dog", 3) in found) == whole and ("sofa", 1) in found
        assert {name for name, _ in found} <= {*PLACES}


def test_groma_needs_regions_and_grounding(made):
    two = tuple(Region.from_box(box, name) for name, box in list(PLACES.items())[:2])
    out, case = made("groma", picture(objects=two), endpoint=Model())
    assert case.drops.entries == [("too few regions", "2 left")] and not out.conversations
    talk = {"conversation": [{"question": "What is [1]?", "answer": "A dog."}]}
    out, case = made("groma", picture(), endpoint=Model(lambda m: json.dumps(talk)))
    assert case.drops.entries == [("ungrounded", "groma")] and not out.conversations
    talk = {"conversation": [
        {"question": "What is here?", "answer": "<p>A dog</p>[1]."},
        {"question": "What is marked 2?", "answer": "<p>A sofa</p>[2]."},
        {"question": "And?", "answer": "<p>A sofa[2]."}, {"question": "No answer"},
    ]}  # fmt: skip
    out, case = made("groma", picture(), endpoint=Model(lambda m: json.dumps(talk)))
    assert [name for name, _ in case.drops.entries] == ["malformed"] * 3
    assert [t.assistant for t in out.conversations[0].turns] == ["<p>A dog</p><r:0>."]


VQA = (Question("Is the dog on the sofa?", ("no",)), Question("What lies there?", ("two balls",)),
       Question("Why?", ("because",)))  # fmt: skip


def test_ferret_adds_annotated_boxes(made):
    out, case = made("ferret", picture(questions=VQA))
    check(out, case.example)
    (talk,) = out.conversations
    assert talk.turns == (
        Turn("Is the <p>dog</p><r:0> on the <p>sofa</p><r:1>?", "no"),
        Turn(f"What lies there? {COORDINATES}", "two <p>balls</p><r:2>"),
        Turn("Why?", "because"),
    )
    assert [r.label for r in talk.regions] == ["dog", "sofa", "ball"]
    assert out.counts["turns with boxes"] == 2


def test_ferret_by_endpoint_and_detector(made):
    model = Model()
    out, case = made(
        "ferret", picture(objects=(), questions=VQA), endpoint=model,
        detector=detector({"dog": [0.9], "sofa": [0.2]}),
    )  # fmt: skip
    assert out.conversations[0].turns[0].user == "Is the <p>dog</p><r:0> on the sofa?"
    assert "- two balls" in model.asked[0][0][-1]["content"]
    assert set(case.drops.entries) == {
        ("low confidence", "sofa 0.20"), ("not found", "sofa"), ("not found", "ball"),
    }  # fmt: skip


def test_ferret_guesses_nouns_without_an_endpoint(made):
    guessed = []

    def nouns(text):
        guessed.append(text)
        return [name for name in PLACES if name in text]

    out, _ = made(
        "ferret",
        picture(objects=(), questions=VQA),
        detector=detector({"ball": [0.9]}),
        nouns=nouns,
    )
    assert out.conversations[0].turns[1].assistant == "two <p>balls</p><r:0>"
    assert "Is the dog on the sofa?" in guessed


def test_ferret_keeps_marks_that_are_there(made):
    regions = (Region.from_box((0.5, 0.5, 0.6, 0.6), "spot"),)
    turns = (Turn("What is <r:0>?", "<p>A ball</p><r:0> near the ball."),)
    out, case = made("ferret", picture(regions=regions, turns=turns))
    check(out, case.example)
    said = out.conversations[0].turns[0]
    assert said.user == f"What is <r:0>? {COORDINATES}"
    assert said.assistant == "<p>A ball</p><r:0> near the <p>ball</p><r:1>."


def reader(*words):
    return lambda image: [
        Region.from_box((k / 8, 0.1, k / 8 + 0.1, 0.2), word, score=score)
        for k, (word, score) in enumerate(words)
    ]


def test_ferret_adds_text_boxes(made):
    ocr = reader(
        ("MAIN", 0.9), ("STREET", 0.8), ("12", 0.9), ("exit", 0.1), ("open", 0.9), ("open", 0.9)
    )
    asked = (Question("Which street?", ("Main Street",)), Question("Number?", ("12.",)),
             Question("Sign?", ("exit",)), Question("Shop?", ("open",)),
             Question("What does it say?", ('It says "main".',)))  # fmt: skip
    out, case = made("ferret", picture(objects=(), questions=asked), ocr=ocr)
    check(out, case.example)
    talk = out.conversations[0]
    assert [t.assistant for t in talk.turns] == [
        "<p>Main Street</p><r:0>", "<p>12</p><r:1>.", "exit", "open", 'It says "<p>main</p><r:2>".',
    ]  # fmt: skip
    assert talk.regions[0].box == pytest.approx((0, 0.1, 0.225, 0.2))
    assert case.drops.entries == [("low confidence", "exit 0.10")]


def test_ferret_needs_texts_and_something_to_point_at(made):
    out, case = made("ferret", picture())
    assert case.drops.entries == [("no texts", "p")] and not out.conversations
    out, case = made("ferret", picture(questions=(Question("Why?", ("because",)),)))
    assert ("ungrounded", "p") in case.drops.entries and not out.conversations
