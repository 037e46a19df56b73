"""Where every parameter is born: shape, axis names and initialiser in one line.

Letters used in shapes, einsums and comments throughout:
  B batch  T query tokens  S key tokens  D model width  N heads  K key/value heads  G = N/K
  H head width  F mlp width  V vocabulary  L layers  P patches  Y,X grid rows and columns
  C channels  M feature levels  R regions (boxes)  Q detector queries  Z sampling points
  4 = a box

Kernels are stored [in..., out...]. Parameters are float32 from init; a module computes in its
`dtype`, and norms always in float32.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen import initializers as init
from jax.sharding import PartitionSpec

from mg_jax import sharding
from mg_jax.sharding import Named, gathered, shard

Dtype = Any


def param(
    module: nn.Module,
    name: str,
    shape: Sequence[int],
    axes: Sequence[str | None],
    initializer: Callable,
    dtype: Dtype = jnp.float32,
) -> jax.Array:
    """Declare a parameter of `module`: its shape, logical axes (see sharding.RULES) and init."""
    if len(shape) != len(axes):
        raise ValueError(f"{name}: {len(axes)} axis names {tuple(axes)} for shape {tuple(shape)}")

    def boxed(key):
        return Named(initializer(key, tuple(shape), dtype), names=tuple(axes))

    return module.param(name, boxed)


def fan_in_init(in_dims: int, scale: float = 1.0, mode: str = "fan_in") -> Callable:
    """Truncated normal of variance scale/fan for a kernel whose first `in_dims` axes are input."""

    def make(key, shape, dtype=jnp.float32):
        fan_in, fan_out = math.prod(shape[:in_dims]), math.prod(shape[in_dims:])
        fan = fan_in if mode == "fan_in" else (fan_in + fan_out) / 2
        return jax.random.truncated_normal(key, -2, 2, shape, dtype) * math.sqrt(scale / fan) / 0.88

    return make


class Linear(nn.Module):
    """y[..., out] = x[..., in] . kernel[in, out] + bias[out]; `in` and `out` may be several axes.

    `shape` is the kernel's whole shape, of which the last `out_dims` axes are output. `quant`:
    "int8" or "int4" declare a kernel of that type, made by quant.py and not trained, and
    kernel_scale [groups, out...], float32: one number an output for int8, multiplied after the
    product; for int4 one for each group of inputs, multiplied before.
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    out_dims: int = 1
    bias: bool = True
    dtype: Dtype = jnp.float32
    kernel_init: Callable | None = None
    bias_init: Callable = init.zeros
    quant: str = "none"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        in_dims = len(self.shape) - self.out_dims
        contract = tuple(range(x.ndim - in_dims, x.ndim)), tuple(range(in_dims))
        if self.quant == "none":
            kernel_init = self.kernel_init or fan_in_init(in_dims)
            kernel = param(self, "kernel", self.shape, self.axes, kernel_init)
        else:
            kernel = param(self, "kernel", self.shape, self.axes, init.zeros, self.quant)
            groups = quant_groups(self.quant, self.shape[:in_dims])
            along = self.axes[0] if groups > 1 else None  # groups lie as the inputs they are of
            shape, axes = (groups, *self.shape[in_dims:]), (along, *self.axes[in_dims:])
            scale = param(self, "kernel_scale", shape, axes, init.ones)
            if groups > 1:
                parts = kernel.astype(self.dtype).reshape(groups, -1, *self.shape[in_dims:])
                kernel = (parts * scale[:, None].astype(self.dtype)).reshape(self.shape)
        if (used := gathered(self.axes)) != self.axes:
            kernel = shard(kernel, *used)
        y = jax.lax.dot_general(
            x.astype(self.dtype), kernel.astype(self.dtype), (contract, ((), ()))
        )
        if self.quant != "none" and groups == 1:
            y = y * scale.astype(self.dtype).reshape((1,) * (y.ndim - self.out_dims) + shape[1:])
        if self.bias:
            shape, axes = self.shape[in_dims:], gathered(self.axes[in_dims:])
            bias = param(self, "bias", shape, axes, self.bias_init).astype(self.dtype)
            y = y + bias.reshape((1,) * (y.ndim - bias.ndim) + bias.shape)
        return y


QUANTS = ("none", "int8", "int4")
GROUP = 128  # inputs that share a scale of int4, at most


