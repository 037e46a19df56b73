"""Time the parts side by side; one JSON line a case.

    python -m launch.bench [operators] [steps] [--repeat 7]
    python -m launch.bench convert [--params 7b|3b|tiny] [--folder DIR]
    python -m launch.bench data [--repeat 7]
    python -m launch.bench quant [--params 7b|3b|tiny]

`operators`: RoIAlign and deformable attention, each form against the other, forward and with
gradients. `steps`: one training step of tiny Groma's stages. Times are medians in milliseconds of
this machine; only ratios within one run mean something elsewhere.

`convert`: a synthetic checkpoint of Groma's shapes into a release and back, in seconds, with the
memory it takes; launch/bench_convert.py says what each number covers. 7b (bfloat16, all 1,177
tensors) needs 45 GB of disk in DIR, 3b (float32, fewer layers) 36 GB, tiny nothing to speak of.

`data`: pictures a second of the data pipeline beside a torch DataLoader with the processors of
transformers, on the same files (extra: torch); launch/bench_data.py says what each number is.

`quant`: by how much a language model of random weights differs in 8 and 4 bits, and what is left of
groma-tiny's scores; launch/bench_quant.py says what each number is.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from launch import bench_convert, bench_data, bench_quant, cli


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="python -m launch.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("group", nargs="*", default=[], metavar="GROUP",
                   help="operators, steps (default both), convert, data or quant")  # fmt: skip
    p.add_argument("--repeat", type=int, default=7, help="timed calls, in turn (default 7)")
    p.add_argument("--params", default="tiny", choices=bench_convert.SIZES,
                   help="of convert and quant: size of the model (default tiny)")  # fmt: skip
    p.add_argument("--folder", metavar="DIR", help="of convert: where its files lie meanwhile")
    return p


def medians(repeat: int, **calls: Callable[[], Any]) -> dict[str, float]:
    """Median milliseconds of each call, timed A B A B ... after one warm-up each."""
    import jax

    times: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(repeat + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            if round_:
                times[name].append(1000 * (time.perf_counter() - start))
    return {name: round(statistics.median(t), 3) for name, t in times.items()}


def operators(repeat: int) -> Iterator[dict[str, Any]]:
    """Both forms of each operator, at the tiny model's shapes and at larger ones."""
    import jax
    import jax.numpy as jnp

    from mg_jax.ops.deform_attn import deform_attn
    from mg_jax.ops.roi_align import roi_align

    key = jax.random.key(0)
    for side, channels, boxes, size in ((32, 128, 24, 5), (64, 64, 100, 14)):
        maps = jax.random.normal(key, (8, side, side, channels))
        corner = jax.random.uniform(key, (8, boxes, 2, 2)).sort(axis=2).reshape(8, boxes, 4)

        def pooled(x, method, corner=corner, side=side, size=size):
            return roi_align(x, corner, spatial_scale=side, output_size=size, method=method)

        case = {"case": "roi_align", "map": side, "channels": channels, "boxes": boxes}
        yield case | compare(pooled, maps, ("gather", "separable"), repeat)
    for side, heads, width in ((16, 4, 32), (32, 8, 32)):
        value = jax.random.normal(key, (8, side * side, heads, width))
        where = jax.random.uniform(key, (8, side * side, heads, 1, 4, 2))
        weight = jnp.full((8, side * side, heads, 1, 4), 0.25)

        def attended(v, method, side=side, where=where, weight=weight):
            return deform_attn(v, ((side, side),), where, weight, method=method)

        case = {"case": "deform_attn", "map": side, "heads": heads, "width": width}
        yield case | compare(attended, value, ("gather", "matmul"), repeat)


def compare(form: Callable, x: Any, methods: tuple[str, str], repeat: int) -> dict[str, Any]:
    """Times of two forms of `form(x, method)`, and the ratio of the first to the second."""
    import jax
    import jax.numpy as jnp

    calls = {}
    for m in methods:
        forward = jax.jit(lambda x, m=m: form(x, m))
        both = jax.jit(jax.value_and_grad(lambda x, m=m: jnp.square(form(x, m)).sum()))
        calls[m] = lambda f=forward: f(x)
        calls[f"{m}_grad"] = lambda f=both: f(x)
    out: dict[str, Any] = medians(repeat, **calls)
    for suffix in ("", "_grad"):
        out[f"ratio{suffix}"] = round(out[methods[0] + suffix] / out[methods[1] + suffix], 3)
    return out


def steps(repeat: int) -> Iterator[dict[str, Any]]:
    """Loss and gradients of a training step of tiny Groma, batch 16, by stage."""
    import jax
    import jax.numpy as jnp

    from configs.groma import get_config
    from mg_jax.data.pipeline import batch_sizes
    from mg_jax.models import build
    from mg_jax.optim import merge, partition
    from mg_jax.sharding import unbox

    for stage in ("detection", "alignment"):
        config = get_config(f"stage={stage},size=tiny")
        system = build("groma", config.model.to_dict())
        init = system.init(stage)
        params = jax.jit(lambda k, init=init: unbox(init(k)["params"]))(jax.random.key(0))
        trained, frozen = partition(params, config.trainable)
        shapes = system.example_batch(stage, 16, **batch_sizes(config, system.cfg))
        batch = jax.tree.map(lambda s: jnp.ones(s.shape, s.dtype), shapes)

        def loss(trained, frozen, batch, system=system, stage=stage):
            return system.loss(stage)(merge(trained, frozen), batch, jax.random.key(0))[0]

        step = jax.jit(jax.value_and_grad(loss))
        calls = {stage: lambda f=step, a=(trained, frozen, batch): f(*a)}
        found = medians(repeat, **calls)
        yield {"case": "step", "stage": stage, "batch": 16, "ms": found[stage]}


GROUPS = {"operators": operators, "steps": steps}


def main(argv: list[str] | None = None) -> None:
    """Run the groups. Raises UserError for one that is not known."""
    args = arguments().parse_args(argv)
    from mg_jax.errors import UserError

    if args.repeat < 1:
        raise UserError(f"--repeat {args.repeat}: give at least 1")
    if args.folder is not None and not Path(args.folder).is_dir():
        raise UserError(f"--folder {args.folder}: no such folder")
    for name in args.group or GROUPS:
        apart = {
            "convert": lambda: bench_convert.convert(args.params, args.folder),
            "data": lambda: bench_data.data(args.repeat),
            "quant": lambda: bench_quant.cases(args.params),
        }
        if name in apart:
            for row in apart[name]():
                print(json.dumps(row), flush=True)
            continue
        if name not in GROUPS:
            known = ", ".join([*GROUPS, *apart])
            raise UserError(f"{name!r} is no group: choose from {known}")
        import jax

        for row in GROUPS[name](args.repeat):
            print(json.dumps(row | {"device": jax.devices()[0].device_kind}), flush=True)


if __name__ == "__main__":
    cli.run(main)
