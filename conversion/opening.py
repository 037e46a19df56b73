"""What a SRC is, and the conversion or the parameters that come of it."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from conversion import carried, engine, hf_config, hub
from conversion.architectures import ARCHITECTURES, Architecture, detect, find_config, get
from conversion.export import Format
from conversion.job import Advance, DType, Job, Say
from conversion.partial import check_target
from conversion.readers import Source, open_checkpoint
from conversion.stream import Leaves
from conversion.to_jax import ToJax
from conversion.to_torch import ToTorch
from mg_jax import checkpoint
from mg_jax.errors import UserError

StrPath = str | os.PathLike[str]
To = Literal["auto", "jax", "torch"]


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


def locate(source: StrPath, revision: str | None = None) -> Path:
    """The local path of a folder, a file, a shipped release or a name on the hub.

    Raises UserError when it is none of these, or a revision is asked of a local one.
    """
    path = Path(source)
    if hub.is_name(source):
        return hub.fetch(os.fspath(source), revision)
    if revision is not None:
        raise UserError(f"--revision {revision}: {source} is not a name on the hub (org/name)")
    if path.is_file():
        return path.absolute()
    return checkpoint.find(path)


def open_torch(
    path: Path, system: str = "auto", base: StrPath | None = None
) -> tuple[Architecture, Any, Source]:
    """(architecture, config, unread tensors) of a folder or file of weights.

    Raises UserError naming the file or field at fault.
    """
    config = find_config(path)
    raw = hf_config.read_json(config)
    kind = raw.get("model_type")
    stated = [e for e in ARCHITECTURES.values() if system in (e.name, e.system)]
    fitting = [e for e in stated if kind in e.model_types]  # of Groma's two layouts, the right one
    if system == "auto":
        entry = detect(raw, str(config))
    else:
        entry = fitting[0] if fitting else get(system)
    cfg = entry.read(raw, str(config))
    return entry, cfg, open_checkpoint(path, base=None if base is None else locate(base))


def prepare(
    source: StrPath,
    target: StrPath,
    *,
    to: To = "auto",
    system: str = "auto",
    dtype: DType = "keep",
    base: StrPath | None = None,
    format: Format = "safetensors",
    revision: str | None = None,
    stage: str = "",
    overwrite: bool = False,
) -> Job:
    """Plan a conversion of `source` into the folder `target`; no tensor is read.

    `to`: "torch" from a release, "jax" from anything else, which "auto" tells apart. `system`: the
    architecture, if config.json should not tell. `dtype`: of floating tensors. `base`: what delta
    weights are added to. `format`: of files for PyTorch. `revision`: of a name on the hub.
    `stage`: of the training that a release belongs to. Raises UserError naming what does not fit.
    """
    path, given = locate(source, revision), os.fspath(source)
    check_target(path, Path(target), overwrite)
    ours = checkpoint.is_release(path)
    if to not in ("auto", "jax", "torch"):
        raise UserError(f"--to {to!r} is not known: choose jax or torch")
    if to == ("jax" if ours else "torch"):
        kind = "a release already: --to torch" if ours else "not a release: --to jax"
        raise UserError(f"{given}: is {kind} is what can be made of it")
    if ours:
        if base is not None:
            raise UserError(f"--base {base}: a release is no delta; leave --base out")
        config, file = checkpoint.open_release(path)
        entry = _entry_of(config, file.shapes, given)
        if system not in ("auto", entry.name, entry.system):
            raise UserError(f"--system {system}: {given} is a release of {entry.name}")
        model = config["model"][entry.part] if entry.part else config["model"]
        cfg = entry.build(model, f"{path / 'config.json'}: model")
        return ToTorch(
            path, Path(target), entry, cfg, Leaves(file.path), given=given, dtype=dtype,
            format=format, overwrite=overwrite,
        )  # fmt: skip
    entry, cfg, weights = open_torch(path, system, base)
    return ToJax(
        path, Path(target), entry, cfg, weights, given=given, dtype=dtype, stage=stage,
        overwrite=overwrite,
    )  # fmt: skip


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
    folder = job.run(say, advance)
    if check:
        report = job.check(advance)
        if not report.ok:
            raise UserError(f"{folder}: differs from {source}\n{report}")
        say(str(report))
    return folder


def read(
    source: StrPath, dtype: Any = None, *, system: str = "auto", revision: str | None = None
) -> tuple[dict[str, Any], dict[str, Any], Path | None]:
    """(config, nested parameters, tokenizer folder or None) of any SRC, as of a release.

    Weights of PyTorch are converted in memory, leaf by leaf, floats to `dtype`.
    """
    import jax
    import jax.numpy as jnp

    path = locate(source, revision)
    if checkpoint.is_release(path):
        return checkpoint.load_release(path)
    entry, cfg, weights = open_torch(path, system)
    planned = engine.plan(weights.manifest, entry.table(cfg, weights.manifest))
    config = entry.settings(cfg)
    folder = find_config(path).parent
    if entry.name == "groma":
        config |= carried.text_settings(cfg, config["stage"])
        carried.check_tokenizer(folder, cfg)
    params = {}
    for name, leaf in engine.iter_jax(weights.read, planned, dtype and np.dtype(dtype)):
        params[name] = jax.block_until_ready(jnp.asarray(leaf))  # the next one may take its place
    has_tokenizer = bool(carried.matching(folder, carried.TOKENIZER[:2]))
    return config, engine.unflatten(params), folder if has_tokenizer else None


def load(source: StrPath, dtype: Any = None) -> Converted:
    """Convert a folder or file of PyTorch weights in memory. `dtype` None keeps the source's.

    Raises UserError naming the field, file or tensors at fault.
    """
    entry, cfg, weights = open_torch(Path(source))
    planned = engine.plan(weights.manifest, entry.table(cfg, weights.manifest))
    params = engine.to_jax(weights.read, planned, dtype)
    return Converted(entry, cfg, params, planned.dropped)


def read_config(folder: StrPath) -> tuple[str, Any]:
    """(layout, GromaConfig) of a folder's config.json. Raises UserError when it does not fit."""
    path = Path(folder) / "config.json"
    raw = hf_config.read_json(path)
    layout = "detector" if raw.get("model_type") == "ddetr" else "full"
    return layout, ARCHITECTURES["groma"].read(raw, str(path))


def table_of(cfg: Any, layout: str) -> engine.Table:
    """The table of a GromaConfig in one of its layouts."""
    return ARCHITECTURES["groma_detector" if layout == "detector" else "groma"].table(cfg)


def _entry_of(config: Mapping[str, Any], shapes: Mapping[str, Any], given: str) -> Architecture:
    """The architecture of a release."""
    if config["system"] == "parts":
        return get(config.get("architecture", ""))
    if config["system"] == "groma":
        whole = any(path.startswith("lm/") for path in shapes)
        return ARCHITECTURES["groma" if whole else "groma_detector"]
    raise UserError(f"{given}: system {config['system']!r} has no layout of PyTorch's")
