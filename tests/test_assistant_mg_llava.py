"""`load`, `chat`, `answer`, `launch.chat` and `launch.evaluate` on a random tiny MG-LLaVA."""

import dataclasses
import json
import sys

import jax
import numpy as np
import pytest
from PIL import Image

import mg_jax
from launch import chat as chat_command
from launch import evaluate as evaluate_command
from mg_jax.data.video import frame_numbers
from mg_jax.errors import UserError
from mg_jax.example import Query, Region
from mg_jax.models import build
from tests.mg_llava_micro import SIDE, micro_config, noise, save_random

FOUND = {"boxes": [[10, 5, 40, 30], [60, 0, 95, 20]], "scores": [0.5, 0.9], "labels": ["a", "b"]}
NOTHING = {"boxes": [], "scores": [], "labels": []}
BOX = Region.from_box((0.2, 0.2, 0.8, 0.8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_random(tmp_path_factory.mktemp("release") / "random")


@pytest.fixture(scope="module")
def assistant(folder):
    return mg_jax.load(folder)


@pytest.fixture
def queries():
    film = noise(frames=8, seed=4)
    return [
        Query(noise(seed=1), "What is <r:0>?", (BOX,), detections=FOUND),
        Query(None, "What moves?", video=film, detections={"frames": [FOUND] * 8}),
        Query(None, "Say something."),
        Query(noise(50, 70, seed=2), "Describe the picture.", detections=NOTHING),
        Query(None, "What moves?", video=lambda n: film[frame_numbers(8, n)]),
    ]


def test_answers_do_not_depend_on_the_batch(assistant, queries):
    together = assistant.answer(queries, max_new_tokens=6)
    alone = [assistant.answer([q], max_new_tokens=6)[0] for q in queries]
    assert [a.markup for a in together] == [a.markup for a in alone]
    sizes = [(a.width, a.height) for a in together]
    assert sizes == [(90, 40), (90, 40), (0, 0), (50, 70), (90, 40)]
    assert len({a.text for a in together}) > 2


def test_boxes_and_the_users_regions_reach_the_model(assistant):
    """Logits are compared, for the texts of a random model may agree."""

    model = assistant.system.module

    @jax.jit
    def run(params, batch):
        def prefill(m):
            return m.prefill(batch, m.lm.empty_cache(*batch["tokens"].shape))[0]

        return model.apply({"params": params}, method=prefill)

    def logits(**fields):
        query = Query(**({"image": noise(), "prompt": "What is <r:0>?"} | fields))
        batch = assistant.adapter.collate([assistant.adapter.read(query)], 400)
        return np.asarray(run(assistant.params, batch))

    base = {"regions": (BOX,), "detections": FOUND}
    moved = FOUND | {"boxes": [[10, 5, 40, 30], [0, 10, 30, 40]]}
    first = logits(**base)
    assert np.abs(first - logits(**base)).max() == 0
    for change in (
        {"detections": moved},
        {"detections": NOTHING},
        {"regions": (Region.from_box((0.0, 0.0, 0.3, 0.3)),)},
        {"image": noise(seed=1)},
    ):
        assert np.abs(first - logits(**(base | change))).max() > 1e-3


def test_boxes_are_given_found_or_none_and_the_answer_says_so(folder, assistant):
    picture, said = noise(), "no boxes were used"
    given = assistant.answer([Query(picture, "What?", detections=FOUND)], max_new_tokens=2)
    (answer,) = assistant.answer([Query(picture, "What?")], max_new_tokens=2)
    assert said in answer.notes[0] and not any(said in n for n in given[0].notes)
    asked = []

    def detect(images):
        asked.append(len(images))
        return [FOUND] * len(images)

    seeing = mg_jax.load(folder, detector=detect)
    options = {"max_new_tokens": 2}
    found = seeing.chat(picture, "What?", **options)
    seeing.chat(None, "And now?", **options)
    seeing.chat(None, "What moves?", video=noise(frames=9), **options)
    assert asked == [1, 8]  # a conversation is looked at once
    assert found.notes == given[0].notes == ()
    shown = Query(picture, "Is it <object:0>?", (Region.from_box((0.2, 0.2, 0.8, 0.8)),))
    assert seeing.adapter.read(shown).notes == ("object image passed as its region",)
    boxes, scores = seeing.propose([picture])[0]
    assert boxes.tolist() == FOUND["boxes"] and len(scores) == 2
    with pytest.raises(UserError, match="no detector is configured"):
        assistant.propose([picture])
    with pytest.raises(UserError, match="the detector: nope: neither a folder nor"):
        mg_jax.load(folder, detector="nope").chat(picture, "What?", **options)


def test_a_release_that_proposes_serves_as_detector(folder, tmp_path, monkeypatch):
    proposer = mg_jax.load(folder, detector=lambda images: [FOUND] * len(images))
    from mg_jax import loading as module

    load = module.load
    monkeypatch.setattr(module, "load", lambda name: proposer if name == "one" else load(name))
    seeing = load(folder, detector="one")
    row = seeing.adapter.read(Query(noise(), "What?"))
    assert len(row.arrays["boxes"][0]) == 2 and not row.notes


def test_what_leaves_no_room_is_told(folder, tmp_path):
    narrow = mg_jax.load(save_random(tmp_path / "narrow", model__max_boxes=1))
    (answer,) = narrow.answer([Query(noise(), "What?", detections=FOUND)], max_new_tokens=2)
    assert answer.notes[0] == "1 detected boxes left out: there are 1 slots"


def test_the_limit_of_boxes_is_an_option(folder, assistant):
    """100 by default; none at all in some of upstream's evaluations."""
    boxes = [[x, y, x + 4, y + 4] for x in range(0, 90, 5) for y in range(0, 40, 5)]
    n = len(boxes)
    found = {"boxes": boxes, "scores": [0.5] * n, "labels": ["a"] * n}
    adapters = {100: assistant.adapter, 0: mg_jax.load(folder, box_limit=0).adapter}
    adapters[20] = type(assistant.adapter)(assistant.system, assistant.codec, {"box_limit": 20})
    for limit, left in ((100, 20), (0, n), (20, 5)):
        row = adapters[limit].read(Query(noise(), "What?", detections=found))
        assert len(row.arrays["boxes"][0]) == min(left, 16)
        told = (f"{left - 16} detected boxes left out: there are 16 slots",)
        assert row.notes == (told if left > 16 else ())


def test_boxes_outside_of_the_picture_are_told(assistant):
    """Such as those of a file about the same pictures in another size."""
    for boxes, count in (([[900, 900, 950, 950]] * 2, 1), ([[9, 9, 20, 20], [0, 190, 9, 200]], 1)):
        found = FOUND | {"boxes": boxes, "labels": ["a", "a"]}
        row = assistant.adapter.read(Query(noise(), "What?", detections=found))
        assert row.notes == (
            f"{count} detected boxes left out: they lie outside of 90x40 px; were they found in a "
            "picture of another size?",
        )
        assert len(row.arrays["boxes"][0]) == 1


def test_a_video_that_does_not_fit_is_seen_in_fewer_frames(folder, tmp_path):
    """As published ones, whose 8 frames take more positions than their language models have."""
    changes = {"model__video_pool": 1, "model__lm__max_positions": 34, "codec__text_tokens": 20}
    config = micro_config(media="video", **changes)
    narrow = mg_jax.load(folder)
    cfg = build(config.system, config.model.to_dict()).cfg
    adapter = type(narrow.adapter)(dataclasses.replace(narrow.system, cfg=cfg), narrow.codec, {})
    adapter.codec.frame_tokens = cfg.image_tokens()
    film = noise(frames=8)
    found = [FOUND | {"boxes": [[n, 0, n + 20, 20], [60, 0, 95, 20]]} for n in range(8)]
    row = adapter.read(Query(None, "What?", video=film, detections={"frames": found}))
    chosen = frame_numbers(8, 4)  # 26 positions for frames of 4 and two boxes
    view = adapter.preprocess
    np.testing.assert_array_equal(row.arrays["high"][2], view.squash(film[chosen[2]], SIDE))
    assert len(row.arrays["high"]) == len(row.arrays["boxes"]) == 4
    first = [boxes[:, 0].min() for boxes in row.arrays["boxes"]]
    assert first == sorted(set(first))  # of the frames that are shown
    assert row.notes[0].startswith("4 of 8 frames were used: all of them with their boxes")
    row = adapter.read(Query(None, "What?", video=film, detections={"frames": [NOTHING] * 8}))
    assert len(row.arrays["high"]) == 5  # one box of zeros each
    found[7]["boxes"] = [[900, 900, 950, 950]] * 2
    row = adapter.read(Query(None, "What?", video=film, detections={"frames": found}))
    assert "outside" in row.notes[1] and "2 detected" in row.notes[1]
    whole = mg_jax.load(folder).adapter.read(Query(None, "What?", video=film))
    assert len(whole.arrays["high"]) == 8 and "frames" not in " ".join(whole.notes)


def test_a_conversation_about_a_video(assistant, monkeypatch):
    seen = []
    real = assistant.answer
    monkeypatch.setattr(
        assistant, "answer", lambda queries, **kw: seen.append(queries[0]) or real(queries, **kw)
    )
    assistant.reset()
    film, found = noise(frames=8), {"frames": [FOUND] * 8}
    assistant.chat(None, "What moves?", video=film, detections=found, max_new_tokens=3)
    assistant.chat(None, "Where to?", max_new_tokens=3)
    assert seen[1].video is film and seen[1].detections is found
    assert seen[1].history[0].user == "What moves?"
    assistant.chat(noise(), "And here?", max_new_tokens=3)
    assert seen[2].history == () and seen[2].video is None and seen[2].detections is None
    assistant.reset()
    assert assistant.chat(None, "Hello?", max_new_tokens=3).width == 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image": noise(), "video": noise(frames=8)}, "an image or a video, not about both"),
        ({"video": noise()}, "video: got an array of uint8 (40, 90, 3)"),
        ({"video": "no/such.mp4"}, "no/such.mp4: no such video file"),
        ({"image": noise(), "detections": [FOUND] * 3}, "boxes of 3 pictures or frames, but 1"),
        ({"image": noise(), "detections": FOUND | {"scores": [1]}}, "2 boxes but 1 scores"),
        ({"image": noise(), "detections": {"boxes": []}}, "detections: has no list 'scores'"),
        ({"image": noise(), "detections": FOUND | {"boxes": [[9, 9, 1, 1]] * 2}}, "is reversed"),
        ({"detections": FOUND}, "detections without a picture"),
        ({"image": noise(), "prompt": "dog " * 400}, "tokens of text, but the model takes 160"),
    ],
)
def test_bad_questions_are_named(assistant, fields, message):
    query = Query(**({"image": None, "prompt": "What?"} | fields))
    with pytest.raises(UserError) as e:
        assistant.answer([query], max_new_tokens=2)
    assert message in str(e.value) and "\n" not in str(e.value)


