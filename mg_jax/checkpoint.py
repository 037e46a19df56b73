"""Parameters on disk: train states, which resume a run, and releases, which `load()` opens.

    workdir/config.json           the run's whole config
    workdir/frozen/               frozen parameters, written once at the start
    workdir/checkpoints/<step>/   params (trainable), opt, meta (step, data position); the newest N
    release/config.json           system, stage, model, codec, preprocessing, provenance
    release/params.safetensors    or params/ (Orbax) from 1 GiB on; conversion/ writes it too
    release/tokenizer/ README.md  tokenizer files, model card

Frozen parameters are kept beside the checkpoints, not in them: a run neither writes 14 GB of
unchanged numbers at every save nor depends on the folder it was started from. Trees are flat by
path ("a/b/c") on disk. Orbax restores them onto any mesh; a folder gets its final name only when
it is whole.
"""

import json
import logging
import math
import shutil
from collections.abc import Callable, Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from mg_jax import processes
from mg_jax.disk import disk_errors, need_space, read_json, replace
from mg_jax.errors import UserError
from mg_jax.optim import Flat, flatten, unflatten
from mg_jax.params import ParamFile, save_params, stored

FORMAT = "mg_jax release"
BEST = "@best"  # behind the name of a training folder: its checkpoint of lowest running loss
SMALL = 2**30  # bytes: below, a release is one safetensors file
_TMP = ".orbax-checkpoint-tmp"


def _quiet(record: logging.LogRecord) -> bool:
    return "orbax" not in record.pathname  # what it logs as an error it also raises


