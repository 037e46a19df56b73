"""The systems by name. Each brings its config, its module and one loss per training stage."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mg_jax import config
from mg_jax.errors import UserError

# name: the class of its config
SYSTEMS = {
    "groma": "GromaConfig",
    "mg_llava": "MGLLaVAConfig",
    "ferret": "FerretConfig",
    "tiny_grounding_gpt": "TinyGroundingGPTConfig",
}
Loss = Callable[[Any, dict, jax.Array], tuple[jax.Array, dict[str, jax.Array]]]


@dataclasses.dataclass(frozen=True)
class System:
    """A model and how each of its stages is trained, as pure functions.

    `losses[stage](params, batch, key)` -> (scalar, metrics). `entry[stage]` names the module
    method that touches every parameter the stage has; init traces it.
    """

    name: str
    cfg: Any
    module: nn.Module
    losses: Mapping[str, Loss]
    entry: Mapping[str, Callable]
    example: Callable[..., dict[str, jax.ShapeDtypeStruct]]

    @property
    def stages(self) -> tuple[str, ...]:
        """Training stages in order."""
        return tuple(self.losses)

    def loss(self, stage: str) -> Loss:
        """Loss of a stage. Raises UserError for a stage the system does not have."""
        if stage not in self.losses:
            raise UserError(
                f"stage {stage!r}: {self.name} has no such stage; known: {', '.join(self.stages)}"
            )
        return self.losses[stage]

    def example_batch(self, stage: str, batch_size: int = 1, **sizes: int) -> dict[str, Any]:
        """Shapes and dtypes of a batch of `stage`; `sizes` as the system documents."""
        self.loss(stage)
        return self.example(self.cfg, stage, batch_size, **sizes)

    def init(self, stage: str) -> Callable:
        """`init(key)` of the parameters `stage` has, boxed with axis names (sharding.Named)."""
        batch = self.example_batch(stage)

        def init(key):
            zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), batch)
            return self.module.init(key, zeros, method=self.entry[stage])

        return init


@contextlib.contextmanager
def config_errors(where: str = "config.model") -> Iterator[None]:
    """Around the working out of a model's shapes, where values that do not fit together come to
    light: what a module raises becomes a UserError that begins with `where`."""
    try:
        yield
    except UserError:
        raise
    except (ValueError, TypeError, ArithmeticError) as e:
        reason = next(filter(str.strip, str(e).splitlines()), type(e).__name__)
        raise UserError(f"{where}: its values do not fit together: {reason.strip()}") from e


def build(name: str, model: Mapping[str, Any] | Any) -> System:
    """System `name` from a mapping of its model config (or the config dataclass itself).

    Raises UserError for an unknown system or config key.
    """
    if name not in SYSTEMS:
        raise UserError(f"system {name!r} is not known; known: {', '.join(SYSTEMS)}")
    module = import_module(f"mg_jax.models.{name}")
    kind = getattr(module, SYSTEMS[name])
    cfg = model if isinstance(model, kind) else config.build(kind, model, "config.model")
    found: System = module.system(cfg)
    return found
