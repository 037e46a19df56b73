"""The files that Groma is trained and evaluated on (FoundationVision/groma_data on the hub).

In COCO's form, every entry of `images` an item of its own, so that one picture stands there once
for each of its expressions; boxes [x, y, width, height] in pixels:

    form=rec      refcoco_train.json, refcoco+_testA.json, refcocog_val.json, ...; also
                  finetune_refcoco_train.json of MDETR
                  {"images": [{"id", "file_name", "width", "height", "caption": the expression}],
                   "annotations": [{"image_id", "bbox"}]}
    form=regions  vg_train_single.json, vg_train_multi.json, vg_test.json, refcocog_cap_val.json
                  {"images": [{"id", "file_name", "width", "height"}],
                   "annotations": [{"image_id", "bbox", "caption": what the box shows}]}
    form=flickr   flickr_entities_train.json; also final_flickr_separateGT_train.json of MDETR
                  {"images": [{"id", "file_name", "width", "height", "caption"}],
                   "annotations": [{"image_id", "bbox",
                                    "tokens_positive": [[first character, one after the last]]}]}

and for LVIS-Ground lvis_test.json, in LVIS's form, each entry of `images` the question for one
category: that of its first annotation.

    {"images": [{"id", "coco_url": "http://images.cocodataset.org/val2017/000000397133.jpg",
                 "width", "height", "not_exhaustive_category_ids"}],
     "annotations": [{"image_id", "bbox", "category_id"}], "categories": [{"id", "name"}]}

Groma Instruct (groma_instruct.json) is in `groma_instruct`, the GrIT subset in `grit`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mg_jax.data.sources.base import MAX_BAD, existing, fields, sides
from mg_jax.data.sources.grounded import Packed, PackedSource, xyxy
from mg_jax.data.sources.json_rows import sections
from mg_jax.errors import BadRecord, UserError

FORMS = {"rec": "rec", "regions": "region_caption", "flickr": "grounded_caption"}


class _Annotation(NamedTuple):
    """What is kept of an annotation, number n of the file; outlines take most of some files."""

    n: int
    box: tuple[float, float, float, float]
    caption: Any
    spans: Any
    category: Any


class _CocoForm(PackedSource):
    """Rows of a file in COCO's form, put together entry by entry of `images`."""

    form = "xywh"

    def _read_file(self) -> None:
        """Pictures by id, annotations by the id of the picture, names of categories by id.

        Malformed annotations, and those of no picture, are noted as problems.
        """
        self._images: dict[Any, tuple[int, Any]] = {}
        self._twice: list[tuple[int, BadRecord]] = []
        self._annotations: dict[Any, list[_Annotation]] = {}
        self._names: dict[Any, str] = {}
        found = set()
        for section, rows in sections(self.path):
            if rows is None:
                continue
            found.add(section)
            for n, row in rows:
                if section == "images":
                    self._image(n, row)
                elif section == "annotations":
                    self._annotation(n, row)
                elif section == "categories":
                    self._category(row)
        for section in ("images", "annotations"):
            if section not in found:
                raise UserError(f"{self.path}: not in COCO's form: it has no list {section!r}")

    def _category(self, row: Any) -> None:
        try:
            fields(row, {"id": (int, str), "name": str})
            self._names[row["id"]] = row["name"]
        except BadRecord as e:
            self.problem(f"{self.path}: categories", str(e))

    def _image(self, n: int, row: Any) -> None:
        try:
            fields(row, {"id": (int, str)})
            if row["id"] in self._images:
                raise BadRecord(f"id {row['id']!r} is there a second time")
            self._images[row["id"]] = n, row
        except BadRecord as e:
            self._twice.append((n, e))

    def _annotation(self, n: int, row: Any) -> None:
        self.records += 1
        try:
            fields(row, {"image_id": (int, str), "bbox": list})
            box = xyxy(row["bbox"], "bbox")
        except BadRecord as e:
            self.problem(f"{self.path}: annotations[{n}]", str(e))
            return
        if not row.get("ignore"):
            rest = (row.get(key) for key in ("caption", "tokens_positive", "category_id"))
            self._annotations.setdefault(row["image_id"], []).append(_Annotation(n, box, *rest))

    def _entries(self) -> Iterator[tuple[str, Any]]:
        """A row, or BadRecord, for each entry of `images`."""
        for n, error in self._twice:
            yield f"{self.path}: images[{n}]", error
        for image_id, (n, image) in self._images.items():
            where = f"{self.path}: images[{n}]"
            try:
                row = self._entry(image, self._annotations.pop(image_id, []))
                yield where, row | {"size": sides(image), "id": image_id}
            except BadRecord as e:
                yield where, e
        for rest in self._annotations.values():
            self.counts["boxes of unlisted pictures"] += len(rest)
        del self._images, self._annotations, self._twice

    def _entry(self, image: dict[str, Any], annotations: list[_Annotation]) -> dict[str, Any]:
        """The row of an entry, without size and id. Raises BadRecord."""
        raise NotImplementedError


