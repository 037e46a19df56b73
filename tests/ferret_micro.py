"""Ferret so small that a step takes milliseconds: overrides of configs/ferret.py:size=tiny."""

import jax
import numpy as np

from configs import ferret
from mg_jax import checkpoint, sharding
from mg_jax.data import pipeline
from mg_jax.models import build

SIDE = 28  # px of a tile: 2x2 tokens


def micro_config(stage="instruction", version="v2", **changes):
    """A locked config; `changes` as "optim__lr"=0.1."""
    c = ferret.get_config(f"stage={stage},size=tiny,version={version}")
    c.image_size = SIDE
    m = c.model
    m.tile_size = SIDE
    small = {"width": 16, "layers": 2, "heads": 2, "patch": 14, "image_size": SIDE}
    m.low.update(small)
    if m.tile:
        m.tile.update(small)
    m.tile_pool = 1
    m.sampler.update({"points": 16, "anchors": (8, 4), "neighbours": (4, 4)})
    m.lm.update({"width": 16, "mlp": 16, "layers": 1, "heads": 2, "kv_heads": 2, "head": 8})
    m.lm.max_positions, m.text_positions = 1200, 600
    m.pointing_layer = 0
    c.codec.text_tokens, c.codec.buckets = 600, ()
    c.batch_size, c.optim.warmup_steps = 8, 1
    c.train.steps, c.train.log_every, c.train.tensorboard = 2, 1, False
    tasks = {"caption": "caption", "dense": "none", "labels": "none"}.get(stage, "all+mask,turns=2")
    c.data = f"scenes:seed=1,n=99,tasks={tasks},size=40|120x40|40x120,max_objects=4"
    c.single_source = False
    c.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return c


def save_random(folder, version="v2", **changes):
    """Write a release of random parameters with the shipped tiny tokenizer; returns its folder."""
    config = micro_config(version=version, **changes)
    system = build(config.system, config.model.to_dict())
    init = system.init("instruction")
    quick = {"xla_backend_optimization_level": 0}  # it runs once
    params = jax.jit(lambda k: sharding.unbox(init(k)["params"]), compiler_options=quick)(
        jax.random.key(0)
    )
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    leaves = [x + 0.3 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    about = {
        "system": config.system, "model": config.model.to_dict(), "stage": "instruction",
        **pipeline.release_fields(config, system.cfg),
    }  # fmt: skip
    return checkpoint.save_release(
        folder, jax.tree.unflatten(tree, leaves), about, pipeline.tokenizer_folder(config),
        dtype="float32",
    )  # fmt: skip


def noise(width=90, height=40, seed=0):
    """A picture of noise."""
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)
