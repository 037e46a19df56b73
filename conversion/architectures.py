"""What can be converted: one entry per model class of the original code.

An entry knows the class's config.json in both directions, its table, and our module, whose axis
names decide how a release is cut on disk. `detect` finds the entry of a folder.
"""

import dataclasses
import functools
import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from conversion import engine, hf_config
from conversion.engine import Table, TensorInfo
from conversion.hf_config.groma import write_groma, write_groma_detector
from conversion.tables import (
    clip,
    convnext,
    deformable_detr,
    dinov2,
    ferret,
    groma,
    llama,
    mg_llava,
    owlv2,
    phi3,
    qwen2,
    tiny_grounding_gpt,
)
from conversion.tables.spellings import spelling_of
from mg_jax.errors import UserError

Manifest = Mapping[str, TensorInfo]
CONFIG_FILES = ("config.json", "open_clip_config.json")
# Part of a model -> our config class, and the stage that its release is of
PARTS = {
    "lm": ("mg_jax.lm:LMConfig", "language"),
    "vision": ("mg_jax.vision.vit:ViTConfig", "encoder"),
    "proposer": ("mg_jax.models.detr:DetrConfig", "proposer"),
}

# Systems whose releases name their architecture
NAMED = ("mg_llava", "ferret")


@dataclasses.dataclass(frozen=True)
class Architecture:
    """One model class of the original code.

    `part` is "lm", "vision" or "proposer", "" for a whole system. `read_config(raw, where)` gives
    the values of our config class `config` ("module:class"), `write_config(cfg)` the config.json
    that `torch_class` reads (None: an import cannot be undone). `rules(cfg, manifest)` is the table
    of a checkpoint that holds the tensors of `manifest`, or without one the table of an export;
    leaf paths are relative to the part. `fits(raw)`, if given, tells a config.json instead of
    `model_types`. `saved(name, stage)`: whether upstream's trainer saves a tensor, for the file of
    one stage; None where such a file is the whole model. `complete(raw, manifest)` adds to a
    config.json what only the tensors of a checkpoint tell.
    """

    name: str
    part: str
    model_types: tuple[str, ...]
    torch_class: str
    read_config: Callable[[Mapping[str, Any], str], dict[str, Any]]
    write_config: Callable[[Any], dict[str, Any]] | None
    rules: Callable[[Any, Manifest], Table]
    config: str = ""
    system: str = "parts"
    trained: tuple[str, ...] = ()
    fits: Callable[[Mapping[str, Any]], bool] | None = None
    saved: Callable[[str, str], bool] | None = None
    complete: Callable[[Mapping[str, Any], Manifest], dict[str, Any]] | None = None

    @property
    def stages(self) -> tuple[str, ...]:
        """The training stages that a release may be of, the likeliest first."""
        return self.trained or (PARTS[self.part][1],)

    @property
    def speaks(self) -> bool:
        """Whether a language model is part of it."""
        whole = self.system in (*NAMED, "tiny_grounding_gpt")
        return self.part == "lm" or self.name == "groma" or whole

    def is_of(self, raw: Mapping[str, Any]) -> bool:
        """Whether a config.json is of this class."""
        return self.fits(raw) if self.fits else raw.get("model_type") in self.model_types

    def build(self, values: Mapping[str, Any], where: str) -> Any:
        """Our config of plain values. Raises UserError naming a key that does not fit."""
        from mg_jax.config import build

        module, _, name = (self.config or PARTS[self.part][0]).partition(":")
        return build(getattr(importlib.import_module(module), name), values, where)

    def read(self, raw: Mapping[str, Any], where: str) -> Any:
        """Our config of a config.json of the original code. Raises UserError naming the field."""
        return self.build(self.read_config(raw, where), where)

    def table(self, cfg: Any, manifest: Manifest | None = None) -> Table:
        """The rules with leaf paths as in a release: parts under their name."""
        inner = self.rules(cfg, manifest or {})
        return engine.under("", f"{self.part}/", inner) if self.part else inner

    def model(self, cfg: Any) -> dict[str, Any]:
        """What a release's config.json says of the model."""
        from mg_jax.config import to_dict

        return {self.part: to_dict(cfg)} if self.part else to_dict(cfg)

    def settings(self, cfg: Any, stage: str = "") -> dict[str, Any]:
        """The fields of a release's config.json that tell what it is."""
        # the arrays of Groma tell its layout
        kind = {"architecture": self.name} if self.part or self.system in NAMED else {}
        stage = stage or self.stages[0]
        return {"system": self.system, **kind, "stage": stage, "model": self.model(cfg)}

    def axes(self, cfg: Any) -> dict[str, tuple[str | None, ...]]:
        """Leaf path -> logical axis names, from our module; computes nothing."""
        import jax

        from mg_jax import sharding

        boxed = sharding.abstract_params(_initialiser(self, cfg), jax.random.key(0))
        names = engine.flatten(sharding.param_names(boxed))
        return {f"{self.part}/{p}" if self.part else p: n for p, n in names.items()}


