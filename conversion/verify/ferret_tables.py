"""What Ferret's host side makes of regions, prompts and answers, against recorded tables.

Where upstream's code ends in an exception the table holds that instead of a value; ours must call
the answer unreadable there. The geometry of pictures is compared by `ferret_geometry`.
"""

import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from conversion.verify import Case, ferret_geometry, npz_names, npz_read
from conversion.verify.mg_llava_data import Characters, as_value, read_json
from conversion.verify.parts import Parts, gather
from mg_jax.data import regions
from mg_jax.evals import ferret_scores, ferret_text, pope
from mg_jax.example import Region, Turn
from mg_jax.text.codecs.ferret import FerretCodec
from mg_jax.text.codecs.ferret_places import format_place

UNREADABLE = "unreadable"
# What the recorded prompts were rendered of; upstream's names of templates that are not ours
REGIONS = (Region.from_box((0.1, 0.05, 0.2, 0.3)), Region.from_box((0.1, 0.15, 0.3, 0.2)))
TURNS = (Turn("What is in the region <r:0>?", "<p>A dog</p><r:1>."), Turn("Where is the cat?"))
TEMPLATES = {
    "ferret:v1": "ferret_v1", "ferretui:v1": "vicuna_v1", "ferretui:ferret_llama_plain": "plain",
}  # fmt: skip
POPE = dict(
    zip(("Accuracy", "Precision", "Recall", "F1 score", "Yes ratio"), pope.NAMES, strict=True)
)

REFCOCO = ("refcoco", "refcoco+", "refcocog")

Table = dict[str, Any]
# of a table: what was given (pattern of names), and what we make of it
Maker = tuple[str, Callable[[Any], Table]]


def case(folder: Path) -> Case:
    """All tables of a folder. Raises UserError for one that is no table."""
    geometry = ferret_geometry.case(folder)
    tables = {name: read_json(folder / f"{name}.json") for name in TABLES if _there(folder, name)}
    leaves: Table = {}
    given: dict[str, str] = dict(geometry.given)
    for name, table in tables.items():
        mine = {f"{name}/{key}": value for key, value in _leaves(table)}
        pattern = re.compile(rf"{name}/(?:{TABLES[name][0]})")
        given |= dict.fromkeys(filter(pattern.fullmatch, mine), "input")
        if name == "prompts":  # of more than one exchange upstream's plain templates make nothing
            given |= {key: "input" for key, value in mine.items() if isinstance(value, dict)}
        leaves |= mine
    masks = folder / "eval_masks.npz"
    arrays = npz_names(masks) if masks.exists() else []
    given |= {f"eval_masks/{a}": "input" for a in arrays if not a.endswith("_mask_wh")}

    def produce() -> tuple[dict[str, Any], list[str]]:
        ours, failures = gather(_parts(tables, masks if arrays else None))
        theirs, more = geometry.produce()
        return ours | theirs, [*failures, *more]

    def recorded(name: str) -> Any:
        if name.startswith("eval_masks/"):
            array = name.partition("/")[2]
            return npz_read(masks, [array])[array]
        return _value(leaves[name]) if name in leaves else geometry.recorded(name)

    required = (*leaves, *(f"eval_masks/{a}" for a in arrays), *geometry.required)
    return Case("ferret tables", required, given, produce, recorded)


def _there(folder: Path, name: str) -> bool:
    return (folder / f"{name}.json").exists()


def _parts(tables: Table, masks: Path | None) -> Parts:
    for name, table in tables.items():
        yield name, partial(_made, name, table)
    if masks is not None:
        yield "eval_masks", partial(_masks, masks)


def _made(name: str, table: Any) -> Table:
    return {f"{name}/{key}": _value(value) for key, value in _leaves(TABLES[name][1](table))}


# -- tables -----------------------------------------------------------------------------------


def _similar(table: Any) -> Table:
    same = [ferret_text.same_phrase(row[0], row[1]) for row in table]
    return {f"{n}/{k}": value for n, value in enumerate(same) for k in (2, 3)}


def _coordinates(table: Any) -> Table:
    out: Table = {}
    for n, row in enumerate(table):
        text = format_place(row["box"], row["w"], row["h"])
        found = ferret_text.scanned_boxes(text, row["w"], row["h"])
        out |= {f"{n}/text": text, f"{n}/decoded_back": found and found[1][0]}
    return out


def _scores(review: str) -> list[float]:
    """Both scores; the table has whole numbers for a review without any."""
    scores = list(ferret_text.bench_scores(review))
    return [-1, -1] if scores == [-1.0, -1.0] else scores


def _lvis(table: Any) -> Table:
    out: Table = {}
    for n, row in enumerate(table):
        name, forms = ferret_text.class_names(row["name"], row["synonyms"])
        out |= {
            f"{n}/processed_text": ferret_text.without_denials(row["text"]),
            f"{n}/name_norm": name,
            f"{n}/syn_norm": forms,
            f"{n}/correct": ferret_scores.lvis_accuracy([row]) == 1.0,
        }
    return out


READERS: dict[str, Callable[[str, float, float], Any]] = {
    "eval_refexp_decode": ferret_text.scanned_boxes,
    "eval_flickr_decode_float_size": ferret_text.scanned_boxes,
    "model_refcoco_find": ferret_text.sentence_boxes,
    "model_flickr_find": ferret_text.worded_boxes,
    "model_pope_find_v3": ferret_text.numbered_boxes,
}


