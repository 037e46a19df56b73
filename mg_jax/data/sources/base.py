"""What every source is, and helpers shared by the readers."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

from mg_jax.errors import UserError
from mg_jax.example import Example, Region

HEADS = ("coco", "sa1b")


class Source:
    """A data set of `Example`s.

    name: shown in logs. head: "coco" | "sa1b", the objectness head that its boxes train.
    counts: what the reader left out, by reason.
    """

    def __init__(self, name: str, head: str = "coco"):
        if head not in HEADS:
            raise UserError(f"data {name}: head={head}: choose one of {', '.join(HEADS)}")
        self.name, self.head = name, head
        self.counts: Counter[str] = Counter()

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, i: int) -> Example:
        raise NotImplementedError

    def summary(self) -> str:
        """One line: how many examples, and what was left out."""
        left = ", ".join(f"{n} {reason}" for reason, n in sorted(self.counts.items()))
        return f"{self.name}: {len(self)} examples" + (f" (left out: {left})" if left else "")


def split_spec(
    spec: str, rest: str, positional: tuple[str, ...], options: tuple[str, ...]
) -> dict[str, Any]:
    """The arguments after the colon of a data text, as a dict of strings.

    Raises UserError for an unknown option, one given twice, or too many positional parts.
    """
    values: dict[str, Any] = {}
    place = 0
    for part in rest.split(",") if rest else []:
        key, equals, value = part.partition("=")
        if equals and key.strip() in (*options, *positional):
            key = key.strip()
        elif equals and key.strip().isidentifier() and place >= len(positional):
            raise UserError(
                f"data {spec!r}: unknown option {key.strip()!r}: choose from "
                f"{', '.join((*positional, *options))}"
            )
        elif place < len(positional):
            key, value = positional[place], part
            place += 1
        else:
            raise UserError(
                f"data {spec!r}: {part!r} is too much: expected "
                f"{', '.join([*positional, *(f'{o}=...' for o in options)])}"
            )
        if key in values:
            raise UserError(f"data {spec!r}: {key} is given twice")
        values[key] = value.strip()
    return values


def number(name: str, key: str, value: Any, kind: type = int, low: float = 0) -> Any:
    """The option as an int or float. Raises UserError naming it."""
    try:
        out = kind(value)
        if not math.isfinite(out) or out < low:
            raise ValueError
        return out
    except (TypeError, ValueError, OverflowError):
        word = "whole number" if kind is int else "number"
        raise UserError(
            f"data {name}: {key}={value}: expected a {word} of at least {low}"
        ) from None


def existing(path: str | Path | None, what: str, folder: bool = False) -> Path:
    """The path, if it is there. Raises UserError naming it."""
    if not path:
        raise UserError(f"data: the {what} is not given")
    path = Path(path).expanduser()
    if folder and not path.is_dir():
        raise UserError(f"{path}: no such folder ({what})")
    if not folder and not path.is_file():
        raise UserError(f"{path}: no such file ({what})")
    return path


def pixel_box(box: Any, width: int, height: int, label: str | None = None) -> Region | None:
    """A region from xyxy in pixels, clipped to the picture; None where nothing of it is left."""
    try:
        values = [float(v) for v in box]
    except (TypeError, ValueError):
        return None
    if len(values) != 4 or not all(math.isfinite(v) for v in values):
        return None
    x0, y0, x1, y1 = values
    x0, x1 = (min(max(v / width, 0.0), 1.0) for v in (x0, x1))
    y0, y1 = (min(max(v / height, 0.0), 1.0) for v in (y0, y1))
    if x1 <= x0 or y1 <= y0:
        return None
    return Region.from_box((x0, y0, x1, y1), label=label)


class Folder:
    """The picture files under a folder, listed once, since a stat per picture is slow."""

    def __init__(self, path: Path):
        self.path = path
        self.names = {p.name for p in path.iterdir()}

    def find(self, name: str) -> str | None:
        """The path of a picture, or None; names may hold folders."""
        if name in self.names or ("/" in name and (self.path / name).is_file()):
            return str(self.path / name)
        return None


def keep_empty(name: str, empty: str) -> bool:
    """The option `empty`: False for "drop", True for "keep"; UserError otherwise."""
    if empty not in ("drop", "keep"):
        raise UserError(f"data {name}: empty={empty}: choose drop or keep")
    return empty == "keep"
