"""Language models: config.json of Llama, Qwen2 and Phi-3 <-> values of mg_jax.lm.LMConfig.

Rotary fields are read in both spellings: `rope_theta` and `rope_scaling` of transformers 4, and
`rope_parameters` of transformers 5. Written is the former, which both read.
"""

from collections.abc import Callable, Mapping
from typing import Any

from conversion.hf_config.sections import (
    COUNT,
    GROUP,
    NUMBER,
    SIZE,
    SWITCH,
    Kind,
    Section,
    read_section,
    write_section,
)
from mg_jax.config import to_dict
from mg_jax.errors import UserError

READ: dict[str, tuple] = {
    "vocab_size": ("vocab", 32000),
    "hidden_size": ("width", 4096),
    "intermediate_size": ("mlp", 11008),
    "num_hidden_layers": ("layers", 32),
    "num_attention_heads": ("heads", 32),
    "num_key_value_heads": ("kv_heads", None, SIZE.or_null()),
    "head_dim": ("head", None, SIZE.or_null()),
    "rms_norm_eps": ("eps", 1e-6),
    "rope_theta": ("rope_theta", 10000.0),
    "rope_scaling": ("rope_scaling", None, GROUP.or_null()),
    "max_position_embeddings": ("max_positions", 2048),
    "tie_word_embeddings": ("tied", False),
}
FIXED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "attention_dropout": (0.0,),
    "pruned_heads": ({},),
    "quantization_config": (None,),
}
POSITIVE = Kind("a number above 0", lambda x: NUMBER.fits(x) and x > 0)
# No forward pass reads them, but whoever generates text does: they go along with the weights
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
INERT = [*TOKEN_IDS, "initializer_range", "id2label"]

LLAMA = Section(
    "LlamaConfig",
    read=READ,
    fixed=FIXED | {"mlp_bias": (False,)},
    # pretraining_tp splits a product into a sum of parts: the same numbers but for rounding;
    # max_sequence_length is a note of Vicuna 16k that the code never reads
    inert=frozenset([*INERT, "pretraining_tp", "max_sequence_length"]),
)
QWEN2 = Section(
    "Qwen2Config",
    read=READ
    | {
        "vocab_size": ("vocab", 151936),
        "intermediate_size": ("mlp", 22016),
        "num_key_value_heads": ("kv_heads", 32, SIZE.or_null()),
        "max_position_embeddings": ("max_positions", 32768),
        "sliding_window": ("window", 4096, SIZE.or_null()),
        "max_window_layers": ("window_from", 28, COUNT),
    },
    fixed={k: v for k, v in FIXED.items() if k != "attention_bias"} | {"use_mrope": (False,)},
    inert=frozenset(INERT),
)
PHI3 = Section(
    "Phi3Config",
    read=READ
    | {
        "vocab_size": ("vocab", 32064),
        "hidden_size": ("width", 3072),
        "intermediate_size": ("mlp", 8192),
        "rms_norm_eps": ("eps", 1e-5),
        "max_position_embeddings": ("max_positions", 4096),
        "sliding_window": ("window", None, SIZE.or_null()),
    },
    fixed=FIXED | {"resid_pdrop": (0.0,), "embd_pdrop": (0.0,), "partial_rotary_factor": (1.0,)},
    # the length before long-rope, which is refused
    inert=frozenset([*INERT, "original_max_position_embeddings"]),
)

# Rotary types and the fields of each: theirs -> ours
ROPE_FIELDS = {
    "default": {},
    "linear": {"factor": "factor"},
    "llama3": {
        "factor": "factor",
        "low_freq_factor": "low",
        "high_freq_factor": "high",
        "original_max_position_embeddings": "original",
    },
}


def read_llama(raw: Mapping[str, Any], where: str = "config") -> dict[str, Any]:
    """Values of LMConfig from a LlamaConfig (Vicuna, Llama-3, Yi).

    Raises UserError naming a field that is unknown or that our decoder does not compute.
    """
    return _read(raw, LLAMA, where, ("default", "linear", "llama3")) | {
        "qkv_bias": False, "window": None, "window_from": 0,
    }  # fmt: skip


def read_qwen2(raw: Mapping[str, Any], where: str = "config") -> dict[str, Any]:
    """Values of LMConfig from a Qwen2Config (Qwen2, Qwen2.5). Raises UserError as `read_llama`.

    A window counts only with `use_sliding_window`, and in the layers from `max_window_layers` on.
    """
    raw = dict(raw)
    windowed = SWITCH.check(raw.pop("use_sliding_window", False), f"{where}.use_sliding_window")
    listed = raw.pop("layer_types", None)
    values = _read(raw, QWEN2, where, ("default", "linear", "llama3")) | {"qkv_bias": True}
    if not windowed or values["window"] is None or values["window_from"] >= values["layers"]:
        values |= {"window": None, "window_from": 0}
    if listed is not None and listed != _layer_types(values):
        raise UserError(
            f"{where}.layer_types: {listed!r} is not supported, only what use_sliding_window and "
            f"max_window_layers give: {_layer_types(values)!r}"
        )
    return values


def read_phi3(raw: Mapping[str, Any], where: str = "config") -> dict[str, Any]:
    """Values of LMConfig from a Phi3Config. Raises UserError as `read_llama`, and for long-rope."""
    values = _read(raw, PHI3, where, ("default",))
    return values | {"qkv_bias": False, "window_from": 0}


def write_llama(cfg: Any) -> dict[str, Any]:
    """The config.json of LlamaForCausalLM for an LMConfig. Raises UserError where it has none."""
    return _write(to_dict(cfg), LLAMA, "LlamaForCausalLM", read_llama)


