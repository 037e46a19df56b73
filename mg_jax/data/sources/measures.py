"""What is known of examples before they are read: the medium, and about how much text there is."""

import string
from collections.abc import Sequence

from mg_jax.example import Example, Turn

TEXT, PICTURE, VIDEO = range(3)
MEDIA = ("texts", "pictures", "videos")
UNKNOWN = 1 << 30  # tokens of a conversation that is drawn when a batch is made

_PLAIN = (string.ascii_letters + " ").encode()
_TURN = 16  # tokens that a template puts around a question and its answer, at most
_REGION = 24  # tokens of a region that is written as a box


def tokens_about(turns: Sequence[Turn]) -> int:
    """About how many tokens turns have, rather too many: three letters make one, and so does every
    byte of digits, signs and other scripts."""
    said = "".join(f"{turn.user}{turn.assistant or ''}" for turn in turns)
    text = said.encode(errors="surrogatepass")
    other = len(text.translate(None, _PLAIN))
    words = -(-(len(text) - other) // 3)
    return words + other + _TURN * len(turns) + _REGION * text.count(b"<r:")


def measure(example: Example) -> tuple[int, int]:
    """(medium, tokens) of an example, as `Source.measures` has them."""
    medium = VIDEO if example.video else TEXT if example.image is None else PICTURE
    return medium, tokens_about(example.turns) if example.turns else UNKNOWN
