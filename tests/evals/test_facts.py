"""Facts in free words, and questions that name what they could point at."""

import pytest

from mg_jax.data.scenes.conversation import scene_example
from mg_jax.data.sources import open_source
from mg_jax.errors import UserError
from mg_jax.evals import tasks
from mg_jax.text import markup


@pytest.mark.parametrize(
    ("task", "kind", "text", "said"),
    [
        ("vqa", "color", "It is red.", "red"),
        ("vqa", "color", "Crimson", "red"),
        ("vqa", "color", "It is red or blue.", None),
        ("vqa", "count", "There are two red stars.", 2),
        ("vqa", "count", "There is no star.", 0),
        ("vqa", "count", "13", 13),
        ("vqa", "count", "Many.", None),
        ("vqa", "relation", "It is to the left of the red star.", "left"),
        ("vqa", "relation", "It is higher up than it.", "above"),
        ("vqa", "relation_yes_no", "Yes, it is below it.", True),
        ("reading", "large", "It says STOP.", "STOP"),
        ("reading", "large", "STOP, or EXIT", None),
        ("reading", "large", "There is no text on it.", None),
        ("moved", "moved", "The red star and the blue fish move.", ("blue fish", "red star")),
        ("moved", "moved", "Nothing moves.", ()),
        ("moved", "moved", "Something moves.", None),
        ("direction", "direction", "It moves to the left.", "left"),
        ("direction", "direction", "It does not move.", "none"),
        ("direction", "direction", "It moves.", None),
    ],
)
def test_facts_are_read_from_free_words(task, kind, text, said):
    assert tasks.get(task).parse(kind, text) == said


def test_kinds_are_told_apart():
    data = "scenes:seed=700002,n=60"
    expected = {
        "vqa": {"color", "count", "relation", "relation_yes_no"},
        "reading": {"medium", "large"},
        "direction": {"direction"},
        "moved": {"moved"},
    }
    for name, kinds in expected.items():
        task = tasks.get(name)
        items = tasks.questions(task, data)
        assert {task.kind(i) for i in items} >= kinds and len(items) == 60
        half = [task.truth(i) if n % 2 else None for n, i in enumerate(items)]
        score = dict(task.score(items, half))
        assert score["accuracy"] == 0.5
        assert (set(score) > {"accuracy"}) == (len(kinds) > 1)
        (constant,) = task.strategies(items)
        assert 0.1 < dict(task.score(items, constant))["accuracy"] < 0.85


def test_things_can_be_asked_about_by_their_names_or_regions_alone():
    weights = {"attribute": 1.0, "relation": 1.0, "read": 1.0}
    pointed = {}
    for how in ("", "named", "shown"):
        way = {how: True} if how else {}
        examples = [scene_example(5, n, tasks=weights, turns=3, **way) for n in range(40)]
        records = [
            (record["task"], bool(markup.regions_of(turn.user)))
            for example in examples
            for turn, record in zip(example.turns, example.meta["turns"], strict=True)
        ]
        assert len(records) > 60
        pointed[how] = {task: [p for t, p in records if t == task] for task, _ in records}
    for task in ("attribute", "relation", "read"):
        assert any(pointed[""][task]) and not all(pointed[""][task])
        assert not any(pointed["named"][task]) and all(pointed["shown"][task])
    assert open_source("scenes:named=1").named and not open_source("scenes:").named
    assert open_source("scenes:shown=1").shown and not open_source("scenes:").shown
    with pytest.raises(UserError, match="named=1 and shown=1 exclude each other"):
        open_source("scenes:named=1,shown=1")
