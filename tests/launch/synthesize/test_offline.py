"""`python -m launch.synthesize` on annotations, its mistakes, its help and its manual."""

import json

import numpy as np
import pytest
from PIL import Image

from mg_jax.data.sources import open_source
from mg_jax.data.synthesis.filters import FILTERS
from mg_jax.data.synthesis.prompts import PLACEHOLDERS
from mg_jax.data.synthesis.recipes import KINDS
from mg_jax.data.write import write_coco
from mg_jax.text import markup
from tests.data.synthesis.chat_server import ChatServer
from tests.launch.synthesize.command import ROOT, lines, run, scenes


def test_offline_on_scenes(monkeypatch, capsys, tmp_path):
    """The same bytes with any number of workers; the file is one that trains."""
    for folder, parallel in (("a", 1), ("b", 4)):
        code, out, err = run(
            monkeypatch, capsys, tmp_path / folder, "--data", scenes(), "--offline",
            "--parallel", parallel,
        )  # fmt: skip
        assert code == 0, err
    assert "requests" not in out
    for file in ("data.jsonl", "annotations.jsonl"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    source, scene = open_source(f"jsonl:{tmp_path / 'a' / 'data.jsonl'}"), open_source(scenes())
    assert {source[k].meta["task"] for k in range(len(source))} == set(KINDS)
    assert np.array_equal(source[0].pixels(), scene[0].pixels())
    boxes = [r.box for r in scene[0].objects]
    for region in source[0].regions:
        assert min(np.abs(np.subtract(region.box, box)).max() for box in boxes) < 1e-6
    asked = open_source(f"jsonl:{tmp_path / 'a' / 'annotations.jsonl'},tasks=place_choice+rec")
    assert asked.tasks and len(asked[0].objects) > 0


@pytest.mark.parametrize("recipe", ["tiny_grounding_gpt", "groma", "ferret"])
def test_offline_on_a_coco_folder(monkeypatch, capsys, tmp_path, recipe):
    source = open_source(scenes(8))
    file, images = write_coco([source[k] for k in range(8)], tmp_path / "coco")
    spec = f"coco:{file},{images}"
    if recipe == "ferret":  # COCO has no texts
        code, _, err = run(
            monkeypatch, capsys, tmp_path / "o", "--data", spec, "--offline", "--recipe", recipe
        )
        assert code == 2 and "no conversation is left of 8 pictures" in err
        report = json.loads((tmp_path / "o" / "report.json").read_text())
        assert report["dropped"]["no texts"] == 8
        return
    code, _, err = run(
        monkeypatch, capsys, tmp_path / "o", "--data", spec, "--offline", "--recipe", recipe
    )
    assert code == 0, err
    made = open_source(f"jsonl:{tmp_path / 'o' / 'data.jsonl'}")
    assert made.bad == 0 and len(made) >= 4
    assert made[0].pixels().shape == (160, 160, 3)
    assert not (tmp_path / "o" / "images").exists()  # they stay where they are
    if recipe == "groma":
        stored = open_source(
            f"groma_instruct:{tmp_path / 'o' / 'groma_instruct.json'},{tmp_path / 'o'}"
        )
        assert len(stored) == len(made) and stored.bad == 0
        for k in range(len(made)):
            said = [[markup.strip(t.assistant) for t in s[k].turns] for s in (stored, made)]
            assert said[0] == said[1]


def test_groma_stored_form_has_its_boxes(monkeypatch, capsys, tmp_path):
    with ChatServer() as server:
        code, _, err = run(
            monkeypatch, capsys, tmp_path / "o", "--data", scenes(5), "--recipe", "groma",
            "--base-url", server.url,
        )  # fmt: skip
    assert code == 0, err
    rows = json.loads((tmp_path / "o" / "groma_instruct.json").read_text())
    assert rows and all(set(row) == {"file_name", "width", "height", "boxes", "conversation"}
                        for row in rows)  # fmt: skip
    for row in rows:
        asked, answered = row["conversation"][:2]
        assert answered["value"].count("<ground_box>") == len(answered["box_inds"]) == 1
        assert asked["value"] == "What is <roi><refer_box></roi>?"
        assert (tmp_path / "o" / row["file_name"]).is_file()


def test_ferret_on_dialogues_of_scenes(monkeypatch, capsys, tmp_path):
    code, out, err = run(
        monkeypatch, capsys, tmp_path / "o", "--data", "scenes:seed=5,n=6,tasks=presence,size=160",
        "--offline", "--recipe", "ferret", "--max-boxes", 9,
    )  # fmt: skip
    assert code == 0 and "turns with boxes" in out, err
    rows = lines(tmp_path / "o" / "data.jsonl")
    for row in rows:
        assert "<p>" in row["turns"][0]["user"] + row["turns"][0]["assistant"]


@pytest.mark.parametrize(
    "arguments, words",
    [
        ([], "OUT is missing"),
        (["OUT"], "give --pictures DIR or --data SPEC, one of them"),
        (["OUT", "--pictures", "EMPTY", "--offline", "--detector", "D", "--tags", "T"],
         "EMPTY: holds no picture"),
        (["OUT", "--pictures", "NONE", "--offline", "--detector", "D", "--tags", "T"],
         "NONE: no such folder"),
        (["OUT", "--pictures", "EMPTY", "--offline"], "--detector DIR finds them"),
        (["OUT", "--pictures", "EMPTY", "--offline", "--detector", "D"], "--tags FILE"),
        (["OUT", "--pictures", "EMPTY", "--recipe", "ferret"], "needs questions and answers"),
        (["OUT", "--data", "SCENES"], "give --base-url URL of an endpoint, or --offline"),
        (["OUT", "--data", "SCENES", "--offline", "--base-url", "http://x/v1"], "one of them"),
        (["OUT", "--data", "SCENES", "--offline", "--model", "m"], "--offline and --model"),
        (["OUT", "--data", "SCENES", "--offline", "--stream"], "--offline and --stream"),
        (["OUT", "--data", "SCENES", "--offline", "--redo", "--overwrite"], "give one of them"),
        (["OUT", "--data", "SCENES", "--offline", "--kinds", "rec"], "unknown 'rec'"),
        (["OUT", "--data", "SCENES", "--offline", "--kinds", f"{KINDS[0]}+{KINDS[0]}"],
         f"'{KINDS[0]}' is there twice"),
        (["OUT", "--data", "SCENES", "--offline", "--ocr"], "is for --recipe ferret"),
        (["OUT", "--data", "SCENES", "--offline", "--tags", "T"], "what --detector looks for"),
        (["OUT", "--data", "SCENES", "--offline", "--options", "1"], "a choice has 2 to 26"),
        (["OUT", "--data", "SCENES", "--offline", "--options", "27"], "a choice has 2 to 26"),
        (["OUT", "--data", "SCENES", "--offline", "--min-area", "0.9"], "min_area=0.9"),
        (["OUT", "--data", "SCENES", "--base-url", "http://x/v1", "--extra", "[1]"], "--extra"),
        (["OUT", "--data", "SCENES", "--offline", "--prompts", "EMPTY"], "holds none of"),
        (["OUT", "--data", "SCENES", "--offline", "--detector", "EMPTY"], "no config.json"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(monkeypatch, capsys, tmp_path, arguments, words):
    (tmp_path / "EMPTY").mkdir()
    names = {"OUT": tmp_path / "o", "EMPTY": tmp_path / "EMPTY", "NONE": tmp_path / "NONE",
             "SCENES": scenes(2)}  # fmt: skip
    code, _, err = run(monkeypatch, capsys, *(names.get(a, a) for a in arguments))
    assert code == 2 and words in err and err.count("\n") == 1


@pytest.mark.parametrize(
    "flag, value, words",
    [
        ("--timeout", "0", "a number above 0"),
        ("--timeout", "inf", "a finite number of at least 0"),
        ("--temperature", "inf", "a finite number of at least 0"),
        ("--temperature", "nan", "a finite number of at least 0"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(monkeypatch, capsys, tmp_path, flag, value, words):
    code, _, err = run(
        monkeypatch, capsys, tmp_path / "o", "--data", scenes(2), "--offline", flag, value
    )
    assert code == 2 and words in err and flag in err


def test_annotations_without_names_are_one_line(monkeypatch, capsys, tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    row = {"image": "a.png", "objects": [{"box": [1, 1, 30, 30]}]}
    (tmp_path / "d.jsonl").write_text(json.dumps(row) + "\n")
    code, _, err = run(
        monkeypatch, capsys, tmp_path / "o", "--data", f"jsonl:{tmp_path / 'd.jsonl'}", "--offline"
    )
    assert code == 2 and "none of the first 1 annotations names anything" in err
    assert err.count("\n") == 1


def test_data_that_have_changed_are_refused_until_redone(monkeypatch, capsys, tmp_path, photos):
    """Examples are known by their number: else one would be lost and another stand there twice."""
    files = sorted(photos.glob("*.png"))
    rows = [
        json.dumps({"image": str(file), "id": file.stem, "objects": [
            {"box": [10, 20, 50, 70], "label": "dog"}, {"box": [60, 20, 110, 80], "label": "sofa"}
        ]})
        for file in files
    ]  # fmt: skip
    data = tmp_path / "d.jsonl"
    data.write_text("\n".join(rows[:3]) + "\n")
    command = [tmp_path / "o", "--data", f"jsonl:{data}", "--offline"]
    code, _, err = run(monkeypatch, capsys, *command, "--limit", 2)
    assert code == 0, err
    code, _, err = run(monkeypatch, capsys, *command)  # another limit is no other data
    assert code == 0 and "2 of 3 pictures are done already" in err
    data.write_text("\n".join(rows[1:4]) + "\n")
    code, _, err = run(monkeypatch, capsys, *command)
    assert code == 2 and "another state of the data" in err and err.count("\n") == 1
    code, _, err = run(monkeypatch, capsys, *command, "--redo")
    assert code == 0, err
    seen = [row["id"] for row in lines(tmp_path / "o" / "annotations.jsonl")]
    assert seen == [file.stem for file in files[1:4]]


def test_pictures_that_have_changed_are_refused(monkeypatch, capsys, tmp_path, photos, detector):
    (tmp_path / "tags.txt").write_text("dog\nsofa\n")
    command = [tmp_path / "o", "--pictures", photos, "--detector", "D", "--offline",
               "--tags", tmp_path / "tags.txt"]  # fmt: skip
    assert run(monkeypatch, capsys, *command)[0] == 0
    Image.new("RGB", (300, 200), "red").save(photos / "00.png")
    code, _, err = run(monkeypatch, capsys, *command)
    assert code == 2 and "another state of the data" in err
    assert run(monkeypatch, capsys, *command, "--redo")[0] == 0
    assert open_source(f"jsonl:{tmp_path / 'o' / 'annotations.jsonl'}")[0].width == 300


def test_unreadable_pictures_are_listed(monkeypatch, capsys, tmp_path, photos, detector):
    (photos / "zz.jpg").write_bytes(b"no picture")
    (tmp_path / "tags.txt").write_text("dog\nsofa\n")
    code, _, err = run(
        monkeypatch, capsys, tmp_path / "o", "--pictures", photos, "--detector", "D", "--offline",
        "--tags", tmp_path / "tags.txt",
    )  # fmt: skip
    assert code == 2 and "zz.jpg" in err and "(1 of 13 cannot be read)" in err
    assert len(lines(tmp_path / "o" / "annotations.jsonl")) == 12  # what is good is kept


def test_help_explains(monkeypatch, capsys):
    code, out, _ = run(monkeypatch, capsys, "--help")
    assert code == 0
    for word in ("--base-url", "--offline", "--min-confidence", "--redo", "docs/synthesis.md"):
        assert word in out


def test_the_manual_names_everything():
    """Filters, kinds, prompts, placeholders and thresholds."""
    manual = (ROOT / "docs" / "synthesis.md").read_text()
    holes = {f"{{{{{hole}}}}}" for names in PLACEHOLDERS.values() for hole in names}
    options = ("--min-confidence", "--max-boxes", "--min-area", "--max-area", "--option-iou",
               "--region-iou", "--min-regions", "--max-regions")  # fmt: skip
    for word in (*FILTERS, *KINDS, *holes, *options, *(f"{n}.txt" for n in PLACEHOLDERS)):
        assert word in manual, word
