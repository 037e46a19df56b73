"""What MG-LLaVA's host side makes of pictures, boxes and conversations, against recordings.

`preproc`: pictures, boxes and prompts as upstream's evaluation prepares them, and the pictures of
its demo, whose defect (spec 5) is acted out here and nowhere else. `text_metrics`: ids and labels
of conversations in the four templates, and how its benchmarks read answers. Both were recorded
with a tokenizer of characters.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from conversion.verify import Case, npz_names, npz_read
from conversion.verify.parts import Parts, gather
from mg_jax.data import detections
from mg_jax.data.tasks import asking
from mg_jax.errors import UserError
from mg_jax.evals import benchmarks
from mg_jax.example import Example, Question, Turn
from mg_jax.text import instructions, templates
from mg_jax.text.added import AddedTokens
from mg_jax.text.codecs.mg_llava import MGLLaVACodec
from mg_jax.vision import preprocess

# Not in the recordings: what the cases asked, and the sizes of the demo
QUESTION = Question("What is it?", ("one",), ("one", "two"), "a hint")
CHAT_HIGH, CHAT_LOW, CHAT_STEP = 768, 336, 4

# The system texts are in upstream's templates, but nothing of it ever uses them (spec 7)
PREPROC_GIVEN = re.compile(
    r"cases/\w+/(boxes|scores|labels|image_size_aux|low_res)|prompts/\w+_cfg/SYSTEM"
    r"|tokenizer|versions|sha256_outputs"
)
METRICS_GIVEN = re.compile(
    r"encode/\d+/(template|conversations)|anls/\d+/(pred|gt)|textvqa_acc/\d+/[01]"
    r"|(answer_processor|yorn|choice|prompt_processor)/\d+/0"
)
READERS = {
    "answer_processor": benchmarks.vqa_answer,
    "yorn": benchmarks.yes_or_no,
    "choice": benchmarks.choice_letter,
    "prompt_processor": benchmarks.textvqa_question,
}


class Characters(AddedTokens):
    """The recordings' tokenizer: id = code point + 3, 0 pads, 1 begins and 2 ends a text."""

    bos_id, eos_id, pad_id = 1, 2, 0
    vocab_size = 0x110000 + 3
    size = vocab_size

    def __init__(self) -> None:
        super().__init__({})

    def _piece(self, token: str) -> int | None:
        return ord(token) + 3 if len(token) == 1 else None

    def _encode_part(
        self, text: str, before: int | None, after: int | None, first: bool
    ) -> list[int]:
        return [ord(letter) + 3 for letter in text]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, without those that begin, end or pad it."""
        return "".join(chr(i - 3) for i in ids if i > 2)


def find(folder: Path) -> Case | None:
    """The case of a folder of these recordings, None for another one."""
    if (folder / "golden.json").exists():
        return _metrics_case(folder / "golden.json")
    if (folder / "config.json").exists() and (folder / "outputs.npz").exists():
        config = read_json(folder / "config.json")
        if isinstance(config, dict) and "cases" in config:
            return _preproc_case(folder, config)
    return None


# -- preproc ----------------------------------------------------------------------------------


def _preproc_case(folder: Path, config: dict[str, Any]) -> Case:
    arrays = npz_names(folder / "outputs.npz")
    leaves = dict(_leaves(config, "", PREPROC_GIVEN, 1))
    given = [name for name in leaves if PREPROC_GIVEN.fullmatch(name)]

    def recorded(name: str) -> Any:
        if name in arrays:
            return npz_read(folder / "outputs.npz", [name])[name]
        return as_value(leaves[name])

    def produce() -> tuple[dict[str, Any], list[str]]:
        pictures = npz_read(folder / "inputs.npz", npz_names(folder / "inputs.npz"))
        pictures = {name.removesuffix("_image_u8"): array for name, array in pictures.items()}
        return gather(_preproc_parts(pictures, {name: leaves[name] for name in given}))

    return Case(
        "mg_llava preproc", (*arrays, *leaves), dict.fromkeys(given, "input"), produce, recorded
    )


def _preproc_parts(pictures: Mapping[str, np.ndarray], given: Mapping[str, Any]) -> Parts:
    cases = dict.fromkeys(name.split("/")[1] for name in given if name.startswith("cases/"))
    for name in cases:
        yield name, partial(_prepared, name, pictures[name], given)
    yield "chat", lambda: _chat(pictures["chat"], given)
    for template in templates.FORMATS.values():
        yield template.name, partial(_template, template)


def _boxes(name: str, image: np.ndarray, given: Mapping[str, Any], canvas: int) -> Any:
    boxes, scores, labels = (given[f"cases/{name}/{key}"] for key in ("boxes", "scores", "labels"))
    height, width = image.shape[:2]
    return detections.prepare(boxes, scores, labels, width, height, canvas)


def _prepared(name: str, image: np.ndarray, given: Mapping[str, Any]) -> dict[str, Any]:
    """A case of upstream's evaluation: both pictures, boxes, and the ids of a multiple choice."""
    high, low = (given[f"cases/{name}/{key}"] for key in ("image_size_aux", "low_res"))
    prepared = _boxes(name, image, given, high)
    pixels = preprocess.clip_pad(image, high)
    asked = asking.choice(
        Example(image, image.shape[1], image.shape[0], questions=(QUESTION,)),
        np.random.default_rng(0),
        instructions.get("mg_llava"),
    )
    assert asked is not None
    ids, _ = MGLLaVACodec(Characters()).upstream_ids([Turn(asked.turns[0].user)])
    return {
        f"{name}_pixel_values_aux": pixels.transpose(2, 0, 1),
        f"{name}_pixel_values": preprocess.low_from_high(pixels, low).transpose(2, 0, 1),
        f"{name}_gt_boxes": prepared.boxes,
        f"{name}_input_ids": np.asarray(ids),
        f"cases/{name}/out_labels": as_value(list(prepared.labels)),
    }


