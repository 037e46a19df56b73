"""Which container a path is: a file by its first bytes, a folder by the files in it."""

import json
import os
import re
from collections.abc import Collection, Iterable
from pathlib import Path, PurePosixPath

import numpy as np

from conversion.engine import TensorInfo
from conversion.readers.safetensors import SafeTensors, unique_names
from conversion.readers.source import Joined, Renamed, Source
from conversion.readers.torch_file import ZERO_TO_FP32, TorchFile
from mg_jax.errors import UserError, shown

PREFIX = "module."  # DataParallel and its kin put it before every name
# In a folder, the first of these that is there is the checkpoint (the order of transformers).
WHOLE = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
WEIGHTS = (".safetensors", ".bin", ".pth", ".pt", ".ckpt")
# What trainers leave beside the weights.
NOT_WEIGHTS = re.compile(
    r"(training_args|optimizer|scheduler|scaler|rng_state|random_states|trainer_state).*"
)
SHARD = re.compile(r".*-(\d{5})-of-(\d{5})\.\w+")
MODEL_STATES = re.compile(r"mp_rank_(\d+)_model_states\.pt")
ZERO_SHARD = re.compile(r"(\w+_)?zero_pp_rank_\d+_mp_rank_\d+_(model|optim)_states\.pt")
# MG-LLaVA's largest model is published in two: the language model as a Hugging Face folder and
# the rest as a file (MG-LLaVA spec 1).
SPLIT_REST, SPLIT_LM, LM_PREFIX = "_nollm.pth", "_llm_hf.pth", "llm."


class Sharded(Source):
    """The shards that an index (`weight_map`: tensor -> file) names, as one checkpoint.

    Tensors that the shards hold and the index does not name come last and are noted. Raises
    UserError when the index is broken, a shard or tensor it names is absent, or a tensor stands
    in two shards.
    """

    def __init__(self, index: str | os.PathLike):
        index = Path(index)
        weight_map = _weight_map(index)
        self.where = str(index)
        shards: dict[str, Source] = {}
        for file in dict.fromkeys(weight_map.values()):
            if not os.path.exists(index.parent / file):  # Path.exists raises for the oddest names
                raise UserError(
                    f"{index}: names the shard {shown(file)}, which is not beside it; fetch it too"
                )
            shards[file] = _open_file(index.parent / file)
        for name, file in weight_map.items():
            if name not in shards[file].manifest:
                raise UserError(
                    f"{index}: {shown(name)} should be in {file}, which does not hold it"
                )
        joined = Joined(self.where, (("", shard) for shard in shards.values()))
        self._joined, self.files, self.notes = joined, joined.files, joined.notes
        unnamed = [name for name in joined.manifest if name not in weight_map]
        if unnamed:
            first = shown(unnamed[0])
            self.notes += (f"{len(unnamed)} tensors the index does not name: {first} ...",)
        self.manifest: dict[str, TensorInfo] = {
            name: joined.manifest[name] for name in (*weight_map, *unnamed)
        }

    @property
    def copied(self) -> int:
        return self._joined.copied

    def _read(self, name: str) -> np.ndarray:
        return self._joined.read(name)


def open_any(path: str | os.PathLike) -> Source:
    """Open a file or folder of weights. Raises UserError naming what is wrong with it."""
    path = Path(path)
    return unprefixed(_open_folder(path) if path.is_dir() else _open_file(path))


def main_file(names: Collection[str], where: object) -> str | None:
    """Of the files of a folder, the one that is its checkpoint by name, or the index of it.

    None if no name tells. Raises UserError for DeepSpeed's files that are not whole.
    """
    for name in WHOLE:
        if name in names:
            return name
    states = [name for name in names if MODEL_STATES.fullmatch(name)]
    if len(states) > 1:
        raise UserError(
            f"{where}: split over {len(states)} model-parallel ranks; merge them with the "
            "training code first"
        )
    if not states and any(ZERO_SHARD.fullmatch(name) for name in names):
        raise UserError(f"{where}: only ZeRO shards of a DeepSpeed run; {ZERO_TO_FP32}")
    return states[0] if states else None


