"""A server on loopback that speaks the chat-completions protocol, and misbehaves when told to."""

import contextlib
import json
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = "sk-test-0123456789"
LATE = 1.5  # seconds that a "late" answer takes
FAULTS = ("late", "429", "500", "broken json", "cut body", "cut stream", "reset", "no choices",
          "error in 200", "empty", "bad answer", "chunk cut")  # fmt: skip


def oracle(messages) -> str:
    """A sensible answer to each shipped prompt, out of what the prompt says."""
    system = messages[0]["content"]
    texts = [m["content"] for m in messages if m["role"] == "user"]
    texts = [t if isinstance(t, str) else "".join(p.get("text", "") for p in t) for t in texts]
    text = [t for t in texts if not t.startswith("That answer cannot be used")][-1]
    numbers = [int(n) for n in dict.fromkeys(re.findall(r"^\[(\d+)\]", text, re.M))]
    names = dict(re.findall(r"^\[(\d+)\] ([^(:\n]+?)(?: \(|:|$)", text, re.M))
    if "list the things" in system:
        return json.dumps({"objects": ["dog", "sofa", "unicorn"]})
    if "how things in a photograph relate" in system:
        return json.dumps({"relations": [[numbers[0], "lying on", numbers[1]]]})
    if "examination" in system:
        choices = re.search(r"numbers: ([\d, ]+)\.", text)[1].split(", ")
        rows = [{"question": f"What is k{k}x for?", "answer": int(k)} for k in choices]
        return json.dumps({"questions": rows})
    if "questions about how things" in system:
        a, b = (re.search(r"alone: ([\d, ]+)\.", text)[1].split(", ") * 2)[:2]
        asked = {"question": f"What is [{a}] doing with [{b}]?",
                 "answer": f"<p>The {names[a]}</p>[{a}] lies on <p>it</p>[{b}]."}  # fmt: skip
        choice = {"question": f"Which one holds [{a}]?", "options": [f"[{a}]", f"[{b}]"],
                  "answer": f"[{b}]"}  # fmt: skip
        return json.dumps({"questions": [asked, choice]})
    if "person who points" in system or "numbers are drawn" in system.lower():
        k = numbers[0]
        rows = [{"question": f"What is [{k}]?", "answer": f"<p>A {names[str(k)]}</p>[{k}]."},
                {"question": "Is it large?", "answer": "Quite."}]  # fmt: skip
        return json.dumps({"conversation": rows})
    if "describe pictures in detail" in system:
        parts = " and ".join(f"<p>a {names[str(n)]}</p>[{n}]" for n in numbers)
        return "Sure!\n```json\n" + json.dumps({"description": f"There is {parts}."}) + "\n```"
    if "find the words of a text" in system:
        return json.dumps({"objects": [w for w in ("dog", "sofa", "ball") if w in text]})
    return json.dumps({"objects": []})


