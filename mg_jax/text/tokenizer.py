"""SentencePiece tokenizer with added tokens, as Groma and its Llama kin use it (spec 4.3).

The rule is that of the slow `LlamaTokenizer` of transformers 4.32, frozen here: sentencepiece
alone, split around the added tokens. Later transformers tokenise the same text differently unless
told otherwise, and importing them costs seconds; this loads in milliseconds and gives the same ids
under every version. In short:

- white space on both sides of an added token is dropped, but not beside `<s>`, `</s>`, `<unk>`;
- the text gets one leading space ("▁"); with legacy=False a piece of text after a token gets none,
  with legacy=True it gets one as well;
- with text_after_token="published" every piece of text is encoded behind the characters `<unk>`,
  whose pieces are then cut off, as 4.32 does: a beginning that the vocabulary joins to ">" is lost
  with them. Llama's has ">.", ">," and the like, so upstream's prompt reads
  `Image: <image> Regions: <region> ASSISTANT:`, and the published weights have never seen those
  full stops. "whole" keeps the text, and is for tokenizers trained here;
- `decode` puts single spaces around added tokens and drops, when asked, only `<s>`, `</s>`,
  `<unk>` and the padding token.

One deliberate difference: a text that begins with an added token gets no lone "▁" before it.
"""

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import sentencepiece

from mg_jax.errors import UserError
from mg_jax.text.added import AddedTokens

TextAfterToken = Literal["whole", "published"]
PAD = "[PAD]"
_SPACE = "▁"
# Protobuf bytes that set normalizer_spec.add_dummy_prefix (field 3.3) to false or true when they
# follow a serialised model: of two values of a field the later one counts.
NO_DUMMY_PREFIX, DUMMY_PREFIX = b"\x1a\x02\x18\x00", b"\x1a\x02\x18\x01"


