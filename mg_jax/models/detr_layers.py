"""Layers of the region proposer: inputs, sine embeddings, deformable attention, blocks, heads.

Groma spec 1.2 and 2.3. Boxes here are (cx, cy, w, h) in [0, 1] of the model's view; this file and
detr.py are the only ones of the models that use that form.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen import initializers as init
from jaxtyping import Array, Float

from mg_jax.attention import attend
from mg_jax.nn import MLP, Conv, ConvTranspose, LayerNorm, Linear, dropout, gelu, param
from mg_jax.ops.deform_attn import deform_attn
from mg_jax.sharding import shard

NORM_EPS = 1e-5  # of the layers; the norms of the feature levels use 1e-6
Shapes = tuple[tuple[int, int], ...]  # (rows, columns) of every feature level


@dataclasses.dataclass(frozen=True)
class DetrConfig:
    """Shape of the proposer, its published choices, and the weights of its set loss.

    levels_from: "mean", every level from the mean of the last four hidden states (published);
      "last_four", level i from hidden state i - levels, so the finest level reads the earliest.
    refinement: "none", all layers sample around the initial proposals and gradients reach the
      change of the layer before (published code); "iterative", each layer starts from the
      detached boxes of the one before (Deformable DETR); "look_forward_twice", the same, with
      gradients through the change of the layer before (DINO).
    two_heads: a class head for whole-object data ("coco") and one for SA-1B; otherwise the
      first serves both.
    """

    width: int = 256
    encoder_layers: int = 6
    decoder_layers: int = 6
    encoder_heads: int = 8
    decoder_heads: int = 8
    encoder_ffn: int = 1024
    decoder_ffn: int = 1024
    encoder_points: int = 4
    decoder_points: int = 4
    queries: int = 300
    levels: int = 1
    levels_from: Literal["mean", "last_four"] = "mean"
    box_hidden: int = 256
    refinement: Literal["none", "iterative", "look_forward_twice"] = "none"
    two_heads: bool = True
    dropout: float = 0.1
    class_cost: float = 2.0
    box_cost: float = 5.0
    giou_cost: float = 2.0
    class_weight: float = 2.0
    box_weight: float = 5.0
    giou_weight: float = 2.0
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0
    matcher: Literal["auto", "jit", "scipy"] = "auto"
    dtype: str = "float32"
    remat: str = "none"


def xavier(in_dims: int) -> Callable:
    """Xavier-uniform initialiser of a kernel whose first `in_dims` axes are input."""

    def make(key, shape, dtype=jnp.float32):
        fan = math.prod(shape[:in_dims]) + math.prod(shape[in_dims:])
        bound = math.sqrt(6 / fan)
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return make


def conv_xavier(key, shape, dtype=jnp.float32):
    """Xavier-uniform of a convolution kernel [y, x, in, out]: taps count on both sides."""
    taps = shape[0] * shape[1]
    bound = math.sqrt(6 / (taps * (shape[2] + shape[3])))
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def offset_grid(heads: int, levels: int, points: int) -> np.ndarray:
    """Initial sampling offsets [N, M, Z, 2]: head n looks in its own direction, point z z+1 far."""
    angle = np.arange(heads, dtype=np.float32) * np.float32(2 * math.pi / heads)
    grid = np.stack([np.cos(angle), np.sin(angle)], -1)
    grid = grid / np.abs(grid).max(-1, keepdims=True)
    steps = np.arange(1, points + 1, dtype=np.float32)
    grid = grid[:, None, None] * steps[None, None, :, None]
    return np.broadcast_to(grid, (heads, levels, points, 2)).astype(np.float32)


def inverse_sigmoid(x: jax.Array, eps: float = 1e-5) -> jax.Array:
    """Logit of x; x and 1 - x are taken as at least `eps`."""
    x = jnp.clip(x, 0, 1)
    return jnp.log(jnp.maximum(x, eps)) - jnp.log(jnp.maximum(1 - x, eps))


def grid_points(shapes: Shapes) -> np.ndarray:
    """Centres (x, y) in [0, 1] of all tokens, level by level, row-major: [S, 2] float32."""

    def one(rows, cols):
        y = (np.arange(rows, dtype=np.float32) + np.float32(0.5)) / np.float32(rows)
        x = (np.arange(cols, dtype=np.float32) + np.float32(0.5)) / np.float32(cols)
        return np.stack(np.broadcast_arrays(x[None], y[:, None]), -1).reshape(-1, 2)

    return np.concatenate([one(*shape) for shape in shapes])


def anchor_logits(shapes: Shapes) -> tuple[np.ndarray, np.ndarray]:
    """Anchor of every token as logits [S, 4], and which tokens are usable [S] bool.

    The anchor is (x, y, 0.05 * 2^level, same). Tokens with a coordinate outside (0.01, 0.99)
    have +inf logits and are not usable.
    """
    xy = grid_points(shapes)
    side = [np.full(r * c, 0.05 * 2.0**i, np.float32) for i, (r, c) in enumerate(shapes)]
    side = np.concatenate(side)[:, None]
    anchors = np.concatenate([xy, side, side], -1)
    usable: np.ndarray = np.all((anchors > 0.01) & (anchors < 0.99), axis=-1)
    with np.errstate(divide="ignore"):
        logits = np.log(anchors / (1 - anchors))
    return np.where(usable[:, None], logits, np.inf).astype(np.float32), usable


class InputLevel(nn.Module):
    """Feature map of the encoder -> one level of width d, at `factor` times its resolution.

    factor 1: 1x1 convolution; 0.5: 3x3 with stride 2; 2 and 4: transposed convolutions, 1x1,
    norm, 3x3 (spec 1.2).
    """

    width: int
    factor: float
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B Y X C"]) -> Float[Array, "B y x D"]:
        d, channels, dtype = self.width, x.shape[-1], self.dtype
        first = conv_xavier

        def norm(width, name):
            return LayerNorm(width, 1e-6, dtype, name=name)

        if self.factor == 0.5:
            conv = Conv((3, 3, channels, d), 2, 1, dtype=dtype, kernel_init=first, name="conv")
            return norm(d, "norm")(conv(x))
        if self.factor == 1:
            conv = Conv((1, 1, channels, d), dtype=dtype, kernel_init=first, name="conv")
            return norm(d, "norm")(conv(x))
        x = ConvTranspose((2, 2, channels, d // 2), dtype, name="up")(x)
        half = d // 2
        if self.factor == 4:
            x = gelu(norm(half, "up_norm")(x))
            x = ConvTranspose((2, 2, half, d // 4), dtype, name="up2")(x)
            half = d // 4
        x = Conv((1, 1, half, d), dtype=dtype, name="conv")(x)
        x = norm(d, "norm")(x)
        return Conv((3, 3, d, d), padding=1, dtype=dtype, name="out")(x)


class DeformableAttention(nn.Module):
    """Every query reads Z learned points of every head and level around its reference.

    Sampling positions, weights and the sampling itself are float32.
    """

    width: int
    heads: int
    levels: int
    points: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        query: Float[Array, "B Q D"],
        source: Float[Array, "B S D"],
        reference: Float[Array, "B Q 2|4"],
        shapes: Shapes,
    ) -> Float[Array, "B Q D"]:
        """Reference: points (x, y), offsets then count cells; or boxes (cx, cy, w, h), offsets
        then count half sides per point. A leading 1 in `reference` stands for all rows."""
        d, n, m, z = self.width, self.heads, self.levels, self.points
        spots = (n, m, z)
        names = ("heads", "levels", "points")
        offsets = Linear(
            (d, *spots, 2), ("embed", *names, "coord"), 4, dtype=self.dtype,
            kernel_init=init.zeros, bias_init=lambda *_: jnp.asarray(offset_grid(*spots)),
            name="offsets",
        )(query).astype(jnp.float32)  # fmt: skip
        weights = Linear(
            (d, *spots), ("embed", *names), 3, dtype=self.dtype,
            kernel_init=init.zeros, name="weights",
        )(query).astype(jnp.float32)  # fmt: skip
        b, q = query.shape[:2]
        weights = jax.nn.softmax(weights.reshape(b, q, n, m * z)).reshape(b, q, n, m, z)
        value = Linear(
            (d, n, d // n), ("embed", "heads", "head"), 2, dtype=self.dtype,
            kernel_init=xavier(1), name="value",
        )(source)  # fmt: skip
        center = reference[:, :, None, None, None, :2]
        if reference.shape[-1] == 2:
            cells = np.asarray([(cols, rows) for rows, cols in shapes], np.float32)
            points = center + offsets / cells[None, None, None, :, None]
        else:
            points = center + offsets / z * reference[:, :, None, None, None, 2:] * 0.5
        out = deform_attn(value.astype(jnp.float32), shapes, points, weights)
        return Linear(
            (n, d // n, d), ("heads", "head", "embed"), dtype=self.dtype,
            kernel_init=xavier(2), name="output",
        )(out)  # fmt: skip


class SelfAttention(nn.Module):
    """Attention among queries; positions are added to queries and keys, not to values."""

    width: int
    heads: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B Q D"], pos: Float[Array, "B Q D"]):
        d, n = self.width, self.heads
        shape, axes = (d, n, d // n), ("embed", "heads", "head")

        def project(name, x):
            return Linear(shape, axes, 2, dtype=self.dtype, kernel_init=xavier(1), name=name)(x)

        out = attend(project("q", x + pos), project("k", x + pos), project("v", x))
        shape, axes = (n, d // n, d), ("heads", "head", "embed")
        return Linear(shape, axes, dtype=self.dtype, kernel_init=xavier(2), name="o")(out)


def _mlp(cfg: DetrConfig, hidden: int):
    dtype = jnp.dtype(cfg.dtype)
    return MLP(
        cfg.width, hidden, activation=jax.nn.relu, dtype=dtype, kernel_init=xavier(1), name="mlp"
    )


class EncoderBlock(nn.Module):
    """Deformable self-attention and MLP over all tokens, norms after the additions."""

    cfg: DetrConfig
    shapes: Shapes

    @nn.compact
    def __call__(self, x, _, pos, reference):
        c = self.cfg
        dtype = jnp.dtype(c.dtype)
        attn = DeformableAttention(
            c.width, c.encoder_heads, c.levels, c.encoder_points, dtype, name="attn"
        )
        h = attn(x + pos, x, reference, self.shapes)
        x = LayerNorm(c.width, NORM_EPS, dtype, name="norm1")(x + dropout(self, h, c.dropout))
        h = _mlp(c, c.encoder_ffn)(x)
        x = LayerNorm(c.width, NORM_EPS, dtype, name="norm2")(x + dropout(self, h, c.dropout))
        return shard(x, "batch", "seq", "act_embed"), None


class DecoderBlock(nn.Module):
    """Self-attention, deformable cross-attention, MLP, and this layer's move of the boxes.

    carry = (x[B,Q,D], reference boxes[B,Q,4]); scanned = parameters of the layer's box head;
    out = (x, logit change of the boxes, boxes after the change).
    """

    cfg: DetrConfig
    shapes: Shapes

    @nn.compact
    def __call__(self, carry, head, pos, memory):
        c = self.cfg
        dtype = jnp.dtype(c.dtype)
        x, reference = carry

        def norm(name, x, h):
            return LayerNorm(c.width, NORM_EPS, dtype, name=name)(x + dropout(self, h, c.dropout))

        h = SelfAttention(c.width, c.decoder_heads, dtype, name="self_attn")(x, pos)
        x = norm("norm1", x, h)
        attn = DeformableAttention(
            c.width, c.decoder_heads, c.levels, c.decoder_points, dtype, name="cross_attn"
        )
        x = norm("norm2", x, attn(x + pos, memory, reference, self.shapes))
        x = norm("norm3", x, _mlp(c, c.decoder_ffn)(x))
        x = shard(x, "batch", "queries", "act_embed")
        change = box_change(head, x)
        moved = jax.nn.sigmoid(change + inverse_sigmoid(reference))
        if c.refinement != "none":
            reference = jax.lax.stop_gradient(moved)
        return (x, reference), (x, change, moved)


class Stacked(nn.Module):
    """Kernel [L, in, out] and bias [L, out] of L independent heads; its call returns them."""

    shape: tuple[int, int, int]
    axes: tuple[str | None, ...]
    kernel_init: Callable
    bias_init: Callable = init.zeros

    @nn.compact
    def __call__(self) -> dict[str, jax.Array]:
        layers, *rest = self.shape

        def each(key, shape, dtype=jnp.float32):
            keys = jax.random.split(key, layers)
            return jax.vmap(lambda k: self.kernel_init(k, shape[1:], dtype))(keys)

        kernel = param(self, "kernel", self.shape, ("layers", *self.axes), each)
        bias = param(self, "bias", (layers, rest[1]), ("layers", self.axes[-1]), self.bias_init)
        return {"kernel": kernel, "bias": bias}


class BoxHeads(nn.Module):
    """Parameters of L three-layer box heads: {fc1, fc2, fc3} with a leading layer axis."""

    layers: int
    width: int
    hidden: int

    @nn.compact
    def __call__(self) -> dict[str, dict[str, jax.Array]]:
        n, d, f = self.layers, self.width, self.hidden
        return {
            "fc1": Stacked((n, d, f), ("embed", "mlp"), xavier(1), name="fc1")(),
            "fc2": Stacked((n, f, f), ("mlp", None), xavier(1), name="fc2")(),
            "fc3": Stacked((n, f, 4), ("mlp", "coord"), init.zeros, name="fc3")(),
        }


def box_change(head: dict, x: Float[Array, "B S D"]) -> Float[Array, "B S 4"]:
    """Apply one layer's box head, in float32."""

    def linear(p, x):
        return x @ p["kernel"] + p["bias"][None, None]

    x = jax.nn.relu(linear(head["fc1"], x.astype(jnp.float32)))
    x = jax.nn.relu(linear(head["fc2"], x))
    return linear(head["fc3"], x)
