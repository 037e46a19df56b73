"""A training run before its first step: shapes, shardings, the update, initial parameters.

`plan` computes nothing, so it also checks that a config of any size builds and lowers.
Order: abstract shapes -> shardings -> load what there is -> initialise the rest in place.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mg_jax import checkpoint, models, sharding
from mg_jax import config as configs
from mg_jax.errors import UserError
from mg_jax.optim import Flat, OptimConfig, flatten, matching, merge, optimizer, partition, schedule

UNSEEN = ("remat", "scan", "attention")  # of a model: change no number but by rounding
AS_COMPUTED = ("dtype", *UNSEEN)  # of a model: how, not what
PARTS = "parts"  # system of a release that holds one part, as launch.convert makes it


class State(flax.struct.PyTreeNode):
    """What a step changes: number of updates done, trainable parameters (flat), moments."""

    step: Any
    params: Flat
    opt: Any


@dataclasses.dataclass(frozen=True)
class Plan:
    """A run without its numbers: ShapeDtypeStructs with shardings, and the compiled-on-use step.

    `step(state, frozen, batch, key)` -> (state, metrics); `state` is donated. `init(key)` gives
    all parameters, nested, `init_opt(params)` the optimizer's. `example`: shapes of a batch.
    """

    system: Any
    stage: str
    mesh: Mesh
    rules: str
    steps: int
    state: State
    frozen: Flat
    init: Callable[[jax.Array], Any]
    init_opt: Callable[[Flat], Any]
    step: Any
    example: dict[str, Any]

    @property
    def compiles(self) -> int:
        """Programs compiled for the step so far: one per shape of batch."""
        return self.step._cache_size()

    def lower(self) -> Any:
        """The step lowered for this mesh with no array in existence."""
        key = jax.eval_shape(lambda: jax.random.key(0))
        with sharding.use(self.mesh, self.rules):
            return self.step.lower(self.state, self.frozen, self.example, key)


def plan(
    config: Any,
    steps: int,
    *,
    system: Any = None,
    mesh: Mesh | None = None,
    sizes: Mapping[str, int] | None = None,
) -> Plan:
    """Shapes, shardings and the step of a run of `steps` updates; computes nothing.

    `system` and `mesh` default to those the config describes; `sizes` are passed to the system's
    `example_batch`. Raises UserError for wrong config values: unknown keys, sizes of the model
    that do not fit together, patterns that match nothing, a batch that does not divide, an axis of
    the mesh that the rules leave idle.
    """
    system = system or models.build(config.system, config.model.to_dict())
    mesh = mesh if mesh is not None else sharding.make_mesh(**config.mesh.to_dict())
    rules, stage, rows = config.rules, config.stage, config.batch_size
    sharding.check(mesh, rules)
    for path, value in flatten(config.model.to_dict()).items():
        if path.endswith("/quant") and value != "none":
            name = path.replace("/", ".")
            raise UserError(f"config.model.{name}={value}: integers do not learn; train with none")
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    if config.accumulate < 1 or rows % (config.accumulate * ways):
        raise UserError(
            f"config.batch_size: {rows} rows do not divide over accumulate={config.accumulate} "
            f"x {ways} devices (mesh data x fsdp)"
        )
    with models.config_errors():
        init = system.init(stage)
        boxed = sharding.abstract_params(init, jax.random.key(0))
    shapes = flatten(sharding.unbox(boxed))
    places = flatten(sharding.param_shardings(boxed, mesh, rules))
    frozen_dtype = _float_dtype(config.frozen_dtype, "config.frozen_dtype")

    def described(flat, dtype):
        return {
            p: jax.ShapeDtypeStruct(
                x.shape,
                dtype if jnp.issubdtype(x.dtype, jnp.floating) else x.dtype,
                sharding=places[p],
            )
            for p, x in flat.items()
        }

    trainable, frozen = partition(shapes, config.trainable)
    params, frozen = described(trainable, jnp.float32), described(frozen, frozen_dtype)
    optim = configs.build(OptimConfig, config.optim.to_dict(), "config.optim")
    matching(shapes, optim.muon, "config.optim.muon")  # frozen ones too: a recipe names its blocks
    tx = optimizer(optim, steps, params)
    whole = NamedSharding(mesh, PartitionSpec())
    moments = jax.eval_shape(tx.init, params)
    near = _like_params(moments, places, whole)
    far = _like_params(moments, places, whole, "pinned_host") if optim.offload else near
    state = State(jax.ShapeDtypeStruct((), jnp.int32, sharding=whole), params, far)
    step = make_step(
        system.loss(stage), tx, schedule(optim, steps), config.accumulate,
        layout={p: x.sharding for p, x in params.items()},
        fetch=jax.tree.map(lambda x: x.sharding, near) if optim.offload else None,
    )  # fmt: skip
    out = jax.tree.map(lambda x: x.sharding, state), whole
    shown = dict(system.example_batch(stage, rows, **(sizes or {})))
    if config.pack and "tokens" in shown:
        shown["segments"] = shown["tokens"]  # of one shape and dtype
    batch = {
        name: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=sharding.batch_sharding(mesh, len(x.shape))
        )
        for name, x in shown.items()
    }
    return Plan(
        system, stage, mesh, rules, steps, state, frozen,
        init=lambda key: sharding.unbox(init(key)["params"]),
        init_opt=jax.jit(tx.init, out_shardings=out[0].opt),
        step=jax.jit(step, donate_argnums=0, out_shardings=out),
        example=batch,
    )  # fmt: skip


def _float_dtype(name: str, where: str) -> Any:
    try:
        dtype = jnp.dtype(name)
    except TypeError:
        dtype = None
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        raise UserError(f"{where}: {name!r} is no dtype of floats: float32 or bfloat16")
    return dtype


def make_step(
    loss: Callable,
    tx: Any,
    rate: Callable,
    accumulate: int = 1,
    *,
    layout: Mapping[str, NamedSharding] | None = None,
    fetch: Any = None,
) -> Callable:
    """One update as a pure function (state, frozen, batch, key) -> (state, metrics).

    Update number i uses the key fold_in(key, i). The gradient is taken of trainable parameters
    alone. With `accumulate` > 1 the rows are cut into so many micro-batches, one after the
    other; loss, metrics and gradient are the means over them (as transformers' Trainer does).
    `layout`: where gradients lie, each as its parameter. `fetch`: where the moments go for the
    update when the state keeps them elsewhere.
    """

    def objective(params, frozen, batch, key):
        return loss(merge(params, frozen), batch, key)

    def grad(params, frozen, batch, key):
        out, grads = jax.value_and_grad(objective, has_aux=True)(params, frozen, batch, key)
        if layout is not None:  # else each device would hold, and add up, the whole of them
            grads = jax.lax.with_sharding_constraint(grads, dict(layout))
        return out, grads

    def step(state: State, frozen: Flat, batch: dict, key: jax.Array):
        key = jax.random.fold_in(key, state.step)
        if accumulate == 1:
            (value, metrics), grads = grad(state.params, frozen, batch, key)
        else:

            def add(total, micro):
                rows, i = micro
                out = grad(state.params, frozen, rows, jax.random.fold_in(key, i))
                return jax.tree.map(jnp.add, total, out), None

            # row r of micro-batch i is row r * accumulate + i: no row leaves its device
            micro = jax.tree.map(
                lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), batch
            )
            first = jax.tree.map(lambda x: x[0], micro)
            zero = jax.tree.map(
                lambda s: jnp.zeros(s.shape, s.dtype),
                jax.eval_shape(grad, state.params, frozen, first, key),
            )
            if layout is not None:
                zero = zero[0], jax.lax.with_sharding_constraint(zero[1], dict(layout))
            total, _ = jax.lax.scan(add, zero, (micro, jnp.arange(accumulate)))
            (value, metrics), grads = jax.tree.map(lambda x: x / accumulate, total)
        opt = state.opt if fetch is None else jax.device_put(state.opt, fetch)
        updates, opt = tx.update(grads, opt, state.params)
        params = jax.tree.map(jnp.add, state.params, updates)
        squares = sum(jnp.sum(jnp.square(g)) for g in grads.values())
        metrics = {
            **metrics, "loss": value, "grad_norm": jnp.sqrt(squares), "lr": rate(state.step)
        }  # fmt: skip
        return State(state.step + 1, params, opt), metrics

    return step


def _like_params(opt: Any, places: Flat, whole: NamedSharding, memory: str | None = None) -> Any:
    """Abstract optimizer state in which a moment lies as its parameter, a counter everywhere.
    `memory`: the kind of memory for the moments, of their devices' own by default."""

    def one(path, x):
        name = path[-1].key if isinstance(path[-1], jax.tree_util.DictKey) else ""
        place = places.get(name, whole)
        if memory and name in places:
            place = place.with_memory_kind(memory)
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)

    return jax.tree_util.tree_map_with_path(one, opt)


