"""What a user calls: `load()` a release, `chat()` about a picture, `answer()` many questions."""

import functools
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mg_jax import checkpoint
from mg_jax.answer import Answer
from mg_jax.boxes import BoxSpace, cxcywh_to_xyxy
from mg_jax.errors import UserError
from mg_jax.example import Query, Region, Turn
from mg_jax.generate import Sampling, decode_loop
from mg_jax.models import System, build
from mg_jax.text import codecs, markup
from mg_jax.text.bpe import load_tokenizer
from mg_jax.vision import preprocess

BATCHES = (1, 2, 4, 8, 16, 32)  # rows are padded up to one of these: few compiled programs


def releases() -> tuple[str, ...]:
    """Names of the systems shipped with the package."""
    root = resources.files("mg_jax") / "releases"
    if not root.is_dir():
        return ()
    return tuple(sorted(p.name for p in root.iterdir() if (p / "config.json").is_file()))


def load(
    source: str | Path,
    dtype: str = "float32",
    revision: str | None = None,
    base: str | Path | None = None,
) -> "Assistant":
    """An Assistant from a shipped release's name, a release, or weights of PyTorch.

    The latter are a folder with its config.json, a file beside one, or a name on the Hugging Face
    hub (at `revision`), and `base` is what delta weights are added to; they are converted in memory
    (`python -m launch.convert` writes a release, which loads faster). `dtype`: of parameters and
    computation ("float32" or "bfloat16"). Raises UserError naming what is missing.
    """
    config, params, tokenizer = _read(source, dtype, revision, base)
    params = jax.tree.map(lambda x: jnp.asarray(x, dtype), params)
    model = config["model"]
    for part in model.values():
        if isinstance(part, dict) and "dtype" in part:
            part["dtype"] = dtype
    system = build(config["system"], model)
    codec = None
    if tokenizer is not None and "lm" in params:  # a detection release may carry a tokenizer
        codec = codecs.get(config["system"])(load_tokenizer(tokenizer), **config["codec"])
    return Assistant(system, params, codec, config.get("preprocess", "groma_pil"))


def _read(
    source: str | Path, dtype: str, revision: str | None, base: str | Path | None
) -> tuple[dict[str, Any], Any, Path | None]:
    """(config, nested parameters, tokenizer folder or None) of whatever `load` takes."""

    def accept(config: Mapping[str, Any]) -> None:  # before gigabytes are read for nothing
        if config["system"] == "parts":
            raise UserError(
                f"{source}: holds a {config['architecture']} alone (stage {config['stage']}); a "
                "system is trained from it, with --config.init_from=FOLDER, but it cannot answer "
                "by itself"
            )

    path = Path(source)
    if revision is None and base is None:
        release = path.is_dir() and checkpoint.is_release(path)
        if release or (not path.exists() and str(source) in releases()):
            accept(checkpoint.open_release(source)[0])
            return checkpoint.load_release(source)
    import conversion

    known = path.exists() or str(source) in releases() or conversion.is_hub_name(source)
    if not known:
        raise UserError(
            f"{source}: neither a folder nor a shipped release ({', '.join(releases())}), and no "
            "file or name on the hub (org/name)"
        )
    return conversion.read(source, dtype, revision=revision, base=base, accept=accept)


