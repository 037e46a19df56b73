"""TinyGroundingGPT's layout both ways, completed by its public parts, and GroundingGPT's tables."""

import json
import shutil

import jax
import numpy as np
import pytest

import conversion
from configs.tiny_grounding_gpt import full_model
from conversion import engine, manifests, readers
from conversion.architectures import ARCHITECTURES
from conversion.tables.tiny_grounding_gpt import CLIP, DINO, PROJECTOR
from conversion.verify import groundinggpt_tables, verify
from mg_jax import checkpoint, models
from mg_jax.errors import UserError
from mg_jax.text import codecs
from mg_jax.text.bpe import load_tokenizer
from tests.conversion.folders import (
    CONFIGS,
    assert_same,
    read_folder,
    set_config,
    state_of,
    write_folder,
)

NAME = "tiny_grounding_gpt"
ENTRY, CFG = ARCHITECTURES[NAME], CONFIGS[NAME]
PARTS = ("llm", "clip", "dinov2")


@pytest.fixture
def whole():
    """The state dict of the model in memory."""
    return state_of(ENTRY, CFG, seed=1)


@pytest.fixture
def public(tmp_path):
    """Folders of the three public models; returns the tensors of each under its prefix."""
    lm = write_folder(tmp_path / "llm", "qwen2", cfg=CFG.lm, seed=2)
    set_config(tmp_path / "llm", eos_token_id=7)
    clip = write_folder(tmp_path / "clip", "clip", cfg=CFG.clip, seed=3)
    dino = write_folder(tmp_path / "dinov2", "dinov2", cfg=CFG.dino, seed=4)
    return (
        lm | {f"clip.{n}": x for n, x in clip.items()} | {f"dinov2.{n}": x for n, x in dino.items()}
    )


def own(state):
    return {n: x for n, x in state.items() if n.startswith(PROJECTOR)}


def read_release(folder):
    config, params, _ = checkpoint.load_release(folder)
    return config, {path: np.asarray(x) for path, x in engine.flatten(params).items()}


def params_of(state):
    plan = engine.plan(state, ENTRY.table(CFG, state))
    return engine.flatten(engine.to_jax(state.__getitem__, plan))


def test_names_are_those_of_the_public_relatives(whole):
    assert set(own(whole)) == {
        f"model.mm_vision_projector.{n}.{kind}" for n in (0, 2) for kind in ("weight", "bias")
    }
    assert own(whole)[f"{PROJECTOR}0.weight"].shape == (32, 16 + 16)
    assert "model.layers.0.self_attn.q_proj.bias" in whole and "lm_head.weight" in whole
    assert "clip.vision_model.embeddings.class_embedding" in whole
    assert "dinov2.encoder.layer.0.attention.attention.query.weight" in whole


def test_there_and_back(tmp_path, whole):
    write_folder(tmp_path / "a", NAME, seed=1)
    release = conversion.convert(tmp_path / "a", tmp_path / "b", check=True)
    config, params = read_release(release)
    assert config["system"] == NAME and config["stage"] == "global"
    assert ENTRY.build(config["model"], "model") == CFG
    assert_same(params, params_of(whole))
    back = conversion.convert(release, tmp_path / "c", check=True)
    assert_same(read_folder(back), whole)
    assert ENTRY.read(json.loads((back / "config.json").read_text()), "c") == CFG


def test_what_the_codec_says_comes_back(tmp_path):
    write_folder(tmp_path / "a", NAME)
    said = {"template": "vicuna", "text_tokens": 33, "object_slots": 1}
    set_config(tmp_path / "a", **said)
    release = conversion.convert(tmp_path / "a", tmp_path / "b")
    back = conversion.convert(release, tmp_path / "c")
    raw = json.loads((back / "config.json").read_text())
    assert {name: raw[name] for name in said} == said
    config, _ = read_release(conversion.convert(back, tmp_path / "d"))
    assert {name: config["codec"][name] for name in said} == said