# -- parameters at the start -------------------------------------------------------------------


def source(folder: str) -> tuple[dict[str, Any], list[checkpoint.ParamFile]]:
    """(config, unread parameters) of a release folder, shipped name, or training folder.

    A training folder stands for its newest checkpoint, and with checkpoint.BEST behind its name
    for the one of lowest running loss, which train.keep_best keeps.
    """
    path = checkpoint.find(folder.removesuffix(checkpoint.BEST))
    steps = path / "checkpoints"
    if not steps.is_dir():
        if folder.endswith(checkpoint.BEST):
            raise UserError(f"{folder}: {path} is no training folder, and has no best checkpoint")
        config, params = checkpoint.open_release(path)
        return config, [params]
    done = sorted((int(p.name) for p in steps.iterdir() if p.name.isdigit()), reverse=True)
    if not done:
        raise UserError(f"{path}: this training run has saved no checkpoint yet")
    chosen = checkpoint.best(steps, done) if folder.endswith(checkpoint.BEST) else done[0]
    files = [checkpoint.ParamFile(steps / str(chosen) / "params")]
    if (path / "frozen").is_dir():
        files.append(checkpoint.ParamFile(path / "frozen"))
    return checkpoint.read_json(path / "config.json"), files


def initial_params(p: Plan, config: Any, say: Callable[[str], None] = print) -> Flat:
    """Parameters at step 0, laid out: read from `config.init_from`, the rest initialised.

    Raises UserError when init_from is of another system or of a stage this one cannot follow,
    has a parameter the model lacks or in another shape, or lacks one of `config.init_required`.
    """
    target = {**p.frozen, **p.state.params}
    allowed = " or ".join(config.init_stages)
    if not config.init_from and config.init_required:
        raise UserError(
            f"stage={p.stage} starts from a checkpoint of stage {allowed}: pass its folder, "
            "--config.init_from=FOLDER (a release, or the workdir of that stage)"
        )
    found: Flat = {}
    rows = dict(config.init_grown)
    if unknown := sorted(rows.keys() - target.keys()):
        raise UserError(f"config.init_grown: the model has no {unknown[0]}")
    for folder in filter(None, config.init_from.split(",")):
        origin, files = source(folder)
        if origin.get("system") not in (config.system, PARTS):
            raise UserError(
                f"config.init_from: {folder} is a checkpoint of system {origin.get('system')!r}, "
                f"not of {config.system!r}"
            )
        if config.init_stages and origin.get("stage") not in config.init_stages:
            raise UserError(
                f"config.init_from: {folder} is a checkpoint of stage {origin.get('stage')!r}; "
                f"stage={p.stage} starts from one of stage {allowed}"
            )
        kind = origin.get("architecture") if origin.get("system") == PARTS else None
        moved = {part: here for name, part, here in config.init_parts if name == kind}

        def ours(path, moved=moved):
            part, slash, rest = path.partition("/")
            return moved.get(part, part) + slash + rest

        model = {ours(part): values for part, values in origin.get("model", {}).items()}
        mine = config.model.to_dict()
        _report_difference(model, mine, folder, say)
        unlike = (r for r, field in config.init_alike if _unlike(model, mine, field))
        behind = (*config.init_ignore, *unlike)
        for file in files:
            theirs = {ours(p): p for p in file.shapes}
            unused = {p for p in theirs if any(re.fullmatch(r, p) for r in behind)}
            grow = {}
            for path, name in theirs.items():
                have, axis = file.shapes[name], rows.get(path)
                if path in unused:
                    continue
                if path not in target:
                    raise UserError(
                        f"config.init_from: {folder} has {path}, which the model lacks: compare "
                        "config.model with its config.json"
                    )
                if axis is not None and _short(have, target[path], axis):
                    grow[name] = axis
                    there, here = have.shape[axis], target[path].shape[axis]
                    say(
                        f"note: {path} has {there} rows in {folder} and {here} in the model: the "
                        f"last {here - there} begin as the mean of the others"
                    )
                elif have.shape != target[path].shape:
                    raise UserError(
                        f"config.init_from: {path} is {have.shape} in {folder} and "
                        f"{target[path].shape} in the model: compare config.model with its "
                        "config.json"
                    )
            used = target.keys() - unused  # what is ignored may have any shape
            like = {n: target[p] if p in used else file.shapes[n] for p, n in theirs.items()}
            values = file.read(like, grow)
            found |= {p: values[n] for p, n in theirs.items() if p not in unused}
    for origin, copy in config.init_copy:
        for path, x in target.items():
            twin = found.get(origin + path.removeprefix(copy))
            if path.startswith(f"{copy}/") and path not in found and twin is not None:
                found[path] = jax.device_put(jnp.array(twin, x.dtype, copy=True), x.sharding)
    missing = {path: x for path, x in target.items() if path not in found}
    for pattern in config.init_required:
        lacking = matching(target, [pattern], "config.init_required") & missing.keys()
        if lacking:
            raise UserError(
                f"config.init_from: {config.init_from} lacks {len(lacking)} parameters, "
                f"{sorted(lacking)[0]} first: stage={p.stage} starts from a checkpoint of stage "
                f"{allowed}"
            )
    if missing:
        groups = sorted({path.split("/")[0] for path in missing})
        say(f"initialised: {len(missing)} of {len(target)} arrays, in {', '.join(groups)}")

        means = {path: found[table] for path, table in config.init_mean if table in found}

        def fresh(key, means):
            flat = flatten(p.init(key))
            for path, table in means.items():
                mean = table.astype(jnp.float32).mean(0, keepdims=True)
                flat[path] = jnp.broadcast_to(mean, flat[path].shape)
            return {path: flat[path].astype(x.dtype) for path, x in missing.items()}

        places = {path: x.sharding for path, x in missing.items()}
        key = jax.random.fold_in(jax.random.key(config.seed), 0)
        # a program that runs once: optimising it costs a CPU four times what it takes to compile
        quick = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
        found |= jax.jit(fresh, out_shardings=places, compiler_options=quick)(key, means)
    return found


def _short(have: Any, want: Any, axis: int) -> bool:
    """Whether a stored array lacks some of the wanted one's last entries along `axis`, and differs
    in nothing else."""
    size = have.shape[axis : axis + 1]
    rest = (*want.shape[:axis], *size, *want.shape[axis + 1 :])
    return have.shape == rest and len(rest) == len(want.shape) and size[0] < want.shape[axis]


def _report_difference(theirs: Mapping, ours: Mapping, folder: str, say, where="model") -> None:
    for key in sorted(theirs.keys() & ours.keys()):
        a, b = theirs[key], ours[key]
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            _report_difference(a, b, folder, say, f"{where}.{key}")
        elif _plain(a) != _plain(b) and key not in AS_COMPUTED:
            say(f"note: {where}.{key} is {b!r}, but {folder} was trained with {a!r}")


def _unlike(theirs: Mapping, ours: Mapping, field: str) -> bool:
    """Whether a checkpoint's model has another value of a field; two parts count as alike."""
    a, b = theirs.get(field, ours[field]), ours[field]
    return not (isinstance(a, Mapping) and isinstance(b, Mapping)) and _plain(a) != _plain(b)


def _plain(x: Any) -> Any:
    return json.loads(json.dumps(x))
