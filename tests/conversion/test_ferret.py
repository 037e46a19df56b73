"""Ferret's published forms: a delta, merged weights, Ferret-UI; the tower that they leave out."""

import dataclasses
import json
import math

import numpy as np
import pytest

import conversion
from conversion import engine, manifests, readers
from conversion.architectures import ARCHITECTURES
from conversion.hf_config import complete, is_ferret, read_ferret, write_ferret
from conversion.readers.delta import FERRET_V1
from conversion.tables.ferret import TOWER
from mg_jax import checkpoint
from mg_jax.config import build
from mg_jax.disk import read_json
from mg_jax.errors import UserError
from mg_jax.models.ferret import FerretConfig
from tests.conversion.folders import (
    CLIP,
    CONFIGS,
    FERRET,
    FERRET_UI,
    assert_same,
    read_folder,
    set_config,
    state_of,
    write_folder,
)

F16 = np.float16


@pytest.fixture(params=["ferret", "ferret_ui"])
def name(request):
    return request.param


@pytest.fixture
def whole(name):
    """The state dict of the model in memory."""
    return state_of(ARCHITECTURES[name], CONFIGS[name], F16, seed=1)


def write_published(folder, name, state):
    """A folder without the tower, whose config.json does not describe it."""
    folder.mkdir(parents=True)
    raw = write_ferret(CONFIGS[name])
    del raw["clip"]
    (folder / "config.json").write_text(json.dumps(raw))
    kept = {n: x for n, x in state.items() if not n.startswith(TOWER)}
    readers.write_safetensors(folder / "model.safetensors", kept)


def write_clip(folder, state):
    """The public model: its tower, and a text tower, in transformers' names."""
    write_folder(folder, "clip", F16, CLIP)
    vision = read_json(folder / "config.json")
    joint = {"model_type": "clip", "vision_config": vision, "projection_dim": 6}
    (folder / "config.json").write_text(json.dumps(joint))
    tower = {n.removeprefix(TOWER): x for n, x in state.items() if n.startswith(TOWER)}
    tower["logit_scale"] = np.ones((), F16)
    readers.write_safetensors(folder / "model.safetensors", tower)


def params_of(name, state):
    """The parameters of a whole state dict, through the table alone."""
    plan = engine.plan(state, ARCHITECTURES[name].table(CONFIGS[name]))
    return engine.flatten(engine.to_jax(state.__getitem__, plan))


def read_release(folder):
    config, params, _ = checkpoint.load_release(folder)
    return config, {path: np.asarray(x) for path, x in engine.flatten(params).items()}


def test_the_tower_comes_from_its_public_source(tmp_path, name, whole):
    write_published(tmp_path / "a", name, whole)
    write_clip(tmp_path / "clip", whole)
    (tmp_path / "a" / "LICENSE").write_text("of Ferret")
    release = conversion.convert(
        tmp_path / "a", tmp_path / "b", parts=[tmp_path / "clip"], check=True
    )
    config, params = read_release(release)
    assert_same(params, params_of(name, whole))
    assert config["system"] == "ferret" and config["architecture"] == name
    assert config["stage"] == "instruction"
    assert build(FerretConfig, config["model"]) == CONFIGS[name]
    codec = config["codec"]
    assert codec["region_token"] == CONFIGS[name].region_token and codec["vocab"] == 40
    assert codec["template"] == {"ferret": "ferret_v1", "ferret_ui": "ferret_vicuna_v1"}[name]
    assert (release / "upstream" / "LICENSE").read_text() == "of Ferret"
    back = conversion.convert(release, tmp_path / "c", check=True)
    assert_same(read_folder(back), whole)  # with the tower, as the module has it in memory


def test_a_tower_in_the_folder_is_found(tmp_path, name, whole):
    """v1's own place for one that was trained as well."""
    write_published(tmp_path / "a", name, whole)
    write_clip(tmp_path / "a" / "vision_tower", whole)
    loaded = conversion.load(tmp_path / "a")
    assert_same(engine.flatten(loaded.params), params_of(name, whole))
    assert loaded.cfg == CONFIGS[name]


