"""RefCOCO's pickles and lines of expressions: read back, odd records, splits."""

import json
import pickle

import numpy as np
import pytest

from mg_jax.data.sources import open_source
from mg_jax.data.write import write_rec_lines, write_refcoco
from mg_jax.errors import UserError
from tests.data.sources.grounded_scenes import all_of, picture, places, scenes, texts


def single(example):
    """The expressions of one region."""
    return [t for t in texts(example) if len(t[1]) == 1]


@pytest.mark.parametrize("kind", ["refcoco", "rec_lines"])
@pytest.mark.parametrize("per", ["picture", "expression"])
def test_written_expressions_are_read_back(kind, per, tmp_path):
    rows = scenes()
    write = write_refcoco if kind == "refcoco" else write_rec_lines
    paths = write(rows, tmp_path)
    source = open_source(f"{kind}:{','.join(map(str, paths))},per={per}")
    assert not source.counts and source.bad == 0
    got = all_of(source)
    if per == "expression":
        want = [(row, [t]) for row in rows for t in single(row)]
        assert all(len(e.regions) == 1 for e in got)
    else:
        want = [(row, single(row)) for row in rows]
    assert [texts(e) for e in got] == [t for _, t in want] and len(want) >= 4
    for e, (row, _) in zip(got, want, strict=True):
        np.testing.assert_array_equal(e.pixels(), row.pixels())
        assert e.meta["task"] == "rec" and not e.turns
        if kind == "refcoco":
            assert all(r.label in {o.label for o in row.objects} for r in e.regions)
            assert len(e.meta["sent_ids"]) == len(e.expressions) == len(e.meta["ann_ids"])
    assert len({e.id for e in got}) == len(got)
    again = pickle.loads(pickle.dumps(source))  # as workers get it
    assert texts(again[len(got) - 1]) == texts(got[-1])


BOXES = {1: [4.5, 2.25, 10, 5], 2: [0, 0, 1, 1], 3: [30, 10, 25, 25], 4: [10, 10, -5, 5],
         5: [5, 5, 0, 3], 6: [8, 4, 20, 10], 7: "no box"}  # fmt: skip


def ref(number, ann, split="train", said=("a dog",), **more):
    sentences = [
        {"sent_id": 10 * number + k, "sent": text.lower(), "raw": text, "tokens": text.split()}
        for k, text in enumerate(said)
    ]
    return {
        "ref_id": number, "ann_id": ann, "image_id": 1, "category_id": 18, "split": split,
        "file_name": f"COCO_train2014_000000000001_{ann}.jpg", "sentences": sentences,
        "sent_ids": [s["sent_id"] for s in sentences], **more,
    }  # fmt: skip


def refcoco(tmp_path, refs, by="unc", data=None, **more):
    picture(tmp_path / "images/COCO_train2014_000000000001.jpg")
    (tmp_path / "refcoco").mkdir(exist_ok=True)
    content = {
        "images": [
            {"id": 1, "file_name": "COCO_train2014_000000000001.jpg", "width": 40, "height": 20},
            {"id": 2, "file_name": "gone.jpg", "width": 40, "height": 20},
            {"id": 3, "file_name": "COCO_train2014_000000000001.jpg", "width": 0, "height": 20},
        ],
        "annotations": [
            {"id": k, "image_id": 1, "bbox": box, "category_id": 18} for k, box in BOXES.items()
        ] + [{"id": 8, "image_id": 2, "bbox": [0, 0, 5, 5], "category_id": 18},
             {"id": 6, "image_id": 1, "bbox": [0, 0, 3, 3], "category_id": 18},
             {"id": 9, "image_id": 3, "bbox": [0, 0, 5, 5], "category_id": 18}, "no row"],
        "categories": [{"id": 18, "name": "dog"}],
    } | more  # fmt: skip
    (tmp_path / "refcoco/instances.json").write_text(json.dumps(content))
    path = tmp_path / f"refcoco/refs({by}).p"
    path.write_bytes(pickle.dumps(refs, 2) if data is None else data)
    return f"refcoco:{path},{tmp_path / 'refcoco/instances.json'},{tmp_path / 'images'}"