def write_qwen2(cfg: Any) -> dict[str, Any]:
    """The config.json of Qwen2ForCausalLM for an LMConfig. Raises UserError where it has none."""
    values = to_dict(cfg)
    windowed = values["window"] is not None
    more = {
        "use_sliding_window": windowed,
        "max_window_layers": values["window_from"] if windowed else values["layers"],
    }
    return _write(values, QWEN2, "Qwen2ForCausalLM", read_qwen2, more)


def write_phi3(cfg: Any) -> dict[str, Any]:
    """The config.json of Phi3ForCausalLM for an LMConfig. Raises UserError where it has none."""
    values = to_dict(cfg)
    # the class's own ids, 32000, cannot be built with a smaller vocabulary
    more = {} if values["vocab"] > 32000 else {"pad_token_id": None, "eos_token_id": None}
    return _write(values, PHI3, "Phi3ForCausalLM", read_phi3, more)


def _read(
    raw: Mapping[str, Any], section: Section, where: str, ropes: tuple[str, ...]
) -> dict[str, Any]:
    raw = dict(raw)
    kind = section.name.removesuffix("Config").lower()
    if raw.get("model_type", kind) != kind:
        raise UserError(f"{where}.model_type: {raw['model_type']!r}, expected {kind!r}")
    rope = raw.pop("rope_parameters", None)
    values = read_section(raw, section, where)
    if rope is None:
        scaling = _read_rope(values["rope_scaling"] or {}, f"{where}.rope_scaling", ropes)
    else:
        here = f"{where}.rope_parameters"
        rope = dict(GROUP.check(rope, here))
        theta = NUMBER.check(rope.pop("rope_theta", values["rope_theta"]), f"{here}.rope_theta")
        for name, value in (("rope_theta", theta), ("rope_scaling", None)):
            if raw.get(name, value) != value:
                raise UserError(f"{where}.{name}: {raw[name]!r} differs from rope_parameters")
        scaling = _read_rope(rope, here, ropes)
        values["rope_theta"] = theta
    values["rope_scaling"] = scaling
    if scaling and scaling["kind"] == "linear":
        # this class keeps the length before scaling, as its documentation asks for
        values["max_positions"] = round(values["max_positions"] * scaling["factor"])
    values["kv_heads"] = values["kv_heads"] or values["heads"]
    if values["heads"] % values["kv_heads"]:
        raise UserError(
            f"{where}.num_key_value_heads: {values['kv_heads']} do not divide the "
            f"{values['heads']} heads of num_attention_heads"
        )
    values["head"] = values["head"] or values["width"] // values["heads"]
    if values["head"] % 2:
        raise UserError(f"{where}.head_dim: {values['head']} is odd; rope turns pairs of numbers")
    return values


def _read_rope(
    rope: Mapping[str, Any], where: str, ropes: tuple[str, ...]
) -> dict[str, Any] | None:
    """Values of RopeScaling; None for plain rope."""
    rope = dict(rope)
    kind = rope.pop("rope_type", None) or rope.get("type", "default")
    if rope.pop("type", kind) != kind:
        raise UserError(f"{where}: rope_type and type differ")
    if kind in ("longrope", "su"):
        raise UserError(
            f"{where}: long-rope ({kind!r}) is not supported; the 4k checkpoint has plain rope"
        )
    if kind not in ropes:
        known = ", ".join(map(repr, ropes))
        raise UserError(f"{where}: rope type {kind!r} is not supported, only {known}")
    if rope.pop("partial_rotary_factor", 1.0) != 1.0:
        raise UserError(f"{where}.partial_rotary_factor: only 1.0 is supported")
    fields = ROPE_FIELDS[kind]
    for name in rope:
        if name not in fields:
            raise UserError(f"{where}.{name}: unknown field of rope type {kind!r}")
    for name in fields:
        POSITIVE.check(rope.get(name), f"{where}.{name}")
    if kind == "default":
        return None
    return {"kind": kind} | {ours: rope[theirs] for theirs, ours in fields.items()}


def _write(
    values: dict[str, Any],
    section: Section,
    architecture: str,
    read: Callable[[Mapping[str, Any]], dict[str, Any]],
    more: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    raw = write_section(values, section) | dict(more or {})
    if values["head"] * values["heads"] == values["width"]:
        del raw["head_dim"]  # the code of transformers 4.32 knows no other
    scaling = values["rope_scaling"]
    if scaling is not None:
        # "type" for linear: the only spelling that transformers 4.31 to 4.42 take
        name, fields = "rope_type", ROPE_FIELDS[scaling["kind"]]
        if scaling["kind"] == "linear":
            name = "type"
            raw["max_position_embeddings"] = round(values["max_positions"] / scaling["factor"])
        raw["rope_scaling"] = {name: scaling["kind"]} | {
            theirs: scaling[ours] for theirs, ours in fields.items()
        }
        scaling = {"kind": scaling["kind"]} | {x: scaling[x] for x in fields.values()}
    for name, value in read(raw).items():
        mine = scaling if name == "rope_scaling" else values[name]
        if mine != value:
            raise UserError(
                f"lm.{name}: {mine!r} has no place in the config.json of {architecture}, which "
                f"means {value!r}"
            )
    kind = section.name.removesuffix("Config").lower()
    return {"architectures": [architecture], "model_type": kind, **raw}


def _layer_types(values: Mapping[str, Any]) -> list[str]:
    windowed = values["window"] is not None
    kinds = ("full_attention", "sliding_attention")
    return [kinds[windowed and i >= values["window_from"]] for i in range(values["layers"])]
