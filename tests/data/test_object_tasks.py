"""Tasks with object images: what they ask is recomputed here from the annotations."""

import re
from collections import Counter

import numpy as np
import pytest

from mg_jax.boxes import iou
from mg_jax.data.sources import open_source
from mg_jax.data.tasks import OBJECT_TASKS, converse
from mg_jax.data.tasks.asking import side
from mg_jax.data.tasks.objects import OPPOSITE
from mg_jax.text import markup
from tests.data.object_talks import LETTERS, WORDING, made, options, share, shown
from tests.data.photos import annotated, photo, pointed


@pytest.fixture(scope="module")
def pictures():
    return [photo(), *map(annotated, range(12))]


@pytest.mark.parametrize("task", OBJECT_TASKS)
def test_every_task_is_about_regions_that_it_has(task, pictures):
    found = [e for example in pictures for e in made(task, example)]
    assert len(found) > 60
    for e in found:
        texts = "".join(t.user + t.assistant for t in e.turns)
        assert "{" not in texts
        assert set(markup.regions_of(texts)) == set(range(len(e.regions)))
        for turn, record in zip(e.turns, e.meta["turns"], strict=True):
            assert record["task"] == task and turn.assistant.strip()
            assert record["targets"] == list(dict.fromkeys(markup.regions_of(turn.assistant)))
            assert not shown(e, turn.assistant)
            assert all(0.005 <= share(r) <= 0.6 for r in shown(e, turn.user))
    again = [made(task, example) for example in pictures[:3]]
    assert [e.turns for es in again for e in es] == [
        e.turns for es in [made(task, example) for example in pictures[:3]] for e in es
    ]


def test_object_match_locates_what_it_shows(pictures):
    seen = set()
    for example in pictures:
        for e in made("object_match", example, 30):
            (region,) = shown(e, e.turns[0].user)
            assert pointed(e, e.turns[0].assistant) == [region]
            assert region in (*example.objects, *example.regions)
            seen.add((example.id, region.box))
    assert len(seen) > 30


def test_place_choice_offers_what_is_apart(pictures):
    letters = Counter()
    for example in pictures:
        for e in made("place_choice", example, 20):
            question, listed = options(e)
            (target,) = [e.regions[s.regions[0]] for s in markup.parse(question)
                         if s.kind == "region"]  # fmt: skip
            offered = [shown(e, text)[0] for text in listed]
            assert 2 <= len(offered) <= 4 and e.meta["turns"][0]["options"] == len(offered)
            assert offered[LETTERS.index(e.turns[0].assistant)].box == target.box
            overlap = iou(np.array([r.box for r in offered]), np.array([r.box for r in offered]))
            assert (overlap - np.eye(len(offered)) < 0.3).all()
            letters[e.turns[0].assistant] += len(offered) == 4
            assert e.turns[0].user.endswith("directly.")  # LLaVA's request for a letter
    assert min(letters[k] for k in LETTERS) > 0.15 * sum(letters.values())


def test_name_choice_has_one_right_option(pictures):
    kinds = Counter()
    for example in pictures:
        texts = {}
        for expression in example.expressions:
            texts.setdefault(expression.text.casefold(), set()).add(expression.regions)
        for e in made("name_choice", example, 20):
            question, listed = options(e)
            offered = [shown(e, text)[0] for text in listed]
            right = offered[LETTERS.index(e.turns[0].assistant)]
            said = [t for t in texts if t in question.casefold() and len(texts[t]) == 1]
            if said:
                (place,) = texts[max(said, key=len)]
                assert [example.regions[k].box for k in place] == [right.box]
                kinds["expression"] += 1
                continue
            names = [r.label.replace("_", " ").lower() for r in offered]
            name = right.label.replace("_", " ").lower()
            assert name in question and names.count(name) == 1
            everything = (*example.objects, *example.regions)
            assert len({r.box for r in everything
                        if (r.label or "").replace("_", " ").lower() == name}) == 1  # fmt: skip
            kinds["name"] += 1
    assert kinds["expression"] > 10 and kinds["name"] > 10


