"""Repeat ablations of the papers at tiny size, and print a table of means and spreads.

    python -m launch.ablate --start runs/alignment --workdir runs/ablations
    python -m launch.ablate --start mg-llava-tiny --workdir runs/ablations
    python -m launch.ablate --start runs/labels,runs/caption --workdir runs/ablations
    python -m launch.ablate --start runs/llm --workdir runs/ablations

of Groma, from stage=alignment:
  lm          the language model learns in the last stage, or stays as it is (paper, table 7)
  merge       four patches make one image token, or each is its own (paper, table 8); the projector
              starts afresh in both arms, since its input differs
of MG-LLaVA, from a model that stage=sft has made: its towers stay as they are and its language
model learns on, which knows the questions already; what lies between them starts afresh in all arms
(or from stage=labels and launch.language, and much longer):
  resolution  low resolution alone, with boxes, with boxes and Conv-Gate (paper, table 4)
  fusion      how the high resolution gets into the tokens of the low one (table 5a)
  merging     how boxes and image meet (table 5b)
of Ferret-v2, from stage=labels, whose encoders stay as they are but where one is said to be
trained, and stage=caption; the sampler starts afresh in all arms, since they read other maps:
  upsampling  direct upsampling or any resolution, each with the encoder frozen or trained (3.2)
  referring   fixed resolution, any resolution for grounding, for referring too (table 5)
  tiles       CLIP sees the tiles, or an encoder of their own
  dense       without or with stage II (table 6), half of the steps each
of TinyGroundingGPT, from stage=llm, two thirds of the steps in local, the others in global:
  objects     without or with the tasks on object images, the paper's 256K, in both stages; the
              grounded conversations of global keep theirs
  dialogues   without or with the grounded conversations and descriptions, its 72K, which the
              paper tells by POPE

All arms of an ablation get the same start (a release or workdir of that stage), the same steps,
batches and seeds. Runs that are done are not repeated, one that was stopped goes on; an arm that
two ablations have is run once. One JSON line a run, then a Markdown table; `seconds` is processor
time of training, all cores added (without what a killed command had spent).
"""

import argparse
import dataclasses
import json
import resource
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launch import cli, measuring
from mg_jax.disk import read_json
from mg_jax.errors import UserError

FRESH_PROJECTOR = (
    "--config.init_ignore=('projector/.*',)",
    "--config.init_required=('vision/.*','proposer/.*','region_encoder/.*','lm/.*','new_tokens/.*')",
)
GROMA = "configs/groma.py:stage=instruction,size=tiny"
# Things are asked about by their names: regions would show the model with low resolution alone
# what it shall not see
MG_LLAVA = "configs/mg_llava.py:stage=pretrain,llm=tiny"
BRIDGES = "'labels_.*','(fusion|projector|box_projector|merging)/.*'"
TOWERS = (
    "--config.init_stages=()",
    f"--config.init_ignore=({BRIDGES})",
    "--config.init_required=('low/.*','high/.*','lm/.*')",
)
ONE_TOWER = (
    "--config.init_stages=()",
    f"--config.init_ignore=({BRIDGES},'high/.*')",
    "--config.init_required=('low/.*','lm/.*')",
)
NAMED = (
    "--config.model.refer=False",
    "--config.data=scenes:seed=14,n=1000000,"
    "tasks=attribute*4+count*2+relation*4+presence*3+read*6,turns=4,named=1",
)
LOW = (*NAMED, "--config.model.fusion=none")
FERRET = "configs/ferret.py:stage=instruction,size=tiny"
# The start's sampler has learned to read one of the arms' maps, so all begin with a fresh one
FRESH_FERRET = f"{FERRET},sampler=fresh"
GROUNDING = "configs/tiny_grounding_gpt.py:stage={},llm=tiny"
# from squares to 1x6, in tiles of 112 px
SHAPES = (
    "112x112|224x112|112x224|224x224|336x112|112x336|448x112|112x448|336x224|224x336|560x112|"
    "112x560|672x112|112x672"
)


