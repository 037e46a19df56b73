"""Phi-3 decoders in the names of Phi3ForCausalLM: q, k, v in one tensor, gate and up in another."""

from typing import Any

from conversion.engine import Rule, Table
from conversion.tables.llama import decoder

FUSED = (
    Rule(
        "model.layers.{l}.self_attn.qkv_proj.weight",
        ("blocks/attn/q/kernel", "blocks/attn/k/kernel", "blocks/attn/v/kernel"),
        ("(n h) d -> d n h", "(k h) d -> d k h", "(k h) d -> d k h"),
    ),
    Rule(
        "model.layers.{l}.mlp.gate_up_proj.weight",
        ("blocks/mlp/gate/kernel", "blocks/mlp/up/kernel"),
        ("f d -> d f", "f d -> d f"),
    ),
)


def table(cfg: Any) -> Table:
    """The table of a decoder of shape `cfg` (mg_jax.lm.LMConfig)."""
    return decoder(cfg, *FUSED)
