"""configs/tiny_grounding_gpt.py: the paper's shapes and table, and all four stages in a row."""

import math

import jax
import numpy as np
import pytest

from configs import tiny_grounding_gpt
from configs.tiny_grounding_gpt import SIZES
from launch.train import run
from mg_jax import checkpoint
from mg_jax.data import pipeline
from mg_jax.data.tasks import parse_tasks
from mg_jax.errors import UserError
from mg_jax.models import build
from mg_jax.models.tiny_grounding_gpt import STAGES
from mg_jax.plan import plan
from mg_jax.sharding import make_mesh
from tests.tiny_grounding_micro import SCENES, micro_config
from tests.train.starting import assert_starts_from_parts

FULL = SIZES[1:]
# parameters of Qwen2.5 as published, heads tied but in the largest
LANGUAGE = {"qwen1.5b": 1_543_714_304, "qwen3b": 3_085_938_688, "qwen7b": 7_615_616_512}
TOWERS = 303_507_456 + 304_368_640  # CLIP ViT-L/14-336 with its last norm, DINOv2-L/14


def count(flat):
    return sum(math.prod(x.shape) for x in flat.values())


@pytest.mark.parametrize("llm", FULL)
@pytest.mark.parametrize("stage", STAGES)
def test_full_sizes_build_with_the_published_shape(llm, stage):
    config = tiny_grounding_gpt.get_config(f"stage={stage},llm={llm}")
    system = build(config.system, config.model.to_dict())
    sizes = pipeline.batch_sizes(config, system.cfg)
    p = plan(config, 100, system=system, mesh=make_mesh(1, 8, 1), sizes=sizes)
    width = config.model.lm.width
    projector = 2048 * width + width * width + 2 * width
    assert count(p.frozen) + count(p.state.params) == TOWERS + LANGUAGE[llm] + projector
    learns = projector + (LANGUAGE[llm] if stage != "projector" else 0)
    assert count(p.state.params) == learns
    assert {str(x.dtype) for x in p.frozen.values()} == {"bfloat16"}
    assert p.example["image"].shape == (config.batch_size, 336, 336, 3)
    assert p.example["objects"].shape == (config.batch_size, 8, 336, 336, 3)
    assert p.example["tokens"].shape[1] == 576 + 8 * 144 + 1472 <= config.model.lm.max_positions


@pytest.mark.parametrize("tokens", [576, 144, 36])
def test_tokens_of_an_object_image(tokens):
    config = tiny_grounding_gpt.get_config("stage=local,llm=3b")
    config.model.object_tokens = tokens
    cfg = build(config.system, config.model.to_dict()).cfg
    assert pipeline.batch_sizes(config, cfg)["tokens"] == 2048 + 8 * tokens
    assert cfg.object_pool == {576: 1, 144: 2, 36: 4}[tokens]


def test_hyperparameters_are_the_papers():
    c = {s: tiny_grounding_gpt.get_config(f"stage={s},llm=qwen3b") for s in STAGES}
    assert [c[s].batch_size for s in STAGES] == [32, 32, 32, 16]
    assert [c[s].optim.lr for s in STAGES] == [1e-3, 2e-5, 2e-5, 2e-5]
    assert [c[s].train.epochs for s in STAGES] == [1, 1, 1, 2]
    for config in c.values():
        assert (config.optim.schedule, config.optim.warmup_ratio) == ("cosine", 0.03)
        assert config.optim.weight_decay == 0.0 and config.codec.template == "qwen_chat"
    trains = [tuple(c[s].trainable) for s in STAGES]
    assert trains == [("projector/.*",), *[("projector/.*", "lm/.*")] * 3]
    assert c["projector"].model.lm.tied and c["projector"].model.lm.qkv_bias
    assert not tiny_grounding_gpt.get_config("llm=qwen7b").model.lm.tied
    assert tiny_grounding_gpt.get_config("llm=1.5b").size == "qwen1.5b"


@pytest.mark.parametrize("stage", STAGES)
def test_tiny_is_small_enough_to_ship(stage):
    config = tiny_grounding_gpt.get_config(f"stage={stage},llm=tiny")
    system = build(config.system, config.model.to_dict())
    sizes = pipeline.batch_sizes(config, system.cfg)
    p = plan(config, 100, system=system, mesh=make_mesh(8, 1, 1), sizes=sizes)
    assert 2_000_000 < count(p.state.params) + count(p.frozen) < 4_000_000
    assert {path.split("/")[0] for path in p.frozen} == {"clip", "dino"}
    assert sizes["tokens"] <= config.model.lm.max_positions
    pipeline.open_mixture(config.data)  # each of its tasks is known
    rows = pipeline.open_samples(config, system.cfg)
    assert rows.buckets[-1] == sizes["tokens"]
    assert len(rows.buckets) == 2 + (stage in tiny_grounding_gpt.MORE)


