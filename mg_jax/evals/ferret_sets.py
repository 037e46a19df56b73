"""Ferret's published tests on their own files: the questions, and the scores of the answers.

    refcoco  MDETR's finetune_refcoco*.json; pictures of COCO train2014
    flickr   final_flickr_mergedGT_*.json; Flickr30k's pictures, `entities` the folder of
             Annotations/ and Sentences/ of Flickr30k Entities
    lvis     Ferret's lines about objects of LVIS; pictures of COCO val2017; `kind` point, box or
             free_shape
    pope     one of its three files; pictures of COCO val2014

Answers are scored as they were written, by their question's key (Ferret spec 10).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mg_jax.data.sources.free_text import to_markup
from mg_jax.disk import read_json, read_json_lines
from mg_jax.errors import UserError, shown
from mg_jax.evals import ferret_scores, ferret_text, pope
from mg_jax.evals.choosing import published_region
from mg_jax.example import Region
from mg_jax.text.codecs.ferret_places import coordinates, format_place
from mg_jax.text.instructions.ferret import which

KINDS = ("point", "box", "free_shape")
Texts = Mapping[str, str]  # answers by key
Kind = tuple[str, Callable[[Any], bool]]  # in words, and whether a value is of it


def _number(x: Any) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool) and abs(x) < 1e9  # nor NaN


def _spans(x: Any) -> bool:
    """Whether of each phrase there is at least one stretch of letters."""
    return isinstance(x, list) and all(
        isinstance(spans, list)
        and len(spans) > 0
        and all(isinstance(s, list) and len(s) == 2 and all(type(n) is int for n in s)
                and 0 <= s[0] < s[1] for s in spans)
        for spans in x
    )  # fmt: skip


TEXT: Kind = ("a text", lambda x: isinstance(x, str))
TEXTS: Kind = ("a list of texts", lambda x: isinstance(x, list) and all(map(TEXT[1], x)))
NAME: Kind = ("a number or a text", lambda x: type(x) in (int, str) and x != "")
LINE: Kind = (
    "a number of a line, from 0 up",
    lambda x: type(x) in (int, str) and str(x).isascii() and str(x).isdigit(),
)
SIDE: Kind = ("a count of pixels, from 1 up", lambda x: _number(x) and x >= 1)
PLACE: Kind = (
    "four numbers x, y, width, height",
    lambda x: isinstance(x, list) and len(x) == 4 and all(map(_number, x)),
)
SPANS: Kind = ("a list of [[first letter, last letter + 1], ...]", _spans)
SIZES = {"width": SIDE, "height": SIDE}


@dataclass(frozen=True)
class Question:
    """key: of the answer. picture: the file's name. prompt: neutral markup, which points at
    `regions` by their number."""

    key: str
    picture: str
    prompt: str
    regions: tuple[Region, ...] = ()


class PublishedSet:
    """A file of questions. Raises UserError for one that cannot be read or lacks something."""

    def __init__(self, file: Path):
        self.file = file

    def questions(self) -> Iterator[Question]:
        """All questions, in the file's order."""
        raise NotImplementedError

    def score(self, texts: Texts) -> dict[str, float]:
        """The published numbers; a question without answer is wrong."""
        raise NotImplementedError


class RefCoco(PublishedSet):
    """acc@0.5 of the first box, and of each data set of the file; "unreadable" answers are wrong
    and counted."""

    def __init__(self, file: Path):
        super().__init__(file)
        self.data = _record(
            file,
            images={"id": NAME, "file_name": TEXT, "caption": TEXT, **SIZES},
            annotations={"image_id": NAME, "bbox": PLACE},
        )
        for n, row in enumerate(self.data["images"]):
            _check(row, {"dataset_name": TEXT}, f"{file}: images[{n}]")

    def questions(self) -> Iterator[Question]:
        for row in self.data["images"]:
            name = to_markup(ferret_text.without_commas(row["caption"]))
            prompt = f"What is the location of {name} in the image?"
            yield Question(str(row["id"]), row["file_name"], prompt)

    def score(self, texts: Texts) -> dict[str, float]:
        answers = {
            r["id"]: texts[str(r["id"])] for r in self.data["images"] if str(r["id"]) in texts
        }
        rows = ferret_scores.read_refcoco(self.data, answers)
        found = ferret_scores.referring(rows)
        out = {"unreadable": sum(scores["unreadable"] for scores in found.values())}
        for name, scores in found.items():
            out |= {f"{name} acc@0.5 {way}": scores[way] for way in ferret_scores.WAYS}
        return out


class Flickr(PublishedSet):
    """Recall at 1, 5, 10 and of all boxes, of all phrases and of each kind, chains merged;
    "unreadable" answers are counted."""

    def __init__(self, file: Path, entities: Path):
        super().__init__(file)
        self.entities = entities
        kinds = {"original_img_id": NAME, "sentence_id": LINE, "file_name": TEXT, "caption": TEXT}
        self.data = _record(file, images={**kinds, "tokens_positive_eval": SPANS, **SIZES})

    def questions(self) -> Iterator[Question]:
        for row in self.data["images"]:
            asked = ferret_scores.flickr_question(row["caption"], row["tokens_positive_eval"])
            yield Question(_sentence(row), row["file_name"], to_markup(asked))

    def score(self, texts: Texts) -> dict[str, float]:
        rows = self.data["images"]
        numbers = {str(row["original_img_id"]) for row in rows}
        boxes = {
            n: ferret_scores.read_entities(self._read("Annotations", n, "xml")) for n in numbers
        }
        lines = {n: ferret_scores.read_phrases(self._read("Sentences", n, "txt")) for n in numbers}
        answers = {
            (str(row["original_img_id"]), int(row["sentence_id"])): texts[_sentence(row)]
            for row in rows
            if _sentence(row) in texts
        }
        asked = ferret_scores.flickr_rows(rows, lines, boxes, answers)
        read = {
            _sentence(row): ferret_text.scanned_boxes(
                texts[_sentence(row)], float(row["width"]), float(row["height"])
            )
            for row in rows
            if _sentence(row) in texts
        }
        found = ferret_scores.phrase_recall(asked)
        return {
            f"{'upper bound' if k == -1 else f'recall@{k}'} {kind}": value
            for k, kinds in found.items()
            for kind, value in kinds.items()
        } | {"unreadable": float(sum(found is None for found in read.values()))}

    def _read(self, folder: str, number: str, suffix: str) -> str:
        path = self.entities / folder / f"{number}.{suffix}"
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as e:
            raise UserError(f"{path}: cannot be read ({e})") from None


