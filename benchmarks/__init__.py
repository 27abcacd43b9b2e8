"""Benchmarks: each measures what the project claims and prints JSON."""
