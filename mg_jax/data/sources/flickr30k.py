"""Flickr30k Entities: five captions a picture, their phrases grounded.

A folder as BryanPlummer/flickr30k_entities has it, its annotations.zip unpacked:

    Sentences/1000092795.txt     a caption a line, phrases as [/EN#chain/type/... words]:
                                 [/EN#1/people Two men] look at [/EN#3/bodyparts their hands] .
    Annotations/1000092795.xml   <size>, and of each <object> one or more <name>chain</name>, then
                                 a <bndbox>, or <nobndbox>1</nobndbox> or <scene>1</scene>
    train.txt, val.txt, test.txt the numbers of the pictures of each split
    UNRELATED_CAPTIONS           "number line" of captions that are not about their picture

and the pictures, 1000092795.jpg, in a folder of their own. Boxes are xmin, ymin, xmax, ymax in
pixels counted from 1; their corners are taken as edges, 1 subtracted from all four, as the data
set's own tools do.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mg_jax.data.sources.base import MAX_BAD, existing, read_text, sides
from mg_jax.data.sources.grounded import Packed, PackedSource
from mg_jax.data.sources.voc import read_xml, xml_number
from mg_jax.errors import BadRecord, UserError

SPLITS = ("train", "val", "test", "all")
_PHRASE = re.compile(r"\[/EN#(\d+)(?:/\S*)? ([^\[\]]*)\]")
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


class Flickr30kSource(PackedSource):
    """An Example a picture, with its captions as neutral markup and the boxes they point at.

    A phrase is grounded on all boxes of its chain. Phrases without a box (chain 0, which is not
    visual, and those marked as scene or as having no box) are plain text. Captions stay in the
    spelling of the files, words and punctuation apart.
    split: train, val, test, as the lists of the folder say, or all, which needs no lists.
    Left out and counted: boxes without area, unrelated captions, pictures without file. A picture
    whose two files are malformed or missing is a malformed record. meta: task "grounded_caption".
    Raises UserError for a missing folder or list, too many malformed pictures, or when no picture
    is in the folder.
    """

    def __init__(
        self,
        folder: str | Path = "",
        images: str | Path = "",
        split: str = "train",
        head: str = "coco",
        name: str = "",
        max_bad: float | str = MAX_BAD,
    ):
        entities = existing(folder, "Flickr30k Entities folder", folder=True)
        if split not in SPLITS:
            raise UserError(f"data flickr30k: split={split}: choose from {', '.join(SPLITS)}")
        super().__init__(name or f"flickr30k_{split}", images, entities, head, max_bad)
        self._sentences = existing(entities / "Sentences", "captions", folder=True)
        self._boxes = existing(entities / "Annotations", "boxes", folder=True)
        if split == "all":
            numbers = sorted(p.stem for p in self._sentences.glob("*.txt"))
        else:
            numbers = read_text(existing(entities / f"{split}.txt", f"list of {split}")).split()
        self._unrelated = _unrelated(entities / "UNRELATED_CAPTIONS")
        self.fill(Packed(self._rows_of(numbers)))

    def _rows_of(self, numbers: list[str]) -> Iterator[tuple[str, Any]]:
        for number in numbers:
            path = self._boxes / f"{number}.xml"
            try:
                size, boxes = _read_boxes(path)
                path = self._sentences / f"{number}.txt"
                captions = list(self._captions(path, boxes))
            except BadRecord as e:
                yield str(path), e
                continue
            yield (
                str(path),
                {
                    "file": f"{number}.jpg",
                    "size": size,
                    "id": number,
                    "captions": captions,
                    "meta": {"task": "grounded_caption"},
                },
            )

    def _captions(self, path: Path, boxes: dict[str, list[Any]]) -> Iterator[list[Any]]:
        """[caption, [[first character, one after the last, boxes], ...]] of each line."""
        try:
            lines = read_text(path).splitlines()
        except UserError as e:
            raise BadRecord(str(e).removeprefix(f"{path}: ")) from None
        for n, line in enumerate(lines, 1):
            if not line.strip():
                continue
            if (path.stem, n) in self._unrelated:
                self.counts["unrelated captions"] += 1
                continue
            caption, at = "", 0
            spans: list[list[Any]] = []
            for match in _PHRASE.finditer(line):
                caption += line[at : match.start()]
                if match[1] != "0" and match[2] and boxes.get(match[1]):
                    spans.append([len(caption), len(caption) + len(match[2]), boxes[match[1]]])
                caption, at = caption + match[2], match.end()
            caption += line[at:]
            if "[/EN#" in caption:
                raise BadRecord(
                    f"line {n}: a phrase is not closed or not as [/EN#chain/type words]"
                )
            yield [caption, spans]


def _read_boxes(path: Path) -> tuple[tuple[int, int], dict[str, list[Any]]]:
    """Size of the picture, and the boxes of each chain."""
    tree = read_xml(path)
    width, height = sides({k: xml_number(tree, f"size/{k}") for k in ("width", "height")})
    boxes: dict[str, list[Any]] = {}
    for node in tree.findall("object"):
        if node.find("bndbox") is not None:
            box = [xml_number(node, f"bndbox/{key}") - 1 for key in _CORNERS]
            for chain in node.findall("name"):
                boxes.setdefault((chain.text or "").strip(), []).append(box)
    return (width, height), boxes


def _unrelated(path: Path) -> set[tuple[str, int]]:
    """(number of the picture, line counted from 1) of a list that need not be there."""
    if not path.is_file():
        return set()
    lines = (line.split() for line in read_text(path).splitlines() if line[:1] != "#")
    try:
        return {(number, int(line)) for number, line in filter(None, lines)}
    except ValueError as e:
        raise UserError(f'{path}: expected "number line" on every line ({e})') from None
