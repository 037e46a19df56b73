"""Tables of vision towers: torch classes load exports strictly; both ways; published manifests."""

import math
import re

import numpy as np
import pytest

from conversion import engine, hf_config, manifests
from conversion.tables import clip, convnext, deformable_detr, dinov2, owlv2, spellings
from mg_jax.config import build
from mg_jax.disk import read_json
from mg_jax.errors import UserError
from mg_jax.models.detr import DetrConfig
from mg_jax.vision.convnext import ConvNeXt, ConvNeXtConfig
from mg_jax.vision.vit import ViT, ViTConfig

VIT = ViTConfig(width=24, layers=2, heads=3, mlp_ratio=2, image_size=42)
CLIP = ViTConfig(kind="clip", width=24, layers=2, heads=3, mlp_ratio=2, image_size=42)
NEXT = ConvNeXtConfig(depths=(1, 2, 1, 1), widths=(8, 12, 16, 24))
REGISTERS = ViTConfig(width=24, layers=2, heads=3, mlp_ratio=2, image_size=42, registers=3)
# name -> (module of the table, config, our module)
TOWERS = {
    "clip": (clip, CLIP, ViT),
    "owlv2": (owlv2, CLIP, ViT),
    "dinov2": (dinov2, VIT, ViT),
    "dinov2_registers": (dinov2, REGISTERS, ViT),
    "convnext": (convnext, NEXT, ConvNeXt),
}
SPELLED = [(name, spelling) for name, (t, *_) in TOWERS.items() for spelling in t.MARKS]
OPTIONS = dict(
    hidden_size=24, num_hidden_layers=2, num_attention_heads=3, image_size=42, patch_size=14
)


def module_shapes(module, cfg):
    """{path: shape} of our module, by tracing its initialiser."""
    import jax
    import jax.numpy as jnp

    from mg_jax import sharding

    side = cfg.image_size
    boxed = sharding.abstract_params(
        module(cfg).init, jax.random.key(0), jnp.zeros((1, side, side, 3))
    )
    leaves = engine.flatten(sharding.unbox(boxed))
    return {path: leaf.shape for path, leaf in leaves.items()}


@pytest.mark.parametrize(("name", "spelling"), SPELLED)
def test_both_ways_are_bit_equal_and_name_every_leaf(name, spelling, random_tensors):
    module, cfg, kind = TOWERS[name]
    table = module.table(cfg, spelling)
    full = engine.expand(table)
    assert full.jax_shapes() == module_shapes(kind, cfg)
    state = random_tensors(full.torch_shapes())
    assert spellings.spelling_of(state, module.MARKS) == spelling
    params = engine.to_jax(state.__getitem__, engine.plan(state, table))
    back = engine.to_torch(params, table)
    assert set(back) == set(state)
    assert all(back[x].tobytes() == state[x].tobytes() for x in state)


def test_spelling_of_strange_names_is_the_first():
    assert spellings.spelling_of(["a", "b"], clip.MARKS) == "files"


@pytest.mark.parametrize("change", ["extra", "missing", "shape"])
@pytest.mark.parametrize("name", list(TOWERS))
def test_every_mismatch_is_refused(name, change):
    module, cfg, _ = TOWERS[name]
    table = module.table(cfg)
    shapes = engine.expand(table).torch_shapes()
    tensor = next(reversed(shapes))
    if change == "extra":
        shapes["vision_model.embeddings.register_tokens"] = (3,)
        expected = "+ vision_model.embeddings.register_tokens [3]"
    elif change == "missing":
        expected = f"- {tensor} {list(shapes.pop(tensor))}"
    else:
        expected = f"! {tensor} [7], expected {list(shapes[tensor])}"
        shapes[tensor] = (7,)
    with pytest.raises(UserError, match=re.escape(expected)):
        engine.plan(shapes, table)


def test_a_depthwise_kernel_keeps_its_taps():
    plan = engine.expand(convnext.table(NEXT))
    path = "stage1/blocks/conv/kernel"
    leaf = next(leaf for leaf in plan.leaves if leaf.paths == (path,))
    tensor = np.arange(math.prod(leaf.torch_shape)).reshape(leaf.torch_shape)
    params = engine.to_jax(lambda name: _stand_in(plan, name, leaf.names[1], tensor), plan)
    kernel = engine.flatten(params)[path]
    assert kernel.shape == (2, 7, 7, 12)
    assert kernel[1, 2, 5, 3] == tensor[3, 0, 2, 5]


