"""What a user talks to: `chat()` about a picture, `answer()` many questions."""

import copy
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mg_jax import assistants, sharding
from mg_jax.answer import Answer
from mg_jax.assistants.base import Detect, Proposals, Row
from mg_jax.errors import UserError
from mg_jax.example import Query, Region, Turn
from mg_jax.generate import Generated, Sampling, respond
from mg_jax.models import System
from mg_jax.text import markup

SERVING = "fsdp_tensor"  # rules of a mesh to answer on: heads split, not rows
BATCHES = (1, 2, 4, 8, 16, 32)  # rows are padded up to one of these: few compiled programs


class Assistant:
    """A loaded system. `chat` keeps one conversation; `answer` is stateless and batched.

    Pictures: path, uint8 RGB array [H,W,3] or PIL picture, any size. Boxes come back in the
    picture's own pixels, xyxy. What a system does in its own way is in `adapter`.
    """

    def __init__(
        self,
        system: System,
        params: Any,
        codec: Any,
        settings: Mapping[str, Any],
        detect: Detect | None = None,
        mesh: Any = None,
    ):
        self.system, self.params, self.codec, self.mesh = system, params, codec, mesh
        self.adapter = assistants.get(system.name)(system, codec, settings, detect)
        self.reset()

    def reset(self) -> None:
        """Forget the conversation."""
        self._seen: tuple[Any, Any] | None = None  # the picture and the video it is about
        self._detections: Any = None
        self._history: list[Turn] = []
        self._regions: list[Region] = []

    def another(self) -> "Assistant":
        """One with a conversation of its own, and the same parameters and compiled programs."""
        _ = self._generate  # or each would compile its own
        made = copy.copy(self)
        made.reset()
        return made

    def chat(
        self,
        image: Any,
        prompt: str,
        regions: Sequence[Region] = (),
        *,
        video: Any = None,
        detections: Any = None,
        max_new_tokens: int = 128,
        sampling: Sampling = Sampling(),
        seed: int = 0,
    ) -> Answer:
        """Answer `prompt` about `image` or `video`, with the conversation so far as context.

        The same picture (or None) continues the conversation, another one starts afresh. In the
        prompt `<r:0>` is the first of this call's `regions`; regions that it does not mention
        are appended to it in order. video, detections: as of `Query`; they stay for the
        conversation. A failed call leaves the conversation as it was.
        """
        seen = (image, video)
        blank = image is None and video is None
        if blank and self._seen is None and not self.adapter.text_alone:
            raise UserError("no picture yet: pass an image with the first question")
        if blank or (self._seen is not None and all(map(_same, seen, self._seen))):
            seen, history, kept = self._seen or seen, self._history, self._regions
            detections = self._detections if detections is None else detections
        else:
            history, kept = [], []
        prompt = mention(prompt, len(regions), len(kept))
        query = Query(
            seen[0], prompt, (*kept, *regions), tuple(history), video=seen[1], detections=detections
        )
        answer = self.answer([query], max_new_tokens=max_new_tokens, sampling=sampling, seed=seed)[
            0
        ]
        said, grounded = answer.history(len(kept) + len(regions))
        self._seen, self._detections = seen, detections
        self._regions = [*kept, *regions, *grounded]
        self._history = [*history, Turn(prompt, said)]
        return answer

    def answer(
        self,
        queries: Sequence[Query],
        *,
        max_new_tokens: int = 128,
        batch_size: int = 8,
        sampling: Sampling = Sampling(),
        seed: int = 0,
    ) -> list[Answer]:
        """Answers in order; greedy ones are the same whatever the batch they are computed in.

        Raises UserError for a question that the system cannot be asked, and for what is no Region.
        """
        if self.codec is None:
            raise UserError(
                "this release holds no language model, so it cannot answer (one of Groma's can "
                "propose() regions): train the next stage from it"
            )
        for query in queries:
            for k, region in enumerate(query.regions):
                if not isinstance(region, Region):
                    raise UserError(
                        f"region {k}: {repr(region)[:60]} is no Region: give "
                        "mg_jax.Region.from_box((x0, y0, x1, y1)), shares of width and height"
                    )
        kinds: dict[bool, list[int]] = {}  # batches are of pictures (or text), or of videos
        for n, query in enumerate(queries):
            kinds.setdefault(query.video is not None, []).append(n)
        answers: dict[int, Answer] = {}
        for numbers in kinds.values():
            for start in range(0, len(numbers), batch_size):
                chunk = numbers[start : start + batch_size]
                key = jax.random.fold_in(jax.random.key(seed), chunk[0])
                asked = [queries[n] for n in chunk]
                made = self._answer_chunk(asked, max_new_tokens, sampling, key)
                answers.update(zip(chunk, made, strict=True))
        return [answers[n] for n in range(len(queries))]

    def propose(self, images: Sequence[Any]) -> Proposals:
        """Regions the detector selects: (boxes [n,4] xyxy pixels, scores [n]), best first."""
        with self.adapter.fitting(self.params):
            return self.adapter.propose(self.params, images)

    def _answer_chunk(self, queries, max_new_tokens, sampling, key):
        rows, _, out, kept = self.generate(queries, max_new_tokens, sampling, key)
        answers = []
        for i, row in enumerate(rows):
            end = out.length[i]
            mine = jax.tree.map(lambda x, i=i: x[i], kept)
            answers.append(
                self.adapter.answer(row, out.tokens[i][:end], out.logprobs[i][:end], mine)
            )
        return answers

    def generate(
        self, queries: Sequence[Query], max_new_tokens: int, sampling: Sampling, key: jax.Array
    ) -> tuple[list[Row], dict[str, np.ndarray], Generated, Any]:
        """(questions as read, their batch, generated ids, what the adapter keeps); rows of the
        latter three are padded. Raises UserError as `answer`."""
        rows = [self.adapter.read(q) for q in queries]
        limit = self.system.cfg.lm.max_positions
        batch = self.adapter.collate(rows, limit - max_new_tokens)
        if batch["tokens"].shape[1] + max_new_tokens > limit:
            raise UserError(
                f"{batch['tokens'].shape[1]} positions of prompt and {max_new_tokens} new tokens "
                f"pass the model's {limit}: shorten the conversation or lower max_new_tokens"
            )
        n = len(queries)
        padded = next((b for b in BATCHES if b >= n), n)
        batch = {k: np.concatenate([v, v[:1].repeat(padded - n, 0)]) for k, v in batch.items()}
        with sharding.use(self.mesh, SERVING):
            made = self._generate(self.params, batch, key, max_new_tokens, sampling)
        out, kept = jax.device_get(made)
        return rows, batch, out, kept

    @functools.cached_property
    def _generate(self):
        model, adapter = self.system.module, self.adapter

        def run(params, batch, key, max_new, sampling):
            def said(m):
                out, aux = respond(
                    m, batch, max_new=max_new, end=adapter.end_id, pad=adapter.pad_id,
                    sampling=sampling, key=key,
                )  # fmt: skip
                return out, adapter.keep(aux)

            with adapter.fitting(params):
                return model.apply({"params": params}, method=said)

        return jax.jit(run, static_argnums=(3, 4))


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, (str, Path)) and isinstance(b, (str, Path)):
        return Path(a) == Path(b)
    return a is b


def mention(prompt: str, count: int, first: int) -> str:
    """The prompt with its region numbers moved up by `first`; unmentioned ones are appended."""
    named = markup.regions_of(prompt)
    missing = "".join(f" <r:{k}>" for k in range(count) if k not in named)
    return markup.renumber(prompt + missing, first)
