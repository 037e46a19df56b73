"""Attention of answers: what it is of, where it lies in the picture, and launch.explain."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import mg_jax
from launch import explain as command
from mg_jax import draw
from mg_jax.attention import attend, mean_attention
from mg_jax.errors import UserError
from mg_jax.example import Query, Region
from mg_jax.explain import explain, kinds, pieces, spread
from mg_jax.generate import Sampling
from tests import ferret_micro, groma_micro, mg_llava_micro, tiny_grounding_micro

MICRO = {
    "groma": groma_micro, "mg_llava": mg_llava_micro, "ferret": ferret_micro,
    "tiny_grounding_gpt": tiny_grounding_micro,
}  # fmt: skip
BOX = Region.from_box((0.1, 0.2, 0.6, 0.9))


def noise(width=90, height=40):
    return np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}

    def get(name):
        if name not in made:
            made[name] = MICRO[name].save_random(tmp_path_factory.mktemp(name) / "release")
        return made[name]

    return get


def test_mean_attention_is_that_of_attend():
    rng = np.random.default_rng(0)
    q, k = (rng.normal(size=(2, n, h, 5)).astype(np.float32) for n, h in ((3, 4), (5, 2)))
    mask = jnp.asarray(rng.random((2, 3, 5)) < 0.7).at[:, :, 0].set(True)
    values = jnp.broadcast_to(jnp.eye(5)[None, :, None], (2, 5, 2, 5))
    expected = attend(jnp.asarray(q), jnp.asarray(k), values, mask).mean(2)
    got = mean_attention(jnp.asarray(q), jnp.asarray(k), mask)
    np.testing.assert_allclose(got, expected, atol=1e-6)
    np.testing.assert_allclose(got.sum(-1), 1.0, atol=1e-6)


@pytest.mark.parametrize("name", MICRO)
def test_every_system_says_where_it_looks(folders, name):
    """Places of the visual vectors cover the picture once, or once for each resolution."""
    assistant = mg_jax.load(folders(name))
    looks = explain(assistant, Query(noise(), "What is <r:0>?", (BOX,)), max_new_tokens=5)
    assert looks.attention.shape[0] == len(looks.words) == len(looks.kinds) <= 5
    np.testing.assert_allclose(looks.attention.sum(1), 1.0, atol=1e-5)
    view = looks.views[0]
    assert view.pixels.shape == (40, 90, 3)
    slots = (looks.prompt == view.token).sum()
    assert slots == len(view.boxes) == len(looks.shares(view))
    area = ((view.boxes[:, 2] - view.boxes[:, 0]) * (view.boxes[:, 3] - view.boxes[:, 1])).sum()
    assert area == pytest.approx(2.0 if name == "ferret" else 1.0)
    heat = looks.heat(view)
    assert heat.shape == (40, 90) and (heat > 0).all()
    inside = view.boxes[:, 2] > view.boxes[:, 0]
    inside &= view.boxes[:, 3] > view.boxes[:, 1]
    assert heat.sum() == pytest.approx(looks.shares(view)[inside].sum(), rel=1e-5)


def test_rows_are_those_of_the_whole_sequence(folders):
    """What is read from the cache equals the forward pass of prompt and answer together."""
    assistant = mg_jax.load(folders("tiny_grounding_gpt"))
    query = Query(noise(), "Which is it?\nA. <object:0>\nB. <object:1>", (BOX, BOX))
    looks = explain(assistant, query, max_new_tokens=6, layer=0)
    _, batch, out, _ = assistant.generate([query], 6, Sampling(), jax.random.key(0))
    batch = {k: v[:1] for k, v in batch.items()}
    ids, length = out.tokens[0][: out.length[0]], int(batch["valid"][0].sum())
    size = batch["tokens"].shape[1] + len(ids)
    tokens, valid = np.zeros((1, size), np.int32), np.zeros((1, size), bool)
    tokens[0, :length] = batch["tokens"][0, :length]
    tokens[0, length : length + len(ids)] = ids
    valid[0, : length + len(ids)] = True
    _, state = assistant.system.module.apply(
        {"params": assistant.params}, batch | {"tokens": tokens, "valid": valid}, mutable=["heads"]
    )
    (maps,) = jax.tree.leaves(state["heads"])
    expected = maps[0, 0, length - 1 : length - 1 + len(looks.words)]
    np.testing.assert_allclose(looks.attention, expected[:, : looks.attention.shape[1]], atol=1e-5)
    assert [v.name for v in looks.views] == ["picture", "object 0", "object 1"]
    one, two = (looks.shares(v) for v in looks.views[1:])
    assert len(one) == assistant.system.cfg.object_tokens and not np.allclose(one, two)
    assert looks.answer.markup == assistant.answer([query], max_new_tokens=6)[0].markup


@pytest.mark.parametrize(("words", "expected"), [
    (("A",), "c"), (("B", "."), "cc"),
    (("a", " dog", " [", "0.1", ",0.2,0.3,0.4", "]", " sits"), "ttppppt"),
    (("[1", "00, 2", "00, 300", ", 400]", "."), "ppppt"),
    (("it", " <roi>", " <r3>", " </roi>", " ok"), "tpppt"),
    (("A", " dog"), "tt"), (("[x]",), "t"), (("", " "), "tt"), ((), ""),
])  # fmt: skip
def test_kinds_of_tokens(words, expected):
    names = {"c": "choice", "t": "text", "p": "coordinates"}
    assert kinds(words) == tuple(names[letter] for letter in expected)


def test_pieces_join_to_the_text(folders):
    tokenizer = mg_jax.load(folders("tiny_grounding_gpt")).codec.tokenizer
    ids = [*tokenizer.encode("a red circle [0.100,0.200,0.300,0.400]", bos=False), 10**6]
    made = pieces(tokenizer, ids)
    assert "".join(made) == tokenizer.decode(ids[:-1]) and made[-1] == ""


def test_attention_spreads_over_pixels():
    boxes = np.array([[0, 0, 0.5, 1], [0.5, 0, 1, 0.5], [0, 0, 0, 0], [0.99, 0.99, 1, 1]])
    heat = spread(np.array([0.5, 0.2, 9.0, 0.1]), boxes, 4, 8)
    np.testing.assert_allclose(heat[:, :4], 0.5 / 16)
    np.testing.assert_allclose(heat[:2, 4:], 0.2 / 8)
    assert heat[3, 7] == pytest.approx(0.1) and heat.sum() == pytest.approx(0.8)
    picture = np.full((4, 8, 3), 100, np.uint8)
    drawn = np.asarray(draw.heat(picture, heat))
    assert drawn.shape == (256, 512, 3)
    assert drawn[200, 490, 0] > drawn[200, 300, 0]


@pytest.mark.parametrize(("query", "options", "message"), [
    (Query(noise(), "What?"), {"layer": 7}, "layer 7: the language model has 1 layers"),
    (Query(None, "What?"), {}, "there is no picture to look at"),
])  # fmt: skip
def test_bad_input(folders, query, options, message):
    assistant = mg_jax.load(folders("tiny_grounding_gpt"))
    with pytest.raises(UserError, match=message):
        explain(assistant, query, max_new_tokens=3, **options)
    looks = explain(assistant, Query(noise(), "What?"), max_new_tokens=3)
    with pytest.raises(UserError, match="the answer has no choice: it has "):
        looks.shares(looks.views[0], "choice")


def test_a_video_is_refused(folders):
    assistant = mg_jax.load(folders("mg_llava"))
    film = np.zeros((2, 16, 16, 3), np.uint8)
    with pytest.raises(UserError, match="attention is drawn on one picture, not on a video"):
        explain(assistant, Query(None, "What moves?", video=film), max_new_tokens=2)


def test_command_draws_and_tells(folders, tmp_path, capsys):
    Image.fromarray(noise()).save(tmp_path / "p.png")
    out = tmp_path / "look.png"
    argv = [
        "--checkpoint", str(folders("tiny_grounding_gpt")), "--image", str(tmp_path / "p.png"),
        "--object", "9,4,45,36", "--prompt", "Where is it?", "--max-new-tokens", "4", "--out",
        str(out),
    ]  # fmt: skip
    command.main([*argv, "--json"])
    told = json.loads(capsys.readouterr().out)
    for kind, about in told["kinds"].items():
        assert kind in command.KINDS and {"words", "picture", "object 0"} == set(about)
        assert 0 < about["picture"]["share"] + about["object 0"]["share"] < 1
        x, y = about["picture"]["most"]
        assert 0 <= x <= 90 and 0 <= y <= 40
    drawn = Image.open(out)
    assert drawn.size == (2 * 520, 520 * len(told["kinds"]))
    command.main(argv)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"wrote {out}" and any("picture " in line for line in lines)
    absent = next(k for k in command.KINDS if k not in told["kinds"])
    with pytest.raises(UserError, match=f"has no {absent}: it has "):
        command.main([*argv, "--of", absent])
    beside = [word if word != "9,4,45,36" else "-5,1,20,30" for word in argv]
    with pytest.raises(UserError, match="--object -5,1,20,30: .*leaves the"):
        command.main(beside)