def quant_groups(quant: str, in_shape: Sequence[int]) -> int:
    """Groups of inputs with scales of their own in a quantized kernel: for int4 the fewest, equal,
    of at most GROUP inputs."""
    size = math.prod(in_shape)
    if quant == "int8":
        return 1
    return next(size // g for g in range(min(GROUP, size), 0, -1) if size % g == 0)


class Conv(nn.Module):
    """2-D convolution, NHWC, kernel [y, x, in, out]; `padding` in pixels on each side."""

    shape: tuple[int, int, int, int]
    stride: int = 1
    padding: int = 0
    bias: bool = True
    dtype: Dtype = jnp.float32
    kernel_init: Callable | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        axes = ("taps", "taps", "conv_in", "conv_out")
        kernel = param(self, "kernel", self.shape, axes, self.kernel_init or fan_in_init(3))
        y = conv2d(x, kernel, self.stride, self.padding, self.dtype)
        if self.bias:
            bias = param(self, "bias", self.shape[3:], (None,), init.zeros)
            y = y + bias.astype(self.dtype)[None, None, None]
        return y


def conv2d(x, kernel, stride: int = 1, padding: int = 0, dtype: Dtype = jnp.float32):
    """NHWC convolution of x[B,Y,X,C] with kernel[y,x,C,C']; zero padding in pixels.

    On a mesh the kernel is gathered first, and only the batch is split: with kernel and batch split
    over the same axis, or channels over another (the bias's, say), XLA's partitioner returned
    wrong gradients (seen with jax 0.10 on CPU devices).
    """
    kernel = shard(kernel, None, None, None, None)
    x = shard(x.astype(dtype), "batch", None, None, None)
    y = jax.lax.conv_general_dilated(
        x,
        kernel.astype(dtype),
        (stride, stride),
        ((padding, padding), (padding, padding)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return shard(y, "batch", None, None, None)


class ConvTranspose(nn.Module):
    """2-D transposed convolution with stride = kernel size (PyTorch's ConvTranspose2d(k, k)).

    kernel [y, x, in, out], unflipped: y[b, i*k+u, j*k+v] = x[b, i, j] . kernel[u, v] + bias.
    """

    shape: tuple[int, int, int, int]
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        axes = ("taps", "taps", "conv_in", "conv_out")
        kernel = param(self, "kernel", self.shape, axes, fan_in_init(3))
        bias = param(self, "bias", self.shape[3:], (None,), init.zeros)
        k = self.shape[0]
        y = jnp.einsum("byxc,uvcd->byuxvd", x.astype(self.dtype), kernel.astype(self.dtype))
        b, rows, _, cols, _, d = y.shape
        return y.reshape(b, rows * k, cols * k, d) + bias.astype(self.dtype)[None, None, None]


class Embed(nn.Module):
    """Table [V, D]; call looks ids up, `attend` multiplies by its transpose (tied head)."""

    vocab: int
    width: int
    dtype: Dtype = jnp.float32
    std: float = 0.02

    def setup(self):
        shape, axes = (self.vocab, self.width), ("vocab", "embed")
        self.embedding = param(self, "embedding", shape, axes, init.normal(self.std))

    def __call__(self, ids: jax.Array) -> jax.Array:
        return jnp.take(self.embedding, ids, axis=0).astype(self.dtype)

    def attend(self, x: jax.Array) -> jax.Array:
        return jnp.einsum("...d,vd->...v", x.astype(self.dtype), self.embedding.astype(self.dtype))


class LayerNorm(nn.Module):
    """Normalisation over the last axis with biased variance, in float32."""

    width: int
    eps: float = 1e-6
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = param(self, "scale", (self.width,), (None,), init.ones)
        bias = param(self, "bias", (self.width,), (None,), init.zeros)
        return layer_norm(x, scale, bias, self.eps).astype(self.dtype)


def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, eps: float) -> jax.Array:
    """LayerNorm over the last axis, in float32 and returned so."""
    x = x.astype(jnp.float32)
    mean = x.mean(-1, keepdims=True)
    var = jnp.square(x - mean).mean(-1, keepdims=True)
    lead = (1,) * (x.ndim - 1)
    y = (x - mean) * jax.lax.rsqrt(var + eps)
    return y * scale.reshape(*lead, -1) + bias.reshape(*lead, -1)


class RMSNorm(nn.Module):
    """x / rms(x) * scale over the last axis, in float32 (the scale after the cast, as Llama)."""

    width: int
    eps: float = 1e-5
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = param(self, "scale", (self.width,), (None,), init.ones)
        x = x.astype(jnp.float32)
        y = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + self.eps)
        return y.astype(self.dtype) * scale.astype(self.dtype).reshape((1,) * (x.ndim - 1) + (-1,))


def group_norm(x, scale, bias, groups: int, eps: float = 1e-5):
    """GroupNorm of NHWC `x` over (rows, columns, channels of a group), in float32."""
    b, rows, cols, c = x.shape
    g = x.astype(jnp.float32).reshape(b, rows, cols, groups, c // groups)
    mean = g.mean((1, 2, 4), keepdims=True)
    var = jnp.square(g - mean).mean((1, 2, 4), keepdims=True)
    y = ((g - mean) * jax.lax.rsqrt(var + eps)).reshape(x.shape)
    return (y * scale[None, None, None] + bias[None, None, None]).astype(x.dtype)


def gelu(x: jax.Array) -> jax.Array:
    """GELU by the error function."""
    return jax.nn.gelu(x, approximate=False)


class MLP(nn.Module):
    """up -> activation -> down, with biases."""

    width: int
    hidden: int
    out: int | None = None
    activation: Callable = gelu
    dtype: Dtype = jnp.float32
    kernel_init: Callable | None = None

    @nn.compact
    def __call__(self, x: jax.Array, dropout: Callable = lambda x: x) -> jax.Array:
        up = Linear(
            (self.width, self.hidden), ("embed", "mlp"), dtype=self.dtype,
            kernel_init=self.kernel_init, name="up",
        )  # fmt: skip
        down = Linear(
            (self.hidden, self.out or self.width), ("mlp", "embed"), dtype=self.dtype,
            kernel_init=self.kernel_init, name="down",
        )  # fmt: skip
        return down(dropout(self.activation(up(x))))


def dropout(module: nn.Module, x: jax.Array, rate: float) -> jax.Array:
    """Inverted dropout, active only when `apply` was given an rng named "dropout"."""
    if rate == 0.0 or not module.has_rng("dropout"):
        return x
    keep = jax.random.bernoulli(module.make_rng("dropout"), 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


def over_batch(fn: Callable, arrays: Sequence[jax.Array], dims: Sequence[int], out_dims: Any):
    """fn(*arrays), each device of the mesh in use computing its own rows of the batch.

    For what the partitioner would gather first (top-k) or let wait for the slowest device (loops
    that end when the data says so). `dims`: the batch dimension of each array; `out_dims`: that
    of each output. Without a mesh, or where the batch does not divide over it: plain fn.
    """
    mesh = sharding.mesh_in_use()
    axes = sharding.spec(("batch",), (arrays[0].shape[dims[0]],))
    if mesh is None or mesh.size == 1 or not axes:
        return fn(*arrays)

    def at(dim):
        return PartitionSpec(*(None,) * dim, *axes)

    specs = tuple(map(at, dims)), jax.tree.map(at, out_dims)
    mapped = jax.shard_map(fn, mesh=mesh, in_specs=specs[0], out_specs=specs[1], check_vma=False)
    return mapped(*arrays)


REMAT_POLICIES: dict[str, Any] = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


SHALLOW = 6  # layers that are unrolled: a loop first fills what it saves for gradients with zeros


def stack(block: type[nn.Module], layers: int, broadcast: int = 0, remat: str = "none"):
    """Class of `layers` copies of `block` in sequence, parameters stacked on a leading axis.

    A block's call is (carry, scanned, *broadcast) -> (carry, out). The class is made with the
    fields of `block`; its call takes `scanned` with a leading axis L (or None) and returns
    (carry, outs stacked on L). `remat` names a policy of REMAT_POLICIES. Up to SHALLOW layers are
    written out one after the other instead of as a loop, where nothing is recomputed: outside of a
    loop XLA would find what is computed twice, and keep it.
    """
    if remat not in REMAT_POLICIES:
        raise ValueError(f"remat={remat!r} is not one of {', '.join(REMAT_POLICIES)}")
    if remat != "none":
        block = nn.remat(block, policy=REMAT_POLICIES[remat], prevent_cse=False)
    return nn.scan(
        block,
        variable_axes={"params": 0, "intermediates": 0, "heads": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=(0, *(nn.broadcast,) * broadcast),
        length=layers,
        unroll=layers if layers <= SHALLOW and remat == "none" else 1,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )


def unrolled(stacked: nn.Module, block: nn.Module, layers: int, carry, scanned=None, *broadcast):
    """Run a bound `stack` as a Python loop over the same parameters, for prints and debugging.

    `block` is one unbound layer (`Block(cfg, parent=None)`). Inference only: no dropout.
    """
    params = stacked.variables["params"]
    outs = []
    for i in range(layers):
        layer, xs = jax.tree.map(lambda p, i=i: p[i], (params, scanned))
        carry, out = block.apply({"params": layer}, carry, xs, *broadcast)
        outs.append(out)
    return carry, jax.tree.map(lambda *o: jnp.stack(o), *outs)
