"""Folders of shards: a data set as ArrayRecord files of neutral examples (`mg_jax.data.records`).

    DIR/dataset.json                            what is in it; written last
    DIR/data-00000-of-00008.array_record        the records, in the order of the source
    DIR/images/00000/00000017.jpg               the pictures of that shard, where they were copied

dataset.json holds the settings of the build (`build.Job.settings`), then name, head, tasks and
frequency of the source, the number of examples, what was left out (left_out by reason, bad,
problems), and for each shard its file, examples, bytes and sha256, and of each of its examples the
medium and about how many tokens (measures, numbers with spaces between, see `sources.measures`);
of copied pictures their number (pictures) and the sha256 of their contents one behind the other
(pictures_sha256).
`mg_jax.data.build` makes such a folder, `sources.shards` reads it.
"""

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from mg_jax.data.records import VERSION
from mg_jax.disk import read_json
from mg_jax.errors import UserError

FORMAT = "mg_jax.shards"
DATASET, BUILDING = "dataset.json", "building.json"


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """dataset.json of a folder of shards, whose files are there with the right sizes.

    Raises UserError for a folder that is none, or is unfinished, changed, or of a later version.
    """
    folder = Path(folder)
    if not (folder / DATASET).is_file():
        if (folder / BUILDING).is_file():
            raise UserError(f"{folder}: is unfinished: run its launch.build_data command again")
        raise UserError(f"{folder}: holds no {DATASET}: make one with launch.build_data")
    manifest = read_json(folder / DATASET)
    if manifest.get("format") != FORMAT:
        raise UserError(f"{folder / DATASET}: describes no data set of shards")
    if manifest.get("version") != VERSION:
        raise UserError(
            f"{folder}: holds shards of version {manifest.get('version')}, this is for version "
            f"{VERSION}: build them again"
        )
    try:
        files = [(folder / entry["file"], entry["bytes"]) for entry in manifest["files"]]
    except (KeyError, TypeError):
        raise UserError(f"{folder / DATASET}: is damaged: copy the folder again") from None
    for path, expected in files:
        size = path.stat().st_size if path.is_file() else None
        if size != expected:
            found = "is missing" if size is None else f"has {size} bytes instead"
            raise UserError(f"{path}: {found} of {expected}: copy the folder again")
    return manifest


def verify(folder: str | Path, seen: Callable[[int], None] = lambda n: None) -> dict[str, Any]:
    """Compare every file with its checksum; returns the manifest. seen(1) after each shard.

    Raises UserError naming the files that differ.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    wrong = []
    for k, entry in enumerate(manifest["files"]):
        if checksum([folder / entry["file"]]) != entry["sha256"]:
            wrong.append(entry["file"])
        pictures = folder / "images" / f"{k:05d}"
        if "pictures" in entry:
            files = sorted(pictures.iterdir()) if pictures.is_dir() else []
            if len(files) != entry["pictures"] or checksum(files) != entry["pictures_sha256"]:
                wrong.append(f"images/{k:05d}")
        seen(1)
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise UserError(f"{folder}: {wrong[0]}{more} differs from its checksum: copy it again")
    return manifest


def checksum(files: Iterable[Path]) -> str:
    """sha256 of the contents of files, one behind the other."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
