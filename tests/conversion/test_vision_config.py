"""Configs of vision towers and detectors: defaults, nesting, the way back, what is refused."""

import json

import pytest

from conversion import hf_config, manifests
from conversion.hf_config.convnext import ARCHITECTURES
from mg_jax.config import build
from mg_jax.errors import UserError
from mg_jax.models.detr import DetrConfig
from mg_jax.vision.convnext import ConvNeXtConfig
from mg_jax.vision.vit import ViTConfig

CLIP_L = dict(
    kind="clip", width=1024, layers=24, heads=16, mlp_ratio=4.0, patch=14, image_size=336,
    activation="quick_gelu", eps=1e-5, registers=0, position_rule="size",
)  # fmt: skip
PAIRS = {
    "clip": (hf_config.read_clip, hf_config.write_clip),
    "owlv2": (hf_config.read_owlv2, hf_config.write_owlv2),
    "dinov2": (hf_config.read_dinov2, hf_config.write_dinov2),
    "dinov2_registers": (hf_config.read_dinov2, hf_config.write_dinov2),
}
SMALL = dict(width=24, layers=2, heads=3, mlp_ratio=2.0, patch=7, image_size=28)
CONFIGS = {
    "clip": ViTConfig(kind="clip", eps=1e-5, activation="gelu", **SMALL),
    "owlv2": ViTConfig(kind="clip", eps=1e-4, activation="quick_gelu", **SMALL),
    "dinov2": ViTConfig(eps=1e-5, layer_scale=0.5, **SMALL),
    "dinov2_registers": ViTConfig(registers=5, position_rule="size_antialias", **SMALL),
}


def test_the_published_clip_is_read_from_its_vision_part():
    raw = manifests.config("clip_vit_l14_336")
    assert hf_config.read_clip(raw) == CLIP_L
    assert hf_config.read_clip(raw["vision_config"]) == CLIP_L
    del raw["vision_config_dict"]
    assert hf_config.read_clip(raw) == CLIP_L


def test_what_every_config_class_may_write_is_read_of_a_joint_model_too():
    raw = manifests.config("clip_vit_l14_336") | {"pruned_heads": {}}
    assert hf_config.read_clip(raw) == CLIP_L
    with pytest.raises(UserError, match="pruned_heads: {'0': .* is not supported"):
        hf_config.read_clip(raw | {"pruned_heads": {"0": [1]}})


def test_of_two_spellings_of_the_vision_part_the_older_counts():
    """As transformers does."""
    raw = manifests.config("clip_vit_l14_336")
    raw["vision_config_dict"] |= {"image_size": 224}
    assert hf_config.read_clip(raw) == {**CLIP_L, "image_size": 224}
    raw["vision_config_dict"] = None
    assert hf_config.read_clip(raw) == CLIP_L


def test_missing_fields_are_the_defaults_of_the_classes():
    base = dict(width=768, layers=12, heads=12, mlp_ratio=4, registers=0)
    clip = dict(base, kind="clip", activation="quick_gelu", eps=1e-5, position_rule="size")
    assert hf_config.read_clip({}) == dict(clip, patch=32, image_size=224)
    assert hf_config.read_clip({"model_type": "clip"}) == dict(clip, patch=32, image_size=224)
    assert hf_config.read_owlv2({}) == dict(clip, patch=16, image_size=768)
    dino = dict(base, kind="dinov2", patch=14, image_size=224, eps=1e-6, layer_scale=1.0)
    assert hf_config.read_dinov2({}) == dict(dino, position_rule="size")
    raw = {"model_type": "dinov2_with_registers"}
    registers = dict(dino, registers=4, patch=16, position_rule="size_antialias")
    assert hf_config.read_dinov2(raw) == registers
    assert hf_config.read_dinov2({"num_register_tokens": 4}) == registers
    published = {"interpolate_antialias": True, "interpolate_offset": 0.0}
    assert hf_config.read_dinov2(raw | published) == registers


@pytest.mark.torch
@pytest.mark.parametrize("name", list(CONFIGS))
def test_defaults_and_fields_are_those_of_transformers(name):
    transformers = pytest.importorskip("transformers")
    read, write = PAIRS[name]
    raw = write(CONFIGS[name])
    kind = getattr(transformers, raw["architectures"][0]).config_class
    assert kind.model_type == raw["model_type"]
    assert read(json.loads(json.dumps(kind().to_dict()))) == read({"model_type": kind.model_type})
    full = kind.from_dict(raw).to_dict()
    assert build(ViTConfig, read(json.loads(json.dumps(full)))) == CONFIGS[name]


