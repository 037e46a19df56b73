"""Multiple choice: AI2D and ScienceQA."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from mg_jax.data.sources import open_source
from mg_jax.data.sources.measures import measure
from mg_jax.data.write import write_ai2d, write_scienceqa
from mg_jax.errors import UserError
from mg_jax.example import Example, Question
from tests.data.sources.asked import all_of, scenes


def short(example):
    return tuple(replace(q, answers=q.answers[:1]) for q in example.questions)


def test_ai2d_is_read_back(tmp_path):
    rows = scenes(5)
    folder = write_ai2d(rows, tmp_path, tests={1, 4})
    source = open_source(f"ai2d:{folder},split=all")
    assert [e.questions for e in all_of(source)] == [short(e) for e in rows]
    for got, want in zip(all_of(source), rows, strict=True):
        np.testing.assert_array_equal(got.pixels(), want.pixels())
    parts = [all_of(open_source(f"ai2d:{folder},split={s}")) for s in ("train", "test")]
    assert [[e.meta["image_id"] for e in part] for part in parts] == [
        ["0.png", "2.png", "3.png"],
        ["1.png", "4.png"],
    ]
    assert open_source(f"ai2d:{folder}").name == "ai2d-train"
    (folder / "ai2d_test_ids.csv").unlink()
    with pytest.raises(UserError, match=r"ai2d_test_ids\.csv: no such file"):
        open_source(f"ai2d:{folder}")


def ai2d(tmp_path, questions, words=None):
    for name in ("questions", "images", "annotations"):
        (tmp_path / name).mkdir(exist_ok=True)
    Image.new("RGB", (80, 40), (9, 9, 9)).save(tmp_path / "images/0.png")
    (tmp_path / "questions/0.png.json").write_text(
        json.dumps({"imageName": "0.png", "questions": questions})
    )
    (tmp_path / "annotations/0.png.json").write_text(json.dumps({"text": words or {}}))
    return f"ai2d:{tmp_path},split=all"


def asked(answer=1, abc=False, choices=("ears", "nose", "{}"), number="0.png-0"):
    return {"abcLabel": abc, "answerTexts": list(choices), "correctAnswer": answer,
            "questionId": number}  # fmt: skip


def test_letters_are_drawn_over_words(tmp_path):
    words = {
        "T0": {"rectangle": [[10, 5], [30, 20]], "replacementText": "A", "value": "head"},
        "T1": {"rectangle": [[60, 30], [50, 24]], "replacementText": "B"},
        "T2": {"rectangle": [[70, 30], [75, 30]], "replacementText": "C"},  # no height
    }
    text = ai2d(tmp_path, {"What is A?": asked(abc=True), "What is it?": asked(0)}, words)
    source = open_source(text)
    assert source[0].questions == (Question("What is it?", ("ears",), ("ears", "nose")),)
    assert source.counts == {"questions about letters": 1}
    drawn = open_source(text + ",letters=draw")
    letters, plain = all_of(drawn)
    assert letters.questions == (Question("What is A?", ("nose",), ("ears", "nose")),)
    assert letters.meta["question_ids"] == ["0.png-0"] and letters.id != plain.id
    pixels = letters.pixels()
    changed = (pixels != plain.pixels()).any(-1)
    rows, columns = np.nonzero(changed)
    assert (columns.min(), rows.min(), columns.max(), rows.max()) == (10, 5, 60, 30)
    assert changed[5:21, 10:31].all() and changed[24:31, 50:61].all()
    assert len(np.unique(pixels[5:21, 10:31].reshape(-1, 3), axis=0)) > 1  # a letter is there
    with pytest.raises(UserError, match="letters=x: choose drop or draw"):
        open_source(text + ",letters=x")
    with pytest.raises(UserError, match="split=x: choose from train, test, all"):
        open_source(text.replace("all", "x"))


@pytest.mark.parametrize(
    ("questions", "message"),
    [
        ([], "questions is"),
        ({"Q": []}, "expected an object"),
        ({"Q": asked(3)}, "correctAnswer 3 of .* count from 0"),
        ({"Q": asked(-1)}, "correctAnswer -1"),
        ({"Q": asked(2)}, "correctAnswer 2"),
        ({"Q": asked(choices=(1, 2))}, "answerTexts .* no texts"),
        ({"Q": asked("1")}, "correctAnswer is '1'"),
        ({"Q": asked(0, choices=("ears", "{}"))}, "question 'Q' has one choice, 'ears': give two"),
        ({"Q": asked(abc=True)}, r"text\['T0'\] lacks rectangle"),
    ],
)
def test_malformed_ai2d(tmp_path, questions, message):
    text = ai2d(tmp_path, questions, {"T0": {"rectangle": [1, 2]}}) + ",letters=draw"
    with pytest.raises(UserError, match=r"questions/0\.png\.json: .*" + message):
        open_source(text)


def test_scienceqa_is_read_back(tmp_path):
    rows = scenes(3, hint="Look at the picture.")
    text_only = Example(None, 0, 0, questions=(Question("1 + 1?", ("2",), ("2", "3")),), id="t")
    for example in rows:
        example.meta |= {"lecture": "On <p >counting</p >.", "solution": "Count."}
    folder = write_scienceqa([*rows, text_only], tmp_path)
    source = open_source(f"scienceqa:{folder}")
    got = all_of(source)
    assert source.measures().tolist() == [list(measure(e)) for e in got]
    want = [q for e in rows for q in short(e)]
    assert [e.questions[0] for e in got] == [*want, text_only.questions[0]]
    assert got[0].meta["lecture"] == "On <p >counting</p >." and got[0].meta["solution"] == "Count."
    np.testing.assert_array_equal(got[0].pixels(), rows[0].pixels())
    assert got[-1].image is None and got[-1].width == 0 and got[-1].meta["lecture"] == ""
    pictures = open_source(f"scienceqa:{folder},train,text=drop")
    assert len(pictures) == len(want) and pictures.counts == {"problems without a picture": 1}
    problems = json.loads((folder / "problems.json").read_text())
    assert problems["1"]["image"] == "image.png" and problems[str(len(want) + 1)]["image"] is None
    with pytest.raises(UserError, match="split=val: choose from train"):
        open_source(f"scienceqa:{folder},val")
    with pytest.raises(UserError, match="text=x: choose keep or drop"):
        open_source(f"scienceqa:{folder},text=x")


def test_malformed_scienceqa(tmp_path):
    good = {"question": "Q", "choices": ["a", "b"], "answer": 1, "image": None}
    bad = [{"answer": 2}, {"answer": "b"}, {"choices": [1]}, {"question": ""}, {"hint": 3},
           {"image": "image.png"}, {"choices": ["dog"], "answer": 0}]  # fmt: skip
    rows = {"1": good} | {str(k): good | b for k, b in enumerate(bad, 2)}
    (tmp_path / "problems.json").write_text(json.dumps(rows))
    splits = {"train": [*rows, "gone"], "test": ["9"]}
    rows["9"] = good | {"image": "image.png", "split": "test"}
    (tmp_path / "problems.json").write_text(json.dumps(rows))
    (tmp_path / "pid_splits.json").write_text(json.dumps(splits))
    source = open_source(f"scienceqa:{tmp_path},max_bad=1")
    assert len(source) == 1 and source.bad == 8
    assert [p.partition("problems.json: ")[2] for p in source.problems] == [
        '["2"]: answer 2 of 2 choices: they count from 0',
        "[\"3\"]: answer is 'b'",
        '["4"]: choices [1] are no texts',
        '["5"]: the question is empty',
        '["6"]: hint, lecture or solution is no text',
        "[\"7\"]: lacks 'split'",
        "[\"8\"]: the question 'Q' has one choice, 'dog': give two or more, or none",
        '["gone"]: expected an object, found None',
    ]
    with pytest.raises(UserError, match=r"none of the 1 pictures .* images/test/9/image\.png"):
        open_source(f"scienceqa:{tmp_path},split=test")
