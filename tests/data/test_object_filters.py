"""What the tasks on object images leave out, and what they refuse."""

import re
from dataclasses import replace

import numpy as np
import pytest

from mg_jax.data.scenes import scene_example
from mg_jax.data.tasks import OBJECT_TASKS, Filters, ObjectTasks, converse, parse_tasks
from mg_jax.data.tasks.objects import NAMED, lettered
from mg_jax.errors import BadRecord, UserError
from mg_jax.example import Example, Expression, Region
from mg_jax.text import markup
from tests.data.object_talks import LETTERS, WORDING, made, options, shown
from tests.data.photos import box, photo


def scored(x0, y0, x1, y1, label=None, score=None):
    return Region.from_box((x0, y0, x1, y1), label, score)


CROWDED = Example(
    "x.jpg", 100, 100, id="crowded",
    objects=(
        scored(0, 0, 0.05, 0.05, "dot"), scored(0, 0, 1, 0.9, "wall"),
        scored(0.1, 0.1, 0.3, 0.3, "cat", 0.2), scored(0.1, 0.6, 0.3, 0.8, "dog", 0.36),
        *(scored(0.2 * k, 0.4, 0.2 * k + 0.15, 0.55, "cup") for k in range(4)),
        scored(0.62, 0.4, 0.77, 0.55, "lid"),
    ),
)  # fmt: skip


def test_thresholds_decide_and_drops_are_counted():
    tasks = ObjectTasks()
    found = {e.regions[0].label for e in made("object_match", CROWDED, 60, tasks.tasks)}
    assert found == {"dog", "cup", "lid"}
    assert tasks.drops == {"too small": 60, "too large": 60, "low confidence": 60}
    mild = ObjectTasks(Filters(min_area=0.001, max_area=1.0, min_score=0.1))
    found = {e.regions[0].label for e in made("object_match", CROWDED, 90, mild.tasks)}
    assert found == {"dot", "wall", "cat", "dog", "cup", "lid"} and not mild.drops


def test_names_with_many_boxes_are_not_asked_for():
    tasks = ObjectTasks()
    said = {e.turns[0].user.split("\n")[0] for e in made("name_choice", CROWDED, 40, tasks.tasks)}
    assert said and not any("cup" in text for text in said)
    assert tasks.drops["too many boxes"] == 4 * 40
    many = ObjectTasks(Filters(max_boxes=4))
    text = made("grounded_description", CROWDED, 1, many.tasks)[0].turns[0].assistant
    assert "cup" in text and "cat" not in text
    assert "cup" not in made("grounded_description", CROWDED, 1)[0].turns[0].assistant


def test_options_that_overlap_are_not_offered_together():
    tasks = ObjectTasks()
    for e in made("place_choice", CROWDED, 60, tasks.tasks):
        boxes = {r.box for r in shown(e, e.turns[0].user)}
        assert not {(0.62, 0.4, 0.77, 0.55), CROWDED.objects[7].box} <= boxes
    assert tasks.drops["overlapping options"] > 5


def test_a_lone_object_makes_no_choice():
    alone = Example("x.jpg", 100, 100, objects=(scored(0.1, 0.1, 0.4, 0.4, "dog"),), id="alone")
    tasks = ObjectTasks()
    assert not made("place_choice", alone, 3, tasks.tasks)
    assert tasks.drops["too few options"] == 3
    for count in (0, 1, 27):
        with pytest.raises(BadRecord, match=f"e9: {count} option.*: a choice needs 2 to 26"):
            lettered(["x"] * count, "e9")
    assert lettered(["x", "y"]) == "A. x\nB. y"


@pytest.mark.parametrize("task", ["object_relation", "grounding_dialogue"])
def test_nothing_is_said_of_what_is_not_sure(task):
    """Neither by side nor by annotated relations, which are counted anew."""
    places = [(x, 0.3, x + 0.2, 0.5) for x in (0, 0.3, 0.6)]
    low, *sure = (scored(*xyxy, name, score) for xyxy, name, score in
                  zip(places, ("cat", "dog", "cup"), (0.2, 0.9, None), strict=True))  # fmt: skip
    links = ((0, "under", 1), (1, "beside", 2), (2, "behind", 1), (1, "on", 0))
    for objects, relations in (((low, *sure), ()), ((), links)):
        e = Example("x.jpg", 100, 100, id="low", objects=objects, regions=(low, *sure),
                    relations=relations)  # fmt: skip
        tasks = ObjectTasks()
        found = made(task, e, 20, tasks.tasks)
        assert len(found) == 20 and tasks.drops["low confidence"] == 20
        text = "".join(t.user + t.assistant for e in found for t in e.turns)
        assert "cat" not in text and not re.search("under|\\bon\\b", text)
        assert {r.label for e in found for r in e.regions} == {"dog", "cup"}
        assert not relations or "beside" in text
        trusting = ObjectTasks(Filters(min_score=0.1)).tasks
        assert any(low in f.regions for f in made(task, e, 20, trusting))


