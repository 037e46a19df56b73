"""COCO's form in all its uses: COCO itself, Objects365, V3Det, LVIS."""

import json
import pickle
import shutil

import pytest
from PIL import Image

from mg_jax.data.sources import open_source
from mg_jax.data.write import write_coco, write_lvis, write_objects365, write_v3det
from mg_jax.errors import BadRecord, UserError
from tests.data.sources.boxed_scenes import all_of, assert_boxes, picture, scenes


def spec(kind, paths):
    return "{}:{},{}".format(kind, *paths)


def change(path, **lists):
    """Give the rows of a json other values: name=function of a row."""
    data = json.loads(path.read_text())
    for name, make in lists.items():
        for row in data[name]:
            make(row)
    path.write_text(json.dumps(data))


def test_objects365_in_patches_and_flat(tmp_path):
    rows = scenes()
    paths = write_objects365(rows, tmp_path)
    assert sorted(p.name for p in (tmp_path / "train").iterdir()) == ["patch0", "patch1"]
    source = open_source(spec("objects365", paths))
    assert_boxes(all_of(source), rows)
    assert source[0].meta["file_name"] == "images/v1/patch1/objects365_v1_00000001.jpg"
    assert source[0].absent and not source.counts  # every class is looked for everywhere
    for file in (tmp_path / "train").rglob("*.jpg"):
        shutil.copy(file, tmp_path / file.name)
    assert_boxes(all_of(open_source(spec("objects365", (paths[0], tmp_path)))), rows)
    whole = tmp_path / "images/v1"
    whole.parent.mkdir()
    (tmp_path / "train").rename(whole)
    assert_boxes(all_of(open_source(spec("objects365", (paths[0], tmp_path)))), rows)
    (whole / "patch0/objects365_v1_00000002.jpg").unlink()
    (tmp_path / "objects365_v1_00000002.jpg").unlink()
    change(paths[0], categories=lambda row: row.update(name=row["name"] + " "))
    source = open_source(spec("objects365", (paths[0], tmp_path)))
    assert source.counts == {"pictures without a file": 1}
    assert_boxes(all_of(source), rows[:1] + rows[2:])  # "Table Tennis " has no space


def test_v3det(tmp_path):
    rows = scenes()
    paths = write_v3det(rows, tmp_path)
    for images in (tmp_path, tmp_path / "images"):
        source = open_source(spec("v3det", (paths[0], images)))
        assert_boxes(all_of(source), rows)
        assert source[0].meta["file_name"].startswith("images/a0000")
        assert source[0].absent == ()  # categories are marked where they were looked for


@pytest.mark.parametrize("version", ["v1", "v0.5"])
def test_lvis(tmp_path, version):
    rows = scenes()
    rows[1].meta["not_exhaustive"] = ["purple élan"]
    paths = write_lvis(rows, tmp_path, version)
    for images in (tmp_path, tmp_path / "train2017"):
        source = open_source(spec("lvis", (paths[0], images)))
        got = all_of(source)
        assert_boxes(got, rows, crowd=False)
        assert [e.absent for e in got] == [e.absent for e in rows]
        assert got[1].meta["not_exhaustive"] == ["purple élan"]
        assert got[0].meta["not_exhaustive"] == []
    names = json.loads(paths[0].read_text())["images"][0]
    assert ("file_name" in names) == (version == "v0.5")
    copy = pickle.loads(pickle.dumps(source))  # worker processes get copies
    assert copy[1].meta == source[1].meta and copy[1].objects == source[1].objects


def test_lvis_synonyms_and_malformed_pictures(tmp_path):
    rows = scenes(3)
    path, images = write_lvis(rows, tmp_path)
    first = rows[0].objects[0].label
    data = json.loads(path.read_text())
    for row in data["categories"]:
        row["synonyms"] = [row["name"], row["name"] + "_thing", 3]
    data["images"][1]["neg_category_ids"] = [{}]
    del data["images"][2]["coco_url"]
    path.write_text(json.dumps(data))
    with pytest.raises(UserError, match=r"images\[1\]: category ids \[\{\}\] are no list"):
        open_source(f"lvis:{path},{images}")
    source = open_source(f"lvis:{path},{images},max_bad=0.5")
    assert source.bad == 2 and "images[2]: lacks 'coco_url'" in source.problems[1]
    assert source[0].meta["synonyms"][first] == [f"{first} thing"]


