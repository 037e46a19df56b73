"""Byte-level BPE: a tiny file made by the tokenizers library, and Qwen's real one."""

import json
import unicodedata
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from mg_jax.errors import UserError
from mg_jax.text.bpe import BPETokenizer, load_tokenizer
from mg_jax.text.tokenizer import Tokenizer

GOLDEN = Path(__file__).parents[1] / "golden" / "groma_tokenizer"
TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"]))
# NFC of newer characters depends on the version of Unicode, which Python and Rust do not share
STABLE = st.text(alphabet=st.characters(exclude_categories=["Cs", "Cn"], max_codepoint=0x2FFF))
CONFIG = {"bos_token": {"content": "<bos>"}, "eos_token": "<eos>", "pad_token": None}


def tiny(template=True):
    """JSON of a tokenizer with <bos>, <eos> and the ordinary token <box>, which eats spaces."""
    t = tokenizers.Tokenizer(models.BPE())
    t.normalizer = normalizers.NFC()
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    t.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    t.train_from_iterator(["a red ball left of a blue box"] * 9, trainer)
    t.add_special_tokens(["<bos>", "<eos>"])
    t.add_tokens([tokenizers.AddedToken("<box>", lstrip=True, rstrip=True, normalized=False)])
    if template:
        ids = [("<bos>", t.token_to_id("<bos>"))]
        t.post_processor = processors.TemplateProcessing("<bos> $A", "$A $B", ids)
    return t.to_str()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("bpe")
    (path / "tokenizer.json").write_text(tiny())
    (path / "tokenizer_config.json").write_text(json.dumps(CONFIG))
    return path


@pytest.fixture(scope="module")
def bpe(folder):
    return BPETokenizer.load(folder)


def test_ids_are_those_of_the_library(folder, bpe):
    theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in ("a red ball", "", "x <box> y<eos>", "<box>", "é e\u0301 <bos>", "ball<eo s>\n"):
        assert bpe.encode(text) == theirs.encode(text).ids, text
        assert bpe.encode(text, bos=False) == theirs.encode(text, add_special_tokens=False).ids
    assert bpe.size == theirs.get_vocab_size() == bpe.vocab_size + 3
    assert bpe.id("<box>") == theirs.token_to_id("<box>") and bpe.token(bpe.id("<box>")) == "<box>"
    assert bpe.token(0) is None and bpe.id("!") == theirs.token_to_id("!")


@settings(max_examples=150, deadline=None)
@given(TEXT)
def test_literal_text_is_never_a_token_and_comes_back(bpe, text):
    for part in (text, f"<eos>{text}<box>"):
        ids = bpe.encode_parts([part])
        assert ids[0] == bpe.bos_id and max(ids[1:], default=0) < bpe.vocab_size
        assert bpe.decode(ids) == unicodedata.normalize("NFC", part)


def test_parts(bpe):
    box = bpe.id("<box>")
    joined = bpe.encode_parts(["a re", "d ball ", box, " left"], bos=False)
    assert joined == [*bpe.encode("a red ball", bos=False), box, *bpe.encode("left", bos=False)]
    assert bpe.decode([bpe.bos_id, *joined, bpe.eos_id]) == "a red ball<box>left"
    assert bpe.decode([*joined, bpe.eos_id], skip_special=False) == "a red ball<box>left<eos>"


def test_bos_only_where_the_file_asks_for_it(bpe):
    assert bpe.encode("a")[0] == bpe.bos_id == bpe.id("<bos>")
    assert (bpe.eos_id, bpe.pad_id) == (bpe.id("<eos>"), bpe.id("<eos>"))
    without = BPETokenizer(tiny(template=False).encode(), CONFIG)
    assert without.bos_id is None and without.encode("a") == bpe.encode("a", bos=False)
    asked = BPETokenizer(tiny(template=False).encode(), CONFIG | {"add_bos_token": True})
    assert asked.encode("a") == bpe.encode("a")


