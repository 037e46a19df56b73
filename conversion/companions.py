"""What files leave to public ones: MG-LLaVA's the language model and the two towers (its spec 1),
Ferret's CLIP's tower (its spec 1.1).

    launch.convert iter_10805.pth RELEASE --with FOLDER_OF_THE_LANGUAGE_MODEL \\
        --with openai/clip-vit-large-patch14-336 --with laion/CLIP-convnext_large_d_320...
    launch.convert ferret-7b-delta RELEASE --base lmsys/vicuna-7b-v1.3 \\
        --with openai/clip-vit-large-patch14-336

Which is which their config.json tells. The tensors of each are read where the file has none of its
kind, under the prefix that they have in memory; else only its config and tokenizer are.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from conversion.architectures import Architecture, detect, find_config
from conversion.hf_config import check_language, is_ferret, is_mg_llava
from conversion.hub import Fetched
from conversion.located import Companion, Opened, StrPath, find, made, open_torch
from conversion.readers import Joined, Source, open_checkpoint
from conversion.readers.containers import SPLIT_LM, SPLIT_REST
from conversion.tables import ferret
from conversion.tables.mg_llava import HIGH, LM, LOW, OWN, PUBLIC, holds
from mg_jax.disk import read_json
from mg_jax.errors import UserError

# What a companion is in the config.json of MG-LLaVA -> the prefix of its tensors
PREFIXES = {"llm": LM, "clip": LOW, "convnext": HIGH}
TOWER_FOLDER = "vision_tower"  # in a folder of Ferret v1, whose tower was trained as well


def open_any(
    found: Fetched,
    given: StrPath,
    system: str = "auto",
    base: StrPath | None = None,
    dry: bool = False,
    parts: Iterable[StrPath] = (),
) -> Opened:
    """`located.open_torch`, the checkpoint completed by `parts` where there are any.

    Raises UserError when one of them is neither of the three, or two are the same.
    """
    if is_ferret(own := _own_config(found.path)):
        return _open_ferret(found, given, own, system, base, dry, parts)
    there = _beside(found.path) | _bring(parts, dry)
    if not there:
        _check_told(found, given)
        return open_torch(found, given, system, base, dry)
    if base is not None:
        raise UserError(f"--base {base}: MG-LLaVA's files are no deltas; leave --base out")
    source = open_checkpoint(found.headers or found.path)
    if not holds(source.manifest, OWN[-1]):
        raise UserError(f"{given}: holds no {OWN[-1]}*: --with completes files of MG-LLaVA alone")
    lacking = [c for c in there.values() if not holds(source.manifest, PREFIXES[c.role])]
    sources: list[tuple[str, Source]] = [("", source)]
    notes = list(found.notes)
    for companion in there.values():
        if companion not in lacking:
            notes.append(f"{companion.role}: config of {companion.given}, weights of {given}")
            continue
        weights = find(companion.given, dry=dry)
        sources.append((PREFIXES[companion.role], open_checkpoint(weights.headers or weights.path)))
        notes += [*weights.notes, f"{companion.role}: config and weights of {companion.given}"]
    raw = own if is_mg_llava(own) else {"model_type": "mg_llava"}
    return made(
        os.fspath(given),
        found.path,
        raw | {c.role: dict(c.raw) for c in there.values()},
        str(found.path),
        Joined(source.where, sources, notes),
        system,
        companions=tuple(there.values()),
        # the file of stage 1 alone leaves the language model to its public files
        stage="pretrain" if _lacks_language(found.path, lacking) else "",
    )


def _open_ferret(
    found: Fetched,
    given: StrPath,
    raw: dict[str, Any],
    system: str,
    base: StrPath | None,
    dry: bool,
    parts: Iterable[StrPath],
) -> Opened:
    """A Ferret, whole or a delta on `base`, and CLIP's tower where it holds none."""
    there = _bring(parts, dry)
    beside = found.path / TOWER_FOLDER
    if not there and (beside / "config.json").is_file():
        there = {"clip": _companion(beside, str(beside))}
    for role, companion in there.items():
        if role != "clip":
            raise UserError(f"--with {companion.given}: Ferret's files lack CLIP's tower alone")
    config = str(find_config(found.path))
    check_language(raw, config)  # before weights are opened
    clip = there.get("clip")
    raw = raw | ({"clip": dict(clip.raw)} if clip else {})
    under = None if base is None else find(base, dry=dry)
    source = open_checkpoint(
        found.headers or found.path, base=under and (under.headers or under.path)
    )
    notes = [*found.notes, *(under.notes if under else ())]
    if clip and holds(source.manifest, ferret.TOWER):
        notes.append(f"clip: config of {clip.given}, weights of {given}")
    elif clip:
        weights = find(clip.given, dry=dry)
        tower = open_checkpoint(weights.headers or weights.path)
        notes += [*weights.notes, f"clip: config and weights of {clip.given}"]
        source = Joined(source.where, [("", source), (ferret.TOWER, tower)], notes)
        notes = []
    ferret.check_whole(source.manifest)
    return made(
        os.fspath(given), found.path, raw, config, source, system, tuple(notes),
        base=os.fspath(base or ""), base_path=under and under.path,
        companions=tuple(there.values()),
    )  # fmt: skip


