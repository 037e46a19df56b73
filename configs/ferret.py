"""Ferret-v2 in three stages, each from the checkpoint of the one before:

    python -m launch.train --config configs/ferret.py:stage=caption,size=tiny --workdir runs/a \\
        --config.init_from=runs/labels,runs/language
    python -m launch.train --config configs/ferret.py:stage=dense,size=tiny --workdir runs/b \\
        --config.init_from=runs/labels,runs/a
    python -m launch.train --config configs/ferret.py:stage=instruction,size=tiny \\
        --workdir runs/c --config.init_from=runs/b

stage=dense may be left out (the paper's ablation): the last one then starts from what that would.
The tiles' projector begins with the global one's values, where none is there (size=tiny has one).
version=v1 and version=ui (Ferret-UI) have the last stage alone, which begins with CLIP and a plain
language model, whose vocabulary grows by <region_fea>; behind --config.init_from=... of a
converted one, which reads its maps mirrored, write --config.model.transpose_sampling=True.

size=tiny trains on procedural scenes from squares to 1x6 on a CPU. No pretrained encoders of that
size exist, so a stage before the three teaches them, by things and the words that name them:

    python -m launch.train --config configs/ferret.py:stage=labels,size=tiny --workdir runs/labels
    python -m launch.language groma-tiny --out runs/language

The second is the language model that stage=caption begins with; left out, it begins with nothing.
Stage labels may begin with encoders of launch.tower, those of another system's stage labels.
Stage labels stands behind --config.init_from of stage=caption, and, before the release of that
stage, which has no tiles, behind that of the next: --config.init_from=runs/labels,runs/a.

size=7b|13b is Vicuna and version=ui,size=8b Llama-3-8B; they need --config.data=...,
--config.codec.tokenizer=FOLDER, and for their first stage CLIP, DINOv2 (v2) and the language model
as converted releases, --config.init_from=FOLDER,FOLDER,FOLDER.

Hyper-parameters: v1's and Ferret-UI's are published (spec 8). Of v2 the paper's text names the data
of each stage and what trains, but no learning rate, batch size or number of epochs: they are v1's
here in every stage, one epoch for the first two.

Context: a picture of six tiles is 4,032 tokens of Vicuna's 4,096 positions. Of v2, context=slow
slows rotary positions down by an eighth (4,608 of them, 576 for text; model.lm.rope_scaling),
context=pool averages 2x2 of a tile's tokens into one (1,440 tokens, 1,984 for text), and
context=fewer has no grids of six tiles (3,456 tokens, 640 for text); the latter two leave the
language model as it is. v1 has 2,048 positions, 1,472 of them for text, and Ferret-UI 4,096, 1,216
for text. --config.model.tile_size=224 makes tiles of 1,536 tokens in all, 448 needs context=pool.

Ablations of the paper, of v2 (docs/ferret.md has the commands): arm=fixed sees the whole picture
alone; arm=direct too, in a size that CLIP's positions are interpolated for (448 px), and arm=any in
up to four tiles of half that side by the same encoder; arm=ground reads regions from the whole
picture alone; arm=clip lets CLIP see the tiles. Arms may start from a release of another one: parts
that they lack stay behind, and so does a projector of tiles that another encoder saw.
encoder=frozen keeps the encoders as they are in the last stage, encoder=trained does not; by
default they are trained as published, and of size=tiny frozen. sampler=fresh begins with a new one.
"""

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from configs import base
from configs.mg_llava import labels
from mg_jax.attention import RopeScaling
from mg_jax.config import to_dict
from mg_jax.errors import UserError
from mg_jax.lm import LMConfig
from mg_jax.models import ferret
from mg_jax.models.ferret import FerretConfig
from mg_jax.models.sampler import SamplerConfig
from mg_jax.vision.anyres import GRIDS_V2, up_to
from mg_jax.vision.vit import ViTConfig

