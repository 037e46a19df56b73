"""The optimizer: parameters chosen by path, AdamW as PyTorch's, Muon, warm-up, cosine schedules.

Paths are "a/b/c"; a pattern is a regular expression that must match a whole path. A pattern that
matches nothing is an error, so that a renamed module cannot silently change what is trained.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util
from optax import contrib

from mg_jax.errors import UserError

Flat = dict[str, Any]  # path -> leaf


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """The section `optim` of a config; every default is in configs/base.py.

    lr: peak rate. schedule: after warm-up, "cosine" falls to lr * end_ratio at the last step,
    "constant" stays. warmup_steps: from 0 to lr linearly; 0 means warmup_ratio of all steps.
    weight_decay: decoupled, p -= lr * weight_decay * p, except on paths of `no_decay`.
    clip: largest global norm of the gradient, 0 for no limit. lr_multipliers: (pattern, factor)
    pairs on the rate (and so on the decay, as a parameter group of PyTorch); the first match wins.
    offload: the moments stay in host memory and visit the device for the update alone.
    muon: patterns of kernels that Muon moves in Adam's place, at the same rate, with optax's
    momentum of 0.95; betas and eps are Adam's.
    """

    lr: float
    schedule: Literal["cosine", "constant"]
    warmup_steps: int
    warmup_ratio: float
    end_ratio: float
    weight_decay: float
    no_decay: tuple[str, ...]
    betas: tuple[float, float]
    eps: float
    clip: float
    lr_multipliers: tuple[tuple[str, float], ...]
    offload: bool = False
    muon: tuple[str, ...] = ()


def flatten(tree: Mapping[str, Any]) -> Flat:
    """Nested dicts -> {"a/b/c": leaf}; a flat tree stays as it is."""
    return traverse_util.flatten_dict(dict(tree), sep="/")


def unflatten(flat: Flat) -> dict[str, Any]:
    """{"a/b/c": leaf} -> nested dicts."""
    return traverse_util.unflatten_dict(flat, sep="/")


def matching(paths: Iterable[str], patterns: Iterable[str], what: str) -> set[str]:
    """Paths that any of `patterns` matches whole.

    Raises UserError naming a pattern that matches no path or is no regular expression; `what`
    is the config key it came from.
    """
    paths = list(paths)
    found: set[str] = set()
    for pattern in patterns:
        try:
            hits = {p for p in paths if re.fullmatch(pattern, p)}
        except re.error as e:
            raise UserError(f"{what}: {pattern!r} is not a regular expression: {e}") from None
        if not hits:
            groups = ", ".join(sorted({p.split("/")[0] + "/.*" for p in paths}))
            raise UserError(f"{what}: {pattern!r} matches no parameter; there are {groups}")
        found |= hits
    return found


def partition(params: Mapping[str, Any], patterns: Iterable[str]) -> tuple[Flat, Flat]:
    """Split parameters (nested or flat) into (trainable, frozen), both flat by path.

    Raises UserError for a pattern that matches nothing.
    """
    flat = flatten(params)
    chosen = matching(flat, patterns, "config.trainable")
    trainable = {p: v for p, v in flat.items() if p in chosen}
    return trainable, {p: v for p, v in flat.items() if p not in chosen}


def merge(trainable: Flat, frozen: Flat) -> dict[str, Any]:
    """The nested tree of parameters from the two flat ones."""
    return unflatten({**frozen, **trainable})


def schedule(cfg: OptimConfig, steps: int) -> Callable[[Any], jax.Array]:
    """Learning rate of update number 0, 1, ... of `steps`.

    The formula of transformers' `get_cosine_schedule_with_warmup`: update 0 of a warm-up has rate
    0, and a ratio of warm-up steps is rounded up.
    """
    warmup = cfg.warmup_steps or math.ceil(cfg.warmup_ratio * steps)

    def rate(count):
        count = jnp.asarray(count, jnp.float32)
        if cfg.schedule == "constant":
            after = jnp.ones_like(count)
        else:
            done = jnp.clip((count - warmup) / max(1, steps - warmup), 0.0, 1.0)
            after = 0.5 * (1.0 + jnp.cos(jnp.pi * done))
            after = cfg.end_ratio + (1.0 - cfg.end_ratio) * after
        return cfg.lr * jnp.where(count < warmup, count / max(1, warmup), after)

    return rate


def optimizer(
    cfg: OptimConfig, steps: int, params: Mapping[str, Any]
) -> optax.GradientTransformation:
    """AdamW, and Muon where `cfg.muon` says so, over a flat tree of trainable parameters, of which
    the shapes alone are looked at.

    Clip by global norm -> Adam or Muon -> decoupled decay -> factor by path -> -rate. Moments are
    float32 as the parameters. Raises UserError for a pattern that matches nothing (one of Muon may:
    what it is for may be frozen), and for one of Muon whose match has other dimensions than dense
    layers of a transformer.
    """
    paths = list(params)
    spared = matching(paths, cfg.no_decay, "config.optim.no_decay")
    factors = dict.fromkeys(paths, 1.0)
    for pattern, factor in reversed(cfg.lr_multipliers):
        for path in matching(paths, (pattern,), "config.optim.lr_multipliers"):
            factors[path] = factor
    parts = [optax.clip_by_global_norm(cfg.clip)] if cfg.clip else []
    adam = optax.scale_by_adam(b1=cfg.betas[0], b2=cfg.betas[1], eps=cfg.eps)
    by_muon = {p for p in paths if any(re.fullmatch(pattern, p) for pattern in cfg.muon)}
    if by_muon:
        labels = {p: "muon" if p in by_muon else "adam" for p in paths}
        muon = _muon({p: params[p].shape for p in by_muon})
        parts.append(optax.partition({"adam": adam, "muon": muon}, labels))
    else:
        parts.append(adam)
    if cfg.weight_decay:
        mask = {p: p not in spared for p in paths}
        parts.append(optax.add_decayed_weights(cfg.weight_decay, mask))
    if set(factors.values()) != {1.0}:
        parts.append(_scale_by_path(factors))
    parts.append(optax.scale_by_learning_rate(schedule(cfg, steps)))
    return optax.chain(*parts)


def _muon(shapes: Mapping[str, tuple[int, ...]]) -> optax.GradientTransformation:
    """Orthogonalised momentum of kernels of these shapes, as large as a step of Adam (Liu et al.,
    arXiv 2502.16982, equation 4): so one rate serves both."""
    sides = {p: _sides(p, len(shape)) for p, shape in shapes.items()}
    widest = {
        p: max(math.prod(shapes[p][d] for d in dims) for dims in both) for p, both in sides.items()
    }
    return optax.chain(
        # the other parameters are there as MaskedNode
        contrib.scale_by_muon(
            weight_dimension_numbers=lambda tree: {p: sides.get(p, x) for p, x in tree.items()}
        ),
        _scale_by_path({p: 0.2 * math.sqrt(n) for p, n in widest.items()}),
    )


def _sides(path: str, ndim: int) -> contrib.MuonDimensionNumbers:
    """Which dimensions of a kernel are inputs and which outputs; those before are a stack's."""
    part, _, leaf = path.rpartition("/")
    heads = {"q": (1, 2), "k": (1, 2), "v": (1, 2), "o": (2, 1)}
    inputs, outputs = heads.get(part.rpartition("/")[2], (1, 1))
    if leaf != "kernel" or ndim not in (inputs + outputs, inputs + outputs + 1):
        raise UserError(
            f"config.optim.muon: {path} has {ndim} dimensions, not those of a dense layer's kernel"
        )
    ends = ndim - outputs
    return contrib.MuonDimensionNumbers(tuple(range(ends - inputs, ends)), tuple(range(ends, ndim)))


def _scale_by_path(factors: dict[str, float]) -> optax.GradientTransformation:
    def update(updates, params=None):
        del params
        return {p: u * factors[p] if p in factors else u for p, u in updates.items()}

    return optax.stateless(update)
