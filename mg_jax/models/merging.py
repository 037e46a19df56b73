"""How object vectors meet the image vectors on their way to the language model.

"append" is what was published and the paper's best, its "concatenation" (table 5b): object tokens
follow the image tokens of their frame. "f2b" and "b2f" are the cross-attentions of that table: the
objects read the image and follow it, or the image reads the objects, which then have no token of
their own. "none" leaves objects out (table 4).
"""

from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mg_jax.models.fusion import CrossAttention

Objects = Literal["append", "none", "f2b", "b2f"]
WITH_TOKENS = ("append", "f2b")  # kinds in which an object is a token of the prompt


class Merge(nn.Module):
    """Parameters: attention, of "f2b" and "b2f" alone; it starts by changing nothing.

    Runs on projected vectors, where objects and image have one width.
    """

    kind: Objects
    width: int
    heads: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        image: Float[Array, "B P D"],
        objects: Float[Array, "B R D"],
        mask: Bool[Array, "B R"],
    ) -> tuple[Float[Array, "B P D"], Float[Array, "B R D"]]:
        """Image and object vectors of each frame; `mask`: objects that exist."""
        if self.kind not in ("f2b", "b2f"):
            return image, objects
        attention = CrossAttention(self.width, self.width, self.heads, self.dtype, name="attention")
        if self.kind == "f2b":
            return image, attention(objects, image)
        return attention(image, objects, mask), objects
