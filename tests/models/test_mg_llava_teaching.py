"""Stage "labels" and the pointing loss: they reach what they shall teach, and it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mg_jax.errors import UserError
from mg_jax.models import build
from mg_jax.ops.box_mean import box_mean
from tests.drawn import drawn
from tests.models.test_mg_llava import TINY, make_batch

WORDS = 5


def trained(system, stage, batch, steps=25):
    """(first loss, last loss, metrics, gradient of the first step)."""
    loss, params = system.loss(stage), drawn(system, stage)
    tx = optax.adam(0.01)

    @jax.jit
    def step(params, opt):
        run = jax.value_and_grad(lambda p: loss(p, batch, jax.random.key(0)), has_aux=True)
        (value, metrics), grads = run(params)
        updates, opt = tx.update(grads, opt)
        return optax.apply_updates(params, updates), opt, value, metrics, grads

    opt, values, first = tx.init(params), [], None
    for _ in range(steps):
        params, opt, value, metrics, grads = step(params, opt)
        values.append(float(value))
        first = grads if first is None else first
    return values[0], values[-1], metrics, first


def labelled(rows=2, slots=3):
    rng = np.random.default_rng(1)
    corners = np.sort(rng.integers(0, 769, (rows, slots, 2, 2)), axis=2)
    labels = np.full((rows, slots, 4), -1, np.int32)
    labels[..., :2] = [[[0, 3], [1, 4], [2, 3]], [[0, 4], [2, 4], [-1, -1]]]
    return {
        "high": rng.normal(size=(rows, 1, 16, 16, 3)).astype(np.float32),
        "label_boxes": corners.reshape(rows, slots, 4).astype(np.float32),
        "label_mask": labels[..., 0] >= 0,
        "labels": labels,
    }


def test_both_towers_learn_to_name_boxes():
    system = build("mg_llava", TINY | {"label_words": WORDS, "select_layer": -1})
    assert system.stages == ("labels", "pretrain", "sft")
    first, last, metrics, grads = trained(system, "labels", labelled())
    assert set(grads) == {"low", "high", "labels_low", "labels_high"}
    for tower in grads:
        assert any(np.abs(g).max() > 0 for g in jax.tree.leaves(grads[tower])), tower
    assert last < 0.8 * first and {"named_low", "named_high"} == set(metrics)
    with pytest.raises(UserError, match="mg_llava has no such stage"):
        build("mg_llava", TINY).loss("labels")


def test_a_patch_is_where_its_middle_is(monkeypatch):
    """Of a map of the middles of patches the mean over a box is the middle of the box."""
    sides = {name: TINY[name] | {"image_size": side} for name, side in (("low", 32), ("high", 64))}
    system = build("mg_llava", TINY | sides | {"label_words": WORDS})
    params, asked = drawn(system, "labels"), []

    def middles(maps, boxes, canvas):
        grid = np.indices(maps[0].shape[1:3])[::-1].transpose(1, 2, 0) + 0.5  # x, y
        grid = jnp.asarray(grid * canvas / len(grid), jnp.float32)[None]
        asked.append(box_mean([grid], boxes[:1], canvas))
        return box_mean(maps, boxes, canvas)

    monkeypatch.setattr("mg_jax.models.mg_llava.box_mean", middles)
    batch = labelled() | {"high": np.zeros((2, 1, 64, 64, 3), np.float32)}
    boxes = np.array([[96, 100, 288, 300], [480, 96, 576, 192], [192, 192, 672, 384]], np.float32)
    batch["label_boxes"][:] = boxes
    system.module.apply({"params": params}, batch, method=system.module.name_boxes)
    expected = (boxes[:, :2] + boxes[:, 2:]) / 2
    np.testing.assert_allclose(asked[0][0], expected, atol=1e-2)


def test_padding_of_labels_is_not_learned_from():
    system = build("mg_llava", TINY | {"label_words": WORDS})
    params, batch = drawn(system, "labels"), labelled()
    other = {k: v.copy() for k, v in batch.items()}
    other["label_boxes"][1, 2] = [0, 0, 768, 768]
    values = [float(system.loss("labels")(params, b, None)[0]) for b in (batch, other)]
    assert values[0] == pytest.approx(values[1], abs=1e-6)


def test_a_head_learns_to_look_where_it_is_told():
    cfg = {"pointing_weight": 1.0, "pointing_layer": 1}
    system = build("mg_llava", TINY | cfg)
    batch = make_batch([(2,), (3,)])
    count = batch["valid"].sum(1)
    batch["gaze"] = np.zeros((2, 4, 4), np.int32)
    batch["gaze_weight"] = np.zeros((2, 4), np.float32)
    batch["gaze"][:, 0] = np.stack([count - 4, [6, 8], [0, 1], [0, 0]], 1)  # box slots
    batch["gaze_weight"][:, 0] = 1
    first, last, metrics, grads = trained(system, "pretrain", batch)
    assert last < 0.7 * first and metrics["pointed"] > 0.5
    assert float(metrics["language"] + metrics["pointing"]) == pytest.approx(last, rel=1e-5)
    assert np.abs(grads["lm"]["blocks"]["attn"]["q"]["kernel"][1]).max() > 0
    plain = build("mg_llava", TINY)
    params = drawn(system, "sft")
    value = plain.loss("sft")(params, batch, jax.random.key(0))[0]
    _, metrics = system.loss("sft")(params, batch, jax.random.key(0))
    np.testing.assert_allclose(metrics["language"], value, rtol=1e-6)
    with pytest.raises(UserError, match="pointing_layer: 2 is not .* layers 0 to 1"):
        build("mg_llava", TINY | cfg | {"pointing_layer": 2})
    alone = TINY["lm"] | {"heads": 1, "kv_heads": 1}
    with pytest.raises(UserError, match="2 heads are taught, but .* has lm.heads=1"):
        build("mg_llava", TINY | cfg | {"lm": alone})