CHOICES = {
    "stage": ("caption", "dense", "instruction", "labels"),
    "size": ("tiny", "7b", "13b", "8b"),
    "version": ("v2", "v1", "ui"),
    "context": ("slow", "pool", "fewer"),
    "arm": ("full", "fixed", "direct", "any", "ground", "clip"),
    "encoder": ("auto", "trained", "frozen"),
    "sampler": ("auto", "fresh"),
}
# positions of the language model, and of these for text; of v2 by context
CONTEXT = {
    "v1": (2048, 1472), "ui": (4096, 1216), "slow": (4608, 576), "fewer": (4096, 640),
    "pool": (4096, 1984),  # tiles of 448 px are 2,112 tokens, of 336 px 1,440
}  # fmt: skip
TEMPLATES = {"v2": "ferret_v1", "v1": "ferret_v1", "ui": "ferret_vicuna_v1"}
# What Ferret v1, Ferret-UI and encoder=frozen train in the last stage: all but the encoders
TRAINED = (*ferret.TRAINABLE["dense"], "lm/.*")

# (part, field of its config that it was learned with): of another tower's tiles it is of no use
ALIKE = (("tile_projector", "tile"), ("tile_places", "tile"), ("tile_places", "grids"))
# A plain language model has no row for <region_fea>; where that stands a region's vector is put in
ROWS = (("lm/embed/embedding", 0), ("lm/head/kernel", 1))
SAMPLER = "sampler/.*"
UPSAMPLED = 448  # pixels of the whole picture, directly upsampled
SIDE = 112  # pixels of the tiny model's tiles
# What a whole picture and names are enough for
WHOLE = "caption*2+attribute*2+presence*2+count+relation*2+rec*3+read"
# Questions about one place or one thing, and Ferret's own about regions
TASKS = (
    "rec*5+rec_absent*1.5+all_instances*2+all_instances_absent*0.8+region*3+region_detail+point*2+"
    "scribble*2+mask*2+which_box*1.5+which_point*1.5+which_free*1.5+presence*3+count*0.8+relation+"
    "attribute+read*2+dialogue*0.5+caption*0.3"
)
SHARES = {1: 1.0, 2: 1.0, 4: 0.8, 6: 0.6}  # of batches by count of tiles: many take long
SCENES = {  # by count of tiles: width x height in tiles
    1: ((1, 1),),
    2: ((2, 1), (1, 2)),
    4: ((2, 2), (3, 1), (1, 3), (4, 1), (1, 4)),
    6: ((3, 2), (2, 3), (5, 1), (1, 5), (6, 1), (1, 6)),
}


def get_config(arg: str = "") -> ConfigDict:
    """Config of "stage=...,size=...,version=..."; the docstring of this file is the manual."""
    choice = base.parse_arg(arg, CHOICES)
    stage, size, version = (choice[k] for k in ("stage", "size", "version"))
    if version != "v2" and stage != "instruction":
        raise UserError(f"version={version} has one stage alone: write stage=instruction")
    if stage == "labels" and size != "tiny":
        raise UserError(
            f"stage=labels is for size=tiny: the encoders of {size} are pretrained: take caption"
        )
    if size == "8b" and version != "ui":
        raise UserError("size=8b is Llama-3-8B, which only version=ui has: write size=7b or 13b")
    if version != "v2":
        for key in ("context", "arm", "encoder", "sampler"):
            if choice[key] != CHOICES[key][0]:
                raise UserError(f"{key}={choice[key]} is of version=v2: leave version out")
    if choice["context"] == "pool" and size == "tiny":
        raise UserError("context=pool: size=tiny pools its tiles as it is: leave context out")
    if choice["encoder"] != "auto" and stage != "instruction":
        raise UserError(
            f"encoder={choice['encoder']} is of stage=instruction: leave it out of stage={stage}"
        )
    if choice["sampler"] != "auto" and stage not in ("dense", "instruction"):
        raise UserError(f"sampler={choice['sampler']} is of stages dense and instruction alone")
    c = base.get_config()
    c.system, c.stage, c.size = "ferret", stage, size
    context = choice["context"] if version == "v2" else version
    model = tiny_model(version) if size == "tiny" else full_model(size, version, context)
    if version == "v2":
        fields = context_fields(context) | arm_fields(choice["arm"], model)
        model = dataclasses.replace(model, **fields)
    c.image_size = model.low_size
    c.model = ConfigDict(to_dict(model))
    c.model.low_size = c.get_ref("image_size")

    c.preprocess = "clip_squash"
    c.codec.refer_format = "hybrid"
    c.codec.template = TEMPLATES[version]
    c.codec.too_long = "skip"  # counted in the metrics; upstream cuts such texts off
    c.points = 0.5  # one coin a question: point or box
    c.batch_size = 128
    c.optim.lr = 2e-5
    c.optim.warmup_ratio = 0.03
    if stage == "labels":
        labels(c)
    else:
        {"caption": caption, "dense": dense, "instruction": instruction}[stage](c, version, model)
    if size == "tiny":
        tiny(c, version, model)
    else:
        full(c, version, context)
    if choice["encoder"] != "auto":
        encoders(c, choice["encoder"], model)
    if choice["sampler"] == "fresh":
        c.init_ignore = (*c.init_ignore, SAMPLER)
        c.init_required = tuple(x for x in c.init_required if x != SAMPLER)
    return c.lock()