def _chat(image: np.ndarray, given: Mapping[str, Any]) -> dict[str, Any]:
    """Upstream's demo: a picture of the low resolution in the middle of a black one of the high,
    with boxes as if it filled it. Its boxes are those of the case `wide`."""
    black = preprocess.clip_pad.normalize(np.zeros((1, 1, 3), np.uint8))
    high = np.broadcast_to(black, (CHAT_HIGH, CHAT_HIGH, 3)).copy()
    start = (CHAT_HIGH - CHAT_LOW) // 2
    inner = slice(start, start + CHAT_LOW)
    high[inner, inner] = preprocess.clip_pad(image, CHAT_LOW)
    sparse = high[::CHAT_STEP, ::CHAT_STEP]
    return {
        "chat_pixel_values_aux_ds4": sparse.transpose(2, 0, 1),
        "chat_pixel_values_f32": preprocess.low_from_high(high, CHAT_LOW).transpose(2, 0, 1),
        "chat_gt_boxes": _boxes("wide", image, given, CHAT_HIGH).boxes,
        "chat_border_value": black[0, 0],
    }


def _template(template: templates.TurnFormat) -> dict[str, Any]:
    """The prompt for a question about a picture, and the template in upstream's terms."""
    codec = MGLLaVACodec(Characters(), template.name)
    ids, _ = codec.upstream_ids([Turn(QUESTION.text)])
    fields = {
        "INSTRUCTION": f"{template.before}{{input}}{template.after}",
        "SUFFIX": template.suffix,
        "SUFFIX_AS_EOS": np.asarray(bool(template.suffix)),
        "SEP": template.sep,
        "STOP_WORDS": as_value(list(template.stops)),
    }
    name = f"prompts/{template.name}"
    return {name: _text(ids), **{f"{name}_cfg/{key}": value for key, value in fields.items()}}


def _text(ids: list[int]) -> str:
    """The characters of ids, with `<image>` for the picture; the start token has none."""
    return "".join("<image>" if i == -200 else chr(i - 3) for i in ids if i > 2 or i == -200)


# -- text_metrics -----------------------------------------------------------------------------


