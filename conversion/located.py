"""What a SRC or a --base names, and the checkpoint of PyTorch or the release that it is."""

import dataclasses
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from conversion import carried, engine, hf_config, hub, trunks
from conversion.architectures import ARCHITECTURES, Architecture, detect, find_config, get
from conversion.hf_config.sections import GROUP, TEXT
from conversion.hub import Fetched
from conversion.partial import check_names, real
from conversion.readers import Source, open_checkpoint
from mg_jax import checkpoint
from mg_jax.disk import read_json
from mg_jax.errors import UserError, some

StrPath = str | os.PathLike[str]
# --part: the architecture of one of TinyGroundingGPT's public models, and where its parameters lie
PARTS = {"llm": ("qwen2", "lm"), "clip": ("clip", "clip"), "dinov2": ("dinov2", "dino")}
SHOWN = 12  # fields named in a note
HUB_PAGE = re.compile(r"https?:/+(?:huggingface|hf)\.co/([\w.-]+/[\w.-]+)")


@dataclasses.dataclass(frozen=True)
class Companion:
    """A public model that a checkpoint leaves a part of itself to: what it is there, where its
    config and tokenizer lie, and its config."""

    role: str
    given: str
    folder: Path
    raw: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Opened:
    """A checkpoint of PyTorch: what it is, and where every unread tensor belongs.

    `raw`: its config.json, of which `inert` names the fields that change no number. `notes`: what
    a user should know. `base`: of delta weights, as it was `given`. `companions` complete it;
    `stage` is the one that it shows to be of, "" where it does not.
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
    companions: tuple[Companion, ...] = ()
    stage: str = ""

    @property
    def folder(self) -> Path:
        """Where the tokenizer lies: with the config, or with the language model."""
        spoken = [c.folder for c in self.companions if c.role == "llm"]
        return spoken[0] if spoken else find_config(self.path).parent

    @property
    def brought(self) -> dict[str, Path]:
        """The folders whose licences and notes go along, by the name they are kept under."""
        there = {c.role: c.folder for c in self.companions}
        own = not there or self.entry.system == "ferret"  # MG-LLaVA's files have no folder
        return ({"": self.folder} if own else {}) | there

    def settings(self, stage: str = "") -> dict[str, Any]:
        """The fields of a release's config.json that follow from this checkpoint."""
        out = self.entry.settings(self.cfg, stage or self.stage)
        if self.entry.name == "groma":
            out |= carried.text_settings(self.cfg, out["stage"])
        elif self.entry.system == "mg_llava":
            out |= carried.mg_llava_settings(self.cfg, self.raw)
        elif self.entry.system == "ferret":
            out |= carried.ferret_settings(self.cfg)
        elif self.entry.system == "tiny_grounding_gpt":
            out |= carried.tiny_grounding_gpt_settings(self.cfg, self.raw)
        if self.entry.speaks:
            out["token_ids"] = carried.token_ids(self.raw)
        return out

    @property
    def read_from(self) -> tuple[Path, ...]:
        """Every file and folder that is read."""
        base = () if self.base_path is None else (self.base_path,)
        return (self.path, *base, *(c.folder for c in self.companions), *self.source.files)


@dataclasses.dataclass(frozen=True)
class Release:
    """A release: its config.json, the model in it, and its unread parameters.

    part: which of its public models alone is meant, "" for the whole; `entry`, `cfg` and `config`
    are then that model's.
    """

    given: str
    path: Path
    config: Mapping[str, Any]
    entry: Architecture
    cfg: Any
    params: checkpoint.ParamFile
    part: str = ""


def find(
    source: StrPath, revision: str | None = None, dry: bool = False, weights: bool = True
) -> Fetched:
    """The local folder or file of a path, a shipped release or a name on the hub (`hub.fetch`).

    Raises UserError when it is none of these, or a revision is asked of a local one.
    """
    if page := HUB_PAGE.match(os.fspath(source)):
        raise UserError(f"{source}: is a page of the hub: write the name alone, {page[1]}")
    path = Path(source)
    check_names(path)
    if hub.is_name(source):
        return hub.fetch(os.fspath(source), revision, dry=dry, weights=weights)
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
    if raw.get("format") == checkpoint.FORMAT:
        raise UserError(f"{given}: a file of a release; name its folder, {config.parent}")
    _entry(raw, system, str(config)).read(raw, str(config))  # refused before weights are opened
    there = None if base is None else find(base, dry=dry)
    if there and real(there.path) == real(found.path):
        raise UserError(f"--base {base}: is the source itself; a delta is added to another model")
    source = open_checkpoint(
        found.headers or found.path, base=there and (there.headers or there.path)
    )
    notes = (*found.notes, *(there.notes if there else ()))
    return made(
        os.fspath(given), found.path, raw, str(config), source, system, notes,
        base=os.fspath(base or ""), base_path=there and there.path,
    )  # fmt: skip