@pytest.mark.parametrize("name", list(CONFIGS))
def test_the_way_back(name):
    read, write = PAIRS[name]
    raw = json.loads(json.dumps(write(CONFIGS[name])))
    assert build(ViTConfig, read(raw)) == CONFIGS[name]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("clip", {"position_rule": "scale_offset"}, "vision.position_rule.*CLIPVisionModel"),
        ("clip", {"kind": "dinov2"}, "vision.kind"),
        ("clip", {"registers": 2}, "vision.registers"),
        ("dinov2", {"position_rule": "scale_offset"}, "vision.position_rule.*Dinov2Model"),
        ("dinov2_registers", {"position_rule": "size"}, "Dinov2WithRegistersModel"),
    ],
)
def test_what_a_class_cannot_hold_is_not_written(name, change, message):
    values = {**vars(CONFIGS[name]), **change}
    with pytest.raises(UserError, match=message):
        PAIRS[name][1](build(ViTConfig, values))


@pytest.mark.parametrize(
    ("read", "raw", "message"),
    [
        (hf_config.read_clip, {"hidden_act": "gelu_new"}, r"config\.hidden_act: 'gelu_new'"),
        (hf_config.read_clip, {"vision_use_head": True}, "vision_use_head: unknown field"),
        (hf_config.read_clip, {"model_type": "clip", "vision_config": {"patch": 3}},
         r"config\.vision_config\.patch: unknown field of CLIPVisionConfig"),
        (hf_config.read_clip, {"model_type": "clip", "extra": 3}, r"config\.extra: unknown field"),
        (hf_config.read_clip, {"attention_dropout": 0.1}, r"attention_dropout: 0\.1"),
        (hf_config.read_owlv2, {"num_channels": 1}, "num_channels: 1"),
        (hf_config.read_dinov2, {"use_swiglu_ffn": True}, "use_swiglu_ffn: True"),
        (hf_config.read_dinov2, {"use_mask_token": False}, "use_mask_token: False"),
        (hf_config.read_dinov2, {"hidden_size": 30, "mlp_ratio": 2.65}, r"mlp_ratio: 2\.65.*79\.5"),
        (hf_config.read_dinov2, {"model_type": "vit"}, "model_type: 'vit'"),
        (hf_config.read_dinov2, {"model_type": "dinov2", "num_register_tokens": 4},
         "num_register_tokens: unknown field of Dinov2Config"),
        (hf_config.read_dinov2, {"num_register_tokens": 4, "interpolate_offset": 0.1},
         r"interpolate_offset: 0\.1"),
        (hf_config.read_dinov2, {"num_register_tokens": 4, "interpolate_antialias": False},
         "interpolate_antialias: False"),
    ],
)  # fmt: skip
def test_what_changes_the_model_is_refused(read, raw, message):
    with pytest.raises(UserError, match=message):
        read(raw)


@pytest.mark.parametrize(
    ("read", "raw", "message"),
    [
        (hf_config.read_clip, {"patch_size": 0}, r"config\.patch_size: expected .* above 0, got 0"),
        (hf_config.read_clip, {"image_size": [336, 336]}, r"config\.image_size: expected a whole"),
        (hf_config.read_clip, {"hidden_act": 3}, r"config\.hidden_act: expected a text, got 3"),
        (hf_config.read_clip, {"model_type": "clip", "vision_config": None},
         r"config\.vision_config: expected an object"),
        (hf_config.read_clip, {"model_type": "clip", "vision_config_dict": [1]},
         r"config\.vision_config_dict: expected an object"),
        (hf_config.read_clip, {"model_type": "clip", "vision_config": {"hidden_size": "x"}},
         r"config\.vision_config\.hidden_size: "),
        (hf_config.read_dinov2, {"mlp_ratio": "4"}, r"config\.mlp_ratio: expected a number"),
        (hf_config.read_dinov2, {"num_register_tokens": -1}, r"num_register_tokens: .* 0 or more"),
        (hf_config.read_dinov2, {"layer_norm_eps": float("inf")}, r"layer_norm_eps: .* got inf"),
    ],
)  # fmt: skip
def test_a_field_of_another_kind_is_named_as_upstream_names_it(read, raw, message):
    with pytest.raises(UserError, match=message):
        read(raw)


# -- ConvNeXt -----------------------------------------------------------------------------------

LARGE = dict(
    kind="convnext", depths=(3, 3, 27, 3), widths=(192, 384, 768, 1536), image_size=320, eps=1e-6
)


def test_open_clips_config_names_a_timm_tower():
    raw = manifests.config("convnext_large_d_320")
    assert hf_config.read_convnext(raw) == LARGE
    assert hf_config.read_convnext(raw["model_cfg"]) == LARGE
    raw["model_cfg"]["vision_cfg"]["timm_model_name"] = "convnext_xxlarge"
    values = hf_config.read_convnext(raw)
    assert values["depths"] == (3, 4, 30, 3) and values["eps"] == 1e-5


