"""From a source to an Assistant: `load()` of a shipped name, a release, or weights of PyTorch."""

import contextlib
import functools
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mg_jax import assistants, checkpoint, quant, sharding
from mg_jax.assistant import SERVING, Assistant
from mg_jax.assistants.base import Detect
from mg_jax.errors import UserError
from mg_jax.models import System, build
from mg_jax.optim import Flat, flatten, unflatten
from mg_jax.params import Unread, place
from mg_jax.text import codecs
from mg_jax.text.bpe import load_tokenizer


def releases() -> tuple[str, ...]:
    """Names of the systems shipped with the package."""
    root = resources.files("mg_jax") / "releases"
    if not root.is_dir():
        return ()
    return tuple(sorted(p.name for p in root.iterdir() if (p / "config.json").is_file()))


def needs_picture(source: str | Path) -> bool:
    """Whether a release cannot answer without one, told before its parameters are read.

    False for what is no release, such as weights of PyTorch: then `load` tells.
    """
    try:
        config, _ = checkpoint.open_release(source)
        return not assistants.get(config["system"]).text_alone
    except UserError:
        return False


def load(
    source: str | Path,
    dtype: str = "float32",
    revision: str | None = None,
    base: str | Path | None = None,
    detector: str | Detect | None = None,
    parts: Sequence[str | Path] = (),
    *,
    quantize: str = "none",
    mesh: Any = None,
    box_limit: int | None = None,
) -> Assistant:
    """An Assistant from a shipped release's name, a release, or weights of PyTorch.

    The latter are a folder with its config.json, a file beside one, or a name on the Hugging Face
    hub (at `revision`), `base` is what delta weights are added to, and `parts` are public models
    that the file leaves parts of itself to; they are converted in memory
    (`python -m launch.convert` writes a release, which loads faster). `dtype`: of parameters and
    computation ("float32" or "bfloat16"). `detector`: what finds boxes for a system that is given
    them: a release that proposes regions, opened when first needed, or a function (`Detect`); by
    default what the release names. `quantize`: "int8" or "int4" for the language model's kernels.
    `mesh`: "auto" for all devices of this process, or a mesh: the parameters are split over it.
    `box_limit`: detected boxes of a picture from which on the best 20 a label stay, 0 for no limit;
    by default what the release names, or upstream's 100.
    What the parameters will take is printed first when that is more than a GiB. Raises UserError
    naming what is missing.
    """
    quant.check(quantize)
    if not (mesh is None or mesh == "auto" or isinstance(mesh, Mesh)):
        raise UserError(f'mesh={mesh!r}: it is "auto", or a mesh of mg_jax.sharding.make_mesh')
    grid = _all_devices() if mesh == "auto" else mesh

    def say(config: Mapping[str, Any]) -> None:
        _say_size(source, config, dtype, quantize, 1 if grid is None else grid.size)

    # the whole, or all of its bits, may be more than one device has room for
    whole = quantize == "none" and grid is None
    with contextlib.nullcontext() if whole else _host():
        config, params, tokenizer = _read(source, dtype, revision, base, parts, say)
    leaves = flatten(params)
    del params  # so that each can go when it has been used
    model = config["model"]
    for part in model.values():
        if isinstance(part, dict) and "dtype" in part:
            part["dtype"] = dtype
    if quantize != "none":
        if not any(path.startswith("lm/") for path in leaves):
            raise UserError(f"{source}: quantize={quantize!r}: it holds no language model")
        model["lm"]["quant"] = quantize
    system = build(config["system"], model)
    params = _placed(system, leaves, dtype, grid, quantize)
    codec = None
    if tokenizer is not None and "lm" in params:  # a detection release may carry a tokenizer
        codec = codecs.build(config["system"], load_tokenizer(tokenizer), config["codec"])
    if box_limit is not None:
        config = {**config, "box_limit": box_limit}
    detector = detector or config.get("detector") or None
    detect = _Proposer(detector) if isinstance(detector, str) else detector
    return Assistant(system, params, codec, config, detect, grid)


def _all_devices() -> Any:
    devices = jax.local_devices()
    return sharding.make_mesh(1, 1, len(devices), devices)


def _host() -> contextlib.AbstractContextManager:
    try:
        return jax.default_device(jax.devices("cpu")[0])
    except RuntimeError:  # JAX_PLATFORMS leaves it out
        return contextlib.nullcontext()


