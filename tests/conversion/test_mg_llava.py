"""MG-LLaVA's published forms: a stage's file, DeepSpeed's folder, the pair; what they leave out."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

import conversion
import mg_jax
from conversion import engine, readers
from conversion.architectures import ARCHITECTURES
from conversion.tables.mg_llava import HIGH, LM, LOW, OWN, saved
from mg_jax import checkpoint
from mg_jax.errors import UserError
from mg_jax.text import codecs
from mg_jax.text.bpe import load_tokenizer
from tests.conversion.folders import (
    CONFIGS,
    assert_same,
    random_state,
    read_folder,
    set_config,
    state_of,
    write_folder,
)

LANGUAGE = {"mg_llava": "llama", "mg_llava_phi3": "phi3"}
PARTS = ("llm", "clip", "convnext")
TEXT_TOWER = {"text_model.final_layer_norm.weight": (6,), "logit_scale": ()}


@pytest.fixture(params=LANGUAGE)
def name(request):
    return request.param


@pytest.fixture
def whole(name):
    """The state dict of the model in memory."""
    return state_of(ARCHITECTURES[name], CONFIGS[name], seed=1)


@pytest.fixture
def stage1(whole):
    """What a stage-1 file holds: 20 tensors."""
    return {n: x for n, x in whole.items() if saved(n, "pretrain")}


@pytest.fixture
def stage2(whole):
    """What a stage-2 file holds: those and the language model."""
    return {n: x for n, x in whole.items() if saved(n, "sft")}


@pytest.fixture
def public(tmp_path, name, whole):
    """Folders of the three public models; returns the tensors of the language model's.

    They are others than `whole`'s. CLIP has its text tower, the ConvNeXt open_clip's names.
    """
    cfg = CONFIGS[name]
    lm = write_folder(tmp_path / "llm", LANGUAGE[name], cfg=cfg.lm)
    set_config(tmp_path / "llm", eos_token_id=7)
    (tmp_path / "llm" / "LICENSE.txt").write_text("of the language model")
    write_folder(tmp_path / "clip", "clip", cfg=cfg.low)
    vision = json.loads((tmp_path / "clip" / "config.json").read_text())
    joint = {"model_type": "clip", "vision_config": vision, "projection_dim": 6}
    (tmp_path / "clip" / "config.json").write_text(json.dumps(joint))
    low = {n.removeprefix(LOW): x for n, x in whole.items() if n.startswith(LOW)}
    text = random_state(TEXT_TOWER)
    readers.write_safetensors(tmp_path / "clip" / "model.safetensors", low | text)
    write_folder(tmp_path / "convnext", "convnext", cfg=cfg.high)
    high = {
        n.replace(f"{HIGH}vision_", "visual.trunk."): x
        for n, x in whole.items()
        if n.startswith(HIGH)
    }
    readers.write_safetensors(tmp_path / "convnext" / "model.safetensors", high)
    return lm


def params_of(name, state):
    """The parameters of a whole state dict, through the table alone."""
    plan = engine.plan(state, ARCHITECTURES[name].table(CONFIGS[name]))
    return engine.flatten(engine.to_jax(state.__getitem__, plan))


def read_release(folder):
    config, params, _ = checkpoint.load_release(folder)
    return config, {path: np.asarray(x) for path, x in engine.flatten(params).items()}


def test_a_file_of_stage_1_is_completed(tmp_path, name, whole, stage1, public):
    """Both towers and the language model come from their public folders; 20 tensors are its own."""
    assert len(stage1) == 20
    readers.write_safetensors(tmp_path / "iter_4947.safetensors", stage1)
    release = conversion.convert(
        tmp_path / "iter_4947.safetensors", tmp_path / "out", check=True,
        parts=[tmp_path / part for part in PARTS],
    )  # fmt: skip
    config, params = read_release(release)
    assert_same(params, params_of(name, whole | {LM + n: x for n, x in public.items()}))
    assert config["system"] == "mg_llava" and config["architecture"] == name
    assert config["stage"] == "pretrain" and config["token_ids"]["llm"]["eos_token_id"] == 7
    assert config["codec"]["vocab"] == CONFIGS[name].lm.vocab
    assert config["provenance"]["parts"]["clip"]["from"] == str(tmp_path / "clip")
    assert config["provenance"]["left_out"] == len(TEXT_TOWER)
    assert (release / "upstream" / "llm" / "LICENSE.txt").read_text() == "of the language model"
    model = ARCHITECTURES[name].build(config["model"], "model")
    assert model == CONFIGS[name]


def test_of_a_file_of_stage_2_the_language_model_is_its_own(tmp_path, name, whole, stage2, public):
    """Of the public one config and tokenizer are read, and the weights need not be there."""
    (tmp_path / "llm" / "model.safetensors").unlink()
    readers.write_safetensors(tmp_path / "iter_10805.safetensors", stage2)
    job = conversion.prepare(
        tmp_path / "iter_10805.safetensors", tmp_path / "out",
        parts=[tmp_path / part for part in PARTS],
    )  # fmt: skip
    assert any("llm: config of" in note for note in job.notes)
    config, params = read_release(job.run())
    assert job.check().ok
    assert_same(params, params_of(name, whole))
    assert config["stage"] == "sft"
    assert config["codec"]["template"] == ("vicuna" if name == "mg_llava" else "phi3_chat")


def test_towers_of_the_file_are_kept(tmp_path, name, whole, public):
    """A dump of the whole model needs the configs alone."""
    for part in PARTS:
        (tmp_path / part / "model.safetensors").unlink()
    readers.write_safetensors(tmp_path / "all.safetensors", whole)
    parts = [tmp_path / part for part in PARTS]
    loaded = conversion.load(tmp_path / "all.safetensors", parts=parts)
    assert_same(engine.flatten(loaded.params), params_of(name, whole))
    assert loaded.cfg == CONFIGS[name]
    assistant = mg_jax.load(tmp_path / "all.safetensors", parts=parts)
    assert_same(engine.flatten(assistant.params), params_of(name, whole))


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def tensors(torch, state):
    return {n: torch.tensor(x) for n, x in state.items()}


@pytest.mark.torch
@pytest.mark.parametrize("form", ["pth", "deepspeed", "split"])
def test_every_published_container(torch, tmp_path, name, whole, stage1, stage2, public, form):
    """xtuner's .pth, the folder DeepSpeed makes of it, and the pair of the 34B model."""
    source, parts = tmp_path / "iter_10805.pth", list(PARTS)
    if form == "pth":
        torch.save({"meta": {"iter": 10805}, "state_dict": tensors(torch, stage2)}, source)
    elif form == "deepspeed":
        source.mkdir()
        shapes = {n: torch.Size(x.shape) for n, x in stage2.items()}
        torch.save(
            {"module": tensors(torch, stage2), "param_shapes": [shapes], "iteration": 10805},
            source / "mp_rank_00_model_states.pt",
        )
    else:
        source = tmp_path / "pair"
        source.mkdir()
        torch.save(tensors(torch, stage1), source / "iter_10805_nollm.pth")
        (tmp_path / "llm").rename(source / "iter_10805_llm_hf.pth")
        spoken = {n.removeprefix(LM): x for n, x in whole.items() if n.startswith(LM)}
        file = source / "iter_10805_llm_hf.pth" / "model.safetensors"
        readers.write_safetensors(file, spoken)
        parts.remove("llm")  # it is there, with its config
    release = conversion.convert(
        source, tmp_path / "out", check=True, parts=[tmp_path / part for part in parts]
    )
    config, params = read_release(release)
    assert_same(params, params_of(name, whole))
    assert config["stage"] == "sft" and config["token_ids"]["llm"]["eos_token_id"] == 7


