"""Fixtures: the recorded tokenisation and the tiny tokenizer it was made with."""

import json
from pathlib import Path

import pytest

from mg_jax.text.codecs.groma import GROMA_TOKENS, GromaCodec
from mg_jax.text.tokenizer import Tokenizer

GOLDEN = Path(__file__).parents[1] / "golden" / "groma_tokenizer"


@pytest.fixture(scope="session")
def recorded():
    return json.loads((GOLDEN / "tokenization.json").read_text())


@pytest.fixture(scope="session")
def tokenizer():
    return Tokenizer.from_model_file(GOLDEN / "tokenizer.model", GROMA_TOKENS)


@pytest.fixture(scope="session")
def codec(tokenizer):
    return GromaCodec(tokenizer, image_tokens=9, max_regions=6, text_tokens=300)
