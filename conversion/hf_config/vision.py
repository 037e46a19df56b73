"""Vision towers: config.json <-> values of ViTConfig and ConvNeXtConfig."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from conversion.hf_config.sections import (
    COUNT,
    GROUP,
    NUMBER,
    Section,
    read_section,
    write_section,
)
from mg_jax.config import to_dict
from mg_jax.errors import UserError

_TOKENS = "bos_token_id eos_token_id pad_token_id id2label tie_word_embeddings"
DINOV2 = Section(
    "Dinov2Config",
    read={
        "hidden_size": ("width", 768),
        "num_hidden_layers": ("layers", 12),
        "num_attention_heads": ("heads", 12),
        "mlp_ratio": ("mlp_ratio", 4, NUMBER),
        "patch_size": ("patch", 14),
        "image_size": ("image_size", 224),
        "layer_norm_eps": ("eps", 1e-6),
        "layerscale_value": ("layer_scale", 1.0),
    },
    fixed={
        "hidden_act": ("gelu",),
        "hidden_dropout_prob": (0.0,),
        "attention_probs_dropout_prob": (0.0,),
        "drop_path_rate": (0.0,),
        "qkv_bias": (True,),
        "use_swiglu_ffn": (False,),
        "use_mask_token": (True,),
        "num_channels": (3,),
        "pruned_heads": ({},),
    },
    # the backbone fields only choose outputs of a class that is not used here
    inert=frozenset(
        f"""initializer_range apply_layernorm out_features out_indices reshape_hidden_states
        stage_names {_TOKENS}""".split()
    ),
)
DINOV2_REGISTERS = dataclasses.replace(
    DINOV2,
    name="Dinov2WithRegistersConfig",
    read={
        **DINOV2.read,
        "patch_size": ("patch", 16),
        "num_register_tokens": ("registers", 4, COUNT),
    },
    # in the published files alone: the class has both built in
    fixed={**DINOV2.fixed, "interpolate_antialias": (True,), "interpolate_offset": (0.0,)},
)
CLIP = Section(
    "CLIPVisionConfig",
    read={
        "hidden_size": ("width", 768),
        "intermediate_size": ("hidden", 3072),
        "num_hidden_layers": ("layers", 12),
        "num_attention_heads": ("heads", 12),
        "patch_size": ("patch", 32),
        "image_size": ("image_size", 224),
        "hidden_act": ("activation", "quick_gelu"),
        "layer_norm_eps": ("eps", 1e-5),
    },
    fixed={
        "attention_dropout": (0.0,),
        "dropout": (0.0,),
        "num_channels": (3,),
        "pruned_heads": ({},),
    },
    inert=frozenset(f"initializer_range initializer_factor projection_dim {_TOKENS}".split()),
)
OWLV2 = dataclasses.replace(
    CLIP,
    name="Owlv2VisionConfig",
    read={**CLIP.read, "image_size": ("image_size", 768), "patch_size": ("patch", 16)},
)
# A model of pictures and texts: only its vision tower is kept, so the rest is inert.
JOINT_INERT = frozenset(
    f"""text_config text_config_dict vision_config_dict projection_dim logit_scale_init_value
    initializer_factor {_TOKENS}""".split()
)
JOINT_CLIP = Section(
    "CLIPConfig", {"vision_config": ("vision", {})}, {"pruned_heads": ({},)}, JOINT_INERT
)
JOINT_OWLV2 = dataclasses.replace(JOINT_CLIP, name="Owlv2Config")


def read_dinov2(raw: Mapping[str, Any], where: str = "config") -> dict[str, Any]:
    """Values of mg_jax.vision.vit.ViTConfig from a Dinov2Config or Dinov2WithRegistersConfig.

    Raises UserError naming a field that is unknown or asks for what the model does not compute.
    """
    kinds = ("dinov2", "dinov2_with_registers")
    kind = raw.get("model_type", kinds["num_register_tokens" in raw])
    if kind not in kinds:
        raise UserError(f"{where}.model_type: {kind!r}, expected {kinds[0]!r} or {kinds[1]!r}")
    registers = kind == kinds[1]
    values = read_section(raw, DINOV2_REGISTERS if registers else DINOV2, where)
    hidden = values["width"] * values["mlp_ratio"]
    if int(hidden) != round(hidden):
        raise UserError(
            f"{where}.mlp_ratio: {values['mlp_ratio']!r} of hidden_size {values['width']} is "
            f"{hidden}, not a whole number"
        )
    # with registers, transformers antialiases the positions
    rule = "size_antialias" if registers else "size"
    return {"kind": "dinov2", "registers": 0, **values, "position_rule": rule}


def write_dinov2(cfg: Any) -> dict[str, Any]:
    """The config.json of Dinov2Model for a ViTConfig, or of Dinov2WithRegistersModel.

    Raises UserError where the class computes something else.
    """
    if cfg.registers:
        section, kind, name = DINOV2_REGISTERS, "dinov2_with_registers", "Dinov2WithRegistersModel"
    else:
        section, kind, name = DINOV2, "dinov2", "Dinov2Model"
    values = to_dict(cfg)
    if float(cfg.mlp_ratio).is_integer():  # the class takes no 4.0
        values["mlp_ratio"] = int(cfg.mlp_ratio)
    return _write(values, section, kind, name, read_dinov2)


def read_clip(raw: Mapping[str, Any], where: str = "config") -> dict[str, Any]:
    """Values of ViTConfig from a CLIPVisionConfig, or from the vision part of a CLIPConfig.

    Raises UserError naming a field that is unknown or asks for what the model does not compute.
    """
    return _read_tower(raw, CLIP, JOINT_CLIP, where)


def write_clip(cfg: Any) -> dict[str, Any]:
    """The config.json of CLIPVisionModel for a ViTConfig. Raises UserError where it has none."""
    values = {**to_dict(cfg), "hidden": cfg.hidden}
    return _write(values, CLIP, "clip_vision_model", "CLIPVisionModel", read_clip)


def read_owlv2(raw: Mapping[str, Any], where: str = "config") -> dict[str, Any]:
    """Values of ViTConfig from an Owlv2VisionConfig, or from the vision part of an Owlv2Config.

    Raises UserError as `read_clip`.
    """
    return _read_tower(raw, OWLV2, JOINT_OWLV2, where)


def write_owlv2(cfg: Any) -> dict[str, Any]:
    """The config.json of Owlv2VisionModel for a ViTConfig. Raises UserError where it has none."""
    values = {**to_dict(cfg), "hidden": cfg.hidden}
    return _write(values, OWLV2, "owlv2_vision_model", "Owlv2VisionModel", read_owlv2)


def _read_tower(
    raw: Mapping[str, Any], section: Section, joint: Section, where: str
) -> dict[str, Any]:
    kind = section.name.removesuffix("VisionConfig").lower()
    if raw.get("model_type", kind if "vision_config" in raw else None) == kind:
        vision = read_section(raw, joint, where)["vision"]
        name = "vision_config"
        if raw.get("vision_config_dict") is not None:
            # an older spelling; where both are, transformers takes this one
            vision, name = raw["vision_config_dict"], "vision_config_dict"
        where = f"{where}.{name}"
        raw = GROUP.check(vision, where)
    values = read_section(raw, section, where)
    if values["activation"] not in ("quick_gelu", "gelu"):
        raise UserError(
            f"{where}.hidden_act: {values['activation']!r} is not supported, only 'quick_gelu' and "
            "'gelu'"
        )
    ratio = values.pop("hidden") / values["width"]
    return {"kind": "clip", "registers": 0, **values, "mlp_ratio": ratio, "position_rule": "size"}


def _write(
    values: Mapping[str, Any],
    section: Section,
    model_type: str,
    architecture: str,
    read: Callable[[Mapping[str, Any]], dict[str, Any]],
) -> dict[str, Any]:
    """The fields of `values`; an error where reading them back would give another model."""
    raw = {"model_type": model_type, **write_section(values, section)}
    for name, value in read(raw).items():
        mine, theirs = values[name], value
        if name == "mlp_ratio":  # two ratios may give one width
            mine, theirs = (round(values["width"] * ratio) for ratio in (mine, theirs))
        if mine != theirs:
            raise UserError(
                f"vision.{name}: {values[name]!r} has no place in the config.json of "
                f"{architecture}, which means {value!r}"
            )
    return {"architectures": [architecture], **raw}
