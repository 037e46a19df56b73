"""A name on the Hugging Face hub as a local folder: fetched once, then read from the cache.

Of the files at the top of a repository those are fetched that the readers would open in such a
folder, and with them the config and the tokenizer. An interrupted download goes on where it
stopped. Without a network, or where the hub refuses, the cache is asked.
"""

import contextlib
import fnmatch
import glob
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from conversion.engine import TensorInfo
from conversion.readers import DTYPES, Joined, Source, open_checkpoint
from conversion.readers.containers import main_file, only_file, shards_of, unprefixed
from mg_jax.disk import disk_errors
from mg_jax.errors import UserError

# org/name or org/name@revision; a local path is looked for first, and a deeper one is no name
NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?")
WEIGHTS = (".safetensors", ".bin", ".pth", ".pt")
SMALL_FILES = (
    "*.json", "tokenizer*", "vocab*", "merges.txt", "*.jinja", "LICENSE*", "NOTICE*", "USE_POLICY*",
    "README.md",
)  # fmt: skip


class Fetched(NamedTuple):
    """A local folder or file. `headers`: names and shapes of weights that were not fetched."""

    path: Path
    notes: tuple[str, ...] = ()
    headers: Source | None = None


def is_name(source: str | os.PathLike) -> bool:
    """Whether `source` may be a name on the hub: org/name, no file of weights by its ending, and
    nothing of that path is here."""
    text = os.fspath(source)
    named = NAME.fullmatch(text) and not text.lower().endswith(WEIGHTS)
    return bool(named) and not Path(text).exists()


def fetch(
    name: str,
    revision: str | None = None,
    cache: Path | None = None,
    dry: bool = False,
    weights: bool = True,
) -> Fetched:
    """The folder of `name`, which may end in @revision, at `revision` (default: its main branch).

    `revision`: branch, tag or commit. `cache`: folder of the cache, by default that of HF_HOME.
    `dry`: fetch the headers of weights alone, unless the weights are in the cache; without
    `weights` not even those, but only the config and the tokenizer. Raises
    UserError when the name or revision does not exist, needs a login, or is not in the cache
    while there is no network.
    """
    name, _, pinned = name.partition("@")
    if pinned and revision not in (None, pinned):
        raise UserError(f"{name}@{pinned}: --revision {revision} names another one; leave it out")
    revision = pinned or revision
    try:
        return _fetch(name, revision, cache, dry, weights)
    except UserError:
        raise
    except Exception as error:  # each version of the client has a network error of its own
        refusal = _refusal(error, name, revision)
        folder = _cached(name, revision, cache)
        if folder is not None and refusal is None:
            return Fetched(folder)
        if folder is not None and (not weights or _whole(folder)):
            return Fetched(folder, (f"read from the cache, since the hub refuses: {refusal}",))
        raise refusal or _unreachable(error, name, revision) from error


def _fetch(name: str, revision: str | None, cache: Path | None, dry: bool, wanted: bool) -> Fetched:
    from huggingface_hub import HfApi

    found = HfApi().model_info(name, revision=revision)
    listed = [entry.rfilename for entry in found.siblings or ()]
    top = [file for file in listed if "/" not in file]
    where = _at(name, revision)
    small = [file for file in top if any(fnmatch.fnmatch(file, p) for p in SMALL_FILES)]
    if not wanted:
        return Fetched(_download(name, revision, cache, small))
    main = main_file(top, where) or only_file(top, where)
    weights: tuple[str, ...] = (main,)
    if main.endswith(".json"):
        weights = shards_of(_download(name, revision, cache, [*small, main]) / main)
    if dry and not all(_has(name, found.sha, cache, file) for file in weights):
        headers = _headers(name, revision, weights)
        return Fetched(_download(name, revision, cache, small), headers=headers)
    return Fetched(_download(name, revision, cache, [*small, main, *weights]))


def _download(name: str, revision: str | None, cache: Path | None, files: Iterable[str]) -> Path:
    """The folder of the cache with `files` of a repository in it."""
    from huggingface_hub import snapshot_download

    patterns = list(dict.fromkeys(glob.escape(file) for file in files))
    with _broken_off(_at(name, revision)), disk_errors(Path(cache or "the hub's cache")):
        return Path(
            snapshot_download(name, revision=revision, cache_dir=cache, allow_patterns=patterns)
        )


