"""Attention whose logits never reach the device's memory, for the long texts of training.

`attention.attend` writes [B,N,T,S] numbers and reads them several times: at 1,536 tokens a GB and
more a layer, for four rows of a 7B model. Here a kernel keeps a tile of them on the chip: jax's
splash attention on a TPU, cuDNN's on an NVIDIA GPU of compute capability 8 or more. The same
numbers up to rounding; forward and backward.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from mg_jax import attention, ops, sharding

LEAST = 256  # tokens from which on "auto" takes the kernel
TILES = (512, 384, 256)  # queries, and keys, of a tile
# The scope that a kernel runs in tells how many pairs of a query and a key it computes for a head
# of a row, tiles that the mask rules out aside: a compiled program shows no such number.
SCOPE = "fused_attention_pairs_"


def chosen(kind: str, tokens: int) -> bool:
    """Whether attention among `tokens` tokens is computed here rather than by `attention.attend`.

    kind: "plain", "fused", or "auto": the kernel on TPUs, where there are enough tokens to gain by
    it.
    """
    return kind == "fused" or (kind == "auto" and ops.platform() == "tpu" and tokens >= LEAST)


def attend(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    segments: Int[Array, "B T"] | None = None,
    causal: bool = False,
) -> Float[Array, "B T N H"]:
    """Softmax attention among T tokens; query head n reads key head n // (N/K).

    A token reads those of its own segment, if `causal` those alone that do not come after it;
    without `segments` all are of one. A GPU has a kernel for half precision and heads of up to 128
    numbers; for others the logits are made. On a CPU the TPU's kernel is interpreted, for tests.
    """
    platform = ops.platform()
    if platform == "gpu":
        return _cudnn(q, k, v, segments, causal)
    if segments is None:
        segments = jnp.zeros(q.shape[:2], jnp.int32)
    run = functools.partial(_splash, causal=causal, interpret=platform != "tpu")
    mesh = sharding.mesh_in_use()
    if mesh is None or mesh.size == 1:
        return run(q, k, v, segments)
    specs = [_spec(x, name) for x, name in ((q, "act_heads"), (k, "act_kv_heads"))]
    if specs[0] != specs[1]:  # key heads that do not divide over the devices of the query heads
        k, v = (jnp.repeat(x, q.shape[2] // k.shape[2], axis=2) for x in (k, v))
        specs[1] = specs[0]
    rows = PartitionSpec(*specs[0][:1])
    return jax.shard_map(
        run, mesh=mesh, in_specs=(*specs, specs[1], rows), out_specs=specs[0], check_vma=False
    )(q, k, v, segments)


def _cudnn(q, k, v, segments, causal: bool) -> jax.Array:
    tokens, _, head = q.shape[1:]
    same = None if segments is None else segments[:, :, None] == segments[:, None, :]
    if q.dtype in (jnp.bfloat16, jnp.float16) and head % 8 == 0 and head <= 128:
        mask = None if same is None else same[:, None]
        return jax.nn.dot_product_attention(
            q, k, v, mask=mask, is_causal=causal, implementation="cudnn"
        )
    if causal:
        before = jnp.tril(jnp.ones((1, tokens, tokens), bool))
        same = before if same is None else same & before
    return attention.attend(q, k, v, same)


def _spec(x: jax.Array, heads: str) -> PartitionSpec:
    return sharding.spec(("batch", None, heads, None), x.shape)


def tile(tokens: int) -> tuple[int, int]:
    """(side of a tile, tokens with padding): the size of TILES that pads least."""
    padded = {size: -(-tokens // size) * size for size in TILES}
    best = min(TILES, key=lambda size: (padded[size], -size))
    return best, padded[best]


def pairs(tokens: int, causal: bool) -> int:
    """Pairs of a query and a key that are computed for a head of a row of `tokens` tokens."""
    size, padded = tile(tokens)
    along = padded // size
    return size**2 * (along * (along + 1) // 2 if causal else along**2)


def _splash(q, k, v, segments, *, causal: bool, interpret: bool) -> jax.Array:
    # the import alone takes as long as a small program
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    tokens, heads, head = q.shape[1:]
    size, padded = tile(tokens)
    one = (splash.CausalMask if causal else splash.FullMask)((padded, padded))
    sizes: Any = {
        name: size
        for name in (
            "block_q", "block_kv", "block_kv_compute", "block_q_dkv", "block_kv_dkv",
            "block_kv_dkv_compute", "block_q_dq", "block_kv_dq",
        )
    }  # fmt: skip
    kernel = splash.make_splash_mha_single_device(
        splash.MultiHeadMask([one] * heads), block_sizes=splash.BlockSizes(**sizes),
        interpret=interpret,
    )  # fmt: skip
    rest = padded - tokens
    segments = jnp.pad(segments, ((0, 0), (0, rest)), constant_values=-1)  # a segment of its own
    q, k, v = (jnp.pad(x.swapaxes(1, 2), ((0, 0), (0, 0), (0, rest), (0, 0))) for x in (q, k, v))
    with jax.named_scope(f"{SCOPE}{pairs(tokens, causal)}"):
        out = jax.vmap(kernel)(
            q * jnp.asarray(head**-0.5, q.dtype), k, v, splash.SegmentIds(segments, segments)
        )
    return out[:, :, :tokens].swapaxes(1, 2)
