"""Time and memory of converting a synthetic checkpoint of Groma-7B's true shapes, there and back.

One JSON line:

    bytes               of all tensors
    seconds             of the slower of the two ways: the whole command, from the start of Python
                        to the result on disk (each way's seconds go to stderr)
    copy_seconds        of copying the checkpoint's files, the sync to disk included
    peak_rss_gib        the largest RssAnon + RssShmem of either command, sampled; pages of mapped
                        files are not memory in use
    vm_hwm              the kernel's own high-water mark of the same, in GiB, mapped pages included
    largest_tensor_gib  the largest source tensor
    bit_equal           whether every tensor came back with the same bits

The kernel's cache of the files is dropped before each of the three, as far as it may be.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mg_jax.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
SIZES = ("7b", "3b", "tiny")
SAMPLE_SECONDS = 0.02
PATTERN = 20_000_003  # numbers that the tensors are cut from; a prime, so that no row repeats
GIB = 2**30


def convert(params: str, folder: str | None = None) -> Iterator[dict[str, Any]]:
    """The one row of size `params`; `folder` is where the files lie while it runs."""
    with tempfile.TemporaryDirectory(prefix="mg_jax_bench_", dir=folder) as name:
        yield measure(Path(name), params)


def measure(work: Path, params: str) -> dict[str, Any]:
    """Write, copy, convert there and back, compare."""
    from conversion.partial import need_space
    from conversion.readers import open_checkpoint

    listed = tensors(params)
    total = sum(tensor.nbytes for tensor in listed)
    need_space(work, 3 * total)
    write(work / "upstream", params, listed)
    copying = copy_seconds(work / "upstream", work / "copy")
    shutil.rmtree(work / "copy")
    ways = [("upstream", "release"), ("release", "back")]
    runs = [command(work / source, work / target) for source, target in ways]
    for (_, target), run in zip(ways, runs, strict=True):
        print(f"to {target}: {run['seconds']:.1f} s", file=sys.stderr)
    first, second = (open_checkpoint(work / name) for name in ("upstream", "back"))
    from conversion.moves import bits_equal

    same = set(first.manifest) == set(second.manifest) and all(
        bits_equal(first.read(name), second.read(name)) for name in first.manifest
    )
    return {
        "bytes": total,
        "seconds": round(max(run["seconds"] for run in runs), 2),
        "copy_seconds": round(copying, 2),
        "peak_rss_gib": round(max(run["rss"] for run in runs) / GIB, 3),
        "vm_hwm": round(max(run["hwm"] for run in runs) / GIB, 3),
        "largest_tensor_gib": round(max(tensor.nbytes for tensor in listed) / GIB, 3),
        "bit_equal": same,
    }


def config(params: str) -> dict[str, Any]:
    """Groma's config.json: 7B as published, 3B with ten layers of the language model."""
    lm = {"max_position_embeddings": 4096, "rms_norm_eps": 1e-5}
    detector: dict[str, Any] = {"num_feature_levels": 1, "cls_loss_coefficient": 2, "class_cost": 2}
    vision: dict[str, Any] = {
        "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "image_size": 518,
    }  # fmt: skip
    more: dict[str, Any] = {}
    if params == "3b":
        lm["num_hidden_layers"] = 10
    if params == "tiny":
        small = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        lm |= small | {"intermediate_size": 128, "vocab_size": 400}
        vision |= small | {"image_size": 56}
        detector |= dict.fromkeys(("encoder_layers", "decoder_layers"), 1) | {"d_model": 32}
        more = {"golden_overrides": {"mid": 64}}
    fixed = {"two_stage": True, "with_box_refine": True, "auxiliary_loss": True}
    return {
        "model_type": "groma",
        "llm_cfg": lm,
        "perceiver_cfg": {
            "model_type": "ddetr",
            "vis_encoder_cfg": vision,
            "ddetr_cfg": detector | fixed | {"id2label": {"0": "LABEL_0"}},
        },
        **more,
    }