def _answers(table: Any) -> Table:
    out: Table = {}
    for n, row in enumerate(table):
        for name, read in READERS.items():
            found = read(row["text"], row["w"], row["h"])
            out[f"{n}/{name}"] = UNREADABLE if found is None else list(found)
        for category in ferret_text.BENCH:
            answer = ferret_text.bench_answer(row["text"], category)
            out[f"{n}/ferretbench_postprocess/{category}"] = (
                UNREADABLE if answer is None else answer
            )
    return out


def _pope(table: Any) -> Table:
    found = pope.score(table["answers"], table["labels"], ferret_text.says_yes)
    return {"metrics": {theirs: found[ours] for theirs, ours in POPE.items()}}


def _refexp(table: Any) -> Table:
    answers = {row["image_id"]: row["text"] for row in table["predictions"]}
    found = ferret_scores.referring(ferret_scores.read_refcoco(table["gt"], answers))
    ways = ferret_scores.WAYS
    # upstream's has a row for each of its data sets, of zeros where there are no expressions
    found = dict.fromkeys(REFCOCO, dict.fromkeys(ways, 0.0)) | found
    return {
        "per_k": {way: {name: found[name][way] for name in found} for way in ways},
        "upstream_results_sorted_ascending": {
            name: sorted(scores[way] for way in ways) for name, scores in found.items()
        },
    }


def _flickr(table: Any) -> Table:
    sentences = {k: ferret_scores.read_phrases(v) for k, v in table["sentences"].items()}
    answers = {
        (str(row["image_id"]), int(row["sentence_id"])): row["text"] for row in table["predictions"]
    }
    results = {}
    for merge in (True, False):
        xml = table["annotations_xml"]
        boxes = {k: ferret_scores.read_entities(v, merge) for k, v in xml.items()}
        rows = ferret_scores.flickr_rows(table["annotation_images"], sentences, boxes, answers)
        results[f"merge_boxes={merge}"] = {
            "report": ferret_scores.phrase_recall(rows),
            "gt_boxes": boxes,
        }
    return {"results": results, "phrases": sentences}


def _prompts(table: Any) -> Table:
    out: Table = {}
    for name in table:
        template = TEMPLATES.get(name, name.partition(":")[2])
        codec = FerretCodec(Characters(), template)
        out[f"{name}/stop_str"] = next(iter(codec.template.stops), "")
        if isinstance(table[name]["prompt"], str):
            out[f"{name}/prompt"] = codec.prompt(TURNS, REGIONS, (1000, 1000))
    return out


def _masks(path: Path) -> Table:
    out: Table = {}
    for name in npz_names(path):
        if not name.endswith("_coor"):
            continue
        key = name.removesuffix("_coor")
        arrays = npz_read(path, [name, f"{key}_wh"])
        width, height = (int(v) for v in arrays[f"{key}_wh"])
        values = [float(v) / (width, height)[n % 2] for n, v in enumerate(arrays[name])]
        if len(values) == 2:
            region = Region.from_point(values[0], values[1], clip=True)
        else:
            region = Region("box", (values[0], values[1], values[2], values[3]))
        mask = regions.rasterise(region, width, height).whole()
        out[f"eval_masks/{key}_mask_wh"] = mask.astype(np.uint8)
    return out


TABLES: dict[str, Maker] = {
    "are_phrases_similar": (r"\d+/[01]", _similar),
    "remove_punctuation": (
        r"\d+/0", lambda t: {f"{n}/1": ferret_text.without_commas(r[0]) for n, r in enumerate(t)},
    ),
    "ferretbench_parse_score": (
        r"\d+/0",
        lambda t: {f"{n}/1": _scores(r[0]) for n, r in enumerate(t)},
    ),
    "coordinate_strings": (r"\d+/(?:w|h|box)", _coordinates),
    "lvis_match": (r"\d+/(?:text|name|synonyms)", _lvis),
    "parsed_answers": (r"\d+/(?:text|w|h)", _answers),
    "pope_eval": (r"labels|answers", _pope),
    "refexp_eval": (r"gt/.*|predictions/.*|note", _refexp),
    "flickr_eval": (
        r"annotations_xml/.*|sentences/.*|split|annotation_images/.*|predictions/.*", _flickr,
    ),
    # upstream's own spelling of its templates; what they make is compared
    "prompts": (r"[^/]+/(?:sep_style|sep|sep2|roles|version)", _prompts),
}  # fmt: skip


# -- JSON -------------------------------------------------------------------------------------


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """(name, value) of everything in a table; lists of values are whole, and so is an exception.

    Lists of lists are opened at the top alone.
    """
    inner: Any = None
    if isinstance(value, dict) and "exception" not in value:
        inner = value.items()
    elif isinstance(value, list) and (not name or any(isinstance(v, dict) for v in value)):
        inner = enumerate(value)
    if inner is None:
        yield name, value
        return
    for key, part in inner:
        if not name and isinstance(value, list) and isinstance(part, list):
            yield from ((f"{key}/{n}", v) for n, v in enumerate(part))
        else:
            yield from _leaves(part, f"{name}/{key}" if name else str(key))


def _value(value: Any) -> Any:
    """A JSON value as what `compare` takes; an exception is "unreadable"."""
    return UNREADABLE if isinstance(value, dict) else as_value(value)
