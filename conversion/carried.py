"""What goes along with the weights: tokenizer files, licences, notes; both ways, byte for byte.

release/tokenizer/   files that a tokenizer is loaded from
release/upstream/    the original config.json and the rest, for the way back and for reference
"""

import fnmatch
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from conversion.architectures import CONFIG_FILES
from conversion.hf_config import TOKEN_IDS, language_of
from mg_jax.errors import UserError

TOKENIZER = (
    "tokenizer.model", "tokenizer.json", "tokenizer_config.json", "added_tokens.json",
    "special_tokens_map.json", "vocab.json", "merges.txt", "chat_template.*",
)  # fmt: skip
OTHERS = (
    "generation_config.json", "preprocessor_config.json", "LICENSE*", "NOTICE*", "USE_POLICY*",
    "README.md",
)  # fmt: skip
LMS = ("llm_cfg", "llm")  # where the config of a whole system keeps its language model's
# Text of Groma's training, in tokens before <image> and <region> are expanded (spec 6)
GROMA_TEXT = 2046
# Text and picture of MG-LLaVA's training in tokens; boxes are not counted (spec 3)
MG_LLAVA_CONTEXT = 2048
# Text of TinyGroundingGPT in tokens, and object images of a conversation (its spec 3 says 2,048
# of its predecessor's, picture included; the second number is ours)
GROUNDING_TEXT, OBJECT_SLOTS = 1472, 8
# MG-LLaVA's template by the size of a vocabulary of Llama's kind; Vicuna's else (spec 7)
MG_LLAVA_TEMPLATES = {128256: "llama3_chat", 64000: "qwen_chat"}
LLAMA_3 = 128256  # rows of its vocabulary


def matching(folder: Path, patterns: Sequence[str]) -> list[Path]:
    """The files directly in `folder` that match one of `patterns`, by name."""
    if not folder.is_dir():
        return []
    return [
        entry
        for entry in sorted(folder.iterdir())
        if entry.is_file() and any(fnmatch.fnmatch(entry.name, p) for p in patterns)
    ]


def into_release(source: Path, release: Path, brought: Mapping[str, Path]) -> None:
    """Copy into a release the tokenizer of `source`, and the notes of every folder `brought`,
    under its name."""
    _copy(matching(source, TOKENIZER), release / "tokenizer")
    for name, folder in brought.items():
        _copy(matching(folder, (*CONFIG_FILES, *OTHERS)), release / "upstream" / name)


def out_of_release(release: Path, target: Path, spoken: str = "") -> None:
    """Copy the same files back; the config is written anew, from what the model is now.

    `spoken`: the folder in `target` that the tokenizer belongs in.
    """
    _copy(matching(release / "tokenizer", ("*",)), target / spoken)
    notes = release / "upstream"
    _copy(matching(notes, OTHERS), target)
    for folder in filter(Path.is_dir, sorted(notes.iterdir()) if notes.is_dir() else ()):
        _copy(matching(folder, OTHERS), target / folder.name)


def part_out_of_release(release: Path, target: Path, part: str, speaks: bool) -> None:
    """Copy back what came with one public model: its notes, and the tokenizer where it `speaks`."""
    _copy(matching(release / "upstream" / part, OTHERS), target)
    if speaks:
        _copy(matching(release / "tokenizer", ("*",)), target)


def _copy(files: Sequence[Path], target: Path) -> None:
    for file in files:
        target.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target / file.name)


