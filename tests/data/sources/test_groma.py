"""The files of Groma: its forms of COCO's, LVIS-Ground, Groma Instruct."""

import json

import numpy as np
import pytest

from mg_jax.data.sources import open_source
from mg_jax.data.sources.measures import measure
from mg_jax.data.write import write_groma, write_groma_instruct, write_lvis_ground
from mg_jax.errors import UserError
from mg_jax.example import Turn
from mg_jax.text import markup
from mg_jax.text.instructions import GROUNDING
from tests.data.sources.grounded_scenes import all_of, picture, places, scenes, texts


def grounding(example):
    """Captions without marks, and their phrases with boxes."""
    return [
        (
            "".join(s.text for s in markup.parse(caption)),
            [(s.text, places(example, s.regions)) for s in markup.parse(caption) if s.regions],
        )
        for caption in example.captions
    ]


@pytest.mark.parametrize("form", ["rec", "regions", "flickr"])
def test_written_files_are_read_back(form, tmp_path):
    rows = scenes()
    source = open_source("groma:{},{},form={}".format(*write_groma(rows, tmp_path, form), form))
    got = all_of(source)
    assert not source.counts and source.bad == 0
    if form == "rec":
        assert [texts(e)[0] for e in got] == [t for row in rows for t in texts(row)]
        assert all(len(e.expressions) == 1 for e in got) and source.tasks == {"rec": 1.0}
    elif form == "regions":
        want = [[t for t in texts(row) if len(t[1]) == 1] for row in rows]
        assert [texts(e) for e in got] == want and source.tasks == {"region_caption": 1.0}
    else:
        assert [grounding(e)[0] for e in got] == [c for row in rows for c in grounding(row)]
        assert all(e.captions[0].count("<p>") == 2 for e in got)
    assert got[0].meta["task"] in ("rec", "region_caption", "grounded_caption")
    np.testing.assert_array_equal(got[0].pixels(), rows[0].pixels())


def test_written_lvis_ground_is_read_back(tmp_path):
    rows = scenes()
    source = open_source("lvis_ground:{},{}".format(*write_lvis_ground(rows, tmp_path)))
    want = []
    for row in rows:
        for label in dict.fromkeys(r.label for r in row.objects):
            boxes = [k for k, r in enumerate(row.objects) if r.label == label]
            want.append([(label, places(row, boxes))])
    got = all_of(source)
    assert [texts(e) for e in got] == want
    assert all({r.label for r in e.objects} == {e.expressions[0].text} for e in got)
    assert got[0].image.endswith("val2017/scenes-51-0.png")
    assert source.tasks == {"all_instances": 1.0}


def test_tasks_of_a_mixture_come_first(tmp_path):
    spec = "groma:{},{},form=regions".format(*write_groma(scenes(1), tmp_path, "regions"))
    assert open_source(f"{spec},tasks=rec").tasks == {"rec": 1.0}


def entry(number, **more):
    base = {"id": number, "file_name": "COCO_train2014_000000000007.jpg", "width": 40, "height": 20}
    return base | {"caption": "two dogs, ein Hündchen"} | more


def note(image, box, **more):
    return {"image_id": image, "bbox": box, "category_id": 1, "area": 4, **more}


def file(tmp_path, images, annotations, **more):
    picture(tmp_path / "images/000000000007.jpg")
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, **more}))
    return f"groma:{path},{tmp_path / 'images'}"


