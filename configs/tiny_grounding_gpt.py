"""TinyGroundingGPT in four stages, each from the checkpoint of the one before:

    python -m launch.train --config configs/tiny_grounding_gpt.py:stage=projector,llm=tiny \\
        --workdir runs/a --config.init_from=runs/labels,runs/language
    python -m launch.train --config configs/tiny_grounding_gpt.py:stage=llm,llm=tiny \\
        --workdir runs/b --config.init_from=runs/a
    python -m launch.train --config configs/tiny_grounding_gpt.py:stage=local,llm=tiny \\
        --workdir runs/c --config.init_from=runs/b
    python -m launch.train --config configs/tiny_grounding_gpt.py:stage=global,llm=tiny \\
        --workdir runs/d --config.init_from=runs/c

llm=tiny trains on procedural scenes on a CPU. No pretrained towers of that size exist, so a stage
before the four teaches them, by things and crops of them and the words that name them:

    python -m launch.train --config configs/tiny_grounding_gpt.py:stage=labels,llm=tiny \\
        --workdir runs/labels
    python -m launch.language groma-tiny --out runs/language

The second is the language model that the first stage begins with; left out, it begins with nothing.

llm=qwen1.5b|qwen3b|qwen7b (or 1.5b|3b|7b) has the
shape of that Qwen2.5 and the paper's hyper-parameters (spec 3; 8 devices of 80 GB), and needs
--config.data=... and --config.codec.tokenizer=FOLDER; stage=projector also CLIP, DINOv2 and Qwen2.5
as converted releases, --config.init_from=FOLDER,FOLDER,FOLDER. The paper's batch sizes are those of
its table, read as rows of all devices; where it meant rows of each of its eight,
--config.batch_size=256 is its recipe. Annotated pictures (refcoco:, vg:, coco:, flickr30k:;
docs/readers.md) are asked what the paper asks of them in that stage (config.tasks).

without=objects and without=dialogues are the paper's two ablations: stage 2 without the 256K
of object images, stage 3 without the 72K of grounded conversations and descriptions; of scenes,
without=objects holds for both stages. In all other stages either is refused.

--config.model.object_tokens=576|144|36 is how closely an object image is looked at. Context: a
sequence is at most text_tokens, 576 vectors of the picture, and codec.object_slots times
object_tokens long; text may take the room that object images leave. Qwen2.5 has room for 32,768, of
which 3,200 are used.
"""

import dataclasses

from ml_collections import ConfigDict

from configs import base
from configs.mg_llava import labels
from mg_jax.config import to_dict
from mg_jax.data.crops import CropAugment
from mg_jax.errors import UserError
from mg_jax.lm import LMConfig
from mg_jax.models.tiny_grounding_gpt import STAGES, TinyGroundingGPTConfig
from mg_jax.vision.vit import ViTConfig

SIZES = ("tiny", "qwen1.5b", "qwen3b", "qwen7b")
SHORT = {size.removeprefix("qwen"): size for size in SIZES}
CHOICES = {
    "stage": (*STAGES, "labels"),
    "llm": (*SIZES, *(s for s in SHORT if s not in SIZES)),
    "without": ("nothing", "objects", "dialogues"),
}

# Stage: rows of a batch, peak learning rate, epochs (spec 3)
PAPER = {
    "projector": (32, 1e-3, 1.0),
    "llm": (32, 2e-5, 1.0),
    "local": (32, 2e-5, 1.0),
    "global": (16, 2e-5, 2.0),
}
# What is asked of annotated pictures (spec 4); conversations stay as they are
TASKS = {
    "projector": "caption",
    "llm": "caption",
    "local": "rec*4+all_instances+region_caption*4",
    "global": "grounded_caption*3+vqa*3+choice*3+caption+rec+presence",
}
# stage -> (what `without` leaves out, tasks that are asked unless it does)
MORE = {
    "local": ("objects", "object_match*2+place_choice*2+name_choice*2+object_relation"),
    "global": ("dialogues", "grounding_dialogue*4+grounded_description*3"),
}


