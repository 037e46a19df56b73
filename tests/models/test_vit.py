"""The DINOv2 encoder: parity with transformers, registers, position rules, scan."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mg_jax import sharding
from mg_jax.vision.vit import ViT, ViTConfig

CFG = ViTConfig(width=32, layers=3, heads=4, mlp_ratio=2, image_size=70)


def reference(cfg):
    torch = pytest.importorskip("torch")
    import transformers

    torch.manual_seed(0)
    name = "Dinov2WithRegisters" if cfg.registers else "Dinov2"
    more = {"num_register_tokens": cfg.registers} if cfg.registers else {}
    config = getattr(transformers, f"{name}Config")(
        hidden_size=cfg.width, num_hidden_layers=cfg.layers, num_attention_heads=cfg.heads,
        mlp_ratio=2, image_size=cfg.image_size, patch_size=cfg.patch, **more,
    )  # fmt: skip
    model = getattr(transformers, f"{name}Model")(config).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return torch, model


@pytest.mark.torch
@pytest.mark.parametrize("registers", [0, 3])
@pytest.mark.parametrize("size", [(70, 70), (112, 98), (42, 42)])
def test_equals_transformers(size, registers):
    rule = "size_antialias" if registers else "size"
    cfg = dataclasses.replace(CFG, registers=registers, position_rule=rule)
    torch, model = reference(cfg)
    from conversion.engine import plan, to_jax
    from conversion.tables.dinov2 import MARKS, table
    from conversion.tables.spellings import spelling_of

    state = {k: v.numpy() for k, v in model.state_dict().items()}
    params = to_jax(state.__getitem__, plan(state, table(cfg, spelling_of(state, MARKS))))
    pixels = np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)
    with torch.no_grad():
        out = model(torch.tensor(pixels.transpose(0, 3, 1, 2)), output_hidden_states=True)
    states, normed = jax.jit(ViT(cfg).apply)({"params": params}, pixels)
    assert len(out.hidden_states) == len(states) == cfg.layers + 1
    for got, expected in zip(states, out.hidden_states, strict=True):
        np.testing.assert_allclose(got, expected.numpy(), atol=1e-4)
    np.testing.assert_allclose(normed, out.last_hidden_state.numpy(), atol=1e-4)


def fresh(cfg):
    model = ViT(cfg)
    pixels = jax.random.normal(jax.random.key(1), (2, 112, 112, 3))
    params = sharding.unbox(model.init(jax.random.key(0), pixels)["params"])

    def wave(x):
        return x + 0.1 * jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape)

    return model, jax.tree.map(wave, params), pixels


def test_position_rules_differ_and_agree_where_nothing_is_resized():
    model, params, pixels = fresh(CFG)
    other = ViT(dataclasses.replace(CFG, position_rule="scale_offset"))
    a, b = (jax.jit(m.apply)({"params": params}, pixels)[0] for m in (model, other))
    assert np.abs(a - b).max() > 1e-3
    small = pixels[:, :70, :70]
    a, b = (m.apply({"params": params}, small)[0] for m in (model, other))
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("change", [{"scan": False}, {"remat": "full"}])
def test_scan_and_remat_change_nothing(change):
    model, params, pixels = fresh(CFG)
    other = ViT(dataclasses.replace(CFG, **change))
    for a, b in zip(
        *(jax.jit(m.apply)({"params": params}, pixels) for m in (model, other)), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_a_picture_that_is_no_multiple_of_the_patch_is_refused():
    model, params, pixels = fresh(CFG)
    with pytest.raises(ValueError, match="110x112"):
        model.apply({"params": params}, pixels[:, :, :110])
