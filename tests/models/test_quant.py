"""Kernels of 8 and 4 bits: rounding, the quantized model beside the float one, what they take."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import groma
from mg_jax import models, quant, sharding
from mg_jax.errors import UserError
from mg_jax.lm import LM, LMConfig
from mg_jax.nn import Linear, quant_groups
from mg_jax.optim import flatten, unflatten

SHAPE = dict(vocab=64, width=256, mlp=384, layers=2, heads=4, kv_heads=2, head=64, max_positions=32)


def logits(cfg, params, ids):
    def run(m, ids):
        return m.logits(m(m.embed(ids), ids >= 0)[0])

    return jax.jit(lambda p: LM(cfg).apply({"params": p}, ids, method=run))(params)


def lm_params(cfg, key):
    def run(m, ids):
        return m.logits(m(m.embed(ids), ids >= 0)[0])

    init = jax.jit(lambda k: LM(cfg).init(k, np.zeros((1, 3), np.int32), method=run)["params"])
    return init(key)


@pytest.mark.parametrize("kind,least", [("int8", 0.999), ("int4", 0.93)])
def test_a_quantized_model_says_nearly_the_same(kind, least, getkey):
    cfg = LMConfig(**SHAPE)
    params = jax.device_get(sharding.unbox(lm_params(cfg, getkey())))
    small = LMConfig(**SHAPE, quant=kind)
    boxed = jax.eval_shape(lambda: lm_params(small, jax.random.key(0)))
    shapes = flatten(sharding.unbox(boxed))
    scales = {p: x.shape for p, x in shapes.items() if p.endswith("/kernel_scale")}
    flat: dict = {}
    for path, x in flatten(params).items():
        flat |= quant.quantized(path, x, scales, kind)
    made = unflatten(flat)
    assert {p: x.shape for p, x in flat.items()} == {p: x.shape for p, x in shapes.items()}
    kernels = [p for p in flat if p.endswith("/kernel")]
    assert len(kernels) == 8 and all(str(flat[p].dtype) == kind for p in kernels)
    ids = np.arange(24, dtype=np.int32).reshape(2, 12)
    a, b = logits(cfg, params, ids), logits(small, made, ids)
    correlation = np.corrcoef(np.ravel(a), np.ravel(b))[0, 1]
    assert correlation > least
    error = float(jnp.sqrt(jnp.square(a - b).mean()) / jnp.std(a))
    # random weights have no large few that matter: int4 does worse here than on trained ones
    assert error < {"int8": 0.03, "int4": 0.4}[kind]


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("stacked", [False, True])
def test_rounding_is_within_half_a_step(kind, stacked, rng):
    kernel = rng.normal(size=(3, 256, 8, 4)).astype(np.float32) * (1 + 9 * rng.random((8, 4)))
    kernel = kernel if stacked else kernel[0]
    groups = quant_groups(kind, (256,))
    assert groups == {"int8": 1, "int4": 2}[kind]
    shape = (*((3,) if stacked else ()), groups, 8, 4)
    values, scales = quant.quantize(kernel, shape, kind, stacked)
    assert values.shape == kernel.shape and str(values.dtype) == kind and scales.shape == shape
    back = values.astype(np.float32).reshape(*shape[:-2], -1, 8, 4) * scales[..., None, :, :]
    assert np.abs(back.reshape(kernel.shape) - kernel).max() <= 0.5001 * scales.max()


def test_a_linear_multiplies_by_its_scales(rng):
    x = rng.normal(size=(5, 6)).astype(np.float32)
    kernel = rng.integers(-127, 128, (6, 4, 2)).astype(np.int8)
    scale = rng.random((1, 4, 2)).astype(np.float32)
    layer = Linear((6, 4, 2), ("embed", "heads", "head"), 2, False, quant="int8")
    got = layer.apply({"params": {"kernel": kernel, "kernel_scale": scale}}, x)
    want = np.einsum("bi,ijk->bjk", x, kernel.astype(np.float32)) * scale
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_what_it_takes_is_known_before():
    found, scales = {}, {}
    for kind in ("none", "int8", "int4"):
        model = groma.get_config("stage=instruction,size=7b").model.to_dict()
        model["lm"]["quant"] = kind
        system = models.build("groma", model)
        shapes = flatten(
            sharding.unbox(sharding.abstract_params(system.init("instruction"), jax.random.key(0)))
        )
        found[kind] = quant.needed(shapes, model["lm"], "bfloat16", 2048)
        lacking = {p: x for p, x in shapes.items() if not p.endswith("/kernel_scale")}
        without = quant.needed(lacking, model["lm"], "bfloat16", 2048)
        scales[kind] = found[kind]["params"] - without["params"]
    gib = {k: x["params"] / 2**30 for k, x in found.items()}
    # 4 bytes for each 128 inputs and output of some 6.5e9 weights, and for each output
    assert scales["none"] == 0 and 0.18 < scales["int4"] / 2**30 < 0.25
    assert 0 < scales["int8"] < 2**24
    assert gib["none"] > 13 and 7 < gib["int8"] < 8.2 and 4 < gib["int4"] < 5.2
    assert found["none"]["cache"] == 2 * 32 * 2048 * 4096 * 2


def test_an_unknown_type_is_named():
    with pytest.raises(UserError, match="quantize='int5': it is one of none, int8, int4"):
        quant.check("int5")
