"""Sets of questions on pictures: DocVQA, DVQA, TextVQA, VQAv2 and GQA."""

import json

import numpy as np
import pytest
from PIL import Image

from mg_jax.data import write
from mg_jax.data.sources import open_source
from mg_jax.data.sources.textvqa import OCR_HINT
from mg_jax.data.sources.vqav2 import by_frequency
from mg_jax.errors import BadRecord, UserError
from mg_jax.example import Example, Question, Region
from tests.data.sources.asked import all_of, scenes

KINDS = ("docvqa", "dvqa", "textvqa", "vqav2", "gqa")


def spec(kind, rows, folder):
    places = getattr(write, f"write_{kind}")(rows, folder)
    return f"{kind}:{','.join(map(str, places))}"


@pytest.mark.parametrize("kind", KINDS)
def test_written_scenes_are_read_back(kind, tmp_path):
    rows = scenes(hint=OCR_HINT + "one, two" if kind == "textvqa" else "")
    text = spec(kind, rows, tmp_path)
    source = open_source(text)
    assert len(source) == len(rows) and not source.counts and not source.bad
    for got, want in zip(all_of(source), rows, strict=True):
        assert [q.text for q in got.questions] == [q.text for q in want.questions]
        assert [q.hint for q in got.questions] == [q.hint for q in want.questions]
        answers = [(q.answers[0], set(q.answers)) for q in got.questions]
        short = kind in ("dvqa", "gqa")
        assert answers == [
            (q.answers[0], set(q.answers[:1] if short else q.answers)) for q in want.questions
        ]
        assert got.pixels().shape == want.pixels().shape
        assert (got.width, got.height) == (want.width, want.height)
    each = open_source(text + ",per=question")
    assert [e.questions for e in all_of(each)] == [
        (q,) for e in all_of(source) for q in e.questions
    ]
    assert len({e.id for e in all_of(each)}) == len(each) > len(source)
    with pytest.raises(IndexError):
        each[len(each)]
    with pytest.raises(UserError, match="per=x: choose picture or question"):
        open_source(text + ",per=x")


def test_graphs_of_gqa(tmp_path):
    rows = scenes()
    for example in rows:
        example.regions = example.objects
        example.relations = ((0, "to the left of", 1), (1, "near", 0))
    text = spec("gqa", rows, tmp_path)
    for got, want in zip(all_of(open_source(text)), rows, strict=True):
        assert got.relations == want.relations and got.objects == got.regions
        assert [r.label for r in got.objects] == [r.label for r in want.objects]
        np.testing.assert_allclose(
            [r.box for r in got.objects], [r.box for r in want.objects], atol=1e-6
        )
    full = open_source(text.rpartition(",")[0] + ",answer=full")
    assert full[0].questions[0].answers == rows[0].questions[0].answers[1:]
    assert full[0].objects == ()
    parts = tmp_path / "all"
    parts.mkdir()
    data = json.loads((tmp_path / "train_balanced_questions.json").read_text())
    for k, name in enumerate("ab"):
        half = dict(list(data.items())[k::2])
        (parts / f"train_all_questions_{name}.json").write_text(json.dumps(half))
    assert len(open_source(f"gqa:{parts},{tmp_path / 'images'},per=question")) == len(data)


