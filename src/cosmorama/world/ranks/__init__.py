"""One request on several devices: the two halves of guidance (CFG parallel), or the tokens (sequence parallel)."""
