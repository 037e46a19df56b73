"""What a conversion refuses: tensors, files, configs, options and targets that do not fit."""

import json
import shutil

import numpy as np
import pytest

import conversion
from conversion import readers
from mg_jax import checkpoint
from mg_jax.errors import UserError
from tests.conversion.folders import set_config, write_folder


def harmed(folder, change):
    """A folder of a Llama whose state dict is changed by `change(state)`."""
    state = write_folder(folder, "llama")
    change(state)
    readers.write_safetensors(folder / "model.safetensors", state)
    return folder


UP = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop(UP), rf"- {UP} \[48, 32\]"),
        (lambda s: s.update(extra=np.ones(3)), r"\+ extra \[3\]"),
        (lambda s: s.update({UP: s[UP].T.copy()}), rf"! {UP} \[32, 48\], expected \[48, 32\]"),
        (lambda s: s.update({UP: s[UP].astype(np.float16)}), rf"{UP} is float16, .*--dtype bf16"),
    ],
    ids=["missing", "unexpected", "shape", "dtype"],
)
def test_tensors_that_do_not_fit(tmp_path, change, message):
    folder = harmed(tmp_path / "a", change)
    with pytest.raises(UserError, match=message):
        conversion.prepare(folder, tmp_path / "b")
    assert not list(tmp_path.glob("b*"))


@pytest.mark.parametrize("how", ["prepare", "load", "read"])
def test_tensors_at_fault_are_told_with_their_file(tmp_path, how):
    """Names, dtypes of layers, copies, and a shape that changes under the plan."""
    act = {"prepare": lambda path: conversion.prepare(path, tmp_path / "b")}.get(
        how, getattr(conversion, how)
    )
    file = r"a/model\.safetensors: "
    with pytest.raises(UserError, match=f"{file}does not fit the model of its config: 1 only"):
        act(harmed(tmp_path / "a", lambda s: s.update(extra=np.ones(3))))
    with pytest.raises(UserError, match=f"{file}{UP} is float16"):
        act(harmed(tmp_path / "a", lambda s: s.update({UP: s[UP].astype(np.float16)})))


@pytest.mark.parametrize("how", ["run", "load"])
def test_a_tensor_that_is_not_what_its_header_says_is_told_with_its_file(
    monkeypatch, tmp_path, how
):
    write_folder(tmp_path / "a", "llama")
    job = conversion.prepare(tmp_path / "a", tmp_path / "b")
    monkeypatch.setattr(readers.SafeTensors, "_read", lambda self, name: np.ones(3))
    with pytest.raises(UserError, match=r"a/model\.safetensors: \S+ has shape \[3\], expected"):
        job.run() if how == "run" else conversion.load(tmp_path / "a")


def test_one_dtype_settles_layers_that_differ(tmp_path):
    folder = harmed(tmp_path / "a", lambda s: s.update({UP: s[UP].astype(np.float16)}))
    conversion.convert(folder, tmp_path / "b", dtype="f32", check=True)


def test_a_copy_that_differs_is_refused(tmp_path):
    state = write_folder(tmp_path / "a", "qwen2")
    state["lm_head.weight"] = state["lm_head.weight"] + 1
    readers.write_safetensors(tmp_path / "a" / "model.safetensors", state)
    said = r"a/model\.safetensors: lm_head\.weight should equal model\.embed_tokens\.weight"
    with pytest.raises(UserError, match=said):
        conversion.convert(tmp_path / "a", tmp_path / "b")
    with pytest.raises(UserError, match=said):
        conversion.load(tmp_path / "a")
    assert not (tmp_path / "b").exists()