def test_odd_refs(tmp_path):
    spec = refcoco(tmp_path, [
        ref(0, 1, said=("Дог, LEFT", "the <p>dog</p><r:3>", "  ")),
        ref(1, 2), ref(2, 3), ref(3, 4), ref(4, 5),
        ref(5, 6, said=("a dog",)),        # the first annotation 6 counts
        ref(6, 7), ref(7, 99), ref(8, 8, image_id=2), ref(9, 8), ref(10, 1, image_id=5),
        ref(11, 9, image_id=3), ref(12, 1, sentences=["no sentence"]), ref(13, 1, sentences=None),
        ref(14, [1]),
    ])  # fmt: skip
    with pytest.raises(UserError, match=r"refs\(unc\)\.p: \[6\]: bbox of annotation 7 no box"):
        open_source(spec)
    source = open_source(spec + ",max_bad=0.6")
    assert source.name == "refcoco_unc_train" and source.bad == 8
    wanted = ("99 is not in", "8 is of picture 2", "5 is not in", "must be whole numbers above 0",
              "expected an object, found 'no sentence'", "sentences is None",
              "ann_id is [1]")  # fmt: skip
    for what in wanted:
        assert sum(what in problem for problem in source.problems) == 1, source.problems
    assert source.counts == {
        "boxes without area": 2, "empty expressions": 1, "expressions without a box": 2,
        "pictures without a file": 1,
    }  # fmt: skip
    got = all_of(source)
    assert [e.expressions[0].text for e in got[:3]] == [
        "дог, left", "the <p >dog</p ><r:3 >", "a dog"
    ]  # fmt: skip
    assert [places(e, [0])[0] for e in got] == [
        tuple(np.round(np.array(box) / (40, 20, 40, 20), 5))
        for box in ((4.5, 2.25, 14.5, 7.25),) * 2 + ((0, 0, 1, 1), (30, 10, 40, 20), (8, 4, 28, 14))
    ]
    assert got[0].regions[0].label == "dog" and got[0].meta["sent_ids"] == [0]
    raw = open_source(spec + ",max_bad=0.6,text=raw")
    assert raw[0].expressions[0].text == "Дог, LEFT"


def test_refs_of_python_2(tmp_path):
    """As cPickle wrote them: byte strings, accents escaped."""
    data = (
        b"(lp1\n(dp2\nS'ref_id'\nI0\nsS'ann_id'\nI1\nsS'image_id'\nI1\nsS'category_id'\nI18\n"
        b"sS'split'\nS'val'\nsS'file_name'\nS'COCO_x_1.jpg'\nsS'sent_ids'\n(lI0\nasS'sentences'\n"
        b"(l(dS'tokens'\n(lS'caf\\xc3\\xa9'\nasS'raw'\nS'Caf\\xc3\\xa9!'\nsS'sent'\n"
        b"Vcaf\\u00e9\nsS'sent_id'\nI0\nsasa."
    )
    spec = refcoco(tmp_path, None, data=data)
    assert open_source(spec + ",split=val")[0].expressions[0].text == "café"
    assert open_source(spec + ",split=val,text=raw")[0].expressions[0].text == "Café!"


def test_splits(tmp_path):
    refs = [ref(k, 1, split=s) for k, s in enumerate(["train", "val", "testA", "testB", "testAB"])]
    spec = refcoco(tmp_path, refs)
    sizes = {"train": 1, "val": 1, "test": 3, "testA": 2, "testB": 2, "all": 5}
    for split, size in sizes.items():
        source = open_source(f"{spec},split={split}")
        assert len(source) == size and source.name == f"refcoco_unc_{split}"
    with pytest.raises(UserError, match="no split testC, it has testA, testAB, testB, train, val"):
        open_source(f"{spec},split=testC")
    with pytest.raises(UserError, match="split=tst: choose from train"):
        open_source(f"{spec},split=tst")
    with pytest.raises(UserError, match="per=region: choose expression or picture"):
        open_source(f"{spec},per=region")


