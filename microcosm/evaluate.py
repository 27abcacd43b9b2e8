"""Measures a weights folder on held-out scenes and wordings: `python -m microcosm.evaluate OUT [--json]`.

Everything is drawn through the product's own engine at the API's defaults. Writes `figures.json` and uncurated sheets
with the prompts on them to OUT. Needs the probe (`python -m microcosm.evaluation.probe`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from microcosm.evaluation import adherence, continuation, crispness, driving, fidelity, steering, strangers
from microcosm.evaluation.figures import Figure, table
from microcosm.evaluation.heldout import HeldOut, held_out, held_out_drives
from microcosm.evaluation.probe import CORRIDOR_FILE, FILE, CorridorProbe, Probe, load_probe
from microcosm.evaluation.sheets import grid, save, strip, titled
from microcosm.evaluation.strangers import Stranger
from microcosm.scenes.simulate import Frames
from microcosm.training.autoencoder import RUNS
from microcosm.training.loop import WEIGHTS

PARTS = (
    "adherence",
    "strangers",
    "crispness",
    "continuation",
    "persistence",
    "corridor",
    "corridor-continuation",
    "drive",
    "decoder",
    "cost",
)
SHEET = 24  # held-out prompts on the contact sheets, the first ones


def main(
    out: Annotated[Path, typer.Argument(help="Folder for figures.json and the sheets.")],
    weights: Annotated[Path, typer.Option()] = WEIGHTS,
    runs: Annotated[Path, typer.Option(help="Where the probe is.")] = RUNS,
    only: Annotated[list[str] | None, typer.Option(help=f"Parts to run: {', '.join(PARTS)}; all by default.")] = None,
    stills: Annotated[int, typer.Option(help="Held-out prompts drawn as stills.")] = 48,
    clips: Annotated[int, typer.Option(help="Held-out prompts drawn as clips of 33 frames.")] = 24,
    close_looks: Annotated[int, typer.Option(help="Held-out stills that are compared with rendered ones.")] = 96,
    continued: Annotated[int, typer.Option(help="Held-out clips that are continued, per mode.")] = 24,
    long: Annotated[int, typer.Option(help="Held-out prompts drawn as clips of 121 frames.")] = 8,
    closeups: Annotated[int, typer.Option(help="Held-out frames rendered at the output size.")] = 24,
    processes: Annotated[int, typer.Option(help="Single-threaded processes that draw clips.")] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON instead of a table.")] = False,
) -> None:
    """Evaluate a weights folder; without --only and with the counts left alone it takes about half an hour."""
    parts = tuple(only or PARTS)
    if unknown := set(parts) - set(PARTS):
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}: parts are {', '.join(PARTS)}", param_hint="--only")
    out.mkdir(parents=True, exist_ok=True)
    facts: dict[str, Any] = {"training": json.loads((weights / "world.json").read_text())["training"]}
    figures: list[Figure] = []
    if "adherence" in parts:
        probe, facts["probe"] = load_probe(Probe(), runs / FILE)
        held = adherence.still_prompts(stills), adherence.clip_prompts(clips)
        some, pictures, drawn = adherence.measure(weights, probe, *held, processes)
        figures += some
        save(_stills([picture[0] for picture in pictures[:SHEET]], held[0]), out / "text2world_stills.png")
        save(_strips(drawn, held[1]), out / "text2world_33_frames.png")
    if "strangers" in parts:
        probe, facts["probe"] = load_probe(Probe(), runs / FILE)
        wanted = strangers.strangers()
        some, frames = strangers.measure(weights, probe, wanted, processes)
        figures += some
        save(_stills(frames, wanted, 5), out / "strangers.png")
    if "crispness" in parts:
        close = held_out(close_looks, skip=200)
        some, stills_drawn = crispness.measure(weights, close, processes)
        figures += some
        save(_stills(stills_drawn[:SHEET], close), out / "crispness.png")
    if "continuation" in parts:
        shots = held_out(continued)
        for mode in continuation.GIVEN:
            some, pairs = continuation.measure(weights, mode, shots, processes)
            figures += some
            save(_pairs(pairs, shots), out / f"{mode}.png")
    if "persistence" in parts:
        shots = held_out(long, skip=50)
        some, pairs = continuation.measure_persistence(weights, shots, processes)
        figures += some
        save(_strips([drawn for _, drawn in pairs], shots), out / "text2world_121_frames.png")
    if "corridor" in parts:
        corridor_probe, facts["corridor_probe"] = load_probe(CorridorProbe(), runs / CORRIDOR_FILE)
        drives = held_out_drives(clips)
        some, drawn = driving.measure(weights, corridor_probe, drives, processes)
        figures += some
        save(_strips(drawn, drives), out / "corridor_33_frames.png")
        drives = held_out_drives(long, skip=50)
        save(_strips(driving.draw_long(weights, drives, processes), drives), out / "corridor_121_frames.png")
    if "corridor-continuation" in parts:
        drives = held_out_drives(continued)
        for mode in continuation.GIVEN:
            some, pairs = continuation.measure(weights, mode, drives, processes, "corridor: ")
            figures += some
            save(_pairs(pairs, drives), out / f"corridor_{mode}.png")
    if "drive" in parts and (weights / "drive").exists():
        corridor_probe, _ = load_probe(CorridorProbe(), runs / CORRIDOR_FILE)
        some, pairs, ends = steering.measure(weights, corridor_probe, clips // 2, long)
        figures += some
        save(grid([strip(clip) for pair in pairs for clip in pair], 1), out / "drive.png")
        save(grid(ends, 4), out / "drive_after_a_minute.png")
    if "decoder" in parts:
        figures += fidelity.measure_decoder(weights, fidelity.held_out_closeups(closeups))
    if "cost" in parts:
        figures += fidelity.measure_cost(weights)
    report = json.dumps({**facts, "figures": [figure.as_json() for figure in figures]}, indent=2)
    (out / "figures.json").write_text(report + "\n")
    if as_json:
        print(report)
    else:
        Console().print(table(figures), facts)


def _stills(pictures: Iterable[Frames], prompted: Iterable[HeldOut[Any] | Stranger], columns: int = 4) -> Frames:
    return grid([titled(picture, one.prompt) for picture, one in zip(pictures, prompted, strict=False)], columns)


def _strips(clips: Sequence[Frames], held: Sequence[HeldOut[Any]]) -> Frames:
    rows = [titled(strip(clip), one.prompt) for clip, one in zip(clips[:SHEET], held, strict=False)]
    return grid(rows, 1)


def _pairs(pairs: Sequence[tuple[Frames, Frames]], held: Sequence[HeldOut[Any]]) -> Frames:
    """Real clips, each above what was made of its beginning."""
    rows = []
    for (real, drawn), one in zip(pairs, held, strict=True):
        rows += [titled(strip(real), f"real: {one.prompt}"), titled(strip(drawn), "drawn")]
    return grid(rows, 1)


if __name__ == "__main__":
    typer.run(main)
