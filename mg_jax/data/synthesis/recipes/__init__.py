"""What a run makes of each picture: one file a recipe, each a function from a `Case` to `Made`.

tiny_grounding_gpt   texts, coordinates and object images aligned (its spec, 5)
groma                grounded conversations on pictures with numbered marks (Groma Instruct)
ferret               detected boxes for the nouns of questions and answers, OCR boxes for text
"""

from collections.abc import Callable

from mg_jax.data.synthesis.case import Case
from mg_jax.data.synthesis.recipes.base import Made
from mg_jax.data.synthesis.recipes.ferret import ferret
from mg_jax.data.synthesis.recipes.groma import groma
from mg_jax.data.synthesis.recipes.tiny_grounding_gpt import KINDS, tiny_grounding_gpt

RECIPES: dict[str, Callable[[Case], Made]] = {
    "tiny_grounding_gpt": tiny_grounding_gpt,
    "groma": groma,
    "ferret": ferret,
}

__all__ = ["KINDS", "RECIPES", "Made"]
