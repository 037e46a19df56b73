"""Whole conversions: every architecture there and back, casts, what is said and checked."""

import json

import ml_dtypes
import numpy as np
import pytest

import conversion
from conversion import engine, readers
from conversion.architectures import ARCHITECTURES
from mg_jax import checkpoint
from mg_jax.errors import UserError
from mg_jax.models.detr import DetrConfig
from tests.conversion.folders import (
    CONFIGS,
    assert_same,
    random_state,
    read_folder,
    set_config,
    write_folder,
)

BF16 = np.dtype(ml_dtypes.bfloat16)

UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def large(monkeypatch):
    """Every release counts as a large one, kept as an Orbax folder."""
    monkeypatch.setattr(checkpoint, "SMALL", 0)


@pytest.mark.parametrize("name", list(CONFIGS))
def test_there_and_back_bit_by_bit(tmp_path, name):
    state = write_folder(tmp_path / "a", name, BF16)
    release = conversion.convert(tmp_path / "a", tmp_path / "b", check=True)
    config, params, tokenizer = checkpoint.load_release(release)
    entry = ARCHITECTURES[name]
    assert tokenizer is None and config["stage"] == entry.stages[0]
    if entry.part:
        assert config["system"] == "parts" and config["architecture"] == name
        assert list(config["model"]) == list(params) == [entry.part]
    else:
        assert config["system"] == entry.system
    leaves = engine.flatten(params)
    assert set(leaves) == set(entry.axes(CONFIGS[name]))  # the leaves of our module
    assert all(leaf.dtype == BF16 for leaf in leaves.values())
    folder = conversion.convert(release, tmp_path / "c", check=True)
    assert_same(read_folder(folder), state)
    raw = json.loads((folder / "config.json").read_text())
    assert raw["torch_dtype"] == "bfloat16"
    again = entry.read(raw, "again")
    parts = ("vision", "proposer") if name == "groma_detector" else vars(again)
    assert all(getattr(again, part) == getattr(CONFIGS[name], part) for part in parts)


@pytest.mark.parametrize("name", ["groma", "llama", "clip", "convnext"])
def test_large_releases_are_the_same(large, tmp_path, name):
    state = write_folder(tmp_path / "a", name, BF16)
    release = conversion.convert(tmp_path / "a", tmp_path / "b", check=True)
    assert (release / "params").is_dir() and not (release / "params.safetensors").exists()
    _, params, _ = checkpoint.load_release(release)
    expected = engine.flatten(conversion.load(tmp_path / "a").params)
    assert_same({p: np.asarray(x) for p, x in engine.flatten(params).items()}, expected)
    assert_same(read_folder(conversion.convert(release, tmp_path / "c", check=True)), state)


def test_a_part_of_a_detector_comes_in_but_not_back(tmp_path):
    """Of Deformable DETR the transformer is kept, so nothing can be written again."""
    cfg = DetrConfig(
        width=16, encoder_layers=1, decoder_layers=1, encoder_heads=2, decoder_heads=2,
        encoder_ffn=8, decoder_ffn=8, queries=5, box_hidden=16, levels=4, levels_from="mean",
        refinement="iterative", two_heads=False,
    )  # fmt: skip
    raw = {
        "model_type": "deformable_detr", "d_model": 16, "encoder_layers": 1, "decoder_layers": 1,
        "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 8,
        "decoder_ffn_dim": 8, "two_stage_num_proposals": 5, "two_stage": True,
        "with_box_refine": True, "auxiliary_loss": True,
    }  # fmt: skip
    entry = ARCHITECTURES["deformable_detr"]
    plan = engine.expand(entry.table(cfg))
    state = random_state(plan.torch_shapes())
    state |= {copy: state[source] for copy, source in plan.tied.items()}
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config.json").write_text(json.dumps(raw))
    readers.write_safetensors(tmp_path / "a" / "model.safetensors", state)
    release = conversion.convert(tmp_path / "a", tmp_path / "b", check=True)
    assert checkpoint.open_release(release)[0]["stage"] == "proposer"
    with pytest.raises(UserError, match="there is no way back"):
        conversion.prepare(release, tmp_path / "c")


