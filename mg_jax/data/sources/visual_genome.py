"""Visual Genome: region descriptions, objects and relationships of 108,077 pictures.

A folder with the files of versions 1.0 to 1.4, unpacked, each a list with one row a picture:

    image_data.json            [{"image_id", "url", "width", "height"}]
    region_descriptions.json   [{"id", "regions": [{"region_id", "x", "y", "width", "height",
                                                    "phrase"}]}]
    objects.json               [{"image_id", "objects": [{"object_id", "x", "y", "w", "h",
                                                          "names": [...]}]}]
    relationships.json         [{"image_id", "relationships": [{"predicate",
                                    "subject": {"object_id", "x", "y", "w", "h", "names" or "name"},
                                    "object": {...}}]}]

and the pictures in VG_100K/ and VG_100K_2/, or all in one folder. image_data.json is needed, and
one of the others. In some versions image_id is called id, or the reverse.
"""

from array import array
from collections import Counter
from pathlib import Path
from typing import Any

from mg_jax.data.sources.base import MAX_BAD, existing, fields, read_json, sides
from mg_jax.data.sources.free_text import to_markup
from mg_jax.data.sources.grounded import GroundedSource, Places, xyxy
from mg_jax.data.sources.json_rows import JsonRows
from mg_jax.errors import BadRecord, UserError
from mg_jax.example import Example, Expression

# part: its file; its key in a row of the file is its name
PARTS = {
    "regions": "region_descriptions.json",
    "objects": "objects.json",
    "relationships": "relationships.json",
}


class VgSource(GroundedSource):
    """An Example a picture: descriptions as `expressions` of one region each, objects labelled
    with their first name as `objects`, relationships as `relations` with the predicate in lower
    case.

    A description fits its region, but may fit others of the picture too; so unless a mixture says
    otherwise these are asked for as captions of regions, not for locating. Objects are not
    exhaustive: meta["not_exhaustive"] names every label of the picture.
    parts: which files are read, such as "regions+objects"; by default those that are there.
    images: the folder of the pictures or of their two folders, by default the first one.
    Left out and counted: boxes without area, relationships of such, empty descriptions, pictures
    without file, and those of which nothing is left. Of a row that is malformed the picture loses
    that part. meta: task "region_caption", image_id.
    Raises UserError for a missing or malformed file, too many malformed rows, or when no picture
    is there.
    """

    form = "xywh"
    tasks = {"region_caption": 3.0, "relation": 0.5}

    def __init__(
        self,
        folder: str | Path = "",
        images: str | Path = "",
        parts: str = "",
        head: str = "coco",
        name: str = "",
        max_bad: float | str = MAX_BAD,
    ):
        root = existing(folder, "Visual Genome folder", folder=True)
        path = existing(root / "image_data.json", "Visual Genome's pictures")
        super().__init__(name or "visual_genome", images or root, path, head, max_bad)
        # Of each picture what it is, and of each part the number of its row or -1
        self._pictures: list[tuple[Any, str, int, int]] = []
        self._parts: dict[str, tuple[JsonRows, array]] = {}
        numbers = self._read_pictures()
        total, used = len(numbers) + self.bad, set()
        for part in self._chosen(root, parts):
            rows, row_of = JsonRows(root / PARTS[part]), array("q", [-1]) * len(self._pictures)
            self._parts[part] = rows, row_of
            for where, _, row in rows.scan():
                total += 1
                try:
                    picture = numbers.get(_image_id(row, part))
                    if picture is None or row_of[picture] >= 0:
                        self.counts[f"rows of {part} without a picture of theirs"] += 1
                        continue
                    if self._add(part, row, self._empty(picture, self.counts)):
                        used.add(picture)
                except BadRecord as e:
                    self.problem(where, str(e))
                    continue
                row_of[picture] = len(rows)
                rows.keep()
        self.counts["pictures without annotations"] += len(self._pictures) - len(used)
        self.filled(array("q", sorted(used)), total)

    def _chosen(self, root: Path, parts: str) -> list[str]:
        chosen = (
            parts.split("+") if parts else [p for p, f in PARTS.items() if (root / f).is_file()]
        )
        for part in chosen:
            if part not in PARTS:
                raise UserError(f"data {self.name}: parts={parts}: choose from {'+'.join(PARTS)}")
            existing(root / PARTS[part], f"Visual Genome's {part}")
        if not chosen:
            raise UserError(f"{root}: holds none of {', '.join(PARTS.values())}")
        return chosen

    def _read_pictures(self) -> dict[Any, int]:
        """Numbers of the pictures that have a file, by id."""
        rows = read_json(self.path)
        if not isinstance(rows, list):
            raise UserError(f"{self.path}: expected a list of pictures")
        numbers: dict[Any, int] = {}
        for n, row in enumerate(rows):
            try:
                image_id, size = _image_id(row, "url"), sides(row)
                fields(row, {"url": str})
                if image_id in numbers:
                    raise BadRecord(f"image_id {image_id!r} is there a second time")
            except BadRecord as e:
                self.problem(f"{self.path}: [{n}]", str(e))
                continue
            file = self.find("/".join(row["url"].split("/")[-2:]), self.counts)
            if file is not None:
                numbers[image_id] = len(self._pictures)
                self._pictures.append((image_id, file, *size))
        return numbers

    def _empty(self, picture: int, counts: Counter[str]) -> "_Annotations":
        _, _, width, height = self._pictures[picture]
        return _Annotations(self.places(width, height, counts), self.places(width, height, counts))

    def _add(self, part: str, row: Any, to: "_Annotations") -> bool:
        """Add the entries of a part's row; False when there was nothing to add."""
        fields(row, {part: list})
        before = len(to)
        for k, entry in enumerate(row[part]):
            try:
                fields(entry, {})
                getattr(to, f"add_{part}")(entry)
            except BadRecord as e:
                raise BadRecord(f"{part}[{k}]: {e}") from None
        return len(to) > before

    def read(self, row: Any, counts: Counter[str]) -> Example | None:
        """The Example of a picture's number."""
        image_id, file, width, height = self._pictures[row]
        found = self._empty(row, counts)
        for part, (rows, row_of) in self._parts.items():
            if row_of[row] >= 0:
                self._add(part, rows[row_of[row]], found)
        labels = {r.label for r in (*found.things.regions, *found.places.regions) if r.label}
        return self.example(
            file,
            (width, height),
            found.places,
            image_id,
            expressions=tuple(found.expressions),
            objects=tuple(found.things.regions),
            relations=tuple(found.relations),
            meta={
                "task": "region_caption",
                "image_id": image_id,
                "not_exhaustive": sorted(labels),
            },
        )


