"""docs/colab.ipynb, cell by cell; its training only among the slow tests."""

import json
from pathlib import Path

import pytest

from tests.test_assistant import folder  # noqa: F401

NOTEBOOK = Path(__file__).resolve().parents[1] / "docs" / "colab.ipynb"


def run(where, monkeypatch, without=(), **settings):
    """Execute the cells in the folder `where`, in one namespace, which is returned."""
    monkeypatch.chdir(where)
    monkeypatch.syspath_prepend(str(NOTEBOOK.parents[1]))
    names: dict = {"__name__": "__main__"}
    for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
        tags = cell["metadata"].get("tags", ())
        if cell["cell_type"] != "code" or set(tags) & set(without):
            continue
        exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
        if "settings" in tags:
            assert settings.keys() <= names.keys()
            names.update(settings)
    return names


def test_it_is_a_notebook_without_outputs():
    found = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert (found["nbformat"], found["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in found["cells"]}) == len(found["cells"])
    assert not any(cell.get("outputs") for cell in found["cells"])


@pytest.mark.parametrize("here,wanted", [("", "."), ("libtpu", ".[tpu]"), ("nvidia-smi", ".[gpu]")])
def test_it_installs_what_the_machine_computes_with(monkeypatch, here, wanted):
    asked = []
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == here or None)
    monkeypatch.setattr("shutil.which", lambda name: f"/bin/{name}" if name == here else None)
    monkeypatch.setattr("subprocess.run", lambda command, check: asked.append(command[-1]))
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    (cell,) = [cell for cell in cells if "pip" in "".join(cell["source"])]
    exec("".join(cell["source"]), {})
    assert asked == [wanted]


@pytest.mark.parametrize("quantize", ["none", "int8"])
def test_its_cells_run(folder, tmp_path, monkeypatch, capsys, quantize):  # noqa: F811
    names = run(tmp_path, monkeypatch, ["train"], CHECKPOINT=str(folder), QUANTIZE=quantize)
    assert names["answer"].text == capsys.readouterr().out.splitlines()[0]
    assert (tmp_path / "my_boxes").is_dir()


@pytest.mark.slow
def test_its_training_runs(tmp_path, monkeypatch, folder):  # noqa: F811
    started = {"CHECKPOINT": str(folder), "STEPS": 2}
    source = NOTEBOOK.read_text(encoding="utf-8")
    assert source.count('"--start\\", start') == 1
    monkeypatch.setattr("launch.fit.main", from_nothing(), raising=True)
    names = run(tmp_path, monkeypatch, **started)
    assert len(names["boxes"])


def from_nothing():
    """`launch.fit` that starts from random values, for no trained tiny model is at hand."""
    from launch import fit

    real = fit.main

    def main(argv):
        argv = list(argv)
        argv[argv.index("--start") + 1] = "none"
        return real(argv)

    return main
