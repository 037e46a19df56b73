"""High-resolution features into the low-resolution tokens: MG-LLaVA's Conv-Gate and its rivals.

The published module (spec 2.3), the paper's equation 3, which differs from it, and the modules its
table 5a compares. `low` are the ViT's patches, `maps` the stages of the ConvNeXt, finest first; the
last one has a cell per patch. Every module returns (fused, aux), the tokens [B,P,*] that the
projector reads, of width `fused_width`.
"""

import dataclasses
import math
from typing import Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen import initializers as init
from jaxtyping import Array, Bool, Float

from mg_jax.attention import attend
from mg_jax.nn import MLP, LayerNorm, Linear, gelu
from mg_jax.ops.sine import waves
from mg_jax.vision.convnext import Depthwise

Fusion = Literal["conv_gate", "conv_gate_paper", "none", "resampler", "concat", "patch_info"]


@dataclasses.dataclass(frozen=True)
class Widths:
    """Channels of the low-resolution tokens and of each high-resolution map; attention heads."""

    low: int
    maps: tuple[int, ...]
    heads: int
    dtype: str = "float32"


def fused_width(kind: Fusion, widths: Widths) -> int:
    """Channels of the fused tokens."""
    return widths.low + (widths.maps[-1] if kind == "concat" else 0)


def fusion_module(kind: Fusion, widths: Widths) -> nn.Module:
    """The module of `kind`. Raises ValueError for an unknown one.

    "conv_gate", as published; "conv_gate_paper", the paper's equation 3; "none", the low-resolution
    tokens as they are; "concat", joined on channels; "resampler", the tokens read the last map by
    cross-attention; "patch_info", each token reads the cells of all maps under its patch.
    """
    match kind:
        case "conv_gate" | "conv_gate_paper":
            return ConvGate(widths, paper=kind == "conv_gate_paper")
        case "none":
            return LowOnly()
        case "concat":
            return Concat()
        case "resampler":
            return Resampler(widths)
        case "patch_info":
            return PatchInfo(widths)
    raise ValueError(f"fusion={kind!r} is not one of {', '.join(get_args(Fusion))}")


def tokens(features: Float[Array, "B Y X C"]) -> Float[Array, "B Y*X C"]:
    """A map row by row."""
    return features.reshape(features.shape[0], -1, features.shape[-1])


class LowOnly(nn.Module):
    """The low-resolution tokens, without parameters."""

    @nn.compact
    def __call__(self, low, maps):
        return low, {}


class Concat(nn.Module):
    """[low, high] on channels, without parameters: the projector does the rest."""

    @nn.compact
    def __call__(self, low, maps):
        high = tokens(maps[-1]).astype(low.dtype)
        return jnp.concatenate([low, high], -1), {}


def xavier_depthwise(key, shape, dtype=jnp.float32):
    """PyTorch's xavier_uniform of a depthwise kernel: channels count as outputs, not as inputs."""
    taps, channels = math.prod(shape[:-1]), shape[-1]
    bound = math.sqrt(6 / (taps + taps * channels))
    return jax.random.uniform(key, shape, dtype, -bound, bound)