def only_file(names: Iterable[str], where: object) -> str:
    """The one weight file of a folder; safetensors before other formats.

    Raises UserError when there is none, or which one is meant is not told.
    """
    weights = [n for n in sorted(names) if n.endswith(WEIGHTS) and not NOT_WEIGHTS.fullmatch(n)]
    safe = [name for name in weights if name.endswith(".safetensors")]
    found = safe or weights
    if not found:
        listed = ", ".join(WHOLE[:-1])
        raise UserError(f"{where}: holds no {listed} or {WHOLE[-1]}, and no other weights")
    shards = [match for match in map(SHARD.fullmatch, found) if match and int(match[2]) > 1]
    if shards:
        raise UserError(f"{where}: holds shards such as {shards[0][0]}, but no index of them")
    if len(found) > 1:
        raise UserError(f"{where}: holds {', '.join(found)}; name the file to convert")
    return found[0]


def shards_of(index: Path) -> tuple[str, ...]:
    """The files that an index of shards names. Raises UserError when it is broken."""
    return tuple(dict.fromkeys(_weight_map(index).values()))


def unprefixed(source: Source) -> Source:
    """A source without the prefix that wrappers put before every name."""
    names = list(source.manifest)
    if not names or not all(name.startswith(PREFIX) for name in names):
        return source
    note = f"prefix {PREFIX!r} taken off every name"
    shorter = {name.removeprefix(PREFIX): name for name in names}
    return unprefixed(Renamed(source, shorter, note))


def _open_file(path: Path) -> Source:
    if ZERO_SHARD.fullmatch(path.name):
        raise UserError(f"{path}: one ZeRO shard of a DeepSpeed run; {ZERO_TO_FP32}")
    if path.name.endswith(".json"):
        return Sharded(path)
    return SafeTensors(path) if path.suffix == ".safetensors" else TorchFile(path)


def _open_folder(folder: Path, follow: bool = True) -> Source:
    """`follow`: whether DeepSpeed's `latest` may lead to a folder in this one."""
    entries = {entry.name: entry for entry in sorted(folder.iterdir())}
    files = [name for name, entry in entries.items() if entry.is_file()]
    if found := main_file(files, folder):
        return _open_file(folder / found)
    if "latest" in entries and follow:
        return _open_folder(_latest(folder), follow=False)
    if any(name.endswith(SPLIT_REST) for name in entries):
        return _open_split(folder, list(entries))
    return _open_file(folder / only_file(files, folder))


def _latest(folder: Path) -> Path:
    """The folder of DeepSpeed's newest step: `latest` holds its name, or is a link to it."""
    latest = folder / "latest"
    if latest.is_dir():
        return latest
    step = latest.read_text(errors="replace").strip() if latest.is_file() else ""
    if step not in {entry.name for entry in folder.iterdir() if entry.is_dir()}:
        raise UserError(f"{latest}: names {shown(step)!r}, which is no folder beside it")
    return folder / step


def _open_split(folder: Path, names: list[str]) -> Source:
    rests = [name for name in names if name.endswith(SPLIT_REST)]
    lm = rests[0].removesuffix(SPLIT_REST) + SPLIT_LM
    if len(rests) > 1 or lm not in names:
        raise UserError(f"{folder}: needs one *{SPLIT_REST} and the {lm} that goes with it")
    parts = (("", open_any(folder / rests[0])), (LM_PREFIX, open_any(folder / lm)))
    return Joined(str(folder), parts, (f"{lm} put under {LM_PREFIX!r}",))


def _weight_map(index: Path) -> dict[str, str]:
    try:
        raw = json.loads(index.read_text(), object_pairs_hook=unique_names(index))
    except FileNotFoundError:
        raise UserError(f"{index}: no such file") from None
    except UserError:
        raise
    except (OSError, ValueError, RecursionError):
        raise UserError(f"{index}: not an index of shards (no JSON)") from None
    weight_map = raw.get("weight_map") if isinstance(raw, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index}: not an index of shards (no weight_map)")
    for name, file in weight_map.items():
        inside = isinstance(file, str) and not PurePosixPath(file).is_absolute()
        if not inside or ".." in PurePosixPath(file).parts or file.endswith(".json"):
            told = f"{shown(name)} is said to be in {shown(repr(file))}"
            raise UserError(f"{index}: {told}, no file of its folder")
    return weight_map
