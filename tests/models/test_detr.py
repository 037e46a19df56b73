"""The region proposer: parity with transformers, recordings, its options, sharding."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mg_jax import losses, sharding
from mg_jax.models.detr import DetrConfig, Proposer
from mg_jax.models.detr_layers import (
    anchor_logits,
    offset_grid,
)

CFG = DetrConfig(
    width=16, encoder_layers=2, decoder_layers=3, encoder_heads=4, decoder_heads=2,
    encoder_ffn=24, decoder_ffn=24, encoder_points=2, decoder_points=3, queries=7, box_hidden=12,
)  # fmt: skip
ONE_LAYER = dataclasses.replace(CFG, encoder_layers=1, decoder_layers=1)
CHANNELS, GRID = 12, 6


def states(rows=2, grid=(GRID, GRID), seed=1):
    return jax.random.normal(jax.random.key(seed), (4, rows, 1 + grid[0] * grid[1], CHANNELS))


def fresh(cfg, hidden, grid=None):
    model = Proposer(cfg)
    boxed = jax.jit(functools.partial(model.init, grid=grid))(jax.random.key(0), hidden)
    return model, sharding.unbox(boxed["params"])


@pytest.fixture
def drawn(redraw):
    """(model, params without a constant leaf) of a config."""

    def make(cfg, hidden=None, grid=None):
        model, params = fresh(cfg, states() if hidden is None else hidden, grid)
        return model, redraw(params, jax.random.key(5))

    return make


def targets(rows=2, slots=4):
    low = jax.random.uniform(jax.random.key(7), (rows, slots, 2)) * 0.6
    side = 0.1 + 0.25 * jax.random.uniform(jax.random.key(8), (rows, slots, 2))
    mask = jnp.arange(slots)[None] < (jnp.arange(rows) % slots)[:, None] + 1
    head = (jnp.arange(rows) % 2).astype(jnp.int32)
    return {"boxes": jnp.concatenate([low, low + side], -1), "region_mask": mask, "head": head}


# -- recordings of upstream ------------------------------------------------------------------


@pytest.fixture(scope="module")
def recording(shared):
    """(config, proposer's parameters, inputs, outputs) of a recorded instance."""
    import conversion

    def load(name):
        folder = shared / "golden" / "groma" / name
        converted = conversion.load(folder, np.float32)
        with np.load(folder / "inputs.npz") as a, np.load(folder / "outputs.npz") as b:
            return converted, dict(a), dict(b)

    return load


def close(name, got, expected, tolerance=1e-4):
    expected = np.asarray(expected)
    assert np.array_equal(np.isinf(got), np.isinf(expected)), name
    finite = np.isfinite(expected)
    size = max(1.0, np.abs(expected[finite]).max())
    np.testing.assert_allclose(
        np.asarray(got)[finite], expected[finite], atol=tolerance * size, rtol=0, err_msg=name
    )


def compare_intermediates(aux, out, prefix):
    compared = 0
    for name, value in aux.items():
        key = f"ddetr_{name}" if name.startswith("pos_embed") else prefix + name
        if key in out:
            is_map = name.startswith(("src", "pos_embed", "mean_feature"))
            close(key, np.moveaxis(value, -1, 1) if is_map else value, out[key])
            compared += 1
    return compared


@pytest.mark.shared
def test_one_level_recording(recording):
    converted, _, out = recording("a_lvl1_448")
    aux = jax.jit(Proposer(converted.cfg.proposer).apply)(
        {"params": converted.params["proposer"]}, out["dinov2_hidden_states"][:, None]
    )
    assert compare_intermediates(aux, out, "plain_ddetr_") == 13
    np.testing.assert_array_equal(aux["topk_proposal_idx"], out["plain_ddetr_topk_proposal_idx"])
    close("scores", aux["scores"], out["plain_scores_fused"])


@pytest.mark.shared
def test_four_level_recording_with_losses_and_gradients(recording):
    from conversion.engine import to_torch
    from conversion.tables.deformable_detr import transformer_table
    from mg_jax.boxes import cxcywh_to_xyxy

    converted, inputs, out = recording("c_ddetr_lvl4_224")
    cfg, params = converted.cfg.proposer, converted.params["proposer"]

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def step(params, batch):
        aux = Proposer(cfg).apply({"params": params}, out["dinov2_hidden_states"])
        total, terms = losses.detection_loss(aux, batch, cfg)
        return total, (terms, aux)

    for head, source in enumerate(("coco", "sa1b")):
        boxes, mask = np.zeros((2, 8, 4), np.float32), np.zeros((2, 8), bool)
        for i in range(2):
            given = inputs[f"det_{source}_boxes_{i}"]
            boxes[i, : len(given)], mask[i, : len(given)] = cxcywh_to_xyxy(given), True
        batch = {"boxes": boxes, "region_mask": mask, "head": np.full(2, head, np.int32)}
        (total, (terms, aux)), grads = step(params, batch)
        assert np.isinf(aux["enc_coord_logits"]).any()
        assert compare_intermediates(aux, out, "ddetr_") == 14
        close("total", total, out[f"det_{source}_loss_total"])
        recorded = {k for k in out if k.startswith(f"det_{source}_")}
        assert recorded == {f"det_{source}_{k}" for k in ("loss_total", *terms)}
        for name, value in terms.items():
            close(name, value, out[f"det_{source}_{name}"])
        assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))

        grads = {k: v for k, v in grads.items() if not k.startswith("input")}
        grads = to_torch(jax.tree.map(np.asarray, grads), transformer_table(cfg))
        for key in [k for k in out if k.startswith(f"det_grad_{source}::")]:
            name = key.split("::")[1].replace("-1(enc)", str(cfg.decoder_layers))
            # a sample on the border of two cells may take the slope of either
            close(key, grads[name], out[key], 3e-4 if "offsets" in name else 1e-4)


