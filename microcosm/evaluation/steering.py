"""Does a drive go where it is steered, and is it still a corridor after a minute? `evaluate --only drive`.

How the camera moves is read off every two frames by a small network: `python -m microcosm.evaluation.steering` trains
it on rendered drives, sharp and soft.
"""

from __future__ import annotations

import json
import time
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional as F

from cosmorama.engine.prepare import PreparedRequest, Preparer
from cosmorama.engine.rollout import Rollout
from cosmorama.request import Action, GenerationRequest
from cosmorama.resolve import resolve
from cosmorama.world.base import World
from cosmorama.world.microcosm.driving import DRIVE, FPS
from cosmorama.world.microcosm.loader import load_microcosm
from microcosm.evaluation.corridor_probe import ANSWERS, CorridorProbe, classes
from microcosm.evaluation.figures import Figure
from microcosm.scenes.dataset import DATA, SPLITS, read_labels, shard_paths
from microcosm.scenes.shots import caption_of
from microcosm.scenes.simulate import Frames, box_average
from microcosm.scenes.steered import Steered, draw_steered
from microcosm.training.autoencoder import RUNS, to_float, to_uint8
from microcosm.training.batches import mapped
from microcosm.training.drive import SCALE

MINUTE = 60 * FPS + 1
_FIRST_SEED = SPLITS["heldout"].first_seed + 100_000
FILE = "egomotion.pt"


def measure(
    weights: Path, probe: CorridorProbe, egomotion: Egomotion, clips: int, long: int
) -> tuple[list[Figure], list[tuple[Frames, Frames]], list[Frames]]:
    """The figures, pairs of real and generated drives, and where the long ones end."""
    world = load_microcosm(weights)
    held = [draw_steered(_FIRST_SEED + number) for number in range(clips)]
    began = time.perf_counter()
    drawn = [drive(world, one, one.frames()[0]) for one in held]
    spent_s = time.perf_counter() - began
    real = [one.frames() for one in held]
    ours, theirs = (np.concatenate([egomotion.motions(clip) for clip in clips]) for clips in (drawn, real))
    wanted = np.concatenate([one.actions for one in held])
    figures = []
    for index, name in enumerate(("speed", "turn")):
        bounds = {"real frames": _correlation(theirs[:, index], wanted[:, index])}
        bounds["the next drive's actions"] = _correlation(
            ours[:, index], np.roll(wanted[:, index], len(held[0].actions))
        )
        value = _correlation(ours[:, index], wanted[:, index])
        note = f"{len(held)} drives of {len(held[0].poses)} frames"
        figures.append(Figure(f"drive: {name} against the actions", value, 0.85, 0.95, "", bounds=bounds, note=note))
    minutes = [draw_steered(_FIRST_SEED + 500 + number, MINUTE, calm=True) for number in range(long)]
    ends = np.stack([drive(world, one, None, last=True)[0] for one in minutes])
    right = torch.tensor([classes(one.scene) for one in minutes])
    seen, real_seen = (
        100 * (probe.look(frames) == right).float().mean(0)
        for frames in (ends, np.stack([one.frames(slice(-1, None))[0] for one in minutes]))
    )
    for index, name in enumerate(ANSWERS):
        if name in ("shelves", "boxes", "floor"):
            bounds = {"real frames": float(real_seen[index])}
            figure = f"drive: {name} after a minute"
            figures.append(Figure(figure, float(seen[index]), 90, 98, "%", bounds=bounds, note=f"{long} from text"))
    video_s = sum(len(one.actions) for one in held) / FPS
    cost = Figure("drive: seconds per second, 640x352", spent_s / video_s, 1.0, 0.5, "s", at_most=True)
    return [*figures, cost], list(zip(real, drawn, strict=True)), list(ends)


def drive(world: World, steered: Steered, given: Frames | None, *, last: bool = False) -> Frames:
    """A drive as the product makes it, uint8 [T, 88, 160, 3], or its last frame alone, [1, 88, 160, 3].

    It begins with a given frame [88, 160, 3], or with what its caption shows.
    """
    rows = tuple(tuple(map(float, row)) for row in steered.actions)
    action = Action(DRIVE.id, rows, steps=len(rows))
    image = None if given is None else b""
    request = GenerationRequest(
        prompt=caption_of(steered.scene), image=image, seed=steered.seed, action=action, width=640, height=352
    )
    resolved = resolve(request, world.capabilities)
    if given is None:
        prepared = Preparer()(resolved, world.capabilities)
    else:
        prepared = PreparedRequest(resolved, resolved.prompt or "", given[None].repeat(4, axis=1).repeat(4, axis=2))
    rollout = Rollout(world, prepared)
    while not rollout.done:
        rollout.advance()
    if last:
        return np.ascontiguousarray(to_uint8(rollout.latents[:, :, -1:])[0])
    return np.stack([box_average(frame, 4) for frames in rollout.decode() for frame in frames])


