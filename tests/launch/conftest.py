"""A data set to fit a model to."""

import pytest

from mg_jax.data.write import write_voc
from tests.launch.shapes import scenes


@pytest.fixture
def voc(tmp_path):
    """A VOC data text of 20 pictures."""
    write_voc(scenes(tasks="none"), tmp_path / "shapes")
    return f"voc:{tmp_path / 'shapes'}"
