"""Autoregressive decoding: prefill once, then cached steps under one `lax.while_loop`."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mg_jax.attention import KVCache


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Temperature 0 is greedy. `top_k` 0 and `top_p` 1 keep every token."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0


class Generated(flax.struct.PyTreeNode):
    """tokens [B,n] (after the end: `pad`), length [B] (end token included), logprobs [B,n]."""

    tokens: Any
    length: Any
    logprobs: Any
    steps: Any


def next_token(
    logits: Float[Array, "B V"], sampling: Sampling, key: jax.Array
) -> tuple[Int[Array, " B"], Float[Array, " B"]]:
    """Choose a token a row; also its log-probability under the unmodified distribution."""
    logp = jax.nn.log_softmax(logits.astype(jnp.float32))
    if sampling.temperature == 0.0:
        token = jnp.argmax(logits, axis=-1)
    else:
        scaled = logits.astype(jnp.float32) / sampling.temperature
        ranked = jnp.sort(scaled, axis=-1)[:, ::-1]
        if sampling.top_k:
            kth = ranked[:, min(sampling.top_k, ranked.shape[1]) - 1]
            scaled = jnp.where(scaled < kth[:, None], -jnp.inf, scaled)
            ranked = jnp.where(ranked < kth[:, None], -jnp.inf, ranked)
        if sampling.top_p < 1.0:
            mass = jnp.cumsum(jax.nn.softmax(ranked), axis=-1)
            kept = (mass < sampling.top_p).sum(-1)  # the first token past the mass stays
            least = jnp.take_along_axis(ranked, kept[:, None], axis=1)
            scaled = jnp.where(scaled < least, -jnp.inf, scaled)
        rows = jnp.arange(logits.shape[0])
        keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(rows)
        token = jax.vmap(jax.random.categorical)(keys, scaled)
    token = token.astype(jnp.int32)
    return token, jnp.take_along_axis(logp, token[:, None], axis=1)[:, 0]


def decode_loop(
    step: Callable[[Int[Array, "B 1"], KVCache], tuple[Float[Array, "B V"], KVCache]],
    logits: Float[Array, "B V"],
    cache: KVCache,
    *,
    max_new: int,
    end: int,
    pad: int,
    sampling: Sampling = Sampling(),
    key: jax.Array | None = None,
    allowed: Bool[Array, "B V"] | None = None,
) -> Generated:
    """Tokens after a prefill whose next-token `logits` are given.

    Runs until every row has produced `end` or `max_new` tokens. `allowed` masks the vocabulary
    row by row. The cache must have `max_new` free slots in every row. `key` is needed when
    sampling.
    """
    if sampling.temperature and key is None:
        raise ValueError("sampling needs a key")
    key = jax.random.key(0) if key is None else key
    b = logits.shape[0]

    def pick(i, logits, done):
        if allowed is not None:
            logits = jnp.where(allowed, logits, -1e30)
        token, logp = next_token(logits, sampling, jax.random.fold_in(key, i))
        return jnp.where(done, pad, token), jnp.where(done, 0.0, logp)

    def body(state):
        i, token, cache, done, tokens, logprobs = state
        logits, cache = step(token[:, None], cache)
        token, logp = pick(i, logits, done)
        tokens = tokens.at[:, i].set(token)
        logprobs = logprobs.at[:, i].set(logp)
        return i + 1, token, cache, done | (token == end), tokens, logprobs

    def running(state):
        return (state[0] < max_new) & ~state[3].all()

    token, logp = pick(0, logits, jnp.zeros(b, bool))
    tokens = jnp.full((b, max_new), pad, jnp.int32).at[:, 0].set(token)
    logprobs = jnp.zeros((b, max_new)).at[:, 0].set(logp)
    state = (1, token, cache, token == end, tokens, logprobs)
    steps, _, _, _, tokens, logprobs = jax.lax.while_loop(running, body, state)
    ended = (tokens == end).any(1)
    length = jnp.where(ended, jnp.argmax(tokens == end, axis=1) + 1, steps)
    return Generated(tokens, length.astype(jnp.int32), logprobs, steps)


def respond(
    model: Any,
    batch: Mapping[str, Any],
    *,
    max_new: int,
    end: int,
    pad: int,
    sampling: Sampling = Sampling(),
    key: jax.Array | None = None,
) -> tuple[Generated, Mapping[str, Any]]:
    """What a bound system says to a batch of its `prefill`, and the intermediates of the latter."""
    rows, length = batch["tokens"].shape
    logits, cache, aux = model.prefill(batch, model.lm.empty_cache(rows, length + max_new))
    out = decode_loop(
        model.decode, logits, cache, max_new=max_new, end=end, pad=pad, sampling=sampling, key=key
    )
    return out, aux
