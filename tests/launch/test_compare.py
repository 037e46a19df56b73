"""Systems side by side: costs, the page, and what is not repeated."""

import json
import shlex
from pathlib import Path

import jax
import numpy as np
import pytest

import mg_jax
from launch import compare, evaluate
from mg_jax.errors import UserError
from mg_jax.evals import tasks
from tests import ferret_micro, groma_micro, mg_llava_micro, tiny_grounding_micro

DATA = "scenes:seed=700000,n=2,size=64"
MICRO = {
    "groma": groma_micro, "mg_llava": mg_llava_micro, "ferret": ferret_micro,
    "tiny_grounding_gpt": tiny_grounding_micro,
}  # fmt: skip


@pytest.mark.parametrize("name", MICRO)
def test_costs(name, tmp_path):
    assistant = mg_jax.load(MICRO[name].save_random(tmp_path / "release"))
    items = tasks.questions(tasks.get("presence"), DATA, 2)
    found = compare.costs(assistant, [item.query() for item in items])
    assert found["parameters"] == sum(x.size for x in jax.tree.leaves(assistant.params))
    picture = assistant.adapter.views(assistant.adapter.read(items[0].query()))[0]
    extra = found["tokens"] - len(picture.boxes)  # proposals with their names, or detected boxes
    assert (extra > 0) if name in ("groma", "mg_llava") else extra == 0
    least = 2 * len(picture.boxes) * assistant.system.cfg.lm.width * assistant.system.cfg.lm.mlp
    assert found["flops"] > least and found["milliseconds"] > 0
    assert 1 <= found["answer_tokens"] <= 48
    can = assistant.adapter.can
    plays = {
        n for n in ("object_match", "moved", "proposals") if compare.fits(assistant, tasks.get(n))
    }
    assert plays == {
        "groma": {"proposals"}, "mg_llava": {"moved"}, "ferret": set(),
        "tiny_grounding_gpt": {"object_match"},
    }[name]  # fmt: skip
    assert len(can - {"detections"}) == len(plays) and compare.fits(assistant, tasks.get("rec"))


def test_page(tmp_path, capsys, monkeypatch):
    folders = {n: str(MICRO[n].save_random(tmp_path / n)) for n in ("ferret", "tiny_grounding_gpt")}
    out = tmp_path / "page.md"
    argv = [*folders.values(), "--out", str(out), "--data", DATA]
    argv += ["--task=presence", "--task=object_match"]
    compare.main(argv)
    text = out.read_text()
    assert "| system | ferret | tiny_grounding_gpt |" in text and str(tmp_path) not in text
    (command,) = (x for x in text.splitlines() if x.startswith("    python -m launch.compare "))
    again = compare.arguments().parse_args(shlex.split(command)[3:])
    assert again.releases == ["ferret", "tiny_grounding_gpt"] and again.data == DATA
    assert again.task == ["presence", "object_match"] and again.out.name == "page.md"
    (line,) = (x for x in text.splitlines() if x.startswith("| object_match, acc@0.5 |"))
    assert line.split("|")[2].strip() == "" and line.split("|")[3].strip() != ""
    rows = [json.loads(x) for x in out.with_suffix(".jsonl").read_text().splitlines()]
    assert len(rows) == 5  # costs and presence of both, object images of one
    assert all(np.isfinite(r["flops"]) for r in rows if not r["task"])
    found = {"a": {r["task"]: r for r in rows if r["checkpoint"] == folders["tiny_grounding_gpt"]}}
    for data, unseen in ((DATA, True), ("scenes:seed=3,n=2", False), ("coco:x.json,x", False)):
        lines = compare.page(found, data, ["presence"], "command")
        assert any("which none of them is trained on" in x for x in lines) == unseen
        assert not any("no detector's cost" in x for x in lines)
    found["b"] = {task: row | {"system": "mg_llava"} for task, row in found["a"].items()}
    for data, simulated in ((DATA, True), ("coco:x.json,x", False)):
        lines = compare.page(found, data, ["presence"], "command")
        assert any("no detector's cost is counted" in x for x in lines) == simulated
    for path, shown in (("docs/page.md", "docs/page.md"), (str(out), "page.md")):
        said = compare.command(compare.arguments().parse_args(["a", "--out", path]))
        assert said == f"python -m launch.compare a --out {shown}"

    with pytest.raises(UserError, match="--task object_match: ferret takes no object images"):
        evaluate.main(["--checkpoint", folders["ferret"], "--task", "object_match", "--data", DATA])

    def load(*args, **more):
        raise AssertionError("measured again")

    monkeypatch.setattr(mg_jax, "load", load)
    rows_before = out.with_suffix(".jsonl").read_text()
    compare.main([folders["tiny_grounding_gpt"], *argv[2:]])
    assert out.with_suffix(".jsonl").read_text() == rows_before
    for flag in ("--quantize=int8", "--dtype=bfloat16"):  # as other numbers
        with pytest.raises(AssertionError, match="measured again"):
            compare.main([folders["tiny_grounding_gpt"], *argv[2:], flag])
    (config,) = Path(folders["tiny_grounding_gpt"]).glob("config.json")
    config.write_text(json.dumps(json.loads(config.read_text()) | {"provenance": {"seed": 9}}))
    with pytest.raises(AssertionError, match="measured again"):  # another training of that name
        compare.main([folders["tiny_grounding_gpt"], *argv[2:]])
    with pytest.raises(UserError, match="named twice"):
        compare.main([folders["ferret"], *argv[:1], *argv[2:]])
    with pytest.raises(UserError, match="no folder"):
        compare.main([folders["ferret"], "--out", str(tmp_path / "x" / "y.md")])
