"""Trains the U-Net and its text encoder: `python -m microcosm.training.unet --stage stills --minutes 30`, then windows.

Flow matching: x_t = (1 - t) x_0 + t eps. The network predicts x_0 and its error is weighted as the velocity's, by 1 /
t^2 (arXiv 2511.13720). The first latent frames of a window are given, bear no loss, and are disturbed a little half of
the time, as frames are that the model made itself. Runs are resumed from their last checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from cosmorama.world.microcosm import unet
from cosmorama.world.microcosm.autoencoder import VideoAutoencoder
from cosmorama.world.microcosm.loader import load_component
from cosmorama.world.microcosm.sampling import blended
from cosmorama.world.microcosm.text_encoder import TextEncoder
from microcosm.scenes.dataset import DATA
from microcosm.training.auxiliary import cell_classes
from microcosm.training.batches import FINE_STAGES, Batch, Sampler, read_shots
from microcosm.training.export import WEIGHTS
from microcosm.training.loop import ConvolutionalRun, Trainer, command, draw_t, given_parts

SMALLEST_T = 0.2  # below it the weight 1 / t^2 would let the last, easiest touches drown the rest
OBJECT_WEIGHT = 1.0  # extra weight of the error in cells that show an object
DISTURBANCE = 0.04


@dataclass(frozen=True, kw_only=True)
class Options(ConvolutionalRun):
    """One run."""

    stage: Annotated[str, typer.Option(help=f"{', '.join(FINE_STAGES)}.")] = "stills"
    data: Annotated[Path, typer.Option()] = DATA
    name: Annotated[str, typer.Option(help="Name of the checkpoint in RUNS.")] = "unet"
    peak: Annotated[float, typer.Option(help="Learning rate.")] = 2e-3
    widths: Annotated[str, typer.Option(help="Features on each level of a new run.")] = "64,96,192,256"
    depths: Annotated[str, typer.Option(help="Blocks on each level of a new run.")] = "1,1,2,3"
    device: Annotated[str, typer.Option(help="cpu or cuda; one worker on the latter.")] = "cpu"
    batch: Annotated[int, typer.Option(help="How many times as large batches are.")] = 1
    loaders: Annotated[int, typer.Option(help="Processes that draw batches ahead; 0 draws them between steps.")] = 0


def loss_of(net: Any, text_encoder: TextEncoder, vae: VideoAutoencoder, batch: Batch, options: Options) -> Tensor:
    """The velocity-weighted error of the predicted x_0 over the frames that are not given."""
    clean = vae.encode_small(batch.frames)
    (count, _, frames), device = clean.shape[:3], clean.device
    shift = options.shift if frames == 1 else options.clip_shift
    t = draw_t(count, shift, options.low_share).to(device)
    given = torch.arange(frames, device=device) < batch.given[:, None]
    wide = given[:, None, :, None, None]
    level = t.view(-1, 1, 1, 1, 1)
    disturbed = clean
    if frames > 1:
        chance = torch.rand(2, count, 1, 1, 1, 1, device=device)
        strength = DISTURBANCE * chance[0] * (chance[1] < 0.5)
        disturbed = torch.addcmul(clean, strength, torch.randn_like(clean))
    noisy = torch.where(wide, disturbed, torch.lerp(clean, torch.randn_like(clean), level))
    known, held = given_parts(vae, disturbed, batch.given)
    text, mask = text_encoder(batch.prompts)
    with torch.autocast(device.type, torch.bfloat16):
        output = net(
            noisy,
            torch.where(given, 0.0, t[:, None]),
            text,
            mask,
            beside=known,
            given=given,
            seconds=batch.seconds,
        )
    predicted = blended(output.float(), held)
    weights = ~wide * (1 + OBJECT_WEIGHT * (cell_classes(vae, clean) > 0)[:, None] if batch.world == "objects" else 1.0)
    error = weights * ((predicted - clean) / level.clamp_min(SMALLEST_T)).square()
    return error.sum() / (~wide).sum() / clean[0, 0, 0].numel()


class Training(Trainer[Batch, Options]):
    """Trains the U-Net on rendered frames."""

    unit = "latent_frames"

    def __init__(self, options: Options, rank: int) -> None:
        super().__init__(options, rank, options.device)

    def build(self, config: dict[str, Any] | None) -> None:
        """See `Trainer`."""
        new: dict[str, Any] = {
            "channels": self.vae.config.channels,
            "widths": [int(width) for width in self.options.widths.split(",")],
            "depths": [int(depth) for depth in self.options.depths.split(",")],
        }
        self.net = unet.VideoUNet(**(config or new)).to(self.device)
        text_encoder = load_component(TextEncoder, WEIGHTS / "text_encoder")
        self.text_encoder = text_encoder.train().requires_grad_(True).to(self.device)

    def draws(self, seed: int) -> Iterator[Batch]:
        """See `Trainer`."""
        mixture = FINE_STAGES[self.options.stage].enlarged(self.options.batch)
        return Sampler(read_shots(self.options.data), mixture, seed, self.rank).stream(self.options.loaders)

    def loss_of(self, batch: Batch) -> tuple[Tensor, dict[str, float], float]:
        """See `Trainer`."""
        batch = batch.to(self.device)
        loss = loss_of(self.net, self.text_encoder, self.vae, batch, self.options)
        return loss, {f"{batch.world} {batch.seconds.shape[1]}": loss.item()}, batch.seconds.numel()


if __name__ == "__main__":
    command(Options, "microcosm.training.unet", Training)
