"""Chat templates as data (Groma spec 4.1)."""

from dataclasses import dataclass

from mg_jax.errors import UserError

_VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


@dataclass(frozen=True)
class ChatTemplate:
    """`system + gap + user: question + sep + assistant: answer + sep2 + user: ...`.

    An answer still to be given leaves a bare `assistant:`. sep2 may be the end-of-sequence token,
    which is then a training target after every trained answer.
    """

    name: str
    system: str
    user: str = "USER"
    assistant: str = "ASSISTANT"
    sep: str = " "
    sep2: str = "</s>"


TEMPLATES = {
    t.name: t
    for t in (
        # Groma's alignment stage: no end-of-sequence token anywhere
        ChatTemplate("default", _VICUNA_SYSTEM, sep2=" "),
        # Groma's instruction stage and all its inference
        ChatTemplate("llava", _VICUNA_SYSTEM),
    )
}


def get(name: str) -> ChatTemplate:
    """The template of that name; UserError lists the known ones."""
    if name not in TEMPLATES:
        raise UserError(f"unknown chat template {name!r}: choose {', '.join(TEMPLATES)}")
    return TEMPLATES[name]