# -- options ---------------------------------------------------------------------------------


def test_untrained_proposals_are_the_anchors():
    model, params = fresh(CFG, states())
    aux = jax.jit(model.apply)({"params": params}, states())
    logits, usable = anchor_logits(((GRID, GRID),))
    assert usable.all()
    close("anchors", aux["enc_coord_logits"], np.broadcast_to(logits, (2, GRID**2, 4)))
    picked = jax.nn.sigmoid(jnp.asarray(logits))[aux["topk_proposal_idx"]]
    close("boxes", aux["boxes"], np.broadcast_to(picked[:, None], aux["boxes"].shape), 1e-6)
    scores = np.take_along_axis(
        np.asarray(aux["enc_class_logits"][..., 0]), np.asarray(aux["topk_proposal_idx"]), 1
    )
    assert (np.diff(scores, axis=1) <= 0).all()
    np.testing.assert_allclose(params["class_coco"]["bias"], -np.log(99), atol=1e-6)
    np.testing.assert_array_equal(
        params["encoder"]["attn"]["offsets"]["bias"][1], offset_grid(4, 1, 2)
    )
    kernel = params["decoder"]["self_attn"]["q"]["kernel"]
    assert np.abs(kernel).max() <= np.sqrt(6 / 32)
    assert not np.allclose(kernel[0], kernel[1])


