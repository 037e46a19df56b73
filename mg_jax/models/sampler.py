"""The spatial-aware visual sampler: a region of any shape -> one vector (Ferret spec 4).

Points of the region, each with the feature read there, are thinned out in stages: an anchor takes
in what lies around it, relative to itself. The anchors that remain, in the order in which they were
chosen, are flattened into the vector.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen import initializers as init
from jaxtyping import Array, Float, Int

from mg_jax import ops
from mg_jax.nn import Linear, fan_in_init, layer_norm, over_batch, param
from mg_jax.ops.point_sample import farthest_points, nearest_points, take_points
from mg_jax.sharding import gathered, shard

EPS = 1e-5
MAX_BYTES = 256 * 2**20  # of the neighbours' features of one image at a time
EXACT = jax.lax.Precision.HIGHEST


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """`points` a region begins with, and of every stage the anchors and the neighbours of each.

    pooler: how an anchor's neighbours become one feature; every published script uses "max".
    residual: the mean of the points' features is added, and the last map begins as zero: a vector
        then begins as that mean, and a model from scratch need not find its way through both stages
        before regions mean anything. Published ones have no such path.
    """

    points: int = 512
    anchors: tuple[int, ...] = (128, 32)
    neighbours: tuple[int, ...] = (24, 24)
    pooler: Literal["max", "mean"] = "max"
    residual: bool = False


class Held(nn.Module):
    """A kernel (or scale) and a bias, handed out rather than applied."""

    shape: tuple[int, ...]

    @nn.compact
    def __call__(self) -> tuple[jax.Array, jax.Array]:
        if len(self.shape) == 1:
            kernel = param(self, "scale", self.shape, (None,), init.ones)
        else:
            axes = ("embed_out", "embed")
            kernel = param(self, "kernel", self.shape, axes, fan_in_init(1))
            kernel = shard(kernel, *gathered(axes))
        bias = param(self, "bias", self.shape[-1:], (None,), init.zeros)
        return kernel.astype(jnp.float32), bias.astype(jnp.float32)


class Stage(nn.Module):
    """Parameters: diff [C+2, C+2], mix [2(C+2), C], norm.

    Of a neighbour l and its anchor a, features and coordinates side by side: d = diff(l - a),
    then norm(relu(mix([d, a]))), pooled over the neighbours. Both maps are linear, so their
    product is applied to every point once, and what is gathered are the results: l - a for 24
    neighbours of 128 anchors would cost ten times as much.
    """

    width: int
    pooler: str

    @nn.compact
    def __call__(self, features, points, fps, knn):
        w = self.width + 2
        diff, shift = Held((w, w), name="diff")()
        mix, bias = Held((2 * w, self.width), name="mix")()
        norm = Held((self.width,), name="norm")()
        apart = project(features, points, jnp.dot(diff, mix[:w]))
        anchors, places = take_points(features, fps), take_points(points, fps)
        still = project(anchors, places, mix[w:]) - take_points(apart, fps)
        still += (jnp.dot(shift, mix[:w]) + bias)[None, None, None]

        def pooled(knn, still, apart):
            near = take_points(apart, knn)
            x = layer_norm(jax.nn.relu(near + still[:, :, :, None]), *norm, EPS)
            return largest(x) if self.pooler == "max" else x.mean(3)

        if self.is_mutable_collection("intermediates"):
            self.spell_out(features, points, fps, knn, (diff, shift), (mix, bias), norm)
        size = ops.chunk_size(knn.shape[1], 8 * knn[0, 0].size * self.width, MAX_BYTES)
        return ops.map_chunks(pooled, size, knn, still, apart), places

    def spell_out(self, features, points, fps, knn, diff, mix, norm):
        """Leave behind d and norm(relu(mix)) of every neighbour, as the original computes them."""
        x = jnp.concatenate([features, points], -1)
        anchors = take_points(x, fps)[:, :, :, None]
        d = affine(take_points(x, knn) - anchors, *diff)
        both = jnp.concatenate([d, jnp.broadcast_to(anchors, d.shape)], -1)
        self.sow("intermediates", "diff_out", d)
        mixed = layer_norm(jax.nn.relu(affine(both, *mix)), norm[0], norm[1], EPS)
        self.sow("intermediates", "mix_out", mixed)


def largest(x: Float[Array, "B Q n k C"]) -> Float[Array, "B Q n C"]:
    """Maximum over the neighbours; of equals the first has the gradient, as PyTorch's.

    jax's own divides by the number of those equal to the maximum, which is 0, and the gradient NaN,
    where XLA computes them once for the maximum and again, rounded otherwise, to compare.
    """
    at = jnp.argmax(x, 3, keepdims=True)
    chosen = jax.lax.broadcasted_iota(at.dtype, x.shape, 3) == at
    return jnp.where(chosen, x, 0).sum(3)


def affine(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """x . kernel + bias."""
    return jnp.dot(x, kernel) + bias.reshape((1,) * (x.ndim - 1) + (-1,))


def project(features: jax.Array, points: jax.Array, kernel: jax.Array) -> jax.Array:
    """[features, points] . kernel; coordinates of neighbours differ little, so they stay exact."""
    c = features.shape[-1]
    return jnp.dot(features, kernel[:c]) + jnp.dot(points, kernel[c:], precision=EXACT)


def group(
    points: Float[Array, "B Q P 2"],
    anchors: int,
    neighbours: int,
    start: Int[Array, "B Q"],
    fps: Int[Array, "B Q n"] | None = None,
    knn: Int[Array, "B Q n k"] | None = None,
) -> tuple[Int[Array, "B Q n"], Int[Array, "B Q n k"]]:
    """Farthest-point anchors of every region's points and the neighbours of each anchor.

    `fps` and `knn` take the place of what would be found. Every device computes the regions of its
    own rows.
    """
    points = jax.lax.stop_gradient(points.astype(jnp.float32))
    if fps is None:

        def find(points, start):
            return jax.vmap(lambda p, s: farthest_points(p, anchors, s))(points, start)

        fps = over_batch(find, (points, start), (0, 0), 0)
    if knn is None:

        def near(points, fps):
            chosen = take_points(points, fps)
            return jax.vmap(lambda p, a: nearest_points(p, a, neighbours))(points, chosen)

        knn = over_batch(near, (points, fps), (0, 0), 0)
    return fps, knn


class GeoRegionSampler(nn.Module):
    """Parameters: stage0, stage1, ... (diff, mix, norm), flatten, output.

    Computes in float32. The first anchor of every stage is the first point, or a random one where
    `apply` was given an rng named "points"; upstream draws it even at inference.
    """

    cfg: SamplerConfig
    width: int
    out: int

    @nn.compact
    def __call__(
        self,
        features: Float[Array, "B Q P C"],
        points: Float[Array, "B Q P 2"],
        fed: Mapping[str, jax.Array] | None = None,
    ) -> tuple[Float[Array, "B Q D"], dict[str, Any]]:
        """One vector per region, and of every stage its points, indexes and pooled features.

        `fed` may hold fps_0, knn_0, fps_1, ...: indexes that take the place of those found.
        """
        c, fed = self.cfg, fed or {}
        aux: dict[str, Any] = {}
        x, xy = features.astype(jnp.float32), points.astype(jnp.float32)
        for i, (n, k) in enumerate(zip(c.anchors, c.neighbours, strict=True)):
            start = jnp.zeros(xy.shape[:2], jnp.int32)
            if self.has_rng("points"):
                start = jax.random.randint(self.make_rng("points"), start.shape, 0, xy.shape[2])
            fps, knn = group(xy, n, k, start, fed.get(f"fps_{i}"), fed.get(f"knn_{i}"))
            x, xy = Stage(self.width, c.pooler, name=f"stage{i}")(x, xy, fps, knn)
            aux[f"stage{i}"] = {"points": xy, "fps": fps, "knn": knn, "pooled": x}
        x = x.reshape(*x.shape[:2], -1)
        size = c.anchors[-1] * self.width
        x = aux["flat"] = Linear((size, self.width), ("embed", "mlp"), name="flatten")(x)
        shape, first = (self.width, self.out), init.zeros if c.residual else None
        x = Linear(shape, ("mlp", "embed"), kernel_init=first, name="output")(x)
        return x + features.astype(jnp.float32).mean(2) if c.residual else x, aux
