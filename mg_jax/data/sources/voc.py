"""Pascal VOC: a folder with Annotations/*.xml and JPEGImages/."""

import hashlib
import xml.etree.ElementTree as ET
from pathlib import Path

from mg_jax.data.sources.base import Folder, Source, existing, keep_empty, pixel_box
from mg_jax.errors import UserError
from mg_jax.example import Example, Region

SPLITS = ("train", "heldout", "all")


def split_of(stem: str) -> str:
    """ "train" for about 80 % of all file names, "heldout" for the others, by SHA-1 of the name
    without folder and extension: the same on every machine, whatever else is in the folder."""
    return "heldout" if int(hashlib.sha1(stem.encode()).hexdigest(), 16) % 5 == 0 else "train"


class VocSource(Source):
    """Pictures with the boxes of a Pascal VOC folder.

    VOC counts pixels from 1 and includes the last one, so a box is [xmin - 1, ymin - 1, xmax,
    ymax] in edge coordinates, cut at the border. Objects marked difficult become
    `Example.crowd`. Boxes without area, pictures without file, and pictures without boxes (unless
    empty="keep") are left out and counted. Examples have no turns.
    Raises UserError for a missing folder or a malformed file.
    """

    def __init__(
        self,
        folder: str | Path = "",
        split: str = "all",
        empty: str = "drop",
        head: str = "coco",
        name: str = "",
    ):
        root = existing(folder, "Pascal VOC folder", folder=True)
        super().__init__(name or root.resolve().name, head)
        keep = keep_empty(self.name, empty)
        if split not in SPLITS:
            raise UserError(f"data {self.name}: split={split}: choose from {', '.join(SPLITS)}")
        files = sorted(existing(root / "Annotations", "VOC annotations", True).glob("*.xml"))
        pictures = Folder(existing(root / "JPEGImages", "VOC pictures", True))
        if not files:
            raise UserError(f"{root / 'Annotations'}: holds no .xml file")
        self._rows: list[dict] = []
        for path in files:
            if split != "all" and split_of(path.stem) != split:
                continue
            row = self._read(path, pictures)
            if row is None:
                self.counts["pictures without a file"] += 1
            elif not row["objects"] and not keep:
                self.counts["pictures without boxes"] += 1
            else:
                self._rows.append(row)

    def _read(self, path: Path, pictures: Folder) -> dict | None:
        try:
            tree = ET.parse(path).getroot()
        except ET.ParseError as e:
            raise UserError(f"{path}: no valid XML: {e}") from None
        stated = (tree.findtext("filename") or "").strip()
        names = [path.stem + ext for ext in (".jpg", ".png", ".jpeg", ".JPG")]
        # The name of the annotation file wins: <filename> is often stale.
        found = map(pictures.find, [*names, stated] if stated else names)
        file = next((f for f in found if f), None)
        if file is None:
            return None
        width, height = (_number(tree, f"size/{k}", path, 0.0) for k in ("width", "height"))
        if width <= 0 or height <= 0:
            from mg_jax.vision.preprocess import image_size

            width, height = image_size(file)
        objects: list[Region] = []
        crowd: list[Region] = []
        for node in tree.findall("object"):
            x0, y0, x1, y1 = (
                _number(node, f"bndbox/{k}", path) for k in ("xmin", "ymin", "xmax", "ymax")
            )
            label = (node.findtext("name") or "object").strip()
            if x1 < x0 or y1 < y0:
                region = None
            else:
                region = pixel_box((x0 - 1, y0 - 1, x1, y1), int(width), int(height), label)
            if region is None:
                self.counts["boxes without area"] += 1
            else:
                hard = (node.findtext("difficult") or "0").strip() == "1"
                (crowd if hard else objects).append(region)
        return {
            "file": file,
            "stem": path.stem,
            "width": int(width),
            "height": int(height),
            "objects": objects,
            "crowd": crowd,
        }

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, i: int) -> Example:
        row = self._rows[i]
        return Example(
            image=row["file"],
            width=row["width"],
            height=row["height"],
            id=f"{self.name}-{row['stem']}",
            source=self.name,
            objects=tuple(row["objects"]),
            crowd=tuple(row["crowd"]),
            meta={"task": "detection", "file_name": Path(row["file"]).name},
        )


def _number(node: ET.Element, key: str, path: Path, default: float | None = None) -> float:
    text = node.findtext(key)
    if text is None and default is not None:
        return default
    try:
        return float(text or "")
    except ValueError:
        raise UserError(f"{path}: {key} is {text!r}, expected a number") from None