@pytest.mark.torch
@pytest.mark.parametrize("stage", ["pretrain", "sft"])
def test_back_into_a_file_of_a_stage(torch, tmp_path, name, whole, stage1, stage2, stage):
    """What upstream's trainer would save, as one file that torch.load reads."""
    write_folder(tmp_path / "a", name, seed=1)
    conversion.convert(tmp_path / "a", tmp_path / "b", stage=stage)
    folder = conversion.convert(tmp_path / "b", tmp_path / "c", format="pth", check=True)
    state = torch.load(folder / "mg_llava.pth", weights_only=True)
    expected = stage1 if stage == "pretrain" else stage2
    assert_same({n: x.numpy() for n, x in state.items()}, expected)
    cfg = CONFIGS[name]
    for part, kind, inner in (
        ("llm", LANGUAGE[name], cfg.lm), ("clip", "clip", cfg.low),
        ("convnext", "convnext", cfg.high),
    ):  # fmt: skip
        write_folder(tmp_path / part, kind, cfg=inner, seed=5)
    # beside its config.json only what it lacks must be named
    lacking = [tmp_path / part for part in PARTS if part != "llm" or stage == "pretrain"]
    again = conversion.load(folder / "mg_llava.pth", parts=lacking)
    found, expected = engine.flatten(again.params), params_of(name, whole)
    own = ("fusion/", "projector/", "box_projector/") + ("lm/",) * (stage == "sft")
    for path, value in expected.items():
        assert np.array_equal(found[path], value) == path.startswith(own), path
    assert again.cfg == cfg and again.entry is ARCHITECTURES[name]


