"""docs/colab.ipynb, cell by cell; its training only among the slow tests."""

import importlib.metadata
import importlib.util
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from launch import fit
from mg_jax import checkpoint
from tests.conversion.folders import into_cache, write_folder
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
    monkeypatch.chdir(NOTEBOOK.parents[1])  # where ./mg_jax can be imported, installed or not
    find, version = importlib.util.find_spec, importlib.metadata.version
    gone = {"mg_jax"}

    def installed(name):
        if name in gone:
            raise importlib.metadata.PackageNotFoundError(name)
        return "0" if name == "mg_jax" else version(name)

    monkeypatch.setattr("importlib.metadata.version", installed)
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda n: find(n) if n == "mg_jax" else n == here or None
    )
    monkeypatch.setattr("shutil.which", lambda name: f"/bin/{name}" if name == here else None)
    monkeypatch.setattr("subprocess.run", lambda command, check: asked.append(command[-1]))
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    (cell,) = [cell for cell in cells if "pip" in "".join(cell["source"])]
    exec("".join(cell["source"]), {})
    assert asked == [wanted]
    gone.clear()
    exec("".join(cell["source"]), {})
    assert asked == [wanted]  # not a second time


def test_its_cells_run_as_they_are(tmp_path, monkeypatch, capsys):
    names = run(tmp_path, monkeypatch, ["train"])
    said = capsys.readouterr().out.splitlines()
    assert names["CHECKPOINT"] == "groma-tiny" and names["answer"].phrases
    assert said[0] == names["answer"].text and said[-1] == "groma-tiny is fine-tuned"
    assert (tmp_path / "my_boxes").is_dir()


def test_its_cells_run_with_integers(folder, tmp_path, monkeypatch, capsys):  # noqa: F811
    names = run(tmp_path, monkeypatch, ["train"], CHECKPOINT=str(folder), QUANTIZE="int8")
    kernel = names["assistant"].params["lm"]["blocks"]["attn"]["q"]["kernel"]
    assert kernel.dtype == np.int8
    # the model that was chosen learns, from its weights as they are
    assert names["start"] == str(folder)
    assert capsys.readouterr().out.endswith(f"{folder} is fine-tuned\n")


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A name on the hub, which is answered by a cache alone: a random micro Groma."""
    write_folder(tmp_path / "groma", "groma")
    for file in checkpoint.find("tokenizer-tiny").iterdir():
        shutil.copyfile(file, tmp_path / "groma" / file.name)
    into_cache(tmp_path / "hub", "some-org/groma", tmp_path / "groma", "a" * 40, "main")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return "some-org/groma"


def test_its_cells_load_a_name_on_the_hub(published, tmp_path, monkeypatch, capsys):
    names = run(tmp_path, monkeypatch, ["chat", "train"], CHECKPOINT=published)
    assert names["start"] == published and names["assistant"].codec is not None
    assert capsys.readouterr().out.endswith("some-org/groma is fine-tuned\n")


@pytest.mark.parametrize(
    "system,parameters,room,start,said",
    [
        ("groma", 5e6, 0, "mine", "mine is fine-tuned"),
        ("groma", 7e9, 0, "groma-tiny", "takes 104 GiB, and there are 8: groma-tiny is"),
        ("groma", 7e9, 15 * 2**30, "groma-tiny", "takes 104 GiB, and there are 15: groma-tiny is"),
        ("groma", 7e9, 120 * 2**30, "mine", "mine is fine-tuned"),
        ("ferret", 5e6, 0, "groma-tiny", "mine has no detector to train: groma-tiny is"),
    ],
)
def test_it_says_what_it_trains(monkeypatch, capsys, system, parameters, room, start, said):
    device = SimpleNamespace(memory_stats=lambda: {"bytes_limit": room} if room else None)
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    assistant = SimpleNamespace(
        system=SimpleNamespace(name=system),
        params={"a": jax.ShapeDtypeStruct((int(parameters),), np.int8)},
    )
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    which, train, _ = (c for c in cells if c["metadata"].get("tags") in (["which"], ["train"]))
    names = {"CHECKPOINT": "mine", "assistant": assistant, "DATA": "voc:x", "STEPS": 2}
    exec("".join(which["source"]), names)
    assert names["start"] == start and said in capsys.readouterr().out
    asked = []
    monkeypatch.setattr(fit, "main", lambda argv: asked.append(argv) or 0)
    exec("".join(train["source"]), names)
    args = fit.arguments().parse_args(asked[0])
    assert (args.start, args.data, args.steps, args.yes) == (start, "voc:x", "2", True)


@pytest.mark.slow
def test_its_training_runs_as_it_is(tmp_path, monkeypatch, capsys):
    names = run(tmp_path, monkeypatch, STEPS=2)
    assert len(names["boxes"]) and names["mine"].codec is not None
    assert "from groma-tiny these stages will be trained:" in capsys.readouterr().out
