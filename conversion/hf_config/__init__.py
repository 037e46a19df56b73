"""Upstream's config.json <-> ours, strictly; see sections.py for the rule."""

from conversion.hf_config.convnext import read_convnext, write_convnext
from conversion.hf_config.detection import read_deformable_detr
from conversion.hf_config.ferret import (
    CLASSES,
    UI,
    V1,
    check_language,
    complete,
    is_ferret,
    read_ferret,
    write_ferret,
)
from conversion.hf_config.groma import read_groma, read_perceiver, read_proposer
from conversion.hf_config.language import (
    TOKEN_IDS,
    read_llama,
    read_phi3,
    read_qwen2,
    write_llama,
    write_phi3,
    write_qwen2,
)
from conversion.hf_config.mg_llava import is_mg_llava, language_of, read_mg_llava, write_mg_llava
from conversion.hf_config.sections import (
    COMMON_INERT,
    Section,
    inert_fields,
    noting_inert,
    read_section,
    write_section,
)
from conversion.hf_config.tiny_grounding_gpt import (
    read_tiny_grounding_gpt,
    write_tiny_grounding_gpt,
)
from conversion.hf_config.vision import (
    read_clip,
    read_dinov2,
    read_owlv2,
    write_clip,
    write_dinov2,
    write_owlv2,
)

__all__ = [
    "COMMON_INERT",
    "Section",
    "inert_fields",
    "noting_inert",
    "TOKEN_IDS",
    "read_section",
    "write_section",
    "read_groma",
    "read_perceiver",
    "CLASSES",
    "UI",
    "V1",
    "check_language",
    "complete",
    "is_ferret",
    "read_ferret",
    "write_ferret",
    "is_mg_llava",
    "language_of",
    "read_mg_llava",
    "write_mg_llava",
    "read_tiny_grounding_gpt",
    "write_tiny_grounding_gpt",
    "read_proposer",
    "read_llama",
    "read_qwen2",
    "read_phi3",
    "write_llama",
    "write_qwen2",
    "write_phi3",
    "read_clip",
    "read_dinov2",
    "read_owlv2",
    "read_convnext",
    "read_deformable_detr",
    "write_clip",
    "write_dinov2",
    "write_owlv2",
    "write_convnext",
]
