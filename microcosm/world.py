"""Trains the denoiser and the text encoder: `python -m microcosm.world --stage images --minutes 30`, then clips, then
full.

Flow matching: x_t = (1 - t) x_0 + t eps. The network predicts x_0 and its error is weighted as the velocity's, by 1 /
t^2 (arXiv 2511.13720). The first k latent frames of a clip may be given clean, with the mask channel at 1 and timestep
0, and then bear no loss. Runs are resumed from their last checkpoint.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from diffusers import CosmosTransformer3DModel
from torch import Tensor

from cosmorama.text.scene_language import mirror_caption
from cosmorama.world.cosmos_forward import cosmos_forward
from cosmorama.world.microcosm.autoencoder import VideoAutoencoder
from cosmorama.world.microcosm.text_encoder import TextEncoder, words
from microcosm.autoencoder import RUNS
from microcosm.auxiliary import UNKNOWN, Auxiliary, scene_classes
from microcosm.captions import empty_prompt, random_caption
from microcosm.latents import Group, load_groups
from microcosm.optimizer import Optimizer
from microcosm.parallel import agreed, average_gradients, workers
from microcosm.simulate import draw_scene

TIMESTEP_SCALE = 1000.0
SMALLEST_T = 0.25  # below it the weight 1 / t^2 would let the last, easiest touches drown the rest
EMPTY_SHARE = 0.12
AUXILIARY_SHARE = 0.05
OBJECT_WEIGHT = 0.5  # extra weight of the error in cells that show an object
WATCHED_LAYER = 5


@dataclass(frozen=True, slots=True)
class Stage:
    """What a stage trains on: the share of each latent length in the batches, and how many make a batch."""

    shares: dict[int, float]
    batch: dict[int, int] = field(default_factory=lambda: {1: 32, 5: 8, 16: 3})


STAGES = {
    "images": Stage({1: 1.0}),
    "clips": Stage({1: 0.5, 5: 0.5}),
    "full": Stage({1: 0.3, 5: 0.25, 16: 0.45}),
}


@dataclass(frozen=True, slots=True)
class Shape:
    """The transformer's size."""

    heads: int = 3
    head_width: int = 64
    layers: int = 8

    def build(self, channels: int, text_width: int) -> Any:
        """A transformer that predicts zero and whose blocks do nothing yet."""
        net = CosmosTransformer3DModel(
            in_channels=channels + 1,
            out_channels=channels,
            num_attention_heads=self.heads,
            attention_head_dim=self.head_width,
            num_layers=self.layers,
            text_embed_dim=text_width,
            adaln_lora_dim=32,
            max_size=(64, 64, 64),
            patch_size=(1, 2, 2),
            rope_scale=(1.0, 1.0, 1.0),
            concat_padding_mask=False,
            extra_pos_embed_type=None,
        )
        silent = [net.proj_out, net.norm_out.linear_2, net.time_embed.t_embedder.linear_2]
        silent += [
            norm.linear_2 for block in net.transformer_blocks for norm in (block.norm1, block.norm2, block.norm3)
        ]
        for layer in silent:
            torch.nn.init.zeros_(layer.weight)
        return net


def vocabulary(samples: int = 20_000) -> list[str]:
    """Every word of the training captions, sorted."""
    rng = np.random.default_rng(0)
    found: set[str] = set()
    for _ in range(samples):
        caption = random_caption(draw_scene(rng), rng)
        found.update(words(caption), words(mirror_caption(caption)))
    return sorted(found)


@dataclass(slots=True)
class Batch:
    """Inputs of one training step: clean latents [B, C, T, H, W], prompts, the clips' rate, given frames k [B],
    and what the prompts mean [B, 8] (see `auxiliary.scene_classes`).
    """

    clean: Tensor
    prompts: list[str]
    fps: int
    given: Tensor
    targets: Tensor


