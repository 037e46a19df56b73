"""Groma's region encoder: pyramid of the last hidden states, RoIAlign, one vector a box.

Groma spec 2.5 (after GPT4RoI). Works on any encoder that yields square maps.
"""

import dataclasses
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen import initializers as init
from jaxtyping import Array, Float

from mg_jax.boxes import cxcywh_to_xyxy
from mg_jax.nn import LayerNorm, Linear, conv2d, fan_in_init, gelu, group_norm, param
from mg_jax.ops.resize import resize_bilinear
from mg_jax.ops.roi_align import roi_align


@dataclasses.dataclass(frozen=True)
class RegionConfig:
    """`upsample[i]`: how much level i (the hidden state len - i layers before the end) is enlarged.

    `box_format` "cxcywh" feeds RoIAlign centres and sizes as if they were corners, as the
    published code does; "xyxy" is the correct form. `strides` "published" are 14/8, 14/4, 14/2
    for maps whose true strides are 14/4, 14/2, 14; "true" uses the true ones. `scale`: pixels a
    normalised box is multiplied by before the published strides (448 in the published code).
    `mlp`: the paper's second projection layer, absent from the published code.
    """

    width: int = 1024
    hidden: int = 1024
    upsample: tuple[int, ...] = (4, 2, 1)
    rounds: int = 5
    groups: int = 64
    roi_size: int = 14
    sampling: int = 2
    position_width: int = 256
    box_format: Literal["xyxy", "cxcywh"] = "xyxy"
    strides: Literal["true", "published"] = "true"
    scale: float = 448.0
    mlp: bool = False
    patch: int = 14
    dtype: str = "float32"


class RegionEncoder(nn.Module):
    """Vectors [B, R, out] of boxes [B, R, 4] (normalised cxcywh) on the last hidden states, whose
    width need not be that of the config."""

    cfg: RegionConfig
    out: int

    @nn.compact
    def __call__(
        self, states: Float[Array, "M B P C"], boxes: Float[Array, "B R 4"]
    ) -> tuple[Float[Array, "B R D"], dict]:
        c = self.cfg
        dtype = jnp.dtype(c.dtype)
        levels = self._pyramid(states)
        aux = {"pyramid_in": levels}
        levels = self._fuse([with_coordinates(x) for x in levels])
        aux["pyramid_fused"] = levels
        corners = boxes if c.box_format == "cxcywh" else cxcywh_to_xyxy(boxes)
        aux["rois"] = corners * c.scale
        count = len(levels)
        shape = (count, 3, 3, c.width, c.width)
        axes = ("levels", "taps", "taps", "conv_in", "conv_out")
        kernel, bias = _kernel_bias(self, "roi_convs", shape, axes)
        total = 0.0
        rois = []
        for i, x in enumerate(levels):
            feats = self._roi_align(x, corners, i)
            rois.append(feats)
            b, r = feats.shape[:2]
            y = conv2d(feats.reshape(b * r, *feats.shape[2:]), kernel[i], 1, 1, dtype)
            total = total + (y + bias[i].astype(dtype)[None, None, None])
        aux["roi_feats"] = rois
        x = jax.nn.relu(total).reshape(b, r, c.roi_size, c.roi_size, c.width)
        shape = (c.roi_size, c.roi_size, c.width, c.hidden)
        axes = ("taps", "taps", "conv_in", "conv_out")
        x = Linear(shape, axes, 1, True, dtype, name="flatten")(x)
        aux["roi_flat_out"] = x
        position = Position(c, name="position")(boxes)
        aux["roi_pos_embed"] = position
        x = x + position.astype(dtype)
        x = Linear((c.hidden, self.out), ("conv_in", "embed_out"), dtype=dtype, name="output")(x)
        if c.mlp:
            shape, axes = (self.out, self.out), ("embed", "embed_out")
            x = Linear(shape, axes, dtype=dtype, name="mlp")(gelu(x))
        aux["region_features"] = x
        return x, aux

    def _pyramid(self, states):
        """Last hidden states without CLS as square maps, enlarged level by level."""
        levels = []
        for state, factor in zip(states[-len(self.cfg.upsample) :], self.cfg.upsample, strict=True):
            b, p, ch = state.shape
            side = int((p - 1) ** 0.5)
            grid = state[:, 1:].reshape(b, side, side, ch)
            levels.append(resize_bilinear(grid, (side * factor, side * factor)))
        return levels

    def _fuse(self, levels):
        """Rounds in which each level borrows channels of its neighbours, then conv-GN-ReLU."""
        c = self.cfg
        dtype = jnp.dtype(c.dtype)
        count, width = len(levels), c.width
        shape = (count, 1, 1, levels[0].shape[-1], width)
        axes = ("levels", "taps", "taps", "conv_in", "conv_out")
        kernel, bias = _kernel_bias(self, "inputs", shape, axes)
        levels = [
            conv2d(x, kernel[i], dtype=dtype) + bias[i].astype(dtype)[None, None, None]
            for i, x in enumerate(levels)
        ]
        if c.rounds:
            fuse = Fuse(c, name="fuse")()
        own, near = width // 2, width // 4
        for step in range(c.rounds):
            mixed = []
            for t, x in enumerate(levels):
                size = x.shape[1:3]
                upper = levels[min(t + 1, count - 1)][..., own + near :]
                lower = levels[max(t - 1, 0)][..., own : own + near]
                parts = [x[..., :own], resize_bilinear(upper, size), resize_bilinear(lower, size)]
                y = conv2d(jnp.concatenate(parts, -1), fuse["kernel"][step], 1, 1, dtype)
                y = group_norm(y, fuse["scale"][step], fuse["bias"][step], c.groups)
                mixed.append(jax.nn.relu(y))
            levels = mixed
        return levels

    def _roi_align(self, x, corners, level):
        c = self.cfg
        if c.strides == "published":
            boxes, scale = corners * c.scale, 2.0 * c.upsample[level] / c.patch
        else:
            boxes, scale = corners, float(x.shape[1])
        x = x.astype(jnp.float32)
        return roi_align(
            x, boxes, spatial_scale=scale, output_size=c.roi_size, sampling_ratio=c.sampling
        )


