"""Cosmos3: one omni model for stills, clips, continuations and robot actions."""