class ChatServer:
    """In a thread, as a context. fault: from the number of a request (from 0) and its messages to
    a name of FAULTS, or None for a good answer; list_fault: the same from the number of a request
    for the list of models. served: how many good answers were given.
    """

    def __init__(
        self,
        answer: Callable = oracle,
        fault: Callable = lambda n, messages: None,
        key: str = "",
        models=("tiny",),
        retry_after: str = "0",
        list_fault: Callable = lambda n: None,
    ):
        self.answer, self.fault, self.key, self.models = answer, fault, key, models
        self.retry_after, self.list_fault = retry_after, list_fault
        self.listed = 0
        self.requests: list[dict] = []
        self.times: list[float] = []
        self.faults: Counter[str] = Counter()
        self.served = 0
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_GET(self):
                if not self.allowed():
                    return
                with outer.lock:
                    fault = outer.list_fault(outer.listed)
                    outer.listed += 1
                if fault:
                    outer.misbehave(self, fault, {"data": []})
                elif outer.models is None:
                    self.send(404, {"error": {"message": "no such page"}})
                else:
                    self.send(200, {"data": [{"id": name} for name in outer.models]})

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if not self.path.endswith("/v1/chat/completions"):
                    self.send(404, {"error": {"message": "no such page"}})
                elif self.allowed():
                    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                        outer.respond(self, body)

            def allowed(self):
                if outer.key and self.headers.get("Authorization") != f"Bearer {outer.key}":
                    given = self.headers.get("Authorization")
                    self.send(401, {"error": {"message": f"Incorrect API key: {given}"}})
                    return False
                return True

            def send(self, status, body, **headers):
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                length = headers.pop("Content_Length", str(len(data)))
                kind = headers.pop("Content_Type", "application/json")
                for name, value in {"Content-Type": kind, "Content-Length": length,
                                    "Connection": "close", **headers}.items():  # fmt: skip
                    self.send_header(name.replace("_", "-"), value)
                self.end_headers()
                self.wfile.write(data)
                self.close_connection = True

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"

    def __enter__(self) -> "ChatServer":
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.http.shutdown()
        self.http.server_close()

    def respond(self, handler, body) -> None:
        with self.lock:
            n = len(self.requests)
            self.requests.append(body)
            self.times.append(time.monotonic())
            fault = self.fault(n, body["messages"])
            self.faults[str(fault)] += 1
        text = "" if fault == "empty" else self.answer(body["messages"])
        if fault == "bad answer":
            text = "I am afraid { that this is: no JSON"
        whole = {
            "choices": [{"message": {"role": "assistant", "content": text},
                         "finish_reason": "stop", "index": 0}],
            "usage": {"prompt_tokens": 7, "completion_tokens": 3},
        }  # fmt: skip
        if fault == "late":
            time.sleep(LATE)
        if self.misbehave(handler, fault, whole):
            return
        if body.get("stream") and fault != "plain":
            events = [{"choices": [{"index": 0, "delta": {"content": text[k : k + 5]}}]}
                      for k in range(0, len(text), 5)]  # fmt: skip
            if fault == "cut stream":
                events = events[: len(events) // 2]
            else:
                events.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}],
                               "usage": whole["usage"]})  # fmt: skip
            data = "".join(f"data: {json.dumps(e)}\n\n" for e in events)
            data = ": a comment\n\n" + data + ("data: [DONE]\n\n" if fault is None else "")
            if fault is None:
                self.note()
            handler.send(200, data.encode(), Content_Type="text/event-stream; charset=utf-8")
        else:
            if fault in (None, "plain", "cut stream"):
                self.note()
            handler.send(200, whole)

    def misbehave(self, handler, fault, whole) -> bool:
        """Answer a request with a fault; False for one that is not of every kind of request."""
        if fault in ("429", "500", "503", "529", "400"):
            headers = {"Retry_After": self.retry_after} if fault in ("429", "503") else {}
            handler.send(int(fault), {"error": {"message": f"fault {fault}"}}, **headers)
        elif fault == "quota":
            handler.send(429, {"error": {"message": "no money", "code": "insufficient_quota"}})
        elif fault == "redirect":
            handler.send(302, b"", Location="http://127.0.0.1:9/elsewhere")
        elif fault == "broken json":
            handler.send(200, json.dumps(whole).encode()[:-9])
        elif fault == "no choices":
            handler.send(200, {"id": "x"})
        elif fault == "error in 200":
            handler.send(200, {"error": {"message": "upstream is down"}})
        elif fault == "cut body":
            data = json.dumps(whole).encode()
            handler.send(200, data[: len(data) // 2], Content_Length=str(len(data)))
        elif fault == "reset":
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            handler.connection.close()
        elif fault == "chunk cut":
            handler.send_response(200)
            handler.send_header("Content-Type", "application/json")
            handler.send_header("Transfer-Encoding", "chunked")
            handler.end_headers()
            handler.wfile.write(b"40\r\n" + json.dumps(whole).encode()[:20])
            handler.close_connection = True
        else:
            return False
        return True

    def note(self) -> None:
        """Count an answer that was given in full."""
        with self.lock:
            self.served += 1