class Batches:
    """Draws batches of one latent shape and rate at a time."""

    def __init__(self, groups: list[Group], stage: Stage, seed: int) -> None:
        self.groups, self.stage, self.rng = groups, stage, np.random.default_rng(seed)
        weights = np.zeros(len(groups))
        for length, share in stage.shares.items():
            rows = [len(group.scenes) if group.latents.shape[2] == length else 0 for group in groups]
            # Batches are drawn per sequence position, so that a share is one of the computing time.
            weights += share / (length * stage.batch[length]) * np.array(rows) / max(1, sum(rows))
        self.weights = weights / weights.sum()

    def draw(self) -> Batch:
        """The next batch."""
        group = self.groups[int(self.rng.choice(len(self.groups), p=self.weights))]
        length = group.latents.shape[2]
        rows = self.rng.integers(len(group.scenes), size=self.stage.batch[length])
        targets = torch.tensor([scene_classes(group.scenes[row], group.mirrored[row]) for row in rows])
        targets[torch.from_numpy(self.rng.random(len(rows)) < EMPTY_SHARE)] = UNKNOWN
        is_empty = (targets == UNKNOWN).all(1).tolist()
        prompts = [
            empty_prompt(self.rng) if empty else self._prompt(group, int(row))
            for row, empty in zip(rows, is_empty, strict=True)
        ]
        given = self.rng.choice(3, size=len(rows), p=(0.5, 0.3, 0.2)) if length > 2 else np.zeros(len(rows), int)
        return Batch(group.latents[rows].float(), prompts, group.fps, torch.from_numpy(given), targets)

    def _prompt(self, group: Group, row: int) -> str:
        caption = random_caption(group.scenes[row], self.rng)
        return mirror_caption(caption) if group.mirrored[row] else caption


def draw_t(count: int, shift: float, spread: float = 1.2) -> Tensor:
    """Noise levels [count]: logit-normal, moved towards noise by `shift`."""
    return torch.sigmoid(torch.randn(count) * spread + math.log(shift))


def loss_of(
    net: Any, text_encoder: TextEncoder, auxiliary: Auxiliary, batch: Batch, shift: float
) -> tuple[Tensor, Tensor]:
    """The velocity-weighted error of the predicted x_0 over the frames that are not given, and the auxiliary loss."""
    clean = batch.clean
    count, _, frames = clean.shape[:3]
    t = draw_t(count, shift).view(-1, 1, 1, 1, 1)
    is_given = (torch.arange(frames) < batch.given[:, None]).view(count, 1, frames, 1, 1)
    noisy = torch.where(is_given, clean, torch.lerp(clean, torch.randn_like(clean), t))
    timesteps = torch.where(is_given, 0.0, t).view(count, frames) * TIMESTEP_SCALE
    mask = is_given.float().expand(-1, -1, -1, *clean.shape[3:])
    text, text_mask = text_encoder(batch.prompts)
    predicted = cosmos_forward(
        net, noisy, timesteps, text, text_mask=text_mask, condition_mask=mask, fps=float(batch.fps)
    )
    classes = auxiliary.cell_classes(clean)
    weights = 1 + OBJECT_WEIGHT * (classes > 0)[:, None]
    error = weights * ((predicted - clean) / t.clamp_min(SMALLEST_T)).square() * ~is_given
    extra = auxiliary.loss(classes, is_given[:, 0, :, 0, 0], text, batch.targets)
    return error.sum() / (~is_given).expand_as(clean).sum(), extra


def learning_rate(peak: float, step: int, left_s: float, decay_s: float) -> float:
    """Warm-up over 100 steps, constant, and a linear fall over the last `decay_s` seconds."""
    return peak * min(1.0, (step + 1) / 100, max(0.02, left_s / decay_s))


def public(config: dict[str, Any]) -> dict[str, Any]:
    """A diffusers config without its private notes."""
    return {key: value for key, value in config.items() if not key.startswith("_")}


