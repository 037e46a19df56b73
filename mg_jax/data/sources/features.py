"""A data set with the outputs of a frozen encoder, made once (`python -m launch.features`).

    features.json    the data text, the encoder, size and preprocessing of the pictures, and by
                     number the examples that are malformed, with what is wrong
    states.npy       float16 [N, M, P, C]: M hidden states of every example's picture

The examples are read anew from the data text; each gets its row as `meta["states"]`, which stands
in place of its pixels in a batch.
"""

import hashlib
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from mg_jax.data.sources.base import Source, existing
from mg_jax.disk import read_json
from mg_jax.errors import BadRecord, UserError
from mg_jax.example import Example

FORMAT = "mg_jax features"
INFO, STATES = "features.json", "states.npy"


class FeatureSource(Source):
    """The examples of a folder of features (see the module), in the order of their data text.

    `made` has what features.json says. A malformed example is a BadRecord when it is asked for.
    Raises UserError for a folder that is none, an array of another size, or a data text that has
    other examples now.
    """

    def __init__(
        self,
        folder: str | Path = "",
        head: str = "",
        name: str = "",
        max_bad: float | str = "",
    ):
        from mg_jax.data.sources import open_source  # which knows this class

        self.folder = existing(folder, "features", folder=True).absolute()
        info = read_json(existing(self.folder / INFO, "features"))
        if info.get("format") != FORMAT:
            raise UserError(f"{self.folder / INFO}: is of no folder of features")
        self.made: Mapping[str, Any] = info
        self.source = source = open_source(info["data"])
        most = source.max_bad if max_bad == "" else max_bad
        super().__init__(name or source.name, head or source.head, most)
        self.tasks, self.exhaustive = source.tasks, source.exhaustive
        self.counts, self.bad, self.problems = source.counts, source.bad, source.problems
        if digest(source) != info["examples"]:
            raise UserError(
                f"{self.folder}: the examples of {info['data']!r} are others than when the "
                "features were made: make them again with python -m launch.features"
            )
        self._states: np.ndarray | None = None
        if self.states.dtype != np.float16 or list(self.states.shape) != info["shape"]:
            raise UserError(f"{self.folder / STATES}: does not fit {INFO}: make the folder again")

    @property
    def states(self) -> np.ndarray:
        """All rows, float16 [N, M, P, C]; they stay on disk."""
        if self._states is None:
            path = existing(self.folder / STATES, "features")
            try:
                self._states = np.load(path, mmap_mode="r")
            except (OSError, ValueError) as e:
                raise UserError(f"{path}: cannot be read ({e})") from None
        return self._states

    @property
    def frequency(self) -> Mapping[str, int]:
        return self.source.frequency

    def file_name(self, i: int) -> str:
        return self.source.file_name(i)

    def measures(self) -> np.ndarray | None:
        return self.source.measures()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_states": None}  # each process opens the file itself

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, i: int) -> Example:
        if wrong := self.made.get("malformed", {}).get(str(range(len(self))[i])):
            raise BadRecord(wrong)
        example = self.source[i]
        example.meta["states"] = self.states[i]
        return example


def digest(source: Source) -> str:
    """What tells the examples of a source from those of another: their number, their names, and
    the boxes where views are cut around them."""
    from mg_jax.data.sources.views import Views  # late: it needs transforms, which need `base`

    origin = source.source if isinstance(source, Views) else source
    sums = hashlib.sha256()
    for i in range(len(origin)):
        try:
            sums.update(f"{origin.file_name(i)}\n".encode())
            if origin is not source:
                boxes = [region.box for region in origin[i].objects]
                sums.update(np.asarray(boxes, np.float64).tobytes())
        except BadRecord:
            sums.update(b"malformed\n")
    return f"{len(source)}:{sums.hexdigest()[:16]}"


def write_features(
    folder: str | Path,
    data: str,
    batches: Iterable[np.ndarray],
    made: Mapping[str, Any],
    bad: Mapping[int, str] = MappingProxyType({}),
) -> Path:
    """Write a folder of features; it appears whole or not at all. Returns it.

    data: text of a data set of n examples. batches: their hidden states in order, float
    [b, M, P, C]. made: trunk, image_size, taps and preprocess, for features.json. bad: malformed
    examples by number, with what is wrong; read when the batches are at their end. Raises UserError
    for a folder that is there, numbers beyond float16, or another count than n.
    """
    from mg_jax.data.sources import open_source
    from mg_jax.disk import disk_errors, need_space, reserve, write_json

    folder = Path(folder)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{folder}: is there already: remove it, or name another folder")
    source = open_source(data)
    part = folder.with_name(f"{folder.name}.part")
    array, done = None, 0
    with disk_errors(folder):
        part.mkdir(parents=True, exist_ok=True)
        for batch in batches:
            if array is None:
                shape = (len(source), *batch.shape[1:])
                need_space(folder.absolute(), 2.0 * math.prod(shape))
                array = np.lib.format.open_memmap(part / STATES, "w+", np.float16, shape)
                reserve(part / STATES)
            if not (np.abs(batch) <= np.finfo(np.float16).max).all():
                raise UserError(f"data {source.name}: hidden states do not fit into float16")
            if done + len(batch) > len(array):
                raise UserError(f"data {source.name}: more states than its {len(array)} examples")
            array[done : done + len(batch)] = batch
            done += len(batch)
        if array is None or done != len(array):
            raise UserError(f"data {source.name}: {done} states of {len(source)} examples")
        array.flush()
        info = {"format": FORMAT, "data": data, "examples": digest(source), "shape": [*array.shape]}
        write_json(part / INFO, {**info, **made, "malformed": dict(bad)})
        if folder.is_dir():
            folder.rmdir()
        os.rename(part, folder)
    return folder
