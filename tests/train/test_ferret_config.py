"""configs/ferret.py: published shapes and hyper-parameters, context, and the stages in a row."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from configs import ferret
from conversion import manifests
from conversion.hf_config import read_ferret
from launch.evaluate import main as evaluate
from launch.train import run
from mg_jax import checkpoint
from mg_jax.data import pipeline
from mg_jax.errors import UserError
from mg_jax.models import build
from mg_jax.optim import flatten
from mg_jax.plan import initial_params, plan
from mg_jax.sharding import make_mesh
from tests.drawn import drawn
from tests.ferret_micro import micro_config

# parameters of the language models by their config.json, and of the two encoders
LANGUAGE = {"7b": 6_738_415_616, "13b": 13_015_864_320, "8b": 8_030_261_248}
CLIP, DINOV2 = 303_507_456, 304_368_640
STAGES = ("caption", "dense", "instruction")
FULL = [
    *(("v2", stage, size) for stage in STAGES for size in ("7b", "13b")),
    *(("v1", "instruction", size) for size in ("7b", "13b")),
    *(("ui", "instruction", size) for size in ("7b", "13b", "8b")),
]


def count(flat):
    return sum(math.prod(x.shape) for x in flat.values())


def mlp(a, d):
    return a * d + d * d + 2 * d


def sampler(c, d):
    """Diff, mix and norm of both stages, flatten and output (spec 1.1)."""
    stage = (c + 2) * (c + 3) + (2 * c + 4) * c + c + 2 * c
    return 2 * stage + 32 * c * c + c + c * d + d


def expected(version, stage, size, width):
    """(parameters in all, of the parts between encoders and language model)."""
    language = LANGUAGE[size] + (0 if version == "v2" else 2 * width)  # one row more, and its head
    if version == "v1":
        between = 1024 * width + width + sampler(1024, width)
        return CLIP + language + between, between
    if version == "ui":
        between = mlp(1024, width) + sampler(1024, width)
        return CLIP + language + between, between
    if stage == "caption":
        return CLIP + language + mlp(1024, width), mlp(1024, width)
    between = 2 * mlp(1024, width) + sampler(width, width)
    return CLIP + DINOV2 + language + between, between


@pytest.mark.parametrize(("version", "stage", "size"), FULL)
def test_full_sizes_build_with_the_published_shape(version, stage, size):
    config = ferret.get_config(f"stage={stage},size={size},version={version}")
    system = build(config.system, config.model.to_dict())
    sizes = pipeline.batch_sizes(config, system.cfg)
    p = plan(config, 100, system=system, mesh=make_mesh(1, 8, 1), sizes=sizes)
    whole, between = expected(version, stage, size, config.model.lm.width)
    learned = count(p.state.params)
    assert learned + count(p.frozen) == whole
    if stage == "instruction":
        assert learned == (whole if version == "v2" else whole - CLIP)
    else:
        assert learned == between
    length = p.example["tokens"].shape[1]
    assert length <= config.model.lm.max_positions
    tokens, text = {"v2": (4032, 576), "v1": (576, 1472), "ui": (2880, 1216)}[version]
    assert length == (576 if stage == "caption" else tokens) + text
    assert ("tiles" in p.example) == (version != "v1" and stage != "caption")


TINY_TOKENS = {"context=fewer": 441, "arm=fixed": 196, "arm=direct": 784, "arm=any": 392}


@pytest.mark.parametrize(
    ("arg", "tokens", "text"),
    [
        ("context=pool", 576 + 6 * 144, 1984),
        ("context=fewer", 576 + 5 * 576, 640),
        ("arm=fixed", 576, 576),
        ("arm=direct", 1024, 576),
        ("arm=any", 256 + 4 * 256, 576),
        ("arm=ground", 4032, 576),
        ("arm=clip,encoder=frozen", 4032, 576),
    ],
)
def test_contexts_and_arms_build_at_full_size(arg, tokens, text):
    """Spec 7.2: 1,024 tokens of direct upsampling against at most 1,280 of tiles."""
    config = ferret.get_config(f"stage=instruction,size=7b,{arg}")
    system = build(config.system, config.model.to_dict())
    sizes = pipeline.batch_sizes(config, system.cfg)
    p = plan(config, 100, system=system, mesh=make_mesh(1, 8, 1), sizes=sizes)
    assert p.example["tokens"].shape[1] == tokens + text <= config.model.lm.max_positions
    assert ("tiles" in p.example) == (arg not in ("arm=fixed", "arm=direct"))
    parts = {path.split("/")[0] for path in (*p.state.params, *p.frozen)}
    assert ("tile" in parts) == (arg.startswith("context") or arg == "arm=ground")
    encoders = {path.split("/")[0] for path in p.frozen}
    assert encoders == ({"low"} if "frozen" in arg else set())
    assert (config.model.lm.rope_scaling is None) == arg.startswith("context")
    if arg != "context=pool":  # which size=tiny does in any context
        tiny = ferret.get_config(f"stage=instruction,size=tiny,{arg}")
        largest = build(tiny.system, tiny.model.to_dict()).cfg.largest
        assert largest == TINY_TOKENS.get(arg, 490)


@pytest.mark.parametrize(("side", "pool", "tokens"), [(224, 1, 256), (448, 2, 256)])
def test_other_sides_of_a_tile(side, pool, tokens):
    config = ferret.get_config("stage=instruction,size=7b")
    config.model.tile_size, config.model.tile_pool = side, pool
    cfg = build(config.system, config.model.to_dict()).cfg
    assert cfg.largest == 576 + 6 * tokens
    if side == 448:
        config.model.tile_pool = 1
        with pytest.raises(UserError, match="6 tiles is 6,720 tokens"):
            build(config.system, config.model.to_dict())


@pytest.mark.parametrize("side", [224, 336, 448])
def test_pooled_tiles_of_every_side_leave_their_text_room(side):
    config = ferret.get_config("stage=instruction,size=7b,context=pool")
    config.codec.tokenizer, config.model.lm.vocab = "tokenizer-tiny", 1314
    config.model.tile_size = side
    cfg = build(config.system, config.model.to_dict()).cfg
    codec = pipeline.make_codec(config, cfg)
    assert codec.length == cfg.largest + 1984 and cfg.lm.max_positions - cfg.largest >= 1984
    assert pipeline.open_samples(config, cfg).buckets[-1] == codec.length
    assert codec.length == 4096 or side != 448
    config.codec.text_tokens = 4097 - cfg.largest
    with pytest.raises(UserError, match="make sequences of 4097, but config.model.lm.max_pos"):
        pipeline.open_samples(config, cfg)


def test_hyperparameters():
    """v1's and Ferret-UI's are published; v2 has v1's."""
    for version, stage, size in FULL:
        c = ferret.get_config(f"stage={stage},size={size},version={version}")
        assert (c.batch_size, c.optim.lr, c.optim.schedule) == (128, 2e-5, "cosine")
        assert (c.optim.warmup_ratio, c.optim.weight_decay) == (0.03, 0.0)
        assert c.train.epochs == (3 if stage == "instruction" else 1)
        assert c.points == 0.5
    v1 = ferret.get_config("stage=instruction,size=7b,version=v1").model
    assert (v1.lm.vocab, v1.region_token, v1.transpose_sampling) == (32001, 32000, False)
    published = build("ferret", read_ferret(manifests.config("ferret_7b_v13"))).cfg
    ours = dataclasses.replace(
        build("ferret", v1.to_dict()).cfg, text_positions=0, low=published.low, lm=published.lm,
        transpose_sampling=True,  # of converted weights
    )  # fmt: skip
    assert ours == published and v1.lm.eps == published.lm.eps == 1e-6
    ui = ferret.get_config("stage=instruction,size=8b,version=ui").model
    assert not ui.transpose_sampling and published.transpose_sampling
    v2 = ferret.get_config("stage=instruction,size=7b").model
    assert (v2.lm.vocab, v2.region_token, v2.transpose_sampling) == (32000, None, False)
    assert v2.lm.rope_scaling.factor == 1.125 and v2.lm.max_positions == 4608


