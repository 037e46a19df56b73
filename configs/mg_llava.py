"""MG-LLaVA in two stages, the second from the checkpoint of the first:

    python -m launch.train --config configs/mg_llava.py:stage=pretrain,llm=tiny --workdir runs/a \\
        --config.init_from=runs/labels,runs/language
    python -m launch.train --config configs/mg_llava.py:stage=sft,llm=tiny --workdir runs/b \\
        --config.init_from=runs/a

llm=tiny trains on procedural scenes on a CPU. No pretrained towers of that size exist, so a stage
before the two teaches them, by boxes and the words that name them; the language model begins as
that of groma-tiny (left out, it begins with nothing):

    python -m launch.train --config configs/mg_llava.py:stage=labels,llm=tiny \\
        --workdir runs/labels
    python -m launch.language groma-tiny --out runs/language

These towers hardly read printed words; the card of mg-llava-tiny has the run behind it that taught
its towers.

llm=phi3|vicuna7b|vicuna13b|llama3|yi34b has the published shape and hyper-parameters of that
language model (spec 8; 8 devices of 80 GB, more for 13B and 34B) and needs --config.data=...,
--config.boxes=FILE of launch.boxes (or FILE,FILE,...), and --config.codec.tokenizer=FOLDER;
stage=pretrain also CLIP, ConvNeXt and the language model as converted releases,
--config.init_from=FOLDER,FOLDER,FOLDER. Upstream's frozen ConvNeXt kept its stochastic depth while
training: --config.model.drop_path=0.1 does as it did.

Batches of published sizes hold rows of one medium (text alone, pictures, videos) and of similar
length, in both stages; upstream groups them so in sft and shuffles in pretrain, as
--config.group_by_length=False does in both.

media=video trains on videos, and on pictures beside them, never both in one batch:

    python -m launch.train --config configs/mg_llava.py:stage=sft,llm=tiny,media=video \\
        --workdir runs/c --config.init_from=runs/b

Context: a sequence is at most text_tokens of text (upstream's 1,472), 576 vectors a picture, and
max_boxes; nothing longer is trained on. A video of 8 frames has 4,608 vectors, more than the 4,096
positions of all these language models but Llama-3: context=fit (the default) averages 2x2 of a
frame's vectors there, which leaves 1,152 and the boxes; context=published keeps all of them, as
upstream does, and lets rotary positions run on beyond what the language model was trained for
(--config.model.lm.rope_scaling.factor=2 slows them down instead). --config.model.frames=N trains on
N frames in place of 8. Phi-3 has a window of 2,047 positions besides, as published: of a longer
sequence the answer does not see the first vectors but through the layers between.
"""

import dataclasses

from ml_collections import ConfigDict

from configs import base
from mg_jax.attention import RopeScaling
from mg_jax.config import to_dict
from mg_jax.data.scenes.draw import COLORS, TEXTURES
from mg_jax.data.scenes.shapes import SHAPES
from mg_jax.data.scenes.world import WORDS
from mg_jax.errors import UserError
from mg_jax.lm import LMConfig
from mg_jax.models.mg_llava import MGLLaVAConfig
from mg_jax.vision.convnext import ConvNeXtConfig
from mg_jax.vision.vit import ViTConfig

CHOICES = {
    "stage": ("pretrain", "sft", "labels"),
    "llm": ("tiny", "phi3", "vicuna7b", "vicuna13b", "llama3", "yi34b"),
    "media": ("image", "video"),
    "context": ("fit", "published"),
}
BRIDGES = "(fusion|projector|box_projector|merging)/.*"  # a fusion may have no parameters

