"""How published benchmarks read a free-text answer (MG-LLaVA spec 10): what its tables rest on.

Each function does what the code behind the published numbers does, oddities included, since a
better reader would give other numbers; where an oddity matters, the docstring says so.
"""

import re
from collections.abc import Sequence

from mg_jax.errors import UserError

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_BETWEEN_DIGITS = re.compile(r"\d,\d")
# The published expression: meant as a look-behind, it is a look-ahead that always holds
_PERIOD = re.compile(r"(?!<=\d)\.(?!\d)")
_PERIODS = 32  # so many are removed: the published call passes a flag as the count
_ARTICLES = ("a", "an", "the")
_DIGITS = {
    word: str(n)
    for n, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    )
} | {"none": "0"}
_ENDINGS = {
    "n't": "ai are ca could did does do had has have is might must need ought sha should was were "
    "wo would",
    "n't've": "could had might should would",
    "'d": "he how it someone something there they where who you",
    "'d've": "he it she somebody someone something there they we who you",
    "'ll": "how it somebody someone something they what who why you y'all",
    "'s": "he how somebody someone that there what when where who why",
    "'ve": "could might must not should they we what where who would you",
    "'re": "there they what why you",
    "": "ma'am o'clock 'twas y'all y'all'd've 'ow's'at",
}


def _contractions() -> dict[str, str]:
    """From each spelling that lacks one apostrophe to the word; one entry goes the other way."""
    table = {"somebody'd": "somebodyd"}
    for ending, stems in _ENDINGS.items():
        for stem in stems.split():
            word = stem + ending
            places = [n for n, letter in enumerate(word) if letter == "'"]
            table |= {word[:n] + word[n + 1 :]: word for n in places}
    return table


_CONTRACTIONS = _contractions()


def vqa_answer(text: str) -> str:
    """An answer in the normal form of EvalAI's VQA evaluation.

    Lower case, without punctuation and articles, number words to ten as digits, apostrophes of
    contractions restored ("dont" becomes "don't", but so does "hes" "he's").
    """
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = _without_punctuation(text.replace("\n", " ").replace("\t", " ").strip())
    words = [_DIGITS.get(word, word) for word in text.split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def _without_punctuation(text: str) -> str:
    """A mark with a space on either side vanishes, another becomes a space; a comma between
    digits makes all of them vanish."""
    out = text
    joined = _BETWEEN_DIGITS.search(text) is not None
    for mark in _PUNCTUATION:
        spaced = f"{mark} " in text or f" {mark}" in text
        out = out.replace(mark, "" if spaced or joined else " ")
    return _PERIOD.sub("", out, count=_PERIODS)


def textvqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Soft accuracy in [0, 1] of TextVQA and VQAv2: of ten people's answers each is left out once,
    and the share min(1, n / 3) of the n equal ones among the nine is averaged.

    Raises UserError for another number of answers.
    """
    if len(answers) != 10:
        raise UserError(f"TextVQA's accuracy needs 10 answers a question, got {len(answers)}")
    said = vqa_answer(prediction)
    equal = [vqa_answer(answer) == said for answer in answers]
    if not any(equal):
        return 0.0
    scores = [min(1.0, (sum(equal) - left_out) / 3) for left_out in equal]
    return sum(scores) / len(scores)


def edit_share(truth: str, prediction: str) -> float:
    """Edit distance of two answers, without regard to case and white space, as a share of the
    longer one in [0, 1]; its length is taken before white space is tidied, as published."""
    a, b = (" ".join(text.strip().lower().split()) for text in (truth, prediction))
    row = list(range(len(b) + 1))
    for n, letter in enumerate(a, 1):
        last, row[0] = row[0], n
        for m, other in enumerate(b, 1):
            last, row[m] = row[m], min(row[m] + 1, row[m - 1] + 1, last + (letter != other))
    longest = max(len(truth.upper()), len(prediction.upper()))
    return row[-1] / longest if longest else 0.0


def anls(prediction: str, truths: Sequence[str], threshold: float = 0.5) -> float:
    """DocVQA's similarity to the nearest of the true answers, 0 where it is under `threshold`.

    Raises UserError without true answers.
    """
    if not truths:
        raise UserError("ANLS needs at least one true answer")
    best = 1.0 - min(edit_share(truth, prediction) for truth in truths)
    return 0.0 if best < threshold else best


def yes_or_no(text: str) -> str:
    """The one of "Yes" and "No" that alone is in the answer as a word, else "Unknown", which POPE
    counts as no."""
    words = _without_punctuation(text.lower()).split()
    if ("yes" in words) == ("no" in words):
        return "Unknown"
    return "Yes" if "yes" in words else "No"


def choice_letter(text: str) -> str:
    """The letter that an answer chooses: the first run of letters A to D, "" for none.

    So "Answer: B" reads as "A", and a fifth choice is never found.
    """
    found = re.search(r"[A-D]+", text)
    return found[0] if found else ""


def textvqa_question(prompt: str) -> str:
    """The question in a prompt of TextVQA's file, lower case, as its annotations are keyed.

    Raises UserError for a prompt in none of the three published forms.
    """
    lines = prompt.split("\n")
    if prompt.startswith("OCR tokens: "):
        if found := re.search(r"Question: (.*?) Short answer:", prompt, re.DOTALL):
            return found[1].lower()
    elif "Reference OCR token: " in prompt and len(lines) == 3:
        return lines[prompt.startswith("Reference OCR token:")].lower()
    elif len(lines) == 2:
        return lines[0].lower()
    raise UserError(f"no prompt of TextVQA's file: {prompt[:80]!r}")
