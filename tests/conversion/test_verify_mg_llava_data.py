"""The verification command on the recordings of MG-LLaVA's host side, whole and spoiled."""

import json
import shutil

import numpy as np
import pytest

from launch.verify import main

pytestmark = pytest.mark.shared


@pytest.fixture
def preproc(shared, tmp_path):
    """A writable copy of the recordings of pictures, boxes and prompts."""
    return shutil.copytree(
        shared / "golden" / "mg_llava" / "preproc", tmp_path / "copy", copy_function=shutil.copy
    )


@pytest.fixture
def metrics(shared, tmp_path):
    """The recordings of conversations and answers, and a function that writes changed ones."""
    recorded = json.loads((shared / "golden/mg_llava/text_metrics/golden.json").read_text())

    def write():
        (tmp_path / "golden.json").write_text(json.dumps(recorded))
        return tmp_path

    return recorded, write


def verdict(folder, capsys):
    status = main([str(folder), "--json"])
    report = json.loads(capsys.readouterr().out)
    assert status == (0 if report["ok"] else 1)
    return report, [line["name"] for line in report["arrays"] if not line["ok"]]


def test_preproc(preproc, capsys):
    report, missed = verdict(preproc, capsys)
    assert missed == [] and report["failures"] == [] and report["arrays_total"] == 77
    inputs = [line["name"] for line in report["arrays"] if line["note"] == "input"]
    assert len(inputs) == 5 * 5 + 4 + 3


def test_text_metrics(metrics, capsys):
    report, missed = verdict(metrics[1](), capsys)
    assert missed == [] and report["failures"] == [] and report["arrays_total"] == 331
    inputs = [line["name"] for line in report["arrays"] if line["note"] == "input"]
    assert len(inputs) == 16 * 2 + 26 + 21 * 2 + 8 * 2 + 8 + 9 + 3


def change_array(folder, name, change):
    with np.load(folder / "outputs.npz") as archive:
        arrays = {key: archive[key] for key in archive.files}
    change(arrays)
    (folder / "outputs.npz").unlink()
    np.savez(folder / "outputs.npz", **arrays)
    return [name]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("wide_pixel_values", 1e-3),
        ("tall_pixel_values_aux", 1e-3),
        ("many_gt_boxes", 1.0),
        ("wide_input_ids", 1),
        ("chat_pixel_values_aux_ds4", 1e-3),
        ("chat_gt_boxes", -1.0),
    ],
)
def test_a_perturbed_array_is_missed(preproc, capsys, name, value):
    def change(arrays):
        arrays[name].flat[7] += value

    expected = change_array(preproc, name, change)
    assert verdict(preproc, capsys)[1] == expected


def test_an_unknown_array_is_missed(preproc, capsys):
    expected = change_array(
        preproc, "wide_more", lambda arrays: arrays.update(wide_more=np.zeros(3))
    )
    assert verdict(preproc, capsys)[1] == expected


def change_config(folder, change):
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("change", "missed"),
    [
        (lambda c: c["cases"]["wide"]["out_labels"].reverse(), ["cases/wide/out_labels"]),
        (lambda c: c["prompts"].update(vicuna="USER: "), ["prompts/vicuna"]),
        (
            lambda c: c["prompts"]["phi3_chat_cfg"].update(STOP_WORDS=["</s>"]),
            ["prompts/phi3_chat_cfg/STOP_WORDS"],
        ),
        (lambda c: c.update(border=[1.0]), ["border"]),
        (lambda c: c["cases"]["wide"].update(more=1), ["cases/wide/more"]),
        (lambda c: c["cases"]["wide"]["scores"].reverse(), None),
    ],
)
def test_a_changed_config_is_missed(preproc, capsys, change, missed):
    change_config(preproc, change)
    found = verdict(preproc, capsys)[1]
    if missed is None:  # an input: what follows from it no longer fits
        assert "wide_gt_boxes" in found
    else:
        assert found == missed


def test_a_case_that_fails_is_told(preproc, capsys):
    change_config(preproc, lambda c: c["cases"]["tall"].update(boxes=[[1, 2, 3]]))
    report, missed = verdict(preproc, capsys)
    assert "cases/tall/out_labels" in missed and "tall_gt_boxes" in missed
    assert len(report["failures"]) == 1 and report["failures"][0].startswith("tall: BadRecord")


def spoil(recorded, path, value):
    *keys, last = path
    for key in keys:
        recorded = recorded[key]
    recorded[last] = value


@pytest.mark.parametrize(
    ("path", "value", "missed"),
    [
        (("encode", 0, "input_ids", 5), 4, "encode/0/input_ids"),
        (("encode", 7, "labels", -1), 4, "encode/7/labels"),
        (("encode", 4, "conversation", 1, "output"), "B", "encode/4/conversation/1/output"),
        (("encode", 4, "conversation", 0, "need_eos_token"), True,
         "encode/4/conversation/0/need_eos_token"),
        (("encode", 4, "more"), 1, "encode/4/more"),
        (("answer_processor", 2, 1), "two", "answer_processor/2/1"),
        (("textvqa_acc", 1, 2), 0.6, "textvqa_acc/1/2"),
        (("anls", 1, "match", 1), 0.7, "anls/1/match"),
        (("anls", 1, "hit"), 0.7, "anls/1/hit"),
        (("yorn", 0, 1), "No", "yorn/0/1"),
        (("choice", 0, 1), "B", "choice/0/1"),
        (("prompt_processor", 0, 1), "", "prompt_processor/0/1"),
        (("bleu",), [["a", 1.0]], "bleu/0/0"),
    ],
)  # fmt: skip
def test_a_perturbed_reading_is_missed(metrics, capsys, path, value, missed):
    recorded, write = metrics
    spoil(recorded, path, value)
    found = verdict(write(), capsys)[1]
    assert found[0] == missed and (len(found) == 1 or path == ("bleu",))
