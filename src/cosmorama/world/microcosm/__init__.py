"""Microcosm, the embedded world model: its autoencoder, its text encoder and its weights."""
