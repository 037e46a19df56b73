"""From a data text to the questions that a task asks, one item a question."""

import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from mg_jax.data.scenes import RESERVED_SEED
from mg_jax.data.sources import Source, open_source
from mg_jax.errors import BadRecord, UserError
from mg_jax.evals.names import ClassNames
from mg_jax.example import Example, Query, Region
from mg_jax.text import markup
from mg_jax.text.words import noun

# Scenes are drawn without end: this many are looked through for one that fits, on average.
_PATIENCE = 50


@dataclass(frozen=True, eq=False)
class Item:
    """One question, or one picture where nothing is asked (turn None).

    key: unique within a run, "<example id>/<turn>". record: what the source knows of the turn
    (task, targets, object, ...), empty where it knows nothing.
    """

    key: str
    example: Example
    turn: int | None = None
    record: Mapping[str, Any] = field(default_factory=dict)

    @property
    def reference(self) -> str:
        """The annotated answer, in neutral markup."""
        return "" if self.turn is None else self.example.turns[self.turn].assistant or ""

    @property
    def targets(self) -> tuple[Region, ...]:
        """The regions that the annotated answer gives, each once."""
        ids = dict.fromkeys(markup.regions_of(self.reference))
        return tuple(self.example.regions[k] for k in ids)

    @property
    def absent(self) -> bool:
        """The annotated answer denies that the thing is there."""
        said = self.record.get("absent", markup.says_absent(self.reference))
        return bool(said) and not self.targets

    def pixel_boxes(self, regions: tuple[Region, ...]) -> np.ndarray:
        """Boxes float64 [n, 4] of regions, xyxy in the picture's pixels."""
        size = np.tile([self.example.width, self.example.height], 2)
        return np.asarray([r.box for r in regions], np.float64).reshape(-1, 4) * size

    def picture(self, blind: bool = False) -> np.ndarray:
        """The picture, of a video its first frame, uint8 RGB [H, W, 3]; blind: noise of its size,
        one per example's id."""
        if self.example.video:
            return self._noise_video(1)[0] if blind else self.example.frames(1)[0]
        if not blind:
            return self.example.pixels()
        rng = np.random.default_rng(zlib.crc32(self.example.id.encode()))
        shape = (self.example.height, self.example.width, 3)
        return rng.integers(0, 256, shape, np.uint8)

    def query(self, blind: bool = False) -> Query:
        """The question by itself, without the turns before it. It carries the regions that its
        own text points at and no others: those of the annotated answer must not leak."""
        prompt, regions = asked(self.example, self.turn or 0)
        found = self.example.meta.get("detections")
        if blind and found is not None:
            found = _nothing(found)
        if not self.example.video:
            return Query(self.picture(blind), prompt, regions, detections=found)
        video = self._noise_video if blind else self.example.video
        return Query(None, prompt, regions, video=video, detections=found)

    def _noise_video(self, count: int) -> np.ndarray:
        """Frames of noise; of a file, whose size is unknown, they are small."""
        rng = np.random.default_rng(zlib.crc32(self.example.id.encode()))
        shape = (count, self.example.height or 224, self.example.width or 224, 3)
        return rng.integers(0, 256, shape, np.uint8)


def _nothing(found: Any) -> dict[str, Any]:
    """Detections in the form of `found` in which there is nothing."""
    frames = found.get("frames") if isinstance(found, Mapping) else found
    empty: dict[str, Any] = {"boxes": [], "scores": [], "labels": []}
    return empty if frames is None else {"frames": [empty] * len(frames)}


_YES_NO = re.compile(r"\W*(yes|no)\b", re.IGNORECASE)
_THERE_IS = re.compile(r"\W*there (is|are) (a|an|one|some|the)\b", re.IGNORECASE)


def yes_no(text: str) -> bool | None:
    """True for yes, False for no or an answer that denies, None for neither.

    The first word decides; "There is no ..." denies, "There is a ..." affirms.
    """
    found = _YES_NO.match(text)
    if found:
        return found[1].lower() == "yes"
    if markup.says_absent(text):
        return False
    return True if _THERE_IS.match(text) else None


def asked(example: Example, turn: int) -> tuple[str, tuple[Region, ...]]:
    """(prompt, regions) of one turn; regions are numbered anew in order of mention."""
    segments = markup.parse(example.turns[turn].user)
    new: dict[int, int] = {}
    for segment in segments:
        for k in segment.regions:
            new.setdefault(k, len(new))
    prompt = markup.format(replace(s, regions=tuple(new[k] for k in s.regions)) for s in segments)
    return prompt, tuple(example.regions[k] for k in new)


