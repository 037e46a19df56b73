"""Vision transformer by config: DINOv2 or CLIP. NHWC pictures in, hidden states out."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen import initializers as init
from jaxtyping import Array, Float

from mg_jax import fused
from mg_jax.attention import attend
from mg_jax.nn import MLP, LayerNorm, Linear, fan_in_init, gelu, param, stack, unrolled
from mg_jax.ops.resize import resize_positions
from mg_jax.ops.sine import waves
from mg_jax.sharding import shard


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """Shape of an encoder. `image_size` fixes the stored position grid, not the input size.

    kind: "dinov2", patches with a bias, layer scale, a mask token; "clip", patches without, a
      norm before the first block, neither of the others. OWLv2's tower is of kind "clip".
    registers: tokens between CLS and patches that have no position (DINOv2 with registers).
    position_rule: how the grid is resized to another input. "size": to the target size;
      "size_antialias": the same, antialiased (DINOv2 with registers); "scale_offset": by the
      factor (target + 0.1) / stored, as transformers did until 4.4x, which the published Groma
      weights were trained with (Groma spec 2.1).
    attention: as of lm.LMConfig.
    """

    kind: Literal["dinov2", "clip"] = "dinov2"
    width: int = 1024
    layers: int = 24
    heads: int = 16
    mlp_ratio: float = 4.0
    activation: Literal["gelu", "quick_gelu"] = "gelu"
    patch: int = 14
    image_size: int = 518
    registers: int = 0
    eps: float = 1e-6
    position_rule: Literal["size", "size_antialias", "scale_offset"] = "size"
    layer_scale: float = 1.0
    dtype: str = "float32"
    remat: str = "none"
    scan: bool = True
    attention: Literal["auto", "plain", "fused"] = "auto"

    @property
    def grid(self) -> int:
        """Rows (= columns) of the stored position grid."""
        return self.image_size // self.patch

    @property
    def hidden(self) -> int:
        """Width of the MLP; rounded, for a ratio of two widths may not be exact."""
        return round(self.width * self.mlp_ratio)


def quick_gelu(x: jax.Array) -> jax.Array:
    """x * sigmoid(1.702 x), OpenAI CLIP's activation."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable] = {"gelu": gelu, "quick_gelu": quick_gelu}


class Block(nn.Module):
    cfg: ViTConfig

    @nn.compact
    def __call__(self, x, _):
        c = self.cfg
        dtype = jnp.dtype(c.dtype)
        head = c.width // c.heads
        h = LayerNorm(c.width, c.eps, dtype, name="norm1")(x)
        h = SelfAttention(c.width, c.heads, head, dtype, c.attention, name="attn")(h)
        x = x + self._scaled("scale1", h)
        h = LayerNorm(c.width, c.eps, dtype, name="norm2")(x)
        activation = ACTIVATIONS[c.activation]
        h = MLP(c.width, c.hidden, activation=activation, dtype=dtype, name="mlp")(h)
        x = shard(x + self._scaled("scale2", h), "batch", "seq", "act_embed")
        return x, x

    def _scaled(self, name, h):
        if self.cfg.kind == "clip":
            return h
        value = init.constant(self.cfg.layer_scale)
        scale = param(self, name, (self.cfg.width,), (None,), value)
        return scale.astype(self.cfg.dtype)[None, None] * h


class SelfAttention(nn.Module):
    """Multi-head self-attention with biases, no mask."""

    width: int
    heads: int
    head: int
    dtype: jnp.dtype = jnp.float32
    attention: str = "auto"

    @nn.compact
    def __call__(self, x):
        shape, axes = (self.width, self.heads, self.head), ("embed", "heads", "head")
        q, k, v = (Linear(shape, axes, 2, dtype=self.dtype, name=n)(x) for n in "qkv")
        out = (fused.attend if fused.chosen(self.attention, x.shape[1]) else attend)(q, k, v)
        shape, axes = (self.heads, self.head, self.width), ("heads", "head", "embed")
        return Linear(shape, axes, 1, True, self.dtype, fan_in_init(2), name="o")(out)


class ViT(nn.Module):
    """Parameters: patch, cls, positions, blocks, norm; mask_token (kept for export, unused) and
    registers of DINOv2; norm_pre of CLIP."""

    cfg: ViTConfig

    @nn.compact
    def __call__(
        self, pixels: Float[Array, "B Y X 3"]
    ) -> tuple[Float[Array, "L+1 B 1+R+P D"], Float[Array, "B 1+R+P D"]]:
        """Hidden states of every layer (index 0: what enters the first), and the normed last.

        Hidden states are values of the residual stream: the final norm is not applied to them.
        Of CLIP, states[-1] is transformers' last_hidden_state, normed[:, 0] its pooler_output,
        and states[-2] what LLaVA's family reads. Tokens: CLS, registers, then patches row by row.
        Raises ValueError when the sides are not multiples of the patch.
        """
        c = self.cfg
        dtype = jnp.dtype(c.dtype)
        b, height, width, _ = pixels.shape
        if height % c.patch or width % c.patch:
            raise ValueError(f"picture {width}x{height} is not a multiple of patch {c.patch}")
        rows, cols = height // c.patch, width // c.patch
        patches = pixels.reshape(b, rows, c.patch, cols, c.patch, 3).transpose(0, 1, 3, 2, 4, 5)
        shape = (c.patch, c.patch, 3, c.width)
        axes = ("taps", "taps", "conv_in", "embed")
        x = Linear(shape, axes, bias=c.kind == "dinov2", dtype=dtype, name="patch")(patches)
        x = x.reshape(b, rows * cols, c.width)

        cls = param(self, "cls", (c.width,), (None,), init.normal(0.02))
        if c.kind == "dinov2":
            param(self, "mask_token", (c.width,), (None,), init.zeros)
        table = param(self, "positions", (1 + c.grid**2, c.width), (None, "embed"), _waves)
        positions = self._positions(table, rows, cols).astype(dtype)
        lead = cls.astype(dtype)[None] + positions[:1]
        if c.registers:
            shape = (c.registers, c.width)
            registers = param(self, "registers", shape, (None, "embed"), init.normal(0.02))
            lead = jnp.concatenate([lead, registers.astype(dtype)])
        lead = jnp.broadcast_to(lead[None], (b, *lead.shape))
        x = jnp.concatenate([lead, x + positions[None, 1:]], axis=1)
        if c.kind == "clip":
            x = LayerNorm(c.width, c.eps, dtype, name="norm_pre")(x)

        stacked = stack(Block, c.layers, remat=c.remat)(c, name="blocks")
        if c.scan or self.is_initializing():
            last, states = stacked(x, None)
        else:
            last, states = unrolled(stacked, Block(c, parent=None), c.layers, x)
        norm = LayerNorm(c.width, c.eps, dtype, name="norm")(last)
        return jnp.concatenate([x[None], states]), norm

    def _positions(self, table: jax.Array, rows: int, cols: int) -> jax.Array:
        c = self.cfg
        grid = table[1:].reshape(c.grid, c.grid, c.width)
        grid = resize_positions(grid, (rows, cols), c.position_rule)
        return jnp.concatenate([table[:1], grid.reshape(rows * cols, c.width)])


def _waves(key: jax.Array, shape: tuple[int, int], dtype: Any = jnp.float32) -> jax.Array:
    """Positions that start as sine waves, as MAE's do, and are learned from there."""
    places = jnp.asarray(waves(math.isqrt(shape[0] - 1), shape[1]), dtype)
    return jnp.concatenate([jnp.zeros((1, shape[1]), dtype), places])