@pytest.mark.torch
def test_back_into_the_pair(torch, tmp_path, name, whole, stage1, public):
    """The language model as a folder that transformers loads, the rest as a file."""
    write_folder(tmp_path / "a", name, seed=1)
    set_config(tmp_path / "a", template="qwen_chat")
    (tmp_path / "a" / "tokenizer_config.json").write_text("{}")
    conversion.convert(tmp_path / "a", tmp_path / "b")
    pair = conversion.convert(tmp_path / "b", tmp_path / "c", format="split", check=True)
    rest = torch.load(pair / "mg_llava_nollm.pth", weights_only=True)
    assert_same({n: x.numpy() for n, x in rest.items()}, stage1)
    spoken = {n.removeprefix(LM): x for n, x in whole.items() if n.startswith(LM)}
    assert_same(read_folder(pair / "mg_llava_llm_hf.pth"), spoken)
    assert (pair / "mg_llava_llm_hf.pth" / "tokenizer_config.json").is_file()
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(pair / "mg_llava_llm_hf.pth")
    assert (
        type(model).__name__
        == {"llama": "LlamaForCausalLM", "phi3": "Phi3ForCausalLM"}[LANGUAGE[name]]
    )
    towers = [tmp_path / part for part in ("clip", "convnext")]
    config, params = read_release(conversion.convert(pair, tmp_path / "d", parts=towers))
    assert_same(params, params_of(name, whole))
    assert config["codec"]["template"] == "qwen_chat"


def test_a_release_of_the_trainer_goes_back_too(tmp_path, name):
    """It names no architecture: a window is what Phi-3 alone has of those published."""
    state = write_folder(tmp_path / "a", name)
    release = conversion.convert(tmp_path / "a", tmp_path / "b")
    set_fields = json.loads((release / "config.json").read_text())
    del set_fields["architecture"], set_fields["codec"]
    (release / "config.json").write_text(json.dumps(set_fields))
    assert_same(read_folder(conversion.convert(release, tmp_path / "c", check=True)), state)


def test_a_stage_can_be_named(tmp_path, name, stage1, public):
    """The rest of a pair is of stage 2, though its language model is given apart."""
    parts = [tmp_path / part for part in PARTS]
    for file, given, stage in (
        ("a.safetensors", "sft", "sft"), ("a.safetensors", "", "pretrain"),
    ):  # fmt: skip
        readers.write_safetensors(tmp_path / file, stage1)
        job = conversion.prepare(tmp_path / file, tmp_path / "out", parts=parts, stage=given)
        assert job.stage == stage and job.config()["stage"] == stage


