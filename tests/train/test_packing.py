"""config.pack: texts of three systems share rows, and train as if each had one."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

import tests.ferret_micro
import tests.mg_llava_micro
import tests.tiny_grounding_micro
from mg_jax import sharding
from mg_jax.data import pipeline
from mg_jax.errors import UserError
from mg_jax.models import build
from mg_jax.plan import plan
from tests.train.micro import micro_config as groma_config
from tests.train.micro import save_tokenizer

MICRO = {
    "mg_llava": tests.mg_llava_micro.micro_config,
    "ferret": tests.ferret_micro.micro_config,
    "tiny_grounding_gpt": tests.tiny_grounding_micro.micro_config,
}
TEXTS = 7
LONG = {"boxes": "none", "codec__text_tokens": 500, "model__lm__max_positions": 600}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Conversations of text alone (talk.json), and with pictures between them (both.json)."""
    out = tmp_path_factory.mktemp("talk")
    Image.fromarray(np.full((40, 60, 3), 90, np.uint8)).save(out / "a.png")
    told = []
    for n in range(TEXTS):
        turn = [("human", f"Say {n}."), ("gpt", "a red ball " * (1 + n % 3))]
        told.append([{"from": who, "value": said} for who, said in turn * (1 + n % 2)])
    texts = [{"id": f"t{n}", "conversations": t} for n, t in enumerate(told)]
    seen = [{"id": f"p{n}", "image": "a.png", "conversations": t} for n, t in enumerate(told[:4])]
    (out / "talk.json").write_text(json.dumps(texts))
    (out / "both.json").write_text(json.dumps([*texts[:4], *seen, *texts[4:]]))
    return out


def opened(system, data, **changes):
    config = MICRO[system](data=str(data), tasks="auto", **changes)
    built = build(config.system, config.model.to_dict())
    return built, pipeline.open_batches(config, built.cfg), config.stage


def planned(system, data, **changes):
    """The batch whose step launch.compile sizes."""
    config = MICRO[system](data=str(data), **changes)
    built = build(config.system, config.model.to_dict())
    sizes = pipeline.batch_sizes(config, built.cfg)
    return plan(config, 10, system=built, mesh=sharding.make_mesh(1, 1, 1, jax.devices()[:1]),
                sizes=sizes).example  # fmt: skip


@pytest.mark.parametrize("system", MICRO)
def test_losses_and_gradients_are_those_of_a_row_each(system, folder, redraw):
    more = LONG if system == "mg_llava" else {}
    talk = f"llava:{folder / 'talk.json'},{folder}"
    built, alone, stage = opened(system, talk, batch_size=TEXTS, **more)
    _, packed, _ = opened(system, talk, batch_size=1, pack=True, **more)
    assert len(packed.sources[0]) == 1  # all of them fit one row
    alone, packed = next(alone), next(packed)
    assert packed["segments"].max() == TEXTS and "segments" not in alone
    assert packed["tokens"].shape[0] == 1 and packed["valid"].sum() == alone["valid"].sum()

    params = jax.jit(lambda k: sharding.unbox(built.init(stage)(k)["params"]))(jax.random.key(0))
    params = redraw(params, jax.random.key(1))

    @jax.jit
    def value(params, batch):
        loss = lambda p: built.losses[stage](p, batch, jax.random.key(2))  # noqa: E731
        return jax.value_and_grad(loss, has_aux=True)(params)

    (one, found), gradients = value(params, packed)
    (two, wanted), others = value(params, alone)
    assert found["targets"] == wanted["targets"] > 40
    np.testing.assert_allclose(one, two, atol=2e-5, rtol=0)
    for a, b in zip(jax.tree.leaves(gradients["lm"]), jax.tree.leaves(others["lm"]), strict=True):
        assert np.abs(b).max() > 0
        np.testing.assert_allclose(a, b, atol=3e-5, rtol=0)
    assert planned(system, talk, batch_size=1, pack=True, **more).keys() == packed.keys()
    (mixed, _), _ = value(params, packed | {"segments": np.minimum(packed["segments"], 1)})
    assert abs(mixed - two) > 1e-3  # without segments texts see each other


@pytest.mark.parametrize("grouped", [False, True])
def test_pictures_keep_a_row_each(grouped, folder):
    both = f"llava:{folder / 'both.json'},{folder}"
    more = LONG | {"group_by_length": grouped}
    _, batches, _ = opened("mg_llava", both, pack=True, batch_size=2, **more)
    assert sorted(len(s) for s in batches.sources) == [1, 4]
    assert batches.epoch_size == (6 if grouped else 5)  # the row of texts fills its batch up
    found = [next(batches) for _ in range(6)]
    for batch in found:
        np.testing.assert_array_equal(batch["segments"] > 0, batch["valid"])
    kinds = {tuple(b["segments"].max(1).tolist()) for b in found}
    assert kinds == {(1, 1), (TEXTS, TEXTS)} if grouped else {(1, TEXTS), (TEXTS, 1)} & kinds


def test_what_cannot_be_packed(folder, tmp_path):
    scenes = "scenes:seed=1,n=9,size=64"
    with pytest.raises(UserError, match="config.pack: no data set is known to hold conv"):
        opened("mg_llava", scenes, pack=True)
    with pytest.raises(UserError, match="config.pack: stage labels has no text"):
        opened("mg_llava", f"llava:{folder / 'talk.json'},{folder}", pack=True, stage="labels")
    save_tokenizer(tmp_path)
    config = groma_config("alignment", tmp_path, pack=True, data=scenes)
    with pytest.raises(UserError, match="config.pack: groma takes no text without a picture"):
        pipeline.open_batches(config, build(config.system, config.model.to_dict()).cfg)
