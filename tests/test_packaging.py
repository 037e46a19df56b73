"""What is packed, and what may be installed beside it."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_the_source_archive_holds_what_a_checkout_needs():
    sdist = pytest.importorskip("hatchling.builders.sdist")
    packed = {
        file.distribution_path
        for file in sdist.SdistBuilder(str(ROOT)).recurse_included_files()
    }  # fmt: skip
    docs = {str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.*")}
    assert {"docs/data.md", "docs/groma.md"} <= docs
    assert packed >= docs | {"Makefile", "requirements.lock", "CONTRIBUTING.md", ".ci/run"}


def test_make_names_the_extras_that_there_are():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    text = re.sub(r'"\n\t@echo "\s*', " ", (ROOT / "Makefile").read_text())
    named = re.search(r"EXTRAS adds optional packages \((.*?)\)", text)
    assert set(named[1].split(", ")) == set(project["optional-dependencies"]) - {"test", "lint"}