class GromaSource(_CocoForm):
    """An Example for each entry of `images` of a file of Groma (see the module).

    form: "rec", the caption of the picture names all its boxes; "regions", each box has its
    caption; "flickr", boxes are of phrases of the caption. Annotations with ignore=1 are left
    out. meta: task ("rec", "region_caption", "grounded_caption"), image_id.
    Raises UserError for a missing or malformed file, one that is of another form, too many
    malformed entries, or when no picture is in the folder.
    """

    def __init__(
        self,
        file: str | Path = "",
        images: str | Path = "",
        form: str = "rec",
        head: str = "coco",
        name: str = "",
        max_bad: float | str = MAX_BAD,
    ):
        path = existing(file, "file of Groma")
        super().__init__(name or path.stem, images, path, head, max_bad)
        if form not in FORMS:
            raise UserError(f"data {self.name}: form={form}: choose from {', '.join(FORMS)}")
        self._form = form
        self.tasks = {FORMS[form]: 1.0}
        self._read_file()
        self.fill(Packed(self._entries()))

    def _entry(self, image: dict[str, Any], annotations: list[_Annotation]) -> dict[str, Any]:
        fields(image, {"file_name": str})
        row: dict[str, Any] = {
            "file": image["file_name"],
            "meta": {"task": FORMS[self._form], "image_id": image["id"]},
        }
        if self._form == "regions":
            row["expressions"] = []
            for a in annotations:
                if not isinstance(a.caption, str):
                    raise BadRecord(f"annotations[{a.n}] lacks 'caption' (form=rec has none)")
                row["expressions"].append([a.caption, [a.box], None])
            return row
        if not isinstance(image.get("caption"), str):
            there = any(isinstance(a.caption, str) for a in annotations)
            other = " (its annotations have one: form=regions?)" if there else ""
            raise BadRecord(f"lacks 'caption'{other}")
        if self._form == "rec":
            row["expressions"] = [[image["caption"], [a.box for a in annotations], None]]
            return row
        spans: dict[tuple[int, int], list[Any]] = {}
        for a in annotations:
            for span in _spans(a):
                spans.setdefault(span, []).append(a.box)
        row["captions"] = [[image["caption"], [[*s, boxes] for s, boxes in spans.items()]]]
        return row


def _spans(annotation: _Annotation) -> list[tuple[int, int]]:
    spans = annotation.spans
    if not isinstance(spans, list) or not all(
        isinstance(s, list) and len(s) == 2 and all(isinstance(v, int) for v in s) for s in spans
    ):
        raise BadRecord(
            f"annotations[{annotation.n}]: tokens_positive is {str(spans)[:60]}, expected "
            "[[first character, one after the last], ...]"
        )
    return [(a, b) for a, b in spans]


class LvisGroundSource(_CocoForm):
    """The questions of LVIS-Ground (see the module): where are all <category>?

    images: the folder that holds val2017. An Example has the boxes of the category as `objects`
    and as the regions of one expression, its name in lower case with spaces for underscores;
    boxes of other categories are left out and counted.
    meta: task "all_instances", image_id, category_id; not_exhaustive where LVIS says that some
    instances are not marked. Raises UserError as `GromaSource`.
    """

    tasks = {"all_instances": 1.0}

    def __init__(
        self,
        file: str | Path = "",
        images: str | Path = "",
        head: str = "coco",
        name: str = "",
        max_bad: float | str = MAX_BAD,
    ):
        path = existing(file, "LVIS-Ground file")
        super().__init__(name or path.stem, images, path, head, max_bad)
        self._read_file()
        if not self._names:
            raise UserError(f"{path}: not in LVIS's form: it has no list 'categories'")
        self.fill(Packed(self._entries()))

    def _entry(self, image: dict[str, Any], annotations: list[_Annotation]) -> dict[str, Any]:
        fields(image, {"coco_url": str})
        if not annotations:
            raise BadRecord("has no annotation, so it asks for nothing")
        category = annotations[0].category
        if not isinstance(category, int) or category not in self._names:
            raise BadRecord(f"annotations[{annotations[0].n}]: no category {category!r}")
        text = self._names[category].replace("_", " ").strip().lower()
        boxes = [a.box for a in annotations if a.category == category]
        self.counts["boxes of other categories"] += len(annotations) - len(boxes)
        loose = image.get("not_exhaustive_category_ids")
        partial = [text] if isinstance(loose, list) and category in loose else []
        return {
            "file": "/".join(image["coco_url"].split("/")[-2:]),
            "expressions": [[text, boxes, text]],
            "objects": True,
            "meta": {
                "task": "all_instances",
                "image_id": image["id"],
                "category_id": category,
                **({"not_exhaustive": partial} if partial else {}),
            },
        }