class TrainStates:
    """The newest `keep` train states under `folder`, and the `best` of lowest loss, written in the
    background.

    A save that fails leaves the earlier ones; a half-written one is passed over with a warning.
    """

    def __init__(
        self, folder: Path, keep: int = 2, warn: Callable[[str], None] = print, best: int = 0
    ):
        self.folder, self._warn = Path(folder).absolute(), warn
        logger = logging.getLogger("absl")
        if _quiet not in logger.filters:
            logger.addFilter(_quiet)
        for part in self._unfinished():
            warn(f"{part}: half-written checkpoint, not used")
        with disk_errors(self.folder):
            self._manager = ocp.CheckpointManager(
                self.folder,
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=_kept(keep, best),
                    best_fn=_loss if best else None,  # without it Orbax leaves the loss out
                    cleanup_tmp_directories=True,
                ),
            )

    def steps(self) -> list[int]:
        """Steps that have a whole checkpoint, in order."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, params: Flat, opt: Any, meta: Mapping[str, Any]) -> None:
        """Write a train state; returns once the arrays may be donated.

        Raises UserError when the disk is full, now or at the next save or wait.
        """
        if step in self._manager.all_steps():
            return
        with self._guard():
            self._manager.wait_until_finished()  # the last save counts as used space
            need_space(self.folder, stored((params, opt)))
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    params=ocp.args.StandardSave(params),
                    opt=ocp.args.StandardSave(opt),
                    meta=ocp.args.JsonSave(dict(meta)),
                ),
                metrics={"loss": float(meta.get("loss", math.inf))},
            )

    def wait(self) -> None:
        """Until everything is on disk. Raises UserError as `save`."""
        with self._guard():
            self._manager.wait_until_finished()

    def restore(self, params: Flat, opt: Any) -> tuple[Flat, Any, dict[str, Any]] | None:
        """(params, opt, meta) of the newest whole checkpoint, None if there is none.

        `params`, `opt`: ShapeDtypeStructs with shardings: of any mesh. A checkpoint that one of
        the processes cannot read is set aside as `<step>.broken` with a warning once an earlier
        one could be read by all. Raises UserError when there are checkpoints and none can be.
        """
        broken: list[Path] = []
        reason = ""
        for step in reversed(self.steps()):
            found: Any = None
            fault = ""
            try:
                # not through the manager, in which the others would wait for one that fails
                found = ocp.CompositeCheckpointHandler().restore(
                    self._manager.directory / str(step),
                    args=ocp.args.Composite(
                        params=ocp.args.StandardRestore(params),
                        opt=ocp.args.StandardRestore(opt),
                        meta=ocp.args.JsonRestore(),
                    ),
                )
                if found["meta"] is None:
                    raise ValueError("meta is missing")
            except Exception as e:
                fault = str(e).split("\n")[0][:200] or type(e).__name__
            if not processes.all_agree(not fault):
                broken.append(self.folder / str(step))
                reason = fault or "another process cannot read it"
                continue
            for part in broken:
                self._warn(f"{part}: cannot be read, using step {step} instead ({reason})")
                if jax.process_index() == 0:
                    part.rename(part.with_name(part.name + ".broken"))
            if broken:
                processes.together("broken checkpoints set aside")
                self._manager.reload()
            return found["params"], found["opt"], found["meta"]
        if broken:
            raise UserError(
                f"{self.folder}: none of the checkpoints {[p.name for p in broken]} can be read "
                f"({reason}); remove them to start afresh, or use another --workdir"
            )
        return None

    def close(self) -> None:
        """Wait, then release the background threads."""
        self.wait()
        self._manager.close()

    def _unfinished(self) -> list[Path]:
        return sorted(self.folder.glob(f"*{_TMP}*")) if self.folder.is_dir() else []

    def _guard(self):
        def mend():
            for part in self._unfinished():
                shutil.rmtree(part, ignore_errors=True)
            kept = sorted(int(p.name) for p in self.folder.glob("*") if p.name.isdigit())
            return (
                f"Earlier checkpoints are kept (steps {kept}): free some space and run the "
                "same command again to continue"
            )

        return disk_errors(self.folder, mend)


def best(folder: Path, steps: Iterable[int]) -> int:
    """Which of the `steps` saved in `folder` has the lowest running loss, the newest of equals."""

    def order(step: int) -> tuple[float, int]:
        meta = read_json(folder / str(step) / "meta" / "metadata")
        return float(meta.get("loss", math.inf)), -step

    return min(steps, key=order)


def _loss(metrics: Mapping[str, float]) -> float:
    return metrics["loss"]


def _kept(newest: int, best: int) -> Any:
    policy = ocp.checkpoint_managers.preservation_policy
    latest = policy.LatestN(newest)
    if not best:
        return latest
    lowest = policy.BestN(
        get_metric_fn=_loss, reverse=True, n=best,
        keep_checkpoints_without_metrics=False,
    )  # fmt: skip
    return policy.AnyPreservationPolicy([latest, lowest])


def write_json(path: Path, content: Any) -> None:
    """Write JSON under a temporary name first, so that the file is whole or absent."""
    if jax.process_index() == 0:
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(path.name + ".tmp")
            part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            part.rename(path)


# -- releases ----------------------------------------------------------------------------------


def find(source: str | Path) -> Path:
    """The folder of a shipped release's name or of a path. Raises UserError if there is none."""
    path = Path(source)
    if path.is_dir():
        return path.absolute()
    root = resources.files("mg_jax") / "releases"
    names = sorted(p.name for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
    if str(source) in names:
        with resources.as_file(root / str(source)) as folder:
            return folder
    shipped = f" and no shipped release ({', '.join(names)})" if names else ""
    raise UserError(f"{source}: no such folder{shipped}")


def is_release(folder: Path) -> bool:
    """Whether a folder is a release or a training folder, and not one of PyTorch weights."""
    try:
        stated = read_json(folder / "config.json").get("format") == FORMAT
    except UserError:
        stated = False
    return stated or (folder / "checkpoints").is_dir()


def save_release(
    folder: str | Path,
    params: Mapping[str, Any],
    config: Mapping[str, Any],
    tokenizer: str | Path | None = None,
    card: str = "",
    *,
    dtype: str = "bfloat16",
    format: Literal["auto", "safetensors", "orbax"] = "auto",
) -> Path:
    """Write a release, replacing one that is there; returns its folder.

    `params` nested or flat, floats cast to `dtype`. `config` needs at least "system" and "model".
    `tokenizer`: folder whose files are copied. `format` "auto": one safetensors file below
    1 GiB, else Orbax. Raises UserError when the disk is full.
    """
    folder = Path(folder).absolute()
    part = folder.with_name(folder.name + ".tmp")
    flat = {p: jnp.asarray(x) for p, x in flatten(params).items()}
    floats = {p for p, x in flat.items() if jnp.issubdtype(x.dtype, jnp.floating)}
    flat = {p: x.astype(dtype) if p in floats else x for p, x in flat.items()}
    size = sum(math.prod(x.shape) * x.dtype.itemsize for x in flat.values())
    if format == "auto":
        format = "safetensors" if size < SMALL else "orbax"
    first = jax.process_index() == 0
    if format == "safetensors":
        flat = {p: _whole(x) for p, x in flat.items()}
    with disk_errors(folder):
        need_space(folder, stored(flat))
        try:
            if first:
                shutil.rmtree(part, ignore_errors=True)
                part.mkdir(parents=True)
                write_json(part / "config.json", {"format": FORMAT, "version": 1, **config})
                (part / "README.md").write_text(card, encoding="utf-8")
                if tokenizer is not None:
                    shutil.copytree(tokenizer, part / "tokenizer")
            processes.together("release")
            if format == "orbax":
                save_params(part / "params", flat)
            elif first:
                from safetensors.numpy import save_file

                save_file(
                    dict(jax.device_get(flat)), part / "params.safetensors", {"format": "mg_jax"}
                )
                (part / "params.safetensors").chmod(0o644)
            if first:
                replace(part, folder)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
    processes.together("release written")
    return folder


def open_release(folder: str | Path, system: str | None = None) -> tuple[dict[str, Any], ParamFile]:
    """(config, unread parameters) of a release folder or shipped name; errors as load_release."""
    folder = find(folder)
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: not a release folder (it has no config.json)")
    config = read_json(folder / "config.json")
    if config.get("format") != FORMAT:
        if (folder / "checkpoints").is_dir():
            raise UserError(f"{folder}: a training folder; its release is {folder / 'release'}")
        if "model_type" in config:
            raise UserError(
                f"{folder}: a PyTorch checkpoint (model_type {config['model_type']!r}): convert "
                "it with python -m launch.convert"
            )
        raise UserError(f"{folder}: config.json is not of a release ('format' is missing)")
    for key in ("system", "model"):
        if key not in config:
            raise UserError(f"{folder / 'config.json'}: {key!r} is missing")
    if system is not None and config["system"] != system:
        raise UserError(
            f"{folder}: a checkpoint of system {config['system']!r}, but {system!r} is asked for"
        )
    paths = [folder / "params.safetensors", folder / "params"]
    path = next((p for p in paths if p.exists()), None)
    if path is None:
        raise UserError(f"{folder}: params.safetensors (or params/) is missing")
    return config, ParamFile(path)


def load_release(
    folder: str | Path, system: str | None = None, abstract: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], dict[str, Any], Path | None]:
    """(config, nested parameters, tokenizer folder or None) of a release folder or shipped name.

    `abstract`: nested or flat ShapeDtypeStructs that give dtype and sharding; without it the
    arrays come in the stored dtype. Raises UserError for a folder that is no release, a missing
    file, or a checkpoint of another system than `system`.
    """
    config, params = open_release(folder, system)
    tokenizer = params.path.parent / "tokenizer"
    flat = params.read(None if abstract is None else flatten(abstract))
    return config, unflatten(flat), tokenizer if tokenizer.is_dir() else None


def _whole(x: jax.Array) -> np.ndarray:
    if not x.is_fully_addressable:  # of one that is, each process would add its own copy
        return np.asarray(multihost_utils.process_allgather(x, tiled=True))
    return np.ascontiguousarray(x)
