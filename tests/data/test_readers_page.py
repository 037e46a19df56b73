"""docs/readers.md names every reader, and tests that exist."""

import re
from pathlib import Path

from mg_jax.data.sources import KINDS
from tests.data.sources.test_spoiled import FILES, TEXTS

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_is_complete():
    page = (ROOT / "docs/readers.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines()
            if line.startswith("| `")]  # fmt: skip
    assert sorted(row[0].strip("`") for row in rows) == sorted(KINDS)
    spoiled = {row[0].strip("`") for row in rows if row[4] == "yes"}
    assert spoiled == {kind.strip() for kind in (*FILES, *TEXTS)}
    for row in rows:
        files = re.findall(r"`([\w/.]+\.py)`", row[6])
        assert files and all((ROOT / "tests/data" / file).is_file() for file in files), row[0]
        kind = row[0].strip("`")
        opened = re.compile(rf"""["']{kind}:|spec\("{kind}",""")  # a data text that opens it
        assert any(opened.search((ROOT / "tests/data" / file).read_text("utf-8")) for file in files)
