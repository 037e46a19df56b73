"""Scenes with crowds and absent things, and how they are compared, for tests of box readers."""

from dataclasses import replace

import numpy as np
from PIL import Image

from mg_jax.data.sources import open_source
from mg_jax.example import Example, Region


def scenes(n: int = 5, size: str = "96x64") -> list[Example]:
    source = open_source(f"scenes:seed=83,n={n},size={size},tasks=none")
    crowd = (Region.from_box((0.25, 0.5, 0.75, 1.0), label="mauve flock"),)
    absent = ("purple élan", "zebra, striped")
    return [
        replace(source[i], crowd=crowd if i % 2 else (), absent=absent, turns=()) for i in range(n)
    ]


def all_of(source) -> list[Example]:
    return [source[i] for i in range(len(source))]


def assert_boxes(got, want, atol=1e-6, labels=True, crowd=True):
    """The same pictures with the same boxes in the same order."""
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        assert (a.width, a.height) == (b.width, b.height) and a.pixels().shape == b.pixels().shape
        for key in ("objects", "crowd") if crowd else ("objects",):
            left, right = getattr(a, key), getattr(b, key)
            assert len(left) == len(right)
            if right:
                np.testing.assert_allclose([r.box for r in left], [r.box for r in right], atol=atol)
            if labels:
                assert [r.label for r in left] == [r.label for r in right]


def picture(path, width=40, height=20):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height)).save(path)
    return path
