"""A config class of the original code as data: which fields are read, fixed or inert.

Upstream writes a config as the difference from its classes' defaults, so a missing field means the
default of transformers 4.32 (Groma spec 1.1). A field is read, or must have a value that our model
computes, or is listed as inert; anything else is an error, since it may change the mathematics.
"""

import contextlib
import contextvars
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from mg_jax.config import build
from mg_jax.errors import UserError, shown
from mg_jax.text.templates import FORMATS

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
class Kind:
    """What a field may hold: in words, and as a test. `null`: nothing is allowed, too."""

    what: str
    fits: Callable[[Any], bool]
    null: bool = False

    def or_null(self) -> "Kind":
        """The same, or null."""
        return Kind(f"{self.what} or null", self.fits, True)

    def check(self, value: Any, where: str) -> Any:
        """`value`. Raises UserError naming `where` when it is of another kind."""
        if (value is None and self.null) or (value is not None and self.fits(value)):
            return value
        raise UserError(f"{where}: expected {self.what}, got {shown(repr(value))}")


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


SIZE = Kind("a whole number above 0", lambda x: _whole(x) and 0 < x < 1 << 31)
COUNT = Kind("a whole number, 0 or more", lambda x: _whole(x) and 0 <= x < 1 << 31)
LAYER = Kind("a whole number, negative from the end", lambda x: type(x) is int and abs(x) < 1 << 31)
NUMBER = Kind("a number", lambda x: (_whole(x) or isinstance(x, float)) and abs(x) < LARGEST)
SWITCH = Kind("true or false", lambda x: isinstance(x, bool))
TEXT = Kind("a text", lambda x: isinstance(x, str))
GROUP = Kind("an object of fields", lambda x: isinstance(x, Mapping))
SIZES = Kind(
    "a list of whole numbers above 0",
    lambda x: isinstance(x, list | tuple) and len(x) > 0 and all(map(SIZE.fits, x)),
)
TEMPLATE = Kind(
    f"a chat template ({', '.join(FORMATS)})", lambda x: isinstance(x, str) and x in FORMATS
)
LARGEST = 1e30  # of a number: an infinity or NaN is none
# The kind of a field whose section states none, by its default
KINDS: dict[type, Kind] = {int: SIZE, float: NUMBER, bool: SWITCH, str: TEXT, dict: GROUP}


@dataclasses.dataclass(frozen=True)
class Section:
    """One config class: `read` {theirs: (ours, default)} or, where the default does not tell what
    a field may hold, (ours, default, kind); `fixed` {theirs: (default, allowed...)}; `inert` names
    besides COMMON_INERT; `elsewhere` {theirs: kind} what tells of other things than the model, such
    as the text around a conversation."""

    name: str
    read: Mapping[str, tuple]
    fixed: Mapping[str, tuple[Any, ...]]
    inert: frozenset[str] = frozenset()
    elsewhere: Mapping[str, Kind] = dataclasses.field(default_factory=dict)


_inert: contextvars.ContextVar[list[str] | None] = contextvars.ContextVar("inert", default=None)


@contextlib.contextmanager
def noting_inert() -> Iterator[list[str]]:
    """A list, filled with the fields without effect that are read inside."""
    found: list[str] = []
    token = _inert.set(found)
    try:
        yield found
    finally:
        _inert.reset(token)


def read_section(raw: Mapping[str, Any], section: Section, where: str) -> dict[str, Any]:
    """The fields of one config class under our names, defaults filled in.

    Raises UserError naming a field that is unknown, of another kind, or has a value our model does
    not compute.
    """
    for name, value in raw.items():
        if name in section.fixed:
            default, *others = section.fixed[name]
            allowed = others or [default]
            if value not in allowed:
                raise UserError(
                    f"{where}.{name}: {shown(repr(value))} is not supported, only {allowed[0]!r}"
                )
        elif name in section.read:
            _, default, *kind = section.read[name]
            (kind[0] if kind else KINDS[type(default)]).check(value, f"{where}.{name}")
        elif name in section.elsewhere:
            section.elsewhere[name].check(value, f"{where}.{name}")
        elif name not in section.inert | COMMON_INERT:
            raise UserError(
                f"{where}.{shown(name)}: unknown field of {section.name}; it may change the model, "
                "so it is not ignored (list it in conversion/hf_config once it is known to be "
                "inert)"
            )
    for name, (default, *others) in section.fixed.items():
        if name not in raw and others and default not in others:
            raise UserError(
                f"{where}.{name}: missing, which means {default!r}; only {others[0]!r} is supported"
            )
    noted = _inert.get()
    if noted is not None:
        noted += [f"{where}.{name}" for name in inert_fields(raw, section)]
    return {ours: raw.get(name, default) for name, (ours, default, *_) in section.read.items()}


def check_model(
    cls: type[Any], values: Mapping[str, Any], check: Callable[[Any], None], where: str
) -> None:
    """Raises UserError, naming the file, for values of which the system's `check` lets no model be
    built: told before anything is converted."""
    built: Any = build(cls, values, where)
    try:
        check(built)
    except UserError as e:  # which names our keys
        raise UserError(f"{where}: {e}") from None


def write_section(values: Mapping[str, Any], section: Section) -> dict[str, Any]:
    """The fields of one config class from our values: the way back of `read_section`.

    Every field that is read is written, and the fixed ones whose default we do not compute.
    """
    fixed = {name: others[0] for name, (_, *others) in section.fixed.items() if others}
    return {theirs: values[ours] for theirs, (ours, *_) in section.read.items()} | fixed


def inert_fields(raw: Mapping[str, Any], section: Section) -> list[str]:
    """The fields of `raw` that are known and have no effect on the mathematics, in its order."""
    known = section.inert | COMMON_INERT
    return [name for name in raw if name in known and name not in section.read]
