"""Command lines: python -m launch.NAME --help."""
