"""Referring expressions on COCO pictures: RefCOCO, RefCOCO+, RefCOCOg, and RefCLEF.

As the `refer` interface publishes them, for each data set a folder with

    refs(unc).p       or (google), (umd), (berkeley): who made the split. A pickle of Python 2,
                      [{"ref_id", "ann_id", "image_id", "category_id", "split", "file_name",
                        "sentences": [{"sent", "raw", "tokens", "sent_id"}], "sent_ids"}]
    instances.json    in COCO's form: images, annotations with their "id", categories

and, for Shikra and those after it, as one expression a line of a jsonl file
(REC_ref3_train.jsonl, REC_refcoco_unc_testA.jsonl, GC_genome196_train.jsonl, ...):

    {"img_path": "COCO_train2014_000000549256.jpg", "expression": "guy without cap",
     "bbox": [x0, y0, x1, y1], "width": 375, "height": 500, "dataset_name": "refcoco+"}

The lines may as well say "file_name" and "bbox_xyxy"; null for the box of an expression of what
is not in the picture.

Boxes in pixels. The pickle is not executed (`mg_jax.pickles`). The `file_name` of a ref names no
file (it ends on the number of the annotation) and is not used.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mg_jax import pickles
from mg_jax.data.sources.base import MAX_BAD, existing, fields, sides
from mg_jax.data.sources.grounded import Packed, PackedSource, four, xyxy
from mg_jax.data.sources.json_rows import JsonRows, sections
from mg_jax.errors import BadRecord, UserError

SPLITS = ("train", "val", "test", "testA", "testB", "testC", "all")


class _ExpressionSource(PackedSource):
    """Expressions that are grouped by picture, or not."""

    def __init__(self, name: str, images: str | Path, path: Path, per: str, **common: Any):
        if per not in ("expression", "picture"):
            raise UserError(f"data {name}: per={per}: choose expression or picture")
        super().__init__(name, images, path, **common)
        self._per = per

    def _grouped(self, rows: Iterator[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
        """The rows, or with per="picture" one row for all of a picture, in the order of the first.

        Malformed rows come as BadRecord.
        """
        if self._per == "expression":
            yield from rows
            return
        pictures: dict[str, tuple[str, Any]] = {}
        for where, row in rows:
            if isinstance(row, BadRecord):
                yield where, row
            elif row["file"] in pictures:
                first = pictures[row["file"]][1]
                first["expressions"] += row["expressions"]
                for key, values in row["meta"].items():
                    if isinstance(values, list):
                        first["meta"][key] += values
            else:
                pictures[row["file"]] = where, row | {"id": Path(row["file"]).stem}
        yield from pictures.values()


class RefCocoSource(_ExpressionSource):
    """The expressions of a refs(...).p (see the module), each with the box of its annotation.

    split: train, val, test, testA, testB, testC or all; "test" takes every part of it. Of RefCOCO
    and RefCOCO+ the split "unc" has train, val, testA, testB; "google" train, val, test (RefCOCOg:
    train, val); "umd" (RefCOCOg) train, val, test.
    text: "sent", the cleaned expression, or "raw", as it was typed.
    per: "expression" for one Example each, "picture" for one with all expressions of a picture.
    meta: task "rec", image_id, and of every expression sent_ids and ann_ids. Regions are labelled
    with the category. Expressions on a box without area are left out and counted.
    Raises UserError for a missing, malformed or unsafe file, a split it does not have, too many
    malformed refs, or when no picture is in the folder.
    """

    form = "xywh"

    def __init__(
        self,
        refs: str | Path = "",
        instances: str | Path = "",
        images: str | Path = "",
        split: str = "train",
        text: str = "sent",
        per: str = "expression",
        head: str = "coco",
        name: str = "",
        max_bad: float | str = MAX_BAD,
    ):
        path = existing(refs, "pickle of refs")
        by = re.fullmatch(r"refs\((\w+)\)", path.stem)
        name = name or "_".join([path.resolve().parent.name, *([by[1]] if by else []), split])
        for key, value, known in (("split", split, SPLITS), ("text", text, ("sent", "raw"))):
            if value not in known:
                raise UserError(f"data {name}: {key}={value}: choose from {', '.join(known)}")
        super().__init__(name, images, path, per, head=head, max_bad=max_bad)
        self._instances = existing(instances, f"instances.json of {path.name}")
        self._split, self._text = split, text
        self.fill(Packed(self._grouped(self._rows_of(pickles.load(path)))))

    def _rows_of(self, refs: Any) -> Iterator[tuple[str, Any]]:
        if not isinstance(refs, list) or not all(isinstance(ref, dict) for ref in refs):
            raise UserError(f"{self.path}: not RefCOCO: expected a list of refs")
        chosen = [(n, ref) for n, ref in enumerate(refs) if self._wanted(str(ref.get("split")))]
        if not chosen:
            found = ", ".join(sorted({str(ref.get("split")) for ref in refs}))
            raise UserError(f"{self.path}: has no split {self._split}, it has {found}")
        numbers = {ref.get("ann_id") for _, ref in chosen if isinstance(ref.get("ann_id"), int)}
        tables = self._read_instances(numbers)
        for n, ref in chosen:
            where = f"{self.path}: [{n}]"
            try:
                yield from ((where, row) for row in self._ref(ref, *tables))
            except BadRecord as e:
                yield where, e

    def _read_instances(self, wanted: set[Any]) -> tuple[dict[Any, Any], ...]:
        """Pictures, the wanted annotations and the names of categories by their ids, in one go;
        of rows with one id the first counts."""
        tables: dict[str, dict[Any, Any]] = {}
        for section, rows in sections(self._instances):
            if section in ("images", "annotations", "categories") and rows is not None:
                table = tables.setdefault(section, {})
                for _, row in rows:
                    key = row.get("id") if isinstance(row, dict) else None
                    if not isinstance(key, int | str) or key in table:
                        continue
                    if section == "annotations" and key in wanted:
                        kept = ("bbox", "category_id", "image_id")
                        table[key] = tuple(row.get(k) for k in kept)  # the rest is outlines
                    elif section == "images":
                        table[key] = row
                    elif section == "categories" and isinstance(row.get("name"), str):
                        table[key] = row["name"]
        for section in ("images", "annotations"):
            if section not in tables:
                raise UserError(
                    f"{self._instances}: not COCO annotations: it has no list {section!r}"
                )
        return tables["images"], tables["annotations"], tables.get("categories", {})

    def _wanted(self, split: str) -> bool:
        """RefCLEF has refs in several parts of its test set at once, such as testAB."""
        if self._split == "all":
            return True
        if self._split.startswith("test"):
            return split.startswith("test") and self._split[4:] in split[4:]
        return split == self._split

    def _ref(
        self,
        ref: dict[str, Any],
        pictures: dict[Any, Any],
        annotations: dict[Any, tuple[Any, Any, Any]],
        names: dict[Any, Any],
    ) -> list[dict[str, Any]]:
        """A row for each sentence of a ref."""
        fields(ref, {"ann_id": int, "image_id": (int, str), "sentences": list})
        picture, found = pictures.get(ref["image_id"]), annotations.get(ref["ann_id"])
        if picture is None or found is None:
            key = "image_id" if picture is None else "ann_id"
            raise BadRecord(f"{key} {ref[key]!r} is not in {self._instances}")
        box, category, image_id = found
        if image_id != ref["image_id"]:
            raise BadRecord(f"ann_id {ref['ann_id']} is of picture {image_id!r} in instances.json")
        fields(picture, {"file_name": str})
        corners = xyxy(box, f"bbox of annotation {ref['ann_id']}")
        label = names.get(category) if isinstance(category, int | str) else None
        rows: list[dict[str, Any]] = []
        for sentence in ref["sentences"]:
            fields(sentence, {self._text: str})
            number = sentence.get("sent_id")
            rows.append(
                {
                    "file": picture["file_name"],
                    "size": sides(picture),
                    "id": f"{ref['ann_id']}-{len(rows)}" if number is None else number,
                    "expressions": [[sentence[self._text], [corners], label]],
                    "meta": {
                        "task": "rec",
                        "image_id": ref["image_id"],
                        "sent_ids": [number],
                        "ann_ids": [ref["ann_id"]],
                    },
                }
            )
        return rows


class RecLinesSource(_ExpressionSource):
    """The expressions of a jsonl file (see the module).

    per: as for `RefCocoSource`. meta: task "rec" and dataset_name. `img_path` may begin with a
    folder (train2014/, VG_100K/). Raises UserError as there.
    """

    def __init__(
        self,
        file: str | Path = "",
        images: str | Path = "",
        per: str = "expression",
        head: str = "coco",
        name: str = "",
        max_bad: float | str = MAX_BAD,
    ):
        path = existing(file, "lines of expressions")
        super().__init__(name or path.stem, images, path, per, head=head, max_bad=max_bad)
        self.fill(Packed(self._grouped(self._lines())))

    def _lines(self) -> Iterator[tuple[str, Any]]:
        for where, n, row in JsonRows(self.path).scan():
            try:
                fields(row, {})
                file = "file_name" if "file_name" in row else "img_path"
                box = "bbox_xyxy" if "bbox_xyxy" in row else "bbox"
                fields(row, {file: str, "expression": str, box: (list, type(None))})
                name = row.get("dataset_name")
                if not isinstance(name, str | None):
                    raise BadRecord(f"dataset_name is {str(name)[:60]}, expected a text")
                boxes = None if row[box] is None else [four(row[box], box)]
                yield (
                    where,
                    {
                        "file": row[file],
                        "size": sides(row),
                        "id": n,
                        "expressions": [[row["expression"], boxes, None]],
                        "meta": {"task": "rec", "dataset_name": name},
                    },
                )
            except BadRecord as e:
                yield where, e
