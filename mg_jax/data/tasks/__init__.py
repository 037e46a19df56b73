"""Conversations about annotated pictures, whatever data set they come from, in these rooms:

locating      rec, all_instances, dense_detection (_centres), grounded_caption
describing    caption, region_caption, region_description, dense_referring
asking        presence, vqa, choice, relation, dialogue
objects       with object images: object_match, place_choice, name_choice, object_relation,
              grounding_dialogue; and grounded_description
filters       which objects may be shown as images or offered as options
conversation  which tasks there are, `parse_tasks`, `converse`

docs/data.md says which annotations each of them needs and how it is worded by system.
"""

from mg_jax.data.tasks.base import NEGATIVES, ROUNDS, Task
from mg_jax.data.tasks.conversation import AUTO, TASKS, converse, parse_tasks
from mg_jax.data.tasks.filters import Filters
from mg_jax.data.tasks.objects import OBJECT_TASKS, ObjectTasks

__all__ = [
    "AUTO",
    "NEGATIVES",
    "OBJECT_TASKS",
    "ROUNDS",
    "TASKS",
    "Filters",
    "ObjectTasks",
    "Task",
    "converse",
    "parse_tasks",
]
