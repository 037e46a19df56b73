"""The recipe tiny_grounding_gpt and what all recipes share: with an endpoint that answers at once,
and in template language."""

import json
import re
import threading
from collections import Counter

import pytest

from mg_jax.data.synthesis import prompts
from mg_jax.data.synthesis.case import Case, Tools
from mg_jax.data.synthesis.filters import Limits
from mg_jax.data.synthesis.journal import Journal
from mg_jax.data.synthesis.recipes import KINDS, RECIPES
from mg_jax.data.synthesis.work import Item, annotated
from mg_jax.example import Expression, Region, Turn
from mg_jax.text import markup
from tests.data.synthesis.cases import PLACES, Model, check, detector, dropped, picture, tasks_of
from tests.data.synthesis.chat_server import oracle


def test_multi_scale_data_from_annotations(made):
    out, case = made("tiny_grounding_gpt", picture())
    check(out, case.example)
    assert set(tasks_of(out)) == set(KINDS)
    for e in out.conversations:
        (turn, *_) = e.turns
        task = e.meta["task"]
        if task == "object_match":
            assert "<object:0>" in turn.user and turn.assistant == "<r:0>"
        if task == "place_choice":
            letter = ord(turn.assistant) - ord("A")
            options = [s.regions[0] for s in markup.parse(turn.user) if s.kind == "object"]
            (place,) = [s.regions[0] for s in markup.parse(turn.user) if s.kind == "region"]
            assert e.regions[options[letter]].box == e.regions[place].box and len(options) >= 2
    assert out.annotated is not None and not out.annotated.turns
    assert [r.label for r in out.annotated.regions] == list(PLACES)
    again, _ = made("tiny_grounding_gpt", picture())  # the seed and the key decide
    assert [e.turns for e in again.conversations] == [e.turns for e in out.conversations]
    other, _ = made("tiny_grounding_gpt", picture(), seed=1)
    assert [e.turns for e in other.conversations] != [e.turns for e in out.conversations]


def test_multi_scale_data_by_endpoint_and_detector(made):
    model = Model()
    out, case = made(
        "tiny_grounding_gpt", picture(objects=()), endpoint=model,
        detector=detector({"dog": [0.9, 0.8], "sofa": [0.5]}),
    )  # fmt: skip
    check(out, case.example)
    assert set(tasks_of(out)) == set(KINDS)
    assert case.drops.entries[0] == ("not found", "unicorn")
    assert [r.label for r in out.annotated.objects] == ["dog", "sofa"]  # found twice, is one
    assert out.annotated.relations == ((0, "lying on", 1),)
    sees = [isinstance(m[-1]["content"], list) for m, _ in model.asked]
    assert sees == [True, True, False, False, False, True]  # questions are made of text alone
    by_task = {e.meta["task"]: e for e in out.conversations}
    relation = [e for e in out.conversations if e.meta["task"] == "object_relation"]
    assert relation[0].turns == (
        Turn("What is <object:0> doing with <object:1>?",
             "<p>The dog</p><r:0> lies on <p>it</p><r:1>."),
    )  # fmt: skip
    assert "A. <object:0>\nB. <object:1>" in relation[1].turns[0].user
    assert relation[1].turns[0].assistant == "B"
    said = by_task["grounded_description"].turns[0].assistant
    assert said == "There is <p>a dog</p><r:0> and <p>a sofa</p><r:1>."
    choice = by_task["name_choice"].turns[0]
    assert choice.assistant in "AB" and choice.user.count("<object:") == 2


def test_names_of_annotations_are_looked_for_without_an_endpoint(made):
    out, case = made("tiny_grounding_gpt", picture(), detector=detector({"dog": [0.9]}))
    assert [r.score for r in out.annotated.objects] == [pytest.approx(0.9)]
    assert [what for name, what in case.drops.entries if name == "not found"] == ["ball", "sofa"]


