"""Upstream's config.json -> ours, strictly.

Upstream writes a config as the difference from its classes' defaults, so a missing field means the
default of transformers 4.32 (Groma spec 1.1). A field is read, or must have a value that our model
computes, or is listed as inert; anything else is an error, since it may change the mathematics.
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mg_jax.errors import UserError

# Written by every transformers config class; none reaches a forward pass of ours.
COMMON_INERT = frozenset(
    """_attn_implementation _attn_implementation_autoset _commit_hash _name_or_path
    add_cross_attention architectures attn_implementation auto_map bad_words_ids
    begin_suppress_tokens chunk_size_feed_forward cross_attention_hidden_size
    decoder_start_token_id diversity_penalty do_sample dtype early_stopping
    encoder_no_repeat_ngram_size exponential_decay_length_penalty finetuning_task
    forced_bos_token_id forced_eos_token_id is_decoder is_encoder_decoder label2id length_penalty
    max_length min_length model_type no_repeat_ngram_size num_beam_groups num_beams
    num_return_sequences output_attentions output_hidden_states output_scores prefix problem_type
    remove_invalid_values repetition_penalty return_dict return_dict_in_generate sep_token_id
    suppress_tokens task_specific_params temperature tf_legacy_loss tie_encoder_decoder
    tokenizer_class top_k top_p torch_dtype torchscript transformers_version typical_p
    use_bfloat16 use_cache""".split()
)


@dataclasses.dataclass(frozen=True)
class Section:
    """One config class: `read` {theirs: (ours, default)}, `fixed` {theirs: (default, allowed...)},
    `inert` names besides COMMON_INERT."""

    name: str
    read: Mapping[str, tuple[str, Any]]
    fixed: Mapping[str, tuple[Any, ...]]
    inert: frozenset[str] = frozenset()


LLAMA = Section(
    "LlamaConfig",
    read={
        "vocab_size": ("vocab", 32000),
        "hidden_size": ("width", 4096),
        "intermediate_size": ("mlp", 11008),
        "num_hidden_layers": ("layers", 32),
        "num_attention_heads": ("heads", 32),
        "num_key_value_heads": ("kv_heads", None),
        "head_dim": ("head", None),
        "rms_norm_eps": ("eps", 1e-6),
        "rope_theta": ("rope_theta", 10000.0),
        "max_position_embeddings": ("max_positions", 2048),
        "tie_word_embeddings": ("tied", False),
    },
    fixed={
        "hidden_act": ("silu",),
        "rope_scaling": (None,),
        "attention_bias": (False,),
        "attention_dropout": (0.0,),
        "mlp_bias": (False,),
        "pruned_heads": ({},),
    },
    inert=frozenset(
        # pretraining_tp splits a product into a sum of parts: the same numbers but for rounding
        "bos_token_id eos_token_id pad_token_id initializer_range pretraining_tp id2label".split()
    ),
)
DINOV2 = Section(
    "Dinov2Config",
    read={
        "hidden_size": ("width", 768),
        "num_hidden_layers": ("layers", 12),
        "num_attention_heads": ("heads", 12),
        "mlp_ratio": ("mlp_ratio", 4),
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
        "num_channels": (3,),
        "pruned_heads": ({},),
    },
    # the backbone fields only choose outputs of a class that Groma does not use
    inert=frozenset(
        """initializer_range apply_layernorm out_features out_indices reshape_hidden_states
        stage_names bos_token_id eos_token_id pad_token_id id2label tie_word_embeddings""".split()
    ),
)
DEFORMABLE_DETR = Section(
    "DeformableDetrConfig",
    read={
        "d_model": ("width", 256),
        "encoder_layers": ("encoder_layers", 6),
        "decoder_layers": ("decoder_layers", 6),
        "encoder_attention_heads": ("encoder_heads", 8),
        "decoder_attention_heads": ("decoder_heads", 8),
        "encoder_ffn_dim": ("encoder_ffn", 1024),
        "decoder_ffn_dim": ("decoder_ffn", 1024),
        "encoder_n_points": ("encoder_points", 4),
        "decoder_n_points": ("decoder_points", 4),
        "num_queries": ("queries", 300),
        "num_feature_levels": ("levels", 4),
        "dropout": ("dropout", 0.1),
        "class_cost": ("class_cost", 1),
        "bbox_cost": ("box_cost", 5),
        "giou_cost": ("giou_cost", 2),
        "cls_loss_coefficient": ("class_weight", 2),
        "bbox_loss_coefficient": ("box_weight", 5),
        "giou_loss_coefficient": ("giou_weight", 2),
        "focal_alpha": ("focal_alpha", 0.25),
    },
    fixed={
        "two_stage": (False, True),
        "with_box_refine": (False, True),
        "auxiliary_loss": (False, True),
        "activation_function": ("relu",),
        "attention_dropout": (0.0,),
        "activation_dropout": (0.0,),
        "encoder_layerdrop": (0.0,),
        "position_embedding_type": ("sine",),
        "pruned_heads": ({},),
    },
    # upstream hands the transformer the encoder's maps, so nothing of the backbone is built; mask,
    # dice and eos weights belong to losses it does not compute
    inert=frozenset(
        """backbone backbone_config backbone_kwargs dice_loss_coefficient dilation
        disable_custom_kernels eos_coefficient init_std init_xavier_std mask_loss_coefficient
        max_position_embeddings num_channels use_pretrained_backbone use_timm_backbone
        bos_token_id eos_token_id pad_token_id id2label num_labels tie_word_embeddings
        decoder_layerdrop""".split()
    ),
)
PERCEIVER = Section(
    "CustomDDETRConfig",
    read={"vis_encoder_cfg": ("vision", {}), "ddetr_cfg": ("proposer", {})},
    fixed={"vis_output_layer": (-1,), "pruned_heads": ({},)},
    # zs_weight_path belongs to a classifier that upstream never calls
    inert=frozenset("zs_weight_path bos_token_id eos_token_id pad_token_id id2label".split())
    | {"tie_word_embeddings"},
)
GROMA = Section(
    "GromaConfig",
    read={
        "llm_cfg": ("lm", {}),
        "perceiver_cfg": ("perceiver", {}),
        "num_new_token": ("new_tokens", 114),
        # class defaults of early revisions were 0: far too many proposals (spec 1.1)
        "nms_thres": ("nms_threshold", 0.6),
        "box_score_thres": ("score_threshold", 0.15),
        "max_region_num": ("max_regions", 100),
    },
    fixed={"pruned_heads": ({},)},
    # vocab_size is computed anew from the two tables on load
    inert=frozenset(
        "vocab_size bos_token_id eos_token_id pad_token_id id2label tie_word_embeddings".split()
    ),
)
# Numbers that upstream hard-codes: theirs -> (ours, value). Recorded small instances state their
# own in `golden_overrides`, beside notes on how they were made.
HARD_CODED = {"image": ("image", 448), "mid": ("hidden", 1024), "roi_scale": ("scale", 448.0)}


def read_section(raw: Mapping[str, Any], section: Section, where: str) -> dict[str, Any]:
    """The fields of one config class under our names, defaults filled in.

    Raises UserError naming a field that is unknown or has a value our model does not compute.
    """
    for name, value in raw.items():
        if name in section.fixed:
            default, *others = section.fixed[name]
            allowed = others or [default]
            if value not in allowed:
                raise UserError(f"{where}.{name}: {value!r} is not supported, only {allowed[0]!r}")
        elif name not in section.read and name not in section.inert | COMMON_INERT:
            raise UserError(
                f"{where}.{name}: unknown field of {section.name}; it may change the model, so it "
                "is not ignored (list it in conversion/hf_config.py once it is known to be inert)"
            )
    for name, (default, *others) in section.fixed.items():
        if name not in raw and others and default not in others:
            raise UserError(
                f"{where}.{name}: missing, which means {default!r}; only {others[0]!r} is supported"
            )
    return {ours: raw.get(theirs, default) for theirs, (ours, default) in section.read.items()}


def read_llama(raw: Mapping[str, Any], where: str = "config") -> dict[str, Any]:
    """Values of mg_jax.lm.LMConfig."""
    raw = dict(raw)
    rope = raw.pop("rope_parameters", None) or {}  # the spelling of transformers 5
    if rope.get("rope_type", "default") != "default":
        raise UserError(f"{where}.rope_parameters: {rope!r} is not supported, only plain rope")
    if "rope_theta" in rope:
        raw["rope_theta"] = rope["rope_theta"]
    values = read_section(raw, LLAMA, where)
    values["kv_heads"] = values["kv_heads"] or values["heads"]
    values["head"] = values["head"] or values["width"] // values["heads"]
    return values


def read_dinov2(raw: Mapping[str, Any], where: str = "config") -> dict[str, Any]:
    """Values of mg_jax.vision.vit.ViTConfig."""
    return {"kind": "dinov2", **read_section(raw, DINOV2, where)}


def read_proposer(raw: Mapping[str, Any], where: str = "config") -> dict[str, Any]:
    """Values of mg_jax.models.detr.DetrConfig, with the behaviour of the published code."""
    raw = dict(raw)
    proposals = raw.pop("two_stage_num_proposals", 300)
    values = read_section(raw, DEFORMABLE_DETR, where)
    if proposals != values["queries"]:
        raise UserError(
            f"{where}.two_stage_num_proposals: {proposals} differs from num_queries "
            f"{values['queries']}; every proposal needs its query"
        )
    labels = raw.get("num_labels", len(raw.get("id2label", {0: ""})))
    if labels != 1:
        raise UserError(f"{where}.id2label: {labels} classes; the proposer has one, objectness")
    # the published code: one map for all levels, no refinement inside the decoder (spec 0.3, 0.4)
    return {**values, "levels_from": "mean", "refinement": "none", "two_heads": True}


def read_perceiver(raw: Mapping[str, Any], where: str = "config") -> dict[str, Any]:
    """{"vision": ..., "proposer": ...} of the detector's config (det-pretrain, or nested in 7B)."""
    values = read_section(raw, PERCEIVER, where)
    vision = read_dinov2(values["vision"], f"{where}.vis_encoder_cfg")
    proposer = read_proposer(values["proposer"], f"{where}.ddetr_cfg")
    # the published weights were trained with this rule (spec 2.1)
    vision["position_rule"] = "scale_offset"
    return {"vision": vision, "proposer": proposer}


