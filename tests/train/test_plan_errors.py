"""Sizes of a model that do not fit together are one line that says which."""

import pytest

from configs import groma, mg_llava
from mg_jax.errors import UserError
from mg_jax.models import config_errors
from mg_jax.plan import plan

FIT = "config.model: its values do not fit together: "


@pytest.mark.parametrize(
    ("stage", "key", "value", "message"),
    [
        ("detection", "image_size", 225, FIT + "picture 225x225 is not a multiple of patch 14"),
        ("alignment", "image_size", 210, FIT + "15x15 patches cannot be joined two by two"),
        ("detection", "model.proposer.queries", 1000, FIT + "proposer.queries=1000 of only 256"),
        ("detection", "model.proposer.levels", 5, FIT + "proposer.levels=5: there are 1 to 4"),
        ("detection", "model.proposer.width", 130, FIT + "proposer.width=130 is no multiple of 4"),
        ("alignment", "model.lm.heads", 5, FIT + "5 heads cannot share 4 kv_heads evenly"),
        ("alignment", "model.lm.head", 7, FIT),
        ("detection", "model.vision.heads", 0, FIT),
        ("detection", "model.vision.dtype", "floaty", FIT + "data type 'floaty'"),
        ("detection", "model.vision.remat", "ful", FIT + "remat='ful' is not one of none, full"),
        (
            "detection",
            "optim.muon",
            ("blocks",),
            "config.optim.muon: 'blocks' matches no parameter",
        ),
        ("detection", "frozen_dtype", "floaty", "config.frozen_dtype: 'floaty' is no dtype of"),
        (
            "alignment",
            "model.lm.quant",
            "int8",
            "config.model.lm.quant=int8: integers do not learn",
        ),
        ("detection", "frozen_dtype", "int8", "config.frozen_dtype: 'int8' is no dtype of floats"),
    ],
)
def test_wrong_sizes_of_groma(stage, key, value, message):
    config = groma.get_config(f"stage={stage},size=tiny")
    config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError) as caught:
        plan(config, 5)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)
    if message.startswith(FIT):  # with MG_JAX_TRACEBACK the place is shown
        assert isinstance(caught.value.__cause__, (ValueError, TypeError, ArithmeticError))


def test_wrong_sizes_of_mg_llava():
    config = mg_llava.get_config("stage=pretrain,llm=tiny")
    config.model.lm.heads = 5
    with pytest.raises(UserError, match=FIT + "5 heads cannot share 4 kv_heads evenly"):
        plan(config, 5)


def test_other_errors_stay_what_they_are():
    with pytest.raises(KeyError), config_errors():
        raise KeyError("a bug")
    with pytest.raises(UserError, match="^config.seed: bad$"), config_errors():
        raise UserError("config.seed: bad")
