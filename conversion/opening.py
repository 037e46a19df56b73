"""The conversion, or the parameters, that come of a SRC."""

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from conversion import carried, companions, engine, trunks
from conversion.architectures import ARCHITECTURES, Architecture
from conversion.job import Advance, DType, Job, Say
from conversion.located import StrPath, find, open_base, open_release, part_of, refuse_base
from conversion.moves import is_float
from conversion.partial import check_target
from conversion.published import Published
from conversion.to_jax import ToJax
from conversion.to_torch import ToTorch
from mg_jax import checkpoint
from mg_jax.disk import local, read_json
from mg_jax.errors import UserError

To = Literal["auto", "jax", "torch"]
Format = Published | Literal["orbax"]
Accept = Callable[[Mapping[str, Any]], None]


@dataclasses.dataclass(frozen=True)
class Converted:
    """A checkpoint converted in memory. `layout`: "detector" (vision, proposer) or "full"."""

    entry: Architecture
    cfg: Any
    params: dict[str, Any]
    dropped: Mapping[str, str]

    @property
    def system(self) -> str:
        """Its system; "parts" for a bare part of one."""
        return self.entry.system

    @property
    def layout(self) -> str:
        """Whether it is a whole model or Groma's detector alone."""
        return "detector" if self.entry.name == "groma_detector" else "full"

    @property
    def table(self) -> engine.Table:
        """The table of this checkpoint, for the way back."""
        return self.entry.table(self.cfg)


def prepare(
    source: StrPath,
    target: StrPath,
    *,
    to: To = "auto",
    system: str = "auto",
    dtype: DType = "keep",
    base: StrPath | None = None,
    parts: Iterable[StrPath] = (),
    format: Format = "safetensors",
    part: str = "",
    revision: str | None = None,
    stage: str = "",
    overwrite: bool = False,
    dry: bool = False,
) -> Job:
    """Plan a conversion of `source` into the folder `target`; no tensor is read.

    `to`: "torch" from a release, "jax" from anything else, which "auto" tells apart. `system`: the
    architecture, if config.json should not tell. `dtype`: of floating tensors. `base`: what delta
    weights are added to or, from a release, what the delta to be written will be added to. `parts`:
    public models that files of some systems leave parts of themselves to (`companions`). `format`:
    of files for PyTorch; "orbax": a release below 1 GiB too is an Orbax folder. `part`: the one
    public model of a release to be written. `revision`: of a name on the hub. `stage`: of the
    training that a release belongs to. `dry`: the job is not going to be run, so of a name on the
    hub the headers are enough. Raises UserError naming what does not fit.
    """
    given, dst = os.fspath(source), Path(target)
    local(dst, "")  # refuses a URL
    parts = list(parts)
    named = [x for x in (source, base, *parts) if x is not None]
    check_target(dst, overwrite, [Path(x) for x in named])
    found = find(source, revision, dry)
    ours = checkpoint.is_release(found.path)
    if to not in ("auto", "jax", "torch"):
        raise UserError(f"--to {to!r} is not known: choose jax or torch")
    if to == ("jax" if ours else "torch"):
        kind = "a release already: --to torch" if ours else "not a release: --to jax"
        raise UserError(f"{given}: is {kind} is what can be made of it")
    if ours:
        companions.refuse(parts)
        if format == "orbax":
            raise UserError(f"--format orbax: {given} is a release already: leave it out")
        if stage:
            raise UserError(
                f"--stage {stage}: {given} is a release, which tells its own; leave it out"
            )
        release = open_release(found.path, given)
        check_target(dst, overwrite, (release.path, release.params.path))
        if system not in ("auto", release.entry.name, release.entry.system):
            raise UserError(f"--system {system}: {given} is a release of {release.entry.name}")
        there = None if base is None else open_base(base, dry)
        return ToTorch(
            part_of(release, part) if part else release, dst, dtype=dtype, format=format,
            overwrite=overwrite, base=there,
        )  # fmt: skip
    if part:
        raise UserError(f"--part {part}: {given} is no release, of which parts are written")
    if format not in ("safetensors", "orbax"):
        raise UserError(
            f"--format {format}: {given} becomes a release: leave it out, or take orbax"
        )
    opened = companions.open_any(found, given, system, base, dry, parts)
    check_target(dst, overwrite, opened.read_from)
    orbax = format == "orbax"
    return ToJax(opened, dst, dtype=dtype, stage=stage, overwrite=overwrite, orbax=orbax)


