"""What every source is, and helpers shared by the readers."""

import json
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mg_jax.data.sources.measures import UNKNOWN
from mg_jax.errors import BadRecord, UserError
from mg_jax.example import Example

HEADS = ("coco", "sa1b")
MAX_BAD = 0.05
_MOST_SIDE = 1_000_000  # pixels; beyond that a number is no side of a picture
_LISTED = 1000  # problems of which the words are kept; beyond that they are only counted


class Source:
    """A data set of `Example`s.

    name: shown in logs. head: "coco" | "sa1b", the objectness head that its boxes train.
    max_bad: share of malformed records from which on the data set is refused.
    counts: what the reader left out, by reason. bad: how many records it found malformed;
    problems: the first 1,000 of them, each as "file:line: what is wrong".
    tasks: by weight, what its examples without turns are asked (`mg_jax.data.tasks`); None for
    what the run's config says. exhaustive: True where every object of every label is annotated,
    so that a label without object in a picture is absent from it.
    medium: of all examples (`sources.measures`), None where that is not known or they differ.
    """

    tasks: Mapping[str, float] | None = None
    exhaustive = False
    medium: int | None = None

    @property
    def frequency(self) -> Mapping[str, int]:
        """In how many pictures each label stands; {} where that is not known."""
        return {}

    def __init__(self, name: str, head: str = "coco", max_bad: float | str = MAX_BAD):
        if head not in HEADS:
            raise UserError(f"data {name}: head={head}: choose one of {', '.join(HEADS)}")
        self.name, self.head = name, head
        self.max_bad = number(name, "max_bad", max_bad, float)
        self.counts: Counter[str] = Counter()
        self.bad = 0
        self.problems: list[str] = []

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, i: int) -> Example:
        raise NotImplementedError

    def file_name(self, i: int) -> str:
        """The file name of an example's picture or video as the data set has it, else its id."""
        example = self[i]
        path = example.image if isinstance(example.image, str) else ""
        return str(example.meta.get("file_name") or path or example.id)

    def where(self, i: int) -> str:
        """File and line of an example, for words about it; "" where it is not told."""
        return ""

    def measures(self) -> np.ndarray | None:
        """int32 [len(self), 2], without reading examples: the medium of each and about how many
        tokens of text it has, rather too many (`measures.tokens_about`), UNKNOWN where its
        conversation is yet to be drawn. None where the media are not known."""
        if self.medium is None:
            return None
        return np.full((len(self), 2), (self.medium, UNKNOWN), np.int32)

    def summary(self) -> str:
        """One line: how many examples, and what was left out."""
        left = ", ".join(f"{n} {reason}" for reason, n in sorted(self.counts.items()))
        bad = f"; {self.bad} malformed, first: {self.problems[0]}" if self.bad else ""
        return f"{self.name}: {len(self)} examples" + (f" (left out: {left})" if left else "") + bad

    def problem(self, where: str, what: str) -> None:
        """Note a malformed record and go on. where: "file:line" or "file: annotations[3]"."""
        self.bad += 1
        if len(self.problems) < _LISTED:
            self.problems.append(f"{where}: {what}")

    def opened(self, total: int) -> None:
        """Readers call this when all `total` records (malformed ones included) have been seen.

        Raises UserError when the share of malformed ones passes `max_bad`.
        """
        self.counts = +self.counts
        if self.bad > self.max_bad * total:
            more = f" ({self.bad} of {total} records of {self.name} are malformed)"
            raise UserError(self.problems[0] + (more if total > 1 else ""))


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


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, without a byte order mark. Raises UserError naming the file."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror})") from None
    except UnicodeDecodeError as e:
        raise UserError(
            f"{path}: is no UTF-8: byte {e.start} is 0x{e.object[e.start]:02x}: save it as UTF-8"
        ) from None


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises UserError naming the file and what is wrong."""
    try:
        return json.loads(path.read_bytes())
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror})") from None
    except (ValueError, RecursionError) as e:
        raise UserError(f"{path}: no valid JSON: {e}") from None


def read_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """("file:line", object) of a jsonl file; empty lines are skipped.

    A line that is no JSON comes as BadRecord instead of an object: give it to `problem`.
    """
    with path.open("rb") as lines:
        for n, line in enumerate(lines, 1):
            if line.strip():
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError) as e:
                    row = BadRecord(f"no valid JSON: {e}")
                yield f"{path}:{n}", row


def list_in(data: Any, key: str, path: Path, what: str) -> list[Any]:
    """The list under a key of a JSON file's content. Raises UserError naming what is missing."""
    if not isinstance(data, dict) or not isinstance(data.get(key), list):
        raise UserError(f"{path}: not {what}: it has no list {key!r}")
    return data[key]


def fields(row: Any, kinds: Mapping[str, type | tuple[type, ...]]) -> None:
    """Check that a record is an object with these keys of these types.

    Raises BadRecord naming the key at fault.
    """
    if isinstance(row, BadRecord):
        raise row
    if not isinstance(row, dict):
        raise BadRecord(f"expected an object, found {short(row)}")
    for key, kind in kinds.items():
        if key not in row:
            raise BadRecord(f"lacks {key!r}")
        if not isinstance(row[key], kind) or (isinstance(row[key], bool) and kind is not bool):
            raise BadRecord(f"{key} is {short(row[key])}")


def check_choices(choices: Sequence[Any], where: str = "") -> None:
    """Raises BadRecord, beginning with `where`, for a list of one choice, which asks for nothing.
    None at all is a question without choices."""
    if len(choices) == 1:
        raise BadRecord(f"{where}has one choice, {choices[0]!r}: give two or more, or none")


def sides(row: Mapping[str, Any], width: str = "width", height: str = "height") -> tuple[int, int]:
    """Width and height of a record. Raises BadRecord unless both are whole numbers of pixels."""
    found: list[Any] = [row.get(key) for key in (width, height)]
    if not all(
        isinstance(v, int | float)
        and not isinstance(v, bool)
        and 0 < v <= _MOST_SIDE
        and v % 1 == 0
        for v in found
    ):
        shown = " and ".join(map(short, found))
        raise BadRecord(f"{width} and {height} must be whole numbers above 0, found {shown}")
    return int(found[0]), int(found[1])


def real(value: Any, what: str) -> float:
    """A number as float. Raises BadRecord, beginning with `what`, for anything else."""
    try:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    except OverflowError:
        pass
    raise BadRecord(f"{what} holds {short(value)}, expected a number")


def short(value: Any) -> str:
    """A value of a file as a message shows it, 60 characters at most."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


class Folder:
    """The files under a folder, listed once for each folder in it, since a stat per picture is
    slow."""

    def __init__(self, path: Path):
        self.path = path
        self._listed: dict[str, frozenset[str]] = {}

    def find(self, name: str) -> str | None:
        """The path of a file or folder, or None; names may hold folders."""
        parent, _, last = name.rpartition("/")
        if parent not in self._listed:
            try:
                self._listed[parent] = frozenset(os.listdir(self.path / parent))
            except (OSError, ValueError):
                self._listed[parent] = frozenset()
        return str(self.path / name) if last in self._listed[parent] else None


def keep_empty(name: str, empty: str) -> bool:
    """The option `empty`: False for "drop", True for "keep"; UserError otherwise."""
    if empty not in ("drop", "keep"):
        raise UserError(f"data {name}: empty={empty}: choose drop or keep")
    return empty == "keep"
