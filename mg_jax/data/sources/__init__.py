"""Sources: data sets read into `Example`s, opened by a short text.

    scenes:seed=0,n=1000[,tasks=rec*2+presence][,turns=4][,size=224 | size=320x240]
          [,vary=0][,min_objects=2][,max_objects=12][,distractors=0.65][,frames=8]
          [,signs=0.05][,named=1 | shown=1]
    coco:annotations.json,images_dir[,empty=drop|keep][,min_side=32][,masks=drop|keep]
    lvis:lvis_v1_train.json,coco_dir                  with the options of coco
    objects365:zhiyuan_objv2_train.json,images_dir    v3det:v3det_2023_v1_train.json,dir
                                                      the same without masks
    openimages:boxes.csv,images_dir,classes.csv[,labels.csv][,empty=drop|keep]
    sa1b:DIR[,images_dir][,boxes=mask|bbox][,min_area=196][,max_area=160000][,min_iou=0.88]
         [,min_stability=0.95]
    voc:DIR[,split=train|heldout|all|...][,empty=drop|keep]
    yolo:DIR[,split=train|val|test|heldout|all][,empty=drop|keep]
    tfds:voc/2007[,split=train][,data_dir=...]
    jsonl:FILE[,images_dir]
    refcoco:refs(unc).p,instances.json,images_dir[,split=train|val|test|testA|testB|testC|all]
            [,text=sent|raw][,per=expression|picture]         rec_lines:FILE,images_dir[,per=...]
    groma:FILE,images_dir[,form=rec|regions|flickr]           groma_instruct:FILE,images_dir
    grit:DIR_OF_IMG2DATASET    grit_groma:FILE,images_dir
    ferret_grit:FILE,images_dir[,request=no|yes]
    vg:DIR[,images_dir][,parts=regions+objects+relationships] lvis_ground:FILE,coco_dir
    flickr30k:DIR,images_dir[,split=train|val|test|all]
    shards:DIR                                        what launch.build_data made of any of them
    features:DIR                                      the same of launch.features
    llava:FILE[,images_dir][,boxes=text|regions][,text=keep|drop]     and all in LLaVA's form
    videoinstruct:FILE,videos_dir[,per=video|question]
    docvqa:FILE,images_dir             dvqa:FILE,images_dir         (VQA: [,per=picture|question])
    textvqa:FILE,images_dir[,OCR]      vqav2:QUESTIONS,ANNOTATIONS,images_dir
    gqa:FILE_OR_DIR,images_dir[,GRAPHS][,answer=short|full]
    ai2d:DIR[,split=train|test|all][,letters=drop|draw]
    scienceqa:DIR[,split=train][,text=keep|drop]
    captions:FILE,images_dir[,INSTANCES]          COCO's          textcaps:FILE,images_dir

Values above are examples; the classes have the defaults: min_side, min_area, max_area, min_iou and
min_stability are 0, which leaves nothing out.

All take `head=coco|sa1b`, the detector's objectness head their boxes train (coco by default), and
`name=...`. All but scenes take `max_bad` (0.05 by default), the share of malformed records up to
which they are left out and reported instead of being an error, and `tasks=rec*2+presence`, what
their examples without turns are asked (`mg_jax.data.tasks`); those of labelled boxes
`exhaustive=yes|no`, whether a label without box in a picture is absent from it. `part=train` or
`part=heldout` takes the examples of about 80 % or 20 % of the pictures, told by a hash of their
file names; `views=N` takes N views of each (`Views`). A file name with a comma cannot be written
here; call the class instead.
"""

from collections.abc import Callable

from mg_jax.data.sources.ai2d import Ai2dSource
from mg_jax.data.sources.base import Source, split_spec
from mg_jax.data.sources.boxed import BoxedSource
from mg_jax.data.sources.captions import CocoCaptionSource
from mg_jax.data.sources.coco import CocoSource
from mg_jax.data.sources.conversations import ConversationSource
from mg_jax.data.sources.docvqa import DocVqaSource
from mg_jax.data.sources.dvqa import DvqaSource
from mg_jax.data.sources.features import FeatureSource
from mg_jax.data.sources.ferret import FerretGritSource
from mg_jax.data.sources.flickr30k import Flickr30kSource
from mg_jax.data.sources.gqa import GqaSource
from mg_jax.data.sources.grit import GritSource, GromaGritSource
from mg_jax.data.sources.groma import GromaSource, LvisGroundSource
from mg_jax.data.sources.groma_instruct import GromaInstructSource
from mg_jax.data.sources.jsonl import JsonlSource
from mg_jax.data.sources.lvis import LvisSource
from mg_jax.data.sources.objects365 import Objects365Source
from mg_jax.data.sources.openimages import OpenImagesSource
from mg_jax.data.sources.refcoco import RecLinesSource, RefCocoSource
from mg_jax.data.sources.sa1b import Sa1bSource
from mg_jax.data.sources.scenes import SceneSource
from mg_jax.data.sources.scienceqa import ScienceQaSource
from mg_jax.data.sources.shards import ShardSource
from mg_jax.data.sources.split import Split
from mg_jax.data.sources.textvqa import TextCapsSource, TextVqaSource
from mg_jax.data.sources.tfds import TfdsSource
from mg_jax.data.sources.v3det import V3DetSource
from mg_jax.data.sources.video import VideoInstructSource
from mg_jax.data.sources.visual_genome import VgSource
from mg_jax.data.sources.voc import VocSource
from mg_jax.data.sources.vqav2 import VqaSource
from mg_jax.data.sources.yolo import YoloSource
from mg_jax.data.tasks import parse_tasks
from mg_jax.errors import UserError