def made(
    given: str,
    path: Path,
    raw: Mapping[str, Any],
    config: str,
    source: Source,
    system: str = "auto",
    notes: tuple[str, ...] = (),
    **more: Any,
) -> Opened:
    """The plan of a source whose config.json is `raw`, read from `config`; `more`: of Opened.

    Raises UserError as `open_torch`.
    """
    entry = _entry(raw, system, config)
    if entry.complete is not None:
        raw = entry.complete(raw, source.manifest)
    with hf_config.noting_inert() as noted:
        cfg = entry.read(raw, config)
    inert = tuple(name.removeprefix(f"{config}.") for name in noted)
    notes = (*notes, *source.notes)
    # numbers alone do not tell
    if not more.get("base") and "delta" in Path(given).name.lower():
        notes += ("named like delta weights, read as whole ones: no base was given",)
    if inert:
        notes += (
            f"{Path(config).name}: {len(inert)} fields have no effect on the numbers: "
            + ", ".join(some(inert, SHOWN)),
        )
    table = entry.table(cfg, source.manifest)
    plan = engine.plan(source.manifest, table, source.where)
    return Opened(given, path, entry, cfg, raw, inert, source, plan, notes, **more)


def open_release(path: Path, given: StrPath, base: StrPath | None = None) -> Release:
    """Open a release; no parameter is read.

    Raises UserError when it is none, its config.json is damaged, or a base is given.
    """
    refuse_base(base)
    config, params = checkpoint.open_release(path)
    if trunks.lacks(config, params.shapes):
        raise UserError(
            f"{given}: leaves its encoder to the package {config['trunk'].get('requirement')}: "
            "convert the release of the training run, which holds it"
        )
    where = f"{path / 'config.json'}: model"
    model = GROUP.check(config["model"], where)
    GROUP.check(config.get("token_ids", {}), f"{path / 'config.json'}: token_ids")
    entry = _entry_of(config, params.shapes, os.fspath(given))
    if entry.part:
        model = GROUP.check(model.get(entry.part), f"{where}.{entry.part}")
    return Release(os.fspath(given), path, config, entry, entry.build(model, where), params)


def part_of(release: Release, part: str) -> Release:
    """One of the public models that a release of TinyGroundingGPT is made of.

    Raises UserError for another release or part.
    """
    if release.entry.name != "tiny_grounding_gpt":
        raise UserError(
            f"--part {part}: {release.given} is a release of {release.entry.name}; parts are "
            "written of one of tiny_grounding_gpt"
        )
    if part not in PARTS:
        raise UserError(f"--part {part} is not known: choose {', '.join(PARTS)}")
    name, field = PARTS[part]
    return dataclasses.replace(
        release,
        entry=dataclasses.replace(ARCHITECTURES[name], part=field),
        cfg=getattr(release.cfg, field),
        config={"token_ids": release.config.get("token_ids", {}).get(part, {})},
        part=part,
    )


def open_base(base: StrPath, dry: bool = False) -> Source:
    """What a delta is, or will be, added to; `dry`: of one on the hub fetch the headers alone."""
    found = find(base, dry=dry)
    return open_checkpoint(found.headers or found.path)


def refuse_base(base: StrPath | None) -> None:
    """Raises UserError when a release is given with a base."""
    if base is not None:
        raise UserError(f"--base {base}: a release is no delta; leave --base out")


def _entry(raw: Mapping[str, Any], system: str, where: str) -> Architecture:
    if system == "auto":
        return detect(raw, where)
    stated = [e for e in ARCHITECTURES.values() if system in (e.name, e.system)]
    # of a system's two layouts, the right one
    fitting = [e for e in stated if e.is_of(raw)]
    return fitting[0] if fitting else get(system)


def _entry_of(config: Mapping[str, Any], shapes: Mapping[str, Any], given: str) -> Architecture:
    """The architecture of a release."""
    if config["system"] == "parts":
        return get(TEXT.check(config.get("architecture"), f"{given}: config.json: architecture"))
    if config["system"] == "groma":
        whole = any(path.startswith("lm/") for path in shapes)
        return ARCHITECTURES["groma" if whole else "groma_detector"]
    if config["system"] == "mg_llava":
        # a release of the trainer does not name it: of those published Phi-3 alone has a window
        lm = GROUP.check(config["model"].get("lm"), f"{given}: config.json: model.lm")
        phi3 = lm.get("window") is not None
        return get(config.get("architecture") or ("mg_llava_phi3" if phi3 else "mg_llava"))
    if config["system"] == "ferret":
        # a release of the trainer does not name it; of one resolution is v1 alone
        model = GROUP.check(config["model"], f"{given}: config.json: model")
        return get(config.get("architecture") or ("ferret_ui" if model.get("grids") else "ferret"))
    if config["system"] == "tiny_grounding_gpt":
        return get("tiny_grounding_gpt")
    raise UserError(f"{given}: system {config['system']!r} has no layout of PyTorch's")
