"""What launch.fit decides: where to start from, which stages make sense, and their configs."""

import ast
import importlib
import importlib.util
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mg_jax.data.inspect import Findings
from mg_jax.errors import UserError

DETECTION = "detection"  # of the stages the one without text
_LARGE = 1_000_000_000  # parameters from which on the published recipe is the right one
_WORDS = 512  # words of labels that a detector learns to tell, the most frequent
_SLOTS = 100  # boxes of a picture that are trained on, at most
# Parts of a release that a detector has no use for
_LANGUAGE = ("lm/.*", "projector/.*", "new_tokens/.*")
# Of the model what belongs to the training and not to the parameters
_RECIPE = ("unit_vectors", "pointing_weight", "detection_weight", "frozen_dropout", "region_order")


@dataclass(frozen=True)
class Start:
    """Parameters to start from. name: as config.init_from takes it, "" for random ones; config:
    that of the release; paths: its parameters with their sizes."""

    name: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    paths: Mapping[str, int] = field(default_factory=dict)

    @property
    def speaks(self) -> bool:
        """Whether it holds a language model."""
        return any(path.startswith("lm/") for path in self.paths)

    @property
    def size(self) -> str:
        """Whose recipe fits it."""
        if self.config.get("trunk"):
            return "mini"
        return "7b" if sum(self.paths.values()) > _LARGE else "tiny"


def open_start(name: str, workdir: Path, system: str = "groma") -> Start:
    """A shipped name, a release, a training folder, an encoder that a package ships, or weights of
    PyTorch, a folder or a name on the hub, which are converted into workdir/start once; "auto":
    what is shipped, else nothing.

    Raises UserError for anything else, and for a release or weights of another system.
    """
    import conversion
    from conversion import trunks
    from mg_jax import checkpoint
    from mg_jax.disk import read_json
    from mg_jax.loading import releases

    if name == "auto":
        name = "groma-tiny" if "groma-tiny" in releases() else "none"
    if name == "none":
        return Start()
    given = name
    if name in trunks.TRUNKS:
        name = trunks.start(name, workdir / "trunk")
    hub = conversion.is_hub_name(name)
    folder = Path(name) if hub else checkpoint.find(name)
    if hub or not checkpoint.is_release(folder):
        name = _converted(name if hub else str(folder), workdir / "start", system)
    elif (folder / "checkpoints").is_dir():
        name = str(folder / "release")
    config, params = checkpoint.open_release(name)
    _check_system(given, config["system"], system)
    run = Path(name).parent / "config.json"
    if "trunk" not in config and run.is_file():  # of a training: the release has it all
        config = config | {"trunk": read_json(run).get("trunk", "")}
    return Start(name, config, {path: math.prod(x.shape) for path, x in params.shapes.items()})


def _converted(given: str, release: Path, system: str) -> str:
    """`release`, made of PyTorch weights unless it is there; given: their folder, or their name on
    the hub.

    Raises UserError when it was made of others, or they are of another system.
    """
    from conversion.architectures import detect, find_config
    from conversion.located import find
    from launch import convert
    from mg_jax.disk import read_json

    made = release / "config.json"
    if not made.is_file():
        config = find_config(find(given, weights=False).path)  # before many gigabytes are fetched
        _check_system(given, detect(read_json(config), str(config)).system, system)
        convert.main([given, str(release)])
    source = read_json(made).get("provenance", {}).get("converted_from", given)
    if source != given:
        raise UserError(
            f"--start {given}: {release} was made of {source}; pass another --workdir, or remove "
            "that folder"
        )
    return str(release)


def _check_system(given: str, found: str, system: str) -> None:
    from mg_jax.plan import PARTS

    if found not in (system, PARTS):
        raise UserError(
            f"--start {given}: holds a {found}, which has no detector to start from: pass one of "
            f"{system}, or none"
        )