@pytest.mark.parametrize("big", [False, True])
def test_casts_are_asked_for_and_checked(monkeypatch, tmp_path, big):
    if big:
        monkeypatch.setattr(checkpoint, "SMALL", 0)
    state = write_folder(tmp_path / "a", "llama", np.float32)
    job = conversion.prepare(tmp_path / "a", tmp_path / "b", dtype="bf16")
    job.run()
    report = job.check()
    assert report.ok and "after the cast float32 to bfloat16" in str(report)
    back = conversion.prepare(tmp_path / "b", tmp_path / "c", dtype="f32")
    back.run()
    assert back.check().ok and "bfloat16 to float32" in str(back.check())
    rounded = {name: x.astype(BF16).astype(np.float32) for name, x in state.items()}
    assert_same(read_folder(tmp_path / "c"), rounded)


def test_delta_weights_on_their_base(tmp_path):
    """Ferret's rule: two tables have grown by a row; sums are float16."""
    base = write_folder(tmp_path / "base", "llama", np.float16)
    grown = CONFIGS["llama"].__class__(**{**vars(CONFIGS["llama"]), "vocab": 41})
    delta = write_folder(tmp_path / "delta", "llama", np.float16, grown)
    job = conversion.prepare(tmp_path / "delta", tmp_path / "b", base=tmp_path / "base")
    plain = conversion.prepare(tmp_path / "base", tmp_path / "c")
    assert job.memory - plain.memory >= 2 * 41 * 32 * 2  # sums are no views of files
    job.run()
    assert job.check().ok
    back = read_folder(conversion.convert(tmp_path / "b", tmp_path / "c"))
    name = "model.layers.1.mlp.up_proj.weight"
    np.testing.assert_array_equal(back[name], base[name] + delta[name])
    np.testing.assert_array_equal(back["lm_head.weight"][40], delta["lm_head.weight"][40])


def test_a_single_file_takes_the_config_beside_it(tmp_path):
    state = write_folder(tmp_path / "a", "llama")
    (tmp_path / "a" / "model.safetensors").rename(tmp_path / "a" / "weights.safetensors")
    release = conversion.convert(tmp_path / "a" / "weights.safetensors", tmp_path / "b")
    assert_same(read_folder(conversion.convert(release, tmp_path / "c")), state)


@pytest.mark.torch
@pytest.mark.parametrize("wrap", [None, "state_dict", "module."])
def test_torch_files_come_in_too(tmp_path, wrap):
    torch = pytest.importorskip("torch")
    state = write_folder(tmp_path / "a", "dinov2")
    held = {name: torch.from_numpy(x) for name, x in state.items()}
    if wrap == "module.":
        held = {f"module.{name}": x for name, x in held.items()}
    elif wrap:
        held = {wrap: held, "epoch": 3}
    torch.save(held, tmp_path / "a" / "pytorch_model.bin")
    (tmp_path / "a" / "model.safetensors").unlink()
    release = conversion.convert(tmp_path / "a", tmp_path / "b", check=True)
    assert_same(read_folder(conversion.convert(release, tmp_path / "c")), state)


def test_tokenizer_and_licence_travel_both_ways(tmp_path):
    write_folder(tmp_path / "a", "llama")
    files = {
        "tokenizer.model": b"pieces", "tokenizer_config.json": b"{}", "added_tokens.json": b"{}",
        "generation_config.json": b'{"do_sample": true}', "LICENSE.txt": b"terms",
        "README.md": b"# theirs", "optimizer.pt": b"not carried",
    }  # fmt: skip
    for name, content in files.items():
        (tmp_path / "a" / name).write_bytes(content)
    release = conversion.convert(tmp_path / "a", tmp_path / "b")
    assert sorted(f.name for f in (release / "tokenizer").iterdir()) == [
        "added_tokens.json", "tokenizer.model", "tokenizer_config.json",
    ]  # fmt: skip
    original = (tmp_path / "a" / "config.json").read_bytes()
    assert (release / "upstream" / "config.json").read_bytes() == original
    assert "converted from" in (release / "README.md").read_text()
    folder = conversion.convert(release, tmp_path / "c")
    del files["optimizer.pt"]
    for name, content in files.items():
        assert (folder / name).read_bytes() == content, name
    assert not (folder / "optimizer.pt").exists()


