"""The command: three stages in a row, resume of a real system, one line for each mistake."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from launch.train import run
from mg_jax.checkpoint import load_release
from mg_jax.data import pipeline
from mg_jax.errors import UserError
from mg_jax.progress import read_metrics
from mg_jax.text.tokenizer import Tokenizer
from mg_jax.train import Diverged
from tests.train.micro import micro_config, save_tokenizer

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def detected(tmp_path_factory, tokenizer):
    """A finished run of the detection stage."""
    folder = tmp_path_factory.mktemp("detection")
    assert run(micro_config("detection", tokenizer), str(folder), "the command") == 0
    return folder


def losses(folder):
    return {r["step"]: r["loss"] for r in read_metrics(Path(folder) / "metrics.jsonl")}


def test_three_stages_in_a_row(detected, tokenizer, tmp_path):
    config, params, words = load_release(detected / "release", "groma")
    assert config["stage"] == "detection"
    assert set(params) == {"vision", "proposer", "region_encoder", "labels"}
    with pytest.raises(UserError, match="of stage 'detection'; stage=instruction starts from one"):
        run(micro_config("instruction", tokenizer, init_from=str(detected)), str(tmp_path / "x"))
    before = detected
    for stage in ("alignment", "instruction"):
        folder = tmp_path / stage
        assert run(micro_config(stage, tokenizer, init_from=str(before)), str(folder)) == 0
        before = folder
    config, params, words = load_release(before / "release")
    assert config["codec"]["max_regions"] == 4 and config["preprocess"] == "groma_pil"
    assert (words / "tokenizer.model").is_file()
    assert set(params) == {
        "vision", "proposer", "projector", "region_encoder", "lm", "new_tokens"
    }  # fmt: skip
    kept = load_release(tmp_path / "alignment" / "release")[1]  # the last stage freezes it
    assert jax.tree.all(
        jax.tree.map(lambda a, b: bool((a == b).all()), kept["vision"], params["vision"])
    )


def test_a_real_system_resumes_bit_equal(detected, tokenizer, tmp_path, monkeypatch):
    config = micro_config("alignment", tokenizer, init_from=str(detected))
    assert run(config, str(tmp_path / "a")) == 0
    batches = pipeline.open_batches

    def interrupted(*args):
        iterator = batches(*args)

        class Two(type(iterator)):
            def __next__(self):
                if self.state == 1:
                    os.kill(os.getpid(), signal.SIGINT)
                return super().__next__()

        iterator.__class__ = Two
        return iterator

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "open_batches", interrupted)
        assert run(config, str(tmp_path / "b")) == 130
    assert not (tmp_path / "b" / "release").exists()
    assert run(config, str(tmp_path / "b")) == 0
    assert losses(tmp_path / "b") == losses(tmp_path / "a")
    assert json.loads((tmp_path / "b/release/config.json").read_text())["stage"] == "alignment"


def test_a_training_that_diverged_has_a_code_of_its_own(tokenizer, tmp_path, monkeypatch, capsys):
    def diverge(*args, **kwargs):
        raise Diverged("step 3: the loss is nan")

    monkeypatch.setattr("mg_jax.train.train", diverge)
    assert run(micro_config("detection", tokenizer), str(tmp_path)) == 65
    assert capsys.readouterr().err == "error: step 3: the loss is nan\n"


def command(*args):
    done = subprocess.run(
        [sys.executable, "-m", "launch.train", *map(str, args)],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def test_help_and_mistakes(tokenizer, tmp_path):
    pieces = Tokenizer.load(tokenizer).vocab_size
    code, out, _ = command("--help")
    assert code == 0 and "Exit codes" in out
    config = (
        "--config", "configs/groma.py:stage=alignment,size=tiny", "--workdir", tmp_path / "w",
        f"--config.codec.tokenizer={tokenizer}", f"--config.model.lm.vocab={pieces}",
    )  # fmt: skip
    for args, line in (
        ((*config, "--config.optim.lrr=3"), "error: unknown config key 'lrr'; did you mean 'lr'?"),
        (
            (*config, "--config.optim.lr.x=3"),
            "error: unknown config key 'x': it stands behind one float",
        ),
        (("--config", "none.py", "--workdir", "w"), "error: --config none.py: no such file"),
        (config, "error: stage=alignment starts from a checkpoint of stage detection"),
    ):
        code, _, error = command(*args)
        assert code == 2, error
        assert error.startswith(line) and error.count("\n") == 1, error
    assert not (tmp_path / "w" / "config.json").exists()
