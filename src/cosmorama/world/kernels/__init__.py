"""Layers that a device computes better in another way than diffusers writes them."""
