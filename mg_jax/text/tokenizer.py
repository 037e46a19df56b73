"""SentencePiece tokenizer with added tokens, as Groma and its Llama kin use it (spec 4.3).

The rule is that of the slow `LlamaTokenizer` of transformers 4.32, frozen here: sentencepiece
alone, split around the added tokens. Later transformers tokenise the same text differently unless
told otherwise, and importing them costs seconds; this loads in milliseconds and gives the same ids
under every version. In short:

- white space on both sides of an added token is dropped, but not beside `<s>`, `</s>`, `<unk>`;
  a folder that has a flag for each token (`added_tokens_decoder`) decides itself;
- the text gets one leading space ("▁"); with legacy=False a piece of text after a token gets none,
  with legacy=True it gets one as well; with prefix=False no text gets one;
- an added token may be a piece of the model too (Yi): it keeps its id;
- with text_after_token="published" every piece of text is encoded behind the characters `<unk>`,
  whose pieces are then cut off, as 4.32 does: a beginning that the vocabulary joins to ">" is lost
  with them. Llama's has ">.", ">," and the like, so upstream's prompt reads
  `Image: <image> Regions: <region> ASSISTANT:`, and the published weights have never seen those
  full stops. "whole" keeps the text, and is for tokenizers trained here;
- `decode` puts single spaces around added tokens and drops, when asked, only `<s>`, `</s>`,
  `<unk>` and the padding token.

One deliberate difference: a text that begins with an added token gets no lone "▁" before it.

A folder that has tokenizer.json beside tokenizer.model (Phi-3, Yi) is meant for the other, the fast
implementation, whose text gets leading spaces as that file says, whatever `legacy`; the pieces are
the same.
"""

import io
import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import sentencepiece

from mg_jax.errors import UserError
from mg_jax.text.added import AddedTokens

TextAfterToken = Literal["whole", "published"]
Strip = tuple[bool, bool]  # white space before, after
PAD = "[PAD]"
_SPACE = "▁"
FAST = "tokenizer.json"
# Protobuf bytes that set normalizer_spec.add_dummy_prefix (field 3.3) to false or true when they
# follow a serialised model: of two values of a field the later one counts.
NO_DUMMY_PREFIX, DUMMY_PREFIX = b"\x1a\x02\x18\x00", b"\x1a\x02\x18\x01"


