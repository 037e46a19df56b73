"""Stages that start from another one's workdir, release or parts."""

import json

import jax
import numpy as np
import pytest

from mg_jax.checkpoint import save_release
from mg_jax.errors import UserError
from mg_jax.export import export
from mg_jax.optim import flatten
from mg_jax.plan import initial_params, plan
from mg_jax.train import train
from tests.train.fake import FakeConfig, FakeData, FakeSystem, fake_config, run


def second(**changes):
    return fake_config(
        stage="second", init_stages=("first",), init_required=("encoder/.*",), **changes
    )


def test_the_next_stage_starts_from_a_workdir_or_a_release(whole, tmp_path):
    folder, outcome = whole
    release = export(outcome, fake_config(), folder, fields={"codec": {"x": 1}}, command="make it")
    config = json.loads((release / "config.json").read_text())
    assert (config["system"], config["stage"], config["codec"]) == ("fake", "first", {"x": 1})
    assert "make it" in (release / "README.md").read_text()
    for source, tolerance in ((folder, 0), (release, 4e-3)):
        config = second(init_from=str(source), train__steps=1, optim__warmup_steps=5)
        first = run(tmp_path / source.name, config)  # an update of rate 0
        for path, x in flatten(outcome.params).items():
            np.testing.assert_allclose(first.state.params[path], x, rtol=tolerance, atol=tolerance)


def test_a_converted_part_starts_a_stage(whole, tmp_path):
    encoder = {p: x for p, x in flatten(whole[1].params).items() if p.startswith("encoder/")}
    config = {"system": "parts", "stage": "first", "model": {}}
    save_release(tmp_path / "part", encoder, config, dtype="float32")
    start = second(init_from=str(tmp_path / "part"), train__steps=1, optim__warmup_steps=5)
    params = flatten(run(tmp_path / "run", start).params)
    for path, x in encoder.items():
        np.testing.assert_array_equal(params[path], x)


def test_what_is_ignored_may_have_another_shape(whole):
    folder, outcome = whole
    ignored = ("encoder/.*", "head/kernel")
    config = fake_config(stage="second", init_from=str(folder), init_ignore=ignored)
    p = plan(config, 2, system=FakeSystem(FakeConfig(hidden=6)))
    params = initial_params(p, config, lambda text: None)
    assert params["encoder/kernel"].shape == (8, 6)
    np.testing.assert_array_equal(params["head/bias"], flatten(outcome.params)["head/bias"])


def test_wrong_stage_order_and_wrong_folders_are_named(whole, tmp_path):
    with pytest.raises(
        UserError, match=r"stage=second starts from a checkpoint of stage first: .*init_from"
    ):
        run(tmp_path / "a", second())
    config = fake_config(stage="third", init_stages=("second",), init_from=str(whole[0]))
    with pytest.raises(
        UserError, match="of stage 'first'; stage=third starts from one of stage second"
    ):
        run(tmp_path / "b", config)
    with pytest.raises(UserError, match="no-such: no such folder"):
        run(tmp_path / "c", second(init_from="no-such"))
    with pytest.raises(UserError, match="it has no config.json"):
        run(tmp_path / "d", second(init_from=str(tmp_path)))
    other = fake_config(init_from=str(whole[0]))
    other.unlock()
    other.system = "groma"
    with pytest.raises(UserError, match="a checkpoint of system 'fake', not of 'groma'"):
        run(tmp_path / "e", other)


def test_another_shape_or_an_unknown_parameter_is_named(whole, tmp_path):
    wide = FakeSystem(FakeConfig(hidden=32))
    with pytest.raises(UserError, match=r"encoder/bias is \(16,\) in .* and \(32,\) in the model"):
        train(second(init_from=str(whole[0])), tmp_path, system=wide, data=FakeData())
    assert not (tmp_path / "config.json").exists()


def test_what_init_from_lacks_is_initialised_or_refused(whole, tmp_path):
    _, outcome = whole
    part = {"encoder": outcome.params["encoder"]}
    release = save_release(tmp_path / "r", part, {"system": "fake", "stage": "first", "model": {}})
    run(tmp_path / "a", second(init_from=str(release), train__steps=1))
    config = second(init_from=str(release))
    config.init_required = (".*",)
    with pytest.raises(UserError, match="lacks 2 parameters, head/bias first"):
        run(tmp_path / "b", config)


def test_added_rows_start_as_the_mean_of_a_loaded_table(tmp_path):
    system = FakeSystem(FakeConfig(width=16, hidden=16))  # both kernels are of one shape
    table = jax.random.normal(jax.random.key(0), (16, 16))
    facts = {"system": "fake", "stage": "first", "model": {}}
    release = save_release(tmp_path / "r", {"encoder/kernel": table}, facts, dtype="float32")
    config = fake_config(
        init_from=str(release), init_mean=(("head/kernel", "encoder/kernel"),), train__steps=1
    )
    got = train(config, tmp_path / "a", system=system, data=FakeData(width=16))  # at rate 0
    expected = np.broadcast_to(table.mean(0), (16, 16))
    np.testing.assert_allclose(got.state.params["head/kernel"], expected, atol=1e-6)
    config.init_from = ""
    fresh = train(config, tmp_path / "b", system=system, data=FakeData(width=16))
    assert np.std(fresh.state.params["head/kernel"], axis=0).min() > 0.01