COMMON = ("head", "name", "max_bad", "tasks", "exhaustive", "part", "views")
# kind: (class, the names of its positional arguments, its options)
KINDS: dict[str, tuple[Callable[..., Source], tuple[str, ...], tuple[str, ...]]] = {
    "scenes": (
        SceneSource,
        (),
        (
            *("seed", "n", "tasks", "turns", "size", "min_objects", "max_objects"),
            *("vary", "distractors", "signs", "frames", "named", "shown"),
        ),
    ),
    "coco": (CocoSource, ("annotations", "images"), ("empty", "min_side", "masks")),
    "voc": (VocSource, ("folder",), ("split", "empty")),
    "jsonl": (JsonlSource, ("file", "images"), ()),
    "refcoco": (RefCocoSource, ("refs", "instances", "images"), ("split", "text", "per")),
    "rec_lines": (RecLinesSource, ("file", "images"), ("per",)),
    "groma": (GromaSource, ("file", "images"), ("form",)),
    "groma_instruct": (GromaInstructSource, ("file", "images"), ()),
    "lvis_ground": (LvisGroundSource, ("file", "images"), ()),
    "vg": (VgSource, ("folder", "images"), ("parts",)),
    "flickr30k": (Flickr30kSource, ("folder", "images"), ("split",)),
    "grit": (GritSource, ("folder",), ()),
    "grit_groma": (GromaGritSource, ("file", "images"), ()),
    "ferret_grit": (FerretGritSource, ("file", "images"), ("request",)),
    "shards": (ShardSource, ("folder",), ()),
    "features": (FeatureSource, ("folder",), ()),
    "objects365": (Objects365Source, ("annotations", "images"), ("empty", "min_side")),
    "v3det": (V3DetSource, ("annotations", "images"), ("empty", "min_side")),
    "lvis": (LvisSource, ("annotations", "images"), ("empty", "min_side", "masks")),
    "openimages": (OpenImagesSource, ("boxes", "images", "classes", "labels"), ("empty",)),
    "sa1b": (
        Sa1bSource,
        ("folder", "images"),
        ("boxes", "min_area", "max_area", "min_iou", "min_stability"),
    ),
    "yolo": (YoloSource, ("folder",), ("split", "empty")),
    "tfds": (TfdsSource, ("dataset",), ("split", "data_dir")),
    "llava": (ConversationSource, ("file", "images"), ("boxes", "text")),
    "videoinstruct": (VideoInstructSource, ("file", "videos"), ("per",)),
    "docvqa": (DocVqaSource, ("file", "images"), ("per",)),
    "dvqa": (DvqaSource, ("file", "images"), ("per",)),
    "textvqa": (TextVqaSource, ("file", "images", "ocr"), ("per",)),
    "vqav2": (VqaSource, ("questions", "annotations", "images"), ("per",)),
    "gqa": (GqaSource, ("questions", "images", "graphs"), ("answer", "per")),
    "ai2d": (Ai2dSource, ("folder",), ("split", "letters", "per")),
    "scienceqa": (ScienceQaSource, ("folder", "split"), ("text",)),
    "captions": (CocoCaptionSource, ("file", "images", "instances"), ()),
    "textcaps": (TextCapsSource, ("file", "images"), ()),
}


def open_source(spec: str, training: bool = False) -> Source:
    """Open the data set that a text describes (see the module's docstring).

    training=True refuses scene seeds from RESERVED_SEED on, which are kept for evaluation.
    Raises UserError for an unknown kind or option, a missing file, or a malformed one.
    """
    kind, _, rest = spec.partition(":")
    if kind not in KINDS:
        raise UserError(
            f"data {spec!r}: unknown kind {kind!r}: write KIND:..., KIND one of {', '.join(KINDS)}"
        )
    build, positional, options = KINDS[kind]
    values = split_spec(spec, rest, positional, tuple(dict.fromkeys((*options, *COMMON))))
    if kind == "scenes":
        for key in {"max_bad", "exhaustive", "part", "views"} & values.keys():
            raise UserError(f"data {spec!r}: {key} is for data sets of files: leave it out")
        values["training"] = training
        return build(**values)
    own = ("tasks", "exhaustive", "part", "views")
    asked = {key: values.pop(key) for key in own if key in values}
    tasks = parse_tasks(asked["tasks"], f"data {spec!r}") if "tasks" in asked else None
    source = build(**values)
    source.tasks = tasks or source.tasks
    if "exhaustive" in asked:
        boxed = isinstance(source, BoxedSource | TfdsSource)
        if not boxed or asked["exhaustive"] not in ("yes", "no"):
            raise UserError(
                f"data {spec!r}: exhaustive={asked['exhaustive']}: yes or no, for data sets of "
                "labelled boxes"
            )
        source.exhaustive = asked["exhaustive"] == "yes"
    if isinstance(source, FeatureSource) and asked.keys() & {"part", "views"}:
        raise UserError(f"data {spec!r}: part and views belong into the data of launch.features")
    source = Split(source, asked["part"]) if "part" in asked else source
    if "views" not in asked:
        return source
    from mg_jax.data.sources.views import Views  # late: it needs transforms, which need `base`

    return Views(source, asked["views"])


__all__ = [
    "CocoSource",
    "JsonlSource",
    "SceneSource",
    "Source",
    "VocSource",
    "open_source",
]
