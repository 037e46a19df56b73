"""Runs the command and looks at what it wrote."""

import json
import sys
from collections import Counter
from pathlib import Path

import pytest

from launch import cli, synthesize
from mg_jax.data.sources import open_source

ROOT = Path(__file__).parents[3]
BOXES = {"dog": (10, 20, 50, 70), "sofa": (60, 20, 110, 80)}


def run(monkeypatch, capsys, *arguments):
    """(exit status, stdout, stderr) of the command."""
    monkeypatch.setattr(sys, "argv", ["synthesize", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.run(synthesize.main)
    out = capsys.readouterr()
    return stop.value.code, out.out, out.err


def online(server, out, photos, *more):
    return [out, "--pictures", photos, "--base-url", server.url, "--detector", "D", "--backoff",
            "0.01", *more]  # fmt: skip


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def answers(out):
    """What the journal has from the endpoint, nothing of it twice."""
    asked = [row["asked"] for row in lines(out / "journal.jsonl") if "asked" in row]
    assert len(set(asked)) == len(asked)
    return asked


def whole(out, count=12):
    """Every picture is in the output of a finished run, each conversation once."""
    rows = lines(out / "data.jsonl")
    assert len({row["id"] for row in rows}) == len(rows)
    names = Counter(row["meta"]["file_name"] for row in rows)
    assert len(names) == count and min(names.values()) >= 8
    known = lines(out / "annotations.jsonl")
    assert len(known) == len({row["id"] for row in known}) == count
    report = json.loads((out / "report.json").read_text())
    assert report["finished"] == report["pictures"] == count and not report["failed"]
    source = open_source(f"jsonl:{out / 'data.jsonl'}")
    assert source.bad == 0
    for k in range(len(source)):
        example = source[k]
        assert example.pixels().shape == (90, 120, 3)
    return rows, report


def scenes(n=6):
    return f"scenes:seed=5,n={n},tasks=none,size=160"
