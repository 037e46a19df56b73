"""Ultralytics-style folders: a txt file of boxes beside each picture, names in data.yaml.

    data.yaml              path: .                        optional, of the folder
                           train: images/train            a folder, a txt list of pictures, or a
                           val: images/val                list of these; test: as well, optional
                           names: {0: cat, 1: dog}        or [cat, dog]
    images/train/1.jpg     or train/images/1.jpg, images/1.jpg, 1.jpg
    labels/train/1.txt     or train/labels/1.txt, labels/1.txt, 1.txt

A row is `class cx cy w h`, centre and sides as shares of the picture as it is shown, or
`class x1 y1 x2 y2 x3 y3 ...`, the vertices of a polygon or a turned box: its tightest box is
taken. With `kpt_shape` in data.yaml rows are a box and key points, which are passed over. Classes
count from 0. A picture without txt file, or with an empty one, shows nothing.
Without a yaml file names stand one a line in classes.txt, obj.names or any *.names.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mg_jax.data.sources.base import MAX_BAD, Folder, existing, read_text
from mg_jax.data.sources.boxed import BoxedSource
from mg_jax.data.sources.voc import split_of
from mg_jax.errors import BadRecord, UserError

SPLITS = ("train", "val", "test", "heldout", "all")
_PARTS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
_PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


class YoloSource(BoxedSource):
    """Pictures with the boxes of an Ultralytics-style folder.

    folder: the folder, or its yaml file. split: "train", "val", "test" as data.yaml or the folder
    names tell them apart, "heldout" for val (test, where there is no val), or "all". Where the
    folder has no such parts, "train" and "heldout" are told by the file name as in `VocSource`.
    Boxes are cut at the border; those without area, and rows that are there twice, are left out
    and counted, as are pictures without boxes unless empty="keep". Sizes are read from the
    pictures when they are asked for. Examples have no turns.
    Raises UserError for a missing folder, names or split, for pictures without any txt file, or
    too many malformed rows.
    """

    form = "cxcywh"
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
        config, self.root = _config(folder)
        super().__init__(name or self.root.resolve().name, head, empty, max_bad)
        if split not in SPLITS:
            raise UserError(f"data {self.name}: split={split}: choose from {', '.join(SPLITS)}")
        self._posed = "kpt_shape" in config
        names = _class_names(config, self.root)
        files = self._chosen(split, config)
        folders = Folder(self.root)  # finds absolute names too
        rows = texts = 0
        for file in files:
            if folders.find(str(file)) is None:
                self.counts["pictures without a file"] += 1
                continue
            text = next(filter(None, map(folders.find, _places(file))), None)
            texts += text is not None
            short = str(file.relative_to(self.root)) if self.root in file.parents else str(file)
            picture = self.add_picture(str(file), 0, 0, short.rpartition(".")[0], short)
            rows += self._read(Path(text), picture, names) if text else 0
        if files and not texts:
            what = "a txt file" if self._files else "a file"
            raise UserError(
                f"{self.root}: none of its {len(files)} pictures has {what}, for example "
                f"{' or '.join(_places(files[0])) if self._files else files[0]}"
            )
        self.finish(len(files) + rows, names)

    def _chosen(self, split: str, config: Mapping[str, Any]) -> list[Path]:
        """The pictures of a split, sorted, each once."""
        parts = _parts(config, self.root)
        if split == "heldout" and set(parts) & {"val", "test"}:
            split = "val" if "val" in parts else "test"
        if split == "all" or not parts:
            whole = self.root / "images" if (self.root / "images").is_dir() else self.root
            roots = [r for part in parts.values() for r in part] if parts else [whole]
        elif split in parts:
            roots = parts[split]
        else:
            raise UserError(f"{self.root}: has no split {split!r}, but {', '.join(parts)}")
        missing = [r for r in roots if not r.exists()]
        if missing and (split != "all" or len(missing) == len(roots)):
            raise UserError(f"{missing[0]}: no such file or folder ({self.root}, split {split})")
        self.counts["lists of pictures that are missing"] += len(missing)
        files = sorted({f for r in roots if r.exists() for f in _listed(r)})
        if not files:
            raise UserError(f"{self.root}: holds no pictures for split={split}")
        if not parts and split != "all":
            if split not in ("train", "heldout"):
                raise UserError(f"{self.root}: has no split {split!r}: choose train, heldout, all")
            files = [f for f in files if split_of(f.stem) == split]
        return files

    def _read(self, path: Path, picture: int, names: Mapping[int, str]) -> int:
        """Add the boxes of a txt file; returns the number of its rows."""
        try:
            lines = read_text(path).splitlines()
        except UserError as e:
            self.problem(str(path), str(e).removeprefix(f"{path}: "))
            return 1
        seen = set()
        for n, line in enumerate(lines, 1):
            values = tuple(line.split())
            if not values:
                continue
            if values in seen:
                self.counts["boxes that are there twice"] += 1
                continue
            seen.add(values)
            try:
                label, box = self._row(values)
                if label not in names:
                    raise BadRecord(f"class {label}, but names are given for {len(names)}")
                self.add_box(picture, box, label)
            except BadRecord as e:
                self.problem(f"{path}:{n}", str(e))
        return len(lines)

    def _row(self, values: tuple[str, ...]) -> tuple[int, tuple[float, float, float, float]]:
        """Class and edges in shares of 1."""
        try:
            kind, *numbers = map(float, values)
            if not kind.is_integer():
                raise ValueError
        except ValueError:
            raise BadRecord(f"{' '.join(values)[:60]!r}: expected a class and numbers") from None
        if len(numbers) == 4 or (self._posed and len(numbers) > 4):
            cx, cy, w, h = numbers[:4]
            return int(kind), (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)
        if len(numbers) < 6 or len(numbers) % 2:
            raise BadRecord(
                f"{len(values)} values: expected class, cx, cy, w, h or class and three vertices"
            )
        xs, ys = numbers[0::2], numbers[1::2]
        return int(kind), (min(xs), min(ys), max(xs), max(ys))


def _config(folder: str | Path) -> tuple[dict[str, Any], Path]:
    """(content of the yaml file or {}, folder). Raises UserError for an unreadable file."""
    path = Path(folder).expanduser().absolute()
    if path.suffix in (".yaml", ".yml"):
        root = existing(path, "yaml file of the pictures").parent
    else:
        root = existing(folder and path, "Ultralytics-style folder", folder=True)
        found = sorted(p for end in ("yaml", "yml") for p in root.glob(f"*.{end}"))
        known = [p for p in found if p.stem in ("data", "dataset", root.name)] or found
        if len(known) > 1 and known[0].stem != "data":
            raise UserError(f"{root}: has {len(known)} yaml files: name one of them")
        if not known:
            return {}, root
        path = known[0]
    import yaml

    try:
        config = yaml.safe_load(read_text(path))
    except yaml.YAMLError as e:
        raise UserError(f"{path}: no valid YAML: {' '.join(str(e).split())}") from None
    if not isinstance(config, dict) or "names" not in config:
        raise UserError(f"{path}: expected names: and the classes under it")
    return config, root


def _class_names(config: Mapping[str, Any], root: Path) -> dict[int, str]:
    """Name by number. Raises UserError when there is none."""
    names = config.get("names")
    if names is None:
        places = (root / "classes.txt", root / "labels/classes.txt", *sorted(root.glob("*.names")))
        file = next((p for p in places if p.is_file()), None)
        if file is None:
            raise UserError(f"{root}: has no data.yaml and no classes.txt, so classes lack names")
        names = [line.strip() for line in read_text(file).splitlines()]
        names = [n for n in names if n]
    try:
        pairs = names.items() if isinstance(names, dict) else enumerate(names)
        return {int(k): str(v).strip() for k, v in pairs}
    except (TypeError, ValueError):
        raise UserError(f"{root}: names {names!r} are no list and no table by number") from None


def _parts(config: Mapping[str, Any], root: Path) -> dict[str, list[Path]]:
    """Files and folders of the parts that data.yaml names, or that the folders show; {} if none."""
    parts: dict[str, list[Path]] = {}
    for part, keys in _PARTS.items():
        values: Any = next((config[k] for k in keys if config.get(k)), [])
        values = [values] if isinstance(values, str) else values
        if not isinstance(values, list) or not all(isinstance(v, str) for v in values):
            raise UserError(f"{root}: data.yaml, {part}: expected a folder or a list of folders")
        if values:
            parts[part] = [_resolved(v, str(config.get("path") or ""), root) for v in values]
    if parts:
        return parts
    for part, keys in _PARTS.items():
        places = [p / "images" if (p / "images").is_dir() else p for k in keys
                  for p in (root / "images" / k, root / k) if p.is_dir()]  # fmt: skip
        if places:
            parts[part] = places
    return parts


def _resolved(value: str, base: str, root: Path) -> Path:
    """Where a path of data.yaml leads: it may start from `path`, which in published files is
    often of another machine, from the yaml file, or with a ../ too many."""
    short = value
    while short.startswith("../"):
        short = short[3:]
    places = [root / base / value, root / value, root / short]
    return next((p for p in places if p.exists()), places[0])


def _listed(root: Path) -> Iterator[Path]:
    """The pictures below a folder, or those that a txt file lists."""
    if root.is_dir():
        for folder, _, files in os.walk(root, followlinks=True):
            yield from (Path(folder, f) for f in files if f.lower().endswith(_PICTURES))
        return
    for line in read_text(root).splitlines():
        if line.strip():
            yield root.parent / line.strip().removeprefix("./")


def _places(picture: Path) -> tuple[str, ...]:
    """Where the txt file of a picture may be: `images` in its path replaced, or beside it."""
    beside = str(picture.with_suffix(".txt"))
    head, images, tail = beside.rpartition(f"{os.sep}images{os.sep}")
    swapped = f"{head}{os.sep}labels{os.sep}{tail}"
    return (swapped, beside) if images else (beside,)
