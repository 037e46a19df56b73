"""Every config at every size builds, with the published shapes; typos are refused.

Those of MG-LLaVA, Ferret and TinyGroundingGPT have files of their own, test_<system>_config.py.
"""

import math
import operator
import re
from pathlib import Path

import jax
import pytest

from configs import base, groma
from mg_jax import checkpoint
from mg_jax.errors import UserError
from mg_jax.plan import plan
from mg_jax.sharding import make_mesh

STAGES = ("detection", "alignment", "instruction")
LAYOUTS = {"fsdp": (1, 8, 1), "fsdp_tensor": (2, 2, 2), "replicated": (8, 1, 1)}


def count(flat):
    return sum(math.prod(x.shape) for x in flat.values())


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("form", ["scratch", "published"])
def test_full_size_builds_with_the_published_shape(stage, form):
    p = plan(groma.get_config(f"stage={stage},size=7b,form={form}"), 100, mesh=make_mesh(1, 8, 1))
    if form == "published":
        learned = {"detection": 11_377_833, "alignment": 323_149_568, "instruction": 7_061_565_184}
        assert count(p.state.params) == learned[stage]
        total = 315_746_473 if stage == "detection" else 7_377_311_657
        assert count(p.state.params) + count(p.frozen) == total
    assert {str(x.dtype) for x in p.frozen.values()} == {"bfloat16"}
    held = sum(math.prod(x.sharding.shard_shape(x.shape)) for x in p.state.params.values())
    assert held < 0.3 * count(p.state.params)  # of eight devices; the convolutions are not split


@pytest.mark.parametrize("rules", LAYOUTS)
@pytest.mark.parametrize("stage", STAGES)
def test_tiny_builds_on_every_layout(stage, rules):
    config = groma.get_config(f"stage={stage},size=tiny")
    config.rules = rules
    p = plan(config, 100, mesh=make_mesh(*LAYOUTS[rules]))
    assert count(p.state.params) + count(p.frozen) < 5_000_000
    assert p.example["pixels"].shape == (config.batch_size, 224, 224, 3)
    assert all(x.sharding is not None for x in jax.tree.leaves(p.state))


@pytest.mark.parametrize("stage", STAGES)
def test_mini_fits_what_it_stands_on_and_what_is_shipped(stage):
    """The encoder is the package's, frozen; all else takes less than 15 MB in bfloat16."""
    from conversion import trunks
    from launch import features
    from mg_jax.text.bpe import load_tokenizer

    config = groma.get_config(f"stage={stage},size=mini")
    p = plan(config, 100, mesh=make_mesh(8, 1, 1))
    trunk = trunks.get(config.trunk)
    assert {"encoder", stage} <= {*config.init_stages}  # from what is shipped, completed
    assert p.system.cfg.vision == trunk.architecture.read(trunk.config, trunk.name)
    frozen = {path.split("/")[0] for path in p.frozen}
    assert frozen == ({"vision"} if stage == "detection" else {"vision", "proposer"})
    shipped = {k: x for k, x in {**p.state.params, **p.frozen}.items() if k[:7] != "vision/"}
    assert 2 * count(shipped) < 14_500_000
    assert p.system.cfg.image_size % trunk.architecture.read(trunk.config, "").patch == 0
    tokenizer = load_tokenizer(checkpoint.find(config.codec.tokenizer))
    assert tokenizer.vocab_size == p.system.cfg.lm.vocab
    words = 2 * p.system.cfg.max_regions + p.system.cfg.image_tokens + config.codec.text_tokens
    assert words <= p.system.cfg.lm.max_positions
    defaults = vars(features.arguments().parse_args(["--data", "x", "--out", "y"]))
    assert defaults["image_size"] == config.image_size
    assert defaults["taps"] == ",".join(map(str, config.model.taps))
    assert (defaults["trunk"], defaults["preprocess"]) == (config.trunk, config.preprocess)
    if stage == "detection":
        names = groma.PHOTO_LABELS.replace("\n", " ").split(", ")
        assert len(names) == len(set(names)) == 83 and config.init_from == config.trunk


