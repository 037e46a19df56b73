"""Pictures a second of the data pipeline beside a torch DataLoader on the same files.

Scenes are written as JPEG files of 640 x 480 with conversations of four turns. Ours is what a
training run does: read the example, decode, squash to the model's size by Pillow's bicubic filter,
normalise, tokenise, collate (`mg_jax.data.pipeline`, `batch`). The reference is a
torch.utils.data.DataLoader over the same rows: Pillow, the processor of `transformers` with the
same settings, its LlamaTokenizer for the same words, torch.stack. `difference` is the largest one
between the pixels of both; so both do the same work. One JSON line a case:

    reference   the processor; size: pixels of its square; workers: processes of each loader (0:
                the main one); source: what ours reads, the jsonl file or shards made of it
    per_core    pictures a second of CPU time, ours; reference_per_core; ratio of the two. Elapsed
                times would say more of what else the machine does
    shares      of our CPU time by step, measured one after the other in one process

Both loaders are kept running and asked in turn, A B A B; the numbers are medians over the rounds,
the ratio that of the rounds' ratios.
"""

import itertools
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mg_jax.errors import UserError

FILES, BATCH, ROUND = 64, 16, 4  # pictures, rows of a batch, batches of a timed round
TURNS, PICTURE = 4, "640x480"
CASES = (
    # processor, size, workers, source of ours
    ("BitImageProcessor", 448, 0, "jsonl"),
    ("BitImageProcessor", 448, 1, "jsonl"),
    ("BitImageProcessor", 448, 2, "jsonl"),
    ("BitImageProcessor", 448, 0, "shards"),
    ("CLIPImageProcessor", 336, 0, "jsonl"),
    ("CLIPImageProcessor", 224, 0, "jsonl"),
)


def data(repeat: int, cases: Iterable[tuple[str, int, int, str]] = CASES) -> Iterator[dict]:
    """A row for each case. Raises UserError without PyTorch."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        import torch
    except ImportError as e:
        raise UserError("bench data compares with PyTorch: make setup EXTRAS=torch") from e
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="mg_jax_bench_") as name:
        specs = write(Path(name))
        for processor, size, workers, source in cases:
            rival = Reference(specs["jsonl"], processor, size)
            ours = Ours(specs[source], size)
            row = {"case": "data", "reference": processor, "size": size, "workers": workers,
                   "source": source, "pictures": f"{PICTURE} JPEG"}  # fmt: skip
            difference = np.abs(ours.pixels(0) - rival.pixels(0)).max()
            row |= compare(ours, rival, workers, repeat)
            yield row | {"difference": float(difference), "shares": ours.shares()}


def write(folder: Path) -> dict[str, str]:
    """The files, and what opens them: `jsonl` and `shards`."""
    from mg_jax.data import build
    from mg_jax.data.sources import open_source
    from mg_jax.data.write import write_jsonl

    scenes = open_source(f"scenes:seed=1,n={FILES},turns={TURNS},size={PICTURE}")
    file = write_jsonl((scenes[i] for i in range(FILES)), folder / "files", suffix="jpg")
    job, source = build.prepare(f"jsonl:{file}", folder / "shards")
    build.run(job, source)
    build.finish(job, source)
    return {"jsonl": f"jsonl:{file}", "shards": f"shards:{folder / 'shards'}"}


class Ours:
    """The pipeline of a training run of Groma's instruction stage."""

    def __init__(self, spec: str, size: int):
        from configs.groma import get_config
        from mg_jax import config as configs
        from mg_jax.data import pipeline
        from mg_jax.data.sources import open_source
        from mg_jax.models.groma import GromaConfig
        from mg_jax.vision import preprocess

        config = get_config("stage=instruction,size=tiny")
        config.image_size, config.model.lm.max_positions = size, 4096
        config.codec.text_tokens, config.codec.buckets = 1022, (254, 510)
        cfg = configs.build(GromaConfig, config.model.to_dict())
        self.size, self.source = size, open_source(spec)
        self.samples = pipeline.open_samples(config, cfg)
        self.make, self.collate = self.samples.make, self.samples.collate
        self.codec = pipeline.make_codec(config, cfg)
        self.preprocessing = preprocess.get(config.preprocess)

    def start(self, workers: int) -> Iterator[Any]:
        """An endless iterator of batches."""
        from mg_jax.data import batch

        return batch.batches(
            [self.source], None, self.make, self.collate, BATCH, 0,
            workers=workers, threads=int(workers > 0), finish=self.samples.finish,
        )  # fmt: skip

    def pixels(self, i: int) -> np.ndarray:
        """What the model sees of picture i."""
        return self.preprocessing(self.source[i].pixels(), self.size)

    def shares(self) -> dict[str, float]:
        """The shares of the steps in the CPU time of a batch made without workers."""
        squash, normalize = self.preprocessing.squash, self.preprocessing.normalize
        examples = [self.source[i] for i in range(FILES)]
        pictures = [e.pixels() for e in examples]
        rng = np.random.default_rng(0)
        records = [self.make(e, rng) for e in examples]
        batches = [records[n : n + BATCH] for n in range(0, FILES, BATCH)]
        collated = [self.collate(b)["pixels"] for b in batches]
        steps: dict[str, Callable[[], Any]] = {
            "read": lambda: [self.source[i] for i in range(FILES)],
            "decode": lambda: [e.pixels() for e in examples],
            "resize": lambda: [squash(p, self.size) for p in pictures],
            "normalise": lambda: [normalize(p) for p in collated],
            "tokenise": lambda: [self.codec.encode(e, rng) for e in examples],
            "collate": lambda: [self.collate(b) for b in batches],
        }
        spent = {name: min(cpu_of(step) for _ in range(3)) for name, step in steps.items()}
        return {name: round(t / sum(spent.values()), 3) for name, t in spent.items()}