def _stand_in(plan, name, wanted, tensor):
    return tensor if name == wanted else np.zeros(plan.torch_shapes()[name], tensor.dtype)


# -- the torch classes ------------------------------------------------------------------------


def exported(table, random_tensors):
    """(our random parameters, the state dict of their export as torch tensors)."""
    import torch

    shapes = engine.expand(table).jax_shapes()
    params = engine.unflatten(random_tensors(shapes, np.float32))
    state = engine.to_torch(params, table)
    return params, {name: torch.from_numpy(tensor) for name, tensor in state.items()}


def picture(side=42):
    return np.random.default_rng(3).normal(size=(1, side, side, 3)).astype(np.float32)


CLASSES = {
    "clip": ("CLIPVisionModel", "CLIPVisionConfig", dict(OPTIONS, intermediate_size=48)),
    "owlv2": ("Owlv2VisionModel", "Owlv2VisionConfig", dict(OPTIONS, intermediate_size=48)),
    "dinov2": ("Dinov2Model", "Dinov2Config", dict(OPTIONS, mlp_ratio=2)),
    "dinov2_registers": (
        "Dinov2WithRegistersModel", "Dinov2WithRegistersConfig",
        dict(OPTIONS, mlp_ratio=2, num_register_tokens=3),
    ),
}  # fmt: skip