def token_ids(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The ids in a config.json by which text is generated, nested as they are there."""
    found = {name: raw[name] for name in TOKEN_IDS if name in raw}
    nested = {name: token_ids(raw[name]) for name in LMS if name in raw}
    return found | {name: ids for name, ids in nested.items() if ids}


def with_token_ids(raw: Mapping[str, Any], ids: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json with the ids of `token_ids` put back."""
    inner = {name: with_token_ids(raw[name], ids[name]) for name in LMS if name in ids}
    return {**raw, **ids, **inner}


def text_settings(cfg: Any, stage: str) -> dict[str, Any]:
    """What a release of Groma says of pictures and text: `preprocess` and `codec`."""
    room = cfg.lm.max_positions - cfg.image_tokens - 2 * cfg.max_regions
    return {
        "preprocess": "groma_pil",  # as the published demo reads a picture (spec 5)
        "codec": {
            "template": "default" if stage == "alignment" else "llava",
            "image_tokens": cfg.image_tokens,
            "max_regions": cfg.max_regions,
            "text_tokens": min(GROMA_TEXT, room // 2),
            "refer_format": "roi",
        },
    }


def mg_llava_settings(cfg: Any, raw: Mapping[str, Any]) -> dict[str, Any]:
    """What a release of MG-LLaVA says of pictures and text; its config.json may name a template."""
    if language_of(raw) == "phi3":
        known = "phi3_chat"
    else:
        known = MG_LLAVA_TEMPLATES.get(cfg.lm.vocab, "vicuna")
    tokens = cfg.image_tokens()
    return {
        "preprocess": "clip_pad",
        "codec": {
            "template": raw.get("template", known),
            "image_tokens": tokens,
            "frame_tokens": cfg.image_tokens(cfg.frames),
            "text_tokens": raw.get(
                "text_tokens", min(MG_LLAVA_CONTEXT, cfg.lm.max_positions) - tokens
            ),
            "vocab": cfg.lm.vocab,
            "max_boxes": cfg.max_boxes,
        },
    }


def ferret_settings(cfg: Any) -> dict[str, Any]:
    """What a release of Ferret says of pictures and text: Llama 3's template by its vocabulary,
    Vicuna's else."""
    llama3 = cfg.lm.vocab >= LLAMA_3
    template = "ferret_llama_3" if llama3 else "ferret_vicuna_v1" if cfg.grids else "ferret_v1"
    return {
        "preprocess": "clip_squash",
        "codec": {
            "template": template,
            "image_tokens": cfg.largest,
            "refer": "coordinates" if cfg.regions == "none" else "hybrid",
            "text_tokens": max(cfg.lm.max_positions - cfg.largest, 1),
            "vocab": cfg.lm.vocab,
            "region_token": cfg.region_token,
        },
    }


def tiny_grounding_gpt_settings(cfg: Any, raw: Mapping[str, Any]) -> dict[str, Any]:
    """What a release of TinyGroundingGPT says of pictures and text; its config.json may name a
    template."""
    slots = OBJECT_SLOTS * cfg.object_tokens
    room = cfg.lm.max_positions - cfg.image_tokens
    return {
        "preprocess": "clip_pad",
        "codec": {
            "template": raw.get("template", "qwen_chat"),
            "image_tokens": cfg.image_tokens,
            "object_tokens": cfg.object_tokens,
            "object_slots": raw.get("object_slots", OBJECT_SLOTS if slots < room // 2 else 0),
            "text_tokens": raw.get("text_tokens", max(1, min(GROUNDING_TEXT, room // 2))),
            "vocab": cfg.lm.vocab,
        },
    }


def has_tokenizer(folder: Path) -> bool:
    """Whether a tokenizer can be loaded from a folder."""
    return bool(matching(folder, TOKENIZER[:2]))


def check_tokenizer(folder: Path, name: str, cfg: Any) -> None:
    """Raises UserError when the tokenizer in `folder` is not of a model of shape `cfg`.

    `name`: of the architecture; parts and detectors take any. A folder without a tokenizer passes:
    its release sees, but cannot chat.
    """
    systems = (
        "groma", "mg_llava", "mg_llava_phi3", "ferret", "ferret_ui", "tiny_grounding_gpt",
    )  # fmt: skip
    if name not in systems or not has_tokenizer(folder):
        return
    from mg_jax.text.bpe import load_tokenizer

    found = load_tokenizer(folder)
    if name != "groma":  # no token is added, and tables may be larger than their vocabulary
        if found.size > cfg.lm.vocab:
            raise UserError(
                f"{folder}: its tokenizer has {found.size} tokens, its model {cfg.lm.vocab}: they "
                "do not belong together"
            )
        return
    for what, have, want in (
        ("pieces", found.vocab_size, cfg.lm.vocab),
        ("added tokens", len(found.added), cfg.new_tokens),
    ):
        if have != want:
            raise UserError(
                f"{folder}: its tokenizer has {have} {what}, its model {want}: they do not belong "
                "together"
            )


def card(title: str, rows: Sequence[tuple[str, str]], text: str) -> str:
    """A model card in Markdown."""
    lines = [f"# {title}", "", text, "", "| | |", "|---|---|"]
    return "\n".join([*lines, *(f"| {name} | {value} |" for name, value in rows)]) + "\n"


def gib(count: float) -> str:
    """Bytes in words."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:,.2f} {unit}"
    return f"{math.ceil(count)} B"


def codec_fields(system: str, cfg: Any, codec: Mapping[str, Any]) -> dict[str, Any]:
    """What the config.json of a system that has none of its own says of a release's `codec`: the
    template, and sizes that its settings would not be by themselves."""
    settings = {"mg_llava": mg_llava_settings, "tiny_grounding_gpt": tiny_grounding_gpt_settings}
    if system not in settings:
        return {}
    usual = settings[system](cfg, {})["codec"]
    return {
        name: codec[name]
        for name in ("template", "text_tokens", "object_slots")
        if name in codec and (name == "template" or codec[name] != usual[name])
    }
