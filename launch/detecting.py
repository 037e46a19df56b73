"""Flags that say where the boxes come from of a system that is given them, as MG-LLaVA is."""

import argparse
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mg_jax.errors import UserError

FLAGS = ("boxes", "detector", "tags", "tagger", "thresholds", "box_limit")


def add_flags(p: argparse.ArgumentParser) -> None:
    """--boxes, and those of `add_detector`."""
    p.add_argument("--boxes", metavar="FILE", help="detected boxes, files of launch.boxes (F,F,..)")
    add_detector(p)


def add_detector(p: argparse.ArgumentParser) -> None:
    """--detector and what belongs to it, and --box-limit."""
    p.add_argument("--detector", metavar="NAME",
                   help="what detects them otherwise: a release that proposes regions, or an OWLv2 "
                   "(folder or hub's name) with --tags or --tagger")  # fmt: skip
    p.add_argument("--tags", metavar="FILE", help="what OWLv2 looks for, one a line")
    p.add_argument("--tagger", metavar="M:F", help="what says it of each picture (launch.boxes)")
    p.add_argument("--thresholds", metavar="FILE", help="of each tag, for --tagger (default 0.68)")
    p.add_argument("--box-limit", type=int, metavar="N",
                   help="of more boxes in a picture the best of each label stay; 0: no limit "
                   "(default: what the release names, 100)")  # fmt: skip


def options(args: argparse.Namespace) -> dict[str, Any]:
    """The detector and the limit of the flags as arguments of `mg_jax.load`; none for those of the
    release.

    Raises UserError for flags that do not fit together.
    """
    limit = {} if args.box_limit is None else {"box_limit": args.box_limit}
    if args.box_limit is not None and args.box_limit < 0:
        raise UserError(f"--box-limit {args.box_limit}: give a number of boxes, or 0 for no limit")
    words = args.tags or args.tagger or args.thresholds
    if words and not args.detector:
        raise UserError("--tags, --tagger, --thresholds: are for an OWLv2, which --detector names")
    if not args.detector:
        return limit
    if not words:
        if _is_owlv2(args.detector):
            raise UserError(
                f"--detector {args.detector}: is an OWLv2: say what to look for with --tags FILE "
                "or --tagger M:F"
            )
        return limit | {"detector": args.detector}
    from launch.taggers import open_tagger

    tagger = open_tagger(args.tags, None, args.tagger, args.thresholds)
    return limit | {"detector": Owlv2(args.detector, tagger)}


def refuse(args: argparse.Namespace, assistant: Any) -> None:
    """Raises UserError where these flags are given to a system that would not look at them."""
    given = [name for name in FLAGS if getattr(args, name, None) is not None]
    if given and "detections" not in assistant.adapter.can:
        flags = ", ".join("--" + name.replace("_", "-") for name in given)
        raise UserError(f"{flags}: {assistant.system.name} takes no detected boxes: leave it out")


def _is_owlv2(name: str) -> bool:
    """Whether a folder of transformers, or a model on the hub by its name, is an OWLv2."""
    folder = Path(name).expanduser()
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return not folder.exists() and "owlv2" in name.lower()
    return isinstance(config, dict) and config.get("model_type") == "owlv2"


class Owlv2:
    """OWLv2 and a tagger as an Assistant's detector; loaded when first needed."""

    def __init__(self, model: str, tagger: Any):
        self.model, self.tagger = model, tagger

    @functools.cached_property
    def _detector(self) -> Any:
        from launch.owlv2 import Detector

        return Detector(self.model, flag="--detector")

    def __call__(self, images: Sequence[np.ndarray]) -> list[Mapping[str, Any]]:
        tags = self.tagger([str(n) for n in range(len(images))], list(images))
        # one at a time: so many frames of a video would take much memory
        pairs = zip(images, tags, strict=True)
        return [self._detector([image], [words])[0] for image, words in pairs]
