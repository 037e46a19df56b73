"""TinyGroundingGPT so small that a step takes milliseconds: overrides of its config's llm=tiny."""

import jax

from configs import tiny_grounding_gpt
from mg_jax import checkpoint, sharding
from mg_jax.data import pipeline
from mg_jax.models import build

SIDE = 56  # px; 4x4 image tokens, 4 of an object image
SCENES = "scenes:seed=1,n=99,size=64,tasks={}"


def micro_config(stage="local", **changes):
    """A locked config; `changes` as "optim__lr"=0.1."""
    c = tiny_grounding_gpt.get_config(f"stage={stage},llm=tiny")
    c.image_size = SIDE
    m = c.model
    m.clip.update({"width": 16, "layers": 2, "heads": 2, "patch": 14})
    m.dino.update({"width": 8, "layers": 1, "heads": 2, "patch": 14, "image_size": 42})
    m.lm.update({"width": 16, "mlp": 16, "layers": 1, "heads": 2, "kv_heads": 1, "head": 8})
    m.object_tokens = 4
    m.pointing_layer = 0
    c.codec.buckets, c.codec.object_slots = (), 2 if stage == "labels" else 5
    c.batch_size, c.optim.warmup_steps = 8, 1
    c.train.steps, c.train.log_every, c.train.tensorboard = 2, 1, False
    c.data = f"{SCENES.format('all')} + {SCENES.format('place_choice+object_match')}"
    if stage == "labels":
        c.data = SCENES.format("none")
    c.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return c


def save_random(folder, **changes):
    """Write a release of random parameters with the shipped tiny tokenizer; returns its folder."""
    config = micro_config(**changes)
    system = build(config.system, config.model.to_dict())
    init = system.init("local")
    quick = {"xla_backend_optimization_level": 0}  # it runs once
    params = jax.jit(lambda k: sharding.unbox(init(k)["params"]), compiler_options=quick)(
        jax.random.key(0)
    )
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    leaves = [x + 0.3 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    fields = pipeline.release_fields(config, system.cfg)
    about = {"system": config.system, "model": config.model.to_dict(), **fields}
    return checkpoint.save_release(
        folder, jax.tree.unflatten(tree, leaves), about, pipeline.tokenizer_folder(config),
        dtype="float32",
    )  # fmt: skip
