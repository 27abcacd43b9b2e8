"""Trains what draws stills again: `python -m microcosm.training.still_refiner --minutes 60`; runs are resumed.

It is asked of rendered stills, bent and blurred as sampled ones are, what their layout is, and to draw them as they
were, given the true layout. Outlines are bent in the picture and not in the layout, so it learns to follow that. Of
rendered clips it draws later frames, given the first one. Of stills that the denoiser made for a prompt it is asked
which objects they show: those of the prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor
from torch.nn import functional as F

from cosmorama.text.language import COLORS
from cosmorama.world.microcosm import unet
from cosmorama.world.microcosm.autoencoder import CELL, FRAMES_PER_LATENT, VideoAutoencoder
from cosmorama.world.microcosm.layout import KINDS, OBJECT, SLOTS, VIEW, Layout, near, nearest_first, plan
from cosmorama.world.microcosm.loader import load_component
from cosmorama.world.microcosm.still_refiner import StillRefiner
from microcosm.evaluation.probe import as_decoded, classes_of
from microcosm.training.drive import apart
from microcosm.training.loop import PartOptions, PartTrainer, command
from microcosm.training.made import MADE
from microcosm.training.stills import Batch, Sampler

_WHOLE = 0.25  # share of sharp stills
_READ_ONLY = 0.5  # share of batches of stills that are not drawn, which takes most of the time
_BENT = (((3, 5), 3.0), ((8, 14), 2.0), ((16, 28), 1.2))  # cells in which outlines are bent, and by how many pixels
_NOISE = 0.15  # on latents, whose own deviation is 1 over all channels
_WEIGHTS = torch.tensor([3.0, 1.0, 2.0, 2.0, 0.5])  # of an object's numbers
_TWICE = 0.45  # share of stills that show an object twice, or elsewhere
_OUTLINES = 0.02  # weight of outlines by themselves: what shows them where they are, early on
_PAINTING, _OBJECTS = 4.0, 2.0  # weight of what is drawn, and more of that near objects


@dataclass(frozen=True, kw_only=True)
class Options(PartOptions):
    """One run."""

    made: Annotated[Path, typer.Option(help="What the denoiser made.")] = MADE
    name: Annotated[str, typer.Option(help="Name of the checkpoint in RUNS.")] = "still_refiner"
    batch: int = 16


class Training(PartTrainer[Batch, Options]):
    """Trains on rendered stills."""

    unit, kind = "stills", StillRefiner

    def build(self, config: dict[str, Any] | None, exported: Path | None) -> None:
        """See `Trainer`."""
        super().build(config, exported)
        self.vae = load_component(VideoAutoencoder, self.options.weights / "vae")

    def draws(self, seed: int) -> Iterator[Batch]:
        """See `Trainer`."""
        return iter(Sampler(self.options.data, self.options.made, self.options.batch, seed))

    def loss_of(self, batch: Batch) -> tuple[Tensor, dict[str, float], float]:
        """See `Trainer`."""
        if batch.made:
            return self._named(batch)
        if batch.before is not None and batch.first is not None:
            return self._later(batch, batch.before, batch.first)
        known, shown = batch.known, plan_of(batch)
        with torch.no_grad():
            frames, moved = disarranged(batch.frames, shown, known)
            soft, text = softened(self.vae, frames), self.text_encoder(batch.prompts)[0][:, 0]
        with torch.autocast("cpu", torch.bfloat16):
            said = self.net.read(soft, text)
        there = known & ~moved
        values = said_wrong(said[there, :-1], Layout(batch.layout.objects[there], batch.layout.view[there]))
        values["objects"] = F.binary_cross_entropy_with_logits(said[:, -1], known.float())
        if torch.rand(()) > _READ_ONLY:
            layout = Layout(batch.layout.objects[known], batch.layout.view[known])
            with torch.autocast("cpu", torch.bfloat16):
                drawn = self.net.draw(soft[known], layout, text[known])
            values["drawn"] = drawn_wrong(drawn, batch.frames[known], shown[known])
            values["outlines"] = _OUTLINES * outlines_wrong(self.net, layout, batch.frames[known])
        loss = torch.stack(list(values.values())).sum()
        return loss, {name: float(value.detach()) for name, value in values.items()}, len(soft)

    def _later(self, batch: Batch, before: Tensor, first: Layout) -> tuple[Tensor, dict[str, float], float]:
        with torch.no_grad():
            text = self.text_encoder(batch.prompts)[0][:, 0]
        with torch.autocast("cpu", torch.bfloat16):
            drawn = self.net.draw(before, batch.layout, text)
        wrong = drawn_wrong(drawn, batch.frames, torch.maximum(plan_of(batch), plan(first, *before.shape[2:])))
        outlines = _OUTLINES * outlines_wrong(self.net, batch.layout, batch.frames)
        return wrong + outlines, {"later": float(wrong.detach()), "outlines": float(outlines.detach())}, len(before)

    def _named(self, batch: Batch) -> tuple[Tensor, dict[str, float], float]:
        with torch.no_grad():
            text = self.text_encoder(batch.prompts)[0][:, 0]
        with torch.autocast("cpu", torch.bfloat16):
            said = self.net.read(batch.frames, text)
        values = {f"made: {name}": value for name, value in named_wrong(said[:, :-1], batch.layout).items()}
        values["made: objects"] = F.binary_cross_entropy_with_logits(said[:, -1], torch.ones(len(said)))
        loss = torch.stack(list(values.values())).sum()
        return loss, {name: float(value.detach()) for name, value in values.items()}, len(said)


def drawn_wrong(drawn: Tensor, clean: Tensor, shown: Tensor) -> Tensor:
    """How far drawn pictures [B, 3, h, w] are from the true ones, more so where a plan shows objects."""
    weights = 1 + _OBJECTS * within(shown, 1.8).amax(1, keepdim=True)
    return _PAINTING * apart(weights * drawn, weights * clean).mean()


def outlines_wrong(net: StillRefiner, layout: Layout, clean: Tensor) -> Tensor:
    """How far outlines are from those of the colors in true pictures [B, 3, h, w]."""
    layout = nearest_first(layout)
    inside, seen = net.outlines(layout, *clean.shape[2:])
    colors = layout.objects[..., -len(COLORS) :].argmax(-1)[..., None, None]
    shown = classes_of(clean.movedim(1, -1) / 2 + 0.5, 0.2)[:, None] == colors
    visible = inside[:, ::2].clone()
    visible[:, 1] &= ~shown[:, 0]
    return F.binary_cross_entropy_with_logits(seen[:, ::2, ..., 0][visible], shown[visible].float())


def said_wrong(said: Tensor, layout: Layout) -> dict[str, Tensor]:
    """How far what is said of layouts is from them: whether there are objects, their numbers, and the view's."""
    right = layout.told()
    (ours, view), (theirs, real) = (
        (part[:, : -len(VIEW)].unflatten(1, (SLOTS, -1)), part[:, -len(VIEW) :]) for part in (said, right)
    )
    there, numbers = theirs[..., :1], slice(1, 1 + len(OBJECT))
    places = ((ours - theirs)[..., numbers].abs() * _WEIGHTS * there).sum((1, 2)).mean() / 3
    return {"places": places, "view": 0.5 * (view - real).abs().mean(), **named_wrong(said, layout)}