def test_the_language_model_of_the_hub_is_named_with_its_commit(
    monkeypatch, tmp_path, name, stage2, public
):
    commit = "c" * 40
    repository = tmp_path / "hub" / "models--org--words"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots").mkdir()
    (tmp_path / "llm").rename(repository / "snapshots" / commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    readers.write_safetensors(tmp_path / "iter.safetensors", stage2)
    parts = ["org/words", tmp_path / "clip", tmp_path / "convnext"]
    release = conversion.convert(tmp_path / "iter.safetensors", tmp_path / "out", parts=parts)
    made = read_release(release)[0]["provenance"]["parts"]
    assert made["llm"] == {"from": "org/words", "revision": commit}


def test_the_tokenizer_comes_with_the_language_model(tmp_path, name):
    """Its table may have rows to spare; too few, and the two do not belong together."""
    words = checkpoint.find("tokenizer-tiny")
    for size, folder in ((1400, tmp_path / "fits"), (1300, tmp_path / "small")):
        cfg = CONFIGS[name]
        cfg = dataclasses.replace(cfg, lm=dataclasses.replace(cfg.lm, vocab=size))
        write_folder(folder, name, cfg=cfg)
        for file in words.iterdir():
            shutil.copyfile(file, folder / file.name)
    release = conversion.convert(tmp_path / "fits", tmp_path / "out")
    config, _ = read_release(release)
    codec = codecs.get("mg_llava")(load_tokenizer(release / "tokenizer"), **config["codec"])
    assert codec.image_tokens == 16 and codec.vocab == 1400
    with pytest.raises(UserError, match="tokenizer has 1314 tokens, its model 1300: they do not"):
        conversion.convert(tmp_path / "small", tmp_path / "x")


REFUSED = {
    "nothing named": ((), "a file of MG-LLaVA's, which leaves its language model and its towers"),
    "no tower": (("llm",), "says nothing of clip and convnext; pass --with"),
    "one twice": (("llm", "clip", "convnext", "clip"), "clip is a clip already"),
    "a stranger": (("dino",), "dino: is none of what MG-LLaVA's files leave out"),
    "no folder": (("nowhere",), "nowhere"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_parts_that_do_not_fit_are_named(tmp_path, stage1, public, case):
    write_folder(tmp_path / "dino", "dinov2")
    given, message = REFUSED[case]
    (tmp_path / "x").mkdir()
    readers.write_safetensors(tmp_path / "x" / "iter.safetensors", stage1)
    parts = [tmp_path / part for part in given]
    with pytest.raises(UserError, match=message):
        conversion.prepare(tmp_path / "x" / "iter.safetensors", tmp_path / "out", parts=parts)


def test_with_is_for_files_of_mg_llava(tmp_path, public):
    write_folder(tmp_path / "a", "llama")
    release = conversion.convert(tmp_path / "a", tmp_path / "b")
    parts = [tmp_path / "clip"]
    with pytest.raises(UserError, match=r"holds no fuse_module\.\* or .*: --with completes"):
        conversion.prepare(tmp_path / "a", tmp_path / "out", parts=parts)
    with pytest.raises(UserError, match="a release is whole; leave --with out"):
        conversion.prepare(release, tmp_path / "out", parts=parts)
    with pytest.raises(UserError, match="are no deltas; leave --base out"):
        conversion.prepare(tmp_path / "a", tmp_path / "out", parts=parts, base=tmp_path / "a")
    with pytest.raises(UserError, match=r"--format pth: is MG-LLaVA's, .* release of llama"):
        conversion.prepare(release, tmp_path / "out", format="pth")


def test_weights_without_their_towers_are_refused_as_such(tmp_path, name, stage2):
    """Not by a list of four hundred names."""
    write_folder(tmp_path / "a", name)
    readers.write_safetensors(tmp_path / "a" / "model.safetensors", stage2)
    with pytest.raises(UserError, match=r"lack what .* leave to others: pass --with .*clip-vit"):
        conversion.load(tmp_path / "a")


@pytest.mark.parametrize("change", ["fuse_module.gate.0.weight", "llm.extra", "shape"])
def test_every_mismatch_is_refused(tmp_path, name, whole, change):
    state = dict(whole)
    if change == "shape":
        state["fuse_module.fast_conv.weight"] = np.zeros((16, 1, 5, 5), np.float32)
        change = r"! fuse_module.fast_conv.weight \[16, 1, 5, 5\], expected \[16, 1, 7, 7\]"
    elif change in state:
        del state[change]
    else:
        state[change] = np.zeros(1, np.float32)
    write_folder(tmp_path / "a", name)
    readers.write_safetensors(tmp_path / "a" / "model.safetensors", state)
    with pytest.raises(UserError, match=change):
        conversion.load(tmp_path / "a")


def test_what_a_stage_saves():
    kept = ["projector.model.0.bias", "bbox_projector.model.2.weight", "fuse_module.gate.2.bias"]
    assert all(saved(n, stage) for n in kept for stage in ("pretrain", "sft"))
    assert saved("llm.lm_head.weight", "sft") and not saved("llm.lm_head.weight", "pretrain")
    assert not any(saved(p + "x", "sft") for p in (LOW, HIGH)) and len(OWN) == 3
