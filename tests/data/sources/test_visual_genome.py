"""Visual Genome: written scenes, and rows of its versions."""

import json

import numpy as np
import pytest

from mg_jax.data.sources import open_source
from mg_jax.data.write import write_vg
from mg_jax.errors import UserError
from tests.data.sources.grounded_scenes import all_of, picture, places, scenes, texts


def relations(example):
    return [
        (*places(example, [a]), text, *places(example, [b])) for a, text, b in example.relations
    ]


def test_written_scenes_are_read_back(tmp_path):
    rows = scenes()
    source = open_source(f"vg:{write_vg(rows, tmp_path)}")
    got = all_of(source)
    assert not source.counts and len(got) == len(rows)
    for e, row in zip(got, rows, strict=True):
        assert texts(e) == [t for t in texts(row) if len(t[1]) == 1]
        assert relations(e) == relations(row)
        np.testing.assert_allclose([r.box for r in e.objects], [r.box for r in row.objects])
        assert [r.label for r in e.objects] == [r.label for r in row.objects]
        assert e.meta["not_exhaustive"] == sorted({r.label for r in row.objects})
        np.testing.assert_array_equal(e.pixels(), row.pixels())
    assert "rec" not in source.tasks


def test_parts(tmp_path):
    folder = write_vg(scenes(2), tmp_path)
    (folder / "relationships.json").unlink()
    e = open_source(f"vg:{folder}")[0]
    assert e.expressions and e.objects and not e.relations
    e = open_source(f"vg:{folder},parts=objects")[0]
    assert e.objects and not e.expressions and not e.regions
    with pytest.raises(UserError, match=r"relationships\.json: no such file"):
        open_source(f"vg:{folder},parts=objects+relationships")
    with pytest.raises(UserError, match="parts=boxes: choose from regions"):
        open_source(f"vg:{folder},parts=boxes")
    (tmp_path / "flat").mkdir()
    for file in (folder / "VG_100K").iterdir():  # both folders of pictures put together
        file.rename(tmp_path / "flat" / file.name)
    with pytest.raises(UserError, match="holds none of the 2 pictures.*VG_100K/1.png"):
        open_source(f"vg:{folder}")
    assert len(open_source(f"vg:{folder},{tmp_path / 'flat'}")) == 2
    for file in ("region_descriptions.json", "objects.json"):
        (folder / file).unlink()
    with pytest.raises(UserError, match="holds none of region_descriptions.json, objects.json"):
        open_source(f"vg:{folder}")


def vg(tmp_path, **parts):
    """Five pictures, the last without a file; parts by the name of their file."""
    for n, folder in ((1, "VG_100K"), (2, "VG_100K_2"), (3, "VG_100K"), (4, "VG_100K")):
        picture(tmp_path / folder / f"{n}.jpg")
    url = "https://cs.stanford.edu/people/rak248/{}/{}.jpg"
    pictures = [
        {"image_id": 1, "url": url.format("VG_100K", 1), "width": 40, "height": 20},
        {"id": 2, "url": url.format("VG_100K_2", 2), "width": 40, "height": 20},  # version 1.0
        {"image_id": 3, "url": url.format("VG_100K", 3), "width": 40, "height": 20},
        {"image_id": 4, "url": url.format("VG_100K", 4), "width": 40, "height": 20},
        {"image_id": 9, "url": url.format("VG_100K", 9), "width": 40, "height": 20},
    ]
    for name, rows in {"image_data": pictures, **parts}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    return f"vg:{tmp_path}"


def region(phrase, x=4, y=5, width=8, height=10, **more):
    return {
        "region_id": 1,
        "x": x,
        "y": y,
        "width": width,
        "height": height,
        "phrase": phrase,
    } | more


def thing(x=4, y=5, w=8, h=10, **more):
    return {"object_id": 1, "x": x, "y": y, "w": w, "h": h} | more


def test_odd_rows(tmp_path):
    bus = thing(name="bus", x=9)
    spec = vg(
        tmp_path,
        region_descriptions=[
            {"id": 1, "regions": [region(" a <p>dog</p> "), region("собака"), region(""),
                                  region("1 px", width=1, height=1), region("flat", height=0),
                                  region("outside", x=-9, y=-9), region("cut", x=-4, y=-5)]},
            {"id": 2, "regions": [region("ok"), region(None)]},
            {"id": 3, "regions": []},
            {"id": 7, "regions": [region("of nothing")]},
            {"id": 1, "regions": [region("twice")]},
            {"regions": []},
            "no row",
        ],
        objects=[
            {"image_id": 1, "objects": [thing(names=["Dog", "pet"], merged_object_ids=[2]),
                                        thing(name="cat", id=7), thing(names=[]), thing(w="8")]},
            {"image_id": 2, "objects": [thing(names=["Dog", "pet"]), thing(name="cat", x=0.5),
                                        thing(names=[" ", None]), thing(w=0, names=["x"])]},
        ],
        relationships=[
            {"image_id": 2, "relationships": [
                {"predicate": "ON", "subject": thing(names=["man"]), "object": bus},
                {"predicate": " on", "subject": thing(names=["man"]), "object": bus},
                {"predicate": "", "subject": thing(), "object": thing(x=9)},
                {"predicate": "by", "subject": thing(w=0), "object": thing(x=9)}]},
            {"image_id": 3, "relationships": [{"predicate": "by", "subject": thing()}]},
        ],
    )  # fmt: skip
    source = open_source(spec + ",max_bad=0.4")
    assert source.bad == 5 and len(source) == 2
    for what in ("region_descriptions.json: [1]: regions[1]: phrase is None", "[5]: image_id",
                 "[6]: expected an object", "objects.json: [0]: objects[3]: x, y, width, height",
                 "relationships.json: [1]: relationships[0]: lacks 'object'"):  # fmt: skip
        assert any(what in problem for problem in source.problems), source.problems
    assert source.counts == {
        "boxes without area": 4, "empty descriptions": 1, "pictures without a file": 1,
        "pictures without annotations": 2, "relationships without both boxes or a predicate": 2,
        "rows of regions without a picture of theirs": 2,
    }  # fmt: skip
    first, second = all_of(source)
    box = (0.1, 0.25, 0.3, 0.75)
    assert texts(first) == [("a <p >dog</p >", [box]), ("собака", [box]),
                            ("1 px", [(0.1, 0.25, 0.125, 0.3)]),
                            ("cut", [(0, 0, 0.1, 0.25)])]  # fmt: skip
    assert first.objects == () and not second.expressions
    assert [r.label for r in second.objects] == ["Dog", "cat", None]
    assert second.image.endswith("VG_100K_2/2.jpg") and second.meta["image_id"] == 2
    ((a, predicate, b),) = second.relations
    assert [second.regions[k].label for k in (a, b)] == ["man", "bus"] and predicate == "on"
    assert second.meta["not_exhaustive"] == ["Dog", "bus", "cat", "man"]


def test_useless_files(tmp_path):
    spec = vg(tmp_path, objects=[{"image_id": 1, "objects": [thing(x=500, names=["x"])] * 3}])
    with pytest.raises(UserError, match="3 of its 3 boxes have no area"):
        open_source(spec)
    (tmp_path / "objects.json").write_text("{}")
    with pytest.raises(UserError, match=r"objects\.json"):
        open_source(spec)
    (tmp_path / "image_data.json").write_text("{}")
    with pytest.raises(UserError, match=r"image_data\.json: expected a list of pictures"):
        open_source(spec)
