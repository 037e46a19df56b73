"""Byte-level BPE tokenizers kept as tokenizer.json (Qwen2.5, Llama-3), and the choice by folder.

Same use as `Tokenizer`: a text given to `encode_parts` is never read as a token. What differs:

- no leading space is added and none is dropped, so `decode` is the exact way back, but for the
  NFC normalisation that Qwen's file asks for;
- a sequence starts with a BOS token only if the file says so: Llama-3's does, Qwen's has none;
- `skip_special` drops the tokens marked special, and keeps the others (`<tool_call>`).
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tokenizers

from mg_jax.errors import UserError
from mg_jax.text.added import AddedTokens
from mg_jax.text.tokenizer import Tokenizer, read_file, read_object

CONFIG, FILE = "tokenizer_config.json", "tokenizer.json"


class BPETokenizer(AddedTokens):
    """Text to ids and back.

    Attributes: vocab_size (pieces), size (with added tokens), added (token -> id), bos_id (None:
    sequences start without one), eos_id and pad_id (None where the config names none).
    """

    def __init__(self, content: bytes, config: dict[str, Any]):
        """content: bytes of tokenizer.json; config: the fields of tokenizer_config.json.

        Raises UserError for a file that is not byte-level BPE.
        """
        self.content, self.config = content, config
        try:
            data = json.loads(content)
            entries = data.pop("added_tokens")
            kind = data["model"]["type"], data["decoder"]["type"]
            normalizer = (data["normalizer"] or {}).get("type")
            # without its added tokens: it must not find them in a text
            self._bpe = tokenizers.Tokenizer.from_str(json.dumps(data | {"added_tokens": []}))
        except Exception as e:  # the library raises nothing narrower
            raise UserError(f"{FILE} is not a tokenizer file ({e}): fetch it again") from e
        if kind != ("BPE", "ByteLevel") or normalizer not in (None, "NFC"):
            raise UserError(
                f"{FILE}: model, decoder and normalizer {(*kind, normalizer)} are not supported, "
                "only byte-level BPE; for a sentencepiece model give tokenizer.model"
            )
        self.vocab_size = self._bpe.get_vocab_size()
        self.added = {entry["content"]: int(entry["id"]) for entry in entries}
        self._size = max([self.vocab_size, *(i + 1 for i in self.added.values())])
        behind = {i for i in self.added.values() if i >= self.vocab_size}
        if len(behind) != self.size - self.vocab_size or any(e["single_word"] for e in entries):
            raise UserError(
                f"{FILE}: added tokens must have the ids {self.vocab_size} to {self.size - 1} "
                "without holes, none of them with single_word"
            )
        super().__init__(self.added)
        self._special = {e["id"] for e in entries if e["special"]}
        self._strip = {side: {e["id"] for e in entries if e[side]} for side in ("lstrip", "rstrip")}
        template = self._bpe.encode("").ids  # what the file itself puts around a text
        bos = self._named("bos_token")
        self.bos_id = bos if template[:1] == [bos] or config.get("add_bos_token") else None
        self.eos_id = self._named("eos_token")
        pad = self._named("pad_token")
        self.pad_id = self.eos_id if pad is None else pad

    @classmethod
    def load(cls, folder: str | Path) -> "BPETokenizer":
        """A tokenizer from tokenizer.json and tokenizer_config.json of a folder.

        Raises UserError naming the file at fault.
        """
        folder = Path(folder)
        content = read_file(folder / FILE, "the folder must hold a tokenizer")
        try:
            return cls(content, read_object(folder / CONFIG))
        except UserError as e:
            raise UserError(f"{folder}: {e}") from e

    def save(self, folder: str | Path) -> None:
        """Writes the two files, which `load` and transformers read alike."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FILE).write_bytes(self.content)
        text = json.dumps(self.config, indent=1, ensure_ascii=False)
        (folder / CONFIG).write_text(text + "\n", encoding="utf-8")

    @property
    def size(self) -> int:
        """Number of ids, added tokens included."""
        return self._size

    def _piece(self, token: str) -> int | None:
        return self._bpe.token_to_id(token)

    def _encode_part(
        self, text: str, before: int | None, after: int | None, first: bool
    ) -> list[int]:
        if before in self._strip["rstrip"]:
            text = text.lstrip()
        if after in self._strip["lstrip"]:
            text = text.rstrip()
        return list(self._bpe.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Text of ids. An id outside the vocabulary raises UserError."""
        text, run = "", []
        for i in self._checked(ids):
            if i not in self._tokens:
                run.append(i)
            elif not (skip_special and i in self._special):
                text, run = text + self.decode_text(run) + self._tokens[i], []
        return text + self.decode_text(run)

    def decode_text(self, ids: list[int]) -> str:
        """Text of ordinary pieces; bytes that are no character become the replacement sign."""
        return self._bpe.decode(ids, skip_special_tokens=False)

    def _named(self, name: str) -> int | None:
        """Id of a token that the config names, as text or as an object with `content`."""
        token = self.config.get(name)
        token = token["content"] if isinstance(token, dict) else token
        if token is None:
            return None
        try:
            return self.id(token)
        except KeyError as e:
            raise UserError(f"{CONFIG}: {name}: {e.args[0]} of {FILE}") from e


def load_tokenizer(folder: str | Path) -> Tokenizer | BPETokenizer:
    """The tokenizer of a folder: tokenizer.model where there is one, else tokenizer.json.

    Raises UserError naming the file at fault.
    """
    if (Path(folder) / "tokenizer.model").exists() or not (Path(folder) / FILE).exists():
        return Tokenizer.load(folder)
    return BPETokenizer.load(folder)
