"""Ferret as a user meets it: regions of every kind, pictures of every shape, one row and many."""

import json

import numpy as np
import pytest
from PIL import Image

import mg_jax
from launch import chat
from mg_jax.assistants.ferret import FerretAdapter
from mg_jax.errors import UserError
from mg_jax.example import Query, Region, Turn
from tests.ferret_micro import noise, save_random

MASK = np.zeros((40, 90), bool)
MASK[5:30, 20:60] = True
REGIONS = (
    Region.from_box((0.1, 0.2, 0.5, 0.9)),
    Region.from_point(0.5, 0.5),
    Region.from_polygon([(0.1, 0.1), (0.9, 0.9), (0.9, 0.1), (0.1, 0.9)]),  # its edges cross
    Region.from_scribble([(0.1, 0.5), (0.9, 0.5)]),
    Region.from_mask(MASK),
)
PROMPT = "What are <r:0>, <r:1>, <r:2>, <r:3> and <r:4>?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_random(tmp_path_factory.mktemp("ferret") / "release")


@pytest.fixture(scope="module")
def assistant(folder):
    return mg_jax.load(folder)


def ask(assistant, image, prompt, *regions, **options):
    query = Query(image, prompt, tuple(regions))
    (answer,) = assistant.answer([query], max_new_tokens=8, **options)
    return answer


def test_regions_of_every_kind_as_they_are(assistant):
    assert isinstance(assistant.adapter, FerretAdapter)
    row = assistant.adapter.read(Query(noise(), PROMPT, REGIONS))
    assert row.notes == () and len(row.arrays["points"]) == 5
    answer = ask(assistant, noise(), PROMPT, *REGIONS)
    assert (answer.width, answer.height) == (90, 40)
    assert not any("tightest box" in note for note in answer.notes)
    for points, region in zip(row.arrays["points"][1:4:2], (REGIONS[1], REGIONS[3]), strict=True):
        y = points[:, 1] * 40
        assert abs(y - region.points[0][1] * 40).max() <= 6


def test_what_is_no_region_is_named(assistant):
    with pytest.raises(UserError, match=r"region 1: \(0.1, 0.2, .* give mg_jax.Region.from_box"):
        ask(assistant, noise(), "What is it?", REGIONS[0], (0.1, 0.2, 0.5, 0.9))


def test_regions_that_go_by_another_are_noted(assistant, monkeypatch):
    query = Query(noise(), f"{PROMPT} It is like <object:0>.", REGIONS)
    said = "object image passed as its region"
    assert assistant.adapter.read(query).notes == (said,)
    later = Query(noise(), "And?", REGIONS, history=(Turn("Is it <object:0>?", "No."),))
    assert assistant.adapter.read(later).notes == (said,)
    monkeypatch.setattr(assistant.adapter.codec, "refer", "coordinates")
    row = assistant.adapter.read(Query(noise(), PROMPT, REGIONS))
    assert row.notes == tuple(
        f"{kind} passed as its tightest box" for kind in ("polygon", "scribble", "mask")
    )
    assert "[500, 500]" in assistant.adapter.codec.prompt([Turn(PROMPT)], REGIONS, (90, 40))


def test_the_answer_does_not_depend_on_the_batch(assistant):
    pictures = [noise(28, 28), noise(170, 28, 1), noise(60, 60, 2), noise(1, 10_000, 3)]
    queries = [
        Query(p, "What is <r:0>?" if n else "What is there?", REGIONS[n : n + 1] if n else ())
        for n, p in enumerate(pictures)
    ]
    together = assistant.answer(queries, max_new_tokens=8)
    alone = [assistant.answer([q], max_new_tokens=8)[0] for q in queries]
    assert [a.text for a in together] == [a.text for a in alone]


def test_batches_have_few_lengths(assistant):
    """A bucket of tiles, 4 tokens each as the whole picture, and a quarter, half or all of 600."""

    def length(*sizes, prompt="What is there?", room=1100):
        queries = [Query(noise(*size) if size else None, prompt) for size in sizes]
        rows = [assistant.adapter.read(query) for query in queries]
        return assistant.adapter.collate(rows, room)["tokens"].shape[1]

    assert length((28, 28)) == length((28, 28), None) == 4 + 4 + 150
    assert length((90, 28)) == length((60, 60)) == length((28, 28), (28, 90)) == 4 + 4 * 4 + 150
    assert length((150, 28)) == length((170, 28)) == 4 + 6 * 4 + 150
    assert length(None) == 150
    assert length((28, 28), prompt="dog " * 100) == 4 + 4 + 300
    assert length((28, 28), room=130) == 130


