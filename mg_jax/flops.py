"""Floating point operations of a model, counted in its program rather than by formula.

Matrix products and convolutions alone, a loop as often as it runs (one of unknown length once), of
branches the dearest. What a config recomputes to save memory is left out by `counted`; a
jax.checkpoint that the code has in any case counts as it runs.
"""

import collections
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax

from mg_jax import chips, models, sharding
from mg_jax.optim import merge
from mg_jax.plan import Plan


def count(function: Callable, *args: Any) -> float:
    """Operations of function(*args), for arrays or ShapeDtypeStructs; computes nothing."""
    return _jaxpr(jax.make_jaxpr(function)(*args).jaxpr)


def model_flops(p: Plan, batch: Any = None) -> float:
    """Operations of one update over all rows: forward, and backward where something learns.

    `batch`: arrays, or their shapes; by default the longest that the plan allows for.

    What `remat` recomputes does not count, only a jax.checkpoint that no config knows; attention
    counts all pairs of tokens, masked ones too, whichever way it is computed.
    """
    system = models.build(p.system.name, counted(p.system.cfg))
    loss = system.loss(p.stage)

    def objective(params, frozen, batch, key):
        return loss(merge(params, frozen), batch, key)

    key = jax.eval_shape(lambda: jax.random.key(0))
    grad = jax.grad(objective, has_aux=True)
    plain = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype),
                         (p.state.params, p.frozen, batch or p.example))  # fmt: skip
    with sharding.use(None):
        return count(grad, *plain, key)


def counted(cfg: Any) -> Any:
    """A model's config that recomputes nothing and has no kernel in any of its parts."""
    plain = {"remat": "none", "attention": "plain"}
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(cfg):
        value = getattr(cfg, field.name)
        if dataclasses.is_dataclass(value):
            changes[field.name] = counted(value)
        elif field.name in plain:
            changes[field.name] = plain[field.name]
    return dataclasses.replace(cfg, **changes)


class Utilization:
    """Seconds of a step, and the share of the devices' peak that the model uses of them, of the
    steps since it was last asked.

    Each batch counts the operations of its own shapes. The share is left out for devices that
    `chips` does not know.
    """

    def __init__(self, p: Plan):
        self._plan, self._peak = p, 0.0
        self._begin: float | None = None  # of the step that is computed, where it is known
        self._seconds = 0.0
        self._steps: collections.Counter[tuple] = collections.Counter()  # by shapes of the batch
        self._shapes: dict[tuple, Any] = {}
        self._flops: dict[tuple, float] = {}
        device = p.mesh.devices.flat[0]
        if (chip := chips.of_device(device.device_kind)) is not None:
            self._peak = chip.flops * p.mesh.size

    def done(self, batch: Any, now: float) -> None:
        """A step over `batch` (shapes, of all processes' rows) has ended at `now`, in seconds."""
        if self._begin is not None:
            key = tuple((x.shape, str(x.dtype)) for x in jax.tree.leaves(batch))
            self._shapes.setdefault(key, batch)
            self._steps[key] += 1
            self._seconds += now - self._begin
        self._begin = now

    def restart(self, now: float | None = None) -> None:
        """Leave out the time since the last step: something else was done, as a compilation. The
        next step began at `now`; without it, that one is left out too."""
        self._begin = now

    def numbers(self) -> dict[str, float]:
        """For the log; none where no step was timed."""
        steps, seconds = self._steps, self._seconds
        self._steps, self._seconds = collections.Counter(), 0.0
        if not seconds:
            return {}
        out = {"step_seconds": seconds / steps.total()}
        if self._peak:
            for key in steps.keys() - self._flops.keys():
                self._flops[key] = model_flops(self._plan, self._shapes[key])
                self.restart()  # counting takes a while
            total = sum(n * self._flops[key] for key, n in steps.items())
            out["mfu"] = total / seconds / self._peak
        return out


def _jaxpr(jaxpr: Any) -> float:
    return sum(_equation(e) for e in jaxpr.eqns)


def _equation(e: Any) -> float:
    name = e.primitive.name
    if name == "dot_general":
        (contract, _), _ = e.params["dimension_numbers"]
        inner = math.prod(e.invars[0].aval.shape[d] for d in contract)
        return 2.0 * math.prod(e.outvars[0].aval.shape) * inner
    if name == "conv_general_dilated":
        kernel, numbers = e.invars[1].aval.shape, e.params["dimension_numbers"].rhs_spec
        taps = math.prod(kernel[d] for d in numbers[1:])  # input features of a group, and the sides
        return 2.0 * math.prod(e.outvars[0].aval.shape) * taps
    inner = [_jaxpr(getattr(j, "jaxpr", j)) for j in _inside(e.params)]
    if name == "cond":
        return max(inner)
    times = e.params["length"] if name == "scan" else 1
    if name == "shard_map":
        times = e.params["mesh"].size
    return times * sum(inner)


def _inside(params: dict[str, Any]) -> list[Any]:
    found = []
    for value in params.values():
        for x in value if isinstance(value, (tuple, list)) else (value,):
            if hasattr(x, "eqns") or hasattr(getattr(x, "jaxpr", None), "eqns"):
                found.append(x)
    return found
