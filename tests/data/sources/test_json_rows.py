"""Rows of large JSON files: found in the file, read again one by one."""

import json

import pytest

from mg_jax.data.sources import json_rows
from mg_jax.data.sources.json_rows import JsonRows, rows_of
from mg_jax.errors import BadRecord, UserError

ROWS = [{"a": 'é \\u00e9 \n "quoted" ]}{', "n": k, "b": [k, {"c": None}]} for k in range(40)]


@pytest.fixture(params=[1, 7, 64, 1 << 22], ids=str)
def chunk(request, monkeypatch):
    """However the file is cut into pieces, the same rows come."""
    monkeypatch.setattr(json_rows, "_CHUNK", request.param)


def kept(path, named=False, keep=lambda row: True):
    rows = JsonRows(path, named)
    found = []
    for where, key, row in rows.scan():
        found.append((where, key, row))
        if keep(row):
            rows.keep()
    return rows, found


@pytest.mark.parametrize("ascii", [True, False])
@pytest.mark.parametrize("form", ["list", "indented", "lines", "bom"])
def test_lists_and_lines(form, ascii, chunk, tmp_path):
    path = tmp_path / "rows.json"
    if form == "lines":
        text = "\n".join(json.dumps(r, ensure_ascii=ascii) for r in ROWS) + "\n\n"
    else:
        text = json.dumps(ROWS, ensure_ascii=ascii, indent=2 if form == "indented" else None)
    path.write_bytes((b"\xef\xbb\xbf" if form == "bom" else b"") + text.encode())
    rows, found = kept(path, keep=lambda r: r["n"] % 3 == 0)
    assert [row for _, _, row in found] == ROWS
    first = f"{path}:1" if form == "lines" else f"{path}: [0]"
    assert found[0][0] == first
    assert [rows[i] for i in range(len(rows))] == ROWS[::3]
    with pytest.raises(IndexError):
        rows[len(rows)]


def test_named_rows(chunk, tmp_path):
    path = tmp_path / "named.json"
    path.write_text(json.dumps({f"ü{k}": r for k, r in enumerate(ROWS)}, ensure_ascii=False))
    rows, found = kept(path, named=True)
    assert [row for _, _, row in found] == ROWS and found[3][1].endswith("3")
    assert rows[39] == ROWS[39]


def test_numbers_are_not_cut(chunk, tmp_path):
    path = tmp_path / "n.json"
    path.write_text("[12345678901234567890, 1.5e10 , -3]")
    assert [row for _, _, row in kept(path)[1]] == [12345678901234567890, 1.5e10, -3]


def test_a_list_under_a_key(chunk, tmp_path):
    path = tmp_path / "s.json"
    path.write_text(json.dumps({"info": {"data": [1]}, "data": ROWS, "more": [2]}))
    assert [row for _, row in rows_of(path, "data", "rows")] == ROWS
    with pytest.raises(UserError, match=r"s\.json: not rows: it has no list 'info'"):
        list(rows_of(path, "info", "rows"))


def test_a_text_in_no_encoding_is_one_bad_row(tmp_path):
    path = tmp_path / "bad.json"
    path.write_bytes(b'[{"a": "\xff\xfe"}, {"a": "x"}]')
    first, second = (row for _, _, row in kept(path, keep=lambda r: False)[1])
    assert isinstance(first, BadRecord) and second == {"a": "x"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[{}, {]", "no valid JSON: .* at byte 6"),
        ("[{} {}]", "no valid JSON: expected ',' at byte 4, found '{'"),
        ("[{}, ", "no valid JSON: Expecting value"),
        ("[{}", "no valid JSON: expected ',' at byte 3, the file ends"),
        ("[", "no valid JSON"),
    ],
)
def test_broken_lists(text, message, tmp_path):
    path = tmp_path / "b.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"b\.json: " + message):
        kept(path)


def test_a_list_is_no_object_of_named_rows(tmp_path):
    path = tmp_path / "b.json"
    path.write_text("[]")
    with pytest.raises(UserError, match="expected an object of named rows"):
        kept(path, named=True)
