"""Leaves of a release on disk, read region by region."""

import contextlib
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from conversion import stream
from conversion.engine import TensorInfo
from conversion.stream import Region
from mg_jax.errors import UserError


class Leaves:
    """Leaves of a release on disk, read region by region: `manifest` now, numbers when read.

    Any release opens: Orbax folders written here or by mg_jax.checkpoint, and safetensors. What
    Orbax wrote as one compressed chunk is decoded whole and held for its other regions; `groups`,
    leaf paths that are read in turn, says until when. Raises UserError when it is no release's.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        self._source: Any = None
        self._stores: dict[str, Any] = {}
        self._held: dict[str, np.ndarray] = {}
        self._together: dict[str, tuple[str, ...]] = {}
        if self.path.suffix == ".safetensors":
            from conversion.readers import open_checkpoint

            self._source = open_checkpoint(self.path)
            self.manifest = dict(self._source.manifest)
        else:
            from mg_jax.params import ParamFile

            shapes = ParamFile(self.path).shapes
            self.manifest = {
                name: TensorInfo(tuple(x.shape), np.dtype(x.dtype)) for name, x in shapes.items()
            }

    def group(self, groups: Iterable[tuple[str, ...]]) -> None:
        """State which leaves are read in turn: the parts of one tensor. Default: each alone."""
        self._together = {path: paths for paths in groups for path in paths}

    def decoded(self, path: str) -> int:
        """Bytes of memory that reading any region of a leaf takes besides the region itself."""
        if self._source is not None:
            return 0
        shape, dtype = self.manifest[path]
        chunk = np.dtype(dtype).itemsize * math.prod(self._open(path).chunk_layout.read_chunk.shape)
        # the leaf, and its compressed bytes while it is decoded
        return 2 * np.dtype(dtype).itemsize * math.prod(shape) if chunk > stream.PIECE else 0

    def read(self, path: str, region: Region) -> Iterator[tuple[Region, np.ndarray]]:
        """A region of a leaf in pieces: (where in the region, numbers), as they lie in files.

        Raises UserError naming the leaf that cannot be read.
        """
        whole = tuple(slice(0, s.stop - s.start) for s in region)
        if self._source is not None:
            yield whole, self._source.read(path)[region]
            return
        self._forget(path)
        store = self._open(path)
        layout = store.chunk_layout
        wanted = math.prod(s.stop for s in whole)
        if math.prod(layout.read_chunk.shape) > 2 * wanted:
            if path not in self._held:
                with self._named(path):
                    self._held[path] = store.read().result()
            yield whole, self._held[path][region]
            return
        for part in stream.cut(region, layout.write_chunk.shape):
            at = tuple(
                slice(p.start - r.start, p.stop - r.start)
                for p, r in zip(part, region, strict=True)
            )
            with self._named(path):
                piece = store[part].read().result()
            yield at, piece

    def _forget(self, path: str) -> None:
        """Let go of leaves that are not read in turn with this one."""
        kept = self._together.get(path, (path,))
        for held in (self._stores, self._held):
            for other in [name for name in held if name not in kept]:
                del held[other]

    def _open(self, path: str) -> Any:
        from mg_jax.params import open_array

        if path not in self._stores:
            with self._named(path):
                self._stores[path] = open_array(self.path, path)
        return self._stores[path]

    @contextlib.contextmanager
    def _named(self, path: str) -> Iterator[None]:
        """Inside, what TensorStore raises is a UserError that names the leaf."""
        try:
            yield
        except (ValueError, OSError) as error:
            reason = str(error).split("\n")[0][:300]
            raise UserError(f"{self.path / path}: cannot be read ({reason})") from error
