"""PyTorch checkpoints to our parameter trees and back, by declarative tables.

    import conversion
    conversion.convert("FOLDER", "RELEASE", dtype="bf16", check=True)
    conversion.convert("RELEASE", "FOLDER")

`prepare` plans without reading a tensor, `load` and `read` convert in memory. The command line is
`python -m launch.convert`.
"""

from conversion.hub import is_name as is_hub_name
from conversion.located import locate
from conversion.opening import (
    Converted,
    convert,
    load,
    prepare,
    read,
    read_config,
    table_of,
)

__all__ = [
    "convert",
    "prepare",
    "locate",
    "is_hub_name",
    "read",
    "load",
    "Converted",
    "read_config",
    "table_of",
]
