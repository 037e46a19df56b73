"""torch's zip files (torch.save since 1.6): the directory parsed, the storages left in place.

No PyTorch is needed: a file is a zip archive of stored, never compressed, entries. `data.pkl`
describes the tensors, `data/KEY` holds each storage, `byteorder` the order of its bytes.
"""

import struct
import zipfile
from typing import Any

from conversion.readers import pickles
from conversion.readers.source import FileMap, Stream
from mg_jax.errors import UserError

MAGIC = b"PK\x03\x04"
LOCAL_HEADER = 30  # bytes before an entry's name
SMALL = 64  # bytes of an entry that holds one word


def load(file: FileMap) -> Any:
    """The object of a torch zip file, its storages as positions in the file.

    Raises UserError when the file is cut short, damaged, compressed, big-endian, TorchScript, or
    its pickle is unsafe.
    """
    entries = _directory(file)
    roots = [name.removesuffix("data.pkl") for name in entries if name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise UserError(f"{file.path}: a zip archive, but no torch file (no data.pkl in it)")
    root = roots[0]
    if f"{root}constants.pkl" in entries:
        raise UserError(
            f"{file.path}: a TorchScript program, not a state dict; save "
            "torch.jit.load(...).state_dict() with torch.save"
        )
    if f"{root}byteorder" in entries:
        begin, end = _span(file, entries[f"{root}byteorder"])
        order = file.copy(begin, min(end, begin + SMALL))
        if order != b"little":
            raise UserError(
                f"{file.path}: byte order {order.decode('latin-1')!r}; only little-endian files "
                "are read, so load and save it once on a little-endian machine"
            )

    def persistent(saved: Any) -> pickles.Storage:
        kind, made_of, key, _location, count = saved
        if kind != "storage" or not isinstance(key, str) or not pickles.is_count(count):
            raise ValueError(f"an odd reference to {pickles.describe(kind)}")
        dtype = pickles.storage_dtype(made_of)
        entry = entries.get(f"{root}data/{key}")
        if entry is None:
            raise UserError(f"{file.path}: damaged: it holds no storage '{pickles.named(key)}'")
        begin, end = _span(file, entry)
        storage = pickles.Storage(key, dtype, count, begin)
        if end - begin != storage.nbytes:
            raise UserError(
                f"{file.path}: damaged: storage '{pickles.named(key)}' has {end - begin} bytes, "
                f"its tensors expect {storage.nbytes}"
            )
        return storage

    begin, end = _span(file, entries[f"{root}data.pkl"])
    return pickles.load(Stream(file, begin, end), str(file.path), persistent)


def _directory(file: FileMap) -> dict[str, zipfile.ZipInfo]:
    """Every entry by name, from the directory at the file's end."""
    try:
        with zipfile.ZipFile(file.path) as archive:
            listed = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, struct.error, ValueError, OverflowError):
        raise UserError(
            f"{file.path}: cut short or damaged: the directory at its end is missing or broken"
        ) from None
    entries: dict[str, zipfile.ZipInfo] = {}
    for entry in listed:
        if entry.orig_filename in entries:
            raise UserError(f"{file.path}: {entry.orig_filename} stands twice in it")
        entries[entry.orig_filename] = entry
    return entries


def _span(file: FileMap, entry: zipfile.ZipInfo) -> tuple[int, int]:
    """First byte of an entry's data and the one behind its last."""
    name = entry.orig_filename
    if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
        how = "encrypted" if entry.flag_bits & 1 else "compressed"
        raise UserError(f"{file.path}: {name} is {how}; torch stores its entries plainly")
    header = file.copy(max(0, entry.header_offset), max(0, entry.header_offset) + LOCAL_HEADER)
    if len(header) < LOCAL_HEADER or header[:4] != MAGIC:
        raise UserError(f"{file.path}: damaged: {name} is not where its directory says")
    # the local header's own lengths: torch pads its extra field for alignment
    name_size, extra_size = struct.unpack_from("<HH", header, 26)
    begin = entry.header_offset + LOCAL_HEADER + name_size + extra_size
    end = begin + entry.file_size
    if end > file.size:
        raise UserError(f"{file.path}: cut short ({name} lies past the end of the file)")
    return begin, end