def test_odd_entries(tmp_path):
    spec = file(
        tmp_path,
        [entry(1), entry(1), entry(2, caption=None), entry(3, width="40"), entry(4, file_name="x"),
         entry(5), entry(6, caption="<image> here"), {"file_name": "y"}, entry(7)],
        [note(1, [4, 5, 0.5, 1]), note(1, [30, 10, 90, 90]), note(1, [4, 5, 0.5, 1]),
         note(1, [0, 0, 3, 3], ignore=1), note(1, [9, 9, -3, 3]), note(5, [1, 1, 0, 5]),
         note(6, [0, 0, 40, 20], iscrowd=1), note(6, "box"), note(99, [0, 0, 4, 4]), [],
         note(4, [0, 0, 4, 4])],
    )  # fmt: skip
    source = open_source(spec + ",max_bad=0.5")
    assert source.bad == 6 and len(source) == 2
    for what in ("images[1]: id 1 is there a second time", "images[2]: lacks 'caption'",
                 "images[3]: width and height", "images[7]: lacks 'id'",
                 "annotations[7]: bbox"):  # fmt: skip
        assert any(what in problem for problem in source.problems), source.problems
    assert source.counts == {
        "boxes without area": 2, "boxes of unlisted pictures": 1, "expressions without a box": 2,
        "pictures without a file": 1,
    }  # fmt: skip
    first, second = all_of(source)
    assert texts(first) == [
        ("two dogs, ein Hündchen", [(0.1, 0.25, 0.1125, 0.3), (0.75, 0.5, 1, 1)])
    ]
    assert second.expressions[0].text == "<image > here" and first.meta["image_id"] == 1


def test_wrong_forms(tmp_path):
    inside = [note(1, [0, 0, 9, 9], caption="a dog", tokens_positive=[[0, 3]])]
    spec = file(tmp_path, [entry(1)], inside)
    assert open_source(spec + ",form=regions")[0].expressions[0].text == "a dog"
    assert open_source(spec + ",form=flickr")[0].captions == ("<p>two</p><r:0> dogs, ein Hündchen",)
    with pytest.raises(UserError, match="form=cap: choose from rec, regions, flickr"):
        open_source(spec + ",form=cap")
    spec = file(tmp_path, [entry(1, caption=None)], inside)
    with pytest.raises(UserError, match=r"images\[0\]: lacks 'caption' .its annotations have one"):
        open_source(spec)
    spec = file(tmp_path, [entry(1)], [note(1, [0, 0, 9, 9])])
    with pytest.raises(UserError, match=r"annotations\[0\] lacks 'caption'"):
        open_source(spec + ",form=regions")
    with pytest.raises(UserError, match=r"annotations\[0\]: tokens_positive is None"):
        open_source(spec + ",form=flickr")
    (tmp_path / "a.json").write_text('{"images": [], "annotations": 3}')
    with pytest.raises(UserError, match="not in COCO's form: it has no list 'annotations'"):
        open_source(spec)
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(UserError, match=r"a\.json: expected an object"):
        open_source(spec)


def test_spans_of_captions(tmp_path):
    """Overlaps, spaces at the ends, several boxes, a lost box, a span outside."""
    caption = "a dog <p>and</p> a big cat run"

    def read(*annotations):
        spec = file(tmp_path, [entry(1, caption=caption)], list(annotations))
        return open_source(spec + ",form=flickr,max_bad=0")[0]

    dog, cat = [0, 0, 9, 9], [9, 9, 4, 4]
    e = read(
        note(1, dog, tokens_positive=[[0, 6], [2, 5]]),
        note(1, cat, tokens_positive=[[17, 26], [23, 26]]),
        note(1, dog, tokens_positive=[[17, 26]]),
        note(1, [3, 3, 0, 1], tokens_positive=[[27, 30]]),
    )
    assert e.captions == ("<p>a dog</p><r:0> <p >and</p > <p>a big cat</p><r:1><r:0> run",)
    assert len(e.regions) == 2
    with pytest.raises(UserError, match="characters 5 to 99 are not in a text of 30"):
        read(note(1, dog, tokens_positive=[[5, 99]]))


