"""What the model card of a shipped release says, and that folders of this machine stay out."""

import json
from types import SimpleNamespace

import pytest

from launch import ship
from mg_jax.errors import UserError


def run(folder, stage, start="", system="groma", **more):
    """A finished training run as `launch.train` leaves it, without parameters that matter."""
    (folder / "release").mkdir(parents=True)
    config = {"stage": stage, "batch_size": 16, **more}
    (folder / "config.json").write_text(json.dumps(config))
    command = f"python -m launch.train --config configs/x.py:stage={stage} --workdir {folder}"
    if start:
        command += f" --config.init_from={start}"
    made = {
        "command": command, "steps": 3, "seed": 7, "data": "scenes:seed=1,n=9",
        "init_from": str(start), "versions": {"jax": "0"},
    }  # fmt: skip
    model = {"image_size": 224} if system == "groma" else {"high": {"image_size": 256}}
    release = {"system": system, "model": model, "provenance": made}
    (folder / "release" / "config.json").write_text(json.dumps(release))
    (folder / "release" / "params.safetensors").write_bytes(b"0" * 2_000_000)
    meta = folder / "checkpoints" / "3" / "meta"
    meta.mkdir(parents=True)
    (meta / "metadata").write_text(json.dumps({"step": 3, "seconds": 5400.0}))
    rows = [{"step": k, "loss": 3.0 - k} for k in (1, 2)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder


def test_card_names_commands_numbers_and_no_folder_of_this_machine(tmp_path, monkeypatch, capsys):
    first = run(tmp_path / "a1", "detection")
    second = run(tmp_path / "b7", "instruction", first, trunk="of/a/release")
    data, out = "scenes:seed=700000,n=4", tmp_path / "shipped" / "toy"
    made = ship.training(second / "release")
    rows = [
        {"task": task, "blind": blind, "data": data, "n": 4, "majority": 0.25, "made": made,
         **{metric: 0.125 if blind else 0.875 for metric in metrics}}
        for task, metrics in ship.SHOWN.items() for blind in (False, True)
    ]  # fmt: skip
    rows.append({**rows[0], "data": "another", "acc@0.5": 0.5})
    kept = second / "measured.jsonl"
    kept.write_text("".join(json.dumps(r) + "\n" for r in rows))

    ship.main([str(first), str(second), "--out", str(out), "--data", data])

    card = (out / "README.md").read_text()
    assert "| rec | acc@0.5 | 0.875 | 0.125 | 0.250 | 4 |" in card
    assert "--workdir runs/instruction --config.init_from=runs/detection" in card
    assert "| detection | 3 x 16 | 7 | `scenes:seed=1,n=9` | 1.50 |" in card
    assert "1.0 million" in card and data in card
    shipped = json.loads((out / "config.json").read_text())
    made = shipped["provenance"]
    assert "none of these pictures is trained on" in card
    assert "trunk" not in shipped  # no package has it
    assert made["init_from"] == "runs/detection"
    assert str(tmp_path) not in card + json.dumps(made)
    assert [p.name for p in out.parent.iterdir()] == ["toy"]
    assert (out / "loss.png").read_bytes()[:4] == b"\x89PNG"
    assert "2.0 MB" in capsys.readouterr().out


def test_card_of_mg_llava(tmp_path, monkeypatch):
    """Its size is that of the high-resolution picture, two runs of one stage are told apart, and
    the language model that the first began with is named."""
    part = {"architecture": "language", "provenance": {"release": "toy-tiny"}}
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "config.json").write_text(json.dumps(part))
    start = f"{tmp_path / 'towers'},{tmp_path / 'words'}"
    first = run(tmp_path / "x1", "sft", start, system="mg_llava", media="image")
    second = run(tmp_path / "x2", "sft", first, system="mg_llava", media="video")
    monkeypatch.setattr(
        ship, "measured",
        lambda release, tasks_on, kept: [
            {"task": task, "blind": blind, "data": data, "n": 4, "accuracy": 0.5}
            for task, data in tasks_on for blind in (False, True)
        ],
    )  # fmt: skip
    ship.main([str(first), str(second), "--out", str(tmp_path / "out")])
    card = (tmp_path / "out" / "README.md").read_text()
    assert "mg_llava at 256 px, 1.0 million" in card and "| vqa | accuracy | 0.500" in card
    assert "    python -m launch.language toy-tiny --out runs/language\n" in card
    assert "towers,runs/language" in card and "the language model of toy-tiny on" in card
    assert "--workdir runs/sft-video --config.init_from=runs/sft" in card
    assert "| moved |" in card and "| rec |" not in card


def test_unfinished_run_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="no finished training run"):
        ship.main([str(tmp_path), "--out", str(tmp_path / "out")])


