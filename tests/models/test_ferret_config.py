"""What a Ferret may be: sizes, room for text, published shapes; how one stage follows another."""

import jax
import numpy as np
import pytest

from configs import base
from mg_jax import checkpoint, sharding
from mg_jax.config import to_dict
from mg_jax.errors import UserError
from mg_jax.models import build
from mg_jax.models.ferret import FerretConfig, version
from mg_jax.ops.resize import resize_positions
from mg_jax.optim import flatten
from mg_jax.plan import initial_params, plan
from mg_jax.vision.anyres import GRIDS_UI, GRIDS_V2, up_to
from tests.drawn import drawn
from tests.models.test_ferret import TINY

CONTEXT = {"max_positions": 4096}


def sizes(fields, stage="instruction"):
    """Numbers of each part at full size; computes nothing."""
    boxed = sharding.abstract_params(build("ferret", fields).init(stage), jax.random.key(0))
    shapes = sharding.unbox(boxed)
    return {k: sum(x.size for x in jax.tree.leaves(p)) for k, p in shapes.items()}


def sampler_size(c, d, anchors=32):
    """Spec 1.1: two stages, flatten and dim projector."""
    w = c + 2
    return 2 * (w * w + w + 2 * w * c + 3 * c) + anchors * c * c + c + c * d + d


def test_published_sizes():
    """v1 and Ferret-UI have a sampler of CLIP's width, v2's equations one of the projected map."""
    lm = {"vocab": 32001, "max_positions": 2048}
    v1 = sizes({**version("v1"), "lm": lm, "region_token": 32000})
    assert v1["lm"] == 6_738_415_616 + 2 * 4096
    assert v1["projector"] == 1024 * 4096 + 4096
    assert v1["sampler"] == sampler_size(1024, 4096)
    assert set(v1) == {"low", "projector", "sampler", "lm"} and v1["low"] == 303_507_456
    ui = sizes({**version("ui"), "lm": {"max_positions": 8192}})
    assert ui["projector"] == 1024 * 4096 + 4096 * 4096 + 2 * 4096
    assert ui["sampler"] == v1["sampler"] and set(ui) == set(v1)
    v2 = sizes({})
    assert v2["sampler"] == sampler_size(4096, 4096) and v2["tile"] == 304_368_640
    assert v2["tile_projector"] == v2["projector"] == ui["projector"]
    assert sizes({"fusion": "raw"})["sampler"] == v1["sampler"]


def test_six_tiles_leave_room_for_text():
    """4,032 of Vicuna's 4,096 positions are too many; each of three mends keeps 512 and more."""
    with pytest.raises(UserError, match="6 tiles is 4,032 tokens, which leaves 64 of"):
        build("ferret", {"lm": CONTEXT})
    cfg = FerretConfig()
    assert cfg.largest == cfg.image_tokens((3, 2)) == 4032
    assert cfg.lm.max_positions - cfg.largest >= 512 and len(cfg.grids) == 14
    assert build("ferret", {"lm": CONTEXT, "tile_pool": 2}).cfg.largest == 576 + 6 * 144
    fewer = build("ferret", {"lm": CONTEXT, "grids": up_to(GRIDS_V2, 5)}).cfg
    assert fewer.largest == 3456 and fewer.max_tiles == 5 and len(fewer.grids) == 10
    assert build("ferret", {"lm": CONTEXT, "text_positions": 64}).cfg.largest == 4032


def test_token_counts():
    """Spec 7.2: 576 + 576 N at 336 px; 1,280 and 1,024 of the paper's study at 448 px."""
    cfg = FerretConfig(**version("ui"))
    assert [cfg.image_tokens(g) for g in GRIDS_UI] == [1728, 1728, 2880, 2304, 2304]
    study = FerretConfig(low_size=224, tile_size=224, grids=((2, 2),))
    direct = FerretConfig(low_size=448, grids=())
    assert (study.largest, direct.largest) == (1280, 1024)
    unpad = FerretConfig(merge="spatial_unpad")
    assert unpad.image_tokens((2, 1), (3, 0, 18, 48)) == 576 + 18 * 49
    assert unpad.largest == 576 + 6 * 24 * 25


def test_whose_pixels_tiles_have():
    """DINOv2's own by default, CLIP's where CLIP sees them, or as Ferret-UI's code gives all."""
    assert FerretConfig().tile_mean_std == "imagenet"
    assert FerretConfig(tile_pixels="clip").tile_mean_std == "clip"
    assert FerretConfig(**version("ui")).tile_mean_std == "clip"
    with pytest.raises(UserError, match="tile_pixels: 'dino'"):
        build("ferret", {**TINY, "tile_pixels": "dino"})