@dataclasses.dataclass(frozen=True)
class Study:
    """An ablation: the run of each of its arms, by name, its config and what is measured.

    measured: metrics of launch.evaluate by task. data: its scenes, without their number; data_of:
    those of single tasks. steps: of every run, where no other number is asked for.
    """

    arms: Mapping[str, str]
    config: str = MG_LLAVA
    measured: Mapping[str, Sequence[str]] = dataclasses.field(
        default_factory=lambda: {
            "vqa": ("accuracy",), "presence": ("accuracy",), "reading": ("accuracy", "small")
        }
    )  # fmt: skip
    data: str = "scenes:seed=700001,named=1"
    data_of: Mapping[str, str] = dataclasses.field(default_factory=dict)
    steps: int = 800

    @property
    def system(self) -> str:
        """Name of the system whose ablation it is."""
        return self.config.partition(".py")[0].removeprefix("configs/")


_REGIONS = {"rec": ("acc@0.5",), "regions": ("accuracy",), "presence": ("accuracy",)}
_GROMA: Mapping[str, Any] = {
    "config": GROMA, "measured": _REGIONS, "data": "scenes:seed=700001", "steps": 400
}  # fmt: skip
_FERRET: Mapping[str, Any] = {
    "config": FRESH_FERRET,
    "measured": {
        "which_box": ("accuracy", "small"), "which_point": ("accuracy",),
        "reading": ("accuracy", "small"), "rec": ("acc@0.5",),
    },
    "data": f"scenes:seed=700001,size={SHAPES},vary=0.2",
    # in flatter pictures hardly a small thing has a word that can be read
    "data_of": {"reading": "scenes:seed=700001,size=336x224|224x336,shown=1"},
}  # fmt: skip
_GROUNDING: Mapping[str, Any] = {
    "config": GROUNDING.format("global"),
    "measured": {
        "rec": ("acc@0.5",), "regions": ("accuracy",), "presence": ("accuracy",),
        "vqa": ("accuracy",), "grounded_caption": ("phrase_recall",), "pope": ("f1",),
        "object_match": ("acc@0.5",), "object_choice": ("accuracy",),
        "object_relation": ("accuracy",),
    },
    "data": "scenes:seed=700001",
    "steps": 400,
}  # fmt: skip


def _grounding(*without: str) -> Sequence[tuple[str, float]]:
    """Stages local and global of TinyGroundingGPT, each without something or with all."""
    parts = (f",without={text}" if text else "" for text in without)
    stages = (("local", 2 / 3), ("global", 1 / 3))
    return tuple((GROUNDING.format(s) + p, n) for (s, n), p in zip(stages, parts, strict=True))


