"""Prompts as text files that one can edit.

The shipped ones lie in `prompts/`; a folder given with `--prompts` replaces those it has a file of.
A file is a chat:

    # Lines at the top that begin with a hash explain, and are not sent.
    [system]
    You ...
    [user]
    {{picture}}
    Objects: {{objects}}

`[system]`, `[user]` and `[assistant]` alone on a line begin a message; earlier pairs of user and
assistant are examples. `{{name}}` is a placeholder; `{{picture}}` is where the picture goes. Which
ones a file may have stands in `PLACEHOLDERS`; those in `NEEDED` it must have.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mg_jax.errors import UserError

FOLDER = Path(__file__).parent / "prompts"
PICTURE = "picture"
# What each shipped prompt may hold; docs/synthesis.md explains them.
PLACEHOLDERS: dict[str, tuple[str, ...]] = {
    "recognize": (PICTURE, "most"),
    "relate": (PICTURE, "objects", "most"),
    "ask_object": ("objects", "relations", "choices", "count"),
    "ask_relation": ("objects", "relations", "choices", "options", "count"),
    "converse": ("objects", "relations", "captions", "count"),
    "describe": (PICTURE, "objects", "relations", "captions"),
    "groma": (PICTURE, "objects", "captions", "questions", "count"),
    "nouns": ("texts",),
    "again": ("problem",),
}
NEEDED: dict[str, tuple[str, ...]] = {
    "recognize": (PICTURE,),
    "relate": ("objects",),
    "ask_object": ("objects",),
    "ask_relation": ("objects",),
    "converse": ("objects",),
    "describe": ("objects",),
    "groma": (PICTURE, "objects"),
    "nouns": ("texts",),
    "again": (),
}
_HEAD = re.compile(r"^\[(system|user|assistant)\][ \t]*$", re.MULTILINE)
_HOLE = re.compile(r"\{\{\s*(\w+)\s*\}\}")
_PICTURE_HOLE = re.compile(r"\{\{\s*picture\s*\}\}")


@dataclass(frozen=True)
class Prompt:
    """A chat with placeholders. messages: (role, text)."""

    name: str
    messages: tuple[tuple[str, str], ...]

    def fill(self, values: Mapping[str, Any], picture: str = "") -> list[dict[str, Any]]:
        """The messages as they are sent. picture: its data URL, "" for none."""
        return [
            {"role": role, "content": _content(text, values, picture)}
            for role, text in self.messages
        ]

    @property
    def sees(self) -> bool:
        """Whether the picture is sent along."""
        return any(m[1] == PICTURE for _, text in self.messages for m in _HOLE.finditer(text))


@dataclass(frozen=True)
class Prompts:
    """All prompts by name. digest: changes with any of their texts."""

    texts: Mapping[str, Prompt]
    digest: str

    def __getitem__(self, name: str) -> Prompt:
        return self.texts[name]


def read_prompts(folder: str | Path | None = None) -> Prompts:
    """The shipped prompts, those of `folder` in their place.

    Raises UserError for a folder without any of them, and for one that is malformed.
    """
    own: dict[str, Path] = {}
    if folder:
        path = Path(folder).expanduser()
        if not path.is_dir():
            raise UserError(f"--prompts {folder}: no such folder")
        own = {name: path / f"{name}.txt" for name in PLACEHOLDERS}
        own = {name: file for name, file in own.items() if file.is_file()}
        if not own:
            raise UserError(
                f"--prompts {folder}: holds none of {', '.join(f'{n}.txt' for n in PLACEHOLDERS)}"
            )
    files = {name: own.get(name, FOLDER / f"{name}.txt") for name in PLACEHOLDERS}
    read = {name: _read(name, file) for name, file in files.items()}
    digest = hashlib.sha256(repr(sorted((n, p.messages) for n, p in read.items())).encode())
    return Prompts(read, digest.hexdigest()[:16])


def copy_prompts(folder: str | Path) -> list[Path]:
    """The shipped files in a folder of one's own; those that are there stay as they are."""
    target = Path(folder).expanduser()
    try:
        target.mkdir(parents=True, exist_ok=True)
        copied = []
        for name in PLACEHOLDERS:
            file = target / f"{name}.txt"
            if not file.exists():
                file.write_text((FOLDER / file.name).read_text(encoding="utf-8"), encoding="utf-8")
                copied.append(file)
    except OSError as e:
        raise UserError(f"--copy-prompts {folder}: {e.strerror}") from None
    return copied


def _read(name: str, file: Path) -> Prompt:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"{file}: {getattr(e, 'strerror', None) or 'is no UTF-8 text'}") from None
    lines = text.lstrip("\ufeff").splitlines(keepends=True)
    while lines and (lines[0].startswith("#") or not lines[0].strip()):
        lines.pop(0)
    _, *parts = _HEAD.split("".join(lines))
    messages = tuple((parts[k], parts[k + 1].strip()) for k in range(0, len(parts), 2))
    if not messages or messages[-1][0] != "user" or not all(text for _, text in messages):
        raise UserError(
            f"{file}: write messages below [system], [user] or [assistant], none of them empty, "
            "the last one a user's"
        )
    used = {m[1] for _, text in messages for m in _HOLE.finditer(text)}
    if unknown := sorted(used - set(PLACEHOLDERS[name])):
        known = ", ".join(f"{{{{{p}}}}}" for p in PLACEHOLDERS[name])
        raise UserError(f"{file}: unknown placeholder {{{{{unknown[0]}}}}}: it may have {known}")
    if lacking := [p for p in NEEDED[name] if p not in used]:
        raise UserError(f"{file}: lacks the placeholder {{{{{lacking[0]}}}}}")
    return Prompt(name, messages)


def _content(text: str, values: Mapping[str, Any], picture: str) -> Any:
    """A message's content: text alone, or parts where the picture is among it."""
    filled = [
        _HOLE.sub(lambda m: str(values.get(m[1], "")), part).strip()
        for part in _PICTURE_HOLE.split(text, maxsplit=1)
    ]
    if len(filled) == 1 or not picture:
        return "\n".join(filter(None, filled))
    before, after = ([{"type": "text", "text": part}] if part else [] for part in filled)
    return [*before, {"type": "image_url", "image_url": {"url": picture}}, *after]
