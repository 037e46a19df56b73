"""Launchers: one file a kind of cluster, their parameters in settings.env. See docs/pods.md."""
