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
from conversion.hf_config import TOKEN_IDS
from mg_jax.errors import UserError

TOKENIZER = (
    "tokenizer.model", "tokenizer.json", "tokenizer_config.json", "added_tokens.json",
    "special_tokens_map.json", "vocab.json", "merges.txt", "chat_template.*",
)  # fmt: skip
OTHERS = (
    "generation_config.json", "preprocessor_config.json", "LICENSE*", "NOTICE*", "USE_POLICY*",
    "README.md",
)  # fmt: skip
LM = "llm_cfg"  # where the config of a whole system keeps its language model's
# Text of Groma's training, in tokens before <image> and <region> are expanded (spec 6)
GROMA_TEXT = 2046


def matching(folder: Path, patterns: Sequence[str]) -> list[Path]:
    """The files directly in `folder` that match one of `patterns`, by name."""
    if not folder.is_dir():
        return []
    return [
        entry
        for entry in sorted(folder.iterdir())
        if entry.is_file() and any(fnmatch.fnmatch(entry.name, p) for p in patterns)
    ]


def into_release(source: Path, release: Path) -> None:
    """Copy what belongs to a folder of weights into a release."""
    groups = {"tokenizer": TOKENIZER, "upstream": (*CONFIG_FILES, *OTHERS)}
    for name, patterns in groups.items():
        for file in matching(source, patterns):
            (release / name).mkdir(exist_ok=True)
            shutil.copyfile(file, release / name / file.name)


def out_of_release(release: Path, target: Path) -> None:
    """Copy the same files back; the config is written anew, from what the model is now."""
    for file in matching(release / "tokenizer", ("*",)) + matching(release / "upstream", OTHERS):
        shutil.copyfile(file, target / file.name)


def token_ids(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The ids in a config.json by which text is generated, nested as they are there."""
    found = {name: raw[name] for name in TOKEN_IDS if name in raw}
    inner = token_ids(raw[LM]) if LM in raw else {}
    return found | ({LM: inner} if inner else {})


def with_token_ids(raw: Mapping[str, Any], ids: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json with the ids of `token_ids` put back."""
    inner = {LM: with_token_ids(raw[LM], ids[LM])} if LM in ids else {}
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


def has_tokenizer(folder: Path) -> bool:
    """Whether a tokenizer can be loaded from a folder."""
    return bool(matching(folder, TOKENIZER[:2]))


def check_tokenizer(folder: Path, cfg: Any) -> None:
    """Raises UserError when the tokenizer in `folder` is not of a Groma model of shape `cfg`.

    A folder without a tokenizer passes: its release can propose regions, but not chat.
    """
    if not has_tokenizer(folder):
        return
    from mg_jax.text.bpe import load_tokenizer

    found = load_tokenizer(folder)
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
