"""Conversations about annotated pictures, whatever data set they come from, in these rooms:

locating      rec, all_instances, dense_detection, grounded_caption
describing    caption, region_caption, region_description, dense_referring
asking        presence, vqa, choice, relation, dialogue
conversation  which tasks there are, `parse_tasks`, `converse`

docs/data.md says which annotations each of them needs and how it is worded by system.
"""

from mg_jax.data.tasks.base import NEGATIVES, ROUNDS, Task
from mg_jax.data.tasks.conversation import AUTO, TASKS, converse, parse_tasks

__all__ = ["AUTO", "NEGATIVES", "ROUNDS", "TASKS", "Task", "converse", "parse_tasks"]
