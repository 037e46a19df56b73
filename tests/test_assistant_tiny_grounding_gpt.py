"""TinyGroundingGPT as a user has it: load, chat, object images, the command line."""

import json

import numpy as np
import pytest
from PIL import Image

import mg_jax
from launch import chat
from mg_jax.errors import UserError
from mg_jax.example import Query, Region
from mg_jax.text import markup
from tests.tiny_grounding_micro import SIDE, save_random


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_random(tmp_path_factory.mktemp("release") / "tgg")


@pytest.fixture(scope="module")
def assistant(folder):
    return mg_jax.load(folder)


def noise(width=90, height=40, seed=0):
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)


BOXES = tuple(Region.from_box(b) for b in ((0.1, 0.2, 0.5, 0.9), (0.5, 0.0, 1.0, 0.5)))


def queries():
    return [
        Query(noise(), "Where is the object <object:0> in the image?", BOXES[:1]),
        Query(noise(40, 90, 1), "Which is at <r:1>?\nA. <object:0>\nB. <object:1>", BOXES),
        Query(None, "Say something."),
        Query(noise(seed=2), "What is <r:0>?", (Region.from_point(0.5, 0.5),)),
    ]


def test_answers_are_the_same_alone_and_in_a_batch(assistant):
    """Though text, object images and pictures differ in number and size."""
    together = assistant.answer(queries(), max_new_tokens=12)
    alone = [assistant.answer([q], max_new_tokens=12)[0] for q in queries()]
    assert [a.markup for a in together] == [a.markup for a in alone]
    assert len({a.markup for a in together}) > 1
    assert (together[0].width, together[0].height) == (90, 40)
    assert together[3].notes[0] == "point passed as its tightest box"


def test_what_the_model_is_given(assistant):
    rows = [assistant.adapter.read(q) for q in queries()]
    batch = assistant.adapter.collate(rows, 400)
    assert batch["objects"].shape == (4, 2, SIDE, SIDE, 3) and batch["image"].dtype == np.float32
    np.testing.assert_array_equal(batch["object_mask"].sum(1), [1, 2, 0, 0])
    cfg = assistant.system.cfg
    np.testing.assert_array_equal(
        (batch["tokens"] == cfg.id("object")).sum(1), np.array([1, 2, 0, 0]) * cfg.object_tokens
    )
    without = assistant.adapter.collate(rows[2:], 400)
    assert without["objects"].shape[1] == 0


def test_a_conversation_keeps_its_object_images(assistant):
    assistant.reset()
    picture = noise()
    assistant.chat(picture, "What is <object:0>?", BOXES[:1], max_new_tokens=4)
    assistant.chat(None, "And <object:0>?", BOXES[1:], max_new_tokens=4)
    last = assistant._history[-1].user
    kept = [s.regions[0] for s in markup.parse(last) if s.kind == "object"]
    assert [assistant._regions[k].box for k in kept] == [BOXES[1].box]
    assistant.reset()


@pytest.mark.parametrize(("query", "message"), [
    (Query(None, "Hi", video=np.zeros((2, 8, 8, 3), np.uint8)), "not about videos"),
    (Query(None, "What is <object:0>?", BOXES[:1]), "points at a region, but there is no picture"),
    (Query(noise(), "Is it " + "<object:0>" * 6, BOXES[:1]), "6 object images, but there are 5"),
    (Query(noise(), "What is <object:0>?", (Region("box", (0.5, 0.5, 0.5, 0.9)),)),
     "object image 0: box .* has no area"),
    (Query(noise(), "What is <object:0>?", (Region("box", (1.2, 0.5, 1.5, 0.9)),)),
     "object image 0: box .* outside the picture"),
])  # fmt: skip
def test_bad_input_is_one_clear_line(assistant, query, message):
    with pytest.raises(UserError, match=message) as e:
        assistant.answer([query], max_new_tokens=2)
    assert "\n" not in str(e.value)


def test_it_proposes_nothing(assistant):
    with pytest.raises(UserError, match="tiny_grounding_gpt proposes no regions"):
        assistant.propose([noise()])


# -- launch.chat -------------------------------------------------------------------------------


@pytest.fixture
def ask(folder, tmp_path, monkeypatch, capsys):
    Image.fromarray(noise()).save(tmp_path / "p.png")

    def run(*more):
        command = ["chat", "--checkpoint", str(folder), "--image", str(tmp_path / "p.png"),
                   "--json", "--max-new-tokens", "3", *more]  # fmt: skip
        monkeypatch.setattr("sys.argv", command)
        chat.main()
        return json.loads(capsys.readouterr().out)

    return run


def test_chat_shows_objects(ask, monkeypatch):
    seen = []
    own = mg_jax.assistant.Assistant.chat
    monkeypatch.setattr(
        mg_jax.assistant.Assistant, "chat",
        lambda self, *args, **more: seen.append(args) or own(self, *args, **more),
    )  # fmt: skip
    ask("--object", "9,4,45,36", "--prompt", "Where is it?")
    ask("--box", "0,0,45,20", "--object", "9,4,45,36", "--prompt", "Is <object:1> at <r:0>?")
    assert [args[1] for args in seen] == ["Where is it? <object:0>", "Is <object:1> at <r:0>?"]
    np.testing.assert_allclose(seen[0][2][0].box, (0.1, 0.1, 0.5, 0.9))
    assert len(seen[1][2]) == 2


@pytest.mark.parametrize(("box", "message"), [
    ("10,10,10,30", "--object 10,10,10,30: box 0 .* has no area"),
    ("100,10,120,30", "--object 100,10,120,30: box 0 .* lies outside the image"),
    ("10,10,30", "--object 10,10,30: expected 4 numbers"),
])  # fmt: skip
def test_bad_objects_are_named_by_their_flag(ask, box, message):
    with pytest.raises(UserError, match=message):
        ask("--object", box, "--prompt", "Where is it?")
