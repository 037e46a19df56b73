"""What a run does besides learning: moments elsewhere, best checkpoints, traces, times."""

import dataclasses
import math
import re

import jax
import numpy as np
import pytest

from configs import groma
from conversion import trunks
from mg_jax import checkpoint, chips, disk, flops, models
from mg_jax.data import pipeline
from mg_jax.errors import UserError
from mg_jax.plan import plan, source
from mg_jax.progress import read_metrics
from mg_jax.sharding import make_mesh
from mg_jax.train import changed_keys, plain, train
from tests.train.fake import FakeData, FakeSystem, fake_config
from tests.train.micro import micro_config, save_tokenizer
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
    config = fake_config(optim__offload=True, rules="fsdp_tensor")
    p = plan(config, 12, system=FakeSystem(), mesh=make_mesh(2, 2, 2))
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


def test_the_best_checkpoint_starts_a_stage(tmp_path):
    states = checkpoint.TrainStates(tmp_path / "checkpoints", 2, best=1)
    x = jax.device_put(np.ones((4, 4), np.float32))
    for step, loss in ((1, 3.0), (2, 0.5), (3, 2.0), (4, 1.0)):
        states.save(step, {"a": x * step}, {"m": x}, {"step": step, "loss": loss})
    states.close()
    checkpoint.write_json(tmp_path / "config.json", {"system": "fake"})
    for name, step in ((str(tmp_path), 4), (f"{tmp_path}@best", 2)):
        config, (file,) = source(name)
        assert config == {"system": "fake"} and file.read()["a"][0, 0] == step
        assert trunks.start(name, tmp_path / "trunk") == name
    shipped = checkpoint.save_release(tmp_path / "r", {"a": x}, {"system": "fake", "model": {}})
    with pytest.raises(UserError, match="r is no training folder, and has no best checkpoint"):
        source(f"{shipped}@best")


@pytest.mark.parametrize(
    "shape,rules", [((1, 1, 1), "fsdp"), ((1, 8, 1), "fsdp"), ((2, 1, 4), "fsdp_tensor")]
)
def test_a_run_goes_on_on_another_mesh_with_nearly_the_same_losses(tmp_path, shape, rules):
    def go(folder, data, shape, rules):
        mesh = make_mesh(*shape, jax.devices()[: math.prod(shape)])
        system = FakeSystem(dropout=False)  # which follows the rows, and they lie elsewhere
        return train(fake_config(rules=rules), folder, system=system, data=data, mesh=mesh).code

    assert go(tmp_path / "a", FakeData(), (2, 2, 2), "fsdp_tensor") == 0
    assert go(tmp_path / "b", Trap(5, sigterm), (2, 2, 2), "fsdp_tensor") == 75
    assert go(tmp_path / "b", FakeData(), shape, rules) == 0
    a, b = losses(tmp_path / "a"), losses(tmp_path / "b")
    assert len(b) == 12 and a[:6] == b[:6]
    np.testing.assert_allclose(b[6:], a[6:], rtol=0, atol=1e-5)


def test_what_saves_memory_may_change_when_a_run_goes_on(tmp_path):
    config = groma.get_config("stage=alignment,size=tiny")
    checkpoint.write_json(tmp_path / "config.json", plain(config))
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    config.accumulate, config.optim.offload = 4, True
    config.model.lm.remat, config.model.vision.attention = "dots", "plain"
    config.mesh.tensor, config.rules = 2, "fsdp_tensor"
    assert changed_keys(config, tmp_path) == ""
    config.optim.eps, config.model.lm.dtype = 1e-3, "bfloat16"
    said = changed_keys(config, tmp_path)
    assert "model.lm.dtype" in said and "optim.eps" in said and said.count("->") == 2
    run(tmp_path / "a", train__steps=2)
    assert run(tmp_path / "a", train__steps=4, accumulate=2, mesh=one_device()).step == 4


def test_a_run_from_before_rows_were_grouped_does_not_go_on_in_another_order(tmp_path):
    config = groma.get_config("stage=alignment,size=tiny")
    older = plain(config)
    del older["group_by_length"]
    checkpoint.write_json(tmp_path / "config.json", older)
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    assert changed_keys(config, tmp_path) == ""
    config.group_by_length = True
    assert "group_by_length False -> True" in changed_keys(config, tmp_path)


def test_a_url_is_no_workdir(tmp_path):
    with pytest.raises(UserError, match=r"gs://b/x/y: is a URL.*gcsfuse b .*--workdir /mnt/b/x/y"):
        run("gs://b/x/y")
    with pytest.raises(UserError, match="s3://b: is a URL.*--workdir /mnt/b/runs/a"):
        disk.local("s3://b")
    assert disk.local(tmp_path) == tmp_path and disk.local("a:b").name == "a:b"


