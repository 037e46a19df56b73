"""LVIS v1 and v0.5: a json in COCO's form, with what is known to be absent, on COCO's pictures.

    {"images": [{"id", "width", "height", "neg_category_ids": [...],
                 "not_exhaustive_category_ids": [...],
                 "coco_url": "http://images.cocodataset.org/val2017/000000266409.jpg",
                 "file_name": "COCO_val2014_000000266409.jpg"}],       v0.5 alone
     "annotations": [{"image_id", "bbox": [x, y, width, height], "category_id",
                      "segmentation": polygons}],
     "categories": [{"id", "name": "alarm_clock", "synonyms": ["alarm_clock"], ...}]}

The pictures are those of COCO 2017: train2017/000000266409.jpg, val2017/... (the val set of v1
has pictures of both folders); for v0.5 the files of 2014 do as well.

Only some categories were looked for in a picture. Of those that have boxes in it, all instances
are marked unless the category is in `not_exhaustive_category_ids`; those in `neg_category_ids`
are not there; nothing is known of the others.
"""

from typing import Any

from mg_jax.data.sources.base import fields
from mg_jax.data.sources.coco import CocoSource
from mg_jax.errors import BadRecord
from mg_jax.example import Example


class LvisSource(CocoSource):
    """Pictures with the boxes of LVIS, with masks="keep" their masks, read as `CocoSource` does.

    images: the folder that holds train2017 and val2017, or the one of them that is needed.
    Labels have spaces instead of underscores. `Example.absent` holds the negative categories;
    meta["not_exhaustive"] the labels of which some instances are not marked, and
    meta["synonyms"] for each label of the picture its other names.
    """

    kind = "LVIS"
    exhaustive = False

    def __init__(self, *args: Any, **kwargs: Any):
        self._loose: dict[int, list[Any]] = {}  # categories not marked exhaustively, by picture
        self._by_id: dict[Any, str] = {}
        self.synonyms: dict[str, tuple[str, ...]] = {}  # other names of a label
        super().__init__(*args, **kwargs)

    def places(self, row: dict[str, Any]) -> tuple[str, ...]:
        """As coco_url says, with and without the folder; then as file_name says, if there."""
        url, name = row.get("coco_url"), row.get("file_name")
        found = []
        if isinstance(url, str):
            parts = url.split("/")
            found += ["/".join(parts[-2:]), parts[-1]]
        if isinstance(name, str):
            found += super().places(row)
        if not found:
            raise BadRecord("lacks 'coco_url' and 'file_name'")
        return tuple(found)

    def _add_image(self, row: Any) -> int:
        fields(row, {})
        absent, loose = (
            row.get(k, []) for k in ("neg_category_ids", "not_exhaustive_category_ids")
        )
        for ids in (absent, loose):
            if not isinstance(ids, list) or not all(isinstance(k, int) for k in ids):
                raise BadRecord(f"category ids {ids!r} are no list of numbers")
        picture = super()._add_image(row)
        if picture >= 0:
            self.add_absent(picture, absent)
            if loose:
                self._loose[picture] = loose
        return picture

    def _category(self, row: dict[str, Any]) -> str:
        label = _words(row["name"])
        names = row.get("synonyms", [])
        if isinstance(names, list):
            others = dict.fromkeys(_words(n) for n in names if isinstance(n, str))
            self.synonyms[label] = tuple(n for n in others if n != label)
        self._by_id[row["id"]] = label
        return label

    def __getitem__(self, i: int) -> Example:
        example = super().__getitem__(i)
        present = dict.fromkeys(r.label for r in (*example.objects, *example.crowd) if r.label)
        loose = self._loose.get(int(self.pictures[i]), [])
        example.meta["not_exhaustive"] = [self._by_id[k] for k in loose if k in self._by_id]
        example.meta["synonyms"] = {n: list(self.synonyms.get(n, ())) for n in present}
        return example


def _words(name: str) -> str:
    return name.replace("_", " ").strip()