class Reference:
    """The DataLoader; itself the dataset, and collate's owner."""

    def __init__(self, spec: str, processor: str, size: int):
        import transformers

        from mg_jax.data.sources import open_source
        from mg_jax.text import markup, templates
        from mg_jax.vision.preprocess import IMAGENET_MEAN, IMAGENET_STD

        self.processor = getattr(transformers, processor)(
            size={"height": size, "width": size}, do_center_crop=False, resample=3,
            image_mean=IMAGENET_MEAN, image_std=IMAGENET_STD,
        )  # fmt: skip
        self.tokenizer = transformers.LlamaTokenizer.from_pretrained(tokenizer_folder())
        source, t = open_source(spec), templates.get("llava")
        self.rows = []
        for i in range(len(source)):
            example = source[i]
            said = [
                f"{t.user}: {markup.strip(turn.user)} {t.assistant}: "
                f"{markup.strip(turn.assistant or '')}{t.sep2}"
                for turn in example.turns
            ]
            self.rows.append((example.image, f"{t.system} {''.join(said)}"))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> tuple[Any, Any]:
        import torch
        from PIL import Image

        path, text = self.rows[i]
        with Image.open(path) as file:
            pixels = self.processor(file.convert("RGB"), return_tensors="pt")["pixel_values"][0]
        return pixels, torch.tensor(self.tokenizer(text)["input_ids"])

    def pixels(self, i: int) -> np.ndarray:
        """Picture i as ours has it, channels last."""
        return self[i][0].numpy().transpose(1, 2, 0)

    @staticmethod
    def collate(rows: list[tuple[Any, Any]]) -> tuple[Any, Any]:
        """Stack the pictures, pad the texts."""
        import torch

        pixels, ids = zip(*rows, strict=True)
        return torch.stack(pixels), torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)

    def start(self, workers: int) -> Iterator[Any]:
        """An endless iterator of batches."""
        from torch.utils.data import DataLoader

        return iter(
            DataLoader(
                self, BATCH, sampler=Endless(len(self)), num_workers=workers,
                collate_fn=self.collate,
            )
        )  # fmt: skip


class Endless:
    """A sampler that shuffles anew for ever."""

    def __init__(self, count: int):
        self.count = count

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng(0)
        while True:
            yield from rng.permutation(self.count).tolist()


def compare(ours: Ours, rival: Reference, workers: int, repeat: int) -> dict[str, Any]:
    """Medians of both loaders, asked in turn for 2 x `repeat` rounds after one to warm up."""
    sides = []
    for loader in (ours, rival):
        before = set(multiprocessing.active_children())
        batches = loader.start(workers)
        next(batches)
        sides.append((batches, [p.pid for p in set(multiprocessing.active_children()) - before]))
    times: list[list[tuple[float, float]]] = [[], []]  # workers' CPU before a round; ours in it
    for _ in range(2 * repeat + 2):
        for (batches, pids), found in zip(sides, times, strict=True):
            children = sum(map(cpu_of_process, pids))
            start = time.process_time()
            for _ in range(ROUND):
                next(batches)
            found.append((children, time.process_time() - start))
    sides[0][0].close()  # type: ignore[attr-defined]
    # what workers make ahead after a round counts towards it
    spent = [
        np.array([a[1] + b[0] - a[0] for a, b in itertools.pairwise(found[1:])]) for found in times
    ]
    rates = [ROUND * BATCH / float(np.median(s)) for s in spent]
    return {
        "per_core": round(rates[0], 1),
        "reference_per_core": round(rates[1], 1),
        "ratio": round(float(np.median(spent[1] / spent[0])), 2),
    }


def cpu_of(call: Callable[[], Any]) -> float:
    """CPU seconds of a call."""
    start = time.process_time()
    call()
    return time.process_time() - start


def cpu_of_process(pid: int | None) -> float:
    """CPU seconds that a process has taken so far. Raises UserError elsewhere than on Linux."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        raise UserError("bench data reads the CPU time of workers from /proc: Linux only") from None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def tokenizer_folder() -> str:
    """The shipped tokenizer."""
    from importlib import resources

    return str(resources.files("mg_jax") / "releases" / "tokenizer-tiny")
