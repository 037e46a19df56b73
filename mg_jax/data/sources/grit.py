"""GrIT, the grounded image-text pairs of Kosmos-2 (zzliang/GRIT on the hub).

The hub has lists of addresses and annotations (coyo_0_snappy.parquet, ...). Their column `key` is
of a download of the authors' own and names no picture of anybody else's. So what is read here is
what img2dataset makes of them, with --save_additional_columns '["id","noun_chunks","ref_exps"]',
in the format "files" or "webdataset":

    DIR/00000.parquet            a row a picture: key, status ("success"), caption, noun_chunks,
                                 ref_exps, ...
    DIR/00000/000000012.jpg      and .json with the same as the row      (files)
    DIR/00000.tar                holds 000000012.jpg, ...                (webdataset)

and, for Groma's selection, one list with pictures in such folders:

    grit_filtered_10m.json       [{"filename", "caption", "ref_exps"}, ...]

noun_chunks and ref_exps are [[first character, one after the last, x0, y0, x1, y1, score], ...],
boxes in shares of 1. Ferret's GRIT is another data set, see `ferret`.
"""

import functools
import json
import tarfile
from array import array
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from mg_jax.data.sources.base import MAX_BAD, Folder, Source, existing, fields
from mg_jax.data.sources.free_text import to_markup
from mg_jax.data.sources.grounded import GroundedSource, Places, grounded
from mg_jax.data.sources.json_rows import JsonRows
from mg_jax.data.sources.measures import PICTURE
from mg_jax.errors import BadRecord, UserError
from mg_jax.example import Example, Expression
from mg_jax.vision.preprocess import image_size, load_image

SUFFIXES = (".jpg", ".png", ".webp")  # img2dataset's --encode_format
_TEXTS = ("caption", "noun_chunks", "ref_exps")
_SPANS = ("noun_chunks", "ref_exps")


def grit_texts(row: Any, places: Places) -> dict[str, Any]:
    """`captions` and `expressions` of a record.

    The caption is grounded on noun_chunks, or on ref_exps where there are none of them (of spans
    that overlap the longest); each span of ref_exps is an expression of all its boxes.
    Raises BadRecord for what is not as the module says.
    """
    fields(row, {"caption": str})
    spans: dict[str, dict[tuple[int, int], list[int]]] = {}
    for key in _SPANS:
        found = spans.setdefault(key, {})
        items = row.get(key) or []
        if not isinstance(items, list):
            raise BadRecord(f"{key} is {str(items)[:60]}, expected a list")
        for k, item in enumerate(items):
            try:
                start, end, x0, y0, x1, y1 = map(float, item[:6])
                score = float(item[6]) if len(item) > 6 else None
                if not (start.is_integer() and end.is_integer() and np.isfinite(score or 0)):
                    raise ValueError
            except (KeyError, TypeError, ValueError, OverflowError):
                raise BadRecord(
                    f"{key}[{k}] {str(item)[:60]} is not start, end, x0, y0, x1, y1, score with "
                    "whole numbers for places in the text"
                ) from None
            region = places.add((x0, y0, x1, y1), score=score)
            regions = found.setdefault((int(start), int(end)), [])
            if region is not None and region not in regions:
                regions.append(region)
    marked = spans["noun_chunks"] or spans["ref_exps"]
    caption = grounded(row["caption"], [(a, b, tuple(r)) for (a, b), r in marked.items()])
    expressions = []
    for (start, end), regions in spans["ref_exps"].items():
        if not 0 <= start < end <= len(row["caption"]):
            raise BadRecord(f"ref_exps: characters {start} to {end} are not in the caption")
        text = row["caption"][start:end].strip()
        if regions and text:
            expressions.append(Expression(to_markup(text), tuple(regions)))
    return {"captions": (caption,) if caption else (), "expressions": tuple(expressions)}


