"""Files and folders as a user meets them: full disks, names given last, JSON that may be broken."""

import contextlib
import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mg_jax.errors import UserError


@contextlib.contextmanager
def disk_errors(path: Path, mend: Callable[[], str] = lambda: "") -> Iterator[None]:
    """Turn a full disk or missing permission into a UserError that names `path`."""
    try:
        yield
    except UserError:
        raise
    except Exception as e:  # tensorstore reports a full disk in the text of a ValueError
        seen: list[BaseException] = [e]
        while (e2 := seen[-1].__cause__ or seen[-1].__context__) and e2 not in seen:
            seen.append(e2)
        codes = {x.errno for x in seen if isinstance(x, OSError)}
        text = " ".join(map(str, seen))
        if codes & {errno.ENOSPC, errno.EDQUOT} or "No space left" in text or "quota" in text:
            amount = f" ({e.strerror})" if isinstance(e, OSError) and "MiB" in str(e) else ""
            raise UserError(f"{path}: the disk is full{amount}. {mend()}".rstrip()) from e
        if codes & {errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EEXIST}:
            raise UserError(f"{path}: cannot be written ({e}). {mend()}".rstrip()) from e
        raise


def local(folder: str | Path, flag: str = "--workdir ") -> Path:
    """The absolute path of a folder, named by `flag`. Raises UserError for a URL, such as
    gs://bucket/run."""
    text = str(folder)
    if found := re.match(r"([a-z][a-z0-9+.-]+):/+(.*)", text):  # pathlib takes a slash out
        where, _, rest = found[2].partition("/")
        mounted = f"/mnt/{where}/{rest or 'runs/a'}"
        raise UserError(
            f"{flag}{found[1]}://{found[2]}: is a URL, not a folder: mount the bucket (gcsfuse "
            f"{where} /mnt/{where}, docs/pods.md) and write {flag}{mounted}"
        )
    return Path(folder).absolute()


def free_bytes(folder: Path) -> int:
    """Free bytes of the disk that `folder` is or will be on."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def need_space(folder: Path, count: float) -> None:
    """Raises OSError(ENOSPC) when the disk of `folder` has less than `count` bytes free.

    Asked before a save: told in time, tensorstore leaves no half of a checkpoint behind.
    """
    free = free_bytes(folder)
    if free < count:
        text = f"{count / 2**20:.0f} MiB are to be written, {free / 2**20:.0f} MiB are free"
        raise OSError(errno.ENOSPC, text)


def reserve(path: Path) -> None:
    """Give a file, which may have holes, its whole room on the disk now, where the system can: a
    full disk is then told here and not when the holes are filled. Raises OSError(ENOSPC)."""
    if not hasattr(os, "posix_fallocate"):
        return
    with path.open("r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        except OSError as e:
            if e.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # those: not on this disk
                raise


def replace(part: Path, folder: Path) -> None:
    """Give the finished folder `part` the name `folder`; what had that name goes."""
    if not folder.exists():
        part.rename(folder)
        return
    old = Path(tempfile.mkdtemp(prefix=f"{folder.name}.old-", dir=folder.parent))
    folder.rename(old)
    try:
        part.rename(folder)
    except OSError:
        old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises UserError naming the file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, ValueError, RecursionError) as e:
        raise UserError(f"{path}: cannot be read ({e})") from e
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds no JSON object")
    return content


def read_json_lines(path: Path, *keys: str) -> list[dict[str, Any]]:
    """The objects of a file with one a line, each with `keys`; empty lines do not count. Raises
    UserError naming the file, the line and what is missing."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"{path}: cannot be read ({e})") from None
    rows = []
    for n, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as e:
            raise UserError(f"{path}:{n}: no JSON object ({e})") from None
        if not isinstance(row, dict):
            raise UserError(f"{path}:{n}: no JSON object")
        if missing := [key for key in keys if key not in row]:
            raise UserError(f"{path}:{n}: lacks {', '.join(missing)}")
        rows.append(row)
    return rows


def temporary(path: Path) -> Path:
    """A new empty file beside `path`, by a name that no other process has."""
    handle, name = tempfile.mkstemp(".part", f"{path.name}.", path.parent)
    os.fchmod(handle, 0o644)
    os.close(handle)
    return Path(name)


def sync(path: Path) -> None:
    """Return when the disk has what was written to a file."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file whole or not at all."""
    part = temporary(path)
    part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    sync(part)
    part.rename(path)
