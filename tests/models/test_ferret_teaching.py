"""Stage "labels", the pointing loss and what starts a tiny Ferret: they teach what they shall."""

import jax
import numpy as np
import optax
import pytest

from mg_jax.errors import UserError
from mg_jax.models import build
from mg_jax.sharding import unbox
from mg_jax.vision.anyres import merged_order
from tests.drawn import drawn
from tests.ferret_micro import SIDE, micro_config

WORDS = 5
GRIDS = ((1, 1), (2, 1), (1, 2))


def system_of(**changes):
    model = micro_config("labels").model.to_dict()
    model |= {"grids": GRIDS, "label_words": WORDS, **changes}
    return build("ferret", model)


def labelled():
    rng = np.random.default_rng(1)
    labels = np.full((2, 3, 4), -1, np.int32)
    labels[..., :2] = [[[0, 3], [1, 4], [2, 3]], [[0, 4], [2, 4], [-1, -1]]]
    corners = np.sort(rng.uniform(0, 1, (2, 3, 2, 2)), axis=2)
    return {
        "low": rng.normal(size=(2, SIDE, SIDE, 3)).astype(np.float32),
        "tiles": rng.normal(size=(2, 2, SIDE, SIDE, 3)).astype(np.float32),
        "grid": np.array([1, 2], np.int32),
        "points": rng.uniform(0, 1, (2, 3, 16, 2)).astype(np.float32),
        "point_count": np.full((2, 3), 16, np.int32),
        "label_boxes": corners.reshape(2, 3, 4).astype(np.float32),
        "label_mask": labels[..., 0] >= 0,
        "labels": labels,
    }


def test_encoders_and_sampler_learn_to_name_and_place_things():
    system = system_of()
    assert system.stages == ("labels", "caption", "dense", "instruction")
    params, batch, tx = drawn(system, "labels"), labelled(), optax.adam(0.01)

    @jax.jit
    def step(params, opt):
        def loss(p):
            return system.loss("labels")(p, batch, jax.random.key(0))

        (value, metrics), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt = tx.update(grads, opt)
        return optax.apply_updates(params, updates), opt, value, metrics, grads

    opt, values = tx.init(params), []
    for _ in range(25):
        params, opt, value, metrics, grads = step(params, opt)
        values.append(float(value))
    assert values[-1] < 0.8 * values[0]
    parts = ("low", "tile", "region")
    assert set(metrics) == {f"{kind}_{part}" for kind in ("named", "place") for part in parts}
    assert set(grads) == {"low", "tile", "projector", "tile_projector", "tile_places", "sampler",
                          "labels"}  # fmt: skip
    for part in grads:
        assert any(np.abs(g).max() > 0 for g in jax.tree.leaves(grads[part])), part
    with pytest.raises(UserError, match="ferret has no such stage"):
        system_of(label_words=0).loss("labels")


def test_things_are_named_by_the_tokens_over_their_middle():
    """In a grid the tile's token is that of the merged map; padding is not learnt from."""
    system = system_of()
    params, batch = drawn(system, "labels"), labelled()
    batch["label_boxes"][0] = [[0.5, 0.25, 1, 0.45], [0, 0, 0.2, 1], [0.9, 0.9, 1, 1]]
    out = system.module.apply({"params": params}, batch, method=system.module.name_things)
    aux = system.module.apply({"params": params}, batch, method=system.module.encode)
    kernel, bias = (np.asarray(params["labels"][k]) for k in ("kernel", "bias"))
    order = merged_order(GRIDS, 2)[1]  # two tiles side by side: 2 x 4 cells
    for n, (x, y) in enumerate(((0.75, 0.35), (0.1, 0.5), (0.95, 0.95))):
        low = aux["low_tokens"][0, int(y * 2) * 2 + int(x * 2)]
        tile = aux["tile_tokens"][0, order[int(y * 2) * 4 + int(x * 4)]]
        for part, token in (("low", low), ("tile", tile)):
            np.testing.assert_allclose(out[part][0, n], token @ kernel + bias, atol=1e-5)
            assert np.square(np.asarray(token)).mean() == pytest.approx(1, abs=1e-3)
    vector = np.asarray(aux["region_tokens"][1, 2])
    vector = vector / np.sqrt(np.square(vector).mean())
    np.testing.assert_allclose(out["region"][1, 2], vector @ kernel + bias, atol=1e-4)
    other = {k: v.copy() for k, v in batch.items()}
    other["label_boxes"][1, 2] = [0, 0, 1, 1]
    values = [float(system.loss("labels")(params, b, jax.random.key(0))[0]) for b in (batch, other)]
    assert values[0] == pytest.approx(values[1], abs=1e-6)


