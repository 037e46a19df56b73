"""Which pictures of a folder there are, and what their examples are called."""

import pytest
from PIL import Image

from mg_jax.data.synthesis.work import of_folder
from mg_jax.errors import BadRecord, UserError


def test_pictures_that_differ_in_their_ending_alone_keep_it(tmp_path):
    """Else conversations about two pictures would have one id."""
    (tmp_path / "b").mkdir()
    for file in ("a.png", "a.jpg", "b/c.v2.png"):
        Image.new("RGB", (20, 10)).save(tmp_path / file)
    (tmp_path / "notes.txt").write_text("x")
    items = of_folder(tmp_path)
    assert [item.key for item in items] == ["a.jpg", "a.png", "b/c.v2.png"]
    opened = [item.open() for item in items]
    assert [e.id for e in opened] == ["a.jpg", "a.png", "b/c.v2"]
    assert [e.meta["file_name"] for e in opened] == [item.key for item in items]
    assert (opened[0].width, opened[0].height) == (20, 10)


def test_what_cannot_be_worked_on_is_named(tmp_path):
    with pytest.raises(UserError, match="holds no picture"):
        of_folder(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        of_folder(tmp_path / "x")
    (tmp_path / "a.png").write_text("no picture")
    (item,) = of_folder(tmp_path)
    with pytest.raises(BadRecord, match="a.png"):
        item.open()
