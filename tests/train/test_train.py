"""The trainer on a fake system: resume, two trees, accumulation, sharding, stopping."""

import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from mg_jax import sharding
from mg_jax.errors import UserError
from mg_jax.optim import flatten
from mg_jax.plan import plan
from mg_jax.progress import read_metrics
from mg_jax.sharding import make_mesh
from mg_jax.train import Diverged, train
from tests.train.fake import FakeConfig, FakeData, FakeSystem, fake_config, run


class Crash(Exception):
    """Stands for a killed process."""


class Trap(FakeData):
    """Before batch `at`, does `action`."""

    def __init__(self, at, action, **kwargs):
        super().__init__(**kwargs)
        self.at, self.action = at, action

    def __next__(self):
        if self.state == self.at:
            self.action()
        return super().__next__()


def crash():
    raise Crash


def sigterm():
    os.kill(os.getpid(), signal.SIGTERM)


def losses(folder):
    return {r["step"]: r["loss"] for r in read_metrics(folder / "metrics.jsonl")}


def equal(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: bool((x == y).all()), a, b))


def test_a_run_learns_and_leaves_its_files(whole):
    folder, outcome = whole
    assert outcome.code == 0 and outcome.step == 12
    record = losses(folder)
    assert list(record) == list(range(1, 13))
    assert record[12] < record[1]
    assert (folder / "loss.png").stat().st_size > 5000
    assert outcome.plan.compiles == 1
    assert json.loads((folder / "config.json").read_text())["optim"]["lr"] == 1e-2


def test_resume_after_sigterm_is_bit_equal(whole, tmp_path):
    stopped = run(tmp_path, data=Trap(5, sigterm))
    assert stopped.code == 75 and stopped.step == 6
    resumed = run(tmp_path)
    assert resumed.code == 0 and resumed.step == 12
    assert losses(tmp_path) == losses(whole[0])
    assert equal(resumed.state, whole[1].state)


def test_resume_after_a_kill_repeats_the_lost_steps(whole, tmp_path, capsys):
    config = fake_config(train__save_steps=4)
    with pytest.raises(Crash):
        run(tmp_path, config, Trap(7, crash))
    assert max(losses(tmp_path)) > 4  # later than the checkpoint
    with open(tmp_path / "metrics.jsonl", "a") as f:
        f.write('{"step": 7, "lo')  # torn line
    (tmp_path / "checkpoints" / "7.orbax-checkpoint-tmp").mkdir()  # killed while saving
    resumed = run(tmp_path, config)
    assert "7.orbax-checkpoint-tmp: half-written" in capsys.readouterr().err
    assert losses(tmp_path) == losses(whole[0])
    assert equal(resumed.state, whole[1].state)


def test_the_state_on_disk_is_that_of_its_step_though_later_steps_reuse_the_memory(tmp_path):
    config = fake_config(train__save_steps=3, train__keep=10, model__width=512)
    system = FakeSystem(FakeConfig(width=512, hidden=256))
    train(config, tmp_path, system=system, data=FakeData(width=512))
    short = fake_config(train__save_steps=3, train__keep=10, model__width=512, train__steps=12)
    import shutil

    for step in (12, 9, 6):
        shutil.rmtree(tmp_path / "checkpoints" / str(step))
    again = train(short, tmp_path, system=system, data=FakeData(width=512))
    reference = train(config, tmp_path / "b", system=system, data=FakeData(width=512))
    assert equal(again.state, reference.state)


def test_a_finished_run_says_so(whole, capsys):
    again = run(whole[0], data=Trap(12, crash))
    assert again.code == 0 and again.step == 12
    assert "finished at step 12" in capsys.readouterr().err
    assert equal(again.state, whole[1].state)


def test_more_steps_continue_a_finished_run(tmp_path, capsys):
    run(tmp_path, fake_config(train__steps=4))
    assert "note:" not in capsys.readouterr().err
    assert run(tmp_path, fake_config(train__steps=6)).step == 6
    assert "note: 6 steps instead of 4" in capsys.readouterr().err
    assert list(losses(tmp_path)) == [1, 2, 3, 4, 5, 6]


