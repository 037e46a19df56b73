"""Delta weights: whole tensors from published differences and the base they were taken from.

The rule is data (`DeltaRule`). Tensors are added one at a time, when they are read.
"""

import dataclasses
import math
import re
from collections.abc import Iterable
from typing import Any

import ml_dtypes
import numpy as np

from conversion.engine import TensorInfo
from conversion.readers.source import Source
from mg_jax.errors import UserError, shown, some

LISTED = 5  # names shown in an error
FLOATS = {np.dtype(kind) for kind in ("float64", "float32", "float16", ml_dtypes.bfloat16)}


@dataclasses.dataclass(frozen=True)
class DeltaRule:
    """How a delta and its base make a whole checkpoint.

    `verbatim`: stored whole and absent from the base. `grown`: may be larger than in the base,
    which is added to the top left block; the rest is whole already. `ignored` (a regular
    expression): buffers left out on both sides, since they are recomputed. Every other tensor
    has one shape on both sides and is their sum. Both sides are cast to `dtype`, added in it and
    kept in it: an IEEE sum rounded once, as torch and NumPy alike do.
    """

    name: str
    verbatim: tuple[str, ...]
    grown: tuple[str, ...]
    ignored: str
    dtype: str

    def ignores(self, name: str) -> bool:
        """Whether a tensor is left out."""
        return re.fullmatch(self.ignored, name) is not None


# Ferret spec 1.4: `<region_fea>` is row 32000 of both embeddings; upstream loads both models in
# float16, adds and saves in it; transformers of that time may have saved the rotary buffers.
FERRET_V1 = DeltaRule(
    name="Ferret v1",
    verbatim=(
        "model.mm_projector.weight",
        "model.mm_projector.bias",
        *(
            f"model.region_geo_sampler.{part}.{kind}"
            for part in (
                "diff_projector_list.0",
                "diff_projector_list.1",
                "agg_projector_list.0.net.0",
                "agg_projector_list.0.norm",
                "agg_projector_list.1.net.0",
                "agg_projector_list.1.norm",
                "flatten_projector",
                "dim_projector",
            )
            for kind in ("weight", "bias")
        ),
    ),
    grown=("model.embed_tokens.weight", "lm_head.weight"),
    ignored=r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",
    dtype="float16",
)


class Announced(Source):
    """A checkpoint that is to be written: names, shapes and dtypes alone."""

    def __init__(self, where: str, manifest: dict[str, TensorInfo]):
        self.where, self.manifest, self.files = where, manifest, ()

    @property
    def copied(self) -> int:
        return 0

    def _read(self, name: str) -> np.ndarray:
        raise UserError(f"{self.where}: {name} is not written yet")


class Delta(Source):
    """A delta on its base as one checkpoint; a tensor is added when it is read.

    Raises UserError when names, shapes or dtypes of the two do not fit each other by `rule`.
    """

    def __init__(self, delta: Source, base: Source, rule: DeltaRule = FERRET_V1):
        self.where = f"{delta.where} on {base.where}"
        self.files = tuple(dict.fromkeys((*delta.files, *base.files)))
        self._delta, self._base = delta, base
        self._dtype: np.dtype[Any] = np.dtype(rule.dtype)
        ours, theirs = ({n: None for n in s.manifest if not rule.ignores(n)} for s in (delta, base))
        known = f"the delta rule of {rule.name}"
        self._refuse((n for n in ours if n not in theirs and n not in rule.verbatim),
                     f"only in {delta.where} and not what {known} takes whole")  # fmt: skip
        self._refuse((n for n in theirs if n not in ours), f"only in {base.where}")
        self._refuse((n for n in rule.verbatim if n in theirs),
                     f"in {base.where}, which by {known} is no base then")  # fmt: skip
        self._sums = {name for name in ours if name in theirs}
        for name in ours:
            self._check(name, rule)
        self.manifest = {name: TensorInfo(delta.manifest[name].shape, self._dtype) for name in ours}
        left = len(delta.manifest) - len(ours)
        self.notes = (
            *delta.notes,
            *base.notes,
            f"delta by the rule of {rule.name}: {len(self._sums)} tensors added to those of "
            f"{base.where} in {rule.dtype}, {len(ours) - len(self._sums)} taken whole"
            + (f", {left} recomputed buffers left out" if left else ""),
        )

    def _refuse(self, names: Iterable[str], what: str) -> None:
        """Raise UserError when there are any names."""
        listed = list(names)
        if listed:
            names = ", ".join(some([shown(name) for name in listed], LISTED))
            raise UserError(f"{self.where}: {names}: {what}; is this the right base?")

    def _check(self, name: str, rule: DeltaRule) -> None:
        """Dtypes are floats; shapes are equal, or the base's fits in where the rule lets it."""
        pair = (self._delta, self._base) if name in self._sums else (self._delta,)
        for source in pair:
            if source.manifest[name].dtype not in FLOATS:
                kind = source.manifest[name].dtype
                raise UserError(f"{source.where}: {name} is {kind}; deltas add floats only")
        if name not in self._sums:
            return
        shape, base = (source.manifest[name].shape for source in pair)
        fits = len(shape) == len(base) and all(n >= m for n, m in zip(shape, base, strict=True))
        if shape != base and not (fits and name in rule.grown):
            raise UserError(
                f"{self.where}: {name} is {list(shape)} in the delta and {list(base)} in the base; "
                "is this the right base?"
            )

    @property
    def copied(self) -> int:
        # the sum, and one side cast for it
        sizes = (math.prod(info.shape) * self._dtype.itemsize for info in self.manifest.values())
        return 2 * max(sizes, default=0) + max(self._delta.copied, self._base.copied)

    def _read(self, name: str) -> np.ndarray:
        delta = self._delta.read(name)
        base = self._base.read(name) if name in self._sums else None
        with np.errstate(over="ignore", invalid="ignore"):
            made = delta.astype(self._dtype)
            if base is not None:
                made[tuple(map(slice, base.shape))] += base.astype(self._dtype, copy=False)
        finite = np.isfinite(made)
        if not finite.all():
            # what was infinite before stays so; ml_dtypes raises no floating point error
            before = np.isfinite(delta)
            if base is not None:
                before[tuple(map(slice, base.shape))] &= np.isfinite(base)
            if (before & ~finite).any():
                raise UserError(f"{self.where}: {name} overflows {self._dtype}")
        return made
