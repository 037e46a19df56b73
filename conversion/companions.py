"""What a system's files leave to public ones: language models and towers.

    launch.convert iter_10805.pth RELEASE --with FOLDER_OF_THE_LANGUAGE_MODEL \\
        --with openai/clip-vit-large-patch14-336 --with laion/CLIP-convnext_large_d_320...
    launch.convert ferret-7b-delta RELEASE --base lmsys/vicuna-7b-v1.3 \\
        --with openai/clip-vit-large-patch14-336

MG-LLaVA's leave out all three (its spec 1), Ferret's CLIP's tower (its spec 1.1); of
TinyGroundingGPT's any may be left out, as GroundingGPT's are. Which part is which their config.json
tells. The tensors of each are read where the file has none of its kind, under the prefix that they
have in memory; else only its config and tokenizer are.
"""

import dataclasses
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from conversion.architectures import Architecture, detect, find_config
from conversion.hf_config import V1, check_language, is_ferret, is_mg_llava
from conversion.hf_config.tiny_grounding_gpt import MODEL_TYPE as TINY_GROUNDING_GPT
from conversion.hub import Fetched
from conversion.located import Companion, Opened, StrPath, find, made, open_torch
from conversion.readers import Joined, Source, open_checkpoint
from conversion.readers.containers import SPLIT_LM, SPLIT_REST
from conversion.tables import ferret, mg_llava, tiny_grounding_gpt
from conversion.tables.mg_llava import holds
from mg_jax.disk import read_json
from mg_jax.errors import UserError

TOWER_FOLDER = "vision_tower"  # in a folder of Ferret v1, whose tower was trained as well


@dataclasses.dataclass(frozen=True)
class Kit:
    """A system whose files are completed by public ones.

    mark: prefix of tensors that its files alone have, "" where their config.json tells. prefixes:
    what a companion is in its config.json -> the prefix of its tensors; llm: that of a tensor which
    tells that the language model is there. first: the stage that leaves it out. public: what holds
    each part, in words.
    """

    name: str
    model_type: str
    mark: str
    prefixes: Mapping[str, str]
    llm: str
    first: str
    public: tuple[str, ...]
    is_of: Callable[[Mapping[str, Any]], bool]

    def lacks(self, role: str, names: Collection[str]) -> bool:
        """Whether a checkpoint of these tensors has none of a part."""
        return not holds(names, self.llm if role == "llm" else self.prefixes[role])


KITS = (
    Kit(
        "MG-LLaVA", "mg_llava", mg_llava.OWN[-1],
        {"llm": mg_llava.LM, "clip": mg_llava.LOW, "convnext": mg_llava.HIGH},
        mg_llava.LM, "pretrain", tuple(mg_llava.PUBLIC.values()), is_mg_llava,
    ),
    Kit(
        "TinyGroundingGPT", TINY_GROUNDING_GPT, tiny_grounding_gpt.PROJECTOR,
        {"llm": "", "clip": tiny_grounding_gpt.CLIP, "dinov2": tiny_grounding_gpt.DINO},
        tiny_grounding_gpt.LM, "projector", tuple(tiny_grounding_gpt.PUBLIC.values()),
        lambda raw: raw.get("model_type") == TINY_GROUNDING_GPT,
    ),
    Kit(
        "Ferret", V1, "", {"clip": ferret.TOWER}, "", "", (f"CLIP's tower: {ferret.CLIP}",),
        is_ferret,
    ),
)  # fmt: skip


