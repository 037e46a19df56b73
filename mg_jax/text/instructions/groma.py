"""Groma's published task instructions (spec 4.2), in neutral markup.

INSTRUCTIONS takes one thing at `{}`: `<p>phrase</p>` for the locating tasks, `<r:k>` for the tasks
about a region, nothing for the grounded caption. `[grounding]` is Groma's token for answers whose
phrases carry boxes. What its paper has no words for is ours (`common`), with that token where the
answer has boxes.
"""

from mg_jax.text.instructions import common

GROUNDING = "[grounding]"

INSTRUCTIONS: dict[str, tuple[str, ...]] = {
    "rec": (
        "Locate {} in the image.",
        "Can you spot {} in the photograph?",
        "Identify where {} is located in the picture.",
        "Please detect {} in the picture.",
        "Which region matches the description {}?",
        "Please identify the object that corresponds to {}.",
    ),
    "all_instances": (
        "Locate all {} in this image.",
        "Identify all instances of {} in the photo.",
        "Find all instances of {} in the image.",
        "Point out all the {} visible in this picture.",
        "Detect and list each {} that appears in this photo.",
        "What is the position of each {} in the image?",
    ),
    "grounded_caption": tuple(
        GROUNDING + text
        for text in (
            "Give me a concise description of the image.",
            "Please briefly summarize the content of this image.",
            "What does this picture show? Please summarize briefly.",
            "Can you give me a quick overview of what's depicted in this image?",
            "Could you describe the key elements in this photograph?",
            "Offer a brief explanation of what this image represents.",
            "Sum up the contents of this picture in one or two sentences.",
        )
    ),
    "region_caption": (
        "What is {}?",
        "Please briefly describe {}.",
        "Provide a short description for {}.",
        "Please give a concise description of region {}.",
    ),
    "region_description": (
        "Can you provide me with a detailed description of {}?",
        "Please describe {} in details.",
        "I'm curious about {} in the photo. Can you describe it in detail?",
        "Please give a comprehensive description of the object {}.",
        "What does the object {} in the picture look like? "
        "Could you give me a detailed description?",
    ),
}

TEXTS = common.with_boxes(lambda text: GROUNDING + text) | INSTRUCTIONS
