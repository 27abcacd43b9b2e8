"""How sharp objects are, and whether frames can be told from rendered ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cosmorama.world.microcosm import unet
from microcosm.evaluation.figures import Figure
from microcosm.evaluation.heldout import HeldOut
from microcosm.evaluation.probe import LEAST_SHARE, color_classes, to_input
from microcosm.evaluation.rollouts import Job, draw_all
from microcosm.scenes.simulate import Frames

_STEPS, _BATCH, _RATE, _CROP = 240, 24, 3e-3, 64


def measure(weights: Path, held: Sequence[HeldOut[Any]], processes: int) -> tuple[list[Figure], Frames]:
    """The figures, and the stills [N, h, w, 3] they were measured on."""
    jobs = [Job(one.prompt, 1, one.shot.seed) for one in held]
    drawn = np.stack([clip[0] for clip in draw_all(weights, jobs, "stills to look at closely", processes)])
    real = np.stack([one.frame(0) for one in held])
    return [sharpness_figure(drawn, real), guess_figure(drawn, real)], drawn


def sharpness_figure(drawn: Frames, real: Frames, shown: str = "stills") -> Figure:
    """Gradient energy along the outlines of objects, of that in real frames; of what is said beside it."""
    ours, theirs = (100 * float(np.mean([outline_energy(frame) for frame in frames])) for frames in (drawn, real))
    bounds = {"real frames": theirs, "drawn": ours, "enlarged twice": 100 * _mean_energy(_softened(real))}
    share = 100 * ours / theirs
    name = f"edges of objects in {shown}, of real ones"
    return Figure(name, share, 75, 90, "%", bounds=bounds, note=f"{len(drawn)} frames")


def _mean_energy(frames: Frames) -> float:
    return float(np.mean([outline_energy(frame) for frame in frames]))


def _softened(frames: Frames) -> Frames:
    """Frames at half the size, enlarged again: what soft is."""
    small = F.avg_pool2d(to_input(frames), 2)
    large = F.interpolate(small, scale_factor=2.0, mode="bicubic", align_corners=False)
    softened: Frames = (large * 127.5 + 128).clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    return softened


def outline_energy(frame: Frames) -> float:
    """Squared gradient along the outlines of the objects in a frame [h, w, 3], of the squared contrast across them.

    The mean over objects; 0 without any. A step over one pixel gives about a third.
    """
    pixels = torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1).float() / 255
    energy = torch.zeros(pixels.shape[1:])
    energy[:, :-1] += (pixels[:, :, 1:] - pixels[:, :, :-1]).square().sum(0)
    energy[:-1] += (pixels[:, 1:] - pixels[:, :-1]).square().sum(0)
    classes = torch.from_numpy(color_classes(frame))
    found = []
    for color in classes[classes >= 0].unique().tolist():
        inside = classes == color
        if inside.float().mean() < LEAST_SHARE:
            continue
        outline = _grown(inside, 1) & ~_shrunk(inside, 1)
        core, around = _shrunk(inside, 2), _grown(inside, 4) & ~_grown(inside, 2)
        if core.any() and around.any():
            contrast = (pixels[:, core].mean(1) - pixels[:, around].mean(1)).square().sum()
            found.append(float(energy[outline].mean() / contrast.clamp_min(1e-3)))
    return float(np.mean(found)) if found else 0.0


def _grown(mask: Tensor, pixels: int) -> Tensor:
    return F.max_pool2d(mask.float()[None], 2 * pixels + 1, 1, pixels)[0] > 0


def _shrunk(mask: Tensor, pixels: int) -> Tensor:
    return ~_grown(~mask, pixels)


def guess_figure(drawn: Frames, real: Frames, steps: int = _STEPS) -> Figure:
    """How often a small network, trained on half of the frames, tells drawn from real ones in the other half.

    Half of the scenes are in either half, each as drawn and as rendered; both halves are guessed in turn.
    """
    frames = to_input(np.concatenate([drawn, real]))
    answers = torch.arange(len(frames)) < len(drawn)
    first = torch.arange(len(frames)) % len(drawn) % 2 == 0
    right = []
    for learned in (first, ~first):
        guesser = _trained(frames[learned], answers[learned].float(), steps)
        with torch.no_grad():
            right.append((guesser(frames[~learned]).squeeze(1) > 0) == answers[~learned])
    share = 100 * float(torch.cat(right).float().mean())
    note = f"{len(drawn)} stills, as many real ones"
    return Figure("rendered or generated, guessed right", share, 80, 65, "%", at_most=True, note=note)


class Detail(nn.Module):
    """Frames [B, 3, h, w] to themselves and, larger, what a blur takes from them: [B, 6, h, w]."""

    def forward(self, frames: Tensor) -> Tensor:
        """See the class."""
        return torch.cat([frames, 8 * (frames - unet.blurred(frames))], dim=1)


def _trained(frames: Tensor, answers: Tensor, steps: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        # What the pixels are beside their surroundings: softness and seams show there, whatever the scene.
        layers: list[nn.Module] = [Detail()]
        for before, after, stride in ((6, 16, 1), (16, 32, 2), (32, 64, 2)):
            layers += [nn.Conv2d(before, after, 3, stride, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
        net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 1))
        optimizer = torch.optim.AdamW(net.parameters(), _RATE, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=steps)
        for _ in range(steps):
            rows = torch.randint(len(frames), (_BATCH,))
            top, left = (int(torch.randint(side - _CROP + 1, ())) for side in frames.shape[2:])
            shown = frames[rows, :, top : top + _CROP, left : left + _CROP]
            shown = torch.where(torch.rand(_BATCH, 1, 1, 1) < 0.5, shown, shown.flip(3))
            optimizer.zero_grad()
            F.binary_cross_entropy_with_logits(net(shown).squeeze(1), answers[rows]).backward()
            optimizer.step()
            schedule.step()
    return net.eval()
