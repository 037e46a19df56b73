"""Ferret-v2: dense referring and detection, coordinates on request, the questions of its tests.

Published (spec 8 and 10): both dense tasks, the sentence that asks for coordinates, and the
questions for one expression (RefCOCO), for phrases (Flickr30k) and of two classes (LVIS) of its
evaluation. Its data set GRIT has turns of its own; the remaining questions are ours (`common`). An
answer repeats the phrase before its box.
"""

from mg_jax.text.instructions import common

COORDINATES = "Include the coordinates for each mentioned object."
# What Ferret-UI says in its place, on a line of its own
COORDINATES_UI = "Provide the bounding boxes of the mentioned objects."


def which(region: int, index: int, name: str, other: str) -> str:
    """The question number `index` of its test on LVIS: the true name comes first in even ones,
    second in odd ones; "a" before every name, as published."""
    first, second = (name, other) if index % 2 == 0 else (other, name)
    return f"Is the object <r:{region}> of the image a {first} or a {second}?"


TEXTS: dict[str, tuple[str, ...]] = {
    **common.with_boxes(lambda text: f"{text} {COORDINATES}"),
    "rec": ("What is the location of {} in the image?",),
    "all_instances": ("What are the locations of {}?",),
    "dense_referring": ("Please classify the objects in the following locations. {}",),
    "dense_referring_answer": ("Here are the categories: {}",),
    "dense_detection": ("Please localize visible objects in the image in a raster scan order.",),
    "dense_detection_answer": ("The objects are: {}",),
}
