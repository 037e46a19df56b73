"""What a SRC or a --base names, and the checkpoint of PyTorch or the release that it is."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from conversion import carried, engine, hf_config, hub
from conversion.architectures import ARCHITECTURES, Architecture, detect, find_config, get
from conversion.hub import Fetched
from conversion.readers import Source, open_checkpoint
from mg_jax import checkpoint
from mg_jax.disk import read_json
from mg_jax.errors import UserError, some

StrPath = str | os.PathLike[str]
SHOWN = 12  # fields named in a note


@dataclasses.dataclass(frozen=True)
class Opened:
    """A checkpoint of PyTorch: what it is, and where every unread tensor belongs.

    `raw`: its config.json, of which `inert` names the fields that change no number. `notes`: what
    a user should know. `base`: of delta weights, as it was `given`.
    """

    given: str
    path: Path
    entry: Architecture
    cfg: Any
    raw: Mapping[str, Any]
    inert: tuple[str, ...]
    source: Source
    plan: engine.Plan
    notes: tuple[str, ...]
    base: str = ""
    base_path: Path | None = None

    @property
    def folder(self) -> Path:
        """Where the config and the tokenizer lie."""
        return find_config(self.path).parent

    def settings(self, stage: str = "") -> dict[str, Any]:
        """The fields of a release's config.json that follow from this checkpoint."""
        out = self.entry.settings(self.cfg, stage)
        if self.entry.name == "groma":
            out |= carried.text_settings(self.cfg, out["stage"])
        if self.entry.speaks:
            out["token_ids"] = carried.token_ids(self.raw)
        return out

    @property
    def read_from(self) -> tuple[Path, ...]:
        """Every file and folder that is read."""
        base = () if self.base_path is None else (self.base_path,)
        return (self.path, *base, *self.source.files)


@dataclasses.dataclass(frozen=True)
class Release:
    """A release: its config.json, the model in it, and its unread parameters."""

    given: str
    path: Path
    config: Mapping[str, Any]
    entry: Architecture
    cfg: Any
    params: checkpoint.ParamFile


def find(source: StrPath, revision: str | None = None, dry: bool = False) -> Fetched:
    """The local folder or file of a path, a shipped release or a name on the hub (`hub.fetch`).

    Raises UserError when it is none of these, or a revision is asked of a local one.
    """
    path = Path(source)
    if hub.is_name(source):
        return hub.fetch(os.fspath(source), revision, dry=dry)
    if revision is not None:
        raise UserError(f"--revision {revision}: {source} is not a name on the hub (org/name)")
    return Fetched(path.absolute() if path.is_file() else checkpoint.find(path))


def locate(source: StrPath, revision: str | None = None) -> Path:
    """The local path of a folder, a file, a shipped release or a name on the hub. See `find`."""
    return find(source, revision).path


def open_torch(
    found: Fetched,
    given: StrPath,
    system: str = "auto",
    base: StrPath | None = None,
    dry: bool = False,
) -> Opened:
    """Open and plan a folder or file of weights; no tensor is read.

    `dry`: of a base on the hub fetch the headers alone. Raises UserError naming the file, field or
    tensors at fault.
    """
    config = find_config(found.path)
    raw = read_json(config)
    entry = _entry(raw, system, str(config))
    with hf_config.noting_inert() as noted:
        cfg = entry.read(raw, str(config))
    inert = tuple(name.removeprefix(f"{config}.") for name in noted)
    there = None if base is None else find(base, dry=dry)
    source = open_checkpoint(
        found.headers or found.path, base=there and (there.headers or there.path)
    )
    notes = (*found.notes, *(there.notes if there else ()), *source.notes)
    if base is None and "delta" in Path(given).name.lower():  # numbers alone do not tell
        notes += ("named like delta weights, read as whole ones: no base was given",)
    if inert:
        notes += (
            f"{config.name}: {len(inert)} fields have no effect on the numbers: "
            + ", ".join(some(inert, SHOWN)),
        )
    table = entry.table(cfg, source.manifest)
    plan = engine.plan(source.manifest, table, source.where)
    return Opened(
        os.fspath(given), found.path, entry, cfg, raw, inert, source, plan, notes,
        os.fspath(base or ""), there and there.path,
    )  # fmt: skip


def open_release(path: Path, given: StrPath, base: StrPath | None = None) -> Release:
    """Open a release; no parameter is read. Raises UserError when it is none, or has a base."""
    if base is not None:
        raise UserError(f"--base {base}: a release is no delta; leave --base out")
    config, params = checkpoint.open_release(path)
    entry = _entry_of(config, params.shapes, os.fspath(given))
    model = config["model"][entry.part] if entry.part else config["model"]
    cfg = entry.build(model, f"{path / 'config.json'}: model")
    return Release(os.fspath(given), path, config, entry, cfg, params)


def _entry(raw: Mapping[str, Any], system: str, where: str) -> Architecture:
    if system == "auto":
        return detect(raw, where)
    stated = [e for e in ARCHITECTURES.values() if system in (e.name, e.system)]
    # of Groma's two layouts, the right one
    fitting = [e for e in stated if raw.get("model_type") in e.model_types]
    return fitting[0] if fitting else get(system)


def _entry_of(config: Mapping[str, Any], shapes: Mapping[str, Any], given: str) -> Architecture:
    """The architecture of a release."""
    if config["system"] == "parts":
        return get(config.get("architecture", ""))
    if config["system"] == "groma":
        whole = any(path.startswith("lm/") for path in shapes)
        return ARCHITECTURES["groma" if whole else "groma_detector"]
    raise UserError(f"{given}: system {config['system']!r} has no layout of PyTorch's")
