"""Video autoencoders (VAE, tokenizers): frames to latents and back, whole or in tiles."""
