"""`launch.page` without its looks, on a random tiny Groma; with them where gradio is installed."""

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import mg_jax
from launch import page as page_command
from launch.page import Page, clicked, regions
from mg_jax.answer import Answer, Phrase
from mg_jax.errors import UserError
from tests.groma_micro import save_random


@pytest.fixture(scope="module")
def assistant(tmp_path_factory):
    return mg_jax.load(save_random(tmp_path_factory.mktemp("release") / "random"))


@pytest.fixture
def page(assistant):
    return Page(assistant, max_new_tokens=3)


@pytest.fixture
def photos(tmp_path):
    """Two picture files, 90 x 40 pixels."""
    rng = np.random.default_rng(0)
    files = [str(tmp_path / f"{n}.png") for n in range(2)]
    for file in files:
        Image.fromarray(rng.integers(0, 255, (40, 90, 3), np.uint8)).save(file)
    return files


def test_clicks_become_lines():
    text = clicked("", "point", 5, 6)
    text = clicked(text, "box", 40, 30)
    assert text == "5,6\n40,30,"
    assert clicked(text, "point", 20, 35) == "5,6\n20,30,40,35"  # a box is finished first
    assert clicked("1, 2, 3, 4 \n\n", "point", 7, 8) == "1, 2, 3, 4\n7,8"


def test_the_count_of_numbers_is_the_kind_of_region():
    found = regions("9,4\n\n 9, 4, 45, 20\n9,4,45,4,45,20", 90, 40)
    assert [r.kind for r in found] == ["point", "box", "polygon"]
    assert found[0].points == ((0.1, 0.1),) and found[1].box == (0.1, 0.1, 0.5, 0.5)


@pytest.mark.parametrize("line", ["9", "9,4,", "9,4,5", "9,4,45,60", "9,4,45,20,5", "a,b"])
def test_a_wrong_line_is_named(line):
    with pytest.raises(UserError, match=f"^{line}: "):
        regions(f"1,2\n{line}", 90, 40)


def test_each_browser_has_its_own_conversation(page, assistant, photos):
    mine, log, drawn, text, question, note = page.do(
        page.ask, None, photos[0], "9,4,45,20", "What is <r:0>?"
    )
    assert (text, question, note) == ("", "", "")
    asked, place, answered = log.split("\n")[:3]
    assert (asked, place) == ("> What is <r:0>?", "  <r:0>: 9,4,45,20") and answered
    assert max(drawn.size) >= 512
    page.do(page.ask, mine, photos[0], "", "And what else?")
    other = page.do(page.ask, None, photos[1], "", "What is it?")[0]
    histories = [[t.user for t in s.assistant._history] for s in (mine, other)]
    assert histories == [["What is <r:0>?", "And what else?"], ["What is it?"]]
    assert [sum(line[:2] == "> " for line in s.log) for s in (mine, other)] == [2, 1]
    assert mine.assistant._generate is assistant._generate and not assistant._history


def test_another_picture_starts_afresh(page, photos):
    session, *_ = page.do(page.ask, None, photos[0], "", "What is it?")
    _, log, drawn, text, question, _ = page.do(page.turn, session, photos[1], "9,4", "And?")
    assert (log, drawn, text, question) == ("", None, "", "And?")
    assert not session.assistant._history
    page.do(page.ask, session, None, "", "And now?")
    assert session.picture is None and session.log == []


def test_a_click_marks_the_picture(page, photos):
    plain = Image.open(photos[0])
    session, _, first, text, question, _ = page.do(
        page.click, None, photos[0], "", "What is", "box", 20, 5
    )
    assert (text, question) == ("20,5,", "What is")
    *_, second, text, _, note = page.do(
        page.click, session, photos[0], text, question, "box", 70, 35
    )
    assert text == "20,5,70,35" and not note
    size = second.size
    before, one, two = (np.asarray(p.resize(size), int) for p in (plain, first, second))
    factor = size[0] // 90
    edge = (slice(20 * factor, 30 * factor), slice(69 * factor, 70 * factor))  # the right side
    assert (np.abs(two - one)[edge].sum(-1) > 0).mean() > 0.5
    assert (one != before).any()
    *_, text, _, note = page.do(page.click, session, photos[0], "70,35,", "", "box", 70, 5)
    assert text == "70,35," and note.startswith("error: 70,5,70,35: ")


class Speaker:
    """Sees a cup in the left half, and has no picture to ask for."""

    adapter = SimpleNamespace(text_alone=True)

    def another(self):
        return Speaker()

    def reset(self):
        self.asked = []

    def chat(self, picture, question, given, max_new_tokens):
        if picture is None:
            return Answer(text="nothing")
        height, width = picture.shape[:2]
        half = (0.0, 0.0, width / 2, float(height))
        phrases = (Phrase("cup", (2, 5), (half,), (0.9,)),)
        return Answer("a cup", phrases, notes=("so",), width=width, height=height)


