"""What an adapter of a system is, and helpers that several use.

A question goes through `read` (one row: pictures and prompt), `collate` (rows to a batch), the
model's prefill and decoding, which are the same for all, and `answer`.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from mg_jax import sharding
from mg_jax.answer import Answer
from mg_jax.boxes import BoxSpace
from mg_jax.errors import UserError
from mg_jax.example import Query, Region, Turn
from mg_jax.models import System, config_errors
from mg_jax.optim import flatten
from mg_jax.text import markup
from mg_jax.vision import preprocess

Proposals = list[tuple[np.ndarray, np.ndarray]]
# pictures uint8 RGB [H,W,3] -> of each {"boxes": [[x0,y0,x1,y1]] in pixels, "scores", "labels"}
Detect = Callable[[Sequence[np.ndarray]], Sequence[Mapping[str, Any]]]


# what only some systems have a part for
CAN = ("object images", "videos", "proposals", "detections")


@dataclasses.dataclass(frozen=True)
class Row:
    """One question, read: the encoded prompt, pixels and boxes (`arrays`), the size of the picture
    (or frame) in pixels, and notes for the answer."""

    query: Query
    arrays: Mapping[str, Any]
    width: int
    height: int
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class View:
    """A picture as its visual vectors see it.

    pixels: uint8 RGB [H,W,3]. token: id of their placeholders, of which the one numbered `first`
    in the prompt is the first of this picture. boxes: [n,4], xyxy in [0, 1] of the picture, what
    each vector is of; without area where it is of nothing.
    """

    name: str
    pixels: np.ndarray
    token: int
    first: int
    boxes: np.ndarray


class Adapter:
    """A system with its codec (None for a detector alone) as an Assistant uses it.

    settings: the release's config.json. detect: what finds boxes, for a system that is given them.
    preprocessing: what a release without that field means. text_alone: whether there may be a
    question without picture. can: what of CAN it has a part for.
    """

    preprocessing = "groma_pil"
    text_alone = False
    can: frozenset[str] = frozenset()

    def __init__(
        self,
        system: System,
        codec: Any,
        settings: Mapping[str, Any],
        detect: Detect | None = None,
    ):
        self.system, self.codec, self.detect = system, codec, detect
        self.preprocess = preprocess.get(settings.get("preprocess", self.preprocessing))

    @property
    def end_id(self) -> int:
        """The id that ends an answer."""
        raise NotImplementedError

    @property
    def pad_id(self) -> int:
        """The id that fills the rows after their ends."""
        raise NotImplementedError

    @property
    def visual(self) -> tuple[int, ...]:
        """Ids of the placeholders that a picture has in a prompt."""
        raise NotImplementedError

    def read(self, query: Query) -> Row:
        """A question. Raises UserError for what the system cannot take."""
        raise NotImplementedError

    def collate(self, rows: Sequence[Row], room: int) -> dict[str, np.ndarray]:
        """The batch of the model's `prefill`. room: positions that the model has for a prompt; a
        longer batch is refused later."""
        raise NotImplementedError

    def keep(self, aux: Mapping[str, Any]) -> Any:
        """Of the intermediates of `prefill` what `answer` needs, a tree of arrays [B, ...]."""
        return ()

    def answer(self, row: Row, ids: np.ndarray, logprobs: np.ndarray, kept: Any) -> Answer:
        """What generated ids [n] with log-probabilities [n] mean; `kept`: this row's of `keep`."""
        raise NotImplementedError

    def views(self, row: Row) -> list[View]:
        """The pictures of a question with the places of their visual vectors, the whole picture
        first; none for text alone. Raises UserError for a video."""
        raise NotImplementedError

    def propose(self, params: Any, images: Sequence[Any]) -> Proposals:
        """Regions of pictures: (boxes [n,4] xyxy pixels, scores [n]) each, best first."""
        raise UserError(f"{self.system.name} proposes no regions: it is given them")

    @contextlib.contextmanager
    def fitting(self, params: Any) -> Iterator[None]:
        """Around a run of the model: an error becomes a UserError where the release is at fault,
        its config.json holding what cannot be built or is not what `params` are of."""
        try:
            yield
        except UserError:
            raise
        except Exception as e:
            where = "config.json of the release, model"
            with config_errors(where):
                init = self.system.init(self.system.stages[-1])
                made = sharding.abstract_params(init, jax.random.key(0))
            shapes = flatten(sharding.unbox(made))
            for path, x in flatten(params).items():
                if path in shapes and shapes[path].shape != x.shape:
                    raise UserError(
                        f"{where}: by it {path} is {shapes[path].shape}, but the parameters hold "
                        f"{x.shape}"
                    ) from e
            raise


def picture(image: Any) -> np.ndarray:
    """uint8 RGB [H,W,3] of a path, an array or a PIL picture; UserError says what it got."""
    if isinstance(image, (str, Path, bytes)):
        return preprocess.load_image(image)
    array = preprocess.from_pil(image) if isinstance(image, Image.Image) else np.asarray(image)
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8 or 0 in array.shape:
        raise UserError(
            f"image: got an array of {array.dtype} {array.shape}; expected uint8 RGB [H,W,3], "
            "a path or a PIL picture"
        )
    return array


def turns(query: Query) -> list[Turn]:
    """The conversation so far and the question."""
    return [*query.history, Turn(query.prompt, None)]


def text_lengths(codec: Any) -> list[int]:
    """A few lengths of prompts up to the longest, so that few programs are compiled."""
    text = codec.text_tokens
    fixed = codec.length - text
    return [fixed + size for size in (text // 4, text // 2, text)]


def cells(rows: int, columns: int) -> np.ndarray:
    """[rows*columns, 4] xyxy in [0, 1] of the equal cells of a picture, row by row."""
    y, x = (n.ravel() for n in np.mgrid[:rows, :columns])
    corners = np.stack([x, y, x + 1, y + 1], -1)
    return corners / np.array([columns, rows, columns, rows], np.float64)


def padded_cells(side: int, width: int, height: int) -> np.ndarray:
    """As `cells` of the padded square of a picture of width x height px, in [0, 1] of the picture;
    those of padding have no area."""
    space = BoxSpace.pad(width, height, max(width, height))
    return np.clip(space.to_original(cells(side, side)), 0.0, 1.0)


def slots(count: int) -> int:
    """Room for `count` boxes, in steps of 8 so that few programs are compiled."""
    return max(8, -(-count // 8) * 8)


def batch_length(codec: Any, samples: Sequence[Mapping[str, Any]], room: int) -> int:
    """Length of a batch that holds the `tokens` of all samples; few, so that few programs are
    compiled, and where it can no more than `room`."""
    longest = max(len(s["tokens"]) for s in samples)
    step = max(16, codec.text_tokens // 4)
    return max(longest, min(-(-longest // step) * step, room))


def boxed_notes(regions: Sequence[Region]) -> list[str]:
    """One note for each kind of region that goes by its tightest box."""
    kinds = dict.fromkeys(r.kind for r in regions if r.kind != "box")
    return [f"{kind} passed as its tightest box" for kind in kinds]


def object_notes(query: Query) -> list[str]:
    """A note where a question shows an object image, of a system that takes none."""
    shown = any(s.kind == "object" for t in turns(query) for s in markup.parse(t.user))
    return ["object image passed as its region"] if shown else []