def test_a_tower_among_the_tensors_describes_itself(tmp_path, whole, name):
    """All but its heads, of which every published tower has one to 64 channels."""
    write_published(tmp_path / "a", name, whole)
    readers.write_safetensors(tmp_path / "a" / "model.safetensors", whole)
    heads = dataclasses.replace(CLIP, heads=1)
    cfg = dataclasses.replace(CONFIGS[name], low=heads)
    assert conversion.load(tmp_path / "a").cfg == cfg
    shapes = {f"{TOWER}{n}": engine.TensorInfo(s) for n, s in published_tower().items()}
    tower = complete({}, shapes)["clip"]
    assert (tower["num_attention_heads"], tower["image_size"]) == (16, 336)
    assert tower["num_hidden_layers"] == 24 and tower["intermediate_size"] == 4096


def published_tower():
    listed = manifests.read("clip_vit_l14_336")
    return {n: s for n, s in listed.items() if n.startswith("vision_model.")}


def test_a_delta_on_its_base_and_the_tower(tmp_path):
    """Sums in float16, two tables grown by the region's row; 18 tensors whole."""
    target = state_of(ARCHITECTURES["ferret"], FERRET, F16, seed=1)
    small = dataclasses.replace(FERRET.lm, vocab=39)
    base = write_folder(tmp_path / "vicuna", "llama", F16, small, seed=2)
    delta = dict(target)
    for key, value in base.items():
        delta[key] = target[key].copy()
        delta[key][tuple(map(slice, value.shape))] -= value
    assert set(delta) - set(base) >= set(FERRET_V1.verbatim)
    write_published(tmp_path / "delta", "ferret", delta)
    write_clip(tmp_path / "clip", target)
    job = conversion.prepare(
        tmp_path / "delta", tmp_path / "b", base=tmp_path / "vicuna", parts=[tmp_path / "clip"]
    )
    assert any("18 taken whole" in note for note in job.notes)
    _, params = read_release(job.run())
    assert job.check().ok
    made = {k: x.copy() for k, x in delta.items()}
    for key, value in base.items():
        made[key][tuple(map(slice, value.shape))] += value
    assert_same(params, params_of("ferret", made))


@pytest.mark.parametrize("stored", ["keep", "f32"])
def test_a_release_becomes_a_delta_again(tmp_path, stored):
    """Differences in float16, without the tower; the base makes a whole of it again."""
    target = state_of(ARCHITECTURES["ferret"], FERRET, F16, seed=1)
    small = dataclasses.replace(FERRET.lm, vocab=39)
    base = write_folder(tmp_path / "vicuna", "llama", F16, small, seed=2)
    write_published(tmp_path / "whole", "ferret", target)
    write_clip(tmp_path / "clip", target)
    public = [tmp_path / "clip"]
    release = conversion.convert(tmp_path / "whole", tmp_path / "a", parts=public, dtype=stored)
    job = conversion.prepare(release, tmp_path / "delta", base=tmp_path / "vicuna")
    job.run()
    assert job.check().ok and any("the tower is left out" in note for note in job.notes)
    written = read_folder(tmp_path / "delta")
    assert set(written) == {n for n in target if not n.startswith(TOWER)}
    for key, value in written.items():
        expected = target[key].copy()
        if key in base:
            expected[tuple(map(slice, base[key].shape))] -= base[key]
        np.testing.assert_array_equal(value, expected, err_msg=key)
    back = {"base": tmp_path / "vicuna", "parts": public}
    _, again = read_release(conversion.convert(tmp_path / "delta", tmp_path / "b", **back))
    for path, value in params_of("ferret", target).items():
        np.testing.assert_allclose(
            np.float32(again[path]), np.float32(value), rtol=2e-3, atol=2e-3, err_msg=path
        )


def test_a_delta_needs_its_base_and_is_ferrets_alone(tmp_path):
    target = state_of(ARCHITECTURES["ferret"], FERRET, F16, seed=1)
    write_published(tmp_path / "whole", "ferret", target)
    write_clip(tmp_path / "clip", target)
    release = conversion.convert(tmp_path / "whole", tmp_path / "a", parts=[tmp_path / "clip"])
    wide = dataclasses.replace(FERRET.lm, vocab=39, mlp=FERRET.lm.mlp * 2)
    write_folder(tmp_path / "other", "llama", F16, wide, seed=2)
    with pytest.raises(UserError, match="is this the right base"):
        conversion.prepare(release, tmp_path / "d", base=tmp_path / "other")
    with pytest.raises(UserError, match="--dtype bf16: deltas are float16"):
        conversion.prepare(release, tmp_path / "d", base=tmp_path / "other", dtype="bf16")