def test_planning_reads_no_tensor_and_says_what_goes_where(monkeypatch, tmp_path):
    write_folder(tmp_path / "a", "groma")

    def refuse(self, name):
        raise AssertionError(f"{name} was read")

    monkeypatch.setattr(readers.SafeTensors, "read", refuse)
    monkeypatch.setattr(readers.SafeTensors, "_read", refuse, raising=False)
    job = conversion.prepare(tmp_path / "a", tmp_path / "b", dtype="bf16")
    text = job.describe()
    lines = {" ".join(line.split()) for line in text.splitlines()}
    assert (
        "llm.model.layers.{0..1}.mlp.gate_proj.weight 2 x [48, 32] -> "
        "lm/blocks/mlp/gate/kernel [2, 32, 48] bfloat16 6.00 KiB"
    ) in lines
    assert any(line.startswith("copy: perceiver.ddetr_transformer.decoder.bbox") for line in lines)
    assert "expected peak memory" in text and "are free" in text and "GromaModel" in text
    assert not list(tmp_path.glob("b*"))


def test_the_way_back_is_planned_too(tmp_path):
    write_folder(tmp_path / "a", "qwen2")
    release = conversion.convert(tmp_path / "a", tmp_path / "b")
    text = conversion.prepare(release, tmp_path / "c").describe()
    assert "<-" in text and "copy: lm_head.weight = model.embed_tokens.weight" in text
    assert "model.safetensors" in text and not (tmp_path / "c").exists()


def test_what_is_left_out_is_said_with_its_reason(tmp_path):
    state = write_folder(tmp_path / "a", "clip")
    state["vision_model.embeddings.position_ids"] = np.arange(17)
    state["logit_scale"] = np.float32(2)[None][0:1].reshape(())
    readers.write_safetensors(tmp_path / "a" / "model.safetensors", state)
    job = conversion.prepare(tmp_path / "a", tmp_path / "b")
    assert "left out: logit_scale: joint space" in job.describe()
    job.run()
    assert "left out: vision_model.embeddings.position_ids" in str(job.check())
    made = json.loads((tmp_path / "b" / "config.json").read_text())["provenance"]
    assert made["left_out"] == 2 and made["tensors"] == len(state)


def test_fields_without_effect_are_listed(tmp_path):
    """In the plan, the notes, the release and the report; those of a nested config too."""
    write_folder(tmp_path / "a", "groma")
    raw = json.loads((tmp_path / "a" / "config.json").read_text())
    raw["llm_cfg"] |= {"use_cache": True, "initializer_range": 0.02}
    (tmp_path / "a" / "config.json").write_text(json.dumps(raw))
    job = conversion.prepare(tmp_path / "a", tmp_path / "b")
    lines = {line.strip() for line in job.describe().splitlines()}
    assert (
        "without effect: llm_cfg: architectures, model_type, use_cache, initializer_range" in lines
    )
    assert any(line.startswith("without effect: config.json: architectures, ") for line in lines)
    (note,) = job.notes
    assert note.startswith("config.json: ") and "fields have no effect on the numbers" in note
    assert len(job.inert) > 12 and note.endswith(f"... and {len(job.inert) - 12} more")
    job.run()
    assert f"note: {note}" in str(job.check())
    made = json.loads((tmp_path / "b" / "config.json").read_text())["provenance"]
    assert made["notes"] == [note]


IDS = {"bos_token_id": 128000, "eos_token_id": [128001, 128009], "pad_token_id": None}


