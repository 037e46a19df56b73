"""MG-LLaVA at its published sizes, abstractly: the files of both stages, every language model."""

import dataclasses
import json
import math

import jax
import pytest

from conversion import engine, manifests
from conversion.architectures import ARCHITECTURES, detect
from conversion.carried import mg_llava_settings
from conversion.tables.mg_llava import HIGH, LM, LOW, saved
from mg_jax import models
from mg_jax.errors import UserError
from mg_jax.models.mg_llava import MGLLaVAConfig

# Language model -> its width (MG-LLaVA spec 1)
WIDTHS = {
    "phi3_mini_4k": 3072, "vicuna_7b_v15": 4096, "vicuna_13b_v15": 5120, "llama3_8b": 4096,
    "yi15_34b": 7168,
}  # fmt: skip
TEMPLATES = {"phi3_mini_4k": "phi3_chat", "llama3_8b": "llama3_chat", "yi15_34b": "qwen_chat"}
TOWERS = ("clip_vit_l14_336", "convnext_large_d_320")


def own(h):
    """The 20 tensors of the spec's table, for a language model of width h."""
    out = {}
    for name, inputs in (("projector", 1024), ("bbox_projector", 2880)):
        out[f"{name}.model.0.weight"], out[f"{name}.model.0.bias"] = (h, inputs), (h,)
        out[f"{name}.model.2.weight"], out[f"{name}.model.2.bias"] = (h, h), (h,)
    for name, shape in {
        "slow_conv": (1536, 1536, 1, 1), "slow_proj": (1024, 1536, 1, 1),
        "fast_conv": (1024, 1, 7, 7), "fast_proj": (1024, 1024, 1, 1), "gate.0": (512, 2048),
        "gate.2": (1, 512),
    }.items():  # fmt: skip
        out[f"fuse_module.{name}.weight"] = shape
        out[f"fuse_module.{name}.bias"] = shape[:1]
    return out


def put(prefix, shapes):
    return {prefix + name: shape for name, shape in shapes.items()}


@pytest.fixture(params=WIDTHS, scope="module")
def published(request):
    """(language model, config.json of the public folders, config, architecture)."""
    low, high = map(manifests.config, TOWERS)
    raw = {
        "model_type": "mg_llava", "llm": manifests.config(request.param), "clip": low,
        "convnext": high,
    }  # fmt: skip
    entry = detect(raw, "config.json")
    return request.param, raw, entry.read(raw, "config.json"), entry


def whole(name):
    """What the file of stage 2 and the towers' public files hold together."""
    low, high = map(manifests.read, TOWERS)
    spoken = put(LM, manifests.read(name))
    return own(WIDTHS[name]) | spoken | put(LOW, low) | put(HIGH, high)


def test_covered_completely_in_both_directions(published):
    name, _, cfg, entry = published
    shapes = whole(name)
    plan = engine.plan(shapes, entry.table(cfg, shapes), name)
    used = {source for leaf in plan.leaves for source in leaf.names}
    assert used | set(plan.dropped) | set(plan.tied) == set(shapes) and not plan.tied
    assert all(source.startswith((LOW, HIGH)) for source in plan.dropped)
    written = engine.expand(entry.table(cfg)).torch_shapes()
    first = {n: s for n, s in written.items() if saved(n, "pretrain")}
    second = {n: s for n, s in written.items() if saved(n, "sft")}
    assert first == own(WIDTHS[name]) and len(first) == 20
    assert second == first | put(LM, manifests.read(name))
    assert len(written.keys() - second) == 391 + 340  # of CLIP's tower and the ConvNeXt
    assert engine.expand(entry.table(cfg)).jax_shapes() == plan.jax_shapes()


def test_sizes_are_those_published(published):
    name, raw, cfg, _ = published
    assert cfg.lm.width == WIDTHS[name]
    assert cfg.low_size == 336 and cfg.high_size == cfg.canvas == 768 and cfg.select_layer == -2
    assert cfg.image_tokens() == 576 and sum(cfg.high.widths) == 2880
    assert (cfg.fusion, cfg.objects, cfg.low.activation) == ("conv_gate", "append", "quick_gelu")
    codec = mg_llava_settings(cfg, raw)["codec"]
    assert codec["text_tokens"] == 1472 and codec["image_tokens"] == 576
    assert codec["template"] == TEMPLATES.get(name, "vicuna")