def test_a_difference_that_float16_cannot_hold_is_refused(tmp_path):
    target = state_of(ARCHITECTURES["ferret"], FERRET, F16, seed=1)
    write_clip(tmp_path / "clip", target)
    far = {n: np.full_like(x, 60000) for n, x in target.items()}
    write_published(tmp_path / "whole", "ferret", far)
    release = conversion.convert(tmp_path / "whole", tmp_path / "a", parts=[tmp_path / "clip"])
    small = dataclasses.replace(FERRET.lm, vocab=39)
    write_folder(tmp_path / "vicuna", "llama", F16, small, seed=2)
    base = {n: np.full_like(x, -60000) for n, x in read_folder(tmp_path / "vicuna").items()}
    readers.write_safetensors(tmp_path / "vicuna" / "model.safetensors", base)
    with pytest.raises(UserError, match="overflows float16: is this the right base"):
        conversion.convert(release, tmp_path / "b", base=tmp_path / "vicuna")


def test_what_lacks_the_tower_is_told_where_it_is(tmp_path, name, whole):
    write_published(tmp_path / "a", name, whole)
    with pytest.raises(UserError, match=r"lack CLIP's tower.*--with openai/clip-vit-large"):
        conversion.prepare(tmp_path / "a", tmp_path / "b")
    write_folder(tmp_path / "lm", "llama")
    with pytest.raises(UserError, match="is none of what Ferret's files leave out: CLIP's tower"):
        conversion.prepare(tmp_path / "a", tmp_path / "b", parts=[tmp_path / "lm"])
    write_folder(tmp_path / "clip", "clip", cfg=dataclasses.replace(CLIP, width=8))
    with pytest.raises(UserError, match="mm_hidden_size: 16, but CLIP's tower has 8"):
        conversion.prepare(tmp_path / "a", tmp_path / "b", parts=[tmp_path / "clip"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "ferret_gemma"}, "'ferret_gemma': a Ferret on Gemma"),
        ({"model_type": "ferret_mpt"}, "'ferret_mpt': a Ferret on MPT"),
        ({"mm_use_im_start_end": True}, "mm_use_im_start_end: True is not supported"),
        ({"mm_projector_type": "mlp3x_gelu"}, "mm_projector_type: 'mlp3x_gelu' is not supported"),
        ({"mm_patch_merge_type": "flat"}, "mm_patch_merge_type: 'flat' is not supported"),
        ({"image_aspect_ratio": "pad"}, "image_aspect_ratio: 'pad' is not supported"),
        ({"image_grid_pinpoints": [[56, 57]]}, "are no multiples of CLIP's 56 px"),
        ({"image_grid_pinpoints": "56"}, "image_grid_pinpoints: expected a list"),
        ({"image_grid_pinpoints": None}, "image_grid_pinpoints: missing"),
        ({"sampler_pooler_mode": "sum"}, "sampler_pooler_mode: 'sum'"),
        ({"im_region_fea_token": None}, "im_region_fea_token: missing"),
        ({"region_geo_sampler": False, "region_fea_adapter": True}, "at one resolution alone"),
        ({"mm_concat": True}, "mm_concat: unknown field"),
        ({"im_region_fea_token": 10**6}, r"config.json: config.model.region_token: 1000000 is no"),
        ({"mm_vision_select_layer": 99}, r"config.json: config.model.low_layer: 99 is not one"),
    ],
)
def test_fields_that_mean_another_model_are_refused(tmp_path, fields, message):
    write_folder(tmp_path / "a", "ferret_ui")
    set_config(tmp_path / "a", **fields)
    with pytest.raises(UserError, match=message):
        conversion.prepare(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tile": CLIP, "tile_projector": "own"}, "^tile: an encoder of the tiles' own"),
        ({"tile_projector": "own"}, "tile_projector: 'own' has no place in Ferret's layout"),
        ({"region_token": None}, "^region_token: null, .* without that row cannot be written"),
        ({"fusion": "projected"}, "fusion: 'projected'"),
        ({"transpose_sampling": False}, "transpose_sampling: False"),
        ({"upsampling": "bilinear"}, "upsampling: 'bilinear'"),
        ({"tile_pool": 2}, "tile_pool: 2"),
        ({"low_size": 112}, "low_size: 112"),
        ({"unit_vectors": True}, "unit_vectors: True"),
    ],
)
def test_what_upstream_would_compute_otherwise_is_not_written(change, message):
    with pytest.raises(UserError, match=message):
        write_ferret(dataclasses.replace(FERRET_UI, **change))


