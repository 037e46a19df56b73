"""One request to an endpoint that speaks the chat-completions protocol, by the standard library.

Whatever can go wrong on the way becomes a `Trouble` that says whether the same request may be sent
again, and when. Redirects are not followed: they would take the key along.
"""

import email.utils
import http.client
import io
import json
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mg_jax.errors import shown

MOST_BYTES = 64 << 20  # of an answer; a longer one is no chat completion
# Answers of a server that is busy or ill; 529 is "overloaded" of some providers
AGAIN = (408, 409, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529)
STOPPING = (401, 402, 403, 404, 405)  # no request of this run can succeed
_PAID_UP = ("insufficient_quota", "billing_hard_limit_reached")
_EXPECTED = "expected a chat completion"


class Trouble(Exception):
    """A request without a usable answer.

    status: of HTTP, 0 where there was none. again: the same request may succeed later. fatal: no
    request of this run will. wait: seconds that the server asks for, None where it does not say.
    reached: False where no server answered at all.
    """

    def __init__(
        self,
        text: str,
        status: int = 0,
        *,
        again: bool = False,
        fatal: bool = False,
        wait: float | None = None,
        reached: bool = True,
    ):
        super().__init__(text)
        self.status, self.again, self.fatal, self.wait = status, again, fatal, wait
        self.reached = reached


@dataclass(frozen=True)
class Reply:
    """What the model said. finish: why it stopped ("stop", "length", ...); usage: its tokens."""

    text: str
    finish: str
    usage: Mapping[str, int]


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


class _Timed(io.RawIOBase):
    """A socket's bytes; each read has the time that is left until the deadline, so that a server
    that sends byte by byte cannot hold it up."""

    def __init__(self, raw: Any, sock: Any, deadline: float):
        self._raw, self._sock, self._deadline = raw, sock, deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._sock.settimeout(left)
        read: int | None = self._raw.readinto(buffer)
        return read

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    """One whose head and body are read until the deadline."""

    def __init__(self, sock: Any, deadline: float, **options: Any):
        super().__init__(sock, **options)
        self.fp: Any = io.BufferedReader(_Timed(self.fp.detach(), sock, deadline))


class _Http(http.client.HTTPConnection):
    """A connection whose timeout is that of the whole answer, counted from here."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self._deadline = time.monotonic() + float(self.timeout or 0)

    def response_class(self, sock: Any, **options: Any) -> _Response:  # type: ignore[override]
        return _Response(sock, self._deadline, **options)


class _Https(_Http, http.client.HTTPSConnection):
    pass


class _OpenHttp(urllib.request.HTTPHandler):
    def http_open(self, request: Any) -> Any:
        return self.do_open(_Http, request)


class _OpenHttps(urllib.request.HTTPSHandler):
    def https_open(self, request: Any) -> Any:
        return self.do_open(_Https, request)


_HANDLERS = (_NoRedirects, _OpenHttp, _OpenHttps)
_OPENER = urllib.request.build_opener(*_HANDLERS)
_DIRECT = urllib.request.build_opener(*_HANDLERS, urllib.request.ProxyHandler({}))
_HERE = ("localhost", "127.0.0.1", "::1")  # no proxy leads to this machine


def get(url: str, key: str, timeout: float) -> Any:
    """The JSON at an address. Raises Trouble."""
    with _Answer(urllib.request.Request(url, headers=_headers(key)), timeout) as answer:
        return _json(answer.body())


def post(url: str, key: str, payload: Mapping[str, Any], timeout: float) -> Reply:
    """The completion of a chat. timeout: seconds until the answer must be whole.

    With payload["stream"] the answer may come as server-sent events; one that ends before it says
    so is truncated. Raises Trouble.
    """
    request = urllib.request.Request(
        url,
        data=json.dumps(payload).encode(),
        headers=_headers(key) | {"Content-Type": "application/json"},
        method="POST",
    )
    with _Answer(request, timeout) as answer:
        if answer.kind == "text/event-stream":
            return _streamed(answer.events())
        return _completion(_json(answer.body()))


def _headers(key: str) -> dict[str, str]:
    headers = {"Accept": "application/json, text/event-stream", "User-Agent": "mg_jax"}
    return headers | ({"Authorization": f"Bearer {key}"} if key else {})


class _Answer:
    """The answer to a request, while it comes in."""

    def __init__(self, request: urllib.request.Request, timeout: float):
        self._request, self._timeout = request, timeout
        self._count = 0

    def __enter__(self) -> "_Answer":
        host = urllib.parse.urlsplit(self._request.full_url).hostname
        opener = _DIRECT if host in _HERE else _OPENER
        try:
            self._response = opener.open(self._request, timeout=self._timeout)
        except urllib.error.HTTPError as e:
            with e:
                raise _refused(e) from None
        except urllib.error.URLError as e:
            raise _unreached(e.reason) from None
        except (OSError, http.client.HTTPException, ValueError) as e:
            raise _unreached(e) from None
        self.kind = self._response.headers.get_content_type()
        return self

    def __exit__(self, *_: Any) -> None:
        self._response.close()

    def body(self) -> bytes:
        """The whole body. Raises Trouble where it is cut off, late or endless."""
        parts: list[bytes] = []
        while part := self._read(lambda: self._response.read1(1 << 16)):
            parts.append(part)
        body = b"".join(parts)
        length = self._response.headers.get("Content-Length", "")
        if length.isdigit() and len(body) < int(length):
            raise Trouble(f"the answer was cut off after {len(body)} bytes", again=True)
        return body

    def events(self) -> Iterator[str]:
        """The data of server-sent events, up to the end of the stream."""
        while line := self._read(lambda: self._response.readline(MOST_BYTES)):
            field, _, value = line.decode("utf-8", "replace").strip().partition(":")
            if field == "data":
                yield value.strip()

    def _read(self, read: Any) -> bytes:
        try:
            part: bytes = read()
        except TimeoutError:
            raise Trouble(f"no whole answer within {self._timeout:g} s", again=True) from None
        except (OSError, http.client.HTTPException, ValueError) as e:
            raise Trouble(f"the answer was cut off ({_words(e)})", again=True) from None
        self._count += len(part)
        if self._count > MOST_BYTES:
            raise Trouble(f"an answer of more than {MOST_BYTES >> 20} MiB: {_EXPECTED}")
        return part


def _unreached(reason: Any) -> Trouble:
    if isinstance(reason, TimeoutError):
        return Trouble("no answer in time", again=True, reached=False)
    if isinstance(reason, ssl.SSLCertVerificationError):
        return Trouble(f"its certificate is not valid ({reason.verify_message})", fatal=True)
    gone = isinstance(reason, http.client.RemoteDisconnected | ConnectionResetError)
    return Trouble(_words(reason), again=True, reached=gone)


def _refused(e: urllib.error.HTTPError) -> Trouble:
    """The trouble behind an HTTP status, with the server's own words."""
    try:
        raw = e.read(1 << 16).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException, ValueError):
        raw = ""
    code, words = "", " ".join(raw.split())
    try:
        error = json.loads(raw)["error"]
        if isinstance(error, Mapping):
            code = str(error.get("code") or error.get("type") or "")
        words = str(error.get("message") or words) if isinstance(error, Mapping) else str(error)
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    text = f"{e.code} {e.reason or ''}".strip() + (f": {shown(words)}" if words else "")
    if 300 <= e.code < 400:
        return Trouble(f"{e.code}: redirects to {e.headers.get('Location')}", e.code, fatal=True)
    if e.code in STOPPING or code in _PAID_UP:
        return Trouble(text, e.code, fatal=True)
    return Trouble(text, e.code, again=e.code in AGAIN, wait=_wait(e.headers))