class Assistant:
    """A loaded system. `chat` keeps one conversation; `answer` is stateless and batched.

    Pictures: path, uint8 RGB array [H,W,3] or PIL picture, any size. Boxes come back in the
    picture's own pixels, xyxy.
    """

    def __init__(self, system: System, params: Any, codec: Any, preprocessing: str = "groma_pil"):
        self.system, self.params, self.codec = system, params, codec
        self._preprocess = preprocess.get(preprocessing)
        self.reset()

    def reset(self) -> None:
        """Forget the conversation."""
        self._image: Any = None
        self._history: list[Turn] = []
        self._regions: list[Region] = []

    def chat(
        self,
        image: Any,
        prompt: str,
        regions: Sequence[Region] = (),
        *,
        max_new_tokens: int = 128,
        sampling: Sampling = Sampling(),
        seed: int = 0,
    ) -> Answer:
        """Answer `prompt` about `image`, with the conversation so far as context.

        The same picture (or None) continues the conversation, another one starts afresh. In the
        prompt `<r:0>` is the first of this call's `regions`; regions that it does not mention
        are appended to it in order. A failed call leaves the conversation as it was.
        """
        if image is None and self._image is None:
            raise UserError("no picture yet: pass an image with the first question")
        if image is not None and not _same(image, self._image):
            history, kept = [], []
        else:
            image, history, kept = self._image, self._history, self._regions
        prompt = mention(prompt, len(regions), len(kept))
        query = Query(image, prompt, (*kept, *regions), tuple(history))
        answer = self.answer([query], max_new_tokens=max_new_tokens, sampling=sampling, seed=seed)[
            0
        ]
        said, grounded = answer.history(len(kept) + len(regions))
        self._image = image
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
                "this release holds a detector alone, without tokenizer: it can propose() regions, "
                "but not answer; train the alignment stage from it"
            )
        answers: list[Answer] = []
        for start in range(0, len(queries), batch_size):
            chunk = queries[start : start + batch_size]
            key = jax.random.fold_in(jax.random.key(seed), start)
            answers += self._answer_chunk(chunk, max_new_tokens, sampling, key)
        return answers

    def propose(self, images: Sequence[Any]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Regions the detector selects: (boxes [n,4] xyxy pixels, scores [n]), best first."""
        found = []
        for image in images:
            pixels = picture(image)
            space = BoxSpace.original(pixels.shape[1], pixels.shape[0])
            regions = jax.device_get(self._propose(self.params, self._pixels([pixels])))
            n = int(regions.valid[0].sum())
            boxes = np.clip(cxcywh_to_xyxy(regions.boxes[0, :n]), 0.0, 1.0)
            found.append((space.to_pixels(boxes), regions.scores[0, :n]))
        return found

    @property
    def _size(self) -> int:
        return self.system.cfg.image_size

    def _pixels(self, pictures):
        return np.stack([self._preprocess(p, self._size) for p in pictures])

    def _answer_chunk(self, queries, max_new_tokens, sampling, key):
        pictures = [picture(q.image) for q in queries]
        rows = [
            self.codec.encode_prompt([*q.history, Turn(q.prompt, None)], q.regions) for q in queries
        ]
        text = self.codec.text_tokens
        fixed = self.codec.length - text
        buckets = [fixed + size for size in (text // 4, text // 2, text)]
        slots = [_slots(max(len(r[f"{k}_boxes"]) for r in rows)) for k in ("refer", "ground")]
        batch = {**self.codec.collate(rows, buckets, *slots), "pixels": self._pixels(pictures)}
        length, limit = batch["tokens"].shape[1] + max_new_tokens, self.system.cfg.lm.max_positions
        if length > limit:
            raise UserError(
                f"{batch['tokens'].shape[1]} positions of prompt and {max_new_tokens} new tokens "
                f"pass the model's {limit}: shorten the conversation or lower max_new_tokens"
            )
        n = len(queries)
        padded = next((b for b in BATCHES if b >= n), n)
        batch = {k: np.concatenate([v, v[:1].repeat(padded - n, 0)]) for k, v in batch.items()}
        out, regions = jax.device_get(
            self._generate(self.params, batch, key, max_new_tokens, sampling)
        )
        answers = []
        for i, query in enumerate(queries):
            height, width = pictures[i].shape[:2]
            answer = self.codec.decode(
                out.tokens[i][: out.length[i]],
                np.clip(cxcywh_to_xyxy(regions.boxes[i]), 0.0, 1.0),
                regions.scores[i],
                regions.valid[i],
                width,
                height,
                question=query.prompt,
                notes=tuple(boxed_notes(query.regions)),
            )
            answers.append(answer)
        return answers

    @functools.cached_property
    def _propose(self):
        model = self.system.module

        def run(params, pixels):
            def select(m):
                return m.select(m.detect(pixels))

            return model.apply({"params": params}, method=select)

        return jax.jit(run)

    @functools.cached_property
    def _generate(self):
        model, codec = self.system.module, self.codec

        def run(params, batch, key, max_new, sampling):
            def respond(m):
                b, t = batch["tokens"].shape
                cache = m.lm.empty_cache(b, t + max_new)
                logits, cache, aux = m.prefill(batch, cache)
                out = decode_loop(
                    m.decode, logits, cache, max_new=max_new, end=codec.tokenizer.eos_id,
                    pad=codec.tokenizer.pad_id, sampling=sampling, key=key,
                )  # fmt: skip
                return out, aux["regions"]

            return model.apply({"params": params}, method=respond)

        return jax.jit(run, static_argnums=(3, 4))


def picture(image: Any) -> np.ndarray:
    """uint8 RGB [H,W,3] of a path, an array or a PIL picture; UserError says what it got."""
    if isinstance(image, (str, Path, bytes)):
        return preprocess.load_image(image)
    array = np.asarray(image.convert("RGB") if hasattr(image, "convert") else image)
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8 or 0 in array.shape:
        raise UserError(
            f"image: got an array of {array.dtype} {array.shape}; expected uint8 RGB [H,W,3], "
            "a path or a PIL picture"
        )
    return array


def _slots(count: int) -> int:
    """Room for `count` given boxes, in steps of 8 so that few programs are compiled."""
    return max(8, -(-count // 8) * 8)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, (str, Path)) and isinstance(b, (str, Path)):
        return Path(a) == Path(b)
    return a is b


def mention(prompt: str, count: int, first: int) -> str:
    """The prompt with its region numbers moved up by `first`; unmentioned ones are appended."""
    named = markup.regions_of(prompt)
    missing = "".join(f" <r:{k}>" for k in range(count) if k not in named)
    return markup.renumber(prompt + missing, first)


def boxed_notes(regions: Sequence[Region]) -> list[str]:
    """One note for each kind of region that goes by its tightest box."""
    kinds = dict.fromkeys(r.kind for r in regions if r.kind != "box")
    return [f"{kind} passed as its tightest box" for kind in kinds]
