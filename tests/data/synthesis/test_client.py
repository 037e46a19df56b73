"""The endpoint client against a real server on loopback that misbehaves."""

import email.utils
import socket
import threading
import time

import numpy as np
import pytest

from mg_jax.data.synthesis.client import Endpoint, Failed, Stopped
from mg_jax.errors import UserError
from tests.data.synthesis.chat_server import KEY, LATE, ChatServer

HELLO = [{"role": "system", "content": "x"}, {"role": "user", "content": "hello"}]


def endpoint(server, **options):
    options = {"model": "tiny", "backoff": 0.01, "timeout": 5.0} | options
    return Endpoint(server.url, **options)


def first(*faults):
    """These faults for the first requests, none after."""
    return lambda n, messages: faults[n] if n < len(faults) else None


def echo(messages):
    return f"you said {messages[-1]['content']}"


def test_an_answer_and_what_was_sent():
    with ChatServer(echo, key=KEY) as server:
        asked = endpoint(server, key=KEY, temperature=0.25, extra={"seed": 3, "max_tokens": None})
        reply = asked.chat(HELLO)
    assert (reply.text, reply.finish) == ("you said hello", "stop")
    (sent,) = server.requests
    assert sent == {
        "model": "tiny", "messages": HELLO, "temperature": 0.25, "stream": False, "seed": 3,
    }  # fmt: skip
    assert asked.counts == {"requests": 1, "prompt_tokens": 7, "completion_tokens": 3}


@pytest.mark.parametrize(
    "extra, limits",
    [
        ({}, {"max_tokens": 200}),
        ({"max_tokens": 30}, {"max_tokens": 60}),
        ({"max_tokens": None, "max_completion_tokens": 40}, {"max_completion_tokens": 80}),
        ({"max_tokens": None}, {}),
    ],
)
def test_twice_the_room_is_twice_what_is_sent(extra, limits):
    with ChatServer(echo) as server:
        endpoint(server, max_tokens=100, extra=extra).chat(HELLO, 2.0)
    (sent,) = server.requests
    assert {k: v for k, v in sent.items() if "tokens" in k} == limits


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "fault", ["429", "500", "503", "529", "reset", "broken json", "no choices", "error in 200",
              "cut body", "chunk cut"],
)  # fmt: skip
def test_a_fault_is_tried_again(fault, stream):
    with ChatServer(echo, first(fault, fault)) as server:
        reply = endpoint(server, stream=stream).chat(HELLO)
    assert reply.text == "you said hello" and reply.usage == {
        "prompt_tokens": 7, "completion_tokens": 3,
    }  # fmt: skip
    assert len(server.requests) == 3 and server.faults[fault] == 2


def test_a_stream_that_ends_early_is_no_answer():
    with ChatServer(lambda m: "a long answer", first("cut stream")) as server:
        assert endpoint(server, stream=True).chat(HELLO).text == "a long answer"
        assert server.faults["cut stream"] == 1
        with pytest.raises(Failed, match="cut off before its end"):
            server.fault = lambda n, m: "cut stream"
            endpoint(server, stream=True, retries=0).chat(HELLO)


def test_a_server_that_does_not_stream_is_understood():
    with ChatServer(echo, lambda n, m: "plain") as server:
        assert endpoint(server, stream=True).chat(HELLO).text == "you said hello"


@pytest.mark.parametrize("stream", [False, True])
def test_late_answers_are_given_up_in_time(stream):
    with ChatServer(echo, first("late")) as server:
        begin = time.monotonic()
        assert endpoint(server, timeout=0.3, stream=stream).chat(HELLO).text == "you said hello"
        assert time.monotonic() - begin < LATE
        assert len(server.requests) == 2


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: "
DRIPS = {
    "the head": (b"HTTP/1.1 200 OK\r\nX: ", "no answer in time"),
    "a body": (HEAD + b"application/json\r\nContent-Length: 999\r\n\r\n", "no whole answer"),
    "a line of a stream": (HEAD + b"text/event-stream\r\n\r\n", "no whole answer"),
    "a chunk": (
        HEAD + b"text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n3e7\r\n",
        "no whole answer",
    ),
    "the size of a chunk": (
        HEAD + b"application/json\r\nTransfer-Encoding: chunked\r\n\r\n", "no whole answer",
    ),
    "a refusal": (b"HTTP/1.1 400 Bad\r\nContent-Length: 999\r\n\r\n", "400 Bad"),
}  # fmt: skip


@pytest.mark.parametrize("what", DRIPS)
def test_an_answer_that_drips_is_given_up_too(what):
    """Each byte comes in time, the whole does not."""
    start, words = DRIPS[what]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stop = threading.Event()

        def drip():
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(start)
                while not stop.wait(0.05):
                    try:
                        connection.sendall(b"0")
                    except OSError:
                        return

        threading.Thread(target=drip, daemon=True).start()
        threading.Timer(3.0, stop.set).start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        begin = time.monotonic()
        with pytest.raises(Failed, match=words):
            Endpoint(url, "m", timeout=0.4, retries=0, stream=True).chat(HELLO)
        stop.set()
        assert time.monotonic() - begin < 1.5


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_honoured(form):
    wait = "1" if form == "seconds" else email.utils.formatdate(time.time() + 2, usegmt=True)
    with ChatServer(echo, first("429"), retry_after=wait) as server:
        endpoint(server).chat(HELLO)
        between = server.times[1] - server.times[0]
    assert 0.9 <= between < 3 if form == "date" else 1.0 <= between < 2


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_a_server_that_says_at_once_is_given_time(form):
    """Else all retries are spent in a moment."""
    wait = "0" if form == "seconds" else email.utils.formatdate(time.time() - 60, usegmt=True)
    with ChatServer(echo, first("429", "429"), retry_after=wait) as server:
        endpoint(server, backoff=0.2).chat(HELLO)
        one, two = np.diff(server.times)
    assert one >= 0.1 and two >= 0.2  # half of the backoff at least, which doubles


