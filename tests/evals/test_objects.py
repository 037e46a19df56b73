"""Tasks with object images: letters read, hand-worked scores, questions about annotations."""

import re
from dataclasses import replace

import numpy as np
import pytest

from mg_jax.answer import Answer, Phrase
from mg_jax.errors import UserError
from mg_jax.evals import questions, tasks
from mg_jax.evals.objects import truth
from mg_jax.text import markup
from tests.data.photos import annotated, photo

BLACK = np.zeros((10, 20, 3), np.uint8)
NAMES = ("object_match", "object_choice", "object_relation")


@pytest.mark.parametrize(("text", "meant"), [
    ("B", "B"), ("b.", "B"), ("(C) the dog", "C"), ("The answer is D.", "D"), ("Option A: x", "A"),
    ("Yes", "yes"), ("no, it is not", "no"), ("A red ball", ""), ("It is B", ""), ("", ""),
    ("Because", ""), ("A, since it is red", "A"),
])  # fmt: skip
def test_letters_are_read_from_the_beginning(text, meant):
    assert truth(text) == meant


@pytest.fixture
def written(monkeypatch):
    """`questions.collect` over examples of our own."""

    def collect(task, examples):
        source = type("Source", (list,), {"name": "own", "frequency": {}, "max_bad": 0.0})(examples)
        monkeypatch.setattr(questions, "open_source", lambda text, **kw: source)
        return tasks.questions(tasks.get(task), "own")

    return collect


@pytest.mark.parametrize("task", NAMES)
def test_annotated_pictures_are_asked(task, written, fake):
    examples = [replace(photo(), image=BLACK), *map(annotated, range(6))]
    items = written(task, examples)
    assert len(items) > 8 and len({i.key for i in items}) == len(items)
    for item in items:
        query = item.query()
        assert "<object:" in query.prompt and query.regions
        listed = re.findall(r"^[A-Z]\. ", query.prompt, re.M)
        assert len(listed) == item.record.get("options", 0)
        assert task != "object_choice" or len(listed) == 4
        if task == "object_match":  # neither the name nor the answer travels along
            assert [r.label for r in query.regions] == [None] and len(item.targets) == 1
    oracle = fake(items)
    result = tasks.evaluate(tasks.get(task), "own", oracle.predict, items=items)
    assert result.metrics[tasks.get(task).headline] == 1.0 and result.invalid == 0
    again = written(task, examples)
    assert [i.query().prompt for i in again] == [i.query().prompt for i in items]


def test_a_hand_worked_score(fake):
    items = tasks.questions(tasks.get("object_choice"), "scenes:seed=700002,n=6")
    right = [markup.strip(i.reference) for i in items]
    wrong = "A" if right[5] != "A" else "B"
    given = [right[0], f"{right[1]}.", "E", "dogs", f"The answer is {right[4]}", wrong]
    said = dict(zip([i.key for i in items], given, strict=True))
    result = tasks.evaluate(
        tasks.get("object_choice"), "d", fake(items, lambda i: Answer(said[i.key])).predict,
        items=items,
    )  # fmt: skip
    assert result.metrics["accuracy"] == pytest.approx(3 / 6)
    assert result.invalid == 2  # there is no option E
    kinds = [i.record["task"] for i in items]
    good = [True, True, False, False, True, False]
    for kind in set(kinds):
        some = [g for g, k in zip(good, kinds, strict=True) if k == kind]
        assert result.metrics[f"accuracy/{kind}"] == pytest.approx(np.mean(some))
    best = max(right.count(letter) for letter in right) / 6
    assert result.majority["accuracy"] == pytest.approx(best)


def test_the_first_box_counts(fake):
    items = tasks.questions(tasks.get("object_match"), "scenes:seed=700002,n=4")

    def answer(item):
        (box,) = item.pixel_boxes(item.targets).tolist()
        far = (0.0, 0.0, 2.0, 2.0)
        order = (tuple(box), far) if item is items[0] else (far, tuple(box))
        return Answer("", (Phrase("", (0, 0), order, (1.0, 1.0)),))

    result = tasks.evaluate(
        tasks.get("object_match"), "d", fake(items, answer).predict, items=items
    )
    assert result.metrics["acc@0.5"] == pytest.approx(1 / 4)


def test_data_without_anything_to_show_is_named(written):
    bare = replace(photo(objects=(), regions=(), expressions=(), relations=()), image=BLACK)
    with pytest.raises(UserError, match="nothing to ask for task object_choice"):
        written("object_choice", [bare])
