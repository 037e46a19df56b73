"""The cost of 8 and 4 bits, measured layer by layer."""

from types import SimpleNamespace

import pytest

import mg_jax
from launch import bench_quant, measuring


def test_fewer_bits_differ_more():
    found = bench_quant.logits("tiny")
    errors = [found[form]["error"] for form in ("bfloat16", "int8", "int4")]
    assert 0 < errors[0] < 0.05 and 0 < errors[1] < 0.05 < errors[2] < 0.5
    assert 0 < found["int8"]["kl"] < found["int4"]["kl"]
    assert found["int8"]["same"] > 0.8


def test_the_tiny_model_is_compared_with_itself_in_bfloat16(monkeypatch):
    reached = {("float32", "none"): 0.9, ("bfloat16", "none"): 0.8, ("bfloat16", "int8"): 0.75,
               ("bfloat16", "int4"): 0.5}  # fmt: skip

    def load(source, dtype, quantize):
        assert source == "groma-tiny"
        return reached[dtype, quantize]

    def measure(assistant, task, data):
        return SimpleNamespace(metrics={task.headline: assistant})

    monkeypatch.setattr(mg_jax, "load", load, raising=False)
    monkeypatch.setattr(measuring, "measure", measure)
    monkeypatch.setattr(bench_quant, "logits", lambda params: {})
    rows = {row["form"]: row for row in bench_quant.cases("tiny")}
    assert list(rows) == ["float32", "bfloat16", "int8", "int4"]
    assert rows["bfloat16"]["rec acc@0.5"] == 0.8 and rows["int8"]["regions accuracy"] == 0.75
    assert rows["int8"]["rec acc@0.5 - bfloat16"] == pytest.approx(-0.05)
    assert rows["int4"]["presence accuracy - bfloat16"] == pytest.approx(-0.3)
    assert not any("- bfloat16" in key for key in {**rows["float32"], **rows["bfloat16"]})
