"""TensorFlow Datasets: a set built here in ArrayRecord; needs the extra, not TensorFlow."""

import pickle
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from mg_jax.data.sources import open_source, tfds
from mg_jax.data.write import write_tfds
from mg_jax.errors import UserError
from tests.data.sources.boxed_scenes import all_of, assert_boxes, scenes

ROOT = Path(__file__).resolve().parents[3]
needs_tfds = pytest.mark.skipif(
    find_spec("tensorflow_datasets") is None, reason="needs the extra: make test EXTRAS=tfds"
)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    rows = scenes(6)
    parts = {e.id: "train" if n < 4 else "validation" for n, e in enumerate(rows)}
    folder = tmp_path_factory.mktemp("tfds")
    write_tfds(rows, folder, "drawn_cells", lambda e: parts[e.id])
    return rows, folder


@needs_tfds
def test_a_local_set_is_read_back(built):
    rows, folder = built
    by_name = {f"{e.id}.png": e for e in rows}
    for split, names in (
        ("train", [e.id for e in rows[:4]]),
        ("validation", [e.id for e in rows[4:]]),
        ("train+validation", [e.id for e in rows]),
    ):
        source = open_source(f"tfds:drawn_cells,split={split},data_dir={folder}")
        got = all_of(source)
        assert sorted(e.meta["file_name"] for e in got) == sorted(f"{n}.png" for n in names)
        want = [by_name[e.meta["file_name"]] for e in got]
        assert_boxes(got, want)
        for a, b in zip(got, want, strict=True):
            np.testing.assert_array_equal(a.pixels(), b.pixels())
    copy = pickle.loads(pickle.dumps(source))
    assert copy[2].objects == source[2].objects and source[2].id == "drawn_cells-2"
    assert len(open_source(f"tfds:drawn_cells:1.0.0,split=train[:50%],data_dir={folder}")) == 2


@needs_tfds
def test_what_a_set_labelled_throughout_does_not_show_is_absent(built, monkeypatch):
    rows, folder = built
    text = f"tfds:drawn_cells,split=train+validation,data_dir={folder}"
    plain, asked = open_source(text), open_source(f"{text},exhaustive=yes")
    assert not plain.frequency and not any(e.absent for e in all_of(plain))
    monkeypatch.setattr(tfds, "_EXHAUSTIVE", ("drawn_cells",))  # as VOC and COCO
    assert not all_of(open_source(f"{text},exhaustive=no"))[0].absent
    by_name = {f"{e.id}.png": {r.label for r in (*e.objects, *e.crowd)} for e in rows}
    every = set().union(*by_name.values())
    counts = {label: sum(label in there for there in by_name.values()) for label in every}
    for source in (asked, open_source(text)):
        assert source.exhaustive and source.frequency == counts
        for e in all_of(source):
            assert set(e.absent) == every - by_name[e.meta["file_name"]] != set()
    part = open_source(f"{text},exhaustive=yes,part=train")
    assert part.exhaustive and part.frequency == counts


@needs_tfds
def test_tensorflow_is_not_imported(built):
    code = (
        "import sys\nfrom mg_jax.data.sources import open_source\n"
        f"s = open_source('tfds:drawn_cells,data_dir={built[1]}')\n"
        "s[0].pixels()\nprint('tensorflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr


@needs_tfds
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("drawn_cells,split=test", "split=test: Unknown split 'test'.*it has train, validation"),
        ("no_such_set", "Dataset no_such_set not found.*tfds build no_such_set"),
        ("voc/2007", "nothing is prepared at .*tfds build voc/2007 --file_format=array_record"),
        ("", "the name of the data set is not given"),
        ("mnist", r"data mnist: has no pictures with boxes, but \['image', 'label'\]"),
    ],
)
def test_what_cannot_be_read(built, text, message):
    with pytest.raises(UserError, match=message) as caught:
        open_source(f"tfds:{text},data_dir={built[1]}")
    assert "\n" not in str(caught.value)


@needs_tfds
def test_other_file_formats_are_refused(built, tmp_path):
    shutil.copytree(built[1], tmp_path, dirs_exist_ok=True)
    path = tmp_path / "drawn_cells/1.0.0/dataset_info.json"
    path.write_text(path.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(UserError, match="are no ArrayRecord: .*--file_format=array_record"):
        open_source(f"tfds:drawn_cells,data_dir={tmp_path}")


@pytest.mark.skipif(find_spec("tensorflow_datasets") is not None, reason="the extra is there")
def test_without_the_extra(tmp_path):
    with pytest.raises(UserError, match="tfds:voc/2007: needs .* make setup EXTRAS=tfds"):
        open_source("tfds:voc/2007,split=train")
    with pytest.raises(UserError, match="make setup EXTRAS=tfds"):
        write_tfds(scenes(1), tmp_path, "cells")