def save(path: Path, net: Any, text_encoder: TextEncoder, optimizer: Optimizer, **more: Any) -> None:
    """Write a checkpoint in one move."""
    state = {
        "net": net.state_dict(),
        "text_encoder": text_encoder.state_dict(),
        "optimizer": optimizer.state_dict(),
        **more,
        "net_config": public(net.config),
        "text_config": public(text_encoder.config),
    }
    torch.save(state, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").rename(path)


def main(
    stage: Annotated[str, typer.Option(help="images, clips or full.")] = "images",
    minutes: Annotated[float, typer.Option(help="Length of this run.")] = 30.0,
    decay_minutes: Annotated[float, typer.Option(help="Of these, at the end, with a falling learning rate.")] = 3.0,
    runs: Annotated[Path, typer.Option()] = RUNS,
    name: Annotated[str, typer.Option(help="Name of the checkpoint in RUNS.")] = "world",
    start: Annotated[str, typer.Option(help="Begin from another run's checkpoint.")] = "",
    peak: Annotated[float, typer.Option(help="Learning rate.")] = 1e-3,
    muon: bool = True,
    shift: Annotated[float, typer.Option(help="Moves training noise levels towards noise.")] = 4.0,
    ema: float = 0.995,
    seed: int = 0,
    processes: Annotated[
        int, typer.Option(help="Data-parallel workers, each with one thread and its own batches.")
    ] = 2,
) -> None:
    """Train one stage."""
    with workers("microcosm.world", processes) as rank:
        train(stage, minutes, decay_minutes, runs, name, start, peak, muon, shift, ema, seed, processes, rank)


def train(
    stage: str,
    minutes: float,
    decay_minutes: float,
    runs: Path,
    name: str,
    start: str,
    peak: float,
    muon: bool,
    shift: float,
    ema: float,
    seed: int,
    processes: int,
    rank: int,
) -> None:
    """What one worker does; the first one reports and saves."""
    torch.manual_seed(seed)  # the weights begin alike everywhere
    torch.set_num_threads(1)
    plan = STAGES[stage]
    groups = [group for kind in ("images", "clips", "shorts") for group in load_groups(kind, runs / "latents")]
    # The first latent frames of a clip are a shorter clip.
    groups += [replace(group, latents=group.latents[:, :, :5]) for group in groups if group.latents.shape[2] > 5]
    batches = Batches([group for group in groups if group.latents.shape[2] in plan.shares], plan, seed)
    text_encoder = TextEncoder(vocabulary=vocabulary())
    net = Shape().build(groups[0].latents.shape[1], text_encoder.config.width)
    optimizer = Optimizer([net, text_encoder], muon, ema)
    auxiliary = Auxiliary(
        VideoAutoencoder.from_pretrained(runs / "vae"), net.proj_out.in_features, text_encoder.config.width
    )
    auxiliary.watch(net, WATCHED_LAYER)
    head_optimizer = torch.optim.Adam(auxiliary.parameters(), 3e-3)
    progress = {"steps": 0.0, "tokens": 0.0, "seconds": 0.0}
    checkpoint = runs / f"{name}.pt"
    source = checkpoint if checkpoint.exists() else runs / f"{start}.pt"
    if source.exists():
        state = torch.load(source, weights_only=False)
        net.load_state_dict(state["net"])
        text_encoder.load_state_dict(state["text_encoder"])
        optimizer.load_state_dict(state["optimizer"])
        progress = state["progress"]
        auxiliary.load_state_dict(state.get("auxiliary", auxiliary.state_dict()))
    torch.manual_seed(seed + int(progress["steps"]) + 1_000_003 * rank)
    batches.rng = np.random.default_rng([seed, int(progress["steps"]), rank])
    size = sum(parameter.numel() for parameter in optimizer.parameters) / 1e6
    if rank == 0:
        print(f"{size:.1f} M weights, {sum(len(group.scenes) for group in groups)} rows, {progress}", flush=True)

    begun = saved = last = time.monotonic()
    extras: list[float] = []
    losses: dict[int, list[float]] = {length: [] for length in plan.shares}
    while (left_s := agreed(begun + 60 * minutes - time.monotonic())) > 0:
        now = time.monotonic()
        batch = batches.draw()
        loss, extra = loss_of(net, text_encoder, auxiliary, batch, shift)
        (loss + AUXILIARY_SHARE * extra).backward()
        average_gradients([*optimizer.parameters, *auxiliary.parameters()])
        head_optimizer.step()
        head_optimizer.zero_grad()
        optimizer.step(learning_rate(peak, optimizer.steps, left_s, 60 * decay_minutes))
        losses[batch.clean.shape[2]].append(loss.item())
        extras.append(extra.item())
        progress["steps"] += 1
        progress["tokens"] += math.prod(batch.clean.shape) / batch.clean.shape[1] / 4 * processes
        progress["seconds"] += time.monotonic() - now
        if rank == 0 and now > last + 30:
            means = "  ".join(f"{length}: {np.mean(some):.4f} ({len(some)})" for length, some in losses.items() if some)
            done = f"{now - begun:6.0f} s  step {progress['steps']:.0f}  {progress['tokens'] / 1e6:.2f} M"
            print(f"{done}  loss {means}  auxiliary {np.mean(extras):.3f}", flush=True)
            extras.clear()
            losses, last = {length: [] for length in plan.shares}, now
        if rank == 0 and now > saved + 120:
            save(checkpoint, net, text_encoder, optimizer, progress=progress, auxiliary=auxiliary.state_dict())
            saved = now
    if rank == 0:
        save(checkpoint, net, text_encoder, optimizer, progress=progress, auxiliary=auxiliary.state_dict())


if __name__ == "__main__":
    typer.run(main)
