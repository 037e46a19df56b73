"""Photos, and a detector that needs no weights."""

import signal

import numpy as np
import pytest
from PIL import Image

from launch import grounding_dino
from tests.launch.synthesize.command import BOXES


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "MG_JAX_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    yield
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


@pytest.fixture
def detector(monkeypatch):
    """Finds BOXES in every picture, whatever the picture."""

    def look(images, names):
        hits = [name for name in names[0] if name in BOXES]
        return [{"boxes": [BOXES[n] for n in hits], "scores": [0.9] * len(hits), "labels": hits}]

    monkeypatch.setattr(grounding_dino, "open_detector", lambda *_: look)


@pytest.fixture
def photos(tmp_path, rng):
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for n in range(12):
        name = f"more/{n:02d}.jpg" if n % 3 else f"{n:02d}.png"
        pixels = rng.integers(0, 256, (90, 120, 3), np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return folder