def test_groma_refuses_a_video():
    from mg_jax.assistants.groma import GromaAdapter

    with pytest.raises(UserError, match="not about videos: pass an image"):
        GromaAdapter.read(None, Query(None, "What?", video=noise(frames=8)))


def test_groma_refuses_boxes(film, monkeypatch, capsys):
    flags = ["--checkpoint", "groma-tiny", "--prompt", "What?", "--image", film / "p.png"]
    code, _, err = run(chat_command, monkeypatch, capsys, *flags, "--boxes", film / "boxes.json")
    assert code == 2 and err == "error: --boxes: groma takes no detected boxes: leave it out\n"


def run(command, monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        command.cli.run(command.main)
    out = capsys.readouterr()
    return stop.value.code, out.out, out.err


@pytest.fixture
def film(tmp_path):
    """A folder of ten frames, and a box file about it and a picture."""
    for n in range(10):
        folder = tmp_path / "film"
        folder.mkdir(exist_ok=True)
        Image.fromarray(noise(seed=n)).save(folder / f"{n}.png")
    Image.fromarray(noise()).save(tmp_path / "p.png")
    entries = [FOUND | {"id": "p"}, {"id": "film", "frames": [FOUND] * 8}]
    (tmp_path / "boxes.json").write_text(json.dumps(entries))
    return tmp_path


def test_chat_about_a_video_and_a_picture_with_a_box_file(folder, film, monkeypatch, capsys):
    base = ["--checkpoint", folder, "--prompt", "What?", "--json", "--max-new-tokens", 3]
    for flag in (["--video", film / "film"], ["--image", film / "p.png"]):
        code, out, err = run(
            chat_command, monkeypatch, capsys, *base, *flag, "--boxes", film / "boxes.json",
            "--box", "10,10,40,30", "--out", film / "drawn.png",
        )  # fmt: skip
        assert code == 0, err
        answer = json.loads(out)
        assert (answer["width"], answer["height"]) == (90, 40) and answer["notes"] == []
        assert (film / "drawn.png").is_file()
    (film / "more.json").write_text(json.dumps([NOTHING | {"id": 17}]))
    both = f"{film / 'boxes.json'},{film / 'more.json'}"
    asked = [chat_command.arguments().parse_args([*map(str, flag), "--boxes", both, *more])
             for more in ([], ["--boxes-id", "17"])]  # fmt: skip
    assert [len(chat_command.detections(args)[0].labels) for args in asked] == [2, 0]
    code, out, _ = run(chat_command, monkeypatch, capsys, *base, *flag)
    assert code == 0 and "no boxes were used" in json.loads(out)["notes"][0]


@pytest.mark.parametrize("flag", ["--image", "--video", None])
def test_lines_of_a_chat_are_one_conversation(folder, film, monkeypatch, capsys, flag):
    """The command passes picture, video and boxes at every turn: they are the same ones."""
    lines, asked = ["What?", "And then?", "Why?", ""], []
    monkeypatch.setattr(chat_command, "ask", lambda: lines[len(asked)])
    from mg_jax.assistants.mg_llava import MGLLaVAAdapter

    real = MGLLaVAAdapter.read
    monkeypatch.setattr(
        MGLLaVAAdapter, "read", lambda self, query: asked.append(query) or real(self, query)
    )
    about = {"--image": film / "p.png", "--video": film / "film"}.get(flag)
    given = [flag, about, "--boxes", film / "boxes.json", "--box", "10,10,40,30"] if about else []
    code, _, err = run(
        chat_command, monkeypatch, capsys, "--checkpoint", folder, "--max-new-tokens", 2, *given
    )
    assert code == 0, err
    assert [len(q.history) for q in asked] == [0, 1, 2]
    assert asked[2].history[1].user == "And then?"
    assert [len(q.regions) >= 1 for q in asked] == [bool(about)] * 3
    assert len({id(q.detections) for q in asked}) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--image", "{}/p.png", "--video", "{}/film"], "--image, --video: give one of them"),
        (["--boxes", "{}/boxes.json"], "--boxes: of which picture?"),
        (["--image", "{}/film/1.png", "--boxes", "{}/boxes.json"], "no entry for '1.png'"),
        (["--image", "{}/p.png", "--boxes", "{}/boxes.json", "--boxes-id", "q"], "entry for 'q'"),
        (["--image", "{}/p.png", "--boxes-id", "p"], "--boxes-id: is an id in the file of --boxes"),
        (["--image", "{}/p.png", "--boxes", "{}/no.json"], "no.json: no such box file"),
        (["--image", "{}/p.png", "--tags", "w.txt"], "--tags, --tagger, --thresholds: are for an"),
        (["--box", "1,2,3,4"], "give --image or --video"),
        (["--video", "{}/p"], "p: no such video file"),
    ],
)
def test_bad_arguments_give_one_line(folder, film, monkeypatch, capsys, arguments, message):
    arguments = [a.format(film) for a in arguments]
    base = ["--checkpoint", folder, "--prompt", "What?"]
    code, _, err = run(chat_command, monkeypatch, capsys, *base, *arguments)
    lines = [x for x in err.splitlines() if x.startswith("error: ")]
    assert code == 2 and len(lines) == 1 and message in lines[0], err


