"""DINOv2 encoders in the names of transformers' Dinov2Model and Dinov2WithRegistersModel.

Checkpoint files spell the attention `attention.attention.query`; the classes of transformers 5
spell it `attention.q_proj` in memory and rename while loading and saving. Both spellings have a
table.
"""

from typing import Any, Literal

from conversion.engine import Rule, Table, bind
from conversion.tables.vit import block, sizes

MARKS = {
    "files": "encoder.layer.0.attention.attention.query.weight",
    "transformers5": "encoder.layer.0.attention.q_proj.weight",
}

STEM = (
    Rule("embeddings.cls_token", "cls", "1 1 d -> d"),
    Rule("embeddings.mask_token", "mask_token", "1 d -> d"),
    Rule("embeddings.position_embeddings", "positions", "1 p d -> p d"),
    Rule("embeddings.patch_embeddings.projection.weight", "patch/kernel", "d c y x -> y x c d"),
    Rule("embeddings.patch_embeddings.projection.bias", "patch/bias", "d -> d"),
)
REGISTERS = (Rule("embeddings.register_tokens", "registers", "1 r d -> r d"),)


LAYER = "encoder.layer.{l}."
NORMS = ("norm1", "norm2")
BLOCK = {
    "files": block(
        LAYER, "attention.attention.query", "attention.attention.key",
        "attention.attention.value", "attention.output.dense", NORMS,
    ),
    "transformers5": block(
        LAYER, "attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj", NORMS
    ),
}  # fmt: skip
REST = (
    Rule(f"{LAYER}layer_scale1.lambda1", "blocks/scale1", "d -> d"),
    Rule(f"{LAYER}layer_scale2.lambda1", "blocks/scale2", "d -> d"),
    Rule("layernorm.weight", "norm/scale", "d -> d"),
    Rule("layernorm.bias", "norm/bias", "d -> d"),
)


def table(cfg: Any, spelling: Literal["files", "transformers5"] = "files") -> Table:
    """The table of an encoder of shape `cfg` (mg_jax.vision.vit.ViTConfig)."""
    registers = REGISTERS if cfg.registers else ()
    return bind((*STEM, *registers, *BLOCK[spelling], *REST), sizes(cfg))
