"""Scenes to fit a model to, and a start that has a language model."""

from launch import fitting
from mg_jax.data.sources import open_source


def scenes(n=20, **options):
    """The first n, small."""
    more = "".join(f",{k}={v}" for k, v in options.items())
    source = open_source(f"scenes:seed=9,n={n},size=96x64{more}")
    return [source[i] for i in range(n)]


def speaking(**model):
    """A start with a language model, of whose config `model` are fields."""
    config = {"system": "groma", "stage": "instruction", "model": model, "codec": {},
              "provenance": {}}  # fmt: skip
    return fitting.Start("somewhere", config, {"lm/embed": 10, "vision/x": 5})
