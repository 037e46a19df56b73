"""The flag --config of all programs that take one: defined once, so that they can be imported
together."""

from ml_collections import config_flags

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "config file and its argument, as configs/groma.py:stage=detection,size=tiny"
)