def _wait(headers: Any) -> float | None:
    """Seconds of Retry-After (a number or a date) or of retry-after-ms; None without either."""
    for name, unit in (("retry-after-ms", 1e-3), ("Retry-After", 1.0)):
        try:
            return max(float(headers[name]) * unit, 0.0)
        except (TypeError, ValueError):
            continue
    try:
        when = email.utils.parsedate_to_datetime(headers["Retry-After"])
        return max(when.timestamp() - time.time(), 0.0)
    except (TypeError, ValueError, OverflowError):
        return None


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        start = shown(body[:80].decode("utf-8", "replace"))
        raise Trouble(f"the answer is no JSON: {start!r}", again=True) from None


def _completion(body: Any) -> Reply:
    _check_error(body)
    try:
        choice = body["choices"][0]
        text = choice["message"].get("content")
        finish = choice.get("finish_reason")
    except (KeyError, IndexError, TypeError, AttributeError):
        raise Trouble(f"the answer has no choices[0].message: {_EXPECTED}", again=True) from None
    if isinstance(text, list):  # parts, as some servers send them
        text = "".join(str(part.get("text", "")) for part in text if isinstance(part, Mapping))
    return Reply(str(text or ""), str(finish or "stop"), _usage(body.get("usage")))


def _streamed(events: Iterator[str]) -> Reply:
    """The completion of a stream: the deltas of its first choice, joined."""
    parts, finish, usage, ended = [], "", None, False
    for data in events:
        if data == "[DONE]":
            ended = True
            break
        try:
            event = json.loads(data)
            _check_error(event)
            usage = event.get("usage") or usage
            for choice in event.get("choices") or ():
                if choice.get("index", 0) == 0:
                    parts.append((choice.get("delta") or {}).get("content") or "")
                    finish = choice.get("finish_reason") or finish
        except (ValueError, AttributeError, TypeError, RecursionError):
            raise Trouble("the stream holds an event that is no JSON", again=True) from None
    if not ended and not finish:
        raise Trouble("the stream was cut off before its end", again=True)
    return Reply("".join(map(str, parts)), finish or "stop", _usage(usage))


def _check_error(body: Any) -> None:
    """Some gateways report errors with status 200."""
    error = body.get("error") if isinstance(body, Mapping) else None
    if error:
        words = error.get("message", error) if isinstance(error, Mapping) else error
        raise Trouble(f"the server reports an error: {shown(str(words))}", again=True)


def _usage(usage: Any) -> dict[str, int]:
    found = usage if isinstance(usage, Mapping) else {}
    names = ("prompt_tokens", "completion_tokens")
    return {n: found[n] for n in names if isinstance(found.get(n), int)}


def _words(e: Any) -> str:
    return str(getattr(e, "strerror", None) or e or type(e).__name__).strip() or type(e).__name__