@pytest.mark.parametrize(("part", "prefix", "named"), [
    ("llm", "", "Qwen2ForCausalLM"), ("clip", "clip.", "CLIPVisionModel"),
    ("dinov2", "dinov2.", "Dinov2Model"),
])  # fmt: skip
def test_each_public_model_comes_out_alone(tmp_path, whole, part, prefix, named):
    write_folder(tmp_path / "a", NAME, seed=1)
    set_config(tmp_path / "a", template="vicuna")
    (tmp_path / "a" / "vocab.json").write_text("{}")
    release = conversion.convert(tmp_path / "a", tmp_path / "b")
    folder = conversion.convert(release, tmp_path / "c", part=part, check=True)
    want = {
        n.removeprefix(prefix): x for n, x in whole.items()
        if (n.startswith(prefix) if prefix else n.startswith(("model.", "lm_head")))
        and not n.startswith(PROJECTOR)
    }  # fmt: skip
    assert_same(read_folder(folder), want)
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == [named] and "template" not in config
    assert (folder / "vocab.json").exists() == (part == "llm")
    again = conversion.load(folder)
    assert again.cfg == getattr(CFG, {"llm": "lm", "dinov2": "dino"}.get(part, part))
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    (folder / "vocab.json").unlink(missing_ok=True)
    model, info = getattr(transformers, named).from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    loaded = {x.numpy().tobytes() for x in model.state_dict().values()}  # names go by version
    assert {x.tobytes() for x in want.values()} <= loaded


def test_parts_are_of_a_release_of_this_system(tmp_path):
    write_folder(tmp_path / "a", NAME)
    with pytest.raises(UserError, match="--part llm: .*a is no release"):
        conversion.prepare(tmp_path / "a", tmp_path / "x", part="llm")
    release = conversion.convert(tmp_path / "a", tmp_path / "b")
    with pytest.raises(UserError, match="--part vision is not known: choose llm, clip, dinov2"):
        conversion.prepare(release, tmp_path / "x", part="vision")
    alone = conversion.convert(release, tmp_path / "c", part="llm")
    other = conversion.convert(alone, tmp_path / "d")
    with pytest.raises(UserError, match="--part llm: .*d is a release of qwen2"):
        conversion.prepare(other, tmp_path / "x", part="llm")


@pytest.mark.parametrize("spoken", [False, True], ids=["projector alone", "with its Qwen"])
def test_a_file_is_completed_by_public_parts(tmp_path, whole, public, spoken):
    """As GroundingGPT's files leave out CLIP, and those of the first stage the language model."""
    lm = [n for n in whole if n.startswith(("model.", "lm_head")) and n not in own(whole)]
    mine = own(whole) | ({n: whole[n] for n in lm} if spoken else {})
    (tmp_path / "x").mkdir()
    readers.write_safetensors(tmp_path / "x" / "stage.safetensors", mine)
    release = conversion.convert(
        tmp_path / "x" / "stage.safetensors", tmp_path / "out", check=True,
        parts=[tmp_path / part for part in PARTS],
    )  # fmt: skip
    config, params = read_release(release)
    assert_same(params, params_of(public | mine))
    assert config["stage"] == ("global" if spoken else "projector")
    assert config["token_ids"]["llm"]["eos_token_id"] == 7
    assert config["codec"]["vocab"] == CFG.lm.vocab and config["preprocess"] == "clip_pad"


def test_what_is_lacking_is_named(tmp_path, whole, public):
    (tmp_path / "x").mkdir()
    readers.write_safetensors(tmp_path / "x" / "stage.safetensors", own(whole))
    file = tmp_path / "x" / "stage.safetensors"
    for given, message in (
        ((), "a file of TinyGroundingGPT's, which leaves its language model and its towers"),
        (("llm", "clip"), "says nothing of dinov2; pass --with"),
        (("llm", "clip", "dinov2", "clip"), "clip is a clip already"),
    ):
        with pytest.raises(UserError, match=message):
            conversion.prepare(file, tmp_path / "out", parts=[tmp_path / p for p in given])
    write_folder(tmp_path / "convnext", "convnext")
    with pytest.raises(
        UserError, match="convnext: is none of what TinyGroundingGPT's files leave out"
    ):
        conversion.prepare(file, tmp_path / "out", parts=[tmp_path / "convnext"])
    write_folder(tmp_path / "a", NAME)
    bare = {n: x for n, x in whole.items() if not n.startswith("dinov2.")}
    readers.write_safetensors(tmp_path / "a" / "model.safetensors", bare)
    with pytest.raises(UserError, match="lack what .* is made of: .*facebook/dinov2-large"):
        conversion.load(tmp_path / "a")