# -- stages (spec 8) -----------------------------------------------------------------------------


def caption(c: ConfigDict, version: str, model: FerretConfig) -> None:
    """The global projector, on captions of whole pictures."""
    c.tasks = "caption"
    c.init_stages = ("encoder", "language", "caption")
    c.init_required = ("low/.*", "lm/.*")
    c.init_parts = (("clip", "vision", "low"),)
    c.trainable = ferret.TRAINABLE["caption"]


def dense(c: ConfigDict, version: str, model: FerretConfig) -> None:
    """Projectors and sampler, on many objects of a picture at a time."""
    c.tasks = "dense_referring+dense_detection"
    c.codec.refer_slots = 10  # about as many objects a sample (spec 8)
    c.init_stages = ("caption", "encoder", "dense")
    with_tiles(c, model)
    c.trainable = ferret.TRAINABLE["dense"]


def instruction(c: ConfigDict, version: str, model: FerretConfig) -> None:
    """Everything, both encoders too; of v1 and Ferret-UI all but the encoder."""
    c.train.epochs = 3.0
    if version == "v2":
        c.init_stages = ("dense", "caption", "encoder", "instruction")
        with_tiles(c, model)
        c.trainable = ferret.TRAINABLE["instruction"]
    else:
        c.init_stages = ("encoder", "language", "instruction")
        c.init_required = ("low/.*", "lm/.*")
        c.init_parts = (("clip", "vision", "low"),)
        c.init_grown = ROWS
        c.trainable = TRAINED


def with_tiles(c: ConfigDict, model: FerretConfig) -> None:
    """What the stages of v2 with tiles start from; arms lack some of its parts."""
    c.init_required = ("low/.*", "lm/.*", "projector/.*")
    if model.tile:
        c.init_required = (*c.init_required, "tile/.*")
        c.init_parts = (("dinov2", "vision", "tile"),)
    c.init_copy = (("projector", "tile_projector"),)
    c.init_ignore = tuple(f"{part}/.*" for part, there in tile_parts(model).items() if not there)
    c.init_alike = tuple((f"{part}/.*", field) for part, field in ALIKE)


def tile_parts(model: FerretConfig) -> dict[str, bool]:
    """Which of the parts for tiles a model has."""
    grids = bool(model.grids)
    return {
        "tile": model.tile is not None,
        "tile_projector": grids and model.tile_projector == "own",
        "tile_places": grids and model.tile_places,
    }


def encoders(c: ConfigDict, how: str, model: FerretConfig) -> None:
    """Whether the last stage trains the encoders; those of size=tiny as slowly as suits them."""
    c.trainable = TRAINED if how == "frozen" else ferret.TRAINABLE["instruction"]
    if how == "trained" and c.size == "tiny":
        parts = "(low|tile)/.*" if model.tile else "low/.*"
        c.optim.lr_multipliers = ((parts, 0.1),)


