"""`launch.demo` about a photo; the model is a stand-in, the photo scikit-image's where it is."""

import sys

import numpy as np
import pytest
from PIL import Image

import mg_jax
from launch import demo
from mg_jax.answer import Answer, Phrase
from mg_jax.errors import UserError


class Speaker:
    """Finds the left half of every picture."""

    def __init__(self):
        self.asked = []

    def chat(self, picture, prompt, regions=()):
        self.asked.append((prompt, [r.box for r in regions]))
        half = (0.0, 0.0, picture.shape[1] / 2, float(picture.shape[0]))
        phrases = (Phrase("cup", (0, 3), (half,), (0.9,)),) if "Locate" in prompt else ()
        height, width = picture.shape[:2]
        return Answer(text="cup", phrases=phrases, width=width, height=height)


@pytest.fixture
def speaker(monkeypatch):
    found = Speaker()
    monkeypatch.setattr(mg_jax, "load", lambda name: found, raising=False)
    return found


def test_a_photo_is_asked_about_and_drawn(speaker, monkeypatch, tmp_path, capsys):
    photo = np.zeros((60, 80, 3), np.uint8)
    monkeypatch.setattr(demo, "photo", lambda name: photo)
    out = tmp_path / "a.png"
    demo.main(["--photo", "--out", str(out)])
    assert np.asarray(Image.open(out)).any()
    there, missing = demo.PHOTOS["coffee"]
    prompts = [prompt for prompt, _ in speaker.asked]
    assert prompts[0] == f"Locate <p>{there}</p> in the image."
    assert speaker.asked[1] == ("What is <r:0>?", [(0.0, 0.0, 0.5, 1.0)])
    assert [there in prompts[2], missing in prompts[3]] == [True, True]
    assert "cup: [0, 0, 40, 60]" in capsys.readouterr().out


def test_a_scene_is_described(speaker, tmp_path):
    demo.main(["--out", str(tmp_path / "a.png")])
    assert speaker.asked[0][0] == "[grounding] Describe the picture."
    assert (tmp_path / "a.png").is_file()


def test_a_picture_that_cannot_be_written_is_named(speaker, monkeypatch, tmp_path):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Image.Image, "save", refuse)
    with pytest.raises(UserError, match=r"a\.png: cannot be written"):
        demo.main(["--out", str(tmp_path / "a.png")])


@pytest.mark.parametrize("name", demo.PHOTOS)
def test_scikit_image_ships_the_photos(name):
    pytest.importorskip("skimage")
    photo = demo.photo(name)
    assert photo.dtype == np.uint8 and photo.shape[2] == 3 and min(photo.shape[:2]) >= 300


def test_without_scikit_image_one_line_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(UserError, match="--photo coffee comes with scikit-image: make setup"):
        demo.photo("coffee")
