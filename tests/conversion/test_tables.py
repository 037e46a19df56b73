"""Every table against the names of real checkpoints, the model's leaves, and the torch classes."""

import re
from types import SimpleNamespace

import numpy as np
import pytest

import conversion
from conversion import engine, manifests, readers
from conversion.tables import dinov2, groma, llama
from mg_jax.errors import UserError

VIT = SimpleNamespace(
    width=24, layers=2, heads=3, mlp_ratio=4.0, patch=14, image_size=42, registers=0
)
LM = SimpleNamespace(vocab=40, width=24, mlp=32, layers=2, heads=6, kv_heads=2, head=4, tied=False)


def table_of(layout, cfg):
    if layout == "detector":
        return groma.detector_table(cfg.vision, cfg.proposer)
    return groma.table(cfg)


def test_names_and_shapes_equal_the_recorded_state_dict(instance):
    layout, cfg, manifest = instance
    full = engine.expand(table_of(layout, cfg))
    assert full.torch_shapes() == manifest


def test_leaves_equal_those_of_the_tree(instance, expected_leaves):
    layout, cfg, _ = instance
    assert engine.expand(table_of(layout, cfg)).jax_shapes() == expected_leaves(layout, cfg)


def test_the_7b_manifest_is_covered(published, to_config, expected_leaves):
    layout, cfg = to_config(published)
    manifest = manifests.read("groma_7b")
    assert len(manifest) == 1177
    plan = engine.plan(manifest, groma.table(cfg))
    used = {name for leaf in plan.leaves for name in leaf.names}
    assert used | set(plan.tied) | set(plan.dropped) == set(manifest)
    assert not plan.dropped and all("decoder." in copy for copy in plan.tied)
    assert plan.jax_shapes() == expected_leaves(layout, cfg)
    leaves = engine.flatten(plan.abstract(np.float32))
    assert sum(np.prod(leaf.shape, dtype=np.int64) for leaf in leaves.values()) == 7_377_311_657


def test_both_ways_are_bit_equal(instance, random_tensors):
    layout, cfg, manifest = instance
    table = table_of(layout, cfg)
    state = random_tensors(manifest)
    for copy, source in engine.expand(table).tied.items():
        state[copy] = state[source]
    plan = engine.plan(state, table)
    params = engine.to_jax(state.__getitem__, plan)
    back = engine.to_torch(params, table)
    assert set(back) == set(state)
    assert all(back[name].tobytes() == state[name].tobytes() for name in state)
    again = engine.flatten(engine.to_jax(back.__getitem__, plan))
    assert all(again[p].tobytes() == x.tobytes() for p, x in engine.flatten(params).items())


def test_transposed_convolutions_are_not_flipped(instance):
    layout, cfg, _ = instance
    if layout == "full":
        pytest.skip("has one level, so no transposed convolution")
    table = table_of(layout, cfg)
    leaf = next(x for x in engine.expand(table).leaves if x.paths == ("proposer/input0/up/kernel",))
    tensor = np.arange(np.prod(leaf.torch_shape)).reshape(leaf.torch_shape)
    kernel = leaf.parts[0].view(tensor)
    assert kernel[0, 1, 2, 3] == tensor[2, 3, 0, 1]


def test_copies_differing_absent_and_orphaned(instance, random_tensors):
    layout, cfg, manifest = instance
    table = table_of(layout, cfg)
    tied = engine.expand(table).tied
    assert len(tied) == 6 * (cfg.proposer.decoder_layers + 1) + 2 + 4 * cfg.proposer.decoder_layers
    state = random_tensors(manifest)
    for copy, source in tied.items():
        state[copy] = state[source].copy()
    copy, source = next(iter(tied.items()))

    state[copy].flat[0] += 1
    with pytest.raises(UserError, match=re.escape(f"{copy} should equal {source}")):
        engine.to_jax(state.__getitem__, engine.plan(state, table))

    for name in tied:
        del state[name]
    back = engine.to_torch(engine.to_jax(state.__getitem__, engine.plan(state, table)), table)
    assert set(back) == set(manifest)

    state[copy] = state.pop(source)  # the copy alone does not stand in for its source
    with pytest.raises(UserError, match=re.escape(f"- {source} ")):
        engine.plan(state, table)


@pytest.mark.parametrize("change", ["extra", "missing", "shape"])
def test_every_mismatch_is_refused(instance, change):
    layout, cfg, manifest = instance
    manifest = dict(manifest)
    name = next(n for n in manifest if n.endswith("encoder.layer.1.norm1.weight"))
    if change == "extra":
        manifest[name.replace("layer.1", "layer.99")] = manifest[name]
        expected = "+ " + name.replace("layer.1", "layer.99")
    elif change == "missing":
        del manifest[name]
        expected = f"- {name} [{cfg.vision.width}]"
    else:
        manifest[name] = (3,)
        expected = f"! {name} [3], expected [{cfg.vision.width}]"
    with pytest.raises(UserError, match=re.escape(expected)):
        engine.plan(manifest, table_of(layout, cfg))


