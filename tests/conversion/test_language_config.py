"""config.json of language models: both spellings, strictness, and the way back."""

import copy
import dataclasses

import pytest

from conversion import hf_config, manifests
from conversion.hf_config import language
from mg_jax.attention import RopeScaling
from mg_jax.config import build
from mg_jax.errors import UserError
from mg_jax.lm import LMConfig

READ = {"llama": hf_config.read_llama, "qwen2": hf_config.read_qwen2, "phi3": hf_config.read_phi3}
PUBLISHED = {
    "vicuna_7b_v15": LMConfig(),
    "vicuna_13b_v15": LMConfig(width=5120, mlp=13824, layers=40, heads=40, kv_heads=40),
    "llama3_8b": LMConfig(
        vocab=128256, mlp=14336, kv_heads=8, rope_theta=5e5, max_positions=8192
    ),
    "yi15_34b": LMConfig(
        vocab=64000, width=7168, mlp=20480, layers=60, heads=56, kv_heads=8, eps=1e-6,
        rope_theta=5e6,
    ),
    "qwen25_1_5b": LMConfig(
        vocab=151936, width=1536, mlp=8960, layers=28, heads=12, kv_heads=2, eps=1e-6,
        rope_theta=1e6, max_positions=131072, tied=True, qkv_bias=True,
    ),
    "qwen25_3b": LMConfig(
        vocab=151936, width=2048, mlp=11008, layers=36, heads=16, kv_heads=2, eps=1e-6,
        rope_theta=1e6, max_positions=32768, tied=True, qkv_bias=True,
    ),
    "qwen25_7b": LMConfig(
        vocab=152064, width=3584, mlp=18944, layers=28, heads=28, kv_heads=4, eps=1e-6,
        rope_theta=1e6, max_positions=131072, qkv_bias=True,
    ),
    "phi3_mini_4k": LMConfig(
        vocab=32064, width=3072, mlp=8192, head=96, window=2047,
    ),
}  # fmt: skip


def read(raw):
    return build(LMConfig, READ[raw["model_type"]](raw, "config.json"))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs(name):
    raw = manifests.config(name)
    assert read(raw) == PUBLISHED[name]
    # the spelling of transformers 5
    rope = {"rope_type": "default", "rope_theta": raw.pop("rope_theta", 10000.0)}
    raw.pop("rope_scaling", None)
    assert read(raw | {"rope_parameters": rope}) == PUBLISHED[name]


@pytest.mark.parametrize("key", ["type", "rope_type"])
def test_linear_scaling_of_vicuna_16k(key):
    """The file keeps the length before scaling, and a note that the code does not read."""
    raw = manifests.config("vicuna_7b_v15") | {
        "rope_scaling": {key: "linear", "factor": 4.0}, "max_sequence_length": 16384,
    }  # fmt: skip
    cfg = read(raw)
    assert cfg.rope_scaling == RopeScaling("linear", 4.0) and cfg.max_positions == 16384
    back = hf_config.write_llama(cfg)
    assert back["rope_scaling"] == {"type": "linear", "factor": 4.0}
    assert back["max_position_embeddings"] == 4096
    raw["rope_parameters"] = {"rope_theta": 10000.0} | raw.pop("rope_scaling")
    assert read(raw) == cfg


