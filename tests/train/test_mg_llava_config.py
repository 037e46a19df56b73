"""configs/mg_llava.py: published shapes and hyper-parameters, context, and all stages in a row."""

import math

import jax
import numpy as np
import pytest

from configs import mg_llava
from launch.train import run
from mg_jax import checkpoint
from mg_jax.data import pipeline
from mg_jax.errors import UserError
from mg_jax.models import build
from mg_jax.plan import plan
from mg_jax.sharding import make_mesh
from tests.mg_llava_micro import micro_config
from tests.train.starting import assert_starts_from_parts

FULL, STAGES = mg_llava.CHOICES["llm"][1:], ("pretrain", "sft")
# parameters of the language models by their config.json, and of the two frozen towers
LANGUAGE = {
    "phi3": 3_821_079_552, "vicuna7b": 6_738_415_616, "vicuna13b": 13_015_864_320,
    "llama3": 8_030_261_248, "yi34b": 34_388_917_248,
}  # fmt: skip
TOWERS = 499_734_720  # of CLIP's 303,507,456 (with its last norm) and ConvNeXt-L's 196,227,264


def count(flat):
    return sum(math.prod(x.shape) for x in flat.values())


def bridges(width):
    """The 20 tensors of a stage-1 checkpoint (spec 1)."""
    fusion = 1536 * 1536 + 1536 + 1024 * 1536 + 1024 + 1024 * 50 + 1024 * 1025
    gate = 2048 * 512 + 512 + 513
    return fusion + gate + sum(d * width + width * width + 2 * width for d in (1024, 2880))


@pytest.mark.parametrize("llm", FULL)
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("media", mg_llava.CHOICES["media"])
def test_full_sizes_build_with_the_published_shape(llm, stage, media):
    config = mg_llava.get_config(f"stage={stage},llm={llm},media={media}")
    system = build(config.system, config.model.to_dict())
    sizes = pipeline.batch_sizes(config, system.cfg)
    p = plan(config, 100, system=system, mesh=make_mesh(1, 8, 1), sizes=sizes)
    mine = bridges(config.model.lm.width)
    assert count(p.frozen) + count(p.state.params) == TOWERS + LANGUAGE[llm] + mine
    assert count(p.state.params) == mine + (LANGUAGE[llm] if stage == "sft" else 0)
    frames = 8 if media == "video" else 1
    assert p.example["high"].shape == (config.batch_size, frames, 768, 768, 3)
    length = p.example["tokens"].shape[1]
    assert length + 128 <= config.model.lm.max_positions  # room for an answer
    assert length - frames * config.model.max_boxes - 1472 == frames * (
        144 if media == "video" and llm != "llama3" else 576
    )


def test_hyperparameters_are_the_published_ones():
    def values(stage):
        found = [mg_llava.get_config(f"stage={stage},llm={llm}") for llm in FULL]
        return [(c.batch_size, c.optim.lr) for c in found]

    assert values("pretrain") == [(256, 1e-3)] * 4 + [(512, 2e-3)]
    assert values("sft") == [(64, 2e-5), (128, 2e-5), (128, 2e-5), (64, 1e-5), (128, 2e-5)]
    c = mg_llava.get_config("stage=sft,llm=llama3")
    assert c.accumulate == 2 and c.train.epochs == 1 and c.seed == 2024
    assert (c.optim.warmup_ratio, c.optim.weight_decay, c.optim.clip) == (0.03, 0.0, 1.0)
    assert c.codec.template == "llama3_chat" and c.codec.text_tokens == 2048 - 576
    assert c.model.drop_path == 0.0 and c.model.fusion == "conv_gate"


