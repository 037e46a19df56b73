"""Exit codes and error lines that every command line shares."""

import ast
import errno
import importlib
import json
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image

import mg_jax
from launch import chat, cli, compare, evaluate, explain, features, fit, fitting, train
from mg_jax.errors import UserError


def outcome(main, capsys) -> tuple[int, str]:
    with pytest.raises(SystemExit) as stop:
        cli.run(main)
    return stop.value.code, capsys.readouterr().err


def raising(error: BaseException):
    def main():
        raise error

    return main


@pytest.mark.parametrize("code", [None, 0, 1, 75])
def test_code_of_main_is_kept(code, capsys):
    assert outcome(lambda: code, capsys) == (code or 0, "")


def test_user_error_is_one_line(capsys):
    code, err = outcome(raising(UserError("a.jpg: no such file; check the path")), capsys)
    assert (code, err) == (2, "error: a.jpg: no such file; check the path\n")


def test_what_a_user_error_lists_stands_below_it(capsys):
    text = "a: does not fit: 2 tensors\n  + x.weight [3]\n\n  - y.weight [4]\n"
    code, err = outcome(raising(UserError(text)), capsys)
    expected = "error: a: does not fit: 2 tensors\n  + x.weight [3]\n  - y.weight [4]\n"
    assert (code, err) == (2, expected)


def test_user_error_shows_its_traceback_when_asked(monkeypatch):
    monkeypatch.setenv("MG_JAX_TRACEBACK", "1")
    with pytest.raises(UserError):
        cli.run(raising(UserError("x")))


def test_interrupt(capsys):
    assert outcome(raising(KeyboardInterrupt()), capsys) == (130, "interrupted\n")


def test_full_disk_names_the_file_also_when_wrapped(capsys):
    code, err = outcome(raising(OSError(errno.ENOSPC, "No space left on device", "w/x")), capsys)
    assert code == 2 and err.startswith("error: no space left on the disk for w/x")
    code, err = outcome(raising(ValueError("RESOURCE_EXHAUSTED: No space left on device")), capsys)
    assert code == 2 and err.count("\n") == 1


def test_other_errors_keep_their_traceback():
    with pytest.raises(KeyError):
        cli.run(raising(KeyError("a bug")))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nowhere/a.png", "no folder"),
        ("a.psd", "name a file that ends in .png or .jpg"),  # Pillow reads it only
        ("a", "name a file that ends in .png or .jpg"),
        ("folder.png", "name a file that ends in .png or .jpg"),
    ],
)
def test_a_picture_that_cannot_be_written_is_refused(tmp_path, name, reason):
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(UserError, match=reason):
        cli.check_picture(str(tmp_path / name))
    cli.check_picture(str(tmp_path / "a.JPG"))


@pytest.mark.parametrize("command", ["chat", "demo"])
def test_pictures_are_checked_before_a_model_is_loaded(command, monkeypatch, tmp_path, capsys):
    main = importlib.import_module(f"launch.{command}").main
    image = ["--image", str(tmp_path / "none.png")] if command == "chat" else []
    monkeypatch.setattr("sys.argv", ["x", "--checkpoint", "none", *image, "--out", "no/a.png"])
    assert outcome(main, capsys) == (2, "error: --out no/a.png: no folder no\n")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--repeat", "0"], "--repeat 0: give at least 1"),
        (["convert", "--folder", "/nowhere"], "--folder /nowhere: no such folder"),
    ],
)
def test_the_bench_refuses_what_it_cannot_time(arguments, line):
    from launch import bench

    with pytest.raises(UserError, match=line):
        bench.main(arguments)


# -- compiled programs -----------------------------------------------------------------------------


@pytest.fixture
def cache_dir():
    """jax's place of compiled programs, a function; none is set until one is."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    yield lambda: jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", before)


def test_compiled_programs_are_kept_but_not_of_a_cpu(cache_dir, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    cli.keep_compiled()
    assert cache_dir() is None
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    cli.keep_compiled()
    assert cache_dir() == str(tmp_path / "mg_jax" / "compiled")
    jax.config.update("jax_compilation_cache_dir", "elsewhere")
    cli.keep_compiled()
    assert cache_dir() == "elsewhere"


class Kept(Exception):
    """Instead of keeping compiled programs, to see that it comes first."""


@pytest.fixture
def kept(monkeypatch):
    def keep():
        raise Kept

    monkeypatch.setattr(cli, "keep_compiled", keep)


def test_programs_keep_what_they_compile(kept, monkeypatch, tmp_path):
    monkeypatch.setattr(mg_jax, "load", None, raising=False)
    monkeypatch.setattr(fitting, "open_start", None)
    found = SimpleNamespace(lines=list, refusal=lambda: "", name="x")
    monkeypatch.setattr("mg_jax.data.inspect.inspect", lambda source: found)
    monkeypatch.setattr("launch.fit_report.save_inspection", lambda *_: None)
    monkeypatch.setattr("mg_jax.data.sources.open_source", lambda *_, **__: None)
    for start in (
        lambda: cli.load("groma-tiny"),
        lambda: train.run(None, str(tmp_path)),
        lambda: fit.main(["--data", "voc:x", "--workdir", str(tmp_path)]),
        lambda: features.main(["--data", "voc:x", "--out", str(tmp_path)]),
    ):
        with pytest.raises(Kept):
            start()


def test_no_program_loads_a_model_in_another_way():
    wrong = []
    for file in Path(cli.__file__).parent.rglob("*.py"):
        if file.name != "cli.py":
            calls = (n for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.Call))
            wrong += [file.name for c in calls if ast.unparse(c.func) == "mg_jax.load"]
    assert not wrong


def test_a_model_is_asked_with_integers_in_half_the_memory_on_all_devices(
    monkeypatch, tmp_path, capsys
):
    load, loaded = mg_jax.load, []

    def keep(*args, **options):
        loaded.append(load(*args, **options))
        return loaded[0]

    monkeypatch.setattr(mg_jax, "load", keep)
    flags = ["--quantize=int8", "--dtype=bfloat16", "--mesh=auto", "--max-new-tokens=2"]
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    flags += [f"--image={tmp_path}/a.png", "--prompt=What is there?", "--json"]
    monkeypatch.setattr("sys.argv", ["x", *flags])
    chat.main()
    assert "text" in json.loads(capsys.readouterr().out)
    params = loaded[0].params["lm"]["blocks"]["attn"]["q"]
    assert params["kernel"].dtype == np.int8 and loaded[0].system.cfg.lm.dtype == "bfloat16"
    assert len(params["kernel"].sharding.device_set) == jax.device_count() > 1


@pytest.mark.parametrize("program", [chat, compare, evaluate, explain])
def test_programs_that_ask_a_model_have_the_same_flags_to_load_it(program):
    needed = {
        chat: [], evaluate: ["--task=rec"], compare: ["a", "--out=x.md"],
        explain: ["--image=x", "--prompt=x", "--out=x.png"],
    }[program]  # fmt: skip
    args = program.arguments().parse_args(needed)
    assert cli.load_options(args) == {}
    args = program.arguments().parse_args([*needed, "--quantize=int4", "--mesh=auto"])
    assert cli.load_options(args) == {"quantize": "int4", "mesh": "auto"}
