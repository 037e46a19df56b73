"""One decoder language model by config: Llama (Vicuna, Yi, Llama-3), Qwen2.5 and Phi-3.

`embed` ids, `__call__` on embeddings (with or without a cache), `logits` of hidden states. The
caller owns the joining of visual vectors (models/vlm.py).
"""

import dataclasses
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen import initializers as init
from jaxtyping import Array, Bool, Float, Int

from mg_jax import fused
from mg_jax.attention import (
    KVCache,
    RopeScaling,
    attend,
    attention_map,
    attention_mask,
    mean_attention,
    rope,
    rope_frequencies,
    write_rows,
)
from mg_jax.nn import Embed, Linear, RMSNorm, fan_in_init, stack, unrolled
from mg_jax.sharding import shard


@dataclasses.dataclass(frozen=True)
class LMConfig:
    """Shape of a decoder. `vocab` is the stored table; the output head is that table if `tied`.

    `window`: keys that a query sees, itself counted, in the layers from `window_from` on. `quant`:
    type of the kernels (nn.Linear), "int8" or "int4" to answer with. `attention`: "plain" keeps all
    logits in memory, "fused" does not (fused.py), "auto" is the latter where it is faster.
    """

    vocab: int = 32000
    width: int = 4096
    mlp: int = 11008
    layers: int = 32
    heads: int = 32
    kv_heads: int = 32
    head: int = 128
    eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    max_positions: int = 4096
    tied: bool = False
    qkv_bias: bool = False
    window: int | None = None
    window_from: int = 0
    dtype: str = "float32"
    remat: str = "none"
    scan: bool = True
    quant: str = "none"
    attention: Literal["auto", "plain", "fused"] = "auto"


# Heads of a layer that a loss may teach where to look (models/pointing.py); Groma's takes the first
TAUGHT = 2


def residual_init(in_dims: int, cfg: LMConfig) -> Any:
    """For what is added to the stream, twice a layer: the sum of all keeps unit variance."""
    return fan_in_init(in_dims, 0.5 / cfg.layers)


