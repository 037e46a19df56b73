"""ConvNeXt as timm and open_clip build it. NHWC pictures in, the feature map of every stage out."""

import dataclasses
from collections.abc import Callable
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen import initializers as init
from jaxtyping import Array, Float

from mg_jax.nn import MLP, Conv, LayerNorm, fan_in_init, param, stack, unrolled
from mg_jax.ops.depthwise import depthwise
from mg_jax.sharding import shard


@dataclasses.dataclass(frozen=True)
class ConvNeXtConfig:
    """Shape of an encoder; the default is convnext_large (MG-LLaVA spec 1).

    `depths` and `widths`: blocks and channels of each stage. `image_size`: side of the pictures it
    was trained on; any multiple of the last stride will do. `layer_scale`: what the scale of each
    block starts from; timm's is for very deep encoders.
    """

    kind: Literal["convnext"] = "convnext"
    depths: tuple[int, ...] = (3, 3, 27, 3)
    widths: tuple[int, ...] = (192, 384, 768, 1536)
    image_size: int = 320
    eps: float = 1e-6
    layer_scale: float = 1e-6
    dtype: str = "float32"
    remat: str = "none"
    scan: bool = True

    @property
    def stride(self) -> int:
        """Pixels per cell of the last feature map."""
        return 4 * 2 ** (len(self.depths) - 1)


class Depthwise(nn.Module):
    """7x7 convolution of each channel by itself, with a bias."""

    width: int
    side: int = 7
    dtype: jnp.dtype = jnp.float32
    kernel_init: Callable = fan_in_init(2)

    @nn.compact
    def __call__(self, x: Float[Array, "B Y X C"]) -> Float[Array, "B Y X C"]:
        shape, axes = (self.side, self.side, self.width), ("taps", "taps", "conv_out")
        kernel = param(self, "kernel", shape, axes, self.kernel_init)
        bias = param(self, "bias", (self.width,), (None,), init.zeros)
        return depthwise(x.astype(self.dtype), kernel) + bias.astype(self.dtype)[None, None, None]


class Block(nn.Module):
    """x + scale * MLP(norm(depthwise(x))); the second term is left out of a row at `rate`."""

    cfg: ConvNeXtConfig
    width: int

    @nn.compact
    def __call__(self, x, rate):
        c, dtype = self.cfg, jnp.dtype(self.cfg.dtype)
        h = Depthwise(self.width, dtype=dtype, name="conv")(x)
        h = LayerNorm(self.width, c.eps, dtype, name="norm")(h)
        h = MLP(self.width, 4 * self.width, dtype=dtype, name="mlp")(h)
        scale = param(self, "scale", (self.width,), (None,), init.constant(c.layer_scale))
        h = scale.astype(dtype)[None, None, None] * h
        if rate is not None:
            keep = jax.random.bernoulli(self.make_rng("dropout"), 1 - rate, (len(x), 1, 1, 1))
            h = jnp.where(keep, h / (1 - rate).astype(dtype), jnp.zeros_like(h))
        x = x + h
        return shard(x, "batch", "grid", "grid", "act_embed"), None


class Stage(nn.Module):
    """Halve the map (all stages but the first), then equal blocks, scanned.

    `rates`: how often each block is left out of a row, where an rng "dropout" is given.
    """

    cfg: ConvNeXtConfig
    index: int
    rates: tuple[float, ...] = ()

    @nn.compact
    def __call__(self, x: Float[Array, "B Y X C"]) -> Float[Array, "B y x D"]:
        c, dtype = self.cfg, jnp.dtype(self.cfg.dtype)
        width, depth = c.widths[self.index], c.depths[self.index]
        if self.index:
            before = c.widths[self.index - 1]
            x = LayerNorm(before, c.eps, dtype, name="down_norm")(x)
            x = Conv((2, 2, before, width), stride=2, dtype=dtype, name="down")(x)
        stacked = stack(Block, depth, remat=c.remat)(c, width, name="blocks")
        if c.scan or self.is_initializing():
            dropped = any(self.rates) and self.has_rng("dropout")
            return stacked(x, jnp.asarray(self.rates, jnp.float32) if dropped else None)[0]
        return unrolled(stacked, Block(c, width, parent=None), depth, x)[0]


class ConvNeXt(nn.Module):
    """Parameters: stem, stem_norm, stage{i} (down_norm, down, blocks). No final norm, no head.

    `drop_path`: stochastic depth of training, active where `apply` is given an rng "dropout" (and
    the blocks are scanned): block i of n is left out of a row of the batch at the rate
    drop_path * i / (n - 1), and divided by the rate of staying in the other rows (timm's rule).
    """

    cfg: ConvNeXtConfig
    drop_path: float = 0.0

    @nn.compact
    def __call__(self, pixels: Float[Array, "B Y X 3"]) -> tuple[Float[Array, "B y x D"], ...]:
        """The map of every stage, finest first: strides 4, 8, 16 and 32 (MG-LLaVA spec 2).

        Raises ValueError when the sides are not multiples of the last stride, or depths and
        widths differ in number.
        """
        c, dtype = self.cfg, jnp.dtype(self.cfg.dtype)
        height, width = pixels.shape[1:3]
        if len(c.depths) != len(c.widths):
            raise ValueError(f"depths {c.depths} and widths {c.widths} differ in number")
        if height % c.stride or width % c.stride:
            raise ValueError(f"picture {width}x{height} is not a multiple of stride {c.stride}")
        x = Conv((4, 4, 3, c.widths[0]), stride=4, dtype=dtype, name="stem")(pixels)
        x = LayerNorm(c.widths[0], c.eps, dtype, name="stem_norm")(x)
        rates = np.linspace(0, self.drop_path, sum(c.depths)).tolist()
        maps = []
        for i, depth in enumerate(c.depths):
            first = sum(c.depths[:i])
            x = Stage(c, i, tuple(rates[first : first + depth]), name=f"stage{i}")(x)
            maps.append(x)
        return tuple(maps)
