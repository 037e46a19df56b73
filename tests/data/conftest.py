"""The tokenizer of the recordings, for tests that encode what they made."""

from pathlib import Path

import pytest

from mg_jax.text.codecs.groma import GROMA_TOKENS
from mg_jax.text.tokenizer import Tokenizer

GOLDEN = Path(__file__).parents[1] / "golden" / "groma_tokenizer"


@pytest.fixture(scope="session")
def tokenizer():
    return Tokenizer.from_model_file(GOLDEN / "tokenizer.model", GROMA_TOKENS)
