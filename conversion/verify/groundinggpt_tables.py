"""GroundingGPT's recorded answers and prompts (spec 2, 7): the nearest public relative's.

    groundinggpt_postprocess.json   answers, and what upstream makes of their boxes for a picture
    groundinggpt_prompts.json       one conversation as it is trained on and as it is asked

`check(folder)` is a case of those of the two files that are there. Upstream rounds to whole pixels
of the padded square and finds a box again by its text; our codec does neither, so that way is
written down here alone, over the same BoxSpace.
"""

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from conversion.verify import Case
from conversion.verify.parts import gather
from mg_jax.boxes import BoxSpace, clip
from mg_jax.errors import UserError
from mg_jax.text.codecs.tiny_grounding_gpt import square
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
IMAGE = "<im_start><im_patch>*{}<im_end>\n"  # as recorded: a count stands for the placeholders


def check(folder: Path) -> Case | None:
    """The case of the files of a folder, None where neither is there. Raises UserError for a file
    of another form."""
    recorded: dict[str, Any] = {}
    made: dict[str, Callable[[], str]] = {}
    for file, read in ((POSTPROCESS, _answers), (PROMPTS, _prompts)):
        if not (folder / file).exists():
            continue
        try:
            for name, text, make in read(json.loads((folder / file).read_text(encoding="utf-8"))):
                recorded[f"{file.removesuffix('.json')}/{name}"] = text
                made[f"{file.removesuffix('.json')}/{name}"] = make
        except (KeyError, TypeError, ValueError, AttributeError, OSError) as e:
            raise UserError(f"{folder / file}: is no recording of GroundingGPT's ({e!r})") from None
    if not recorded:
        return None

    def produce() -> tuple[dict[str, Any], list[str]]:
        return gather((name, partial(_named, name, make)) for name, make in made.items())

    return Case("groundinggpt tables", tuple(recorded), {}, produce, recorded.__getitem__)


def _named(name: str, make: Callable[[], str]) -> dict[str, Any]:
    return {name: make()}


def _answers(rows: Any) -> list[tuple[str, str, Callable[[], str]]]:
    return [
        (str(n), str(row["postprocessed"]),
         partial(postprocess, str(row["output"]), *map(int, row["image_size_wh"])))
        for n, row in enumerate(rows)
    ]  # fmt: skip


def postprocess(text: str, width: int, height: int) -> str:
    """An answer whose boxes are in [0, 1] of the original, three decimals at most, as upstream
    writes it: rounded to pixels of the padded square on the way, and cut at the borders.

    A text that occurs again, be it as a result, is replaced there too; one that is no box stays.
    """
    space, side = square(width, height), max(width, height)
    for match in BOX.findall(text):
        try:
            values = [float(part) for part in match.strip("[]").split(",")]
        except ValueError:  # several points in a number
            continue
        pixels = np.array([round(v * side) for v in values], np.float64)
        found = _rounded(space, pixels / side)
        text = text.replace(match, "[" + ", ".join(map(str, found)) + "]")
    return text


def _rounded(space: BoxSpace, box: np.ndarray) -> list[float]:
    # padding is a whole number of pixels; no zero of theirs is negative
    whole = np.rint(space.to_pixels(space.to_original(box))) + 0.0
    sides = (space.width, space.height) * 2
    shares = [round(float(v) / side, 3) for v, side in zip(whole, sides, strict=True)]
    return [float(v) for v in clip(np.array(shares))]


def _prompts(texts: Any) -> list[tuple[str, str, Callable[[], str]]]:
    return [
        (name, str(text), partial(_rendered, FORMATS[name], str(text)))
        for name, text in texts.items()
    ]


def _rendered(form: TurnFormat, recorded: str) -> str:
    """The conversation of a recorded text, written anew."""
    count = re.search(r"<im_patch>\*(\d+)", recorded)
    turns = re.split(r"\s*### ?(?:Human|Assistant):", recorded)[1:]
    answers = [turn.removesuffix("###") for turn in turns[1::2]]
    text = _SYSTEM
    for n, question in enumerate(turns[::2]):
        asked = question.strip().rsplit("<im_end>", 1)[-1].strip()
        picture = IMAGE.format(count[1]) if n == 0 and count else ""
        before = form.before if n == 0 else form.before.lstrip("\n").removeprefix("### ")
        text += before + picture + asked + form.after
        answer = answers[n].strip().removesuffix("###").strip() if n < len(answers) else ""
        text += answer + form.sep if answer else ""
    return text
