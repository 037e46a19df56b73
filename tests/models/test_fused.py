"""Attention by a kernel equals attention with its logits in memory: values and gradients, masks,
packing, prefill, meshes. The TPU's kernel is interpreted here."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mg_jax import fused, sharding
from mg_jax.attention import attend, attention_mask
from mg_jax.lm import LM, LMConfig
from mg_jax.vision.vit import ViT, ViTConfig

LM_CFG = LMConfig(vocab=61, width=32, mlp=48, layers=2, heads=4, kv_heads=2, head=16)
FUSED = dataclasses.replace(LM_CFG, attention="fused")


def heads(key, tokens, kv=2, n=4, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(key), 4)
    shapes = [(2, tokens, m, 16) for m in (n, kv, kv, n)]
    return [jax.random.normal(k, s, dtype) for k, s in zip(keys, shapes, strict=True)]


def value_and_gradients(function, q, k, v, weights):
    def total(q, k, v):
        out = function(q, k, v)
        return (out * weights).sum(), out

    return jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))(q, k, v)


def compare(ours, theirs, atol=2e-5):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(np.asarray(a, np.float32), np.asarray(b, np.float32), atol=atol)


def test_causal_attention_within_segments_over_several_tiles():
    q, k, v, weights = heads(0, 520)
    assert fused.tile(520) == (384, 768)
    segments = np.zeros((2, 520), np.int32)
    segments[0, 200:] = 1
    segments[1, [0, 3, 399]] = -1  # tokens that nobody reads, within the text and at its end
    segments[1, 450:] = -1
    valid = jnp.asarray(segments >= 0)
    weights = weights * valid[:, :, None, None]
    index = jnp.broadcast_to(jnp.arange(520), (2, 520))
    numbers = jnp.asarray(segments)
    mask = attention_mask(
        valid, queries=index, keys=index, query_segments=numbers, key_segments=numbers
    )
    ours = value_and_gradients(
        lambda *x: fused.attend(*x, segments=numbers, causal=True) * valid[:, :, None, None],
        q, k, v, weights,
    )  # fmt: skip
    theirs = value_and_gradients(
        lambda *x: attend(*x, mask) * valid[:, :, None, None], q, k, v, weights
    )
    compare(ours, theirs)


def test_every_token_reads_all_others_and_no_padding():
    q, k, v, weights = heads(1, 257, kv=4)
    assert fused.tile(257) == (384, 384)
    compare(
        value_and_gradients(fused.attend, q, k, v, weights),
        value_and_gradients(attend, q, k, v, weights),
    )


@pytest.mark.parametrize("kv", [4, 2, 1])  # the last two do not divide over the tensor axis
def test_on_a_mesh_each_device_computes_its_rows_and_heads(kv):
    q, k, v, weights = heads(2, 40, kv=kv)
    segments = jnp.zeros((2, 40), jnp.int32).at[1, 30:].set(-1)
    weights = weights * (segments >= 0)[:, :, None, None]

    def run(q, k, v):
        return fused.attend(q, k, v, segments, causal=True)

    alone = value_and_gradients(run, q, k, v, weights)
    with sharding.use(sharding.make_mesh(1, 2, 4), "fsdp_tensor"):
        compare(value_and_gradients(run, q, k, v, weights), alone, 1e-5)


def loss_and_logits(cfg, params, ids, valid, **more):
    def run(params):
        def read(m):
            hidden, _ = m(m.embed(ids), valid, **more)
            return m.logits(hidden) * valid[..., None]

        logits = LM(cfg).apply({"params": params}, method=read)
        return jnp.square(logits).mean(), logits

    return jax.jit(jax.value_and_grad(run, has_aux=True))(params)


@pytest.fixture(scope="module")
def lm(redraw):
    def touch(m):
        hidden, _ = m(m.embed(jnp.zeros((1, 4), jnp.int32)), jnp.ones((1, 4), bool))
        return m.logits(hidden)

    params = sharding.unbox(LM(LM_CFG).init(jax.random.key(0), method=touch)["params"])
    return redraw(params, jax.random.key(1))


@pytest.mark.parametrize("remat,scan", [("none", True), ("full", True), ("none", False)])
def test_a_language_model_learns_the_same(lm, remat, scan):
    ids = jax.random.randint(jax.random.key(2), (2, 24), 0, LM_CFG.vocab)
    valid = jnp.ones((2, 24), bool).at[0, jnp.array([0, 7, 8])].set(False).at[1, 19:].set(False)
    segments = jnp.zeros((2, 24), jnp.int32).at[0, 12:].set(1)
    cfg = dataclasses.replace(FUSED, remat=remat, scan=scan)
    text = str(jax.make_jaxpr(lambda p: loss_and_logits(cfg, p, ids, valid))(lm))
    assert "pallas_call" in text
    for more in ({}, {"segments": segments}):
        ours = loss_and_logits(cfg, lm, ids, valid, **more)
        compare(ours, loss_and_logits(LM_CFG, lm, ids, valid, **more))


def test_a_prompt_is_read_into_the_same_cache(lm):
    ids = jax.random.randint(jax.random.key(3), (2, 9), 0, LM_CFG.vocab)
    valid = jnp.ones((2, 9), bool).at[1, 6:].set(False)

    def read(m):
        hidden, cache = m(m.embed(ids), valid, m.empty_cache(2, 12), fresh=True)
        more, cache = m(m.embed(ids[:, :1]), jnp.ones((2, 1), bool), cache)
        return hidden * valid[..., None], more, cache

    def run(cfg):
        return jax.jit(lambda p: LM(cfg).apply({"params": p}, method=read))(lm)

    ours, theirs = run(FUSED), run(LM_CFG)
    seen = theirs[2].valid[None, ..., None, None]  # what is kept of tokens nobody reads may differ
    compare(
        (ours[:2], ours[2].k * seen, ours[2].v * seen),
        (theirs[:2], theirs[2].k * seen, theirs[2].v * seen),
    )


def test_where_the_kernel_cannot_do_it_the_logits_are_made(lm):
    ids, valid = jnp.ones((1, 6), jnp.int32), jnp.ones((1, 6), bool)

    def kernels(cfg, **more):
        def run(p):
            return LM(cfg).apply({"params": p}, ids, method=lambda m, i: m(m.embed(i), valid))

        return str(jax.make_jaxpr(run)(lm)).count("pallas_call")

    assert kernels(FUSED) == 1
    assert kernels(dataclasses.replace(FUSED, window=6)) == 1  # longer than the text
    assert kernels(dataclasses.replace(FUSED, window=4)) == 0
    assert kernels(LM_CFG) == 0  # "auto", on a CPU


def test_maps_of_attention_are_kept_all_the_same(lm):
    ids, valid = jnp.ones((1, 6), jnp.int32), jnp.ones((1, 6), bool)
    _, state = LM(FUSED).apply(
        {"params": lm}, ids, method=lambda m, i: m(m.embed(i), valid), mutable=["intermediates"]
    )
    (maps,) = jax.tree.leaves(state)
    assert maps.shape == (LM_CFG.layers, 1, 2, 6, 6)


def test_a_tower_sees_the_same(redraw):
    cfg = ViTConfig(width=32, layers=2, heads=2, patch=4, image_size=16)
    pixels = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))
    params = sharding.unbox(ViT(cfg).init(jax.random.key(1), pixels)["params"])
    params = redraw(params, jax.random.key(2))
    other = dataclasses.replace(cfg, attention="fused")
    compare(
        jax.jit(lambda p: ViT(other).apply({"params": p}, pixels))(params),
        jax.jit(lambda p: ViT(cfg).apply({"params": p}, pixels))(params),
    )


def test_nothing_is_moved_to_the_device_at_a_step():
    q, k, v, _ = heads(3, 20)
    with jax.transfer_guard_host_to_device("disallow"):
        jax.block_until_ready(jax.jit(lambda *x: fused.attend(*x, causal=True))(q, k, v))


def test_only_long_texts_on_a_tpu_are_worth_a_kernel(monkeypatch):
    assert not fused.chosen("auto", 4096) and fused.chosen("fused", 2)
    monkeypatch.setattr(fused.ops, "platform", lambda: "tpu")
    assert fused.chosen("auto", 4096)
    assert not fused.chosen("auto", fused.LEAST - 1) and not fused.chosen("plain", 4096)
    assert [fused.tile(n) for n in (1, 300, 577, 1024, 1500)] == [
        (256, 256), (384, 384), (384, 768), (512, 1024), (512, 1536)
    ]  # fmt: skip


@pytest.mark.parametrize("causal", [True, False])
def test_a_gpu_that_has_no_kernel_for_it_makes_the_logits(monkeypatch, causal):
    q, k, v, _ = heads(5, 24)
    segments = jnp.zeros((2, 24), jnp.int32).at[1, 15:].set(1)
    for given in (None, segments):
        theirs = fused.attend(q, k, v, given, causal)
        with monkeypatch.context() as m:
            m.setattr(fused.ops, "platform", lambda: "gpu")
            assert "pallas_call" not in str(
                jax.make_jaxpr(lambda *x, g=given: fused.attend(*x, g, causal))(q, k, v)
            )
            compare(fused.attend(q, k, v, given, causal), theirs)


@pytest.mark.gpu
def test_a_gpu_computes_the_same():
    q, k, v, weights = heads(4, 640, dtype=jnp.bfloat16)
    segments = jnp.zeros((2, 640), jnp.int32).at[1, 500:].set(-1)
    valid = (segments >= 0)[:, :, None, None]
    index = jnp.broadcast_to(jnp.arange(640), (2, 640))
    mask = attention_mask(segments >= 0, queries=index, keys=index)
    ours = value_and_gradients(
        lambda *x: fused.attend(*x, segments, causal=True) * valid, q, k, v, weights
    )
    theirs = value_and_gradients(lambda *x: attend(*x, mask) * valid, q, k, v, weights)
    compare(ours, theirs, 0.1)
