"""Ferret-v2's equations assembled of public parts (no public code exists), in four readings: maps
added raw or projected, the global one upsampled to the nearest or bilinearly."""

import dataclasses
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from conversion import engine
from conversion.hf_config import read_clip, read_dinov2
from conversion.readers import open_checkpoint
from conversion.tables import clip, dinov2
from conversion.tables.ferret import projector, sampler
from conversion.verify import Case, npz_names, npz_read
from conversion.verify.ferret import Parts, nhwc, whole_map
from conversion.verify.ferret_inputs import INPUTS, drawn, mask, seen
from conversion.verify.parts import gather
from mg_jax.config import build
from mg_jax.disk import read_json
from mg_jax.lm import LMConfig
from mg_jax.models.ferret import Ferret, FerretConfig
from mg_jax.models.sampler import SamplerConfig
from mg_jax.vision.anyres import GRIDS_V2, select

FED = ("sampled_points", "stage0_fps_idx", "stage0_knn_idx", "stage1_fps_idx", "stage1_knn_idx")
# of inputs.npz what is made of the picture and of the region, which is a box
MADE = ("best_wh", "grid_wh", "global_pixel_values", "local_pixel_values", "region_mask_wh")
MASK = f"{INPUTS}region_mask_wh"
SHORT = {"raw": "raw", "projected": "proj"}


def case(folder: Path) -> Case:
    """The case of a folder whose config.json describes `clip` and `dinov2`."""
    names = npz_names(folder / "outputs.npz")
    fed = [name for name in names if name in FED]
    made = [INPUTS + name for name in npz_names(folder / "inputs.npz") if name in MADE]

    def produce():
        given = npz_read(folder / "outputs.npz", fed)
        with jax.default_matmul_precision("highest"):
            return gather(Sketch(folder, given).parts())

    def recorded(name):
        file = "inputs.npz" if name in made else "outputs.npz"
        array = name.removeprefix(INPUTS)
        return npz_read(folder / file, [array])[array]

    given = dict.fromkeys([*fed, MASK], "fed")
    return Case("ferret v2 sketch", (*names, *made), given, produce, recorded)


