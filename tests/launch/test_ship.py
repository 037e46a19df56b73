"""What the model card of a shipped release says, and that folders of this machine stay out."""

import json

import pytest

from launch import ship
from mg_jax.errors import UserError


def run(folder, stage, start=""):
    """A finished training run as `launch.train` leaves it, without parameters that matter."""
    (folder / "release").mkdir(parents=True)
    config = {"stage": stage, "batch_size": 16}
    (folder / "config.json").write_text(json.dumps(config))
    command = f"python -m launch.train --config configs/x.py:stage={stage} --workdir {folder}"
    if start:
        command += f" --config.init_from={start}"
    made = {
        "command": command, "steps": 3, "seed": 7, "data": "scenes:seed=1,n=9",
        "init_from": str(start), "versions": {"jax": "0"},
    }  # fmt: skip
    release = {"system": "groma", "model": {"image_size": 224}, "provenance": made}
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
    second = run(tmp_path / "b7", "instruction", first)
    data, out = "scenes:seed=700000,n=4", tmp_path / "shipped" / "toy"
    rows = [
        {"task": task, "blind": blind, "data": data, "n": 4, "majority": 0.25,
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
    made = json.loads((out / "config.json").read_text())["provenance"]
    assert made["init_from"] == "runs/detection"
    assert str(tmp_path) not in card + json.dumps(made)
    assert [p.name for p in out.parent.iterdir()] == ["toy"]
    assert (out / "loss.png").read_bytes()[:4] == b"\x89PNG"
    assert "2.0 MB" in capsys.readouterr().out


def test_unfinished_run_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="no finished training run"):
        ship.main([str(tmp_path), "--out", str(tmp_path / "out")])


def test_the_card_has_every_task_about_scenes():
    from mg_jax.evals.tasks import TASKS

    assert set(ship.SHOWN) == {name for name, task in TASKS.items() if task.scenes is not None}
    assert all(metrics[0] == TASKS[name].headline for name, metrics in ship.SHOWN.items())


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

    monkeypatch.setattr(mg_jax, "load", lambda release: Assistant(), raising=False)
    monkeypatch.setattr(tasks, "evaluate", lambda task, data, *_, blind: (task.name, data, blind))
    monkeypatch.setattr(
        report, "as_dict",
        lambda found, name: dict(zip(("task", "data", "blind"), found, strict=True)),
    )  # fmt: skip
    folder, kept = run(tmp_path / "a", "detection"), tmp_path / "measured.jsonl"
    first = ship.measured(folder / "release", "d", kept)
    assert len(first) == 2 * len(ship.SHOWN) and {row["steps"] for row in first} == {3}
    kept.write_text(kept.read_text() + '{"task": "re')
    assert ship.measured(folder / "release", "d", kept) == first
    config = json.loads((folder / "release" / "config.json").read_text())
    config["provenance"]["steps"] = 9
    (folder / "release" / "config.json").write_text(json.dumps(config))
    assert {row["steps"] for row in ship.measured(folder / "release", "d", kept)} == {9}
