"""Data: sources (readers), procedural scenes, augmentation, batches. Never imports models."""
