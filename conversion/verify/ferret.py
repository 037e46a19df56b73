"""Our Ferret on the inputs of a recorded instance, every array under its recorded name.

Upstream draws points and first anchors from an unseeded generator, even at inference, and its
nearest neighbours among equally near ones cannot be reproduced: points and indexes are fed. Of
Ferret-v2 there is no public code: that recording assembles the paper's equations (`Sketch`).
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from conversion import engine, located
from conversion.readers import open_checkpoint
from conversion.verify import (
    Case,
    Masked,
    ferret_inputs,
    ferret_probe,
    npz_names,
    npz_read,
    npz_shapes,
)
from conversion.verify.parts import gather
from mg_jax import losses
from mg_jax.disk import read_json
from mg_jax.models.ferret import Ferret
from mg_jax.vision import anyres

IMAGE, NO_LABEL = -200, -100
PAD = 0
REPLACED = 5  # the id that stands for <region_fea> where no regions are given
FED = ("sampler.sampled_points", "sampler.stage{}.fps_idx", "sampler.stage{}.knn_idx")
Parts = Iterator[tuple[str, Callable[[], dict[str, Any]]]]


def case(folder: Path) -> Case:
    """The case of a folder with config.json, model.safetensors, inputs.npz and outputs.npz.

    Raises UserError when the weights do not fit the config.
    """
    names = npz_names(folder / "outputs.npz")
    made = ferret_inputs.required(folder, npz_names(folder / "inputs.npz"))
    probe = ferret_probe.recorded(folder)
    fed = [x.format(i) for x in FED for i in range(2)]
    if not (folder / ferret_inputs.META).exists():
        fed.append("sampler.num_mask_points")  # of the recorded masks

    def produce():
        with jax.default_matmul_precision("highest"):
            return gather(Instance(folder).parts([*names, *made, *probe]))

    def recorded(name):
        if name in probe:
            return probe[name]
        if name in made:
            array = name.removeprefix(ferret_inputs.INPUTS)
            return npz_read(folder / "inputs.npz", [array])[array]
        return npz_read(folder / "outputs.npz", [name])[name]

    kind = read_json(folder / "config.json")["model_type"]
    required = (*names, *made, *probe)
    return Case(kind, required, dict.fromkeys(fed, "fed"), produce, recorded)


class Instance:
    """Converted weights and the inputs of a folder."""

    def __init__(self, folder: Path):
        self.folder, raw = folder, read_json(folder / "config.json")
        self.opened = located.made(
            str(folder), folder, raw, str(folder / "config.json"), open_checkpoint(folder)
        )
        self.cfg = self.opened.cfg
        params = engine.to_jax(self.opened.source.read, self.opened.plan, np.float32)
        self.params = jax.tree.map(jnp.asarray, params)
        self.inputs = npz_read(folder / "inputs.npz", npz_names(folder / "inputs.npz"))

    def parts(self, names: list[str]) -> Parts:
        """The recorded calls, those alone that some of `names` are of."""
        if any(x.startswith(ferret_inputs.INPUTS) for x in names):
            yield "inputs", self.prepared
        yield "pictures", self.features
        yield "sampler", self.sampler
        yield "joined", partial(self.joined, self.cfg)
        for mark, name, part in (
            ("region_features_meanpool", "mean pooler", self.mean_pool),
            ("region_map_image", "region maps", self.maps),
            ("unpad.", "spatial_unpad", self.unpad),
            ("inputs_embeds_", "no regions", partial(self.without_regions, names)),
            (ferret_probe.PROBE, "orientation", self.orientation),
        ):
            if any(x.startswith(mark) for x in names):
                yield name, part

    # -- inputs ----------------------------------------------------------------------------

    @cached_property
    def rows(self) -> np.ndarray:
        """Slot of every recorded region: (row, number in it), [R,2]."""
        owner = self.inputs["region_image_index"]
        return np.array([(i, (owner[:r] == i).sum()) for r, i in enumerate(owner)])

    @cached_property
    def pixels(self) -> dict[str, np.ndarray]:
        """low, and of pictures in tiles: tiles, grid, window."""
        if "pixel_values" in self.inputs:
            return {"low": nhwc(self.inputs["pixel_values"])}
        sizes = self.inputs["image_sizes_wh"].tolist()
        crops = [nhwc(self.inputs[f"pixel_values_image{i}"]) for i in range(len(sizes))]
        slots = max(map(len, crops)) - 1
        tiles = np.zeros((len(crops), slots, *crops[0].shape[1:]), np.float32)
        for row, crop in zip(tiles, crops, strict=True):
            row[: len(crop) - 1] = crop[1:]
        c = self.cfg
        chosen = [anyres.select(w, h, c.grids, c.tile_size) for w, h in sizes]
        windows = [
            anyres.window(w, h, c.grids[g], c.token_side)
            for (w, h), g in zip(sizes, chosen, strict=True)
        ]
        return {
            "low": np.stack([crop[0] for crop in crops]),
            "tiles": tiles,
            "grid": np.array(chosen, np.int32),
            "window": np.array(windows, np.int32),
        }

    def slots(self, values: np.ndarray) -> np.ndarray:
        """Values of every recorded region [R,...] in their slots [B,Q,...]."""
        rows, number = self.rows.T
        shape = len(self.inputs["input_ids"]), number.max() + 1
        out = np.zeros((*shape, *values.shape[1:]), values.dtype)
        out[rows, number] = values
        return out

    def listed(self, values: Any) -> np.ndarray:
        """The way back of `slots`."""
        return np.asarray(values)[tuple(self.rows.T)]

    @cached_property
    def masks(self) -> list[np.ndarray]:
        """uint8 [W,H] of every region."""
        return ferret_inputs.masks(self.folder, self.inputs)

    @cached_property
    def counts(self) -> np.ndarray:
        """Pixels of every region's mask."""
        return np.array([int(mask.sum()) for mask in self.masks])

    @cached_property
    def regions(self) -> dict[str, np.ndarray]:
        """points, point_count and the indexes fed."""
        points = self.inputs["sampled_points"]
        given = {"points": points, "point_count": np.minimum(self.counts, points.shape[1])}
        for i in range(len(self.cfg.sampler.anchors)):
            for name in ("fps", "knn"):
                given[f"{name}_{i}"] = self.inputs[f"stage{i}_{name}_idx"].astype(np.int32)
        return {name: self.slots(value) for name, value in given.items()}

    def prompt(self, cfg: Any, ids: np.ndarray | None = None, row: int | None = None) -> "Prompt":
        """The recorded ids (or `ids` [1,T] for the picture of `row`) with a slot a vector."""
        given, ids = ids is None, self.inputs["input_ids"] if ids is None else ids
        images = range(len(ids)) if row is None else [row]
        counts = [self.image_tokens(cfg, i) for i in images]
        labels = self.inputs["labels"] if given else np.full(ids.shape, NO_LABEL)
        mask = self.inputs["attention_mask"] if given else np.ones(ids.shape, bool)
        return Prompt.expand(cfg, ids, labels, mask, counts, keep_padding=not cfg.grids)

    def image_tokens(self, cfg: Any, i: int) -> int:
        """Vectors of picture i."""
        if not cfg.grids:
            return int(cfg.image_tokens())
        grid, window = (self.pixels[name][i] for name in ("grid", "window"))
        return int(cfg.image_tokens(cfg.grids[grid], tuple(window.tolist())))

    # -- calls -----------------------------------------------------------------------------

    @cached_property
    def seen(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Everything `encode` gives for all pictures and regions, and what it left behind."""
        model = partial(Ferret(self.cfg).apply, method="encode", mutable=["intermediates"])
        aux, left = jax.jit(model)({"params": self.params}, self.pixels | self.regions)
        return aux, left["intermediates"]

    def prepared(self) -> dict[str, Any]:
        """What is made of the pictures, and of the regions that are described."""
        out = ferret_inputs.pictures(self.cfg, self.inputs)
        name = f"{ferret_inputs.INPUTS}region{{}}_mask_wh"
        return out | {name.format(r): mask for r, mask in enumerate(self.masks)}

    def orientation(self) -> dict[str, Any]:
        """Which cell of the map a region is read from."""
        return ferret_probe.made(self.folder, self.cfg, self.params)

    def features(self) -> dict[str, Any]:
        """Raw and projected features of every crop, those of each picture in its order."""
        aux, _ = self.seen
        out = {}
        for ours, theirs in (("features", "clip_features"), ("tokens", "projected_image_features")):
            low = np.asarray(aux[f"low_{ours}"])
            crops = []
            for i, whole in enumerate(low):
                crops.append(whole[None])
                if "tiles" in self.pixels:
                    tiles = np.asarray(aux[f"tile_{ours}"])[i].reshape(-1, *whole.shape)
                    columns, rows = self.cfg.grids[self.pixels["grid"][i]]
                    crops.append(tiles[: columns * rows])
            out[theirs] = np.concatenate(crops)
        return out

    def sampler(self) -> dict[str, Any]:
        """Every step of the sampler; of region 0 what each neighbour becomes, too."""
        aux, left = self.seen
        points = zip(self.inputs["sampled_points"], self.masks, strict=True)
        out = {
            "sampler.sampled_points": np.array([ferret_inputs.drawn(*pair) for pair in points]),
            "sampler.num_mask_points": self.counts,
            "sampler.point_features": self.listed(aux["point_features"]),
            "sampler.flatten_out": self.listed(aux["sampler"]["flat"]),
            "sampler.region_features": self.listed(aux["region_tokens"]),
        }
        for i in range(len(self.cfg.sampler.anchors)):
            stage, spelled = f"sampler.stage{i}", left["sampler"][f"stage{i}"]
            of = aux["sampler"][f"stage{i}"]
            for ours, theirs in (
                ("points", "points"), ("pooled", "pooled"), ("fps", "fps_idx"), ("knn", "knn_idx"),
            ):  # fmt: skip
                out[f"{stage}.{theirs}"] = self.listed(of[ours])
            out[f"{stage}.diff_out_region0"] = self.listed(spelled["diff_out"][0])[0]
            mixed = self.listed(spelled["mix_out"][0])[0]
            out[f"{stage}.agg_out_region0"] = mixed.swapaxes(1, 2)
        return out

    def mean_pool(self) -> dict[str, Any]:
        """The same weights with neighbours averaged."""
        sampler = dataclasses.replace(self.cfg.sampler, pooler="mean")
        cfg = dataclasses.replace(self.cfg, sampler=sampler)
        encode = jax.jit(partial(Ferret(cfg).apply, method="encode"))
        aux = encode({"params": self.params}, self.pixels | self.regions)
        return {"region_features_meanpool": self.listed(aux["region_tokens"])}

    def maps(self) -> dict[str, Any]:
        """The map that regions are read from, cell by cell, which the model never builds."""
        aux, _ = self.seen
        out = {}
        for i, grid in enumerate(self.pixels["grid"]):
            columns, rows = (n * self.cfg.tile_side for n in self.cfg.grids[grid])
            row = {k: v[i : i + 1] for k, v in {**aux, **self.pixels}.items() if k in READ}
            out[f"region_map_image{i}"] = whole_map(self.cfg, row, rows, columns)
        return out

    def joined(self, cfg: Any, params: Any = None, prefix: str = "") -> dict[str, Any]:
        """What the language model is given and makes of it."""
        prompt = self.prompt(cfg)
        batch = {**self.pixels, **self.regions, "tokens": prompt.tokens, "valid": prompt.valid}
        logits, aux = jax.jit(Ferret(cfg).apply)({"params": params or self.params}, batch)
        target = prompt.labels != NO_LABEL
        tokens = np.where(target, prompt.labels, prompt.tokens)
        loss, _ = losses.next_token_loss(logits, jnp.asarray(tokens), jnp.asarray(target))
        positions = np.maximum(np.cumsum(prompt.valid, 1) - 1, 0) * prompt.valid
        out = {
            "inputs_embeds": prompt.padded(np.asarray(aux["embeddings"])),
            "new_attention_mask": prompt.valid,
            "new_labels": prompt.labels,
            "new_position_ids": positions,
            # what upstream computes at padding is neither used nor trained
            "logits": Masked(np.asarray(logits), prompt.valid),
            "loss": np.asarray(loss)[None],
        }
        return {prefix + name: value for name, value in out.items()}

    def unpad(self) -> dict[str, Any]:
        """The same weights with merge "spatial_unpad", whose vector the checkpoint holds."""
        name = "model.image_newline"
        params = {**self.params, "newline": jnp.asarray(self.opened.source.read(name))}
        cfg = dataclasses.replace(self.cfg, merge="spatial_unpad")
        return self.joined(cfg, params, "unpad.")

    def without_regions(self, names: list[str]) -> dict[str, Any]:
        """One picture and one prompt, no regions: `<region_fea>` is embedded as text, or another
        id stands in its place."""
        out = {}
        for name in names:
            if name == "inputs_embeds_sample2_no_region_masks":
                image, ids = 2, self.inputs["input_ids"][2:3]
            elif name == "inputs_embeds_no_regions_image0_ids2":
                image, ids = 0, self.inputs["input_ids"][2:3]
                ids = np.where(ids == self.cfg.id("region"), REPLACED, ids)
            else:
                continue
            kept = self.inputs["attention_mask"][2].astype(bool)
            prompts = [self.prompt(self.cfg, ids[:, k], image) for k in (kept, slice(None))]
            # with the padding of its row or without it: its length tells
            length = npz_shapes(self.folder / "outputs.npz")[name][1]
            prompt = prompts[prompts[1].tokens.shape[1] == length]
            batch = {k: v[image : image + 1] for k, v in self.pixels.items()}
            batch |= {"tokens": prompt.tokens, "valid": prompt.valid}
            _, aux = jax.jit(Ferret(self.cfg).apply)({"params": self.params}, batch)
            out[name] = prompt.padded(np.asarray(aux["embeddings"]))
        return out


READ = ("low_features", "low_tokens", "tile_features", "tile_tokens", "tiles", "grid")


def whole_map(cfg: Any, row: Mapping[str, Any], rows: int, columns: int) -> np.ndarray:
    """[rows, columns, C] of one picture by `Ferret.read` at every cell."""
    cells = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), -1)
    at = cells.reshape(1, -1, 2) / np.maximum([rows - 1, columns - 1], 1).astype(np.float32)
    batch = {k: row[k] for k in ("tiles", "grid")}
    read = jax.jit(partial(Ferret(cfg).apply, method="read"))
    return np.asarray(read({"params": {}}, dict(row), at, batch)).reshape(rows, columns, -1)


def nhwc(pixels: np.ndarray) -> np.ndarray:
    """[B,3,Y,X] -> [B,Y,X,3]."""
    return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))


@dataclasses.dataclass(frozen=True)
class Prompt:
    """Recorded rows with a placeholder for every visual vector: tokens, labels, valid [B,T].

    v1 keeps the padding it was given, whose rows are embedded as text; Ferret-UI pads anew, with
    zeros.
    """

    tokens: np.ndarray
    labels: np.ndarray
    valid: np.ndarray
    zeros: bool

    @classmethod
    def expand(
        cls,
        cfg: Any,
        ids: np.ndarray,
        labels: np.ndarray,
        mask: np.ndarray,
        counts: list[int],
        *,
        keep_padding: bool,
    ) -> "Prompt":
        """Rows of ids [B,T0], row i's picture being `counts[i]` vectors."""
        rows = []
        for row, targets, kept, count in zip(ids, labels, mask.astype(bool), counts, strict=True):
            listed = zip(row.tolist(), targets.tolist(), kept.tolist(), strict=True)
            out: list[tuple[int, int, bool]] = []
            for token, label, keep in listed:
                if token == IMAGE:
                    out += [(cfg.id("image"), NO_LABEL, True)] * count
                elif keep or keep_padding:
                    out.append((token, label, keep))
            rows.append(out)
        longest = max(map(len, rows))
        full = np.array([r + [(PAD, NO_LABEL, False)] * (longest - len(r)) for r in rows])
        return cls(
            full[..., 0].astype(np.int32), full[..., 1], full[..., 2].astype(bool), not keep_padding
        )

    def padded(self, embeddings: np.ndarray) -> np.ndarray:
        """Embeddings with upstream's values at padding."""
        return np.where(self.valid[..., None], embeddings, 0) if self.zeros else embeddings