def choose(findings: Findings, start: Start, asked: str, known: Sequence[str]) -> list[str]:
    """The stages to train, in order. asked: "auto" or names with commas between.

    "auto": detection where there are boxes; where the start has a language model and the data
    have text or labels, the last of the language stages too. Raises UserError for an unknown
    stage, or one that the data or the start do not allow.
    """
    text = bool(findings.classes) or any(findings.text.values())
    if asked == "auto":
        stages = [DETECTION] if findings.boxes else []
        stages += [known[-1]] if start.speaks and text else []
        if not stages:
            raise UserError(
                f"data {findings.name}: has text but no boxes, and a language model to train is "
                "missing: pass --start with a release that has one"
            )
        return stages
    names = [name.strip() for name in asked.split(",")]
    for name in names:
        if name not in known:
            raise UserError(f"--stages {asked}: {name!r} is none of auto, {', '.join(known)}")
        if name == DETECTION and not findings.boxes:
            raise UserError(f"--stages {asked}: data {findings.name} has no boxes for {name}")
        if name != DETECTION and not text:
            raise UserError(f"--stages {asked}: data {findings.name} has no text for {name}")
    stages = [name for name in known if name in names]
    if stages[0] != DETECTION and not start.name:
        raise UserError(
            f"--stages {asked}: {stages[0]} starts from a detector: pass --start, or "
            f"--stages {DETECTION},{asked}"
        )
    return stages


def known_stages(system: str) -> tuple[str, ...]:
    """The stages of a system in order. Raises UserError for an unknown system, or one without a
    detector."""
    stages = tuple(_module(system).CHOICES["stage"])
    if DETECTION not in stages:
        raise UserError(
            f"--system {system}: learns from boxes in text alone and has no detector to train: "
            "choose groma"
        )
    return stages


def _module(system: str) -> Any:
    if not system.isidentifier() or importlib.util.find_spec(f"configs.{system}") is None:
        folder = Path(str(importlib.import_module("configs").__file__)).parent
        names = sorted(f.stem for f in folder.glob("*.py") if f.stem not in ("__init__", "base"))
        raise UserError(f"--system {system}: choose one of {', '.join(names)}")
    return importlib.import_module(f"configs.{system}")


