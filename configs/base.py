"""Every default of a training config, and the reading of a config's argument.

A system's file calls `get_config()`, fills in its model and its stages, and locks the result:
then a misspelt `--config.x.y=z` is an error. `tests/train/test_configs.py` builds them all.
"""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence

from ml_collections import ConfigDict

from mg_jax.data.tasks import Filters
from mg_jax.data.tasks.objects import OPTIONS
from mg_jax.errors import UserError

# Dense kernels of the blocks of language models and towers. Moved by Muon, what starts from nothing
# needs fewer updates than under AdamW.
BLOCKS = (".*/blocks/(attn|mlp)/.*/kernel",)


def get_config() -> ConfigDict:
    """The sections with their defaults; not locked yet."""
    c = ConfigDict()

    c.system = ""  # a name of mg_jax.models.build
    c.stage = ""
    c.size = ""
    c.model = ConfigDict()  # the fields of the system's config dataclass
    c.image_size = 448  # pixels, both sides

    # Where parameters come from: release folders, shipped names or workdirs (WORKDIR@best: not the
    # newest checkpoint but the one of lowest running loss), with commas between.
    # What none of them holds is initialised at random.
    c.init_from = ""
    c.init_stages = ()  # stages that this one may start from; () for any
    c.init_required = ()  # patterns of parameters that init_from must hold
    c.init_ignore = ()  # patterns of what init_from may hold and this stage has no use for
    # (architecture, part, path): releases of one part alone (launch.convert) whose parameters lie
    # at `part` there and at `path` here
    c.init_parts = ()
    # (path, table): what init_from lacks at `path` becomes rows equal to the mean row of `table`
    c.init_mean = ()
    # (path, axis): tables that may have fewer rows along that axis in init_from than in the model,
    # whose last ones then become the mean of the others
    c.init_grown = ()
    # (from, to): what init_from lacks under `to`/ begins as a copy of what is under `from`/
    c.init_copy = ()
    # (pattern, field of config.model): parameters that were learned with another value of that
    # field, a part being there or not, and are left behind
    c.init_alike = ()

    # The encoder that the system stands on, frozen: a package's (conversion/trunks.py), whose name
    # may stand in init_from, and which launch.ship leaves out; or a release's. "" for none.
    c.trunk = ""
    # Views of every picture of which launch.fit computes its outputs once; 0: at every step anew
    c.views = 0

    # Regular expressions on whole paths "a/b/c". The rest is frozen, and kept in frozen_dtype.
    c.trainable = (".*",)
    c.frozen_dtype = "bfloat16"

    # A data set (mg_jax/data/sources), or several with the share of each that is used:
    # "coco:a.json,images + scenes:seed=1,n=1000 * 0.5"
    c.data = ""
    c.single_source = False  # every batch from one data set
    # Every batch of one medium (text alone, pictures or videos) and of rows of similar length
    c.group_by_length = False
    c.pack = False  # conversations without a picture share rows as long as the longest bucket
    # What pictures that come with annotations instead of conversations are asked (docs/data.md);
    # tasks=... of a data set wins. "auto": whatever its annotations allow.
    c.tasks = "auto"  # or "rec*2+presence", names of mg_jax.data.tasks with their weights
    # Which boxes such questions show as object images, offer as options or ask about by name
    c.filters = ConfigDict(dataclasses.asdict(Filters()))
    c.options = OPTIONS  # object images to choose from in a question
    c.turns = 1  # rounds of such a conversation, more where a task has several
    c.instructions = ""  # whose wording (mg_jax/text/instructions); "" for the system's own
    # Share of the questions whose boxes and masks are shown as points, for systems that take these
    c.points = 0.0
    c.media = "image"  # or "video": what systems that take both have room for
    # Box file (launch.boxes) for systems that are given detected boxes; "" where the data sets
    # bring theirs (scenes do), "none" for no boxes
    c.boxes = ""
    c.box_limit = 100  # boxes of a picture from which on the best 20 a label stay; 0 for no limit
    c.detector = ""  # release whose proposals a release of this run takes for boxes in use
    c.preprocess = "groma_pil"  # of mg_jax.vision.preprocess, for stages with text
    c.target_slots = 100  # boxes of a picture that the detector trains on
    c.label_words = ()  # words of labels that a detector with model.label_words learns to tell
    c.batch_size = 16  # rows of all devices and processes together
    c.accumulate = 1  # micro-batches a batch is cut into, to save memory
    c.seed = 0

    c.codec = ConfigDict()
    c.codec.tokenizer = ""  # folder, or the name of a shipped release
    c.codec.template = "llava"
    c.codec.refer_format = "roi"
    c.codec.text_tokens = 512  # longest text, not counting picture and region slots
    c.codec.buckets = ()  # shorter lengths that a batch may be padded to instead
    c.codec.too_long = "error"  # or "skip": an example with more text or regions than fit
    c.codec.refer_slots = 8
    c.codec.ground_slots = 32
    c.codec.object_slots = 8  # object images of a conversation

    c.optim = ConfigDict()
    c.optim.lr = 1e-4
    c.optim.schedule = "cosine"  # or "constant"
    c.optim.warmup_steps = 0
    c.optim.warmup_ratio = 0.0  # of all steps, used when warmup_steps is 0
    c.optim.end_ratio = 0.0  # of lr, at the end of the cosine
    c.optim.weight_decay = 0.0
    c.optim.no_decay = ()  # patterns
    c.optim.betas = (0.9, 0.999)
    c.optim.eps = 1e-8
    c.optim.clip = 1.0  # global norm; 0 for none
    c.optim.lr_multipliers = ()  # ((pattern, factor), ...)
    c.optim.muon = ()  # patterns of kernels that Muon moves instead of AdamW
    c.optim.offload = False  # moments in host memory: 8 bytes a parameter less (4 under Muon)

    c.train = ConfigDict()
    c.train.steps = 0  # updates in all; 0: by epochs
    c.train.epochs = 1.0
    c.train.log_every = 10
    c.train.save_steps = 0  # 0: by time alone
    c.train.save_minutes = 15.0
    c.train.keep = 2  # newest checkpoints that stay
    c.train.keep_best = 0  # and so many more of the lowest running loss
    c.train.tensorboard = True
    c.train.profile = 0  # steps, from the fourth on, traced into workdir/profile

    c.mesh = ConfigDict({"data": 1, "fsdp": -1, "tensor": 1})  # one may be -1: the rest
    c.rules = "fsdp"  # a preset of mg_jax.sharding.RULES

    c.loader = ConfigDict({"workers": 0, "threads": 2})  # processes and threads that make batches
    return c


def parse_arg(arg: str | None, choices: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """The argument "key=value,key=value" of a config, each key with its allowed values.

    The first value is the default. Raises UserError naming a wrong key or value.
    """
    out = {key: values[0] for key, values in choices.items()}
    for part in filter(None, (arg or "").split(",")):
        key, equals, value = part.partition("=")
        if key not in choices or not equals:
            known = ", ".join(f"{k}={'|'.join(v)}" for k, v in choices.items())
            raise UserError(f"config argument {part!r}: write {known}")
        if value not in choices[key]:
            near = difflib.get_close_matches(value, choices[key], 1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise UserError(
                f"config argument {part!r}{hint}: {key} is one of {', '.join(choices[key])}"
            )
        out[key] = value
    return out
