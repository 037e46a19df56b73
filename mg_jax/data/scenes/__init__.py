"""Procedural scenes with exact ground truth: the data set that is always at hand, in these rooms:

shapes        the silhouettes
draw          colours, textures, words, backgrounds, compositing
world         what stands where and how much of it is seen; `make_world`, `render`, `at_time`
language      noun phrases, positions, relations; `describe_matches` reads an answer back
expressions   referring expressions, unique or fitting nothing
tasks, talks  questions and answers by task
objects       those with object images
film          videos of scenes, and questions about what moves
detect        what a detector would say of a scene
conversation  `scene_example`: one scene with a conversation
"""

from mg_jax.data.scenes.conversation import TASKS, parse_tasks, scene_example
from mg_jax.data.scenes.language import describe_matches, parse_description
from mg_jax.data.scenes.world import RESERVED_SEED, Thing, World, at_time, make_world, render

__all__ = [
    "RESERVED_SEED",
    "TASKS",
    "Thing",
    "World",
    "at_time",
    "describe_matches",
    "make_world",
    "parse_description",
    "parse_tasks",
    "render",
    "scene_example",
]
