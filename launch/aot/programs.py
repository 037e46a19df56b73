"""The programs of a config: its train step, and of the same model a prefill, a decoding step, and
both with the loop between them as an Assistant runs them.

All are lowered from shapes alone; no array exists.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from mg_jax import config as configs
from mg_jax import flops, models, sharding
from mg_jax.attention import CACHE_AXES, KVCache
from mg_jax.errors import UserError
from mg_jax.generate import respond
from mg_jax.optim import flatten
from mg_jax.plan import plan

KINDS = ("train", "prefill", "decode", "answer")
STEPS = 1000  # of the schedule; they change nothing of the program
NOT_ASKED = ("loss_mask", "gaze", "gaze_weight", "ground_boxes", "ground_mask")


@dataclasses.dataclass(frozen=True)
class Lowered:
    """A program ready for the compiler. arrays: its large arguments by group, with shardings;
    model_flops: operations of the whole, all devices, nothing recomputed; settings: what it was
    made from."""

    kind: str
    lower: Callable[[], Any]
    arrays: Mapping[str, Any]
    model_flops: Callable[[], float]
    settings: Mapping[str, Any]


def train(config: Any, mesh: Mesh) -> Lowered:
    """The update of a stage, with all its rows. Raises UserError as `plan`."""
    from mg_jax.data import pipeline

    system = models.build(config.system, config.model.to_dict())
    p = plan(
        config, STEPS, system=system, mesh=mesh, sizes=pipeline.batch_sizes(config, system.cfg)
    )
    tokens = p.example["tokens"].shape[1] if "tokens" in p.example else 0
    settings = {
        "rows": config.batch_size, "accumulate": config.accumulate, "tokens": tokens,
        "rules": config.rules, "remat": remats(system.cfg), "offload": config.optim.offload,
        "frozen_dtype": config.frozen_dtype,
    }  # fmt: skip
    arrays = {"params": p.state.params, "opt": p.state.opt, "frozen": p.frozen, "batch": p.example}
    return Lowered("train", p.lower, arrays, lambda: flops.model_flops(p), settings)


def serve(
    config: Any, mesh: Mesh, kind: str, rows: int, new_tokens: int = 256, text_tokens: int = 512
) -> Lowered:
    """Reading a prompt of `text_tokens` of text and a picture, one step of decoding with a cache
    that has room for `new_tokens` more, or the whole answer. Parameters are bfloat16, or as `quant`
    says. Raises UserError for sizes of the model that do not fit together, and rules that leave an
    axis of the mesh idle."""
    sharding.check(mesh, config.rules)
    system = models.build(config.system, config.model.to_dict())
    stage = config.stage
    with models.config_errors():
        boxed = sharding.abstract_params(system.init(stage), jax.random.key(0))
    if not any(path.startswith("lm/") for path in flatten(sharding.unbox(boxed))):
        raise UserError(f"stage={stage} has no language model to serve: take a later one")
    from mg_jax.data import pipeline

    sizes = dict(pipeline.batch_sizes(config, system.cfg))
    sizes["tokens"] += text_tokens - config.codec.text_tokens
    if sizes["tokens"] + new_tokens > system.cfg.lm.max_positions:
        raise UserError(
            f"a prompt of {sizes['tokens']} positions and {new_tokens} new tokens pass the model's "
            f"{system.cfg.lm.max_positions}: lower --text_tokens or --new_tokens"
        )
    example = system.example_batch(stage, rows, **sizes)
    places = sharding.param_shardings(boxed, mesh, config.rules)

    def held(path, x, place):
        scale = path[-1].key == "kernel_scale"
        floating = jnp.issubdtype(x.dtype, jnp.floating) and not scale
        return jax.ShapeDtypeStruct(x.shape, jnp.bfloat16 if floating else x.dtype, sharding=place)

    params = jax.tree_util.tree_map_with_path(held, sharding.unbox(boxed), places)
    with sharding.use(mesh, config.rules):
        batch = {
            k: jax.ShapeDtypeStruct(
                x.shape, x.dtype,
                sharding=NamedSharding(mesh, sharding.spec(("batch",), x.shape[:1])),
            )
            for k, x in example.items()
            if k not in NOT_ASKED
        }  # fmt: skip
        cache = cache_shapes(system.cfg.lm, rows, sizes["tokens"] + new_tokens, mesh)
    model = system.module
    settings = {
        "rows": rows, "tokens": sizes["tokens"], "cache": sizes["tokens"] + new_tokens,
        "rules": config.rules, "quant": system.cfg.lm.quant,
    }  # fmt: skip
    placed = jax.tree.map(lambda x: x.sharding, cache)
    if kind == "prefill":

        def run(params, batch):
            def read(m):
                empty = m.lm.empty_cache(rows, sizes["tokens"] + new_tokens)
                logits, cache, _ = m.prefill(batch, empty)
                return jnp.argmax(logits, -1), cache

            return model.apply({"params": params}, method=read)

        arguments, donate, places_out = (params, batch), (), (None, placed)
        arrays = {"params": params, "batch": batch, "cache": cache}
    elif kind == "answer":

        def run(params, batch):
            def said(m):  # which ids end and fill it changes nothing of the program
                return respond(m, batch, max_new=new_tokens, end=1, pad=0)[0]

            return model.apply({"params": params}, method=said)

        arguments, donate, places_out = (params, batch), (), None
        arrays = {"params": params, "batch": batch, "cache": cache}
    else:

        def run(params, tokens, cache):
            logits, grown = model.apply({"params": params}, tokens, cache, method=model.decode)
            return jnp.argmax(logits, -1), grown

        tokens = jax.ShapeDtypeStruct((rows, 1), jnp.int32, sharding=batch["tokens"].sharding)
        arguments, donate, places_out = (params, tokens, cache), (2,), (None, placed)
        arrays = {"params": params, "cache": cache}

    def lower():
        jitted = jax.jit(run, donate_argnums=donate, out_shardings=places_out)
        with sharding.use(mesh, config.rules):
            return jitted.lower(*arguments)

    def needed() -> float:
        with sharding.use(None):
            return flops.count(run, *jax.tree.map(plain, arguments))

    return Lowered(kind, lower, arrays, needed, settings)


def lowered(config: Any, mesh: Mesh, kind: str, **options: Any) -> Lowered:
    """A program by its kind, one of KINDS."""
    if kind == "train":
        return train(config, mesh)
    return serve(config, mesh, kind, **options)


def cache_shapes(lm: Any, rows: int, slots: int, mesh: Mesh) -> KVCache:
    """An empty cache as shapes with shardings, under the rules in use."""
    made = jax.eval_shape(
        lambda: KVCache.create(
            lm.layers, rows, slots, lm.kv_heads, lm.head, jnp.dtype(lm.dtype)
        )
    )  # fmt: skip

    def place(x):
        names = CACHE_AXES if x.ndim == 5 else ("batch",)
        spec = sharding.spec(names, x.shape[: len(names)], mesh=mesh)
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(place, made)


def plain(x: Any) -> jax.ShapeDtypeStruct:
    """A shape without its place."""
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def remats(cfg: Any) -> str:
    """What the parts of a model recompute, as "lm=full vision=full"."""
    return _remats(configs.to_dict(cfg))


def remats_of(config: Any) -> str:
    """The same of a training config."""
    return _remats(config.model.to_dict())


def _remats(model: Mapping[str, Any]) -> str:
    return " ".join(
        f"{part}={values['remat']}"
        for part, values in model.items()
        if isinstance(values, dict) and "remat" in values
    )


def set_remat(config: Any, policy: str) -> None:
    """Set the policy of all parts that have one, in a training config."""
    for part in config.model.values():
        if hasattr(part, "keys") and "remat" in part:
            part.remat = policy
