"""Chat templates as data: Groma's (its spec 4.1) and those of language models (MG-LLaVA's 7)."""

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


@dataclass(frozen=True)
class TurnFormat:
    """How xtuner writes one exchange: `before + question + after`, the answer, `suffix`, `sep`.

    suffix ends an answer and is a training target, `sep` is not. Without a suffix the answer ends
    with the end-of-sequence token and every turn begins with the start token anew; with one, only
    the first turn does. stops: texts that end an answer when the model writes them.
    """

    name: str
    before: str
    after: str
    suffix: str = ""
    sep: str = "\n"
    stops: tuple[str, ...] = ()


# MG-LLaVA spec 7; none of them is ever given a system prompt.
FORMATS = {
    f.name: f
    for f in (
        TurnFormat("vicuna", "USER: ", " ASSISTANT:"),
        # No newline after <|user|>, unlike Phi-3's own chat template
        TurnFormat(
            "phi3_chat", "<|user|>", "<|end|>\n<|assistant|>\n", "<|end|>", stops=("<|end|>",)
        ),
        TurnFormat(
            "llama3_chat",
            "<|start_header_id|>user<|end_header_id|>\n\n",
            "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
            "<|eot_id|>",
            sep="",
            stops=("<|eot_id|>",),
        ),
        TurnFormat(
            "qwen_chat",
            "<|im_start|>user\n",
            "<|im_end|>\n<|im_start|>assistant\n",
            "<|im_end|>",
            stops=("<|im_end|>", "<|endoftext|>"),
        ),
    )
}


def get_format(name: str) -> TurnFormat:
    """The turn format of that name; UserError lists the known ones."""
    if name not in FORMATS:
        raise UserError(f"unknown chat template {name!r}: choose {', '.join(FORMATS)}")
    return FORMATS[name]
