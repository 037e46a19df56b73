"""One torch file as a source: its container told by its first bytes, its state dict unwrapped."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from conversion.engine import TensorInfo
from conversion.readers import pickles, torch_legacy, torch_zip
from conversion.readers.safetensors import refuse_pointer
from conversion.readers.source import FileMap, Source
from mg_jax.errors import UserError, some

WRAPPERS = ("state_dict", "model", "module")  # trainers keep the state dict under one of these
DEPTH = 4  # wrappers inside wrappers
NAMED = 6  # names listed in a note or an error
ZERO_TO_FP32 = "run DeepSpeed's zero_to_fp32.py in its folder and convert what that writes"


class TorchFile(Source):
    """A file of torch.save, old or new, mapped into memory and read without PyTorch.

    Raises UserError when it is missing, cut short, damaged, unsafe, or holds no state dict.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.where, self.files = str(self.path), (self.path,)
        self._file = FileMap(path)
        refuse_pointer(self._file)
        if self._file.copy(0, 4) == torch_zip.MAGIC:
            root = torch_zip.load(self._file)
        elif torch_legacy.is_legacy(self._file):
            root = torch_legacy.load(self._file)
        elif torch_legacy.is_tar(self._file):
            root = torch_legacy.load_tar(self._file)
        else:
            kind = "a bare pickle" if self._file.copy(0, 1) == b"\x80" else "of no known kind"
            raise UserError(f"{self.path}: not a torch file ({kind}, {self._file.size} bytes)")
        self._tensors, self.notes = state_dict(root, self.where)
        self.manifest = {
            name: TensorInfo(tensor.shape, tensor.dtype) for name, tensor in self._tensors.items()
        }

    @property
    def copied(self) -> int:
        unaligned = (
            tensor.extent * tensor.dtype.itemsize
            for tensor in self._tensors.values()
            if _begin(tensor) % tensor.dtype.alignment
        )
        return max(unaligned, default=0)

    def _read(self, name: str) -> np.ndarray:
        tensor = self._tensors[name]
        size, extent, begin = tensor.dtype.itemsize, tensor.extent, _begin(tensor)
        if not extent:
            return np.empty(tensor.shape, tensor.dtype)
        raw = self._file.view(begin, begin + extent * size)
        if begin % tensor.dtype.alignment:
            raw = raw.copy()  # files from before 1.6 do not align their storages
        steps = tuple(step * size for step in tensor.strides)
        return np.ndarray(tensor.shape, tensor.dtype, raw, strides=steps)  # type: ignore[arg-type]


def _begin(tensor: pickles.Tensor) -> int:
    """The first byte of a tensor in its file."""
    return tensor.storage.begin + tensor.offset * tensor.dtype.itemsize


def state_dict(root: Any, where: str) -> tuple[dict[str, pickles.Tensor], tuple[str, ...]]:
    """(tensors by name, notes) of what a torch file holds, out of `WRAPPERS`.

    Raises UserError when there is no state dict in it, or more than one.
    """
    notes: list[str] = []
    for _ in range(DEPTH):
        # before the tensors beside it: trainers keep averages and counters there
        inside = [key for key in WRAPPERS if isinstance(root, dict) and _wraps(root.get(key))]
        if len(inside) > 1:
            raise UserError(f"{where}: holds both {' and '.join(inside)}; save one of them alone")
        if not inside:
            break
        left = [key for key in root if key != inside[0]]
        notes.append(f"unwrapped {inside[0]!r}" + (f", left {_some(left)}" if left else ""))
        _check_deepspeed(root, inside[0], where, notes)
        root = root[inside[0]]
    if not (isinstance(root, dict) and _is_state(root)):
        keys = _some(root) if isinstance(root, dict) else ""
        what = f"a dict of {keys}" if keys else pickles.describe(root)
        raise UserError(f"{where}: holds no state dict but {what}; save model.state_dict() alone")
    tensors = {name: value for name, value in root.items() if isinstance(value, pickles.Tensor)}
    other = [name for name in root if name not in tensors]
    for name in other:
        if _holds_tensor(root[name]):
            raise UserError(
                f"{where}: {pickles.named(name)} holds tensors of its own; save one flat state dict"
            )
    if other:
        notes.append(f"left out, being no tensors: {_some(other)}")
    for name in tensors:
        if not isinstance(name, str):
            raise UserError(
                f"{where}: {pickles.named(name)} is a tensor's name, which must be text"
            )
    return tensors, tuple(notes)


def _wraps(value: Any) -> bool:
    """Whether a value is a dict with tensors somewhere in it."""
    return isinstance(value, dict) and _holds_tensor(value)


def _is_state(value: Mapping) -> bool:
    """Whether a dict holds tensors itself."""
    return any(isinstance(item, pickles.Tensor) for item in value.values())


def _holds_tensor(value: Any) -> bool:
    """Whether a tensor lies anywhere within; containers may hold themselves."""
    seen: set[int] = set()
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, pickles.Tensor):
            return True
        if isinstance(item, dict | list | tuple) and id(item) not in seen:
            seen.add(id(item))
            waiting.extend(item.values() if isinstance(item, dict) else item)
    return False


def _check_deepspeed(root: Mapping, key: str, where: str, notes: list[str]) -> None:
    """DeepSpeed lists the shapes of what it trains: `module` must hold all of it.

    Under ZeRO 1 and 2 it does, in the dtype of training; under ZeRO 3 it does not. A state dict
    without such a list is another trainer's.
    """
    listed = root.get("param_shapes")
    if key != "module" or listed is None:
        return
    groups = listed if isinstance(listed, list | tuple) else [listed]
    for name, shape in (
        item for group in groups if isinstance(group, dict) for item in group.items()
    ):
        held = root["module"].get(name)
        if not isinstance(held, pickles.Tensor) or held.shape != shape:
            raise UserError(
                f"{where}: {pickles.named(name)} lies in ZeRO shards, not in this file; "
                f"{ZERO_TO_FP32}"
            )
    notes.append(
        "DeepSpeed's `module`, in the dtype of training; float32 masters, if any, lie in the "
        "ZeRO shards beside it (zero_to_fp32.py joins them)"
    )


def _some(names: Iterable[Any]) -> str:
    """A few names, the rest counted."""
    return ", ".join(some([pickles.named(name) for name in names], NAMED))
