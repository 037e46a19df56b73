"""Words for scenes: noun phrases, queries, positions, relations, and reading them back.

Answers use the canonical words (the keys of the tables) so that they can be checked exactly;
questions also use the other words of a row.
"""

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass

from mg_jax.data.scenes.draw import COLORS
from mg_jax.data.scenes.shapes import SHAPES
from mg_jax.data.scenes.world import Thing, World
from mg_jax.text.words import a as a

# canonical word: other words for it
SHAPE_WORDS: dict[str, tuple[str, ...]] = {
    **{name: () for name in SHAPES},
    "circle": ("disc",),
    "triangle": (),
    "cross": ("plus sign",),
    "ring": ("hoop",),
    "diamond": ("rhombus",),
    "moon": ("crescent",),
    "tree": ("fir tree",),
    "cup": ("mug",),
    "flower": ("blossom",),
    "boat": ("sailboat",),
    "car": ("automobile",),
    "bolt": ("lightning bolt",),
    "sign": ("board",),
    "mushroom": ("toadstool",),
}
COLOR_WORDS: dict[str, tuple[str, ...]] = {
    **{name: () for name in COLORS},
    "red": ("crimson",),
    "purple": ("violet",),
    "yellow": ("golden",),
}
SIZE_WORDS = {"small": ("little", "tiny"), "medium": ("medium-sized",), "large": ("big", "huge")}
TEXTURE_WORDS = {
    "plain": ("solid",),
    "striped": ("stripy",),
    "dotted": ("spotted",),
    "checked": ("chequered",),
}
THING_WORDS = ("object", "thing", "item")
_PLURALS = {
    "fish": "fish", "bush": "bushes", "cross": "crosses", "rhombus": "rhombuses",
}  # fmt: skip
NUMBERS = (
    "no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve",
)  # fmt: skip


def plural(noun: str) -> str:
    """The plural of a shape word or of "object"."""
    head, _, last = noun.rpartition(" ")
    last = _PLURALS.get(last, last + "s")
    return f"{head} {last}" if head else last


def number(n: int) -> str:
    """0 to 12 in words, more in digits."""
    return NUMBERS[n] if n < len(NUMBERS) else str(n)


def join(parts: list[str]) -> str:
    """ "a, b and c"."""
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def _word(table: Mapping[str, tuple[str, ...]], name: str, rng: random.Random | None) -> str:
    others = table[name]
    if rng is None or not others or rng.random() > 0.3:
        return name
    return rng.choice(others)


@dataclass(frozen=True)
class Query:
    """A description by attributes; None = not said."""

    shape: str | None = None
    color: str | None = None
    size: str | None = None
    texture: str | None = None
    word: str | None = None

    def matches(self, thing: Thing) -> bool:
        """True when every attribute that is said fits (a word counts only where readable)."""
        return (
            (self.shape is None or thing.shape == self.shape)
            and (self.color is None or thing.color == self.color)
            and (self.size is None or thing.size == self.size)
            and (self.texture is None or thing.texture == self.texture)
            and (self.word is None or (thing.readable and thing.word == self.word))
        )

    def find(self, world: World) -> list[int]:
        """Indices of the things that match."""
        return [i for i, thing in enumerate(world.things) if self.matches(thing)]

    def noun(self, rng: random.Random | None = None, many: bool = False) -> str:
        """ "small red striped star", singular or plural; with rng, other words now and then."""
        return self.nouns(rng)[many]

    def nouns(self, rng: random.Random | None = None) -> tuple[str, str]:
        """`noun` in the singular and, in the same words, in the plural."""
        head = _word(SHAPE_WORDS, self.shape, rng) if self.shape else None
        if head is None:
            head = THING_WORDS[0] if rng is None else rng.choice(THING_WORDS)
        words = []
        if self.size:
            words.append(_word(SIZE_WORDS, self.size, rng))
        if self.color:
            words.append(_word(COLOR_WORDS, self.color, rng))
        if self.texture:
            words.append(_word(TEXTURE_WORDS, self.texture, rng))
        tail = ""
        if self.word:
            says = ("that says", "with the word", "reading")
            tail = f" {says[0] if rng is None else rng.choice(says)} {self.word}"
        one, many = (" ".join([*words, form]) + tail for form in (head, plural(head)))
        return one, many


def full_query(thing: Thing, keys: str = "color shape") -> Query:
    """The query that says the named attributes of a thing."""
    return Query(**{key: getattr(thing, key) for key in keys.split()})


def detail(thing: Thing) -> str:
    """Every attribute in canonical words: "small red striped star", word included."""
    query = Query(thing.shape, thing.color, thing.size,
                  None if thing.texture == "plain" else thing.texture,
                  thing.word if thing.readable else None)  # fmt: skip
    return query.noun()


def position(thing: Thing) -> str | None:
    """One of nine places ("top left", "left", "center", ...), None too near to a border of two."""
    names = []
    for value, words in zip(thing.center, (("left", "right"), ("top", "bottom")), strict=True):
        if min(abs(value - 1 / 3), abs(value - 2 / 3)) < 0.025:
            return None
        names.append(words[0] if value < 1 / 3 else words[1] if value > 2 / 3 else "")
    across, down = names
    return f"{down} {across}".strip() or "center"


