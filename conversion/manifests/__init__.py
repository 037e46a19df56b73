"""Names and shapes of published checkpoints, one `name <tab> [shape]` a line, and their configs.

Layers that repeat are written once: a name with `{0..31}` stands for 32 tensors, and adjacent
lines of one range are a block that repeats as a whole, so that the order of the file is kept:

    model.layers.{0..31}.input_layernorm.weight     [4096]
    model.layers.{0..31}.self_attn.q_proj.weight    [4096, 4096]

groma_7b.tsv comes from a recording of the published files. For the others NAME.json beside
NAME.tsv holds the published config.json as it is known (written down, not fetched), and the names
and shapes are what the class of transformers builds from it on the meta device: no published file
was read. convnext_large_d_320 is open_clip 3.3's CLIP, built the same way with timm 1.0.31.
mg_llava_vicuna_7b is what upstream's trainer saves in stage 2 (MG-LLaVA spec 1): its 20 tensors
and, under `llm.`, Vicuna's. ferret_7b_v13 is Ferret v1 as it is published, a delta or merged,
without CLIP's tower (Ferret spec 1.1).
`python -m conversion.manifests NAME ...` writes them anew (needs PyTorch).
"""

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
_RANGE = re.compile(r"\{0\.\.(\d+)\}")

Shapes = dict[str, tuple[int, ...]]


def read(name: str) -> Shapes:
    """{tensor: shape} of a stored manifest, in the order of the checkpoint."""
    return expand((FOLDER / f"{name}.tsv").read_text().splitlines())


def config(name: str) -> dict[str, Any]:
    """The config.json that belongs to a manifest."""
    return json.loads((FOLDER / f"{name}.json").read_text())


def expand(lines: Iterable[str]) -> Shapes:
    """{tensor: shape} of the lines of a manifest, `{0..n}` written out."""
    shapes: Shapes = {}
    rows = (line.split("\t") for line in lines if line)
    for span, block in itertools.groupby(rows, lambda row: _span(row[0])):
        block = list(block)
        for i in range(span[1]):
            for name, shape in block:
                shapes[_RANGE.sub(str(i), name)] = tuple(json.loads(shape))
    return shapes


def compact(shapes: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    """Lines that `expand` reads back in the same order: runs of equal layers written once.

    The first number in a name counts layers; a run whose layers differ is written out.
    """
    for _, run in itertools.groupby(shapes.items(), lambda item: _layer(item[0])[0]):
        tensors = list(run)
        lines = [f"{name}\t{list(shape)}" for name, shape in tensors]
        last = max(_layer(name)[1] for name, _ in tensors)
        if last > 0:
            first = [item for item in tensors if _layer(item[0])[1] == 0]
            parts = ((_layer(name), shape) for name, shape in first)
            short = [f"{a}{{0..{last}}}{b}\t{list(shape)}" for (a, _, b), shape in parts]
            if list(expand(short).items()) == tensors:
                lines = short
        yield from lines


def _span(name: str) -> tuple[str, int]:
    """What a name repeats under, and how often."""
    found = _RANGE.search(name)
    return (name[: found.start()], int(found[1]) + 1) if found else ("", 1)


def _layer(name: str) -> tuple[str, int, str]:
    """A name cut at its first number: before, number, after; ("", -1, name) without one."""
    found = re.match(r"(.*?\.)(\d+)(\..*)$", name)
    return (found[1], int(found[2]), found[3]) if found else ("", -1, name)
