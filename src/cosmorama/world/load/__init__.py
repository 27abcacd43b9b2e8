"""Checkpoints: where they come from, whether they fit, and how their parts become modules."""