def collect(
    data: str,
    accepts: Callable[[Item], bool],
    scenes: Mapping[str, Any] | None = None,
    asks: bool = True,
    limit: int | None = None,
    write: Callable[[Example], Example | None] | None = None,
    problems: list[str] | None = None,
) -> list[Item]:
    """The items of a data text that a task accepts.

    Of scenes, `n` is the number of questions: scenes are looked through until so many are found,
    with the options of `scenes` where the text does not set them itself. Of other data every turn
    is a candidate, and all turns that `write` gives to an example without any are taken; the
    `meta` of such data gets the source's "frequency". limit: at most so many. asks=False: one item
    a picture, without question. Malformed examples of such data, and pictures that cannot be read,
    are left out and told in `problems`, each once. Raises UserError for a malformed text, and for
    more of them than the source's max_bad allows.
    """
    source = open_source(data)
    count = limit
    if is_scenes(data):
        count = min(len(source), limit or len(source))
        source = open_source(with_options(data, scenes or {}, n=count * _PATIENCE))
        write = None
    items: list[Item] = []
    bad: list[str] = []
    checked: Example | None = None  # the example whose picture was read last
    unreadable = False
    for item, written in _candidates(source, asks, write, bad):
        if not (written or accepts(item)):
            continue
        if item.example is not checked and not is_scenes(data):
            checked = item.example
            unreadable = not _readable(checked, bad)
        if not unreadable:
            items.append(item)
        if len(items) == count:
            break
    if len(bad) > source.max_bad * len(source):
        raise UserError(
            f"{bad[0]} ({len(bad)} of {len(source)} examples of {source.name} cannot be used: mend "
            "them, or allow a larger max_bad)"
        )
    if problems is not None:
        problems += [problem for problem in bad if problem not in problems]
    return items


def _readable(example: Example, bad: list[str]) -> bool:
    """Whether the picture can be read to its end; why not is added to `bad`. Asked now, since an
    evaluation would meet it hours later."""
    try:
        if example.image is not None:
            example.pixels()
    except BadRecord as e:
        bad.append(str(e))
        return False
    return True


def _candidates(
    source: Source,
    asks: bool,
    write: Callable[[Example], Example | None] | None,
    bad: list[str],
) -> Iterator[tuple[Item, bool]]:
    """Items, and whether their question was written here; malformed examples are added to `bad`."""
    for i in range(len(source)):
        try:
            example = source[i]
        except BadRecord as e:
            bad.append(str(e))
            continue
        if source.frequency:
            example.meta["frequency"] = source.frequency
        if not asks:
            yield Item(example.id, example), False
            continue
        written = write is not None and not example.turns
        if write is not None and written:
            example = write(example) or example
        records = example.meta.get("turns")
        for turn in range(len(example.turns)):
            record = records[turn] if isinstance(records, list) and turn < len(records) else {}
            record = record if isinstance(record, Mapping) else {}
            yield Item(f"{example.id}/{turn}", example, turn, record), written


def with_classes(items: list[Item]) -> list[Item]:
    """The items, each with the names of all classes in its record, under "classes".

    They are those that the source counts (`Source.frequency`), or the items' pictures have or lack
    by their annotations; `meta["synonyms"]` of a picture has other names of its labels (LVIS).
    """
    names: dict[str, None] = {}
    others: dict[str, dict[str, None]] = {}
    counted: set[int] = set()
    for example in (item.example for item in items):
        frequency = example.meta.get("frequency") or {}
        if id(frequency) not in counted:  # one for all examples of a source
            counted.add(id(frequency))
            names.update((name, None) for label in frequency if (name := noun(label)))
        regions = (*example.objects, *example.crowd, *example.regions)
        labels = [*(region.label for region in regions), *example.absent]
        names.update((name, None) for label in labels if (name := noun(label)))
        for label, synonyms in (example.meta.get("synonyms") or {}).items():
            if name := noun(label):
                others.setdefault(name, {}).update(dict.fromkeys(synonyms))
    classes = ClassNames(sorted(names), others)
    return [replace(item, record={**item.record, "classes": classes}) for item in items]


def is_scenes(data: str) -> bool:
    """True for the text of a source of procedural scenes."""
    return data.partition(":")[0] == "scenes"


def with_options(data: str, defaults: Mapping[str, Any], **fixed: Any) -> str:
    """The data text with options set: `fixed` in any case, `defaults` where it has none."""
    kind, _, rest = data.partition(":")
    given = dict(
        (key.strip(), value) for key, _, value in (p.partition("=") for p in rest.split(",")) if key
    )
    options = {**defaults, **given, **fixed}
    return f"{kind}:" + ",".join(f"{k}={v}" for k, v in options.items())


def warning(data: str) -> str | None:
    """What a reader of the numbers should know about the data, or None."""
    if is_scenes(data):
        seed = int(getattr(open_source(data), "seed", 0))
        if seed < RESERVED_SEED:
            return (
                f"scenes of seed {seed} may have been trained on: "
                f"seeds from {RESERVED_SEED} on are kept for evaluation"
            )
    return None


def file_name(key: str) -> str:
    """A key as a plain file name."""
    return re.sub(r"[^\w.-]+", "-", key)[:80]
