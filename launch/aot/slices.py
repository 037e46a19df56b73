"""Slices of TPUs by name, as `v5e:4x8`, described by libtpu with no TPU at hand."""

import math
import os
import re
from typing import Any

from mg_jax.chips import CHIPS, Chip
from mg_jax.errors import UserError

# generation -> (its name in libtpu, dimensions of a slice, chips of a host)
GENERATIONS = {
    "v4": ("v4", 3, (2, 2, 1)),
    "v5e": ("v5e", 2, (2, 2, 1)),
    "v5p": ("v5p", 3, (2, 2, 1)),
    "v6e": ("v6e", 2, (2, 2, 1)),
    "7x": ("tpu7x", 3, (2, 2, 1)),
}
# libtpu asks Google's metadata server who it is, and waits for an answer that never comes here
QUIET = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TF_CPP_MIN_LOG_LEVEL": "2",
}
# sizes that are sold, smallest first: cloud.google.com/tpu/docs
SOLD = {
    "v5e": ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
    "v6e": ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
    "v4": ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8"),
    "v5p": ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8"),
    "7x": ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8"),
}  # fmt: skip
# where to look at a program that does not fit: more memory
ROOMIER = {"v5e": "v5p", "v6e": "v5p", "v4": "v5p", "v5p": "7x"}


def parse(text: str) -> tuple[str, tuple[int, ...]]:
    """("v5e", (4, 8)) of "v5e:4x8". Raises UserError that says what there is."""
    generation, _, size = text.partition(":")
    generation = generation.lower().removeprefix("tpu").removeprefix("v7x") or "7x"
    if generation not in GENERATIONS:
        known = ", ".join(GENERATIONS)
        raise UserError(f"--topology {text}: no {generation!r}; there are {known}, as v5e:4x8")
    dims = GENERATIONS[generation][1]
    if not re.fullmatch(r"\d+(x\d+)*", size) or len(size.split("x")) != dims:
        raise UserError(
            f"--topology {text}: {generation} has {dims} dimensions, as {generation}:"
            f"{SOLD[generation][2]}"
        )
    sides = tuple(int(n) for n in size.split("x"))
    if 0 in sides:
        raise UserError(f"--topology {text}: no side may be 0")
    return generation, sides


def chip(text: str) -> Chip:
    """The constants of a slice's chips."""
    return CHIPS[parse(text)[0]]


def devices(text: str) -> list[Any]:
    """The devices of a slice, for meshes and compilation alone.

    Raises UserError without libtpu, or for a shape that it does not know.
    """
    generation, sides = parse(text)
    quiet()
    from jax.experimental import topologies

    name, _, host = GENERATIONS[generation]
    three = (*sides, 1)[:3]
    bounds = tuple(math.gcd(a, b) for a, b in zip(three, host, strict=True))
    options: dict[str, Any] = {} if bounds == host else {"chips_per_host_bounds": bounds}
    if generation == "v4":  # its two cores as one device, as everyone runs it
        options["chip_config_name"] = "megacore"
    try:
        found = topologies.get_topology_desc(
            platform="tpu", topology_name=f"{name}:{'x'.join(map(str, sides))}", **options
        )
    except RuntimeError as e:
        if "not installed" in str(e):
            raise UserError(
                "the TPU compiler is not installed: make setup EXTRAS=tpu (best in an environment "
                "of its own, VENV=.venv-tpu)"
            ) from e
        raise UserError(f"--topology {text}: {str(e).splitlines()[0][:200]}") from e
    except Exception as e:
        raise UserError(f"--topology {text}: {str(e).splitlines()[0][:200]}") from e
    return list(found.devices)


def quiet() -> None:
    """Set what keeps libtpu from asking around; before it is loaded."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)


def roomier(text: str) -> str | None:
    """The smallest slice of at least as many devices with more memory, None without one."""
    generation, sides = parse(text)
    other = ROOMIER.get(generation)
    if other is None:
        return None
    each = 2 if other == "7x" else 1  # devices of a chip
    for size in SOLD[other]:
        if each * math.prod(int(n) for n in size.split("x")) >= math.prod(sides):
            return f"{other}:{size}"
    return None
