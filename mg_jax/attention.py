"""Rotary positions, the one owner of mask semantics, attention, and the KV cache as a value."""

import dataclasses
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from mg_jax.sharding import shard

NEG = -1e30  # a finite "minus infinity": a row with no key stays finite


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Rotary frequencies slowed down for a context longer than the one first trained.

    "linear" (Vicuna 16k) divides all of them by `factor`. "llama3" (Llama 3.1) divides those that
    turn fewer than `low` times in `original` positions, keeps those that turn more than `high`
    times, and blends between.
    """

    kind: Literal["linear", "llama3"] = "linear"
    factor: float = 1.0
    low: float = 1.0
    high: float = 4.0
    original: int = 8192


def rope_frequencies(
    head: int, theta: float, scaling: RopeScaling | None = None
) -> Float[np.ndarray, " H/2"]:
    """Radians per position of each pair of a head: theta^(-2i/H), scaled.

    Rounded to float32 where transformers rounds, so that far positions get the same angles.
    """
    turns = np.arange(0, head, 2, dtype=np.float32) / np.float32(head)
    freq = 1 / np.float32(theta) ** turns
    if scaling is None:
        return freq
    if scaling.kind == "linear":
        return freq / np.float32(scaling.factor)
    turned = np.float32(scaling.original / (2 * np.pi)) * freq
    keep = np.clip((turned - scaling.low) / (scaling.high - scaling.low), 0, 1)
    return (freq * (keep + (1 - keep) / scaling.factor)).astype(np.float32)


def rope(
    x: Float[Array, "B T N H"], positions: Int[Array, "B T"], frequencies: Float[Any, " H/2"]
) -> Float[Array, "B T N H"]:
    """Rotate pairs (i, i + H/2) of each head by position * frequencies[i], in float32."""
    angle = positions[:, :, None, None].astype(jnp.float32) * frequencies[None, None, None]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x.dtype)


def attention_mask(
    key_valid: Bool[Array, "B S"],
    *,
    queries: Int[Array, "B T"] | None = None,
    keys: Int[Array, "B S"] | None = None,
    query_segments: Int[Array, "B T"] | None = None,
    key_segments: Int[Array, "B S"] | None = None,
    window: int | None = None,
) -> Bool[Array, "B T S"]:
    """Which key each query may see; True = visible.

    A key is visible when it is valid; and, where given: its index is not after the query's
    (`queries`, `keys`: indices in the sequence, or positions that count valid tokens alone), it
    lies in the same packed segment, and it is fewer than `window` indices back, itself counted.
    Example, key_valid 1 1 0 1 and causal indices 0..3:

        query 0   1 0 0 0
        query 1   1 1 0 0
        query 2   1 1 0 0      (itself invalid: it may look, but nobody looks at it)
        query 3   1 1 0 1
    """
    mask = key_valid[:, None, :]
    if queries is not None and keys is not None:
        mask = mask & (keys[:, None, :] <= queries[:, :, None])
        if window is not None:
            mask = mask & (queries[:, :, None] - keys[:, None, :] < window)
    if query_segments is not None and key_segments is not None:
        mask = mask & (query_segments[:, :, None] == key_segments[:, None, :])
    return mask


def attend(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: Bool[Array, "B T S"] | None = None,
    scale: float | None = None,
) -> Float[Array, "B T N H"]:
    """Softmax attention, softmax in float32; query head n reads key head n // (N/K)."""
    b, t, n, h = q.shape
    kv = k.shape[2]
    scale = h**-0.5 if scale is None else scale
    # heads before tokens: plain batched matmuls, much faster than the einsums on a CPU
    q = (q * jnp.asarray(scale, q.dtype)).reshape(b, t, kv, n // kv, h).transpose(0, 2, 3, 1, 4)
    k, v = k.swapaxes(1, 2)[:, :, None], v.swapaxes(1, 2)[:, :, None]
    logits = jnp.matmul(q, k.swapaxes(-1, -2)).astype(jnp.float32)
    if mask is not None:
        logits = jnp.where(mask[:, None, None], logits, NEG)
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True)))
    out = jnp.matmul(weights.astype(v.dtype), v) / weights.sum(-1, keepdims=True).astype(v.dtype)
    out = out.transpose(0, 3, 1, 2, 4).reshape(b, t, n, h)
    return shard(out, "batch", "seq", "act_heads", None)


def attention_map(
    q: Float[Array, "B T N H"], k: Float[Array, "B S N H"], mask: Bool[Array, "B T S"]
) -> Float[Array, "B N T S"]:
    """Log-probabilities, float32, with which heads of `attend` read each key."""
    logits = jnp.einsum("btnh,bsnh->bnts", q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype), k)
    return jax.nn.log_softmax(jnp.where(mask[:, None], logits.astype(jnp.float32), NEG), axis=-1)


def mean_attention(
    q: Float[Array, "B T N H"], k: Float[Array, "B S K H"], mask: Bool[Array, "B T S"]
) -> Float[Array, "B T S"]:
    """Probabilities, float32, with which `attend` reads each key, the mean over its heads."""
    scaled = q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype)
    q = scaled.reshape(*q.shape[:2], k.shape[2], -1, q.shape[-1])
    logits = jnp.einsum("btkgh,bskh->bkgts", q, k).astype(jnp.float32)
    return jax.nn.softmax(jnp.where(mask[:, None, None], logits, NEG), axis=-1).mean((1, 2))


CACHE_AXES = ("layers", "batch", "keys", "act_kv_heads", None)  # of k and v


class KVCache(flax.struct.PyTreeNode):
    """Keys and values of all layers. Rows are filled from slot 0, each at its own `length`.

    k, v: [L, B, S, K, H]; valid [B, S]: slot holds a token that may be attended to; length [B]:
    slots written so far; position [B]: rotary position of the next token.
    """

    k: Any
    v: Any
    valid: Any
    length: Any
    position: Any

    @classmethod
    def create(cls, layers, batch, slots, kv_heads, head, dtype=jnp.float32) -> "KVCache":
        """An empty cache of `slots` tokens a row, laid out by CACHE_AXES."""
        shape = (layers, batch, slots, kv_heads, head)
        return cls(
            k=shard(jnp.zeros(shape, dtype), *CACHE_AXES),
            v=shard(jnp.zeros(shape, dtype), *CACHE_AXES),
            valid=jnp.zeros((batch, slots), bool),
            length=jnp.zeros((batch,), jnp.int32),
            position=jnp.zeros((batch,), jnp.int32),
        )


def write_rows(cache: jax.Array, layer: jax.Array, rows: jax.Array, start: jax.Array) -> jax.Array:
    """Write rows[B,T,K,H] into cache[L,B,S,K,H] at `layer`, row b from slot start[b]."""
    b, t = rows.shape[:2]
    slots = start[:, None] + jnp.arange(t)[None]
    index = jnp.arange(b)[:, None]
    cache = cache.at[layer, index, slots].set(rows.astype(cache.dtype), mode="drop")
    return shard(cache, *CACHE_AXES)
