"""Ferret's question of two classes, about scenes and about annotated pictures."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from mg_jax.answer import Answer
from mg_jax.data.regions import rasterise
from mg_jax.data.scenes import TASKS as SCENE_TASKS
from mg_jax.errors import UserError
from mg_jax.evals import tasks
from mg_jax.evals.choosing import published_region
from mg_jax.evals.questions import Item, asked
from mg_jax.example import Example, Region
from mg_jax.text.codecs.ferret_places import coordinates, format_place
from mg_jax.text.markup import parse

KINDS = {"which_box": {"box"}, "which_point": {"point"}, "which_free": {"scribble", "mask"}}


def answered(name, data, says):
    """The result of answers `says(item)`."""
    task = tasks.get(name)
    items = tasks.questions(task, data)
    texts = iter([says(item) for item in items])
    return tasks.evaluate(task, data, lambda qs: [Answer(next(texts)) for _ in qs], items=items)


@pytest.mark.parametrize("name", KINDS)
def test_scenes(name):
    data = "scenes:seed=700000,n=60,size=112|224x112"
    items = tasks.questions(tasks.get(name), data)
    assert {asked(i.example, i.turn)[1][0].kind for i in items} == KINDS[name]
    assert all(len(asked(i.example, i.turn)[1]) == 1 for i in items)
    right = answered(name, data, lambda i: i.reference)
    sizes = dict.fromkeys(("large", "medium", "small"), 1.0)
    assert right.metrics == {"accuracy": 1.0, "both": 0.0} | sizes and right.invalid == 0
    assert 0.3 < right.majority["accuracy"] < 0.75  # the true name is first about half of the time
    both = answered(name, data, lambda i: i.example.turns[0].user)
    assert both.metrics == {"accuracy": 1.0, "both": 1.0} | sizes
    denied = answered(name, data, lambda i: f"It is not {i.reference}")
    assert denied.metrics["accuracy"] == 0.0
    assert SCENE_TASKS[name][1] == 0.0  # never drawn unless it is named


def example():
    mask = np.zeros((40, 60), bool)
    mask[5:20, 10:30] = True
    outlined = replace(Region.from_mask(mask), label="bow_(weapon)")
    objects = (outlined, Region.from_box((0.5, 0.5, 0.9, 0.9), label="dog"))
    return Example(np.zeros((40, 60, 3), np.uint8), 60, 40, objects=objects, id="7",
                   absent=("cat",), meta={"synonyms": {"bow_(weapon)": ["crossbow"]}})  # fmt: skip


@pytest.mark.parametrize(
    ("name", "count"), [("which_box", 2), ("which_point", 2), ("which_free", 1)]
)
def test_annotated_pictures(name, count):
    task = tasks.get(name)
    made = task.write(example())
    assert len(made.turns) == count
    records = made.meta["turns"]
    items = [Item(f"7/{n}", made, n, records[n]) for n in range(count)]
    for n, item in enumerate(items):
        _, (region,) = asked(made, n)
        assert region.kind in KINDS[name] and region.label is None  # the name does not travel
        first, second = made.turns[n].user.partition("image a ")[2].rstrip("?").split(" or a ")
        names = [first, second] if n % 2 == 0 else [second, first]
        assert names == [item.record["answer"], "cat"]
        assert task.right(item, f"a {names[0]}") and not task.right(item, "a cat")
        assert len(parse(made.turns[n].user)) == 3 and len(task.expected_boxes(item)) == 1
    if name == "which_free":
        assert (
            task.right(items[0], "It is a crossbow.") and task.right(items[0], "a weapon") is False
        )
    alone = replace(example(), objects=example().objects[:1], absent=())
    assert task.write(alone) is None  # there is no other name


def test_a_point_lies_on_its_mask():
    made = tasks.get("which_point").write(example())
    for turn in range(2):
        _, (region,) = asked(made, turn)
        ((x, y),) = region.points
        inside = [0.16 <= x <= 0.51 and 0.12 <= y <= 0.51, 0.5 <= x <= 0.91 and 0.5 <= y <= 0.91]
        assert any(inside)


def test_regions_of_the_published_file():
    mask = np.zeros((60, 40), bool)  # x first
    mask[10:30, 5:20] = True
    row = {
        "width": 60, "height": 40, "sample_point": [20, 10], "bbox_norm": [0.1, 0.1, 0.6, 0.7],
        "free_shape_bbox_raw": [10, 5, 29, 19], "free_shape_segment_mask": mask.tolist(),
    }  # fmt: skip
    texts = {}
    for kind in ("point", "box", "free_shape"):
        region = published_region(row, kind)
        texts[kind] = format_place(coordinates(region, 60, 40), 60, 40)
    assert texts == {"point": "[333, 250]", "box": "[100, 100, 600, 700]",
                     "free_shape": "[166, 125, 483, 475]"}  # fmt: skip
    assert (rasterise(region, 60, 40).whole() == mask).all()
    with pytest.raises(UserError, match="choose point, box or free_shape"):
        published_region(row, "mask")


def test_annotations_without_masks_say_what_to_write(tmp_path):
    row = {"image": "a.png", "absent": ["cow"], "objects": [{"box": [0, 0, 4, 4], "label": "dog"}]}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="which_free: it asks about masks: write masks=keep"):
        tasks.questions(tasks.get("which_free"), f"jsonl:{tmp_path / 'a.jsonl'}")
