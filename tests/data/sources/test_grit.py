"""GrIT as img2dataset leaves it, and Groma's list of it."""

import json
import pickle
import sys
from collections import Counter

import numpy as np
import pytest

from mg_jax.data.sources import open_source
from mg_jax.data.sources.grit import grit_texts
from mg_jax.data.sources.grounded import Places
from mg_jax.data.write import write_grit, write_grit_groma
from mg_jax.errors import BadRecord, UserError
from mg_jax.text import markup
from tests.data.sources.grounded_scenes import all_of, picture, places, scenes, texts


def check(got, rows):
    """Captions, the expressions that stand in the first one, and pictures are as written."""
    assert len(got) == len(rows)
    for e, row in zip(got, rows, strict=True):
        (caption,) = e.captions
        for s, t in zip(markup.parse(caption), markup.parse(row.captions[0]), strict=True):
            assert (s.kind, s.text) == (t.kind, t.text)
            assert places(e, s.regions) == places(row, t.regions)
        assert texts(e) == texts(row)[:2]
        np.testing.assert_array_equal(e.pixels(), row.pixels())
        assert pickle.loads(pickle.dumps(e)).pixels().shape == (64, 96, 3)


def test_written_files_are_read_back(tmp_path):
    rows = scenes(5)
    source = open_source(f"grit:{write_grit(rows, tmp_path, suffix='png', shard=2)}")
    assert (tmp_path / "00002/000020000.json").is_file() and not source.counts
    check(all_of(source), rows)
    assert source[4].meta["key"] == "000020000"