class Egomotion(nn.Module):
    """Two frames, one after the other, at half their size, to how the camera moved, in parts of `SCALE`."""

    def __init__(self) -> None:
        super().__init__()
        widths, layers = (6, 32, 48, 64, 64), list[nn.Module]()
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 5, 2 if before < 64 else 1, padding=2), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.AdaptiveAvgPool2d((2, 4)), nn.Flatten(), nn.Linear(8 * widths[-1], 3))

    def forward(self, pairs: Tensor) -> Tensor:
        """Pairs [B, 6, 44, 80] in [-1, 1] to motions [B, 3]."""
        return cast(Tensor, self.layers(pairs))

    @torch.inference_mode()
    def motions(self, clip: Frames) -> NDArray[np.float64]:
        """Of every two frames of a clip [T, h, w, 3]: forward speed, m/s, turn, rad/s, and speed to the left, m/s."""
        moved: NDArray[np.float64] = self(_pairs(to_float(clip[None])[0].transpose(0, 1))).double().numpy() * SCALE
        return moved


def _pairs(frames: Tensor) -> Tensor:
    """Frames [T, 3, h, w] to pairs of half the size [T - 1, 6, h / 2, w / 2]."""
    small = F.avg_pool2d(frames, 2)
    return torch.cat([small[:-1], small[1:]], dim=1)


def _moved(drive: Steered) -> NDArray[np.float32]:
    """How the camera of a drive moved between frames [T - 1, 3], in parts of `SCALE`; less than its actions say where
    something was in the way.
    """
    poses = np.array(drive.poses)
    (x, y, turn), middle = np.diff(poses, axis=0).T, (poses[1:, 2] + poses[:-1, 2]) / 2
    forward, left = y * np.cos(middle) - x * np.sin(middle), -x * np.cos(middle) - y * np.sin(middle)
    moved: NDArray[np.float32] = (np.stack([forward, turn, left], axis=1) * FPS / SCALE).astype(np.float32)
    return moved


def main(
    data: Annotated[Path, typer.Option()] = DATA,
    runs: Annotated[Path, typer.Option()] = RUNS,
    steps: int = 1000,
    batch: int = 4,
) -> None:
    """Train on all but the last shard of drives, and measure on that."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rng, probe = np.random.default_rng(0), Egomotion()
    optimizer = torch.optim.Adam(probe.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    found = [(mapped(path).values(), read_labels(path)) for path in shard_paths("drives", data)]
    *shards, unseen = [(next(iter(arrays)), labels) for arrays, labels in found]
    for _ in track(range(steps), "egomotion"):
        pairs, motions = [], []
        for _ in range(batch):
            frames, labels = shards[int(rng.integers(len(shards)))]
            label = labels[int(rng.integers(len(labels)))]
            start = int(rng.integers(frames.shape[1] - 9))
            clip = to_float(frames[label.row, start : start + 9][None])[0].transpose(0, 1)
            if rng.random() < 0.5:
                clip = F.avg_pool2d(clip, 5, 1, padding=2, count_include_pad=False)
            pairs.append(_pairs(clip))
            motions.append(_moved(draw_steered(label.seed, frames.shape[1]))[start : start + 8])
        optimizer.zero_grad()
        F.l1_loss(probe(torch.cat(pairs)), torch.from_numpy(np.concatenate(motions))).backward()
        optimizer.step()
        schedule.step()
    probe.eval()
    read = np.concatenate([probe.motions(unseen[0][label.row]) for label in unseen[1]])
    true = np.concatenate([_moved(draw_steered(label.seed, unseen[0].shape[1])) * SCALE for label in unseen[1]])
    names = ("speed", "turn", "aside")
    figures = {name: round(_correlation(read[:, index], true[:, index]), 3) for index, name in enumerate(names)}
    torch.save({"probe": probe.state_dict(), "accuracy": figures}, runs / FILE)
    print(json.dumps(figures))


def _correlation(ours: NDArray[Any], wanted: NDArray[Any]) -> float:
    return float(np.corrcoef(ours, wanted)[0, 1])


if __name__ == "__main__":
    typer.run(main)
