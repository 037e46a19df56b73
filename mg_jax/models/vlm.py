"""What the systems share: reading a prompt, visual vectors in it, a second vocabulary table."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen import initializers as init
from jaxtyping import Array, Bool, Float, Int

from mg_jax.attention import KVCache
from mg_jax.nn import param


def scatter(
    embeddings: Float[Array, "B T D"],
    slots: Bool[Array, "B T"],
    vectors: Float[Array, "B n D"],
) -> Float[Array, "B T D"]:
    """Put vectors[b, i] at the i-th true position of slots[b]; the rest of `embeddings` stays.

    Positions past the n-th take the last vector: the caller sizes prompts so that none exist.
    """
    chosen = take(vectors, occurrence(slots))
    return jnp.where(slots[..., None], chosen.astype(embeddings.dtype), embeddings)


def occurrence(slots: Bool[Array, "B T"]) -> Int[Array, "B T"]:
    """Index of each position among the true ones of its row (meaningless where false, >= 0)."""
    return jnp.maximum(jnp.cumsum(slots, axis=1) - 1, 0)


def take(values: jax.Array, index: Int[Array, "B T"]) -> jax.Array:
    """values[b, index[b, t]] for values[B, n, ...], never across the batch; index is clipped."""
    index = jnp.clip(index, 0, values.shape[1] - 1)
    return jax.vmap(lambda v, i: v[i])(values, index)


def pool(x: Float[Array, "B P C"], n: int) -> Float[Array, "B P/n*n C"]:
    """Means of n x n neighbouring tokens of a square grid."""
    b, p, c = x.shape
    side = int(p**0.5)
    y = x.reshape(b, side // n, n, side // n, n, c).astype(jnp.float32).mean((2, 4))
    return y.reshape(b, p // n**2, c).astype(x.dtype)


def unit(x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
    """Vectors with a mean square of 1, as RMSNorm without weights."""
    square = jnp.square(x.astype(jnp.float32)).mean(-1, keepdims=True)
    return x * jax.lax.rsqrt(square + 1e-6).astype(x.dtype)


def true_first(vectors: Float[Array, "B R D"], mask: Bool[Array, "B R"]) -> Float[Array, "B R D"]:
    """The vectors of each row with those in `mask` first, in order."""
    return take(vectors, jnp.argsort(~mask, axis=1, stable=True))


class VisionLM(nn.Module):
    """How every system reads a prompt and goes on from it.

    A system has a language model `lm`, `encode(batch, *given)` -> visual vectors and intermediates,
    and `embed(batch, encoded)` -> `tokens`, `valid` and `embeddings` of the joined prompt.
    """

    def embed_tokens(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """Embeddings of text."""
        return self.lm.embed(tokens)

    def logits(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """Logits of hidden states, float32."""
        return self.lm.logits(hidden)

    def __call__(
        self, batch: Mapping[str, jax.Array], *given: Any
    ) -> tuple[Float[Array, "B T V"], dict[str, Any]]:
        """Logits of every position, and every named intermediate. `segments` [B,T] of a batch:
        packed conversations, which do not see each other."""
        aux = self.encode(batch, *given)
        aux |= self.embed(batch, aux)
        hidden, _ = self.lm(aux["embeddings"], aux["valid"], segments=batch.get("segments"))
        return self.logits(hidden), {**aux, "last_hidden": hidden}

    def prefill(
        self, batch: Mapping[str, jax.Array], cache: KVCache, *given: Any
    ) -> tuple[Float[Array, "B V"], KVCache, dict[str, Any]]:
        """Read the prompt into the empty cache; logits after the last valid token of each row."""
        aux = self.encode(batch, *given)
        aux |= self.embed(batch, aux)
        valid = aux["valid"]
        hidden, grown = self.lm(aux["embeddings"], valid, cache, fresh=True)
        last = jnp.where(valid, jnp.arange(valid.shape[1])[None], 0).max(1)
        cache = grown.replace(length=last.astype(jnp.int32) + 1)  # decode over the padding
        return self.logits(take(hidden, last[:, None]))[:, 0], cache, aux

    def decode(
        self, tokens: Int[Array, "B 1"], cache: KVCache
    ) -> tuple[Float[Array, "B V"], KVCache]:
        """One more token a row; logits after it."""
        hidden, grown = self.lm(self.embed_tokens(tokens), jnp.ones(tokens.shape, bool), cache)
        return self.logits(hidden)[:, 0], grown


class NewTokens(nn.Module):
    """Embedding rows and head columns of tokens added after pre-training, in tables of their own.

    Added token i has id vocab + i.
    """

    count: int
    width: int
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        shape = (self.count, self.width)
        self.embedding = param(self, "embedding", shape, ("new_vocab", "embed"), init.normal(0.02))
        self.head = param(self, "head", shape[::-1], ("embed", "new_vocab"), init.normal(0.02))

    def embed(self, ids: Int[Array, "B T"], vocab: int, base: jax.Array) -> jax.Array:
        """Rows of the ids at or past `vocab`; `base`[B,T,D] for the others."""
        rows = self.embedding[jnp.clip(ids - vocab, 0, self.count - 1)]
        return jnp.where((ids >= vocab)[..., None], rows.astype(base.dtype), base)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Float32 logits of the added tokens."""
        return jnp.dot(hidden.astype(self.dtype), self.head.astype(self.dtype)).astype(jnp.float32)
