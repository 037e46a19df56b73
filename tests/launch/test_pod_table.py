"""`launch.pod_table`: which rows there are, what is tried for each, the page."""

import json

import pytest

from launch import pod_table
from launch.aot import slices
from mg_jax.errors import UserError

TINY = "configs/groma.py:stage=instruction,size=tiny"


def test_a_row_is_made_of_what_the_compiler_says_alone(tmp_path, monkeypatch):
    said = {}

    def compile_row(flags, topology, seconds):
        return said.get(topology, {"fits": False, "needed": 2.0**35, "available": 2.0**34})

    monkeypatch.setattr(pod_table, "compile_row", compile_row)
    asked = ("row", ["--config", TINY, "--program", "decode"], "v5e", 16, tmp_path, 1.0)
    said |= {"v5e:2x2": {"error": "not compiled within 1 s"}, "v5e:2x4": {"fits": True}}
    pod_table.smallest(*asked)
    assert not list(tmp_path.iterdir())  # 2x2 might fit
    said |= {"v5e:2x2": {"fits": False, "needed": 2.0**35, "available": 2.0**34}}
    pod_table.smallest(*asked)
    row = json.loads((tmp_path / "row-v5e.json").read_text())
    assert row["fits"] and [f["topology"] for f in row["failed"]] == ["v5e:2x2"]
    said["v5e:2x4"] = {"error": "never asked again"}
    pod_table.smallest(*asked)
    assert json.loads((tmp_path / "row-v5e.json").read_text()) == row


def test_of_what_fits_the_most_rows_at_a_time_are_taken(tmp_path, monkeypatch):
    asked = []

    def compile_row(flags, topology, seconds):
        asked.append((topology, flags[-3], flags[-1]))
        accumulate = int(flags[-1].partition("=")[2])
        return {"fits": topology == "v5e:2x4" and accumulate >= 8, "accumulate": accumulate}

    monkeypatch.setattr(pod_table, "compile_row", compile_row)
    pod_table.smallest("row", ["--config", TINY], "v5e", 128, tmp_path, 1.0)
    row = json.loads((tmp_path / "row-v5e.json").read_text())
    assert row["accumulate"] == 8 and [f["topology"] for f in row["failed"]] == ["v5e:2x2"]
    small = [a for a in asked if a[0] == "v5e:2x2"]  # one row at a time alone, once a mesh
    assert [m for _, m, _ in small] == ["--mesh=data=1,fsdp=4,tensor=1",
                                        "--mesh=data=1,fsdp=2,tensor=2"]  # fmt: skip
    assert [a[2][-2:] for a in asked if a[0] == "v5e:2x4"] == ["16", "=8", "=4"]


def test_of_what_fits_the_fastest_is_taken(tmp_path, monkeypatch):
    took = {"8": 3.0, "4": 1.0, "2": 2.0, "1": None}

    def compile_row(flags, topology, seconds):
        accumulate = flags[-1].partition("=")[2]
        time = took[accumulate]
        estimate = time and {"seconds": 0.5, "seconds_by_operation": time}
        return {"fits": True, "accumulate": int(accumulate), "estimate": estimate}

    monkeypatch.setattr(pod_table, "compile_row", compile_row)
    monkeypatch.setitem(slices.SOLD, "v5e", ("2x2",))
    pod_table.smallest("row", ["--config", TINY], "v5e", 32, tmp_path, 1.0)
    assert json.loads((tmp_path / "row-v5e.json").read_text())["accumulate"] == 4
    took["4"] = None
    (tmp_path / "row-v5e.json").unlink()
    pod_table.smallest("row", ["--config", TINY], "v5e", 32, tmp_path, 1.0)
    assert json.loads((tmp_path / "row-v5e.json").read_text())["accumulate"] == 2


def test_settings_that_cannot_win_are_not_compiled(tmp_path, monkeypatch):
    gib, asked = 2**30, []

    def compile_row(flags, topology, seconds):
        asked.append((topology.partition(":")[2], int(flags[-1].partition("=")[2])))
        if topology != "v5e:2x4":
            return {"fits": False, "needed": 32.5 * gib, "available": 16 * gib - 2**28}
        count = asked[-1][1]
        taken = 0.25 + 32 / count  # what grows with the rows at a time
        sizes = {"peak": (2 + taken) * gib, "temporaries": taken * gib}
        return {"fits": taken < 13.7, "bytes": sizes, "hbm": 16 * gib, "accumulate": count}

    monkeypatch.setattr(pod_table, "compile_row", compile_row)
    pod_table.smallest("row", ["--config", TINY], "v5e", 128, tmp_path, 1.0)
    # far more than there is: nothing else is tried on that slice; two rows at a time fit as well
    # where four do
    assert asked == [("1x1", 128), ("2x2", 32), ("2x4", 16), ("2x4", 4), ("2x4", 2)]
    assert json.loads((tmp_path / "row-v5e.json").read_text())["accumulate"] == 4