def test_odd_graphs_of_gqa(tmp_path):
    rows = [Example(np.zeros((20, 40, 3), np.uint8), 40, 20, questions=(Question("Q", ("A",)),))]
    text = spec("gqa", rows, tmp_path)
    path = tmp_path / "train_sceneGraphs.json"
    thing = {"name": "dog", "x": 4, "y": 5, "w": 8, "h": 10}
    things = {
        "1": thing | {"relations": [{"name": "on", "object": "2"}, {"name": "by", "object": "3"},
                                    {"name": "in", "object": "gone"}]},
        "2": thing | {"w": 100, "h": 1.5},
        "3": thing | {"w": 0, "relations": [{"name": "of", "object": "1"}]},
    }  # fmt: skip
    graph = {"width": 40, "height": 20, "objects": things}
    path.write_text(json.dumps({"1": graph, "7": graph}))
    source = open_source(text)
    e = source[0]
    np.testing.assert_allclose(e.regions[0].box, (0.1, 0.25, 0.3, 0.75))
    np.testing.assert_allclose(e.regions[1].box, (0.1, 0.25, 1.0, 0.325))
    assert len(e.regions) == 2 and e.relations == ((0, "on", 1),)
    assert source.counts == {"boxes without area": 2}
    path.write_text(json.dumps({"7": graph}))
    with pytest.raises(UserError, match=r"sceneGraphs\.json: has none of the pictures"):
        open_source(text)
    bad = [{"width": 0}, {"objects": []}, {"objects": {"1": {"name": "x"}}}]
    path.write_text(json.dumps({str(k): graph | b for k, b in enumerate(bad)} | {"1": graph}))
    with pytest.raises(UserError, match=r'\["0"\]: width and height must be'):
        open_source(text)


def picture(tmp_path, name="a.png"):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 20)).save(tmp_path / name)


def test_odd_docvqa(tmp_path):
    picture(tmp_path, "pages/a_1.png")
    good = {
        "questionId": 1,
        "question": "Wann? ü",
        "image": "documents/a_1.png",
        "answers": ["1/8"],
    }
    rows = [
        good,
        good | {"questionId": 2, "question": "<p>x</p>?", "answers": ["<r:0>", "b "]},
        good | {"questionId": 3, "image": "documents/gone.png"},
        good | {"questionId": 4, "image": "documents/gone.png"},
        {k: v for k, v in good.items() if k != "answers"},
        good | {"answers": "1/8"},
        good | {"question": " "},
        good | {"question": None},
        [],
    ]
    path = tmp_path / "q.json"
    path.write_text(json.dumps({"dataset_name": "docvqa", "data": rows}))
    source = open_source(f"docvqa:{path},{tmp_path / 'pages'},max_bad=0.5")
    (e,) = all_of(source)
    assert e.questions == (
        Question("Wann? ü", ("1/8",)),
        Question("<p >x</p >?", ("<r:0 >", "b")),
    )
    assert e.meta["question_ids"] == [1, 2] and e.meta["file_name"] == "a_1.png"
    assert source.counts == {"pictures without a file": 1, "questions without an answer": 1}
    assert [p.partition(": ")[2] for p in source.problems] == [
        "data[5]: answers is '1/8', expected a list of texts",
        "data[6]: the question is empty",
        "data[7]: question is None",
        "data[8]: expected an object, found []",
    ]
    with pytest.raises(UserError, match=r"data\[5\].*4 of 9 records"):
        open_source(f"docvqa:{path},{tmp_path / 'pages'}")
    path.write_text(json.dumps({"data": rows[2:3]}))
    with pytest.raises(UserError, match=r"none of the 1 pictures .* documents/gone\.png"):
        open_source(f"docvqa:{path},{tmp_path / 'pages'}")
    path.write_text(json.dumps({"data": rows[4:5]}))
    with pytest.raises(UserError, match="holds no question with an answer"):
        open_source(f"docvqa:{path},{tmp_path / 'pages'}")
    path.write_text("[]")
    with pytest.raises(UserError, match="expected an object with lists"):
        open_source(f"docvqa:{path},{tmp_path / 'pages'}")
    (tmp_path / "pages/a_1.png").write_text("x")
    path.write_text(json.dumps({"data": rows[:1]}))
    with pytest.raises(BadRecord, match="is not a picture"):
        open_source(f"docvqa:{path},{tmp_path / 'pages'}")[0]