def test_a_video_fits_or_runs_on_as_published():
    fit = mg_llava.get_config("stage=sft,llm=vicuna7b,media=video").model
    assert (fit.video_pool, fit.lm.max_positions, fit.lm.rope_scaling) == (2, 4096, None)
    published = mg_llava.get_config("stage=sft,llm=vicuna7b,media=video,context=published")
    published.model.lm.rope_scaling.factor = 2.0
    system = build("mg_llava", published.model.to_dict())
    assert system.cfg.lm.rope_scaling.factor == 2.0 and system.cfg.lm.max_positions == 8192
    sizes = pipeline.batch_sizes(published, system.cfg)
    assert sizes["tokens"] == 8 * (576 + 100) + 1472
    assert mg_llava.get_config("llm=vicuna7b,context=published").model.lm.max_positions == 4096


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("context", mg_llava.CHOICES["context"])
def test_published_sizes_group_rows_by_lengths_that_fit(stage, context):
    for llm in FULL:
        for media in mg_llava.CHOICES["media"]:
            c = mg_llava.get_config(f"stage={stage},llm={llm},media={media},context={context}")
            assert c.group_by_length and not c.single_source
            cfg = build(c.system, c.model.to_dict()).cfg
            lengths = (*c.codec.buckets, pipeline.batch_sizes(c, cfg)["tokens"])
            for frames in (1, 8)[: 1 + (media == "video")]:
                for boxes, text in ((10, 128), (cfg.max_boxes, 256), (cfg.max_boxes, 1472)):
                    needed = frames * (cfg.image_tokens(frames) + boxes) + text
                    # one process sees few boxes, several plan with all there may be
                    assert min(n for n in lengths if n >= needed) <= 1.2 * needed
    tiny = mg_llava.get_config(f"stage={stage},llm=tiny,media=video,context={context}")
    assert tiny.single_source and not tiny.group_by_length


@pytest.mark.parametrize("media", mg_llava.CHOICES["media"])
def test_tiny_is_small_enough_to_ship(media):
    config = mg_llava.get_config(f"stage=sft,llm=tiny,media={media}")
    p = plan(config, 100, mesh=make_mesh(8, 1, 1))
    assert count(p.state.params) + count(p.frozen) < 4_000_000
    assert {path.split("/")[0] for path in p.frozen} == {"low", "high"}
    with pytest.raises(UserError, match="did you mean vicuna7b"):
        mg_llava.get_config("llm=vicuna7")
    with pytest.raises(UserError, match="stage=labels is for llm=tiny"):
        mg_llava.get_config("llm=vicuna7b,stage=labels")


@pytest.mark.slow
def test_all_stages_in_a_row_on_pictures_and_videos(tmp_path):
    with pytest.raises(UserError, match="stage=sft starts from a checkpoint of stage pretrain"):
        run(micro_config("sft"), str(tmp_path / "x"))
    assert run(micro_config("labels"), str(tmp_path / "l")) == 0
    taught = checkpoint.load_release(tmp_path / "l" / "release", "mg_llava")[1]
    assert set(taught) == {"low", "high", "labels_low", "labels_high"}
    start = {"init_from": str(tmp_path / "l")}
    assert run(micro_config("pretrain", **start), str(tmp_path / "a")) == 0
    params = checkpoint.load_release(tmp_path / "a" / "release", "mg_llava")[1]
    assert not any(name.startswith("labels") for name in params)
    for tower in ("low", "high"):  # as pretrained ones do they stay as they are
        jax.tree.map(np.testing.assert_array_equal, params[tower], taught[tower])
    data = "scenes:seed=2,n=99,size=64,frames=8"
    changes = {"init_from": str(tmp_path / "a"), "data": data, "train__steps": 3}
    assert run(micro_config("sft", "video", **changes), str(tmp_path / "b")) == 0
    config, _, words = checkpoint.load_release(tmp_path / "b" / "release", "mg_llava")
    assert config["detector"] == "groma-tiny" and config["preprocess"] == "clip_pad"
    assert config["codec"]["frames"] == 8 and words is not None


def test_a_published_run_starts_from_its_parts(tmp_path):
    parts = (("clip", "vision", "low"), ("convnext", "vision", "high"), ("llama", "lm", "lm"))
    full = mg_llava.get_config("stage=pretrain,llm=vicuna7b")
    assert_starts_from_parts(micro_config("pretrain"), full, parts, tmp_path)