def test_equal_tiles_are_told_apart_by_their_places():
    system = system_of()
    params, batch = drawn(system, "labels"), labelled()
    batch["tiles"][:, 1] = batch["tiles"][:, 0]
    aux = system.module.apply({"params": params}, batch, method=system.module.encode)
    features, tokens = (np.asarray(aux[f"tile_{k}"])[0].reshape(2, 4, -1)
                        for k in ("features", "tokens"))  # fmt: skip
    np.testing.assert_allclose(features[0], features[1], atol=1e-6)
    assert np.abs(tokens[0] - tokens[1]).max() > 0.01
    batch["grid"][0] = 2  # below each other instead
    moved = system.module.apply({"params": params}, batch, method=system.module.encode)
    assert np.abs(np.asarray(moved["tile_tokens"])[0, 4:] - tokens[1]).max() > 0.01


def test_a_region_begins_as_the_mean_of_its_points():
    system = system_of()
    params, batch = unbox(system.init("labels")(jax.random.key(0))["params"]), labelled()
    aux = system.module.apply({"params": params}, batch, method=system.module.encode)
    mean = np.asarray(aux["point_features"]).mean(2)
    np.testing.assert_allclose(aux["region_tokens"], mean, atol=1e-5)
    drawn_params = drawn(system, "labels")
    aux = system.module.apply({"params": drawn_params}, batch, method=system.module.encode)
    off = np.asarray(aux["region_tokens"]) - np.asarray(aux["point_features"]).mean(2)
    assert np.abs(off).max() > 0.01
    with pytest.raises(UserError, match=r"sampler\.residual: points of 8 channels are no vectors"):
        model = micro_config("labels").model.to_dict()
        model["low"]["width"] = model["tile"]["width"] = 8
        build("ferret", model | {"fusion": "raw"})


def test_heads_are_shown_where_to_look():
    changes = {"pointing_weight": 0.5, "label_words": 0}
    system = system_of(**changes)
    params, named = drawn(system, "instruction"), labelled()
    batch = {k: v for k, v in named.items() if not k.startswith("label")}
    tokens = np.random.default_rng(0).integers(0, 99, (2, 30)).astype(np.int32)
    tokens[:, 2:14] = system.cfg.id("image")
    tokens[:, 16:19] = system.cfg.id("region")
    mask = np.zeros((2, 30), bool)
    mask[:, 22:] = True
    gaze = np.zeros((2, 2, 4), np.int32)
    gaze[..., :3] = [[21, 5, 0], [22, 0, 1]], [[21, 17, 0], [0, 0, 0]]
    weight = np.array([[1.0, 0.5], [1.0, 0.0]], np.float32)
    batch |= {"tokens": tokens, "valid": np.ones_like(mask), "loss_mask": mask}
    batch |= {"gaze": gaze, "gaze_weight": weight}
    key = jax.random.key(0)
    loss, metrics = jax.jit(lambda p: system.loss("instruction")(p, batch, key))(params)
    _, kept = system.module.apply(
        {"params": params}, batch, rngs={"points": key}, mutable=["intermediates"]
    )
    (maps,) = kept["intermediates"]["lm"]["blocks"]["attn"]["attention"]
    found = [maps[0][i] for i in ((0, 0, 21, 5), (0, 1, 22, 0), (1, 0, 21, 17))]
    expected = -np.average(found, weights=[1, 0.5, 1])
    np.testing.assert_allclose(metrics["pointing"], expected, rtol=1e-5)
    np.testing.assert_allclose(loss, metrics["language"] + 0.5 * metrics["pointing"], rtol=1e-6)
    stated = system.example_batch("instruction", 2, gaze=2)
    assert stated["gaze"].shape == gaze.shape and stated["gaze_weight"].shape == weight.shape
    with pytest.raises(UserError, match="pointing_layer: 2 is not .* layers 0 to 0"):
        system_of(**changes, pointing_layer=2)
