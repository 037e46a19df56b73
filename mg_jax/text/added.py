"""What every tokenizer here does alike: added tokens, and texts that are never read as tokens."""

import re
from collections.abc import Iterable, Mapping

from mg_jax.errors import UserError


class AddedTokens:
    """Ids of whole tokens beside the pieces of a vocabulary; the base of the tokenizers.

    Attributes: vocab_size (pieces), size (ids in all), bos_id (None: sequences start without).
    """

    vocab_size: int
    bos_id: int | None

    def __init__(self, ids: Mapping[str, int]):
        """ids: the tokens that `encode` looks for in a text, the longest first."""
        self._ids = dict(ids)
        self._tokens = {i: token for token, i in self._ids.items()}
        longest_first = sorted(self._ids, key=len, reverse=True)
        self._split = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")

    @property
    def size(self) -> int:
        """Number of ids, added tokens included."""
        raise NotImplementedError

    def _piece(self, token: str) -> int | None:
        """Id of an ordinary piece, None if there is none such."""
        raise NotImplementedError

    def _encode_part(
        self, text: str, before: int | None, after: int | None, first: bool
    ) -> list[int]:
        """Ids of a text between two tokens (None: no token there); first: it begins the whole."""
        raise NotImplementedError

    def id(self, token: str) -> int:
        """Id of an added or special token, or of a piece; KeyError if unknown."""
        i = self._ids.get(token)
        i = self._piece(token) if i is None else i
        if i is None:
            raise KeyError(f"token {token!r} is not in the vocabulary")
        return i

    def token(self, i: int) -> str | None:
        """The added or special token of an id; None for an ordinary piece or a wrong id."""
        return self._tokens.get(int(i))

    def encode(self, text: str, bos: bool = True) -> list[int]:
        """Ids of a text in which added and special tokens are recognised; no EOS at the end."""
        return self.encode_parts(self.split(text), bos)

    def split(self, text: str) -> list[str | int]:
        """A text cut at its added and special tokens, which become ids."""
        if not self._ids:
            return [text] if text else []
        return [self._ids.get(part, part) for part in self._split.split(text) if part]

    def encode_parts(self, parts: Iterable[str | int], bos: bool = True) -> list[int]:
        """Ids of a sequence of literal texts and ids: a text is never read as a token.

        So a question that holds the characters `</s>` cannot end the sequence.
        """
        joined: list[str | int] = []
        for part in parts:
            if isinstance(part, str) and joined and isinstance(joined[-1], str):
                joined[-1] += part
            else:
                joined.append(part)
        ids = [self.bos_id] if bos and self.bos_id is not None else []
        for n, part in enumerate(joined):
            if isinstance(part, str):
                # texts are joined, so the neighbours are ids
                before = int(joined[n - 1]) if n else None
                after = int(joined[n + 1]) if n + 1 < len(joined) else None
                ids += self._encode_part(part, before, after, n == 0)
            else:
                ids.append(int(part))
        return ids

    def _checked(self, ids: Iterable[int]) -> list[int]:
        """The ids as ints. Raises UserError for one outside the vocabulary."""
        out = [int(i) for i in ids]
        for i in out:
            if not 0 <= i < self.size:
                raise UserError(f"token id {i} is outside the vocabulary of {self.size}")
        return out