def test_a_file_cut_short_and_an_absent_shard(tmp_path):
    write_folder(tmp_path / "a", "llama")
    file = tmp_path / "a" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match="cut short"):
        conversion.prepare(tmp_path / "a", tmp_path / "b")
    file.unlink()
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (tmp_path / "a" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="names the shard model-00001-of-00002.safetensors"):
        conversion.prepare(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"model_type": "bert"},
            r"config.json: model_type 'bert' is none of those .* groma, ddetr",
        ),
        ({"model_type": None}, "no model_type, so it is none"),
        ({"surprise": 3}, "surprise: unknown field of LlamaConfig"),
        ({"hidden_act": "relu"}, "hidden_act: 'relu' is not supported"),
        ({"hidden_size": 64}, r"! model.embed_tokens.weight \[40, 32\], expected \[40, 64\]"),
    ],
)
def test_configs_that_do_not_fit(tmp_path, fields, message):
    write_folder(tmp_path / "a", "llama")
    set_config(tmp_path / "a", **fields)
    with pytest.raises(UserError, match=message):
        conversion.prepare(tmp_path / "a", tmp_path / "b")


def test_a_system_may_be_named(tmp_path):
    write_folder(tmp_path / "a", "llama")
    path = tmp_path / "a" / "config.json"
    raw = json.loads(path.read_text())
    del raw["model_type"]
    path.write_text(json.dumps(raw))
    with pytest.raises(UserError, match="pass --system"):
        conversion.prepare(tmp_path / "a", tmp_path / "b")
    conversion.prepare(tmp_path / "a", tmp_path / "b", system="llama")
    with pytest.raises(UserError, match="--system 'nope' is not known: choose groma, "):
        conversion.prepare(tmp_path / "a", tmp_path / "b", system="nope")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"to": "torch"}, "is not a release: --to jax is what can be made"),
        ({"to": "tf"}, "--to 'tf' is not known"),
        ({"dtype": "int8"}, "--dtype 'int8' is not known: choose keep, bf16, f32"),
        ({"revision": "main"}, "--revision main: .* is not a name on the hub"),
        ({"base": "nowhere"}, "nowhere: no such folder"),
    ],
)
def test_options_that_do_not_fit(tmp_path, options, message):
    write_folder(tmp_path / "a", "llama")
    with pytest.raises(UserError, match=message):
        conversion.prepare(tmp_path / "a", tmp_path / "b", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"to": "jax"}, "is a release already: --to torch"),
        ({"format": "onnx"}, "--format 'onnx' is not known: choose safetensors, bin"),
        ({"system": "groma"}, "--system groma: .* is a release of llama"),
        ({"base": "../a"}, "--base .*: Ferret v1 alone has deltas, and .* lacks its model.mm_proj"),
    ],
)
def test_options_that_do_not_fit_a_release(tmp_path, options, message):
    write_folder(tmp_path / "a", "llama")
    release = conversion.convert(tmp_path / "a", tmp_path / "b")
    options = {k: tmp_path / "b" / v if k == "base" else v for k, v in options.items()}
    with pytest.raises(UserError, match=message):
        conversion.prepare(release, tmp_path / "c", **options)


def test_sources_that_are_none(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        conversion.prepare(tmp_path / "nowhere", tmp_path / "b")
    write_folder(tmp_path / "a", "llama")
    (tmp_path / "a" / "config.json").unlink()
    with pytest.raises(UserError, match="holds no config.json, which says what model"):
        conversion.prepare(tmp_path / "a", tmp_path / "b")


def test_a_target_that_is_there_is_replaced_only_when_asked(tmp_path):
    write_folder(tmp_path / "a", "llama")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="file: is a file"):
        conversion.convert(tmp_path / "a", tmp_path / "file")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine").write_text("mine")
    with pytest.raises(UserError, match="b: is there already; name another folder or pass"):
        conversion.convert(tmp_path / "a", tmp_path / "b")
    conversion.convert(tmp_path / "a", tmp_path / "b", overwrite=True)
    assert not (tmp_path / "b" / "mine").exists() and (tmp_path / "b" / "config.json").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "file"]