@pytest.mark.parametrize("change", [f"{PROJECTOR}0.bias", "clip.extra", "model.extra"])
def test_every_mismatch_is_refused(tmp_path, whole, change):
    state = dict(whole)
    if change in state:
        del state[change]
    else:
        state[change] = np.zeros(1, np.float32)
    write_folder(tmp_path / "a", NAME)
    readers.write_safetensors(tmp_path / "a" / "model.safetensors", state)
    with pytest.raises(UserError, match=change):
        conversion.load(tmp_path / "a")


def test_an_unknown_field_is_refused(tmp_path):
    write_folder(tmp_path / "a", NAME)
    set_config(tmp_path / "a", mm_use_im_start_end=True)
    with pytest.raises(UserError, match="mm_use_im_start_end: unknown field of TinyGroundingGPT"):
        conversion.load(tmp_path / "a")


def test_the_tokenizer_may_be_smaller_than_the_table(tmp_path):
    words = checkpoint.find("tokenizer-tiny")
    for size, folder in ((1400, tmp_path / "fits"), (1300, tmp_path / "small")):
        lm = type(CFG.lm)(**{**vars(CFG.lm), "vocab": size})
        write_folder(folder, NAME, cfg=type(CFG)(**{**vars(CFG), "lm": lm}))
        set_config(folder, template="vicuna")
        for file in words.iterdir():
            shutil.copyfile(file, folder / file.name)
    release = conversion.convert(tmp_path / "fits", tmp_path / "out")
    config, _ = read_release(release)
    codec = codecs.get(NAME)(load_tokenizer(release / "tokenizer"), **config["codec"])
    assert codec.image_tokens == 16 and codec.vocab == 1400 and codec.template.name == "vicuna"
    assert codec.length <= CFG.lm.max_positions
    with pytest.raises(UserError, match="tokenizer has 1314 tokens, its model 1300: they do not"):
        conversion.convert(tmp_path / "small", tmp_path / "x")


# -- the paper's sizes, abstractly --------------------------------------------------------------

QWENS = {"qwen1.5b": "qwen25_1_5b", "qwen3b": "qwen25_3b", "qwen7b": "qwen25_7b"}


def published(size, cfg):
    """Names and shapes of the three public models, and of the projector between them."""
    width = cfg.lm.width
    shapes = {
        f"{PROJECTOR}0.weight": (width, 1024 + 1024), f"{PROJECTOR}0.bias": (width,),
        f"{PROJECTOR}2.weight": (width, width), f"{PROJECTOR}2.bias": (width,),
    }  # fmt: skip
    for prefix, name in (("", QWENS[size]), (CLIP, "clip_vit_l14_336"), (DINO, "dinov2_l14")):
        shapes |= {prefix + n: shape for n, shape in manifests.read(name).items()}
    return shapes


@pytest.mark.parametrize("size", QWENS)
def test_the_whole_is_covered_in_both_directions_at_full_size(size):
    cfg = full_model(size)
    shapes = published(size, cfg)
    plan = engine.plan(shapes, ENTRY.table(cfg, shapes), size)
    used = {source for leaf in plan.leaves for source in leaf.names}
    assert used | set(plan.dropped) == set(shapes) and not plan.tied
    assert all(name.startswith((CLIP, DINO)) for name in plan.dropped)
    copies = {"lm_head.weight": (cfg.lm.vocab, cfg.lm.width)} if cfg.lm.tied else {}
    kept = {name: shape for name, shape in shapes.items() if name not in plan.dropped}
    written = engine.expand(ENTRY.table(cfg))
    assert written.torch_shapes() == kept | copies
    assert written.jax_shapes() == plan.jax_shapes()


