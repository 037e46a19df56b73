"""What an `Assistant` leaves to each system: one file a system, `get` finds it."""

from importlib import import_module

from mg_jax.assistants.base import Adapter
from mg_jax.errors import UserError

SYSTEMS = {
    "groma": "GromaAdapter",
    "mg_llava": "MGLLaVAAdapter",
    "ferret": "FerretAdapter",
    "tiny_grounding_gpt": "TinyGroundingGPTAdapter",
}


def get(system: str) -> type[Adapter]:
    """The adapter class of a system. Raises UserError listing the known ones."""
    if system not in SYSTEMS:
        raise UserError(f"system {system!r} is not known; known: {', '.join(SYSTEMS)}")
    found: type[Adapter] = getattr(import_module(f"mg_jax.assistants.{system}"), SYSTEMS[system])
    return found
