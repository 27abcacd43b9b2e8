"""Durable jobs: every generation is one, and outlives the process that accepted it."""
