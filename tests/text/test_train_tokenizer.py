"""The command that trains a tokenizer."""

import pytest
from PIL import Image

from launch.train_tokenizer import conversations, main
from mg_jax.data.sources import open_source
from mg_jax.errors import UserError
from mg_jax.text.codecs.groma import GromaCodec
from mg_jax.text.tokenizer import Tokenizer


def test_on_scenes(tmp_path, capsys):
    main(["--data", "scenes:seed=3,n=8", "--pieces", "700", "--out", str(tmp_path / "a")])
    assert "added tokens" in capsys.readouterr().out
    tokenizer = Tokenizer.load(tmp_path / "a")
    assert tokenizer.vocab_size <= 700 and tokenizer.text_after_token == "whole"
    fixed = GromaCodec(tokenizer).upstream_ids(())[1]
    assert len(fixed) < 110


def test_boxes_without_names_say_nothing(tmp_path):
    rows = tmp_path / "rows.jsonl"
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    rows.write_text(
        '{"image": "a.png", "objects": [{"box": [1, 1, 30, 30]}]}\n'
        '{"image": "a.png", "objects": [{"box": [1, 1, 30, 30], "label": "dog"}]}\n'
    )
    nothing, said = conversations(open_source(f"jsonl:{rows}"), 1.0)
    assert not nothing and said


def test_on_a_text_file(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("Locate the red ball.\nThe ball is red.\n" * 20)
    main(["--text", str(text), "--pieces", "400", "--out", str(tmp_path / "t")])
    assert Tokenizer.load(tmp_path / "t").id("<r99>")
    main(["--text", str(text), "--pieces", "400", "--out", str(tmp_path / "again")])
    for file in (tmp_path / "t").iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()
    with pytest.raises(UserError, match=r"none\.txt"):
        main(["--text", str(tmp_path / "none.txt"), "--out", str(tmp_path / "u")])
    with pytest.raises(UserError, match="number of pieces"):
        main(["--text", str(text), "--pieces", "50", "--out", str(tmp_path / "u")])
    with pytest.raises(UserError, match=r"text\.txt: cannot be written"):
        main(["--text", str(text), "--pieces", "400", "--out", str(text)])
