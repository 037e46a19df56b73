"""The one trainer: stages and systems differ by their config alone.

    workdir/config.json, frozen/, checkpoints/   see checkpoint.py
    workdir/metrics.jsonl, tensorboard/, loss.png
    workdir/release/                             written when the run is finished (export.py)

The same config, mesh, kind of device and process count give the same numbers, whether the run
was interrupted or not: update i takes batch i of the data's one order and the key fold_in(key, i).
"""

import contextlib
import dataclasses
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from mg_jax import checkpoint, disk, flops, models, processes, progress, sharding
from mg_jax import config as configs
from mg_jax.errors import UserError
from mg_jax.optim import Flat, flatten, merge
from mg_jax.params import place
from mg_jax.plan import UNSEEN, Plan, State, initial_params, plan

# What may change when a run is resumed, with all below it, as the keys plan.UNSEEN of a model may,
# and everything that begins with "init_", which is done with by then.
FREE = ("train", "mesh", "rules", "loader", "accumulate", "optim/offload")
UNTRACED = 3  # steps before a profile: the first ones compile


class Diverged(RuntimeError):
    """The loss or the gradient is no finite number any more."""


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The section `train`; every default is in configs/base.py.

    steps: updates in all; 0 means `epochs` over the data. A checkpoint every save_steps updates
    and every save_minutes (0: never), at a signal and at the end; the newest `keep` stay, and the
    `keep_best` of lowest running loss, of which init_from=WORKDIR@best takes the best. profile:
    steps, from the fourth on, that are traced into workdir/profile.
    """

    steps: int
    epochs: float
    log_every: int
    save_steps: int
    save_minutes: float
    keep: int
    tensorboard: bool
    keep_best: int = 0
    profile: int = 0


@dataclasses.dataclass
class Outcome:
    """How a run ended: `code` 0 finished, 75 after SIGTERM, 130 after Ctrl-C; and its state."""

    code: int
    step: int
    plan: Plan
    state: State
    frozen: Flat

    @property
    def params(self) -> dict[str, Any]:
        """All parameters, nested."""
        return merge(self.state.params, self.frozen)


def train(
    config: Any, workdir: str | Path, *, system: Any = None, data: Any = None, mesh: Any = None
) -> Outcome:
    """Run, or resume, the training that `config` describes; see the module for the files.

    `data`: an iterator of host batches (this process's rows) with `state` (int), `restore(int)`
    and `epoch_size` (rows of one pass); by default what the config says. SIGTERM and Ctrl-C save
    and return. Raises UserError for bad input, Diverged when the loss is not finite (the batch
    is then in workdir/bad_batch.npz).
    """
    workdir = disk.local(workdir)
    # with several processes jax listens for SIGTERM, so that all of them stop at the same step
    with progress.Stop(term=not processes.several()) as stop:
        return _Run(config, workdir, system, data, mesh, stop).run()


class _Run:
    def __init__(self, config, workdir, system, data, mesh, stop):
        self.config, self.workdir, self.stop = config, workdir, stop
        self.settings = configs.build(TrainConfig, config.train.to_dict(), "config.train")
        if self.settings.profile < 0:
            raise UserError(
                f"config.train.profile={self.settings.profile}: is a number of steps, 0 for none"
            )
        self.first = jax.process_index() == 0
        self.bar: progress.Bar | None = None
        self.traced: int | None = None  # first step of the trace that is being recorded
        self.metrics: progress.Metrics | None = None
        changed = changed_keys(config, workdir)
        if changed:
            raise UserError(changed)
        system = system or models.build(config.system, config.model.to_dict())
        sizes = {}
        if data is None:
            from mg_jax.data import pipeline

            data = pipeline.open_batches(config, system.cfg)
            sizes = pipeline.batch_sizes(config, system.cfg)
        self.data = data
        steps = total_steps(self.settings, data, config.batch_size)
        self.plan = plan(config, steps, system=system, mesh=mesh, sizes=sizes)
        self.states = checkpoint.TrainStates(
            workdir / "checkpoints", self.settings.keep, self._say, self.settings.keep_best
        )
        self.running: float | None = None  # mean loss of about the last hundred steps
        self.utilization = flops.Utilization(self.plan)

    def run(self) -> Outcome:
        try:
            self._start()
            code = self._loop() if self.step < self.plan.steps else 0
            self.states.close()
        except BaseException:
            with contextlib.suppress(Exception):  # finish writing, but show the first error
                self.states.close()
            raise
        finally:
            if self.metrics:
                self.metrics.close()
            if hasattr(self.data, "close"):
                self.data.close()
        if self.first:
            progress.draw_curve(self.workdir, f"{self.config.system}, stage {self.plan.stage}")
        return Outcome(code, self.step, self.plan, self.state, self.frozen)

    def _start(self) -> None:
        p, folder = self.plan, self.workdir / "frozen"
        found = self.states.restore(p.state.params, p.state.opt)
        if found is not None:
            params, opt, meta = found
            self.step, self.spent = int(meta["step"]), float(meta["seconds"])
            self.running = meta.get("loss")
            self.data.restore(int(meta["data"]))
            self.frozen = checkpoint.ParamFile(folder).read(p.frozen) if p.frozen else {}
            if self.step < p.steps:
                self._say(f"resuming {self.workdir} at step {self.step}")
                if (before := int(meta.get("steps", p.steps))) != p.steps:
                    self._say(
                        f"note: {p.steps} steps instead of {before}: from here on the learning "
                        "rate follows the new schedule"
                    )
            else:
                self._say(f"{self.workdir}: finished at step {self.step}, nothing left to do")
        else:
            flat = initial_params(p, self.config, self._say)
            self.step, self.spent = 0, 0.0
            self.frozen = {path: flat[path] for path in p.frozen}
            params = {path: flat[path] for path in p.state.params}
            opt = p.init_opt(params)
            if self.frozen:
                checkpoint.save_params(folder, self.frozen)
        for source in getattr(self.data, "sources", ()):
            self._say(source.summary())
            self._report(source.problems)
        self.state = State(
            place(np.asarray(self.step, np.int32), p.state.step), params, opt
        )  # one counter for schedule, keys and data
        checkpoint.write_json(self.workdir / "config.json", plain(self.config))

    def _loop(self) -> int:
        p, cfg = self.plan, self.settings
        key = jax.jit(  # on all devices at once: no process can put it on another's
            lambda: jax.random.fold_in(jax.random.key(self.config.seed), 1),
            out_shardings=p.state.step.sharding,
        )()
        name = f"{self.config.system} {p.stage}"
        if self.first:
            self.metrics = progress.Metrics(self.workdir, self.step, cfg.tensorboard)
        saved, waiting, compiled = time.monotonic(), None, 1
        self.began, self.first_step = time.monotonic(), self.step
        if cfg.profile > (room := max(0, p.steps - self.step - UNTRACED)):
            self._say(
                f"note: config.train.profile={cfg.profile} steps, from the fourth on, are more "
                f"than are left: {room} will be traced"
            )
        with (
            progress.Bar(name, self.step, p.steps, show=self.first) as self.bar,
            sharding.use(p.mesh, p.rules),
        ):
            code, _ = self._agree(self.stop.code)
            while self.step < p.steps and not code:
                batch = self._next()
                placed = sharding.put_batch(batch, p.mesh)
                self._trace()
                with jax.transfer_guard_host_to_device("disallow"):
                    self.state, metrics = p.step(self.state, self.frozen, placed, key)
                self.step += 1
                if p.compiles > compiled:
                    compiled = p.compiles
                    self.utilization.restart()
                    self._say(f"step {self.step}: compiled for a new shape of batch ({compiled})")
                if waiting:  # read the last step's numbers while this one is computed
                    self._settle(*waiting)
                shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), placed)
                waiting = self.step, batch, shapes, metrics
                by_time = cfg.save_minutes and time.monotonic() - saved > 60 * cfg.save_minutes
                code, by_time = self._agree(self.stop.code, bool(by_time))
                by_step = cfg.save_steps and self.step % cfg.save_steps == 0
                if code or by_time or by_step or self.step == p.steps:
                    self._settle(*waiting)
                    waiting = None
                    self._save()
                    saved = time.monotonic()
                    self.utilization.restart(saved)
            self._stop_trace()  # one that the end, or a signal, came before
            if code:
                if not self.states.steps():  # stopped before the first step
                    self._save()
                self._say(f"saved step {self.step}: run the same command again to continue")
        return int(code)

    def _trace(self) -> None:
        """Record the steps that `profile` asks for; TensorBoard and Perfetto open the files."""
        done, count = self.step - self.first_step - UNTRACED, self.settings.profile
        if count and done == 0:
            jax.profiler.start_trace(str(self.workdir / "profile"), create_perfetto_trace=True)
            self.traced = self.step + 1
        elif done == count:
            self._stop_trace()

    def _stop_trace(self) -> None:
        if self.traced is not None:
            jax.block_until_ready(self.state)
            jax.profiler.stop_trace()
            self.utilization.restart()
            self._say(f"steps {self.traced} to {self.step} are in {self.workdir}/profile")
            self.traced = None

    def _report(self, problems: list[str]) -> None:
        """Add malformed records to the workdir's list of them, each once."""
        path = self.workdir / processes.own("data_problems.txt")
        known = set(path.read_text(encoding="utf-8").splitlines()) if path.exists() else set()
        lines = [line for p in problems if (line := " ".join(p.split())) not in known]
        if lines:
            with checkpoint.disk_errors(path), path.open("a", encoding="utf-8") as file:
                file.writelines(line + "\n" for line in dict.fromkeys(lines))
            self._say(f"{len(lines)} malformed records of the data are listed in {path}")

    def _next(self) -> dict[str, np.ndarray]:
        try:
            return next(self.data)
        except StopIteration:
            raise UserError(
                f"config.data: the data ended after {self.step} of {self.plan.steps} steps: "
                "lower config.train.steps or give more data"
            ) from None
        finally:
            if problems := getattr(self.data, "problems", None):
                self._report(problems)
                problems.clear()

    def _settle(self, step: int, batch: dict, shapes: Any, metrics: dict[str, jax.Array]) -> None:
        """Look at the numbers of a finished step: stop if they are not finite, log them. `shapes`:
        of the batch of all processes."""
        values = {k: float(v) for k, v in jax.device_get(metrics).items()}
        self.utilization.done(shapes, time.monotonic())
        loss, norm = values.pop("loss"), values.pop("grad_norm")
        if not (math.isfinite(loss) and math.isfinite(norm)):
            path = self.workdir / processes.own("bad_batch.npz")
            with checkpoint.disk_errors(path):
                np.savez(path, **{k.replace("/", "."): v for k, v in flatten(batch).items()})
            raise Diverged(
                f"step {step}: the loss is {loss} and the gradient's norm {norm}; this batch is in "
                f"{path}, whole checkpoints are at steps {self.states.steps()}. Lower "
                "config.optim.lr, or look at the batch"
            )
        assert self.bar is not None
        self.bar.update(step, loss)
        self.running = loss if self.running is None else 0.99 * self.running + 0.01 * loss
        if self.metrics and (step % self.settings.log_every == 0 or step in (1, self.plan.steps)):
            more = {"steps_per_second": self.bar.speed, "compiles": self.plan.compiles}
            more |= self.utilization.numbers()
            more |= getattr(self.data, "counts", {})  # of examples that were refused, say
            self.metrics.write(step, {"loss": loss, "grad_norm": norm, **values, **more})

    def _save(self) -> None:
        if self.metrics:
            self.metrics.sync()
        seconds = self.spent + time.monotonic() - self.began
        meta = {"step": self.step, "data": int(self.data.state), "seconds": seconds}
        meta |= {"steps": self.plan.steps}
        if self.running is not None:
            meta["loss"] = self.running
        self.states.save(self.step, self.state.params, self.state.opt, meta)

    def _agree(self, code: int, save: bool = False) -> tuple[int, bool]:
        """All processes stop and save at the same step: at the one that jax finds after SIGTERM,
        else asked at every tenth."""
        if not processes.several():
            return code, save
        if processes.stopping(self.step):
            return progress.PREEMPTED, True
        if self.step % 10:
            return 0, False
        asked = multihost_utils.process_allgather(np.array([code, save], np.int32))
        return int(asked[:, 0].max()), bool(asked[:, 1].max())

    def _say(self, text: str) -> None:
        if self.bar is not None:
            self.bar.say(text)
        elif self.first:
            print(text, file=sys.stderr, flush=True)


def total_steps(settings: TrainConfig, data: Any, rows: int) -> int:
    """Updates of `rows` rows in all. Raises UserError when steps and epochs give none."""
    steps = settings.steps or int(settings.epochs * data.epoch_size) // rows
    if steps < 1:
        raise UserError(
            f"config.train: steps={settings.steps} and epochs={settings.epochs} give no step; "
            "set config.train.steps"
        )
    return steps


def plain(config: Any) -> dict[str, Any]:
    """A ConfigDict as JSON reads it back: dicts, lists, numbers, strings."""
    return json.loads(json.dumps(config.to_dict()))


def changed_keys(config: Any, workdir: Path) -> str:
    """Why `workdir` cannot be resumed with `config`, or "" if it can or holds no checkpoint."""
    states = workdir / "checkpoints"
    if not (workdir / "config.json").exists() or not states.is_dir():
        return ""
    if not any(p.name.isdigit() for p in states.iterdir()):
        return ""
    old, new = flatten(checkpoint.read_json(workdir / "config.json")), flatten(plain(config))
    if old.get("stage") != new.get("stage") or old.get("system") != new.get("system"):
        return (
            f"{workdir} holds a run of {old.get('system')} stage={old.get('stage')}: use another "
            f"--workdir for stage={new.get('stage')} (and --config.init_from={workdir} to start "
            "from that run)"
        )
    old.setdefault("optim/muon", [])  # runs from before that key had AdamW's moments alone
    old.setdefault("group_by_length", False)  # and shuffled their rows alone
    old.setdefault("pack", False)
    # any other key on one side alone belongs to another version of the code, not to another config
    changes = [
        f"{k.replace('/', '.')} {old[k]!r} -> {new[k]!r}"
        for k in sorted(old.keys() & new.keys())
        if old[k] != new[k] and not _free(k)
    ]
    if not changes:
        return ""
    return (
        f"{workdir} was started with another config: {'; '.join(changes)}. Use the old values to "
        "resume, or another --workdir"
    )


def _free(key: str) -> bool:
    unseen = key.startswith("model/") and key.rpartition("/")[2] in UNSEEN
    return unseen or key.startswith("init_") or f"{key}/".startswith(tuple(f"{k}/" for k in FREE))