def convert(
    source: StrPath,
    target: StrPath,
    *,
    check: bool = False,
    say: Say = lambda line: None,
    advance: Advance = lambda count: None,
    **options: Any,
) -> Path:
    """Convert `source` into the folder `target`; returns it. Options as of `prepare`.

    `check`: read the result again and compare it with its source. `say` gets lines about what
    happens, `advance` the bytes done. Raises UserError for a bad input, a full disk, or a result
    that differs.
    """
    job = prepare(source, target, **options)
    folder = job.run(say, advance, advance)
    if check:
        report = job.check(advance)
        if not report.ok:
            raise UserError(f"{folder}: differs from {source}\n{report}")
        say(str(report))
    return folder


def read(
    source: StrPath,
    dtype: Any = None,
    *,
    system: str = "auto",
    revision: str | None = None,
    base: StrPath | None = None,
    parts: Iterable[StrPath] = (),
    accept: Accept = lambda config: None,
) -> tuple[dict[str, Any], dict[str, Any], Path | None]:
    """(config, nested parameters, tokenizer folder or None) of any SRC, as of a release.

    `base` and `parts` as of `prepare`. Weights of PyTorch are converted in memory, leaf by leaf,
    floats to `dtype`. `accept(config)` may raise before a tensor is read.
    """
    import jax
    import jax.numpy as jnp

    found = find(source, revision)
    if checkpoint.is_release(found.path):
        refuse_base(base)
        companions.refuse(parts)
        accept(checkpoint.open_release(found.path)[0])
        config, params, words = checkpoint.load_release(found.path)
        return config, trunks.complete(config, params), words
    opened = companions.open_any(found, source, system, base, parts=parts)
    config, folder = opened.settings(), opened.folder
    accept(config)
    carried.check_tokenizer(folder, opened.entry.name, opened.cfg)
    params = {}
    for name, leaf in engine.iter_jax(opened.source.read, opened.plan, dtype and np.dtype(dtype)):
        params[name] = jax.block_until_ready(jnp.asarray(leaf))  # the next one may take its place
    words = folder if carried.has_tokenizer(folder) else None
    return config, engine.unflatten(params), words


def load(
    source: StrPath,
    dtype: Any = None,
    *,
    system: str = "auto",
    revision: str | None = None,
    base: StrPath | None = None,
    parts: Iterable[StrPath] = (),
) -> Converted:
    """Any SRC in memory, as numpy arrays. `dtype`, of floats: None keeps the source's.

    Raises UserError naming the field, file or tensors at fault.
    """
    found = find(source, revision)
    if checkpoint.is_release(found.path):
        companions.refuse(parts)
        release = open_release(found.path, source, base)
        params = {
            path: x.astype(dtype) if dtype and is_float(x.dtype) else x
            for path, x in ((p, np.asarray(x)) for p, x in release.params.read().items())
        }
        return Converted(release.entry, release.cfg, engine.unflatten(params), {})
    opened = companions.open_any(found, source, system, base, parts=parts)
    params = engine.to_jax(opened.source.read, opened.plan, dtype)
    return Converted(opened.entry, opened.cfg, params, opened.plan.dropped)


def read_config(folder: StrPath) -> tuple[str, Any]:
    """(layout, GromaConfig) of a folder's config.json. Raises UserError when it does not fit."""
    path = Path(folder) / "config.json"
    raw = read_json(path)
    layout = "detector" if raw.get("model_type") == "ddetr" else "full"
    return layout, ARCHITECTURES["groma"].read(raw, str(path))


def table_of(cfg: Any, layout: str) -> engine.Table:
    """The table of a GromaConfig in one of its layouts."""
    return ARCHITECTURES["groma_detector" if layout == "detector" else "groma"].table(cfg)