def test_direct_upsampling_interpolates_clips_positions():
    """The same weights see a larger picture as an encoder of that size whose positions they are,
    interpolated."""
    small = build("ferret", {**TINY, "grids": [], "tile": None, "tile_projector": "shared"})
    large = build("ferret", {**to_dict(small.cfg), "low_size": 8})
    params = drawn(small, "instruction")
    assert large.cfg.image_tokens() == 4 * small.cfg.image_tokens() == 16
    native = build("ferret", {**to_dict(large.cfg), "low": {**TINY["low"], "image_size": 8}})
    table = params["low"]["positions"]
    grid = resize_positions(table[1:].reshape(2, 2, 12), (4, 4), small.cfg.low.position_rule)
    positions = np.concatenate([table[:1], grid.reshape(16, 12)])
    theirs = {**params, "low": {**params["low"], "positions": positions}}
    low = np.random.default_rng(0).normal(size=(1, 8, 8, 3)).astype(np.float32)

    def tokens(system, params):
        aux = system.module.apply({"params": params}, {"low": low}, method="encode")
        return aux["image_tokens"]

    found = tokens(large, params)
    assert found.shape == (1, 16, 16)
    np.testing.assert_allclose(found, tokens(native, theirs), atol=1e-6)
    flat = np.concatenate([table[:1], np.zeros((16, 12))])
    other = tokens(native, {**theirs, "low": {**theirs["low"], "positions": flat}})
    assert np.abs(found - other).max() > 1e-2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"low_size": 5}, "low_size: 5 must be a multiple of the patch, 2"),
        ({"tile_size": 9}, "tile_size: 9 must be"),
        ({"tile_size": 0}, "tile_size: 0 must be"),
        ({"tile_size": -8}, "tile_size: -8 must be"),
        ({"low_size": 0}, "low_size: 0 must be"),
        ({"text_positions": -5}, "text_positions: -5; give"),
        ({"label_words": -1}, "label_words: -1; give"),
        ({"region_token": -1}, "region_token: -1 is no row of the vocabulary"),
        ({"region_token": TINY["lm"]["vocab"]}, "is no row of the vocabulary: lm.vocab="),
        ({"tile_pool": 3}, "tile_pool: 3 does not divide the 4 cells"),
        ({"grids": [[0, 2]]}, r"grids: \[0, 2\]"),
        ({"grids": [[3, 3]], "tile_pool": 2}, r"grids: \[3, 3\] has 9 tiles; .* room for 6"),
        ({"low_layer": -4}, "low_layer: -4 is not one of the 3 hidden states"),
        ({"tile_layer": 3}, "tile_layer: 3 is not"),
        ({"fusion": "sum"}, "fusion: 'sum'"),
        (
            {"fusion": "raw", "tile": {**TINY["tile"], "width": 16}},
            "fusion: 'raw' needs encoders of one width, but low.width=12 and tile.width=16",
        ),
        (
            {"tile_projector": "shared", "tile": {**TINY["tile"], "width": 16}},
            "tile_projector: 'shared' needs",
        ),
        ({"sampler": {"points": 4}}, "128 anchors of 24 neighbours each among 4 points"),
        ({"sampler": {"anchors": [8]}}, "1 anchors and 2 neighbours"),
    ],
)
def test_values_that_do_not_fit_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        build("ferret", {**TINY, **change})


def test_the_local_projector_begins_as_the_global_one(tmp_path):
    """Stage II from a checkpoint of stage I, which has neither tiles nor regions (spec 8)."""
    first = build("ferret", TINY)
    caption = drawn(first, "caption")
    about = {"system": "ferret", "stage": "caption", "model": to_dict(first.cfg)}
    checkpoint.save_release(tmp_path / "a", caption, about, dtype="float32")
    c = base.get_config()
    c.system, c.stage, c.batch_size = "ferret", "dense", 8
    c.model.update(to_dict(first.cfg))
    c.mesh.data, c.mesh.fsdp = -1, 1
    c.init_from, c.init_stages = str(tmp_path / "a"), ("caption",)
    c.init_copy = (("projector", "tile_projector"),)
    c.trainable = ("projector/.*", "tile_projector/.*", "sampler/.*")
    c.frozen_dtype = "float32"
    said: list[str] = []
    p = plan(c, 1, system=first)
    found = initial_params(p, c, said.append)
    given = flatten(caption)
    for path, x in found.items():
        origin = path.replace("tile_projector/", "projector/")
        if origin in given:
            np.testing.assert_array_equal(x, given[origin])
    copies = [path for path in found if path.startswith("tile_projector/")]
    assert len(copies) == 4 and any("in sampler, tile" in line for line in said)
    # donated to the step together with what they are copies of
    assert all(found[x] is not found[x.removeprefix("tile_")] for x in copies)
