"""What to look for in a picture: the words that an open-vocabulary detector is given.

A tagger is called with ids and pictures (uint8 RGB [H, W, 3]) and returns the tags of each picture.
Three kinds, opened by `open_tagger`: the same list for every picture; the words of its caption; a
plug-in, which may be RAM++ or any other classifier under its rule (MG-LLaVA spec 9).
"""

import importlib
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mg_jax.data.sources.json_rows import JsonRows
from mg_jax.errors import UserError, shown, some
from mg_jax.vision.preprocess import normalize

Tagger = Callable[[Sequence[str], Sequence[np.ndarray]], list[list[str]]]
RAM_SIZE, RAM_THRESHOLD = 384, 0.68  # pixels a side; the threshold of classes without their own

# Words between which a caption's noun phrases stand.
_BETWEEN = frozenset(
    """a an the this that these those some any each every all both no another other several many
    few one two three four five six seven eight nine ten of in on at by to from with without into
    onto over under above below behind beside between through across along around near next front
    back top up down out off inside outside against upon among during before after as for about
    and or but nor so yet if while when where which who whom whose what how than then there here it
    its he his him she her hers they their them we our us you your i my me is are was were be been
    being am do does did has have had can could may might will would shall should must not very
    also just only more most much such same own too image picture photo photograph view video
    shows show shown showing looks look seems appears sits sit stands stand lies lie sat stood
    wearing holding sitting standing walking riding looking playing eating lying hanging flying
    running driving parked covered filled made placed set seen surrounded""".split()
)


def words_of(lines: Iterable[str]) -> list[str]:
    """Tags of a text with commas or of lines: lower case, each once, in order (upstream's rule)."""
    words = [word.strip() for line in lines for word in line.lower().split(",")]
    return list(dict.fromkeys(filter(None, words)))


def caption_tags(text: str, known: Sequence[str] = ()) -> list[str]:
    """What a caption names: the known tags that stand in it, longer ones first; without a list
    the groups of words between the small words of the language, a guess at its noun phrases."""
    words = re.findall(r"[a-z0-9][a-z0-9'-]*", text.lower())
    if not known:
        groups: list[list[str]] = [[]]
        for word in re.findall(r"[a-z0-9][a-z0-9'-]*|[.,;:!?]", text.lower()):
            if word in _BETWEEN or not word[0].isalnum():
                groups.append([])
            else:
                groups[-1].append(word)
        return list(dict.fromkeys(" ".join(group[-3:]) for group in groups if group))
    text = f" {' '.join(words)} "
    found = []
    for tag in sorted(known, key=lambda tag: (-len(tag), tag)):
        form = next((f for f in (tag, tag + "s", tag + "es") if f" {f} " in text), None)
        if form:
            found.append(tag)
            text = text.replace(f" {form} ", " | ")  # "hot dog" leaves no dog
    return found


