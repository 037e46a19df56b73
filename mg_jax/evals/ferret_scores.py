"""Ferret's published scores (Ferret spec 10): RefCOCO, Flickr30k Entities, LVIS.

Predictions are keyed by what they answer, not zipped by position, which misaligns upstream's when a
folder holds more than ten files; a question without prediction is wrong.
"""

import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mg_jax.errors import UserError
from mg_jax.evals.ferret_text import (
    Found,
    names_class,
    same_phrase,
    scanned_boxes,
    without_commas,
)

THRESHOLD = 0.5  # IoU from which on a box is right
NOTHING = [[0, 0, 0, 0]]  # for an answer without a box
WAYS = ("1", "mean", "upper bound")


def box_iou(boxes: Any, targets: Any, dtype: Any = np.float64) -> np.ndarray:
    """IoU [n, m] without a look at whether corners are in order; NaN where both have no area."""
    a, b = (np.asarray(x, dtype).reshape(-1, 4) for x in (boxes, targets))
    area = [(x[:, 2] - x[:, 0]) * (x[:, 3] - x[:, 1]) for x in (a, b)]
    size = np.minimum(a[:, None, 2:], b[:, 2:]) - np.maximum(a[:, None, :2], b[:, :2])
    inside = np.clip(size, 0, None).prod(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return inside / (area[0][:, None] + area[1] - inside)


# -- RefCOCO ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Referred:
    """One expression: the data set it counts for, the size of its picture in pixels, its box xyxy
    in pixels, and the answer's text (None: there is none)."""

    dataset: str
    width: int
    height: int
    box: Sequence[float]
    text: str | None


def referring(rows: Sequence[Referred]) -> dict[str, dict[str, float]]:
    """By data set the share of expressions answered with IoU >= 0.5: "1" by the first box, "mean"
    by the mean of all boxes, "upper bound" by the best; and "unreadable", a count of answers.

    In float32, as published. Raises UserError without rows.
    """
    if not rows:
        raise UserError("no referring expressions to score")
    sums: dict[str, dict[str, float]] = {}
    counts: dict[str, int] = {}
    for row in rows:
        found = None if row.text is None else scanned_boxes(row.text, row.width, row.height)
        total = sums.setdefault(row.dataset, dict.fromkeys((*WAYS, "unreadable"), 0.0))
        total["unreadable"] += row.text is not None and found is None
        boxes = np.asarray((found or ([], []))[1] or NOTHING, np.float32)
        iou = box_iou(boxes, row.box, np.float32)[:, 0]
        mean = box_iou(boxes.mean(0), row.box, np.float32)[0, 0]
        for way, value in zip(WAYS, (iou[0], mean, np.max(iou)), strict=True):
            total[way] += bool(value >= THRESHOLD)
        counts[row.dataset] = counts.get(row.dataset, 0) + 1
    return {
        name: {k: v if k == "unreadable" else v / counts[name] for k, v in total.items()}
        for name, total in sums.items()
    }


def read_refcoco(data: Mapping[str, Any], answers: Mapping[Any, str]) -> list[Referred]:
    """The rows of one of MDETR's finetune_*.json, an image record an expression, with answers by
    the record's id. Raises UserError for a record without its box."""
    boxes = {a["image_id"]: a["bbox"] for a in data["annotations"]}
    rows = []
    for image in data["images"]:
        number = image["id"]
        if number not in boxes:
            raise UserError(f"RefCOCO: image record {number} has no annotation")
        x, y, w, h = boxes[number]
        text = answers.get(number)
        rows.append(
            Referred(
                image.get("dataset_name", "refcoco"), image["width"], image["height"],
                (x, y, x + w, y + h), text,
            )
        )  # fmt: skip
    return rows


# -- Flickr30k Entities -----------------------------------------------------------------------

TOPK = (1, 5, 10, -1)


def read_entities(xml: str, merge: bool = True) -> dict[str, list[list[int]]]:
    """The boxes xyxy, as the file has them, of each chain of a picture's annotation file.

    merge: one around all of a chain. Raises UserError for what is no such file.
    """
    boxes: dict[str, list[list[int]]] = {}
    try:
        for node in ET.fromstring(xml).findall("object"):
            if (place := node.find("bndbox")) is None:
                continue
            corners = [int(place.findtext(k) or "") for k in ("xmin", "ymin", "xmax", "ymax")]
            for chain in node.findall("name"):
                boxes.setdefault(chain.text or "", []).append(corners)
    except (ET.ParseError, ValueError) as e:
        raise UserError(f"no annotations of Flickr30k Entities: {e}") from None
    if merge:
        boxes = {
            chain: [[min(b[0] for b in many), min(b[1] for b in many),
                     max(b[2] for b in many), max(b[3] for b in many)]]
            for chain, many in boxes.items()
        }  # fmt: skip
    return boxes


def read_phrases(sentences: str) -> list[dict[str, Any]]:
    """Of each line of a picture's sentence file the sentence and its phrases: phrase, phrase_id,
    phrase_type (a list) and first_word_index."""
    out = []
    for line in filter(None, sentences.split("\n")):
        words: list[str] = []
        phrases: list[dict[str, Any]] = []
        for match in re.finditer(r"\[(\S+)\s+([^\]]*)\]|(\S+)", line):
            if match[3]:
                words.append(match[3])
                continue
            parts = match[1].split("/")
            phrase = match[2].split()
            phrases.append(
                {
                    "first_word_index": len(words),
                    "phrase": " ".join(phrase),
                    "phrase_id": parts[1][3:] if len(parts) > 1 else "",
                    "phrase_type": parts[2:],
                }
            )
            words += phrase
        out.append({"sentence": " ".join(words), "phrases": phrases})
    return out


@dataclass(frozen=True)
class Asked:
    """One phrase of one sentence: its words and kinds, its boxes xyxy in pixels, and what the
    answer about the sentence was read as (None: unreadable, or there is none)."""

    phrase: str
    kinds: Sequence[str]
    boxes: Any
    found: Found | None


def phrase_recall(
    rows: Sequence[Asked], topk: Sequence[int] = TOPK, threshold: float = THRESHOLD
) -> dict[int, dict[str, float]]:
    """Recall at k, by kind and of "all": one of the first k boxes that the answer gives the phrase
    (`same_phrase`) has IoU >= threshold with one of its boxes; k = -1: any of them.

    Raises UserError without rows.
    """
    if not rows:
        raise UserError("no phrases to score")
    hits: dict[int, dict[str, int]] = {k: {} for k in topk}
    totals: dict[str, int] = {}
    for row in rows:
        names, boxes = row.found or ([], [])
        own = [b for name, b in zip(names, boxes, strict=True) if same_phrase(name, row.phrase)]
        iou = box_iou(own or NOTHING, row.boxes)
        for kind in ("all", *row.kinds):
            totals[kind] = totals.get(kind, 0) + 1
            for k in topk:
                right = bool(np.max(iou if k == -1 else iou[:k]) >= threshold)
                hits[k][kind] = hits[k].get(kind, 0) + right
    return {k: {kind: hits[k][kind] / n for kind, n in totals.items()} for k in topk}


def flickr_rows(
    images: Sequence[Mapping[str, Any]],
    sentences: Mapping[str, Sequence[Mapping[str, Any]]],
    boxes: Mapping[str, Mapping[str, Any]],
    answers: Mapping[tuple[str, int], str],
) -> list[Asked]:
    """The phrases of final_flickr_mergedGT_*.json ("images"), each with what is known of it.

    sentences, boxes: of `read_phrases` and `read_entities` by the picture's number. answers: texts
    by (picture's number, sentence's number). Raises UserError for a phrase that the sentence files
    lack.
    """
    rows = []
    for image in images:
        number, line = str(image["original_img_id"]), int(image["sentence_id"])
        text = answers.get((number, line))
        found = None
        if text is not None:
            found = scanned_boxes(text, float(image["width"]), float(image["height"]))
        lines = sentences[number]
        phrases = lines[line]["phrases"] if line < len(lines) else []
        known = [p for p in phrases if p["phrase_id"] in boxes[number]]
        for spans in image["tokens_positive_eval"]:
            start, end = spans[0]
            phrase = image["caption"][start:end]
            entry = next((p for p in known if p["phrase"] == phrase), None)
            if entry is None:
                raise UserError(
                    f"Flickr30k: picture {number}, sentence {line}: no phrase {phrase!r} with boxes"
                )
            chain = boxes[number][entry["phrase_id"]]
            rows.append(Asked(phrase, entry["phrase_type"], chain, found))
    return rows


def flickr_question(caption: str, spans: Sequence[Sequence[Sequence[int]]]) -> str:
    """The question for the phrases of a sentence, in neutral markup."""
    names = [without_commas(caption[s[0][0] : s[0][1]].lower()) for s in spans]
    return f"What are the locations of {', '.join(names)}?"


# -- LVIS -------------------------------------------------------------------------------------


def lvis_accuracy(rows: Sequence[Mapping[str, Any]]) -> float:
    """Share of answers ({"text", "name", "synonyms"}) that name the class (`names_class`).

    Raises UserError without rows.
    """
    if not rows:
        raise UserError("no answers about LVIS to score")
    right = [names_class(r["text"], r["name"], r["synonyms"]) for r in rows]
    return sum(right) / len(right)
