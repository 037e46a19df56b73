"""What each system makes of examples: one file a system, `get` finds it.

A file has

    samples(config, cfg, codec)   the `Samples` of config.stage; codec None for one without text
    codec_options(config, cfg)    what its codec is made with, beside the tokenizer
    batch_sizes(config, cfg)      the sizes of a batch, as the system's `example_batch` takes them

config is that of the training run, cfg the system's model config.
"""

from importlib import import_module
from typing import Any

from mg_jax.errors import UserError

SYSTEMS = ("groma", "mg_llava", "ferret", "tiny_grounding_gpt")


def get(system: str) -> Any:
    """The module of a system. Raises UserError listing the known ones."""
    if system not in SYSTEMS:
        raise UserError(f"system {system!r} is not known; known: {', '.join(SYSTEMS)}")
    return import_module(f"mg_jax.data.samples.{system}")