def test_another_config_is_refused_with_the_keys(tmp_path):
    run(tmp_path, fake_config(train__steps=2))
    with pytest.raises(UserError, match=r"optim\.lr 0\.01 -> 0\.5; seed 0 -> 1"):
        run(tmp_path, fake_config(optim__lr=0.5, seed=1))
    file = tmp_path / "config.json"
    older = {k: v for k, v in json.loads(file.read_text()).items() if k != "init_mean"}
    file.write_text(json.dumps(older))  # as a version without this key wrote it
    assert run(tmp_path, fake_config(train__steps=2)).code == 0
    assert run(tmp_path, fake_config(train__steps=2, init_ignore=("x",))).code == 0  # done with
    with pytest.raises(UserError, match=r"holds a run of fake stage=first.*--config.init_from="):
        run(tmp_path, fake_config(stage="second"))


def test_a_run_with_muon_goes_on_bit_equal_on_its_mesh(whole, tmp_path):
    mesh = {"mesh__data": 2, "mesh__fsdp": 2, "mesh__tensor": 2}
    config = fake_config(optim__muon=(".*/kernel",), rules="fsdp_tensor", **mesh)
    unbroken = run(tmp_path / "unbroken", config)
    assert not equal(unbroken.state.params, whole[1].state.params)
    stopped = run(tmp_path / "stopped", config, Trap(5, sigterm))
    assert stopped.code == 75
    assert equal(run(tmp_path / "stopped", config).state, unbroken.state)
    file = tmp_path / "stopped" / "config.json"
    older = json.loads(file.read_text())
    del older["optim"]["muon"]  # as a version without this key wrote it: its moments are others
    file.write_text(json.dumps(older))
    with pytest.raises(UserError, match=r"another config: optim\.muon \[\] -> "):
        run(tmp_path / "stopped", config)


def test_two_trees(tmp_path):
    config = fake_config(trainable=("head/.*",), frozen_dtype="bfloat16")
    p = plan(config, 12, system=FakeSystem())
    assert set(p.state.params) == {"head/kernel", "head/bias"}
    assert {x.dtype for x in p.frozen.values()} == {jnp.dtype("bfloat16")}
    names = [str(path) for path, _ in jax.tree_util.tree_leaves_with_path(p.state.opt)]
    assert len(names) == 6 and not any("encoder" in n for n in names)  # 2 moments x 2, 2 counters
    text = p.lower().as_text()
    assert "bf16" in text
    stopped = run(tmp_path, config, Trap(3, sigterm))
    frozen = jax.device_get(stopped.frozen)
    resumed = run(tmp_path, config)
    assert equal(frozen, resumed.frozen)
    assert not equal(stopped.state.params, resumed.state.params)
    assert resumed.params["encoder"]["kernel"].dtype == jnp.bfloat16


def test_epochs_and_missing_steps():
    from mg_jax.train import TrainConfig, total_steps

    settings = TrainConfig(0, 1.5, 1, 0, 0.0, 1, False)
    assert total_steps(settings, FakeData(), 8) == 150
    with pytest.raises(UserError, match="config.train: steps=0 and epochs=0"):
        total_steps(TrainConfig(0, 0.0, 1, 0, 0.0, 1, False), FakeData(), 8)


def one_step(config, mesh=None, system=None):
    """(params, metrics) after one update from the same start."""
    p = plan(config, 12, system=system or FakeSystem(), mesh=mesh)
    flat = flatten(p.init(jax.random.key(3)))
    params = {k: jax.device_put(flat[k], x.sharding) for k, x in p.state.params.items()}
    frozen = {k: jax.device_put(flat[k].astype(x.dtype), x.sharding) for k, x in p.frozen.items()}
    # as if the warm-up were over
    step = jax.device_put(jnp.int32(5), p.state.step.sharding)
    opt = jax.tree.map(lambda x: jnp.full_like(x, 5) if x.ndim == 0 else x, p.init_opt(params))
    opt = jax.tree.map(lambda x, like: jax.device_put(x, like.sharding), opt, p.state.opt)
    state = p.state.replace(step=step, params=params, opt=opt)
    with sharding.use(p.mesh, p.rules):
        batch = sharding.put_batch(next(FakeData()), p.mesh)
        state, metrics = p.step(state, frozen, batch, jax.random.key(7))
    return p, state, metrics