def test_leaves_are_those_of_the_model(published):
    """jax.eval_shape of the module at true size; Vicuna-7B's is the default of our config."""
    name, _, cfg, entry = published
    init = models.build("mg_llava", cfg).init("sft")
    tree = jax.eval_shape(init, jax.random.key(0))["params"]
    found = jax.tree.map(lambda x: x.value.shape, tree, is_leaf=lambda x: hasattr(x, "value"))
    assert engine.flatten(found) == engine.expand(entry.table(cfg)).jax_shapes()
    assert (cfg == MGLLaVAConfig()) == (name == "vicuna_7b_v15")


def test_the_config_goes_back(published):
    _, _, cfg, entry = published
    raw = json.loads(json.dumps(entry.write_config(cfg)))
    assert detect(raw, "config.json") is entry and entry.read(raw, "config.json") == cfg


def test_the_stored_manifest_is_the_file_of_vicuna_7b():
    """The spec's table and the language model's manifest; no published file was read."""
    stored = manifests.read("mg_llava_vicuna_7b")
    assert stored == own(4096) | put(LM, manifests.read("vicuna_7b_v15"))
    assert len(stored) == 20 + 291
    own_count = sum(math.prod(shape) for n, shape in stored.items() if not n.startswith(LM))
    assert own_count == 55_646_721
    raw = manifests.config("mg_llava_vicuna_7b")
    assert ARCHITECTURES["mg_llava"].is_of(raw)


CHANGES = {
    "unknown field": ({"anyres": True}, "anyres: unknown field of MG-LLaVA"),
    "another RoIAlign": ({"roi_aligned": True}, "roi_aligned: True is not supported, only False"),
    "sizes": ({"aux_size": 640}, "640 gives a map of 20 cells a side for CLIP's 24 patches"),
    "language model": (
        {"llm": {"model_type": "qwen2"}}, "'qwen2' is not supported, only llama, phi3",
    ),
    "a part's field": ({"llm": {"model_type": "llama", "x": 1}}, r"llm\.x: unknown field of Llama"),
    "kind": ({"box_canvas": "768"}, "box_canvas: expected a whole number above 0, got '768'"),
    "layer": ({"visual_select_layer": 0.5}, "visual_select_layer: expected a whole number"),
    "a layer that is not there": ({"visual_select_layer": -99}, "select_layer: -99 is not one of"),
    "template": ({"template": "foo"}, r"json\.template: expected a chat template \(.*'foo'"),
    "list as template": ({"template": ["vicuna"]}, r"json\.template: expected a chat template"),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_config_is_read_strictly(change):
    fields, message = CHANGES[change]
    raw = manifests.config("mg_llava_vicuna_7b") | fields
    entry = detect(raw, "config.json")
    with pytest.raises(UserError, match=message):
        entry.read(raw, "config.json")


def test_notes_of_a_recording_are_passed_over():
    """It has no model_type; fields of the parts are strict all the same."""
    raw = manifests.config("mg_llava_vicuna_7b")
    del raw["model_type"]
    raw |= {"gate_bias": 0.2, "versions": {}}
    entry = detect(raw, "config.json")
    assert entry.name == "mg_llava"
    assert entry.read(raw, "config.json").high_size == 768
    raw["clip"] = raw["clip"] | {"other": 1}
    with pytest.raises(UserError, match=r"clip\.other: unknown field"):
        entry.read(raw, "config.json")


OURS = {
    "fusion": ("concat", "fusion: 'concat' has no place .* computes 'conv_gate'"),
    "objects": ("b2f", "objects: 'b2f' has no place"),
    "video_pool": (2, "video_pool: 2 has no place"),
    "refer": (True, "refer: True has no place"),
    "unit_vectors": (True, "unit_vectors: True has no place"),
    "places": (True, "places: True has no place"),
}


@pytest.mark.parametrize("field", OURS)
def test_choices_of_ours_are_not_written_as_upstreams(field):
    value, message = OURS[field]
    cfg = dataclasses.replace(MGLLaVAConfig(), **{field: value})
    with pytest.raises(UserError, match=message):
        ARCHITECTURES["mg_llava"].write_config(cfg)


def test_how_to_train_is_not_written():
    cfg = dataclasses.replace(MGLLaVAConfig(), drop_path=0.1, max_boxes=100)
    assert "drop_path" not in ARCHITECTURES["mg_llava"].write_config(cfg)
