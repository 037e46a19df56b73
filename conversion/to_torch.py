"""A release back into a checkpoint of the original code."""

import importlib.util
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from conversion import carried, output, published
from conversion.architectures import find_config
from conversion.engine import check_leaves, expand
from conversion.export import WHOLE, Difference, Tensor, tensors, write_shard
from conversion.job import (
    BASE,
    Advance,
    Checked,
    Job,
    check_dtypes,
    differing,
    source_dtypes,
    wanted_dtype,
)
from conversion.leaves import Leaves
from conversion.located import Release
from conversion.moves import is_float
from conversion.partial import Partial
from conversion.readers import open_checkpoint
from conversion.readers.delta import FERRET_V1, Announced, Delta
from conversion.readers.source import Source
from conversion.stream import PIECE
from conversion.tables.ferret import TOWER
from mg_jax.disk import read_json
from mg_jax.errors import UserError

TORCH = 1 << 29  # bytes of memory that PyTorch takes by itself


class ToTorch(Job):
    """See Job. `leaves` are the release's parameters."""

    to = "torch"

    def __init__(
        self,
        release: Release,
        dst: Path,
        *,
        dtype: str = "keep",
        format: published.Published = "safetensors",
        overwrite: bool = False,
        base: Source | None = None,
    ):
        """`base`: write what is to be added to it, by Ferret v1's rule, instead of the whole.

        Raises UserError when the original code cannot hold or would not compute this model.
        """
        super().__init__(release, dst, overwrite)
        self.base, self.part = base, release.part
        self.leaves, self.format = Leaves(release.params.path), format
        entry, given = self.entry, self.given
        if entry.write_config is None:
            raise UserError(
                f"{given}: a release of {entry.name} keeps a part of {entry.torch_class} alone, so "
                "there is no way back; convert the original folder instead"
            )
        if format not in published.FORMATS:
            known = ", ".join(published.FORMATS)
            raise UserError(f"--format {format!r} is not known: choose {known}")
        if format in published.OWN and entry.saved is None:
            raise UserError(
                f"--format {format}: is MG-LLaVA's, {given} is a release of {entry.name}: choose "
                "safetensors or bin"
            )
        if format != "safetensors" and importlib.util.find_spec("torch") is None:
            raise UserError(
                f"--format {format}: is written by PyTorch, which is not installed: pip install "
                "'mg_jax[torch]', or leave the format at safetensors"
            )
        ids = release.config.get("token_ids", {})
        self.raw = carried.with_token_ids(entry.write_config(self.cfg), ids)
        codec = release.config.get("codec", {})
        self.raw |= carried.codec_fields(entry.system, self.cfg, codec)
        # the pair holds the whole of what is trained, whatever the stage
        self.stage = "sft" if format == "split" else release.config.get("stage", "")
        self.plan = expand(entry.table(self.cfg), str(self.leaves.path))
        manifest = self.leaves.manifest
        if self.part:
            manifest = {p: x for p, x in manifest.items() if p.startswith(f"{entry.part}/")}
        check_leaves({path: info.shape for path, info in manifest.items()}, self.plan)
        self.leaves.group(leaf.paths for leaf in self.plan.leaves)
        self.dtypes = {path: np.dtype(manifest[path].dtype) for path in self.shapes}
        if base is not None and dtype != "keep":
            raise UserError(f"--dtype {dtype}: deltas are {FERRET_V1.dtype}: leave it out")
        wanted = wanted_dtype(dtype) if base is None else np.dtype(FERRET_V1.dtype)
        self.written = {
            path: wanted if wanted is not None and is_float(own) else own
            for path, own in self.dtypes.items()
        }
        check_dtypes(self.plan, self.written, {x.name for x in output.NAMES}, f"a {format} file")
        self.files = (*_parameter_files(self.leaves.path), *(base.files if base else ()))
        if base is not None:
            self._check_base(base)

    @property
    def tensors(self) -> list[Tensor]:
        listed = tensors(self.plan, self.written)
        if self.base is not None:
            return list(self._differences(listed, self.base))
        saved = self.entry.saved if self.format in published.OWN else None
        return [t for t in listed if saved is None or saved(t.name, self.stage)]

    def _check_base(self, base: Source) -> None:
        """Raises UserError for a release that has no deltas, or a base that it is none of."""
        found = {t.name: t.info for t in self.tensors}
        lacking = [name for name in FERRET_V1.verbatim if name not in found]
        if lacking:
            raise UserError(
                f"--base {base.where}: {FERRET_V1.name} alone has deltas, and {self.given} lacks "
                f"its {lacking[0]}: leave --base out"
            )
        made = Delta(Announced(self.given, found), base, FERRET_V1)
        self.notes = (*self.notes, *made.notes[len(base.notes) :], "the tower is left out")

    @staticmethod
    def _differences(listed: Iterable[Tensor], base: Source) -> Iterator[Tensor]:
        """The tensors of a delta: the tower is none of it, the public one serves."""
        for t in listed:
            if t.name in base.manifest and not FERRET_V1.ignores(t.name):
                yield Difference(t.name, t.dtype, t.leaf, t.at, base)
            elif not t.name.startswith(TOWER):
                yield t

    @property
    def sizes(self) -> dict[str, int]:
        return {name: sum(t.nbytes for t in group) for name, group in self.shards.items()}

    @property
    def disk(self) -> int:
        # a file of PyTorch's is made of a finished safetensors file beside it
        pickled = self.format != "safetensors"
        return self.nbytes + (max(self.sizes.values()) if pickled else 0)

    @property
    def memory(self) -> int:
        # one tensor is written while the next one is made
        largest = max(tensor.nbytes for tensor in self.tensors)
        decoded = max(sum(map(self.leaves.decoded, leaf.paths)) for leaf in self.plan.leaves)
        torch = TORCH if self.format != "safetensors" else 0
        # a tensor of the base, and its rows cast
        torch += 0 if self.base is None else 2 * largest + self.base.copied
        return BASE + 2 * min(WHOLE, largest) + min(self.nbytes, 8 * PIECE) + decoded + torch

    @property
    def shards(self) -> dict[str, list[Tensor]]:
        """File name -> the tensors in it."""
        return published.files(self.tensors, self.format)

    @property
    def headline(self) -> list[str]:
        size = sum(info.dtype.itemsize * int(np.prod(info.shape)) for info in self._infos())
        less = "" if self.base is None else f" less {self.base.where}"
        return [
            f"release {self.given}{less}: {len(self.shapes):,} arrays, {carried.gib(size)}, "
            f"{source_dtypes(self.dtypes.values())}",
            f"to {self.entry.name} ({self.entry.torch_class}) in {self.dst}: "
            f"{len(self.tensors):,} tensors, {carried.gib(self.nbytes)}, "
            f"{source_dtypes(self.written.values())}, in {', '.join(self.shards)}",
        ]

    def about(self) -> dict[str, Any]:
        less = {} if self.base is None else {"base": self.base.where}
        return super().about() | {"format": self.format} | less

    def _write(self, partial: Partial, advance: Advance) -> None:
        for name, group in self.shards.items():
            if name not in partial.done:
                (partial.folder / name).parent.mkdir(exist_ok=True)
                write_shard(partial.folder / name, group, self.leaves.read, advance)
                partial.note(name)
        spoken = published.LM_FOLDER if self.format == "split" else ""
        if self.part:
            carried.part_out_of_release(self.src, partial.folder, self.part, self.entry.speaks)
        else:
            carried.out_of_release(self.src, partial.folder, spoken)
        published.write_beside(partial.folder, self.shards, self.format, self.config())

    def check(self, advance: Advance = lambda count: None) -> Checked:
        found, written = self.tensors, open_checkpoint(self.dst)
        path = find_config(self.dst)
        same = read_json(path) == json.loads(json.dumps(self.config()))
        names = {tensor.name for tensor in found}
        others = ([] if same else [path.name]) + [n for n in written.manifest if n not in names]
        lost = [t for t in found if written.manifest.get(t.name) != t.info]
        rest = [t for t in found if written.manifest.get(t.name) == t.info]
        different = differing(rest, written.read, self.leaves.read, advance)
        casts = {
            f"{self.dtypes[path].name} to {dtype.name}"
            for path, dtype in self.written.items()
            if dtype != self.dtypes[path]
        }
        return Checked(
            len(found), self.nbytes, (*(t.name for t in lost), *different), tuple(others),
            ", ".join(sorted(casts)),
        )  # fmt: skip

    def config(self) -> dict[str, Any]:
        """The config.json that the original code reads."""
        names = {dtype.name for dtype in self.written.values() if is_float(dtype)}
        return self.raw | ({"torch_dtype": names.pop()} if len(names) == 1 else {})

    def _infos(self):
        return (self.leaves.manifest[path] for path in self.shapes)


def _parameter_files(path: Path) -> list[Path]:
    """The files that tell one set of parameters from another."""
    if path.is_file():
        return [path]
    return [
        file for name in ("_METADATA", "_CHECKPOINT_METADATA") if (file := path / name).exists()
    ]
