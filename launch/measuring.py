"""What an assistant reaches on a task."""

from collections.abc import Sequence
from typing import Any

BATCH = 16  # questions at a time


def measure(
    assistant: Any, task: Any, data: str, items: list[Any] | None = None, blind: bool = False
) -> Any:
    """`mg_jax.evals.tasks.evaluate` with the assistant's answers, proposals and own words."""
    from mg_jax.evals import tasks

    def predict(queries: Sequence[Any]) -> Any:
        length = task.max_new_tokens
        return assistant.answer(queries, max_new_tokens=length, batch_size=BATCH)

    return tasks.evaluate(
        task, data, predict, assistant.propose, items=items, system=assistant.system.name,
        batch_size=BATCH, blind=blind,
    )  # fmt: skip
