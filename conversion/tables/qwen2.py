"""Qwen2 and Qwen2.5 decoders in the names of Qwen2ForCausalLM: Llama's, with q, k, v biases."""

from typing import Any

from conversion.engine import Rule, Table
from conversion.tables.llama import PROJECTIONS, decoder

BIASES = (
    Rule("model.layers.{l}.self_attn.q_proj.bias", "blocks/attn/q/bias", "(n h) -> n h"),
    Rule("model.layers.{l}.self_attn.k_proj.bias", "blocks/attn/k/bias", "(k h) -> k h"),
    Rule("model.layers.{l}.self_attn.v_proj.bias", "blocks/attn/v/bias", "(k h) -> k h"),
)


def table(cfg: Any) -> Table:
    """The table of a decoder of shape `cfg` (mg_jax.lm.LMConfig)."""
    return decoder(cfg, *PROJECTIONS, *BIASES)
