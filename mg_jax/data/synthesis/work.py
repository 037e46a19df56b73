"""What there is to do: a folder of pictures, or the examples of any data set."""

import hashlib
import os
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mg_jax.data.fingerprint import fingerprint
from mg_jax.data.sources.base import Source
from mg_jax.data.synthesis.filters import Thing
from mg_jax.data.tasks.base import labelled, named
from mg_jax.data.video import PICTURES
from mg_jax.errors import BadRecord, UserError
from mg_jax.example import Example, Region
from mg_jax.text import words
from mg_jax.vision.preprocess import image_size

ENDINGS = (*PICTURES, ".gif", ".tif", ".tiff", ".avif")
_LOOKED_AT = 200  # examples in which a name is looked for before a data set is refused
_SAMPLED = 256  # examples that tell whether a data set is still the same


@dataclass(frozen=True)
class Item:
    """A picture to work on. key: what the journal knows it by. open: reads its annotations."""

    key: str
    open: Callable[[], Example]


def of_folder(folder: str | Path) -> list[Item]:
    """Every picture below a folder, by its path in it; examples are called so without the ending,
    unless two pictures differ in that alone. Raises UserError where there is none."""
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise UserError(f"{folder}: no such folder")
    files = [
        (Path(parent) / name).relative_to(root).as_posix()
        for parent, _, names in os.walk(root)
        for name in names
        if name.lower().endswith(ENDINGS)
    ]
    if not files:
        raise UserError(f"{folder}: holds no picture ({', '.join(ENDINGS)})")
    short = Counter(_short(file) for file in files)
    return [
        Item(file, _Photo(root, file, _short(file) if short[_short(file)] == 1 else file))
        for file in sorted(files)
    ]


def state_of_folder(folder: str | Path, items: Sequence[Item]) -> str:
    """Hash of the names and sizes in bytes of the pictures of `of_folder`."""
    root = Path(folder).expanduser()
    digest = hashlib.sha256()
    for item in items:
        try:
            size = (root / item.key).stat().st_size
        except OSError:
            size = -1  # a broken link: reading it will say so
        digest.update(f"{item.key}\0{size}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _short(file: str) -> str:
    return file[: len(file) - len(Path(file).suffix)]


@dataclass(frozen=True)
class _Photo:
    root: Path
    file: str
    id: str

    def __call__(self) -> Example:
        path = self.root / self.file
        try:
            width, height = image_size(path)
        except UserError as e:
            raise BadRecord(str(e)) from e
        return Example(str(path), width, height, id=self.id, meta={"file_name": self.file})


def of_source(source: Source, limit: int | None = None) -> list[Item]:
    """The examples of a data set, by number; read by one thread at a time."""
    count = min(len(source), limit) if limit else len(source)
    reading = threading.Lock()

    def at(n: int) -> Callable[[], Example]:
        def read() -> Example:
            with reading:
                return source[n]

        return read

    return [Item(f"{n:08d}", at(n)) for n in range(count)]


def state_of_source(source: Source) -> str:
    """What tells a data set whose examples have moved or changed: their number and a hash of some,
    of all of it, so that a run may go on with another limit."""
    return f"{len(source)}:{fingerprint(source, len(source), _SAMPLED)}"


def check_names(items: Sequence[Item], what: str) -> None:
    """Raises UserError where no annotation of the first examples has a name."""
    for item in items[:_LOOKED_AT]:
        try:
            if annotated(item.open()):
                return
        except BadRecord:
            continue
    looked = min(len(items), _LOOKED_AT)
    raise UserError(
        f"{what}: none of the first {looked} annotations names anything: labels, expressions or "
        "captions with places are needed; or give the pictures' folder, with --detector"
    )


def annotated(example: Example) -> list[Thing]:
    """Everything in a picture that has a name and a place, no place twice: labels, else what the
    texts about a box call it (see `labelled`)."""
    return [Thing(name, region) for name, region in named(labelled(example))]


def descriptions(example: Example, region: Region) -> list[str]:
    """The expressions that name this region alone."""
    return [
        text
        for e in example.expressions
        if len(e.regions) == 1
        and example.regions[e.regions[0]].box == region.box
        and (text := words.phrase(e.text))
    ]