def test_a_batch_left_on_the_host_is_refused(tmp_path, monkeypatch):
    """A step takes what was placed on the mesh before it."""
    monkeypatch.setattr("mg_jax.train.sharding.put_batch", lambda batch, mesh: batch)
    with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device transfer"):
        run(tmp_path)


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
    said = capsys.readouterr().err
    assert "steps 4 to 5 are in" in said and "profile=100 steps" in said
    assert "more than are left: 2 will be traced" in said


def test_a_profile_that_comes_to_nothing_is_named(tmp_path, capsys):
    run(tmp_path / "short", train__profile=2, train__steps=3)
    assert "more than are left: 0 will be traced" in capsys.readouterr().err
    assert not (tmp_path / "short" / "profile").exists()
    with pytest.raises(UserError, match="config.train.profile=-1"):
        run(tmp_path / "negative", train__profile=-1)


def test_the_operations_of_a_real_step_are_those_of_its_model(tmp_path):
    save_tokenizer(tmp_path)

    def count(**changes):
        config = micro_config("instruction", tmp_path, **changes)
        system = models.build(config.system, config.model.to_dict())
        sizes = pipeline.batch_sizes(config, system.cfg)
        p = plan(config, 2, system=system, mesh=one_device(), sizes=sizes)
        return p, flops.model_flops(p)

    p, found = count()
    kernels = [x for path, x in p.state.params.items() if re.fullmatch("lm/blocks/.*/kernel", path)]
    rows, tokens = p.example["tokens"].shape
    least = 3 * 2 * rows * tokens * sum(math.prod(x.shape) for x in kernels)  # there and back
    assert least > 0 and least < found < 100 * least
    assert count(model__lm__remat="full")[1] == found  # what is computed twice counts once
    assert count(batch_size=2 * rows)[1] == pytest.approx(2 * found, rel=1e-3)
    twice = {k: jax.ShapeDtypeStruct((2 * rows, *x.shape[1:]), x.dtype)
             for k, x in p.example.items()}  # fmt: skip
    assert flops.model_flops(p, twice) == pytest.approx(2 * found, rel=1e-3)


def test_the_share_of_the_peak_is_that_of_the_models_operations(monkeypatch):
    p = plan(fake_config(), 12, system=FakeSystem(), mesh=one_device())
    used = flops.Utilization(p)
    short, long = ({"x": jax.ShapeDtypeStruct((n, 4), np.float32)} for n in (1, 3))
    used.done(short, 0.0)
    assert used.numbers() == {}  # when the first began is not known
    used.done(short, 2.0)
    assert used.numbers() == {"step_seconds": 2.0} and used.numbers() == {}
    monkeypatch.setattr(flops, "model_flops", lambda p, batch: 5e9 * batch["x"].shape[0])
    used._peak = 1e10
    used.done(long, 5.0)
    used.done(short, 6.0)
    used.restart()  # a compilation
    used.done(short, 100.0)
    used.restart(200.0)  # a save
    used.done(short, 201.0)
    assert used.numbers() == {"step_seconds": 5 / 3, "mfu": (15e9 + 5e9 + 5e9) / 5 / 1e10}


def test_a_batch_counts_the_operations_of_its_own_length(tmp_path, monkeypatch):
    class Ragged(FakeData):
        def __next__(self):
            batch = super().__next__()
            double = self.state in (3, 5)
            return {k: np.concatenate([v, v]) if double else v for k, v in batch.items()}

    chip = dataclasses.replace(chips.CHIPS["v5e"], flops=1e9)
    monkeypatch.setattr(flops.chips, "of_device", lambda kind: chip)
    monkeypatch.setattr(flops, "model_flops", lambda p, batch: batch["x"].shape[0])
    config = fake_config(train__steps=8, train__log_every=1)
    outcome = train(config, tmp_path, system=FakeSystem(), data=Ragged(), mesh=one_device())
    rows = outcome.plan.example["x"].shape[0]
    lines = {r["step"]: r for r in read_metrics(tmp_path / "metrics.jsonl")}
    assert "mfu" not in lines[1] and "mfu" not in lines[2]  # the second shape was compiled then
    found = {n: r["mfu"] * r["step_seconds"] * 1e9 / rows for n, r in lines.items() if "mfu" in r}
    assert {3, 5} & found.keys() and found.keys() - {3, 5}
    assert found == pytest.approx({n: 2 if n in (3, 5) else 1 for n in found})