def test_a_choice_has_as_many_options_as_asked_for():
    places = [(x / 4, y / 4) for x in range(4) for y in range(4)]
    things = tuple(scored(x, y, x + 0.2, y + 0.2, f"thing {n}") for n, (x, y) in enumerate(places))
    links = tuple((n, f"relation {n}", n + 1) for n in range(15))
    for relations in ((), links):
        e = Example("x.jpg", 100, 100, id="many", objects=things, regions=things,
                    relations=relations)  # fmt: skip
        for count in (2, 6):
            tasks = ObjectTasks(options=count).tasks
            for task in ("place_choice", "name_choice", "object_relation"):
                asked = [f.meta["turns"][0].get("options", 0) for f in made(task, e, 20, tasks)]
                if relations or task != "object_relation":
                    assert set(asked) == {count}
                else:  # there are four sides, and not so many things on each
                    assert 2 <= max(asked) <= count
    for count in (1, 27):
        with pytest.raises(UserError, match=f"options={count}: a choice has 2 to 26"):
            ObjectTasks(options=count)


@pytest.mark.parametrize(("change", "message"), [
    ({"min_area": 0.7}, "min_area=0.7 must be below max_area=0.6"),
    ({"option_iou": 1.5}, "option_iou=1.5 is no share"),
    ({"max_boxes": 0}, "max_boxes=0: give at least 1"),
])  # fmt: skip
def test_wrong_thresholds_are_named(change, message):
    with pytest.raises(UserError, match=message):
        Filters(**change)


# -- mixtures and scenes -----------------------------------------------------------------------


def test_object_tasks_have_to_be_named():
    assert not set(OBJECT_TASKS) & set(parse_tasks("auto"))
    weights = parse_tasks("object_match*2+place_choice+rec")
    assert weights == {"object_match": 2.0, "place_choice": 1.0, "rec": 1.0}
    e = converse(photo(), np.random.default_rng(0), weights, WORDING, 5)
    assert len(e.turns) == 5 and {r["task"] for r in e.meta["turns"]} & set(OBJECT_TASKS)


def test_boxes_without_names_are_one_clear_line():
    nameless = Example("x.jpg", 9, 9, objects=(box(0, 0, 0.5, 0.5), box(0.5, 0, 1, 0.5)),
                       id="e7", source="mine")  # fmt: skip
    rng = np.random.default_rng(0)
    for task in NAMED:
        with pytest.raises(
            BadRecord, match=f"'e7' of mine: none of its 2 boxes has a name.*{task}"
        ):
            converse(nameless, rng, {task: 1.0}, WORDING)
    assert converse(nameless, rng, {"place_choice": 1.0}, WORDING)  # needs none
    assert converse(nameless, rng, {"place_choice": 1.0, "rec": 1.0}, WORDING)
    assert converse(photo(objects=(), regions=(), expressions=(), captions=(), relations=()),
                    rng, {"name_choice": 1.0}, WORDING) is None  # fmt: skip