@pytest.mark.parametrize("size", QWENS)
def test_leaves_at_full_size_are_those_of_the_model(size):
    """jax.eval_shape of the module, so that nothing is computed."""
    cfg = full_model(size)
    init = models.build(NAME, cfg).init("local")
    shapes = jax.eval_shape(init, jax.random.key(0))["params"]
    found = jax.tree.map(lambda x: x.value.shape, shapes, is_leaf=lambda x: hasattr(x, "value"))
    assert engine.flatten(found) == engine.expand(ENTRY.table(cfg)).jax_shapes()


# -- GroundingGPT's tables ---------------------------------------------------------------------


@pytest.fixture
def tables(shared, tmp_path):
    folder = tmp_path / "tables"
    folder.mkdir()
    for file in (groundinggpt_tables.POSTPROCESS, groundinggpt_tables.PROMPTS):
        shutil.copyfile(shared / "golden" / "ferret" / "tables" / file, folder / file)
    return folder


def test_recorded_tables_match(tables):
    report = verify(tables)
    assert report.ok
    made = [line.name for line in report.lines if line.note != "input"]
    assert sum(name.endswith("/postprocessed") for name in made) == 24
    assert sum(name.endswith("/boxes") for name in made) == 16  # not "[1, 2, 3, 4]", for one
    assert sum(line.note == "input" for line in report.lines) == 48
    assert len(made) == 24 + 16 + 2
    (tables / groundinggpt_tables.PROMPTS).unlink()
    assert len(verify(tables).lines) == 24 + 16 + 48
    (tables / groundinggpt_tables.POSTPROCESS).unlink()
    assert groundinggpt_tables.check(tables) is None


@pytest.mark.parametrize(("text", "size", "want"), [
    # a result that equals a later box is replaced again (spec 2)
    ("[0.5, 0.6, 0.5, 0.6] [0.5, 0.7, 0.5, 0.7]", (200, 100),
     "[0.5, 0.9, 0.5, 0.9] [0.5, 0.9, 0.5, 0.9]"),
    ("[0.1.2, 0.3, 0.4, 0.5]", (200, 100), "[0.1.2, 0.3, 0.4, 0.5]"),
    ("[0.1, 0.3, 0.4]", (200, 100), "[0.1, 0.3, 0.4]"),
    ("[0.0, 0.0, 1.0, 1.0]", (101, 50), "[0.0, 0.0, 1.0, 1.0]"),
    ("[.5, 0.26, 1, 0.5]", (101, 50), "[0.495, 0.02, 1.0, 0.5]"),
])  # fmt: skip
def test_postprocessing_by_hand(text, size, want):
    assert groundinggpt_tables.postprocess(text, *size) == want


@pytest.mark.parametrize(("file", "content"), [
    (groundinggpt_tables.POSTPROCESS, [{"output": "x"}]),
    (groundinggpt_tables.POSTPROCESS, {"a": 1}),
    (groundinggpt_tables.PROMPTS, {"other": "x"}),
])  # fmt: skip
def test_other_files_of_these_names_are_refused(tmp_path, file, content):
    (tmp_path / file).write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"{file}: is no recording of GroundingGPT's"):
        verify(tmp_path)


def test_a_changed_recording_is_a_miss(tables):
    for file in (groundinggpt_tables.POSTPROCESS, groundinggpt_tables.PROMPTS):
        path = tables / file
        path.write_text(path.read_text().replace("0.367", "0.368").replace("###Human", "### Human"))
    report = verify(tables)
    missed = [line.name for line in report.lines if not line.ok]
    assert missed == [
        *(f"groundinggpt_postprocess/{n}/{what}" for n in (0, 5) for what in ("postprocessed",
                                                                             "boxes")),
        "groundinggpt_prompts/inference_prompt",
    ]  # fmt: skip


@pytest.mark.parametrize(("said", "other"), [
    ("of the dog.", "of the cat."), ("*576", "*256"), ("[0.100, ", "[0.200, "), ("### ", "## "),
])  # fmt: skip
def test_a_changed_conversation_is_a_miss(tables, said, other):
    path = tables / groundinggpt_tables.PROMPTS
    texts = json.loads(path.read_text())
    texts["training_text"] = texts["training_text"].replace(said, other)
    path.write_text(json.dumps(texts))
    missed = [line.name for line in verify(tables).lines if not line.ok]
    assert missed == ["groundinggpt_prompts/training_text"]
