"""Questions about annotations in the words of the system that is asked."""

from types import SimpleNamespace

import numpy as np
import pytest

import mg_jax
from launch import compare, evaluate, ship
from mg_jax.answer import Answer
from mg_jax.data.sources import open_source
from mg_jax.data.write import write_voc
from mg_jax.evals import asking, tasks
from mg_jax.evals.questions import Item
from mg_jax.example import Example, Expression, Region, Turn

PICTURE = np.zeros((40, 60, 3), np.uint8)


def written():
    region = Region.from_box((0.1, 0.1, 0.5, 0.5), label="dog")
    said = (Expression("the dog", (0,)), Expression("a cat", ()))
    example = Example(PICTURE, 60, 40, (region,), id="e", expressions=said, objects=(region,))
    made = [ask(example) for ask in (asking.rec, asking.rec_absent, asking.all_instances)]
    return [Item(str(n), e, 0, e.meta["turns"][0]) for n, e in enumerate(made)]


def test_what_locates_is_asked_in_the_words_of_the_system():
    def words(system):
        return [item.query().prompt for item in asking.reworded(written(), system)]

    assert words("tiny_grounding_gpt") == [
        "Output the coordinate of <p>the dog</p>", "Output the coordinate of <p>a cat</p>",
        "Where is every <p>dog</p> in the picture?",
    ]  # fmt: skip
    assert words("groma") == [item.query().prompt for item in written()]
    assert words("groma")[0] == "Locate <p>the dog</p> in the image."
    assert len({words(system)[0] for system in ("groma", "ferret", "mg_llava")}) == 3


def test_answers_and_other_questions_stay():
    before = written()
    after = asking.reworded(before, "tiny_grounding_gpt")
    task = tasks.get("rec")
    for a, b in zip(before, after, strict=True):
        assert (a.key, a.record, a.reference, a.absent) == (b.key, b.record, b.reference, b.absent)
        np.testing.assert_array_equal(task.expected_boxes(a), task.expected_boxes(b))
    own = Example(PICTURE, 60, 40, turns=(Turn("Where is it?", "There."),), id="o")
    asked = [Item("a", own, 0, {"task": "rec"}), Item("b", own, 0), Item("c", own)]
    assert asking.reworded(asked, "tiny_grounding_gpt") == asked


class Recorder:
    """A system that remembers what it is asked."""

    propose = None
    adapter = SimpleNamespace(can=())

    def __init__(self, name):
        self.system, self.asked = SimpleNamespace(name=name), []

    def answer(self, queries, **_):
        self.asked += [query.prompt for query in queries]
        return [Answer("There is none.", absent=True) for _ in queries]


def shipped(folder, data):
    ship.measured(folder, [("all_instances", data)], folder / "measured.jsonl")


def compared(folder, data):
    compare.measured(str(folder), data, ["all_instances"], folder / "compared.jsonl")


def evaluated(folder, data):
    evaluate.main(["--checkpoint", str(folder), "--task", "all_instances", "--data", data])


@pytest.mark.parametrize("measure", [shipped, compared, evaluated])
def test_every_program_asks_about_photos_in_the_words_of_the_system(tmp_path, monkeypatch, measure):
    (tmp_path / "config.json").write_text("{}")
    source = open_source("scenes:seed=9,n=2,size=64,tasks=none")
    write_voc([source[i] for i in range(2)], tmp_path / "v")
    monkeypatch.setattr(compare, "costs", lambda assistant, queries: {})
    asked = {}
    for name in ("groma", "tiny_grounding_gpt"):
        for data in (f"voc:{tmp_path / 'v'}", "scenes:seed=700000,n=2,size=64"):
            one = Recorder(name)
            monkeypatch.setattr(mg_jax, "load", lambda source, one=one, **_: one, raising=False)
            for file in tmp_path.glob("*.jsonl"):
                file.unlink()
            measure(tmp_path, data)
            asked[name, data[:3]] = one.asked
    assert all(text.startswith("Where is every <p>") for text in asked["tiny_grounding_gpt", "voc"])
    assert not any(text.startswith("Where is every") for text in asked["groma", "voc"])
    assert asked["groma", "sce"] == asked["tiny_grounding_gpt", "sce"] != []