class Fuse(nn.Module):
    """Kernels [rounds, 3, 3, C, C] and GroupNorm parameters [rounds, C], shared by the levels."""

    cfg: RegionConfig

    @nn.compact
    def __call__(self):
        c = self.cfg
        shape = (c.rounds, 3, 3, c.width, c.width)
        axes = ("layers", "taps", "taps", "conv_in", "conv_out")
        kernel = _kernel_bias(self, "conv", shape, axes, bias=False)[0]
        scale, bias = GroupNormParams(c, name="norm")()
        return {"kernel": kernel, "scale": scale, "bias": bias}


class GroupNormParams(nn.Module):
    cfg: RegionConfig

    @nn.compact
    def __call__(self):
        shape, axes = (self.cfg.rounds, self.cfg.width), ("layers", None)
        return param(self, "scale", shape, axes, init.ones), param(
            self, "bias", shape, axes, init.zeros
        )


class StackedConv(nn.Module):
    """Kernel [n, y, x, in, out] and optional bias [n, out] of n convolutions."""

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    bias: bool = True

    @nn.compact
    def __call__(self):
        def stacked(key, shape, dtype):
            keys = jax.random.split(key, shape[0])
            return jax.vmap(lambda k: fan_in_init(3)(k, shape[1:], dtype))(keys)

        kernel = param(self, "kernel", self.shape, self.axes, stacked)
        if not self.bias:
            return kernel, None
        bias_shape, bias_axes = (self.shape[0], self.shape[-1]), (self.axes[0], None)
        return kernel, param(self, "bias", bias_shape, bias_axes, init.zeros)


def _kernel_bias(parent, name, shape, axes, bias=True):
    return StackedConv(shape, axes, bias, parent=parent, name=name)()


class Position(nn.Module):
    """Vector of a normalised cxcywh box: two rounds of linear, ReLU, LayerNorm."""

    cfg: RegionConfig

    @nn.compact
    def __call__(self, boxes: jax.Array) -> jax.Array:
        c = self.cfg
        x = Linear((4, c.position_width), ("coord", None), name="fc1")(boxes)
        x = LayerNorm(c.position_width, 1e-5, name="norm1")(jax.nn.relu(x))
        x = Linear((c.position_width, c.hidden), (None, None), name="fc2")(x)
        return LayerNorm(c.hidden, 1e-5, name="norm2")(jax.nn.relu(x))


def with_coordinates(x: Float[Array, "B Y X C"]) -> Float[Array, "B Y X C+2"]:
    """Append two channels: x then y, each linearly from -1 to 1."""
    b, rows, cols, _ = x.shape
    xs = jnp.broadcast_to(jnp.linspace(-1, 1, cols)[None, None, :, None], (b, rows, cols, 1))
    ys = jnp.broadcast_to(jnp.linspace(-1, 1, rows)[None, :, None, None], (b, rows, cols, 1))
    return jnp.concatenate([x, xs.astype(x.dtype), ys.astype(x.dtype)], -1)
