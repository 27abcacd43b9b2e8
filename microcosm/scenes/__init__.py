"""The two simulated worlds: what is in them, how they are worded, and the data rendered from them."""
