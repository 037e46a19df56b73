"""`python -m launch.convert` and `launch.bench convert`: exit codes, output, the numbers' keys."""

import json
import subprocess
import sys

import pytest

import conversion
from conversion import manifests, readers
from conversion.job import Checked, Job
from launch import bar, bench, bench_convert, cli
from launch import convert as command
from mg_jax import checkpoint
from tests.conversion.folders import assert_same, read_folder, write_folder


def run(monkeypatch, capsys, *arguments):
    """(exit status, stdout, stderr) of the command."""
    monkeypatch.setattr(sys, "argv", ["convert", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.run(command.main)
    out = capsys.readouterr()
    return stop.value.code, out.out, out.err


def test_there_and_back_with_check(monkeypatch, capsys, tmp_path):
    state = write_folder(tmp_path / "a", "llama")
    code, out, err = run(monkeypatch, capsys, tmp_path / "a", tmp_path / "b", "--check")
    assert code == 0 and f"wrote {tmp_path / 'b'}" in out
    assert "check: 30 of 30 tensors" in out and "equal bit for bit" in out
    assert "llama (LlamaForCausalLM)" in err
    code, out, _ = run(monkeypatch, capsys, tmp_path / "b", tmp_path / "c", "--to", "torch")
    assert code == 0 and "wrote" in out
    assert_same(read_folder(tmp_path / "c"), state)


def test_a_dry_run_writes_nothing(monkeypatch, capsys, tmp_path):
    write_folder(tmp_path / "a", "llama")
    code, out, _ = run(monkeypatch, capsys, tmp_path / "a", tmp_path / "b", "--dry-run")
    assert code == 0 and "lm/blocks/mlp/gate/kernel" in out and "expected peak memory" in out
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_many_misfits_are_listed_below_the_error(monkeypatch, capsys, tmp_path):
    state = write_folder(tmp_path / "a", "llama")
    extra = {f"more.{i}": state["model.norm.weight"] for i in range(60)}
    readers.write_safetensors(tmp_path / "a" / "model.safetensors", state | extra)
    code, _, err = run(monkeypatch, capsys, tmp_path / "a", tmp_path / "b")
    first, *listed = err.splitlines()
    assert code == 2 and len(listed) == 41 and max(map(len, listed)) < 40
    assert first.endswith("60 only there (+), 0 only in the model (-), 0 of another shape (!)")
    assert listed[0] == "  + more.0 [32]" and listed[-1] == "  ... and 20 more"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "b"], "error: nowhere: no such folder"),
        (["a", "c"], "c: is there already; name another folder or pass --overwrite"),
        (["a", "a", "--overwrite"], "a: holds the source a; name another folder"),
        (["a", "b", "--base", "nowhere"], "error: nowhere: no such folder"),
        (["a", "gs://bucket/b"], "gs://bucket/b: is a URL, not a folder: mount the bucket"),
        (["https://huggingface.co/x/y-1.5/tree/main", "b"], "hub: write the name alone, x/y-1.5"),
        (["a", "b", "--to", "torch"], "is not a release"),
        (["a", "b", "--revision", "main"], "--revision main"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(monkeypatch, capsys, tmp_path, arguments, message):
    write_folder(tmp_path / "a", "llama")
    (tmp_path / "c" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    code, _, err = run(monkeypatch, capsys, *arguments)
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(lines) == 1 and message in lines[0]


def test_a_difference_is_exit_1(monkeypatch, capsys, tmp_path):
    write_folder(tmp_path / "a", "llama")
    monkeypatch.setattr(
        "conversion.to_jax.ToJax.check",
        lambda self, advance: Checked(30, 100, ("model.norm.weight",)),
    )
    code, out, _ = run(monkeypatch, capsys, tmp_path / "a", tmp_path / "b", "--check")
    assert code == 1 and "29 of 30" in out and "differs: model.norm.weight" in out


def test_an_interruption_is_exit_130_and_says_how_to_go_on(monkeypatch, capsys, tmp_path):
    write_folder(tmp_path / "a", "llama")

    def interrupted(self, path, advance):
        path.write_bytes(b"the first piece")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("conversion.to_jax.ToJax._write_file", interrupted)
        code, _, err = run(patched, capsys, tmp_path / "a", tmp_path / "b")
    assert code == 130 and "not made; run the same command again\n" in err
    assert not (tmp_path / "b").exists()
    code, _, err = run(monkeypatch, capsys, tmp_path / "a", tmp_path / "b")
    assert code == 0 and "starting clean" in err  # a single file is written at one go


def test_progress_is_told_in_bytes_without_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(bar, "PLAIN_SECONDS", -1.0)
    with bar.Bytes("converting", 4 << 30) as shown:
        shown.advance(1 << 30)
        shown.say("a line")
        shown.advance(3 << 30)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("converting  1.00 of 4.00 GiB  ") and lines[1] == "a line"
    assert lines[2].startswith("converting  4.00 of 4.00 GiB  ")


def test_speed_is_of_what_this_run_did(monkeypatch, capsys):
    """Of 4 GiB an earlier run made 3; the clock says that 1 GiB took 1024 s."""
    clock = iter((0.0, 1024.0))
    monkeypatch.setattr(bar.time, "monotonic", lambda: next(clock))
    with bar.Bytes("converting", 4 << 30) as shown:
        shown.skip(3 << 30)
        shown.advance(1 << 30)
    assert capsys.readouterr().err == "converting  4.00 of 4.00 GiB  1 MiB/s\n"


def test_a_bar_on_a_terminal_does_not_break(monkeypatch, tmp_path):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    write_folder(tmp_path / "a", "llama")
    job: Job = conversion.prepare(tmp_path / "a", tmp_path / "b")
    with bar.Bytes("converting", job.nbytes) as shown:
        job.run(shown.say, shown.advance, shown.skip)
        shown.say("[brackets] stay")
    assert shown.done == job.nbytes and checkpoint.is_release(tmp_path / "b")


def test_help_is_quick_and_names_the_exit_codes():
    code = "import sys; sys.argv = ['x', '--help']; from launch import convert\n"
    code += "try: convert.main()\nexcept SystemExit: print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "130 interrupted" in done.stdout and "'jax'" not in done.stdout


def test_the_bench_prints_its_keys(capsys, tmp_path):
    bench.main(["convert", "--params", "tiny", "--folder", str(tmp_path)])
    row = json.loads(capsys.readouterr().out)
    assert list(row) == [
        "bytes", "seconds", "copy_seconds", "peak_rss_gib", "vm_hwm", "largest_tensor_gib",
        "bit_equal",
    ]  # fmt: skip
    assert row["bit_equal"] is True and row["bytes"] > 1 << 20 and 0 < row["peak_rss_gib"] < 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("params", "count"), [("7b", 1177), ("3b", 979)])
def test_the_bench_has_the_published_shapes(params, count):
    listed = bench_convert.tensors(params)
    shapes = {tensor.name: tensor.info.shape for tensor in listed}
    published = manifests.read("groma_7b")
    assert len(listed) == len(shapes) == count
    assert all(published[name] == shape for name, shape in shapes.items())
    assert {tensor.dtype.name for tensor in listed} == {"bfloat16" if params == "7b" else "float32"}
    assert sum(tensor.nbytes for tensor in listed) > 11e9 and len(published) == 1177