def _initialiser(architecture: Architecture, cfg: Any) -> Callable:
    """`init(key)` of our module with every parameter."""
    import jax.numpy as jnp

    if not architecture.part:
        from mg_jax.models import build

        return build(architecture.system, cfg).init(architecture.stages[0])
    if architecture.part == "lm":
        from mg_jax.lm import LM

        def run(module, ids):
            hidden, _ = module(module.embed(ids), jnp.ones(ids.shape, bool))
            return module.logits(hidden)

        return lambda key: LM(cfg).init(key, jnp.zeros((1, 2), jnp.int32), method=run)
    if architecture.part == "proposer":
        from mg_jax.models.detr import Proposer

        return lambda key: Proposer(cfg).init(key, jnp.zeros((4, 1, 17, cfg.width)))
    name = (architecture.config or PARTS["vision"][0]).partition(":")
    module = importlib.import_module(name[0])
    kind = getattr(module, name[2].removesuffix("Config"))
    side = cfg.image_size
    return lambda key: kind(cfg).init(key, jnp.zeros((1, side, side, 3)))


def _one(table: Callable[[Any], Table]) -> Callable[[Any, Manifest], Table]:
    """Rules of a class with one spelling."""
    return lambda cfg, manifest: table(cfg)


def _spelled(module: Any, written: str) -> Callable[[Any, Manifest], Table]:
    """Rules in whichever spelling a checkpoint has; `written`: the one of an export."""

    def rules(cfg: Any, manifest: Manifest) -> Table:
        return module.table(cfg, spelling_of(manifest, module.MARKS) if manifest else written)

    return rules


def _detection(cfg: Any, manifest: Manifest) -> Table:
    """Rules of a detector, whose number of categories its config.json need not tell."""
    head = manifest.get("class_embed.0.weight")
    return deformable_detr.detection_table(cfg, head.shape[0] if head else 1)


def _mg_llava(name: str, language: str, table: Callable[[Any], Table]) -> Architecture:
    """MG-LLaVA with a language model of that model_type; any other is left to Llama's to refuse."""

    def fits(raw: Mapping[str, Any]) -> bool:
        phi3 = hf_config.language_of(raw) == "phi3"
        return hf_config.is_mg_llava(raw) and phi3 == (language == "phi3")

    return Architecture(
        name, "", ("mg_llava",), "MultiFuseObjectLLaVAModel", hf_config.read_mg_llava,
        functools.partial(hf_config.write_mg_llava, language=language),
        functools.partial(mg_llava.table, language=table),
        "mg_jax.models.mg_llava:MGLLaVAConfig", "mg_llava", ("sft", "pretrain"), fits,
        mg_llava.saved,
    )  # fmt: skip


def _ferret(name: str, kind: str) -> Architecture:
    """Ferret v1 or Ferret-UI; the last stage is the one that published weights are of."""
    return Architecture(
        name, "", (kind,), hf_config.CLASSES[kind], hf_config.read_ferret, hf_config.write_ferret,
        ferret.table, "mg_jax.models.ferret:FerretConfig", "ferret",
        ("instruction", "dense", "caption"), functools.partial(hf_config.is_ferret, kind=kind),
        complete=hf_config.complete,
    )  # fmt: skip


def _groma_detector(cfg: Any, manifest: Manifest) -> Table:
    if cfg.taps:
        raise UserError("taps: upstream's detector reads the encoder's last hidden states")
    return groma.detector_table(cfg.vision, cfg.proposer)