def test_a_pause_holds_for_every_thread():
    with ChatServer(echo, first("429"), retry_after="1") as server:
        shared = endpoint(server)
        threads = [threading.Thread(target=shared.chat, args=(HELLO,)) for _ in range(3)]
        threads[0].start()
        while not server.requests:
            time.sleep(0.01)
        time.sleep(0.2)
        for thread in threads[1:]:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(server.requests) == 4
        assert min(server.times[1:]) - server.times[0] >= 1.0


def test_a_wait_of_hours_ends_the_run():
    with (
        ChatServer(echo, first("429"), retry_after="7200") as server,
        pytest.raises(UserError, match="asks to wait for 7200 s"),
    ):
        endpoint(server).chat(HELLO)


def test_the_rate_is_kept():
    with ChatServer(echo) as server:
        shared = endpoint(server, rate=600)  # one in 0.1 s
        threads = [threading.Thread(target=shared.chat, args=(HELLO,)) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        times = sorted(server.times)
    assert times[-1] - times[0] >= 0.35


def test_a_request_is_given_up_after_the_retries():
    with ChatServer(echo, lambda n, m: "500") as server:
        shared = endpoint(server, retries=2)
        with pytest.raises(Failed, match=r"500 .*fault 500 \(3 times\)"):
            shared.chat(HELLO)
        assert len(server.requests) == 3 and shared.counts["HTTP 500"] == 3


def test_a_refused_request_is_not_repeated():
    with ChatServer(echo, lambda n, m: "400") as server:
        with pytest.raises(Failed, match="400"):
            endpoint(server).chat(HELLO)
        assert len(server.requests) == 1


@pytest.mark.parametrize("key, words", [("", "wants a key"), ("sk-wrong", "does not accept")])
def test_unauthorised_is_one_line_without_the_key(key, words):
    with ChatServer(echo, key=KEY) as server:
        for call in (lambda e: e.check(), lambda e: e.chat(HELLO)):
            with pytest.raises(UserError, match=f"{words} .*401.*--key-env") as error:
                call(endpoint(server, key=key))
            assert "\n" not in str(error.value) and "sk-wrong" not in str(error.value)


def test_no_money_ends_the_run():
    with (
        ChatServer(echo, lambda n, m: "quota") as server,
        pytest.raises(UserError, match="no money"),
    ):
        endpoint(server).chat(HELLO)


def test_redirects_are_not_followed():
    """They would take the key to another address."""
    with (
        ChatServer(echo, lambda n, m: "redirect") as server,
        pytest.raises(UserError, match="302: redirects to http://127.0.0.1:9/elsewhere"),
    ):
        endpoint(server, key=KEY).chat(HELLO)


def test_unreachable_is_one_line():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    for url in (f"http://127.0.0.1:{port}/v1", "http://no-such-host.invalid/v1"):
        with pytest.raises(UserError, match=f"{url}: cannot be reached .*--base-url") as error:
            Endpoint(url, "m", timeout=3).check()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("url", ["localhost:8000/v1", "ftp://x/v1", "http://", ""])
def test_an_address_that_is_none(url):
    with pytest.raises(UserError, match="--base-url"):
        Endpoint(url)


def test_the_model_need_not_be_named_where_there_is_one():
    with ChatServer(echo) as server:
        asked = Endpoint(server.url + "/chat/completions/")
        asked.check()
        assert asked.model == "tiny" and asked.base_url == server.url
        server.models = ("a", "b")
        with pytest.raises(UserError, match=r"--model: it has a, b"):
            Endpoint(server.url).check()
        Endpoint(server.url, "named").check()
        server.models = None  # a server without the list
        Endpoint(server.url, "named").check()


@pytest.mark.parametrize("fault", ["503", "429", "500", "reset", "broken json", "cut body"])
def test_a_list_of_models_is_asked_for_again(fault):
    with ChatServer(echo, list_fault=lambda n: fault if n < 2 else None) as server:
        asked = endpoint(server, model="")
        asked.check()
        assert asked.model == "tiny" and server.listed == 3


@pytest.mark.parametrize("fault, sent, words", [
    ("503", 3, "503 .*fault 503"),
    ("400", 1, "400 .*fault 400"),
    ("broken json", 3, "the answer is no JSON"),
    ("reset", 3, "reset"),
])  # fmt: skip
def test_why_there_is_no_list_of_models_is_one_line(fault, sent, words):
    with ChatServer(echo, list_fault=lambda n: fault) as server:
        with pytest.raises(UserError, match=f"{server.url}: .*{words}.*--model NAME") as error:
            endpoint(server, model="", retries=2).check()
        assert "\n" not in str(error.value) and server.listed == sent
        endpoint(server, model="named").check()  # needs no list
        assert server.listed == sent + 1


def test_an_unknown_model_is_one_line():
    with ChatServer(echo) as server, pytest.raises(UserError, match="no such address or no model"):
        Endpoint(server.url + "/wrong/", "gone", retries=0).chat(HELLO)


def test_a_stopped_run_sends_nothing_more():
    stop = threading.Event()
    with ChatServer(echo, lambda n, m: "500") as server:
        shared = endpoint(server, backoff=30.0, stop=stop)
        threading.Timer(0.2, stop.set).start()
        begin = time.monotonic()
        with pytest.raises(Stopped):
            shared.chat(HELLO)
        assert time.monotonic() - begin < 5
        with pytest.raises(Stopped):
            shared.chat(HELLO)
        assert len(server.requests) == 1
