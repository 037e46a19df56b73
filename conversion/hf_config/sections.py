"""A config class of the original code as data: which fields are read, fixed or inert.

Upstream writes a config as the difference from its classes' defaults, so a missing field means the
default of transformers 4.32 (Groma spec 1.1). A field is read, or must have a value that our model
computes, or is listed as inert; anything else is an error, since it may change the mathematics.
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mg_jax.errors import UserError

# Written by every transformers config class; none reaches a forward pass of ours.
COMMON_INERT = frozenset(
    """_attn_implementation _attn_implementation_autoset _commit_hash _name_or_path
    add_cross_attention architectures attn_implementation auto_map bad_words_ids
    begin_suppress_tokens chunk_size_feed_forward cross_attention_hidden_size
    decoder_start_token_id diversity_penalty do_sample dtype early_stopping
    encoder_no_repeat_ngram_size exponential_decay_length_penalty finetuning_task
    forced_bos_token_id forced_eos_token_id is_decoder is_encoder_decoder label2id length_penalty
    max_length min_length model_type no_repeat_ngram_size num_beam_groups num_beams
    num_return_sequences output_attentions output_hidden_states output_scores prefix problem_type
    remove_invalid_values repetition_penalty return_dict return_dict_in_generate sep_token_id
    suppress_tokens task_specific_params temperature tf_legacy_loss tie_encoder_decoder
    tokenizer_class top_k top_p torch_dtype torchscript transformers_version typical_p
    use_bfloat16 use_cache""".split()
)


@dataclasses.dataclass(frozen=True)
class Section:
    """One config class: `read` {theirs: (ours, default)}, `fixed` {theirs: (default, allowed...)},
    `inert` names besides COMMON_INERT."""

    name: str
    read: Mapping[str, tuple[str, Any]]
    fixed: Mapping[str, tuple[Any, ...]]
    inert: frozenset[str] = frozenset()


def read_section(raw: Mapping[str, Any], section: Section, where: str) -> dict[str, Any]:
    """The fields of one config class under our names, defaults filled in.

    Raises UserError naming a field that is unknown or has a value our model does not compute.
    """
    for name, value in raw.items():
        if name in section.fixed:
            default, *others = section.fixed[name]
            allowed = others or [default]
            if value not in allowed:
                raise UserError(f"{where}.{name}: {value!r} is not supported, only {allowed[0]!r}")
        elif name not in section.read and name not in section.inert | COMMON_INERT:
            raise UserError(
                f"{where}.{name}: unknown field of {section.name}; it may change the model, so it "
                "is not ignored (list it in conversion/hf_config once it is known to be inert)"
            )
    for name, (default, *others) in section.fixed.items():
        if name not in raw and others and default not in others:
            raise UserError(
                f"{where}.{name}: missing, which means {default!r}; only {others[0]!r} is supported"
            )
    return {ours: raw.get(theirs, default) for theirs, (ours, default) in section.read.items()}


def write_section(values: Mapping[str, Any], section: Section) -> dict[str, Any]:
    """The fields of one config class from our values: the way back of `read_section`.

    Every field that is read is written, and the fixed ones whose default we do not compute.
    """
    fixed = {name: others[0] for name, (_, *others) in section.fixed.items() if others}
    return {theirs: values[ours] for theirs, (ours, _) in section.read.items()} | fixed


def inert_fields(raw: Mapping[str, Any], section: Section) -> list[str]:
    """The fields of `raw` that are known and have no effect on the mathematics, in its order."""
    known = section.inert | COMMON_INERT
    return [name for name in raw if name in known and name not in section.read]


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    """A config.json as a dict. Raises UserError when it is missing or not JSON."""
    path = Path(path)
    try:
        raw = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: not JSON ({error})") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path}: expected an object of fields")
    return raw
