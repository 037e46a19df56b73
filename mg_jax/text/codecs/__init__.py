"""Codecs, one per system: an `Example` to token ids, and generated ids to an `Answer`."""

from importlib import import_module

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