def _say_size(
    source: Any, config: Mapping[str, Any], dtype: str, quantize: str, devices: int
) -> None:
    """Print what a model will take, when it is much; nothing of it is read for that."""
    lm = config["model"].get("lm", {})
    sizes = ("layers", "width", "mlp", "kv_heads", "head", "max_positions")
    if not set(sizes) <= lm.keys() or lm["layers"] * lm["width"] * lm["mlp"] < 2**27:
        return
    system = build(config["system"], {**config["model"], "lm": {**lm, "quant": quantize}})
    stage = config.get("stage")
    stage = stage if stage in system.stages else system.stages[-1]
    shapes = flatten(
        sharding.unbox(sharding.abstract_params(system.init(stage), jax.random.key(0)))
    )
    if not any(path.startswith("lm/") for path in shapes):
        return
    positions = min(2048, lm["max_positions"])
    found = quant.needed(shapes, lm, dtype, positions)
    if sum(found.values()) < 2**30:
        return
    each = " on each device" if devices > 1 else ""
    print(
        f"{source}: {found['params'] / 2**30 / devices:.1f} GiB of parameters and "
        f"{found['cache'] / 2**30 / devices:.1f} GiB for a conversation of {positions} "
        f"positions{each}",
        file=sys.stderr,
    )


def _placed(system: System, leaves: Flat, dtype: str, mesh: Any, quantize: str) -> dict[str, Any]:
    """Nested arrays of `dtype`, integers and their scales as they are; split over `mesh`.

    `leaves` is used up: each is read, quantized and placed before the next, the largest first,
    while there is most room.
    """
    last = system.stages[-1]
    scales = quant.scale_shapes(system, last) if quantize != "none" else {}
    if mesh is not None:
        boxed = sharding.abstract_params(system.init(last), jax.random.key(0))
        places = flatten(sharding.param_shardings(boxed, mesh, SERVING))
        whole = NamedSharding(mesh, PartitionSpec())

    def put(path: str, x: Any) -> jax.Array:
        kept = path.endswith("/kernel_scale") or not jnp.issubdtype(x.dtype, jnp.floating)
        kind = x.dtype if kept else jnp.dtype(dtype)
        if mesh is None:
            return jnp.asarray(x, kind)
        like = jax.ShapeDtypeStruct(x.shape, kind, sharding=places.get(path, whole))
        return place(x, like)

    done: Flat = {}
    for path in sorted(leaves, key=lambda p: -math.prod(leaves[p].shape)):
        x = leaves.pop(path)
        x = np.asarray(x) if isinstance(x, Unread) else x
        for name, made in quant.quantized(path, x, scales, quantize).items():
            done[name] = put(name, made)
        jax.block_until_ready(done[path])  # or the next would be read while this one is copied
    return unflatten(done)


class _Proposer:
    """A release whose proposals are taken for detections."""

    def __init__(self, source: str):
        self.source = source

    @functools.cached_property
    def _assistant(self) -> Assistant:
        try:
            return load(self.source)
        except UserError as e:
            raise UserError(f"the detector: {e}; give detections, or another --detector") from e

    def __call__(self, images: Sequence[np.ndarray]) -> list[dict[str, Any]]:
        # A label each: proposals are suppressed already, whatever they are of.
        return [
            {"boxes": boxes, "scores": scores, "labels": [f"object {n}" for n in range(len(boxes))]}
            for boxes, scores in self._assistant.propose(images)
        ]


def _read(
    source: str | Path,
    dtype: str,
    revision: str | None,
    base: str | Path | None,
    parts: Sequence[str | Path],
    say: Callable[[Mapping[str, Any]], None],
) -> tuple[dict[str, Any], Any, Path | None]:
    """(config, nested parameters, tokenizer folder or None) of whatever `load` takes.

    Those of a release are still on disk (`params.Unread`). `say` is told the config before anything
    large is read.
    """

    def accept(config: Mapping[str, Any]) -> None:  # before gigabytes are read for nothing
        if config["system"] == "parts":
            raise UserError(
                f"{source}: holds a {config['architecture']} alone (stage {config['stage']}); a "
                "system is trained from it, with --config.init_from=FOLDER, but it cannot answer "
                "by itself"
            )
        say(config)

    path = Path(source)
    if revision is None and base is None and not parts:
        release = path.is_dir() and checkpoint.is_release(path)
        if release or (not path.exists() and str(source) in releases()):
            config, file = checkpoint.open_release(source)
            accept(config)
            words = file.path.parent / "tokenizer"
            params = unflatten(file.unread())
            return config, _whole(config, params), words if words.is_dir() else None
    import conversion

    known = path.exists() or str(source) in releases() or conversion.is_hub_name(source)
    if not known:
        raise UserError(
            f"{source}: neither a folder nor a shipped release ({', '.join(releases())}), and no "
            "file or name on the hub (org/name)"
        )
    return conversion.read(source, dtype, revision=revision, base=base, parts=parts, accept=accept)


def _whole(config: Mapping[str, Any], params: dict[str, Any]) -> dict[str, Any]:
    """The parameters, with the encoder that a release may leave to a package."""
    if "trunk" in config:
        from conversion import trunks

        return trunks.complete(config, params)
    return params
