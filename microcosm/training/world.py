"""Trains the denoiser and the text encoder: `python -m microcosm.training.world --stage images --minutes 30`, then
clips, then full.

Flow matching: x_t = (1 - t) x_0 + t eps. The network predicts x_0 and its error is weighted as the velocity's, by 1 /
t^2 (arXiv 2511.13720). The first k latent frames of a clip are given clean, with the mask channel at 1 and timestep 0,
and bear no loss; the network says how much of the last given frame stays in the others and adds to that. Nothing is
given with stills. Runs are resumed from their last checkpoint.
"""

from __future__ import annotations

import json
import math
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from diffusers import CosmosTransformer3DModel
from torch import Tensor

from cosmorama.text.scene_language import mirror_caption
from cosmorama.world.cosmos.forward import cosmos_forward
from cosmorama.world.microcosm.autoencoder import VideoAutoencoder
from cosmorama.world.microcosm.loader import load_component
from cosmorama.world.microcosm.sampling import beside, blended
from cosmorama.world.microcosm.text_encoder import TextEncoder, words
from microcosm.scenes.captions import random_caption
from microcosm.scenes.corridor import draw_corridor
from microcosm.scenes.simulate import draw_scene
from microcosm.training.autoencoder import RUNS
from microcosm.training.auxiliary import Auxiliary
from microcosm.training.batches import STAGES, Batch, Batches
from microcosm.training.gain import gain_of, unfold
from microcosm.training.latents import KINDS, load_groups
from microcosm.training.optimizer import Optimizer
from microcosm.training.parallel import agreed, average_gradients, workers
from microcosm.training.widen import taught, widened

TIMESTEP_SCALE = 1000.0
SMALLEST_T = 0.25  # below it the weight 1 / t^2 would let the last, easiest touches drown the rest
AUXILIARY_SHARE = 0.05
MAIN_COMPONENTS = 64  # the error is summed over all components; nearly all of it is in these
OBJECT_WEIGHT = 0.5  # extra weight of the error in cells that show an object
WATCHED_LAYER = 4


