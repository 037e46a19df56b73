"""Taking an encoder out of a release, and fitting it to other patches."""

import numpy as np
import pytest

from launch import tower
from mg_jax import checkpoint
from mg_jax.errors import UserError
from mg_jax.models import build
from mg_jax.ops.resize import linear_matrix
from mg_jax.optim import flatten
from mg_jax.plan import initial_params, plan
from mg_jax.vision.vit import ViTConfig
from tests import ferret_micro, tiny_grounding_micro
from tests.drawn import drawn


@pytest.fixture
def labels(tmp_path):
    """A release of stage labels, and its parameters."""
    config = tiny_grounding_micro.micro_config("labels")
    system = build(config.system, config.model.to_dict())
    params = flatten(drawn(system, "labels"))
    about = {"system": config.system, "stage": "labels", "model": config.model.to_dict()}
    checkpoint.save_release(tmp_path / "labels", params, about, dtype="float32")
    return str(tmp_path / "labels"), params


def test_another_system_begins_with_it(labels, tmp_path, capsys):
    release, params = labels
    config = ferret_micro.micro_config("labels")
    config.model.tile.update({"width": 8, "layers": 1})
    for part in ("clip", "dino"):
        sizes = ["--image-size", "28"]
        tower.main([release, part, "--out", str(tmp_path / part), *sizes])
        assert "2x2 patches of 14 px" in capsys.readouterr().out
    config.init_from = f"{tmp_path / 'clip'},{tmp_path / 'dino'}"
    found = initial_params(plan(config, 1), config, say=lambda text: None)
    for part, theirs in (("low", "clip"), ("tile", "dino")):
        mine = {p.removeprefix(f"{part}/") for p in found if p.startswith(f"{part}/")}
        assert "blocks/attn/q/kernel" in mine
        for name in mine - {"positions"}:
            value = params[f"{theirs}/{name}"]
            np.testing.assert_array_equal(found[f"{part}/{name}"], value, err_msg=name)
        assert found[f"{part}/positions"].shape == (5, params[f"{theirs}/positions"].shape[1])
        np.testing.assert_array_equal(
            found[f"{part}/positions"][0], params[f"{theirs}/positions"][0]
        )


def test_small_patches_say_what_large_ones_said():
    """Exactly where they were smaller: linear interpolation loses nothing on the way up."""
    cfg = ViTConfig(width=16, layers=2, heads=2, patch=8, image_size=32)
    rng = np.random.default_rng(0)
    params = {
        "patch/kernel": rng.normal(size=(8, 8, 3, 16)),
        "positions": rng.normal(size=(17, 16)),
    }
    grown, larger = tower.resized(params, cfg, 16, 64)
    assert larger.grid == cfg.grid and grown["patch/kernel"].shape[:2] == (16, 16)
    rows = linear_matrix(16, 8)
    patch = rng.normal(size=(8, 8, 3))
    large = np.einsum("qy,rx,yxc->qrc", rows, rows, patch)
    want, got = (
        np.einsum("yxc,yxcd->d", x, p["patch/kernel"]) for x, p in ((patch, params), (large, grown))
    )
    np.testing.assert_allclose(got, want, atol=1e-4)
    same, _ = tower.resized(params, cfg, 8, 32)
    assert all(same[p] is params[p] for p in params)


def test_what_is_no_encoder_is_refused(labels, tmp_path):
    release, _ = labels
    out = ["--out", str(tmp_path / "out")]
    with pytest.raises(UserError, match="holds no encoder 'lm', but clip, dino"):
        tower.main([release, "lm", *out])
    with pytest.raises(UserError, match="--image-size 30: give a multiple of --patch 14"):
        tower.main([release, "clip", *out, "--image-size", "30"])