def relation_of(example, one, other):
    annotated = {(a, b): p for a, p, b in example.relations}
    if annotated:
        known = {(example.regions[a].box, example.regions[b].box): p
                 for (a, b), p in annotated.items()}  # fmt: skip
        return known.get((one.box, other.box))
    return side(one, other)


def test_relations_are_true_of_what_is_shown(pictures):
    kinds = Counter()
    for example in pictures:
        for e in made("object_relation", example, 30):
            (turn,) = e.turns
            user, answer = turn.user, turn.assistant
            thing, landmark = (e.regions[k] for k in turn.about)
            assert turn.about[1:] == turn.landmarks and thing.box != landmark.box
            question, listed = options(e)
            here = [e.regions[k] for k in markup.regions_of(question)]
            assert shown(e, user)
            if listed and shown(e, listed[0]):
                (other,) = here
                predicate = re.search(r'"(.*?)"', question)[1]
                offered = [shown(e, text)[0] for text in listed]
                holds = [relation_of(example, r, other) == predicate for r in offered]
                assert holds.index(True) == LETTERS.index(answer) and sum(holds) == 1
                kinds["which"] += 1
            elif listed:
                one, other = here
                assert listed[LETTERS.index(answer)] == relation_of(example, one, other)
                assert len(set(listed)) == len(listed)
                kinds["how"] += 1
            else:
                one, other = here
                asked = next(p for p in sorted(OPPOSITE, key=len, reverse=True) if p in question)
                assert (answer == "Yes") == (side(one, other) == asked)
                kinds[answer] += 1
    assert min(kinds[k] for k in ("which", "how", "Yes", "No")) > 10


def test_dialogues_mix_words_coordinates_and_images(pictures):
    kinds = Counter()
    for example in pictures:
        for e in made("grounding_dialogue", example, 20):
            assert len(e.turns) >= 2
            asked = [s.kind for t in e.turns for s in markup.parse(t.user)]
            assert asked.count("object") <= 4
            kinds.update(asked)
            kinds["answers with boxes"] += any(markup.regions_of(t.assistant) for t in e.turns)
    assert min(kinds[k] for k in ("object", "region", "phrase", "answers with boxes")) > 20


def test_descriptions_give_a_place_to_everything_they_name(pictures):
    for example in pictures:
        for e in made("grounded_description", example, 4):
            phrases = [s for s in markup.parse(e.turns[0].assistant) if s.kind == "phrase"]
            assert phrases and all(len(s.regions) == 1 for s in phrases)
            for s in phrases:
                (region,) = [e.regions[k] for k in s.regions]
                assert region.label.replace("_", " ").lower() == s.text
            links = re.findall(
                rf"\. The (\S.*?) is ({'|'.join(OPPOSITE)}) the (.*?)(?=\.)", e.turns[0].assistant
            )
            assert len(links) == e.turns[0].assistant.count(" is ")
            for link in links:
                one, other = (pointed(e, link[k])[0] for k in (0, 2))
                assert side(one, other) == link[1]
    text = made("grounded_description", photo(), 1)[0].turns[0].assistant
    assert "a <p>dog</p>" in text and "another <p>dog</p>" in text
    first = re.match(r"The image shows a <p>(.*?)</p>", text)
    assert first and first[1] in ("stop sign", "person")  # the largest, of one size


# -- filters -----------------------------------------------------------------------------------


def test_a_conversation_keeps_what_things_are_placed_by(pictures):
    scenes = open_source("scenes:seed=3,n=30,tasks=object_relation")
    rng = np.random.default_rng(0)
    asked = [converse(p, rng, {"object_relation": 1.0}, WORDING, 2) for p in pictures]
    turns = [t for e in (*scenes, *filter(None, asked)) for t in e.turns]
    assert len(turns) > 40
    for e in filter(None, (*scenes, *asked)):
        for turn in e.turns:
            one, other = turn.about
            assert turn.landmarks == (other,) and one != other < len(e.regions)
            assert other in markup.regions_of(turn.user)
