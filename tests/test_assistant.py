"""`load`, `chat`, `answer`, `propose` and `launch.chat`, on a random tiny Groma."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

import mg_jax
from launch import chat as chat_command
from mg_jax.assistant import mention
from mg_jax.errors import UserError
from mg_jax.example import Query, Region
from tests.groma_micro import save_random


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_random(tmp_path_factory.mktemp("release") / "random")


@pytest.fixture(scope="module")
def assistant(folder):
    return mg_jax.load(folder)


def noise(width=90, height=40, seed=0):
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)


def test_proposals_are_in_the_pictures_own_pixels(assistant):
    (boxes, scores), (tall, _) = assistant.propose([noise(900, 40), noise(40, 900)])
    assert 0 < len(boxes) <= 6 and len(scores) == len(boxes)
    assert (np.diff(scores) <= 0).all()
    assert boxes[:, 2].max() > 60 and boxes[:, [1, 3]].max() <= 40  # wide: x passes 56, y is cut
    assert tall[:, 3].max() > 60 and tall[:, [0, 2]].max() <= 40


def test_answers_do_not_depend_on_the_batch(assistant):
    queries = [
        Query(noise(seed=1), "Describe the picture."),
        Query(noise(50, 70, seed=2), "What is <r:0>?", (Region.from_box((0.1, 0.2, 0.6, 0.7)),)),
        Query(noise(seed=3), "[grounding] What does this picture show?"),
    ]
    together = assistant.answer(queries, max_new_tokens=6)
    alone = [assistant.answer([q], max_new_tokens=6)[0] for q in queries]
    assert [a.markup for a in together] == [a.markup for a in alone]
    assert [(a.width, a.height) for a in together] == [(90, 40), (50, 70), (90, 40)]


def test_a_conversation_keeps_its_history_and_a_new_picture_ends_it(assistant, monkeypatch):
    seen = []
    real = assistant.answer
    monkeypatch.setattr(
        assistant, "answer", lambda queries, **kw: seen.append(queries[0]) or real(queries, **kw)
    )
    assistant.reset()
    picture = noise()
    box = Region.from_box((0.2, 0.2, 0.8, 0.8))
    assistant.chat(picture, "What is <r:0>?", [box], max_new_tokens=3)
    later = Region.from_point(0.5, 0.5)
    answer = assistant.chat(None, "And this?", [later], max_new_tokens=3)
    assert seen[1].history[0].user == "What is <r:0>?"
    assert seen[1].image is picture
    last = len(seen[1].regions) - 1
    assert seen[1].prompt == f"And this? <r:{last}>" and seen[1].regions[last] == later
    assert answer.notes == ("point passed as its tightest box", *answer.notes[1:])
    assistant.chat(noise(seed=9), "And here?", max_new_tokens=3)
    assert seen[2].history == () and seen[2].regions == ()


def test_a_failed_question_leaves_the_conversation_alone(assistant):
    assistant.reset()
    picture = noise()
    assistant.chat(picture, "What is it?", max_new_tokens=3)
    before = list(assistant._history)
    with pytest.raises(UserError, match="region 5"):
        assistant.chat(picture, "What is <r:5>?", max_new_tokens=3)
    assert assistant._history == before


def test_mention_numbers_and_appends():
    assert mention("What is <r:0>?", 1, 3) == "What is <r:3>?"
    assert mention("Compare <r:1>.", 2, 0) == "Compare <r:1>. <r:0>"
    assert mention("Hello", 0, 4) == "Hello"


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), "float32"),
        (np.zeros((4, 4), np.uint8), "expected uint8 RGB"),
        ("no/such.png", "no/such.png: no such file"),
    ],
)
def test_a_bad_picture_is_named(assistant, image, message):
    with pytest.raises(UserError, match=message):
        assistant.answer([Query(image, "What?")])


def test_load_names_what_it_cannot_find(tmp_path):
    with pytest.raises(UserError, match="neither a folder nor a shipped release"):
        mg_jax.load("no-such-model")
    with pytest.raises(UserError):
        mg_jax.load(tmp_path)


def run_chat(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["chat", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        chat_command.cli.run(chat_command.main)
    out = capsys.readouterr()
    return stop.value.code, out.out, out.err


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "CMYK", "I;16"])
def test_chat_answers_on_a_photo_of_any_mode(folder, tmp_path, monkeypatch, capsys, mode):
    file = tmp_path / f"photo.{'jpg' if mode == 'CMYK' else 'png'}"
    if mode == "I;16":
        Image.fromarray(np.arange(60 * 80, dtype=np.uint16).reshape(60, 80)).save(file)
    else:
        Image.fromarray(noise(80, 60)).convert(mode).save(file)
    code, out, _ = run_chat(
        monkeypatch, capsys, "--checkpoint", folder, "--image", file, "--prompt", "What is this?",
        "--box", "10,10,40,50", "--polygon", "1,1,70,2,40,50", "--json", "--max-new-tokens", 3,
        "--out", tmp_path / "drawn.png",
    )  # fmt: skip
    answer = json.loads(out)
    assert code == 0 and (answer["width"], answer["height"]) == (80, 60)
    assert "polygon passed as its tightest box" in answer["notes"]
    assert Image.open(tmp_path / "drawn.png").size[0] >= 80


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--box", "1,2,3"], "--box 1,2,3: expected 4 numbers"),
        (["--box", "30,10,10,20"], "did you mean [10, 10, 30, 20]?"),
        (["--box", "10,10,4000,20"], "leaves the image; clip it to 0..80"),
        (["--point", "x,y"], "--point x,y"),
        (["--point", "500,50"], "--point 500,50: (500, 50) is outside the 80x60 picture"),
        (["--checkpoint", "nope"], "nope"),
    ],
)
def test_bad_arguments_give_one_line_and_exit_2(
    folder, tmp_path, monkeypatch, capsys, arguments, message
):
    file = tmp_path / "p.png"
    Image.fromarray(noise(80, 60)).save(file)
    base = ["--checkpoint", folder, "--image", file, "--prompt", "What?"]
    code, _, err = run_chat(monkeypatch, capsys, *base, *arguments)
    assert code == 2
    line = [x for x in err.splitlines() if x.startswith("error: ")]
    assert len(line) == 1 and message in line[0], err