# run -> its stages, each with its share of the steps, where they are not the study's config alone
STAGES: Mapping[str, Sequence[tuple[str, float]]] = {
    **{name: ((f"{FRESH_FERRET},arm={name}", 1.0),) for name in ("fixed", "ground", "clip")},
    **{
        f"{name}-{encoder}": ((f"{FRESH_FERRET},arm={name},encoder={encoder}", 1.0),)
        for name in ("direct", "any")
        for encoder in ("frozen", "trained")
    },
    "dense": (("configs/ferret.py:stage=dense,size=tiny,sampler=fresh", 0.5), (FERRET, 0.5)),
    "all-data": _grounding("", ""),
    "no-objects": _grounding("objects", "objects"),
    "no-dialogues": _grounding("", "dialogues"),
}
# run -> flags of launch.train
RUNS: Mapping[str, Sequence[str]] = {
    "lm-trained": (),
    "lm-frozen": ("--config.trainable=('projector/.*','region_encoder/.*','new_tokens/.*')",),
    "merge-on": FRESH_PROJECTOR,
    "merge-off": (
        *FRESH_PROJECTOR,
        "--config.model.token_merge=False",
        "--config.model.lm.max_positions=640",  # 192 image tokens more
    ),
    "low": (*ONE_TOWER, *LOW, "--config.model.objects=none"),
    "boxes": (*TOWERS, *LOW),
    "published": (*TOWERS, *NAMED),
    "resampler": (*TOWERS, *NAMED, "--config.model.fusion=resampler"),
    "concat": (*TOWERS, *NAMED, "--config.model.fusion=concat"),
    "patch_info": (*TOWERS, *NAMED, "--config.model.fusion=patch_info"),
    "f2b": (*TOWERS, *NAMED, "--config.model.objects=f2b"),
    "b2f": (*TOWERS, *NAMED, "--config.model.objects=b2f"),
    "v2": (),
    **dict.fromkeys(STAGES, ()),
}  # fmt: skip
STUDIES: Mapping[str, Study] = {
    "lm": Study({"trained": "lm-trained", "frozen": "lm-frozen"}, **_GROMA),
    "merge": Study({"on": "merge-on", "off": "merge-off"}, **_GROMA),
    "resolution": Study(
        {"low alone": "low", "+ boxes": "boxes", "+ boxes + conv_gate": "published"}
    ),
    "fusion": Study(
        {
            "resampler": "resampler", "concat": "concat", "patch_info": "patch_info",
            "conv_gate": "published",
        }
    ),
    "merging": Study({"f2b": "f2b", "b2f": "b2f", "append": "published"}),
    "upsampling": Study(
        {
            "direct, frozen": "direct-frozen", "any resolution, frozen": "any-frozen",
            "direct, trained": "direct-trained", "any resolution, trained": "any-trained",
        },
        **_FERRET,
    ),
    "referring": Study(
        {"fixed": "fixed", "+ grounding": "ground", "+ referring": "v2"}, **_FERRET
    ),
    "tiles": Study({"CLIP": "clip", "its own": "v2"}, **_FERRET),
    "dense": Study({"without": "v2", "with": "dense"}, **_FERRET),
    "objects": Study({"without": "no-objects", "with": "all-data"}, **_GROUNDING),
    "dialogues": Study({"without": "no-dialogues", "with": "all-data"}, **_GROUNDING),
}  # fmt: skip


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="python -m launch.ablate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument(
        "--start",
        required=True,
        help="release or workdir of the stage before, or "
        "several with commas between, as --config.init_from takes them",
    )
    p.add_argument("--workdir", required=True, type=Path, help="folder of all runs")
    p.add_argument("--only", choices=list(STUDIES), help="one (default: all of the start's system)")
    p.add_argument("--steps", type=int, metavar="N", help="of every run; by default 400 to 800, as "
                   "the ablation needs")  # fmt: skip
    p.add_argument("--seeds", type=int, default=3, help="runs of an arm (default %(default)s)")
    p.add_argument("--questions", type=int, default=300, help="scenes a task (default %(default)s)")
    return p


def train(folder: Path, study: Study, start: str, steps: int, seed: int, run: str) -> float:
    """Train one run to its end; returns its processor seconds, with those before it was stopped."""
    spent = folder / "seconds.json"
    total = float(read_json(spent)["seconds"]) if spent.is_file() else 0.0
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    try:
        for command in commands(folder, study, start, steps, seed, run):
            code = subprocess.run(command, check=False).returncode
            if code == 130:
                raise KeyboardInterrupt
            if code:
                raise UserError(f"{folder}: training ended with exit code {code}; see above")
    finally:
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        total += after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        folder.mkdir(parents=True, exist_ok=True)
        spent.write_text(json.dumps({"seconds": total}) + "\n", encoding="utf-8")
    return total


def commands(
    folder: Path, study: Study, start: str, steps: int, seed: int, run: str
) -> list[list[str]]:
    """The command of each stage of a run; what comes before the last is in folder/stage0, ..."""
    stages = STAGES.get(run, ((study.config, 1.0),))
    out = []
    for n, (config, share) in enumerate(stages):
        place = folder if n + 1 == len(stages) else folder / f"stage{n}"
        count = max(round(steps * share), 1)
        out.append(
            [sys.executable, "-m", "launch.train", "--config", config, f"--workdir={place}",
             f"--config.init_from={start}", f"--config.train.steps={count}",
             f"--config.seed={seed}", f"--config.optim.warmup_steps={max(count // 10, 1)}",
             *RUNS[run]]
        )  # fmt: skip
        start = str(place)
    return out


def trained_by(study: Study, run: str) -> list[str]:
    """What tells the training of a run from another: its configs and flags."""
    return [config for config, _ in STAGES.get(run, ((study.config, 1.0),))] + [*RUNS[run]]


