"""One decoder language model by config: Llama (Vicuna, Yi, Llama-3) and its relatives.

`embed` ids, `__call__` on embeddings (with or without a cache), `logits` of hidden states. The
caller owns the joining of visual vectors (models/vlm.py).
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen import initializers as init
from jaxtyping import Array, Bool, Float, Int

from mg_jax.attention import KVCache, attend, attention_mask, rope, write_rows
from mg_jax.nn import Embed, Linear, RMSNorm, fan_in_init, stack, unrolled
from mg_jax.sharding import shard


@dataclasses.dataclass(frozen=True)
class LMConfig:
    """Shape of a decoder. `vocab` is the stored table; `head` is tied to it when `tied`."""

    vocab: int = 32000
    width: int = 4096
    mlp: int = 11008
    layers: int = 32
    heads: int = 32
    kv_heads: int = 32
    head: int = 128
    eps: float = 1e-5
    rope_theta: float = 10000.0
    max_positions: int = 4096
    tied: bool = False
    qkv_bias: bool = False
    window: int | None = None
    dtype: str = "float32"
    remat: str = "none"
    scan: bool = True


class Attention(nn.Module):
    cfg: LMConfig

    @nn.compact
    def __call__(self, x, positions, mask, cache_kv, layer, start):
        c = self.cfg
        dtype = jnp.dtype(c.dtype)

        def project(heads, axis, name):
            shape, axes = (c.width, heads, c.head), ("embed", axis, "head")
            return Linear(shape, axes, 2, c.qkv_bias, dtype, name=name)(x)

        q = rope(project(c.heads, "heads", "q"), positions, c.rope_theta)
        k = rope(project(c.kv_heads, "kv_heads", "k"), positions, c.rope_theta)
        v = project(c.kv_heads, "kv_heads", "v")
        if cache_kv is not None:
            cache_kv = tuple(write_rows(s, layer, r, start) for s, r in zip(cache_kv, (k, v)))  # noqa: B905
            k, v = (jax.lax.dynamic_index_in_dim(s, layer, 0, False) for s in cache_kv)
            k, v = k.astype(dtype), v.astype(dtype)
        out = attend(q, k, v, mask)
        shape, axes = (c.heads, c.head, c.width), ("heads", "head", "embed")
        out = Linear(shape, axes, 1, False, dtype, fan_in_init(2), name="o")(out)
        return out, cache_kv


class GatedMLP(nn.Module):
    cfg: LMConfig

    @nn.compact
    def __call__(self, x):
        c = self.cfg
        dtype = jnp.dtype(c.dtype)
        up = ((c.width, c.mlp), ("embed", "mlp"), 1, False, dtype)
        gate = jax.nn.silu(Linear(*up, name="gate")(x))
        hidden = shard(gate * Linear(*up, name="up")(x), "batch", "seq", "act_mlp")
        return Linear((c.mlp, c.width), ("mlp", "embed"), 1, False, dtype, name="down")(hidden)


class Block(nn.Module):
    cfg: LMConfig

    @nn.compact
    def __call__(self, carry, layer, positions, mask, start):
        c = self.cfg
        dtype = jnp.dtype(c.dtype)
        x, cache_kv = carry
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
        self.embedder = Embed(c.vocab, c.width, dtype, name="embed")
        self.blocks = stack(Block, c.layers, broadcast=3, remat=c.remat)(c)
        self.norm = RMSNorm(c.width, c.eps, dtype)
        if not c.tied:
            shape, axes = (c.width, c.vocab), ("embed", "vocab")
            self.head = Linear(shape, axes, 1, False, dtype, init.normal(0.02))

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
    ) -> tuple[Float[Array, "B T D"], Any]:
        """Final (normed) hidden states of embeddings `x`, and the cache grown by T slots.

        Invalid tokens are nobody's key and take no position: position = cumsum(valid) - 1, so
        the result at valid tokens equals that of the sequence without the invalid ones. With a
        cache, row b is written from slot cache.length[b]. `segments` (no cache): packed ids.
        """
        t = x.shape[1]
        position = jnp.cumsum(valid, axis=1) - 1
        if cache is None:
            index = jnp.broadcast_to(jnp.arange(t)[None], valid.shape)
            mask = attention_mask(
                valid, queries=index, keys=index, query_segments=segments,
                key_segments=segments, window=self.cfg.window,
            )  # fmt: skip
            if segments is not None:
                first = jnp.where(
                    segments[:, :, None] == segments[:, None, :], position[:, None], t
                )
                position = position - first.min(-1)
            kv, start = None, None
        else:
            start = cache.length
            index = start[:, None] + jnp.arange(t)[None]
            rows = jnp.arange(x.shape[0])[:, None]
            position = position + cache.position[:, None]
            key_valid = cache.valid.at[rows, index].set(valid, mode="drop")
            slots = jnp.broadcast_to(jnp.arange(key_valid.shape[1])[None], key_valid.shape)
            mask = attention_mask(key_valid, queries=index, keys=slots, window=self.cfg.window)
            kv = (cache.k, cache.v)
        position = jnp.maximum(position, 0)
        layers = jnp.arange(self.cfg.layers)
        args = ((x, kv), layers, position, mask, start)
        if self.cfg.scan or self.is_initializing():
            (x, kv), _ = self.blocks(*args)
        else:
            block = Block(self.cfg, parent=None)
            (x, kv), _ = unrolled(self.blocks, block, self.cfg.layers, *args)
        x = self.norm(x)
        if cache is not None and kv is not None:
            cache = cache.replace(
                k=kv[0], v=kv[1], valid=key_valid, length=cache.length + t,
                position=cache.position + valid.sum(1, dtype=jnp.int32),
            )  # fmt: skip
        return x, cache

    def empty_cache(self, batch: int, slots: int, dtype: Any = None) -> KVCache:
        """A fresh cache for `batch` rows of `slots` tokens."""
        c = self.cfg
        return KVCache.create(
            c.layers, batch, slots, c.kv_heads, c.head, jnp.dtype(dtype or c.dtype)
        )
