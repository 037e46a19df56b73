"""Questions and answers about scenes are true, and negatives are really absent."""

import re
from collections import Counter

import pytest

from mg_jax.data.scenes import TASKS, describe_matches, parse_description, parse_tasks
from mg_jax.data.scenes import language as lang
from mg_jax.data.scenes.conversation import scene_example
from mg_jax.data.scenes.expressions import STYLES, absent_query, unique_expression
from mg_jax.data.scenes.language import Query
from mg_jax.data.scenes.world import make_world
from mg_jax.errors import UserError
from mg_jax.text import markup

_WORDS = {
    "shape": lang._lookup(lang.SHAPE_WORDS),
    "color": lang._COLORS,
    "size": {w: n for n, o in lang.SIZE_WORDS.items() for w in (n, *o)},
    "texture": {w: n for n, o in lang.TEXTURE_WORDS.items() for w in (n, *o)},
}


def read_query(text: str) -> Query:
    """The attributes that a noun phrase says, read independently of how it was written."""
    found = {}
    head = re.split(r"\b(?:that says|with the word|reading)\b", text)
    if len(head) > 1:
        found["word"] = head[1].strip(" ?.")
    for key, words in _WORDS.items():
        for word in sorted(words, key=len, reverse=True):
            if re.search(rf"\b{re.escape(word)}\b", head[0]):
                found[key] = words[word]
                break
    return Query(**found)


def examples(task: str, count: int, seed: int = 31, **options):
    return [scene_example(seed, i, tasks={task: 1.0}, **options) for i in range(count)]


def world_of(example):
    return example.image.world


@pytest.mark.parametrize("style", STYLES)
def test_expressions_fit_one_thing(style):
    import random

    rng, made = random.Random(0), 0
    for n in range(150):
        scene = make_world(41, n, min_objects=4)
        i = rng.randrange(len(scene.things))
        found = unique_expression(scene, i, rng, style)
        if found is None:
            continue
        made += 1
        thing = scene.things[i]
        assert found.targets == (i,)
        if style in ("attributes", "word"):
            assert read_query(found.text).find(scene) == [i], found.text
            continue
        rivals = [scene.things[k] for k in found.query.find(scene) if k != i]
        if style == "position":
            check_position(found.text, thing, rivals)
        else:
            check_relation(found, thing, rivals, scene)
    assert made >= (10 if style == "word" else 50)


def check_position(text, thing, rivals):
    axis, sign = next(
        (
            (axis, sign)
            for words, axis, sign in (
                (("leftmost", "furthest to the left"), 0, 1),
                (("rightmost", "furthest to the right"), 0, -1),
                (("topmost", "highest"), 1, 1),
                (("lowest", "nearest to the bottom"), 1, -1),
            )
            if any(w in text for w in words)
        ),
        (None, None),
    )
    if axis is not None:
        assert all(sign * (r.center[axis] - thing.center[axis]) > 0.07 for r in rivals)
        return
    place = re.search(r"(?:in|at|on) the ((?:top|bottom|left|right|center| )+)", text).group(1)
    for name, axis, low, high in (
        ("left", 0, 0, 1 / 3), ("right", 0, 2 / 3, 1), ("top", 1, 0, 1 / 3),
        ("bottom", 1, 2 / 3, 1),
    ):  # fmt: skip
        if name in place:
            assert low <= thing.center[axis] <= high
    assert all(lang.position(r) != lang.position(thing) for r in rivals)


def check_relation(found, thing, rivals, scene):
    text = found.text
    name = text[text.rindex(" the ") + 5 :]
    (k,) = read_query(name).find(scene)
    anchor = scene.things[k]
    if "nearest" in text or "closest" in text:
        assert all(lang.distance(r, anchor) > lang.distance(thing, anchor) for r in rivals)
        return
    link = next(n for n, (_, _, forms) in lang.RELATIONS.items()
                if any(f" {f} the {name}" in text for f in forms))  # fmt: skip
    assert lang.holds(link, thing, anchor, 0.05)
    assert not any(lang.holds(link, r, anchor, 0.0) for r in rivals)