def test_the_card_has_every_task_about_scenes():
    from mg_jax.evals.tasks import TASKS

    assert set(ship.SHOWN) == {name for name, task in TASKS.items() if task.scenes is not None}
    assert set(ship.PHOTOS) == TASKS.keys() - ship.SHOWN.keys()
    every = ship.SHOWN | ship.PHOTOS
    assert all(metrics[0] == TASKS[name].headline for name, metrics in every.items())


def test_numbers_on_photos_have_a_table_for_each_data_set():
    asked = ship.wanted(["naming=coco:a.json,b,part=heldout", "detection=voc:c"], "unused", "groma")
    rows = [
        {"task": task, "data": data, "blind": blind, "n": 5, "accuracy": 0.5, "map50": 0.75,
         "ap50/cat": 0.25, "class_accuracy": 0.1}
        for task, data in asked for blind in (False, True)
    ]  # fmt: skip
    for row in rows[:2]:
        del row["ap50/cat"]
    lines = ship.results_table(rows, asked)
    assert [line for line in lines if line.endswith(":")] == [
        "`coco:a.json,b,part=heldout`:", "`voc:c`:",
    ]  # fmt: skip
    assert "| detection | ap50/cat | 0.250 | 0.250 |  | 5 |" in lines
    assert "| naming | accuracy | 0.500 | 0.500 |  | 5 |" in lines
    assert ship.of_classes({f"ap50/{n}": 0.5 for n in range(11)}) == []
    with pytest.raises(UserError, match="--measure nmaing=voc:c: write TASK=DATA, TASK one of rec"):
        ship.wanted(["nmaing=voc:c"], "", "groma")
    with pytest.raises(UserError, match="--measure naming: write TASK=DATA"):
        ship.wanted(["naming"], "", "groma")
    assert {task for told in ship.TOLD.values() for task in told} == set(ship.SHOWN)


@pytest.mark.parametrize("out", ["kept", "file", "runs", "runs/a", "runs/a/release"])
def test_nothing_but_a_release_is_replaced(tmp_path, out):
    """`shutil.rmtree` of a wrong --out would take the runs with it."""
    run(tmp_path / "runs" / "a", "detection")
    (tmp_path / "kept").mkdir()
    for file in ("kept/notes.txt", "file"):
        (tmp_path / file).write_text("x")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=f"--out {tmp_path / out}: .*; name another folder"):
        ship.main([str(tmp_path / "runs" / "a"), "--out", str(tmp_path / out)])
    assert sorted(tmp_path.rglob("*")) == before


def test_measurements_of_a_run_before_it_was_trained_further_do_not_count(tmp_path, monkeypatch):
    import mg_jax
    from mg_jax.evals import report, tasks

    class Assistant:
        propose = answer = None
        system = SimpleNamespace(name="groma")

    monkeypatch.setattr(mg_jax, "load", lambda release: Assistant(), raising=False)
    monkeypatch.setattr(
        tasks, "evaluate", lambda task, data, *_, blind, **more: (task.name, data, blind)
    )
    monkeypatch.setattr(
        report, "as_dict",
        lambda found, name: dict(zip(("task", "data", "blind"), found, strict=True)),
    )  # fmt: skip
    folder, kept = run(tmp_path / "a", "detection"), tmp_path / "measured.jsonl"
    asked = ship.wanted([], "d", "groma")
    first = ship.measured(folder / "release", asked, kept)
    assert len(first) == 2 * len(ship.TOLD["groma"])
    kept.write_text(kept.read_text() + '{"task": "re')
    assert ship.measured(folder / "release", asked, kept) == first
    more = ship.wanted(["rec=e", "rec=d", "naming=e"], "d", "groma")
    assert [row["data"] for row in ship.measured(folder / "release", more, kept)] == [
        "d", "d", "e", "e", "e", "e",
    ]  # fmt: skip
    with monkeypatch.context() as patch:  # nothing is lost behind the torn line
        patch.setattr(tasks, "evaluate", None)
        assert len(ship.measured(folder / "release", more, kept)) == 6
    config = json.loads((folder / "release" / "config.json").read_text())
    config["provenance"]["seed"] = 9  # as many steps, but another training
    (folder / "release" / "config.json").write_text(json.dumps(config))
    again = ship.measured(folder / "release", asked, kept)
    assert {row["made"] for row in again} == {ship.training(folder / "release")}
    assert not {row["made"] for row in again} & {row["made"] for row in first}


def test_a_stage_that_was_run_twice_has_two_names(tmp_path):
    runs = [run(tmp_path / name, stage) for name, stage in
            (("a", "alignment"), ("b", "instruction"), ("c", "instruction"))]  # fmt: skip
    assert ship.stage_names(runs) == ["alignment", "instruction", "instruction-2"]
    lines, commands, _ = ship.stage_rows(runs)
    assert [line.split(" | ")[0] for line in lines[2:]] == [
        "| alignment", "| instruction", "| instruction-2",
    ]  # fmt: skip
    assert "--workdir runs/instruction-2" in commands[-1]
