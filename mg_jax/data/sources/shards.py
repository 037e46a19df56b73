"""Folders of shards that launch.build_data made (`mg_jax.data.shards`), with random access."""

import bisect
import itertools
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mg_jax.data.records import decode
from mg_jax.data.shards import read_manifest
from mg_jax.data.sources.base import MAX_BAD, Source, existing
from mg_jax.errors import BadRecord
from mg_jax.example import Example

_OPEN = 128  # files that are held open


class ShardSource(Source):
    """The examples of a folder with dataset.json, as the source had them that it was built from.

    Their ids and `Example.source` are those of that source; so are head, name and tasks unless
    they are given. counts, bad and problems: what the build left out. Opening reads dataset.json
    and the sizes of the shards; the checksums are for `shards.verify`. Can be pickled, forked and
    read by several threads at once. Raises UserError as `shards.read_manifest`.
    """

    def __init__(
        self,
        folder: str | Path = "",
        head: str = "",
        name: str = "",
        max_bad: float | str = MAX_BAD,
    ):
        self.folder = existing(folder, "shards", folder=True).absolute()
        manifest = read_manifest(self.folder)
        super().__init__(name or manifest["name"], head or manifest["head"], max_bad)
        self.counts.update(manifest["left_out"])
        self.tasks, self._frequency = manifest["tasks"], manifest["frequency"]
        self.bad, self.problems = manifest["bad"], list(manifest["problems"])
        self._files = [entry["file"] for entry in manifest["files"]]
        counts = (entry["examples"] for entry in manifest["files"])
        self._ends = list(itertools.accumulate(counts))
        found = " ".join(entry.get("measures", "") for entry in manifest["files"])
        self._measures = np.array(found.split(), np.int32).reshape(-1, 2)
        self._forget()

    @property
    def frequency(self) -> Mapping[str, int]:
        return self._frequency

    def _forget(self) -> None:
        """Begin without open files: they belong to one process."""
        self._lock, self._pid = threading.Lock(), os.getpid()
        self._readers: dict[int, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k not in ("_lock", "_readers")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._forget()

    def measures(self) -> np.ndarray | None:
        return self._measures if len(self._measures) == len(self) else None  # as of older builds

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, i: int) -> Example:
        if not 0 <= i < len(self):
            raise IndexError(i)
        shard = bisect.bisect_right(self._ends, i)
        row = int(i) - (self._ends[shard - 1] if shard else 0)
        where = f"{self.folder / self._files[shard]}: record {row}"
        try:
            (data,) = self._reader(shard).read([row])
        except (RuntimeError, IndexError, ValueError) as e:
            raise BadRecord(f"{where}: cannot be read ({e})") from None
        return decode(data, self.folder, where)

    def _reader(self, shard: int) -> Any:
        """The open file of a shard; of too many, the one opened first is given up."""
        from array_record.python.array_record_module import ArrayRecordReader

        if self._pid != os.getpid():
            self._forget()
        with self._lock:
            reader = self._readers.get(shard)
            if reader is None:
                # no reading ahead and no threads: the next record asked for lies elsewhere
                reader = ArrayRecordReader(
                    str(self.folder / self._files[shard]),
                    "readahead_buffer_size:0,max_parallelism:0",
                    file_reader_buffer_size=1 << 15,
                )
                if len(self._readers) >= _OPEN:
                    del self._readers[next(iter(self._readers))]
                self._readers[shard] = reader
            return reader
