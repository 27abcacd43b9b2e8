"""Drives through Microcosm in a terminal: `python -m microcosm.play`, which is `cosmorama play`."""

import typer

from cosmorama.cli.play import play

if __name__ == "__main__":
    typer.run(play)