class GromaGritSource(GroundedSource):
    """The pairs of grit_filtered_10m.json (see the module), asked for as Groma does: locate the
    expressions. Left out and counted: pictures without file, records without a box. Widths and
    heights are read from the pictures. meta: task "rec".
    Raises UserError for a missing file, one that is no list, too many malformed records, or when
    no picture is in the folder.
    """

    tasks = {"rec": 1.0}

    def __init__(
        self,
        file: str | Path = "",
        images: str | Path = "",
        head: str = "coco",
        name: str = "",
        max_bad: float | str = MAX_BAD,
    ):
        path = existing(file, "Groma's GrIT file")
        super().__init__(name or path.stem, images, path, head, max_bad)
        self.fill(JsonRows(path))

    def read(self, row: Any, counts: Counter[str]) -> Example | None:
        fields(row, {"filename": str, "caption": str, "ref_exps": list})
        places = self.places(1, 1, counts)
        texts = grit_texts(row, places)
        if not texts["expressions"]:
            counts["records without a box"] += 1
            return None
        file = self.find(row["filename"], counts)
        if file is None:
            return None
        number = row["filename"].rpartition(".")[0]
        return self.example(file, (0, 0), places, number, meta={"task": "rec"}, **texts)


class GritSource(Source):
    """The pairs that img2dataset has downloaded into a folder (see the module).

    With parquet files pyarrow is needed (extra `parquet`); without them, or without pyarrow, the
    json files beside the pictures are read ("files" alone). Opening lists what there is; a record
    is checked when it is taken, and a malformed one, or one without any box, is a BadRecord then.
    Records of one parquet file lie together: a shuffled run reads faster from shards of
    `launch.build_data`. Left out and counted: rows that were not downloaded, and pictures without
    file. Widths and heights are read from the pictures. meta: task "grounded_caption", key,
    file_name. Raises UserError for a folder without such files, files without the columns, the
    hub's own lists, or when pyarrow is missing.
    """

    medium = PICTURE

    def __init__(
        self,
        folder: str | Path = "",
        head: str = "coco",
        name: str = "",
        max_bad: float | str = MAX_BAD,
    ):
        self.root = existing(folder, "folder of img2dataset", folder=True)
        super().__init__(name or "grit", head, max_bad)
        self._parts = sorted(self.root.glob("*.parquet"))
        self._part, self._row = array("i"), array("i")
        self._keys: list[str] = []  # paths of json files without their suffix
        if self._parts and _has_pyarrow():
            for k in range(len(self._parts)):
                self._list_part(k)
        else:
            folders = sorted(p for p in self.root.iterdir() if p.is_dir())
            for part in (self.root, *folders):
                self._list_folder(part)
            if self._parts and not self._keys:
                raise UserError(
                    f"{self.root}: reading its parquet files needs pyarrow: install the extra "
                    "`parquet`, as in pip install 'mg_jax[parquet]'"
                )
            self._parts = []
        if not len(self):
            left = ", ".join(f"{n} {reason}" for reason, n in sorted((+self.counts).items()))
            raise UserError(
                f"{self.root}: holds no picture of img2dataset"
                + (f" ({left})" if left else ": expected 00000.parquet, or 00000/000000000.json")
            )
        self.opened(len(self))

    def _list_part(self, k: int) -> None:
        import pyarrow.parquet as pq

        path = self._parts[k]
        try:
            columns = set(pq.read_schema(path).names)
            if "status" not in columns and "url" in columns:
                raise UserError(
                    f"{path}: has no column 'status': this is the list of addresses, give the "
                    "folder that img2dataset has downloaded them to"
                )
            for column in ("key", "status", "caption", "ref_exps"):
                if column not in columns:
                    raise UserError(f"{path}: has no column {column!r}, it has {sorted(columns)}")
            table = pq.read_table(path, columns=["key", "status"])
        except (OSError, ValueError) as e:
            if isinstance(e, UserError):
                raise
            raise UserError(f"{path}: cannot be read as parquet ({e})") from None
        there = np.array(table["status"].to_pylist(), object) == "success"
        self.counts["pictures not downloaded"] += int((~there).sum())
        pictures = Folder(self.root)
        tar = path.with_suffix(".tar").is_file()
        keys = table["key"].to_pylist()
        for row in np.flatnonzero(there).tolist():
            if not tar and _beside(pictures, f"{path.stem}/{keys[row]}") is None:
                self.counts["pictures without a file"] += 1
            else:
                self._part.append(k)
                self._row.append(row)

    def _list_folder(self, folder: Path) -> None:
        files = Folder(folder)
        for path in sorted(folder.glob("*.json")):
            if path.stem.endswith("_stats"):  # img2dataset's account of a shard
                continue
            if _beside(files, path.stem) is None:
                self.counts["pictures without a file"] += 1
            else:
                self._keys.append(str(path.with_suffix("").relative_to(self.root)))

    def __len__(self) -> int:
        return len(self._row) if self._parts else len(self._keys)

    def __getitem__(self, i: int) -> Example:
        if not 0 <= i < len(self):
            raise IndexError(f"{self.name}: index {i} of {len(self)}")
        row, where, image = self._record(i)
        places = Places(1, 1, Counter())
        try:
            texts = grit_texts(row, places)
            if not places.regions:
                raise BadRecord("has no box")
            if isinstance(image, _TarMember):
                width, height = image_size(image.data())
            else:
                width, height = image_size(image)
        except UserError as e:
            raise BadRecord(f"{where}: {e}") from None
        name = image.key if isinstance(image, _TarMember) else Path(image).name
        return Example(
            image=image,
            width=width,
            height=height,
            regions=tuple(places.regions),
            id=f"{self.name}-{row.get('key', i)}",
            source=self.name,
            meta={"task": "grounded_caption", "key": row.get("key"), "file_name": name},
            **texts,
        )

    def _record(self, i: int) -> tuple[Any, str, "str | _TarMember"]:
        """(record, where it stands, its picture)."""
        if not self._parts:
            path = self.root / f"{self._keys[i]}.json"
            try:
                row = json.loads(path.read_bytes())
                fields(row, {})
            except (OSError, ValueError, RecursionError) as e:
                raise BadRecord(f"{path}: {e}") from None
            return row, str(path), self._picture(self._keys[i])
        path, k = self._parts[self._part[i]], self._row[i]
        table = _table(str(path))
        row = {name: table[name][k].as_py() for name in table.column_names}
        tar = path.with_suffix(".tar")
        if tar.is_file():
            return row, f"{path}: row {k}", _TarMember(str(tar), str(row["key"]))
        return row, f"{path}: row {k}", self._picture(f"{path.stem}/{row['key']}")

    def _picture(self, key: str) -> str:
        files = (str(self.root / f"{key}{suffix}") for suffix in SUFFIXES)
        found = next((f for f in files if Path(f).is_file()), None)
        if found is None:
            raise BadRecord(f"{self.root / key}: the picture is no longer there")
        return found


