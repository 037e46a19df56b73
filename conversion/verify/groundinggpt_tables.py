"""GroundingGPT's recorded answers and prompts (spec 2, 7): the nearest public relative's.

    groundinggpt_postprocess.json   answers, and what upstream makes of their boxes for a picture
    groundinggpt_prompts.json       one conversation as it is trained on and as it is asked

`check(folder)` is a case of those of the two files that are there. Upstream rounds to whole pixels
of the padded square and finds a box again by its text; our codec does neither, so that way is
written down here alone, over the same BoxSpace. What our codec reads of an answer is compared
besides, rounded as theirs (N/boxes), where both take the same texts for boxes.
"""

import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from conversion.verify import Case
from conversion.verify.mg_llava_data import Characters
from conversion.verify.parts import gather
from mg_jax.boxes import BoxSpace, clip
from mg_jax.errors import UserError
from mg_jax.text.codecs.mg_llava_decode import parse_box
from mg_jax.text.codecs.tiny_grounding_gpt import TinyGroundingGPTCodec, square
from mg_jax.text.templates import TurnFormat

POSTPROCESS, PROMPTS = "groundinggpt_postprocess.json", "groundinggpt_prompts.json"
BOX = re.compile(r"\[[0-9.]+, [0-9.]+, [0-9.]+, [0-9.]+\]")  # comma and space, or it is none

_SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the human's questions."
)
# Training has line breaks that inference has not (spec 7); each begins with the system's words
FORMATS = {
    "inference_prompt": TurnFormat("asked", "###Human: ", "###Assistant:", sep=""),
    "training_text": TurnFormat("trained", "\n\n### Human: ", "\n### Assistant: ", sep="\n### "),
}
# What the recorded prompts were rendered of; a count stands for the picture's placeholders
IMAGE = "<im_start><im_patch>*576<im_end>\n"
QUESTION, ANSWER = "Output the coordinate of the dog.", "[0.100, 0.200, 0.300, 0.400]"


def check(folder: Path) -> Case | None:
    """The case of the files of a folder, None where neither is there. Raises UserError for a file
    of another form."""
    recorded: dict[str, Any] = {}
    made: dict[str, Callable[[], Any]] = {}
    given: dict[str, str] = {}
    for file, read in ((POSTPROCESS, _answers), (PROMPTS, _prompts)):
        if not (folder / file).exists():
            continue
        try:
            for key, value, make in read(json.loads((folder / file).read_text(encoding="utf-8"))):
                name = f"{file.removesuffix('.json')}/{key}"
                recorded[name] = value
                if make is None:
                    given[name] = "input"
                else:
                    made[name] = make
        except (KeyError, TypeError, ValueError, AttributeError, OSError) as e:
            raise UserError(f"{folder / file}: is no recording of GroundingGPT's ({e!r})") from None
    if not recorded:
        return None

    def produce() -> tuple[dict[str, Any], list[str]]:
        return gather((name, partial(_named, name, make)) for name, make in made.items())

    return Case("groundinggpt tables", tuple(recorded), given, produce, recorded.__getitem__)


def _named(name: str, make: Callable[[], Any]) -> dict[str, Any]:
    return {name: make()}


# (name, what is recorded, how it is made; None for what was given)
_Lines = Iterator[tuple[str, Any, Callable[[], Any] | None]]


def _answers(rows: Any) -> _Lines:
    for n, row in enumerate(rows):
        text, (width, height) = str(row["output"]), map(int, row["image_size_wh"])
        yield f"{n}/output", text, None
        yield f"{n}/image_size_wh", [width, height], None
        said = str(row["postprocessed"])
        yield f"{n}/postprocessed", said, partial(postprocess, text, width, height)
        if all(_box_of_both(found) for found in re.findall(r"\[[^]]*\]?", text)):
            theirs = np.array([_values(found) for found in BOX.findall(said)]).reshape(-1, 4)
            yield f"{n}/boxes", theirs, partial(_boxes, text, width, height)


def _box_of_both(text: str) -> bool:
    """Whether upstream and our codec take a text for a box."""
    return bool(BOX.fullmatch(text)) and isinstance(parse_box(text), tuple)


def _boxes(text: str, width: int, height: int) -> np.ndarray:
    """[n, 4] boxes that our codec reads of an answer, rounded as theirs."""
    codec = TinyGroundingGPTCodec(Characters(), "vicuna")
    ids = codec.tokenizer.encode_parts([text], bos=False)
    phrases = codec.decode(ids, None, width, height).phrases
    pixels = np.array([box for phrase in phrases for box in phrase.boxes]).reshape(-1, 4)
    return (np.rint(pixels) / np.tile([width, height], 2)).round(3)


def postprocess(text: str, width: int, height: int) -> str:
    """An answer whose boxes are in [0, 1] of the original, three decimals at most, as upstream
    writes it: rounded to pixels of the padded square on the way, and cut at the borders.

    A text that occurs again, be it as a result, is replaced there too; one that is no box stays.
    """
    space, side = square(width, height), max(width, height)
    for match in BOX.findall(text):
        try:
            values = _values(match)
        except ValueError:  # several points in a number
            continue
        pixels = np.array([round(v * side) for v in values], np.float64)
        found = _rounded(space, pixels / side)
        text = text.replace(match, "[" + ", ".join(map(str, found)) + "]")
    return text


def _values(box: str) -> list[float]:
    return [float(part) for part in box.strip("[]").split(",")]


def _rounded(space: BoxSpace, box: np.ndarray) -> list[float]:
    # padding is a whole number of pixels; no zero of theirs is negative
    whole = np.rint(space.to_pixels(space.to_original(box))) + 0.0
    sides = (space.width, space.height) * 2
    shares = [round(float(v) / side, 3) for v, side in zip(whole, sides, strict=True)]
    return [float(v) for v in clip(np.array(shares))]


def _prompts(texts: Any) -> _Lines:
    for name, text in texts.items():
        yield name, str(text), partial(_rendered, FORMATS[name])


def _rendered(form: TurnFormat) -> str:
    """The conversation of the recordings: asked, or answered too where the format goes on."""
    answer = ANSWER + form.sep if form.sep else ""
    return _SYSTEM + form.before + IMAGE + QUESTION + form.after + answer