class Lvis(PublishedSet):
    """accuracy of naming one of two classes; keys are kind and number of the line. kind: how the
    object is pointed at, of KINDS."""

    def __init__(self, file: Path, kind: str):
        super().__init__(file)
        if kind not in KINDS:
            raise UserError(f"region kind {kind!r}: choose {', '.join(KINDS)}")
        self.kind = kind
        kinds = {"image_path": TEXT, "name": TEXT, "neg_class": TEXT, "synonyms": TEXTS}
        self.rows = read_json_lines(file, *kinds)
        for n, row in enumerate(self.rows):
            _check(row, kinds | SIZES, f"{file}: question {n}")

    def questions(self) -> Iterator[Question]:
        for n, row in enumerate(self.rows):
            region = _region(self.file, n, row, self.kind)
            prompt = which(0, n, to_markup(row["name"]), to_markup(row["neg_class"]))
            yield Question(self.key(n), Path(row["image_path"]).name, prompt, (region,))

    def score(self, texts: Texts) -> dict[str, float]:
        rows = [{**row, "text": texts.get(self.key(n), "")} for n, row in enumerate(self.rows)]
        return {"accuracy": ferret_scores.lvis_accuracy(rows)}

    def key(self, number: int) -> str:
        """Of the answer about a line, counted from 0."""
        return f"{self.kind}/{number}"


class Pope(PublishedSet):
    """accuracy, precision, recall, f1 and yes_ratio; no answer says neither yes nor no."""

    def __init__(self, file: Path):
        super().__init__(file)
        self.rows = pope.read_questions(file)

    def questions(self) -> Iterator[Question]:
        for row in self.rows:
            yield Question(row["question_id"], row["image"], to_markup(row["text"]))

    def score(self, texts: Texts) -> dict[str, float]:
        def reading(text: str) -> bool | None:
            return ferret_text.says_yes(text) if text else None

        answers = [texts.get(row["question_id"], "") for row in self.rows]
        return pope.score(answers, [row["label"] for row in self.rows], reading)


SETS = ("refcoco", "flickr", "lvis", "pope")


def open_set(
    name: str, file: str | Path, entities: str | Path | None = None, kind: str = "box"
) -> PublishedSet:
    """The set of a name, one of SETS. Raises UserError as the sets do."""
    path = Path(file)
    if name == "flickr":
        if entities is None:
            raise UserError("flickr: name the folder of Flickr30k Entities as well")
        return Flickr(path, Path(entities))
    if name == "lvis":
        return Lvis(path, kind)
    made = {"refcoco": RefCoco, "pope": Pope}.get(name)
    if made is None:
        raise UserError(f"unknown set {name!r}: choose {', '.join(SETS)}")
    return made(path)


def _sentence(row: Mapping[str, Any]) -> str:
    return f"{row['original_img_id']}/{row['sentence_id']}"


def _check(row: Mapping[str, Any], kinds: Mapping[str, Kind], where: str) -> None:
    """Raises UserError for a field, where it is there, that is of another kind."""
    for field, (said, fits) in kinds.items():
        if field in row and not fits(row[field]):
            raise UserError(f"{where}.{field}: {shown(repr(row[field])[:60])} is not {said}")


def _record(file: Path, **lists: Mapping[str, Kind]) -> dict[str, Any]:
    """A file with these lists, whose rows have these fields."""
    data = read_json(file)
    missing = [k for k in lists if not isinstance(data.get(k), list)]
    if missing:
        raise UserError(f"{file}: has no list {', '.join(missing)}")
    for key, fields in lists.items():
        for n, row in enumerate(data[key]):
            lacking = [f for f in fields if not isinstance(row, dict) or f not in row]
            if lacking:
                raise UserError(f"{file}: {key}[{n}] lacks {', '.join(lacking)}")
            _check(row, fields, f"{file}: {key}[{n}]")
    return data


def _region(file: Path, n: int, row: Mapping[str, Any], kind: str) -> Region:
    try:
        return published_region(row, kind)
    except (LookupError, TypeError, ValueError, ArithmeticError) as e:
        raise UserError(f"{file}: question {n} has no {kind} ({type(e).__name__}: {e})") from None


def plain_text(answer: Any) -> str:
    """What a system wrote (`Answer.written`); of one that writes no coordinates its text with its
    boxes as Ferret writes them: behind their phrases, whole numbers of a 1000x1000 picture, cut
    off."""
    if answer.written:
        return str(answer.written)
    out, end = "", 0
    for phrase in answer.phrases:
        out += answer.text[end : phrase.span[1]]
        end = phrase.span[1]
        for box in phrase.boxes:
            out += (" " if out else "") + _place(box, answer.width, answer.height)
    return out + answer.text[end:]


def _place(box: Sequence[float], width: int, height: int) -> str:
    x0, y0, x1, y1 = box
    region = Region("box", (x0 / width, y0 / height, x1 / width, y1 / height))
    return format_place(coordinates(region, width, height), width, height)
