"""CLIP's vision tower in the names of transformers, alone or inside a CLIPModel.

Published files put `vision_model.` before every name; transformers 5 builds CLIPVisionModel
without it. `pre_layrnorm` is upstream's spelling. A text tower and the projections to the joint
space may be there and are left out: the systems here read patch features.
"""

from typing import Any, Literal

from conversion.engine import Drop, Entry, Rule, Table, bind, under
from conversion.tables.vit import block, sizes

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
    *block(
        "encoder.layers.{l}.", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
        "self_attn.out_proj", ("layer_norm1", "layer_norm2"),
    ),
    Rule("post_layernorm.weight", "norm/scale", "d -> d"),
    Rule("post_layernorm.bias", "norm/bias", "d -> d"),
)  # fmt: skip
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
    return bind((*first, *TOWER), sizes(cfg))


def rest() -> Table:
    """What a model of pictures and texts holds besides its vision tower: nothing that is kept."""
    return bind(REST, {"t": TEXT_LAYERS})


def table(cfg: Any, spelling: Literal["files", "transformers5"] = "files") -> Table:
    """The table of a tower of shape `cfg` (mg_jax.vision.vit.ViTConfig, kind "clip")."""
    if spelling == "transformers5":
        return tower(cfg)
    return under("vision_model.", "", tower(cfg)) + rest()
