"""mg_jax.load of PyTorch weights: the same assistant as from the converted release."""

import shutil

import jax
import numpy as np
import pytest

import conversion
import mg_jax
from mg_jax import checkpoint
from mg_jax.errors import UserError
from tests.conversion.folders import GROMA, write_folder


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


def test_a_bare_part_is_no_assistant(tmp_path):
    write_folder(tmp_path / "a", "llama")
    for source in (tmp_path / "a", conversion.convert(tmp_path / "a", tmp_path / "b")):
        with pytest.raises(UserError, match="holds a llama alone .*--config.init_from=FOLDER"):
            mg_jax.load(source)


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