@pytest.mark.torch
@pytest.mark.parametrize("name", list(CLASSES))
def test_exports_load_strictly_and_compute_the_same(name, random_tensors):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    module, cfg, _ = TOWERS[name]
    kind, config, options = CLASSES[name]
    model = getattr(transformers, kind)(getattr(transformers, config)(**options)).eval()
    spelling = spellings.spelling_of(model.state_dict(), module.MARKS)
    if cfg.kind == "clip":
        cfg = build(ViTConfig, {**vars(cfg), "activation": "quick_gelu", "eps": 1e-5})
    params, state = exported(module.table(cfg, spelling), random_tensors)
    model.load_state_dict(state, strict=True)
    with torch.no_grad():
        out = model(torch.tensor(picture().transpose(0, 3, 1, 2)))
    states, normed = ViT(cfg).apply({"params": params}, picture())
    got = states[-1] if cfg.kind == "clip" else normed
    np.testing.assert_allclose(got, out.last_hidden_state.numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.torch
@pytest.mark.parametrize("name", ["clip", "dinov2", "dinov2_registers"])
def test_written_folders_are_read_by_transformers_and_back(name, random_tensors, tmp_path):
    """config.json and model.safetensors, through from_pretrained and save_pretrained."""
    import json

    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from conversion import readers

    module, cfg, _ = TOWERS[name]
    _, state = exported(module.table(cfg), random_tensors)
    write = {"clip": hf_config.write_clip}.get(name, hf_config.write_dinov2)
    if name == "dinov2_registers":
        cfg = build(ViTConfig, {**vars(cfg), "position_rule": "size_antialias"})
    (tmp_path / "config.json").write_text(json.dumps(write(cfg)))
    readers.write_safetensors(
        tmp_path / "model.safetensors", {x: tensor.numpy() for x, tensor in state.items()}
    )
    kind = getattr(transformers, CLASSES[name][0])
    model, info = kind.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    model.save_pretrained(tmp_path / "again")
    source = readers.open_checkpoint(tmp_path / "again")
    raw = read_json(tmp_path / "again" / "config.json")
    read = {"clip": hf_config.read_clip}.get(name, hf_config.read_dinov2)
    again = build(ViTConfig, read(raw))
    assert again == cfg
    table = module.table(again, spellings.spelling_of(source.manifest, module.MARKS))
    back = engine.to_torch(
        engine.to_jax(source.read, engine.plan(source.manifest, table)), module.table(again)
    )
    assert set(back) == set(state)
    assert all(torch.equal(torch.tensor(back[x]), state[x]) for x in state)


@pytest.mark.torch
def test_timm_loads_strictly(random_tensors):
    torch = pytest.importorskip("torch")
    timm = pytest.importorskip("timm")
    model = timm.create_model("convnext_large", depths=NEXT.depths, dims=NEXT.widths)
    params, state = exported(convnext.table(NEXT, "mg_llava"), random_tensors)
    tower = torch.nn.Module()  # upstream's, of the same two parts
    tower.vision_stem, tower.vision_stages = model.stem, model.stages
    root = torch.nn.Module()
    root.visual_encoder_aux = tower
    root.load_state_dict(state, strict=True)
    pixels = picture(64)
    with torch.no_grad():
        x = model.eval().stem(torch.tensor(pixels.transpose(0, 3, 1, 2)))
        maps = ConvNeXt(NEXT).apply({"params": params}, pixels)
        for stage, got in zip(model.stages, maps, strict=True):
            x = stage(x)
            np.testing.assert_allclose(got, x.numpy().transpose(0, 2, 3, 1), rtol=1e-4, atol=1e-3)


# -- published checkpoints ---------------------------------------------------------------------

# manifest -> (read, table, parameters kept, tensors of the checkpoint that are kept)
PUBLISHED = {
    "clip_vit_l14_336": (hf_config.read_clip, clip.table, 303_507_456, 391),
    "dinov2_l14": (hf_config.read_dinov2, dinov2.table, 304_368_640, 439),
    "dinov2_registers_l14": (hf_config.read_dinov2, dinov2.table, 304_372_736, 440),
    "owlv2_l14_ensemble": (hf_config.read_owlv2, owlv2.table, 308_226_048, 391),
    "convnext_large_d_320": (hf_config.read_convnext, convnext.table, 196_227_264, 340),
}


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_published_checkpoints_are_covered_in_both_directions(name):
    read, table_of, count, kept = PUBLISHED[name]
    kind = ConvNeXt if name.startswith("convnext") else ViT
    cfg = build(ConvNeXtConfig if kind is ConvNeXt else ViTConfig, read(manifests.config(name)))
    shapes, table = manifests.read(name), table_of(cfg)
    plan = engine.plan(shapes, table, name)
    used = {source for leaf in plan.leaves for source in leaf.names}
    assert used.isdisjoint(plan.dropped) and used | set(plan.dropped) == set(shapes)
    assert len(used) == kept and set(engine.expand(table).torch_shapes()) == used
    assert not [x for x in plan.dropped if x.startswith(("vision_model.", "visual.trunk.st"))]
    leaves = {path: leaf.shape for path, leaf in engine.flatten(plan.abstract()).items()}
    assert leaves == module_shapes(kind, cfg)
    assert sum(math.prod(shape) for shape in leaves.values()) == count


def test_the_published_detector_is_covered_as_far_as_the_proposer_goes():
    name = "deformable_detr_refine_two_stage"
    cfg = build(DetrConfig, hf_config.read_deformable_detr(manifests.config(name)))
    shapes = manifests.read(name)
    plan = engine.plan(shapes, deformable_detr.detection_table(cfg, 91), name)
    used = {source for leaf in plan.leaves for source in leaf.names}
    assert used | set(plan.dropped) | set(plan.tied) == set(shapes)
    kinds = {x.removeprefix("model.").split(".")[0] for x in plan.dropped}
    assert kinds == {"backbone", "input_proj", "class_embed", "decoder"}
    assert all("class_embed" in x for x in plan.dropped if x.startswith("model.decoder."))
    assert set(plan.tied) == {f"model.decoder.{x}" for x in used if x.startswith("bbox_embed.")}


def test_older_files_with_position_indexes_are_read():
    shapes = manifests.read("clip_vit_l14_336")
    cfg = build(ViTConfig, hf_config.read_clip(manifests.config("clip_vit_l14_336")))
    buffers = {
        "vision_model.embeddings.position_ids": (1, 577),
        "text_model.embeddings.position_ids": (1, 77),
    }
    plan = engine.plan(shapes | buffers, clip.table(cfg))
    assert set(buffers) <= set(plan.dropped)
