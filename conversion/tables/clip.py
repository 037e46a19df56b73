"""CLIP's vision tower in the names of transformers, alone or inside a CLIPModel.

Published files put `vision_model.` before every name; transformers 5 builds CLIPVisionModel
without it. `pre_layrnorm` is upstream's spelling. A text tower and the projections to the joint
space may be there and are left out: the systems here read patch features.
"""

from typing import Any, Literal

from conversion.engine import Drop, Entry, Rule, Table, bind, under

NO_TEXT = "text tower: a language model of its own reads the text here"
NO_JOINT = "joint space of pictures and texts: patch features are read before it"
RECOMPUTED = "indexes 0, 1, 2, ...; counted anew"
TEXT_LAYERS = 64  # more than any published text tower has

MARKS = {
    "files": "vision_model.embeddings.class_embedding",
    "transformers5": "embeddings.class_embedding",
}

TOWER: tuple[Entry, ...] = (
    Rule("embeddings.class_embedding", "cls", "d -> d"),
    Rule("embeddings.patch_embedding.weight", "patch/kernel", "d c y x -> y x c d"),
    Rule("embeddings.position_embedding.weight", "positions", "p d -> p d"),
    Drop("embeddings.position_ids", RECOMPUTED),
    Rule("encoder.layers.{l}.self_attn.k_proj.weight", "blocks/attn/k/kernel", "(n h) d -> d n h"),
    Rule("encoder.layers.{l}.self_attn.k_proj.bias", "blocks/attn/k/bias", "(n h) -> n h"),
    Rule("encoder.layers.{l}.self_attn.v_proj.weight", "blocks/attn/v/kernel", "(n h) d -> d n h"),
    Rule("encoder.layers.{l}.self_attn.v_proj.bias", "blocks/attn/v/bias", "(n h) -> n h"),
    Rule("encoder.layers.{l}.self_attn.q_proj.weight", "blocks/attn/q/kernel", "(n h) d -> d n h"),
    Rule("encoder.layers.{l}.self_attn.q_proj.bias", "blocks/attn/q/bias", "(n h) -> n h"),
    Rule(
        "encoder.layers.{l}.self_attn.out_proj.weight", "blocks/attn/o/kernel", "d (n h) -> n h d"
    ),
    Rule("encoder.layers.{l}.self_attn.out_proj.bias", "blocks/attn/o/bias", "d -> d"),
    Rule("encoder.layers.{l}.layer_norm1.weight", "blocks/norm1/scale", "d -> d"),
    Rule("encoder.layers.{l}.layer_norm1.bias", "blocks/norm1/bias", "d -> d"),
    Rule("encoder.layers.{l}.mlp.fc1.weight", "blocks/mlp/up/kernel", "f d -> d f"),
    Rule("encoder.layers.{l}.mlp.fc1.bias", "blocks/mlp/up/bias", "f -> f"),
    Rule("encoder.layers.{l}.mlp.fc2.weight", "blocks/mlp/down/kernel", "d f -> f d"),
    Rule("encoder.layers.{l}.mlp.fc2.bias", "blocks/mlp/down/bias", "d -> d"),
    Rule("encoder.layers.{l}.layer_norm2.weight", "blocks/norm2/scale", "d -> d"),
    Rule("encoder.layers.{l}.layer_norm2.bias", "blocks/norm2/bias", "d -> d"),
    Rule("post_layernorm.weight", "norm/scale", "d -> d"),
    Rule("post_layernorm.bias", "norm/bias", "d -> d"),
)
_TEXT_LAYER = [
    f"{part}.{kind}"
    for part in """self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.out_proj
    layer_norm1 layer_norm2 mlp.fc1 mlp.fc2""".split()
    for kind in ("weight", "bias")
]
REST: tuple[Entry, ...] = (
    Drop("text_model.embeddings.token_embedding.weight", NO_TEXT),
    Drop("text_model.embeddings.position_embedding.weight", NO_TEXT),
    Drop("text_model.embeddings.position_ids", NO_TEXT),
    *(Drop(f"text_model.encoder.layers.{{t}}.{part}", NO_TEXT) for part in _TEXT_LAYER),
    Drop("text_model.final_layer_norm.weight", NO_TEXT),
    Drop("text_model.final_layer_norm.bias", NO_TEXT),
    Drop("text_projection.weight", NO_JOINT),
    Drop("visual_projection.weight", NO_JOINT),
    Drop("logit_scale", NO_JOINT),
)


def tower(cfg: Any, norm_pre: str = "pre_layrnorm") -> Table:
    """The tower of shape `cfg` (mg_jax.vision.vit.ViTConfig) without any prefix."""
    first = (
        Rule(f"{norm_pre}.weight", "norm_pre/scale", "d -> d"),
        Rule(f"{norm_pre}.bias", "norm_pre/bias", "d -> d"),
    )
    sizes = dict(
        d=cfg.width,
        f=round(cfg.width * cfg.mlp_ratio),
        l=cfg.layers,
        n=cfg.heads,
        h=cfg.width // cfg.heads,
        c=3,
        y=cfg.patch,
        x=cfg.patch,
        p=1 + (cfg.image_size // cfg.patch) ** 2,
    )
    return bind((*first, *TOWER), sizes)


def rest() -> Table:
    """What a model of pictures and texts holds besides its vision tower: nothing that is kept."""
    return bind(REST, {"t": TEXT_LAYERS})


def table(cfg: Any, spelling: Literal["files", "transformers5"] = "files") -> Table:
    """The table of a tower of shape `cfg` (mg_jax.vision.vit.ViTConfig, kind "clip")."""
    if spelling == "transformers5":
        return tower(cfg)
    return under("vision_model.", "", tower(cfg)) + rest()
