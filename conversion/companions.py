"""What MG-LLaVA's files leave to public ones: the language model and the two towers (spec 1).

    launch.convert iter_10805.pth RELEASE --with FOLDER_OF_THE_LANGUAGE_MODEL \\
        --with openai/clip-vit-large-patch14-336 --with laion/CLIP-convnext_large_d_320...

Which is which their config.json tells. The tensors of each are read where the file has none of its
kind, under the prefix that they have in memory; else only its config and tokenizer are.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from conversion.architectures import Architecture, detect, find_config
from conversion.hf_config import is_mg_llava
from conversion.hub import Fetched
from conversion.located import Companion, Opened, StrPath, find, made, open_torch
from conversion.readers import Joined, Source, open_checkpoint
from conversion.readers.containers import SPLIT_LM, SPLIT_REST
from conversion.tables.mg_llava import HIGH, LM, LOW, OWN, PUBLIC, holds
from mg_jax.disk import read_json
from mg_jax.errors import UserError

# What a companion is in the config.json of MG-LLaVA -> the prefix of its tensors
PREFIXES = {"llm": LM, "clip": LOW, "convnext": HIGH}


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
    raw = _own_config(found.path) or {"model_type": "mg_llava"}
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
    """MG-LLaVA's config.json of a folder or beside a file; upstream writes none."""
    file = (path if path.is_dir() else path.parent) / "config.json"
    raw = read_json(file) if file.is_file() else {}
    return raw if is_mg_llava(raw) else {}


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
