"""Conversations drawn from mixtures of tasks."""

import re
from collections import Counter

import numpy as np
import pytest

from mg_jax.data.tasks import AUTO, TASKS, converse, parse_tasks
from mg_jax.errors import UserError
from mg_jax.example import Example
from mg_jax.text import instructions, markup
from tests.data.photos import name, photo, pointed

GROMA = instructions.get("groma")


def test_mixtures_are_drawn_by_weight_among_those_that_fit():
    rng = np.random.default_rng(0)
    weights = {"rec": 1.0, "vqa": 5.0, "caption": 3.0}
    example = photo(questions=())
    seen = Counter(converse(example, rng, weights, GROMA).meta["task"][:3] for _ in range(800))
    assert seen["vqa"] == 0 and abs(seen["cap"] / 800 - 0.75) < 0.05
    assert converse(photo(captions=()), rng, {"caption": 1.0}, GROMA) is None
    bare = Example("x", 9, 9)
    assert converse(bare, rng, AUTO, GROMA) is None
    assert set(TASKS) - set(AUTO) == {"dense_detection_centres"} and all(AUTO.values())
    assert "dense_detection_centres" not in parse_tasks("auto")


def test_conversations_of_several_turns():
    example = photo(captions=photo().captions[:1])
    for seed in range(20):
        e = converse(example, np.random.default_rng(seed), AUTO, GROMA, 4)
        again = converse(example, np.random.default_rng(seed), AUTO, GROMA, 4)
        assert e.turns == again.turns and e.regions == again.regions
        assert len(e.turns) >= 4 and len({t.user for t in e.turns}) == len(e.turns)
        assert len({(r.box, r.label) for r in e.regions}) == len(e.regions)
        texts = "".join(t.user + t.assistant for t in e.turns)
        assert set(markup.regions_of(texts)) == set(range(len(e.regions)))
        for turn, record in zip(e.turns, e.meta["turns"], strict=True):
            if record["task"] == "all_instances":  # still right when put behind others
                asked = markup.parse(turn.user)[1].text
                boxes = {r.box for r in pointed(e, turn.assistant)}
                assert boxes == {r.box for r in example.objects if name(r) == asked}
        once = Counter(r["task"] for r in e.meta["turns"])
        assert once["grounded_caption"] <= 1 and once["caption"] <= 1
    few = converse(example, np.random.default_rng(0), {"caption": 1.0}, GROMA, 4)
    assert len(few.turns) == 1


def test_task_lists():
    assert parse_tasks("rec*2+presence+rec") == {"rec": 3.0, "presence": 1.0}
    assert parse_tasks("auto*2 + vqa")["vqa"] == 2 * AUTO["vqa"] + 1
    for text, message in (
        ("recc", "data: unknown task 'recc' (did you mean rec?): choose from auto, rec"),
        ("rec*nan", "'nan' is no positive number"),
        ("rec*-1", "'-1' is no positive number"),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            parse_tasks(text)
