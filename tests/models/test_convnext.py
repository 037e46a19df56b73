"""ConvNeXt: parity with timm, transformers, a recording and plain NumPy; scan, remat, meshes."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mg_jax import sharding
from mg_jax.vision.convnext import ConvNeXt, ConvNeXtConfig

CFG = ConvNeXtConfig(depths=(1, 2, 3, 1), widths=(8, 12, 16, 24))


def converted(state, cfg, spelling):
    from conversion.engine import plan, to_jax
    from conversion.tables.convnext import table

    return to_jax(state.__getitem__, plan(state, table(cfg, spelling)))


def redrawn(model, torch):
    torch.manual_seed(0)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return {name: tensor.numpy() for name, tensor in model.eval().state_dict().items()}


def picture(rows=2, height=64, width=96):
    return np.random.default_rng(0).normal(size=(rows, height, width, 3)).astype(np.float32)


def agree(params, cfg, pixels, expected):
    """Our maps against {stage: NCHW map}."""
    maps = jax.jit(ConvNeXt(cfg).apply)({"params": params}, pixels)
    assert len(maps) == len(cfg.depths) and expected
    for i, map_ in expected.items():
        np.testing.assert_allclose(maps[i], np.asarray(map_).transpose(0, 2, 3, 1), atol=1e-4)


@pytest.mark.torch
@pytest.mark.parametrize("eps", [1e-6, 1e-2])
def test_equals_timm(eps):
    torch = pytest.importorskip("torch")
    timm = pytest.importorskip("timm")
    cfg = dataclasses.replace(CFG, eps=eps)
    model = timm.create_model("convnext_large", depths=cfg.depths, dims=cfg.widths, norm_eps=eps)
    params = converted(redrawn(model, torch), cfg, "timm")
    pixels = picture()
    with torch.no_grad():
        maps = model.forward_intermediates(
            torch.tensor(pixels.transpose(0, 3, 1, 2)), intermediates_only=True
        )
    assert len(maps) == 4
    agree(params, cfg, pixels, dict(enumerate(maps)))


# transformers' names of the same tower, longest first
HF_NAMES = (
    ("embeddings.patch_embeddings.", "stem.0."), ("embeddings.layernorm.", "stem.1."),
    ("encoder.stages.", "stages."), ("downsampling_layer.", "downsample."),
    (".layers.", ".blocks."), ("layer_scale_parameter", "gamma"), ("dwconv.", "conv_dw."),
    ("layernorm.", "norm."), ("pwconv1.", "mlp.fc1."), ("pwconv2.", "mlp.fc2."),
)  # fmt: skip


@pytest.mark.torch
def test_equals_transformers():
    torch = pytest.importorskip("torch")
    import transformers

    config = transformers.ConvNextConfig(depths=list(CFG.depths), hidden_sizes=list(CFG.widths))
    model = transformers.ConvNextModel(config)
    state = {}
    for name, tensor in redrawn(model, torch).items():
        for theirs, ours in HF_NAMES:
            name = name.replace(theirs, ours)
        if not name.startswith("norm."):  # of the pooled output
            state[name] = tensor
    pixels = picture()
    with torch.no_grad():
        out = model(torch.tensor(pixels.transpose(0, 3, 1, 2)), output_hidden_states=True)
    maps = {i: x.numpy() for i, x in enumerate(out.hidden_states[1:])}
    assert len(maps) == 4
    agree(converted(state, CFG, "timm"), CFG, pixels, maps)


@pytest.mark.shared
@pytest.mark.parametrize(("name", "stages"), [("tiny_llama", (0, 1, 2, 3)), ("geom_768", (2, 3))])
def test_equals_the_recording_of_mg_llava(shared, name, stages):
    """Made by open_clip and timm through upstream's tower, with upstream's names."""
    from conversion import readers

    folder = shared / "golden" / "mg_llava" / name
    sizes = json.loads((folder / "config.json").read_text())["convnext"]
    cfg = ConvNeXtConfig(depths=tuple(sizes["depths"]), widths=tuple(sizes["dims"]))
    source = readers.open_checkpoint(folder / "state_dict.safetensors")
    state = {x: source.read(x) for x in source.manifest if x.startswith("visual_encoder_aux.")}
    inputs, outputs = (np.load(folder / f"{x}puts.npz") for x in ("in", "out"))
    pixels = inputs["pixel_values_aux_f16"].astype(np.float32).transpose(0, 2, 3, 1)
    maps = {i: outputs[f"convnext_stage_{i}"] for i in stages}
    agree(converted(state, cfg, "mg_llava"), cfg, pixels, maps)


# -- without another framework ---------------------------------------------------------------

SMALL = ConvNeXtConfig(depths=(1, 2), widths=(8, 12))


def drawn(cfg, rows=2):
    """(random parameters, pixels); no initialiser is compiled."""
    draw = np.random.default_rng(1)
    pixels = jnp.asarray(picture(rows, 32, 48))
    boxed = sharding.abstract_params(ConvNeXt(cfg).init, jax.random.key(0), pixels)

    def one(x):
        return jnp.asarray(draw.normal(scale=0.3, size=x.shape), jnp.float32)

    return jax.tree.map(one, sharding.unbox(boxed)), pixels


def plain(params, pixels):
    """The maps in float64 loops over taps; each stage's blocks one after the other."""
    erf = np.vectorize(math.erf)

    def norm(p, x):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + SMALL.eps) * p["scale"] + p["bias"]

    def linear(p, x):
        return x @ p["kernel"] + p["bias"]

    def patches(p, x, side):
        b, rows, cols, c = x.shape
        x = x.reshape(b, rows // side, side, cols // side, side, c)
        return np.einsum("bysxtc,stcd->byxd", x, p["kernel"]) + p["bias"]

    def block(p, x):
        rows, cols = x.shape[1:3]
        wide = np.pad(x, ((0, 0), (3, 3), (3, 3), (0, 0)))
        kernel = p["conv"]["kernel"]
        h = sum(
            wide[:, i : i + rows, j : j + cols] * kernel[i, j] for i in range(7) for j in range(7)
        )
        h = linear(p["mlp"]["up"], norm(p["norm"], h + p["conv"]["bias"]))
        h = linear(p["mlp"]["down"], h * 0.5 * (1 + erf(h / math.sqrt(2))))
        return x + p["scale"] * h

    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    x = norm(params["stem_norm"], patches(params["stem"], np.asarray(pixels, np.float64), 4))
    maps = []
    for i, depth in enumerate(SMALL.depths):
        stage = params[f"stage{i}"]
        if i:
            x = patches(stage["down"], norm(stage["down_norm"], x), 2)
        for layer in range(depth):
            x = block(jax.tree.map(lambda p, layer=layer: p[layer], stage["blocks"]), x)
        maps.append(x)
    return maps


def test_equals_plain_numpy():
    params, pixels = drawn(SMALL)
    maps = jax.jit(ConvNeXt(SMALL).apply)({"params": params}, pixels)
    assert [x.shape[1:] for x in maps] == [(8, 12, 8), (4, 6, 12)]
    for got, expected in zip(maps, plain(params, pixels), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-4)


@pytest.mark.parametrize("change", [{"scan": False}, {"remat": "full"}])
def test_scan_and_remat_change_nothing(change):
    params, pixels = drawn(SMALL)
    other = dataclasses.replace(SMALL, **change)
    for a, b in zip(
        *(jax.jit(ConvNeXt(c).apply)({"params": params}, pixels) for c in (SMALL, other)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_a_mesh_changes_nothing():
    params, pixels = drawn(SMALL, rows=8)
    model = ConvNeXt(SMALL)

    def loss(params, pixels):
        return sum(jnp.mean(x**2) for x in model.apply({"params": params}, pixels))

    plainly = jax.jit(jax.value_and_grad(loss))(params, pixels)
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    boxed = sharding.abstract_params(model.init, jax.random.key(0), pixels)
    places = sharding.param_shardings(boxed, mesh, "fsdp_tensor")
    assert places["stage1"]["blocks"]["mlp"]["up"]["kernel"].spec == jax.P(None, "fsdp", "tensor")
    placed = jax.tree.map(jax.device_put, params, places)
    with sharding.use(mesh, "fsdp_tensor"):
        meshed = jax.jit(jax.value_and_grad(loss))(placed, sharding.put_batch(pixels, mesh))
    for a, b in zip(jax.tree.leaves(meshed), jax.tree.leaves(plainly), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_stochastic_depth_leaves_blocks_out_of_rows():
    """Rates 0, 1/4 and 1/2 of three blocks; what stays is divided by its rate of staying."""
    params, pixels = drawn(SMALL, rows=1)
    rows = jnp.tile(pixels, (96, 1, 1, 1))
    model = ConvNeXt(SMALL, drop_path=0.5)
    fine, coarse = model.apply({"params": params}, rows, rngs={"dropout": jax.random.key(3)})
    quiet = model.apply({"params": params}, pixels)
    for want, got in zip(ConvNeXt(SMALL).apply({"params": params}, pixels), quiet, strict=True):
        np.testing.assert_array_equal(got, want)
    np.testing.assert_allclose(fine, np.tile(quiet[0], (96, 1, 1, 1)), atol=1e-5)
    counts = []
    for kept in ((0, 0), (0, 1), (1, 0), (1, 1)):
        scaled = jax.tree.map(lambda x: x, params)
        gain = jnp.asarray([kept[0] / 0.75, kept[1] / 0.5])[:, None]
        scaled["stage1"]["blocks"]["scale"] = params["stage1"]["blocks"]["scale"] * gain
        want = ConvNeXt(SMALL).apply({"params": scaled}, pixels)[1]
        counts.append(int((np.abs(coarse - want).max((1, 2, 3)) < 1e-4).sum()))
    assert sum(counts) == 96
    np.testing.assert_allclose(np.array(counts) / 96, [0.125, 0.125, 0.375, 0.375], atol=0.12)


def test_half_precision_is_close():
    params, pixels = drawn(SMALL)
    half = ConvNeXt(dataclasses.replace(SMALL, dtype="bfloat16"))
    maps = (jax.jit(m.apply)({"params": params}, pixels) for m in (ConvNeXt(SMALL), half))
    for a, b in zip(*maps, strict=True):
        assert b.dtype == jnp.bfloat16
        assert np.abs(a - b.astype(jnp.float32)).max() < 0.05 * np.abs(a).max()


@pytest.mark.parametrize(
    ("change", "shape", "message"),
    [({}, (1, 64, 84, 3), "84x64"), ({"depths": (1,)}, (1, 64, 64, 3), "differ in number")],
)
def test_what_does_not_fit_is_refused(change, shape, message):
    model = ConvNeXt(dataclasses.replace(SMALL, **change))
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(shape))