def stage_configs(
    spec: str,
    findings: Findings,
    start: Start,
    stages: Sequence[str],
    workdir: Path,
    *,
    system: str = "groma",
    size: str = "",
    steps: Mapping[str, int] | None = None,
    changes: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """A config for each stage, every one starting from the one before.

    size: of configs/SYSTEM.py; "" for what fits the start. steps: updates by stage. changes:
    "train.epochs" -> "3" as on the command line, for all stages. Raises UserError for a wrong key
    or value.
    """
    size = size or start.size
    made: dict[str, Any] = {}
    for stage in stages:
        arg = f"stage={stage},size={size}" + (",form=published" if size == "7b" else "")
        c = _module(system).get_config(arg)
        c.data = f"{spec},part=train"
        if any(findings.text.values()):
            c.views = min(c.views, 1)  # all views of such pictures are the same
        _begin(c, start, list(made), workdir)
        if stage == DETECTION:
            _detect(c, findings)
        if steps and stage in steps:
            c.train.steps = steps[stage]
        _change(c, changes or {})
        if c.train.steps:
            c.optim.warmup_steps = min(c.optim.warmup_steps, c.train.steps // 5)
        made[stage] = c
    return made


def _begin(c: Any, start: Start, before: Sequence[str], workdir: Path) -> None:
    """Parameters, model, tokenizer and preprocessing as the start has them."""
    # an encoder of a package is where a recipe for it starts that has nothing else
    first = start.name or (c.trunk if not before else "")
    origins = [first] if first and before in ([], [DETECTION]) else []
    c.init_from = ",".join([*origins, *(str(workdir / stage) for stage in before[-1:])])
    c.init_stages = ()
    c.init_ignore = ("labels/.*",)
    if c.stage == DETECTION:
        c.init_ignore += _LANGUAGE
    else:
        c.init_required = ("vision/.*", "proposer/.*")
    if not start.config or start.config.get("system") != c.system:
        return
    model = dict(start.config["model"])
    kept = ("image_size", "label_words", *(() if start.speaks else _RECIPE))
    with c.ignore_type():
        _take(c.model, {key: value for key, value in model.items() if key not in kept})
    c.image_size = model.get("image_size", c.image_size)
    if start.speaks and c.stage != DETECTION:
        codec = start.config.get("codec", {})
        c.codec.tokenizer = start.name
        c.codec.text_tokens = codec.get("text_tokens", c.codec.text_tokens)
        c.codec.refer_format = codec.get("refer_format", c.codec.refer_format)
        c.preprocess = start.config.get("preprocess", c.preprocess)


def _take(section: Any, values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if key in section and isinstance(value, Mapping):
            _take(section[key], value)
        elif key in section:
            section[key] = tuple(value) if isinstance(section[key], tuple) else value


def cache(configs: Mapping[str, Any], workdir: Path) -> None:
    """Compute the outputs of a frozen encoder that comes from a package once, in workdir/features,
    for all stages whose config says so (`views`); they then train on these.

    Raises UserError as `launch.features`.
    """
    from launch import features
    from mg_jax.data.sources.features import INFO
    from mg_jax.disk import read_json

    for c in configs.values():
        if not _caches(c):
            continue
        folder, data = workdir / "features", f"{c.data},views={c.views}"
        made = read_json(folder / INFO) if (folder / INFO).is_file() else {}
        if not made:
            taps = ",".join(map(str, c.model.taps))
            features.make(data, folder, c.trunk, c.image_size, taps, c.preprocess)
        elif made.get("data") != data:
            raise UserError(
                f"{folder}: was made of {made.get('data')}: pass another --workdir, or remove it"
            )
        c.data = f"features:{folder}"


def _caches(c: Any) -> bool:
    """Whether a stage trains on outputs of a frozen encoder that `cache` computes."""
    return bool(c.trunk and c.views)


def _detect(c: Any, findings: Findings) -> None:
    """Room for the boxes, and the words of the data's own labels where labels are learnt."""
    room = min(_SLOTS, c.model.proposer.queries)
    c.target_slots = max(8, min(room, int(findings.boxes_per_picture["max"])))
    if c.label_words:
        words = Counter[str]()
        for label, n in findings.classes.items():
            words.update(dict.fromkeys(label.split(), n))
        c.label_words = tuple(sorted(word for word, _ in words.most_common(_WORDS)))
        c.model.label_words = len(c.label_words)
    if not c.label_words:  # then regions are not encoded in this stage
        c.init_ignore += ("region_encoder/.*",)


def _change(c: Any, changes: Mapping[str, str]) -> None:
    for key, text in changes.items():
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text
        try:
            c.update_from_flattened_dict({key: value})
        except (KeyError, AttributeError, TypeError, ValueError) as e:
            reason = "unknown key" if isinstance(e, KeyError | AttributeError) else str(e)
            raise UserError(f"--config.{key}={text}: {reason}") from None


def parse_steps(text: str, stages: Sequence[str]) -> dict[str, int]:
    """Updates by stage of "500" or "detection=500,instruction=200". Raises UserError."""
    out: dict[str, int] = {}
    for part in filter(None, text.split(",")):
        name, equals, number = part.partition("=")
        names = [name] if equals else list(stages)
        try:
            count = int(number if equals else name)
        except ValueError:
            count = 0
        if count < 1 or not set(names) <= set(stages):
            raise UserError(
                f"--steps {text}: write a number of at least 1, or STAGE=NUMBER with commas "
                f"between; the stages are {', '.join(stages)}"
            )
        out |= dict.fromkeys(names, count)
    return out


def need_room(configs: Mapping[str, Any], workdir: Path, pictures: int) -> None:
    """Raises UserError when the checkpoints, and the features of so many pictures where `cache`
    will make them, do not fit on the disk, and for configs of which no run can be planned: told
    now, not hours later when a stage begins."""
    from launch import features
    from mg_jax import checkpoint, models
    from mg_jax.data import pipeline
    from mg_jax.data.sources.features import INFO
    from mg_jax.disk import disk_errors, need_space
    from mg_jax.plan import plan

    count, made = 0.0, (workdir / "features" / INFO).is_file()
    for stage, c in configs.items():
        system = models.build(c.system, c.model.to_dict())
        if _caches(c) and not made:
            row = features.row_bytes(system.cfg.vision, len(c.model.taps), c.image_size)
            count, made = count + pictures * c.views * row, True  # one folder for all stages
        if (workdir / stage / "checkpoints").is_dir():
            continue
        p = plan(c, c.train.steps or 1, system=system, sizes=pipeline.batch_sizes(c, system.cfg))
        params = checkpoint.stored((p.state.params, p.frozen))
        moving = checkpoint.stored((p.state.params, p.state.opt))
        count += params + (c.train.keep + 1) * moving
    with disk_errors(workdir, lambda: "Free some or pass another --workdir"):
        need_space(workdir, count)


def hint(spec: str) -> str:
    """What a --data text without its kind looks like, "" when that cannot be told."""
    path = Path(spec.partition(",")[0]).expanduser()
    if path.is_dir():
        if (path / "Annotations").is_dir():
            return f"voc:{spec}"
        if (path / "labels").is_dir() or any(path.glob("*.y*ml")) or any(path.glob("*/labels")):
            return f"yolo:{spec}"
    elif path.suffix == ".jsonl":
        return f"jsonl:{spec}"
    elif path.suffix == ".json":
        return f"coco:{path},{spec.partition(',')[2] or 'IMAGES_FOLDER'}"
    return ""