@pytest.mark.parametrize("muon", [(), (".*/kernel",)], ids=["adamw", "muon"])
def test_sharded_equals_unsharded(muon):
    config = fake_config(rules="fsdp_tensor", optim__muon=muon)
    p, state, metrics = one_step(config, make_mesh(2, 2, 2))
    _, alone, expected = one_step(config, make_mesh(1, 1, 1, jax.devices()[:1]))
    assert p.state.params["encoder/kernel"].sharding.spec == PartitionSpec("fsdp", "tensor")
    for tree in (state.params, state.opt):
        for (path, x), like in zip(
            jax.tree_util.tree_leaves_with_path(tree),
            jax.tree.leaves(p.state.params if tree is state.params else p.state.opt),
            strict=True,
        ):
            assert x.sharding == like.sharding, path
    held = jax.tree_util.tree_leaves_with_path(state.opt)
    moments = [x for path, x in held if "encoder/kernel" in str(path)]
    assert len(moments) == (1 if muon else 2)
    for moment in moments:
        assert moment.sharding.spec == p.state.params["encoder/kernel"].sharding.spec
    for k, v in alone.params.items():
        np.testing.assert_allclose(state.params[k], v, atol=1e-6, err_msg=k)
    assert float(metrics["loss"]) == pytest.approx(float(expected["loss"]), abs=1e-6)


class NoDropout(FakeSystem):
    """The loss is then a plain mean over the rows."""

    def loss(self, stage):
        from tests.train.fake import Net

        def loss(params, batch, key):
            y = Net(self.cfg).apply({"params": params}, batch["x"])
            return jnp.square(y - batch["y"]).mean(), {"rows": jnp.float32(batch["x"].shape[0])}

        return loss


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 2, 2)])
def test_accumulated_gradients_equal_one_batch(shape):
    mesh = make_mesh(*shape, jax.devices()[: int(np.prod(shape))])
    rules = "fsdp_tensor"
    _, once, a = one_step(fake_config(rules=rules), mesh, NoDropout())
    _, twice, b = one_step(fake_config(rules=rules, accumulate=2), mesh, NoDropout())
    for k, v in once.params.items():
        np.testing.assert_allclose(twice.params[k], v, atol=1e-6, err_msg=k)
    assert float(b["loss"]) == pytest.approx(float(a["loss"]), abs=1e-6)
    assert float(b["grad_norm"]) == pytest.approx(float(a["grad_norm"]), abs=1e-6)
    assert float(b["rows"]) == 4


def test_a_loss_that_is_not_finite_stops_with_the_batch(tmp_path):
    config = fake_config(train__save_steps=2)
    with pytest.raises(Diverged, match=r"step 6: the loss is nan .* at steps \[2, 4\]"):
        run(tmp_path, config, FakeData(bad=5))
    bad = np.load(tmp_path / "bad_batch.npz")
    assert np.isnan(bad["x"]).sum() == 1
    assert run(tmp_path, config).code == 0  # from step 4, once the data are mended


def test_a_new_shape_of_batch_is_counted(tmp_path, capsys):
    class Ragged(FakeData):
        def __next__(self):
            batch = super().__next__()
            return (
                batch if self.state != 3 else {k: np.concatenate([v, v]) for k, v in batch.items()}
            )

    outcome = run(tmp_path, fake_config(train__steps=4), Ragged())
    assert outcome.plan.compiles == 2
    assert "step 3: compiled for a new shape" in capsys.readouterr().err


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"batch_size": 7}, "config.batch_size: 7 rows do not divide"),
        ({"accumulate": 3}, "accumulate=3"),
        ({"rules": "fdsp"}, "config.rules: 'fdsp' is not one of replicated"),
        ({"trainable": ("heads/.*",)}, "config.trainable: 'heads/.*' matches no parameter"),
        ({"mesh__data": 3}, "mesh data=3"),
        ({"mesh__data": 0}, "mesh.data=0: a size is 1 or more, or -1 for the rest"),
        ({"mesh__tensor": 2}, "mesh.tensor=2: no rule of config.rules=fsdp names tensor"),
        (
            {"mesh__tensor": 2, "rules": "replicated"},
            "set config.rules=fsdp_tensor, or mesh.tensor=1$",
        ),
    ],
)
def test_wrong_values_are_named(changes, message):
    with pytest.raises(UserError, match=message):
        plan(fake_config(**changes), 3, system=FakeSystem())


def test_data_that_end_are_an_error(tmp_path):
    def end():
        raise StopIteration

    data = Trap(3, end)
    data.close = lambda: closed.append(True)
    closed: list[bool] = []
    with pytest.raises(UserError, match="the data ended after 3 of 12 steps"):
        run(tmp_path, data=data)
    assert closed