def test_tags_are_looked_for_in_every_picture(made):
    out, _ = made(
        "tiny_grounding_gpt", picture(objects=()), detector=detector({"dog": [0.9], "sofa": [0.4]}),
        tags=("dog", "sofa"),
    )  # fmt: skip
    assert [r.label for r in out.annotated.objects] == ["dog", "sofa"]


@pytest.mark.parametrize(
    "limits, filter_name, gone",
    [
        (Limits(max_area=0.2), "too large", {"sofa"}),
        (Limits(min_area=0.05), "too small", {"ball"}),
    ],
)
def test_object_images_keep_to_the_limits(made, limits, filter_name, gone):
    for model in (None, Model()):
        out, case = made("tiny_grounding_gpt", picture(), limits=limits, endpoint=model)
        assert filter_name in dropped(case)
        for e in out.conversations:
            shown = {s.regions[0] for t in e.turns for text in (t.user, t.assistant)
                     for s in markup.parse(text) if s.kind == "object"}  # fmt: skip
            assert not gone & {e.regions[k].label for k in shown}


@pytest.mark.parametrize("by_endpoint", [False, True])
def test_choices_have_two_options_where_that_is_asked_for(made, by_endpoint):
    model = Model() if by_endpoint else None
    kinds = ("place_choice", "name_choice", "object_relation")
    out, _ = made("tiny_grounding_gpt", picture(), endpoint=model, choices=2, kinds=kinds, count=4)
    asked = Counter()
    for e in out.conversations:
        letters = re.findall(r"^([A-Z])\. ", e.turns[0].user, re.M)
        assert letters in ([], ["A", "B"])
        asked[e.meta["task"]] += bool(letters)
    assert min(asked[kind] for kind in kinds) > 0
    if model:
        texts = [m[-1]["content"] for m, _ in model.asked]
        assert any("at least 2 and at most 2 texts" in text for text in texts)
    else:
        out, _ = made("tiny_grounding_gpt", picture(), kinds=("place_choice",))
        assert all("\nC. <object" in e.turns[0].user for e in out.conversations)


def test_lines_show_no_more_than_fits(made):
    """An entry of a relation has a choice's options and one more; a dialogue has four."""
    spots = [Region.from_box((k / 8, 0.1, k / 8 + 0.1, 0.4), f"thing {k}") for k in range(8)]
    choice = {"question": "Which is like [1]?", "options": ["[2]", "[3]"], "answer": "[2]"}
    many = {"question": "Are [1][2][3][4][5][6] alike?", "answer": "No."}
    turns = [{"question": f"What is [{k % 8 + 1}], and is it new or old, at {k}?",
              "answer": "<p>A thing</p>[1]."} for k in range(20)]  # fmt: skip

    def answer(messages):
        return json.dumps({"questions": [many, choice], "conversation": turns, "relations": []})

    out, case = made(
        "tiny_grounding_gpt", picture(objects=tuple(spots)), endpoint=Model(answer),
        kinds=("object_relation", "grounding_dialogue"), choices=4,
    )  # fmt: skip
    relation, talk = out.conversations
    assert relation.turns[0].user.count("<object:") == 3
    assert [name for name, _ in case.drops.entries] == ["malformed"]
    assert "shows more than 5 things" in case.drops.entries[0][1]
    asked = "".join(t.user for t in talk.turns)
    assert asked.count("<object:") == 4 and asked.count("<r:") == 16