def test_lvis_of_the_official_sample(shared, tmp_path):
    path = shared / "data/lvis_val_100.json"
    data = json.loads(path.read_text())
    (tmp_path / "val2017").mkdir()
    (tmp_path / "old").mkdir()
    for row in data["images"]:
        (tmp_path / "val2017" / row["coco_url"].rpartition("/")[2]).touch()
        (tmp_path / "old" / row["file_name"]).touch()
    sources = [
        open_source(f"lvis:{path},{tmp_path / images},empty=keep")
        for images in ("", "val2017", "old")
    ]
    names = {row["id"]: row["name"].replace("_", " ") for row in data["categories"]}
    for source in sources:
        assert len(source) == len(data["images"]) == 100
        assert sum(len(e.objects) for e in all_of(source)) == len(data["annotations"])
        for example, row in zip(all_of(source), data["images"], strict=True):
            assert sorted(example.absent) == sorted(names[k] for k in row["neg_category_ids"])
            mine = [a for a in data["annotations"] if a["image_id"] == row["id"]]
            assert [r.label for r in example.objects] == [names[a["category_id"]] for a in mine]
            for region, note in zip(example.objects, mine, strict=True):
                x, y, w, h = note["bbox"]
                scale = (row["width"], row["height"]) * 2
                edges = [v / s for v, s in zip((x, y, x + w, y + h), scale, strict=True)]
                assert region.box == pytest.approx(edges, abs=1e-5)


def coco(tmp_path, images, annotations, categories=({"id": 1, "name": "cat"},)):
    data = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "a.json").write_text(json.dumps(data))
    return f"coco:{tmp_path / 'a.json'},{tmp_path / 'pics'}"


def row(n, name, width=40, height=20):
    return {"id": n, "file_name": name, "width": width, "height": height}


def box(n, *numbers, **more):
    return {"image_id": n, "category_id": 1, "bbox": list(numbers), **more}


def test_file_names_with_folders(tmp_path):
    for name in ("a.png", "b.png", "sub/c.png"):
        picture(tmp_path / "pics" / name)
    names = ["pics/a.png", "..\\elsewhere\\b.png", "sub/c.png", "other/a.png"]
    images = [row(n, name) for n, name in enumerate(names)]
    text = coco(tmp_path, images, [box(n, 1, 2, 3, 4) for n in range(4)])
    source = open_source(text + ",max_bad=0.2")
    assert [e.meta["file_name"] for e in all_of(source)] == [
        "pics/a.png", "../elsewhere/b.png", "sub/c.png"
    ]  # fmt: skip
    assert source.bad == 1 and "stands for pics/a.png" in source.problems[0]
    assert all(e.pixels().shape == (20, 40, 3) for e in all_of(source))


def test_odd_records(tmp_path):
    for name in ("a.png", "ünï¢ode 猫.png", "small.png", "bare.png"):
        picture(tmp_path / "pics" / name, *((12, 12) if name == "small.png" else (40, 20)))
    images = [
        row(1, "a.png", 40.0, 20.0),  # floats that are whole, as some tools write
        row("2", "ünï¢ode 猫.png"),
        row(3, "small.png", 12, 12),
        row(4, "bare.png"),
        row(1, "a.png"),  # an id that is there already
        row(6, "a.png", 40.5, 20),
        row(7, "a.png", float("nan"), 20),
        row(True, "a.png"),
        "picture",
    ]
    notes = [
        box(1, 0.25, 0.5, 10.5, 5.125),
        box(1, 39, 19, 1, 1),  # one pixel
        box(1, 10, 10, -5, -5),  # reversed
        box(1, 5, 5, 4, 4, category_id=99),
        box("2", 0, 0, 40, 20, iscrowd=1),
        box("2", 1, 1, 2, 2, ignore=1),
        box("2", 3, 3, 4, 4),
        box(3, 1, 1, 5, 5),
        box(77, 1, 1, 5, 5),
        box(1, 1, 1, 5, "5"),
        box(1, 1, 1, 5, 5, category_id=[1]),
        {"bbox": [1, 1, 5, 5]},
    ]
    text = coco(tmp_path, images, notes)
    with pytest.raises(UserError, match=r"images\[4\]: id 1 .*8 of 21 records"):
        open_source(text)
    source = open_source(text + ",max_bad=0.5")
    assert [p.partition(": ")[2][:14] for p in source.problems] == [
        "images[4]: id ", "images[5]: wid", "images[6]: wid", "images[7]: id ", "images[8]: exp",
        "annotations[9]", "annotations[10", "annotations[11",
    ]  # fmt: skip
    assert source.counts == {
        "boxes without area": 1,
        "boxes of unlisted pictures": 1,
        "pictures without boxes": 1,
    }
    first, second, third = all_of(source)
    assert [r.label for r in first.objects] == ["cat", "cat", None]
    assert first.objects[0].box == pytest.approx((0.25 / 40, 0.5 / 20, 10.75 / 40, 5.625 / 20))
    assert first.objects[1].box == pytest.approx((39 / 40, 19 / 20, 1, 1))
    assert len(second.crowd) == 2 and len(second.objects) == 1
    assert second.pixels().shape == (20, 40, 3) and third.meta["file_name"] == "small.png"
    source = open_source(text + ",max_bad=0.5,min_side=13,empty=keep")
    assert [e.meta["image_id"] for e in all_of(source)] == [1, "2", 4]
    assert source.counts["pictures with a side below 13 px"] == 1
    with pytest.raises(UserError, match="min_side=-1"):
        open_source(text + ",min_side=-1")