def test_llama3_scaling():
    rope = {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    raw = manifests.config("llama3_8b") | {"rope_scaling": rope, "max_position_embeddings": 131072}
    cfg = read(raw)
    assert cfg.rope_scaling == RopeScaling("llama3", 8.0) and cfg.max_positions == 131072
    assert hf_config.write_llama(cfg)["rope_scaling"] == rope


@pytest.mark.parametrize("switch", [False, True])
def test_the_window_of_qwen_counts_only_when_switched_on(switch):
    raw = manifests.config("qwen25_3b")
    raw |= {"use_sliding_window": switch, "sliding_window": 4096, "max_window_layers": 20}
    cfg = read(raw)
    assert (cfg.window, cfg.window_from) == ((4096, 20) if switch else (None, 0))
    kinds = ["full_attention"] * 20 + ["sliding_attention" if switch else "full_attention"] * 16
    assert read(raw | {"layer_types": kinds}) == cfg
    with pytest.raises(UserError, match=r"layer_types: .* is not supported, only what use_sliding"):
        read(raw | {"layer_types": ["sliding_attention"] * 36})


def test_no_layer_behind_max_window_layers():
    raw = manifests.config("qwen25_3b") | {"use_sliding_window": True}
    assert raw["max_window_layers"] == raw["num_hidden_layers"]
    assert read(raw).window is None


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("vicuna_7b_v15", {"sliding_window": 512}, r"json\.sliding_window: unknown field of Llama"),
        ("vicuna_7b_v15", {"attention_bias": True}, r"json\.attention_bias: True is not supported"),
        ("vicuna_7b_v15", {"hidden_act": "gelu"}, r"json\.hidden_act: 'gelu' is not supported"),
        ("vicuna_7b_v15", {"quantization_config": {"bits": 4}},
         r"json\.quantization_config: {'bits': 4} is not supported, only None"),
        ("llama3_8b", {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
         r"json\.rope_scaling: rope type 'dynamic' is not supported, only 'default', 'linear'"),
        ("llama3_8b", {"rope_scaling": {"type": "linear", "factor": 2.0, "beta_fast": 1}},
         r"json\.rope_scaling\.beta_fast: unknown field of rope type 'linear'"),
        ("llama3_8b", {"rope_scaling": {"type": "linear"}}, r"factor: expected a number above 0"),
        ("llama3_8b", {"rope_scaling": {"type": "linear", "rope_type": "llama3"}}, r"type differ"),
        ("llama3_8b", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
         r"json\.rope_theta: 500000.0 differs from rope_parameters"),
        ("yi15_34b", {"rope_parameters": {"partial_rotary_factor": 0.5, "rope_theta": 5e6}},
         r"json\.rope_parameters\.partial_rotary_factor: only 1.0"),
        ("qwen25_7b", {"rope_scaling": {"type": "yarn", "factor": 4.0}}, r"rope type 'yarn'"),
        ("qwen25_7b", {"use_mrope": True}, r"json\.use_mrope: True is not supported"),
        ("qwen25_7b", {"qk_norm": True}, r"json\.qk_norm: unknown field of Qwen2Config"),
        ("phi3_mini_4k", {"rope_scaling": {"type": "longrope", "short_factor": [1.0]}},
         r"json\.rope_scaling: long-rope \('longrope'\) is not supported; the 4k checkpoint"),
        ("phi3_mini_4k", {"rope_scaling": {"type": "su", "long_factor": [1.0]}}, r"long-rope"),
        ("phi3_mini_4k", {"rope_scaling": {"type": "linear", "factor": 2.0}}, r"only 'default'"),
        ("phi3_mini_4k", {"partial_rotary_factor": 0.75}, r"partial_rotary_factor: 0.75 is not"),
        ("phi3_mini_4k", {"resid_pdrop": 0.1}, r"json\.resid_pdrop: 0.1 is not supported"),
    ],
)  # fmt: skip
def test_what_would_change_the_model_is_refused(name, change, message):
    with pytest.raises(UserError, match=message):
        read(manifests.config(name) | change)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("vicuna_7b_v15", {"num_hidden_layers": "3"},
         r"json\.num_hidden_layers: expected a whole number above 0, got '3'"),
        ("vicuna_7b_v15", {"hidden_size": None}, r"json\.hidden_size: expected .*, got None"),
        ("vicuna_7b_v15", {"hidden_size": "32"}, r"json\.hidden_size: expected .*, got '32'"),
        ("vicuna_7b_v15", {"hidden_size": 32.0}, r"json\.hidden_size: expected .*, got 32.0"),
        ("vicuna_7b_v15", {"num_attention_heads": 0}, r"json\.num_attention_heads: .* above 0"),
        ("vicuna_7b_v15", {"num_key_value_heads": 0}, r"num_key_value_heads: .* above 0 or null"),
        ("vicuna_7b_v15", {"vocab_size": True}, r"json\.vocab_size: .* got True"),
        ("vicuna_7b_v15", {"vocab_size": 1 << 99}, r"json\.vocab_size: .* above 0, got 6338"),
        ("vicuna_7b_v15", {"rms_norm_eps": "1e-5"}, r"json\.rms_norm_eps: expected a number"),
        ("vicuna_7b_v15", {"rms_norm_eps": float("nan")}, r"json\.rms_norm_eps: .* got nan"),
        ("vicuna_7b_v15", {"tie_word_embeddings": "no"}, r"tie_word_embeddings: expected true or"),
        ("llama3_8b", {"rope_scaling": "x"}, r"json\.rope_scaling: .* object .* or null, got 'x'"),
        ("llama3_8b", {"rope_scaling": {"type": ["linear"]}}, r"rope type \['linear'\]"),
        ("llama3_8b", {"rope_scaling": {"type": "linear", "factor": "2"}},
         r"json\.rope_scaling\.factor: expected a number above 0, got '2'"),
        ("llama3_8b", {"rope_parameters": [1]}, r"json\.rope_parameters: expected an object"),
        ("llama3_8b", {"rope_parameters": {"rope_theta": None}}, r"rope_parameters\.rope_theta: "),
        ("qwen25_7b", {"use_sliding_window": 1}, r"use_sliding_window: expected true or false"),
        ("qwen25_7b", {"max_window_layers": -1}, r"max_window_layers: .* 0 or more, got -1"),
        ("llama3_8b", {"num_key_value_heads": 5}, r"num_key_value_heads: 5 do not divide the 32"),
        ("llama3_8b", {"head_dim": 7}, r"json\.head_dim: 7 is odd"),
        ("phi3_mini_4k", {"sliding_window": [3]}, r"sliding_window: .* got \[3\]"),
    ],
)  # fmt: skip
def test_a_field_of_another_kind_is_named_as_upstream_names_it(name, change, message):
    with pytest.raises(UserError, match=message) as caught:
        read(manifests.config(name) | change)
    assert "config.json." in str(caught.value)


