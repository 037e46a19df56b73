"""A run that starts from releases of its public parts, as launch.convert makes them."""

import jax
import numpy as np
import pytest

from launch.train import run
from mg_jax import checkpoint
from mg_jax.errors import UserError
from mg_jax.models import build
from mg_jax.optim import flatten
from mg_jax.plan import plan


def assert_starts_from_parts(config, full, parts, folder):
    """`config` trains from releases of `parts` as `full` does: each part arrives unchanged, and a
    missing one is named.

    parts: (architecture, what its release calls it, what the system calls it).
    """
    for key in ("init_parts", "init_required", "init_stages", "init_ignore", "trainable"):
        setattr(config, key, getattr(full, key))
    system = build(config.system, config.model.to_dict())
    shapes = flatten(plan(config, 2, system=system).frozen)
    assert {p.split("/")[0] for p in shapes} == {here for _, _, here in parts}
    folders = []
    rng = np.random.default_rng(0)
    for name, there, here in parts:
        params = {
            there + p.removeprefix(here): rng.normal(size=x.shape).astype(np.float32)
            for p, x in shapes.items() if p.startswith(f"{here}/")
        }  # fmt: skip
        about = {
            "system": "parts", "architecture": name, "model": {there: {}},
            "stage": "language" if there == "lm" else "encoder",
        }  # fmt: skip
        folders.append(checkpoint.save_release(folder / name, params, about, dtype="float32"))
    config.init_from = ",".join(map(str, folders))
    assert run(config, str(folder / "run")) == 0
    _, trained, _ = checkpoint.load_release(folder / "run" / "release")
    for (_, there, here), given in zip(parts, folders, strict=True):
        before = checkpoint.load_release(given)[1][there]
        for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(trained[here]), strict=True):
            np.testing.assert_array_equal(a.astype(b.dtype), b)
    config.init_from = ",".join(map(str, folders[1:]))
    with pytest.raises(UserError, match=f"lacks .* parameters, {parts[0][2]}/"):
        run(config, str(folder / "other"))
