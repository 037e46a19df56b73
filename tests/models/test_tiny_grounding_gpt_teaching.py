"""Stage "labels" and the pointing loss of TinyGroundingGPT: they reach what they shall teach."""

import jax
import numpy as np
import optax
import pytest

from mg_jax.errors import UserError
from mg_jax.models import build
from mg_jax.models.tiny_grounding_gpt import STAGES
from tests.drawn import drawn
from tests.models.test_tiny_grounding_gpt import TINY, make_batch

WORDS = 5


def test_heads_are_shown_where_to_look():
    """The share of the second loss; origins are looked at in the layer before."""
    system = build("tiny_grounding_gpt", {**TINY, "pointing_weight": 0.5, "pointing_layer": 1})
    params = drawn(system, "local")
    told = [
        [[30, 5, 0, 0], [31, 0, 1, 0], [21, 3, 0, -1]],
        [[33, 17, 0, -1], [20, 4, 1, 0], [22, 3, 0, 1]],
    ]
    gaze = np.array(told, np.int32)
    weight = np.array([[1.0, 0.5, 1.0], [1.0, 0.5, 0.5]], np.float32)
    batch = make_batch([2, 3]) | {"gaze": gaze, "gaze_weight": weight}
    loss, metrics = jax.jit(lambda p: system.loss("local")(p, batch, jax.random.key(0)))(params)
    _, kept = system.module.apply({"params": params}, batch, mutable=["intermediates"])
    (maps,) = jax.tree.leaves(kept)
    assert maps.shape[0] == 2
    # the last layer is the latest
    found = [maps[1][i] for i in ((0, 0, 30, 5), (0, 1, 31, 0), (1, 1, 20, 4), (1, 0, 22, 3))]
    np.testing.assert_allclose(
        metrics["pointing"], -np.average(found, weights=[1, 0.5, 0.5, 0.5]), rtol=1e-5
    )
    origins = np.array([maps[0][i] for i in ((0, 0, 21, 3), (1, 0, 33, 17))])
    np.testing.assert_allclose(metrics["matching"], -origins.mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["matched"], np.exp(origins).mean(), rtol=1e-5)
    looks = metrics["pointing"] + metrics["matching"]
    np.testing.assert_allclose(loss, metrics["language"] + 0.5 * looks, rtol=1e-6)
    stated = system.example_batch("local", 2, gaze=3)
    assert stated["gaze"].shape == gaze.shape and stated["gaze_weight"].shape == weight.shape
    with pytest.raises(UserError, match="pointing_layer: 2 is not .* layers 0 to 1"):
        build("tiny_grounding_gpt", {**TINY, "pointing_weight": 0.5, "pointing_layer": 2})


def labelled(rows=2):
    rng = np.random.default_rng(1)
    labels = np.full((rows, 3, 4), -1, np.int32)
    labels[..., :2] = [[[0, 3], [1, 4], [2, 3]], [[0, 4], [2, 4], [-1, -1]]]
    corners = np.sort(rng.uniform(0, 1, (rows, 3, 2, 2)), axis=2)
    return {
        "image": rng.normal(size=(rows, 16, 16, 3)).astype(np.float32),
        "objects": rng.normal(size=(rows, 2, 16, 16, 3)).astype(np.float32),
        "label_boxes": corners.reshape(rows, 3, 4).astype(np.float32),
        "label_mask": labels[..., 0] >= 0,
        "labels": labels,
    }


def test_towers_learn_to_name_and_place_things():
    system = build("tiny_grounding_gpt", {**TINY, "label_words": WORDS, "select_layer": -1})
    assert system.stages == ("labels", *STAGES)
    params, batch, tx = drawn(system, "labels"), labelled(), optax.adam(0.01)
    assert set(params) == {"clip", "dino", "labels"}

    @jax.jit
    def step(params, opt):
        run = jax.value_and_grad(lambda p: system.loss("labels")(p, batch, None), has_aux=True)
        (value, metrics), grads = run(params)
        updates, opt = tx.update(grads, opt)
        return optax.apply_updates(params, updates), opt, value, metrics, grads

    opt, values = tx.init(params), []
    for _ in range(25):
        params, opt, value, metrics, grads = step(params, opt)
        values.append(float(value))
    assert values[-1] < 0.8 * values[0]
    assert set(metrics) == {"named", "named_mean", "named_object", "place"}
    for part in grads:
        assert any(np.abs(g).max() > 0 for g in jax.tree.leaves(grads[part])), part
    with pytest.raises(UserError, match="tiny_grounding_gpt has no such stage"):
        build("tiny_grounding_gpt", TINY).loss("labels")


def test_things_are_named_by_the_token_over_their_middle():
    """And by the mean of theirs, object images by that of all; all by one linear map."""
    system = build("tiny_grounding_gpt", {**TINY, "label_words": WORDS})
    params, batch = drawn(system, "labels"), labelled()
    batch["label_boxes"][0] = [[0.5, 0.25, 1, 0.45], [0, 0, 0.2, 1], [0.9, 0.9, 1, 1]]
    out = system.module.apply({"params": params}, batch, method=system.module.name_things)
    features, _ = system.module.apply({"params": params}, batch, method=system.module.look)
    kernel, bias = (np.asarray(params["labels"][k]) for k in ("kernel", "bias"))
    for n, (x, y) in enumerate(((3, 1), (0, 2), (3, 3))):
        read = np.asarray(features[0, 0, y * 4 + x]) @ kernel + bias
        np.testing.assert_allclose(out["words"][0, n], read[:WORDS], atol=1e-5)
        np.testing.assert_allclose(out["places"][0, n], read[WORDS:], atol=1e-5)
    # between the middles of patches it is bilinear: a box of whole ones has shares of those around
    batch["label_boxes"][1, 0] = [0.25, 0.5, 0.75, 1]
    out = system.module.apply({"params": params}, batch, method=system.module.name_things)
    columns, rows = np.array([1, 7, 7, 1]) / 16, np.array([0, 1, 7, 8]) / 16
    mean = np.einsum("y,x,yxc->c", rows, columns, np.asarray(features[1, 0]).reshape(4, 4, -1))
    read = (mean @ kernel + bias)[:WORDS]
    np.testing.assert_allclose(out["mean_words"][1, 0], read, atol=5e-3)
    crop = np.asarray(features[1, 2]).mean(0)
    read = (crop @ kernel + bias)[:WORDS]
    np.testing.assert_allclose(out["object_words"][1, 1], read, atol=1e-5)


def test_padding_of_labels_is_not_learned_from():
    system = build("tiny_grounding_gpt", {**TINY, "label_words": WORDS})
    params, batch = drawn(system, "labels"), labelled()
    other = {k: v.copy() for k, v in batch.items()}
    other["label_boxes"][1, 2] = [0, 0, 1, 1]
    values = [float(system.loss("labels")(params, b, None)[0]) for b in (batch, other)]
    assert values[0] == pytest.approx(values[1], abs=1e-6)