@pytest.mark.parametrize("name", ["000000000001.jpg", "COCO_val2014_000000000001.jpg"])
def test_pictures_of_other_years_of_coco(name, tmp_path):
    spec = refcoco(tmp_path, [ref(0, 1)])
    file = tmp_path / "images/COCO_train2014_000000000001.jpg"
    if name.startswith("COCO_val"):  # where annotations name the file as COCO 2017 does
        path = tmp_path / "refcoco/instances.json"
        path.write_text(path.read_text().replace(file.name, "000000000001.jpg"))
    file.rename(file.with_name(name))
    assert open_source(spec)[0].image.endswith(name)


def test_useless_files(tmp_path):
    evil = b"cos\nsystem\n(S'touch canary'\ntR."
    with pytest.raises(UserError, match=r"refs\(unc\)\.p: refused.*os\.system"):
        open_source(refcoco(tmp_path, None, data=evil))
    with pytest.raises(UserError, match="expected a list of refs"):
        open_source(refcoco(tmp_path, {"refs": []}))
    with pytest.raises(UserError, match="no list 'annotations'"):
        open_source(refcoco(tmp_path, [ref(0, 1)], annotations=3))
    with pytest.raises(UserError, match="holds none of the 1 pictures.*for example gone.jpg"):
        open_source(refcoco(tmp_path, [ref(0, 8, image_id=2)]))
    with pytest.raises(UserError, match="none of its 1 records is left .1 empty expressions"):
        open_source(refcoco(tmp_path, [ref(0, 1, said=(" ",))]))
    with pytest.raises(UserError, match="5 of its 5 boxes have no area"):
        open_source(refcoco(tmp_path, [ref(k, 5) for k in range(5)]))


def test_odd_lines(tmp_path):
    picture(tmp_path / "images/VG_100K/7.jpg")
    good = {"img_path": "VG_100K/7.jpg", "expression": "a dog", "bbox": [4, 5, 20.5, 10],
            "width": 40, "height": 20, "dataset_name": "refcoco"}  # fmt: skip
    rows = [good, good | {"bbox": [1, 2, 3]}, good | {"bbox": [1, 2, 3, "4"]},
            good | {"width": 1.5}, good | {"expression": 3}, good | {"img_path": "gone.jpg"}, [],
            good | {"bbox": [9, 9, 4, 4]},
            {**good, "img_path": "7.jpg", "bbox": [4, 5, 60, 50]}]  # fmt: skip
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n{")
    source = open_source(f"rec_lines:{path},{tmp_path / 'images'},max_bad=0.7")
    assert source.bad == 6 and len(source) == 2 and f"{path}:2: bbox" in source.problems[0]
    assert "no valid JSON" in source.problems[-1]
    assert source.counts == {
        "pictures without a file": 1, "boxes without area": 1, "expressions without a box": 1,
    }  # fmt: skip
    assert places(source[1], [0]) == [(0.1, 0.25, 1, 1)]
    path.write_text("\n".join(json.dumps(good | {"bbox": [0.1, 0.1, 0.5, 0.5]}) for _ in range(20)))
    with pytest.raises(UserError, match="they look like shares of 1"):
        open_source(f"rec_lines:{path},{tmp_path / 'images'}")


def test_lines_of_what_is_not_there(tmp_path):
    picture(tmp_path / "images/7.jpg")
    good = {"file_name": "7.jpg", "expression": "a dog", "bbox_xyxy": [4, 5, 20.5, 10],
            "width": 40, "height": 20, "has_photo": True}  # fmt: skip
    rows = [good, good | {"expression": "a cat", "bbox_xyxy": None}, good | {"bbox_xyxy": 3},
            good | {"expression": " ", "bbox_xyxy": None}, {"width": 40, "height": 20}]  # fmt: skip
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    source = open_source(f"rec_lines:{path},{tmp_path / 'images'},max_bad=0.7")
    assert [(e.text, e.regions) for x in source for e in x.expressions] == [
        ("a dog", (0,)), ("a cat", ()),
    ]  # fmt: skip
    assert source.bad == 2 and "bbox_xyxy is 3" in source.problems[0]
    assert "lacks 'img_path'" in source.problems[1] and source.counts == {"empty expressions": 1}
    (whole,) = open_source(f"rec_lines:{path},{tmp_path / 'images'},max_bad=0.7,per=picture")
    assert [e.regions for e in whole.expressions] == [(0,), ()]
