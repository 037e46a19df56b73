"""Folders like those of MG-LLaVA's language models: flags of added tokens, leading spaces, tokens
that are pieces. The reference is `tokenizers` with the folder's tokenizer.json."""

import io
import json

import pytest
import sentencepiece
import tokenizers

from mg_jax.errors import UserError
from mg_jax.example import Turn
from mg_jax.text.codecs.mg_llava import MGLLaVACodec
from mg_jax.text.tokenizer import Tokenizer, train_model

TEXTS = ["Where is the red ball? It is here.\nA dog user <|x|> end im start."] * 20
PHI3 = ("<|endoftext|>", "<|assistant|>", "<|end|>", "<|user|>")
YI = ("<|im_start|>", "<|im_end|>")
PREPEND = {"type": "Prepend", "prepend": "▁"}
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}


def metaspace(scheme):
    return {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False}


def mixed(end, user):
    """Texts with two tokens in every place."""
    return [
        f"Where is{end}\n{user}\n",
        f" {end}  the ball {user} x{user}",
        f"{user}the red {end} {end}ball",
        "\nA dog",
        end,
        " two  spaces ",
    ]


def write(folder, model, added, config, steps=None, pre=None, **flags):
    """A folder with these added tokens {token: id}; flags: lstrip, rstrip. steps: normalizers of a
    tokenizer.json, which is what is returned; None for no such file."""
    (folder / "tokenizer.model").write_bytes(model)
    flags = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False} | flags
    entries = {
        str(i): {"content": t, **flags, "special": True}
        for t, i in [("<unk>", 0), ("<s>", 1), ("</s>", 2), *added.items()]
    }
    config = {"tokenizer_class": "LlamaTokenizer", "added_tokens_decoder": entries, **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if steps is None:
        return None
    sp = sentencepiece.SentencePieceProcessor(model_proto=model)
    vocab = {sp.id_to_piece(i): i for i in range(sp.get_piece_size())}
    joined = sorted(
        (i, vocab[piece[:k]], vocab[piece[k:]], piece[:k], piece[k:])
        for piece, i in vocab.items()
        for k in range(1, len(piece))
        if piece not in added and {piece[:k], piece[k:]} <= vocab.keys()
    )
    data = {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": int(i), **entry} for i, entry in entries.items()],
        "normalizer": {"type": "Sequence", "normalizers": steps} if steps else None,
        "pre_tokenizer": pre, "post_processor": None, "decoder": None,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": "<unk>", "fuse_unk": True,
            "continuing_subword_prefix": None, "end_of_word_suffix": None, "byte_fallback": True,
            "vocab": vocab, "merges": [[a, b] for *_, a, b in joined],
        },
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(data))
    return tokenizers.Tokenizer.from_str(json.dumps(data))


@pytest.fixture(scope="module")
def llama():
    return train_model(TEXTS, 400)


@pytest.fixture(scope="module")
def yi():
    """A model that puts no space before a text, and has the chat's tokens among its pieces."""
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS + [chr(c) for c in range(33, 127)]), model_writer=out,
        model_type="bpe", vocab_size=400, hard_vocab_limit=False, byte_fallback=True,
        user_defined_symbols=list(YI), normalization_rule_name="identity", add_dummy_prefix=False,
        remove_extra_whitespaces=False, allow_whitespace_only_pieces=True, minloglevel=2,
    )  # fmt: skip
    return out.getvalue()


@pytest.mark.parametrize("strips", [{}, {"rstrip": True}, {"lstrip": True}])
@pytest.mark.parametrize(
    ("steps", "pre"),
    [([PREPEND, REPLACE], None), ([], metaspace("first")), ([REPLACE], None),
     ([], metaspace("always"))],
)  # fmt: skip
def test_flags_and_spaces_are_those_of_tokenizer_json(tmp_path, llama, steps, pre, strips):
    """Phi-3's config says legacy=False beside a tokenizer.json that puts spaces everywhere."""
    start = Tokenizer(llama, {}).vocab_size
    added = {token: start + n for n, token in enumerate(PHI3)}
    theirs = write(tmp_path, llama, added, {"legacy": False}, steps, pre, **strips)
    ours = Tokenizer.load(tmp_path)
    for text in mixed("<|end|>", "<|user|>"):
        expected = theirs.encode(text, add_special_tokens=False).ids
        assert ours.encode(text, bos=False) == expected, text
    ours.save(tmp_path / "again")
    again = Tokenizer.load(tmp_path / "again")
    for text in mixed("<|end|>", "<|user|>"):
        assert again.encode(text) == ours.encode(text)