def test_turned_and_cmyk_photos(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "pics").mkdir()
    Image.new("RGB", (40, 20)).save(tmp_path / "pics/turned.jpg", exif=exif)
    Image.new("CMYK", (40, 20), (255, 0, 0, 0)).save(tmp_path / "pics/cmyk.jpg")
    images = [row(1, "turned.jpg", 20, 40), row(2, "cmyk.jpg"), row(3, "turned.jpg", 40, 20)]
    shown, cmyk, stored = all_of(
        open_source(coco(tmp_path, images, [box(n, 1, 2, 3, 4) for n in (1, 2, 3)]))
    )
    assert shown.pixels().shape == (40, 20, 3)
    assert cmyk.pixels().shape == (20, 40, 3) and cmyk.pixels()[0, 0, 0] < 60
    with pytest.raises(BadRecord, match="picture is 20x40 px but the annotation says 40x20") as e:
        stored.pixels()  # the boxes are of the picture as stored, so they would be misplaced
    assert str(e.value).startswith(f"{tmp_path / 'pics/turned.jpg'}: example 'a-3' of a: ")
    assert "40x20: EXIF turns it: correct sides and boxes" in str(e.value)
    Image.new("RGB", (20, 40)).save(tmp_path / "pics/turned.jpg")  # the same sides, without EXIF
    with pytest.raises(BadRecord, match=r"turned\.jpg: .* 40x20: correct the annotation file$"):
        stored.pixels()


def test_lists_in_any_order_and_in_pieces(tmp_path, monkeypatch):
    rows = scenes()
    path, images = write_coco(rows, tmp_path)
    data = json.loads(path.read_text())
    want = all_of(open_source(f"coco:{path},{images}"))
    monkeypatch.setattr("mg_jax.data.sources.json_rows._CHUNK", 1 << 9)
    for order in ("annotations images categories", "categories annotations images"):
        data = {"info": {"year": 2017}, **{key: data[key] for key in order.split()}, "x": None}
        path.write_text(json.dumps(data, indent=1))
        got = all_of(open_source(f"coco:{path},{images}"))
        assert [(e.id, e.objects, e.crowd) for e in got] == [
            (e.id, e.objects, e.crowd) for e in want
        ]
    path.write_text(json.dumps(data)[:-30])
    with pytest.raises(UserError, match="annotations.json: no valid JSON"):
        open_source(f"coco:{path},{images}")
    path.write_text("[1]")
    with pytest.raises(UserError, match="expected an object"):
        open_source(f"coco:{path},{images}")


def test_a_malformed_category_is_counted(tmp_path):
    rows = ({"id": 1, "name": "cat"}, {"id": 2, "name": None})
    picture(tmp_path / "pics" / "1.png")
    text = coco(tmp_path, [row(1, "1.png")], [box(1, 1, 1, 5, 5)], rows)
    source = open_source(text + ",max_bad=0.9")
    assert source.bad == 1 and "categories[1]: name is None" in source.problems[0]
    assert [r.label for r in source[0].objects] == ["cat"]
