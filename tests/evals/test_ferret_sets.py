"""Ferret's published tests asked from their own files; launch.published."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from launch import published
from mg_jax.answer import Answer, Phrase
from mg_jax.data.regions import rasterise
from mg_jax.errors import UserError
from mg_jax.evals.choosing import published_region
from mg_jax.evals.ferret_sets import SETS, open_set, plain_text
from tests.ferret_micro import save_random

XML = (
    "<annotation><object><name>1</name><bndbox><xmin>10</xmin><ymin>10</ymin><xmax>30</xmax>"
    "<ymax>20</ymax></bndbox></object><object><name>1</name><bndbox><xmin>30</xmin><ymin>10</ymin>"
    "<xmax>50</xmax><ymax>40</ymax></bndbox></object></annotation>"
)


@pytest.fixture
def files(tmp_path):
    """A file of each set about one picture of 100x50 px."""
    Image.new("RGB", (100, 50), "red").save(tmp_path / "a.jpg")
    size = {"width": 100, "height": 50, "file_name": "a.jpg"}
    refcoco = {
        "images": [
            {"id": 4, "caption": "a dog, left", "dataset_name": "refcoco", **size},
            {"id": 2, "caption": "the <p>cat</p>", "dataset_name": "refcocog", **size},
        ],
        "annotations": [{"image_id": 4, "bbox": [10, 5, 40, 20]},
                        {"image_id": 2, "bbox": [0, 0, 50, 50]}],
    }  # fmt: skip
    flickr = {"images": [{"original_img_id": 9, "sentence_id": 1, "caption": "Two men run .",
                          "tokens_positive_eval": [[[0, 7]]], **size}]}  # fmt: skip
    mask = np.zeros((100, 50), int)
    mask[10:30, 5:20] = 1
    rows = [
        {"id": 0, "image_path": "coco/a.jpg", "width": 100, "height": 50, "name": name,
         "neg_class": other, "synonyms": [], "sample_point": [50, 20],
         "bbox_norm": [0.1, 0.1, 0.5, 0.9], "free_shape_bbox_raw": [10, 5, 29, 19],
         "free_shape_segment_mask": mask.tolist()}
        for name, other in (("bow_(weapon)", "cat"), ("dog", "cow"))
    ]  # fmt: skip
    (tmp_path / "refcoco.json").write_text(json.dumps(refcoco))
    (tmp_path / "flickr.json").write_text(json.dumps(flickr))
    (tmp_path / "lvis.json").write_text("".join(json.dumps(r) + "\n" for r in rows))
    asked = {"image": "a.jpg", "text": "Is there a dog in the image?"}
    (tmp_path / "pope.json").write_text(
        "".join(json.dumps({"question_id": n, "label": y, **asked}) + "\n"
                for n, y in enumerate(("yes", "no")))
    )  # fmt: skip
    lines = "x\n[/EN#1/people Two men] run ."
    for file, text in (("Annotations/9.xml", XML), ("Sentences/9.txt", lines)):
        (tmp_path / file).parent.mkdir()
        (tmp_path / file).write_text(text)
    return tmp_path


def opened(files, name, **options):
    return open_set(name, files / f"{name}.json", entities=files, **options)


def test_refcoco(files):
    test = opened(files, "refcoco")
    first, second = test.questions()
    assert first.prompt == "What is the location of a dog left in the image?"
    assert (first.key, first.picture, first.regions) == ("4", "a.jpg", ())
    assert second.prompt == "What is the location of the <p >cat</p > in the image?"
    found = test.score({"4": "a dog [100, 100, 500, 500]", "2": "a cat [0, 0, x, 9]"})
    assert found["refcoco acc@0.5 1"] == 1.0 and found["refcocog acc@0.5 1"] == 0.0
    assert found["unreadable"] == 1.0
    none = test.score({})  # no answer is wrong, but nothing that could not be read
    assert none["refcoco acc@0.5 upper bound"] == none["unreadable"] == 0.0


def test_flickr_has_merged_boxes(files):
    test = opened(files, "flickr")
    (question,) = test.questions()
    assert question.prompt == "What are the locations of two men?"
    found = test.score({question.key: "two men [100, 200, 500, 800]."})
    assert found["recall@1 all"] == found["recall@1 people"] == 1.0
    assert test.score({question.key: "two men [100, 200, 300, 400]."})["recall@1 all"] == 0.0
    data = json.loads((files / "flickr.json").read_text())
    data["images"][0]["tokens_positive_eval"] *= 2
    (files / "flickr.json").write_text(json.dumps(data))
    twice = opened(files, "flickr")  # two phrases, one answer
    assert test.score({})["unreadable"] == 0.0
    assert twice.score({question.key: "two men [1, x]"})["unreadable"] == 1.0
    (files / "Sentences" / "9.txt").write_text("x\n")  # its second line is missing
    with pytest.raises(UserError, match="picture 9, sentence 1: no phrase 'Two men'"):
        test.score({})
    (files / "Sentences" / "9.txt").unlink()
    with pytest.raises(UserError, match=r"9.txt: cannot be read"):
        test.score({})


@pytest.mark.parametrize(
    ("kind", "place", "pixels"),
    [("point", "point", 121), ("box", "box", 41 * 41), ("free_shape", "mask", 300)],
)
def test_lvis(files, kind, place, pixels):
    test = opened(files, "lvis", kind=kind)
    first, second = test.questions()
    assert first.prompt == "Is the object <r:0> of the image a bow_(weapon) or a cat?"
    assert second.prompt == "Is the object <r:0> of the image a cow or a dog?"
    assert first.regions[0].kind == place and first.key != second.key  # ids may be repeated
    assert rasterise(first.regions[0], 100, 50).whole().sum() == pixels
    answers = {first.key: "a bow (weapon)", second.key: "a cow"}
    assert test.score(answers)["accuracy"] == 0.5
    other = "point" if kind == "box" else "box"
    assert opened(files, "lvis", kind=other).score(answers)["accuracy"] == 0.0


def test_a_free_shape_without_pixels_is_its_box():
    row = {"width": 100, "height": 50, "free_shape_bbox_raw": [10, 5, 29, 19],
           "free_shape_segment_mask": np.zeros((100, 50), int).tolist()}  # fmt: skip
    region = published_region(row, "free_shape")
    assert region.kind == "box" and rasterise(region, 100, 50).whole().sum() == 20 * 15


def test_pope(files):
    test = opened(files, "pope")
    assert [q.key for q in test.questions()] == ["0", "1"]
    assert test.score({"0": "Yes.", "1": "No."})["accuracy"] == 1.0
    assert test.score({"0": "Yes."})["accuracy"] == 0.5  # no answer is none


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("refcoco", {"images": []}, "has no list annotations"),
        ("flickr", [1], "holds no JSON object"),
        ("flickr", {"images": [{"id": 1, "caption": "a"}]}, r"images\[0\] lacks original_img_id"),
        ("refcoco", {"images": [], "annotations": [7]}, r"annotations\[0\] lacks image_id, bbox"),
        ("lvis", {"image_path": "a.jpg"}, "lvis.json:1: lacks name, neg_class, synonyms"),
        ("pope", {"text": "?"}, "pope.json:1: lacks question_id, image, label"),
    ],
)
def test_wrong_files_are_named(files, name, content, message):
    (files / f"{name}.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        opened(files, name)


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("refcoco", "caption", None),
        ("refcoco", "width", "100"),
        ("refcoco", "height", 0),
        ("refcoco", "id", [4]),
        ("refcoco", "dataset_name", []),
        ("refcoco", "image_id", [4]),
        ("refcoco", "bbox", [1, 2, 3]),
        ("refcoco", "bbox", None),
        ("flickr", "tokens_positive_eval", [[]]),
        ("flickr", "tokens_positive_eval", None),
        ("flickr", "sentence_id", "x"),
        ("flickr", "sentence_id", -1),
        ("flickr", "width", None),
        ("lvis", "width", 0),
        ("lvis", "name", 7),
        ("lvis", "synonyms", None),
        ("lvis", "image_path", None),
    ],
)
def test_values_of_another_kind_are_named(files, name, field, value):
    path = files / f"{name}.json"
    key = "annotations" if field in ("bbox", "image_id") else "images"
    if name == "lvis":
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        rows[1][field] = value
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        where = f"question 1.{field}"
    else:
        data = json.loads(path.read_text())
        data[key][0][field] = value
        path.write_text(json.dumps(data))
        where = f"{key}[0].{field}"
    with pytest.raises(UserError, match=re.escape(f"{path}: {where}: {value!r} is not ")):
        opened(files, name)


def test_what_is_missing_is_named(files):
    with pytest.raises(UserError, match="unknown set 'gqa': choose refcoco, flickr"):
        opened(files, "gqa")
    with pytest.raises(UserError, match="name the folder of Flickr30k Entities"):
        open_set("flickr", files / "flickr.json")
    with pytest.raises(UserError, match="'circle': choose point, box"):
        opened(files, "lvis", kind="circle")
    row = dict.fromkeys(("image_path", "name", "neg_class"), "a") | {"synonyms": []}
    (files / "lvis.json").write_text(json.dumps(row))
    with pytest.raises(UserError, match=r"question 0 has no point \(KeyError"):
        list(opened(files, "lvis", kind="point").questions())


def test_answers_of_other_systems_are_written_as_ferrets():
    boxes = ((10.0, 5.0, 50.0, 25.09), (0.0, 0.0, 100.0, 50.0))
    phrases = (Phrase("a dog", (4, 9), boxes, (1, 1)),)
    answer = Answer("See a dog there.", phrases, width=100, height=50)
    assert plain_text(answer) == "See a dog [100, 100, 500, 501] [0, 0, 990, 980] there."
    assert plain_text(Answer("b [1, 2, x]", written="b [1, 2, x] [3")) == "b [1, 2, x] [3"


def test_the_command_asks_what_is_left_and_scores(files, tmp_path, capsys):
    release = save_random(tmp_path / "release")
    for name in SETS:
        answers = tmp_path / "answers" / f"{name}.jsonl"
        flags = [name, "--file", str(files / f"{name}.json"), "--answers", str(answers),
                 "--entities", str(files)]  # fmt: skip
        model = ["--checkpoint", str(release), "--images", str(files), "--max-new-tokens", "4"]
        with pytest.raises(UserError, match="have no answer yet: give --checkpoint"):
            published.main(flags)
        published.main([*flags, *model, "--limit", "1"])
        first = answers.read_text()
        assert first.count("\n") == 1
        answers.write_text(first + '{"key": "to')  # killed while it wrote
        published.main([*flags, *model])
        assert answers.read_text().startswith(first)
        published.main(flags)  # nothing left to ask
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert lines[-1] == lines[-2] and lines[-1]["answered"] == lines[-1]["questions"]
        assert lines[-1].get("region") == ("box" if name == "lvis" else None)
        if name == "lvis":  # another kind of region has answers of its own
            with pytest.raises(UserError, match="2 questions have no answer yet"):
                published.main([*flags, "--region", "point"])
            published.main([*flags, *model, "--region", "point", "--limit", "1"])
            row = json.loads(capsys.readouterr().out)
            assert (row["region"], row["answered"], row["questions"]) == ("point", 1, 2)
            assert '{"key": "point/0"' in answers.read_text()
    (files / "a.jpg").write_bytes(b"cut off")
    answers.unlink()
    published.main([*flags, *model])
    said = capsys.readouterr()
    assert json.loads(said.out)["answered"] == 0 and json.loads(said.out)["accuracy"] == 0
    assert said.err.count("is left out: ") == 2 and "a.jpg" in said.err
    answers.write_text("?\n{}\n")
    with pytest.raises(UserError, match="pope.jsonl:1: no answer"):
        published.main(flags)


def test_files_for_answers_are_looked_at_before_the_model(files, tmp_path):
    flags = ["pope", "--file", str(files / "pope.json"), "--images", str(files)]
    flags += ["--checkpoint", str(tmp_path / "no model")]
    (tmp_path / "latin.jsonl").write_bytes(b"\xff\n")
    for name, message in (
        ("", "is a folder: name a file"),
        ("latin.jsonl", "latin.jsonl: cannot be read .*: name another"),
        ("pope.json/a.jsonl", "a.jsonl: cannot be written"),
    ):
        with pytest.raises(UserError, match=message):
            published.main([*flags, "--answers", str(tmp_path / name)])
    flags[4] = str(tmp_path / "nowhere")
    with pytest.raises(UserError, match="--images .*nowhere: no such folder"):
        published.main([*flags, "--answers", str(tmp_path / "new.jsonl")])