@dataclass(frozen=True, slots=True)
class Shape:
    """The transformer's size."""

    heads: int = 2
    head_width: int = 80
    layers: int = 6

    def build(self, channels: int, text_width: int) -> Any:
        """A transformer that predicts zero and whose blocks do nothing yet."""
        net = CosmosTransformer3DModel(
            in_channels=2 * channels + 1,
            out_channels=channels + 1,
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
        scene = draw_scene(rng) if rng.random() < 0.8 else draw_corridor(rng)
        caption = random_caption(scene, rng)
        found.update(words(caption), words(mirror_caption(caption)))
    return sorted(found)


def draw_t(count: int, shift: float, spread: float = 1.2) -> Tensor:
    """Noise levels [count]: logit-normal, moved towards noise by `shift`."""
    return torch.sigmoid(torch.randn(count) * spread + math.log(shift))


def held(vae: VideoAutoencoder, batch: Batch) -> Tensor:
    """What the network's prediction blends with: the last given frame standing still, [B, C, 1, H, W]; 0 without."""
    return _by_given(batch, torch.zeros_like(batch.clean[:, :, :1]), lambda clean, given: vae.hold(given))


def given_beside(batch: Batch) -> Tensor:
    """What the network reads beside the noisy latents, [B, C, T, H, W]; see `sampling.beside`."""
    return _by_given(batch, torch.zeros_like(batch.clean), beside)


def _by_given(batch: Batch, without: Tensor, of: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """`without`, filled with what `of` makes of the clips and their given frames, clips with equally many at a time."""
    for given in batch.given.unique().tolist():
        rows = batch.given == given
        if given:
            without[rows] = of(batch.clean[rows], batch.clean[rows, :, :given])
    return without


def loss_of(
    net: Any,
    text_encoder: TextEncoder,
    vae: VideoAutoencoder,
    auxiliary: Auxiliary,
    gain: Tensor,
    batch: Batch,
    shift: float,
    bf16: bool = False,
) -> tuple[Tensor, Tensor]:
    """The velocity-weighted error of the predicted x_0 over the frames that are not given, and the auxiliary loss.

    With `bf16` the transformer's products are in bfloat16: twice as fast on processors with instructions for that.
    """
    clean = batch.clean
    count, _, frames = clean.shape[:3]
    t = draw_t(count, shift).view(-1, 1, 1, 1, 1)
    is_given = (torch.arange(frames) < batch.given[:, None]).view(count, 1, frames, 1, 1)
    noisy = torch.where(is_given, clean, torch.lerp(clean, torch.randn_like(clean), t))
    timesteps = torch.where(is_given, 0.0, t).view(count, frames) * TIMESTEP_SCALE
    mask = is_given.float().expand(-1, -1, -1, *clean.shape[3:])
    text, text_mask = text_encoder(batch.prompts)
    read = torch.cat([noisy, given_beside(batch) * gain], dim=1)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        output = cosmos_forward(
            net, read, timesteps, text, text_mask=text_mask, condition_mask=mask, fps=float(batch.fps)
        )
    predicted = blended(output.float(), held(vae, batch))
    classes = auxiliary.cell_classes(clean)
    weights = 1 + OBJECT_WEIGHT * (classes > 0)[:, None]
    error = weights * ((predicted - clean) / t.clamp_min(SMALLEST_T)).square() * ~is_given
    extra = auxiliary.loss(classes, is_given[:, 0, :, 0, 0], text, batch.targets)
    return error.sum() / (~is_given).sum() / clean[0, 0, 0].numel() / MAIN_COMPONENTS, extra


def learning_rate(peak: float, step: int, left_s: float, decay_s: float) -> float:
    """Warm-up over 100 steps, constant, and a linear fall over the last `decay_s` seconds."""
    return peak * min(1.0, (step + 1) / 100, max(0.02, left_s / decay_s))


def public(config: dict[str, Any]) -> dict[str, Any]:
    """A diffusers config without its private notes."""
    return {key: value for key, value in config.items() if not key.startswith("_")}


@dataclass(frozen=True, slots=True)
class Options:
    """One run. `minutes` long, the last `decay_minutes` of it with a falling learning rate; see `main`."""

    stage: str
    minutes: float
    decay_minutes: float
    runs: Path
    name: str
    start: str
    peak: float
    muon: bool
    shift: float
    clip_shift: float
    ema: float
    seed: int
    processes: int
    heads: int = 2
    bf16: bool = False


def main(
    stage: Annotated[str, typer.Option(help="images, clips, full, onward or both.")] = "images",
    minutes: Annotated[float, typer.Option(help="Length of this run.")] = 30.0,
    decay_minutes: Annotated[float, typer.Option(help="Of these, at the end, with a falling learning rate.")] = 3.0,
    runs: Annotated[Path, typer.Option()] = RUNS,
    name: Annotated[str, typer.Option(help="Name of the checkpoint in RUNS.")] = "world",
    start: Annotated[
        str,
        typer.Option(help="Begin from another run (its name), or from a folder of exported weights."),
    ] = "",
    peak: Annotated[float, typer.Option(help="Learning rate.")] = 1e-3,
    muon: bool = True,
    shift: Annotated[float, typer.Option(help="Moves training noise levels of stills towards noise.")] = 4.0,
    clip_shift: Annotated[float, typer.Option(help="And of clips: where things go is decided early.")] = 8.0,
    ema: float = 0.995,
    seed: int = 0,
    processes: Annotated[
        int, typer.Option(help="Data-parallel workers, each with one thread and its own batches.")
    ] = 2,
    heads: Annotated[
        int,
        typer.Option(
            help="Attention heads of a new run, 80 wide each. Twice those of the weights in START: it begins widened."
        ),
    ] = 2,
    bf16: Annotated[bool, typer.Option(help="Products in bfloat16, for processors with AVX512-BF16.")] = False,
) -> None:
    """Train one stage."""
    options = Options(**locals())
    with workers("microcosm.training.world", processes) as rank:
        Training(options, rank).run()


class Training:
    """What one worker does; the first one (rank 0) reports and saves."""

    def __init__(self, options: Options, rank: int) -> None:
        torch.manual_seed(options.seed)  # the weights begin alike everywhere
        torch.set_num_threads(1)
        self.options, self.rank, self.stage = options, rank, STAGES[options.stage]
        groups = [g for kind in KINDS for g in load_groups(kind, options.runs / "latents")]
        # The first latent frames of a clip are a shorter clip.
        groups += [replace(group, latents=group.latents.first(5)) for group in groups if group.latents.shape[2] > 5]
        everything = groups
        groups = [group for group in groups if self.stage.share(group)]
        self.batches = Batches(groups, self.stage)
        self.vae = VideoAutoencoder.from_pretrained(options.runs / "vae")
        self.progress = {"steps": 0.0, "tokens": 0.0, "seconds": 0.0}
        self.text_encoder = TextEncoder(vocabulary=vocabulary())
        text_width = self.text_encoder.config.width
        self.checkpoint = options.runs / f"{options.name}.pt"
        source = self.checkpoint if self.checkpoint.exists() else options.runs / f"{options.start}.pt"
        state = torch.load(source, weights_only=False) if source.exists() else None
        heads = options.heads if state is None else state["net_config"]["num_attention_heads"]
        self.net = Shape(heads).build(groups[0].latents.shape[1], text_width)
        if state is None:
            self.gain = gain_of(everything, self.vae)  # of clips, also where only stills are trained on
            if Path(options.start, "world.json").exists():
                self._begin_from(Path(options.start))
        self.optimizer = Optimizer([self.net, self.text_encoder], options.muon, options.ema, options.bf16)
        self.auxiliary = Auxiliary(self.vae, self.net.proj_out.in_features, text_width)
        self.auxiliary.watch(self.net, WATCHED_LAYER)
        self.head_optimizer = torch.optim.Adam(self.auxiliary.parameters(), 3e-3)
        if state is not None:
            self._resume(state)
        done = int(self.progress["steps"])
        torch.manual_seed(options.seed + done + 1_000_003 * rank)
        self.batches.seed(options.seed + done, rank)
        size = sum(parameter.numel() for parameter in self.optimizer.parameters) / 1e6
        if rank == 0:
            rows = sum(len(group.scenes) for group in groups)
            print(f"{size:.1f} M weights, {rows} rows, {self.progress}", flush=True)

    def _begin_from(self, weights: Path) -> None:
        """Take exported weights; the optimizer, the averages and the auxiliary heads begin anew."""
        learned = load_component(CosmosTransformer3DModel, weights / "transformer")
        if 2 * learned.config.num_attention_heads == self.options.heads:
            learned = widened(learned)
        self.net.load_state_dict(learned.state_dict())
        text_encoder = load_component(TextEncoder, weights / "text_encoder")
        self.text_encoder.load_state_dict(taught(text_encoder, self.text_encoder).state_dict())
        unfold(self.net.patch_embed.proj.weight, self.gain)
        done = json.loads((weights / "world.json").read_text())["training"]
        tokens, seconds = 1e6 * done["million_tokens"], 3600 * done["hours"]
        self.progress = {"steps": float(done["steps"]), "tokens": tokens, "seconds": seconds}

    def _resume(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint's contents."""
        self.net.load_state_dict(state["net"])
        self.text_encoder.load_state_dict(state["text_encoder"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.auxiliary.load_state_dict(state["auxiliary"])
        self.gain, self.progress = state["gain"], state["progress"]

    def run(self) -> None:
        """Train for the time given, with a line every half minute and a checkpoint every two."""
        options, report = self.options, Report()
        begun = saved = time.monotonic()
        while (left_s := agreed(begun + 60 * options.minutes - time.monotonic())) > 0:
            now = time.monotonic()
            batch = self.batches.draw()
            rate = learning_rate(options.peak, self.optimizer.steps, left_s, 60 * options.decay_minutes)
            report.add(batch, *self._step(batch, rate))
            self.progress["seconds"] += time.monotonic() - now
            if self.rank == 0:
                report.print_sometimes(self.progress)
                if now > saved + 120:
                    self._save()
                    saved = now
        if self.rank == 0:
            self._save()

    def _step(self, batch: Batch, rate: float) -> tuple[float, float]:
        shift = self.options.clip_shift if batch.clean.shape[2] > 1 else self.options.shift
        loss, extra = loss_of(
            self.net, self.text_encoder, self.vae, self.auxiliary, self.gain, batch, shift, self.options.bf16
        )
        (loss + AUXILIARY_SHARE * extra).backward()
        average_gradients([*self.optimizer.parameters, *self.auxiliary.parameters()])
        self.head_optimizer.step()
        self.head_optimizer.zero_grad()
        self.optimizer.step(rate)
        tokens = math.prod(batch.clean.shape) / batch.clean.shape[1] / math.prod(self.net.config.patch_size)
        self.progress["steps"] += 1
        self.progress["tokens"] += tokens * self.options.processes
        return loss.item(), extra.item()

    def _save(self) -> None:
        """Write the checkpoint in one move."""
        state = {
            "net": self.net.state_dict(),
            "text_encoder": self.text_encoder.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "auxiliary": self.auxiliary.state_dict(),
            "gain": self.gain,
            "progress": self.progress,
            "net_config": public(self.net.config),
            "text_config": public(self.text_encoder.config),
        }
        torch.save(state, self.checkpoint.with_suffix(".tmp"))
        self.checkpoint.with_suffix(".tmp").rename(self.checkpoint)


class Report:
    """Mean losses by world and latent length since the last line."""

    def __init__(self) -> None:
        self._begun = self._last = time.monotonic()
        self._clear()

    def _clear(self) -> None:
        self._extras: list[float] = []
        self._losses: dict[str, list[float]] = defaultdict(list)

    def add(self, batch: Batch, loss: float, extra: float) -> None:
        """Take one step's losses."""
        self._losses[f"{batch.world} {batch.clean.shape[2]}"].append(loss)
        self._extras.append(extra)

    def print_sometimes(self, progress: dict[str, float]) -> None:
        """A line if the last one is half a minute old."""
        now = time.monotonic()
        if now < self._last + 30:
            return
        means = "  ".join(f"{kind}: {np.mean(some):.4f} ({len(some)})" for kind, some in sorted(self._losses.items()))
        done = f"{now - self._begun:6.0f} s  step {progress['steps']:.0f}  {progress['tokens'] / 1e6:.2f} M"
        print(f"{done}  loss {means}  auxiliary {np.mean(self._extras):.3f}", flush=True)
        self._last = now
        self._clear()


if __name__ == "__main__":
    typer.run(main)
