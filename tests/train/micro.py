"""Groma so small that a step takes milliseconds: overrides of configs/groma.py:size=tiny."""

from pathlib import Path

from configs import groma
from mg_jax.text.codecs.groma import GROMA_TOKENS
from mg_jax.text.tokenizer import Tokenizer

MODEL = Path(__file__).parents[1] / "golden" / "groma_tokenizer" / "tokenizer.model"


def save_tokenizer(folder):
    """Write the tokenizer of the recordings with Groma's tokens; returns it."""
    tokenizer = Tokenizer.from_model_file(MODEL, GROMA_TOKENS)
    tokenizer.save(folder)
    return tokenizer


def get_config(arg):
    """`--config tests/train/micro.py:STAGE,TOKENIZER` of launch.train."""
    stage, _, folder = arg.partition(",")
    return micro_config(stage, folder)


def micro_config(stage, tokenizer_folder, **changes):
    """A locked config; `changes` as "optim__lr"=0.1."""
    c = groma.get_config(f"stage={stage},size=tiny")
    c.codec.tokenizer = str(tokenizer_folder)
    c.image_size = 56
    m = c.model
    m.vision.update({"width": 16, "layers": 3, "heads": 2, "image_size": 56})
    m.proposer.update(
        {"width": 16, "encoder_layers": 1, "decoder_layers": 2, "encoder_heads": 2,
         "decoder_heads": 2, "encoder_ffn": 16, "decoder_ffn": 16, "queries": 8, "box_hidden": 16}
    )  # fmt: skip
    m.regions.update(
        {"width": 16, "hidden": 8, "groups": 4, "roi_size": 3, "position_width": 8, "scale": 56.0}
    )
    m.lm.update({"width": 16, "mlp": 24, "layers": 2, "heads": 2, "kv_heads": 2, "head": 8})
    m.lm.vocab = Tokenizer.load(tokenizer_folder).vocab_size
    m.max_regions, m.pointing_layer = 4, 1
    c.codec.text_tokens = 400  # this tokenizer was not made for scenes
    c.batch_size = 8
    c.train.steps, c.train.log_every, c.train.tensorboard = 4, 1, False
    c.data = c.data.replace("size=224", "size=64").replace("size=256", "size=64")
    c.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return c
