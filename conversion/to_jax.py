"""A PyTorch checkpoint into a release."""

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np

from conversion import carried, stream
from conversion.engine import Plan, TensorInfo, check_copies
from conversion.export import Tensor, ahead, tensors
from conversion.hub import revision_of
from conversion.job import (
    BASE,
    Advance,
    Checked,
    Job,
    check_dtypes,
    differing,
    source_dtypes,
    versions,
    wanted_dtype,
)
from conversion.leaves import Leaves
from conversion.located import Opened
from conversion.moves import Pool, is_float
from conversion.output import Output, header
from conversion.partial import Partial, sync
from mg_jax import checkpoint
from mg_jax.errors import UserError
from mg_jax.params import STORED

PARAMS = "params.safetensors"


class ToJax(Job):
    """See Job. `opened` is the checkpoint; its config and tokenizer lie beside it."""

    to = "jax"

    def __init__(
        self,
        opened: Opened,
        dst: Path,
        *,
        dtype: str = "keep",
        stage: str = "",
        overwrite: bool = False,
        orbax: bool = False,
    ):
        """orbax: the parameters as an Orbax folder, whatever their size. Raises UserError when a
        dtype cannot be kept, or layers differ in dtype."""
        super().__init__(opened, dst, overwrite)
        self.opened, self.source, self.plan = opened, opened.source, opened.plan
        self.files, self.notes, self.inert = self.source.files, opened.notes, opened.inert
        self.orbax = orbax
        self.stage = stage or opened.stage or self.entry.stages[0]
        if self.stage not in self.entry.stages:
            known = " or ".join(self.entry.stages)
            raise UserError(f"--stage {stage!r}: a release of {self.entry.name} is of {known}")
        self.dtypes = leaf_dtypes(self.plan, wanted_dtype(dtype), dtype)
        check_dtypes(self.plan, self.dtypes, STORED.values(), "a release")
        carried.check_tokenizer(opened.folder, self.entry.name, self.cfg)
        self._last: tuple[str, np.ndarray] | None = None

    @property
    def small(self) -> bool:
        """Whether the parameters are one safetensors file."""
        return not self.orbax and self.nbytes < checkpoint.SMALL

    def about(self) -> dict[str, Any]:
        return super().about() | ({"format": "orbax"} if self.orbax else {})

    @property
    def sizes(self) -> dict[str, int]:
        return {
            path: self.dtypes[path].itemsize * math.prod(shape)
            for path, shape in self.shapes.items()
        }

    @property
    def tensors(self) -> list[Tensor]:
        return tensors(self.plan, self.dtypes)

    @property
    def memory(self) -> int:
        # tensors are views of mapped files, but for sums and what a file does not align
        return BASE + min(self.nbytes, stream.HELD + 8 * stream.PIECE) + self.source.copied

    @property
    def headline(self) -> list[str]:
        manifest = self.source.manifest
        used = [self.plan.dtypes[leaf.names[0]] for leaf in self.plan.leaves]
        layout = PARAMS if self.small else "params/, zarr 3 as Orbax reads it"
        return [
            f"{self.entry.name} ({self.entry.torch_class}) in {self.given}: {len(manifest):,} "
            f"tensors, {carried.gib(self.source.nbytes)}, {source_dtypes(used)}",
            f"to a release in {self.dst}: {len(self.shapes):,} arrays, "
            f"{carried.gib(self.nbytes)}, {source_dtypes(self.dtypes.values())} ({layout}), "
            f"stage {self.stage!r}",
        ]

    def read(self, name: str) -> np.ndarray:
        """A source tensor; the last one is kept, for leaves that are written in pieces."""
        if self._last is None or self._last[0] != name:
            self._last = None  # before the next one is read
            self._last = name, self.source.read(name)
        return self._last[1]

    def _write(self, partial: Partial, advance: Advance) -> None:
        check_copies(self.source.read, self.plan)
        if self.small:
            self._write_file(partial.folder / PARAMS, advance)
        else:
            stream.write_arrays(
                partial.folder / "params", self.plan, self.read, self.dtypes,
                self.entry.axes(self.cfg), skip=frozenset(partial.done), done=partial.note,
                advance=advance,
            )  # fmt: skip
            stream.write_metadata(partial.folder / "params", self.plan)
        self._last = None
        carried.into_release(self.opened.folder, partial.folder, self.opened.brought)
        (partial.folder / "README.md").write_text(self._card(), encoding="utf-8")
        # last: only now does the folder open as a release
        checkpoint.write_json(partial.folder / "config.json", self.config())

    def check(self, advance: Advance = lambda count: None) -> Checked:
        config, file = checkpoint.open_release(self.dst)
        others = [] if config == self.config() else ["config.json"]
        leaves = Leaves(file.path)
        expected = {p: TensorInfo(s, self.dtypes[p]) for p, s in self.shapes.items()}
        listed = leaves.manifest
        others += [path for path in listed if path not in expected]
        wrong = {path for path, info in expected.items() if listed.get(path) != info}
        found = self.tensors
        lost = [tensor for tensor in found if wrong.intersection(tensor.leaf.paths)]
        rest = [tensor for tensor in found if not wrong.intersection(tensor.leaf.paths)]
        different = differing(rest, self.source.read, leaves.read, advance)
        casts = {
            f"{np.dtype(was).name} to {t.dtype.name}"
            for t in found
            if (was := self.source.manifest.get(t.name, t.info).dtype) != t.dtype
        }
        return Checked(
            len(found), sum(t.nbytes for t in found), (*(t.name for t in lost), *different),
            tuple(others), ", ".join(sorted(casts)), self.plan.dropped, self.notes,
        )  # fmt: skip

    def config(self) -> dict[str, Any]:
        """The release's config.json."""
        opened = self.opened
        made = {
            "converted_from": self.given,
            "revision": revision_of(opened.folder),
            "files": {file.name: file.stat().st_size for file in self.files},
            "tensors": len(self.source.manifest),
            "left_out": len(self.plan.dropped),
            "notes": list(self.notes),
            "versions": versions(),
        }
        if opened.base_path is not None:
            made["base"] = {"from": opened.base, "revision": revision_of(opened.base_path)}
        if opened.companions:
            made["parts"] = {
                c.role: {"from": c.given, "revision": revision_of(c.folder)}
                for c in opened.companions
            }
        return {
            "format": checkpoint.FORMAT,
            "version": 1,
            **opened.settings(self.stage),
            "provenance": made,
        }

    def _write_file(self, path: Path, advance: Advance) -> None:
        parts = [(leaf, part) for leaf in self.plan.leaves for part in leaf.parts]
        infos = {part.path: TensorInfo(part.shape, self.dtypes[part.path]) for _, part in parts}
        pool = Pool()
        pieces = (
            stream.assemble(
                leaf, part, region, self.read, self.dtypes[part.path], pool, self.plan.where
            )
            for leaf, part in sorted(parts, key=lambda x: -self.dtypes[x[1].path].itemsize)
            for region in stream.row_regions(leaf, part, self.dtypes[part.path])
        )
        ordered = dict(sorted(infos.items(), key=lambda x: -np.dtype(x[1].dtype).itemsize))
        with Output(path) as file:
            file.write(header(ordered, {"format": "mg_jax"}))
            for piece in ahead(pieces):
                file.write(piece)
                advance(piece.nbytes)
                pool.give_back(piece)
        sync(path.parent)

    def _card(self) -> str:
        rows = [
            ("converted from", f"`{self.given}`"),
            ("model class", self.entry.torch_class),
            ("files", ", ".join(file.name for file in self.files)),
            ("tensors", f"{len(self.source.manifest):,}, {len(self.plan.dropped)} left out"),
            ("numbers", source_dtypes(self.dtypes.values())),
            ("versions", ", ".join(f"{k} {v}" for k, v in versions().items())),
        ]
        count = sum(math.prod(shape) for shape in self.shapes.values())
        text = (
            f"{count:,} parameters, converted by `python -m launch.convert`. The licence of the "
            "original weights holds for these too; what came with them is in `upstream/`."
        )
        return carried.card(f"{self.entry.name}, stage {self.stage}", rows, text)


def leaf_dtypes(plan: Plan, dtype: np.dtype | None, asked: str) -> dict[str, np.dtype]:
    """Leaf path -> dtype as written: floats cast to `dtype` if given, others kept.

    Raises UserError when the layers of a leaf would differ.
    """
    out: dict[str, np.dtype] = {}
    for leaf in plan.leaves:
        kept: dict[np.dtype, str] = {}
        for name in leaf.names:
            own = np.dtype(plan.dtypes[name])
            kept.setdefault(dtype if dtype is not None and is_float(own) else own, name)
        if len(kept) > 1:
            (first, a), (second, b) = itertools.islice(kept.items(), 2)
            raise UserError(
                f"{plan.where}: {b} is {second}, {a} is {first}: layers that are stacked need one "
                f"dtype; ask for it with --dtype bf16 or f32 (now {asked})"
            )
        out |= dict.fromkeys(leaf.paths, next(iter(kept)))
    return out
