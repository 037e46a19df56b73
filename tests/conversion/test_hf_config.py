"""Upstream's config.json: defaults filled in, the unknown refused, the known inert passed."""

import copy
import json

import pytest

import conversion
from conversion import hf_config
from mg_jax.errors import UserError


@pytest.fixture
def raw(published):
    return copy.deepcopy(published)


def test_missing_fields_take_the_defaults_of_the_classes(raw):
    values = hf_config.read_groma(raw)
    assert values["lm"] == {
        "vocab": 32000, "width": 4096, "mlp": 11008, "layers": 32, "heads": 32, "kv_heads": 32,
        "head": 128, "eps": 1e-5, "rope_theta": 10000.0, "max_positions": 4096, "tied": False,
        "rope_scaling": None, "qkv_bias": False, "window": None, "window_from": 0,
    }  # fmt: skip
    proposer = values["proposer"]
    assert (proposer["width"], proposer["queries"], proposer["encoder_points"]) == (256, 300, 4)
    assert (proposer["levels"], proposer["decoder_layers"], proposer["dropout"]) == (1, 6, 0.1)
    assert proposer["refinement"] == "none" and proposer["levels_from"] == "mean"
    assert values["vision"]["position_rule"] == "scale_offset"
    assert values["vision"]["eps"] == 1e-6 and values["vision"]["mlp_ratio"] == 4
    regions = values["regions"]
    assert (regions["hidden"], regions["scale"], regions["width"]) == (1024, 448.0, 1024)
    assert (regions["box_format"], regions["strides"]) == ("cxcywh", "published")
    assert values["image_size"] == 448


def test_early_revisions_without_thresholds(raw):
    """Their class defaults were 0, which drowned the model in proposals."""
    values = hf_config.read_groma(raw)
    assert (values["nms_threshold"], values["score_threshold"]) == (0.6, 0.15)
    assert values["max_regions"] == 100
    raw["nms_thres"] = 0.5
    assert hf_config.read_groma(raw)["nms_threshold"] == 0.5


def test_a_full_config_of_the_older_library_is_inert(raw):
    raw["llm_cfg"] |= {"torch_dtype": "float16", "use_cache": True, "pretraining_tp": 1,
                       "rope_scaling": None, "bos_token_id": 1, "architectures": ["X"],
                       "transformers_version": "4.32.0"}  # fmt: skip
    raw["perceiver_cfg"]["zs_weight_path"] = None
    raw["perceiver_cfg"]["vis_encoder_cfg"] |= {"out_indices": [24], "pruned_heads": {}}
    hf_config.read_groma(raw)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("llm_cfg", "rope_scaling"), {"type": "dynamic", "factor": 2}, r"rope_scaling.*'dynamic'"),
        (("llm_cfg", "hidden_act"), "gelu", r"llm_cfg\.hidden_act: 'gelu'"),
        (("llm_cfg", "sliding_window"), 512, r"llm_cfg\.sliding_window: unknown field of Llama"),
        (("llm_cfg", "rope_parameters"), {"rope_type": "yarn"}, r"rope_parameters"),
        (("perceiver_cfg", "vis_output_layer"), -2, r"perceiver_cfg\.vis_output_layer: -2"),
        (("perceiver_cfg", "vis_encoder_cfg", "use_swiglu_ffn"), True, r"use_swiglu_ffn: True"),
        (("perceiver_cfg", "ddetr_cfg", "two_stage"), False, r"two_stage: False"),
        (("perceiver_cfg", "ddetr_cfg", "two_stage_num_proposals"), 900, r"differs from num_qu"),
        (("perceiver_cfg", "ddetr_cfg", "id2label"), {"0": "a", "1": "b"}, r"id2label: 2 classes"),
        (("roi_scale",), 224, r"config\.json\.roi_scale: unknown field of GromaConfig"),
        (("model_type",), "llava", r"model_type 'llava' is not Groma's"),
        (("perceiver_cfg",), None, r"config\.json\.perceiver_cfg: expected an object .* got None"),
        (("llm_cfg",), "x", r"config\.json\.llm_cfg: expected an object"),
        (("llm_cfg", "hidden_size"), "4096", r"config\.json\.llm_cfg\.hidden_size: expected a who"),
        (("perceiver_cfg", "vis_encoder_cfg", "patch_size"), 0, r"vis_encoder_cfg\.patch_size: "),
        (("perceiver_cfg", "ddetr_cfg", "id2label"), None, r"ddetr_cfg\.id2label: expected an obj"),
        (("perceiver_cfg", "ddetr_cfg", "num_feature_levels"), 7, r"levels: 7, expected 1 to 4"),
        (("perceiver_cfg", "ddetr_cfg", "num_queries"), "9", r"ddetr_cfg\.num_queries: expected"),
        (("nms_thres",), None, r"config\.json\.nms_thres: expected a number, got None"),
        (("golden_overrides",), {"mid": "x"}, r"golden_overrides\.mid: expected a whole number"),
        (("golden_overrides",), 3, r"golden_overrides: expected an object"),
    ],
)
def test_what_would_change_the_model_is_refused(raw, path, value, message):
    node = raw
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    with pytest.raises(UserError, match=message):
        hf_config.read_groma(raw)


def test_a_default_that_we_do_not_compute_is_refused(raw):
    del raw["perceiver_cfg"]["ddetr_cfg"]["with_box_refine"]
    with pytest.raises(UserError, match="with_box_refine: missing, which means False"):
        hf_config.read_groma(raw)


def test_the_spelling_of_newer_configs(raw):
    raw["llm_cfg"]["rope_parameters"] = {"rope_type": "default", "rope_theta": 5e5}
    assert hf_config.read_groma(raw)["lm"]["rope_theta"] == 5e5


def test_values_build_the_frozen_config(raw, tmp_path):
    groma = pytest.importorskip("mg_jax.models.groma")
    (tmp_path / "config.json").write_text(json.dumps(raw))
    layout, cfg = conversion.read_config(tmp_path)
    assert layout == "full" and isinstance(cfg, groma.GromaConfig)
    assert cfg.image_tokens == 256


def test_unreadable_configs_are_named(tmp_path):
    with pytest.raises(UserError, match=r"config\.json: no such file"):
        conversion.read_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json: cannot be read"):
        conversion.read_config(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UserError, match=r"config\.json: holds no JSON object"):
        conversion.read_config(tmp_path)
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"config\.json: cannot be read"):
        conversion.read_config(tmp_path)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").mkdir()
    with pytest.raises(UserError, match=r"config\.json: cannot be read"):
        conversion.read_config(tmp_path)


def test_a_config_of_any_depth_is_refused_in_a_line(tmp_path):
    """Of every depth, whether JSON's own limit lets it through or not."""
    refusals = set()
    for depth in range(600, 1600, 3):  # the limit of 3.12 is higher
        value = "[" * depth + "]" * depth
        vision = f'{{"vis_encoder_cfg": {{"hidden_size": {value}}}}}'
        text = f'{{"model_type": "groma", "perceiver_cfg": {vision}}}'
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(UserError, match=r"config\.json") as caught:
            conversion.prepare(tmp_path, tmp_path / "b")
        refusals.add(str(caught.value).partition("config.json")[2][:12])
    assert refusals == {".perceiver_c", ": cannot be "}
