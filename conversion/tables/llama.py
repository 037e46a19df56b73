"""Llama-family decoders (Vicuna, Yi, Llama-3) in the names of LlamaForCausalLM."""

from typing import Any

from conversion.engine import Drop, Entry, Rule, Table, Tied, bind

ROTARY = "recomputed from rope_theta"

# What Qwen2 and Phi-3 name alike
COMMON: tuple[Entry, ...] = (
    Rule("model.embed_tokens.weight", "embed/embedding", "v d -> v d"),
    Rule("model.layers.{l}.input_layernorm.weight", "blocks/norm1/scale", "d -> d"),
    Rule("model.layers.{l}.self_attn.o_proj.weight", "blocks/attn/o/kernel", "d (n h) -> n h d"),
    Rule("model.layers.{l}.post_attention_layernorm.weight", "blocks/norm2/scale", "d -> d"),
    Rule("model.layers.{l}.mlp.down_proj.weight", "blocks/mlp/down/kernel", "d f -> f d"),
    Rule("model.norm.weight", "norm/scale", "d -> d"),
    Drop("model.layers.{l}.self_attn.rotary_emb.inv_freq", ROTARY),
    Drop("model.rotary_emb.inv_freq", ROTARY),
)
PROJECTIONS: tuple[Entry, ...] = (
    Rule("model.layers.{l}.self_attn.q_proj.weight", "blocks/attn/q/kernel", "(n h) d -> d n h"),
    Rule("model.layers.{l}.self_attn.k_proj.weight", "blocks/attn/k/kernel", "(k h) d -> d k h"),
    Rule("model.layers.{l}.self_attn.v_proj.weight", "blocks/attn/v/kernel", "(k h) d -> d k h"),
    Rule("model.layers.{l}.mlp.gate_proj.weight", "blocks/mlp/gate/kernel", "f d -> d f"),
    Rule("model.layers.{l}.mlp.up_proj.weight", "blocks/mlp/up/kernel", "f d -> d f"),
)
HEAD = Rule("lm_head.weight", "head/kernel", "v d -> d v")
TIED_HEAD = Tied("lm_head.weight", "model.embed_tokens.weight")


def decoder(cfg: Any, *rules: Entry) -> Table:
    """COMMON, `rules` and the head of `cfg` (mg_jax.lm.LMConfig), bound to its sizes."""
    sizes = dict(
        v=cfg.vocab, d=cfg.width, f=cfg.mlp, l=cfg.layers, n=cfg.heads, k=cfg.kv_heads, h=cfg.head
    )  # fmt: skip
    return bind((*COMMON, *rules, TIED_HEAD if cfg.tied else HEAD), sizes)


def table(cfg: Any) -> Table:
    """The table of a decoder of shape `cfg` (mg_jax.lm.LMConfig)."""
    return decoder(cfg, *PROJECTIONS)
