"""MG-LLaVA as its own code keeps it on disk (MG-LLaVA spec 1).

    pth     mg_llava.pth               what the trainer of a stage saves: 20 tensors, and llm.* from
                                       stage 2 on
    split   mg_llava_nollm.pth         the 20 tensors
            mg_llava_llm_hf.pth/       the language model as a folder of transformers, as the
                                       largest model is evaluated

Neither holds the frozen towers, which upstream loads from their public files.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from conversion.export import STEMS, Format, Tensor, shards, write_index
from conversion.readers.containers import SPLIT_LM, SPLIT_REST
from conversion.tables.mg_llava import LM

Published = Literal["safetensors", "bin", "pth", "split"]
OWN = ("pth", "split")
FORMATS = (*STEMS, *OWN)
STEM = "mg_llava"
LM_FOLDER = STEM + SPLIT_LM


def files(listed: Iterable[Tensor], format: Published) -> dict[str, list[Tensor]]:
    """File name -> its tensors, under the names that they have in it."""
    listed = list(listed)
    if format == "pth":
        return {f"{STEM}.pth": listed}
    if format != "split":
        return shards(listed, format)
    spoken = [
        dataclasses.replace(tensor, name=tensor.name.removeprefix(LM))
        for tensor in listed
        if tensor.name.startswith(LM)
    ]
    parts = shards(spoken, "safetensors").items()
    rest = [tensor for tensor in listed if not tensor.name.startswith(LM)]
    return {STEM + SPLIT_REST: rest} | {f"{LM_FOLDER}/{name}": group for name, group in parts}


def write_beside(
    folder: Path, written: Mapping[str, list[Tensor]], format: Published, config: Mapping[str, Any]
) -> None:
    """What goes with the `files` that are in a folder: the index of shards, config.json."""
    inner: Format = "bin" if format == "bin" else "safetensors"
    if format != "pth":
        spoken = folder / LM_FOLDER if format == "split" else folder
        names = {(folder / name).name: group for name, group in written.items()}
        names.pop(STEM + SPLIT_REST, None)
        write_index(spoken, names, inner)
    if format == "split":
        own = {name: config[name] for name in ("torch_dtype",) if name in config}
        write_json(folder / LM_FOLDER / "config.json", config["llm"] | own)
    write_json(folder / "config.json", config)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """A config.json as transformers writes it."""
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
