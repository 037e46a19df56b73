"""mg_jax.load of PyTorch weights: the same assistant as from the converted release."""

import shutil

import jax
import numpy as np
import pytest

import conversion
import mg_jax
from conversion import engine, readers
from mg_jax import checkpoint
from mg_jax.errors import UserError
from tests.conversion.folders import GROMA, set_config, write_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder in upstream's layout with the shipped tiny tokenizer."""
    path = tmp_path_factory.mktemp("upstream") / "groma"
    write_folder(path, "groma")
    for file in checkpoint.find("tokenizer-tiny").iterdir():
        shutil.copyfile(file, path / file.name)
    return path


@pytest.fixture(scope="module")
def release(folder):
    return conversion.convert(folder, folder.parent / "release")


def test_a_folder_and_its_release_load_alike(folder, release):
    direct, converted = mg_jax.load(folder), mg_jax.load(release)
    assert direct.system.cfg == converted.system.cfg == GROMA
    assert jax.tree.all(jax.tree.map(np.array_equal, direct.params, converted.params))
    assert vars(direct.codec).keys() == vars(converted.codec).keys()
    assert direct.codec.ids == converted.codec.ids and direct.codec.length == converted.codec.length
    file = mg_jax.load(folder / "model.safetensors", "bfloat16")
    assert {x.dtype.name for x in jax.tree.leaves(file.params)} == {"bfloat16"}
    assert file.system.cfg.lm.dtype == "bfloat16"


def test_a_converted_release_chats(release):
    picture = np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)
    assistant = mg_jax.load(release)
    answer = assistant.chat(picture, "What is this?", max_new_tokens=3)
    assert (answer.width, answer.height) == (80, 60)
    boxes, scores = assistant.propose([picture])[0]
    assert len(boxes) == len(scores)


def test_a_detector_proposes_but_has_no_words(tmp_path):
    write_folder(tmp_path / "a", "groma_detector")
    assistant = mg_jax.load(tmp_path / "a")
    assert assistant.codec is None and "lm" not in assistant.params


def test_a_bare_part_is_no_assistant(monkeypatch, tmp_path):
    """Told before a number is read: there may be many gigabytes of them."""
    write_folder(tmp_path / "a", "llama")
    conversion.convert(tmp_path / "a", tmp_path / "b")

    def refuse(self, *_):
        raise AssertionError("was read")

    monkeypatch.setattr(readers.SafeTensors, "read", refuse)
    monkeypatch.setattr(checkpoint.ParamFile, "read", refuse)
    for source in (tmp_path / "a", tmp_path / "b"):
        with pytest.raises(UserError, match="holds a llama alone .*--config.init_from=FOLDER"):
            mg_jax.load(source)


def halves(folder, name="groma"):
    """A delta and its base in float16, and the sum."""
    base, delta = (
        write_folder(folder / part, name, np.float16, seed=i)
        for i, part in enumerate(("base", "delta"))
    )
    return {key: base[key] + delta[key] for key in base}


def test_deltas_are_read_on_their_base(tmp_path):
    sums = halves(tmp_path)
    base, delta = tmp_path / "base", tmp_path / "delta"
    expected = engine.to_jax(sums.__getitem__, engine.plan(sums, conversion.load(delta).table))
    loaded = conversion.load(delta, base=base).params
    read = conversion.read(delta, base=base)[1]
    assistant = mg_jax.load(delta, base=base).params
    for found, dtype in ((loaded, np.float16), (read, np.float16), (assistant, np.float32)):
        same = jax.tree.map(lambda x, y, d=dtype: np.array_equal(x, y.astype(d)), found, expected)
        assert jax.tree.all(same)


def test_a_release_has_no_base(folder, release):
    for load in (conversion.load, conversion.read, mg_jax.load):
        with pytest.raises(UserError, match="a release is no delta; leave --base out"):
            load(release, base=folder)


def test_a_release_that_pytorch_has_no_layout_for_is_read_all_the_same(release, tmp_path):
    shutil.copytree(release, tmp_path / "other")
    set_config(tmp_path / "other", system="another")
    config, params, _ = conversion.read(tmp_path / "other")
    assert config["system"] == "another" and params.keys() == conversion.read(release)[1].keys()
    with pytest.raises(UserError, match="system 'another' has no layout of PyTorch's"):
        conversion.prepare(tmp_path / "other", tmp_path / "back")


@pytest.mark.parametrize("dtype", [None, np.float16])
def test_releases_are_loaded_in_memory_too(folder, release, dtype):
    direct, converted = conversion.load(folder, dtype), conversion.load(release, dtype)
    assert converted.cfg == direct.cfg and converted.layout == direct.layout == "full"
    assert converted.entry is direct.entry and not converted.dropped
    assert jax.tree.all(jax.tree.map(np.array_equal, direct.params, converted.params))
    kinds = {x.dtype for x in jax.tree.leaves(converted.params)}
    assert kinds == {np.dtype(dtype or np.float32)}


def test_a_byte_level_tokenizer_is_loaded(monkeypatch, folder, tmp_path):
    """The folder tells which kind it holds."""
    from mg_jax.text.bpe import BPETokenizer

    asked = []
    monkeypatch.setattr(BPETokenizer, "load", lambda path: asked.append(path) or 1 / 0)
    for source in folder.iterdir():
        if source.name in ("config.json", "model.safetensors"):
            (tmp_path / source.name).symlink_to(source)
    (tmp_path / "tokenizer.json").write_text("{}")
    for load in (mg_jax.load, lambda path: conversion.prepare(path, tmp_path / "out")):
        with pytest.raises(ZeroDivisionError):
            load(tmp_path)
    assert asked == [tmp_path, tmp_path]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere", "neither a folder nor a shipped release"),
        ("a/b/c", "neither a folder nor a shipped release"),
        ("org/name", "org/name: no such folder here, not in the cache"),
    ],
)
def test_what_cannot_be_loaded_is_said(monkeypatch, source, message):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=message):
        mg_jax.load(source)
