"""Pascal VOC: a folder (VOCdevkit/VOC2007, ...) with an xml for each picture.

    JPEGImages/000005.jpg
    Annotations/000005.xml          size, and an object with name, difficult and bndbox for each box
    ImageSets/Main/train.txt        optional: the names of a split, one a line

Coordinates are pixels, whole or with decimals. Parts of persons (`part`), `pose`, `truncated`,
`occluded` and `actions` are passed over.
"""

import hashlib
import math
import xml.etree.ElementTree as ET
from pathlib import Path

from mg_jax.data.sources.base import MAX_BAD, Folder, existing, read_text, sides
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
    split: "all" of Annotations, or a list of ImageSets/Main ("train", "val", "trainval", "test",
    ...; "heldout" is val, or test where there is no val). Where the list is not there, "train" and
    "heldout" are told by `split_of`.
    Raises UserError for a missing folder or split, or a folder with too many malformed files.
    """

    exhaustive = True

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
        files = sorted(existing(root / "Annotations", "VOC annotations", True).glob("*.xml"))
        pictures = Folder(existing(root / "JPEGImages", "VOC pictures", True))
        if not files:
            raise UserError(f"{root / 'Annotations'}: holds no .xml file")
        files = self._chosen(split, root / "ImageSets/Main", files)
        for path in files:
            try:
                self._read(path, pictures)
            except BadRecord as e:
                self.problem(str(path), str(e))
        self.finish(len(files))

    def _chosen(self, split: str, lists: Path, files: list[Path]) -> list[Path]:
        """The files of a split. Raises UserError when it is unknown or names none of them."""
        if split == "all":
            return files
        names = {"heldout": ("val", "test")}.get(split, (split,))
        path = next((p for p in (lists / f"{n}.txt" for n in names) if p.is_file()), None)
        if path is None:
            if split not in SPLITS:
                known = [*SPLITS, *sorted(p.stem for p in lists.glob("*.txt") if "_" not in p.stem)]
                choice = ", ".join(dict.fromkeys(known))
                raise UserError(f"data {self.name}: split={split}: choose from {choice}")
            return [f for f in files if split_of(f.stem) == split]
        stems = {line.split()[0] for line in read_text(path).splitlines() if line.strip()}
        chosen = [f for f in files if f.stem in stems]
        self.counts["names of the split without annotations"] += len(stems) - len(chosen)
        if not chosen:
            raise UserError(f"{path}: names none of the {len(files)} files in Annotations")
        return chosen

    def _read(self, path: Path, pictures: Folder) -> None:
        tree = read_xml(path)
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
            x0, y0, x1, y1 = (xml_number(node, f"bndbox/{k}") for k in corners)
            label = (node.findtext("name") or "object").strip()
            hard = (node.findtext("difficult") or "0").strip() == "1"
            # Reversed corners stay reversed: shifted by the pixel they would have an area
            box = (x1, y1, x0, y0) if x1 < x0 or y1 < y0 else (x0 - 1, y0 - 1, x1, y1)
            boxes.append((box, label, hard))
        size = {k: xml_number(tree, f"size/{k}", 0.0) for k in ("width", "height")}
        if min(size.values()) >= 1:
            width, height = sides(size)
        else:
            try:
                width, height = image_size(file)
            except UserError as e:
                raise BadRecord(str(e)) from None
        picture = self.add_picture(file, width, height, path.stem)
        for box, label, hard in boxes:
            self.add_box(picture, box, label, hard)


def read_xml(path: Path) -> ET.Element:
    """The root of an xml file, in any encoding that the parser knows. Raises BadRecord."""
    try:
        return ET.parse(path).getroot()
    except (ET.ParseError, ValueError, LookupError) as e:  # the last two are of its encoding
        raise BadRecord(f"no valid XML: {e}") from None
    except OSError as e:
        raise BadRecord(f"cannot be read ({e})") from None


def xml_number(node: ET.Element, key: str, default: float | None = None) -> float:
    """The number in a tag, by its path; `default`, if there is one, where the tag is absent.

    Raises BadRecord naming the tag for anything else, and for NaN and infinity.
    """
    text = node.findtext(key)
    if text is None and default is not None:
        return default
    try:
        if math.isfinite(number := float(text or "")):
            return number
    except ValueError:
        pass
    raise BadRecord(f"{key} is {text!r}, expected a number")
