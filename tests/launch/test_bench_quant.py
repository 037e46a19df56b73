"""The cost of 8 and 4 bits, measured layer by layer."""

from launch import bench_quant


def test_fewer_bits_differ_more():
    found = bench_quant.logits("tiny")
    errors = [found[form]["error"] for form in ("bfloat16", "int8", "int4")]
    assert 0 < errors[0] < 0.05 and 0 < errors[1] < 0.05 < errors[2] < 0.5
    assert 0 < found["int8"]["kl"] < found["int4"]["kl"]
    assert found["int8"]["same"] > 0.8