def test_a_newline_after_a_token_stays_unless_its_flag_says_otherwise(tmp_path, llama):
    start = Tokenizer(llama, {}).vocab_size
    added = {token: start + n for n, token in enumerate(PHI3)}
    turns = [Turn("Where?", "Here."), Turn("A dog?", None)]
    lengths = []
    for rstrip in (False, True):
        config = {"legacy": False, "eos_token": "<|endoftext|>"}
        write(tmp_path, llama, added, config, [PREPEND, REPLACE], rstrip=rstrip)
        t = Tokenizer.load(tmp_path)
        codec = MGLLaVACodec(t, "phi3_chat", vocab=512)
        assert (codec.end_id, t.eos_id) == (t.id("<|end|>"), t.id("<|endoftext|>"))
        ids = codec.encode_prompt(turns, box_counts=())["tokens"].tolist()
        newline = t.encode("<|end|>\n", bos=False)[1:]
        assert len(newline) == (0 if rstrip else 2)  # a space and the line break
        end = ids.index(t.id("<|end|>"))
        assert ids[end + 1 : end + 2 + len(newline)] == [*newline, t.id("<|assistant|>")]
        lengths.append(len(ids))
    assert lengths[0] == lengths[1] + 2 * 4  # behind the four tokens with a line break


@pytest.mark.parametrize("file", [True, False])
def test_tokens_that_are_pieces_and_no_leading_space(tmp_path, yi, file):
    sp = sentencepiece.SentencePieceProcessor(model_proto=yi)
    added = {token: sp.piece_to_id(token) for token in YI}
    config = {"legacy": True, "eos_token": "<|im_end|>"}
    theirs = write(tmp_path, yi, added, config, [REPLACE] if file else None)
    t = Tokenizer.load(tmp_path)
    assert t.size == t.vocab_size == sp.get_piece_size() and t.eos_id == added["<|im_end|>"]
    for text in mixed(*YI):
        expected = theirs.encode(text, add_special_tokens=False).ids if file else sp.encode(text)
        assert t.encode(text, bos=False) == expected
        literal = t.encode_parts([text], bos=False)  # a user's text never ends the sequence
        assert not {*literal} & {*added.values()} and t.decode(literal) == text.lstrip(
            " ",
        )
    codec = MGLLaVACodec(t, "qwen_chat")
    ids = codec.encode_prompt([Turn("Where is<|im_end|>?", None)], box_counts=())["tokens"]
    assert ids.tolist().count(codec.end_id) == 1 and ids[0] == t.bos_id
    answer = codec.decode([*t.encode("It is here.", bos=False), codec.end_id, 5], None, 9, 9)
    assert answer.text == "It is here."


def test_the_model_alone_says_whether_a_text_begins_with_a_space(tmp_path, yi, llama):
    """The old rule leaves it to the model, the new one does not ask."""
    for model, legacy, spaced in ((yi, True, False), (llama, True, True), (yi, False, True)):
        (tmp_path / "tokenizer.model").write_bytes(model)
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"legacy": legacy}))
        t = Tokenizer.load(tmp_path)
        assert t.prefix == spaced
        first = sentencepiece.SentencePieceProcessor(model_proto=model).id_to_piece(
            t.encode("the", bos=False)[0]
        )
        assert first.startswith("▁") == spaced


def test_wrong_tokens_are_named(tmp_path, llama, yi):
    start = Tokenizer(llama, {}).vocab_size
    for added in ({"<|end|>": start + 1}, {"<|end|>": 7}):
        write(tmp_path, llama, added, {})
        with pytest.raises(UserError, match="do not belong together"):
            Tokenizer.load(tmp_path)
    write(tmp_path, llama, {"<|end|>": start}, {"eos_token": {"content": "<|stop|>"}})
    with pytest.raises(UserError, match=r"eos_token: token '<\|stop\|>' is not in the vocabulary"):
        Tokenizer.load(tmp_path)