def test_points_are_the_same_every_time(assistant):
    rows = [assistant.adapter.read(Query(noise(), PROMPT, REGIONS)) for _ in range(2)]
    for a, b in zip(*(r.arrays["points"] for r in rows), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_conversation(assistant):
    assistant.reset()
    assistant.chat(noise(), "What is it?", REGIONS[:1], max_new_tokens=4)
    assistant.chat(None, "And this?", REGIONS[1:2], max_new_tokens=4)
    assert len(assistant._history) == 2 and len(assistant._regions) >= 2
    assistant.reset()
    assert assistant.chat(None, "Hello?", max_new_tokens=4).width == 1  # text alone


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (Query(noise(), "What is <r:0>?", (Region.from_mask(np.ones((5, 5), bool)),)),
         "region 0: mask of 5x5 pixels, but the picture is 90x40"),
        (Query(noise(), "What is <r:2>?", REGIONS[:1]), "region 2, but there are 1"),
        (Query(None, "x", video="a.mp4"), "pictures, not about videos"),
        (Query(None, "What is <r:0>?", REGIONS[:1]), "there is none: pass an image"),
        (Query(noise()[..., 0], "x"), "expected uint8 RGB"),
        (Query(noise(), "x " * 2000), "begin a new conversation"),
    ],
)  # fmt: skip
def test_bad_input_is_one_clear_line(assistant, query, message):
    with pytest.raises(UserError, match=message) as e:
        assistant.answer([query], max_new_tokens=4)
    assert "\n" not in str(e.value)


def test_it_proposes_no_regions(assistant):
    with pytest.raises(UserError, match="ferret proposes no regions"):
        assistant.propose([noise()])


def test_a_v1_release(tmp_path):
    assistant = mg_jax.load(save_random(tmp_path / "v1", version="v1"))
    row = assistant.adapter.read(Query(noise(), "What is <r:0>?", REGIONS[:1]))
    assert "tiles" not in row.arrays
    assert ask(assistant, noise(), "What is <r:0>?", REGIONS[0]).height == 40


# -- on the command line ----------------------------------------------------------------------


def run(monkeypatch, capsys, *args):
    monkeypatch.setattr("sys.argv", ["chat", *map(str, args)])
    chat.main()
    return json.loads(capsys.readouterr().out)


def test_chat(folder, tmp_path, monkeypatch, capsys):
    Image.fromarray(noise()).save(tmp_path / "a.png")
    Image.fromarray(MASK.astype(np.uint8) * 255).save(tmp_path / "m.png")
    common = ("--checkpoint", folder, "--image", tmp_path / "a.png", "--prompt", "What are these?",
              "--json", "--max-new-tokens", 4)  # fmt: skip
    answer = run(
        monkeypatch, capsys, *common, "--box", "10,10,40,30", "--point", "5,5", "--polygon",
        "1,1,70,2,40,35", "--scribble", "5,20,80,20", "--mask", tmp_path / "m.png",
    )  # fmt: skip
    assert (answer["width"], answer["height"]) == (90, 40) and answer["notes"] == []
    for flags, message in (
        (("--point", "95,5"), "--point 95,5: .* outside the 90x40 picture"),
        (("--scribble", "5,5"), r"--scribble 5,5: scribble has 1 point"),
        (("--box", "10,10,10,30"), "--box 10,10,10,30"),
    ):
        with pytest.raises(UserError, match=message):
            run(monkeypatch, capsys, *common, *flags)
    Image.new("L", (90, 40)).save(tmp_path / "empty.png")
    with pytest.raises(UserError, match="is empty"):
        run(monkeypatch, capsys, *common, "--mask", tmp_path / "empty.png")
    Image.new("L", (9, 4), 255).save(tmp_path / "small.png")
    with pytest.raises(UserError, match="9x4, but the picture is 90x40"):
        run(monkeypatch, capsys, *common, "--mask", tmp_path / "small.png")
