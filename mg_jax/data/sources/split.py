"""A part of any source, told by the names of its picture files."""

from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath

from mg_jax.data.sources.base import Source
from mg_jax.data.sources.voc import split_of
from mg_jax.errors import BadRecord, UserError
from mg_jax.example import Example

PARTS = ("train", "heldout")


def parts(source: Source) -> Iterator[str]:
    """The part of every example in order: "train" (about 80 %) or "heldout", by `split_of` of the
    picture's file name, so that all examples of a picture fall into the same one."""
    for i in range(len(source)):
        try:
            name = source.file_name(i)
        except BadRecord:
            name = f"{source.name}-{i}"
        yield split_of(PurePosixPath(name.replace("\\", "/")).stem)


class Split(Source):
    """The examples of `source` that belong to one of PARTS, in their order.

    Raises UserError for another part, or one without any example.
    """

    def __init__(self, source: Source, part: str):
        if part not in PARTS:
            raise UserError(f"data {source.name}: part={part}: choose {' or '.join(PARTS)}")
        super().__init__(f"{source.name}-{part}", source.head, source.max_bad)
        self.source, self.tasks, self.exhaustive = source, source.tasks, source.exhaustive
        self.counts, self.bad, self.problems = source.counts, source.bad, source.problems
        self.rows = [i for i, own in enumerate(parts(source)) if own == part]
        if len(source) and not self.rows:
            raise UserError(
                f"data {source.name}: part={part} holds none of its {len(source)} examples: "
                "give more pictures"
            )

    @property
    def frequency(self) -> Mapping[str, int]:
        return self.source.frequency

    def file_name(self, i: int) -> str:
        return self.source.file_name(self.rows[i])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Example:
        return self.source[self.rows[i]]