def test_odd_dvqa(tmp_path):
    picture(tmp_path, "bar_train_00000001.png")
    good = {"image": "bar_train_00000001.png", "question": "How many?", "answer": 3}
    rows = [
        good,
        good | {"answer": "three", "question_id": 9},
        good | {"answer": None},
        good | {"answer": True},
    ]
    path = tmp_path / "q.json"
    path.write_text(json.dumps(rows))
    source = open_source(f"dvqa:{path},{tmp_path},max_bad=0.5")
    assert [q.answers for q in source[0].questions] == [("3",), ("three",)]
    assert source[0].meta["question_ids"] == [0, 9] and source.bad == 2


def test_answers_of_vqav2(tmp_path):
    picture(tmp_path, "000000000007.jpg")  # named as in the folders of 2017
    answers = [{"answer": a, "answer_id": k} for k, a in enumerate(["b", "a", "a", "c", "b", "a"])]
    note = {"image_id": 7, "question_id": 70, "multiple_choice_answer": "b", "answers": answers}
    questions = [{"image_id": 7, "question_id": 70, "question": "What?"},
                 {"image_id": 7, "question_id": 71, "question": "Unanswered?"},
                 {"image_id": "7", "question_id": 72, "question": "?"}]  # fmt: skip
    asked, noted = tmp_path / "q.json", tmp_path / "a.json"
    asked.write_text(json.dumps({"questions": questions}))
    noted.write_text(json.dumps({"annotations": [note, {"question_id": 5, "answers": [1]}, {}]}))
    text = f"vqav2:{asked},{noted},{tmp_path}"
    source = open_source(text + ",max_bad=0.5")
    assert source[0].questions == (Question("What?", ("b", "b", "a", "a", "a", "c")),)
    assert source.counts == {"questions without an answer": 1} and source.bad == 3
    assert [p.rpartition("/")[2] for p in source.problems] == [
        "a.json: annotations[1]: answers [1] hold no texts",
        "a.json: annotations[2]: lacks 'question_id'",
        "q.json: questions[2]: image_id is '7'",
    ]
    noted.write_text(json.dumps({"annotations": [note | {"question_id": 1}]}))
    with pytest.raises(UserError, match=r"a\.json: has no answer to the questions of .*q\.json"):
        open_source(text + ",max_bad=1")


def test_the_frequent_come_first():
    assert by_frequency("a c b c b c d".split()) == "c c c b b a d".split()
    assert by_frequency("a c b".split(), "b") == "b a c".split()
    assert by_frequency([]) == []


def test_odd_textvqa(tmp_path):
    picture(tmp_path, "0a.jpg")
    good = {"question_id": 1, "image_id": "0a", "question": "Brand?", "answers": ["x", "y", "y"]}
    path, ocr = tmp_path / "q.json", tmp_path / "ocr.json"
    path.write_text(json.dumps({"data": [good, good | {"question_id": 2, "answers": [1]}]}))
    ocr.write_text(json.dumps({"data": [{"image_id": "0a", "ocr_tokens": ["NOKIA", "3"]}, {}]}))
    text = f"textvqa:{path},{tmp_path}"
    source = open_source(f"{text},{ocr},max_bad=0.5")
    assert source[0].questions == (Question("Brand?", ("y", "y", "x"), (), OCR_HINT + "NOKIA, 3"),)
    assert source.bad == 2
    assert open_source(f"{text},max_bad=0.5")[0].questions[0].hint == ""
    with pytest.raises(UserError, match=r"none\.json: no such file \(recognised words\)"):
        open_source(f"{text},none.json")


def test_questions_with_marks_lose_them(tmp_path):
    e = Example(
        np.zeros((20, 40, 3), np.uint8),
        40,
        20,
        regions=(Region.from_box((0.1, 0.1, 0.5, 0.5)),),
        questions=(Question("Is <p>a dog</p><r:0> here?", ("yes",)), Question("Left out", ())),
        id="e",
    )
    source = open_source(spec("docvqa", [e], tmp_path))
    assert source[0].questions == (Question("Is a dog here?", ("yes",)),)