def test_ablations_leave_out_what_the_paper_leaves_out():
    def config(stage, llm, without):
        return tiny_grounding_gpt.get_config(f"stage={stage},llm={llm},without={without}")

    for stage in STAGES:
        whole = config(stage, "3b", "nothing").tasks
        parse_tasks(whole)
        for without in ("objects", "dialogues"):
            if (stage, without) in (("local", "objects"), ("global", "dialogues")):
                assert config(stage, "3b", without).tasks != whole
                continue
            with pytest.raises(UserError, match=f"without={without}: .* in stage={stage}; it is"):
                config(stage, "3b", without)
    # both parts of stage 1 see the same captions
    assert {config(s, "3b", "nothing").tasks for s in ("projector", "llm")} == {"caption"}
    assert "place_choice" in config("local", "3b", "nothing").tasks
    assert "place_choice" not in config("local", "3b", "objects").tasks
    assert "dialogue" not in config("global", "3b", "dialogues").tasks
    tiny = {w: config("global", "tiny", w).data for w in ("nothing", "objects", "dialogues")}
    assert ["object_match" in d for d in tiny.values()] == [True, False, True]
    assert ["grounding_dialogue" in d for d in tiny.values()] == [True, True, False]
    assert "object" not in config("local", "tiny", "objects").data
    for data in tiny.values():
        pipeline.open_mixture(data)


@pytest.mark.parametrize(("stage", "without", "where"), [
    ("labels", "objects", "stage=local and stage=global"),
    ("projector", "objects", "stage=local and stage=global"),
    ("labels", "dialogues", "stage=global"),
    ("local", "dialogues", "stage=global"),
])  # fmt: skip
def test_nothing_to_leave_out_is_refused(stage, without, where):
    with pytest.raises(UserError, match=f"in stage={stage}; it is for {where}$"):
        tiny_grounding_gpt.get_config(f"stage={stage},llm=tiny,without={without}")


def test_a_wrong_size_is_named():
    with pytest.raises(UserError, match="did you mean qwen7b"):
        tiny_grounding_gpt.get_config("llm=qwen7")
    with pytest.raises(UserError, match="stage=labels is for llm=tiny: the towers of qwen3b"):
        tiny_grounding_gpt.get_config("stage=labels,llm=3b")


def test_all_stages_in_a_row(tmp_path):
    with pytest.raises(UserError, match="stage=llm starts from a checkpoint of stage projector"):
        run(micro_config("llm"), str(tmp_path / "x"))
    assert run(micro_config("labels"), str(tmp_path / "labels")) == 0
    taught = checkpoint.load_release(tmp_path / "labels" / "release")[1]
    assert set(taught) == {"clip", "dino", "labels"}
    before = str(tmp_path / "labels")
    for stage in STAGES:
        changes = {"init_from": before}
        if stage == "global":
            changes["data"] = SCENES.format("grounding_dialogue+grounded_description")
        assert run(micro_config(stage, **changes), str(tmp_path / stage)) == 0
        before = str(tmp_path / stage)
    config, params, words = checkpoint.load_release(tmp_path / "global" / "release")
    assert set(params) == {"clip", "dino", "projector", "lm"}
    for tower in ("clip", "dino"):  # as pretrained ones do they stay as they are
        jax.tree.map(np.testing.assert_array_equal, params[tower], taught[tower])
    assert config["system"] == "tiny_grounding_gpt" and config["stage"] == "global"
    assert config["preprocess"] == "clip_pad" and words is not None
    assert config["codec"]["object_slots"] == 5 and config["codec"]["object_tokens"] == 4


def test_a_run_starts_from_its_public_parts(tmp_path):
    parts = (("clip", "vision", "clip"), ("dinov2", "vision", "dino"), ("qwen2", "lm", "lm"))
    full = tiny_grounding_gpt.get_config("stage=projector,llm=qwen1.5b")
    assert_starts_from_parts(micro_config("projector"), full, parts, tmp_path)
