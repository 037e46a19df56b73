"""A data set of examples that know their number."""

import numpy as np

from mg_jax.data.sources import Source
from mg_jax.example import Example


class Numbered(Source):
    """n pictures of one pixel; each has its number in `meta`."""

    def __init__(self, name: str, n: int, head: str = "coco"):
        super().__init__(name, head)
        self.n = n

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        image = np.zeros((1, 1, 3), np.uint8)
        return Example(image, 1, 1, source=self.name, meta={"number": i})
