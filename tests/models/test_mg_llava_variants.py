"""The fusion and merging modules of MG-LLaVA: NumPy references, starts, gradients, meshes."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mg_jax import sharding
from mg_jax.models import build
from mg_jax.models.fusion import Widths, fused_width, fusion_module, under_patches
from mg_jax.models.merging import Merge
from mg_jax.ops.sine import waves
from tests.drawn import drawn
from tests.models.test_mg_llava import BOX, TINY, make_batch, run

WIDTHS = Widths(8, (4, 6), heads=2)
FUSIONS = ("conv_gate", "conv_gate_paper", "none", "resampler", "concat", "patch_info")


def features(seed=0, rows=2, side=3):
    rng = np.random.default_rng(seed)
    low = rng.normal(size=(rows, side * side, 8))
    maps = [rng.normal(size=(rows, n * side, n * side, c)) for n, c in ((2, 4), (1, 6))]
    return low.astype(np.float32), [m.astype(np.float32) for m in maps]


def parameters(module, *args, scale=0.4):
    """Drawn parameters and, of the same key, those that training starts from."""
    boxed = jax.jit(module.init)(jax.random.key(0), *args).get("params", {})
    start = sharding.unbox(boxed)
    rng = np.random.default_rng(1)
    new = jax.tree.map(lambda x: rng.normal(scale=scale, size=x.shape).astype(np.float32), start)
    return new, start


def apply(module, params, *args):
    """Jitted: eagerly every small operation would be compiled on its own."""
    return jax.jit(module.apply)({"params": params}, *args)


def linear(p, x):
    return x @ p["kernel"] + p["bias"]


def gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def norm(p, x, eps):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + eps) * p["scale"] + p["bias"]


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


@pytest.mark.parametrize("kind", ["conv_gate", "conv_gate_paper"])
def test_conv_gate_equals_plain_numpy(kind):
    low, maps = features()
    module = fusion_module(kind, WIDTHS)
    p, start = parameters(module, low, maps)
    got, aux = apply(module, p, low, maps)
    high = maps[-1].reshape(2, 9, 6)
    high = linear(p["slow_proj"], gelu(linear(p["slow_conv"], high)))
    wide = np.pad(low.reshape(2, 3, 3, 8), ((0, 0), (3, 3), (3, 3), (0, 0)))
    taps = [(i, j, wide[:, i : i + 3, j : j + 3]) for i in range(7) for j in range(7)]
    kernel = p["fast_conv"]["kernel"]
    mixed = sum(x * kernel[i, j] for i, j, x in taps) + p["fast_conv"]["bias"]
    refined = low + linear(p["fast_proj"], gelu(mixed.reshape(2, 9, 8)))
    both = np.concatenate([refined, high], -1)
    if kind == "conv_gate":
        both = both.mean(1, keepdims=True)
    gate = linear(p["gate"]["down"], gelu(linear(p["gate"]["up"], both)))
    assert gate.shape == (2, 1 if kind == "conv_gate" else 9, 1) and gate.std() > 0.01
    want = (refined if kind == "conv_gate" else low) + high * np.tanh(gate)
    np.testing.assert_allclose(got, want, atol=1e-5)
    np.testing.assert_allclose(aux["gate"], gate, atol=1e-5)
    np.testing.assert_array_equal(apply(module, start, low, maps)[0], low)
    bound = math.sqrt(6 / (49 + 49 * 8))  # PyTorch's for a depthwise kernel [8,1,7,7]
    drawn_kernel = np.abs(start["fast_conv"]["kernel"])
    assert 0.9 * bound < drawn_kernel.max() < bound


def test_patch_info_equals_plain_numpy():
    low, maps = features()
    module = fusion_module("patch_info", WIDTHS)
    p, _ = parameters(module, low, maps)
    got, _ = apply(module, p, low, maps)
    query = linear(p["query"], norm(p["query_norm"], low, 1e-5)).reshape(2, 3, 3, 8)
    for row, y, x in ((0, 0, 0), (1, 2, 1), (0, 1, 2)):
        cells = [
            maps[0][row, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].reshape(4, 4),
            maps[1][row, y : y + 1, x : x + 1].reshape(1, 6),
        ]
        keys, values = (
            np.concatenate(
                [
                    linear(p[f"{n}{i}"], norm(p[f"{n}{i}_norm"], c, 1e-5))
                    for i, c in enumerate(cells)
                ]
            )
            for n in ("key", "value")
        )
        weights = softmax(query[row, y, x] @ keys.T / math.sqrt(8))
        want = low[row, 3 * y + x] + weights @ values
        np.testing.assert_allclose(got[row, 3 * y + x], want, atol=1e-5)


def attended(p, x, y, mask=None, places=(0.0, 0.0)):
    """CrossAttention of two heads in NumPy, without the projection out."""
    queries, values = norm(p["norm"], x, 1e-6), norm(p["source_norm"], y, 1e-6)

    def project(name, x):
        return np.einsum("btd,dnh->btnh", x, p[name]["kernel"]) + p[name]["bias"]

    q, k = project("q", queries + places[0]), project("k", values + places[1])
    logits = np.einsum("btnh,bsnh->bnts", q, k) / math.sqrt(q.shape[-1])
    if mask is not None:
        logits = np.where(mask[:, None, None], logits, -1e9)
    out = np.einsum("bnts,bsnh->btnh", softmax(logits), project("v", values))
    return np.einsum("btnh,nhd->btd", out, p["o"]["kernel"]) + p["o"]["bias"]


def test_resampler_equals_plain_numpy():
    low, maps = features()
    module = fusion_module("resampler", WIDTHS)
    p, _ = parameters(module, low, maps)
    got, _ = apply(module, p, low, maps)
    places = waves(3, 8), waves(3, 6)
    x = low + attended(p["attention"], low, maps[1].reshape(2, 9, 6), places=places)
    h = linear(p["mlp"]["up"], norm(p["norm"], x, 1e-6))
    np.testing.assert_allclose(got, x + linear(p["mlp"]["down"], gelu(h)), atol=1e-5)


def test_waves_tell_every_cell_apart():
    at = waves(5, 10)
    assert at.shape == (25, 10) and at.dtype == np.float32
    apart = np.abs(at[:, None] - at[None]).max(-1) + np.eye(25)
    assert apart.min() > 0.1
    np.testing.assert_array_equal(at[7, :6], at[5, :6])  # one row: the first half tells it
    np.testing.assert_array_equal(at[7, 6:], at[22, 6:])  # one column


def test_what_has_no_parameters():
    low, maps = features()
    for kind, want in (
        ("none", low),
        ("concat", np.concatenate([low, maps[1].reshape(2, 9, 6)], 2)),
    ):
        module = fusion_module(kind, WIDTHS)
        got, _ = module.apply({}, low, maps)
        np.testing.assert_array_equal(got, want)
        assert fused_width(kind, WIDTHS) == want.shape[-1]
    with pytest.raises(ValueError, match="fusion='gate'"):
        fusion_module("gate", WIDTHS)
    image, objects = low, low[:, :2]
    for kind in ("append", "none"):
        out = Merge(kind, 8, 2).apply({}, image, objects, np.ones((2, 2), bool))
        np.testing.assert_array_equal(out[0], image)
        np.testing.assert_array_equal(out[1], objects)


def test_under_patches_keeps_rows_and_columns():
    x = np.arange(36).reshape(1, 6, 6, 1)
    np.testing.assert_array_equal(under_patches(x, 3)[0, 4, :, 0], [14, 15, 20, 21])


@pytest.mark.parametrize("kind", ["f2b", "b2f"])
def test_merging_equals_plain_numpy(kind):
    image, _ = features()
    objects, mask = image[:, :3] + 1, np.array([[True, False, True], [False] * 3])
    module = Merge(kind, 8, 2)
    p, start = parameters(module, image, objects, mask)
    got = apply(module, p, image, objects, mask)
    p = p["attention"]
    if kind == "f2b":
        np.testing.assert_allclose(got[1], objects + attended(p, objects, image), atol=1e-5)
        np.testing.assert_array_equal(got[0], image)
    else:
        want = image[:1] + attended(p, image[:1], objects[:1], mask[:1])
        np.testing.assert_allclose(got[0][:1], want, atol=1e-5)
        np.testing.assert_array_equal(got[0][1], image[1])  # no object, nothing to read
        np.testing.assert_array_equal(got[1], objects)
    first = apply(module, start, image, objects, mask)
    np.testing.assert_array_equal(first[0], image)
    np.testing.assert_array_equal(first[1], objects)


@pytest.mark.parametrize("objects", ["none", "b2f"])
def test_without_tokens_of_their_own_box_slots_do_not_exist(objects):
    system = build("mg_llava", {**TINY, "objects": objects})
    params = drawn(system, "sft")
    batch = make_batch([(3,), (1,)])
    logits, aux = run(system, params, batch)
    assert not (aux["valid"] & (batch["tokens"] == BOX)).any()
    for row in range(2):
        keep = np.asarray(aux["valid"][row])
        short = {k: v[row : row + 1] for k, v in batch.items()}
        short |= {k: short[k][:, keep] for k in ("tokens", "valid", "loss_mask")}
        np.testing.assert_allclose(run(system, params, short)[0][0], logits[row, keep], atol=1e-5)
    other = {**batch, "boxes": batch["boxes"][:, :, ::-1]}
    moved = np.abs(run(system, params, other)[0] - logits).max()
    assert moved == 0 if objects == "none" else moved > 1e-4


CHOICES = [(f, "append") for f in FUSIONS] + [("conv_gate", o) for o in ("none", "f2b", "b2f")]


# of the other choices make test-slow
QUICK = (("conv_gate", "append"), ("resampler", "append"), ("conv_gate", "f2b"))


@pytest.mark.parametrize(
    ("fusion", "objects"),
    [
        pytest.param(*choice, marks=() if choice in QUICK else pytest.mark.slow)
        for choice in (*CHOICES, ("none", "none"))
    ],
)
def test_every_parameter_learns(fusion, objects):
    """And a part that a choice does not use has none."""
    system = build("mg_llava", {**TINY, "fusion": fusion, "objects": objects})
    params = drawn(system, "sft")
    batch = make_batch([(2,), (4,)])
    loss = jax.jit(jax.grad(lambda p: system.loss("sft")(p, batch, jax.random.key(0))[0]))
    grads = loss(params)
    grads["low"].pop("norm")  # of the last layer, which is not read
    blocks = grads["low"].pop("blocks")
    assert all(np.any(g[:-1]) for g in jax.tree.leaves(blocks))
    still = [
        jax.tree_util.keystr(path)
        for path, g in jax.tree_util.tree_leaves_with_path(grads)
        if not np.any(np.abs(g) > 1e-9)
    ]
    # adding one number to all keys of a head changes no attention
    assert [s for s in still if not s.endswith("['k']['bias']")] == []
    parts = {"low", "projector", "lm"}
    parts |= {"high"} if (fusion, objects) != ("none", "none") else set()
    parts |= {"fusion"} if fusion not in ("none", "concat") else set()
    parts |= {"box_projector"} if objects != "none" else set()
    parts |= {"merging"} if objects in ("f2b", "b2f") else set()
    assert set(grads) == parts


@pytest.mark.parametrize(
    ("fusion", "objects"),
    [
        ("resampler", "f2b"),
        pytest.param("patch_info", "b2f", marks=pytest.mark.slow),
        pytest.param("conv_gate_paper", "none", marks=pytest.mark.slow),
    ],
)
def test_sharded_equals_unsharded(fusion, objects):
    system = build("mg_llava", {**TINY, "fusion": fusion, "objects": objects})
    params = drawn(system, "sft")
    batch = make_batch([(i % 4 + 1,) if i != 5 else () for i in range(8)])

    def loss(p, b):
        return system.loss("pretrain")(p, b, jax.random.key(0))[0]

    value, grads = jax.jit(jax.value_and_grad(loss))(params, batch)
    mesh = sharding.make_mesh(2, 2, 2)
    boxed = sharding.abstract_params(system.init("pretrain"), jax.random.key(0))
    layout = sharding.param_shardings(boxed, mesh, "fsdp_tensor")
    with sharding.use(mesh, "fsdp_tensor"):
        split = jax.jit(jax.value_and_grad(loss), out_shardings=(None, layout))
        v2, g2 = split(jax.device_put(params, layout), sharding.put_batch(batch, mesh))
    np.testing.assert_allclose(value, v2, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-3), grads, g2)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_half_precision_is_close(fusion):
    """And no module mixes dtypes silently."""
    low, maps = features()
    exact = fusion_module(fusion, WIDTHS)
    p, _ = parameters(exact, low, maps, scale=0.2)
    half = fusion_module(fusion, Widths(8, (4, 6), 2, "bfloat16"))
    cast = jnp.bfloat16
    with jax.numpy_dtype_promotion("strict"):
        got, _ = apply(half, p, low.astype(cast), [m.astype(cast) for m in maps])
    assert got.dtype == cast
    want, _ = apply(exact, p, low, maps)
    np.testing.assert_allclose(got.astype(np.float32), want, atol=0.1)
