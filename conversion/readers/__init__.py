"""Checkpoints as names, shapes and lazily read tensors, whatever container holds them.

`open_checkpoint(path)` reads safetensors and torch files of every age, single, sharded or in a
DeepSpeed folder, and delta weights on their base. Nothing is executed and PyTorch is not needed:
pickles are read by `pickles`, which knows the globals of tensors and no others.
"""

import os

from conversion.readers.containers import Sharded, open_any
from conversion.readers.delta import FERRET_V1, Delta, DeltaRule
from conversion.readers.safetensors import DTYPES, SafeTensors, write_safetensors
from conversion.readers.source import Joined, Source
from conversion.readers.torch_file import TorchFile

__all__ = [
    "open_checkpoint",
    "Source",
    "Joined",
    "SafeTensors",
    "Sharded",
    "TorchFile",
    "Delta",
    "DeltaRule",
    "FERRET_V1",
    "DTYPES",
    "write_safetensors",
]


def open_checkpoint(
    path: Source | str | os.PathLike, *, base: Source | str | os.PathLike | None = None
) -> Source:
    """Open a file or a folder of weights; no tensor is read. A source is open already.

    `base`, a source or a path, makes of delta weights whole ones by `FERRET_V1`. Raises UserError
    that names the file at fault and what is wrong with it.
    """
    source = path if isinstance(path, Source) else open_any(path)
    if base is None:
        return source
    return Delta(source, base if isinstance(base, Source) else open_any(base), FERRET_V1)
