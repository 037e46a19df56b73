"""The run that others are compared with."""

import pytest

from tests.train.fake import run


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run of 12 steps: (folder, outcome)."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, run(folder)
