"""MG-LLaVA so small that a step takes milliseconds: overrides of configs/mg_llava.py:llm=tiny."""

import jax
import numpy as np

from configs import mg_llava
from mg_jax import checkpoint, sharding
from mg_jax.data import pipeline
from mg_jax.models import build

SIDE = 64  # px of the high-resolution picture; 2x2 image tokens, one a frame of a video


def micro_config(stage="sft", media="image", **changes):
    """A locked config; `changes` as "optim__lr"=0.1."""
    c = mg_llava.get_config(f"stage={stage},llm=tiny,media={media}")
    c.image_size = SIDE
    m = c.model
    m.low.update({"width": 16, "layers": 2, "heads": 2, "image_size": 28})
    m.high.update({"depths": (1, 1, 1, 1), "widths": (4, 8, 8, 16)})
    m.lm.update({"width": 16, "mlp": 16, "layers": 1, "heads": 2, "kv_heads": 2, "head": 8})
    m.pointing_layer = 0
    c.codec.buckets = ()
    c.batch_size, c.optim.warmup_steps = 8, 1
    c.train.steps, c.train.log_every, c.train.tensorboard = 2, 1, False
    c.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return c


def save_random(folder, media="video", **changes):
    """Write a release of random parameters with the shipped tiny tokenizer; returns its folder."""
    config = micro_config(media=media, **changes)
    system = build(config.system, config.model.to_dict())
    init = system.init("sft")
    quick = {"xla_backend_optimization_level": 0}  # it runs once
    params = jax.jit(lambda k: sharding.unbox(init(k)["params"]), compiler_options=quick)(
        jax.random.key(0)
    )
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    leaves = [x + 0.3 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    fields = pipeline.release_fields(config, system.cfg) | {"detector": ""}
    about = {"system": config.system, "model": config.model.to_dict(), **fields}
    return checkpoint.save_release(
        folder, jax.tree.unflatten(tree, leaves), about, pipeline.tokenizer_folder(config),
        dtype="float32",
    )  # fmt: skip


def noise(width=90, height=40, seed=0, frames=0):
    """A picture of noise, or so many frames."""
    shape = (*([frames] if frames else []), height, width, 3)
    return np.random.default_rng(seed).integers(0, 255, shape, np.uint8)
