"""What a stage makes of a data set's conversations, before anything is trained on them."""

import dataclasses
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from mg_jax.data.inspect import even, percentiles, spread
from mg_jax.data.sources import Source
from mg_jax.errors import some
from mg_jax.example import Example


@dataclasses.dataclass(frozen=True)
class TextReport:
    """Conversations of a stage as the model reads them, of `examined` examples.

    refused: examples that afford no conversation. tokens: percentiles of the text's length, slots
    of picture and regions not counted; limit: the longest that is trained on; too_long: how many
    conversations pass it. trained: share of the text's tokens that are targets. untrained:
    conversations without any. example: one conversation, what is trained on in « ».
    """

    examined: int
    refused: int
    tokens: Mapping[str, float]
    limit: int
    too_long: int
    trained: float
    untrained: int
    example: str
    problems: Sequence[str]

    def as_dict(self) -> dict[str, Any]:
        """Everything as JSON takes it."""
        return dataclasses.asdict(self)

    def lines(self) -> list[str]:
        """The report for people."""
        if not self.tokens:
            none = f"text: none of {self.examined} examples affords a conversation"
            return [none, *self.problems]
        out = [
            f"text of {self.examined} examples: tokens {spread(self.tokens)}; limit {self.limit}",
            f"  trained on: {self.trained:.0%} of the tokens; marked « » below",
        ]
        for n, what in (
            (self.too_long, "conversations are longer than the limit and cut or left out"),
            (self.refused, "examples afford no conversation and are left out"),
            (self.untrained, "conversations have no token to train on"),
        ):
            out += [f"  warning: {n} {what}"] if n else []
        return [*out, f"  example: {self.example}", *(f"  warning: {p}" for p in self.problems)]

    def refusal(self) -> str:
        """Why there is nothing to train on in the text, "" where there is something."""
        why = f"; the first: {self.problems[0]}" if self.problems else ""
        if not self.tokens:
            return f"none of {self.examined} examples affords a conversation{why}"
        return "" if self.trained else f"no token of {self.examined} conversations is trained on"


def text_report(source: Source, config: Any, cfg: Any, sample: int = 200) -> TextReport:
    """Encode conversations about an even sample as the stage of `config` does, without pictures.

    cfg: the system's model config. Raises UserError when the config has no tokenizer.
    """
    from mg_jax.data.pipeline import make_codec
    from mg_jax.data.samples.base import object_tasks
    from mg_jax.data.tasks import converse, parse_tasks
    from mg_jax.text import instructions

    codec = make_codec(config, cfg)
    limit, codec.text_tokens = codec.text_tokens, 10**9
    slots = codec.image_tokens + 2 * codec.max_regions
    tasks = source.tasks or parse_tasks(config.tasks, "config")
    wording, objects = instructions.get(config.instructions or config.system), object_tasks(config)
    chosen = even(len(source), sample)
    lengths, trained, example, problems = [], [], "", []
    refused = 0
    for i in chosen:
        rng = np.random.default_rng(i)
        try:
            asked: Example | None = source[i]
            if asked is not None and not asked.turns:
                asked = converse(asked, rng, tasks, wording, config.turns, objects.tasks)
            record = codec.encode(asked, rng) if asked else None
        except ValueError as e:  # of the reader, or of a turn without answer
            problems.append(str(e))
            continue
        if record is None:
            refused += 1
            continue
        lengths.append(len(record["tokens"]) - slots)
        trained.append(int(record["loss_mask"].sum()))
        example = example or rendered(codec, record["tokens"], record["loss_mask"])
    return TextReport(
        examined=len(chosen),
        refused=refused,
        tokens=percentiles(lengths),
        limit=limit,
        too_long=sum(n > limit for n in lengths),
        trained=sum(trained) / max(1, sum(lengths)),
        untrained=sum(not n for n in trained),
        example=example,
        problems=some(problems, 3),
    )


def rendered(codec: Any, tokens: np.ndarray, mask: np.ndarray) -> str:
    """The conversation as text, what is trained on in « »; of the picture's and the regions' slots
    the first stands for all."""
    image, region = codec.ids["<image>"], codec.ids["<region>"]
    slot = (tokens == image) | (tokens == region)
    slot |= np.append(tokens[1:] == region, False)  # the proxy before each region
    keep = ~slot
    for name in (image, region):
        keep[np.flatnonzero(tokens == name)[:1]] = True
    tokens, mask = tokens[keep], mask[keep]
    edges = [0, *(np.flatnonzero(mask[1:] != mask[:-1]) + 1).tolist(), len(tokens)]
    out = []
    for a, b in pairwise(edges):
        text = codec.tokenizer.decode(tokens[a:b].tolist(), skip_special=False).strip()
        out.append(f"«{text}»" if mask[a] else text)
    return " ".join(out)
