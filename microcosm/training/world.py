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
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import Tensor

from cosmorama.text.language import mirror_caption
from cosmorama.world.cosmos.forward import cosmos_forward
from cosmorama.world.microcosm.autoencoder import OUTPUT_SCALE, VideoAutoencoder
from cosmorama.world.microcosm.loader import load_component
from cosmorama.world.microcosm.sampling import beside, blended
from cosmorama.world.microcosm.text_encoder import RESERVED, TextEncoder, words
from cosmorama.world.microcosm.transformer import CosmosTransformer
from microcosm.scenes.captions import random_caption
from microcosm.scenes.corridor import draw_corridor
from microcosm.scenes.simulate import draw_scene
from microcosm.training.auxiliary import Auxiliary, cell_classes
from microcosm.training.batches import STAGES, Batch, Sampler, read_shots
from microcosm.training.gain import gain_of, unfold
from microcosm.training.loop import RunOptions, Trainer, command

TIMESTEP_SCALE = 1000.0
SMALLEST_T = 0.25  # below it the weight 1 / t^2 would let the last, easiest touches drown the rest
AUXILIARY_SHARE = 0.05
MAIN_COMPONENTS = 64  # the error is summed over all components; nearly all of it is in these
OBJECT_WEIGHT = 0.5  # extra weight of the error in cells that show an object
WATCHED_LAYER = 4
_SPREAD = 1.2  # of the logits of noise levels
_SHIFT, _CLIP_SHIFT = 4.0, 8.0  # of stills and of clips towards noise: where things go is decided early


def new_transformer(channels: int, text_width: int, heads: int) -> Any:
    """A transformer that predicts zero and whose blocks do nothing yet."""
    net: Any = CosmosTransformer(
        in_channels=2 * channels + 1,
        out_channels=channels + 1,
        num_attention_heads=heads,
        attention_head_dim=80,
        num_layers=6,
        text_embed_dim=text_width,
        adaln_lora_dim=32,
    )
    silent = [net.proj_out, net.norm_out.linear_2, net.time_embed.t_embedder.linear_2]
    silent += [norm.linear_2 for block in net.transformer_blocks for norm in (block.norm1, block.norm2, block.norm3)]
    for layer in silent:
        torch.nn.init.zeros_(layer.weight)
    return net


@cache
def vocabulary(samples: int = 4000) -> list[str]:
    """Every word of the training captions, sorted; ten times as many samples have no others."""
    rng = np.random.default_rng(0)
    found: set[str] = set()
    for _ in range(samples):
        scene = draw_scene(rng) if rng.random() < 0.8 else draw_corridor(rng)
        caption = random_caption(scene, rng)
        found.update(words(caption), words(mirror_caption(caption)))
    return sorted(found)


def draw_t(count: int, shift: float) -> Tensor:
    """Noise levels [count]: logit-normal, moved towards noise by `shift`."""
    return torch.sigmoid(torch.randn(count) * _SPREAD + math.log(shift)).clamp(0.005, 0.999)