def _metrics_case(path: Path) -> Case:
    leaves = dict(_leaves(read_json(path), "", METRICS_GIVEN, 3))
    given = {name: value for name, value in leaves.items() if METRICS_GIVEN.fullmatch(name)}

    def produce() -> tuple[dict[str, Any], list[str]]:
        return gather(_metrics_parts(given))

    return Case(
        "mg_llava text_metrics",
        tuple(leaves),
        dict.fromkeys(given, "input"),
        produce,
        lambda name: as_value(leaves[name]),
    )


def _metrics_parts(given: Mapping[str, Any]) -> Parts:
    parts = {"encode": _encoded, "anls": _anls, "textvqa_acc": _accuracy}
    for item in dict.fromkeys(name.rsplit("/", 1)[0] for name in given):
        yield item, partial(parts.get(item.split("/")[0], _read), item, given)


def _read(item: str, given: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{item}/1": READERS[item.split("/")[0]](given[f"{item}/0"])}


def _accuracy(item: str, given: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{item}/2": benchmarks.textvqa_accuracy(given[f"{item}/0"], given[f"{item}/1"])}


def _encoded(item: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Ids and labels of a conversation in LLaVA's form, and its turns in the template's words."""
    template = templates.get_format(given[f"{item}/template"])
    turns = _turns(given[f"{item}/conversations"])
    pictured = any("<image>" in turn.user for turn in turns)
    codec = MGLLaVACodec(Characters(), template.name)
    ids, labels = codec.upstream_ids(turns, image_id=-200 if pictured else None)
    out: dict[str, Any] = {
        f"{item}/input_ids": np.asarray(ids),
        f"{item}/labels": np.asarray(labels),
    }
    for n, turn in enumerate(turns):
        question = turn.user
        if "<image>" in question:
            question = f"<image>\n{question.replace('<image>', '').strip()}"
        out |= {
            f"{item}/conversation/{n}/input": f"{template.before}{question}{template.after}",
            f"{item}/conversation/{n}/output": f"{turn.assistant}{template.suffix}",
            f"{item}/conversation/{n}/need_eos_token": np.asarray(not template.suffix),
            f"{item}/conversation/{n}/sep": template.sep,
        }
    return out


def _turns(messages: list[dict[str, str]]) -> list[Turn]:
    """Upstream's reading: questions in a row are one, without anything between them; answers
    before the first question are left out (spec 7)."""
    turns, asked = [], ""
    for message in messages:
        if message["from"] == "human":
            asked += message["value"]
        elif asked:
            turns.append(Turn(asked, message["value"]))
            asked = ""
    return turns


def _anls(item: str, given: Mapping[str, Any]) -> dict[str, Any]:
    said, truths = given[f"{item}/pred"], given[f"{item}/gt"]
    return {
        f"{item}/match": np.asarray([benchmarks.edit_share(truth, said) for truth in truths]),
        f"{item}/hit": benchmarks.anls(said, truths),
    }


# -- recordings in JSON -----------------------------------------------------------------------


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises UserError for anything else."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not JSON ({error})") from None


def _leaves(value: Any, name: str, given: re.Pattern[str], depth: int) -> Iterator[tuple[str, Any]]:
    """(name, value) of everything in a JSON file; inputs are left whole.

    Objects are opened, lists are where they lie in fewer than `depth` levels or hold objects.
    """
    if isinstance(value, dict):
        inner: Any = value.items()
    elif isinstance(value, list) and (depth > 0 or any(isinstance(v, dict) for v in value)):
        inner = enumerate(value)
    else:
        inner = None
    if inner is None or given.fullmatch(name):
        yield name, value
        return
    for key, part in inner:
        yield from _leaves(part, f"{name}/{key}" if name else str(key), given, depth - 1)


def as_value(value: Any) -> Any:
    """A JSON value as what `compare` takes: text, or numbers as an array."""
    if isinstance(value, str):
        return value
    flat = value if isinstance(value, list) else [value]
    numbers = all(isinstance(part, (bool, int, float)) for part in flat)
    return np.asarray(value) if numbers else json.dumps(value)
