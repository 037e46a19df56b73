"""GQA: questions composed from the scene graphs of pictures.

    train_balanced_questions.json, or the folder train_all_questions/ with several such files:
    {"02930152": {"question": "Is the sky dark?", "imageId": "2354786", "answer": "yes",
                  "fullAnswer": "Yes, the sky is dark.", "isBalanced": true, ...}}

    train_sceneGraphs.json (optional):
    {"2354786": {"width": 500, "height": 333,
                 "objects": {"681267": {"name": "banana", "x": 248, "y": 214, "w": 115, "h": 92,
                                        "attributes": ["small", "yellow"],
                                        "relations": [{"name": "to the left of",
                                                       "object": "681262"}]}}}}

Pictures are IMAGEID.jpg in one folder. Programs, entailments, groups, the words' objects and the
attributes are not kept.
"""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from mg_jax.data.sources.base import MAX_BAD, Folder, existing, fields, real, sides
from mg_jax.data.sources.json_rows import JsonRows
from mg_jax.data.sources.pictured import AskedSource
from mg_jax.errors import BadRecord, UserError
from mg_jax.example import Example, Region

ANSWERS = {"short": "answer", "full": "fullAnswer"}


class GqaSource(AskedSource):
    """The questions of GQA, with their short answers or, answer="full", their sentences.

    graphs: the scene graphs; their objects become `objects`, the same as `regions`, and their
    relations `relations`. Boxes without area are left out and counted, with their relations.
    Raises UserError for a missing or malformed file, or when no picture of it is in the folder.
    """

    def __init__(
        self,
        questions: str | Path = "",
        images: str | Path = "",
        graphs: str | Path = "",
        answer: str = "short",
        per: str = "picture",
        head: str = "coco",
        name: str = "",
        max_bad: float | str = MAX_BAD,
    ):
        path = Path(questions).expanduser()
        if questions and path.is_dir():
            files = sorted(path.glob("*.json"))
            if not files:
                raise UserError(f"{path}: holds no .json file (GQA questions)")
        else:
            files = [existing(questions, "GQA questions")]
        folder = Folder(existing(images, f"pictures of {path.name}", folder=True))
        super().__init__(name or path.stem, path, folder, head, max_bad, per=per)
        if answer not in ANSWERS:
            raise UserError(f"data {self.name}: answer={answer}: choose {' or '.join(ANSWERS)}")
        total = 0
        for part in files:
            for where, number, row in JsonRows(part, named=True).scan():
                total += 1
                try:
                    self._read(number, row, ANSWERS[answer])
                except BadRecord as e:
                    self.problem(where, str(e))
        self._graphs: JsonRows | None = None
        if graphs:
            self._graphs = JsonRows(existing(graphs, "GQA scene graphs"), named=True)
            total += self._index(self._graphs)
        self.finish(total)

    def _read(self, number: str, row: Any, key: str) -> None:
        fields(row, {"question": str, "imageId": str})
        given = row.get(key, "")
        if not isinstance(given, str):
            raise BadRecord(f"{key} is {given!r}, expected a text")
        picture = self.picture(row["imageId"], f"{row['imageId']}.jpg")
        if picture is not None:
            self.ask(picture, number, row["question"], [given])

    def _index(self, graphs: JsonRows) -> int:
        """Note which row has the graph of which picture; returns how many rows there are."""
        self._graph_of: dict[str, int] = {}
        wanted, total = set(self._keys), 0
        for where, key, row in graphs.scan():
            total += 1
            try:
                scene_graph(row, self.counts)
            except BadRecord as e:
                self.problem(where, str(e))
                continue
            if key in wanted:
                self._graph_of[key] = len(graphs)
                graphs.keep()
        if not self._graph_of:
            raise UserError(f"{graphs.path}: has none of the pictures of {self.file}")
        return total

    def __getitem__(self, i: int) -> Example:
        example = super().__getitem__(i)
        row = self._graph_of.get(example.meta["image_id"]) if self._graphs else None
        if self._graphs is None or row is None:
            return example
        regions, relations = scene_graph(self._graphs[row], Counter())
        # a graph marks some things of a kind and leaves others out
        loose = sorted({r.label for r in regions if r.label})
        meta = {**example.meta, "not_exhaustive": loose}
        return replace(example, regions=regions, objects=regions, relations=relations, meta=meta)


def scene_graph(
    row: Any, counts: Counter[str]
) -> tuple[tuple[Region, ...], tuple[tuple[int, str, int], ...]]:
    """Objects and relations of a scene graph; what is left out is added to `counts`.

    Raises BadRecord naming the key at fault.
    """
    fields(row, {"width": int, "height": int, "objects": dict})
    width, height = sides(row)
    regions: list[Region] = []
    places: dict[str, int] = {}
    for key, thing in row["objects"].items():
        fields(thing, {"name": str})
        x, y, w, h = (real(thing.get(side), f"objects[{key!r}]: {side}") for side in "xywh")
        box = (x / width, y / height, (x + w) / width, (y + h) / height)
        try:
            region = Region.from_box(box, label=thing["name"], clip=True)
        except UserError:
            counts["boxes without area"] += 1
            continue
        places[key] = len(regions)
        regions.append(region)
    relations = []
    for key, thing in row["objects"].items():
        links = thing.get("relations") or []
        if not isinstance(links, list):
            raise BadRecord(f"objects[{key!r}]: relations is {str(links)[:60]}, expected a list")
        for n, link in enumerate(links):
            if not isinstance(link, dict) or not isinstance(link.get("name"), str):
                raise BadRecord(f"objects[{key!r}]: relations[{n}] lacks 'name'")
            if key in places and link.get("object") in places:
                relations.append((places[key], link["name"], places[link["object"]]))
    return tuple(regions), tuple(relations)
