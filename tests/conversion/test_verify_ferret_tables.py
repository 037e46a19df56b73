"""The verification command on Ferret's tables, whole and spoiled."""

import json
import shutil

import numpy as np
import pytest

from launch.verify import main

pytestmark = pytest.mark.shared


@pytest.fixture
def tables(shared, tmp_path):
    """A writable copy of the recorded tables."""
    return shutil.copytree(
        shared / "golden" / "ferret" / "tables", tmp_path / "copy", copy_function=shutil.copy
    )


def verdict(folder, capsys):
    status = main([str(folder), "--json"])
    report = json.loads(capsys.readouterr().out)
    assert status == (0 if report["ok"] else 1)
    return report, [line["name"] for line in report["arrays"] if not line["ok"]]


def test_all_tables(tables, capsys):
    report, missed = verdict(tables, capsys)
    assert missed == [] and report["failures"] == []
    made = {line["name"].split("/")[0] for line in report["arrays"] if line["note"] != "input"}
    files = {f.stem for f in tables.iterdir()}  # GroundingGPT's tables lie beside Ferret's
    assert made >= files - {"select_best_resolution", "anyres_resize"}
    inputs = sum(line["note"] == "input" for line in report["arrays"])
    assert report["arrays_total"] - inputs > 700


@pytest.mark.parametrize(
    ("table", "path", "value", "missed"),
    [
        ("parsed_answers", (0, "eval_refexp_decode"), [[], []], "0/eval_refexp_decode"),
        ("parsed_answers", (16, "model_flickr_find"), [[], []], "16/model_flickr_find"),
        (
            "parsed_answers", (0, "ferretbench_postprocess", "ground_conv"), "x",
            "0/ferretbench_postprocess/ground_conv",
        ),
        ("coordinate_strings", (2, "text"), "[0, 0, 999, 999]", "2/text"),
        ("coordinate_strings", (0, "decoded_back"), [99, 49, 400, 301], "0/decoded_back"),
        ("lvis_match", (5, "correct"), True, "5/correct"),
        ("are_phrases_similar", (5, 2), True, "5/2"),
        ("remove_punctuation", (0, 1), "man, left", "0/1"),
        ("ferretbench_parse_score", (0, 1), [8.0, 6.0], "0/1"),
        ("pope_eval", ("metrics", "Recall"), 0.75, "metrics/Recall"),
        ("refexp_eval", ("per_k", "mean", "refcoco"), 0.6, "per_k/mean/refcoco"),
        (
            "flickr_eval", ("results", "merge_boxes=True", "report", "5", "all"), 0.9,
            "results/merge_boxes=True/report/5/all",
        ),
        ("flickr_eval", ("phrases", "1001", 0, "sentence"), "x", "phrases/1001/0/sentence"),
        ("flickr_eval", ("phrases", "1001", 1, "phrases"), [], "phrases/1001/1/phrases"),
        ("prompts", ("ferret:v1", "prompt"), "x", "ferret:v1/prompt"),
        ("prompts", ("ferretui:ferret_llama_3", "stop_str"), "</s>",
         "ferretui:ferret_llama_3/stop_str"),
    ],
)  # fmt: skip
def test_a_changed_value_is_missed(tables, capsys, table, path, value, missed):
    file = tables / f"{table}.json"
    rows = json.loads(file.read_text())
    *keys, last = path
    part = rows
    for key in keys:
        part = part[key]
    part[last] = value
    file.unlink()
    file.write_text(json.dumps(rows))
    assert verdict(tables, capsys)[1] == [f"{table}/{missed}"]


def test_a_changed_mask_is_missed(tables, capsys):
    file = tables / "eval_masks.npz"
    with np.load(file) as archive:
        arrays = {key: archive[key] for key in archive.files}
    arrays["case1_mask_wh"][6, 6] ^= 1
    file.unlink()
    np.savez(file, **arrays)
    assert verdict(tables, capsys)[1] == ["eval_masks/case1_mask_wh"]


def test_an_unknown_value_is_missed(tables, capsys):
    file = tables / "pope_eval.json"
    rows = json.loads(file.read_text()) | {"more": 1.0}
    file.unlink()
    file.write_text(json.dumps(rows))
    assert verdict(tables, capsys)[1] == ["pope_eval/more"]
