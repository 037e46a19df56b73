"""Ultralytics-style folders in the layouts that are around."""

import pytest

from mg_jax.data.sources import open_source
from mg_jax.data.write import write_yolo
from mg_jax.errors import UserError
from tests.data.sources.boxed_scenes import all_of, assert_boxes, picture, scenes


def by_number(example):
    return "val" if int(example.id.rpartition("-")[2]) % 3 == 2 else "train"


def test_written_scenes_are_read_back(tmp_path):
    rows = scenes(6)
    folder = write_yolo(rows, tmp_path / "set", by_number)
    want = {part: [e for e in rows if by_number(e) == part] for part in ("train", "val")}
    for text, part in (
        (f"{folder},split=train", "train"),
        (f"{folder},split=val", "val"),
        (f"{folder},split=heldout", "val"),
        (f"{folder}/data.yaml,split=val", "val"),
    ):
        assert_boxes(all_of(open_source(f"yolo:{text}")), want[part], crowd=False)
    everything = open_source(f"yolo:{folder}")
    assert_boxes(all_of(everything), want["train"] + want["val"], crowd=False)
    assert everything[0].id.startswith("set-images/train/") and everything[0].width == 96
    assert everything[0].absent  # every class is looked for everywhere
    with pytest.raises(UserError, match="has no split 'test', but train, val"):
        open_source(f"yolo:{folder},split=test")
    with pytest.raises(UserError, match="split=dev"):
        open_source(f"yolo:{folder},split=dev")


def small(root, parts, names="names: [cat, dog]\n", yaml=""):
    """A picture with a box in each folder of pictures: {folder of pictures: of txt files}."""
    for n, (images, labels) in enumerate(parts.items()):
        picture(root / images / f"p{n}.jpg")
        (root / labels).mkdir(parents=True, exist_ok=True)
        (root / labels / f"p{n}.txt").write_text(f"{n % 2} 0.5 0.5 0.25 0.5\n")
    if names:
        (root / "data.yaml").write_text(names + yaml)
    return root


def found(text):
    return [e.meta["file_name"] for e in all_of(open_source(f"yolo:{text}"))]


def test_layouts(tmp_path):
    parts = {"train/images": "train/labels", "valid/images": "valid/labels"}
    yaml = "train: ../train/images\nval: ../valid/images\n"  # as Roboflow writes it
    root = small(tmp_path / "roboflow", parts, yaml=yaml)
    assert found(f"{root},split=train") == ["train/images/p0.jpg"]
    assert found(f"{root},split=val") == ["valid/images/p1.jpg"]
    root = small(tmp_path / "folders_alone", parts)
    assert found(f"{root},split=heldout") == ["valid/images/p1.jpg"]
    root = small(tmp_path / "flat", {"images": "labels"}, names="")
    (root / "classes.txt").write_text("ünïcode cat\n\ndog\n")
    assert found(root) == ["images/p0.jpg"]
    assert open_source(f"yolo:{root}")[0].objects[0].label == "ünïcode cat"
    root = small(tmp_path / "beside", {"": ""}, names="")
    (root / "obj.names").write_text("cat\ndog\n")
    assert found(root) == ["p0.jpg"]
    parts = {"images/train2017": "labels/train2017", "images/val2017": "labels/val2017"}
    yaml = "path: ../datasets/coco\ntrain: train2017.txt\nval: [images/val2017]\ntest: gone.txt\n"
    root = small(tmp_path / "coco", parts, "names:\n  0: cat\n  1: dog\n", yaml)
    (root / "train2017.txt").write_text("./images/train2017/p0.jpg\n./images/train2017/no.jpg\n")
    assert found(f"{root},split=train") == ["images/train2017/p0.jpg"]
    assert found(f"{root},split=val") == ["images/val2017/p1.jpg"]
    source = open_source(f"yolo:{root}")
    assert len(source) == 2 and source.counts == {
        "pictures without a file": 1,
        "lists of pictures that are missing": 1,
    }
    with pytest.raises(UserError, match=r"gone\.txt: no such file or folder"):
        open_source(f"yolo:{root},split=test")


def test_splits_by_name_where_there_are_none(tmp_path):
    root = tmp_path
    (root / "labels").mkdir()
    for n in range(40):
        picture(root / f"images/{n}.png", 8, 8)
        (root / f"labels/{n}.txt").write_text("0 .5 .5 .5 .5\n")
    (root / "classes.txt").write_text("cat\n")
    train, held = (set(found(f"{root},split={s}")) for s in ("train", "heldout"))
    assert not train & held and len(train | held) == 40 and 2 <= len(held) <= 16
    with pytest.raises(UserError, match="has no split 'val': choose train, heldout, all"):
        open_source(f"yolo:{root},split=val")