def get_config(arg: str = "") -> ConfigDict:
    """Config of "stage=...,llm=..."; the docstring of this file is the manual."""
    choice = base.parse_arg(arg, CHOICES)
    c = base.get_config()
    c.system, c.stage = "tiny_grounding_gpt", choice["stage"]
    c.size = SHORT.get(choice["llm"], choice["llm"])
    if c.stage == "labels" and c.size != "tiny":
        raise UserError(
            f"stage=labels is for llm=tiny: the towers of {c.size} are pretrained: take projector"
        )
    small = c.size == "tiny"
    check_without(choice["without"], c.stage, small)
    model = tiny_model() if small else full_model(c.size)
    c.image_size = model.image_size
    c.model = ConfigDict(to_dict(model))
    c.model.clip.image_size = c.get_ref("image_size")
    c.crop_augment = ConfigDict(dataclasses.asdict(CropAugment()))

    c.preprocess = "clip_pad"
    c.optim.warmup_ratio = 0.03
    c.codec.too_long = "skip"  # counted in the metrics
    if c.stage == "labels":
        labels(c)
    else:
        step(c, choice["without"])
    if small:
        tiny(c, choice["without"])
    else:
        c.codec.template = "qwen_chat"
        c.codec.text_tokens = 1472  # 2,048 with the picture, as its predecessor has
        c.codec.buckets = (832, 1088, 1600, 2112)  # of whole sequences
    return c.lock()


def check_without(without: str, stage: str, small: bool) -> None:
    """Raises UserError where `without` would change nothing: such an arm is the whole recipe."""
    scenes = small and without == "objects"  # which both stages show
    acts = [s for s, (part, _) in MORE.items() if scenes or part == without]
    if without != "nothing" and stage not in acts:
        raise UserError(
            f"without={without}: there is nothing to leave out in stage={stage}; it is for "
            + " and ".join(f"stage={s}" for s in acts)
        )


def step(c: ConfigDict, without: str) -> None:
    """One of the paper's four (spec 3)."""
    c.tasks = TASKS[c.stage]
    if c.stage in MORE and MORE[c.stage][0] != without:
        c.tasks += f"+{MORE[c.stage][1]}"
    c.batch_size, c.optim.lr, c.train.epochs = PAPER[c.stage]
    before = STAGES[max(STAGES.index(c.stage) - 1, 0)]
    c.init_stages = (before, c.stage)
    c.init_required = (".*",)
    c.trainable = ("projector/.*", "lm/.*")  # the towers never learn
    if c.stage == "projector":
        c.init_stages = ("encoder", "language", "projector")
        c.init_required = ("clip/.*", "dino/.*", "lm/.*")
        c.init_parts = (("clip", "vision", "clip"), ("dinov2", "vision", "dino"))
        c.trainable = ("projector/.*",)


# -- models --------------------------------------------------------------------------------------


def language_model(size: str) -> LMConfig:
    """Qwen2.5 of 1.5B, 3B or 7B, whose tables have more rows than its tokenizer has ids."""
    shapes = {
        "qwen1.5b": dict(
            vocab=151936, width=1536, mlp=8960, layers=28, heads=12, kv_heads=2, tied=True
        ),
        "qwen3b": dict(
            vocab=151936, width=2048, mlp=11008, layers=36, heads=16, kv_heads=2, tied=True
        ),
        "qwen7b": dict(vocab=152064, width=3584, mlp=18944, layers=28, heads=28, kv_heads=4),
    }
    return LMConfig(
        **shapes[size], eps=1e-6, rope_theta=1e6, max_positions=32768, qkv_bias=True,
        dtype="bfloat16", remat="full",
    )  # fmt: skip


def full_model(size: str) -> TinyGroundingGPTConfig:
    """CLIP ViT-L/14 and DINOv2-L/14 at 336 px, and Qwen2.5."""
    compute = {"dtype": "bfloat16", "remat": "full"}
    return TinyGroundingGPTConfig(
        clip=ViTConfig(kind="clip", activation="quick_gelu", image_size=336, eps=1e-5, **compute),
        dino=ViTConfig(**compute),
        lm=language_model(size),
    )


