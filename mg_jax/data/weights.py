"""Mixtures written as one text: "rec*2+presence"."""

import difflib
from collections.abc import Mapping

from mg_jax.errors import UserError


def parse_weights(
    text: str, known: Mapping[str, float], everything: str, where: str
) -> dict[str, float]:
    """Weights by name of "rec*2+presence" or of `everything` ("all"); later parts add to earlier.

    known: every name with its weight in the mixture that `everything` stands for, 0 for those that
    have to be named. Raises UserError, beginning with `where`, for an unknown name or a weight that
    is no positive number.
    """
    weights: dict[str, float] = {}
    for part in text.split("+"):
        name, star, factor = part.strip().partition("*")
        name = name.rstrip()
        try:
            scale = float(factor) if star else 1.0
        except ValueError:
            scale = -1.0
        if not 0 < scale < float("inf"):
            raise UserError(f"{where}: tasks={text}: weight {factor!r} is no positive number")
        if name == everything:
            found = {n: w for n, w in known.items() if w}
        elif name in known:
            found = {name: 1.0}
        else:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            raise UserError(
                f"{where}: unknown task {name!r}{hint}: choose from {everything}, "
                f"{', '.join(known)}"
            )
        for n, w in found.items():
            weights[n] = weights.get(n, 0.0) + scale * w
    return weights
