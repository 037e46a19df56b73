"""MG-LLaVA: LLaVA's prompts, whose mix665k it is trained on, and its own for yes or no (spec 10).

It publishes no questions of its own about regions or places; those that the mix lacks are ours
(`common`).
"""

from mg_jax.text.instructions import llava

YES_NO = "Please answer the question with yes or no."

TEXTS: dict[str, tuple[str, ...]] = {
    **llava.MIX,
    "presence": (f"Is there {{}} in the image?\n{YES_NO}",),
    "presence_yes": ("Yes",),
    "presence_no": ("No",),
}
