"""What a user calls: `load()` a release, `chat()` about a picture, `answer()` many questions."""

import contextlib
import copy
import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from mg_jax import assistants, checkpoint, quant, sharding
from mg_jax.answer import Answer
from mg_jax.assistants.base import Detect, Proposals, Row
from mg_jax.errors import UserError
from mg_jax.example import Query, Region, Turn
from mg_jax.generate import Generated, Sampling, decode_loop
from mg_jax.models import System, build
from mg_jax.optim import flatten, unflatten
from mg_jax.text import codecs, markup
from mg_jax.text.bpe import load_tokenizer

SERVING = "fsdp_tensor"  # rules of a mesh to answer on: heads split, not rows
BATCHES = (1, 2, 4, 8, 16, 32)  # rows are padded up to one of these: few compiled programs


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
) -> "Assistant":
    """An Assistant from a shipped release's name, a release, or weights of PyTorch.

    The latter are a folder with its config.json, a file beside one, or a name on the Hugging Face
    hub (at `revision`), `base` is what delta weights are added to, and `parts` are public models
    that the file leaves parts of itself to; they are converted in memory
    (`python -m launch.convert` writes a release, which loads faster). `dtype`: of parameters and
    computation ("float32" or "bfloat16"). `detector`: what finds boxes for a system that is given
    them: a release that proposes regions, opened when first needed, or a function (`Detect`); by
    default what the release names. `quantize`: "int8" or "int4" for the language model's kernels.
    `mesh`: "auto" for all devices of this process, or a mesh: the parameters are split over it.
    What the parameters will take is printed first when that is more than a GiB. Raises UserError
    naming what is missing.
    """
    quant.check(quantize)
    grid = _all_devices() if mesh == "auto" else mesh

    def say(config: Mapping[str, Any]) -> None:
        _say_size(source, config, dtype, quantize, 1 if grid is None else grid.size)

    if quantize == "none" and grid is None:
        config, params, tokenizer = _read(source, dtype, revision, base, parts, say)
    else:  # the whole, or all of its bits, may be more than one device has room for
        with _host():
            config, params, tokenizer = _read(source, dtype, revision, base, parts, say)
            params = jax.tree.map(np.asarray, params)
    model = config["model"]
    for part in model.values():
        if isinstance(part, dict) and "dtype" in part:
            part["dtype"] = dtype
    if quantize != "none":
        if "lm" not in params:
            raise UserError(f"{source}: quantize={quantize!r}: it holds no language model")
        model["lm"]["quant"] = quantize
    system = build(config["system"], model)
    if quantize != "none":
        scales = quant.scale_shapes(system, system.stages[-1])
        params = quant.quantized(params, scales, quantize)
    params = _placed(system, params, dtype, grid)
    codec = None
    if tokenizer is not None and "lm" in params:  # a detection release may carry a tokenizer
        codec = codecs.get(config["system"])(load_tokenizer(tokenizer), **config["codec"])
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
    system = build(config["system"], config["model"])
    stage = config.get("stage")
    stage = stage if stage in system.stages else system.stages[-1]
    shapes = flatten(
        sharding.unbox(sharding.abstract_params(system.init(stage), jax.random.key(0)))
    )
    if not any(path.startswith("lm/") for path in shapes):
        return
    positions = min(2048, lm["max_positions"])
    found = quant.needed(shapes, lm, dtype, quantize, positions)
    if sum(found.values()) < 2**30:
        return
    each = " on each device" if devices > 1 else ""
    print(
        f"{source}: {found['params'] / 2**30 / devices:.1f} GiB of parameters and "
        f"{found['cache'] / 2**30 / devices:.1f} GiB for a conversation of {positions} "
        f"positions{each}",
        file=sys.stderr,
    )


def _placed(system: System, params: Any, dtype: str, mesh: Any) -> Any:
    """Parameters as arrays of `dtype`, integers and their scales as they are; split over `mesh`."""

    def kind(path, x):
        kept = path.endswith("/kernel_scale") or not jnp.issubdtype(x.dtype, jnp.floating)
        return x.dtype if kept else jnp.dtype(dtype)

    flat = flatten(params)
    if mesh is None:
        return unflatten({p: jnp.asarray(x, kind(p, x)) for p, x in flat.items()})
    boxed = sharding.abstract_params(system.init(system.stages[-1]), jax.random.key(0))
    places = flatten(sharding.param_shardings(boxed, mesh, SERVING))
    whole = NamedSharding(mesh, PartitionSpec())
    return unflatten({
        p: checkpoint.place(
            x, jax.ShapeDtypeStruct(x.shape, kind(p, x), sharding=places.get(p, whole))
        )
        for p, x in flat.items()
    })  # fmt: skip