def test_the_default_a_ferret_v2_is_refused_as_what_it_is():
    with pytest.raises(UserError, match="^tile: .* as Ferret-v2 has, which was never published"):
        write_ferret(FerretConfig())


def test_variants_are_read_and_written():
    """v1's mean of points instead of the sampler; Ferret-UI on Llama 3."""
    mean = dataclasses.replace(FERRET, regions="mean")
    names = set(engine.expand(ARCHITECTURES["ferret"].table(mean)).torch_shapes())
    assert "model.region_fea_adapter.weight" in names
    assert not any("region_geo_sampler" in n for n in names)
    assert build(FerretConfig, read_ferret(write_ferret(mean))) == mean
    assert "region_geo_sampler" not in write_ferret(mean)
    lm = dataclasses.replace(FERRET.lm, vocab=128257, rope_theta=5e5)
    llama3 = dataclasses.replace(FERRET_UI, lm=lm, merge="spatial")
    raw = write_ferret(llama3)
    assert raw["model_type"] == "ferret_llama" and raw["image_grid_pinpoints"][0] == [56, 112]
    assert build(FerretConfig, read_ferret(raw)) == llama3


def test_a_vector_that_the_merge_does_not_read_is_left_out(tmp_path):
    cfg = dataclasses.replace(FERRET_UI, merge="spatial")
    write_folder(tmp_path / "a", "ferret_ui")
    set_config(tmp_path / "a", mm_patch_merge_type="spatial")
    loaded = conversion.load(tmp_path / "a")
    assert loaded.cfg == cfg and "newline" not in loaded.params
    assert list(loaded.dropped) == ["model.image_newline"]


def test_published_names_and_shapes():
    """Vicuna's tensors, 18 more, and a row more in two of them (spec 1.4)."""
    raw, shapes = manifests.config("ferret_7b_v13"), manifests.read("ferret_7b_v13")
    base = manifests.read("vicuna_7b_v15")
    assert is_ferret(raw) and set(shapes) - set(base) == set(FERRET_V1.verbatim)
    grown = {n for n in base if shapes[n] != base[n]}
    assert grown == set(FERRET_V1.grown) and {shapes[n][0] for n in grown} == {32001}
    cfg = build(FerretConfig, read_ferret(raw))
    tower = {TOWER + n: s for n, s in published_tower().items()}
    infos = {n: engine.TensorInfo(s) for n, s in (shapes | tower).items()}
    plan = engine.plan(infos, ARCHITECTURES["ferret"].table(cfg, infos))
    assert {n for leaf in plan.leaves for n in leaf.names} | set(plan.dropped) == set(infos)
    count = sum(math.prod(leaf.shape) for leaf in engine.flatten(plan.abstract()).values())
    assert count == 6_738_415_616 + 2 * 4096 + 303_507_456 + (4096 * 1024 + 4096) + 44_069_900
    assert cfg.largest == 576 and cfg.lm.max_positions == 2048 and cfg.region_token == 32000


@pytest.mark.shared
def test_recorded_weights_there_and_back(shared, tmp_path):
    golden = shared / "golden" / "ferret" / "A_v1"
    release = conversion.convert(golden, tmp_path / "a", check=True)
    assert_same(read_folder(conversion.convert(release, tmp_path / "b")), read_folder(golden))
    assert build(FerretConfig, read_release(release)[0]["model"]).low.heads == 4