def full(c: ConfigDict, version: str, context: str) -> None:
    """What all published sizes share."""
    text = c.codec.text_tokens = CONTEXT[context][1]
    c.codec.buckets = (128, 256, 384) if text < 1024 else (256, 512, 1024)  # of text alone
    if c.size == "8b":
        c.codec.template = "ferret_llama_3"
    if c.stage == "caption":
        c.codec.template = "plain"  # as LLaVA's first stage, whose projector v1 starts from


# -- models --------------------------------------------------------------------------------------


def full_model(size: str, version: str, context: str) -> FerretConfig:
    """The version's vision, and Vicuna-7B or 13B or Llama-3-8B."""
    compute = {"dtype": "bfloat16", "remat": "full"}
    shapes = {
        "7b": {},
        "13b": dict(width=5120, mlp=13824, layers=40, heads=40, kv_heads=40),
        "8b": dict(vocab=128257, mlp=14336, kv_heads=8, rope_theta=500000.0),
    }
    lm = LMConfig(**shapes[size], max_positions=CONTEXT[context][0], **compute)
    if version == "v1":
        lm = dataclasses.replace(lm, eps=1e-6)  # of Vicuna v1.3, as of the first LLaMA
    fields = ferret.version(version) | {"transpose_sampling": False}
    if context == "slow":
        lm = dataclasses.replace(lm, rope_scaling=RopeScaling("linear", 1.125))
    if version != "v2":  # the vocabularies of their releases end with <region_fea>
        lm = dataclasses.replace(lm, vocab=128257 if size == "8b" else 32001)
        fields["region_token"] = lm.vocab - 1
    plain = FerretConfig()
    fields["low"] = dataclasses.replace(plain.low, **compute)
    if version == "v2":
        fields["tile"] = dataclasses.replace(plain.tile, **compute)
    return FerretConfig(lm=lm, **fields)


def context_fields(context: str) -> dict[str, Any]:
    """Of FerretConfig: by what means a picture of six tiles leaves room for text."""
    fields: dict[str, Any] = {"pool": {"tile_pool": 2}, "fewer": {"grids": up_to(GRIDS_V2, 5)}}
    return dict(fields.get(context, {}))


def arm_fields(arm: str, model: FerretConfig) -> dict[str, Any]:
    """Of FerretConfig: what an arm of the paper's ablations has otherwise.

    "direct" and "any" are as in its section 3.2: 448 px are 1,024 tokens, at most four tiles of
    224 px and the whole picture 1,280; at tiny size 784 and, since tiles are pooled, 392.
    """
    alone = {"tile": None, "tile_projector": "shared"}
    whole = alone | {"grids": ()}
    side = SIDE if model.tile_size == SIDE else UPSAMPLED // 2
    return {
        "full": {},
        "fixed": whole,
        "direct": whole | {"low_size": 2 * side},
        "any": alone | {"grids": up_to(GRIDS_V2, 4), "low_size": side, "tile_size": side},
        "ground": {"region_map": "global"},
        "clip": {"tile": None},
    }[arm]


def tiny_model(version: str) -> FerretConfig:
    """Under 5 million parameters: 196 tokens a picture and, pooled, 49 more a tile of 112 px.

    Small patches and many heads, for what a thing is has to be gathered from several.
    """
    shape = dict(width=128, layers=4, heads=8, mlp_ratio=3.0, patch=8, image_size=SIDE)
    fields = ferret.version(version) | {"transpose_sampling": False, "low_layer": -1}
    fields["low"] = ViTConfig(kind="clip", activation="quick_gelu", eps=1e-5, **shape)
    sampler = SamplerConfig(points=128, anchors=(32, 8), neighbours=(12, 8))
    if version != "v1":
        fields["tile_pool"] = 2
    if version == "v2":
        fields["tile"] = ViTConfig(kind="dinov2", **shape)
        fields["tile_places"] = True
        sampler = dataclasses.replace(sampler, residual=True)
    return FerretConfig(
        lm=LMConfig(
            vocab=1314, width=192, mlp=384, layers=4, heads=4, kv_heads=4, head=48,
            max_positions=1152, tied=True,
        ),
        low_size=SIDE,
        tile_size=SIDE,
        sampler=sampler,
        unit_vectors=True,
        text_positions=320,
        **fields,
    )  # fmt: skip