TEMPLATES = {
    "phi3": "phi3_chat",
    "vicuna7b": "vicuna",
    "vicuna13b": "vicuna",
    "llama3": "llama3_chat",
    "yi34b": "qwen_chat",
}
# (rows of a batch, peak learning rate) by stage where they are not the paper's (spec 8)
PAPER = {"pretrain": (256, 1e-3), "sft": (128, 2e-5)}
OWN = {
    ("pretrain", "yi34b"): (512, 2e-3),
    ("sft", "phi3"): (64, 2e-5),
    ("sft", "llama3"): (64, 1e-5),
}
VIDEO_BOXES = 100  # slots a frame
# Lengths of whole sequences that batches are padded to: 576 vectors of a picture, boxes and text
BUCKETS = (704, 832, 1088, 1600)
# and by video_pool: 8 frames of 576 or 144, and a picture's longest text
VIDEO_BUCKETS = {1: (2176, 4864, 5120, 5696), 2: (1408, 2240)}
LONG = 8192  # positions that context=published lets a video run to
# Tiny conversations: what one box or one thing alone says first, then everything. Places are
# written out digit by digit, so that few of them fill most of a batch: they are rare here.
FIRST = (
    "region*5+region_detail+point+scribble+attribute*4+presence*4+read*5+count*3+relation*6+caption"
)
THEN = (
    "region*5+region_detail+point+scribble+attribute*5+presence*4+read*7+count*5+relation*6+caption"
    "+rec+rec_absent*0.5+grounded_caption*0.5+dialogue"
)
FILMS = "direction*3+moved*2+moves+caption*0.3+presence*0.5"


def get_config(arg: str = "") -> ConfigDict:
    """Config of "stage=...,llm=...,media=..."; the docstring of this file is the manual."""
    choice = base.parse_arg(arg, CHOICES)
    c = base.get_config()
    c.system, c.stage, c.size = "mg_llava", choice["stage"], choice["llm"]
    if c.stage == "labels" and c.size != "tiny":
        raise UserError(
            f"stage=labels is for llm=tiny: the towers of {c.size} are pretrained: take pretrain"
        )
    c.media = choice["media"]
    video = c.media == "video"
    small = c.size == "tiny"
    model = tiny_model() if small else full_model(c.size, video, choice["context"])
    c.image_size = model.high_size
    c.model = ConfigDict(to_dict(model))
    c.model.high.image_size = c.get_ref("image_size")

    c.preprocess = "clip_pad"
    c.seed = 2024
    c.optim.warmup_ratio = 0.03
    c.codec.too_long = "skip"  # counted in the metrics; upstream cuts such texts off
    {"pretrain": pretrain, "sft": sft, "labels": labels}[c.stage](c)
    if small:
        tiny(c, video)
    else:
        full(c, video)
    return c.lock()


# -- stages (spec 8) -----------------------------------------------------------------------------


def pretrain(c: ConfigDict) -> None:
    """The parts between towers and language model, on captions."""
    c.init_stages = ("encoder", "language", "pretrain")
    c.init_required = ("low/.*", "high/.*", "lm/.*")
    c.init_parts = (("clip", "vision", "low"), ("convnext", "vision", "high"))
    c.trainable = (BRIDGES,)


def sft(c: ConfigDict) -> None:
    """As pretrain, and the language model learns too, on conversations."""
    c.init_stages = ("pretrain", "sft")
    c.init_required = (".*",)
    c.trainable = (BRIDGES, "lm/.*")


def labels(c: ConfigDict) -> None:
    """Both towers by named boxes: ours, in place of what CLIP's were pretrained on."""
    c.init_stages = ("labels",)
    c.init_required = ()
    c.trainable = (".*",)
    c.label_words = (*COLORS, *SHAPES, *TEXTURES[1:], *WORDS)
    c.model.label_words = len(c.label_words)
    c.target_slots = 16


def full(c: ConfigDict, video: bool) -> None:
    """What all published sizes share."""
    c.batch_size, c.optim.lr = OWN.get((c.stage, c.size), PAPER[c.stage])
    c.accumulate = 2 if (c.stage, c.size) == ("sft", "llama3") else 1
    c.codec.template = TEMPLATES[c.size]
    c.codec.text_tokens = 1472  # 2,048 less the vectors of a picture, whatever its boxes
    c.codec.buckets = (*BUCKETS, *VIDEO_BUCKETS[c.model.video_pool]) if video else BUCKETS
    c.group_by_length = True


# -- models --------------------------------------------------------------------------------------


