"""`load`, `chat`, `answer`, `propose` and `launch.chat`, on a random tiny Groma."""

import io
import json
import shutil
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
    shown = Query(picture, "Where is <object:0>?", (box,))
    assert assistant.adapter.read(shown).notes == ("object image passed as its region",)
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


def photo(folder, mode):
    """An 80 x 60 file of that mode; "turned" has 60 x 80 pixels that EXIF says to turn."""
    file = folder / f"photo.{'jpg' if mode in ('CMYK', 'turned') else 'png'}"
    if mode == "I;16":
        Image.fromarray(13 * np.arange(60 * 80, dtype=np.uint16).reshape(60, 80)).save(file)
    elif mode == "turned":
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(noise(60, 80)).save(file, exif=exif)
    elif mode == "RGBA":
        Image.fromarray(np.dstack([noise(80, 60), noise(80, 60, 1)[..., 0]])).save(file)
    else:
        Image.fromarray(noise(80, 60)).convert(mode).save(file)
    return file


@pytest.mark.parametrize("mode", ["RGBA", "I;16", "L", "CMYK", "P", "turned"])
def test_a_pil_picture_is_answered_as_its_file(assistant, tmp_path, mode):
    file = photo(tmp_path, mode)
    image = Image.open(file)
    (by_path, _), (by_pil, _) = assistant.propose([file, image])
    np.testing.assert_array_equal(by_path, by_pil)
    queries = [Query(x, "[grounding] Describe the picture.") for x in (file, image)]
    one, other = assistant.answer(queries, max_new_tokens=3)
    assert one == other and (other.width, other.height) == (80, 60)
    np.testing.assert_array_equal(np.asarray(one.draw(file)), np.asarray(one.draw(image)))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "CMYK", "I;16", "turned"])
def test_chat_answers_on_a_photo_of_any_mode(folder, tmp_path, monkeypatch, capsys, mode):
    file = photo(tmp_path, mode)
    code, out, _ = run_chat(
        monkeypatch, capsys, "--checkpoint", folder, "--image", file, "--prompt", "What is this?",
        "--box", "10,10,78,50", "--polygon", "1,1,70,2,40,50", "--json", "--max-new-tokens", 3,
        "--out", tmp_path / "drawn.png",
    )  # fmt: skip
    answer = json.loads(out)
    assert code == 0 and (answer["width"], answer["height"]) == (80, 60)
    assert "polygon passed as its tightest box" in answer["notes"]
    drawn = Image.open(tmp_path / "drawn.png")
    assert drawn.width >= 80 and drawn.width * 60 == drawn.height * 80


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--box", "1,2,3"], "--box 1,2,3: expected 4 numbers"),
        (["--box", "30,10,10,20"], "did you mean [10, 10, 30, 20]?"),
        (["--box", "10,10,4000,20"], "leaves the image; clip it to 0..80"),
        (["--box", "-5,10,20,30"], "--box -5,10,20,30: box 0 [-5, 10, 20, 30] leaves the image"),
        (["--point", "x,y"], "--point x,y"),
        (["--point", "500,50"], "--point 500,50: (500, 50) is outside the 80x60 picture"),
        (["--checkpoint", "nope"], "nope"),
        (["--mask", "nope.png"], "--mask nope.png: no such file"),
        (["--mask", "{}/p.png", "--out", "{}/p.png"], "p.png: is read here, and would be lost"),
        (["--out", "{}/../{}/p.png"], "p.png: is read here, and would be lost"),
    ],
)
def test_bad_arguments_give_one_line_and_exit_2(
    folder, tmp_path, monkeypatch, capsys, arguments, message
):
    file = tmp_path / "p.png"
    Image.fromarray(noise(80, 60)).save(file)
    before = file.read_bytes()
    base = ["--checkpoint", folder, "--image", file, "--prompt", "What?"]
    arguments = [a.replace("{}/../{}", f"{tmp_path}/../{tmp_path.name}") for a in arguments]
    arguments = [a.replace("{}", str(tmp_path)) for a in arguments]
    code, _, err = run_chat(monkeypatch, capsys, *base, *arguments)
    assert code == 2 and file.read_bytes() == before
    line = [x for x in err.splitlines() if x.startswith("error: ")]
    assert len(line) == 1 and message in line[0], err


class Lines(io.StringIO):
    """What a user types; `terminal`: at one, or through a pipe."""

    def __init__(self, text, terminal):
        super().__init__(text)
        self.terminal = terminal

    def isatty(self):
        return self.terminal


@pytest.mark.parametrize("terminal", [True, False])
def test_a_mistake_ends_a_chat_only_where_nobody_reads(
    folder, tmp_path, monkeypatch, capsys, terminal
):
    lines = f"What is <r:5>?\nWhat is <r:0>?\n{'dog ' * 400}\nAnd this?\n\n"
    monkeypatch.setattr(sys, "stdin", Lines(lines, terminal))
    asked, real = [], mg_jax.Assistant.answer
    monkeypatch.setattr(
        mg_jax.Assistant, "answer",
        lambda self, queries, **kw: asked.append(queries[0]) or real(self, queries, **kw),
    )  # fmt: skip
    code, _, err = run_chat(
        monkeypatch, capsys, "--checkpoint", folder, "--image", photo(tmp_path, "RGB"),
        "--box", "10,10,40,40", "--max-new-tokens", 2,
    )  # fmt: skip
    told = [x for x in err.splitlines() if x.startswith("error: ")]
    assert "region 5" in told[0]
    if not terminal:
        assert code == 2 and len(told) == len(asked) == 1
        return
    assert code == 0 and len(told) == 2
    assert "the model takes 160: shorten it, or begin a new conversation" in told[1]
    assert "text_tokens" not in told[1]
    assert [len(q.history) for q in asked] == [0, 0, 1, 1]
    assert asked[1].prompt == "What is <r:0>?" and len(asked[1].regions) == 1


@pytest.mark.parametrize("prompt", [[], ["--prompt", "What?"]])
def test_a_missing_picture_is_told_before_anything_is_read(folder, monkeypatch, capsys, prompt):
    monkeypatch.setattr(mg_jax, "load", None)
    code, _, err = run_chat(monkeypatch, capsys, "--checkpoint", folder, *prompt)
    assert code == 2 and err == f"error: {folder} answers about pictures alone: give --image\n"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 60}, "picture 60x60 is not a multiple of patch 14"),
        ({"image_size": 70}, "5x5 patches cannot be joined two by two"),
        ({"lm": {"heads": 5}}, "5 heads cannot share 2 kv_heads evenly"),
        ({"vision": {"width": 32}}, r"by it \S+/kernel is \(.*, but the parameters hold \("),
    ],
)
def test_a_release_whose_config_is_wrong_is_named(folder, tmp_path, changes, message):
    wrong = tmp_path / "wrong"
    shutil.copytree(folder, wrong)
    config = json.loads((wrong / "config.json").read_text())
    for key, value in changes.items():
        part = config["model"]
        config["model"][key] = part[key] | value if isinstance(value, dict) else value
    (wrong / "config.json").write_text(json.dumps(config))
    assistant = mg_jax.load(wrong)
    with pytest.raises(UserError, match="^config.json of the release, model: .*" + message):
        assistant.answer([Query(noise(), "What?")], max_new_tokens=2)
    if message.startswith("picture"):  # the others are of what answers alone
        with pytest.raises(UserError, match="^config.json of the release, model: "):
            assistant.propose([noise()])


def test_an_error_of_ours_is_not_laid_on_the_release(assistant):
    with pytest.raises(KeyError), assistant.adapter.fitting(assistant.params):
        raise KeyError("a bug")
