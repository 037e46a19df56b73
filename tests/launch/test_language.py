"""Taking the language model out of a release."""

import jax
import numpy as np
import pytest

from configs import mg_llava
from launch import language
from mg_jax import checkpoint
from mg_jax.errors import UserError
from mg_jax.optim import flatten
from mg_jax.plan import initial_params, plan


def test_another_system_begins_with_it(tmp_path, capsys):
    language.main(["groma-tiny", "--out", str(tmp_path / "language")])
    assert "1314 tokens" in capsys.readouterr().out
    theirs = flatten(checkpoint.load_release("groma-tiny")[1])

    config = mg_llava.get_config("stage=pretrain,llm=tiny")
    config.init_from, config.init_required = str(tmp_path / "language"), ()
    found = initial_params(plan(config, 1), config, say=lambda text: None)
    for path in (p for p in found if p.startswith("lm/")):
        rows = np.asarray(found[path], np.float32)
        if path == language.TABLE:  # the pieces first, then what Groma added
            np.testing.assert_array_equal(rows[1200:], np.float32(theirs[language.ADDED]))
            rows = rows[:1200]
        np.testing.assert_array_equal(rows, np.float32(theirs[path]), err_msg=path)


def test_a_head_of_its_own_grows_too(tmp_path):
    config, params, _ = checkpoint.load_release("groma-tiny")
    flat = flatten(params)
    flat["lm/head/kernel"] = jax.random.normal(jax.random.key(0), (192, 1200))
    config["model"]["lm"]["tied"] = False
    checkpoint.save_release(tmp_path / "untied", flat, config)
    language.main([str(tmp_path / "untied"), "--out", str(tmp_path / "language")])
    written = flatten(checkpoint.load_release(tmp_path / "language")[1])
    assert written["lm/head/kernel"].shape == (192, 1314)
    np.testing.assert_array_equal(
        np.float32(written["lm/head/kernel"][:, 1200:]), np.float32(flat["new_tokens/head"])
    )


def test_nothing_else_is_overwritten(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("x")
    with pytest.raises(UserError, match="is there and is no release"):
        language.main(["groma-tiny", "--out", str(tmp_path / "mine")])
    language.main(["groma-tiny", "--out", str(tmp_path / "copy")])
    with pytest.raises(UserError, match="which is read here"):
        language.main([str(tmp_path / "copy"), "--out", str(tmp_path / "copy")])


def test_a_release_without_one_is_refused(tmp_path):
    folder = tmp_path / "detector"
    checkpoint.save_release(folder, {"vision/x": np.zeros(1, np.float32)}, {
        "system": "groma", "stage": "detection", "model": {},
    })  # fmt: skip
    with pytest.raises(UserError, match="stage detection has no language model"):
        language.main([str(folder), "--out", str(tmp_path / "out")])
