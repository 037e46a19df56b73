"""One picture while it is worked on, and the tools that all of them share."""

import functools
import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from mg_jax.data.synthesis import pictures
from mg_jax.data.synthesis.client import Endpoint
from mg_jax.data.synthesis.filters import Drops, Limits
from mg_jax.data.synthesis.journal import Journal
from mg_jax.data.synthesis.prompts import Prompts
from mg_jax.data.synthesis.replies import Unreadable
from mg_jax.data.synthesis.work import Item
from mg_jax.example import Example, Region

T = TypeVar("T")
# Pictures and the names to look for in each -> for each boxes (xyxy, pixels), scores, labels
Detector = Callable[[Sequence[np.ndarray], Sequence[Sequence[str]]], list[Mapping[str, Any]]]
# A picture -> its lines or words of text as labelled regions with scores
Ocr = Callable[[np.ndarray], list[Region]]


@dataclass
class Tools:
    """What the pictures of a run are worked on with. endpoint None: template language. detector
    None: boxes of the annotations. tags: names that are looked for in every picture. nouns: guesses
    the names in a text where there is no endpoint. side: of sent pictures, pixels. count, rounds,
    choices: questions of a kind, rounds of a conversation, options of a choice. kinds: of questions
    (recipe tiny_grounding_gpt)."""

    journal: Journal
    prompts: Prompts
    limits: Limits = Limits()
    endpoint: Endpoint | None = None
    detector: Detector | None = None
    ocr: Ocr | None = None
    tags: tuple[str, ...] = ()
    nouns: Callable[[str], list[str]] = lambda _: []
    kinds: tuple[str, ...] = ()
    seed: int = 0
    side: int = 1024
    tries: int = 3
    count: int = 2
    rounds: int = 4
    choices: int = 4
    most: int = 20
    looking: Any = field(default_factory=threading.Lock)  # one picture at a time in the detector


class Case:
    """A picture: its example, pixels, generator and what was left out. `ask` asks the endpoint."""

    def __init__(self, item: Item, tools: Tools):
        self.item, self.tools, self.drops = item, tools, Drops()
        self.example: Example = item.open()
        seed = hashlib.sha256(f"{tools.seed}:{item.key}".encode()).digest()
        self.rng = np.random.default_rng(list(seed))

    @functools.cached_property
    def pixels(self) -> np.ndarray:
        """uint8 RGB [H, W, 3]. Raises BadRecord for a picture that cannot be read."""
        return self.example.pixels()

    def ask(
        self,
        step: str,
        values: Mapping[str, Any],
        read: Callable[[str], T],
        picture: Any = None,
    ) -> T | None:
        """What `read` makes of the endpoint's answer to the prompt `step`.

        An answer that it finds unreadable is asked for again, with the reason, `tries` times in
        all; then it is None and counted. Answers in the journal are not asked for again. picture:
        what is sent instead of the plain one.
        """
        assert self.tools.endpoint is not None
        prompt, url = self.tools.prompts[step], ""
        if prompt.sees:
            shown = pictures.smaller(self.pixels, self.tools.side) if picture is None else picture
            url = pictures.data_url(shown)
        messages = prompt.fill(values, url)
        room, problem = 1.0, ""
        for _ in range(self.tools.tries):
            text, finish = self._answer(step, messages, room)
            if finish == "content_filter":
                self.drops.add("refused", step)
                return None
            try:
                if finish == "length":
                    room *= 2
                    raise Unreadable("it was too long and was cut off")
                return read(text)
            except Unreadable as e:
                problem = str(e)
                again = self.tools.prompts["again"].fill({"problem": problem})
                messages = [*messages, {"role": "assistant", "content": text or "-"}, *again]
        self.drops.add("unreadable", f"{step}: {problem}")
        return None

    def _answer(
        self, step: str, messages: Sequence[Mapping[str, Any]], room: float
    ) -> tuple[str, str]:
        """(text, finish) from the journal, else from the endpoint, which is then noted."""
        assert self.tools.endpoint is not None
        asked = f"{self.item.key}\n{step}\n{room}\n{self.tools.endpoint.model}\n{messages!r}"
        digest = hashlib.sha256(asked.encode("utf-8", "surrogatepass")).hexdigest()[:32]
        known = self.tools.journal.answer(digest)
        if known is None:
            reply = self.tools.endpoint.chat(messages, room)
            known = reply.text, reply.finish
            self.tools.journal.note_answer(digest, self.item.key, step, *known)
        return known
