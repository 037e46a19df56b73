"""From an example of a source to its record in a shard, and its picture to where that shall be."""

import dataclasses
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from mg_jax.data.records import encode, picture_file
from mg_jax.data.shards import checksum
from mg_jax.data.sources import Source
from mg_jax.disk import replace
from mg_jax.errors import BadRecord, UserError
from mg_jax.example import Example


class Pictures:
    """The files of a shard's pictures on their way into FOLDER/images/K."""

    def __init__(self, folder: str, k: int):
        self.folder, self.name = Path(folder) / "images", f"{k:05d}"
        self.part: Path | None = None

    def __enter__(self) -> "Pictures":
        return self

    def __exit__(self, *_) -> None:
        if self.part is not None:
            shutil.rmtree(self.part, ignore_errors=True)

    def write(self, i: int, data: bytes, kind: str) -> str:
        """Write the picture of example i; returns its path as the record has it."""
        if self.part is None:
            self.folder.mkdir(exist_ok=True)
            self.part = Path(tempfile.mkdtemp(".part", f"{self.name}.", self.folder))
            self.part.chmod(0o755)
        file = f"{i:08d}.{kind}"
        (self.part / file).write_bytes(data)
        return f"images/{self.name}/{file}"

    def finish(self) -> dict[str, Any]:
        """Give the folder its name; returns what the report says of it."""
        files = sorted(self.part.iterdir()) if self.part else []
        made = {"pictures": len(files), "pictures_sha256": checksum(files)}
        if self.part:
            replace(self.part, self.folder / self.name)
            self.part = None
        return made


def read_example(source: Source, i: int) -> Example:
    """Example i, with a file that cannot be opened as one more way to be malformed.

    The name of its picture goes along, where the picture itself stands in the record or is copied
    under another name: by it `part=heldout` tells which examples are held out.
    """
    try:
        example = source[i]
    except OSError as e:
        raise BadRecord(f"cannot be read ({e})") from None
    if isinstance(example.image, str) and not example.meta.get("file_name"):
        name = os.path.basename(example.image)
        example = dataclasses.replace(example, meta={**example.meta, "file_name": name})
    return example


def make_record(example: Example, images: str, resize: int, pictures: Pictures, i: int) -> bytes:
    """The record of example i of the source; images, resize: as `build.prepare` has them.

    Raises BadRecord for an example that cannot be used, UserError for a source that cannot.
    """
    if callable(example.video):
        raise UserError(
            f"data {example.source}: its videos are no files, and shards only note where videos "
            "are: train on the source itself"
        )
    if example.video:
        example = dataclasses.replace(example, video=os.path.abspath(example.video))
    if example.image is None:
        return encode(example, None)
    if images == "keep":
        if not isinstance(example.image, str):
            raise UserError(
                f"data {example.source}: its pictures are no files that could stay where they "
                "are: choose images=embed or images=copy"
            )
        example.pixels()
        return encode(example, os.path.abspath(example.image))
    data, kind, size = picture_file(example, resize)
    example = dataclasses.replace(example, width=size[0], height=size[1])
    return encode(example, data if images == "embed" else pictures.write(i, data, kind))