def test_hyperparameters_are_the_published_ones():
    c = {s: groma.get_config(f"stage={s},size=7b") for s in STAGES}
    assert [c[s].batch_size for s in STAGES] == [64, 128, 128]
    assert [c[s].optim.lr for s in STAGES] == [2e-4, 1e-4, 1e-5]
    assert [c[s].train.epochs for s in STAGES] == [12, 2, 1]
    assert c["alignment"].accumulate == 8 and c["alignment"].codec.template == "default"
    assert c["detection"].optim.weight_decay == 1e-4 and c["detection"].optim.warmup_steps == 100
    assert c["instruction"].optim.warmup_ratio == 0.03
    assert dict(c["detection"].optim.lr_multipliers) == {".*/offsets/.*": 0.1}


def test_forms_and_derived_sizes():
    published = groma.get_config("size=7b,form=published").model
    assert (published.regions.box_format, published.regions.strides) == ("cxcywh", "published")
    assert published.frozen_dropout and published.proposer.refinement == "none"
    assert groma.get_config("size=7b").model.regions.box_format == "xyxy"
    config = groma.get_config("size=tiny")
    config.image_size = 112
    assert config.model.image_size == 112


def test_the_table_of_choices_states_the_configs_values():
    text = (Path(groma.__file__).parents[1] / "docs" / "groma.md").read_text(encoding="utf-8")
    forms = {f: groma.get_config(f"size=7b,form={f}") for f in ("published", "scratch")}
    stated = set()
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split(" | ")]
        names = re.findall(r"`([\w.]+)`", cells[1]) if len(cells) == 5 else []
        for name in names:
            if name == "text_after_token":  # of the tokenizer
                continue
            for (form, config), cell in zip(forms.items(), cells[3:], strict=True):
                here = config if name in ("trainable", "codec.refer_format") else config.model
                value = operator.attrgetter(name)(here)
                if isinstance(value, (str, bool)):
                    assert f"`{value}" in cell, (form, name)
                    stated.add(name)
    assert stated >= {
        "regions.box_format", "regions.strides", "proposer.levels_from", "proposer.refinement",
        "proposer.two_heads", "regions.mlp", "codec.refer_format", "region_order",
        "frozen_dropout", "vision.position_rule",
    }  # fmt: skip


@pytest.mark.parametrize(
    "arg,message",
    [
        ("stage=detektion", r"'stage=detektion' \(did you mean detection\?\): stage is one of"),
        ("size=13b", "size is one of tiny, mini, 7b"),
        ("stages=detection", "'stages=detection': write stage=detection|alignment|instruction"),
        ("tiny", "'tiny': write stage="),
    ],
)
def test_wrong_arguments_are_named(arg, message):
    with pytest.raises(UserError, match=message.replace("|", r"\|")):
        groma.get_config(arg)


def test_a_misspelt_key_is_refused():
    config = groma.get_config("size=tiny")
    for section, key in (
        (config, "batchsize"),
        (config.optim, "lrr"),
        (config.model.vision, "widht"),
    ):
        with pytest.raises(AttributeError, match=key):
            setattr(section, key, 1)
    model = config.model.to_dict()
    model["vision"]["widht"] = 3
    with pytest.raises(
        UserError, match=r"config.model.vision.widht: unknown key; did you mean 'width'"
    ):
        from mg_jax.models import build

        build("groma", model)


def test_every_file_of_configs_is_covered_here():
    files = {f.stem for f in Path(groma.__file__).parent.glob("*.py")}
    assert files == {"__init__", "base", "ferret", "groma", "mg_llava", "tiny_grounding_gpt"}
    assert base.get_config().optim.betas == (0.9, 0.999)