@pytest.mark.parametrize("refinement", ["none", "iterative", "look_forward_twice"])
def test_refinement(drawn, refinement):
    """What each layer reads, and where its gradient ends, told from the box heads."""
    cfg = dataclasses.replace(CFG, refinement=refinement)
    model, params = drawn(cfg)

    @jax.jit
    def run(bias):
        heads = params["boxes"] | {"fc3": params["boxes"]["fc3"] | {"bias": bias}}
        aux = model.apply({"params": params | {"boxes": heads}}, states())
        return aux["boxes"].sum((0, 2, 3)), aux

    bias = params["boxes"]["fc3"]["bias"]
    slopes, aux = jax.jit(jax.jacrev(run, has_aux=True))(bias)  # [layer of box, head, 4]
    reached = np.abs(slopes).max(-1) > 0
    before = refinement != "iterative"  # the change of the layer before counts too
    expected = [[1, 0, 0, 0], [before, 1, 0, 0], [0, before, 1, 0]]
    np.testing.assert_array_equal(reached, np.asarray(expected, bool))

    other = run(bias.at[0].add(0.5))[1]
    hidden = "dec_hidden"  # of two programs, so not bit for bit
    np.testing.assert_allclose(other[hidden][:, 0], aux[hidden][:, 0], atol=1e-5, rtol=1e-5)
    same = np.allclose(other[hidden][:, 2], aux[hidden][:, 2], atol=1e-5, rtol=1e-5)
    assert same == (refinement == "none")
    # of "none" alone the boxes are not those that the layer's own change leads to
    same = np.allclose(aux["boxes"], aux["dec_reference_points"], atol=1e-5)
    assert same == (refinement != "none")


def test_one_class_head(drawn):
    cfg = dataclasses.replace(ONE_LAYER, two_heads=False)
    model, params = drawn(cfg)
    assert "class_sa1b" not in params and "class_coco" in params
    aux = jax.jit(model.apply)({"params": params}, states())
    np.testing.assert_array_equal(aux["logits_sa1b"], aux["logits_coco"])
    expected = jax.nn.sigmoid(aux["logits_coco"][:, -1, :, 0])
    np.testing.assert_allclose(aux["scores"], expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("levels", "source"), [(1, "last_four"), (2, "mean"), (3, "mean"), (4, "last_four")]
)
def test_levels(drawn, levels, source):
    cfg = dataclasses.replace(CFG, levels=levels, levels_from=source, queries=20)
    model, params = drawn(cfg)
    sides = {1: (6,), 2: (6, 3), 3: (12, 6, 3), 4: (24, 12, 6, 3)}[levels]
    shapes = jax.eval_shape(model.apply, {"params": params}, states())
    assert shapes["encoder_last_hidden"].shape[1] == sum(n * n for n in sides)

    @jax.jit
    def maps(hidden):
        aux = model.apply({"params": params}, list(hidden))
        return [aux[f"src{i}"] for i in range(levels)]

    base = maps(states())
    assert [x.shape[1:3] for x in base] == [(n, n) for n in sides]
    for changed in range(4):
        other = maps(states().at[changed].add(1.0))
        differs = [not np.allclose(a, b) for a, b in zip(other, base, strict=True)]
        reads = [changed == 4 - levels + i or source == "mean" for i in range(levels)]
        assert differs == reads


def test_dropout_needs_its_key(drawn):
    model, params = drawn(ONE_LAYER)
    still = Proposer(dataclasses.replace(ONE_LAYER, dropout=0.0))

    @functools.partial(jax.jit, static_argnums=0)
    def boxes(model, rngs):
        return model.apply({"params": params}, states(), rngs=rngs)["boxes"]

    plain = boxes(model, {})
    a, b = (boxes(model, {"dropout": jax.random.key(k)}) for k in (0, 1))
    assert not np.allclose(a, plain) and not np.allclose(a, b)
    np.testing.assert_array_equal(boxes(still, {"dropout": jax.random.key(0)}), plain)


def test_chosen_border_tokens_keep_loss_and_gradients_finite(drawn):
    grid = (64, 2)  # rows 0 and 63 lie within 0.01 of the border
    cfg = dataclasses.replace(ONE_LAYER, queries=128)
    hidden = states(grid=grid)
    model, params = drawn(cfg, hidden, grid)

    def loss(params):
        aux = model.apply({"params": params}, hidden, grid)
        return losses.detection_loss(aux, targets(), cfg)[0], aux

    (total, aux), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    assert np.isposinf(aux["enc_coord_logits"]).any(-1).sum() == 2 * 4
    assert (np.asarray(aux["init_reference_points"]) == 1).all(-1).sum() == 2 * 4
    assert np.isfinite(total)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


