"""Open Images: csv files of boxes, classes and verified labels."""

import pytest

from mg_jax.data.sources import open_source
from mg_jax.data.write import write_openimages
from mg_jax.errors import UserError
from tests.data.sources.boxed_scenes import all_of, assert_boxes, picture, scenes

HEAD = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf"
TRAIN = HEAD + ",IsDepiction,IsInside,XClick1X,XClick2X,XClick3X,XClick4X"


def spec(*paths):
    return "openimages:" + ",".join(map(str, paths))


def test_written_scenes_are_read_back(tmp_path):
    rows = scenes()
    boxes, images, classes, labels = write_openimages(rows, tmp_path)
    for place in (images, tmp_path):
        source = open_source(spec(boxes, place, classes, labels))
        got = all_of(source)
        assert_boxes(got, rows, atol=2e-6)
        assert [e.absent for e in got] == [e.absent for e in rows]
        assert got[0].meta["image_id"] == f"{1:016x}" and got[0].width == 96
    without = open_source(spec(boxes, images, classes))
    assert_boxes(all_of(without), rows, atol=2e-6)
    assert without[0].absent == ()
    assert open_source(spec(boxes, images, classes) + ",head=sa1b").head == "sa1b"


def test_train_folders_and_old_headers(tmp_path):
    picture(tmp_path / "train_0/00ab.jpg", 30, 40)
    (tmp_path / "classes.csv").write_text('/m/1,Tortoise\n/m/2,"Fiat 500 ""topolino"""\n')
    (tmp_path / "boxes.csv").write_text(
        f"{TRAIN}\n00ab,activemil,/m/2,1,0.5,1.0,0.25,0.75,-1,-1,-1,-1,-1,,,,\n"
    )
    (e,) = all_of(open_source(spec(*(tmp_path / p for p in ("boxes.csv", "", "classes.csv")))))
    assert (e.width, e.height) == (30, 40) and e.objects[0].label == 'Fiat 500 "topolino"'
    assert e.objects[0].box == (0.5, 0.25, 1.0, 0.75)  # columns by name: XMax before YMin


def test_a_malformed_class_is_counted(tmp_path):
    text = odd(tmp_path, ["aa,x,/m/1,1,0.1,0.2,0.3,0.4,0,0,0"] * 3)
    (tmp_path / "classes.csv").write_text("/m/1,Tortoise\n/m/2\n")
    source = open_source(text + ",max_bad=0.3")
    assert source.bad == 1 and len(source[0].objects) == 3
    assert "classes.csv:2: expected rows of a class and its name" in source.problems[0]
    with pytest.raises(UserError, match=r"classes.csv:2: .*1 of 4 records"):
        open_source(text)


def odd(tmp_path, boxes, labels=""):
    for name in ("aa", "bb", "cc"):
        picture(tmp_path / f"pics/{name}.jpg")
    (tmp_path / "classes.csv").write_text("LabelName,DisplayName\n/m/1,Tortoise\n/m/2,Cup\n")
    (tmp_path / "boxes.csv").write_text("\n".join([HEAD, *boxes]) + "\n")
    (tmp_path / "labels.csv").write_text("ImageID,Source,LabelName,Confidence\n" + labels)
    return spec(*(tmp_path / p for p in ("boxes.csv", "pics", "classes.csv", "labels.csv")))


def test_odd_rows(tmp_path):
    rows = [
        "aa,x,/m/1,1,0.1,0.2,0.3,0.4,0,0,0",
        "aa,x,/m/1,1,0.1,0.2,0.3,0.4,0,0,1",
        "aa,x,/m/1,1,0.9,1.2,0.3,0.4,0,0,0",  # past the border
        "aa,x,/m/1,1,0.2,0.1,0.3,0.4,0,0,0",  # reversed
        "bb,x,/m/2,1,0.1,0.2,0.3,0.4,0,0,1",  # a group alone
        "gone,x,/m/2,1,0.1,0.2,0.3,0.4,0,0,0",
        "gone,x,/m/2,1,0.1,0.2,0.3,0.4,0,0,0",
        "",
        "aa,x,/m/9,1,0.1,0.2,0.3,0.4,0,0,0",
        "aa,x,/m/1,1,0.1,none,0.3,0.4,0,0,0",
        "aa,x,/m/1,1,0.1",
    ]
    labels = "aa,v,/m/2,0\naa,v,/m/1,0\ncc,v,/m/1,0\ncc,v,/m/2,1\naa,v,/m/7,0\naa,v,/m/1,no\n"
    text = odd(tmp_path, rows, labels)
    with pytest.raises(UserError, match=r"boxes.csv:10: LabelName '/m/9'.*4 of 16 records"):
        open_source(text)
    source = open_source(text + ",max_bad=0.3")
    assert [p.removeprefix(f"{tmp_path}/")[:12] for p in source.problems[1:]] == [
        "boxes.csv:11", "boxes.csv:12", "labels.csv:7"
    ]  # fmt: skip
    assert source.counts == {
        "boxes without area": 1,
        "pictures without a file": 1,
        "pictures without boxes": 1,
        "absent classes without a name": 1,
    }
    (first,) = all_of(source)
    assert len(first.objects) == 2 and first.objects[1].box[2] == 1 and len(first.crowd) == 1
    assert first.absent == ("Cup",)  # Tortoise has a box, whatever its label says
    kept = all_of(open_source(text + ",max_bad=0.3,empty=keep"))
    assert [(e.meta["image_id"], e.absent) for e in kept] == [
        ("aa", ("Cup",)), ("bb", ()), ("cc", ("Tortoise",))
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("boxes.csv", "a,b\n", "no column 'ImageID' in line 1"),
        ("boxes.csv", "", "no column"),
        ("boxes.csv", f"{HEAD}\nzz,x,/m/1,1,0.1,0.2,0.3,0.4,0,0,0\n", "none of the 1 .*zz.jpg"),
        ("boxes.csv", b"\xff\xfe\x00", "no readable csv"),
        ("classes.csv", "/m/1\n", "rows of a class and its name"),
        ("classes.csv", "LabelName,DisplayName\n", "rows of a class and its name"),
        ("labels.csv", "x\n", "labels.csv: not of Open Images"),
        (
            "boxes.csv",
            "\n".join([HEAD, *["aa,x,/m/1,1,10,20,30,40,0,0,0"] * 12]),
            "in shares of 1, they look like percent",
        ),
    ],
)
def test_malformed_files(tmp_path, file, content, message):
    text = odd(tmp_path, ["aa,x,/m/1,1,0.1,0.2,0.3,0.4,0,0,0"])
    (tmp_path / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message):
        open_source(text)


def test_unreadable_pictures_are_found_when_asked_for(tmp_path):
    text = odd(tmp_path, ["aa,x,/m/1,1,0.1,0.2,0.3,0.4,0,0,0", "bb,x,/m/1,1,0.1,0.2,0.3,0.4,0,0,0"])
    source = open_source(text)
    (tmp_path / "pics/aa.jpg").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"aa\.jpg: is not a picture"):
        source[0]
    assert source[1].width == 40
