"""A random Groma so small that an answer takes milliseconds."""

from importlib import resources

import jax

from mg_jax import checkpoint, sharding
from mg_jax.config import to_dict
from mg_jax.models import build

MODEL = {
    "vision": {"width": 16, "layers": 4, "heads": 2, "mlp_ratio": 2.0, "image_size": 56},
    "proposer": {
        "width": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_heads": 2,
        "decoder_heads": 2, "encoder_ffn": 16, "decoder_ffn": 16, "queries": 8, "box_hidden": 16,
    },
    "regions": {
        "width": 16, "hidden": 16, "upsample": [1], "rounds": 0, "groups": 4, "roi_size": 2,
        "position_width": 8,
    },
    "lm": {
        "vocab": 1200, "width": 16, "mlp": 16, "layers": 1, "heads": 2, "kv_heads": 2, "head": 8,
    },
    "max_regions": 6,
    "image_size": 56,
    "score_threshold": 0.0,
}  # fmt: skip


def save_random(path):
    """Write a release of random parameters with the shipped tiny tokenizer; returns its folder."""
    system = build("groma", MODEL)
    params = jax.jit(lambda k: sharding.unbox(system.init("alignment")(k)["params"]))(
        jax.random.key(0)
    )
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    leaves = [x + 0.3 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    codec = {"template": "llava", "image_tokens": 4, "max_regions": 6, "text_tokens": 160}
    config = {
        "system": "groma", "model": to_dict(system.cfg), "preprocess": "groma_pil", "codec": codec,
    }  # fmt: skip
    tokenizer = resources.files("mg_jax") / "releases" / "tokenizer-tiny"
    with resources.as_file(tokenizer) as source:
        checkpoint.save_release(path, jax.tree.unflatten(tree, leaves), config, source)
    return path
