"""Chat templates as data: Groma's (its spec 4.1), those of language models (MG-LLaVA's 7), and
Ferret's (its 6)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from mg_jax.errors import UserError

T = TypeVar("T")

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
    return _named(TEMPLATES, name)


def _named(known: Mapping[str, T], name: str) -> T:
    if not isinstance(name, str) or name not in known:
        choices = ", ".join(known)
        raise UserError(f"codec.template: unknown chat template {name!r}: choose {choices}")
    return known[name]


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
    return _named(FORMATS, name)


@dataclass(frozen=True)
class Dialogue:
    """How Ferret writes a conversation: `start`, then `before + question + after + lead + answer +
    end` for each exchange; a question still to be answered ends with `after`.

    The answer and `end` are training targets. asks: False where a question is the picture alone,
    whatever its words. stops: tokens that end an answer.
    """

    name: str
    start: str
    before: str
    after: str
    lead: str
    end: str
    stops: tuple[str, ...] = ("</s>",)
    asks: bool = True


_FERRET_SYSTEM = (
    "A chat between a human and an AI that understands visuals. In images, [x, y] denotes points: "
    "top-left [0, 0], bottom-right [width-1, height-1]. Increasing x moves right; y moves down. "
    "Bounding box: [x1, y1, x2, y2]. Image size: 1000x1000. Follow instructions."
)
_VICUNA = ("USER: ", " ASSISTANT:", " ", "</s>")
_GEMMA = ("<start_of_turn>user\n", "<end_of_turn>\n<start_of_turn>model\n", "",
          "<end_of_turn>\n<eos>", ())  # fmt: skip

# Ferret spec 6. "ferret_v1" is the first release's, whose two spaces are its own; the others are
# Ferret-UI's, "vicuna_v1" what that calls v1. Gemma's have no token to stop at, as published.
# "ferret_short" is ours: to a tiny model the system's text is the same words every time.
DIALOGUES = {
    d.name: d
    for d in (
        Dialogue("ferret_v1", f"{_FERRET_SYSTEM}  ", *_VICUNA),
        Dialogue("ferret_vicuna_v1", f"{_FERRET_SYSTEM} ", *_VICUNA),
        Dialogue("vicuna_v1", f"{_VICUNA_SYSTEM} ", *_VICUNA),
        Dialogue(
            "ferret_llama_3",
            "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
            f"{_FERRET_SYSTEM}<|eot_id|>",
            "<|start_header_id|>user<|end_header_id|>\n\n",
            "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
            "",
            "<|eot_id|>",
            ("<|eot_id|>",),
        ),
        Dialogue(
            "ferret_phi3_instruct",
            "<|system|>\nYou are a helpful AI assistant.<|end|>",
            "\n<|user|>\n",
            "<|end|>\n<|assistant|>\n",
            "",
            "<|end|>",
            ("<|end|>",),
        ),
        Dialogue("ferret_gemma_instruct", _FERRET_SYSTEM, *_GEMMA),
        Dialogue("ferret_gemma_plain", "", *_GEMMA),
        Dialogue("ferret_short", "", *_VICUNA),
        Dialogue("plain", "", "", "", "", "\n", ("\n",), asks=False),
    )
}


def get_dialogue(name: str) -> Dialogue:
    """The dialogue of that name; UserError lists the known ones."""
    return _named(DIALOGUES, name)