@pytest.mark.parametrize("tasks", [
    "rec*4+all_instances+region_caption*4",
    "rec+name_choice", "region_caption", "presence", "dialogue", "object_relation", "relation",
    "grounded_caption*3+vqa*3+choice*3+caption+rec+presence+grounding_dialogue*4",
    "auto",
])  # fmt: skip
def test_mixtures_that_need_names_say_so(tasks):
    nameless = Example("x.jpg", 9, 9, objects=(box(0, 0, 0.5, 0.5), box(0.5, 0, 1, 0.5)),
                       absent=("dog",), id="e7", source="mine")  # fmt: skip
    weights, rng = parse_tasks(tasks), np.random.default_rng(0)
    with pytest.raises(BadRecord, match="'e7' of mine: none of its 2 boxes has a name, which") as e:
        converse(nameless, rng, weights, WORDING)
    without = {"grounded_caption", "caption", "vqa", "choice", "region_description"}
    assert set(re.search("which (.*) must", str(e.value))[1].split(", ")) == set(weights) - without
    assert converse(replace(nameless, captions=("Two boxes.",)), rng, {"vqa": 1.0}, WORDING) is None
    told = replace(nameless, objects=(), regions=nameless.objects, relations=((0, "above", 1),))
    linked = {"relation": 1.0, "object_relation": 1.0}
    assert converse(told, rng, linked, WORDING)  # as annotated: no name is needed


# as Flickr30k Entities has it: boxes without labels, and captions that name them
FLICKR = Example(
    "x.jpg", 100, 100, id="flickr", source="mine",
    regions=(box(0, 0, 0.3, 0.4), box(0.6, 0, 0.9, 0.3), box(0, 0.6, 0.3, 0.9),
             box(0.6, 0.6, 0.9, 0.9)),
    captions=("<p>Two toys</p><r:1><r:3> lie beside <p>the man</p><r:0>.",
              "<p>A runner</p><r:0> throws <p>a red ball</p><r:1> to <p>an old dog</p><r:2>."),
)  # fmt: skip


@pytest.mark.parametrize("task", OBJECT_TASKS)
def test_names_are_in_captions_alone(task):
    names = dict(zip((r.box for r in FLICKR.regions), ("man", "red ball", "old dog"), strict=False))
    found = made(task, FLICKR, 20)
    assert len(found) == 20
    for e in found:
        for s in (s for t in e.turns for s in markup.parse(t.assistant) if s.kind == "phrase"):
            assert s.text == names[e.regions[s.regions[0]].box]
        if task == "name_choice":
            question, listed = options(e)
            right = shown(e, listed[LETTERS.index(e.turns[0].assistant)])[0]
            assert names[right.box] in question
            assert all(shown(e, text)[0].box in names for text in listed)
    if task == "grounded_description":
        assert "a <p>man</p>" in found[0].turns[0].assistant
        assert "toys" not in found[0].turns[0].assistant  # neither of them is two toys


def test_regions_that_nothing_names_are_one_clear_line():
    unnamed = replace(FLICKR, captions=("<p>Two toys</p><r:1><r:3>.",))
    for task in NAMED:
        with pytest.raises(BadRecord, match="'flickr' of mine: none of its 4 boxes has a name"):
            converse(unnamed, np.random.default_rng(0), {task: 1.0}, WORDING)


@pytest.mark.parametrize("task", OBJECT_TASKS)
def test_scenes_ask_the_same(task):
    asked = 0
    for i in range(12):
        e = scene_example(72, i, tasks={task: 1.0}, width=96, height=96, min_objects=5)
        again = scene_example(72, i, tasks={task: 1.0}, width=96, height=96, min_objects=5)
        assert e.turns == again.turns
        for turn, record in zip(e.turns, e.meta["turns"], strict=True):
            assert record["task"] == task
            assert record["targets"] == list(dict.fromkeys(markup.regions_of(turn.assistant)))
            assert all(k < len(e.regions) for k in markup.regions_of(turn.user))
            boxes = {r.box for r in e.objects}
            assert {r.box for r in shown(e, turn.user)} <= boxes
            if record.get("options") and task != "object_relation":
                listed = re.findall(r"^[A-D]\. ", turn.user, re.M)
                assert len(listed) == record["options"] and turn.assistant in LETTERS
            asked += 1
    assert asked >= 12


def test_expression_of_a_region_that_is_no_object():
    """Visual Genome's regions have texts of their own."""
    regions = (box(0, 0, 0.4, 0.4), box(0.5, 0.5, 0.9, 0.9))
    said = (Expression("a grey roof", (0,)), Expression("grass", (1,)))
    e = Example("x.jpg", 100, 100, id="vg", regions=regions, expressions=said)
    for found in made("name_choice", e, 6):
        question, listed = options(found)
        right = shown(found, listed[LETTERS.index(found.turns[0].assistant)])[0]
        assert (right.box == (0.0, 0.0, 0.4, 0.4)) == ("roof" in question)