def test_every_dog_is_asked_for_where_they_are_all_known(made):
    """Rounds that need to know that a thing is the only one, or that these are all."""
    rounds = set()
    for seed in range(12):
        out, _ = made("tiny_grounding_gpt", picture(), kinds=("grounding_dialogue",), seed=seed)
        for e in out.conversations:
            rounds |= {s.text for t in e.turns for s in markup.parse(t.user) if s.kind == "phrase"}
        assert "not_exhaustive" not in out.annotated.meta
    assert rounds == set(PLACES)
    texts = "<p>A dog</p><r:0>, <p>a sofa</p><r:1> and <p>a ball</p><r:2>."
    boxes = tuple(Region.from_box(xyxy) for xyxy in PLACES.values())
    out, _ = made("tiny_grounding_gpt", picture(objects=(), regions=boxes, captions=(texts,)))
    assert out.annotated.meta["not_exhaustive"] == sorted(PLACES)  # a caption does not name all
    (talk,) = (e for e in out.conversations if e.meta["task"] == "grounding_dialogue")
    assert not any("<p>" in t.user for t in talk.turns)


def test_options_that_overlap_are_left_out(made):
    regions = tuple(
        Region.from_box((0.1 + d, 0.1, 0.5 + d, 0.5), name) for d, name in ((0, "a"), (0.02, "b"))
    )
    for model in (None, Model()):
        out, case = made(
            "tiny_grounding_gpt", picture(objects=regions), endpoint=model,
            kinds=("place_choice", "name_choice", "object_relation"),
        )  # fmt: skip
        assert {"overlapping options", "too few options"} <= dropped(case)
        assert not [e for e in out.conversations if "\nA. <object" in e.turns[0].user]


def test_low_scores_and_many_boxes(made):
    crowd = tuple(Region.from_box((k / 5, 0.1, k / 5 + 0.15, 0.4), "cup") for k in range(4))
    weak = Region.from_box((0.1, 0.5, 0.5, 0.9), "cat", score=0.2)
    out, case = made("tiny_grounding_gpt", picture(objects=(*crowd, weak)))
    assert {"too many boxes", "low confidence"} <= dropped(case)
    assert not out.conversations and out.annotated is None


def test_a_picture_without_names(made):
    nameless = (Region.from_box((0.1, 0.1, 0.5, 0.5)),)
    for recipe in ("tiny_grounding_gpt", "groma"):
        out, case = made(recipe, picture(objects=nameless))
        assert "no names" in dropped(case) and not out.conversations


ENTRIES = [
    ("ask_object", {"question": "Which [1] is it?", "answer": 1}),
    ("ask_object", {"question": "Which is the dog?", "answer": 1}),
    ("ask_object", {"question": "What barks?", "answer": 9}),
    ("ask_object", {"question": "", "answer": 1}),
    ("ask_object", "text"),
    ("ask_relation", {"question": "What is it?", "answer": "x"}),
    ("ask_relation", {"question": "What is [9]?", "answer": "x"}),
    ("ask_relation", {"question": "[1]?", "options": ["a"], "answer": "a"}),
    ("ask_relation", {"question": "[1]?", "options": ["a", "b"], "answer": "c"}),
    ("ask_relation", {"question": "[1]?", "options": "ab", "answer": "a"}),
    ("ask_relation", {"question": "[1]?", "options": [*"abcde"], "answer": "a"}),
    ("ask_relation", {"question": "[1]?", "answer": "see object 2"}),
]


@pytest.mark.parametrize("step, entry", ENTRIES)
def test_single_malformed_questions_are_left_out(made, step, entry):
    good = {"question": "What can fetch things?" if step == "ask_object" else "Is [1] asleep?",
            "answer": 1 if step == "ask_object" else "Yes."}  # fmt: skip
    model = Model(lambda m: json.dumps({"questions": [entry, good], "relations": []}))
    kind = "name_choice" if step == "ask_object" else "object_relation"
    out, case = made("tiny_grounding_gpt", picture(), endpoint=model, kinds=(kind,))
    assert [name for name, _ in case.drops.entries] == ["malformed"]
    assert len(out.conversations) == 1 and len(model.asked) == 2


