"""TinyGroundingGPT: the one question that its paper prints (spec 6).

Its other templates are in figures alone or unpublished; the remaining questions, and further ways
to ask for a place, are ours (`common`).
"""

from mg_jax.text.instructions import common

TEXTS: dict[str, tuple[str, ...]] = {
    "rec": ("Output the coordinate of {}", *common.TEXTS["rec"]),
}