def test_odd_lvis_ground(tmp_path):
    picture(tmp_path / "val2017/000000000007.jpg")
    url = "http://images.cocodataset.org/val2017/000000000007.jpg"
    size = {"width": 40, "height": 20}
    images = [{"id": k, "coco_url": url, **size} for k in range(3)]
    images[0]["not_exhaustive_category_ids"] = [3]
    notes = [note(0, [1, 1, 5, 5], category_id=3), note(0, [2, 2, 9, 9], category_id=4),
             note(1, [1, 1, 5, 5], category_id=9)]  # fmt: skip
    categories = [{"id": 3, "name": "Stop_sign"}, {"id": 4, "name": "cat"}]
    data = {"images": images, "annotations": notes, "categories": categories}
    path = tmp_path / "lvis_test.json"
    path.write_text(json.dumps(data))
    source = open_source(f"lvis_ground:{path},{tmp_path},max_bad=0.5")
    assert len(source) == 1 and source.bad == 2 and "no category 9" in source.problems[0]
    assert "asks for nothing" in source.problems[1]
    assert source.counts == {"boxes of other categories": 1}
    e = source[0]
    assert e.meta["not_exhaustive"] == ["stop sign"] and e.meta["category_id"] == 3
    assert e.objects == e.regions and e.objects[0].label == e.expressions[0].text == "stop sign"
    path.write_text(json.dumps({**data, "categories": []}))
    with pytest.raises(UserError, match="no list 'categories'"):
        open_source(f"lvis_ground:{path},{tmp_path}")


def test_written_instructions_are_read_back(tmp_path):
    rows = scenes()
    source = open_source("groma_instruct:{},{}".format(*write_groma_instruct(rows, tmp_path)))
    assert source.measures().tolist() == [list(measure(e)) for e in source]
    assert not source.counts and len(source) == len(rows)
    for e, row in zip(all_of(source), rows, strict=True):
        assert e.turns == tuple(Turn(GROUNDING + t.user, t.assistant) for t in row.turns)
        assert places(e, range(len(e.regions))) == places(row, range(len(row.regions)))


def test_odd_instructions(tmp_path):
    picture(tmp_path / "images/VG_100K_2/7.jpg")
    box, flat = [4, 5, 8, 10], [4, 5, 0, 10]

    def row(answer, boxes=(box, flat), question="Why?", **more):
        said = [{"from": "human", "value": question}, {"from": "gpt", **answer}]
        size = {"file_name": "7.jpg", "width": 40, "height": 20}
        return {**size, "boxes": list(boxes), "conversation": said, **more}

    one = {"value": "<p>A dog</p> <roi><ground_box></roi>, <b>.", "box_inds": [0]}
    rows = [
        row(one, question="<roi><refer_box></roi><refer_feat> <image>"),
        row(one),
        row(one | {"box_inds": [1]}),
        row(one | {"box_inds": [2]}),
        row(one | {"box_inds": [0, 0]}),
        row(one | {"box_inds": []}),
        row(one | {"box_inds": 5}),
        row({"value": None}),
        row(one, conversation=[{"value": "x"}]),
        row(one, boxes=["box"]),
        row(one, file_name="gone.jpg"),
    ]
    rows[0]["conversation"][0]["box_inds"] = [0]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(rows))
    source = open_source(f"groma_instruct:{path},{tmp_path / 'images'},max_bad=0.8")
    assert source.bad == 8 and len(source) == 2
    assert source.measures().tolist() == [list(measure(e)) for e in source]
    wanted = ("points at boxes[1], which has no area", "box_inds has 2", "fewer boxes",
              "more boxes", "conversation[1]: 'int' object", "value is None", "has 1 messages",
              "boxes[0] box")  # fmt: skip
    for problem, what in zip(source.problems, wanted, strict=True):
        assert what in problem
    assert source[0].turns[0].user == GROUNDING + "<r:0> <image >"
    assert source[1].turns == (Turn(GROUNDING + "Why?", "<p>A dog</p> <r:0>, <b>."),)
    assert places(source[1], [0]) == [(0.1, 0.25, 0.3, 0.75)]
