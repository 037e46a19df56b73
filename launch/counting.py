"""Floating-point operations of a traced function: its matrix products and convolutions.

XLA's own estimate counts the body of a scan once; here it counts as often as it runs. A `while`
loop of unknown length counts once, of branches the dearest counts.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax


def flops(function: Callable[..., Any], *args: Any) -> int:
    """Of one call with these arguments, or their shapes; a multiplication with addition is two."""
    return _count(jax.make_jaxpr(function)(*args).jaxpr)


def _count(jaxpr: Any) -> int:
    return sum(_cost(eqn) for eqn in jaxpr.eqns)


def _cost(eqn: Any) -> int:
    name = eqn.primitive.name
    if name == "dot_general":
        (contracted, _), _ = eqn.params["dimension_numbers"]
        shape = eqn.invars[0].aval.shape
        return 2 * eqn.outvars[0].aval.size * math.prod(shape[d] for d in contracted)
    if name == "conv_general_dilated":
        kernel = eqn.invars[1].aval
        out_channel = eqn.params["dimension_numbers"].rhs_spec[0]
        return 2 * eqn.outvars[0].aval.size * kernel.size // kernel.shape[out_channel]
    inner = [_count(jaxpr) for jaxpr in _inner(eqn.params)]
    if name == "cond":
        return max(inner, default=0)
    return sum(inner) * (eqn.params["length"] if name == "scan" else 1)


def _inner(params: dict[str, Any]) -> Iterator[Any]:
    """The jaxprs among the parameters of an equation."""
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if hasattr(item, "jaxpr"):
                yield item.jaxpr
            elif hasattr(item, "eqns"):
                yield item