def test_a_target_that_holds_what_is_read_is_refused(tmp_path):
    """The source, the base, folders above them, and files that lie elsewhere behind links."""
    write_folder(tmp_path / "in" / "a", "llama")
    write_folder(tmp_path / "bases" / "base", "llama")
    (tmp_path / "linked").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "linked" / name).symlink_to(tmp_path / "in" / "a" / name)
    (tmp_path / "link").symlink_to(tmp_path / "bases")
    before = sorted(tmp_path.rglob("*"))
    for source, base, target in (
        ("in/a", None, "in/a"),
        ("in/a", None, "in"),
        ("in/a/model.safetensors", None, "in/a"),
        ("in/a", "bases/base", "bases/base"),
        ("in/a", "bases/base", "bases"),
        ("in/a", "bases/base", "link"),
        ("in/a", "bases/base/model.safetensors", "bases/base"),
        ("linked", None, "in/a"),
        ("in/a", "linked", "in"),
    ):
        under = None if base is None else tmp_path / base
        with pytest.raises(UserError, match=f"{target}: holds the source .*; name another folder"):
            conversion.convert(tmp_path / source, tmp_path / target, base=under, overwrite=True)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    write_folder(tmp_path / "a", "groma")
    tiny = checkpoint.find("tokenizer-tiny")
    for file in tiny.iterdir():
        shutil.copyfile(file, tmp_path / "a" / file.name)
    conversion.prepare(tmp_path / "a", tmp_path / "b")
    (tmp_path / "a" / "tokenizer_config.json").unlink()  # which lists them as well
    (tmp_path / "a" / "added_tokens.json").write_text('{"[PAD]": 1200}')
    with pytest.raises(UserError, match="has 1 added tokens, its model 114"):
        conversion.prepare(tmp_path / "a", tmp_path / "b")


def test_bin_without_pytorch_is_told_before_anything_is_written(monkeypatch, tmp_path):
    write_folder(tmp_path / "a", "llama")
    release = conversion.convert(tmp_path / "a", tmp_path / "b")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"--format bin: .* pip install 'mg_jax\[torch\]'"):
        conversion.prepare(release, tmp_path / "c", format="bin")


def test_a_file_of_a_release_is_told_apart_from_weights(tmp_path):
    """Its config.json names an architecture, as timm's does."""
    write_folder(tmp_path / "a", "llama")
    release = conversion.convert(tmp_path / "a", tmp_path / "b")
    for act in (conversion.load, lambda file: conversion.prepare(file, tmp_path / "c")):
        with pytest.raises(UserError, match=f"a file of a release; name its folder, {release}$"):
            act(release / "params.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {}}, r"config\.json: model\.lm: expected an object of fields, got None"),
        ({"model": []}, r"config\.json: model: expected an object of fields, got \[\]"),
        ({"architecture": None}, r"config\.json: architecture: expected a text, got None"),
        ({"architecture": ["llama"]}, r"config\.json: architecture: expected a text"),
        ({"token_ids": 7}, r"config\.json: token_ids: expected an object of fields, got 7"),
    ],
)
def test_a_damaged_release_is_told_with_its_field(tmp_path, change, message):
    write_folder(tmp_path / "a", "llama")
    release = conversion.convert(tmp_path / "a", tmp_path / "b")
    set_config(release, **change)
    with pytest.raises(UserError, match=message):
        conversion.prepare(release, tmp_path / "c")


def test_options_of_the_other_way_are_refused(tmp_path):
    write_folder(tmp_path / "a", "llama")
    release = conversion.convert(tmp_path / "a", tmp_path / "r")
    with pytest.raises(UserError, match="--stage language: .* is a release, which tells its own"):
        conversion.prepare(release, tmp_path / "b", stage="language")
    with pytest.raises(UserError, match="--format bin: .* becomes a release: leave it out"):
        conversion.prepare(tmp_path / "a", tmp_path / "b", format="bin")


def test_paths_that_are_mistaken_are_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="dir/model.pth"):  # no name on the hub, which is not asked
        conversion.prepare("dir/model.pth", tmp_path / "b")
    for source, target in (("x" * 300, "b"), ("a", "y" * 300)):
        with pytest.raises(UserError, match=r"[xy]{9}\.\.\.: is no path: a name has more than 255"):
            conversion.prepare(source, target)
    write_folder(tmp_path / "a", "llama")
    with pytest.raises(UserError, match="--base a: is the source itself"):
        conversion.prepare(tmp_path / "a", tmp_path / "b", base="a")
