"""Examples with a grounded caption as GrIT: what img2dataset makes of it, and Groma's list."""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mg_jax.data.sources.free_text import from_markup
from mg_jax.data.write.base import grounded_spans, save_picture, write_json
from mg_jax.errors import UserError
from mg_jax.example import Example

SHARD = 10_000  # records of a shard, as img2dataset has by default


def write_grit(
    examples: Iterable[Example],
    folder: str | Path,
    output: str = "files",
    parquet: bool = False,
    suffix: str = "jpg",
    shard: int = SHARD,
) -> Path:
    """Write the first caption and the expressions that stand in it word for word, as img2dataset
    writes its output format "files" or "webdataset"; returns the folder.

    parquet: with the parquet file of each shard, which needs pyarrow.
    """
    folder = Path(folder)
    rows: list[dict[str, Any]] = []
    for n, example in enumerate(examples):
        part = folder / f"{n // shard:05d}"
        key = f"{n // shard:05d}{n % shard:04d}"
        name = save_picture(example, part, suffix, name=key)
        size = {"width": example.width, "height": example.height}
        rows.append(
            {
                "id": n,
                **_texts(example),
                "url": f"https://example.org/{key}.{suffix}",
                "key": key,
                "status": "success",
                "error_message": None,
                **size,
                **{f"original_{k}": v for k, v in size.items()},
                "sha256": hashlib.sha256((part / name).read_bytes()).hexdigest(),
            }
        )
        (part / f"{key}.json").write_text(json.dumps(rows[-1], indent=4), encoding="utf-8")
        (part / f"{key}.txt").write_text(rows[-1]["caption"], encoding="utf-8")
    for part in sorted(p for p in folder.iterdir() if p.is_dir()):
        if parquet:
            _write_parquet([r for r in rows if r["key"].startswith(part.name)], part)
        if output == "webdataset":
            _pack(part)
    return folder


def write_grit_groma(
    examples: Iterable[Example], folder: str | Path, suffix: str = "jpg"
) -> tuple[Path, Path]:
    """Write the same as FOLDER/grit_filtered.json and FOLDER/images/.

    Returns the two paths, as `grit_groma:FILE,IMAGES` takes them.
    """
    folder = Path(folder)
    rows = []
    for n, example in enumerate(examples):
        name = save_picture(example, folder / "images/00000", suffix, name=f"{n:09d}")
        texts = _texts(example)
        del texts["noun_chunks"]
        rows.append({"filename": f"00000/{name}", **texts})
    return write_json(folder / "grit_filtered.json", rows), folder / "images"


def _texts(example: Example) -> dict[str, Any]:
    caption, spans = grounded_spans(example.captions[0])

    def rows(start: int, end: int, regions: tuple[int, ...]) -> list[list[float]]:
        boxes = (example.regions[k] for k in regions)
        return [[float(start), float(end), *r.box, r.score or 1.0] for r in boxes]

    expressions = []
    for expression in example.expressions:
        text = from_markup(expression.text)
        start = caption.find(text)
        if start >= 0:
            expressions += rows(start, start + len(text), expression.regions)
    chunks = [row for span in spans for row in rows(*span)]
    return {"caption": caption, "noun_chunks": chunks, "ref_exps": expressions}


def _write_parquet(rows: list[dict[str, Any]], part: Path) -> None:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise UserError(
            "writing parquet needs pyarrow: install the extra `parquet`, as in "
            "pip install 'mg_jax[parquet]'"
        ) from None
    spans = pa.list_(pa.list_(pa.float64()))
    columns = {
        key: pa.array([r[key] for r in rows], spans if key in ("noun_chunks", "ref_exps") else None)
        for key in rows[0]
    }
    pq.write_table(pa.table(columns), part.with_suffix(".parquet"))


def _pack(part: Path) -> None:
    with tarfile.open(part.with_suffix(".tar"), "w") as archive:
        for path in sorted(part.iterdir()):
            data = path.read_bytes()
            info = tarfile.TarInfo(path.name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
            path.unlink()
    part.rmdir()
