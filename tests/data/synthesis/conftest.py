"""What the tests of the recipes share."""

import pytest

from mg_jax.data.synthesis import prompts
from mg_jax.data.synthesis.case import Case, Tools
from mg_jax.data.synthesis.journal import Journal
from mg_jax.data.synthesis.recipes import KINDS, RECIPES
from mg_jax.data.synthesis.work import Item


@pytest.fixture
def made(tmp_path):
    """`made(recipe, example, ...)`: (what the recipe makes, its Case)."""
    journals = []

    def make(recipe, example, **tools):
        journals.append(Journal(tmp_path / str(len(journals)), {}))
        defaults = {"prompts": prompts.read_prompts(), "kinds": KINDS}
        case = Case(Item("p", lambda: example), Tools(journals[-1], **(defaults | tools)))
        return RECIPES[recipe](case), case

    yield make
    for journal in journals:
        journal.close()
