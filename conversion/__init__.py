"""PyTorch checkpoints to our parameter trees and back, by declarative tables.

`load(folder)` reads a folder of upstream's (config.json and safetensors).
"""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from conversion import engine, hf_config, readers
from conversion.tables import groma as groma_table


@dataclasses.dataclass(frozen=True)
class Converted:
    """A converted checkpoint. `layout`: "detector" (vision, proposer) or "full"."""

    system: str
    layout: str
    cfg: Any
    params: dict[str, Any]
    dropped: Mapping[str, str]

    @property
    def table(self) -> engine.Table:
        """The table of this checkpoint, for the way back."""
        return table_of(self.cfg, self.layout)


def table_of(cfg: Any, layout: str) -> engine.Table:
    """The table of a GromaConfig in one of its layouts."""
    if layout == "detector":
        return groma_table.detector_table(cfg.vision, cfg.proposer)
    return groma_table.table(cfg)


def read_config(folder: str | os.PathLike) -> tuple[str, Any]:
    """(layout, GromaConfig) of a folder's config.json. Raises UserError when it does not fit."""
    from mg_jax.config import build
    from mg_jax.models.groma import GromaConfig

    path = Path(folder) / "config.json"
    raw = hf_config.read_json(path)
    values = hf_config.read_groma(raw, str(path))
    layout = "detector" if raw["model_type"] == "ddetr" else "full"
    return layout, build(GromaConfig, values, str(path))


def load(folder: str | os.PathLike, dtype: Any = None) -> Converted:
    """Read a folder with config.json and safetensors. `dtype` None keeps the source's.

    Raises UserError naming the field, file or tensors at fault.
    """
    layout, cfg = read_config(folder)
    source = readers.open_checkpoint(folder)
    plan = engine.plan(source.manifest, table_of(cfg, layout))
    params = engine.to_jax(source.read, plan, dtype)
    return Converted("groma", layout, cfg, params, plan.dropped)