class Tokenizer(AddedTokens):
    """Text to ids and back; ids from `vocab_size` on belong to the added tokens.

    Attributes: vocab_size (pieces of the model), size (with added tokens), added (token -> id),
    bos_id, eos_id, unk_id, pad_id (of "[PAD]", else eos_id), legacy, text_after_token.
    """

    bos_id: int

    def __init__(
        self,
        model: bytes,
        added: Mapping[str, int],
        legacy: bool = False,
        text_after_token: TextAfterToken = "whole",
    ):
        """model: bytes of `tokenizer.model`; added: ids of the added tokens, without holes."""
        if text_after_token not in ("whole", "published"):
            raise UserError(
                f"text_after_token is {text_after_token!r}: choose 'whole' or 'published'"
            )
        self.model, self.legacy, self.text_after_token = model, legacy, text_after_token
        try:
            self._sp = sentencepiece.SentencePieceProcessor(model_proto=model + NO_DUMMY_PREFIX)
        except RuntimeError as e:
            raise UserError("tokenizer.model is not a sentencepiece model: fetch it again") from e
        self.vocab_size = self._sp.get_piece_size()
        self.bos_id, self.eos_id = self._sp.bos_id(), self._sp.eos_id()
        self.unk_id = self._sp.unk_id()
        self._base = {
            self._sp.id_to_piece(i): i for i in (self.bos_id, self.eos_id, self.unk_id) if i >= 0
        }
        # Files of some releases list the base tokens as well
        self.added = {
            t: i for t, i in sorted(added.items(), key=lambda x: x[1]) if self._base.get(t) != i
        }
        if sorted(self.added.values()) != list(range(self.vocab_size, self.size)):
            raise UserError(
                f"added tokens must have the ids {self.vocab_size} to {self.size - 1} without "
                f"holes, found {sorted(self.added.values())[:3]}...: tokenizer.model and "
                "added_tokens.json do not belong together"
            )
        self.pad_id = self.added.get(PAD, self.eos_id)
        super().__init__(self._base | self.added)

    @property
    def size(self) -> int:
        """Number of ids, added tokens included."""
        return self.vocab_size + len(self.added)

    @classmethod
    def from_model_file(
        cls,
        path: str | Path,
        added_tokens: Sequence[str] = (),
        legacy: bool = False,
        text_after_token: TextAfterToken = "whole",
    ) -> "Tokenizer":
        """A tokenizer from a sentencepiece file; added tokens get the next ids in their order.

        Raises UserError for a missing or broken file.
        """
        model = read_file(Path(path), "give the path of a sentencepiece tokenizer.model")
        start = cls(model, {}).vocab_size
        added = {t: start + i for i, t in enumerate(added_tokens)}
        return cls(model, added, legacy, text_after_token)

    @classmethod
    def load(cls, folder: str | Path) -> "Tokenizer":
        """A tokenizer from a folder in the Hugging Face layout (`save`'s, or a published one).

        Reads tokenizer.model, added_tokens.json (or added_tokens_decoder of
        tokenizer_config.json), `legacy`, and text_after_token, which is "published" for a folder
        that was not written by `save`. Raises UserError naming the file at fault.
        """
        folder = Path(folder)
        model = read_file(folder / "tokenizer.model", "the folder must hold a sentencepiece model")
        config = read_object(folder / "tokenizer_config.json")
        added = read_object(folder / "added_tokens.json")
        if not added:
            added = {
                entry["content"]: int(i)
                for i, entry in config.get("added_tokens_decoder", {}).items()
            }
        try:
            # A config from before the flag `legacy` existed means the old rule
            legacy = bool(config.get("legacy", bool(config)))
            return cls(model, added, legacy, config.get("text_after_token", "published"))
        except UserError as e:
            raise UserError(f"{folder}: {e}") from e

    def save(self, folder: str | Path) -> None:
        """Writes the Hugging Face layout, which `load` and transformers 5 read alike."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tokenizer.model").write_bytes(self.model)

        def entry(token: str) -> dict[str, Any]:
            strips = token in self.added
            return {
                "content": token,
                "lstrip": strips,
                "rstrip": strips,
                "normalized": False,
                "single_word": False,
            }

        special = {
            name: entry(self._tokens[i])
            for name, i in (
                ("bos_token", self.bos_id),
                ("eos_token", self.eos_id),
                ("unk_token", self.unk_id),
            )
        }
        if PAD in self.added:
            special["pad_token"] = entry(PAD)
        decoder = {
            str(i): entry(t) | {"special": t in self._base or t == PAD}
            for t, i in sorted(self._ids.items(), key=lambda x: x[1])
        }
        config = {
            "tokenizer_class": "LlamaTokenizer",
            "legacy": self.legacy,
            "text_after_token": self.text_after_token,
            "add_bos_token": True,
            "add_eos_token": False,
            "clean_up_tokenization_spaces": False,
            "padding_side": "right",
            "added_tokens_decoder": decoder,
            **{name: e["content"] for name, e in special.items()},
        }
        for name, content in (
            ("added_tokens.json", self.added),
            ("tokenizer_config.json", config),
            ("special_tokens_map.json", special),
        ):
            text = json.dumps(content, indent=1, ensure_ascii=False)
            (folder / name).write_text(text + "\n", encoding="utf-8")

    def _piece(self, token: str) -> int | None:
        i = self._sp.piece_to_id(token)
        return None if i == self.unk_id else i

    def _encode_part(
        self, text: str, before: int | None, after: int | None, first: bool
    ) -> list[int]:
        if not self.legacy:
            text = text.replace(_SPACE, " ")
        if before is not None and before >= self.vocab_size:
            text = text.lstrip()
        if after is not None and after >= self.vocab_size:
            text = text.rstrip()
        return self._encode_text(" " + text if self.legacy or first else text) if text else []

    def _encode_text(self, text: str) -> list[int]:
        if self.legacy or self.text_after_token == "whole":
            return self._sp.encode(text)
        return self._sp.encode("<unk>" + text)[len(self._sp.encode("<unk>")) :]

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Text of ids, with single spaces around added tokens.

        skip_special drops `<s>`, `</s>`, `<unk>` and `[PAD]`, no other added token. An id outside
        the vocabulary raises UserError.
        """
        special = {*self._base.values(), self.pad_id}
        parts: list[str] = []
        run: list[int] = []
        for i in [*self._checked(ids), None]:
            if i is not None and skip_special and i in special:
                continue
            if i is not None and i < self.vocab_size:
                run.append(i)
                continue
            if run:
                parts.append(self._decode_run(run))
                run = []
            if i is not None:
                parts.append(self._tokens[i])
        return " ".join(parts)

    def _decode_run(self, run: list[int]) -> str:
        text, chunk = "", []
        for i in [*run, None]:
            if i is not None and i not in self._tokens:
                chunk.append(i)
                continue
            text += self.decode_text(chunk)
            chunk = []
            if i is not None:
                text += self._tokens[i]
        first = self._sp.id_to_piece(run[0])
        return text[1:] if first.startswith(_SPACE) else text

    def decode_text(self, ids: list[int]) -> str:
        """Text of ordinary pieces, a leading space kept."""
        return self._sp.decode(ids) if ids else ""


def read_file(path: Path, mend: str) -> bytes:
    """Bytes of a file; UserError with the mend when it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as e:
        raise UserError(f"cannot read {path} ({e.strerror}): {mend}") from e


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object; {} of a missing file. Raises UserError when it is something else."""
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise UserError(f"cannot read {path}: {e}") from e
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object: fetch the tokenizer folder again")
    return content


def train_model(pieces_of_text: Iterable[str], size: int) -> bytes:
    """A Llama-style sentencepiece BPE model of at most `size` pieces, as bytes of a model file.

    Identity normaliser, single digits, byte fallback, ids 0 `<unk>`, 1 `<s>`, 2 `</s>`. The texts
    are taken as `Tokenizer` hands them over: " Locate" at the start of a text, "red ball" after an
    added token, so that both forms of a word get pieces. The same texts give the same bytes.
    Raises UserError when the size cannot even hold the bytes and characters, or without text.
    """
    out = io.BytesIO()
    # Every printable ASCII character gets a piece, whether the texts have it or not
    texts = [chr(c) for c in range(33, 127)]
    texts += [line for text in pieces_of_text for line in text.splitlines() if line.strip()]
    if len(texts) == 94:
        raise UserError("no text to train a tokenizer on: the source is empty")
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=out,
            model_type="bpe",
            vocab_size=size,
            hard_vocab_limit=False,
            byte_fallback=True,
            character_coverage=1.0,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            max_sentence_length=1 << 20,
            num_threads=1,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as e:
        reason = " ".join(str(e).split())
        raise UserError(
            f"cannot train {size} pieces ({reason}): raise the number of pieces or give more text"
        ) from e
    # Trained without the leading space, used with it
    return out.getvalue() + DUMMY_PREFIX