def test_a_setting_passed_over_is_compiled_where_the_next_fails(tmp_path, monkeypatch):
    gib, asked = 2**30, []

    def compile_row(flags, topology, seconds):
        count = int(flags[-1].partition("=")[2])
        asked.append(count)
        if count == 8:
            return {"error": "not compiled within 1 s"}
        sizes = {"peak": 3 * gib, "temporaries": 2 * gib}
        return {"fits": count >= 16, "bytes": sizes, "hbm": 16 * gib, "accumulate": count}

    monkeypatch.setattr(pod_table, "compile_row", compile_row)
    monkeypatch.setitem(slices.SOLD, "v5e", ("2x2",))
    pod_table.smallest("row", ["--config", TINY], "v5e", 128, tmp_path, 1.0)
    assert asked == [32, 8, 16, 4]
    assert json.loads((tmp_path / "row-v5e.json").read_text())["accumulate"] == 16


def test_bad_rows_are_one_line(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"--rows '\(': is no regular expression"):
        pod_table.main(["--rows", "(", "--folder", str(tmp_path)])
    (tmp_path / "torn.json").write_text('{"name": "gro')
    for read in (pod_table.page, lambda folder: pod_table.check(folder, 1.0)):
        with pytest.raises(UserError, match="torn.json: cannot be read"):
            read(tmp_path)
    # a row that is being written when the process ends leaves none
    monkeypatch.setattr(pod_table, "compile_row", lambda *_: {"fits": True})
    monkeypatch.setattr("mg_jax.disk.sync", lambda part: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        pod_table.smallest(
            "row", ["--config", TINY, "--program", "decode"], "v5e", 1, tmp_path, 1.0
        )  # fmt: skip
    assert not (tmp_path / "row-v5e.json").exists()


def test_one_batch_may_fit_where_two_halves_do_not(tmp_path, monkeypatch):
    said = {"2": {"fits": False}, "1": {"fits": True, "accumulate": 1}}
    asked = []

    def compile_row(flags, topology, seconds):
        asked.append(flags[-1][-1])
        return said[asked[-1]]

    monkeypatch.setattr(pod_table, "compile_row", compile_row)
    row = ("row", ["--config", TINY], "v5e", 8, tmp_path, 1.0)
    monkeypatch.setitem(slices.SOLD, "v5e", ("2x2",))
    pod_table.smallest(*row)
    file = tmp_path / "row-v5e.json"
    assert json.loads(file.read_text())["accumulate"] == 1 and asked == ["2", "1"]
    for first, second in (("2", "1"), ("1", "2")):  # an error is passed over beside what fits
        file.unlink()
        said |= {first: {"error": "x"}, second: {"fits": True, "accumulate": int(second)}}
        pod_table.smallest(*row)
        assert json.loads(file.read_text())["accumulate"] == int(second)


def test_rows_are_of_all_stages_and_of_serving():
    names = [name for name, _ in pod_table.rows()]
    assert len(names) == len(set(names))
    for stage in ("detection", "alignment", "instruction", "prefill1", "decode32"):
        assert f"groma-{stage}-7b-published" in names
    assert "mg_llava-sft-yi34b-video" in names
    assert "groma-answer1-7b-published-int8" in names
    variants = list(pod_table.variants(["--config", TINY], 32, 128))
    assert variants[0][0] == ["--mesh=data=1,fsdp=32,tensor=1", "--config.rules=fsdp",
                              "--config.accumulate=4"]  # fmt: skip
    assert [v[-1][-1] for v in variants] == ["--config.accumulate=1"] * 2
    assert variants[-1][0][0] == "--mesh=data=1,fsdp=16,tensor=2"
    assert list(pod_table.variants(["--program", "decode"], 8, 128)) == [[[]]]


def test_the_page_says_what_fits_and_what_does_not(tmp_path):
    row = {
        "name": "groma-instruction-7b", "chip": "v5e", "topology": "v5e:4x4", "fits": True,
        "mesh": {"data": 1, "fsdp": 16, "tensor": 1}, "rows": 128, "accumulate": 8,
        "bytes": {"peak": 12 * 2**30}, "hbm": 16 * 2**30, "mfu": 0.51, "mfu_by_operation": 0.4,
        "replicated": ["a [86, 1] float32 45,088,768 bytes, whole along fsdp"],
        "date": "2026-11-21",
        "estimate": {"seconds": 1.5, "seconds_by_operation": 2.0},
        "versions": {"jax": "0.10.2", "libtpu": "0.0.42"},
        "failed": [{"topology": "v5e:2x4", "needed": 20.0 * 2**30, "available": 15.75 * 2**30}],
    }  # fmt: skip
    (tmp_path / "a.json").write_text(json.dumps(row))
    versions = {"jax": "0.10.2", "jax-cuda12-plugin": "0.10.1"}
    gpu = row | {"name": "groma-decode1", "topology": "t4:1", "chip": "t4", "versions": versions}
    (tmp_path / "c.json").write_text(json.dumps(gpu))
    none = {"name": "groma-sft", "chip": "v5e", "fits": False, "failed": []}
    (tmp_path / "b.json").write_text(json.dumps(none))
    page = pod_table.page(tmp_path)
    assert "| 12.0 of 16 | 1500 to 2000 | 40 to 51 | 45 | v5e:2x4: 20.0 of 15.8 GiB |" in page
    assert "| groma-sft | none of v5e |" in page and "Assumed:" in page
    assert "jax 0.10.2, libtpu 0.0.42 |" in page
    assert "jax 0.10.2, jax-cuda12-plugin 0.10.1 |" in page