ARCHITECTURES = {
    entry.name: entry
    for entry in (
        Architecture(
            "groma", "", ("groma",), "GromaModel", hf_config.read_groma, write_groma,
            _one(groma.table), "mg_jax.models.groma:GromaConfig", "groma",
            ("instruction", "alignment"),
        ),
        Architecture(
            "groma_detector", "", ("ddetr",), "CustomDDETRModel", hf_config.read_groma,
            write_groma_detector, _groma_detector, "mg_jax.models.groma:GromaConfig", "groma",
            ("detection",),
        ),
        _mg_llava("mg_llava", "llama", llama.table),
        _mg_llava("mg_llava_phi3", "phi3", phi3.table),
        _ferret("ferret", hf_config.V1),
        _ferret("ferret_ui", hf_config.UI),
        Architecture(
            "tiny_grounding_gpt", "", ("tiny_grounding_gpt",), "TinyGroundingGPT",
            hf_config.read_tiny_grounding_gpt, hf_config.write_tiny_grounding_gpt,
            tiny_grounding_gpt.table,
            "mg_jax.models.tiny_grounding_gpt:TinyGroundingGPTConfig", "tiny_grounding_gpt",
            ("global", "local", "llm", "projector"),
        ),
        Architecture(
            "llama", "lm", ("llama",), "LlamaForCausalLM", hf_config.read_llama,
            hf_config.write_llama, _one(llama.table),
        ),
        Architecture(
            "qwen2", "lm", ("qwen2",), "Qwen2ForCausalLM", hf_config.read_qwen2,
            hf_config.write_qwen2, _one(qwen2.table),
        ),
        Architecture(
            "phi3", "lm", ("phi3",), "Phi3ForCausalLM", hf_config.read_phi3,
            hf_config.write_phi3, _one(phi3.table),
        ),
        Architecture(
            "clip", "vision", ("clip_vision_model", "clip"), "CLIPVisionModel",
            hf_config.read_clip, hf_config.write_clip, _spelled(clip, "files"),
        ),
        Architecture(
            "owlv2", "vision", ("owlv2_vision_model", "owlv2"), "Owlv2VisionModel",
            hf_config.read_owlv2, hf_config.write_owlv2, _spelled(owlv2, "files"),
        ),
        Architecture(
            "dinov2", "vision", ("dinov2", "dinov2_with_registers"), "Dinov2Model",
            hf_config.read_dinov2, hf_config.write_dinov2, _spelled(dinov2, "files"),
        ),
        Architecture(
            "convnext", "vision", (), "timm's ConvNeXt", hf_config.read_convnext,
            hf_config.write_convnext, _spelled(convnext, "timm"),
            "mg_jax.vision.convnext:ConvNeXtConfig",
        ),
        Architecture(
            "deformable_detr", "proposer", ("deformable_detr",), "DeformableDetrForObjectDetection",
            hf_config.read_deformable_detr, None, _detection,
        ),
    )
}  # fmt: skip


def get(name: str) -> Architecture:
    """The entry of that name. Raises UserError listing the known ones."""
    if name not in ARCHITECTURES:
        raise UserError(f"--system {name!r} is not known: choose {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]


def detect(raw: Mapping[str, Any], where: str) -> Architecture:
    """The entry whose class a config.json is of. Raises UserError when it is of none."""
    kind = raw.get("model_type")
    for entry in ARCHITECTURES.values():
        if entry.is_of(raw):
            return entry
    if kind is None and raw.keys() & {"model_cfg", "architecture"}:  # open_clip's and timm's
        return ARCHITECTURES["convnext"]
    types = dict.fromkeys(t for entry in ARCHITECTURES.values() for t in entry.model_types)
    known = ", ".join(types)
    stated = "no model_type, so it is" if kind is None else f"model_type {kind!r} is"
    raise UserError(f"{where}: {stated} none of those that are known: {known}; pass --system")


def find_config(path: Path) -> Path:
    """The config file of a folder of weights, or beside a single file of them.

    Raises UserError when there is none.
    """
    folder = path if path.is_dir() else path.parent
    for name in CONFIG_FILES:
        if (folder / name).is_file():
            return folder / name
    raise UserError(
        f"{folder}: holds no config.json, which says what model the weights are of; put the "
        "published one there"
    )