def test_relations_that_make_no_sense_are_left_out(made):
    long = "one two three four five six seven eight nine"
    rows = [[1, "on", 2], [1, "on", 1], [1, "", 2], [1, "on"], [1, "on", 7], "x", [1, 2, 3],
            [1, "on", 2], ["2", "under", "[1]"], [1, long, 2]]  # fmt: skip
    model = Model(lambda m: json.dumps({"relations": rows}))
    out, case = made("tiny_grounding_gpt", picture(), endpoint=model, kinds=("object_match",))
    assert out.annotated.relations == ((0, "on", 1), (1, "under", 0))
    assert [name for name, _ in case.drops.entries] == ["malformed"] * 7


def test_an_unusable_answer_is_asked_for_again_with_the_reason(made):
    bad = iter(["nonsense", '{"conversation": 3}'])
    model = Model(lambda messages: next(bad, None) or oracle(messages))
    out, case = made("groma", picture(), endpoint=model)
    assert len(out.conversations) == 1 and not case.drops.entries and len(model.asked) == 3
    again = [m[-1]["content"] for m, _ in model.asked[1:]]
    assert "it holds no JSON object" in again[0] and 'no list "conversation"' in again[1]
    assert model.asked[1][0][-2] == {"role": "assistant", "content": "nonsense"}


def test_an_answer_that_stays_unusable_is_counted(made):
    model = Model(lambda m: "nonsense")
    out, case = made("groma", picture(), endpoint=model, tries=3)
    assert len(model.asked) == 3 and not out.conversations
    assert case.drops.entries == [("unreadable", "groma: it holds no JSON object")]
    roles = [m["role"] for m in model.asked[-1][0]]
    assert roles[-4:] == ["assistant", "user", "assistant", "user"]


def test_cut_and_withheld_answers(made):
    model = Model(finish="length")
    _, case = made("groma", picture(), endpoint=model, tries=2)
    assert [room for _, room in model.asked] == [1.0, 2.0] and "unreadable" in dropped(case)
    model = Model(finish="content_filter")
    _, case = made("groma", picture(), endpoint=model, tries=2)
    assert len(model.asked) == 1 and case.drops.entries == [("refused", "groma")]


def test_what_was_answered_is_not_asked_again(made, tmp_path):
    model, shared = Model(), Journal(tmp_path / "shared", {})
    tools = Tools(shared, prompts.read_prompts(), endpoint=model, kinds=KINDS)
    first = RECIPES["tiny_grounding_gpt"](Case(Item("p", picture), tools))
    count = len(model.asked)
    assert RECIPES["tiny_grounding_gpt"](Case(Item("p", picture), tools)).counts == first.counts
    assert len(model.asked) == count
    RECIPES["tiny_grounding_gpt"](Case(Item("q", picture), tools))  # another picture
    assert len(model.asked) == 2 * count
    shared.close()


def test_annotated_names():
    regions = tuple(Region.from_box((k / 4, 0, k / 4 + 0.2, 0.5)) for k in range(3))
    example = picture(
        objects=(Region.from_box((0, 0.5, 0.2, 1), "Stop_sign"),), regions=regions,
        expressions=(Expression("The old man", (0,)), Expression("people", (0, 1))),
        captions=("<p>A man</p><r:0> and <p>a kite</p><r:1>.",),
    )  # fmt: skip
    assert [t.name for t in annotated(example)] == ["stop sign", "old man", "kite"]


def test_the_detector_works_on_one_picture_at_a_time(tmp_path):
    busy, worst = [], []

    def slow(images, names):
        busy.append(1)
        worst.append(len(busy))
        threading.Event().wait(0.01)
        busy.pop()
        return [{"boxes": [], "scores": [], "labels": []}]

    with Journal(tmp_path / "j", {}) as journal:
        tools = Tools(journal, prompts.read_prompts(), detector=slow, tags=("dog",), kinds=KINDS)

        def work(key):
            RECIPES["tiny_grounding_gpt"](Case(Item(key, picture), tools))

        threads = [threading.Thread(target=work, args=(str(k),)) for k in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert worst == [1] * 6
