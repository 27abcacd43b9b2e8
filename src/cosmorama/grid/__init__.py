"""Two or three knobs at several values each: the requests of every combination, and all their clips on one sheet."""