class Attention(nn.Module):
    """Causal self-attention with rope and grouped keys; writes the cache where there is one.

    `mask`: [B,T,S] of `attend`; or segments [B,T] of `fused.attend`, and then a cache was empty.
    With a mutable collection "intermediates" it leaves there, as "attention", the log-probabilities
    [B,N,T,S] of its first heads, TAUGHT at most; in "heads" the mean probabilities of all of them.
    """

    cfg: LMConfig

    @nn.compact
    def __call__(self, x, positions, mask, cache_kv, layer, start):
        c = self.cfg
        dtype = jnp.dtype(c.dtype)
        alone = mask.ndim == 2
        if c.heads % c.kv_heads:
            raise ValueError(f"{c.heads} heads cannot share {c.kv_heads} kv_heads evenly")

        def project(heads, axis, name):
            shape, axes = (c.width, heads, c.head), ("embed", axis, "head")
            return Linear(shape, axes, 2, c.qkv_bias, dtype, quant=c.quant, name=name)(x)

        frequencies = rope_frequencies(c.head, c.rope_theta, c.rope_scaling)
        q = rope(project(c.heads, "heads", "q"), positions, frequencies)
        k = rope(project(c.kv_heads, "kv_heads", "k"), positions, frequencies)
        v = project(c.kv_heads, "kv_heads", "v")
        if cache_kv is not None:
            cache_kv = tuple(write_rows(s, layer, r, start) for s, r in zip(cache_kv, (k, v)))  # noqa: B905
            if not alone:
                k, v = (jax.lax.dynamic_index_in_dim(s, layer, 0, False) for s in cache_kv)
                k, v = k.astype(dtype), v.astype(dtype)
        if self.is_mutable_collection("intermediates"):
            count, shared = min(c.heads, TAUGHT), c.heads // c.kv_heads
            read = jnp.repeat(k[:, :, : -(-count // shared)], shared, axis=2)[:, :, :count]
            self.sow("intermediates", "attention", attention_map(q[:, :, :count], read, mask))
        if self.is_mutable_collection("heads"):
            self.sow("heads", "attention", mean_attention(q, k, mask))
        out = fused.attend(q, k, v, mask, causal=True) if alone else attend(q, k, v, mask)
        shape, axes = (c.heads, c.head, c.width), ("heads", "head", "embed")
        made = {"kernel_init": residual_init(2, c), "quant": c.quant}
        out = Linear(shape, axes, 1, False, dtype, **made, name="o")(out)
        return out, cache_kv


class GatedMLP(nn.Module):
    """down(silu(gate(x)) * up(x)), without biases."""

    cfg: LMConfig

    @nn.compact
    def __call__(self, x):
        c = self.cfg
        dtype = jnp.dtype(c.dtype)
        up = ((c.width, c.mlp), ("embed", "mlp"), 1, False, dtype)
        gate = jax.nn.silu(Linear(*up, quant=c.quant, name="gate")(x))
        hidden = gate * Linear(*up, quant=c.quant, name="up")(x)
        hidden = shard(hidden, "batch", "seq", "act_mlp")
        shape, axes = (c.mlp, c.width), ("mlp", "embed")
        made = {"kernel_init": residual_init(1, c), "quant": c.quant}
        return Linear(shape, axes, 1, False, dtype, **made, name="down")(hidden)


class Block(nn.Module):
    """One pre-norm layer; the carry is (stream, cache), as `stack` scans it."""

    cfg: LMConfig

    @nn.compact
    def __call__(self, carry, layer, positions, masks, start):
        c = self.cfg
        dtype = jnp.dtype(c.dtype)
        x, cache_kv = carry
        mask, unlimited = masks
        if unlimited is not None:
            mask = jnp.where(layer < c.window_from, unlimited, mask)
        h, cache_kv = Attention(c, name="attn")(
            RMSNorm(c.width, c.eps, dtype, name="norm1")(x), positions, mask, cache_kv, layer, start
        )
        x = x + h
        h = GatedMLP(c, name="mlp")(RMSNorm(c.width, c.eps, dtype, name="norm2")(x))
        x = shard(x + h, "batch", "seq", "act_embed")
        return (x, cache_kv), None


class LM(nn.Module):
    """Decoder-only transformer; parameters under embed, blocks (stacked), norm and head."""

    cfg: LMConfig

    def setup(self):
        c = self.cfg
        dtype = jnp.dtype(c.dtype)
        # rows of unit length: logits of unit variance where the head is tied
        self.embedder = Embed(c.vocab, c.width, dtype, c.width**-0.5, name="embed")
        self.blocks = stack(Block, c.layers, broadcast=3, remat=c.remat)(c)
        self.norm = RMSNorm(c.width, c.eps, dtype)
        if not c.tied:
            shape, axes = (c.width, c.vocab), ("embed", "vocab")
            self.head = Linear(shape, axes, 1, False, dtype, init.normal(0.02), quant=c.quant)

    def embed(self, ids: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """Token embeddings; ids at or past `vocab` give an undefined row (the caller replaces)."""
        return self.embedder(jnp.minimum(ids, self.cfg.vocab - 1))

    def logits(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """Next-token logits over the stored vocabulary, float32."""
        y = self.embedder.attend(hidden) if self.cfg.tied else self.head(hidden)
        return shard(y.astype(jnp.float32), "batch", "seq", "act_vocab")

    def __call__(
        self,
        x: Float[Array, "B T D"],
        valid: Bool[Array, "B T"],
        cache: KVCache | None = None,
        segments: Int[Array, "B T"] | None = None,
        fresh: bool = False,
    ) -> tuple[Float[Array, "B T D"], Any]:
        """Final (normed) hidden states of embeddings `x`, and the cache grown by T slots.

        Invalid tokens are nobody's key and take no position: position = cumsum(valid) - 1, so
        the result at valid tokens equals that of the sequence without the invalid ones. With a
        cache, row b is written from slot cache.length[b]; `fresh`: it is known to be empty.
        `segments` (no cache): packed ids, from 0.
        """
        c, t = self.cfg, x.shape[1]
        position = jnp.cumsum(valid, axis=1) - 1
        if cache is None:
            key_valid, key_position, kv, start = valid, position, None, None
        else:
            kv, start = (cache.k, cache.v), cache.length
            index = start[:, None] + jnp.arange(t)[None]
            rows = jnp.arange(x.shape[0])[:, None]
            key_valid = cache.valid.at[rows, index].set(valid, mode="drop")
            key_position = jnp.cumsum(key_valid, axis=1) - 1
            position = position + cache.position[:, None]
        see: dict[str, Any] = dict(
            queries=position, keys=key_position, query_segments=segments, key_segments=segments
        )
        if self._fused(t, cache is None or fresh):
            numbers = jnp.zeros_like(position) if segments is None else segments
            mask, unlimited = jnp.where(valid, numbers, -1), None
        else:
            mask, unlimited = attention_mask(key_valid, **see, window=c.window), None
            if c.window is not None and c.window_from > 0:
                unlimited = attention_mask(key_valid, **see)
        if segments is not None:
            same = segments[:, :, None] == segments[:, None, :]
            position = position - jnp.where(same, position[:, None], t).min(-1)
        position = jnp.maximum(position, 0)
        args = ((x, kv), jnp.arange(c.layers), position, (mask, unlimited), start)
        if c.scan or self.is_initializing():
            (x, kv), _ = self.blocks(*args)
        else:
            (x, kv), _ = unrolled(self.blocks, Block(c, parent=None), c.layers, *args)
        x = self.norm(x)
        if cache is not None and kv is not None:
            cache = cache.replace(
                k=kv[0], v=kv[1], valid=key_valid, length=cache.length + t,
                position=cache.position + valid.sum(1, dtype=jnp.int32),
            )  # fmt: skip
        return x, cache

    def _fused(self, tokens: int, alone: bool) -> bool:
        """Whether the layers use fused.attend; `alone`: these tokens are all the keys there are."""
        maps = any(self.is_mutable_collection(n) for n in ("intermediates", "heads"))
        whole = self.cfg.window is None or tokens <= self.cfg.window
        return alone and whole and not maps and fused.chosen(self.cfg.attention, tokens)

    def empty_cache(self, batch: int, slots: int, dtype: Any = None) -> KVCache:
        """A fresh cache for `batch` rows of `slots` tokens."""
        c = self.cfg
        return KVCache.create(
            c.layers, batch, slots, c.kv_heads, c.head, jnp.dtype(dtype or c.dtype)
        )
