"""Our own wording of every task, for what a system leaves unpublished.

The keys are explained in the package. BOXED are the questions whose answers ground their phrases
without having been asked for a place; systems that announce such answers do so with `with_boxes`.
"""

from collections.abc import Callable

TEXTS: dict[str, tuple[str, ...]] = {
    "caption": (
        "Describe this picture in one sentence.",
        "What does the picture show, in brief?",
        "Write a short caption for the image.",
        "In a few words, what is this a picture of?",
    ),
    "detailed_caption": (
        "Describe the picture in detail.",
        "What can be seen in this image? Go into the details.",
        "Give a thorough account of everything the image shows.",
    ),
    "grounded_caption": (
        "Describe the picture and say where each thing is.",
        "What does the image show, and where?",
        "Write a short caption and point at every object that it names.",
    ),
    "region_caption": (
        "What is {}?",
        "Describe {} in a few words.",
        "What does {} show?",
    ),
    "region_description": (
        "Describe {} in detail.",
        "What does {} look like? Please be precise.",
        "Tell me everything you see about {}.",
    ),
    "rec": (
        "Where is {}?",
        "Find {} in the picture.",
        "Give the position of {}.",
    ),
    "all_instances": (
        "Where is every {} in the picture?",
        "Find each {} in the image.",
        "Give the positions of all {} in the picture.",
    ),
    "dense_referring": ("Name the object at each of these places. {}",),
    "dense_referring_answer": ("{}",),
    "dense_detection": (
        "List the objects of the image from top to bottom, with their places.",
        "Which objects are there, and where? Go from top to bottom.",
    ),
    "dense_detection_answer": ("{}",),
    "presence": (
        "Is there {} in the image?",
        "Can you see {} in this picture?",
        "Does the picture show {}?",
    ),
    "presence_yes": ("Yes, there is {} in the image.",),
    "presence_no": ("No, there is no {} in the image.",),
    "relation": (
        "What is the relation of {} to {other}?",
        "How does {} relate to {other}?",
    ),
    "related": (
        'Which object stands in the relation "{predicate}" to {}?',
        'Find the object whose relation to {} is "{predicate}".',
    ),
    "relation_yes_no": (
        "Is {} {predicate} {other}?",
        "Is it true that {} is {predicate} {other}?",
    ),
    "object_match": (
        "Where is the object {} in the image?",
        "Find the object {} in the picture.",
        "Output the coordinate of the object {}",
    ),
    "place_choice": (
        "Which of these object images shows what is at {}?",
        "Which object is at {}?",
    ),
    "name_choice": (
        "Which of these object images shows {}?",
        "Choose the object image of {}.",
    ),
    "grounded_description": (
        "Describe the picture in detail, and give the coordinates of everything that you name.",
        "What is in the picture, and where? Go into the details.",
    ),
    "nearest": (
        "Which object is nearest to {}?",
        "What is closest to {}?",
    ),
}

BOXED = ("grounded_caption", "dense_detection", "relation", "related", "nearest")


def with_boxes(change: Callable[[str], str]) -> dict[str, tuple[str, ...]]:
    """The texts of BOXED, each changed."""
    return {key: tuple(map(change, TEXTS[key])) for key in BOXED}
