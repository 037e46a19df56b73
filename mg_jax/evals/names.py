"""Which class of a data set an answer in free words names."""

import re
from collections.abc import Iterable, Iterator, Mapping

from mg_jax.text import markup

# Names of one thing: each stands for any other, where that is a class.
_ALIKE = (
    ("airplane", "aeroplane", "plane", "aircraft", "jet"),
    ("motorcycle", "motorbike", "motor bike"),
    ("bicycle", "bike"),
    ("tv", "television", "tvmonitor", "tv monitor", "television set", "tv screen"),
    ("couch", "sofa"),
    ("cell phone", "cellphone", "mobile phone", "smartphone", "phone", "telephone"),
    ("potted plant", "pottedplant", "houseplant", "house plant", "plant"),
    ("dining table", "diningtable", "table"),
    ("donut", "doughnut"),
    ("hair drier", "hair dryer", "hairdryer", "blow dryer"),
    ("refrigerator", "fridge"),
    ("laptop", "laptop computer", "notebook computer"),
    ("mouse", "computer mouse"),
    ("keyboard", "computer keyboard"),
    ("remote", "remote control"),
    ("microwave", "microwave oven"),
    ("traffic light", "traffic signal", "stoplight"),
    ("fire hydrant", "hydrant"),
    ("handbag", "purse", "hand bag"),
    ("tie", "necktie"),
    ("suitcase", "luggage"),
    ("frisbee", "flying disc"),
    ("teddy bear", "teddy", "stuffed bear"),
    ("wine glass", "wineglass"),
    ("baseball glove", "baseball mitt", "mitt"),
    ("tennis racket", "tennis racquet", "racket", "racquet"),
    ("hot dog", "hotdog"),
    ("truck", "lorry"),
    ("rbc", "red blood cell", "erythrocyte"),
    ("wbc", "white blood cell", "leukocyte"),
    ("platelet", "thrombocyte"),
)  # fmt: skip
# Kinds of a thing: they stand for the class, the class does not stand for them.
_KINDS = {
    "person": (
        "man", "woman", "boy", "girl", "child", "kid", "baby", "toddler", "lady", "guy", "human",
        "gentleman", "adult", "pedestrian", "player", "skier", "snowboarder", "surfer", "rider",
        "skateboarder", "cyclist", "batter", "pitcher", "catcher", "umpire", "driver",
    ),
    "car": ("taxi", "sedan", "suv", "minivan"),
    "dog": ("puppy",),
    "cat": ("kitten",),
    "horse": ("pony",),
    "sheep": ("lamb",),
    "cow": ("calf", "bull", "cattle"),
    "boat": ("sailboat", "canoe", "kayak", "ship"),
    "bird": ("duck", "goose", "seagull", "gull", "pigeon", "parrot"),
    "cup": ("mug",),
    "sports ball": ("ball", "soccer ball", "tennis ball", "baseball", "basketball", "football"),
    "chair": ("armchair", "stool"),
    "teddy bear": ("stuffed animal",),
}  # fmt: skip
_PLURALS = {"men": "man", "women": "woman", "people": "person", "persons": "person",
            "children": "child", "mice": "mouse", "geese": "goose", "oxen": "ox"}  # fmt: skip

Words = tuple[str, ...]


class ClassNames:
    """Finds the classes of a set in answers.

    A class is known by its name, the singular of it, its name without what it has in brackets, the
    other names that its data set gives it, and the usual synonyms, by all but the first only where
    they name no other class of the set, too. Words count, not letters: case, articles, "_" and "-"
    make no difference, and an answer may have the plural; one word may stand for two ("wineglass")
    only where it is a synonym.
    """

    def __init__(self, names: Iterable[str], others: Mapping[str, Iterable[str]] | None = None):
        self.names = tuple(dict.fromkeys(names))
        self._known: dict[Words, str] = {}

        def own(name: str) -> Iterator[Words]:
            for other in (others or {}).get(name, ()):
                yield from _without_brackets(other)

        for forms in (_itself, _singulars, _without_brackets, own, _synonyms, _kinds):
            claims: dict[Words, set[str]] = {}
            for name in self.names:
                for form in forms(name):
                    if form and form not in self._known:
                        claims.setdefault(form, set()).add(name)
            self._known |= {form: min(by) for form, by in claims.items() if len(by) == 1}
        self._longest = max(map(len, self._known), default=0)

    def find(self, text: str) -> str | None:
        """The class that an answer names, or None.

        The one named first counts; of names that begin at one word the longest ("teddy bear" is no
        bear), of names in a row the last ("baseball player"), and no possessive ("a man's tie"). An
        answer that denies that something is there names nothing.
        """
        if markup.says_absent(text):
            return None
        found = self._known.get(_words(text))  # also of a name with signs in it
        if found is not None:
            return found
        # Between two signs other than a hyphen the words are one run
        for words in map(_words, re.split(r"[^\w\s'’-]+", text)):
            start = 0
            while start < len(words):
                name, end = self._at(words, start)
                if name is None and found is not None:
                    return found
                found, start = name, end
            if found is not None:
                return found
        return None

    def _at(self, words: Words, start: int) -> tuple[str | None, int]:
        """The class of the longest name that begins at a word, and where it ends."""
        for end in range(min(len(words), start + self._longest), start, -1):
            for last in _singular(words[end - 1]):
                if found := self._known.get((*words[start : end - 1], last)):
                    return found, end
        return None, start + 1


def _words(text: str) -> Words:
    plain = re.sub(r"\w+['’]s\b", " ", text.lower().replace("_", " "))
    return tuple(re.findall(r"\w+", plain))


def _singular(word: str) -> Iterator[str]:
    """The word, then what it may be the plural of."""
    yield word
    if word in _PLURALS:
        yield _PLURALS[word]
    elif word.endswith("s") and not word.endswith("ss"):
        if word.endswith("ies"):
            yield word[:-3] + "y"
        if word.endswith("ves"):
            yield from (word[:-3] + "f", word[:-3] + "fe")
        yield word[:-1]
        if word.endswith("es"):
            yield word[:-2]


def _itself(name: str) -> Iterator[Words]:
    yield _words(name)


def _singulars(name: str) -> Iterator[Words]:
    words = _words(name)
    for last in _singular(words[-1]) if words else ():
        yield (*words[:-1], last)


def _without_brackets(name: str) -> Iterator[Words]:
    yield from _singulars(re.sub(r"\(.*?\)", " ", name))


def _synonyms(name: str) -> Iterator[Words]:
    own = {" ".join(form) for form in _singulars(name)}
    for group in _ALIKE:
        if own & set(group):
            yield from map(_words, group)


def _kinds(name: str) -> Iterator[Words]:
    for form in _singulars(name):
        yield from map(_words, _KINDS.get(" ".join(form), ()))
