"""Multi-granular grounding vision-language models in JAX.

    import mg_jax
    assistant = mg_jax.load("groma-tiny")
    answer = assistant.chat("photo.jpg", "[grounding] Describe the picture.")

The names below are imported on first use, so that `import mg_jax` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mg_jax.answer import Answer
    from mg_jax.assistant import Assistant
    from mg_jax.errors import UserError
    from mg_jax.example import Region
    from mg_jax.loading import load

__version__ = "0.1.0"

__all__ = ["load", "Assistant", "Answer", "Region", "UserError", "__version__"]

_HOMES = {
    "load": "mg_jax.loading",
    "Assistant": "mg_jax.assistant",
    "Answer": "mg_jax.answer",
    "Region": "mg_jax.example",
    "UserError": "mg_jax.errors",
}


def __getattr__(name: str) -> Any:
    """Imports a public name from its home on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'mg_jax' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
