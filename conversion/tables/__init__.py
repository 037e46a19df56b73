"""One module per architecture: `table(cfg)` gives its rules bound to the sizes of a config."""