def test_saved_folder_loads_alike(tmp_path, bpe):
    bpe.save(tmp_path / "t")
    again = load_tokenizer(tmp_path / "t")
    assert isinstance(again, BPETokenizer)
    assert again.encode("a red <box> <eos>") == bpe.encode("a red <box> <eos>")
    assert (again.bos_id, again.eos_id, again.size) == (bpe.bos_id, bpe.eos_id, bpe.size)


def test_the_folder_chooses(tmp_path, bpe):
    bpe.save(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes((GOLDEN / "tokenizer.model").read_bytes())
    (tmp_path / "tokenizer_config.json").unlink()
    assert isinstance(load_tokenizer(tmp_path), Tokenizer)


def test_bad_files(tmp_path, bpe):
    with pytest.raises(UserError, match=r"none/tokenizer\.model"):
        load_tokenizer(tmp_path / "none")
    path = tmp_path / "tokenizer.json"
    path.write_text("{")
    with pytest.raises(UserError, match=r"tokenizer\.json is not a tokenizer file"):
        load_tokenizer(tmp_path)
    data = json.loads(tiny())
    for change in ({"normalizer": {"type": "Lowercase"}}, {"decoder": {"type": "WordPiece"}}):
        path.write_text(json.dumps(data | change))
        with pytest.raises(UserError, match="not supported, only byte-level BPE|not a tokenizer"):
            load_tokenizer(tmp_path)
    data["added_tokens"][2]["id"] += 1
    path.write_text(json.dumps(data))
    with pytest.raises(UserError, match="without holes"):
        load_tokenizer(tmp_path)
    with pytest.raises(UserError, match=r"tokenizer_config\.json: eos_token: .*'<end>'"):
        BPETokenizer(tiny().encode(), {"eos_token": "<end>"})
    with pytest.raises(UserError, match="outside the vocabulary"):
        bpe.decode([bpe.size])
    with pytest.raises(KeyError):
        bpe.id("<no such token>")


@pytest.fixture(scope="module")
def qwen_folder(shared):
    folder = shared / "tokenizers" / "qwen"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    return folder


@pytest.fixture(scope="module")
def qwen(qwen_folder):
    return load_tokenizer(qwen_folder)


@pytest.mark.shared
class TestQwen:
    def test_ids(self, qwen):
        assert (qwen.vocab_size, qwen.size) == (151643, 151669)
        text = "<|im_start|>user\nHello world<|im_end|>\n"
        assert qwen.encode(text) == [151644, 872, 198, 9707, 1879, 151645, 198]
        assert qwen.decode(qwen.encode(text), skip_special=False) == text
        assert qwen.decode(qwen.encode(text)) == "user\nHello world\n"

    def test_no_bos(self, qwen):
        assert qwen.bos_id is None
        assert qwen.encode("Hello world") == qwen.encode("Hello world", bos=False) == [9707, 1879]
        assert qwen.token(qwen.eos_id) == "<|im_end|>"
        assert qwen.token(qwen.pad_id) == "<|endoftext|>"

    def test_equals_transformers(self, qwen, qwen_folder):
        transformers = pytest.importorskip("transformers")
        theirs = transformers.AutoTokenizer.from_pretrained(qwen_folder)
        for text in (
            "Where is the red ball? [0.12, 0.5]", "  two  spaces\n\n\tand a tab ",
            "Größe 12 … 你好 😀", "<|im_start|>user\n <tool_call>x</tool_call><|im_end|>",
        ):  # fmt: skip
            ids = theirs(text).input_ids
            assert qwen.encode(text) == ids
            assert qwen.decode(ids, skip_special=False) == theirs.decode(ids)
            assert qwen.decode(ids) == theirs.decode(ids, skip_special_tokens=True)

    @settings(max_examples=100, deadline=None)
    @given(STABLE)
    def test_round_trip(self, qwen, text):
        ids = qwen.encode_parts([text])
        assert max(ids, default=0) < qwen.vocab_size
        assert qwen.decode(ids) == unicodedata.normalize("NFC", text)
