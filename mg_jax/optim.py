"""The optimizer: parameters chosen by path, AdamW as PyTorch's, warm-up and cosine schedules.

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


def optimizer(cfg: OptimConfig, steps: int, paths: Iterable[str]) -> optax.GradientTransformation:
    """AdamW over a flat tree of trainable parameters with these `paths`.

    Clip by global norm -> Adam -> decoupled decay -> factor by path -> -rate. Moments are float32
    as the parameters. Raises UserError for a pattern that matches nothing.
    """
    paths = list(paths)
    spared = matching(paths, cfg.no_decay, "config.optim.no_decay")
    factors = dict.fromkeys(paths, 1.0)
    for pattern, factor in reversed(cfg.lr_multipliers):
        for path in matching(paths, (pattern,), "config.optim.lr_multipliers"):
            factors[path] = factor
    parts = [optax.clip_by_global_norm(cfg.clip)] if cfg.clip else []
    parts.append(optax.scale_by_adam(b1=cfg.betas[0], b2=cfg.betas[1], eps=cfg.eps))
    if cfg.weight_decay:
        mask = {p: p not in spared for p in paths}
        parts.append(optax.add_decayed_weights(cfg.weight_decay, mask))
    if set(factors.values()) != {1.0}:
        parts.append(_scale_by_path(factors))
    parts.append(optax.scale_by_learning_rate(schedule(cfg, steps)))
    return optax.chain(*parts)


def _scale_by_path(factors: dict[str, float]) -> optax.GradientTransformation:
    def update(updates, params=None):
        del params
        return {p: u * factors[p] for p, u in updates.items()}

    return optax.stateless(update)
