"""Groma as a whole: joining, selection, batching, sharding, full size."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mg_jax import sharding
from mg_jax.errors import UserError
from mg_jax.generate import decode_loop
from mg_jax.lm import LMConfig
from mg_jax.models import build
from mg_jax.models.groma import GromaConfig
from mg_jax.models.pointing import pointing_loss, region_slots

TINY = {
    "vision": {"width": 32, "layers": 4, "heads": 2, "mlp_ratio": 2, "image_size": 112},
    "proposer": {
        "width": 32, "encoder_layers": 1, "decoder_layers": 2, "encoder_heads": 4,
        "decoder_heads": 4, "encoder_ffn": 32, "decoder_ffn": 32, "queries": 12, "box_hidden": 32,
    },
    "regions": {
        "width": 32, "hidden": 24, "upsample": [2, 1], "rounds": 1, "groups": 4, "roi_size": 3,
        "position_width": 16,
    },
    "lm": {
        "vocab": 40, "width": 32, "mlp": 48, "layers": 2, "heads": 4, "kv_heads": 4, "head": 8,
    },
    "max_regions": 5,
    "image_size": 112,
    "score_threshold": 0.3,
}  # fmt: skip
V = TINY["lm"]["vocab"]


@pytest.fixture(scope="module")
def groma():
    """A system and parameters in which no leaf is constant."""
    system = build("groma", TINY)
    params = sharding.unbox(jax.jit(lambda k: sharding.unbox(system.init("alignment")(k)))(
        jax.random.key(0))["params"])  # fmt: skip
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    leaves = [x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return system, jax.tree.unflatten(tree, leaves)


def prompt(slots, text):
    pairs = [i for k in range(slots) for i in (V + 14 + k, V + 9)]
    return [1, 5, *[V + 8] * 16, 7, *pairs, *text]


def make_batch(rows=2, slots=5, text=None, seed=0):
    rng = np.random.default_rng(seed)
    text = text or [3, V + 10, V + 12, 4, V + 11, 6]
    tokens = np.asarray([prompt(slots, text)] * rows, np.int32)
    centre = rng.uniform(0.3, 0.7, (rows, 2, 2))
    size = rng.uniform(0.05, 0.2, (rows, 2, 2))
    boxes = np.concatenate([centre - size, centre + size], -1).astype(np.float32)
    mask = np.asarray([[True, False]] * rows)
    return {
        "pixels": rng.normal(size=(rows, 112, 112, 3)).astype(np.float32),
        "tokens": tokens,
        "valid": np.ones(tokens.shape, bool),
        "loss_mask": np.arange(tokens.shape[1])[None].repeat(rows, 0) >= tokens.shape[1] - 3,
        "refer_boxes": boxes,
        "refer_mask": mask,
        "ground_boxes": boxes[:, ::-1],
        "ground_mask": mask,
    }


def run(system, params, batch, **rngs):
    """Jitted (logits, aux); eagerly every small operation would be compiled on its own."""
    return jax.jit(lambda p, b: system.module.apply({"params": p}, b, rngs=rngs))(params, batch)


def test_given_boxes_become_proxies_and_features(groma):
    system, params = groma
    batch = make_batch()
    _, aux = run(system, params, batch)
    regions = aux["regions"]
    for row in range(2):
        refer = int(aux["tokens"][row, -5]) - V - 14
        assert bool(regions.valid[row, refer])
        # the user's box survives with its own coordinates, at the top score
        centre = (batch["refer_boxes"][row, 0, :2] + batch["refer_boxes"][row, 0, 2:]) / 2
        np.testing.assert_allclose(regions.boxes[row, refer, :2], centre, atol=1e-6)
        assert float(regions.scores[row, refer]) == 1.0
        np.testing.assert_allclose(
            aux["embeddings"][row, -4], aux["region_features"][row, refer], atol=1e-6
        )
        ground = int(aux["tokens"][row, -2]) - V - 14
        assert 0 <= ground < 5 and bool(regions.valid[row, ground])


def test_spare_region_slots_change_nothing(groma):
    """Results at valid tokens do not depend on how many slots the prompt carries."""
    _system, params = groma
    strict = {**TINY, "score_threshold": 0.999}  # only the user's box and one fallback remain
    logits = []
    for slots in (2, 5):
        model = build("groma", {**strict, "max_regions": slots})
        out, aux = run(model, params, make_batch(1, slots))
        assert int(aux["regions"].valid.sum()) <= 2
        logits.append(np.asarray(out)[aux["valid"]])
    np.testing.assert_allclose(*logits, atol=1e-4)


def respond(system, params, batch, new=4):
    def run(m):
        cache = m.lm.empty_cache(*[batch["tokens"].shape[0], batch["tokens"].shape[1] + new])
        logits, cache, aux = m.prefill(batch, cache)
        out = decode_loop(m.decode, logits, cache, max_new=new, end=2, pad=V)
        return out, aux["regions"]

    return jax.jit(lambda p: system.module.apply({"params": p}, method=run))(params)


def test_a_batch_answers_as_its_single_rows_do(groma):
    system, params = groma
    batch = make_batch(3, seed=4)
    del batch["ground_boxes"], batch["ground_mask"], batch["loss_mask"]
    batch["valid"][1, -2:] = False  # a shorter prompt, padded on the right
    batch["tokens"][1, -2:] = V
    together, _ = respond(system, params, batch)
    for row in range(3):
        single = {k: v[row : row + 1] for k, v in batch.items()}
        if row == 1:
            single = {k: v[:, :-2] if k in ("tokens", "valid") else v for k, v in single.items()}
        alone, _ = respond(system, params, single)
        assert alone.tokens[0].tolist() == together.tokens[row].tolist()
        np.testing.assert_allclose(alone.logprobs[0], together.logprobs[row], atol=1e-4)


def test_random_order_is_a_permutation_by_key(groma):
    _system, params = groma
    shuffled = build("groma", {**TINY, "region_order": "random", "score_threshold": 0.0})
    fixed = build("groma", {**TINY, "score_threshold": 0.0})
    batch = make_batch(1)
    a = run(fixed, params, batch)[1]["regions"]
    b = run(shuffled, params, batch, regions=jax.random.key(7))[1]["regions"]
    assert int(a.valid.sum()) > 2
    assert sorted(a.index[a.valid].tolist()) == sorted(b.index[b.valid].tolist())
    assert a.index.tolist() != b.index.tolist()
    quiet = run(shuffled, params, batch)[1]["regions"]
    assert a.index.tolist() == quiet.index.tolist()


@pytest.mark.parametrize("stage", ["detection", "alignment"])
def test_sharded_equals_unsharded(groma, stage):
    system, params = groma
    if stage == "detection":
        rng = np.random.default_rng(0)
        batch = {
            "pixels": make_batch(8)["pixels"],
            "boxes": np.tile(np.float32([[[0.2, 0.3, 0.5, 0.6], [0.5, 0.1, 0.9, 0.4]]]), (8, 1, 1)),
            "region_mask": rng.random((8, 2)) < 0.8,
            "head": np.zeros(8, np.int32),
        }
        params = {k: params[k] for k in ("vision", "proposer")}
    else:
        batch = make_batch(8)

    def loss(p, b):
        return system.loss(stage)(p, b, jax.random.key(0))[0]

    # dropout draws depend on the layout: compare without it
    quiet = dataclasses.replace(
        system.cfg, proposer=dataclasses.replace(system.cfg.proposer, dropout=0.0)
    )
    system = build("groma", quiet)
    value, grads = jax.jit(jax.value_and_grad(loss))(params, batch)
    mesh = sharding.make_mesh(2, 2, 2)
    boxed = sharding.abstract_params(system.init(stage), jax.random.key(0))
    layout = sharding.param_shardings(boxed, mesh, "fsdp_tensor")
    assert any(s.spec != jax.P() for s in jax.tree.leaves(layout))
    with sharding.use(mesh, "fsdp_tensor"):
        split = jax.jit(jax.value_and_grad(loss), out_shardings=(None, layout))
        v2, g2 = split(jax.device_put(params, layout), sharding.put_batch(batch, mesh))
    np.testing.assert_allclose(value, v2, rtol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3, rtol=1e-2), grads, g2)


def test_gradients_reach_what_upstream_trains_and_nothing_of_the_perceiver(groma):
    system, params = groma

    def loss(p):
        return system.loss("alignment")(p, make_batch(), jax.random.key(0))[0]

    grads = jax.jit(jax.grad(loss))(params)
    for part in ("vision", "proposer"):
        assert all(not np.any(g) for g in jax.tree.leaves(grads[part]))
    for part in ("projector", "region_encoder", "lm"):
        assert all(np.any(g) for g in jax.tree.leaves(grads[part])), part


@pytest.mark.slow
def test_an_encoder_without_pretraining_can_learn_from_the_language_loss(groma):
    _, params = groma
    batch = make_batch() | {
        "boxes": np.tile(np.float32([[[0.2, 0.3, 0.5, 0.6]]]), (2, 1, 1)),
        "region_mask": np.ones((2, 1), bool),
        "head": np.zeros(2, np.int32),
    }

    def grads(**choices):
        system = build("groma", {**TINY, **choices})
        loss = jax.jit(jax.grad(lambda p: system.loss("alignment")(p, batch, jax.random.key(0))[0]))
        return loss(params)

    def moved(tree):
        return any(np.any(g) for g in jax.tree.leaves(tree))

    language = grads(encoder_gradient=True)
    assert moved(language["vision"]) and not moved(language["proposer"])
    both = grads(encoder_gradient=True, detection_weight=0.5)
    assert moved(both["vision"]) and moved(both["proposer"])
    np.testing.assert_allclose(
        both["lm"]["norm"]["scale"], language["lm"]["norm"]["scale"], rtol=1e-4, atol=1e-6
    )
    boxes_alone = grads(detection_weight=0.5)
    assert moved(boxes_alone["vision"]) and moved(boxes_alone["proposer"])


def test_full_size_has_upstreams_parameter_count():
    """Groma-7B as published: 7,377,311,657 parameters (spec 1)."""
    system = build("groma", {
        "vision": {"position_rule": "scale_offset"},
        "regions": {"box_format": "cxcywh", "strides": "published"},
    })  # fmt: skip
    shapes = sharding.abstract_params(system.init("instruction"), jax.random.key(0))
    sizes = {
        name: sum(x.size for x in jax.tree.leaves(sharding.unbox(part)))
        for name, part in shapes.items()
    }
    assert sizes["vision"] == 304_368_640
    assert sizes["lm"] == 6_738_415_616
    assert sizes["projector"] == 33_562_624
    assert sizes["region_encoder"] == 288_653_056
    assert sum(sizes.values()) == 7_377_311_657


@pytest.mark.parametrize("taps", [(0, 1, 2, 5), (-1, 1, 2, 3), (2, 3, 4)])
def test_hidden_states_that_there_are_not(taps):
    with pytest.raises(UserError, match="taps is .*: give at least 4 numbers from 0 to 4"):
        build("groma", {**TINY, "taps": taps})


def test_labels_teach_the_encoder_through_the_region_encoder():
    system = build("groma", {**TINY, "label_words": 7})
    params = sharding.unbox(jax.jit(system.init("detection"))(jax.random.key(0))["params"])
    rng = np.random.default_rng(0)
    batch = {
        "pixels": rng.normal(size=(2, 112, 112, 3)).astype(np.float32),
        "boxes": np.tile(np.float32([[0.1, 0.1, 0.5, 0.4], [0.3, 0.5, 0.9, 0.8]]), (2, 1, 1)),
        "region_mask": np.array([[True, True], [True, False]]),
        "head": np.zeros(2, np.int32),
        "labels": np.array([[[0, 3], [1, -1]], [[2, 6], [5, 5]]], np.int32),
    }
    terms = ("loss_labels", "place")

    @jax.jit
    def run(params, batch, weights):
        """((loss, metrics), gradients of the weighted terms)."""

        def chosen(p):
            loss, metrics = system.loss("detection")(p, batch, jax.random.key(1))
            return weights @ jnp.stack([metrics[term] for term in terms]), (loss, metrics)

        grads, out = jax.grad(chosen, has_aux=True)(params)
        return out, grads

    plain = build("groma", TINY)
    unnamed = {k: v for k, v in params.items() if k in ("vision", "proposer")}
    weights = np.eye(2, dtype=np.float32)
    (with_labels, metrics), _ = run(params, batch, weights[0])
    without, _ = jax.jit(plain.loss("detection"))(unnamed, batch, jax.random.key(1))
    named = metrics["loss_labels"] + 5.0 * metrics["place"]
    np.testing.assert_allclose(with_labels, without + named, rtol=1e-5)
    assert metrics["place"] > 0.05
    hidden = {**batch, "labels": batch["labels"].copy()}
    hidden["labels"][1, 1] = 4  # beyond region_mask
    assert run(params, hidden, weights[0])[0][0] == with_labels
    for weight in weights:
        grads = run(params, batch, weight)[1]
        for part in ("vision", "region_encoder", "labels"):
            assert max(float(abs(g).max()) for g in jax.tree.leaves(grads[part])) > 1e-5, part
    assert set(params) == {"vision", "proposer", "region_encoder", "labels"}


def test_unit_vectors_join_image_and_regions_at_one_length(groma):
    _, params = groma
    batch = {k: v for k, v in make_batch().items() if k != "loss_mask"}
    plain, brought = (
        build("groma", {**TINY, "unit_vectors": u}).module.apply({"params": params}, batch)[1]
        for u in (False, True)
    )
    tokens = np.asarray(brought["tokens"])
    vectors = np.isin(tokens, [V + 8, V + 9, V + 12])
    seen = vectors & np.asarray(brought["valid"])
    square = np.square(np.asarray(brought["embeddings"])).mean(-1)
    np.testing.assert_allclose(square[seen], 1, rtol=1e-3)
    was = np.asarray(plain["embeddings"])
    assert np.abs(np.square(was).mean(-1)[seen] - 1).max() > 0.1
    np.testing.assert_array_equal(brought["embeddings"][~vectors], was[~vectors])
    along = (was * np.asarray(brought["embeddings"])).sum(-1)[seen]
    np.testing.assert_allclose(along**2, np.square(was).sum(-1)[seen] * was.shape[-1], rtol=1e-3)


def test_pointing_loss_is_the_cross_entropy_of_where_to_look():
    """Heads that look where they should cost nothing; the loss follows the given places."""
    cfg = GromaConfig(lm=LMConfig(vocab=50), max_regions=3)
    tokens = np.full((2, 12), 7)
    tokens[:, [3, 5, 7]] = cfg.id("region")
    valid = jnp.array([[True, True, True], [True, True, False]])
    slots = region_slots(jnp.asarray(tokens), cfg.id("region"), cfg.max_regions)
    np.testing.assert_array_equal(slots, [[3, 5, 7]] * 2)
    matched = jnp.array([[2, 0], [1, 1]])
    gaze = jnp.array([[[9, 0], [10, -1]], [[11, 1], [0, 0]]])
    weight = jnp.array([[1.0, 1.0], [2.0, 0.0]])

    def loss():
        out, seen = pointing_loss(jnp.asarray(maps), 2, slots, valid, matched, gaze, weight)
        return out, seen["pointed"], seen["introduced"]

    maps = np.full((4, 2, 2, 12, 12), -50.0, np.float32)
    look, name = maps[2][:, 0], maps[1][:, 0]
    look[0, 9, 7] = look[0, 10, 0] = look[1, 11, 5] = 0.0
    for row, slot in ((0, 3), (0, 5), (0, 7), (1, 3), (1, 5)):
        name[row, slot, slot - 1] = 0.0
    assert [float(x) for x in loss()] == [0.0, 1.0, 1.0]
    look[1, 11, 5] = np.log(0.25)
    np.testing.assert_allclose(loss(), [0.5 * np.log(4), 0.625, 1.0], rtol=1e-5)
    name[1, 3, 2] = np.log(0.5)
    np.testing.assert_allclose(loss(), [0.5 * np.log(4) + 0.2 * np.log(2), 0.625, 0.9], rtol=1e-5)


def test_pointing_weight_teaches_the_first_heads_of_its_layer_and_the_one_before(groma):
    system, params = groma
    with pytest.raises(UserError, match="pointing_layer"):
        build("groma", {**TINY, "pointing_weight": 0.5, "pointing_layer": 0})
    with pytest.raises(UserError, match="pointing_layer"):
        build("groma", {**TINY, "pointing_weight": 0.5, "pointing_layer": TINY["lm"]["layers"]})
    layer = 1
    pointing = build("groma", {**TINY, "pointing_weight": 0.5, "pointing_layer": layer})
    batch = make_batch()
    end = batch["tokens"].shape[1]
    batch["gaze"] = np.tile(np.int32([[end - 3, 0], [end - 5, -1]]), (2, 1, 1))
    batch["gaze_weight"] = np.ones((2, 2), np.float32)
    assert set(pointing.example_batch("alignment")) == set(batch)

    def loss(of):
        return jax.jit(lambda p, b: of.loss("alignment")(p, b, jax.random.key(0)))

    with_it, metrics = loss(pointing)(params, batch)
    without, _ = loss(system)(params, batch)
    np.testing.assert_allclose(metrics["language"], without, rtol=1e-5)
    np.testing.assert_allclose(with_it, without + 0.5 * metrics["pointing"], rtol=1e-5)
    assert metrics["pointing"] > 0.1
    grads = jax.grad(lambda p: loss(pointing)(p, batch)[1]["pointing"])(params)
    q = np.abs(np.asarray(grads["lm"]["blocks"]["attn"]["q"]["kernel"])).max((1, 3))  # [L, heads]
    assert q[layer, 0] > 1e-5 and not q[layer, 1:].any() and not q[layer + 1 :].any()
    assert (q[:layer] > 0).all()