def tiny_model() -> TinyGroundingGPTConfig:
    """Under 4 million parameters: 168 px, 196 image tokens, 4 of an object image.

    Many heads, for what a thing is has to be gathered from its patches. The language model has
    groma-tiny's shape, to begin with what that has learned, and the biases of Qwen2.5.
    """
    tower = dict(width=128, layers=4, heads=8, mlp_ratio=3.0, patch=12, image_size=168)
    return TinyGroundingGPTConfig(
        clip=ViTConfig(kind="clip", activation="quick_gelu", eps=1e-5, **tower),
        dino=ViTConfig(**tower),
        lm=LMConfig(
            vocab=1314, width=192, mlp=384, layers=4, heads=4, kv_heads=4, head=48,
            max_positions=544, tied=True, qkv_bias=True, eps=1e-6,
        ),
        select_layer=-1,  # the tower learns here, and what follows that layer would not
        object_tokens=4,
        unit_vectors=True,
    )  # fmt: skip


# Tasks of scenes without object images, by stage
SCENES = {
    "projector": "all+rec*8+region*4", "llm": "all+rec*8", "local": "all+rec*8+region*4",
    "global": "all+rec*8+relation*4",
}  # fmt: skip
# Of scenes: conversations without object images, and questions with several of them
PLAIN = "scenes:seed={seed},n=1000000,tasks={tasks},turns={turns},size=224"
MATCH = "scenes:seed={seed}1,n=1000000,tasks=object_match,turns={turns},size=224"
CHOICE = (
    "scenes:seed={seed}2,n=1000000,tasks=place_choice+name_choice,turns=1,min_objects=4,size=224"
)
RELATION = "scenes:seed={seed}4,n=1000000,tasks=object_relation,turns=2,min_objects=4,size=224"
DIALOGUE = (
    "scenes:seed={seed}3,n=1000000,tasks=grounding_dialogue+grounded_description,turns=1,"
    "max_objects=5,size=224"
)
# Peak learning rate and updates of llm=tiny
UPDATES = {
    "labels": (1e-3, 4000), "projector": (1e-3, 3000), "llm": (1e-3, 1000), "local": (1e-3, 5000),
    "global": (1e-3, 4000),
}  # fmt: skip


def tiny(c: ConfigDict, without: str) -> None:
    """What llm=tiny does otherwise than the paper's recipe, and why."""
    c.frozen_dtype = "float32"  # nothing to save at this size, and a CPU computes in float32
    c.mesh.data, c.mesh.fsdp, c.rules = -1, 1, "replicated"
    c.batch_size = 16
    c.optim.warmup_steps = 200
    c.train.save_minutes = 5.0
    c.optim.lr, c.train.steps = UPDATES[c.stage]
    c.optim.muon = base.BLOCKS
    if c.stage == "labels":
        c.codec.object_slots = 1  # a crop costs the towers as much as a picture, and tells less
        c.data = "scenes:seed=5,n=1000000,tasks=none,size=224"
        return
    c.codec.tokenizer = "tokenizer-tiny"
    c.codec.template = "vicuna"  # the tiny tokenizer has no token of Qwen's template
    # of descriptions and many turns: a box has some 26 tokens
    turns = 5 if c.stage in MORE else 3
    c.codec.text_tokens = 320 if c.stage in MORE else 208
    c.codec.buckets = (352, 440) if c.stage in MORE else (352,)
    c.codec.object_slots = 5  # four options, and what they are asked about
    c.single_source = True  # batches without object images look at none
    # a language model of this size has read of scenes alone, if anything
    c.trainable = ("projector/.*", "lm/.*")
    c.tasks = "auto"
    c.model.pointing_weight = 1.0  # what a pretrained language model would bring along
    seed = 6 + STAGES.index(c.stage)
    mixture = [PLAIN.format(seed=seed, tasks=SCENES[c.stage], turns=turns)]
    if c.stage in MORE and without != "objects":
        share = 1.0 if c.stage == "local" else 0.6
        mixture += [
            f"{MATCH.format(seed=seed, turns=turns)} * {share / 2:g}",
            f"{CHOICE.format(seed=seed)} * {share / 2:g}",  # one answer a picture, of a letter
            f"{RELATION.format(seed=seed)} * {1.5 * share:g}",  # of all this takes longest to learn
        ]
    if c.stage == "global" and without != "dialogues":
        mixture.append(f"{DIALOGUE.format(seed=seed)} * 0.3")
    c.data = " + ".join(mixture)
    if c.stage == "projector":
        c.init_stages, c.init_parts = ("labels", "language", "projector"), ()
        c.init_required = ("clip/.*", "dino/.*")
        c.init_ignore = ("labels/.*",)
