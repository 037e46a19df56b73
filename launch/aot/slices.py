"""Slices of TPUs by name, as `v5e:4x8`, and GPUs of one machine, as `t4:1`, with none at hand.

TPUs are described by libtpu; of a GPU jax's plugin compiles for the properties that it is told.
"""

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
# GPU -> what its compiler goes by: compute capability, multiprocessors, float32 units of each,
# bytes of shared memory of each and of a block at most, bytes of the second cache, clock in GHz
# (NVIDIA's data sheets, and the table of compute capabilities of the CUDA programming guide)
GPUS: dict[str, tuple[tuple[int, int], int, int, int, int, int, float]] = {
    "t4": ((7, 5), 40, 64, 2**16, 2**16, 4 * 2**20, 1.59),
    "l4": ((8, 9), 58, 128, 100 * 2**10, 99 * 2**10, 48 * 2**20, 2.04),
    "a100": ((8, 0), 108, 64, 164 * 2**10, 163 * 2**10, 40 * 2**20, 1.41),
    "h100": ((9, 0), 132, 128, 228 * 2**10, 227 * 2**10, 50 * 2**20, 1.98),
    "h200": ((9, 0), 132, 128, 228 * 2**10, 227 * 2**10, 50 * 2**20, 1.98),
}
# with no GPU to time its own kernels on, the compiler cannot choose: NVIDIA's are taken
_UNTIMED = {"xla_gpu_enable_triton_gemm": False, "xla_gpu_autotune_level": 0}
# libtpu asks Google's metadata server who it is, and waits for an answer that never comes here
QUIET = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",  # any will do: of this machine, not of the slice
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TF_CPP_MIN_LOG_LEVEL": "2",
    "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",  # which asks for a GPU
}
# sizes that are sold, smallest first (cloud.google.com/tpu/docs), and GPUs of a machine
SOLD = {
    "v5e": ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
    "v6e": ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
    "v4": ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8"),
    "v5p": ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8"),
    "7x": ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8"),
    **dict.fromkeys(GPUS, ("1", "2", "4", "8")),
}  # fmt: skip
# largest pods (same pages): beyond them libtpu ends the process
PODS = {"v5e": (16, 16), "v6e": (16, 16), "v4": (16, 16, 16), "v5p": (16, 20, 28),
        "7x": (16, 24, 24)}  # fmt: skip
# where to look at a program that does not fit: more memory
ROOMIER = {
    "v5e": "v5p", "v6e": "v5p", "v4": "v5p", "v5p": "7x", "t4": "h200", "l4": "h200",
    "a100": "h200", "h100": "h200",
}  # fmt: skip


def parse(text: str) -> tuple[str, tuple[int, ...]]:
    """("v5e", (4, 8)) of "v5e:4x8". Raises UserError that says what there is."""
    generation, _, size = text.partition(":")
    generation = generation.lower().removeprefix("tpu").removeprefix("v7x") or "7x"
    if generation not in (*GENERATIONS, *GPUS):
        raise UserError(
            f"--topology {text}: no {generation!r}; there are {', '.join(GENERATIONS)}, as "
            f"v5e:4x8, and {', '.join(GPUS)}, as t4:1"
        )
    dims = 1 if generation in GPUS else GENERATIONS[generation][1]
    if not re.fullmatch(r"\d+(x\d+)*", size) or len(size.split("x")) != dims:
        what = "is a number of GPUs" if generation in GPUS else f"has {dims} dimensions"
        raise UserError(
            f"--topology {text}: {generation} {what}, as {generation}:{SOLD[generation][2]}"
        )
    sides = tuple(int(n) for n in size.split("x"))
    if 0 in sides:
        raise UserError(f"--topology {text}: no side may be 0")
    if generation in GPUS and sides[0] > 8:
        raise UserError(f"--topology {text}: at most the 8 GPUs of one machine")
    pod = PODS.get(generation, sides)
    if any(a > b for a, b in zip(sorted(sides), pod, strict=True)):
        most = "x".join(map(str, pod))
        raise UserError(f"--topology {text}: is more than a pod of {generation}, {most}")
    return generation, sides


def is_gpu(text: str) -> bool:
    """Whether a topology is of GPUs."""
    return parse(text)[0] in GPUS


def compiler(text: str) -> str:
    """The package that compiles for a topology."""
    return "jax-cuda12-plugin" if is_gpu(text) else "libtpu"


def compiler_options(text: str) -> dict[str, Any] | None:
    """What the compiler of a topology is told."""
    return _UNTIMED if is_gpu(text) else None


def chip(text: str) -> Chip:
    """The constants of a slice's chips."""
    return CHIPS[parse(text)[0]]


def devices(text: str) -> list[Any]:
    """The devices of a slice, for meshes and compilation alone.

    Raises UserError without the compiler, or for a shape that it does not know.
    """
    generation, sides = parse(text)
    quiet()
    if generation in GPUS:
        return _gpus(generation, sides[0])
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


def _gpus(name: str, count: int) -> list[Any]:
    from jax.experimental import topologies

    try:
        found = topologies.get_topology_desc(
            "", platform="cuda", target_config=target(name), topology=f"1x1x{count}"
        )  # of one slice, one machine
    except NotImplementedError as e:
        raise UserError(
            "the GPU compiler is not installed: make setup EXTRAS=gpu (best in an environment of "
            "its own, VENV=.venv-gpu); it needs no GPU"
        ) from e
    except Exception as e:
        raise UserError(f"--topology {name}:{count}: {str(e).splitlines()[0][:200]}") from e
    return list(found.devices)


def target(name: str) -> str:
    """A GPU as XLA's GpuTargetConfigProto, in text."""
    (major, minor), units, lanes, shared, most, cache, clock = GPUS[name]
    chip = CHIPS[name]
    info = {
        "threads_per_block_limit": 1024, "threads_per_warp": 32,
        "shared_memory_per_block": 48 * 2**10, "shared_memory_per_core": shared,
        "shared_memory_per_block_optin": most, "registers_per_core_limit": 2**16,
        "registers_per_block_limit": 2**16,
        "threads_per_core_limit": {(7, 5): 1024, (8, 9): 1536}.get((major, minor), 2048),
        "core_count": units, "fpus_per_core": lanes, "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 2**16 - 1, "block_dim_limit_z": 2**16 - 1, "l2_cache_size": cache,
        "memory_bandwidth": round(chip.bandwidth), "clock_rate_ghz": clock,
        "device_memory_size": round(chip.memory),
        "cuda_compute_capability": f"{{ major: {major} minor: {minor} }}",
    }  # fmt: skip
    lines = "\n".join(
        f"  {key}{'' if key.startswith('cuda') else ':'} {value}" for key, value in info.items()
    )
    return (
        f'gpu_device_info {{\n{lines}\n}}\nplatform_name: "CUDA"\n'
        "dnn_version_info { major: 9 minor: 8 }\nruntime_version { major: 12 minor: 9 }\n"
        f'device_description_str: "{chip.name}"\n'
    )


def quiet() -> None:
    """Set what keeps the compilers from asking for devices; before they are loaded."""
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