@pytest.mark.parametrize("blind", [[], ["--blind"]])
@pytest.mark.parametrize("task", ["vqa", "presence", "reading", "regions", "moved", "direction"])
def test_every_task_of_the_model_card_runs(folder, tmp_path, monkeypatch, capsys, task, blind):
    base = ["--checkpoint", folder, "--task", task, "--json", "--max-new-tokens", 2, *blind]
    data = ["--data", "scenes:seed=700000,n=3,size=96", "--out", tmp_path / "wrong"]
    code, out, err = run(evaluate_command, monkeypatch, capsys, *base, *data)
    assert code == 0, err
    found = json.loads(out)
    assert found["n"] == 3 and 0 < found["majority"] <= 1 and found["blind"] == bool(blind)
    assert "accuracy" in found and (tmp_path / "wrong" / "failures.jsonl").is_file()


def test_evaluation_on_scenes_gives_their_detections(folder, monkeypatch, capsys):
    from mg_jax.assistants.mg_llava import MGLLaVAAdapter

    given = []
    real = MGLLaVAAdapter.read
    monkeypatch.setattr(
        MGLLaVAAdapter, "read", lambda self, q: given.append(q.detections) or real(self, q)
    )
    base = ["--checkpoint", folder, "--task", "presence", "--json", "--max-new-tokens", 2]
    for blind in ([], ["--blind"]):
        code, out, err = run(
            evaluate_command, monkeypatch, capsys, *base, *blind,
            "--data", "scenes:seed=700000,n=4,size=64",
        )  # fmt: skip
        assert code == 0 and json.loads(out)["n"] == 4, err
    assert all(d["boxes"] for d in given[:4]) and not any(d["boxes"] for d in given[4:])
