"""LLaVA-1.5's response format prompts, which the four systems share for questions and choices.

In a conversation of several short answers the prompt stands in the first round alone, as in the
published mix665k. Presence is asked as POPE is asked of LLaVA. MIX has the mix's own requests for
places (of RefCOCO and Visual Genome), regions and one-sentence captions (TextCaps), for the systems
that are trained on it. Its requests for detailed captions are many, and part of the data files.
"""

SHORT_ANSWER = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."

TEXTS: dict[str, tuple[str, ...]] = {
    "vqa": (f"{{}}\n{SHORT_ANSWER}",),
    "choice": (f"{{}}\n{LETTER}",),
}

MIX: dict[str, tuple[str, ...]] = {
    "rec": (
        "Please provide the bounding box coordinate of the region this sentence describes: {}.",
    ),
    "region_caption": ("Please provide a short description for this region: {}.",),
    "caption": ("Provide a one-sentence caption for the provided image.",),
}

POPE: dict[str, tuple[str, ...]] = {
    "presence": (f"Is there {{}} in the image?\n{SHORT_ANSWER}",),
    "presence_yes": ("Yes",),
    "presence_no": ("No",),
}