@pytest.mark.parametrize(
    ("arg", "message"),
    [
        ("stage=caption,size=7b,version=v1", "version=v1 has one stage alone"),
        ("stage=instruction,size=8b", "size=8b is Llama-3-8B, which only version=ui has"),
        ("size=2b", "size is one of tiny, 7b, 13b, 8b"),
        ("stage=dens", "did you mean dense"),
        ("arm=fixed,version=ui,stage=instruction", "arm=fixed is of version=v2"),
        ("context=pool,version=v1,stage=instruction", "context=pool is of version=v2"),
        ("context=pool,size=tiny", "context=pool: size=tiny pools its tiles as it is"),
        ("encoder=trained,version=v1,stage=instruction", "encoder=trained is of version=v2"),
        ("stage=dense,encoder=frozen", "encoder=frozen is of stage=instruction: leave it out of"),
        ("encoder=trained", "encoder=trained is of stage=instruction"),
        ("sampler=fresh", "sampler=fresh is of stages dense and instruction alone"),
        ("sampler=fresh,version=v1,stage=instruction", "sampler=fresh is of version=v2"),
        ("stage=labels,size=7b", "the encoders of 7b are pretrained: take caption"),
        ("stage=labels,version=ui", "version=ui has one stage alone"),
    ],
)
def test_wrong_arguments_are_named(arg, message):
    with pytest.raises(UserError, match=message):
        ferret.get_config(arg)


