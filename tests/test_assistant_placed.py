"""A model to answer with in 8 or 4 bits, and split over all devices."""

import math
import weakref

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

import mg_jax
from configs import groma
from mg_jax import checkpoint, loading
from mg_jax.errors import UserError
from mg_jax.optim import flatten
from mg_jax.params import ParamFile
from tests.test_assistant import folder  # noqa: F401

PROMPT = "[grounding] Describe the picture."


def picture():
    return np.random.default_rng(0).integers(0, 255, (60, 90, 3), np.uint8)


def test_all_devices_answer_as_one_does(folder):  # noqa: F811
    one, all_ = mg_jax.load(folder), mg_jax.load(folder, mesh="auto")
    kernel = all_.params["lm"]["blocks"]["mlp"]["up"]["kernel"]
    assert kernel.sharding.spec == PartitionSpec(None, None, "tensor")
    assert len(kernel.sharding.device_set) == jax.local_device_count()
    a, b = (x.chat(picture(), PROMPT, max_new_tokens=8) for x in (one, all_))
    assert a.text == b.text


@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_a_quantized_model_answers_and_keeps_what_is_no_kernel(folder, quantize):  # noqa: F811
    plain, small = mg_jax.load(folder), mg_jax.load(folder, quantize=quantize, mesh="auto")
    flat, wide = flatten(small.params), flatten(plain.params)
    kernels = [p for p in flat if f"{p}_scale" in flat]
    assert len(kernels) >= 7 and all(p.startswith("lm/") for p in kernels)
    for path, x in wide.items():
        want = quantize if path in kernels else x.dtype
        assert flat[path].dtype == want and flat[path].shape == x.shape, path
    assert isinstance(small.chat(picture(), PROMPT, max_new_tokens=8).text, str)


@pytest.mark.parametrize("format", ["safetensors", "orbax"])
def test_a_release_is_quantized_an_array_at_a_time(folder, tmp_path, format, monkeypatch):  # noqa: F811
    config, params, words = checkpoint.load_release(folder)
    release = checkpoint.save_release(tmp_path / "r", params, config, words, format=format)
    read, alive = ParamFile.leaf, []

    def leaf(self, path):
        late = [p for p, x in alive if x() is not None and f"{p}_scale" in scales]
        assert not late, f"{late[0]} is still there when {path} is read"
        x = read(self, path)
        alive.append((path, weakref.ref(x)))
        return x

    def whole(self, abstract=None):
        raise AssertionError("read whole")

    small = flatten(mg_jax.load(folder, quantize="int8").params)
    scales = {p for p in small if p.endswith("/kernel_scale")}
    monkeypatch.setattr(ParamFile, "leaf", leaf)
    monkeypatch.setattr(ParamFile, "read", whole)
    found = flatten(mg_jax.load(release, quantize="int8").params)
    sizes = [math.prod(found[p].shape) for p, _ in alive]
    assert len(sizes) == len(flatten(params)) and sizes == sorted(sizes, reverse=True)
    assert found.keys() == small.keys() and len(scales) >= 7
    for path in scales:  # the release was rounded to bfloat16, as the folder's was
        np.testing.assert_array_equal(found[path], small[path])


def test_what_a_large_model_takes_is_said_before_it_is_read(capsys):
    config = groma.get_config("stage=instruction,size=7b,form=published")
    said = {"system": "groma", "model": config.model.to_dict()}
    for quantize, devices, numbers in (("none", 1, (13.7, 1.0)), ("int8", 4, (1.9, 0.2))):
        loading._say_size("7b", said, "bfloat16", quantize, devices)
        line = capsys.readouterr().err
        assert line.startswith(
            "7b: {} GiB of parameters and {} GiB for a conversation of 2048".format(*numbers)
        )
        assert line.endswith("on each device\n") == (devices > 1)
    loading._say_size("7b", said | {"stage": "detection"}, "bfloat16", "none", 1)
    small = groma.get_config("stage=instruction,size=tiny").model.to_dict()
    loading._say_size("tiny", {"system": "groma", "model": small}, "float32", "none", 1)
    assert capsys.readouterr().err == ""


def test_wrong_names_are_refused(folder):  # noqa: F811
    with pytest.raises(UserError, match="quantize='fp8': it is one of none, int8, int4"):
        mg_jax.load(folder, quantize="fp8")
    with pytest.raises(UserError, match="""mesh='foo': it is "auto", or a mesh"""):
        mg_jax.load(folder, mesh="foo")
