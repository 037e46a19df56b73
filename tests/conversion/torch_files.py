"""torch files put together byte by byte, without PyTorch: pickles, and the containers of them."""

import io
import pickle
import struct
import tarfile
import zipfile

import numpy as np

from conversion import readers

ORDERED = b"ccollections\nOrderedDict\n"
CLASSES = {"f4": "FloatStorage", "f2": "HalfStorage", "i8": "LongStorage"}
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
NO_VIEW = b"N"  # a legacy file's storages say so
FLOATS = np.arange(24, dtype=np.float32)
ONE = {"0": FLOATS}


def text(value):
    """Opcodes that push a text."""
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def number(value):
    """Opcodes that push an integer."""
    return pickle.dumps(value, 2)[2:-1]


def numbers(values):
    """Opcodes that push a tuple of integers."""
    return b"(" + b"".join(number(v) for v in values) + b"t"


def storage(key, count, kind="f4", view=b""):
    """Opcodes that push a persistent storage; a legacy file's has a `view`, mostly NONE."""
    saved = text("storage") + f"ctorch\n{CLASSES[kind]}\n".encode() + text(key) + text("cpu")
    return b"(" + saved + number(count) + view + b"tQ"


def tensor(key, count, shape, strides, offset=0, kind="f4", view=b""):
    """Opcodes that push a tensor over the storage `key` of `count` elements."""
    layout = number(offset) + numbers(shape) + numbers(strides)
    arguments = storage(key, count, kind, view) + layout + b"\x89" + ORDERED + b")R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR"


def mapping(items):
    """Opcodes that push a dict of text -> opcodes."""
    return b"}(" + b"".join(text(k) + v for k, v in items.items()) + b"u"


def program(body):
    """A whole pickle."""
    return b"\x80\x02" + body + b"."


def zip_bytes(pickled, storages=None, byteorder=b"little", compress=zipfile.ZIP_STORED):
    """A torch zip file. `storages` maps keys to arrays."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compress) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", b"3\n")
        if byteorder:
            archive.writestr("archive/byteorder", byteorder)
        for key, array in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", array.tobytes())
    return out.getvalue()


def legacy_bytes(pickled, storages=None, little=True, magic=LEGACY_MAGIC):
    """A torch file of the years before 1.6."""
    info = {"protocol_version": 1001, "little_endian": little}
    head = b"".join(pickle.dumps(item, 2) for item in (magic, 1001, info))
    keys = sorted(storages or {})
    data = b"".join(struct.pack("<q", storages[k].size) + storages[k].tobytes() for k in keys)
    return head + pickled + pickle.dumps(keys, 2) + data


def tar_bytes(pickled, storages=(), tensors=(), views=(), little=True):
    """A torch file of the years before 0.1.10.

    `storages` are (key, array), `tensors` (key, storage key, shape, strides, offset), `views`
    (key, storage key, offset, count); `pickled` refers to tensors by their keys.
    """
    blobs = pickle.dumps(len(storages), 2)
    for key, array in storages:
        kind = CLASSES[array.dtype.str[1:]]
        blobs += program(b"(" + number(key) + text("cpu") + f"ctorch\n{kind}\n".encode() + b"t")
        blobs += struct.pack("<q", array.size) + array.tobytes()
    blobs += pickle.dumps([tuple(view) for view in views], 2)
    described = pickle.dumps(len(tensors), 2)
    for key, held, shape, strides, offset in tensors:
        described += program(b"(" + number(key) + number(held) + b"ctorch\nFloatTensor\nt")
        sizes = (*shape, *strides, offset)
        described += struct.pack(f"<ii{len(sizes)}q", len(shape), 0, *sizes)
    info = pickle.dumps({"protocol_version": 1000, "little_endian": little}, 2)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:", format=tarfile.PAX_FORMAT) as archive:
        members = {"sys_info": info, "pickle": pickled, "tensors": described, "storages": blobs}
        for name, raw in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(raw)
            archive.addfile(entry, io.BytesIO(raw))
    return out.getvalue()


def reference(key):
    """Opcodes that push a tensor of a tar archive."""
    return number(key) + b"Q"


def containers(body):
    """The same pickle in a file of each kind: name -> bytes."""
    pickled = program(body)
    return {
        "new.pth": zip_bytes(pickled),
        "old.pth": legacy_bytes(pickled),
        "oldest.pth": tar_bytes(pickled),
    }


def state(**more):
    """A state dict of one tensor, and more values, as opcodes."""
    return mapping({"w": tensor("0", 24, (4, 6), (6, 1))} | more)


def opened(folder, body, arrays=ONE):
    file = folder / "model.pth"
    file.write_bytes(zip_bytes(program(body), arrays))
    return readers.open_checkpoint(file)
