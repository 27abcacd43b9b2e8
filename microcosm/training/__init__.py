"""Training of the denoiser, its text encoder and its autoencoder, and the export of their weights."""