def language_model(llm: str) -> LMConfig:
    """Phi-3-mini-4k-instruct, Vicuna-7B or 13B v1.5, Llama-3-8B-Instruct, Yi-1.5-34B-Chat."""
    shapes = {
        "phi3": dict(vocab=32064, width=3072, mlp=8192, head=96, window=2047),
        "vicuna7b": {},
        "vicuna13b": dict(width=5120, mlp=13824, layers=40, heads=40, kv_heads=40),
        "llama3": dict(
            vocab=128256, mlp=14336, kv_heads=8, rope_theta=500000.0, max_positions=8192
        ),
        "yi34b": dict(
            vocab=64000, width=7168, mlp=20480, layers=60, heads=56, kv_heads=8, eps=1e-6,
            rope_theta=5000000.0,
        ),
    }  # fmt: skip
    return LMConfig(**shapes[llm], dtype="bfloat16", remat="full")


def full_model(llm: str, video: bool, context: str) -> MGLLaVAConfig:
    """CLIP ViT-L/14 at 336 px, ConvNeXt-L at 768 px, and the language model."""
    compute = {"dtype": "bfloat16", "remat": "full"}
    lm, pool = language_model(llm), 1
    if video and lm.max_positions < LONG:
        if context == "fit":
            pool = 2
        else:
            slow = RopeScaling()  # a factor of 1 changes nothing
            lm = dataclasses.replace(lm, max_positions=LONG, rope_scaling=slow)
    return MGLLaVAConfig(
        low=ViTConfig(kind="clip", activation="quick_gelu", image_size=336, eps=1e-5, **compute),
        high=ConvNeXtConfig(image_size=768, **compute),
        lm=lm,
        video_pool=pool,
        max_boxes=VIDEO_BOXES if video else 256,
    )


def tiny_model() -> MGLLaVAConfig:
    """Under 4 million parameters: 112 px and 256 px, 64 image tokens, 16 boxes a picture."""
    return MGLLaVAConfig(
        low=ViTConfig(
            kind="clip", activation="quick_gelu", width=128, layers=4, heads=2, mlp_ratio=3.0,
            image_size=112, eps=1e-5,
        ),
        high=ConvNeXtConfig(
            depths=(1, 1, 2, 1), widths=(32, 64, 128, 192), image_size=256, layer_scale=0.2
        ),
        lm=LMConfig(
            vocab=1314, width=192, mlp=384, layers=4, heads=4, kv_heads=4, head=48,
            max_positions=512, tied=True,
        ),
        select_layer=-1,  # the tower learns for this layer alone
        video_pool=2,
        max_boxes=16,
        refer=True,
        unit_vectors=True,
        places=True,
    )  # fmt: skip


def tiny(c: ConfigDict, video: bool) -> None:
    """What llm=tiny does otherwise than the published recipe, and why."""
    c.frozen_dtype = "float32"  # nothing to save at this size, and a CPU computes in float32
    c.mesh.data, c.mesh.fsdp, c.rules = -1, 1, "replicated"
    c.single_source = video  # pictures and videos apart
    c.codec.tokenizer = "tokenizer-tiny"
    c.codec.template = "vicuna"
    c.codec.text_tokens = 160
    c.codec.buckets = (192, 240, 320) if video else (192,)
    c.codec.refer_slots = 8
    c.detector = "groma-tiny"
    c.batch_size = 16
    c.optim.warmup_steps = 200
    c.train.save_minutes = 5.0
    if c.stage == "labels":
        c.data = "scenes:seed=10,n=1000000,tasks=none"
        c.optim.lr, c.train.steps = 1e-3, 3000
        return
    c.trainable = (BRIDGES, "lm/.*")  # one of this size has read of scenes alone, if anything
    c.model.pointing_weight = 1.0  # as MGLLaVAConfig says: what a pretrained one would bring along
    if c.stage == "pretrain":
        c.init_stages = ("labels", "language", "pretrain")
        c.init_required = ("low/.*", "high/.*")
        c.init_ignore = ("labels_.*",)
        pictures = f"scenes:seed=11,n=1000000,tasks={FIRST},turns=4"
        c.optim.lr, c.train.steps = 1e-3, 2000
    else:
        pictures = f"scenes:seed=12,n=1000000,tasks={THEN},turns=4"
        c.optim.lr, c.train.steps = 1e-3, 2500
        c.optim.muon = base.BLOCKS  # as of mg-llava-tiny, whose pretrain was without
    films = f"scenes:seed=13,n=1000000,tasks={FILMS},turns=4,frames=8"
    c.data = f"{pictures} + {films} * 0.4" if video else pictures
