"""The files of a run, made of its journal alone: each written whole, or not at all.

    data.jsonl            the conversations (`jsonl:OUT/data.jsonl`)
    annotations.jsonl     things and relations of each picture, without turns, for the task builders
    groma_instruct.json   recipe groma: the same conversations in Groma's stored form
    dropped.jsonl         everything that a filter left out: picture, filter, what
    report.json           counts of all that

Pictures that are files stay where they are and are named relative to OUT; others, such as scenes,
are written to OUT/images.
"""

import dataclasses
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from mg_jax.data.synthesis.case import Case
from mg_jax.data.synthesis.engine import Tally
from mg_jax.data.synthesis.filters import FILTERS, Limits
from mg_jax.data.synthesis.journal import Journal
from mg_jax.data.synthesis.recipes import Made
from mg_jax.data.synthesis.work import Item
from mg_jax.data.write.groma import groma_instruct_row
from mg_jax.data.write.jsonl import jsonl_row
from mg_jax.disk import disk_errors, temporary, write_json

_ODD = re.compile(r"[^\w.-]+")


def outcome(case: Case, made: Made, out: Path, recipe: str) -> dict[str, Any]:
    """What the journal keeps of a finished picture."""
    image = _picture(case, out) if made.conversations or made.annotated else ""
    rows = [jsonl_row(example, image) for example in made.conversations]
    found: dict[str, Any] = {"rows": rows, "drops": case.drops.entries, "counts": made.counts}
    if made.annotated is not None:
        found["annotated"] = jsonl_row(made.annotated, image)
    if recipe == "groma":
        found["groma"] = [groma_instruct_row(e, image) for e in made.conversations]
    return found


def _picture(case: Case, out: Path) -> str:
    """The path of the picture relative to OUT."""
    image = case.example.image
    if isinstance(image, str):
        return Path(os.path.relpath(Path(image).resolve(), out.resolve())).as_posix()
    file = f"images/{_ODD.sub('_', case.item.key)}.png"
    target = out / file
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        part = temporary(target)
        Image.fromarray(case.pixels).save(part, "PNG")
        part.replace(target)
    return file


def write(
    out: Path,
    items: Sequence[Item],
    journal: Journal,
    tally: Tally,
    recipe: str,
    limits: Limits,
    requests: Mapping[str, int],
) -> dict[str, Any]:
    """Write the files; returns the report."""
    counts: Counter[str] = Counter()
    drops: Counter[str] = Counter(dict.fromkeys(FILTERS, 0))
    done = [item.key for item in items if item.key in journal]

    def outcomes() -> Iterable[tuple[str, dict[str, Any]]]:
        return ((key, journal.outcome(key)) for key in done)

    parts: dict[str, Callable[[dict[str, Any], str], list[Any]]] = {
        "data.jsonl": lambda found, key: found["rows"],
        "annotations.jsonl": lambda found, key: (
            [found["annotated"]] if "annotated" in found else []
        ),
        "dropped.jsonl": lambda found, key: [
            {"picture": key, "filter": name, "what": what} for name, what in found["drops"]
        ],
    }
    for file, lines in parts.items():
        rows = (row for key, found in outcomes() for row in lines(found, key))
        _write(out / file, (json.dumps(row) + "\n" for row in rows))
    if recipe == "groma":
        stored = (row for _, found in outcomes() for row in found["groma"])
        _write(out / "groma_instruct.json", _one_list(stored))
    for _, found in outcomes():
        counts.update(found["counts"])
        counts["conversations"] += len(found["rows"])
        drops.update(name for name, _ in found["drops"])
    report = {
        "recipe": recipe,
        "pictures": len(items),
        "finished": len(done),
        "failed": dict(tally.failed),
        "cannot be read": dict(tally.bad),
        "made": dict(counts),
        "dropped": dict(drops),
        "thresholds": dataclasses.asdict(limits),
        "requests of this run": dict(requests),
    }
    write_json(out / "report.json", report)
    return report


def _write(path: Path, texts: Iterable[str]) -> None:
    with disk_errors(path):
        part = temporary(path)
        with part.open("w", encoding="utf-8") as file:
            file.writelines(texts)
        part.replace(path)


def _one_list(rows: Iterable[Any]) -> Iterator[str]:
    before = "[\n"
    for row in rows:
        yield before + json.dumps(row)
        before = ",\n"
    yield "[]\n" if before == "[\n" else "\n]\n"


def table(report: Mapping[str, Any]) -> str:
    """The report for people."""
    lines = [f"{report['finished']} of {report['pictures']} pictures are finished"]
    for title in ("failed", "cannot be read"):
        if report[title]:
            key, reason = next(iter(report[title].items()))
            lines.append(f"{len(report[title])} {title}, first: {key}: {reason}")
    lines.append("made:")
    lines += [f"  {count:>9,}  {what}" for what, count in sorted(report["made"].items())]
    lines.append("left out:")
    dropped = [(name, count) for name, count in report["dropped"].items() if count]
    lines += [f"  {count:>9,}  {name}: {FILTERS[name]}" for name, count in dropped]
    lines += [] if dropped else ["  nothing"]
    if report["requests of this run"]:
        lines.append("requests of this run:")
        lines += [
            f"  {n:>9,}  {what}" for what, n in sorted(report["requests of this run"].items())
        ]
    return "\n".join(lines)