def open_any(
    found: Fetched,
    given: StrPath,
    system: str = "auto",
    base: StrPath | None = None,
    dry: bool = False,
    parts: Iterable[StrPath] = (),
) -> Opened:
    """`located.open_torch`, the checkpoint completed by `parts` where there are any.

    Raises UserError when one of them is nothing that its files leave out, or two are the same.
    """
    own = _own_config(found.path)
    there = _beside(found.path, own) | _bring(parts, dry)
    if is_ferret(own):  # the only one that may be a delta, or whole
        check_language(own, str(find_config(found.path)))  # before weights are opened
    elif not there:
        _check_told(found, given)
        return open_torch(found, given, system, base, dry)
    elif base is not None:
        raise UserError(f"--base {base}: files to be completed are no deltas; leave --base out")
    under = None if base is None else find(base, dry=dry)
    source = open_checkpoint(
        found.headers or found.path, base=under and (under.headers or under.path)
    )
    kit = _kit(source.manifest, own)
    if kit is None:
        marks = " or ".join(f"{k.mark}*" for k in KITS if k.mark)
        names = " or ".join(k.name for k in KITS)
        raise UserError(f"{given}: holds no {marks}: --with completes files of {names} alone")
    lacking = _lacking(kit, there.values(), source.manifest)
    notes = [*found.notes, *(under.notes if under else ())]
    sources: list[tuple[str, Source]] = [("", source)]
    for companion in there.values():
        if companion not in lacking:
            notes.append(f"{companion.role}: config of {companion.given}, weights of {given}")
            continue
        weights = find(companion.given, dry=dry)
        opened = open_checkpoint(weights.headers or weights.path)
        sources.append((kit.prefixes[companion.role], opened))
        notes += [*weights.notes, f"{companion.role}: config and weights of {companion.given}"]
    joined = Joined(source.where, sources, notes)
    told = kit.is_of(own)
    if is_ferret(own):
        ferret.check_whole(joined.manifest)
    return made(
        os.fspath(given),
        found.path,
        (own if told else {"model_type": kit.model_type})
        | {c.role: dict(c.raw) for c in there.values()},
        str(find_config(found.path) if told else found.path),
        joined,
        system,
        base=os.fspath(base or ""),
        base_path=under and under.path,
        companions=tuple(there.values()),
        # the file of the first stage alone leaves the language model to its public files
        stage=kit.first if _lacks_language(found.path, lacking) else "",
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
    return Companion(_role(detect(raw, str(config))), given, config.parent, raw)


def _role(entry: Architecture) -> str:
    """The field of a system's config.json that a model of this class fills, if it has one."""
    return "llm" if entry.part == "lm" else entry.name


def _kit(names: Collection[str], own: Mapping[str, Any]) -> Kit | None:
    """The system that a file of these tensors is of, `own` its config.json or {}."""
    there = (kit for kit in KITS if (holds(names, kit.mark) if kit.mark else kit.is_of(own)))
    return next(there, None)


def _lacking(kit: Kit, there: Iterable[Companion], names: Collection[str]) -> list[Companion]:
    """Those that a checkpoint of these tensors holds nothing of.

    Raises UserError for one that is no part of such files.
    """
    for companion in there:
        if companion.role not in kit.prefixes:
            raise UserError(
                f"--with {companion.given}: is none of what {kit.name}'s files leave out: "
                + "; ".join(kit.public)
            )
    return [companion for companion in there if kit.lacks(companion.role, names)]


def _lacks_language(path: Path, lacking: Iterable[Companion]) -> bool:
    split = path.name.endswith(SPLIT_REST)  # of a pair whose language model is given apart
    return not split and any(companion.role == "llm" for companion in lacking)


def _beside(path: Path, own: Mapping[str, Any]) -> dict[str, Companion]:
    """The language model of a pair of files, which brings its config, or the tower that a Ferret
    has in a folder of its own."""
    tower = path / TOWER_FOLDER
    if is_ferret(own) and (tower / "config.json").is_file():
        return {"clip": _companion(tower, str(tower))}
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
    """Raises UserError, with the mend, for a file that says nothing of the parts it is without."""
    try:
        find_config(found.path)
    except UserError:
        kit = _kit(open_checkpoint(found.headers or found.path).manifest, {})
        if kit is None:
            raise
        raise UserError(
            f"{given}: a file of {kit.name}'s, which leaves its language model and its towers to "
            f"others: pass --with for each of {'; '.join(kit.public)}"
        ) from None
