"""A name on the Hugging Face hub as a local folder: fetched once, then read from the cache.

Files are safetensors if the repository has them, else torch's; with them come the config and the
tokenizer. An interrupted download goes on where it stopped. Without a network the cache alone is
asked.
"""

import fnmatch
import os
import re
from collections.abc import Iterable
from pathlib import Path

from mg_jax.checkpoint import disk_errors
from mg_jax.errors import UserError

# org/name; a local path is looked for first, and a deeper one is no name
NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
SMALL_FILES = (
    "*.json", "tokenizer*", "vocab*", "merges.txt", "*.jinja", "LICENSE*", "NOTICE*", "USE_POLICY*",
    "README.md",
)  # fmt: skip
# The first kind that a repository has is fetched, the others are not.
WEIGHTS = (("*.safetensors",), ("pytorch_model*.bin",), ("*.bin", "*.pth", "*.pt"))


def is_name(source: str | os.PathLike) -> bool:
    """Whether `source` may be a name on the hub: org/name, and nothing of that path is here."""
    text = os.fspath(source)
    return NAME.fullmatch(text) is not None and not Path(text).exists()


def fetch(name: str, revision: str | None = None, cache: Path | None = None) -> Path:
    """The folder of `name` at `revision` (branch, tag or commit; default: its main branch).

    `cache`: folder of the cache, by default that of HF_HOME. Raises UserError when the name or
    revision does not exist, needs a login, or is not in the cache while there is no network.
    """
    from huggingface_hub import HfApi, errors, snapshot_download

    at = f"{name} at revision {revision}" if revision else name
    try:
        listed = HfApi().model_info(name, revision=revision).siblings or []
    except errors.GatedRepoError as error:
        raise UserError(
            f"{at}: its owner asks for a licence to be accepted first: do so on its page on the "
            "hub, then log in with `hf auth login`"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{name}: has no revision {revision!r} on the hub") from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"{name}: no such folder here, and no such name on the hub (or it is private: log in "
            "with `hf auth login`)"
        ) from error
    except Exception as error:  # each version of the client has a network error of its own
        return _cached(name, revision, cache, at, error)
    patterns = [*SMALL_FILES, *wanted(entry.rfilename for entry in listed)]
    try:
        with disk_errors(Path(cache or "the hub's cache")):
            return Path(
                snapshot_download(name, revision=revision, cache_dir=cache, allow_patterns=patterns)
            )
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{at}: the download broke off ({_line(error)}); the same command goes on with it"
        ) from error


def wanted(files: Iterable[str]) -> tuple[str, ...]:
    """The patterns of the weight files to fetch of a repository that holds `files`."""
    top = [file for file in files if "/" not in file]
    for patterns in WEIGHTS:
        if any(fnmatch.fnmatch(file, pattern) for file in top for pattern in patterns):
            return patterns
    return ()


def revision_of(folder: Path) -> str:
    """The commit of a folder of the cache (snapshots/<commit>), "" for any other folder."""
    commit = folder.name if folder.parent.name == "snapshots" else ""
    return commit if re.fullmatch(r"[0-9a-f]{7,64}", commit) else ""


def _cached(
    name: str,
    revision: str | None,
    cache: Path | None,
    at: str,
    reason: BaseException,
) -> Path:
    from huggingface_hub import snapshot_download

    try:
        # the small files alone are asked for: which weights there are, the readers find out
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
        which = f" --revision {revision}" if revision else ""
        raise UserError(
            f"{at}: no such folder here, not in the cache, and the hub cannot be reached "
            f"({_line(reason)}). Where there is a network: hf download {name}{which}; then pass "
            "the folder it prints, or copy its cache (HF_HOME) here"
        ) from reason


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:120]
