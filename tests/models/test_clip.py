"""CLIP's vision tower, and OWLv2's: parity with transformers and a recording, sizes, meshes."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mg_jax import sharding
from mg_jax.vision.vit import ViT, ViTConfig, quick_gelu

CFG = ViTConfig(
    kind="clip", width=32, layers=3, heads=4, mlp_ratio=2.5, activation="quick_gelu", image_size=70,
    eps=1e-5,
)  # fmt: skip


def converted(state, table):
    from conversion.engine import plan, to_jax

    return to_jax(state.__getitem__, plan(state, table))


def redrawn(model, torch):
    torch.manual_seed(0)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return {name: tensor.numpy() for name, tensor in model.eval().state_dict().items()}


@pytest.mark.torch
@pytest.mark.parametrize(
    ("family", "activation", "size"),
    [("clip", "quick_gelu", 70), ("clip", "gelu", 112), ("clip", "quick_gelu", 42),
     ("owlv2", "quick_gelu", 70), ("owlv2", "quick_gelu", 98)],
)  # fmt: skip
def test_equals_transformers(family, activation, size):
    torch = pytest.importorskip("torch")
    import transformers

    from conversion.tables import clip, owlv2, spellings

    cfg = dataclasses.replace(CFG, activation=activation)
    name = {"clip": "CLIPVision", "owlv2": "Owlv2Vision"}[family]
    config = getattr(transformers, f"{name}Config")(
        hidden_size=32, intermediate_size=80, num_hidden_layers=3, num_attention_heads=4,
        image_size=70, patch_size=14, hidden_act=activation,
    )  # fmt: skip
    model = getattr(transformers, f"{name}Model")(config)
    state = redrawn(model, torch)
    tables = {"clip": clip, "owlv2": owlv2}[family]
    params = converted(state, tables.table(cfg, spellings.spelling_of(state, tables.MARKS)))
    pixels = np.random.default_rng(0).normal(size=(2, size, size, 3)).astype(np.float32)
    with torch.no_grad():
        out = model(
            torch.tensor(pixels.transpose(0, 3, 1, 2)), output_hidden_states=True,
            interpolate_pos_encoding=size != 70,
        )  # fmt: skip
    states, normed = jax.jit(ViT(cfg).apply)({"params": params}, pixels)
    assert len(out.hidden_states) == len(states) == cfg.layers + 1
    for got, expected in zip(states, out.hidden_states, strict=True):
        np.testing.assert_allclose(got, expected.numpy(), atol=1e-4)
    np.testing.assert_allclose(states[-1], out.last_hidden_state.numpy(), atol=1e-4)
    np.testing.assert_allclose(normed[:, 0], out.pooler_output.numpy(), atol=1e-4)


@pytest.mark.shared
@pytest.mark.parametrize("name", ["tiny_llama", "geom_768"])
def test_equals_the_recording_of_mg_llava(shared, name):
    """Names of MG-LLaVA's state dict; geom_768's low-resolution picture is made from the other."""
    from conversion import readers
    from conversion.hf_config import read_clip
    from conversion.tables import clip
    from mg_jax.config import build

    folder = shared / "golden" / "mg_llava" / name
    cfg = build(ViTConfig, read_clip(json.loads((folder / "config.json").read_text())["clip"]))
    source = readers.open_checkpoint(folder / "state_dict.safetensors")
    names = [x for x in source.manifest if x.startswith("visual_encoder.")]
    state = {x.removeprefix("visual_encoder."): source.read(x) for x in names}
    params = converted(state, clip.table(cfg))
    inputs, outputs = (np.load(folder / f"{x}puts.npz") for x in ("in", "out"))
    if "pixel_values" in inputs:
        pixels = inputs["pixel_values"].transpose(0, 2, 3, 1)
    else:
        big = inputs["pixel_values_aux_f16"].astype(np.float32).transpose(0, 2, 3, 1)
        small = (len(big), cfg.image_size, cfg.image_size, 3)
        pixels = jax.image.resize(big, small, "linear", antialias=False)
    states, _ = jax.jit(ViT(cfg).apply)({"params": params}, pixels)
    recorded = [x for x in outputs.files if x.startswith("clip_hidden_")]
    assert f"clip_hidden_{cfg.layers - 1}" in recorded  # the one that is read
    for x in recorded:
        np.testing.assert_allclose(states[int(x.rpartition("_")[2])], outputs[x], atol=1e-4)


def test_quick_gelu():
    x = np.asarray([-3.0, -0.5, 0.0, 2.0], np.float32)
    expected = x / (1 + np.exp(-1.702 * x))
    np.testing.assert_allclose(quick_gelu(jnp.asarray(x)), expected, atol=1e-6)


def drawn(cfg, rows=2):
    """(model, random parameters, pixels); no initialiser is compiled."""
    model, draw = ViT(cfg), np.random.default_rng(1)
    pixels = jnp.asarray(draw.normal(size=(rows, 70, 70, 3)), jnp.float32)
    boxed = sharding.abstract_params(model.init, jax.random.key(0), pixels)

    def one(x):
        return jnp.asarray(draw.normal(scale=0.2, size=x.shape), jnp.float32)

    return model, jax.tree.map(one, sharding.unbox(boxed)), pixels


def test_parameters_are_those_of_the_published_tower():
    params = sharding.abstract_params(ViT(CFG).init, jax.random.key(0), jnp.zeros((1, 70, 70, 3)))
    assert set(params) == {"patch", "cls", "positions", "norm_pre", "blocks", "norm"}
    assert set(params["patch"]) == {"kernel"}
    assert set(params["blocks"]) == {"norm1", "attn", "norm2", "mlp"}


@pytest.mark.parametrize("change", [{"scan": False}, {"remat": "full"}])
def test_scan_and_remat_change_nothing(change):
    model, params, pixels = drawn(CFG)
    other = ViT(dataclasses.replace(CFG, **change))
    for a, b in zip(
        *(jax.jit(m.apply)({"params": params}, pixels) for m in (model, other)), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_a_mesh_changes_nothing():
    model, params, pixels = drawn(CFG, rows=8)

    def loss(params, pixels):
        states, normed = model.apply({"params": params}, pixels)
        return jnp.mean(states[-2][:, 1:] ** 2) + jnp.mean(normed[:, 0])

    plain = jax.jit(jax.value_and_grad(loss))(params, pixels)
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    boxed = sharding.abstract_params(model.init, jax.random.key(0), pixels)
    places = sharding.param_shardings(boxed, mesh, "fsdp_tensor")
    placed = jax.tree.map(jax.device_put, params, places)
    with sharding.use(mesh, "fsdp_tensor"):
        meshed = jax.jit(jax.value_and_grad(loss))(placed, sharding.put_batch(pixels, mesh))
    for a, b in zip(jax.tree.leaves(meshed), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