def where(place: str) -> str:
    """A place with its preposition: "at the top", "on the left", "in the top left"."""
    first = {"top": "at", "bottom": "at", "left": "on", "right": "on"}.get(place, "in")
    return f"{first} the {place}"


# name: (axis, sign, phrases; the first is canonical)
RELATIONS: dict[str, tuple[int, int, tuple[str, ...]]] = {
    "left": (0, -1, ("to the left of", "left of", "on the left of")),
    "right": (0, 1, ("to the right of", "right of", "on the right of")),
    "above": (1, -1, ("above", "higher up than")),
    "below": (1, 1, ("below", "under")),
}
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}


def holds(relation: str, one: Thing, other: Thing, margin: float) -> bool:
    """True when `one` is left of (above, ...) `other` by at least `margin` of the picture.

    Centres of the visible boxes are compared, along the relation's axis alone; a negative margin
    asks whether somebody might still call it so.
    """
    axis, sign, _ = RELATIONS[relation]
    return sign * (one.center[axis] - other.center[axis]) >= margin


def relation(one: Thing, other: Thing, margin: float = 0.1) -> str | None:
    """The relation of `one` to `other` along the axis that dominates clearly, or None."""
    dx, dy = (one.center[k] - other.center[k] for k in (0, 1))
    if abs(dx) >= margin and abs(dx) > 1.3 * abs(dy):
        return "left" if dx < 0 else "right"
    if abs(dy) >= margin and abs(dy) > 1.3 * abs(dx):
        return "above" if dy < 0 else "below"
    return None


def distance(one: Thing, other: Thing) -> float:
    """Distance of the centres, in shares of the picture."""
    (ax, ay), (bx, by) = one.center, other.center
    return ((ax - bx) ** 2 + (ay - by) ** 2) ** 0.5


def _lookup(table: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    words = {}
    for name, others in table.items():
        for word in (name, *others):
            words[word] = name
            words[plural(word)] = name
    return words


def _pattern(words: Mapping[str, str]) -> re.Pattern[str]:
    longest_first = sorted(words, key=len, reverse=True)
    return re.compile(r"\b(" + "|".join(map(re.escape, longest_first)) + r")\b", re.IGNORECASE)


_SHAPES, _COLORS = _lookup(SHAPE_WORDS), {w: n for n, o in COLOR_WORDS.items() for w in (n, *o)}
_SHAPE_PATTERN, _COLOR_PATTERN = _pattern(_SHAPES), _pattern(_COLORS)


def parse_description(text: str) -> tuple[str | None, str | None]:
    """(colour, shape) that a description names first, canonical; None for what is not said.

    The colour must stand before the shape it describes: "A shape left of a red star" has none of
    its own, so only the text up to the first shape word is searched for the colour.
    """
    found = _SHAPE_PATTERN.search(text)
    head = text[: found.start()] if found else text
    color = _COLOR_PATTERN.search(head)
    return (
        _COLORS[color.group(1).lower()] if color else None,
        _SHAPES[found.group(1).lower()] if found else None,
    )


def describe_matches(text: str, thing: "Thing | Mapping") -> bool:
    """True when a description names exactly the thing's colour and shape.

    thing: a Thing or the attribute dict of `Example.meta["objects"]`. Several colours before the
    shape ("a red blue star") do not match.
    """
    get = thing.get if isinstance(thing, Mapping) else lambda key: getattr(thing, key)
    color, shape = parse_description(text)
    found = _SHAPE_PATTERN.search(text)
    if found is None or color != get("color") or shape != get("shape"):
        return False
    head = text[: found.start()]
    return len({_COLORS[c.lower()] for c in _COLOR_PATTERN.findall(head)}) == 1


def parse_colors(text: str) -> list[str]:
    """The colours that a text names, canonical, each once, in order."""
    return list(dict.fromkeys(_COLORS[c.lower()] for c in _COLOR_PATTERN.findall(text)))


def parse_things(text: str) -> list[str]:
    """ "red star" for every shape that a text names, in order, with the colour said last before it
    and after the shape before; the shape alone where there is none."""
    found, start = [], 0
    for match in _SHAPE_PATTERN.finditer(text):
        colors = parse_colors(text[start : match.start()])
        found.append(" ".join([*colors[-1:], _SHAPES[match[0].lower()]]))
        start = match.end()
    return found


_NUMBER = re.compile(r"\b(?:(\d+)|(none)|(" + "|".join(NUMBERS) + r"))\b", re.IGNORECASE)


def parse_number(text: str) -> int | None:
    """The first number that a text names, 0 for "no" and "none"; None of none."""
    found = _NUMBER.search(text)
    if found is None:
        return None
    if found[1]:
        return int(found[1])
    return NUMBERS.index(found[3].lower()) if found[3] else 0