@contextlib.contextmanager
def _broken_off(where: str) -> Iterator[None]:
    """Inside, whatever ends a download is a UserError, save the answers `_refusal` knows."""
    from huggingface_hub import errors

    try:
        yield
    except (UserError, errors.RepositoryNotFoundError, errors.RevisionNotFoundError):
        raise
    except Exception as error:
        raise UserError(
            f"{where}: the download broke off ({_line(error)}); the same command goes on with it"
        ) from error


class Headers(Source):
    """Names, shapes and dtypes of a file on the hub, whose tensors are not here."""

    def __init__(self, where: str, tensors: Mapping[str, Any]):
        self.where, self.files, self.manifest = where, (), {}
        for name, found in tensors.items():
            if found.dtype not in DTYPES:
                raise UserError(f"{where}: {name}: unknown dtype {found.dtype!r}")
            self.manifest[name] = TensorInfo(tuple(found.shape), np.dtype(DTYPES[found.dtype]))

    @property
    def copied(self) -> int:
        return 0

    def _read(self, name: str) -> np.ndarray:
        raise UserError(f"{self.where}: {name} was not fetched; plan without dry=True")


def _headers(name: str, revision: str | None, files: Iterable[str]) -> Source:
    """The headers of safetensors on the hub as one checkpoint that cannot be read."""
    from huggingface_hub import HfApi

    parts = []
    for file in files:
        where = f"{_at(name, revision)}/{file}"
        if not file.endswith(".safetensors"):
            raise UserError(
                f"{where}: is a torch file, of which nothing can be shown before all of it is "
                f"here; fetch it with `hf download {_arguments(name, revision)}`, then run the "
                "same command again"
            )
        with _broken_off(where):
            found = HfApi().parse_safetensors_file_metadata(name, file, revision=revision)
        parts.append(("", Headers(where, found.tensors)))
    return unprefixed(Joined(_at(name, revision), parts))


def revision_of(folder: Path) -> str:
    """The commit of a folder of the cache (snapshots/<commit>), "" for any other folder."""
    commit = folder.name if folder.parent.name == "snapshots" else ""
    return commit if re.fullmatch(r"[0-9a-f]{7,64}", commit) else ""


def _has(name: str, commit: str | None, cache: Path | None, file: str) -> bool:
    """Whether a file is in the cache."""
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(name, file, cache, commit), str)


def _cached(name: str, revision: str | None, cache: Path | None) -> Path | None:
    """The folder of the cache, None where there is none."""
    from huggingface_hub import snapshot_download

    try:
        # the config alone is asked for: which weights there are, the readers find out
        return Path(
            snapshot_download(
                name,
                revision=revision,
                cache_dir=cache,
                allow_patterns=["config.json"],
                local_files_only=True,
            )
        )
    except (ValueError, OSError):
        return None


def _whole(folder: Path) -> bool:
    """Whether a folder of the cache holds all of its weights."""
    try:
        open_checkpoint(folder)
    except UserError:
        return False
    return True


def _refusal(error: BaseException, name: str, revision: str | None) -> UserError | None:
    """What an answer of the hub means to a user; None for what is no answer."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return UserError(
            f"{_at(name, revision)}: its owner asks for a licence to be accepted first: do so on "
            "its page on the hub, then log in with `hf auth login`"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return UserError(f"{name}: has no revision {revision!r} on the hub")
    if isinstance(error, errors.RepositoryNotFoundError):
        return UserError(
            f"{name}: no such folder here, and no such name on the hub (or it is private: log in "
            "with `hf auth login`)"
        )
    return None


def _unreachable(error: BaseException, name: str, revision: str | None) -> UserError:
    return UserError(
        f"{_at(name, revision)}: no such folder here, not in the cache, and the hub cannot be "
        f"reached ({_line(error)}). Where there is a network: hf download "
        f"{_arguments(name, revision)}; then pass the folder it prints, or copy its cache "
        "(HF_HOME) here"
    )


def _at(name: str, revision: str | None) -> str:
    return f"{name}@{revision}" if revision else name


def _arguments(name: str, revision: str | None) -> str:
    return f"{name} --revision {revision}" if revision else name


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:120]
