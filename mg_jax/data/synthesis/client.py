"""An endpoint with patience: retries with backoff, the server's own wishes, a rate limit.

One `Endpoint` serves all threads of a run. When a server asks for a pause, all of them pause.
"""

import random
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from mg_jax.data.synthesis import transport
from mg_jax.data.synthesis.transport import Reply, Trouble
from mg_jax.errors import UserError, some

LIMITS = ("max_tokens", "max_completion_tokens")  # of an answer: older servers know the first
LONGEST_BACKOFF = 60.0  # seconds
LONGEST_WAIT = 600.0  # seconds; a server that asks for more is left alone for now


class Failed(Exception):
    """A request that was not answered, however often it was sent."""


class Stopped(Exception):
    """The run is ending: nothing more is sent."""


class Pace:
    """When the next request may be sent: `rate` a minute (0: any number), none while paused."""

    def __init__(self, rate: float, stop: threading.Event):
        self._gap, self._stop = 60.0 / rate if rate else 0.0, stop
        self._lock, self._next = threading.Lock(), 0.0

    def turn(self) -> None:
        """Return when it is this request's turn. Raises Stopped when the run ends."""
        while True:
            with self._lock:
                now = time.monotonic()
                left = self._next - now
                if left <= 0:
                    self._next = now + self._gap
            if left <= 0:
                break
            self.sleep(left)
        if self._stop.is_set():
            raise Stopped

    def pause(self, seconds: float) -> None:
        """Send nothing more for so long, from any thread."""
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)

    def sleep(self, seconds: float) -> None:
        """Wait. Raises Stopped when the run ends meanwhile."""
        if self._stop.wait(seconds):
            raise Stopped


class Endpoint:
    """A chat-completions endpoint.

    base_url: as ".../v1". key: sent as a bearer token, "" for none. timeout: seconds for a whole
    answer. retries: how often a request is sent again. rate: requests a minute, 0 for no limit.
    backoff: seconds before the first retry, doubled each time, with jitter. extra: put into every
    request, None takes a field out. stop: set by whoever ends the run.
    counts: requests sent and retries by reason, and tokens.
    """

    def __init__(
        self,
        base_url: str,
        model: str = "",
        key: str = "",
        *,
        timeout: float = 120.0,
        retries: int = 5,
        rate: float = 0.0,
        backoff: float = 1.0,
        temperature: float = 0.7,
        max_tokens: int = 2048,
        stream: bool = False,
        extra: Mapping[str, Any] | None = None,
        stop: threading.Event | None = None,
    ):
        self.base_url = base_url.rstrip("/").removesuffix("/chat/completions")
        parts = urllib.parse.urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"--base-url {base_url}: write it as http://HOST:PORT/v1")
        self.model, self._key, self.timeout, self.retries = model, key, timeout, retries
        self._backoff, self.max_tokens = backoff, max_tokens
        self._fields: dict[str, Any] = {
            "temperature": temperature,
            "stream": stream,
            **(extra or {}),
        }
        self.stop = stop or threading.Event()
        self._pace = Pace(rate, self.stop)
        self._random, self._lock = random.Random(), threading.Lock()
        self.counts: Counter[str] = Counter()

    def check(self) -> None:
        """Ask the server what models it has; one that has a single one needs no name.

        Raises UserError in one line where it cannot be reached, does not accept the key, or where
        no model is named and it does not list a single one.
        """
        models = self._models()
        if self.model:
            return
        if len(models) != 1:
            names = f": it has {', '.join(some(models, 8))}" if models else ""
            raise UserError(f"{self.base_url}: name the model with --model{names}")
        self.model = models[0]

    def _models(self) -> list[str]:
        """The names that the server lists, [] where it has no list or none is needed.

        A server that is busy or ill is asked again as in `chat`, one that is not there is not.
        """
        for attempt in range(self.retries + 1):
            try:
                url = f"{self.base_url}/models"
                listed = transport.get(url, self._key, min(self.timeout, 30.0))
                return [str(row["id"]) for row in listed["data"]]
            except (KeyError, TypeError):
                return []
            except Trouble as e:
                passing = e.reached and not e.fatal
                if e.status in (404, 405) or (self.model and passing):
                    return []  # the first question will tell
                if not (e.again and e.reached) or attempt == self.retries:
                    mend = ": with --model NAME its list of models is not needed" if passing else ""
                    raise UserError(self._explain(e) + mend) from None
                self._rest(e, attempt)
        raise AssertionError("the loop returns or raises")

    def chat(self, messages: Sequence[Mapping[str, Any]], room: float = 1.0) -> Reply:
        """What the model answers. room: times as many tokens as asked for that it may take.

        Raises Failed after the last retry or where the server refuses this request, UserError
        where it would refuse every one, Stopped when the run ends.
        """
        payload = {
            "model": self.model,
            "messages": messages,
            "max_tokens": self.max_tokens,
            **self._fields,
        }
        payload = {name: value for name, value in payload.items() if value is not None}
        for name in LIMITS:  # `extra` may name either
            if isinstance(payload.get(name), int | float):
                payload[name] = int(payload[name] * room)
        for attempt in range(self.retries + 1):
            self._pace.turn()
            try:
                self._count(requests=1)
                url = f"{self.base_url}/chat/completions"
                reply = transport.post(url, self._key, payload, self.timeout)
                self._count(**reply.usage)
                return reply
            except Trouble as e:
                self._count(**{f"HTTP {e.status}" if e.status else _short(e): 1})
                if e.fatal:
                    raise UserError(self._explain(e)) from None
                if not e.again or attempt == self.retries:
                    sent = f" ({attempt + 1} times)" if attempt else ""
                    raise Failed(self._safe(f"{e}{sent}")) from None
                self._rest(e, attempt)
        raise AssertionError("the loop returns or raises")

    def _rest(self, e: Trouble, attempt: int) -> None:
        """Wait before the next attempt: as long as the server asks for; with backoff where it does
        not say, or says at once (its clock may be ahead), for it was just now too soon."""
        if not e.wait:
            most = min(self._backoff * 2**attempt, LONGEST_BACKOFF)
            self._pace.sleep(most * self._random.uniform(0.5, 1.0))
            return
        if e.wait > LONGEST_WAIT:
            raise UserError(
                f"{self.base_url}: asks to wait for {e.wait:.0f} s ({self._safe(str(e))}): run "
                "the same command again then; what is done is kept"
            )
        self._pace.pause(e.wait)

    def _count(self, **more: int) -> None:
        with self._lock:
            self.counts.update(more)

    def _safe(self, text: str) -> str:
        """A message without the key, should the server repeat it."""
        return text.replace(self._key, "***") if self._key else text

    def _explain(self, e: Trouble) -> str:
        text = self._safe(str(e))
        if not e.reached:
            return (
                f"{self.base_url}: cannot be reached ({text}): is it running, is --base-url right?"
            )
        if e.status in (401, 403):
            key = "does not accept the key" if self._key else "wants a key"
            return f"{self.base_url}: {key} ({text}): --key-env names the variable that holds it"
        if e.status == 404:
            return f"{self.base_url}: no such address or no model {self.model!r} ({text})"
        return f"{self.base_url}: {text}"


def _short(e: Trouble) -> str:
    """The kind of a trouble, for counting."""
    words = str(e)
    for kind in ("cut off", "in time", "within", "no JSON", "choices", "reports an error"):
        if kind in words:
            return {"within": "timeout", "in time": "timeout"}.get(kind, kind)
    return "connection"
