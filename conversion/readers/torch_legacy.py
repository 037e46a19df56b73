"""torch's files from before 1.6: one pickle after another, and the tar archives before 0.1.10.

No PyTorch is needed. The storages stay in place: their positions follow from their lengths.
Source of both layouts: torch/serialization.py, `_legacy_load`.
"""

import struct
import tarfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from conversion.readers import pickles
from conversion.readers.source import FileMap, Stream
from mg_jax.errors import UserError

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
TAR_MARK, TAR_MARK_AT = b"ustar", 257


def is_legacy(file: FileMap) -> bool:
    """Whether a file begins with torch's magic number, pickled."""
    number = MAGIC.to_bytes(10, "little")  # after an opcode or two that depend on the protocol
    return file.copy(0, 1) == b"\x80" and number in file.copy(0, 32)


def is_tar(file: FileMap) -> bool:
    """Whether a file is a tar archive."""
    return file.copy(TAR_MARK_AT, TAR_MARK_AT + len(TAR_MARK)) == TAR_MARK


def load(file: FileMap) -> Any:
    """The object of a file of pickles, its storages as positions in the file.

    Raises UserError when it is cut short, damaged, big-endian or unsafe.
    """
    where, stream = str(file.path), Stream(file)
    storages: dict[Any, pickles.Storage] = {}
    views: dict[Any, tuple[pickles.Storage, pickles.Storage, int]] = {}

    def persistent(saved: Any) -> pickles.Storage:
        kind, *rest = saved
        if kind == "module":
            raise UserError(
                f"{where}: holds a whole nn.Module, which is code; save its state_dict() instead"
            )
        made_of, key, _location, count, view = rest
        if kind != "storage" or not pickles.is_count(count):
            raise ValueError(f"an odd reference to {pickles.describe(kind)}")
        _check_key(key)
        storage = storages.setdefault(
            key, pickles.Storage(key, pickles.storage_dtype(made_of), count)
        )
        if view is None:
            return storage
        view_key, offset, size = view
        _check_key(view_key)
        return _view(views, view_key, storage, offset, size)

    magic = pickles.load(stream, where, _no_persistent)
    version = pickles.load(stream, where, _no_persistent)
    if magic != MAGIC or version != PROTOCOL:
        raise UserError(f"{where}: not a torch file (its first pickles are not torch's)")
    _check_order(pickles.load(stream, where, _no_persistent), where)
    root = pickles.load(stream, where, persistent)
    keys = pickles.load(stream, where, _no_persistent)
    if not isinstance(keys, list) or len(keys) != len(storages):
        raise UserError(f"{where}: damaged: its list of storages does not fit its tensors")
    at = stream.tell()
    for key in keys:
        storage = storages.get(key) if isinstance(key, str | int) else None
        if storage is None or storage.begin >= 0:
            raise UserError(
                f"{where}: damaged: storage '{pickles.named(key)}' has no tensor or stands twice"
            )
        at = _place(file, storage, at)
    _place_views(views, where)
    return root


def load_tar(file: FileMap) -> Any:
    """The object of a tar archive, its storages as positions in the file.

    Raises UserError when it is cut short, damaged, big-endian or unsafe.
    """
    where = str(file.path)
    members = _members(file)
    if "sys_info" in members:
        stream = Stream(file, *members["sys_info"])
        _check_order(pickles.load(stream, where, _no_persistent), where)
    made: dict[Any, pickles.Storage | pickles.Tensor] = _tar_storages(file, members["storages"])
    made |= _tar_tensors(file, members["tensors"], made)

    def persistent(saved: Any) -> Any:
        if isinstance(saved, tuple):
            raise UserError(
                f"{where}: holds a whole nn.Module, which is code; save its state_dict() instead"
            )
        return made[int(saved)]

    return pickles.load(Stream(file, *members["pickle"]), where, persistent)


def _tar_storages(file: FileMap, span: tuple[int, int]) -> dict[Any, Any]:
    """The storages by key: a count, then a pickle (key, location, class) and data for each."""
    where, made = str(file.path), {}
    views: dict[Any, tuple[pickles.Storage, pickles.Storage, int]] = {}
    stream = Stream(file, *span)
    for _ in range(_count(stream, where)):
        key, _location, made_of = _triple(stream, where)
        (count,) = _integers(file, stream.tell(), 1)
        storage = pickles.Storage(key, _storage_dtype(made_of, where), count)
        made[key] = storage
        stream = Stream(file, _place(file, storage, stream.tell()), span[1])
    listed = pickles.load(stream, where, _no_persistent)
    try:
        for key, root, offset, size in listed:
            made[key] = _view(views, key, made[root], offset, size)
    except (TypeError, ValueError, KeyError):
        raise UserError(f"{where}: damaged: its list of storage views is broken") from None
    _place_views(views, where)
    return made