def test_tiny_encoders_stay_as_the_first_stage_taught_them():
    """Unless they are said to be trained, slowly."""
    fixed = "instruction,encoder=frozen,arm=fixed"
    arms = {
        "labels": set(), "caption": {"low"}, "dense": {"low", "tile"},
        "instruction,arm=clip": {"low"},
        "instruction": {"low", "tile"}, "instruction,encoder=trained": set(), fixed: {"low"},
    }  # fmt: skip
    for arg, frozen in arms.items():
        config = ferret.get_config(f"stage={arg},size=tiny")
        p = plan(config, 100, mesh=make_mesh(8, 1, 1))
        assert {path.split("/")[0] for path in p.frozen} == frozen, arg
        assert bool(config.optim.lr_multipliers) == ("trained" in arg)
        assert ("labels/kernel" in p.state.params) == (arg == "labels")
        assert ("gaze" in p.example) == (arg != "labels")
        assert ("tile_places/table" in p.state.params) == (arg not in ("caption", fixed))


@pytest.mark.parametrize("version", ferret.CHOICES["version"])
def test_tiny_is_small_enough_to_ship(version):
    config = ferret.get_config(f"stage=instruction,size=tiny,version={version}")
    p = plan(config, 100, mesh=make_mesh(8, 1, 1))
    assert count(p.state.params) + count(p.frozen) < 5_000_000
    sources, _ = pipeline.open_mixture(config.data)
    grids = {}
    assert len(sources) == 2 * len(ferret.SCENES)  # captions with boxes apart
    for source, (tiles, shapes) in zip(sources, ferret.SCENES.items(), strict=False):
        assert len(source.sizes) == len(shapes)
        for i in range(40):
            width, height = source.size_of(i)
            grids.setdefault(tiles, set()).add(round(max(width, height) / min(width, height)))
    assert max(grids[6]) >= 6 and grids[1] == {1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model__lm__max_positions": 600}, "leaves 572 .* for text"),
        ({"model__lm__max_positions": 900, "codec__text_tokens": 900}, "lower the one"),
        ({"model__grids": ((1, 1), (20, 20))}, r"\[20, 20\] has 400 tiles; a batch has room"),
    ],
)
def test_context_is_checked(change, message):
    config = micro_config(**change)
    with pytest.raises(UserError, match=message):
        cfg = build(config.system, config.model.to_dict()).cfg
        pipeline.open_samples(config, cfg)


INITIAL = ("init_stages", "init_required", "init_ignore", "init_copy", "init_alike", "init_parts")


def arm_of(stage, arm, size="7b", **changes):
    """A micro config of an arm with tiles as of full size, that starts as one of `size` does."""
    config = micro_config(f"{stage},arm={arm}", model__tile_places=False, **changes)
    full = ferret.get_config(f"stage={stage},size={size},arm={arm}")
    for key in INITIAL:
        config[key] = full[key]
    return config


def released(folder, config, seed):
    """(folder, flat parameters) of a release of drawn parameters."""
    system = build(config.system, config.model.to_dict())
    params = drawn(system, config.stage, seed)
    about = {"system": "ferret", "stage": config.stage, "model": config.model.to_dict()}
    path = checkpoint.save_release(folder, params, about, dtype="float32")
    return str(path), flatten(params)


