"""DINOv2 encoders in the names of transformers' Dinov2Model and Dinov2WithRegistersModel.

Checkpoint files spell the attention `attention.attention.query`; the classes of transformers 5
spell it `attention.q_proj` in memory and rename while loading and saving. Both spellings have a
table.
"""

from typing import Any, Literal

from conversion.engine import Rule, Table, bind

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


def _attention(q: str, k: str, v: str, o: str) -> tuple[Rule, ...]:
    layer = "encoder.layer.{l}.attention."
    return (
        Rule(f"{layer}{q}.weight", "blocks/attn/q/kernel", "(n h) d -> d n h"),
        Rule(f"{layer}{q}.bias", "blocks/attn/q/bias", "(n h) -> n h"),
        Rule(f"{layer}{k}.weight", "blocks/attn/k/kernel", "(n h) d -> d n h"),
        Rule(f"{layer}{k}.bias", "blocks/attn/k/bias", "(n h) -> n h"),
        Rule(f"{layer}{v}.weight", "blocks/attn/v/kernel", "(n h) d -> d n h"),
        Rule(f"{layer}{v}.bias", "blocks/attn/v/bias", "(n h) -> n h"),
        Rule(f"{layer}{o}.weight", "blocks/attn/o/kernel", "d (n h) -> n h d"),
        Rule(f"{layer}{o}.bias", "blocks/attn/o/bias", "d -> d"),
    )


ATTENTION = {
    "files": _attention("attention.query", "attention.key", "attention.value", "output.dense"),
    "transformers5": _attention("q_proj", "k_proj", "v_proj", "o_proj"),
}

REST = (
    Rule("encoder.layer.{l}.norm1.weight", "blocks/norm1/scale", "d -> d"),
    Rule("encoder.layer.{l}.norm1.bias", "blocks/norm1/bias", "d -> d"),
    Rule("encoder.layer.{l}.layer_scale1.lambda1", "blocks/scale1", "d -> d"),
    Rule("encoder.layer.{l}.norm2.weight", "blocks/norm2/scale", "d -> d"),
    Rule("encoder.layer.{l}.norm2.bias", "blocks/norm2/bias", "d -> d"),
    Rule("encoder.layer.{l}.mlp.fc1.weight", "blocks/mlp/up/kernel", "f d -> d f"),
    Rule("encoder.layer.{l}.mlp.fc1.bias", "blocks/mlp/up/bias", "f -> f"),
    Rule("encoder.layer.{l}.mlp.fc2.weight", "blocks/mlp/down/kernel", "d f -> f d"),
    Rule("encoder.layer.{l}.mlp.fc2.bias", "blocks/mlp/down/bias", "d -> d"),
    Rule("encoder.layer.{l}.layer_scale2.lambda1", "blocks/scale2", "d -> d"),
    Rule("layernorm.weight", "norm/scale", "d -> d"),
    Rule("layernorm.bias", "norm/bias", "d -> d"),
)


def table(cfg: Any, spelling: Literal["files", "transformers5"] = "files") -> Table:
    """The table of an encoder of shape `cfg` (mg_jax.vision.vit.ViTConfig)."""
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
        r=cfg.registers,
    )
    registers = REGISTERS if cfg.registers else ()
    return bind((*STEM, *registers, *ATTENTION[spelling], *REST), sizes)