class ConvGate(nn.Module):
    """Both streams refined by small convolutions, the high one added through a gate.

    H' = slow_proj(gelu(slow_conv(H))), L' = L + fast_proj(gelu(fast_conv(L))), and
      published: L' + H' * tanh(g), g one number a picture, of the mean over patches of [L', H'];
      paper:     L + H' * tanh(g),  g one number a patch, of its own [L', H'] (equation 3: base
                 and gated tensor are plain features, G is not pooled; H must have L's width, so
                 its projection stands for it).
    Both projections start at zero, so that training starts from the low-resolution tokens.
    """

    widths: Widths
    paper: bool = False

    @nn.compact
    def __call__(self, low: Float[Array, "B P D"], maps) -> tuple[Float[Array, "B P D"], dict]:
        w, dtype = self.widths, jnp.dtype(self.widths.dtype)
        d, c = w.low, w.maps[-1]

        def linear(name, shape, axes, kernel_init):
            return Linear(shape, axes, dtype=dtype, kernel_init=kernel_init, name=name)

        high = tokens(maps[-1])
        h = gelu(linear("slow_conv", (c, c), ("embed", "mlp"), init.xavier_uniform())(high))
        high = linear("slow_proj", (c, d), ("mlp", "embed"), init.zeros)(h)
        b, p, _ = low.shape
        side = math.isqrt(p)
        grid = low.reshape(b, side, side, d)
        depthwise = Depthwise(d, dtype=dtype, kernel_init=xavier_depthwise, name="fast_conv")
        h = gelu(tokens(depthwise(grid)))
        low = low.astype(dtype)
        refined = low + linear("fast_proj", (d, d), ("embed", "embed_out"), init.zeros)(h)
        seen = jnp.concatenate([refined, high], -1)
        if not self.paper:
            seen = seen.astype(jnp.float32).mean(1, keepdims=True).astype(dtype)
        gate = MLP(2 * d, d // 2, 1, dtype=dtype, name="gate")(seen)
        base = low if self.paper else refined
        return base + high * jnp.tanh(gate), {"gate_input": seen, "gate": gate}


class CrossAttention(nn.Module):
    """x + o(attention of norm(x) over norm(y)); o starts at zero, so x passes unchanged at first.

    `mask` [B,S]: rows of y that exist; where there is none x passes unchanged as well. `places`:
    what is added to queries and keys before their projections, so that they find each other.
    """

    width: int
    source: int
    heads: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        y: Float[Array, "B S C"],
        mask: Bool[Array, "B S"] | None = None,
        places: tuple[jax.Array, jax.Array] | None = None,
    ) -> Float[Array, "B T D"]:
        head = self.width // self.heads
        queries = LayerNorm(self.width, 1e-6, self.dtype, name="norm")(x)
        values = LayerNorm(self.source, 1e-6, self.dtype, name="source_norm")(y)
        keys = values
        if places is not None:
            at, of = (p[None].astype(self.dtype) for p in places)
            queries, keys = queries + at, keys + of

        def project(name, width, x):
            shape, axes = (width, self.heads, head), ("embed", "heads", "head")
            return Linear(shape, axes, 2, dtype=self.dtype, name=name)(x)

        q, k = project("q", self.width, queries), project("k", self.source, keys)
        v = project("v", self.source, values)
        seen = None if mask is None else jnp.broadcast_to(mask[:, None], (*q.shape[:2], k.shape[1]))
        out = attend(q, k, v, seen)
        shape, axes = (self.heads, head, self.width), ("heads", "head", "embed")
        out = Linear(shape, axes, dtype=self.dtype, kernel_init=init.zeros, name="o")(out)
        if mask is not None:
            out = jnp.where(mask.any(1)[:, None, None], out, jnp.zeros_like(out))
        return x.astype(self.dtype) + out


class Resampler(nn.Module):
    """Every token reads the whole last map by cross-attention, then an MLP; both are added."""

    widths: Widths

    @nn.compact
    def __call__(self, low, maps):
        w, dtype = self.widths, jnp.dtype(self.widths.dtype)
        c, high = w.maps[-1], tokens(maps[-1])
        sides = math.isqrt(low.shape[1]), maps[-1].shape[1]
        places = jnp.asarray(waves(sides[0], w.low)), jnp.asarray(waves(sides[1], c))
        attention = CrossAttention(w.low, c, w.heads, dtype, name="attention")
        x = attention(low, high, places=places)
        h = LayerNorm(w.low, 1e-6, dtype, name="norm")(x)
        return x + MLP(w.low, 4 * w.low, dtype=dtype, name="mlp")(h), {}


class PatchInfo(nn.Module):
    """Every token attends to the high-resolution cells under its own patch; the result is added.

    Mini-Gemini's patch info mining (arXiv 2403.18814), one head, over 1 + 4 + 16 + 64 cells of the
    four stages, each stage with its own projections: Mini-Gemini joins the enlarged stages on
    channels, and enlarging is what costs.
    """

    widths: Widths

    @nn.compact
    def __call__(self, low, maps):
        w, dtype = self.widths, jnp.dtype(self.widths.dtype)
        side = math.isqrt(low.shape[1])

        def project(name, width, x):
            x = LayerNorm(width, 1e-5, dtype, name=f"{name}_norm")(x)
            return Linear((width, w.low), ("embed", "embed_out"), dtype=dtype, name=name)(x)

        query = project("query", w.low, low)
        cells = [under_patches(m, side) for m in maps]

        def read(name):
            parts = [project(f"{name}{i}", c, cells[i]) for i, c in enumerate(w.maps)]
            return jnp.concatenate(parts, 2)

        keys, values = read("key"), read("value")
        logits = jnp.einsum("bpd,bpsd->bps", query, keys).astype(jnp.float32) / math.sqrt(w.low)
        weights = jax.nn.softmax(logits, axis=-1).astype(dtype)
        return low.astype(dtype) + jnp.einsum("bps,bpsd->bpd", weights, values), {}


def under_patches(features: Float[Array, "B Y X C"], side: int) -> Float[Array, "B P S C"]:
    """The cells of a map that lie under each of side x side patches, both row by row."""
    b, rows, _, c = features.shape
    n = rows // side
    x = features.reshape(b, side, n, side, n, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, side * side, n * n, c)