def test_rec_and_its_negative():
    for e in examples("rec", 60, min_objects=4, distractors=1.0):
        (turn,) = e.turns
        (k,) = e.meta["targets"]
        assert turn.assistant == f"<r:{k}>" and not e.meta["absent"]
        assert e.regions[k].box == e.objects[e.meta["object"]].box
        assert e.meta["same_shape"] + e.meta["same_color"] > 0 and e.meta["objects"]
        assert len(e.objects) >= 4
    for e in examples("rec_absent", 80):
        phrase = next(s.text for s in markup.parse(e.turns[0].user) if s.kind == "phrase")
        assert read_query(phrase).find(world_of(e)) == []
        assert markup.says_absent(e.turns[0].assistant) and e.meta["absent"]
        assert not markup.regions_of(e.turns[0].assistant)


def test_all_instances():
    for e in examples("all_instances", 60):
        phrase = next(s.text for s in markup.parse(e.turns[0].user) if s.kind == "phrase")
        found = read_query(phrase).find(world_of(e))
        boxes = [e.regions[k].box for k in markup.regions_of(e.turns[0].assistant)]
        assert sorted(boxes) == sorted(world_of(e).things[i].box for i in found)
        centers = [(b[0] + b[2]) / 2 for b in boxes]
        assert centers == sorted(centers)
    for e in examples("all_instances_absent", 60):
        phrase = next(s.text for s in markup.parse(e.turns[0].user) if s.kind == "phrase")
        assert read_query(phrase).find(world_of(e)) == []
        assert markup.says_absent(e.turns[0].assistant)


def test_presence_is_true_and_balanced():
    answers = Counter()
    for e in examples("presence", 100):
        found = read_query(e.turns[0].user).find(world_of(e))
        assert e.meta["answer"] == ("yes" if found else "no")
        assert e.turns[0].assistant.startswith("Yes" if found else "No")
        answers[e.meta["answer"]] += 1
    assert answers["yes"] == answers["no"] == 50


def test_presence_cannot_be_told_from_the_words():
    """Neither the kind of phrase nor a single colour or shape gives the answer away."""
    kinds, words = Counter(), Counter()
    for e in examples("presence", 600, seed=32):
        query, yes = read_query(e.turns[0].user), e.meta["answer"] == "yes"
        kinds[bool(query.shape), bool(query.color), yes] += 1
        words[query.color, yes] += 1
    for kind in ((True, True), (True, False), (False, True)):
        share = kinds[*kind, True] / (kinds[*kind, True] + kinds[*kind, False])
        assert 0.35 < share < 0.65, kind


@pytest.mark.parametrize("task", ["region", "region_detail", "point", "scribble"])
def test_region_answers(task):
    for e in examples(task, 40):
        (k,) = e.meta["refers"]
        thing = e.meta["objects"][e.meta["object"]]
        assert f"<r:{k}>" in e.turns[0].user
        assert describe_matches(e.turns[0].assistant, thing)
        scene, i = world_of(e), e.meta["object"]
        region = e.regions[k]
        if task in ("point", "scribble"):
            assert region.kind == ("point" if task == "point" else "scribble")
            mask = scene.mask(i)
            assert all(mask[int(y * 224), int(x * 224)] for x, y in region.points)
        else:
            assert region.box == scene.things[i].box


def test_counting_and_reading():
    for e in examples("count", 60):
        found = read_query(e.turns[0].user).find(world_of(e))
        assert e.meta["answer"] == str(len(found))
        assert lang.number(len(found)) in e.turns[0].assistant
    for e in examples("read", 30):
        thing = world_of(e).things[e.meta["object"]]
        word = thing.word if thing.readable else ""
        assert e.meta["answer"] == word and (not word or word in e.turns[0].assistant)


def test_relations():
    for e in examples("relation", 120):
        things, record = world_of(e).things, e.meta
        if record["task"] == "relation":
            assert lang.holds(record["answer"], things[record["object"]],
                              things[record["other"]], 0.09)  # fmt: skip
        elif record["task"] == "relation_yes_no":
            asked = next(n for n, (_, _, forms) in lang.RELATIONS.items()
                         if any(f" {f} " in e.turns[0].user for f in forms))  # fmt: skip
            one, other = things[record["object"]], things[record["other"]]
            assert lang.holds(asked, one, other, 0.05) == (record["answer"] == "yes")
        elif record["task"] == "nearest":
            i = record["other"]
            near = min((k for k in range(len(things)) if k != i),
                       key=lambda k: lang.distance(things[i], things[k]))  # fmt: skip
            assert record["object"] == near
        else:
            assert record["task"] == "beside"
            assert record["absent"] == (not record["targets"])


