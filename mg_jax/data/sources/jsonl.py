"""mg_jax's own format: one JSON object a line, one picture with its regions and conversation.

    {"image": "photos/1.jpg",                      relative to the file's folder, or to images_dir
     "id": "1", "width": 640, "height": 480,       optional; width and height are read if absent
     "regions": [{"box": [x0, y0, x1, y1], "label": "dog", "score": 0.9},
                 {"point": [x, y]},
                 {"polygon": [[x, y], [x, y], ...]},
                 {"mask": {"size": [height, width], "counts": ...}}],
     "turns": [{"user": "Where is <p>the dog</p>?", "assistant": "<r:0>"},
               {"user": "What is <r:1>?", "assistant": "A ball."}],
     "objects": [{"box": [...], "label": "dog"}],   all boxes for detection, optional
     "crowd": [{"box": [...]}],                     boxes to ignore there, optional
     "meta": {...}}                                 handed on, optional

Coordinates are pixels of the picture as it is shown (after EXIF rotation), x right, y down, edges:
the whole picture is [0, 0, width, height]. Turns are neutral markup (`mg_jax.text.markup`), region
numbers count from 0 in `regions`. Empty lines are skipped.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mg_jax.data.sources.base import HEADS, Source, existing
from mg_jax.errors import UserError
from mg_jax.example import Example, Region, Turn
from mg_jax.text import markup

_KEYS = {"image", "id", "width", "height", "regions", "turns", "objects", "crowd", "meta"}
_KINDS = ("box", "point", "polygon", "mask")


class JsonlSource(Source):
    """The lines of a jsonl file (see the module). All lines are parsed and checked on opening,
    pictures are not opened. Raises UserError naming file, line and key at fault."""

    def __init__(
        self, file: str | Path = "", images: str | Path = "", head: str = "coco", name: str = ""
    ):
        self.path = existing(file, "jsonl data")
        super().__init__(name or self.path.stem, head)
        self.root = existing(images, "pictures", True) if images else self.path.parent
        self._rows: list[tuple[int, dict[str, Any]]] = []
        with self.path.open(encoding="utf-8") as lines:
            for n, line in enumerate(lines, 1):
                if line.strip():
                    self._rows.append((n, self._row(n, line)))
        if not self._rows:
            raise UserError(f"{self.path}: holds no line")

    def _row(self, n: int, line: str) -> dict[str, Any]:
        where = f"{self.path}:{n}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as e:
            raise UserError(f"{where}: no valid JSON: {e}") from None
        if not isinstance(row, dict) or not isinstance(row.get("image"), str):
            raise UserError(f'{where}: expected an object with "image": a file name')
        unknown = sorted(set(row) - _KEYS)
        if unknown:
            raise UserError(f"{where}: unknown key {unknown[0]!r}: known are {sorted(_KEYS)}")
        for key in ("regions", "turns", "objects", "crowd"):
            if not isinstance(row.get(key, []), list):
                raise UserError(f"{where}: {key} is no list")
        for k, turn in enumerate(row.get("turns", [])):
            if not isinstance(turn, dict) or not isinstance(turn.get("user"), str):
                raise UserError(f'{where}: turns[{k}] needs "user": text')
            for text in (turn["user"], turn.get("assistant") or ""):
                markup.check(text, len(row.get("regions", [])), f"{where}: turns[{k}]")
        meta = row.get("meta") or {}
        if not isinstance(meta, dict) or meta.get("head", self.head) not in HEADS:
            raise UserError(f'{where}: meta needs to be an object, its "head" {" or ".join(HEADS)}')
        sides = [row.get(key, 1) for key in ("width", "height")]
        if not all(isinstance(side, int) and side > 0 for side in sides):
            raise UserError(f"{where}: width and height must be whole numbers above 0")
        return row

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, i: int) -> Example:
        n, row = self._rows[i]
        where, file = f"{self.path}:{n}", self.root / row["image"]
        width, height = row.get("width"), row.get("height")
        if width is None or height is None:
            from mg_jax.vision.preprocess import image_size

            width, height = image_size(file)

        def regions(key: str) -> tuple[Region, ...]:
            return tuple(
                read_region(r, width, height, f"{where}: {key}[{k}]")
                for k, r in enumerate(row.get(key, []))
            )

        turns = tuple(Turn(t["user"], t.get("assistant")) for t in row.get("turns", []))
        return Example(
            image=str(file),
            width=width,
            height=height,
            regions=regions("regions"),
            turns=turns,
            id=str(row.get("id", f"{self.name}-{n}")),
            source=self.name,
            objects=regions("objects"),
            crowd=regions("crowd"),
            meta=dict(row.get("meta") or {}),
        )


def read_region(row: Any, width: int, height: int, where: str) -> Region:
    """A region of the format above, pixels of a width x height picture, cut at the border.

    Raises UserError naming `where` for anything else.
    """
    kinds = [k for k in _KINDS if isinstance(row, Mapping) and k in row]
    if len(kinds) != 1:
        raise UserError(f"{where}: expected exactly one of {', '.join(_KINDS)}")
    kind, label, value = kinds[0], row.get("label"), row[kinds[0]]
    try:
        if kind == "mask":
            return Region.from_mask(value, label=label, score=row.get("score"))
        if kind == "box":
            scale = (width, height, width, height)
            box = [float(v) / s for v, s in zip(value, scale, strict=True)]
            return Region.from_box(box, label=label, score=row.get("score"), clip=True)
        points = value if kind == "polygon" else [value]
        shares = [(float(x) / width, float(y) / height) for x, y in points]
        if kind == "point":
            return Region.from_point(*shares[0], label=label)
        return Region.from_polygon(shares, label=label, clip=True)
    except UserError as e:
        raise UserError(f"{where}: {e}") from None
    except (TypeError, ValueError):
        raise UserError(f"{where}: {kind} {value!r} is malformed") from None


def write_region(region: Region, width: int, height: int) -> dict[str, Any]:
    """The region as `read_region` reads it."""
    if region.kind == "mask":
        out: dict[str, Any] = {"mask": region.mask}
    elif region.kind == "box":
        x0, y0, x1, y1 = region.box
        out = {"box": [x0 * width, y0 * height, x1 * width, y1 * height]}
    else:
        points = [[x * width, y * height] for x, y in region.points]
        out = {"point": points[0]} if region.kind == "point" else {"polygon": points}
    if region.label is not None:
        out["label"] = region.label
    if region.score is not None:
        out["score"] = region.score
    return out