def test_half_precision(drawn):
    model, params = drawn(ONE_LAYER)
    half = Proposer(dataclasses.replace(ONE_LAYER, dtype="bfloat16"))
    plain, half = (jax.jit(m.apply)({"params": params}, states()) for m in (model, half))
    assert half["encoder_last_hidden"].dtype == jnp.bfloat16
    assert half["boxes"].dtype == half["scores"].dtype == jnp.float32
    got = half["encoder_last_hidden"].astype(jnp.float32)
    np.testing.assert_allclose(got, plain["encoder_last_hidden"], atol=0.2)


@pytest.mark.parametrize(
    ("change", "grid", "message"),
    [
        ({"queries": 37}, None, "queries=37 of only 36"),
        ({"levels": 5}, None, "levels=5"),
        ({}, (5, 7), "36 patches do not fill a 5x7 grid"),
    ],
)
def test_what_does_not_fit_is_refused(change, grid, message):
    with pytest.raises(ValueError, match=message):
        fresh(dataclasses.replace(CFG, **change), states(), grid)


# -- sharding --------------------------------------------------------------------------------


def test_sharded_equals_unsharded(drawn):
    cfg = dataclasses.replace(
        CFG, decoder_layers=2, levels=2, levels_from="last_four", refinement="look_forward_twice"
    )
    hidden, batch = states(rows=4), targets(rows=4)
    model, params = drawn(cfg, hidden)

    def loss(params, hidden, batch):
        aux = model.apply({"params": params}, hidden)
        total, terms = losses.detection_loss(aux, batch, cfg)
        return total, (terms, aux["boxes"])

    step = jax.value_and_grad(loss, has_aux=True)
    expected = jax.jit(step)(params, hidden, batch)

    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    boxed = sharding.abstract_params(model.init, jax.random.key(0), hidden)
    layout = sharding.param_shardings(boxed, mesh, "fsdp_tensor")
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    assert tuple(layout["decoder"]["mlp"]["up"]["kernel"].spec) == (None, "fsdp", "tensor")
    assert tuple(layout["encoder"]["attn"]["offsets"]["kernel"].spec)[1:3] == ("fsdp", "tensor")
    with sharding.use(mesh, "fsdp_tensor"):
        rows = jax.sharding.PartitionSpec(None, ("data", "fsdp"))
        got = jax.jit(step, out_shardings=((whole, whole), layout))(
            jax.device_put(params, layout),
            jax.device_put(hidden, jax.sharding.NamedSharding(mesh, rows)),
            sharding.put_batch(batch, mesh),
        )
    (total, (terms, boxes)), grads = got
    close("total", total, expected[0][0])
    close("boxes", boxes, expected[0][1][1])
    jax.tree.map(lambda a, b: close("term", a, b), terms, expected[0][1][0])
    jax.tree.map_with_path(lambda path, a, b: close(str(path), a, b), grads, expected[1])


def test_a_split_batch_is_never_gathered(drawn):
    """Forward and loss over replicas: nothing but sums crosses the devices."""
    hidden, batch = states(rows=8), targets(rows=8)
    model, params = drawn(ONE_LAYER, hidden)
    mesh = sharding.make_mesh(data=8, fsdp=1)
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "data"))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    def loss(params, hidden, batch):
        aux = model.apply({"params": params}, hidden)
        return losses.detection_loss(aux, batch, ONE_LAYER)

    placed = jax.device_put(params, whole), jax.device_put(hidden, rows)
    with sharding.use(mesh):
        program = jax.jit(loss).lower(*placed, sharding.put_batch(batch, mesh)).compile()
    text = program.as_text()
    assert "all-reduce" in text
    assert not re.search(r"all-gather|all-to-all|collective-permute|reduce-scatter", text)
