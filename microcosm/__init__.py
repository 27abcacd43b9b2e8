"""How Microcosm, the world model that ships with Cosmorama, is made.

One module per stage, run as `python -m microcosm.<stage>`.
"""
