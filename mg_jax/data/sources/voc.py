"""Pascal VOC: a folder with Annotations/*.xml and JPEGImages/."""

import hashlib
import xml.etree.ElementTree as ET
from pathlib import Path

from mg_jax.data.sources.base import MAX_BAD, Folder, existing
from mg_jax.data.sources.boxed import BoxedSource
from mg_jax.errors import BadRecord, UserError
from mg_jax.vision.preprocess import image_size

SPLITS = ("train", "heldout", "all")


def split_of(stem: str) -> str:
    """ "train" for about 80 % of all file names, "heldout" for the others, by SHA-1 of the name
    without folder and extension: the same on every machine, whatever else is in the folder."""
    return "heldout" if int(hashlib.sha1(stem.encode()).hexdigest(), 16) % 5 == 0 else "train"


class VocSource(BoxedSource):
    """Pictures with the boxes of a Pascal VOC folder.

    VOC counts pixels from 1 and includes the last one, so a box is [xmin - 1, ymin - 1, xmax,
    ymax] in edge coordinates, cut at the border. Objects marked difficult become
    `Example.crowd`. Boxes without area, pictures without file, and pictures without boxes (unless
    empty="keep") are left out and counted. Examples have no turns.
    Raises UserError for a missing folder, or one with too many malformed files.
    """

    def __init__(
        self,
        folder: str | Path = "",
        split: str = "all",
        empty: str = "drop",
        head: str = "coco",
        name: str = "",
        max_bad: float | str = MAX_BAD,
    ):
        root = existing(folder, "Pascal VOC folder", folder=True)
        super().__init__(name or root.resolve().name, head, empty, max_bad)
        if split not in SPLITS:
            raise UserError(f"data {self.name}: split={split}: choose from {', '.join(SPLITS)}")
        files = sorted(existing(root / "Annotations", "VOC annotations", True).glob("*.xml"))
        pictures = Folder(existing(root / "JPEGImages", "VOC pictures", True))
        if not files:
            raise UserError(f"{root / 'Annotations'}: holds no .xml file")
        files = [f for f in files if split == "all" or split_of(f.stem) == split]
        for path in files:
            try:
                self._read(path, pictures)
            except BadRecord as e:
                self.problem(str(path), str(e))
        self.finish(len(files))

    def _read(self, path: Path, pictures: Folder) -> None:
        try:
            tree = ET.parse(path).getroot()
        except ET.ParseError as e:
            raise BadRecord(f"no valid XML: {e}") from None
        stated = (tree.findtext("filename") or "").strip()
        names = [path.stem + ext for ext in (".jpg", ".png", ".jpeg", ".JPG")]
        # The name of the annotation file wins: <filename> is often stale.
        found = map(pictures.find, [*names, stated] if stated else names)
        file = next((f for f in found if f), None)
        if file is None:
            self.counts["pictures without a file"] += 1
            return
        boxes = []  # all of them first: a malformed file gives no picture
        for node in tree.findall("object"):
            corners = ("xmin", "ymin", "xmax", "ymax")
            x0, y0, x1, y1 = (_number(node, f"bndbox/{k}") for k in corners)
            label = (node.findtext("name") or "object").strip()
            hard = (node.findtext("difficult") or "0").strip() == "1"
            # Reversed corners stay reversed: shifted by the pixel they would have an area
            box = (x1, y1, x0, y0) if x1 < x0 or y1 < y0 else (x0 - 1, y0 - 1, x1, y1)
            boxes.append((box, label, hard))
        width, height = (int(_number(tree, f"size/{k}", 0.0)) for k in ("width", "height"))
        if width <= 0 or height <= 0:
            try:
                width, height = image_size(file)
            except UserError as e:
                raise BadRecord(str(e)) from None
        picture = self.add_picture(file, width, height, path.stem)
        for box, label, hard in boxes:
            self.add_box(picture, box, label, hard)


def _number(node: ET.Element, key: str, default: float | None = None) -> float:
    text = node.findtext(key)
    if text is None and default is not None:
        return default
    try:
        return float(text or "")
    except ValueError:
        raise BadRecord(f"{key} is {text!r}, expected a number") from None
