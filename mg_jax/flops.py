"""Floating point operations of a model, counted in its program rather than by formula.

Matrix products and convolutions alone, a loop as often as it runs (one of unknown length once), of
branches the dearest: what the model needs, whatever is computed twice to save memory.
"""

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


def model_flops(p: Plan) -> float:
    """Operations of one update over all rows: forward, and backward where something learns.

    Nothing that is recomputed counts, whatever `remat` says; attention counts all pairs of tokens,
    masked ones too, whichever way it is computed.
    """
    system = models.build(p.system.name, counted(p.system.cfg))
    loss = system.loss(p.stage)

    def objective(params, frozen, batch, key):
        return loss(merge(params, frozen), batch, key)

    key = jax.eval_shape(lambda: jax.random.key(0))
    grad = jax.grad(objective, has_aux=True)
    plain = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype),
                         (p.state.params, p.frozen, p.example))  # fmt: skip
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
    """Time of a step, and the share of the devices' peak that the model uses of it.

    The share is left out for devices that `chips` does not know.
    """

    def __init__(self, p: Plan):
        self._plan, self._peak, self._flops = p, 0.0, 0.0
        device = p.mesh.devices.flat[0]
        if (chip := chips.of_device(device.device_kind)) is not None:
            self._peak = chip.flops * p.mesh.size

    def of(self, seconds: float) -> dict[str, float]:
        """Numbers of the log for steps of `seconds`; none for 0."""
        if not seconds:
            return {}
        if not self._peak:
            return {"step_seconds": seconds}
        self._flops = self._flops or model_flops(self._plan)
        return {"step_seconds": seconds, "mfu": self._flops / seconds / self._peak}


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
