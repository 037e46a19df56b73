"""Questions about annotations in the words of the system that is asked."""

import numpy as np

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