@pytest.mark.parametrize("name", ["llama", "qwen2", "phi3", "groma"])
def test_ids_by_which_text_is_generated_come_back(tmp_path, name):
    """No forward pass reads them; without them the original code would not know where to end."""
    write_folder(tmp_path / "a", name)
    raw = json.loads((tmp_path / "a" / "config.json").read_text())
    inner = {"bos_token_id": 1, "eos_token_id": 2}
    if name == "groma":
        raw["llm_cfg"] |= inner
    (tmp_path / "a" / "config.json").write_text(json.dumps(raw | IDS))
    release = conversion.convert(tmp_path / "a", tmp_path / "b", check=True)
    folder = conversion.convert(release, tmp_path / "c", check=True)
    back = json.loads((folder / "config.json").read_text())
    assert {key: back[key] for key in IDS} == IDS
    if name == "groma":
        assert {key: back["llm_cfg"].get(key) for key in IDS} == inner | {"pad_token_id": None}
    set_config(folder, eos_token_id=2)
    job = conversion.prepare(release, tmp_path / "d")
    job.run()
    set_config(tmp_path / "d", eos_token_id=2)
    assert job.check().others == ("config.json",)


def test_check_names_what_differs(tmp_path):
    write_folder(tmp_path / "a", "llama")
    job = conversion.prepare(tmp_path / "a", tmp_path / "b")
    job.run()
    params = readers.open_checkpoint(tmp_path / "b" / "params.safetensors")
    leaves = {name: params.read(name).copy() for name in params.manifest}
    leaves["lm/blocks/mlp/up/kernel"][1, 2, 3] += 1
    readers.write_safetensors(tmp_path / "b" / "params.safetensors", leaves)
    report = job.check()
    assert report.different == (UP,) and not report.ok
    assert f"differs: {UP}" in str(report)
    # what can be compared is compared, and what cannot counts as different
    del leaves["lm/norm/scale"]
    leaves["lm/head/kernel"] = leaves["lm/head/kernel"].astype(np.float16)
    leaves["more"] = np.zeros(3, np.float32)
    readers.write_safetensors(tmp_path / "b" / "params.safetensors", leaves)
    report = job.check()
    assert set(report.different) == {"model.norm.weight", "lm_head.weight", UP}
    assert report.others == ("more",) and "check: 27 of 30 tensors" in str(report)


def test_check_of_an_export_names_what_differs(tmp_path):
    write_folder(tmp_path / "a", "llama")
    release = conversion.convert(tmp_path / "a", tmp_path / "b")
    job = conversion.prepare(release, tmp_path / "c")
    job.run()
    state = read_folder(tmp_path / "c")
    changed = state[UP].copy()
    changed[0, 0] = -changed[0, 0]
    readers.write_safetensors(tmp_path / "c" / "model.safetensors", {**state, UP: changed})
    assert job.check().different == (UP,)
    set_config(tmp_path / "c", rope_theta=5.0)
    report = job.check()
    assert (report.different, report.others) == ((UP,), ("config.json",))
    assert "check: 29 of 30 tensors" in str(report) and "differs: config.json" in str(report)
    readers.write_safetensors(tmp_path / "c" / "model.safetensors", state | {"more": changed})
    report = job.check()
    assert report.others == ("config.json", "more") and not report.different
    assert "check: 30 of 30 tensors" in str(report) and not report.ok


def test_the_stage_of_a_release_may_be_named(tmp_path):
    write_folder(tmp_path / "a", "groma")
    conversion.convert(tmp_path / "a", tmp_path / "b", stage="alignment")
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    assert config["stage"] == "alignment" and config["codec"]["template"] == "default"
    with pytest.raises(
        UserError, match="--stage 'detection': a release of groma is of instruction"
    ):
        conversion.prepare(tmp_path / "a", tmp_path / "c", stage="detection")
    assert config["codec"]["image_tokens"] == 4 and config["preprocess"] == "groma_pil"