def test_rotary_buffers_are_dropped(instance):
    layout, cfg, manifest = instance
    if layout == "detector":
        pytest.skip("has no language model")
    name = "llm.model.layers.1.self_attn.rotary_emb.inv_freq"
    plan = engine.plan({**manifest, name: (8,)}, groma.table(cfg))
    assert plan.dropped == {name: llama.ROTARY}


def test_a_model_that_upstream_cannot_hold_is_refused(instance):
    layout, cfg, _ = instance
    one_head = SimpleNamespace(**{**vars(cfg.proposer), "two_heads": False})
    with pytest.raises(UserError, match="two objectness heads"):
        groma.detector_table(cfg.vision, one_head)
    if layout == "full":
        regions = SimpleNamespace(**{**vars(cfg.regions), "mlp": True})
        with pytest.raises(UserError, match=r"regions\.mlp"):
            groma.table(SimpleNamespace(**{**vars(cfg), "regions": regions}))


@pytest.mark.parametrize("name", ["a_lvl1_448", "c_ddetr_lvl4_224"])
def test_leaves_equal_those_of_the_module(name):
    """jax.eval_shape of the model's init, for the parts that the layout holds."""
    import jax

    module = pytest.importorskip("mg_jax.models.groma")
    pytest.importorskip("mg_jax.boxes")
    folder = manifests.FOLDER.parents[1] / "tests" / "golden" / "groma" / name
    layout, cfg = conversion.read_config(folder)
    stage = "detection" if layout == "detector" else "instruction"
    shapes = jax.eval_shape(module.system(cfg).init(stage), jax.random.key(0))["params"]
    shapes = jax.tree.map(lambda x: x.shape, unboxed(shapes), is_leaf=lambda x: hasattr(x, "shape"))
    table = conversion.table_of(cfg, layout)
    assert engine.flatten(shapes) == engine.expand(table).jax_shapes()


def unboxed(tree):
    from flax.core import meta

    return meta.unbox(tree)


# -- the torch classes ------------------------------------------------------------------------


def exported(table, random_tensors):
    """A state dict made by export from random parameters, as torch tensors."""
    import torch

    params = random_tensors(engine.expand(table).jax_shapes(), np.float32)
    state = engine.to_torch(engine.unflatten(params), table)
    return {name: torch.from_numpy(tensor) for name, tensor in state.items()}


@pytest.mark.torch
@pytest.mark.parametrize("tied", [False, True])
def test_llama_loads_strictly(random_tensors, tied):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    cfg = SimpleNamespace(**{**vars(LM), "tied": tied})
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=40, hidden_size=24, intermediate_size=32, num_hidden_layers=2,
            num_attention_heads=6, num_key_value_heads=2, tie_word_embeddings=tied,
        )
    )  # fmt: skip
    state = exported(llama.table(cfg), random_tensors)
    model.load_state_dict(state, strict=True)
    loaded = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    plan = engine.plan(loaded, llama.table(cfg))
    assert ("head" in plan.abstract()) == (not tied)
    engine.to_jax(loaded.__getitem__, plan)


@pytest.mark.torch
def test_dinov2_loads_strictly(random_tensors):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.Dinov2Model(
        transformers.Dinov2Config(
            hidden_size=24, num_hidden_layers=2, num_attention_heads=3, image_size=42,
            patch_size=14,
        )
    )  # fmt: skip
    older = "encoder.layer.0.attention.attention.query.weight" in model.state_dict()
    table = dinov2.table(VIT, "files" if older else "transformers5")
    model.load_state_dict(exported(table, random_tensors), strict=True)


@pytest.mark.torch
def test_dinov2_files_are_read_and_written_by_transformers(random_tensors, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.Dinov2Config(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=3, image_size=42, patch_size=14
    )
    state = exported(dinov2.table(VIT), random_tensors)
    readers.write_safetensors(
        tmp_path / "model.safetensors", {name: tensor.numpy() for name, tensor in state.items()}
    )
    config.save_pretrained(tmp_path)
    model, info = transformers.Dinov2Model.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    weight = model.encoder.layer[1].mlp.fc1.weight
    assert torch.equal(weight, state["encoder.layer.1.mlp.fc1.weight"])
    model.save_pretrained(tmp_path / "again")
    source = readers.open_checkpoint(tmp_path / "again")
    plan = engine.plan(source.manifest, dinov2.table(VIT))
    back = engine.to_torch(engine.to_jax(source.read, plan), dinov2.table(VIT))
    assert all(np.array_equal(back[name], state[name].numpy()) for name in state)
