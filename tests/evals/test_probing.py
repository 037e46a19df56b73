"""POPE's questions drawn by hand-worked counts, and scored; on scenes and on annotations."""

from dataclasses import replace

import numpy as np
import pytest

from mg_jax.answer import Answer
from mg_jax.evals import questions, tasks
from mg_jax.evals.probing import KINDS, probes
from mg_jax.example import Example, Region

BLACK = np.zeros((10, 20, 3), np.uint8)
# dog 3, cat 2, cup 2, bus 1, car 1; cup is seen with dog twice, with cat once
THERE = (("dog", "cup"), ("dog", "cat", "cup"), ("cat",), ("dog",), ("bus", "car"))
NAMES = ("bus", "car", "cat", "cup", "dog")
LACKING = tuple(tuple(n for n in NAMES if n not in there) for there in THERE)


def test_negatives_are_the_frequent_and_those_that_go_along():
    found = probes("abcde", THERE, LACKING)
    for asked, there, lacking in zip(found, THERE, LACKING, strict=True):
        most = min(3, len(there), len(lacking))
        for kind in KINDS:
            mine = [(name, truth) for name, truth, kinds in asked if kind in kinds]
            assert len(mine) == 2 * most and len(set(mine)) == len(mine)
            assert {n for n, truth in mine if truth} <= set(there)
            assert {n for n, truth in mine if not truth} <= set(lacking)

    def negatives(picture, kind):
        return {name for name, truth, kinds in found[picture] if not truth and kind in kinds}

    assert negatives(0, "popular") == {"cat", "bus"}  # bus before car by the alphabet
    assert negatives(2, "popular") == {"dog"}
    assert negatives(2, "adversarial") == {"cup"}  # with the cat once, as the dog, and before it
    assert negatives(3, "popular") == {"cat"} and negatives(3, "adversarial") == {"cup"}
    assert negatives(4, "popular") == {"dog", "cat"}
    assert probes("abcde", THERE, LACKING) == found
    assert probes(["x"], [[]], [["dog"]]) == [[]] == probes(["x"], [["dog"]], [[]])


@pytest.fixture
def items(monkeypatch):
    """The questions about the pictures of THERE."""
    examples = [
        Example(
            BLACK, 20, 10, id=f"e{n}", absent=LACKING[n],
            objects=tuple(Region("box", (0.1, 0.1, 0.5, 0.5), label=name) for name in there),
        )
        for n, there in enumerate(THERE)
    ]  # fmt: skip
    source = type("Source", (list,), {"name": "own", "frequency": {}, "max_bad": 0.0})(examples)
    monkeypatch.setattr(questions, "open_source", lambda text, **kw: source)
    return tasks.questions(tasks.get("pope"), "own")


def test_annotated_pictures_are_asked_and_scored(items, fake):
    task = tasks.get("pope")
    assert len({i.key for i in items}) == len(items)
    assert items[0].query().prompt in {
        "Is there a dog in the image?",
        "Is there a cup in the image?",
    }
    oracle = fake(items)
    result = tasks.evaluate(task, "own", oracle.predict, items=items)
    assert {result.metrics[f"{m}/{k}"] for m in ("accuracy", "f1") for k in KINDS} == {1.0}
    assert result.metrics["yes_ratio"] == 0.5 and result.invalid == 0
    assert result.majority["f1"] == pytest.approx(2 / 3)
    # who takes every dog, cat and cup for there, is fooled by what is frequent, and less at random
    sure = {"dog", "cat", "cup"}
    answers = ["Yes" if i.record["name"] in sure else "No" for i in items]
    scores = dict(task.score(items, [a == "Yes" for a in answers]))
    asked = [i for i in items if "adversarial" in i.record["kinds"]]
    said = [i.record["name"] in sure for i in asked]
    truth = [i.record["there"] for i in asked]
    hits = sum(s and t for s, t in zip(said, truth, strict=True))
    assert scores["precision/adversarial"] == pytest.approx(hits / sum(said))
    # of those that are there: both, two of three, one, one, and neither of bus and car
    there = 2 + 2 + 1 + 1 + 0
    popular = 1 + 0 + 1 + 1 + 2  # cat; bus and car alone; dog; cat; dog and cat
    random = 0 + 0 + 0 + 1 + 2  # as the ids draw: bus, car; bus, car; bus; cat; cat, dog
    assert scores["precision/popular"] == pytest.approx(there / (there + popular))
    assert scores["precision/random"] == pytest.approx(there / (there + random))
    assert scores["recall/popular"] == scores["recall/random"] == pytest.approx(there / 8)
    assert scores["recall/adversarial"] == pytest.approx(hits / sum(truth))
    assert scores["yes_ratio/adversarial"] == pytest.approx(sum(said) / len(said))
    assert scores["accuracy"] == pytest.approx(np.mean([scores[f"accuracy/{k}"] for k in KINDS]))
    silent = task.read(items[0], Answer("A dog."))
    assert silent is None and task.invalid(items[0], silent)


def test_scenes_are_asked(fake):
    found = tasks.questions(tasks.get("pope"), "scenes:seed=700000,n=40,size=64")
    assert len(found) == 40 and len({i.example.id for i in found}) > 3
    for item in found:
        names = {r.label for r in item.example.objects}
        assert (item.record["name"] in names) == item.record["there"]
        assert item.query().regions == ()
    result = tasks.evaluate(tasks.get("pope"), "scenes", fake(found).predict, items=found)
    assert result.metrics["f1"] == 1.0
    some = tasks.questions(tasks.get("pope"), "scenes:seed=700000,n=40,size=64", limit=4)
    assert [i.key for i in some] == [i.key for i in found[:4]]


def test_coco(shared):
    data = f"coco:{shared}/data/coco_mini/instances.json,{shared}/data/coco_mini/images"
    found = tasks.questions(tasks.get("pope"), data)
    by_kind = {k: [i for i in found if k in i.record["kinds"]] for k in KINDS}
    assert all(len(rows) > 500 for rows in by_kind.values())
    for rows in by_kind.values():
        assert sum(i.record["there"] for i in rows) * 2 == len(rows)
    popular = {i.record["name"] for i in by_kind["popular"] if not i.record["there"]}
    assert "person" in popular and len(popular) < 15
    assert replace(found[0].example, turns=()).id == found[0].example.id