def _tar_tensors(
    file: FileMap, span: tuple[int, int], made: Mapping[Any, Any]
) -> dict[Any, pickles.Tensor]:
    """The tensors by key: a count, then a pickle (key, storage, class) and the layout of each."""
    where, tensors = str(file.path), {}
    stream = Stream(file, *span)
    for _ in range(_count(stream, where)):
        key, storage_key, _made_of = _triple(stream, where)
        at = stream.tell()
        rank = _integers(file, at, 1)[0] & 0xFFFFFFFF  # of its 8 bytes torch reads 4
        if rank > 64:
            raise UserError(f"{where}: damaged: a tensor of {rank} dimensions")
        *dims, offset = _integers(file, at + 8, 2 * rank + 1)
        try:
            tensors[key] = pickles.tensor(made[storage_key], offset, dims[:rank], dims[rank:])
        except (KeyError, ValueError) as error:
            raise UserError(f"{where}: damaged: tensor {pickles.named(key)} ({error})") from None
        stream = Stream(file, at + 8 * (2 * rank + 2), span[1])
    return tensors


def _members(file: FileMap) -> dict[str, tuple[int, int]]:
    """First byte and the one behind the last of each member of a tar archive."""
    spans: dict[str, tuple[int, int]] = {}
    try:
        with tarfile.open(file.path, mode="r:") as archive:
            for member in archive:
                if not member.isreg() or member.issparse():
                    continue
                name = member.name.removeprefix("./")
                if name in spans:
                    raise UserError(f"{file.path}: {name} stands twice in it")
                spans[name] = (member.offset_data, member.offset_data + member.size)
    except (tarfile.TarError, ValueError, OSError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{file.path}: cut short or damaged: a broken tar archive") from None
    for name in ("storages", "tensors", "pickle"):
        if name not in spans:
            raise UserError(f"{file.path}: a tar archive, but no torch file (no {name} in it)")
        if spans[name][1] > file.size:
            raise UserError(f"{file.path}: cut short ({name} lies past the end of the file)")
    return spans


def _count(stream: Stream, where: str) -> int:
    count = pickles.load(stream, where, _no_persistent)
    if not pickles.is_count(count):
        raise UserError(f"{where}: damaged: a number of tensors or storages is missing")
    return count


def _triple(stream: Stream, where: str) -> tuple[Any, Any, Any]:
    found = pickles.load(stream, where, _no_persistent)
    if not isinstance(found, tuple | list) or len(found) != 3 or type(found[0]) is not int:
        raise UserError(f"{where}: damaged: an entry of its tensors or storages is broken")
    if type(found[1]) not in (int, str):
        raise UserError(f"{where}: damaged: an entry of its tensors or storages is broken")
    return found[0], found[1], found[2]


def _storage_dtype(made_of: Any, where: str) -> np.dtype:
    try:
        return pickles.storage_dtype(made_of)
    except ValueError as error:
        raise UserError(f"{where}: damaged: {error}") from None


def _integers(file: FileMap, at: int, count: int) -> tuple[int, ...]:
    """`count` little-endian 64-bit integers."""
    return struct.unpack(f"<{count}q", file.view(at, at + 8 * count).tobytes())


def _place(file: FileMap, storage: pickles.Storage, at: int) -> int:
    """Set where a storage begins, behind its count at `at`; gives the byte behind its last."""
    (count,) = _integers(file, at, 1)
    if count != storage.count or count < 0:
        raise UserError(
            f"{file.path}: damaged: storage '{pickles.named(storage.key)}' has {count} elements, "
            f"its tensors expect {storage.count}"
        )
    storage.begin = at + 8
    end = storage.begin + storage.nbytes
    if end > file.size:
        raise UserError(
            f"{file.path}: cut short (storage '{pickles.named(storage.key)}' lies past the end of "
            "the file)"
        )
    return end


def _view(views: dict, key: Any, root: pickles.Storage, offset: Any, size: Any) -> pickles.Storage:
    """Part of a storage as one of its own; its place is known once the root's is."""
    if not all(map(pickles.is_count, (offset, size))):
        raise ValueError("a view of odd size")
    if offset + size > root.count:
        raise ValueError("a view larger than its storage")
    if key not in views:
        views[key] = (pickles.Storage(key, root.dtype, size), root, offset)
    return views[key][0]


def _place_views(views: Mapping, where: str) -> None:
    for storage, root, offset in views.values():
        if root.begin < 0:
            raise UserError(f"{where}: damaged: storage '{pickles.named(root.key)}' is missing")
        storage.begin = root.begin + offset * root.dtype.itemsize


def _check_key(key: Any) -> None:
    if not isinstance(key, str | int):
        raise ValueError("a storage whose key is neither text nor number")


def _check_order(info: Any, where: str) -> None:
    if isinstance(info, dict) and info.get("little_endian") is False:
        raise UserError(
            f"{where}: big-endian; only little-endian files are read, so load and save it once on "
            "a little-endian machine"
        )


def _no_persistent(_saved: Any) -> Any:
    raise ValueError("a tensor where none belongs")
