"""Codecs, one per system: an `Example` to token ids, and generated ids to an `Answer`."""

from mg_jax.errors import UserError


def get(name: str) -> type:
    """The codec class of a system ("groma", ...). Raises UserError listing the known ones."""
    if name == "groma":
        from mg_jax.text.codecs.groma import GromaCodec

        return GromaCodec
    if name == "mg_llava":
        from mg_jax.text.codecs.mg_llava import MGLLaVACodec

        return MGLLaVACodec
    if name == "ferret":
        from mg_jax.text.codecs.ferret import FerretCodec

        return FerretCodec
    raise UserError(f"unknown codec {name!r}: choose groma, mg_llava or ferret")