class _Annotations:
    """What is known of a picture; things: its objects, which texts do not point at."""

    def __init__(self, places: Places, things: Places):
        self.places, self.things = places, things
        self.expressions: list[Expression] = []
        self.relations: list[tuple[int, str, int]] = []

    def __len__(self) -> int:
        return len(self.expressions) + len(self.things.regions) + len(self.relations)

    def add_regions(self, entry: Any) -> None:
        fields(entry, {"phrase": str})
        phrase = entry["phrase"].strip()
        if not phrase:
            self.places.counts["empty descriptions"] += 1
            return
        region = self.places.add(_box(entry))
        if region is not None:
            self.expressions.append(Expression(to_markup(phrase), (region,)))

    def add_objects(self, entry: Any) -> None:
        self.things.add(_box(entry), _label(entry))

    def add_relationships(self, entry: Any) -> None:
        fields(entry, {"predicate": str, "subject": dict, "object": dict})
        subject, other = (
            self.places.add(_box(end), _label(end)) for end in (entry["subject"], entry["object"])
        )
        predicate = " ".join(entry["predicate"].lower().split())
        if subject is None or other is None or not predicate:
            self.places.counts["relationships without both boxes or a predicate"] += 1
        elif (subject, predicate, other) not in self.relations:
            self.relations.append((subject, to_markup(predicate), other))


def _image_id(row: Any, beside: str) -> Any:
    """The number of a row's picture, called image_id or id."""
    fields(row, {})
    image_id = row.get("image_id", row.get("id"))
    if not isinstance(image_id, int | str):
        raise BadRecord(f"image_id (or id) beside {beside!r} is {image_id!r}, expected a number")
    return image_id


def _box(entry: dict[str, Any]) -> tuple[float, float, float, float]:
    """Corners, whether the sides are called w and h or width and height."""
    found = [
        entry.get("x"),
        entry.get("y"),
        entry.get("w", entry.get("width")),
        entry.get("h", entry.get("height")),
    ]
    return xyxy(found, "x, y, width, height")


def _label(entry: dict[str, Any]) -> str | None:
    """The first name of an object."""
    names = entry.get("names", [entry.get("name")])
    if not isinstance(names, list) or not all(isinstance(n, str | None) for n in names):
        raise BadRecord(f"names is {str(names)[:60]}, expected a list of texts")
    return next((n.strip() for n in names if n and n.strip()), None)
