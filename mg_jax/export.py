"""A finished run as a release folder with its model card."""

import importlib.metadata
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mg_jax import checkpoint
from mg_jax import config as configs
from mg_jax.optim import flatten
from mg_jax.train import Outcome


def export(
    outcome: Outcome,
    config: Any,
    workdir: str | Path,
    *,
    fields: Mapping[str, Any] | None = None,
    tokenizer: str | Path | None = None,
    command: str = "",
) -> Path:
    """Write workdir/release of a finished run; `fields` are added to its config.json.

    Returns the folder. Raises UserError when the disk is full.
    """
    folder = Path(workdir).absolute() / "release"
    made = {
        "command": command,
        "steps": outcome.step,
        "seed": config.seed,
        "data": config.data,
        "init_from": config.init_from,
        "versions": {p: importlib.metadata.version(p) for p in ("jax", "flax", "optax")},
    }
    settings = {
        "system": config.system,
        "stage": config.stage,
        "model": configs.to_dict(outcome.plan.system.cfg),
        **(fields or {}),
        "provenance": made,
    }
    return checkpoint.save_release(
        folder, outcome.params, settings, tokenizer, card(config, made, outcome), dtype="bfloat16"
    )


def card(config: Any, made: Mapping[str, Any], outcome: Outcome) -> str:
    """A model card in Markdown: what was trained, from what, by which command."""
    flat = flatten(outcome.params)
    count = sum(math.prod(x.shape) for x in flat.values())
    learned = sum(math.prod(x.shape) for x in outcome.state.params.values())
    lines = [
        f"# {config.system}, stage {config.stage}, size {config.size}",
        "",
        f"{count:,} parameters, of which {learned:,} were trained in this stage. Load it with",
        "`mg_jax.load(FOLDER)`.",
        "",
        "| | |",
        "|---|---|",
        f"| command | `{made['command']}` |",
        f"| updates x batch | {made['steps']:,} x {config.batch_size} |",
        f"| data | `{made['data']}` |",
        f"| seed | {made['seed']} |",
        f"| started from | {made['init_from'] or 'random parameters'} |",
        f"| versions | {', '.join(f'{k} {v}' for k, v in made['versions'].items())} |",
    ]
    return "\n".join(lines) + "\n"
