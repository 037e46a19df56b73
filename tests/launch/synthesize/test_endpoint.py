"""`python -m launch.synthesize` against a server that misbehaves, interrupted and gone on with."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from mg_jax.data.synthesis.recipes import KINDS
from tests.data.synthesis.chat_server import FAULTS, KEY, ChatServer
from tests.launch.synthesize.command import BOXES, ROOT, answers, lines, online, run, scenes, whole


def test_a_folder_against_an_endpoint(monkeypatch, capsys, tmp_path, photos, detector):
    monkeypatch.setenv("MY_KEY", KEY)
    with ChatServer(key=KEY) as server:
        code, out, err = run(
            monkeypatch, capsys, *online(server, tmp_path / "o", photos, "--key-env", "MY_KEY")
        )
        assert code == 0, err
        assert server.served == len(server.requests) == len(answers(tmp_path / "o")) == 12 * 6
    rows, report = whole(tmp_path / "o")
    assert {row["meta"]["task"] for row in rows} == set(KINDS)
    assert report["dropped"]["not found"] == 12 and "12  not found" in out
    assert "12 of 12 pictures are finished" in out and "made:" in out
    assert rows[0]["image"].startswith("../photos/")
    everything = "".join(p.read_text() for p in (tmp_path / "o").iterdir())
    assert KEY not in everything and KEY not in out + err
    assert lines(tmp_path / "o" / "dropped.jsonl")[0] == {
        "picture": "00.png", "filter": "not found", "what": "unicorn",
    }  # fmt: skip


@pytest.mark.parametrize("stream", [False, True])
def test_nothing_is_lost_and_nothing_stands_twice(
    monkeypatch, capsys, tmp_path, photos, detector, stream
):
    """A third of the requests meets a fault; the data are those of a run without any."""
    more = ["--stream"] * stream + ["--timeout", "0.6", "--parallel", "6", "--retries", "9",
                                    "--tries", "9"]  # fmt: skip
    kinds = [f for f in FAULTS if f not in ("bad answer", "empty")]  # those make other prompts

    def fault(n, messages):
        return kinds[n // 3 % len(kinds)] if n % 3 == 2 else None

    with ChatServer(fault=fault) as server:
        code, _, err = run(monkeypatch, capsys, *online(server, tmp_path / "a", photos, *more))
        assert code == 0, err
        assert all(server.faults[kind] for kind in kinds)
    with ChatServer() as calm:
        run(monkeypatch, capsys, *online(calm, tmp_path / "b", photos, *more))
    whole(tmp_path / "a")
    for file in ("data.jsonl", "annotations.jsonl", "dropped.jsonl"):
        assert (tmp_path / "a" / file).read_text() == (tmp_path / "b" / file).read_text()
    assert len(answers(tmp_path / "a")) == server.served == calm.served


def test_unusable_answers_are_asked_for_again(monkeypatch, capsys, tmp_path, photos, detector):
    def fault(n, messages):
        return random.Random(n).choice((None, "bad answer", "empty"))

    with ChatServer(fault=fault) as server:
        code, _, err = run(
            monkeypatch, capsys, *online(server, tmp_path / "o", photos, "--tries", "40")
        )
    assert code == 0, err
    _, report = whole(tmp_path / "o")
    assert report["dropped"]["unreadable"] == 0 and server.faults["bad answer"] > 5


def test_failed_pictures_are_tried_again_by_the_next_run(
    monkeypatch, capsys, tmp_path, photos, detector
):
    ill = True

    def fault(n, messages):
        return "500" if ill and "[2]" in str(messages) and n > 20 else None

    with ChatServer(fault=fault) as server:
        command = online(server, tmp_path / "o", photos, "--retries", "0", "--parallel", "1")
        code, out, err = run(monkeypatch, capsys, *command)
        report = json.loads((tmp_path / "o" / "report.json").read_text())
        done = report["finished"]
        assert code == 75 and 0 < done < 12 and len(report["failed"]) == 12 - done
        assert "the same command tries them again" in out and "fault 500" in err
        ill = False
        code, _, err = run(monkeypatch, capsys, *command)
        assert code == 0 and f"{done} of 12 pictures are done already" in err
        assert server.served == len(answers(tmp_path / "o"))  # of the failed ones were kept
    whole(tmp_path / "o")


def start(*arguments):
    """The command as a process of its own, its detector replaced."""
    code = (
        "import sys; from launch import cli, grounding_dino, synthesize\n"
        f"boxes = {BOXES!r}\n"
        "def look(images, names):\n"
        "    hits = [n for n in names[0] if n in boxes]\n"
        "    return [{'boxes': [boxes[n] for n in hits], 'scores': [0.9] * len(hits),"
        " 'labels': hits}]\n"
        "grounding_dino.open_detector = lambda *_: look\n"
        "cli.run(synthesize.main)"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_run_goes_on(monkeypatch, capsys, tmp_path, photos, detector, how):
    out = tmp_path / "o"
    with ChatServer(fault=lambda n, m: "late" if n == 25 else None) as server:
        command = online(server, out, photos, "--parallel", "3")
        child = start(*command)
        while len(server.requests) < 26 and child.poll() is None:
            time.sleep(0.01)
        child.send_signal(how)
        _, stderr = child.communicate(timeout=60)
        before = len(server.requests)
        assert before < 60, "the interruption came too late"
        if how == signal.SIGKILL:
            assert child.returncode == -signal.SIGKILL
            with (out / "journal.jsonl").open("a") as file:
                file.write('{"asked": "torn')
        else:
            assert child.returncode == 130, stderr
            assert stderr.endswith("interrupted\n") and "goes on" in stderr
            report = json.loads((out / "report.json").read_text())
            kept = lines(out / "annotations.jsonl")
            assert 0 < len(kept) == report["finished"] < 12
        code, _, err = run(monkeypatch, capsys, *command)
        assert code == 0 and "are done already" in err
        # a killed process may have had answers under way; one that was asked to stop noted them
        assert server.served - len(answers(out)) <= (3 if how == signal.SIGKILL else 0)
    whole(out)
    with ChatServer() as calm:
        run(monkeypatch, capsys, *online(calm, tmp_path / "b", photos))
    assert (out / "data.jsonl").read_text() == (tmp_path / "b" / "data.jsonl").read_text()


def test_finished_runs_and_changed_options(monkeypatch, capsys, tmp_path, photos, detector):
    with ChatServer() as server:
        command = online(server, tmp_path / "o", photos)
        run(monkeypatch, capsys, *command)
        before, first = len(server.requests), (tmp_path / "o" / "data.jsonl").read_text()
        code, _, err = run(monkeypatch, capsys, *command)
        assert code == 0 and "12 of 12 pictures are done already" in err
        code, _, err = run(monkeypatch, capsys, *command, "--max-area", 0.2)
        assert code == 2 and "begun with another max_area" in err and err.count("\n") == 1
        code, out, _ = run(monkeypatch, capsys, *command, "--max-area", 0.2, "--redo")
        assert code == 0 and "too large" in out
        assert (tmp_path / "o" / "data.jsonl").read_text() != first
        assert len(server.requests) <= before + 12 * 2  # prompts that name fewer choices
        code, _, _ = run(monkeypatch, capsys, *command, "--overwrite")
        assert code == 0 and (tmp_path / "o" / "data.jsonl").read_text() == first


def test_an_endpoint_that_cannot_be_used_is_one_line(
    monkeypatch, capsys, tmp_path, photos, detector
):
    out = tmp_path / "o"
    with ChatServer(key=KEY) as server:
        code, _, err = run(monkeypatch, capsys, *online(server, out, photos))
        assert code == 2 and err.count("\n") == 1 and "wants a key" in err
        url = server.url
    code, _, err = run(
        monkeypatch, capsys, out, "--pictures", photos, "--base-url", url, "--detector", "D"
    )
    assert code == 2 and err.count("\n") == 1 and "cannot be reached" in err
    assert not out.exists()


@pytest.mark.parametrize("key", ["sk-one\nsk-two", "sk one", "sk-\u00e9", "sk-\x07two"])
def test_a_value_that_is_no_key_is_refused_and_not_printed(monkeypatch, capsys, tmp_path, key):
    monkeypatch.setenv("MY_KEY", key)
    with ChatServer(key=KEY) as server:
        code, out, err = run(
            monkeypatch, capsys, tmp_path / "o", "--data", scenes(2), "--base-url", server.url,
            "--key-env", "MY_KEY",
        )  # fmt: skip
        assert not server.requests
    assert code == 2 and "--key-env MY_KEY" in err and err.count("\n") == 1
    assert "sk" not in out + err


def test_a_key_that_is_withdrawn_ends_the_run_and_keeps_what_is_done(
    monkeypatch, capsys, tmp_path, photos, detector
):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    out = tmp_path / "o"
    with ChatServer(key=KEY) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)

        def fault(n, messages):
            server.key = KEY if n < 30 else "another"

        server.fault = fault
        command = [out, "--pictures", photos, "--detector", "D", "--parallel", 2]
        code, _, err = run(monkeypatch, capsys, *command)
        assert code == 2 and "does not accept the key" in err and "goes on" in err
        assert 0 < len(lines(out / "annotations.jsonl")) < 12
        server.key, server.fault = KEY, lambda n, m: None
        code, _, _ = run(monkeypatch, capsys, *command)
        assert code == 0 and server.served == len(answers(out))
    whole(out)


def test_prompts_are_copied_and_used(monkeypatch, capsys, tmp_path, photos, detector):
    mine = tmp_path / "mine"
    code, out, _ = run(monkeypatch, capsys, "--copy-prompts", mine)
    assert code == 0 and "--prompts" in out
    file = mine / "recognize.txt"
    file.write_text(file.read_text().replace("You list the things", "You list the things, please"))
    with ChatServer() as server:
        code, _, err = run(
            monkeypatch, capsys, *online(server, tmp_path / "o", photos, "--prompts", mine,
                                         "--limit", 1)
        )  # fmt: skip
        assert code == 0, err
        assert "please" in server.requests[0]["messages"][0]["content"]


def test_two_runs_do_not_write_one_folder(monkeypatch, capsys, tmp_path, photos, detector):
    pytest.importorskip("fcntl")
    with ChatServer(fault=lambda n, m: "late" if n == 3 else None) as server:
        command = online(server, tmp_path / "o", photos)
        child = start(*command)
        while len(server.requests) < 4 and child.poll() is None:
            time.sleep(0.01)
        code, _, err = run(monkeypatch, capsys, *command)
        assert code == 2 and "another run is writing it" in err
        assert child.wait(timeout=60) == 0
    whole(tmp_path / "o")
