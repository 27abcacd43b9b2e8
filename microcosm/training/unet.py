"""Trains the U-Net and its text encoder: `python -m microcosm.training.unet --stage stills --minutes 30`, then windows.

Flow matching: x_t = (1 - t) x_0 + t eps. The network predicts x_0 and its error is weighted as the velocity's, by 1 /
t^2 (arXiv 2511.13720). The first latent frames of a window are given, bear no loss, and are disturbed a little half of
the time, as frames are that the model made itself. Runs are resumed from their last checkpoint.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from cosmorama.world.microcosm import unet
from cosmorama.world.microcosm.autoencoder import VideoAutoencoder
from cosmorama.world.microcosm.loader import load_component
from cosmorama.world.microcosm.sampling import beside, blended
from cosmorama.world.microcosm.text_encoder import TextEncoder
from microcosm.evaluation.probe import VIVID
from microcosm.scenes.dataset import DATA
from microcosm.training.export import WEIGHTS
from microcosm.training.optimizer import Optimizer
from microcosm.training.parallel import agreed, average_weights, workers
from microcosm.training.windows import MIXTURES, Sampler, Windows, read_shots

RUNS = Path("microcosm-runs")
SMALLEST_T = 0.2  # below it the weight 1 / t^2 would let the last, easiest touches drown the rest
OBJECT_WEIGHT = 1.0  # extra weight of the error in cells that show an object
DISTURBANCE = 0.04
LOCAL_STEPS = 8  # of every worker by itself, between which their weights are averaged
CHANNELS = 32  # of the latents; the error is summed over all, nearly all of it is in the first few


@dataclass(frozen=True, slots=True)
class Options:
    """One run; see `main`. `later_minutes` of its stage are for another call: the rate falls as if this one went on."""

    stage: str
    minutes: float
    decay_minutes: float
    runs: Path
    data: Path
    name: str
    start: str
    peak: float
    muon: bool
    shift: float
    window_shift: float
    ema: float
    seed: int
    processes: int
    widths: str
    depths: str
    compiled: bool
    device: str = "cpu"
    batch: int = 1
    loaders: int = 0
    later_minutes: float = 0.0


def main(
    stage: Annotated[str, typer.Option(help=f"{', '.join(MIXTURES)}.")] = "stills",
    minutes: Annotated[float, typer.Option(help="Length of this run.")] = 30.0,
    decay_minutes: Annotated[float, typer.Option(help="Of these, at the end, with a falling learning rate.")] = 3.0,
    runs: Annotated[Path, typer.Option()] = RUNS,
    data: Annotated[Path, typer.Option()] = DATA,
    name: Annotated[str, typer.Option(help="Name of the checkpoint in RUNS.")] = "unet",
    start: Annotated[str, typer.Option(help="Begin from another run, its name.")] = "",
    peak: Annotated[float, typer.Option(help="Learning rate.")] = 2e-3,
    muon: bool = True,
    shift: Annotated[float, typer.Option(help="Moves training noise levels of stills towards noise.")] = 4.0,
    window_shift: Annotated[float, typer.Option(help="And of windows: where things go is decided early.")] = 8.0,
    ema: float = 0.995,
    seed: int = 0,
    processes: Annotated[int, typer.Option(help="Data-parallel workers, each with one thread.")] = 2,
    widths: Annotated[str, typer.Option(help="Features on each level of a new run.")] = "64,96,192,256",
    depths: Annotated[str, typer.Option(help="Blocks on each level of a new run.")] = "1,1,2,3",
    compiled: Annotated[bool, typer.Option(help="Compile what is between the products; needs a C++ compiler.")] = True,
    device: Annotated[str, typer.Option(help="cpu or cuda; one worker on the latter.")] = "cpu",
    batch: Annotated[int, typer.Option(help="How many times as large batches are.")] = 1,
    loaders: Annotated[int, typer.Option(help="Processes that draw batches ahead; 0 draws them between steps.")] = 0,
) -> None:
    """Train one stage."""
    options = Options(**locals())
    with workers("microcosm.training.unet", processes) as rank:
        Training(options, rank).run()


def draw_t(count: int, shift: float, spread: float = 1.2) -> Tensor:
    """Noise levels [count]: logit-normal, moved towards noise by `shift`."""
    return torch.sigmoid(torch.randn(count) * spread + math.log(shift)).clamp(0.005, 0.999)


def loss_of(net: Any, text_encoder: TextEncoder, vae: VideoAutoencoder, batch: Windows, shift: float) -> Tensor:
    """The velocity-weighted error of the predicted x_0 over the frames that are not given."""
    clean = vae.encode_small(batch.frames)
    count, _, frames = clean.shape[:3]
    device = clean.device
    t = draw_t(count, shift).to(device)
    given = torch.arange(frames, device=device) < batch.given[:, None]
    wide = given[:, None, :, None, None]
    level = t.view(-1, 1, 1, 1, 1)
    disturbed = clean
    if frames > 1:
        chance = torch.rand(2, count, 1, 1, 1, 1, device=device)
        strength = DISTURBANCE * chance[0] * (chance[1] < 0.5)
        disturbed = torch.addcmul(clean, strength, torch.randn_like(clean))
    noisy = torch.where(wide, disturbed, torch.lerp(clean, torch.randn_like(clean), level))
    known, held = torch.zeros_like(clean), torch.zeros_like(clean[:, :, :1])
    for number in batch.given.unique().tolist():
        rows = batch.given == number
        if number:
            known[rows] = beside(clean[rows], disturbed[rows, :, :number])
            held[rows] = vae.hold(disturbed[rows, :, :number])
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
    weights = ~wide * (1 + OBJECT_WEIGHT * objects(vae, clean) if batch.world == "objects" else 1.0)
    error = weights * ((predicted - clean) / level.clamp_min(SMALLEST_T)).square()
    return error.sum() / (~wide).sum() / clean[0, 0, 0].numel()


def objects(vae: VideoAutoencoder, clean: Tensor) -> Tensor:
    """Which cells of latents [B, C, T, H, W] show an object, as objects are vivid: [B, 1, T, H, W]."""
    colors = vae.basis.unflatten(1, (3, -1)).mean(2) / vae.scaling_factor
    offset = vae.mean.unflatten(0, (3, -1)).mean(1)
    rgb = (torch.einsum("bcthw,cd->bthwd", clean, colors) + offset) / 2 + 0.5
    largest = rgb.amax(-1)
    vivid = (largest - rgb.amin(-1) > VIVID * largest) & (largest > 0.15)
    shown: Tensor = vivid[:, None].float()
    return shown


def learning_rate(peak: float, step: int, left_s: float, decay_s: float) -> float:
    """Warm-up over 50 steps, constant, and a linear fall over the last `decay_s` seconds."""
    return peak * min(1.0, (step + 1) / 50, max(0.02, left_s / decay_s))


class Training:
    """What one worker does; the first one (rank 0) reports and saves."""

    def __init__(self, options: Options, rank: int) -> None:
        torch.manual_seed(options.seed)  # the weights begin alike everywhere
        torch.set_num_threads(1)
        if options.compiled:
            unet.normed = torch.compile(unet.normed, dynamic=True)
            unet.modulated = torch.compile(unet.modulated, dynamic=True)
        self.options, self.rank = options, rank
        device = options.device
        self.vae = VideoAutoencoder.from_pretrained(options.runs / "vae").eval().requires_grad_(False).to(device)
        self.checkpoint = options.runs / f"{options.name}.pt"
        source = self.checkpoint if self.checkpoint.exists() else options.runs / f"{options.start}.pt"
        state = torch.load(source, map_location=device, weights_only=False) if source.exists() else None
        self.progress = {"steps": 0.0, "latent_frames": 0.0, "seconds": 0.0}
        config: dict[str, Any] = {
            "channels": self.vae.config.channels,
            "widths": [int(width) for width in options.widths.split(",")],
            "depths": [int(depth) for depth in options.depths.split(",")],
        }
        self.net = unet.VideoUNet(**(config if state is None else state["net_config"])).to(device)
        self.text_encoder: TextEncoder = (
            load_component(TextEncoder, WEIGHTS / "text_encoder").train().requires_grad_(True).to(device)
        )
        self.optimizer = Optimizer([self.net, self.text_encoder], options.muon, options.ema, bf16=True, alone=True)
        if state is not None:
            self.net.load_state_dict(state["net"])
            self.text_encoder.load_state_dict(state["text_encoder"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.progress = state["progress"]
        done = int(self.progress["steps"])
        torch.manual_seed(options.seed + done + 1_000_003 * rank)
        mixture = MIXTURES[options.stage].enlarged(options.batch)
        self.sampler = Sampler(read_shots(options.data), mixture, options.seed + done, rank)
        if rank == 0:
            size = sum(parameter.numel() for parameter in self.net.parameters()) / 1e6
            print(f"{size:.1f} M weights, {len(self.sampler.groups)} groups, {self.progress}", flush=True)

    def run(self) -> None:
        """Train for the time given, with a line every half minute and a checkpoint every two."""
        options, report = self.options, Report()
        begun = saved = time.monotonic()
        batches, later_s = self.sampler.stream(options.loaders), 60 * options.later_minutes
        left_s = math.inf
        while left_s > 0:
            now = time.monotonic()
            if self.progress["steps"] % LOCAL_STEPS == 0:
                left_s = agreed(begun + 60 * options.minutes - now)
            batch = next(batches).to(options.device)
            rate = learning_rate(options.peak, self.optimizer.steps, left_s + later_s, 60 * options.decay_minutes)
            loss = self.take_step(batch, rate)
            self.progress["seconds"] += time.monotonic() - now
            report.add(f"{batch.world} {batch.seconds.shape[1]}", loss)
            if self.rank == 0:
                report.print_sometimes(self.progress)
                if now > saved + 120:
                    self.save()
                    saved = now
        if self.rank == 0:
            self.save()

    def take_step(self, batch: Windows, rate: float) -> float:
        """One batch; returns its loss."""
        options = self.options
        shift = options.shift if batch.seconds.shape[1] == 1 else options.window_shift
        loss = loss_of(self.net, self.text_encoder, self.vae, batch, shift)
        loss.backward()
        self.optimizer.step(rate)
        self.progress["steps"] += 1
        if self.progress["steps"] % LOCAL_STEPS == 0:
            average_weights(self.optimizer.parameters)
        self.progress["latent_frames"] += batch.seconds.numel() * options.processes
        return loss.item()

    def save(self) -> None:
        """Write the checkpoint in one move."""
        state = {
            "net": self.net.state_dict(),
            "text_encoder": self.text_encoder.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "progress": self.progress,
            "net_config": public(self.net.config),
            "text_config": public(self.text_encoder.config),
        }
        torch.save(state, self.checkpoint.with_suffix(".tmp"))
        self.checkpoint.with_suffix(".tmp").rename(self.checkpoint)


def public(config: dict[str, Any]) -> dict[str, Any]:
    """A diffusers config without its private notes."""
    return {key: value for key, value in config.items() if not key.startswith("_")}


class Report:
    """Running means of the loss by kind of batch."""

    def __init__(self) -> None:
        self._sums: dict[str, list[float]] = defaultdict(list)
        self._printed = time.monotonic()

    def add(self, kind: str, loss: float) -> None:
        """Take one step's loss."""
        self._sums[kind].append(loss)

    def print_sometimes(self, progress: dict[str, float]) -> None:
        """A line every half minute."""
        if time.monotonic() < self._printed + 30:
            return
        means = ", ".join(f"{kind}: {sum(losses) / len(losses):.4f}" for kind, losses in sorted(self._sums.items()))
        steps, frames, seconds = (progress[key] for key in ("steps", "latent_frames", "seconds"))
        print(f"step {steps:.0f}, {frames / 1e3:.0f} k frames, {seconds:.0f} s; {means}", flush=True)
        self._sums.clear()
        self._printed = time.monotonic()


if __name__ == "__main__":
    typer.run(main)
