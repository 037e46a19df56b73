"""Ferret-v2: dense referring and detection, coordinates on request, the questions of its tests.

Published (spec 8 and 10): both dense tasks, the sentence that asks for coordinates, and the
questions for one expression (RefCOCO) and for phrases (Flickr30k) of its evaluation. Its data set
GRIT has turns of its own; the remaining questions are ours (`common`). An answer repeats the phrase
before its box.
"""

from mg_jax.text.instructions import common

COORDINATES = "Include the coordinates for each mentioned object."

TEXTS: dict[str, tuple[str, ...]] = {
    **common.with_boxes(lambda text: f"{text} {COORDINATES}"),
    "rec": ("What is the location of {} in the image?",),
    "all_instances": ("What are the locations of {}?",),
    "dense_referring": ("Please classify the objects in the following locations. {}",),
    "dense_referring_answer": ("Here are the categories: {}",),
    "dense_detection": ("Please localize visible objects in the image in a raster scan order.",),
    "dense_detection_answer": ("The objects are: {}",),
}