# Peak learning rate and updates of size=tiny
UPDATES = {
    "labels": (1e-3, 5000), "caption": (1e-3, 1500), "dense": (1e-3, 1500),
    "instruction": (1e-3, 5000),
}  # fmt: skip


def tiny(c: ConfigDict, version: str, model: FerretConfig) -> None:
    """What size=tiny does otherwise than the published recipe, and why."""
    c.frozen_dtype = "float32"  # nothing to save at this size, and a CPU computes in float32
    c.mesh.data, c.mesh.fsdp, c.rules = -1, 1, "replicated"
    c.single_source = True  # one count of tiles a batch
    c.batch_size = 16
    c.optim.warmup_steps = 200
    c.train.save_minutes = 5.0
    c.optim.lr, c.train.steps = UPDATES[c.stage]
    c.optim.muon = base.BLOCKS
    if c.stage == "labels":
        c.target_slots = 8  # each is a region too
        c.init_stages = ("encoder", "labels")  # nothing, or towers of launch.tower
        c.init_parts = (("clip", "vision", "low"), ("dinov2", "vision", "tile"))
        c.data = scenes(5, "none,signs=0.25")  # words are the hardest to learn, and rare elsewhere
        return
    c.codec.tokenizer = "tokenizer-tiny"
    c.codec.template = "ferret_short"
    c.codec.text_tokens = 176
    c.model.pointing_weight = 1.0  # what a pretrained language model would bring along
    c.init_parts = ()
    if version == "v2":
        c.trainable = TRAINED  # a language model of this size has read of scenes alone, if anything
        start(c, model)
    else:  # nothing teaches these beforehand
        c.trainable = (".*",)
        c.init_required, c.init_stages, c.init_grown = (), ("instruction",), ()
    if c.stage == "caption":
        c.data = scenes(6, f"{WHOLE},turns=3,named=1", 2)  # in others it sees too little
    elif c.stage == "dense":
        c.data = scenes(7, "none,max_objects=8")
        c.codec.text_tokens = 304  # of some thirty tokens an object
        c.codec.buckets = (208,)
    else:  # few captions with all boxes fit where most other conversations do: they are kept apart
        c.codec.text_tokens = 288
        c.codec.buckets = (176,)
        grounded = scenes(9, "grounded_caption,max_objects=8", share=0.15)
        c.data = f"{scenes(8, f'{TASKS},turns=3')} + {grounded}"
        c.codec.refer_slots = 4


def start(c: ConfigDict, model: FerretConfig) -> None:
    """What a stage of size=tiny takes from stage labels and from those before."""
    whole = c.stage == "caption"  # without tiles and regions
    parts = {"low": True, "projector": True, "sampler": not whole}
    parts |= {name: there and not whole for name, there in tile_parts(model).items()}
    own = model.tile is not None  # as in stage labels
    taught = {"tile_projector": own, "tile_places": own and model.grids == GRIDS_V2}
    c.init_required = tuple(
        f"{name}/.*" for name, there in parts.items() if there and taught.get(name, True)
    )
    c.init_ignore = ("labels/.*", *(f"{name}/.*" for name, there in parts.items() if not there))
    c.init_stages = ("labels", *(s for s in c.init_stages if s != "encoder"))
    if not whole:
        c.init_required = (*c.init_required, "lm/.*")
        c.init_stages = (*dict.fromkeys((*c.init_stages, c.stage)),)


def scenes(seed: int, tasks: str, most: int = 6, share: float = 1.0) -> str:
    """Scenes of every count of tiles up to `most`, each a data set of its own, sides up to a fifth
    shorter; share: of their batches, beside other data."""
    parts = []
    for tiles, grids in SCENES.items():
        if tiles > most:
            continue
        sizes = "|".join(f"{SIDE * w}x{SIDE * h}" for w, h in grids)
        data = f"scenes:seed={seed}{tiles},n=1000000,tasks={tasks},size={sizes},vary=0.2"
        parts.append(f"{data} * {SHARES[tiles] * share:g}")
    return " + ".join(parts)