@pytest.mark.parametrize("arm", ["fixed", "any", "clip"])
def test_arms_without_an_encoder_of_tiles_start_at_full_size(arm, tmp_path):
    """From releases of the full arm, whose tiles stay behind, and from those of their own."""
    first, caption = released(tmp_path / "a", micro_config("caption"), 0)
    whole, dense = released(tmp_path / "b", arm_of("dense", "full"), 1)
    own, mine = released(tmp_path / "c", arm_of("dense", arm), 2)
    for stage, start, given in (
        ("dense", first, caption), ("instruction", whole, dense), ("instruction", own, mine),
    ):  # fmt: skip
        config = arm_of(stage, arm, init_from=start)
        found = initial_params(plan(config, 1), config, lambda line: None)
        parts = {path.split("/")[0] for path in found}
        assert parts == {"low", "projector", "sampler", "lm"} | (
            {"tile_projector"} if arm == "clip" else set()
        )
        for path, x in found.items():
            if start != own:  # a projector of other features, or none
                path = path.replace("tile_projector/", "projector/")
            if path in given:
                np.testing.assert_array_equal(x, given[path], err_msg=f"{path} of {start}")
            else:
                assert start == first and path.startswith("sampler/")
    config = arm_of("instruction", "full", init_from=own)
    with pytest.raises(UserError, match="tile/.* first: stage=instruction starts from"):
        initial_params(plan(config, 1), config, lambda line: None)


def test_clip_on_tiles_begins_with_the_whole_pictures_projector(tmp_path):
    """At tiny size: what stage labels learned of the other encoder's tiles would not fit."""
    labels, taught = released(tmp_path / "labels", micro_config("labels"), 0)
    first, caption = released(tmp_path / "a", micro_config("caption"), 1)
    config = micro_config("instruction,arm=clip", init_from=f"{labels},{first}")
    found = initial_params(plan(config, 1), config, lambda line: None)
    copied = [path for path in found if path.startswith("tile_projector/")]
    assert len(copied) == 4 and "tile_places/table" in found
    for path in copied:
        np.testing.assert_array_equal(found[path], caption[path.removeprefix("tile_")])
    places = np.asarray(found["tile_places/table"])
    assert places.shape == taught["tile_places/table"].shape
    assert np.abs(places - taught["tile_places/table"]).max() > 0.01
    own, mine = released(tmp_path / "b", micro_config("dense,arm=clip"), 2)
    config = micro_config("instruction,arm=clip", init_from=own)
    found = initial_params(plan(config, 1), config, lambda line: None)
    for path in (*copied, "tile_places/table"):
        np.testing.assert_array_equal(found[path], mine[path])


@pytest.mark.parametrize("arm", ["full", "fixed"])
def test_a_fresh_sampler_leaves_that_of_the_start_behind(arm, tmp_path):
    """Compared arms read other maps; its last kernel is zero then, so it begins as a mean."""
    labels, taught = released(tmp_path / "labels", micro_config("labels"), 0)
    first, _ = released(tmp_path / "a", micro_config("caption"), 1)
    for fresh in (False, True):
        arg = f"instruction,arm={arm}" + (",sampler=fresh" if fresh else "")
        config = micro_config(arg, init_from=f"{labels},{first}")
        found = initial_params(plan(config, 1), config, lambda line: None)
        kept = np.array_equal(found["sampler/output/kernel"], taught["sampler/output/kernel"])
        assert kept != fresh and bool(np.any(found["sampler/output/kernel"])) != fresh


