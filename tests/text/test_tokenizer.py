"""The frozen tokenisation rule against recordings of transformers 4.32's slow LlamaTokenizer."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mg_jax.errors import UserError
from mg_jax.text.codecs.groma import GROMA_TOKENS
from mg_jax.text.tokenizer import Tokenizer, train_model

GOLDEN = Path(__file__).parents[1] / "golden" / "groma_tokenizer"
LLAMA2 = (
    Path(os.environ.get("MG_JAX_SHARED", Path(__file__).parents[3] / "shared"))
    / "tokenizers/llama2/tokenizer.model"
)


@pytest.mark.parametrize("rule", ["whole", "published"])
def test_recorded_ids(recorded, rule):
    t = Tokenizer.from_model_file(GOLDEN / "tokenizer.model", GROMA_TOKENS, text_after_token=rule)
    r = recorded["legacy_false"]
    assert t.size - t.vocab_size == r["num_new_token"] == 114
    assert {token: t.id(token) for token in r["ids"]} == r["ids"]
    for case in r["train"].values():
        assert t.encode(case["prompt"]) == case["raw_ids"]
    for case in r["infer"].values():
        assert t.encode(case["prompt"]) == case["input_ids"]


def test_recorded_legacy_ids(recorded):
    t = Tokenizer.from_model_file(GOLDEN / "tokenizer.model", GROMA_TOKENS, legacy=True)
    for case in recorded["legacy_true"]["infer"].values():
        assert t.encode(case["prompt"]) == case["input_ids"]


def test_recorded_decoding(recorded, tokenizer):
    r = recorded["legacy_false"]["decode"]
    assert tokenizer.decode(r["ids"], skip_special=False) == r["skip_special_false_fresh"]
    assert tokenizer.decode(r["ids"]) == r["skip_special_true_fresh"]


@pytest.mark.parametrize("legacy", [False, True])
def test_saved_folder_loads_alike(tmp_path, tokenizer, legacy, recorded):
    saved = Tokenizer(tokenizer.model, tokenizer.added, legacy)
    saved.save(tmp_path / "t")
    again = Tokenizer.load(tmp_path / "t")
    text = recorded["legacy_false"]["train"]["llava/flickr"]["prompt"]
    assert again.encode(text) == saved.encode(text)
    assert (again.size, again.legacy, again.text_after_token) == (saved.size, legacy, "whole")


def test_published_layout_loads(tmp_path, tokenizer):
    """A folder as transformers 4.32 wrote it: ids in added_tokens.json alone."""
    (tmp_path / "tokenizer.model").write_bytes(tokenizer.model)
    (tmp_path / "added_tokens.json").write_text(json.dumps(dict(sorted(tokenizer.added.items()))))
    (tmp_path / "tokenizer_config.json").write_text(
        '{"legacy": false, "tokenizer_class": "LlamaTokenizer"}'
    )
    t = Tokenizer.load(tmp_path)
    assert (t.id("<r99>"), t.pad_id, t.legacy) == (1013, 900, False)
    assert t.text_after_token == "published"


def test_transformers_reads_the_saved_folder(tmp_path, tokenizer, recorded):
    transformers = pytest.importorskip("transformers")
    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for case in recorded["legacy_false"]["train"].values():
        assert theirs(case["prompt"]).input_ids == case["raw_ids"]


def test_import_is_light():
    code = (
        "import sys, mg_jax.text.codecs.groma, mg_jax.answer\n"
        "print([m for m in ('torch', 'transformers', 'tensorflow', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet=st.characters(exclude_characters="▁", exclude_categories=["Cs", "Cc"])))
def test_plain_text_survives(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode_parts([text])) == text


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(["<p>", " dog", "</s>", "  ", "<r1>", "<r10>", "x ", "[PAD]"])))
def test_any_mixture_of_tokens(tokenizer, parts):
    ids = tokenizer.encode("".join(parts))
    assert all(0 <= i < tokenizer.size for i in ids)
    added = [tokenizer.token(i) for i in ids if i >= tokenizer.vocab_size]
    assert added == [p for p in parts if p in tokenizer.added]


def test_literal_text_is_never_a_token(tokenizer):
    ids = tokenizer.encode_parts(["a </s> <r1>"])
    assert tokenizer.eos_id not in ids and max(ids) < tokenizer.vocab_size


def test_bad_files(tmp_path, tokenizer):
    with pytest.raises(UserError, match=r"tokenizer\.model"):
        Tokenizer.load(tmp_path / "none")
    (tmp_path / "tokenizer.model").write_bytes(b"no model")
    with pytest.raises(UserError, match="not a sentencepiece model"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(tokenizer.model)
    (tmp_path / "added_tokens.json").write_text('{"<p>": 7}')
    with pytest.raises(UserError, match="do not belong together"):
        Tokenizer.load(tmp_path)
    (tmp_path / "added_tokens.json").write_text("{")
    with pytest.raises(UserError, match=r"added_tokens\.json"):
        Tokenizer.load(tmp_path)
    with pytest.raises(UserError, match="outside the vocabulary"):
        tokenizer.decode([5000])
    with pytest.raises(KeyError):
        tokenizer.id("<no such token>")


def test_training_is_deterministic_and_small():
    texts = [" Locate the red ball.", "red ball", " There are 12 balls, one is red."] * 30
    model = train_model(texts, 420)
    assert model == train_model(texts, 420)
    t = Tokenizer(model, {"<p>": Tokenizer(model, {}).vocab_size})
    assert (t.unk_id, t.bos_id, t.eos_id) == (0, 1, 2) and t.vocab_size <= 420
    assert len(t.encode("Locate the <p>red ball</p>")) < 12
    assert t.decode(t.encode("Größe 12 [0.5, 1]")) == "Größe 12 [0.5, 1]"
    with pytest.raises(UserError, match="number of pieces"):
        train_model(texts, 200)
    with pytest.raises(UserError, match="no text"):
        train_model([" "], 500)


@pytest.mark.shared
@pytest.mark.skipif(not LLAMA2.exists(), reason="no Llama-2 tokenizer here")
class TestLlama2:
    def test_ids(self):
        t = Tokenizer.from_model_file(LLAMA2, GROMA_TOKENS)
        assert (t.vocab_size, t.size, t.id("[PAD]"), t.id("<r99>")) == (32000, 32114, 32000, 32113)
        assert t.encode("Hello world") == [1, 15043, 3186]
        assert t.encode("Hello world", bos=False) == [15043, 3186]

    def test_published_rule_loses_full_stops(self):
        """As transformers 4.32: "." after `<image>` goes, since Llama-2 has the piece ">."."""
        text = "Image: <image>. Regions: <region>. ASSISTANT"
        plain = Tokenizer.from_model_file(LLAMA2, GROMA_TOKENS)
        t = Tokenizer.from_model_file(LLAMA2, GROMA_TOKENS, text_after_token="published")
        recorded = [1, 7084, 29901, 32008, 2169, 1080, 29901, 32009, 319, 1799, 9047, 13566]
        assert t.encode(text) == recorded
        assert [i for i in plain.encode(text) if i != plain.id(".")] == recorded

    def test_bos_with_the_model_file_alone(self, tmp_path):
        """Ours starts with BOS; transformers 5 needs `add_bos_token`, and "Auto" loses the space.

        Pinned, since a prompt without its BOS gives other answers and no error.
        """
        (tmp_path / "tokenizer.model").write_bytes(LLAMA2.read_bytes())
        t = Tokenizer.load(tmp_path)
        assert (t.bos_id, t.encode("Hello world")) == (1, [1, 15043, 3186])
        transformers = pytest.importorskip("transformers")
        if int(transformers.__version__.split(".")[0]) < 5:
            pytest.skip("transformers 4 prepends BOS")
        llama = transformers.LlamaTokenizer.from_pretrained(tmp_path)
        assert llama("Hello world").input_ids == [15043, 3186]
        auto = transformers.AutoTokenizer.from_pretrained(tmp_path)
        assert auto("Hello world").input_ids == [10994, 3186]
        t.save(tmp_path / "saved")  # what we write asks for it
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
        assert theirs("Hello world").input_ids == [1, 15043, 3186]

    @settings(max_examples=100, deadline=None)
    @given(st.text(alphabet=st.characters(exclude_characters="▁", exclude_categories=["Cs"])))
    def test_round_trip(self, text):
        t = Tokenizer.from_model_file(LLAMA2)
        assert t.decode(t.encode_parts([text])) == text