class _Proposer:
    """A release whose proposals are taken for detections."""

    def __init__(self, source: str):
        self.source = source

    @functools.cached_property
    def _assistant(self) -> "Assistant":
        try:
            return load(self.source)
        except UserError as e:
            raise UserError(f"the detector: {e}; give detections, or another detector") from e

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

    `say` is told the config before anything large is read.
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
            accept(checkpoint.open_release(source)[0])
            return _whole(*checkpoint.load_release(source))
    import conversion

    known = path.exists() or str(source) in releases() or conversion.is_hub_name(source)
    if not known:
        raise UserError(
            f"{source}: neither a folder nor a shipped release ({', '.join(releases())}), and no "
            "file or name on the hub (org/name)"
        )
    return conversion.read(source, dtype, revision=revision, base=base, parts=parts, accept=accept)


def _whole(
    config: dict[str, Any], params: dict[str, Any], tokenizer: Path | None
) -> tuple[dict[str, Any], dict[str, Any], Path | None]:
    """The same, with the encoder that a release may leave to a package."""
    if "trunk" in config:
        from conversion import trunks

        params = trunks.complete(config, params)
    return config, params, tokenizer


class Assistant:
    """A loaded system. `chat` keeps one conversation; `answer` is stateless and batched.

    Pictures: path, uint8 RGB array [H,W,3] or PIL picture, any size. Boxes come back in the
    picture's own pixels, xyxy. What a system does in its own way is in `adapter`.
    """

    def __init__(
        self,
        system: System,
        params: Any,
        codec: Any,
        settings: Mapping[str, Any],
        detect: Detect | None = None,
        mesh: Any = None,
    ):
        self.system, self.params, self.codec, self.mesh = system, params, codec, mesh
        self.adapter = assistants.get(system.name)(system, codec, settings, detect)
        self.reset()

    def reset(self) -> None:
        """Forget the conversation."""
        self._seen: tuple[Any, Any] | None = None  # the picture and the video it is about
        self._detections: Any = None
        self._history: list[Turn] = []
        self._regions: list[Region] = []

    def another(self) -> "Assistant":
        """One with a conversation of its own, and the same parameters and compiled programs."""
        _ = self._generate  # or each would compile its own
        made = copy.copy(self)
        made.reset()
        return made

    def chat(
        self,
        image: Any,
        prompt: str,
        regions: Sequence[Region] = (),
        *,
        video: Any = None,
        detections: Any = None,
        max_new_tokens: int = 128,
        sampling: Sampling = Sampling(),
        seed: int = 0,
    ) -> Answer:
        """Answer `prompt` about `image` or `video`, with the conversation so far as context.

        The same picture (or None) continues the conversation, another one starts afresh. In the
        prompt `<r:0>` is the first of this call's `regions`; regions that it does not mention
        are appended to it in order. video, detections: as of `Query`; they stay for the
        conversation. A failed call leaves the conversation as it was.
        """
        seen = (image, video)
        blank = image is None and video is None
        if blank and self._seen is None and not self.adapter.text_alone:
            raise UserError("no picture yet: pass an image with the first question")
        if blank or (self._seen is not None and all(map(_same, seen, self._seen))):
            seen, history, kept = self._seen or seen, self._history, self._regions
            detections = self._detections if detections is None else detections
        else:
            history, kept = [], []
        prompt = mention(prompt, len(regions), len(kept))
        query = Query(
            seen[0], prompt, (*kept, *regions), tuple(history), video=seen[1], detections=detections
        )
        answer = self.answer([query], max_new_tokens=max_new_tokens, sampling=sampling, seed=seed)[
            0
        ]
        said, grounded = answer.history(len(kept) + len(regions))
        self._seen, self._detections = seen, detections
        self._regions = [*kept, *regions, *grounded]
        self._history = [*history, Turn(prompt, said)]
        return answer

    def answer(
        self,
        queries: Sequence[Query],
        *,
        max_new_tokens: int = 128,
        batch_size: int = 8,
        sampling: Sampling = Sampling(),
        seed: int = 0,
    ) -> list[Answer]:
        """Answers in order; greedy ones are the same whatever the batch they are computed in."""
        if self.codec is None:
            raise UserError(
                "this release holds no language model, so it cannot answer (one of Groma's can "
                "propose() regions): train the next stage from it"
            )
        kinds: dict[bool, list[int]] = {}  # batches are of pictures (or text), or of videos
        for n, query in enumerate(queries):
            kinds.setdefault(query.video is not None, []).append(n)
        answers: dict[int, Answer] = {}
        for numbers in kinds.values():
            for start in range(0, len(numbers), batch_size):
                chunk = numbers[start : start + batch_size]
                key = jax.random.fold_in(jax.random.key(seed), chunk[0])
                asked = [queries[n] for n in chunk]
                made = self._answer_chunk(asked, max_new_tokens, sampling, key)
                answers.update(zip(chunk, made, strict=True))
        return [answers[n] for n in range(len(queries))]

    def propose(self, images: Sequence[Any]) -> Proposals:
        """Regions the detector selects: (boxes [n,4] xyxy pixels, scores [n]), best first."""
        with self.adapter.fitting(self.params):
            return self.adapter.propose(self.params, images)

    def _answer_chunk(self, queries, max_new_tokens, sampling, key):
        rows, _, out, kept = self.generate(queries, max_new_tokens, sampling, key)
        answers = []
        for i, row in enumerate(rows):
            end = out.length[i]
            mine = jax.tree.map(lambda x, i=i: x[i], kept)
            answers.append(
                self.adapter.answer(row, out.tokens[i][:end], out.logprobs[i][:end], mine)
            )
        return answers

    def generate(
        self, queries: Sequence[Query], max_new_tokens: int, sampling: Sampling, key: jax.Array
    ) -> tuple[list[Row], dict[str, np.ndarray], Generated, Any]:
        """(questions as read, their batch, generated ids, what the adapter keeps); rows of the
        latter three are padded. Raises UserError as `answer`."""
        rows = [self.adapter.read(q) for q in queries]
        limit = self.system.cfg.lm.max_positions
        batch = self.adapter.collate(rows, limit - max_new_tokens)
        if batch["tokens"].shape[1] + max_new_tokens > limit:
            raise UserError(
                f"{batch['tokens'].shape[1]} positions of prompt and {max_new_tokens} new tokens "
                f"pass the model's {limit}: shorten the conversation or lower max_new_tokens"
            )
        n = len(queries)
        padded = next((b for b in BATCHES if b >= n), n)
        batch = {k: np.concatenate([v, v[:1].repeat(padded - n, 0)]) for k, v in batch.items()}
        with sharding.use(self.mesh, SERVING):
            made = self._generate(self.params, batch, key, max_new_tokens, sampling)
        out, kept = jax.device_get(made)
        return rows, batch, out, kept

    @functools.cached_property
    def _generate(self):
        model, adapter = self.system.module, self.adapter

        def run(params, batch, key, max_new, sampling):
            def respond(m):
                b, t = batch["tokens"].shape
                cache = m.lm.empty_cache(b, t + max_new)
                logits, cache, aux = m.prefill(batch, cache)
                out = decode_loop(
                    m.decode, logits, cache, max_new=max_new, end=adapter.end_id,
                    pad=adapter.pad_id, sampling=sampling, key=key,
                )  # fmt: skip
                return out, adapter.keep(aux)

            with adapter.fitting(params):
                return model.apply({"params": params}, method=respond)

        return jax.jit(run, static_argnums=(3, 4))


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, (str, Path)) and isinstance(b, (str, Path)):
        return Path(a) == Path(b)
    return a is b


def mention(prompt: str, count: int, first: int) -> str:
    """The prompt with its region numbers moved up by `first`; unmentioned ones are appended."""
    named = markup.regions_of(prompt)
    missing = "".join(f" <r:{k}>" for k in range(count) if k not in named)
    return markup.renumber(prompt + missing, first)