def test_timms_config_may_change_arguments():
    raw = {
        "architecture": "convnext_large_mlp.clip_laion2b_soup_ft_in12k_320", "num_classes": 1000,
        "num_features": 1536, "pretrained_cfg": {"tag": "x", "input_size": [3, 320, 320]},
    }  # fmt: skip
    assert hf_config.read_convnext(raw) == LARGE
    raw["model_args"] = {"depths": [1, 1], "dims": [8, 16], "norm_eps": 1e-5, "conv_mlp": False}
    values = hf_config.read_convnext(raw)
    assert values == dict(LARGE, depths=(1, 1), widths=(8, 16), eps=1e-5)


@pytest.mark.parametrize("name", [*ARCHITECTURES, "other"])
def test_the_way_back_of_convnext(name):
    depths, widths, eps = ARCHITECTURES.get(name, ((1, 2), (8, 12), 1e-4))
    cfg = ConvNeXtConfig(depths=depths, widths=widths, eps=eps, image_size=64)
    raw = json.loads(json.dumps(hf_config.write_convnext(cfg)))
    assert build(ConvNeXtConfig, hf_config.read_convnext(raw)) == cfg
    assert ("model_args" in raw) == (name == "other")


@pytest.mark.torch
def test_architectures_are_those_of_timm():
    torch = pytest.importorskip("torch")
    timm = pytest.importorskip("timm")
    for name, (depths, widths, eps) in ARCHITECTURES.items():
        with torch.device("meta"):
            model = timm.create_model(name)
        assert tuple(len(stage.blocks) for stage in model.stages) == depths
        assert tuple(stage.blocks[0].gamma.shape[0] for stage in model.stages) == widths
        assert model.stages[0].blocks[0].norm.eps == eps


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"architecture": "convnextv2_tiny"}, r"config\.architecture: 'convnextv2_tiny'"),
        ({"architecture": "convnext_tiny", "model_args": {"use_grn": True}}, "use_grn: True"),
        ({"architecture": "convnext_tiny", "model_args": {"stem": 1}}, "model_args.stem: unknown"),
        ({"architecture": "convnext_tiny", "model_args": {"ls_init_value": None}}, "ls_init_value"),
        ({"architecture": "convnext_tiny", "model_args": {"depths": 3}},
         r"config\.model_args\.depths: expected a list of whole numbers above 0 or null, got 3"),
        ({"architecture": "convnext_tiny", "model_args": {"depths": [3, 3]}},
         r"config\.model_args: 2 depths and 4 dims; every stage has both"),
        ({"architecture": "convnext_tiny", "model_args": {"dims": [8, "x"]}}, r"args\.dims: "),
        ({"architecture": "convnext_tiny", "model_args": "x"}, r"config\.model_args: expected an"),
        ({"architecture": "convnext_tiny", "pretrained_cfg": {"input_size": None}},
         r"config\.pretrained_cfg\.input_size: expected a list"),
        ({"architecture": ["convnext_tiny"]}, r"config\.architecture: expected a text"),
        ({"model_cfg": 3}, r"config\.model_cfg: expected an object"),
        ({"model_cfg": {"vision_cfg": None}}, r"config\.model_cfg\.vision_cfg: expected an object"),
        ({"model_cfg": {"vision_cfg": {"width": 768}}}, r"vision_cfg\.width: unknown"),
        ({"model_cfg": {"vision_cfg": {}}}, r"model_cfg\.vision_cfg\.timm_model_name: None"),
        ({"model_cfg": {}, "more": 1}, r"config\.more: unknown field of open_clip_config"),
        ({}, r"config\.architecture: None"),
    ],
)  # fmt: skip
def test_other_towers_are_refused(raw, message):
    with pytest.raises(UserError, match=message):
        hf_config.read_convnext(raw)


# -- the detector -------------------------------------------------------------------------------


def test_the_published_detector_refines_its_proposals():
    raw = manifests.config("deformable_detr_refine_two_stage")
    cfg = build(DetrConfig, hf_config.read_deformable_detr(raw))
    assert (cfg.levels, cfg.queries, cfg.refinement) == (4, 300, "iterative")
    assert not cfg.two_heads and cfg.box_hidden == cfg.width == 256


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"two_stage": False}, "two_stage: False"),
        ({"with_box_refine": False}, "with_box_refine: False"),
        ({"num_feature_levels": 5}, "num_feature_levels: 5"),
        ({"return_intermediate": False}, "return_intermediate"),
        ({"position_embedding_type": "learned"}, "position_embedding_type"),
        ({"decoder_layernorm": 1}, "decoder_layernorm: unknown"),
        ({"two_stage_num_proposals": None}, "two_stage_num_proposals: expected a whole number"),
        ({"encoder_attention_heads": 0}, "encoder_attention_heads: expected .* above 0"),
        ({"class_cost": "2"}, "class_cost: expected a number"),
    ],
)
def test_another_detector_is_refused(change, message):
    raw = manifests.config("deformable_detr_refine_two_stage") | change
    with pytest.raises(UserError, match=message):
        hf_config.read_deformable_detr(raw)