@pytest.mark.parametrize("version", ["v1", "ui"])
def test_a_plain_language_model_gets_a_row_for_regions(version, tmp_path):
    """As documented at full size: from converted releases of CLIP and a plain Vicuna or Llama-3."""
    vocab = 1314
    config = micro_config(version=version, rules="fsdp_tensor", mesh__tensor=2)
    config.model.region_token, config.model.lm.vocab, config.model.lm.tied = vocab, vocab + 1, False
    full = ferret.get_config(f"stage=instruction,size=7b,version={version}")
    for key in (*INITIAL, "init_grown"):
        config[key] = full[key]
    rng = np.random.default_rng(0)
    shapes = plan(config, 1).state.params | plan(config, 1).frozen
    given = {p: rng.normal(size=x.shape).astype(np.float32) for p, x in shapes.items()}
    given["lm/embed/embedding"] = given["lm/embed/embedding"][:-1]
    given["lm/head/kernel"] = given["lm/head/kernel"][:, :-1]
    folders = []
    for part, stage, form in (("low", "encoder", "safetensors"), ("lm", "language", "orbax")):
        about = {"system": "parts", "architecture": part, "model": {part: {}}, "stage": stage}
        params = {p: x for p, x in given.items() if p.startswith(f"{part}/")}
        path = checkpoint.save_release(tmp_path / part, params, about, dtype="float32", format=form)
        folders.append(str(path))
    config.init_from = ",".join(folders)
    said = []
    found = initial_params(plan(config, 1), config, said.append)
    assert [line for line in said if "mean of the others" in line] == [
        f"note: {path} has 1314 rows in {folders[1]} and 1315 in the model: the last 1 begin as "
        "the mean of the others"
        for path in ("lm/embed/embedding", "lm/head/kernel")
    ]
    for path, axis in ferret.ROWS:
        kept, row = np.split(np.asarray(found[path]), [vocab], axis)
        np.testing.assert_array_equal(kept, given[path])
        np.testing.assert_allclose(row, given[path].mean(axis, keepdims=True), atol=1e-6)
        assert found[path].sharding == shapes[path].sharding
    config.init_grown = ()
    with pytest.raises(UserError, match=r"embedding is \(1314, 16\) in .* and \(1315, 16\)"):
        initial_params(plan(config, 1), config, said.append)


@pytest.mark.parametrize("version", ["v1", "ui"])
def test_tiny_ones_begin_with_nothing(version):
    config = ferret.get_config(f"stage=instruction,size=tiny,version={version}")
    p = plan(config, 1)
    assert set(initial_params(p, config, print)) == {*p.state.params, *p.frozen}
    config.init_grown = (("lm/nowhere", 0),)
    with pytest.raises(UserError, match=r"config\.init_grown: the model has no lm/nowhere"):
        initial_params(p, config, print)


def test_stages_in_a_row(tmp_path, capsys):
    with pytest.raises(UserError, match="stage=caption starts from a checkpoint of stage labels"):
        run(micro_config("caption"), str(tmp_path / "x"))
    assert run(micro_config("labels"), str(tmp_path / "labels")) == 0
    taught = checkpoint.load_release(tmp_path / "labels" / "release")[1]
    assert set(taught) == {"low", "tile", "projector", "tile_projector", "tile_places", "sampler",
                           "labels"}  # fmt: skip
    labels = str(tmp_path / "labels")
    assert run(micro_config("caption", init_from=labels), str(tmp_path / "a")) == 0
    with pytest.raises(UserError, match="sampler/.* first: stage=dense starts from"):
        run(micro_config("dense", init_from=str(tmp_path / "a")), str(tmp_path / "y"))
    both = f"{labels},{tmp_path / 'a'}"
    for stage, before in (("dense", both), ("instruction", str(tmp_path / "dense")),
                          ("instruction", both)):  # fmt: skip
        folder = tmp_path / (stage if before != both or stage == "dense" else "without")
        assert run(micro_config(stage, init_from=before), str(folder)) == 0
        learned = checkpoint.load_release(folder / "release")[1]
        for part in ("low", "tile"):
            jax.tree.map(np.testing.assert_array_equal, learned[part], taught[part])
    release = tmp_path / "instruction" / "release"
    config, params, words = checkpoint.load_release(release, "ferret")
    assert config["preprocess"] == "clip_squash" and config["codec"]["template"] == "ferret_short"
    assert words is not None and {"low", "tile", "sampler", "tile_projector"} <= set(params)
    capsys.readouterr()
    for task, data in (("rec", "scenes:seed=700000,n=4,size=40|120x40"),
                       ("regions", "scenes:seed=700000,n=4,tasks=mask,size=40"),
                       ("grounded_caption", "scenes:seed=700000,n=2,size=40")):  # fmt: skip
        evaluate(["--checkpoint", str(release), "--task", task, "--data", data, "--json",
                  "--batch-size", "4", "--max-new-tokens", "6"])  # fmt: skip
    assert capsys.readouterr().out.count('"task"') >= 3