class Sketch:
    """Converted weights, inputs, and the points and indexes that are fed."""

    def __init__(self, folder: Path, fed: dict[str, np.ndarray]):
        raw = read_json(folder / "config.json")
        self.source, self.fed = open_checkpoint(folder), fed
        self.inputs = npz_read(folder / "inputs.npz", npz_names(folder / "inputs.npz"))
        width = self.source.manifest["mlp_g.2.bias"].shape[0]
        side = self.inputs["local_pixel_values"].shape[-1]
        rows, columns = self.inputs["image_uint8"].shape[:2]
        grid = GRIDS_V2[select(columns, rows, GRIDS_V2, side)]
        tower = read_clip(raw["clip"], "config.json.clip")
        tile = read_dinov2(raw["dinov2"], "config.json.dinov2")
        values = {
            "low": tower, "tile": tile, "low_size": self.inputs["global_pixel_values"].shape[-1],
            "tile_size": side, "grids": [grid],
            "low_layer": raw.get("clip_select_layer", -2), "transpose_sampling": True,
        }  # fmt: skip
        found = SamplerConfig(
            fed["sampled_points"].shape[-2],
            tuple(fed[f"stage{i}_fps_idx"].shape[-1] for i in range(2)),
            tuple(fed[f"stage{i}_knn_idx"].shape[-1] for i in range(2)),
        )
        self.cfg: FerretConfig = dataclasses.replace(
            build(FerretConfig, values), lm=LMConfig(width=width, vocab=1), sampler=found
        )
        self.batch = {
            "low": nhwc(self.inputs["global_pixel_values"]),
            "tiles": nhwc(self.inputs["local_pixel_values"])[None],
            "grid": np.zeros(1, np.int32),
        }

    def parts(self) -> Parts:
        """What both encoders see, and the four readings."""
        yield "given", self.given
        yield "inputs", self.prepared
        yield "encoders", self.encoders
        for fusion, upsampling in product(SHORT, ("nearest", "bilinear")):
            yield f"{fusion}, {upsampling}", partial(self.reading, fusion, upsampling)

    def given(self) -> dict[str, Any]:
        """What is fed; points outside of the region are NaN."""
        points = drawn(self.fed["sampled_points"], self.mask)
        return {**self.fed, "sampled_points": points.astype(np.float32)}

    @cached_property
    def mask(self) -> np.ndarray:
        """uint8 [W,H] of the region, which is recorded as a mask alone and is a box."""
        x, y = np.nonzero(self.inputs["region_mask_wh"])
        box = [int(v) for v in (x.min(), y.min(), x.max(), y.max())]
        return mask({"kind": "box", "box": box}, *self.inputs["region_mask_wh"].shape)

    def prepared(self) -> dict[str, Any]:
        """What both encoders are given, and the region's mask."""
        low, tiles, grid = seen(self.cfg, self.inputs["image_uint8"])
        made = {
            "global_pixel_values": low, "local_pixel_values": tiles, "grid_wh": np.array(grid),
            "best_wh": np.array(grid) * self.cfg.tile_size, "region_mask_wh": self.mask,
        }  # fmt: skip
        return {INPUTS + name: value for name, value in made.items()}

    def params(self, fusion: Any) -> dict[str, Any]:
        """Everything but the language model; each reading's sampler is of its own width."""
        c = dataclasses.replace(self.cfg, fusion=fusion)
        tile = c.tile
        assert tile is not None
        table = (
            engine.under("clip.", "low/", clip.table(c.low))
            + engine.under("dinov2.", "tile/", dinov2.table(tile))
            + engine.under("mlp_g.", "projector/", projector("mlp", c.low.width, c.lm.width))
            + engine.under("mlp_l.", "tile_projector/", projector("mlp", tile.width, c.lm.width))
            + engine.under(
                f"sampler_{SHORT[fusion]}.", "sampler/", sampler(c.sampler, c.map_width, c.lm.width)
            )
        )
        names = {n for leaf in engine.expand(table).leaves for n in leaf.names}
        held = {n: x for n, x in self.source.manifest.items() if n in names}
        plan = engine.plan(held, table, self.source.where)
        return jax.tree.map(jnp.asarray, engine.to_jax(self.source.read, plan, np.float32))

    @cached_property
    def seen(self) -> dict[str, Any]:
        """What `encode` gives without regions."""
        return self.encode(self.cfg, self.params(self.cfg.fusion), self.batch)

    def encode(self, cfg: Any, params: Any, batch: Any) -> dict[str, Any]:
        """`Ferret.encode`, compiled."""
        return jax.jit(partial(Ferret(cfg).apply, method="encode"))({"params": params}, batch)

    def encoders(self) -> dict[str, Any]:
        """Features, their projections, and the tokens in the prompt's order."""
        tiles = len(self.inputs["local_pixel_values"])

        def apart(values):
            return np.asarray(values).reshape(tiles, -1, values.shape[-1])

        before = dataclasses.replace(self.cfg, tile_layer=-2)
        early = self.encode(before, self.params(self.cfg.fusion), self.batch)
        return {
            "F_g": self.seen["low_features"],
            "H_g": self.seen["low_tokens"],
            "F_l": apart(self.seen["tile_features"]),
            "H_l": apart(self.seen["tile_tokens"]),
            "F_l_penultimate": apart(early["tile_features"]),
            "visual_tokens": self.seen["image_tokens"][0],
        }

    def reading(self, fusion: Any, upsampling: Any) -> dict[str, Any]:
        """The fused map and the region's vector in one reading."""
        cfg = dataclasses.replace(self.cfg, fusion=fusion, upsampling=upsampling)
        points = self.fed["sampled_points"]
        points = points.reshape(1, -1, *points.shape[-2:])
        regions = {
            "points": points.astype(np.float32),
            "point_count": np.full(points.shape[:2], points.shape[2], np.int32),
        }
        for i in range(len(cfg.sampler.anchors)):
            for name in ("fps", "knn"):
                regions[f"{name}_{i}"] = self.fed[f"stage{i}_{name}_idx"][None].astype(np.int32)
        aux = self.encode(cfg, self.params(fusion), self.batch | regions)
        columns, rows = (n * cfg.tile_side for n in cfg.grids[0])
        name = f"{SHORT[fusion]}_{upsampling}"
        return {
            f"H_a_{name}": whole_map(cfg, {**aux, **self.batch}, rows, columns),
            f"region_feature_{name}": aux["region_tokens"][0],
        }