@pytest.mark.parametrize("output", ["files", "webdataset"])
def test_parquet(output, tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    rows = scenes(5)
    write_grit(rows, tmp_path, output=output, parquet=True, suffix="png", shard=2)
    if output == "files":  # nothing but the parquet files is left to read the texts from
        for path in tmp_path.glob("*/*.json"):
            path.unlink()
    source = open_source(f"grit:{tmp_path}")
    check(all_of(source), rows)
    assert len(pickle.loads(pickle.dumps(source))) == 5
    table = pq.read_table(tmp_path / "00001.parquet")
    status = ["failed_to_download", "success"]
    failed = table.set_column(table.column_names.index("status"), "status", [status])
    pq.write_table(failed, tmp_path / "00001.parquet")
    if output == "files":
        (tmp_path / "00002/000020000.png").unlink()
    source = open_source(f"grit:{tmp_path}")
    left = {"pictures not downloaded": 1} | (
        {"pictures without a file": 1} if output == "files" else {}
    )
    assert source.counts == left and len(source) == 5 - len(left)
    pq.write_table(table.drop_columns(["status"]), tmp_path / "00001.parquet")
    with pytest.raises(UserError, match="has no column 'status': this is the list of addresses"):
        open_source(f"grit:{tmp_path}")
    pq.write_table(table.drop_columns(["ref_exps"]), tmp_path / "00001.parquet")
    with pytest.raises(UserError, match="00001.parquet: has no column 'ref_exps'"):
        open_source(f"grit:{tmp_path}")
    (tmp_path / "00001.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match="00001.parquet: cannot be read as parquet"):
        open_source(f"grit:{tmp_path}")


def test_without_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    rows = scenes(2)
    write_grit(rows, tmp_path / "a", suffix="png")
    (tmp_path / "a/00000.parquet").write_bytes(b"PAR1")
    check(all_of(open_source(f"grit:{tmp_path / 'a'}")), rows)  # the json files say the same
    (tmp_path / "b").mkdir()
    (tmp_path / "b/00000.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"needs pyarrow.*extra `parquet`.*mg_jax\[parquet\]"):
        open_source(f"grit:{tmp_path / 'b'}")
    with pytest.raises(UserError, match=r"needs pyarrow.*extra `parquet`"):
        write_grit(rows, tmp_path / "c", parquet=True)


def test_odd_files(tmp_path):
    folder = write_grit(scenes(3), tmp_path, suffix="png") / "00000"
    (tmp_path / "00000_stats.json").write_text("{}")
    (folder / "000000009.json").write_text("{}")
    (folder / "000000001.json").write_text('{"caption": 3}')
    (folder / "000000002.png").write_bytes(b"no picture")
    source = open_source(f"grit:{tmp_path}")
    assert len(source) == 3 and source.counts == {"pictures without a file": 1}
    with pytest.raises(BadRecord, match=r"000000001\.json: caption is 3"):
        source[1]
    with pytest.raises(BadRecord, match="is not a picture that can be read"):
        source[2]
    (folder / "000000000.json").write_text("{")
    with pytest.raises(BadRecord, match=r"000000000\.json: "):
        source[0]
    (folder / "000000000.json").write_text('{"caption": "a dog", "ref_exps": [[0, 5, 0, 0, 0, 1]]}')
    with pytest.raises(BadRecord, match="has no box"):
        source[0]
    with pytest.raises(IndexError):
        source[3]
    with pytest.raises(UserError, match="expected 00000.parquet, or 00000/000000000.json"):
        open_source(f"grit:{picture(tmp_path / 'empty/a.png').parent}")


def read(**row):
    spot = Places(1, 1, Counter())
    found = grit_texts(row, spot)
    return found["captions"], [(e.text, e.regions) for e in found["expressions"]], spot


def test_spans():
    caption = "a wire hanger with a paper cover"
    box, other, flat = [0.1, 0.2, 0.5, 1.0], [0.3, 0.2, 0.9, 0.75], [0.5, 0.5, 0.5, 0.9]
    captions, expressions, spot = read(
        caption=caption,
        noun_chunks=[[19.0, 32.0, *other, 0.79], [0.0, 13.0, *box, 0.66], [14, 18, *flat, 0.7]],
        ref_exps=[[19, 32, *other, 0.79], [0, 32, *box, 0.66], [0, 32, *other, 0.7],
                  [0, 32, *box, 0.9], [14, 18, *flat, 0.7]],
    )  # fmt: skip
    assert captions == ("<p>a wire hanger</p><r:1> with <p>a paper cover</p><r:0>",)
    assert expressions == [("a paper cover", (0,)), (caption, (1, 0))]
    assert [r.score for r in spot.regions] == [0.79, 0.66]
    assert spot.counts == {"boxes without area": 2}
    # without noun chunks the longest expressions ground the caption
    captions, _, _ = read(
        caption=caption, ref_exps=[[19, 32, *box], [0, 13, *box], [0, 32, *other]]
    )
    assert captions == (f"<p>{caption}</p><r:1>",)
    assert read(caption="", ref_exps=None)[0] == ()


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ([0, 5, 0, 0, 1], r"ref_exps\[0\] .* is not start, end"),
        ([0, 5, 0, 0, 1, "one"], "is not start, end"),
        ([0, 5, 0, 0, 1, 1, None], "is not start, end"),
        ([0.5, 5, 0, 0, 1, 1], "whole numbers for places in the text"),
        ([float("nan"), 5, 0, 0, 1, 1], "is not start, end"),
        ([0, 6, 0, 0, 1, 1], "characters 0 to 6"),
        ([4, 4, 0, 0, 1, 1], "characters 4 to 4"),
        ("no list", "is not start, end"),
        (3, "is not start, end"),
    ],
)
def test_malformed_spans(item, message):
    with pytest.raises(BadRecord, match=message):
        read(caption="a dog", ref_exps=[item])
    with pytest.raises(BadRecord, match=message.replace("ref_exps", "noun_chunks")):
        read(caption="a dog", noun_chunks=[item])


def test_groma_list(tmp_path):
    rows = scenes()
    source = open_source("grit_groma:{},{}".format(*write_grit_groma(rows, tmp_path, suffix="png")))
    check(all_of(source), rows)
    assert source.tasks == {"rec": 1.0} and not source.counts


def test_odd_groma_list(tmp_path):
    picture(tmp_path / "images/00012/a.jpg")
    box = [0.1, 0.2, 0.5, 1.0]
    good = {"filename": "00012/a.jpg", "caption": "собака", "ref_exps": [[0, 6, *box, 0.9]]}
    rows = [good, good | {"filename": "00012/b.jpg"}, good | {"ref_exps": []},
            good | {"caption": None}, good | {"ref_exps": [[0, 9, *box]]}, [],
            good | {"ref_exps": [[0, 6, 0, 0, 0, 1]]}]  # fmt: skip
    path = tmp_path / "grit.json"
    path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    source = open_source(f"grit_groma:{path},{tmp_path / 'images'},max_bad=0.5")
    assert source.bad == 3 and f"{path}: [3]: caption is None" in source.problems[0]
    assert source.counts == {
        "boxes without area": 1, "pictures without a file": 1, "records without a box": 2
    }  # fmt: skip
    (e,) = all_of(source)
    assert (e.width, e.height) == (40, 20) and texts(e) == [("собака", [tuple(box)])]
    assert e.captions == ("<p>собака</p><r:0>",) and e.id == "grit-00012/a"
    path.write_text(json.dumps([good | {"ref_exps": [[0, 6, 10, 20, 300, 190]]}] * 20))
    with pytest.raises(UserError, match="expected x0, y0, x1, y1 in shares of 1, they look like"):
        open_source(f"grit_groma:{path},{tmp_path / 'images'}")
    path.write_text('{"a": 1}')
    with pytest.raises(UserError):
        open_source(f"grit_groma:{path},{tmp_path / 'images'}")
