"""Reading one tensor of a huge file touches that tensor and nothing else."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from conversion import readers
from conversion.readers.source import FileMap
from tests.conversion.torch_files import NO_VIEW, legacy_bytes, mapping, program, tensor

SMALL = np.arange(1024, dtype=np.float32)
LARGE = 3 << 28  # elements, 3 GiB: over the 32 bits of old zip directories
COUNTS = {"a": LARGE, "small": SMALL.size, "z": LARGE}
NEAR = 1 << 20  # the kernel maps some pages around each one that is used


def new_file(path):
    """A torch zip file as torch writes it without its data; where `small` begins."""
    torch = pytest.importorskip("torch")
    with torch.serialization.skip_data():
        torch.save({name: torch.empty(count) for name, count in COUNTS.items()}, path)
    return torch._C.PyTorchFileReader(str(path)).get_record_offset("data/1")


def old_file(path):
    """A torch file of the years before 1.6, made by hand; where `small` begins."""
    state = {n: tensor(n, count, (count,), (1,), view=NO_VIEW) for n, count in COUNTS.items()}
    keys = pickle.dumps(list(COUNTS), 2)
    nothing = len(pickle.dumps([], 2))
    path.write_bytes(legacy_bytes(program(mapping(state)))[:-nothing] + keys)
    begins = {}
    for name, count in COUNTS.items():
        with open(path, "ab") as file:
            file.write(count.to_bytes(8, "little"))
            begins[name] = file.tell()
            file.truncate(file.tell() + 4 * count)
    return begins["small"]


def safetensors_file(path):
    """A safetensors file, made by hand; where `small` begins."""
    ends = np.cumsum([4 * count for count in COUNTS.values()]).tolist()
    header = {
        name: {"dtype": "F32", "shape": [count], "data_offsets": [end - 4 * count, end]}
        for (name, count), end in zip(COUNTS.items(), ends, strict=True)
    }
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)  # as the library aligns its data
    raw = len(raw).to_bytes(8, "little") + raw
    path.write_bytes(raw)
    with open(path, "ab") as file:
        file.truncate(len(raw) + ends[-1])
    return len(raw) + ends[0]


def resident(path):
    """Bytes of a mapped file that stand in this process's memory; None where nobody tells."""
    try:
        lines = Path("/proc/self/smaps").read_text().splitlines()
    except OSError:
        return None
    total, ours = 0, False
    for line in lines:
        if not line.split()[0].endswith(":"):  # a new mapping: addresses, rights, ..., path
            ours = line.endswith(str(path))
        elif ours and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total


MAKERS = [pytest.param(new_file, marks=pytest.mark.torch), old_file, safetensors_file]


@pytest.mark.parametrize("make", MAKERS)
def test_reading_one_tensor_of_six_gigabytes(make, tmp_path, monkeypatch):
    path = tmp_path / ("x.safetensors" if make is safetensors_file else "x.pth")
    begin = make(path)
    with open(path, "r+b") as file:
        file.seek(begin)
        file.write(SMALL.tobytes())
    if path.stat().st_blocks * 512 > 1 << 26:
        pytest.skip("this file system keeps no holes")

    spans = []

    def count(method):
        def counted(file, begin, end):
            spans.append((begin, min(end, file.size)))
            return method(file, begin, end)

        return counted

    for name in ("view", "copy"):  # every way to a mapped file's bytes
        monkeypatch.setattr(FileMap, name, count(getattr(FileMap, name)))
    source = readers.open_checkpoint(path)
    assert source.nbytes > 6 << 30
    assert sum(end - begin for begin, end in spans) < 1 << 14

    spans.clear()
    read = source.read("small")
    assert spans == [(begin, begin + SMALL.nbytes)]
    np.testing.assert_array_equal(read, SMALL)
    assert resident(path) is None or 0 < resident(path) < NEAR
    with pytest.raises(ValueError, match="read-only"):
        read[0] = 1

    if make is not old_file:  # whose storages are not aligned, so that it copies what is read
        huge = source.read("z")
        assert huge[:4].sum() == huge[-4:].sum() == 0
        assert resident(path) is None or resident(path) < 3 * NEAR
