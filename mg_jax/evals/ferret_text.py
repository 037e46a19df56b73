"""How Ferret's published evaluations read an answer (Ferret spec 10): what its tables rest on.

Each reader finds what upstream's finds, oddities included, since a better one would give other
numbers. Where upstream's ends in an exception, whether it is caught there or stops the run, ours
returns None: such an answer is wrong, and counted as unreadable. Boxes are xyxy in whole pixels of
a width x height picture, cut off twice on their way: when the model writes them and here.
"""

import re
from collections.abc import Sequence

Box = list[int]
Found = tuple[list[str], list[Box]]  # what stands before each box, and the boxes

_BINS = 1000
_DELIMITERS = ".,;!?"
_BOX = re.compile(r"\[(\d+), (\d+), (\d+), (\d+)\]")
_LIST = re.compile(r"\[[\d,\s]+\]")
_BRACKETS = re.compile(r"\[.*?\]")
_WORDS = re.compile(r"[a-zA-Z\s]*\s")
_SPACED = re.compile(r"\s*(['\",.;!?|:])\s*")
_CRASHES = (ValueError, IndexError, OverflowError)


def _pixels(box: Sequence[int], width: float, height: float) -> Box:
    """A box of a 1000x1000 picture in whole pixels."""
    ratio = width * 1.0 / _BINS, height * 1.0 / _BINS
    return [int(box[n] * ratio[n % 2]) for n in range(4)]


def scanned_boxes(text: str, width: float, height: float) -> Found | None:
    """Of the evaluators of RefCOCO and Flickr30k: every `[...]` is a box.

    What stands before it since the last punctuation names it; behind a box the reader goes on
    after the next punctuation, so a second box of a clause has no name. One bracket without four
    whole numbers makes the whole answer unreadable; numbers beyond four are not looked at.
    """
    names: list[str] = []
    boxes: list[Box] = []
    start, name = 0, ""
    for n, letter in enumerate(text):
        if letter == "[":
            name, start = text[start:n].strip(), n + 1
        elif letter == "]":
            inner, start = text[start:n].strip(), n + 1
            try:
                boxes.append(_pixels([int(v) for v in inner.split(",")], width, height))
            except _CRASHES:
                return None
            names.append(name)
            while start < len(text) and text[start] not in _DELIMITERS:
                start += 1
            start += 1
    return names, boxes


def _written_boxes(text: str, width: float, height: float) -> tuple[list[Box], list[Box]]:
    """Boxes exactly as the model writes them, each once: as written, and in pixels. Two that differ
    in writing alone may be one in pixels."""
    written = [[int(v) for v in found] for found in _BOX.findall(text)]
    kept: list[list[Box]] = []
    for boxes in (written, [_pixels(box, width, height) for box in written]):
        kept.append([list(box) for box in dict.fromkeys(map(tuple, boxes))])
    return kept[0], kept[1]


def _shown(box: Box) -> str:
    return "[" + ", ".join(map(str, box)) + "]"


def sentence_boxes(text: str, width: float, height: float) -> Found | None:
    """Of the RefCOCO demo: (texts between " . ", boxes), boxes taken out of the texts."""
    try:
        written, boxes = _written_boxes(text, width, height)
    except _CRASHES:
        return None
    for n in range(len(boxes)):
        text = text.replace(_shown(written[n]), "")
    parts = text.removesuffix(" .").split(" . ")
    return [part.strip() for part in parts if part.strip()], boxes


def worded_boxes(text: str, width: float, height: float) -> Found | None:
    """Of the Flickr30k demo: letters and spaces directly before a list of numbers name its box; a
    box without such words is not found."""
    names: list[str] = []
    boxes: list[Box] = []
    end = 0
    for found in _LIST.finditer(text):
        before = text[end : found.start()]
        run = len(before) - len(re.sub(r"[a-zA-Z\s]+$", "", before))
        words = before[len(before) - run :]
        if len(words) < 2 or not _WORDS.fullmatch(words):
            continue
        end = found.end()
        try:
            boxes.append(_pixels([int(v) for v in found[0][1:-1].split(",")], width, height))
        except _CRASHES:
            return None
        names.append(words.strip())
    return names, boxes


def numbered_boxes(text: str, width: float, height: float) -> tuple[str, list[Box]] | None:
    """Of the POPE demo: the text with `[obj0]`, `[obj1]`, ... for its boxes, and these."""
    try:
        written, boxes = _written_boxes(text, width, height)
    except _CRASHES:
        return None
    for n in range(len(boxes)):
        text = text.replace(_shown(written[n]), f"[obj{n}]")
    return text, boxes


# -- Ferret-Bench -----------------------------------------------------------------------------

BENCH = ("refer_desc", "refer_reason", "ground_conv")


def bench_answer(text: str, category: str) -> str | None:
    """An answer as its judge sees it: without boxes behind a space, or in `ground_conv` with
    boxes as shares of three decimals."""
    for found in _BRACKETS.findall(text):
        if category != "ground_conv":
            text = text.replace(f" {found}", "")
            continue
        try:
            values = [float(v) for v in found.replace("[", "").replace("]", "").split(",")]
        except ValueError:
            return None
        if len(values) != 4:
            text = text.replace(found, "")
        if len(values) < 4:
            return None
        shares = ", ".join(f"{v / _BINS:.3f}" for v in values[:4])
        text = text.replace(found, f"[{shares}]")
    return text


def bench_scores(review: str) -> tuple[float, float]:
    """Both scores in the first line of a judge's review, (-1, -1) for any other line."""
    parts = review.split("\n")[0].replace(",", " ").split(" ")
    try:
        first, second = (float(part) for part in parts)
    except ValueError:
        return -1.0, -1.0
    return first, second


# -- words ------------------------------------------------------------------------------------


def without_commas(text: str) -> str:
    """An expression as it is asked for."""
    return text.replace(",", "").strip()


def same_phrase(a: str, b: str) -> bool:
    """Whether two phrases are alike but for case, punctuation and spaces."""
    return _plain(a) == _plain(b)


def _plain(phrase: str) -> str:
    spaced = _SPACED.sub(r"\1 ", phrase.lower()).strip()
    return " ".join(re.sub(r"[^\w\s]", "", spaced).split())


def without_denials(text: str) -> str:
    """The text without what follows " not" or " no" up to the next comma or full stop; words that
    begin so are denials too (" notebook.")."""
    for word in ("not", "no"):
        text = re.sub(rf"\s+{word}[^,.]*[,.]", "", text)
    return text


def class_names(name: str, synonyms: Sequence[str]) -> tuple[str, list[str]]:
    """LVIS names as words; `bow_(weapon)` among the synonyms is two of them."""
    forms: list[str] = []
    for synonym in synonyms:
        parts = synonym.split("(") if "(" in synonym else [synonym]
        forms += [part.replace("_", " ").replace(")", "").strip() for part in parts]
    return name.replace("_", " ").strip(), forms


def names_class(text: str, name: str, synonyms: Sequence[str]) -> bool:
    """Whether an answer names a class of LVIS: any of its names stands in it, in this spelling, as
    part of a word too."""
    said = without_denials(text)
    first, forms = class_names(name, synonyms)
    return any(form in said for form in (first, *forms))


def says_yes(text: str) -> bool:
    """POPE: no where the first sentence has the word "no" or "not", else yes."""
    words = text.lower().split(".")[0].replace(",", "").split(" ")
    return "no" not in words and "not" not in words
