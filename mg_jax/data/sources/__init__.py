"""Sources: data sets read into `Example`s, opened by a short text.

    scenes:seed=0,n=1000[,tasks=rec*2+presence][,turns=4][,size=224 | size=320x240]
          [,min_objects=2][,max_objects=12][,distractors=0.65]
    coco:annotations.json,images_dir[,empty=drop|keep]
    voc:DIR[,split=train|heldout|all][,empty=drop|keep]
    jsonl:FILE[,images_dir]

All take `head=coco|sa1b`, the detector's objectness head their boxes train (coco by default),
`name=...`, and (scenes apart) `max_bad=0.05`, the share of malformed records up to which they are
left out and reported instead of being an error. A file name with a comma cannot be written here;
call the class instead.
"""

from collections.abc import Callable

from mg_jax.data.sources.base import Source, split_spec
from mg_jax.data.sources.coco import CocoSource
from mg_jax.data.sources.jsonl import JsonlSource
from mg_jax.data.sources.scenes import SceneSource
from mg_jax.data.sources.voc import VocSource
from mg_jax.errors import UserError

COMMON = ("head", "name", "max_bad")
# kind: (class, the names of its positional arguments, its options)
KINDS: dict[str, tuple[Callable[..., Source], tuple[str, ...], tuple[str, ...]]] = {
    "scenes": (
        SceneSource,
        (),
        ("seed", "n", "tasks", "turns", "size", "min_objects", "max_objects", "distractors"),
    ),
    "coco": (CocoSource, ("annotations", "images"), ("empty",)),
    "voc": (VocSource, ("folder",), ("split", "empty")),
    "jsonl": (JsonlSource, ("file", "images"), ()),
}


def open_source(spec: str, training: bool = False) -> Source:
    """Open the data set that a text describes (see the module's docstring).

    training=True refuses scene seeds from RESERVED_SEED on, which are kept for evaluation.
    Raises UserError for an unknown kind or option, a missing file, or a malformed one.
    """
    kind, _, rest = spec.partition(":")
    if kind not in KINDS:
        raise UserError(
            f"data {spec!r}: unknown kind {kind!r}: write KIND:..., KIND one of {', '.join(KINDS)}"
        )
    build, positional, options = KINDS[kind]
    values = split_spec(spec, rest, positional, (*options, *COMMON))
    if kind == "scenes":
        if "max_bad" in values:
            raise UserError(f"data {spec!r}: scenes have no malformed records: leave out max_bad")
        values["training"] = training
    return build(**values)


__all__ = [
    "CocoSource",
    "JsonlSource",
    "SceneSource",
    "Source",
    "VocSource",
    "open_source",
]