def refuse(parts: Iterable[StrPath]) -> None:
    """Raises UserError when a release is given with parts."""
    for part in parts:
        raise UserError(f"--with {part}: a release is whole; leave --with out")


def _bring(parts: Iterable[StrPath], dry: bool) -> dict[str, Companion]:
    """Role -> companion; of names on the hub the config and tokenizer are fetched."""
    there: dict[str, Companion] = {}
    for other in parts:
        companion = _companion(find(other, dry=dry, weights=False).path, os.fspath(other))
        if companion.role in there:
            raise UserError(
                f"--with {other}: {there[companion.role].given} is a {companion.role} already"
            )
        there[companion.role] = companion
    return there


def _companion(path: Path, given: str) -> Companion:
    config = find_config(path)
    raw = read_json(config)
    role = _role(detect(raw, str(config)))
    if role is None:
        listed = "; ".join(PUBLIC.values())
        raise UserError(f"--with {given}: is none of what MG-LLaVA is made of: {listed}")
    return Companion(role, given, config.parent, raw)


def _role(entry: Architecture) -> str | None:
    """The field of MG-LLaVA's config.json that a model of this class fills."""
    if entry.part == "lm":
        return "llm"
    return entry.name if entry.name in PREFIXES else None


def _lacks_language(path: Path, lacking: Iterable[Companion]) -> bool:
    split = path.name.endswith(SPLIT_REST)  # of a pair whose language model is given apart
    return not split and any(companion.role == "llm" for companion in lacking)


def _beside(path: Path) -> dict[str, Companion]:
    """The language model of a pair of files, which brings its config."""
    if not path.is_dir() or not any(x.name.endswith(SPLIT_REST) for x in path.iterdir()):
        return {}
    for folder in path.iterdir():
        if folder.name.endswith(SPLIT_LM) and (folder / "config.json").is_file():
            return {"llm": _companion(folder, str(folder))}
    return {}


def _own_config(path: Path) -> dict[str, Any]:
    """The config.json in a folder or beside a file; upstream's MG-LLaVA writes none."""
    file = (path if path.is_dir() else path.parent) / "config.json"
    return read_json(file) if file.is_file() else {}


def _check_told(found: Fetched, given: StrPath) -> None:
    """Raises UserError, with the mend, for a file of MG-LLaVA that says nothing of its parts."""
    try:
        find_config(found.path)
    except UserError:
        names = open_checkpoint(found.headers or found.path).manifest
        if not holds(names, OWN[-1]):
            raise
        listed = "; ".join(PUBLIC.values())
        raise UserError(
            f"{given}: a file of MG-LLaVA's, which leaves its language model and its towers to "
            f"others: pass --with for each of {listed}"
        ) from None
