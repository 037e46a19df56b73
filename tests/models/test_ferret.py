"""Ferret as a whole: tiles and their order, regions, joining, decoding, sharding."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mg_jax import sharding
from mg_jax.generate import decode_loop
from mg_jax.models import build
from mg_jax.models.ferret import Ferret
from mg_jax.vision import anyres
from tests import ferret_reference as reference
from tests.drawn import drawn

V, P = 40, 12
ENCODER = {"width": 12, "layers": 2, "heads": 2, "mlp_ratio": 2, "patch": 2, "image_size": 4}
CLIP = {**ENCODER, "kind": "clip", "activation": "quick_gelu", "eps": 1e-5}
GRIDS = [[1, 1], [2, 1], [1, 2], [3, 2]]
TINY = {
    "low": CLIP,
    "tile": ENCODER,
    "lm": {"vocab": V, "width": 16, "mlp": 24, "layers": 2, "heads": 2, "kv_heads": 1, "head": 8},
    "low_size": 4,
    "tile_size": 8,
    "grids": GRIDS,
    "sampler": {"points": P, "anchors": [6, 3], "neighbours": [4, 3]},
}
V1 = {
    **TINY, "tile": None, "grids": [], "projector": "linear", "tile_projector": "shared",
    "fusion": "raw", "region_token": V - 1,
}  # fmt: skip
UI = {**TINY, "tile": None, "tile_projector": "shared", "fusion": "raw", "low_size": 8}


@pytest.fixture(scope="module")
def tiny():
    system = build("ferret", TINY)
    return system, drawn(system, "instruction")


def make_batch(cfg, rows, *, tiles=None, slots=3, text=(3, 4, 5), seed=0):
    """A batch of `rows`: (index of the grid or None for text alone, regions), right-padded."""
    rng = np.random.default_rng(seed)
    grids = [cfg.grids[g] if cfg.grids and g is not None else None for g, _ in rows]
    windows = [anyres.window(9, 4, g or (1, 1), cfg.token_side) for g in grids]
    texts = []
    for (index, regions), grid, window in zip(rows, grids, windows, strict=True):
        image = 0 if index is None else cfg.image_tokens(grid, window)
        texts.append([1, *[cfg.id("image")] * image, 2, *[cfg.id("region"), 6] * regions, *text])
    end = np.array([[len(t)] for t in texts])
    at = np.arange(end.max())[None]
    n = tiles or max((g[0] * g[1] for g in grids if g), default=0)
    counts = np.array([[P] * r + [0] * (slots - r) for _, r in rows], np.int32)
    batch = {
        "tokens": np.array([t + [0] * (end.max() - len(t)) for t in texts], np.int32),
        "valid": at < end,
        "loss_mask": (at < end) & (at >= end - 2),
        "low": rng.normal(size=(len(rows), cfg.low_size, cfg.low_size, 3)).astype(np.float32),
        "points": rng.uniform(size=(len(rows), slots, P, 2)).astype(np.float32),
        "point_count": counts,
    }
    if cfg.grids:
        shape = (len(rows), n, cfg.tile_size, cfg.tile_size, 3)
        batch["tiles"] = rng.normal(size=shape).astype(np.float32)
        batch["grid"] = np.array([g or 0 for g, _ in rows], np.int32)
        if cfg.merge == "spatial_unpad":
            batch["window"] = np.array(windows, np.int32)
    return batch


@functools.cache
def compiled(cfg, method=None):
    return jax.jit(lambda p, b: Ferret(cfg).apply({"params": p}, b, method=method))


def run(system, params, batch):
    """(logits, aux), of one program for each config and shape."""
    return compiled(system.cfg)(params, batch)


ROWS = [(3, 2), (1, 1), (None, 0), (0, 3)]


def test_slots_take_their_vectors_in_order(tiny):
    """The whole picture, the merged map row by row, regions; grids differ from row to row."""
    system, params = tiny
    cfg = system.cfg
    batch = make_batch(cfg, ROWS)
    _, aux = run(system, params, batch)
    words = np.asarray(params["lm"]["embed"]["embedding"])
    low, tiles = (np.asarray(aux[k]) for k in ("low_tokens", "tile_tokens"))
    side = cfg.tile_side
    for row, (grid, regions) in enumerate(ROWS):
        parts = [words[[1]]]
        if grid is not None:
            maps = tiles[row].reshape(-1, side, side, tiles.shape[-1])
            whole = reference.merged(maps, cfg.grids[grid])
            parts += [low[row], whole.reshape(-1, tiles.shape[-1])]
        parts.append(words[[2]])
        for i in range(regions):
            parts += [np.asarray(aux["region_tokens"])[row, i : i + 1], words[[6]]]
        want = np.concatenate([*parts, words[[3, 4, 5]]])
        got = np.asarray(aux["embeddings"])[row][batch["valid"][row]]
        np.testing.assert_allclose(got, want, atol=1e-5)


def test_rows_end_in_a_vector_where_the_merge_says(tiny):
    """spatial_unpad: what the picture's aspect leaves of the merged map, each row ended."""
    _, params = tiny
    system = build("ferret", {**TINY, "merge": "spatial_unpad"})
    cfg = system.cfg
    params = {**params, "newline": jnp.arange(16.0)}
    batch = make_batch(cfg, [(3, 0), (2, 1)])
    assert (batch["window"][:, 2] < [8, 8]).all()  # something is cut
    _, aux = run(system, params, batch)
    for row, grid in enumerate((3, 2)):
        maps = np.asarray(aux["tile_tokens"])[row].reshape(-1, 4, 4, 16)
        top, left, rows, columns = batch["window"][row]
        whole = reference.merged(maps, cfg.grids[grid])
        whole = whole[top : top + rows, left : left + columns]
        ends = np.broadcast_to(np.arange(16.0), (rows, 1, 16))
        want = np.concatenate([whole, ends], 1).reshape(-1, 16)
        slots = batch["tokens"][row] == cfg.id("image")
        got = np.asarray(aux["embeddings"])[row][slots]
        np.testing.assert_allclose(got, np.concatenate([aux["low_tokens"][row], want]), atol=1e-5)


