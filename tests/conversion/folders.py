"""Small folders of weights in each architecture's own layout, of random numbers."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from conversion import engine, readers
from conversion.architectures import ARCHITECTURES, Architecture
from mg_jax.lm import LMConfig
from mg_jax.models.detr import DetrConfig
from mg_jax.models.ferret import FerretConfig, version
from mg_jax.models.groma import GromaConfig
from mg_jax.models.mg_llava import MGLLaVAConfig
from mg_jax.models.regions import RegionConfig
from mg_jax.models.tiny_grounding_gpt import TinyGroundingGPTConfig
from mg_jax.vision.convnext import ConvNeXtConfig
from mg_jax.vision.vit import ViTConfig

LM = LMConfig(vocab=40, width=32, mlp=48, layers=3, heads=4, kv_heads=2, head=8, max_positions=64)
VISION = ViTConfig(width=16, layers=2, heads=2, image_size=56, patch=14)
GROMA = GromaConfig(
    vision=ViTConfig(width=64, layers=3, heads=2, image_size=56, position_rule="scale_offset"),
    proposer=DetrConfig(
        width=32, encoder_layers=1, decoder_layers=2, encoder_heads=2, decoder_heads=2,
        encoder_ffn=16, decoder_ffn=16, queries=8, levels=1, levels_from="mean", refinement="none",
        two_heads=True,
    ),
    regions=RegionConfig(
        width=64, hidden=16, box_format="cxcywh", strides="published", mlp=False, scale=56.0
    ),
    lm=LMConfig(
        vocab=1200, width=32, mlp=48, layers=2, heads=4, kv_heads=4, head=8, max_positions=1024
    ),
    image_size=56,
)  # fmt: skip
CLIP = ViTConfig(**{**vars(VISION), "kind": "clip", "eps": 1e-5, "activation": "quick_gelu"})
MG_LLAVA = MGLLaVAConfig(
    low=CLIP,
    high=ConvNeXtConfig(depths=(1, 2, 1, 1), widths=(8, 16, 24, 32), image_size=128),
    lm=LM,
)
# v1 as published, and Ferret-UI with the merge that has a tensor of its own
FERRET = FerretConfig(
    **version("v1"), low=CLIP, lm=LM, low_size=56, tile_size=56, region_token=39, text_positions=0
)
FERRET_UI = FerretConfig(
    **version("ui") | {"grids": ((1, 2), (2, 1))}, low=CLIP, lm=LM, low_size=56, tile_size=56,
    merge="spatial_unpad", region_token=38, text_positions=0,
)  # fmt: skip
CONFIGS: dict[str, Any] = {
    "groma": GROMA,
    "groma_detector": GROMA,
    "llama": LM,
    "qwen2": LMConfig(**{**vars(LM), "tied": True, "qkv_bias": True}),
    "phi3": LMConfig(**{**vars(LM), "kv_heads": 4}),
    "clip": ViTConfig(**{**vars(VISION), "kind": "clip", "eps": 1e-5}),
    "owlv2": ViTConfig(**{**vars(VISION), "kind": "clip", "eps": 1e-5}),
    "dinov2": VISION,
    "mg_llava": MG_LLAVA,
    "mg_llava_phi3": dataclasses.replace(
        MG_LLAVA, lm=LMConfig(**{**vars(LM), "kv_heads": 4, "window": 20})
    ),
    "ferret": FERRET,
    "ferret_ui": FERRET_UI,
    "tiny_grounding_gpt": TinyGroundingGPTConfig(
        clip=CLIP,
        dino=ViTConfig(**{**vars(VISION), "image_size": 70}),
        lm=LMConfig(**{**vars(LM), "qkv_bias": True}),
        object_tokens=4,
    ),
    "convnext": ConvNeXtConfig(depths=(1, 2, 1, 1), widths=(8, 16, 24, 32)),
}


def random_state(shapes: dict[str, tuple[int, ...]], dtype: Any = np.float32, seed: int = 0):
    """{name: array} of normal numbers."""
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


def state_of(
    entry: Architecture, cfg: Any, dtype: Any = np.float32, seed: int = 0
) -> dict[str, np.ndarray]:
    """A state dict of random numbers, copies equal to their sources."""
    plan = engine.expand(entry.table(cfg))
    state = random_state(plan.torch_shapes(), dtype, seed)
    return state | {copy: state[source] for copy, source in plan.tied.items()}


def write_folder(
    folder: Path, name: str, dtype: Any = np.float32, cfg: Any = None, seed: int = 0
) -> dict[str, np.ndarray]:
    """Write a folder of architecture `name`; returns its state dict."""
    entry, cfg = ARCHITECTURES[name], cfg or CONFIGS[name]
    state = state_of(entry, cfg, dtype, seed)
    folder.mkdir(parents=True, exist_ok=True)
    assert entry.write_config is not None
    (folder / "config.json").write_text(json.dumps(entry.write_config(cfg)))
    readers.write_safetensors(folder / "model.safetensors", state)
    return state


def read_folder(folder: Path) -> dict[str, np.ndarray]:
    """Every tensor of a folder."""
    source = readers.open_checkpoint(folder)
    return {name: source.read(name) for name in source.manifest}


def into_cache(root: Path, name: str, folder: Path, commit: str, *refs: str) -> None:
    """Move the files of a folder into a cache of the hub, in its own layout: links to blobs."""
    repository = root / f"models--{name.replace('/', '--')}"
    for part in ("blobs", "refs", f"snapshots/{commit}"):
        (repository / part).mkdir(parents=True, exist_ok=True)
    for file in folder.iterdir():
        blob = repository / "blobs" / f"{commit}-{file.name}"
        shutil.move(file, blob)
        (repository / "snapshots" / commit / file.name).symlink_to(blob)
    for ref in refs:
        (repository / "refs" / ref).write_text(commit)


def set_config(folder: Path, **fields: Any) -> None:
    """Change fields of a folder's config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """Equal names, dtypes, shapes and bits."""
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape, name
        assert found[name].tobytes() == tensor.tobytes(), name