def given_parts(vae: VideoAutoencoder, clean: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
    """Of latents [B, C, T, H, W] of which the first `given` [B] are given: what the network reads beside the noise (see
    `sampling.beside`), and what its answer blends with, the last given one standing still, [B, C, 1, H, W]; 0 without.
    """
    known, held = torch.zeros_like(clean), torch.zeros_like(clean[:, :, :1])
    for number in given.unique().tolist():
        rows = given == number
        if number:
            known[rows] = beside(clean[rows], clean[rows, :, :number])
            held[rows] = vae.hold(clean[rows, :, :number])
    return known, held


def loss_of(
    net: Any,
    text_encoder: TextEncoder,
    vae: VideoAutoencoder,
    auxiliary: Auxiliary,
    gain: Tensor,
    batch: Batch,
    options: Options,
) -> tuple[Tensor, Tensor]:
    """The velocity-weighted error of the predicted x_0 over the frames that are not given, and the auxiliary loss.

    With `options.bf16` the transformer's products are in bfloat16: twice as fast on processors with instructions for
    that.
    """
    clean = vae.encode_small(batch.frames)
    count, _, frames = clean.shape[:3]
    t = draw_t(count, _SHIFT if frames == 1 else _CLIP_SHIFT).to(clean.device).view(-1, 1, 1, 1, 1)
    is_given = (torch.arange(frames, device=clean.device) < batch.given[:, None]).view(count, 1, frames, 1, 1)
    noisy = torch.where(is_given, clean, torch.lerp(clean, torch.randn_like(clean), t))
    timesteps = torch.where(is_given, 0.0, t).view(count, frames) * TIMESTEP_SCALE
    mask = is_given.float().expand(-1, -1, -1, *clean.shape[3:])
    text, text_mask = text_encoder(batch.prompts)
    known, held = given_parts(vae, clean, batch.given)
    read = torch.cat([noisy, known * gain], dim=1)
    with torch.autocast(clean.device.type, torch.bfloat16, enabled=options.bf16):
        output = cosmos_forward(
            net, read, timesteps, text, text_mask=text_mask, condition_mask=mask, fps=float(batch.fps)
        )
    predicted = blended(output.float(), held)
    classes = cell_classes(vae, clean)
    weights = 1 + OBJECT_WEIGHT * (classes > 0)[:, None]
    error = weights * ((predicted - clean) / t.clamp_min(SMALLEST_T)).square() * ~is_given
    extra = auxiliary.loss(classes, is_given[:, 0, :, 0, 0], text, batch.targets)
    return error.sum() / (~is_given).sum() / clean[0, 0, 0].numel() / MAIN_COMPONENTS, extra


@dataclass(frozen=True, kw_only=True)
class Options(RunOptions):
    """One run."""

    stage: Annotated[str, typer.Option(help=f"{', '.join(STAGES)}.")] = "images"
    name: Annotated[str, typer.Option(help="Name of the checkpoint in RUNS.")] = "world"
    heads: Annotated[int, typer.Option(help="Attention heads of a new run, 80 wide each.")] = 4
    bf16: Annotated[bool, typer.Option(help="Products in bfloat16, for processors with AVX512-BF16.")] = False
    device: Annotated[str, typer.Option(help="cpu or cuda; one worker on the latter.")] = "cpu"
    batch: Annotated[int, typer.Option(help="How many times as large batches are.")] = 1
    loaders: Annotated[int, typer.Option(help="Processes that draw batches ahead; 0 draws them between steps.")] = 0


@torch.no_grad()
def taught(known: TextEncoder, new: TextEncoder) -> TextEncoder:
    """`new` with the weights of `known`, also of every word that both know; its other words stay as they are."""
    embedding = new.embedding.weight.clone()
    both = [word for word in new.config.vocabulary if word in known.config.vocabulary]
    rows, known_rows = ([encoder.tokenize(word)[1] for word in both] for encoder in (new, known))
    embedding[rows] = known.embedding.weight[known_rows]
    embedding[:RESERVED] = known.embedding.weight[:RESERVED]
    new.load_state_dict({**known.state_dict(), "embedding.weight": embedding})
    return new


class Training(Trainer[Batch, Options]):
    """Trains the transformer on latents."""

    unit = "tokens"
    gain: Tensor

    def __init__(self, options: Options, rank: int) -> None:
        super().__init__(options, rank, options.device)

    def build(self, config: dict[str, Any] | None, exported: Path | None) -> None:
        """See `Trainer`."""
        options = self.options
        self.shots = read_shots(options.data)
        vae = VideoAutoencoder.from_pretrained(options.runs / "vae")
        self.vae = vae.eval().requires_grad_(False).to(self.device)
        self.text_encoder = TextEncoder(vocabulary=vocabulary()).to(self.device)
        text_width = self.text_encoder.config.width
        heads = options.heads if config is None else config["num_attention_heads"]
        self.net = new_transformer(self.vae.config.channels, text_width, heads).to(self.device)
        if config is None:
            self.gain = gain_of(self.shots, self.vae)  # of clips, also where only stills are trained on
        if exported is not None:
            self._begin_from(exported)
        self.heads = self.auxiliary = Auxiliary(self.net.proj_out.in_features, text_width).to(self.device)
        self.auxiliary.watch(self.net, WATCHED_LAYER)

    def draws(self, seed: int) -> Iterator[Batch]:
        """See `Trainer`."""
        options = self.options
        return Sampler(self.shots, STAGES[options.stage], seed, self.rank, options.batch).stream(options.loaders)

    def _begin_from(self, weights: Path) -> None:
        """Take exported weights; the optimizer, the averages and the auxiliary heads begin anew."""
        self.net.load_state_dict(load_component(CosmosTransformer, weights / "transformer").state_dict())
        text_encoder = load_component(TextEncoder, weights / "text_encoder")
        self.text_encoder.load_state_dict(taught(text_encoder, self.text_encoder).state_dict())
        unfold(self.net.patch_embed.proj.weight, self.gain)
        done = json.loads((weights / "world.json").read_text())["training"]
        tokens, seconds = 1e6 * done["million_tokens"], 3600 * done["hours"]
        self.progress = {"steps": float(done["steps"]), "tokens": tokens, "seconds": seconds}

    def loss_of(self, batch: Batch) -> tuple[Tensor, dict[str, float], float]:
        """See `Trainer`."""
        batch = batch.to(self.device)
        loss, extra = loss_of(self.net, self.text_encoder, self.vae, self.auxiliary, self.gain, batch, self.options)
        values = {f"{batch.world} {batch.latent_frames}": loss.item(), "auxiliary": extra.item()}
        cells = self.vae.latents_shape(1, *(OUTPUT_SCALE * side for side in batch.frames.shape[3:]))
        tokens = len(batch.given) * batch.latent_frames * math.prod(cells[2:]) / math.prod(self.net.config.patch_size)
        return loss + AUXILIARY_SHARE * extra, values, tokens

    def more(self) -> dict[str, Any]:
        """See `Trainer`."""
        return {"auxiliary": self.auxiliary.state_dict(), "gain": self.gain}

    def resume(self, state: dict[str, Any]) -> None:
        """See `Trainer`."""
        super().resume(state)
        self.auxiliary.load_state_dict(state["auxiliary"])
        self.gain = state["gain"]


if __name__ == "__main__":
    command(Options, Training)