def tensors(params: str) -> list[Any]:
    """The tensors of a checkpoint of that size, bfloat16 or for 3B float32."""
    import ml_dtypes

    from conversion import manifests
    from conversion.architectures import ARCHITECTURES
    from conversion.engine import expand
    from conversion.export import tensors as listed

    entry = ARCHITECTURES["groma"]
    plan = expand(entry.table(entry.read(config(params), "bench")))
    if params == "7b":
        published = manifests.read("groma_7b")
        assert plan.torch_shapes() == published, "not the shapes of the published checkpoint"
    dtype = np.float32 if params == "3b" else ml_dtypes.bfloat16
    return listed(plan, dict.fromkeys(plan.jax_shapes(), dtype))


def write(folder: Path, params: str, listed: list[Any]) -> None:
    """A folder in upstream's layout, in shards, of normal numbers."""
    from conversion.export import shards, write_index
    from conversion.output import Output, header

    folder.mkdir()
    rng = np.random.default_rng(0)
    count = min(PATTERN, max(tensor.nbytes for tensor in listed))
    drawn = rng.standard_normal(count, np.float32) * np.float32(0.02)
    pattern = drawn.astype(listed[0].dtype).view(np.uint8)
    files = shards(listed, "safetensors")
    copies: dict[Any, int] = {}
    offset = 0
    for name, group in files.items():
        with Output(folder / name) as file:
            file.write(header({t.name: t.info for t in group}, {"format": "pt"}))
            for tensor in group:
                key = (tensor.leaf.names[0], tensor.at)  # a copy has the numbers of its source
                at = copies.setdefault(key, offset)
                offset = (at + tensor.nbytes) % len(pattern)
                for piece in cut(pattern, at, tensor.nbytes):
                    file.write(piece)
    write_index(folder, files, "safetensors")
    (folder / "config.json").write_text(json.dumps(config(params), indent=2))


def cut(pattern: np.ndarray, at: int, count: int) -> Iterator[np.ndarray]:
    """`count` bytes of an endless repetition of `pattern` from `at` on."""
    while count:
        piece = pattern[at : at + count]
        yield piece
        count, at = count - len(piece), 0


def copy_seconds(source: Path, target: Path) -> float:
    """Seconds of copying the files of a folder, the sync to disk included."""
    forget(source.iterdir())
    target.mkdir()
    start = time.perf_counter()
    for file in sorted(source.iterdir()):
        shutil.copyfile(file, target / file.name)
        with open(target / file.name, "rb+") as copied:
            os.fsync(copied.fileno())
    return time.perf_counter() - start


def command(source: Path, target: Path) -> dict[str, float]:
    """Run launch.convert; its seconds, its sampled peak of memory and the kernel's.

    Raises UserError when it fails, which it has said why on stderr.
    """
    forget(file for file in source.rglob("*") if file.is_file())
    rss = hwm = 0
    start = time.perf_counter()
    line = [sys.executable, "-m", "launch.convert", str(source), str(target)]
    with subprocess.Popen(line, cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            found = status(process.pid)
            rss = max(rss, found.get("RssAnon", 0) + found.get("RssShmem", 0))
            hwm = max(hwm, found.get("VmHWM", 0))
            time.sleep(SAMPLE_SECONDS)
    seconds = time.perf_counter() - start
    if process.returncode:
        raise UserError(f"launch.convert {source.name} ended with {process.returncode}; see above")
    return {"seconds": seconds, "rss": rss, "hwm": hwm}


def status(pid: int) -> dict[str, int]:
    """The sizes in /proc/PID/status, in bytes."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    rows = (line.split() for line in lines if line.endswith(" kB"))
    return {row[0].rstrip(":"): 1024 * int(row[1]) for row in rows}


def forget(files: Iterable[Path]) -> None:
    """Ask the kernel to drop its cache of files."""
    for file in files:
        handle = os.open(file, os.O_RDONLY)
        try:
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)
