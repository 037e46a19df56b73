"""Flags that say where the boxes come from of a system that is given them, as MG-LLaVA is."""

import argparse
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mg_jax.errors import UserError


def add_flags(p: argparse.ArgumentParser) -> None:
    """--boxes, --detector and what belongs to it."""
    p.add_argument("--boxes", metavar="FILE", help="detected boxes, a file of launch.boxes")
    p.add_argument("--detector", metavar="NAME",
                   help="what detects them otherwise: a release that proposes regions, or an OWLv2 "
                   "(folder or hub's name) with --tags or --tagger")  # fmt: skip
    p.add_argument("--tags", metavar="FILE", help="what OWLv2 looks for, one a line")
    p.add_argument("--tagger", metavar="M:F", help="what says it of each picture (launch.boxes)")


def options(args: argparse.Namespace) -> dict[str, Any]:
    """The detector of the flags as an argument of `mg_jax.load`; none for that of the release.

    Raises UserError for flags that do not fit together.
    """
    words = args.tags or args.tagger
    if words and not args.detector:
        raise UserError("--tags, --tagger: are for an OWLv2, which --detector names")
    if not words:
        return {"detector": args.detector} if args.detector else {}
    from launch.taggers import open_tagger

    return {"detector": Owlv2(args.detector, open_tagger(args.tags, None, args.tagger, None))}


class Owlv2:
    """OWLv2 and a tagger as an Assistant's detector; loaded when first needed."""

    def __init__(self, model: str, tagger: Any):
        self.model, self.tagger = model, tagger

    @functools.cached_property
    def _detector(self) -> Any:
        from launch.owlv2 import Detector

        return Detector(self.model)

    def __call__(self, images: Sequence[np.ndarray]) -> list[Mapping[str, Any]]:
        tags = self.tagger([str(n) for n in range(len(images))], list(images))
        # one at a time: so many frames of a video would take much memory
        pairs = zip(images, tags, strict=True)
        return [self._detector([image], [words])[0] for image, words in pairs]
