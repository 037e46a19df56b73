"""The decoder LM: cache, padding, packing, window, scan and remat, decoding, sharding."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mg_jax import sharding
from mg_jax.attention import attend, rope, rope_frequencies
from mg_jax.generate import Sampling, decode_loop
from mg_jax.lm import LM, LMConfig
from mg_jax.nn import SHALLOW

CFG = LMConfig(vocab=61, width=32, mlp=48, layers=3, heads=4, kv_heads=2, head=8)


def redrawn(cfg, seed=0):
    """Parameters with every leaf random, so that no zero or one hides an error."""
    model = LM(cfg)

    def init(key):
        tokens = jnp.zeros((1, 4), jnp.int32)

        def touch(m):
            x, _ = m(m.embed(tokens), jnp.ones((1, 4), bool))
            return m.logits(x)

        return model.init(key, method=touch)

    params = sharding.unbox(init(jax.random.key(seed))["params"])
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    leaves = [x + 0.3 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return model, jax.tree.unflatten(tree, leaves)


def forward(model, params, ids, valid, **kw):
    def run(m):
        x, _ = m(m.embed(ids), valid, **kw)
        return m.logits(x)

    return jax.jit(lambda p: model.apply({"params": p}, method=run))(params)


def example(batch=3, length=9):
    ids = jax.random.randint(jax.random.key(5), (batch, length), 0, CFG.vocab)
    return ids, jnp.ones((batch, length), bool)


def test_invalid_tokens_anywhere_change_nothing():
    model, params = redrawn(CFG)
    ids, valid = example(1)
    keep = np.array([1, 0, 1, 1, 0, 0, 1, 1, 1], bool)
    holed = forward(model, params, ids, jnp.asarray(keep)[None])[:, keep]
    short = forward(model, params, ids[:, keep], valid[:, keep])
    np.testing.assert_allclose(holed, short, atol=1e-5)


def test_cached_decoding_equals_the_full_forward_at_mixed_lengths():
    model, params = redrawn(CFG)
    ids, valid = example(3, 7)
    valid = valid.at[1, 4:].set(False).at[2, :3].set(False)  # right- and left-padded rows
    new = 5

    def run(m):
        cache = m.empty_cache(3, 7 + new)
        x, cache = m(m.embed(ids), valid, cache)
        last = jnp.where(valid, jnp.arange(7)[None], 0).max(1)
        logits = m.logits(x)[jnp.arange(3), last]
        cache = cache.replace(length=last + 1)

        def step(tokens, cache):
            h, cache = m(m.embed(tokens), jnp.ones(tokens.shape, bool), cache)
            return m.logits(h)[:, 0], cache

        return decode_loop(step, logits, cache, max_new=new, end=-1, pad=0)

    out = jax.jit(lambda: model.apply({"params": params}, method=run))()
    assert out.length.tolist() == [new] * 3
    for row in range(3):
        seq = np.asarray(ids[row][valid[row]])
        for _ in range(new):
            logits = forward(model, params, seq[None], jnp.ones((1, len(seq)), bool))
            seq = np.append(seq, logits[0, -1].argmax())
        assert out.tokens[row].tolist() == seq[-new:].tolist()


def test_packed_segments_equal_separate_rows():
    model, params = redrawn(CFG)
    ids, valid = example(1, 9)
    segments = jnp.asarray([[0, 0, 0, 0, 1, 1, 1, 1, 1]])
    packed = forward(model, params, ids, valid, segments=segments)
    first = forward(model, params, ids[:, :4], valid[:, :4])
    second = forward(model, params, ids[:, 4:], valid[:, 4:])
    np.testing.assert_allclose(packed, jnp.concatenate([first, second], 1), atol=1e-5)


@pytest.mark.parametrize("change", [{"scan": False}, {"remat": "full"}, {"remat": "dots"}])
def test_scan_and_remat_change_nothing(change):
    model, params = redrawn(CFG)
    ids, valid = example()
    other = LM(dataclasses.replace(CFG, **change))
    expected = forward(model, params, ids, valid)
    np.testing.assert_allclose(forward(other, params, ids, valid), expected, atol=1e-4)
    if "remat" in change:

        def loss(m, p):
            return jnp.square(forward(m, p, ids, valid)).mean()

        a, b = (jax.grad(lambda p, m=m: loss(m, p))(params) for m in (model, other))
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), a, b)


@pytest.mark.parametrize("layers", [2, 8])
def test_what_is_recomputed_stays_a_loop(layers):
    """Outside of one XLA would keep what it is told to compute twice."""
    ids, valid = example()

    def loops(remat):
        model, params = redrawn(dataclasses.replace(CFG, layers=layers, remat=remat))
        grad = jax.jit(jax.grad(lambda p: jnp.square(forward(model, p, ids, valid)).mean()))
        return grad.lower(params).as_text().count("stablehlo.while")

    assert loops("full") == 2
    assert loops("none") == (2 if layers > SHALLOW else 0)


def test_window_hides_what_is_too_far_back():
    model, params = redrawn(dataclasses.replace(CFG, window=3, layers=1))
    ids, valid = example(1)
    base = forward(model, params, ids, valid)
    moved = forward(model, params, ids.at[0, 0].set((ids[0, 0] + 1) % CFG.vocab), valid)
    assert not np.allclose(base[0, 2], moved[0, 2], atol=1e-4)
    np.testing.assert_allclose(base[0, 3:], moved[0, 3:], atol=1e-6)


def test_decoding_holds_little_beside_the_cache():
    cfg = dataclasses.replace(CFG, layers=16, kv_heads=4, width=16, mlp=16, head=16)
    model, params = redrawn(cfg)

    def step(params, tokens, cache):
        def run(m):
            h, grown = m(m.embed(tokens), jnp.ones(tokens.shape, bool), cache)
            return m.logits(h), grown

        return model.apply({"params": params}, method=run)

    cache = jax.eval_shape(
        lambda: model.apply({"params": params}, 4, 2048, method=model.empty_cache)
    )
    tokens = jax.ShapeDtypeStruct((4, 1), jnp.int32)
    compiled = jax.jit(step, donate_argnums=2).lower(params, tokens, cache).compile()
    memory = compiled.memory_analysis()
    size = 2 * np.prod(cache.k.shape) * 4
    assert memory.temp_size_in_bytes < 0.1 * size
    assert memory.alias_size_in_bytes >= size  # donated, not copied


@pytest.mark.parametrize("sampling", [Sampling(1.0), Sampling(1.0, 3), Sampling(1.0, 0, 0.5)])
def test_sampling_draws_from_the_allowed_tokens(sampling):
    logits = jnp.log(jnp.asarray([[0.4, 0.3, 0.2, 0.1, 1e-9]] * 200))

    def step(tokens, cache):
        return logits, cache

    out = decode_loop(
        step, logits, None, max_new=2, end=-1, pad=0, sampling=sampling, key=jax.random.key(3)
    )
    seen = set(np.unique(out.tokens))
    expected = {Sampling(1.0): {0, 1, 2, 3}, Sampling(1.0, 3): {0, 1, 2}}
    assert seen == expected.get(sampling, {0, 1})
    assert not (out.tokens[0] == out.tokens[0, 0]).all() or len(np.unique(out.tokens[:, 0])) > 1


@pytest.mark.parametrize("remat", ["none", "full"])
def test_attention_maps_are_those_of_the_first_heads(remat):
    model, params = redrawn(dataclasses.replace(CFG, remat=remat))
    ids = jnp.arange(10).reshape(2, 5)
    valid = jnp.ones((2, 5), bool).at[1, 2].set(False)

    def run(m):
        return m(m.embed(ids), valid)[0]

    out, kept = model.apply({"params": params}, method=run, mutable=["intermediates"])
    np.testing.assert_allclose(out, model.apply({"params": params}, method=run), atol=1e-6)
    (maps,) = kept["intermediates"]["blocks"]["attn"]["attention"]
    assert maps.shape == (CFG.layers, 2, 2, 5, 5)
    seen = np.exp(maps)
    np.testing.assert_allclose(seen.sum(-1), 1, rtol=1e-5)
    assert seen[..., 0, 1:].max() == 0 and seen[:, 1, :, 3:, 2].max() == 0

    # layer 0 by hand
    first = jax.tree.map(lambda x: x[0], params["blocks"])
    x = params["embed"]["embedding"][ids]
    x = x / jnp.sqrt(jnp.square(x).mean(-1, keepdims=True) + CFG.eps)
    x = x * first["norm1"]["scale"][None, None]
    position = jnp.cumsum(valid, 1) - 1
    turns = rope_frequencies(CFG.head, CFG.rope_theta)
    q, k = (
        rope(jnp.einsum("btd,dnh->btnh", x, first["attn"][n]["kernel"]), position, turns)
        for n in ("q", "k")
    )
    values = jnp.broadcast_to(jnp.eye(5, CFG.head)[None, :, None], (2, 5, CFG.kv_heads, CFG.head))
    mask = valid[:, None] & (position[:, None] <= position[:, :, None])
    read = attend(q, k, values, mask, CFG.head**-0.5)
    for head in range(2):
        np.testing.assert_allclose(seen[0][:, head], read[:, :, head, :5], atol=1e-5)


def test_sharded_equals_unsharded():
    cfg = dataclasses.replace(CFG, kv_heads=4, mlp=64)
    model, params = redrawn(cfg)
    ids, valid = example(4)
    expected = forward(model, params, ids, valid)
    mesh = sharding.make_mesh(2, 2, 2)
    boxed = jax.eval_shape(
        lambda k: model.init(
            k, method=lambda m: m.logits(m(m.embed(ids), valid)[0])
        ),
        jax.random.key(0),
    )["params"]  # fmt: skip
    layout = sharding.param_shardings(boxed, mesh, "fsdp_tensor")
    assert layout["blocks"]["attn"]["q"]["kernel"].spec == jax.P(None, "fsdp", "tensor")
    with sharding.use(mesh, "fsdp_tensor"):
        run = jax.jit(lambda p, i, v: forward(model, p, i, v))
        got = run(jax.device_put(params, layout), *sharding.put_batch((ids, valid), mesh))
    np.testing.assert_allclose(got, expected, atol=1e-4)
    assert got.sharding.spec[0] == ("data", "fsdp")