def ram_pixels(images: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures as RAM++ takes them: float32 [B, 384, 384, 3], squashed, ImageNet mean and std."""
    size = (RAM_SIZE, RAM_SIZE)
    small = [Image.fromarray(x).resize(size, Image.Resampling.BILINEAR) for x in images]
    return normalize(np.stack([np.asarray(x) for x in small]))


def ram_tags(
    logits: np.ndarray, names: Sequence[str], thresholds: np.ndarray | float = RAM_THRESHOLD
) -> list[list[str]]:
    """Tags of logits [B, tags] by the rule of RAM++: sigmoid above the threshold of each class, in
    the order of the list, lower case; a name with a comma becomes two."""
    chosen = 1 / (1 + np.exp(-np.asarray(logits, np.float64))) > thresholds
    return [words_of(names[k] for k in np.flatnonzero(row).tolist()) for row in chosen]


class WordList:
    """The same tags for every picture."""

    def __init__(self, tags: Sequence[str]):
        self.tags = list(tags)

    def __call__(self, ids: Sequence[str], images: Sequence[np.ndarray]) -> list[list[str]]:
        return [self.tags for _ in images]


class Captions:
    """The tags of each picture's caption; see `caption_tags`."""

    def __init__(self, path: Path, known: Sequence[str] = ()):
        self.path, self.known, self.texts = path, known, read_captions(path)

    def check(self, ids: Iterable[str]) -> None:
        """Raises UserError naming pictures without a caption."""
        missing = [shown(name) for name in ids if name not in self.texts]
        if missing:
            raise UserError(f"{self.path}: has no caption of {', '.join(some(missing, 3))}")

    def __call__(self, ids: Sequence[str], images: Sequence[np.ndarray]) -> list[list[str]]:
        return [caption_tags(self.texts[name], self.known) for name in ids]


class Plugin:
    """A function of the user's: pictures to lists of tags; or, with `names`, RAM++'s input
    (`ram_pixels`) to logits [B, tags], of which `ram_tags` makes tags. file: where it stands."""

    def __init__(
        self,
        spec: str,
        names: Sequence[str] = (),
        thresholds: np.ndarray | float = RAM_THRESHOLD,
    ):
        self.spec, self.names, self.thresholds = spec, list(names), thresholds
        module, _, name = spec.partition(":")
        if not module or not name:
            raise UserError(f"--tagger {spec}: write MODULE:FUNCTION")
        sys.path.insert(0, "")  # a file in the current folder, as python -m would find it
        try:
            found = importlib.import_module(module)
            self.file, self.function = found.__file__, getattr(found, name)
        except (ImportError, AttributeError) as e:
            raise UserError(f"--tagger {spec}: {e}") from e
        finally:
            sys.path.remove("")
        if not callable(self.function):
            raise UserError(f"--tagger {spec}: is no function")

    def __call__(self, ids: Sequence[str], images: Sequence[np.ndarray]) -> list[list[str]]:
        if not self.names:
            found = self.function(list(images))
            lists = isinstance(found, list | tuple) and all(
                isinstance(tags, list | tuple | set) for tags in found
            )
            if not lists or len(found) != len(images):
                kind = f"{len(found)} results" if lists else "no list of lists"
                raise UserError(
                    f"--tagger {self.spec}: gave {kind} for {len(images)} pictures: return a list "
                    "of tags for each"
                )
            return [words_of(map(str, tags)) for tags in found]
        logits = np.asarray(self.function(ram_pixels(images)))
        if logits.shape != (len(images), len(self.names)):
            raise UserError(
                f"--tagger {self.spec}: gave logits of shape {list(logits.shape)}, expected "
                f"{[len(images), len(self.names)]}: one for each picture and line of --tags"
            )
        return ram_tags(logits, self.names, self.thresholds)


def open_tagger(
    tags: str | None, captions: str | None, plugin: str | None, thresholds: str | None
) -> Tagger:
    """The tagger of these options of `launch.boxes`. Raises UserError for what is missing or
    does not fit together."""
    if captions and plugin:
        raise UserError("--captions and --tagger: give one of them")
    if thresholds and not (plugin and tags):
        raise UserError("--thresholds: is for --tagger with --tags, a classifier's list")
    lines = read_lines(tags, "--tags") if tags else []
    if plugin:
        limits: np.ndarray | float = RAM_THRESHOLD
        if thresholds:
            limits = _numbers(thresholds)
            if len(limits) != len(lines):
                raise UserError(
                    f"--thresholds {thresholds}: {len(limits)} numbers for the {len(lines)} tags "
                    f"of {tags}"
                )
        return Plugin(plugin, lines, limits)
    if captions:
        return Captions(Path(captions), words_of(lines))
    if not tags:
        raise UserError("say what to look for: --tags FILE, --captions FILE or --tagger M:F")
    return WordList(words_of(lines))


def read_lines(path: str, option: str) -> list[str]:
    """The lines of a file that are not empty. Raises UserError naming the option."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        reason = getattr(e, "strerror", None) or "is no text"
        raise UserError(f"{option} {path}: {reason}") from None
    lines = [line.strip() for line in lines if line.strip()]
    if not lines:
        raise UserError(f"{option} {path}: the file is empty: write one tag a line")
    return lines


def _numbers(path: str) -> np.ndarray:
    try:
        return np.asarray([float(line) for line in read_lines(path, "--thresholds")])
    except ValueError as e:
        raise UserError(f"--thresholds {path}: {e}: write one number a line") from None


def read_captions(path: Path) -> dict[str, str]:
    """Captions by picture: of COCO's file (by id and by file name without ending), of rows with an
    id and a `caption` (text or list), or of LLaVA's (everything the assistant says).

    Raises UserError for a missing file or one of another form.
    """
    if not path.is_file():
        raise UserError(f"--captions {path}: no such file")
    found: dict[str, list[str]] = {}
    for where, row in _caption_rows(path):
        if not isinstance(row, Mapping):
            raise UserError(f"{where}: expected an object with id and caption")
        name = next((row[k] for k in ("id", "question_id", "image_id") if k in row), None)
        said = row.get("caption")
        if said is None and isinstance(row.get("conversations"), list):
            turns = [turn for turn in row["conversations"] if isinstance(turn, Mapping)]
            said = [str(turn.get("value", "")) for turn in turns if turn.get("from") == "gpt"]
        if name is None or not isinstance(said, str | list):
            raise UserError(f"{where}: expected an id and a caption, or LLaVA's conversations")
        texts = [said] if isinstance(said, str) else [str(text) for text in said]
        for key in {str(name), str(row.get("file", name))}:
            found.setdefault(key, []).extend(texts)
    return {name: ". ".join(texts) for name, texts in found.items()}


def _caption_rows(path: Path) -> Iterable[tuple[str, Any]]:
    try:
        coco = json.loads(path.read_bytes())
    except ValueError:
        coco = None  # lines of jsonl, or an error that JsonRows words
    if not isinstance(coco, dict) or "annotations" not in coco:
        yield from ((where, row) for where, _, row in JsonRows(path).scan())
        return
    try:
        files = {row["id"]: Path(row["file_name"]).stem for row in coco.get("images", [])}
        for n, row in enumerate(coco["annotations"]):
            known = {"id": row["image_id"], "caption": row["caption"]}
            yield f"{path}: annotations[{n}]", known | {"file": files.get(row["image_id"], "")}
    except (KeyError, TypeError) as e:
        raise UserError(f"{path}: not COCO's captions: {e} is missing or wrong") from None