def named_wrong(said: Tensor, layout: Layout) -> dict[str, Tensor]:
    """How far what is said of layouts is from the objects that there are, their shapes and colors."""
    ours, theirs = (part[:, : -len(VIEW)].unflatten(1, (SLOTS, -1)) for part in (said, layout.told()))
    there = theirs[..., 0]
    values = {"there": F.binary_cross_entropy_with_logits(ours[..., 0], there)}
    kinds = (part[there > 0][:, 1 + len(OBJECT) :].split(list(map(len, KINDS)), dim=1) for part in (ours, theirs))
    for name, ours, theirs in zip(("shapes", "colors"), *kinds, strict=True):
        values[name] = F.cross_entropy(ours, theirs)
    return values


def plan_of(batch: Batch) -> Tensor:
    """What is where in each still, [B, `PLAN_CHANNELS`, h, w]."""
    return plan(batch.layout, *batch.frames.shape[2:])


def within(shown: Tensor, sizes: float) -> Tensor:
    """See `near`, 0 or 1."""
    return near(shown, sizes).float()


def disarranged(frames: Tensor, shown: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Stills [B, 3, h, w] of which some show an object twice, as sampled ones do, the true one being the one to the
    left; in some the true one is gone, bool [B]: of those only what is drawn can be learned.
    """
    frames, (height, width) = frames.clone(), frames.shape[2:]
    moved = torch.zeros(len(frames), dtype=torch.bool)
    masks, around = within(shown, 1.05), within(shown, 1.4)
    for row in ((torch.rand(len(frames)) < _TWICE) & known).nonzero()[:, 0].tolist():
        present = int((masks[row].amax((1, 2)) > 0).sum())
        slot = int(torch.randint(max(present, 1), ()))
        mask, others = masks[row, slot], masks[row].sum(0) - masks[row, slot]
        gone = bool(torch.rand(()) < 0.4)
        side = 1 if not gone or torch.rand(()) < 0.5 else -1
        across, down = side * int((0.06 + 0.3 * torch.rand(())) * width), int(torch.randint(-3, 4, ()))
        source = frames[row].clone()
        if gone:
            hidden = around[row, slot]
            plain = (source * (1 - around[row].amax(0))).sum(2, keepdim=True)
            plain = plain / (1 - around[row].amax(0)).sum(1, keepdim=True).clamp(min=1)
            frames[row] = torch.where(hidden > 0, plain.expand(-1, height, width), frames[row])
            moved[row] = True
        there = mask.roll((down, across), (0, 1))
        edge = slice(None, across) if across > 0 else slice(across, None)
        there[:, edge] = 0
        strength = there * (1 - others) * (0.4 + 0.6 * torch.rand(())) * (torch.rand(()) < 0.9)
        frames[row] = torch.lerp(frames[row], source.roll((down, across), (1, 2)), strength)
    return frames, moved


def softened(vae: VideoAutoencoder, frames: Tensor) -> Tensor:
    """Stills [B, 3, h, w] as a denoiser makes them: outlines bent, noise on the latents, some of them blurred."""
    count = len(frames)
    some = (torch.rand(count) >= _WHOLE).float().view(-1, 1, 1, 1)
    frames = bent(frames, [some * pixels * torch.rand(count, 1, 1, 1) for _, pixels in _BENT])
    frames = still_roundtrip(vae, frames, some * _NOISE * torch.rand(count, 1, 1, 1))
    half = frames[: count // 2, :, None].expand(-1, -1, FRAMES_PER_LATENT, -1, -1)
    if vae.refiner is not None:
        with torch.autocast("cpu", torch.bfloat16):
            frames[: count // 2] = vae.refiner(half).float()[:, :, -1]
    blurred = some * (torch.rand(count, 1, 1, 1) < 0.5) * torch.rand(count, 1, 1, 1)
    return torch.lerp(frames, unet.blurred(frames), blurred).clamp(-1.1, 1.1)


def bent(frames: Tensor, pixels: Sequence[Tensor]) -> Tensor:
    """Frames [B, 3, h, w] moved a little, every cell elsewhere; by so many pixels, [B, 1, 1, 1] for each of `_BENT`."""
    count, _, height, width = frames.shape
    small, flow = (height // 4, width // 4), torch.zeros(())
    for (cells, _), far in zip(_BENT, pixels, strict=True):
        drawn = far * torch.randn(count, 2, *cells)
        flow = flow + F.interpolate(drawn, small, mode="bicubic", align_corners=True)
    flow = F.interpolate(flow, (height, width), mode="bilinear", align_corners=True)
    across = torch.linspace(-1, 1, width) + flow[:, 0] * (2 / width)
    down = torch.linspace(-1, 1, height)[:, None] + flow[:, 1] * (2 / height)
    return F.grid_sample(frames, torch.stack([across, down], dim=-1), padding_mode="border", align_corners=True)


def still_roundtrip(vae: VideoAutoencoder, frames: Tensor, noise: Tensor) -> Tensor:
    """Stills [B, 3, h, w] of any size encoded and decoded, with noise [B, 1, 1, 1] on the latents."""
    height, width = frames.shape[2:]
    filled = F.pad(frames, (0, -width % CELL, 0, -height % CELL), mode="replicate")
    return as_decoded(vae, filled, noise)[..., :height, :width]


if __name__ == "__main__":
    command(Options, Training)
