"""Parts of any source, told by the names of its picture files or by medium."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath

import numpy as np

from mg_jax.data.sources.base import Source
from mg_jax.data.sources.measures import MEDIA, PICTURE, TEXT, UNKNOWN
from mg_jax.data.sources.voc import split_of
from mg_jax.errors import BadRecord, UserError
from mg_jax.example import Example

PARTS = ("train", "heldout")
_COCO = re.compile(r"^COCO_(train|val|test)20\d\d_")  # later editions name the same photo without


def parts(source: Source) -> Iterator[str]:
    """The part of every example in order: "train" (about 80 %) or "heldout", by `split_of` of the
    picture's file name, so that all examples of a picture fall into the same one."""
    for i in range(len(source)):
        try:
            name = source.file_name(i)
        except BadRecord:
            name = f"{source.name}-{i}"
        yield split_of(_COCO.sub("", PurePosixPath(name.replace("\\", "/")).stem))


class Subset(Source):
    """Some examples of `source`, by their numbers."""

    def __init__(self, source: Source, rows: Sequence[int] | np.ndarray, name: str):
        super().__init__(name, source.head, source.max_bad)
        self.source, self.tasks, self.exhaustive = source, source.tasks, source.exhaustive
        self.counts, self.bad, self.problems = source.counts, source.bad, source.problems
        self.rows = rows

    @property
    def frequency(self) -> Mapping[str, int]:
        return self.source.frequency

    def file_name(self, i: int) -> str:
        return self.source.file_name(int(self.rows[i]))

    def where(self, i: int) -> str:
        return self.source.where(int(self.rows[i]))

    def measures(self) -> np.ndarray | None:
        found = self.source.measures()
        return None if found is None else found[np.asarray(self.rows, np.int64)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Example:
        return self.source[int(self.rows[i])]


class Split(Subset):
    """The examples of `source` that belong to one of PARTS, in their order.

    Raises UserError for another part, or one without any example.
    """

    def __init__(self, source: Source, part: str):
        if part not in PARTS:
            raise UserError(f"data {source.name}: part={part}: choose {' or '.join(PARTS)}")
        rows = [i for i, own in enumerate(parts(source)) if own == part]
        super().__init__(source, rows, f"{source.name}-{part}")
        if len(source) and not self.rows:
            raise UserError(
                f"data {source.name}: part={part} holds none of its {len(source)} examples: "
                "give more pictures"
            )


def by_medium(source: Source, texts: bool = True) -> list[Source]:
    """Parts of one medium each, or the source itself where it has but one or does not tell.

    texts: False leaves those without picture or video with the pictures.
    """
    found = source.measures()
    if found is None:
        return [source]
    media = found[:, 0] if texts else np.where(found[:, 0] == TEXT, PICTURE, found[:, 0])
    held = np.unique(media)
    if len(held) < 2:
        return [source]
    made: list[Source] = [
        Subset(source, np.flatnonzero(media == m), f"{source.name}, {MEDIA[m]}") for m in held
    ]
    for part in made[1:]:  # what was left out is told once
        part.counts, part.bad, part.problems = Counter(), 0, []
    return made


def has_only_texts(source: Source) -> bool:
    """Whether all examples are known to be conversations without picture and video."""
    found = source.measures()
    return found is not None and bool(((found[:, 0] == TEXT) & (found[:, 1] < UNKNOWN)).all())