def measures(study: Study) -> list[str]:
    """The columns of a study."""
    return [f"{task} {metric}" for task, metrics in study.measured.items() for metric in metrics]


def measure(
    study: Study, release: Path, questions: int, known: Mapping[str, Any]
) -> dict[str, float]:
    """The metrics of a study on reserved scenes, of the tasks whose metrics are not all known."""
    from mg_jax.evals import tasks

    assistant = cli.load(release)
    found: dict[str, float] = {}
    for name, metrics in study.measured.items():
        if all(f"{name} {metric}" in known for metric in metrics):
            continue
        data = f"{study.data_of.get(name, study.data)},n={questions}"
        result = measuring.measure(assistant, tasks.get(name), data)
        values = {metric: result.metrics.get(metric, float("nan")) for metric in metrics}
        found |= {f"{name} {metric}": float(value) for metric, value in values.items()}
    return found


def compared(row: dict[str, Any], asked: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """The row of a finished run. Raises UserError when it is not of what is asked for."""
    for key, value in asked.items():
        if row.get(key) != value:
            raise UserError(
                f"{file}: its run has {key} {row.get(key)}, not {value}, and would not compare; "
                "name another --workdir"
            )
    return row


def note(file: Path, row: Mapping[str, Any]) -> None:
    """Write the row of a run."""
    file.write_text(json.dumps(row) + "\n", encoding="utf-8")


def table(rows: Mapping[str, Sequence[Mapping[str, Any]]], studies: Sequence[str]) -> str:
    """Mean and (lowest to highest) of every metric, one line an arm, of studies that measure the
    same; rows: by run."""
    names = measures(STUDIES[studies[0]])
    lines = [f"| ablation | arm | runs | {' | '.join(names)} | CPU minutes a run |"]
    lines.append("|---" * (len(names) + 4) + "|")
    for ablation in studies:
        for arm, run in STUDIES[ablation].arms.items():
            mine = rows.get(run)
            if not mine:
                continue
            cells = []
            for name in names:
                values = [r[name] for r in mine]
                spread = f"({min(values):.3f} to {max(values):.3f})"
                cells.append(f"{statistics.mean(values):.3f} {spread}")
            minutes = statistics.mean(r["seconds"] for r in mine) / 60
            cells.append(f"{minutes:.0f}")
            lines.append(f"| {ablation} | {arm} | {len(mine)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def chosen(args: argparse.Namespace) -> list[str]:
    """The ablations to run. Raises UserError for a start of a system that has none."""
    if args.only:
        return [args.only]
    from mg_jax.plan import source

    system = source(args.start.split(",")[0])[0].get("system")
    found = [name for name, study in STUDIES.items() if study.system == system]
    if not found:
        raise UserError(f"--start {args.start}: there are no ablations of system {system!r}")
    return found


def main(argv: list[str] | None = None) -> None:
    args = arguments().parse_args(argv)
    for name in ("steps", "seeds", "questions"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)}: give at least 1")
    names = chosen(args)
    rows: dict[str, list[dict[str, Any]]] = {}
    for seed in range(args.seeds):  # arms in turn, so that an early stop leaves pairs
        for name in names:
            study = STUDIES[name]
            steps = args.steps or study.steps
            for run in study.arms.values():
                if len(rows.get(run, ())) > seed:
                    continue
                folder = args.workdir / f"{run}-{seed}"
                asked = {
                    "run": run, "seed": seed, "steps": steps, "start": args.start,
                    "questions": args.questions, "trained": trained_by(study, run),
                }  # fmt: skip
                done = folder / "ablation.json"
                if not done.is_file():
                    seconds = train(folder, study, args.start, steps, seed, run)
                    note(done, asked | {"seconds": round(seconds)})
                row = compared(read_json(done), asked, done)
                if row.get("measured") != measures(study):
                    row |= {"measured": measures(study)}
                    row |= measure(study, folder / "release", args.questions, row)
                    note(done, row)
                rows.setdefault(run, []).append(row)
                print(json.dumps(rows[run][-1]), flush=True)
    print(table(rows, names))


if __name__ == "__main__":
    cli.run(main)