def read_groma(raw: Mapping[str, Any], where: str = "config.json") -> dict[str, Any]:
    """Values of mg_jax.models.groma.GromaConfig for a config of either published layout.

    The detector's layout leaves the language model and region encoder at their defaults. Raises
    UserError for another system's config or an unsupported field.
    """
    raw = {k: v for k, v in raw.items() if not k.startswith("golden_full_")}
    stated = raw.pop("golden_overrides", {})
    hard = {ours: stated.get(theirs, value) for theirs, (ours, value) in HARD_CODED.items()}
    kind = raw.get("model_type")
    if kind == "ddetr":
        values = read_perceiver(raw, where)
    elif kind == "groma":
        values = read_section(raw, GROMA, where)
        values |= read_perceiver(values.pop("perceiver"), f"{where}.perceiver_cfg")
        values["lm"] = read_llama(values["lm"], f"{where}.llm_cfg")
    else:
        raise UserError(f"{where}: model_type {kind!r} is not Groma's ('groma' or 'ddetr')")
    values["image_size"] = hard.pop("image")
    values["regions"] = {
        **hard,
        "width": values["vision"]["width"],
        "patch": values["vision"]["patch"],
        "box_format": "cxcywh",  # as the published code feeds RoIAlign (spec 0.1)
        "strides": "published",
    }
    return values


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    """A config.json as a dict. Raises UserError when it is missing or not JSON."""
    path = Path(path)
    try:
        raw = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: not JSON ({error})") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path}: expected an object of fields")
    return raw