@pytest.mark.parametrize("merge", ["spatial", "spatial_unpad"])
def test_tiles_may_come_first(tiny, merge):
    """Also beside a row of more tiles: no token of nothing lies between."""
    _, params = tiny
    params = {**params, "newline": jnp.arange(16.0)} if merge == "spatial_unpad" else params
    seen = {}
    for order in ("whole_first", "tiles_first"):
        system = build("ferret", {**TINY, "merge": merge, "image_order": order})
        batch = make_batch(system.cfg, [(3, 0), (2, 1)])
        seen[order] = np.asarray(run(system, params, batch)[1]["embeddings"])
    for row, slots in enumerate(batch["tokens"] == system.cfg.id("image")):
        whole, count = system.cfg.low_side**2, slots.sum()
        assert system.cfg.whole_at(count) == count - whole and system.cfg.tiles_at() == 0
        want = np.roll(seen["whole_first"][row][slots], -whole, axis=0)
        np.testing.assert_allclose(seen["tiles_first"][row][slots], want, atol=1e-6)


def test_tokens_of_tiles_are_pooled_and_regions_read_what_was_before(tiny):
    system, params = tiny
    pooled = build("ferret", {**TINY, "tile_pool": 2})
    assert pooled.cfg.image_tokens((3, 2)) == 4 + 6 * 4
    batch = make_batch(pooled.cfg, [(3, 2), (1, 1)])
    _, aux = run(pooled, params, batch)
    maps = np.asarray(aux["tile_tokens"])[0].reshape(6, 2, 2, 2, 2, 16).mean((2, 4))
    want = reference.merged(maps, (3, 2)).reshape(-1, 16)
    np.testing.assert_allclose(np.asarray(aux["image_tokens"])[0, 4:28], want, atol=1e-5)
    plain = compiled(system.cfg, "encode")(params, batch)
    np.testing.assert_allclose(aux["region_tokens"], plain["region_tokens"], atol=1e-5)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("upsampling", ["nearest", "bilinear"])
