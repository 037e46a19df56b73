"""What a run does besides learning: moments elsewhere, best checkpoints, traces, times."""

import jax
import numpy as np
import pytest

from mg_jax import checkpoint, flops
from mg_jax.plan import plan
from mg_jax.progress import read_metrics
from mg_jax.sharding import make_mesh
from mg_jax.train import train
from tests.train.fake import FakeData, FakeSystem, fake_config
from tests.train.test_train import Trap, sigterm


def run(folder, mesh=None, **changes):
    return train(
        fake_config(**changes), folder, system=FakeSystem(), data=FakeData(), mesh=mesh
    )  # fmt: skip


def losses(folder):
    return [r["loss"] for r in read_metrics(folder / "metrics.jsonl")]


def one_device():
    return make_mesh(1, 1, 1, jax.devices()[:1])


def test_moments_may_stay_in_host_memory(tmp_path):
    """The plan says so for every moment, and for nothing else."""
    p = plan(fake_config(optim__offload=True), 12, system=FakeSystem(), mesh=make_mesh(2, 2, 2))
    kinds = {x.sharding.memory_kind for x in jax.tree.leaves(p.state.opt) if x.ndim}
    assert kinds == {"pinned_host"}
    others = (p.state.params, p.state.step, p.example)
    assert all(x.sharding.memory_kind != "pinned_host" for x in jax.tree.leaves(others))
    text = p.lower().as_text()
    assert "pinned_host" in text and text.count("annotate_device_placement") >= 8


@pytest.mark.gpu
def test_moments_in_host_memory_change_no_number(tmp_path):
    run(tmp_path / "near", one_device())
    outcome = run(tmp_path / "far", one_device(), optim__offload=True)
    np.testing.assert_allclose(losses(tmp_path / "far"), losses(tmp_path / "near"), atol=1e-6)
    kinds = {x.sharding.memory_kind for x in jax.tree.leaves(outcome.state.opt) if x.ndim}
    assert kinds == {"pinned_host"}


def test_the_best_checkpoints_stay_beside_the_newest(tmp_path):
    states = checkpoint.TrainStates(tmp_path, 2, best=1)
    x = jax.device_put(np.ones((4, 4), np.float32))
    for step, loss in ((1, 3.0), (2, 0.5), (3, 2.0), (4, 1.0), (5, 0.9)):
        states.save(step, {"a": x}, {"m": x}, {"step": step, "loss": loss})
    states.close()
    assert checkpoint.TrainStates(tmp_path, 2, best=1).steps() == [2, 4, 5]


def test_the_running_loss_goes_on_after_a_resume(tmp_path):
    whole = run(tmp_path / "a", train__keep_best=1, train__save_steps=4)
    stopped = train(
        fake_config(train__keep_best=1), tmp_path / "b", system=FakeSystem(), data=Trap(7, sigterm)
    )
    assert stopped.code == 75
    run(tmp_path / "b", train__keep_best=1)
    metas = []
    for name in "ab":
        states = checkpoint.TrainStates(tmp_path / name / "checkpoints")
        _, _, meta = states.restore(whole.plan.state.params, whole.plan.state.opt)
        metas.append(meta["loss"])
    assert metas[0] == metas[1] > 0


def test_a_profile_is_written_and_times_are_logged(tmp_path):
    run(tmp_path, train__profile=2)
    traces = [p for p in (tmp_path / "profile").rglob("*") if p.is_file()]
    assert any(p.name.endswith(".xplane.pb") and p.stat().st_size > 1000 for p in traces)
    assert any("perfetto" in p.name for p in traces)
    last = read_metrics(tmp_path / "metrics.jsonl")[-1]
    assert last["step_seconds"] > 0 and "mfu" not in last  # the peak of a CPU is not known
    assert last["compiles"] == 1


def test_a_profile_that_the_end_comes_before_is_whole(tmp_path, capsys):
    run(tmp_path, train__profile=100, train__steps=5)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    assert "steps 4 to 5 are in" in capsys.readouterr().err


def test_the_share_of_the_peak_is_that_of_the_models_operations(monkeypatch):
    p = plan(fake_config(), 12, system=FakeSystem(), mesh=one_device())
    used = flops.Utilization(p)
    assert used.of(0.0) == {} and used.of(2.0) == {"step_seconds": 2.0}
    monkeypatch.setattr(flops, "model_flops", lambda p: 5e9)
    used._peak = 1e10
    assert used.of(2.0) == {"step_seconds": 2.0, "mfu": 0.25}