class Tokenizer(AddedTokens):
    """Text to ids and back; ids from `vocab_size` on belong to the added tokens.

    Attributes: vocab_size (pieces of the model), size (with added tokens), added (token -> id, of
    those behind the pieces), bos_id, eos_id, unk_id, pad_id (of "[PAD]", else eos_id), legacy,
    prefix, text_after_token.
    """

    bos_id: int

    def __init__(
        self,
        model: bytes,
        added: Mapping[str, int],
        legacy: bool = False,
        text_after_token: TextAfterToken = "whole",
        prefix: bool = True,
        strips: Mapping[str, Strip] | None = None,
        eos: str | None = None,
        once: bool = False,
    ):
        """model: bytes of `tokenizer.model`; added: ids of the added tokens, without holes behind
        the pieces, or those of the pieces that they are. strips: of added and special tokens that
        swallow white space before and after them (None: added ones both, special ones none).
        eos: the token that ends a sequence, if not the model's own. once: a text that begins with
        a space gets no other one."""
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
        others = {
            t: i for t, i in sorted(added.items(), key=lambda x: x[1]) if self._base.get(t) != i
        }
        inside = {t: i for t, i in others.items() if self._sp.piece_to_id(t) == i != self.unk_id}
        self.added = {t: i for t, i in others.items() if t not in inside}
        if sorted(self.added.values()) != list(range(self.vocab_size, self.size)):
            raise UserError(
                f"added tokens must have the ids {self.vocab_size} to {self.size - 1} without "
                f"holes, found {sorted(self.added.values())[:3]}...: tokenizer.model and "
                "added_tokens.json do not belong together"
            )
        super().__init__(self._base | inside | self.added)
        self._inside = re.compile("|".join(map(re.escape, inside))) if inside else None
        if eos is not None:
            try:
                self.eos_id = self.id(eos)
            except KeyError as e:
                raise UserError(f"eos_token: {e.args[0]}") from None
        self.pad_id = self.added.get(PAD, self.eos_id)
        self.prefix, self.once = prefix, once
        own = dict.fromkeys(self.added, (True, True))
        self._strips = {t: (own if strips is None else strips).get(t, (False, False))
                        for t in self._ids}  # fmt: skip

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

        Reads tokenizer.model, the added tokens and their flags (added_tokens.json and
        added_tokens_decoder of tokenizer_config.json), `legacy`, `eos_token`, where leading spaces
        go (tokenizer.json where there is one, see above), and text_after_token, which is
        "published" for a folder that has no tokenizer.json and was not written by `save`. Raises
        UserError naming the file at fault.
        """
        folder = Path(folder)
        model = read_file(folder / "tokenizer.model", "the folder must hold a sentencepiece model")
        config = read_object(folder / "tokenizer_config.json")
        added = read_object(folder / "added_tokens.json")
        strips = None
        if decoder := config.get("added_tokens_decoder"):
            added |= {entry["content"]: int(i) for i, entry in decoder.items()}
            strips = {
                entry["content"]: (bool(entry.get("lstrip")), bool(entry.get("rstrip")))
                for entry in decoder.values()
            }
        # A config from before the flag `legacy` existed means the old rule
        legacy = bool(config.get("legacy", bool(config)))
        # The old rule leaves it to the model, the new one puts a space whatever the model says
        prefix = config.get("add_prefix_space")
        if prefix is None:
            prefix = not legacy or _has_dummy_prefix(model)
        after, once = "published", bool(config.get("leading_space_once"))
        if fast := read_object(folder / FAST):
            spaces, once = _leading_spaces(fast)
            after, legacy, prefix = "whole", spaces == "always", spaces != "never"
        eos = config.get("eos_token")
        eos = eos.get("content") if isinstance(eos, dict) else eos
        try:
            return cls(
                model, added, legacy, config.get("text_after_token", after), bool(prefix), strips,
                eos, once,
            )  # fmt: skip
        except UserError as e:
            raise UserError(f"{folder}: {e}") from e

    def save(self, folder: str | Path) -> None:
        """Writes the Hugging Face layout, which `load` and transformers 5 read alike."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tokenizer.model").write_bytes(self.model)

        def entry(token: str) -> dict[str, Any]:
            lstrip, rstrip = self._strips[token]
            return {
                "content": token,
                "lstrip": lstrip,
                "rstrip": rstrip,
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
            "add_prefix_space": self.prefix,
            "leading_space_once": self.once,
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
        if self._swallows(before, 1):
            text = text.lstrip()
        if self._swallows(after, 0):
            text = text.rstrip()
        if not text:
            return []
        spaced = self.prefix and (self.legacy or first)
        spaced = spaced and not (self.once and text.startswith((" ", _SPACE)))
        return self._encode_text(" " + text if spaced else text)

    def _swallows(self, token: int | None, side: int) -> bool:
        """Whether white space before (0) or after (1) a token is dropped; so it is beside an id
        behind all tokens, which stands for what is no text."""
        if token is None or token not in self._tokens:
            return token is not None and token >= self.size
        return self._strips[self._tokens[token]][side]

    def _encode_text(self, text: str) -> list[int]:
        if self._inside:  # not to be found in a text: cut in two they are no piece
            cuts = [0, *(m.start() + 1 for m in self._inside.finditer(text)), len(text)]
            return [i for a, b in itertools.pairwise(cuts) for i in self._sp.encode(text[a:b])]
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


def _has_dummy_prefix(model: bytes) -> bool:
    """Whether a sentencepiece model puts a space before a text by itself."""
    try:
        pieces = sentencepiece.SentencePieceProcessor(model_proto=model).encode("x", out_type=str)
    except RuntimeError:
        return True  # told when the tokenizer is made
    return "".join(pieces).startswith(_SPACE)


def _leading_spaces(fast: Mapping[str, Any]) -> tuple[str, bool]:
    """Which texts a tokenizer.json gives a leading space, "always", "first" or "never"; and whether
    those that have one are left alone."""
    for part in _steps(fast.get("normalizer"), "normalizers"):
        if part.get("type") == "Prepend":
            return "always", False
    for part in _steps(fast.get("pre_tokenizer"), "pretokenizers"):
        if part.get("type") == "Metaspace":
            old = "always" if part.get("add_prefix_space", True) else "never"
            return part.get("prepend_scheme", old), True
    return "never", False


def _steps(part: Mapping[str, Any] | None, name: str) -> list[Mapping[str, Any]]:
    """The steps of a part of a tokenizer.json, which is one itself or a sequence of them."""
    if part is None:
        return []
    return list(part.get(name, ())) if part.get("type") == "Sequence" else [part]


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