def test_null_is_allowed_where_upstream_writes_it():
    raw = manifests.config("qwen25_3b") | {"sliding_window": None, "num_key_value_heads": None}
    assert read(raw).kv_heads == read(raw).heads
    raw = manifests.config("vicuna_7b_v15") | {"rope_scaling": None, "head_dim": None}
    raw |= {"quantization_config": None}
    assert read(raw) == PUBLISHED["vicuna_7b_v15"]


def test_the_config_of_another_class_is_refused():
    with pytest.raises(UserError, match=r"config\.model_type: 'llama', expected 'phi3'"):
        hf_config.read_phi3(manifests.config("vicuna_7b_v15"))


def test_inert_fields_are_listed():
    raw = manifests.config("vicuna_7b_v15")
    assert hf_config.inert_fields(raw, language.LLAMA) == [
        "architectures", "bos_token_id", "eos_token_id", "initializer_range", "model_type",
        "pad_token_id", "pretraining_tp", "torch_dtype", "transformers_version", "use_cache",
    ]  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_way_back_writes_every_field_of_the_model(name):
    raw = manifests.config(name)
    written = getattr(hf_config, f"write_{raw['model_type']}")(PUBLISHED[name])
    assert read(written) == PUBLISHED[name]
    section = getattr(language, raw["model_type"].upper())
    for field in set(section.read) & set(raw) - {"sliding_window", "max_window_layers"}:
        assert written[field] == raw[field], field
    assert written["architectures"] == raw["architectures"]


@pytest.mark.parametrize(
    ("write", "change", "message"),
    [
        ("llama", {"window": 8}, r"lm\.window: 8 has no place in .* LlamaForCausalLM"),
        ("llama", {"qkv_bias": True}, r"lm\.qkv_bias: True has no place"),
        ("qwen2", {}, r"lm\.qkv_bias: False has no place in .* Qwen2ForCausalLM"),
        ("phi3", {"rope_scaling": RopeScaling("linear", 2.0)}, r"rope_scaling: .* only 'default'"),
        ("phi3", {"window": 8, "window_from": 2}, r"lm\.window_from: 2 has no place"),
    ],
)
def test_what_a_class_cannot_hold_is_not_written(write, change, message):
    with pytest.raises(UserError, match=message):
        getattr(hf_config, f"write_{write}")(dataclasses.replace(LMConfig(), **change))


def test_reading_changes_nothing():
    raw = manifests.config("qwen25_3b") | {"rope_parameters": {"rope_theta": 1e6}}
    before = copy.deepcopy(raw)
    read(raw)
    assert raw == before
