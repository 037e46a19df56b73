"""The procedural scenes as a source."""

import random

from mg_jax.data.scenes.conversation import parse_tasks, scene_example
from mg_jax.data.scenes.world import RESERVED_SEED
from mg_jax.data.sources.base import Source, number
from mg_jax.data.sources.measures import PICTURE, VIDEO
from mg_jax.errors import UserError
from mg_jax.example import Example


class SceneSource(Source):
    """Scenes 0 to n-1 of a seed, made when they are asked for.

    tasks: see `scenes.parse_tasks`; "none" for pictures without conversation. turns: questions a
    conversation. size: "224" or "320x240" (width x height), or several, "224|448x224", of which
    each scene has one, drawn; vary: share by which each of its sides may be shorter, drawn too.
    frames: videos of so many frames instead of pictures. named: 1 for things that are asked about
    by their names wherever there is a choice; shown: 1 for such that are shown as regions. signs:
    see `scenes.make_world`; more of them are more words to learn to read.
    training: refuse reserved seeds.
    Raises UserError for a wrong option.
    """

    def __init__(
        self,
        seed: int | str = 0,
        n: int | str = 1000,
        tasks: str = "all",
        turns: int | str = 1,
        size: int | str = 224,
        vary: float | str = 0.0,
        min_objects: int | str = 2,
        max_objects: int | str = 12,
        distractors: float | str = 0.65,
        signs: float | str = 0.05,
        frames: int | str = 0,
        named: int | str = 0,
        shown: int | str = 0,
        head: str = "coco",
        name: str = "scenes",
        training: bool = False,
    ):
        super().__init__(name, head)
        self.seed = number(name, "seed", seed)
        if training and self.seed >= RESERVED_SEED:
            raise UserError(
                f"data {name}: seed={self.seed} is kept for evaluation: train on seeds below "
                f"{RESERVED_SEED}"
            )
        self.n = number(name, "n", n, low=1)
        self.frames = number(name, "frames", frames)
        if self.frames == 1:
            raise UserError(f"data {name}: frames=1 is no video: at least 2, or 0 for pictures")
        self.medium = VIDEO if self.frames else PICTURE
        self.named = number(name, "named", named) > 0
        self.shown = number(name, "shown", shown) > 0
        if self.named and self.shown:
            raise UserError(f"data {name}: named=1 and shown=1 exclude each other: leave one out")
        self.tasks = None if tasks == "none" else parse_tasks(tasks, self.frames > 0)
        self.turns = number(name, "turns", turns, low=1)
        self.sizes = []
        for one in str(size).split("|"):
            width, _, height = one.partition("x")
            self.sizes.append(
                tuple(number(name, "size", v, low=32) for v in (width, height or width))
            )
        self.vary = number(name, "vary", vary, float)
        if not 0 <= self.vary < 1:
            raise UserError(f"data {name}: vary={vary} is no share from 0 to below 1")
        self.options = {
            "min_objects": number(name, "min_objects", min_objects, low=1),
            "max_objects": number(name, "max_objects", max_objects, low=1),
            "distractors": number(name, "distractors", distractors, float),
            "signs": number(name, "signs", signs, float),
        }
        for key in ("distractors", "signs"):
            if not 0 <= self.options[key] <= 1:
                raise UserError(f"data {name}: {key}={self.options[key]} is no share from 0 to 1")
        if self.options["min_objects"] > self.options["max_objects"]:
            raise UserError(
                f"data {name}: min_objects={min_objects} is more than max_objects={max_objects}"
            )

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> Example:
        if not -self.n <= i < self.n:
            raise IndexError(f"{self.name}: index {i} of {self.n}")
        width, height = self.size_of(int(i) % self.n)
        return scene_example(
            self.seed,
            int(i) % self.n,
            width=width,
            height=height,
            tasks=self.tasks,
            turns=self.turns,
            frames=self.frames,
            named=self.named,
            shown=self.shown,
            **self.options,
        )

    def size_of(self, i: int) -> tuple[int, int]:
        """(width, height) of scene i in pixels."""
        rng = random.Random(f"{self.seed}:{i}:size")
        width, height = rng.choice(self.sizes)
        sides = [max(32, round(side * (1 - self.vary * rng.random()))) for side in (width, height)]
        return sides[0], sides[1]
