"""The gallery in the README and docs: a fixed list of prompts through the product itself, uncurated.

`python -m microcosm.evaluation.gallery docs/images` writes `text2world.png`, `corridor.png`, `image2world.png` and
`video2world.png`: one row per clip at the API's defaults, six moments of its five seconds from left to right.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from PIL import Image

import cosmorama
from cosmorama.local import Generation
from cosmorama.progress import Progress
from microcosm.evaluation.sheets import grid, save
from microcosm.scenes.simulate import Frames

PROMPTS = (
    "a red ball rolls to the right on a green floor",
    "a yellow cube falls on a blue floor",
    "a purple cylinder slides to the left on a wooden floor",
    "a green ball rolls to the right and hits an orange cube on a grey floor",
    "a blue ball falls at night on a grey floor",
    "an orange cube stands still next to a blue cylinder in a white studio",
)
CORRIDOR_PROMPTS = (
    "a robot drives slowly down a corridor of blue shelves with orange boxes",
    "the camera drives quickly through a warehouse aisle of red shelves with yellow boxes towards a green ball",
    "a forklift moves through a dark hallway of purple racks with green crates",
    "first person view of a robot moving past yellow shelves with blue boxes on a wooden floor, a red cube ahead",
)
MOMENTS = (0, 8, 16, 32, 64, 120)
WIDTH = 200
SEED = 1


def row(clip: Generation) -> Frames:
    """Six moments of a clip side by side, uint8 `[h, 6 * WIDTH, 3]`."""
    height = round(WIDTH * clip.request.height / clip.request.width)
    chosen = [frame for index, frame in enumerate(clip.frames) if index in MOMENTS]
    small = [np.asarray(Image.fromarray(frame).resize((WIDTH, height), Image.Resampling.LANCZOS)) for frame in chosen]
    return np.concatenate(small, axis=1)


def main(
    out: Annotated[Path, typer.Argument(help="Folder for the sheets.")],
    start: Annotated[Path, typer.Option(help="Picture to start from.")] = Path("docs/images/start.png"),
) -> None:
    """Make the four sheets."""
    out.mkdir(parents=True, exist_ok=True)
    model = cosmorama.load("microcosm")

    def show(progress: Progress) -> None:
        typer.echo(f"\r{progress.stage} {progress.step}/{progress.total}   ", nl=False, err=True)

    clips = [model.generate(prompt, seed=SEED, on_progress=show) for prompt in PROMPTS]
    save(grid(list(map(row, clips)), 1), out / "text2world.png")
    drives = [model.generate(prompt, seed=SEED, on_progress=show) for prompt in CORRIDOR_PROMPTS]
    save(grid(list(map(row, drives)), 1), out / "corridor.png")
    moving = "an orange ball rolls to the right on a green floor at night"
    from_picture = [
        model.generate(moving, image=start, seed=seed, prompt_upsampling=True, on_progress=show) for seed in (1, 2)
    ]
    save(grid(list(map(row, from_picture)), 1), out / "image2world.png")
    source = model.generate(PROMPTS[0], seed=SEED, frames=33, on_progress=show).save(out / "source.mp4", quality=9)
    continued = [model.generate(PROMPTS[0], video=source, seed=seed, on_progress=show) for seed in (1, 2)]
    source.unlink()
    save(grid(list(map(row, continued)), 1), out / "video2world.png")


if __name__ == "__main__":
    typer.run(main)
