"""`launch.fit`: what it refuses, what it leaves, what it asks; no training is compiled
but in the slow test."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import mg_jax
from launch import fit, fit_report, fitting
from mg_jax.answer import Answer
from mg_jax.data.write import write_jsonl, write_yolo
from mg_jax.errors import UserError
from mg_jax.evals import tasks
from tests.launch.shapes import scenes, speaking
from tests.train.micro import micro_config, save_tokenizer

STAGES = ("detection", "alignment", "instruction")


class Trainer:
    """Leaves what a finished stage leaves; `codes`: exit code by stage."""

    def __init__(self, **codes):
        self.codes, self.ran = codes, []

    def __call__(self, config, workdir, command):
        from pathlib import Path

        self.ran.append((config, command))
        if code := self.codes.get(config.stage):
            return code
        folder = Path(workdir)
        made = {"command": command, "steps": 2, "seed": 0, "data": config.data,
                "init_from": config.init_from}  # fmt: skip
        (folder / "release").mkdir(parents=True, exist_ok=True)
        about = {"system": "groma", "stage": config.stage, "model": {}, "provenance": made}
        (folder / "release" / "config.json").write_text(json.dumps(about))
        (folder / "release" / "tokenizer").mkdir(exist_ok=True)
        content = {"stage": config.stage, "batch_size": config.batch_size}
        (folder / "config.json").write_text(json.dumps(content))
        meta = folder / "checkpoints" / "2" / "meta"
        meta.mkdir(parents=True, exist_ok=True)
        (meta / "metadata").write_text(json.dumps({"seconds": 36.0}))
        rows = "".join(json.dumps({"step": k, "loss": 3.0 - k}) + "\n" for k in (1, 2))
        (folder / "metrics.jsonl").write_text(rows)
        return 0


class Speaker:
    """Proposes the whole picture, answers that nothing is there."""

    system = SimpleNamespace(name="groma")

    def __init__(self, codec=None):
        self.codec = codec

    def propose(self, pictures):
        return [(np.array([[0.0, 0, p.shape[1], p.shape[0]]]), np.ones(1)) for p in pictures]

    def answer(self, queries, **_):
        return [Answer(text="There is no such thing.", absent=True) for _ in queries]


@pytest.fixture
def loads(monkeypatch):
    """Folders that were loaded; what is loaded is a Speaker."""
    seen = []

    def load(folder):
        seen.append(folder)
        stage = json.loads((folder / "config.json").read_text())["stage"]
        return Speaker(None if stage == "detection" else object())

    monkeypatch.setattr(mg_jax, "load", load, raising=False)
    monkeypatch.setattr(fitting, "need_room", lambda configs, workdir, pictures: None)
    return seen


# -- the whole command -----------------------------------------------------------------------------


def test_boxes_give_a_detector_its_numbers_and_a_page(voc, tmp_path, loads, capsys):
    trainer, out = Trainer(), tmp_path / "out"
    argv = ["--data", voc, "--start", "none", "--workdir", str(out), "--steps", "7", "--yes"]
    assert fit.main(argv, trainer) == 0
    ((config, command),) = trainer.ran
    assert (config.stage, config.data, config.train.steps) == ("detection", f"{voc},part=train", 7)
    assert config.optim.warmup_steps == 1 and command.startswith("python -m launch.fit --data voc:")
    assert config.model.label_words == len(config.label_words) > 3
    page = (out / "results.md").read_text()
    assert "| proposals | ar@100 | 0." in page and "| detection | 2 x 16 |" in page
    assert "# shapes: results" in page and "predictions/proposals.png" in page
    for file in ("sample_sheet.png", "loss.png", "predictions/proposals.png"):
        assert Image.open(out / file).size[0] > 300
    found = json.loads((out / "inspection.json").read_text())
    assert found["examples"] == 20 and found["text_reports"] == {}
    (row,) = json.loads((out / "evaluation.json").read_text())["rows"]
    assert row["n"] == found["parts"]["heldout"] > 0 and row["data"] == f"{voc},part=heldout"
    said = capsys.readouterr().out
    assert "shapes: 20 examples; by hash of file name: train " in said
    assert "launch.evaluate --checkpoint" in said  # a detector cannot chat

    assert fit.main(argv, trainer) == 0  # once more: nothing is measured again
    assert len(loads) == 1 and len(trainer.ran) == 2


def test_labels_and_a_language_model_give_both_stages(voc, tmp_path, loads, monkeypatch, capsys):
    start = speaking(image_size=224, label_words=9, pointing_weight=0.25)
    monkeypatch.setattr(fitting, "open_start", lambda name, workdir, system: start)
    monkeypatch.setattr("mg_jax.data.text_report.text_report", lambda *_: TEXT)
    trainer, out = Trainer(), tmp_path / "out"
    assert fit.main(["--data", voc, "--workdir", str(out), "--yes"], trainer) == 0
    detection, instruction = (config for config, _ in trainer.ran)
    assert (detection.stage, instruction.stage) == ("detection", "instruction")
    assert detection.init_from == "somewhere"
    assert instruction.init_from == f"somewhere,{out / 'detection'}"
    page, said = (out / "results.md").read_text(), capsys.readouterr().out
    for task in ("proposals", "all_instances", "presence", "absent", "naming", "detection"):
        assert f"| {task} | " in page
    assert "launch.chat --checkpoint" in said and "the text report" in said
    assert json.loads((out / "release" / "config.json").read_text())["stage"] == "instruction"
    assert json.loads((out / "inspection.json").read_text())["text_reports"]["instruction"] == {}


TEXT = SimpleNamespace(lines=lambda: ["the text report"], as_dict=dict, refusal=str)


def test_an_interrupted_stage_ends_the_command_with_its_code(voc, tmp_path, loads):
    argv = ["--data", voc, "--start", "none", "--workdir", str(tmp_path / "out"), "--yes"]
    assert fit.main(argv, Trainer(detection=75)) == 75
    assert not (tmp_path / "out" / "results.md").exists() and not loads


def test_inspect_only_trains_nothing(voc, tmp_path, capsys):
    trainer = Trainer()
    argv = ["--data", voc, "--start", "none", "--workdir", str(tmp_path / "o"), "--inspect-only"]
    assert fit.main(argv, trainer) == 0 and not trainer.ran
    assert (tmp_path / "o" / "sample_sheet.png").is_file()
    assert "detection: 4000 updates of 16 pictures at 224 px" in capsys.readouterr().out


def test_text_without_answers_is_refused(tmp_path, voc, capsys):
    folder = next((tmp_path / "shapes" / "JPEGImages").iterdir()).parent
    rows = [
        {"image": f"JPEGImages/{p.name}", "turns": [{"user": "What is it?"}]}
        for p in sorted(folder.iterdir())
    ]
    file = folder.parent / "asked.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    argv = ["--data", f"jsonl:{file}", "--start", "groma-tiny", "--workdir", str(tmp_path / "o")]
    with pytest.raises(UserError, match="stage instruction: none of .* has no answer to train on"):
        fit.main([*argv, "--inspect-only"])


def test_the_end_of_the_input_is_a_no(monkeypatch):
    def ends(prompt):
        raise EOFError

    monkeypatch.setattr(fit, "input", ends, raising=False)
    monkeypatch.setattr(fit.sys, "stdin", SimpleNamespace(isatty=lambda: True))
    assert fit.agreed() is False


def test_spellings_are_a_warning_only(tmp_path, capsys):
    from dataclasses import replace

    examples = []
    for n, e in enumerate(scenes(tasks="none")):
        label = ("red_blood cell", "Red blood cells")[n % 2]
        objects = tuple(replace(r, label=label) for r in e.objects)
        examples.append(replace(e, objects=objects))
    write_yolo(examples, tmp_path / "y")
    argv = ["--data", f"yolo:{tmp_path / 'y'}", "--workdir", str(tmp_path / "o"), "--start",
            "none", "--inspect-only"]  # fmt: skip
    assert fit.main(argv) == 0
    assert "warning: one class spelled in several ways? 'Red blood" in capsys.readouterr().out


# -- bad input: one clear line ---------------------------------------------------------------------


def refused(argv, match):
    with pytest.raises(UserError, match=match) as e:
        fit.main([*argv, "--yes"], Trainer())
    assert "\n" not in str(e.value)


def test_folders_and_formats(voc, tmp_path):
    folder = voc.removeprefix("voc:")
    refused(["--data", folder], f"say of which kind it is, for example --data voc:{folder}")
    refused(["--data", "voc:/nowhere"], "/nowhere: no such folder")
    refused(["--data", "scenes:n=5"], "scenes have no split by file: use launch.train")
    refused(["--data", "features:x"], "features:x: give the data that they were made of")
    refused(["--data", f"{voc},part=train"], "part=train is for launch.train; leave it out")
    refused(["--data", f"{voc}, views=2"], "views=2 is for launch.train; leave it out")
    refused(["--data", f"voc:{tmp_path}"], "Annotations: no such folder")
    (tmp_path / "a.json").write_text("[]")
    refused(
        ["--data", f"coco:{tmp_path / 'a.json'},{tmp_path}"],
        "a.json: expected an object with lists",
    )
    for file in (tmp_path / "shapes" / "JPEGImages").iterdir():
        file.unlink()
    refused(["--data", voc], "holds no example to train on: 20 pictures without a file")


def test_boxes(tmp_path):
    from mg_jax.data.write import write_coco

    write_coco(scenes(tasks="none"), tmp_path / "c")
    file = tmp_path / "c" / "annotations.json"
    spec = f"coco:{file},{tmp_path / 'c' / 'images'}"
    content = json.loads(file.read_text())
    for row in content["annotations"]:
        x, y, w, h = row["bbox"]
        row["bbox"] = [x / 96, y / 64, w / 96, h / 64]
    file.write_text(json.dumps(content))
    refused(["--data", spec], "they look like shares of 1")
    content["annotations"] = []
    file.write_text(json.dumps(content))
    refused(["--data", spec], "holds no example to train on: 20 pictures without boxes")


@pytest.mark.parametrize(
    "more,match",
    [
        (["--stages", "detektion"], "'detektion' is none of auto, detection, alignment"),
        (["--stages", "instruction"], "instruction starts from a detector: pass --start"),
        (["--steps", "many"], "--steps many: write a number of at least 1"),
        (["--steps", "alignment=3"], "the stages are detection"),
        (["--system", "gromma"], "--system gromma: choose one of ferret, groma, "),
        (["--system", "mg_llava"], "--system mg_llava: .* has no detector to train: choose groma"),
        (["--config.optim.lrr=1"], "--config.optim.lrr=1: unknown key"),
        (["--config.batch_size=many"], "--config.batch_size=many: "),
        (["--verbose"], "'--verbose' is no option"),
        (["--size", "9b"], "size is one of tiny, mini, 7b"),
        (["--start", "/nowhere"], "/nowhere: no such folder"),
    ],
)
def test_options(voc, tmp_path, more, match):
    start = [] if "--start" in more else ["--start", "none"]
    refused(["--data", voc, *start, "--workdir", str(tmp_path / "o"), *more], match)


def test_a_full_disk_is_told_before_training(voc, tmp_path, monkeypatch):
    monkeypatch.setattr("mg_jax.disk.free_bytes", lambda folder: 1_000)
    save_tokenizer(tmp_path / "t")
    configs = {"detection": micro_config("detection", tmp_path / "t", data=f"{voc},part=train")}
    with pytest.raises(UserError, match=r"the disk is full \(\d+ MiB are to be written, 0 MiB are"):
        fitting.need_room(configs, tmp_path / "out", 16)
    (tmp_path / "out" / "detection" / "checkpoints").mkdir(parents=True)
    fitting.need_room(configs, tmp_path / "out", 16)  # that stage has its room already


def test_questions_are_those_of_launch_evaluate(tmp_path, voc):
    for name in ("all_instances", "presence", "detection"):
        task = tasks.get(name)
        asked = [item.key for item in fit_report.questions(task, voc)]
        most = 40 if name == "detection" else 300
        assert asked and asked == [item.key for item in tasks.questions(task, voc, most)]
    assert not fit_report.questions(tasks.get("rec"), voc)  # boxes of classes: no expressions
    file = write_jsonl(scenes(8, tasks="rec"), tmp_path / "j")
    said = fit_report.questions(tasks.get("rec"), f"jsonl:{file}")
    assert {item.example.turns[item.turn].user for item in said} <= {
        turn.user for e in scenes(8, tasks="rec") for turn in e.turns
    }
    broken = tmp_path / "shapes" / "JPEGImages"
    for picture in broken.iterdir():
        picture.write_bytes(b"no picture")
    with pytest.raises(UserError, match="20 of 20 examples of shapes cannot be used"):
        fit_report.questions(tasks.get("proposals"), voc)


# -- end to end ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_micro_groma_end_to_end(voc, tmp_path, monkeypatch, capsys):
    from configs import groma

    save_tokenizer(tmp_path / "t")

    def get_config(arg):
        stage = arg.partition(",")[0].removeprefix("stage=")
        return micro_config(stage, tmp_path / "t")

    monkeypatch.setattr(fitting, "_module", lambda name: SimpleNamespace(
        CHOICES=groma.CHOICES, get_config=get_config))  # fmt: skip
    first, second = tmp_path / "one", tmp_path / "two"
    argv = ["--data", voc, "--start", "none", "--stages", ",".join(STAGES), "--yes"]
    assert fit.main([*argv, "--workdir", str(first)]) == 0
    page = (first / "results.md").read_text()
    assert "| proposals | ar@100 | " in page and "| all_instances | as_many_ar | " in page
    assert mg_jax.load(first / "release").codec is not None
    assert "finished at step 4" not in capsys.readouterr().err
    assert fit.main([*argv, "--workdir", str(first)]) == 0  # nothing left to do
    assert "finished at step 4" in capsys.readouterr().err
    # from that release: detection and the last language stage
    argv = ["--data", voc, "--start", str(first / "release"), "--yes"]
    assert fit.main([*argv, "--workdir", str(second)]) == 0
    assert not (second / "alignment").exists() and (second / "instruction").is_dir()
    assert "| presence | accuracy | " in (second / "results.md").read_text()
