"""LLaVA-1.5's response format prompts, which the four systems share for questions and choices.

In a conversation of several short answers the prompt stands in the first round alone, as in the
published mix665k. Presence is asked as POPE is asked of LLaVA. LLaVA's caption requests are part
of its data files, which have turns; captions without turns get the words of `common`.
"""

SHORT_ANSWER = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."

TEXTS: dict[str, tuple[str, ...]] = {
    "vqa": (f"{{}}\n{SHORT_ANSWER}",),
    "choice": (f"{{}}\n{LETTER}",),
}

POPE: dict[str, tuple[str, ...]] = {
    "presence": (f"Is there {{}} in the image?\n{SHORT_ANSWER}",),
    "presence_yes": ("Yes",),
    "presence_no": ("No",),
}
