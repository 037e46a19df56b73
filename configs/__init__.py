"""Configs: one file per system, whose `get_config(arg)` gives a locked ConfigDict.

`arg` is what follows the colon on the command line: "stage=detection,size=tiny".
"""