@pytest.mark.parametrize("fusion", ["raw", "projected"])
def test_regions_read_the_sum_of_both_maps(tiny, fusion, upsampling, transposed):
    """Against the map that the model never makes."""
    _, params = tiny
    change = {"fusion": fusion, "upsampling": upsampling, "transpose_sampling": transposed}
    system = build("ferret", {**TINY, **change, "regions": "mean"})
    width = system.cfg.map_width
    params = {**params, "region_adapter": {"kernel": jnp.eye(width, 16), "bias": jnp.zeros(16)}}
    batch = make_batch(system.cfg, ROWS)
    batch["point_count"][1, 0] = 5
    aux = compiled(system.cfg, "encode")(params, batch)
    kind = "tokens" if fusion == "projected" else "features"
    for row in (0, 1, 3):
        grid = system.cfg.grids[ROWS[row][0]]
        low = np.asarray(aux[f"low_{kind}"])[row].reshape(2, 2, width)
        tiles = np.asarray(aux[f"tile_{kind}"])[row].reshape(-1, 4, 4, width)
        whole = reference.merged(tiles, grid)
        whole = whole + reference.upsample(low, *whole.shape[:2], upsampling)
        for i in range(ROWS[row][1]):
            at = batch["points"][row, i]
            want = reference.grid_sample(whole, at if transposed else at[:, ::-1])
            np.testing.assert_allclose(aux["point_features"][row, i], want, atol=1e-5)
            mean = want[: batch["point_count"][row, i]].mean(0)
            np.testing.assert_allclose(aux["region_tokens"][row, i, :width], mean, atol=1e-5)


def test_regions_of_one_map_alone(tiny):
    """v1, and the ablation whose regions read the whole picture in spite of tiles."""
    _, params = tiny
    system = build("ferret", {**TINY, "region_map": "global"})
    batch = make_batch(system.cfg, ROWS)
    aux = compiled(system.cfg, "encode")(params, batch)
    low = np.asarray(aux["low_tokens"])[0].reshape(2, 2, 16)
    want = reference.grid_sample(low, batch["points"][0, 1][:, ::-1])
    np.testing.assert_allclose(aux["point_features"][0, 1], want, atol=1e-5)


@pytest.mark.parametrize("version", [V1, UI], ids=["v1", "ui"])
def test_one_encoder_for_all(version):
    """v1 sees the whole picture alone; Ferret-UI's CLIP sees the tiles as it sees the picture."""
    system = build("ferret", version)
    params = drawn(system, "instruction")
    batch = make_batch(system.cfg, [(3, 2), (1, 1)])
    logits, aux = run(system, params, batch)
    assert logits.shape[-1] == V and not {"tile", "tile_projector"} & set(params)
    if system.cfg.grids:
        again = compiled(system.cfg, "encode")(params, {**batch, "low": batch["tiles"][:, 0]})
        for name in ("features", "tokens"):
            first = again[f"tile_{name}"][:, : 4**2]
            np.testing.assert_allclose(again[f"low_{name}"], first, atol=1e-5)
    else:
        slots = batch["tokens"] == V - 1  # a row of the vocabulary, whose vector is replaced
        got = np.asarray(aux["embeddings"])[0][slots[0]]
        np.testing.assert_allclose(got, aux["region_tokens"][0, :2], atol=1e-6)


def test_padding_changes_nothing(tiny):
    """Of the text at its end and inside it; spare tile slots and region slots with anything."""
    system, params = tiny
    batch = make_batch(system.cfg, [(1, 2), (2, 1)])
    logits, _ = run(system, params, batch)
    wide = dict(batch)
    at = [0, 0, *range(1, batch["tokens"].shape[1])]
    for name in ("tokens", "valid", "loss_mask"):
        wide[name] = np.pad(batch[name][:, at], ((0, 0), (0, 2)))
    wide["tokens"][:, 1], wide["valid"][:, 1] = 7, False
    more = np.random.default_rng(5).normal(size=(2, 4, 8, 8, 3)).astype(np.float32)
    wide["tiles"] = np.concatenate([batch["tiles"], more], 1)
    wide["points"] = np.pad(batch["points"], ((0, 0), (0, 2), (0, 0), (0, 0)), constant_values=0.5)
    wide["point_count"] = np.pad(batch["point_count"], ((0, 0), (0, 2)))
    again, _ = run(system, params, wide)
    np.testing.assert_allclose(
        np.asarray(again)[wide["valid"]], np.asarray(logits)[batch["valid"]], atol=1e-5
    )


