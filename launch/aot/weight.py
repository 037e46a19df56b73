"""What a stage holds at the very least, from shapes alone: no compilation."""

import functools
import importlib.util
import math
from pathlib import Path
from typing import Any

import jax

from mg_jax import models, quant, sharding
from mg_jax.optim import flatten, partition


@functools.cache
def config_of(text: str) -> Any:
    """The config of "configs/groma.py:stage=..."."""
    file, _, argument = text.partition(":")
    found = importlib.util.spec_from_file_location(Path(file).stem, file)
    module = importlib.util.module_from_spec(found)  # type: ignore[arg-type]
    found.loader.exec_module(module)  # type: ignore[union-attr]
    return module.get_config(argument)


def batch_size(text: str) -> int:
    """Rows of an update of a stage."""
    return int(config_of(text).batch_size)


@functools.cache
def held(text: str, program: str, quantize: str = "none") -> float:
    """Bytes of parameters, and of moments where it trains, of all devices together: 12 a trained
    parameter (without the gradient, which need not be whole at any time) and 2 a frozen one."""
    config = config_of(text)
    model = config.model.to_dict()
    if program != "train":
        model["lm"]["quant"] = quantize
    system = models.build(config.system, model)
    boxed = sharding.abstract_params(system.init(config.stage), jax.random.key(0))
    shapes = flatten(sharding.unbox(boxed))
    if program != "train":
        return quant.needed(shapes, model["lm"], "bfloat16", positions=0)["params"]
    trained, frozen = partition(shapes, config.trainable)
    counts = [sum(math.prod(x.shape) for x in part.values()) for part in (trained, frozen)]
    return 12.0 * counts[0] + 2.0 * counts[1]
