"""Codecs, one per system: an `Example` to token ids, and generated ids to an `Answer`."""

import inspect
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from mg_jax.errors import UserError

CODECS = {
    "groma": "GromaCodec",
    "mg_llava": "MGLLaVACodec",
    "ferret": "FerretCodec",
    "tiny_grounding_gpt": "TinyGroundingGPTCodec",
}


def get(name: str) -> type:
    """The codec class of a system. Raises UserError listing the known ones."""
    if name not in CODECS:
        raise UserError(f"unknown codec {name!r}: choose {', '.join(CODECS)}")
    found: type = getattr(import_module(f"mg_jax.text.codecs.{name}"), CODECS[name])
    return found


def build(name: str, tokenizer: Any, options: Mapping[str, Any]) -> Any:
    """The codec of a system, with its options by name. Raises UserError for an unknown one, or
    where one is missing."""
    cls = get(name)
    try:
        inspect.signature(cls).bind(tokenizer, **options)
    except TypeError as e:
        known = ", ".join(list(inspect.signature(cls).parameters)[1:])
        raise UserError(f"codec of {name}: {e} (it has {known})") from e
    return cls(tokenizer, **options)