def test_cached_decoding_equals_the_full_forward(tiny):
    system, params = tiny
    batch, new = make_batch(system.cfg, ROWS), 3

    def respond(m):
        cache = m.lm.empty_cache(len(ROWS), batch["tokens"].shape[1] + new)
        logits, cache, _ = m.prefill(batch, cache)
        return decode_loop(m.decode, logits, cache, max_new=new, end=-1, pad=0)

    out = jax.jit(lambda p: system.module.apply({"params": p}, method=respond))(params)
    end, rows = batch["valid"].sum(1), np.arange(len(ROWS))
    wide = {k: np.pad(batch[k], ((0, 0), (0, new))) for k in ("tokens", "valid", "loss_mask")}
    for i in range(new):
        logits, _ = run(system, params, {**batch, **wide})
        logp = jax.nn.log_softmax(logits)[rows, end + i - 1]
        np.testing.assert_array_equal(jnp.argmax(logp, -1), out.tokens[:, i])
        np.testing.assert_allclose(logp.max(-1), out.logprobs[:, i], atol=1e-4)
        wide["tokens"][rows, end + i] = out.tokens[:, i]
        wide["valid"][rows, end + i] = True


def test_sharded_equals_unsharded(tiny):
    system, params = tiny
    batch = make_batch(system.cfg, [*ROWS, (2, 1), (1, 2), (0, 0), (3, 3)])

    def loss(p, b):  # no key: the first anchors are the same
        logits, aux = Ferret(system.cfg).apply({"params": p}, b)
        picked = jax.nn.log_softmax(logits)[..., 1] * b["loss_mask"]
        return -picked.sum() + jnp.square(aux["region_tokens"]).mean()

    value, grads = jax.jit(jax.value_and_grad(loss))(params, batch)
    mesh = sharding.make_mesh(2, 2, 2)
    boxed = sharding.abstract_params(system.init("instruction"), jax.random.key(0))
    layout = sharding.param_shardings(boxed, mesh, "fsdp_tensor")
    assert any(s.spec != jax.P() for s in jax.tree.leaves(layout["sampler"]))
    with sharding.use(mesh, "fsdp_tensor"):
        split = jax.jit(jax.value_and_grad(loss), out_shardings=(None, layout))
        v2, g2 = split(jax.device_put(params, layout), sharding.put_batch(batch, mesh))
    np.testing.assert_allclose(value, v2, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-3), grads, g2)


def test_every_part_learns_in_its_stage(tiny):
    """Gradients reach what the stage has; the loss is that of the next token."""
    system, params = tiny
    batch = make_batch(system.cfg, ROWS[:2])
    logits, _ = run(system, params, batch)

    @jax.jit
    def step(p, key):
        return jax.value_and_grad(system.loss("dense"), has_aux=True)(p, batch, key)

    (loss, metrics), grads = step(params, jax.random.key(0))
    unused = {"cls", "mask_token", "positions", "norm", "norm_pre", "blocks"}  # partly, by layer
    for path, x in jax.tree_util.tree_leaves_with_path(grads):
        names = {getattr(k, "key", "") for k in path}
        assert np.isfinite(x).all()
        if not names & unused or "lm" in names:
            assert np.abs(x).max() > 0, path
    assert float(metrics["targets"]) == 4 and float(metrics["regions"]) == 1.5
    (other, _), _ = step(params, jax.random.key(1))
    assert float(other) != float(loss)  # other first anchors
    logp = np.asarray(jax.nn.log_softmax(logits))
    rows, at = np.nonzero(batch["loss_mask"])
    want = -logp[rows, at - 1, batch["tokens"][rows, at]].mean()
    assert abs(float(loss) - want) < 1e-3  # the same but for the anchors


def test_the_first_stage_has_neither_tiles_nor_regions(tiny):
    system, params = tiny
    shapes = sharding.abstract_params(system.init("caption"), jax.random.key(0))
    assert set(shapes) == {"low", "projector", "lm"}
    cfg = dataclasses.replace(system.cfg, grids=())
    batch = make_batch(cfg, [(None, 0), (None, 0)])
    few = {k: v for k, v in batch.items() if not k.startswith("point")}
    few["tokens"] = np.insert(few["tokens"], [1] * 4, cfg.id("image"), 1)
    for name in ("valid", "loss_mask"):
        few[name] = np.pad(few[name], ((0, 0), (4, 0)), mode="edge")
    part = {k: params[k] for k in shapes}
    loss, metrics = jax.jit(system.loss("caption"))(part, few, jax.random.key(0))
    assert np.isfinite(loss) and "regions" not in metrics
    assert set(system.example_batch("caption")) == set(few)
    assert set(system.example_batch("dense")) == set(make_batch(system.cfg, ROWS))
