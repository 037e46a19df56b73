"""MG-LLaVA: LLaVA's format prompts and its own for yes or no (spec 10).

It publishes no questions about regions or places; those are ours (`common`).
"""

YES_NO = "Please answer the question with yes or no."

TEXTS: dict[str, tuple[str, ...]] = {
    "presence": (f"Is there {{}} in the image?\n{YES_NO}",),
    "presence_yes": ("Yes",),
    "presence_no": ("No",),
}
