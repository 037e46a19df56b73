"""Writers: neutral examples to files in the published layout of each data set.

One file per family, named like its reader in `mg_jax.data.sources`; `base` holds what they share.
With them every reader is tried on scenes, and one data set can be turned into another's form.
"""

from mg_jax.data.write.captions import write_coco_captions, write_textcaps
from mg_jax.data.write.choices import write_ai2d, write_scienceqa
from mg_jax.data.write.coco import write_coco, write_lvis, write_objects365, write_v3det
from mg_jax.data.write.conversations import write_llava
from mg_jax.data.write.ferret import write_ferret_grit
from mg_jax.data.write.flickr30k import write_flickr30k
from mg_jax.data.write.grit import write_grit, write_grit_groma
from mg_jax.data.write.groma import write_groma, write_groma_instruct, write_lvis_ground
from mg_jax.data.write.jsonl import write_jsonl
from mg_jax.data.write.openimages import write_openimages
from mg_jax.data.write.questions import (
    write_docvqa,
    write_dvqa,
    write_gqa,
    write_textvqa,
    write_vqav2,
)
from mg_jax.data.write.refcoco import write_rec_lines, write_refcoco
from mg_jax.data.write.sa1b import write_sa1b
from mg_jax.data.write.tfds import write_tfds
from mg_jax.data.write.video import write_video_instruct
from mg_jax.data.write.visual_genome import write_vg
from mg_jax.data.write.voc import write_voc
from mg_jax.data.write.yolo import write_yolo

__all__ = [
    "write_ai2d",
    "write_coco",
    "write_coco_captions",
    "write_docvqa",
    "write_dvqa",
    "write_ferret_grit",
    "write_flickr30k",
    "write_gqa",
    "write_grit",
    "write_grit_groma",
    "write_groma",
    "write_groma_instruct",
    "write_jsonl",
    "write_llava",
    "write_lvis",
    "write_lvis_ground",
    "write_objects365",
    "write_openimages",
    "write_rec_lines",
    "write_refcoco",
    "write_sa1b",
    "write_scienceqa",
    "write_textcaps",
    "write_textvqa",
    "write_tfds",
    "write_v3det",
    "write_vg",
    "write_video_instruct",
    "write_voc",
    "write_vqav2",
    "write_yolo",
]
