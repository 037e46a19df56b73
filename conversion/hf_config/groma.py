"""Groma's nested config.json, of either published layout, and its detector's."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from conversion.hf_config.language import read_llama, write_llama
from conversion.hf_config.sections import (
    COUNT,
    GROUP,
    KINDS,
    NUMBER,
    Section,
    read_section,
    write_section,
)
from conversion.hf_config.vision import read_dinov2, write_dinov2
from mg_jax.config import build, to_dict
from mg_jax.errors import UserError

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
        "class_cost": ("class_cost", 1, NUMBER),
        "bbox_cost": ("box_cost", 5, NUMBER),
        "giou_cost": ("giou_cost", 2, NUMBER),
        "cls_loss_coefficient": ("class_weight", 2, NUMBER),
        "bbox_loss_coefficient": ("box_weight", 5, NUMBER),
        "giou_loss_coefficient": ("giou_weight", 2, NUMBER),
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
        "num_new_token": ("new_tokens", 114, COUNT),
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
# Fields of ours that say how to compute or train; upstream's config.json has no place for them
NOT_WRITTEN = frozenset(
    """dtype remat scan region_order frozen_dropout encoder_gradient detection_weight""".split()
)


def read_proposer(raw: Mapping[str, Any], where: str = "config") -> dict[str, Any]:
    """Values of mg_jax.models.detr.DetrConfig, with the behaviour of the published code."""
    raw = dict(raw)
    proposals = raw.pop("two_stage_num_proposals", 300)
    values = read_section(raw, DEFORMABLE_DETR, where)
    check_levels(values, where)
    if proposals != values["queries"]:
        raise UserError(
            f"{where}.two_stage_num_proposals: {proposals} differs from num_queries "
            f"{values['queries']}; every proposal needs its query"
        )
    named = GROUP.check(raw.get("id2label", {0: ""}), f"{where}.id2label")
    labels = raw.get("num_labels", len(named))
    if labels != 1:
        raise UserError(f"{where}.id2label: {labels} classes; the proposer has one, objectness")
    # the published code: one map for all levels, no refinement inside the decoder (spec 0.3, 0.4)
    return {**values, "levels_from": "mean", "refinement": "none", "two_heads": True}


def check_levels(values: Mapping[str, Any], where: str) -> None:
    """Raises UserError for a number of feature maps that no proposer makes."""
    if values["levels"] not in (1, 2, 3, 4):
        raise UserError(f"{where}.num_feature_levels: {values['levels']}, expected 1 to 4")


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
    hard = _hard_coded(raw.pop("golden_overrides", {}), f"{where}.golden_overrides")
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


def _hard_coded(stated: Any, where: str) -> dict[str, Any]:
    GROUP.check(stated, where)
    return {
        ours: KINDS[type(value)].check(stated.get(theirs, value), f"{where}.{theirs}")
        for theirs, (ours, value) in HARD_CODED.items()
    }


def write_groma(cfg: Any) -> dict[str, Any]:
    """The config.json of GromaModel for a GromaConfig.

    Raises UserError naming a choice of ours that the published code does not compute: a model
    trained from scratch in the correct form differs from it (docs/groma.md).
    """
    raw = write_section(to_dict(cfg) | {"lm": {}, "perceiver": {}}, GROMA) | {
        "architectures": ["GromaModel"],
        "model_type": "groma",
        "llm_cfg": write_llama(cfg.lm),
        "perceiver_cfg": _write_perceiver(cfg),
        "vocab_size": cfg.lm.vocab + cfg.new_tokens,
    }
    raw |= _overrides(cfg)
    _check(cfg, raw, tuple(to_dict(cfg)))
    return raw


def write_groma_detector(cfg: Any) -> dict[str, Any]:
    """The config.json of CustomDDETRModel for a GromaConfig. Raises UserError as `write_groma`."""
    raw = {"architectures": ["CustomDDETRModel"], **_write_perceiver(cfg), **_overrides(cfg)}
    _check(cfg, raw, ("vision", "proposer", "image_size"))
    return raw


def _overrides(cfg: Any) -> dict[str, Any]:
    """Sizes that upstream hard-codes, where a small instance has others."""
    mine = {"image": cfg.image_size, "hidden": cfg.regions.hidden, "scale": cfg.regions.scale}
    if mine == dict(HARD_CODED.values()):
        return {}
    return {"golden_overrides": {theirs: mine[ours] for theirs, (ours, _) in HARD_CODED.items()}}


def _write_perceiver(cfg: Any) -> dict[str, Any]:
    if cfg.vision.position_rule != "scale_offset":
        raise _unwritten("vision.position_rule", cfg.vision.position_rule, "scale_offset")
    vision = write_dinov2(dataclasses.replace(cfg.vision, position_rule="size"))
    proposer = {
        "model_type": "deformable_detr",
        **write_section(to_dict(cfg.proposer), DEFORMABLE_DETR),
        "two_stage_num_proposals": cfg.proposer.queries,
        "id2label": {"0": "LABEL_0"},
        "label2id": {"LABEL_0": 0},
    }
    return {
        "model_type": "ddetr",
        "vis_output_layer": -1,
        "zs_weight_path": None,
        "vis_encoder_cfg": vision,
        "ddetr_cfg": proposer,
    }


def _check(cfg: Any, raw: Mapping[str, Any], fields: tuple[str, ...]) -> None:
    """Raises UserError when `raw` means another model than `cfg` in one of `fields`."""
    means = to_dict(build(type(cfg), read_groma(raw), "config.json"))
    for name in fields:
        for path, mine, theirs in _differences(to_dict(cfg)[name], means[name], name):
            raise _unwritten(path, mine, theirs)


def _differences(mine: Any, theirs: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(mine, dict) and isinstance(theirs, dict):
        for name in mine:
            yield from _differences(mine[name], theirs.get(name), f"{path}.{name}")
    elif mine != theirs and path.rsplit(".", 1)[-1] not in NOT_WRITTEN:
        yield path, mine, theirs


def _unwritten(path: str, mine: Any, theirs: Any) -> UserError:
    return UserError(
        f"{path}: {mine!r} has no place in Groma's config.json; the published code computes "
        f"{theirs!r}, so the weights cannot be used with it"
    )
