"""`launch.bench data`: the numbers it prints, and that both sides do the same work."""

import json

import pytest

from launch import bench, bench_data


@pytest.mark.torch
def test_the_bench_prints_its_keys(capsys, monkeypatch):
    for name, value in {"FILES": 6, "BATCH": 2, "ROUND": 2, "PICTURE": "96x64"}.items():
        monkeypatch.setattr(bench_data, name, value)
    cases = [("BitImageProcessor", 56, 0, "shards")]
    monkeypatch.setattr(bench_data.data, "__defaults__", (cases,))
    bench.main(["data", "--repeat", "1"])
    (row,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert row["reference"] == "BitImageProcessor" and row["workers"] == 0
    assert row["source"] == "shards" and row["size"] == 56 and row["pictures"] == "96x64 JPEG"
    assert row["difference"] < 1e-6
    assert row["ratio"] > 0 and row["per_core"] > 0 and row["reference_per_core"] > 0
    assert list(row["shares"]) == ["read", "decode", "resize", "normalise", "tokenise", "collate"]
    assert sum(row["shares"].values()) == pytest.approx(1, abs=0.01)