def test_rows(tmp_path):
    root = small(tmp_path, {"images": "labels"})
    for name in ("blank", "none"):
        picture(root / f"images/{name}.jpg")
    (root / "labels/blank.txt").write_text("\n \n")
    (root / "labels/p0.txt").write_text(
        "0 0.5 0.5 0.25 0.5\n"
        "\n"
        "1 0.1 0.2 0.4 0.2 0.4 0.6 0.1 0.6\n"  # a box given by its corners
        "1.0 0.2 0.9 0.5 0.3 0.8 0.8\n"  # a triangle
        "0 0.5 0.5 0.25 0.5\n"  # there twice
        "0 0.95 0.5 0.2 0.2\n"  # past the border
        "0 0.5 0.5 0 0.5\n"  # no width
        "0 0.0125 0.025 0.025 0.05\n"  # the first pixel
        "2 0.5 0.5 0.25 0.5\n"
        "0 0.5 0.5 0.25\n"
        "0 0.5 0.5 0.25 0.5 0.9\n"
        "cat 0.5 0.5 0.25 0.5\n"
        "0.5 0.5 0.5 0.25 0.5\n"
        "0 nan 0.5 0.25 0.5\n"
    )
    with pytest.raises(UserError, match=r"p0\.txt:9: class 2, but names are given for 2"):
        open_source(f"yolo:{root}")
    source = open_source(f"yolo:{root},max_bad=0.4")
    assert [p.partition("p0.txt:")[2].partition(":")[0] for p in source.problems] == [
        "9", "10", "11", "12", "13"
    ]  # fmt: skip
    assert source.counts == {
        "boxes that are there twice": 1,
        "boxes without area": 2,
        "pictures without boxes": 2,
    }
    (e,) = all_of(source)
    assert [r.label for r in e.objects] == ["cat", "dog", "dog", "cat", "cat"]
    want = [(0.375, 0.25, 0.625, 0.75), (0.1, 0.2, 0.4, 0.6), (0.2, 0.3, 0.8, 0.9),
            (0.85, 0.4, 1, 0.6), (0, 0, 0.025, 0.05)]  # fmt: skip
    for region, box in zip(e.objects, want, strict=True):
        assert region.box == pytest.approx(box, abs=1e-6)
    assert len(open_source(f"yolo:{root},max_bad=0.4,empty=keep")) == 3
    (root / "labels/blank.txt").write_bytes(b"\xff\xfe0")
    assert "blank.txt: is no UTF-8" in open_source(f"yolo:{root},max_bad=0.4").problems[0]


def test_key_points_are_passed_over(tmp_path):
    root = small(tmp_path, {"images": "labels"}, yaml="kpt_shape: [2, 3]\n")
    (root / "labels/p0.txt").write_text("0 0.5 0.5 0.25 0.5 0.9 0.9 2 0.1 0.1 1\n")
    (e,) = all_of(open_source(f"yolo:{root}"))
    assert e.objects[0].box == (0.375, 0.25, 0.625, 0.75)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: (r / "data.yaml").unlink(), "no data.yaml and no classes.txt"),
        (lambda r: (r / "data.yaml").write_text("a: [\n"), "data.yaml: no valid YAML"),
        (lambda r: (r / "data.yaml").write_text("nc: 2\n"), "expected names:"),
        (lambda r: (r / "data.yaml").write_text("names: 3\n"), "no list and no table"),
        (lambda r: (r / "data.yaml").write_text("names: [a]\ntrain: 3\n"), "expected a folder or"),
        (lambda r: (r / "data.yaml").rename(r / "a.yaml").with_name("b.yaml").touch(),
         "has 2 yaml files"),
        (lambda r: (r / "labels").rename(r / "label"), r"none of its 1 pictures has a txt file, .*"
         r"labels/p0\.txt or .*images/p0\.txt"),
        (lambda r: (r / "images/p0.jpg").unlink(), "holds no pictures for split=all"),
        (lambda r: (r / "labels/p0.txt").write_text("0 320 240 100 50\n"), "look like pixels"),
    ],
)  # fmt: skip
def test_bad_folders(tmp_path, change, message):
    root = small(tmp_path, {"images": "labels"})
    change(root)
    with pytest.raises(UserError, match=message):
        open_source(f"yolo:{root}")


def test_turned_photos_are_taken_as_shown(tmp_path):
    from PIL import Image

    root = small(tmp_path, {"images": "labels"})
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(root / "images/p0.jpg", exif=exif)
    e = open_source(f"yolo:{root}")[0]
    assert (e.width, e.height) == (20, 40) and e.pixels().shape == (40, 20, 3)