def test_phrases_are_told_and_drawn(photos):
    page = Page(Speaker())
    session, log, drawn, *_ = page.do(page.ask, None, photos[0], "50,10,80,30", "What is there?")
    assert log.split("\n")[2:] == ["a cup", "  cup: [0, 0, 45, 40]  score 0.90", "  note: so", ""]
    session.mark("50,10,80,30")
    assert (np.asarray(drawn) != np.asarray(session.drawn)).any()


def test_some_systems_answer_without_a_picture():
    page = Page(Speaker())
    _, log, drawn, *_ = page.do(page.ask, None, None, "", "What?")
    assert log == "> What?\nnothing\n" and drawn is None
    *_, note = page.do(page.ask, None, None, "1,2", "What?")
    assert note == "error: no picture yet: upload one first"


@pytest.mark.parametrize(
    ("file", "text", "question", "message"),
    [
        (None, "", "What?", "no picture yet"),
        ("photo", "", " ", "no question yet"),
        ("photo", "9,4,45,60", "What?", "9,4,45,60: "),
        ("photo", "9,4", "What is <r:1>?", "<r:1> is not marked"),
        ("broken", "", "What?", "error: broken.png: is not a picture"),
    ],
)
def test_a_mistake_is_one_line_and_what_was_typed_stays(
    page, photos, tmp_path, file, text, question, message
):
    (tmp_path / "broken.png").write_text("no picture")
    file = {"photo": photos[0], "broken": str(tmp_path / "broken.png")}.get(file)
    session, log, _, *typed, note = page.do(page.ask, None, file, text, question)
    assert typed == [text, question] and log == ""
    assert note.startswith("error: ") and message in note and "\n" not in note
    assert not session.assistant._history


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port", "70000"], "--port 70000: give 1 to 65535"),
        (["--max-new-tokens", "0"], "--max-new-tokens 0: give at least 1"),
        ([], "the extra demo: make setup EXTRAS=demo"),
    ],
)
def test_what_is_wrong_is_told_before_a_model_is_read(monkeypatch, arguments, message):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setattr(mg_jax, "load", None, raising=False)
    with pytest.raises(UserError, match=message):
        page_command.main(arguments)


def test_a_port_that_is_taken_is_named(monkeypatch):
    def launch(server_port, **_):
        raise OSError("Cannot find empty port")

    monkeypatch.setitem(sys.modules, "gradio", ModuleType("gradio"))
    monkeypatch.setattr(mg_jax, "load", lambda *_, **__: Speaker(), raising=False)
    monkeypatch.setattr(page_command, "build", lambda *_: SimpleNamespace(launch=launch))
    with pytest.raises(UserError, match="--port 7861: is taken"):
        page_command.main(["--port", "7861"])


def test_the_detector_is_that_of_the_flags(monkeypatch):
    asked = []
    speaker = Speaker()
    speaker.adapter = SimpleNamespace(text_alone=True, can={"detections"})
    blocks = SimpleNamespace(launch=lambda **_: None)
    monkeypatch.setitem(sys.modules, "gradio", ModuleType("gradio"))
    monkeypatch.setattr(mg_jax, "load", lambda *_, **kw: asked.append(kw) or speaker, raising=False)
    monkeypatch.setattr(page_command, "build", lambda *_: blocks)
    for flags in ([], ["--detector", "groma-tiny", "--box-limit", "0"]):
        page_command.main(flags)
    assert asked == [{}, {"detector": "groma-tiny", "box_limit": 0}]


def test_the_page_is_served(page, photos, tmp_path):
    gradio = pytest.importorskip("gradio")
    from gradio_client import Client, handle_file

    blocks = page_command.build(page, np.zeros((40, 90, 3), np.uint8))
    assert isinstance(blocks, gradio.Blocks)
    _, url, _ = blocks.launch(prevent_thread_lock=True, quiet=True)
    try:
        client = Client(url, verbose=False)
        photo = handle_file(photos[0])
        log, drawn, text, question, note = client.predict(
            photo, "9,4,45,20", "What is <r:0>?", api_name="/ask"
        )
        assert log.startswith("> What is <r:0>?\n  <r:0>: 9,4,45,20\n")
        assert (text, question, note) == ("", "", "")
        assert max(Image.open(drawn if isinstance(drawn, str) else drawn["path"]).size) >= 512
        log, *_ = client.predict(photo, "", "And what else?", api_name="/ask")
        assert log.count("> ") == 2
        again, *_, note = client.predict(photo, "9,4,45,60", "What is it?", api_name="/ask")
        assert again == log and note.startswith("error: 9,4,45,60: ")
        (tmp_path / "broken.png").write_text("no picture")
        broken = handle_file(str(tmp_path / "broken.png"))
        *_, note = client.predict(broken, "", "What is it?", api_name="/ask")
        assert note == "error: broken.png: is not a picture that can be read"
    finally:
        blocks.close()