def test_captions_name_everything_once():
    for e in examples("grounded_caption", 60):
        scene = world_of(e)
        phrases = [s for s in markup.parse(e.turns[0].assistant) if s.kind == "phrase"]
        shown = [k for s in phrases for k in s.regions]
        assert len(shown) == len(set(shown)) == min(len(scene.things), 8)
        boxes = {t.box: t for t in scene.things}
        for s in phrases:
            for k in s.regions:
                assert describe_matches(s.text, boxes[e.regions[k].box])
        assert e.turns[0].user.startswith("[grounding]")
    for e in examples("caption", 10):
        assert not markup.regions_of(e.turns[0].assistant)


def test_mixed_conversations():
    weights, seen = parse_tasks("all"), Counter()
    for i in range(150):
        e = scene_example(33, i, tasks=weights, turns=4)
        assert len(e.turns) == len(e.meta["turns"]) >= 2
        assert len({t.user for t in e.turns}) == len(e.turns)
        for turn, record in zip(e.turns, e.meta["turns"], strict=True):
            seen[record["task"]] += 1
            markup.check(turn.user + turn.assistant, len(e.regions), e.id)
            for k in record["targets"]:
                assert f"<r:{k}>" in turn.assistant
        assert e == scene_example(33, i, tasks=weights, turns=4) or (
            e.turns == scene_example(33, i, tasks=weights, turns=4).turns
        )
    assert len(seen) >= 16


def test_every_task_has_examples():
    for task in TASKS:
        e = scene_example(34, 0, tasks={task: 1.0})
        assert e.turns[0].user and e.turns[0].assistant
        assert e.meta["task"] in (task, "relation_yes_no", "nearest", "beside")


def test_absent_queries_find_nothing_even_in_full_scenes():
    import random

    rng = random.Random(1)
    for n in range(60):
        scene = make_world(43, n, min_objects=8)
        for kind in ("color shape", "shape", "color", "word", "color texture shape"):
            assert absent_query(scene, rng, kind).find(scene) == []


def test_reading_descriptions():
    star = {"color": "red", "shape": "star"}
    good = ["A red star.", "a crimson star", "A small red striped star in the top left.",
            "The star? A red star"]  # fmt: skip
    for text in good[:3]:
        assert describe_matches(text, star), text
    for text in ("A blue star.", "A red heart.", "red", "", "A star next to a red car.",
                 "A red blue star.", good[3]):  # fmt: skip
        assert not describe_matches(text, star), text
    assert parse_description("An orange lightning bolt.") == ("orange", "bolt")
    assert parse_description("Two violet crosses") == ("purple", "cross")


def test_task_lists():
    assert parse_tasks("rec*2+presence+rec") == {"rec": 3.0, "presence": 1.0}
    assert "object_match" not in parse_tasks("all")
    for text, message in (("recc", "did you mean rec"), ("rec*x", "'x'"), ("", "unknown task")):
        with pytest.raises(UserError, match=re.escape(message)):
            parse_tasks(text)


@pytest.mark.parametrize("task", ["presence", "count", "rec", "rec_absent", "attribute", "region"])
def test_turns_say_what_they_are_about(task):
    empty = 0
    for e in examples(task, 40):
        (turn,) = e.turns
        record, objects = e.meta["turns"][0], [r.box for r in e.objects]
        assert turn.about is not None
        seen = [objects.index(e.regions[k].box) for k in turn.about]
        if task in ("presence", "count"):
            words = markup.strip(turn.user)
            wanted = read_query(re.sub(r"\b(picture|image)\b", "", words))
            assert sorted(seen) == sorted(wanted.find(world_of(e)))
        elif task == "rec_absent":
            assert not seen
        else:
            assert seen == [record["object"]]
        empty += not seen
    assert (0 < empty < 40) if task in ("presence", "count") else (empty in (0, 40))