class _TarMember:
    """A picture in a tar file, read when called; a class so that examples can be pickled."""

    def __init__(self, tar: str, key: str):
        self.tar, self.key = tar, key

    def data(self) -> bytes:
        """The bytes of the picture's file. Raises BadRecord when it is not there."""
        members = _members(self.tar)
        for suffix in SUFFIXES:
            if self.key + suffix in members:
                begin, size = members[self.key + suffix]
                with open(self.tar, "rb") as file:
                    file.seek(begin)
                    return file.read(size)
        raise BadRecord(f"{self.tar}: holds no picture {self.key}")

    def __call__(self) -> np.ndarray:
        try:
            return load_image(self.data())
        except UserError as e:
            raise BadRecord(f"{self.tar}: {self.key}: {e}") from None


@functools.lru_cache(maxsize=64)
def _members(tar: str) -> dict[str, tuple[int, int]]:
    """Name -> (first byte, size) of the files of a tar."""
    try:
        with tarfile.open(tar, "r:") as archive:
            return {m.name: (m.offset_data, m.size) for m in archive if m.isfile()}
    except (OSError, tarfile.TarError) as e:
        raise BadRecord(f"{tar}: cannot be read as tar ({e})") from None


@functools.lru_cache(maxsize=8)
def _table(path: str) -> Any:
    """The columns of a parquet file that are needed."""
    import pyarrow.parquet as pq

    names = set(pq.read_schema(path).names)
    return pq.read_table(path, columns=[c for c in ("key", *_TEXTS) if c in names])


def _beside(files: Folder, key: str) -> str | None:
    """The picture of a key in a folder, None when there is none."""
    return next(filter(None, (files.find(key + suffix) for suffix in SUFFIXES)), None)


def _has_pyarrow() -> bool:
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        return False
    return True
