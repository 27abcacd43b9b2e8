"""Transfer2.5: a clip that follows control clips (edges, depth, segmentation, a blurred picture) in its structure.

The same numbers as diffusers' `Cosmos2_5_TransferPipeline`. A clip is made in chunks of 93 frames; each after the first
starts from the last frame of the one before, decoded and encoded again. A shorter last chunk is sampled whole, its
control repeating its last frame, and cut.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cosmorama.errors import InvalidRequestError, ModelNotFoundError, Problem
from cosmorama.request import CONTROL_KINDS, Capabilities, ControlKind, Defaults, FrameRule, Range, Size
from cosmorama.world.base import Inputs, ReadText, Sampling, TextEmbedding, World
from cosmorama.world.cosmos.control import (
    ControlTokens,
    control_residuals,
    control_tokens,
    read_text_context,
    text_width,
)
from cosmorama.world.cosmos.forward import Positions, cosmos_forward, positions_of
from cosmorama.world.cosmos.levels import check_unipc, unipc_levels
from cosmorama.world.cosmos.sampling import CosmosParts
from cosmorama.world.cosmos.text import TextContext, projected
from cosmorama.world.load.checkpoint import check_parts, load_module
from cosmorama.world.load.files import read_json
from cosmorama.world.load.options import LoadOptions
from cosmorama.world.readers.qwen import QwenReader
from cosmorama.world.vae.pixels import to_frames, to_pixels
from cosmorama.world.vae.tiles import with_tiles
from cosmorama.world.vae.wan import WanAutoencoder

CHUNK_FRAMES = 93
_OVERLAP = 1
"""Frames that a chunk repeats of the one before."""
_CONDITIONING_TIMESTEP = 0.1
_PARTS = "controlnet"


def load(folder: Path, options: LoadOptions) -> Transfer25World:
    """Load a checkpoint in the layout of diffusers' `Cosmos2_5_TransferPipeline`.

    Its `controlnet` is for one kind of control, and nothing in it says which: any kind is taken. Folders
    `controlnet_edge`, `controlnet_depth`, `controlnet_seg` and `controlnet_vis` beside it take only their own, and may
    act together.

    Raises:
        ModelNotFoundError: it is incomplete, or its scheduler is none that is supported.
    """
    from diffusers.models.controlnets.controlnet_cosmos import CosmosControlNetModel
    from diffusers.models.transformers.transformer_cosmos import CosmosTransformer3DModel

    names = [name for name in (_PARTS, *(f"{_PARTS}_{kind}" for kind in CONTROL_KINDS)) if (folder / name).is_dir()]
    check_parts(
        folder, ("transformer", "vae", "text_encoder", *(names or [_PARTS])), "tokenizer", variant=options.variant
    )
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
    check_unipc(scheduler, str(folder / "scheduler"))
    transformer = load_module(CosmosTransformer3DModel, folder / "transformer", options)
    nets = {name: load_module(CosmosControlNetModel, folder / name, options) for name in names}
    by_kind = {kind: nets.get(f"{_PARTS}_{kind}", nets.get(_PARTS)) for kind in CONTROL_KINDS}
    controlnets: dict[str, nn.Module] = {kind: net for kind, net in by_kind.items() if net is not None}
    if not controlnets:
        raise ModelNotFoundError(f"{folder} is not a complete checkpoint: missing {_PARTS}/config.json")
    autoencoder = WanAutoencoder.load(folder / "vae", options)
    parts = CosmosParts(
        transformer,
        autoencoder,
        QwenReader.load(folder, options),
        scheduler,
        with_tiles(_capabilities(folder.name, tuple(kind for kind in CONTROL_KINDS if kind in controlnets)), options),
        options.savings,
    )
    return Transfer25World(parts, autoencoder, controlnets)


def _capabilities(name: str, controls: tuple[ControlKind, ...]) -> Capabilities:
    return Capabilities(
        model=name,
        family="transfer2.5",
        modes=("transfer",),
        sizes=(Size(1280, 704), Size(704, 1280), Size(960, 960), Size(832, 480), Size(480, 832)),
        size_multiple=16,
        max_pixels=1280 * 720,
        frames=FrameRule(1, 480),
        fps=Range(1, 60),
        guidance_scale=Range(0, 7),
        steps=Range(1, 100),
        prompt_tokens=512,
        conditioning_frames=(1,),
        solvers=("unipc", "euler", "dpmpp_2m"),
        default_solver="unipc",
        defaults=Defaults(width=1280, height=704, frames=480, fps=16, steps=35, guidance_scale=3.0),
        controls=controls,
    )


class Transfer25World(World):
    """A Transfer2.5 model, ready to sample from.

    Attributes:
        parts: Everything but the ControlNets.
        autoencoder: The parts' own, which also draws from what it is unsure of.
        controlnets: By the kind of control they take; one for any kind is there under every kind.
        chunk_frames: Frames of a chunk, 4k + 1.
    """

    def __init__(self, parts: CosmosParts, autoencoder: WanAutoencoder, controlnets: Mapping[str, nn.Module]) -> None:
        self.parts, self.autoencoder = parts, autoencoder
        self.capabilities, self.device = parts.capabilities, parts.device
        self.controlnets: dict[str, nn.Module] = dict(controlnets)
        self.chunk_frames = CHUNK_FRAMES

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """The networks that read prompts: the transformer, then every ControlNet once."""
        return self.parts.transformer, *dict.fromkeys(self.controlnets.values())

    @torch.inference_mode()
    def encode_text(self, prompt: str) -> TextEmbedding:
        """Read one prompt: states as each of the `networks` projects them, side by side."""
        text = self.parts.read_text(prompt)
        states = text.states.to(self.parts.device, self.parts.dtype)
        # The encoder's states are 100352 wide: projected, a prompt is far less to remember.
        return replace(text, states=torch.cat([projected(reader, states) for reader in self.networks], dim=-1))

    @torch.inference_mode()
    def begin(self, inputs: Inputs, read: ReadText) -> TransferSampling:
        """Read the prompts and the controls of a request.

        Raises:
            InvalidRequestError: there are no controls, or controls that cannot act together.
        """
        return TransferSampling(self, inputs, read)


@dataclass(frozen=True, slots=True)
class _Chunk:
    """What stays the same while one chunk is sampled.

    Attributes:
        known: Latents `[1, C, K, h, w]` of the frames it starts from; K may be 0.
        velocity: Of those: from the noise that the chunk begins with to them.
        mask: The mask channel `[1, 1, T, h, w]`, 1 on them.
        controls: By kind.
    """

    known: Tensor
    velocity: Tensor
    mask: Tensor
    controls: dict[str, ControlTokens]


class TransferSampling(Sampling):
    """One request on a Transfer2.5 model: clips of latents `[1, C, T, h, w]`, one after another.

    Attributes:
        schedule: The noise levels of every chunk.
        guidance_weight: 1 + the guidance scale; at a scale of 1 or less there is no guidance, and the weight is 1.
        shares: Which part of the work each clip is.
    """

    def __init__(self, world: Transfer25World, inputs: Inputs, read: ReadText) -> None:
        request, parts = inputs.request, world.parts
        assert request.seed is not None
        self._world, self._parts, self._request = world, parts, request
        self._autoencoder = world.autoencoder.tiled(request.vae_tiling or 0)
        self._generator = torch.Generator("cpu").manual_seed(request.seed)
        self.schedule = unipc_levels(parts.scheduler, request.steps, flow_shift=request.flow_shift).schedule
        scale = request.guidance_scale
        self.guidance_weight = 1 + scale if scale > 1 else 1.0
        self._clips = inputs.controls
        self._weights = _weights(world, inputs)
        length = min(request.frames, *(len(clip) for clip in inputs.controls.values()))
        self._stride = world.chunk_frames - _OVERLAP
        chunks = max(1, -(-(length - _OVERLAP) // self._stride))
        self.shares = (1 / chunks,) * chunks
        self._shape = parts.autoencoder.latents_shape(world.chunk_frames, request.height, request.width)
        self._texts = {False: read(inputs.prompt)}
        if self.guidance_weight != 1:
            self._texts[True] = read(request.negative_prompt)
        self._contexts: dict[bool, list[TextContext]] = {}
        self._positions: Positions | None = None
        self._ending: Tensor | None = None  # pixels of the last frames of this chunk, once they are decoded
        self._index = 0
        self._chunk: _Chunk | None = None

    def initial(self) -> Tensor:
        """The first chunk's noise `[1, C, T, h, w]`."""
        return self._start(None)

    @torch.inference_mode()
    def next_chunk(self, latents: Tensor) -> Tensor:
        """Start the next chunk from the end of a finished one: its noise `[1, C, T, h, w]`."""
        if self._ending is None:
            for _ in self.decode(latents, self._index):
                pass
        state = self._generator.get_state()
        self._index += 1
        try:
            first = self._start(self._ending)
        except BaseException:  # as if it had not been begun: where memory ran out it is tried again
            self._generator.set_state(state)
            self._index -= 1
            raise
        self._ending = None
        return first

    @torch.inference_mode()
    def denoise(self, latents: Tensor, index: int, *, negative: bool = False) -> Tensor:
        """Estimate the clean latents; given frames are where their true velocity leads from where they are."""
        chunk, parts = self._chunk, self._parts
        assert chunk is not None
        sigma, given = self.schedule.sigmas[index], chunk.known.shape[2]
        timesteps = torch.full((1, self._shape[2]), sigma, device=latents.device)
        timesteps[:, :given] = _CONDITIONING_TIMESTEP
        x = torch.cat([chunk.known, latents[:, :, given:]], dim=2).to(parts.dtype)
        contexts = self._context(negative)
        velocity = cosmos_forward(
            parts.transformer,
            x,
            timesteps,
            contexts[0],
            condition_mask=chunk.mask,
            positions=self._placed(x),
            adaln_per_frame=parts.savings.adaln_per_frame,
            residuals=self._residuals(x, timesteps, contexts[1:]),
        ).float()
        return latents - sigma * torch.cat([chunk.velocity, velocity[:, :, given:]], dim=2)

    @torch.inference_mode()  # while it runs, and not while its caller does: clips may be decoded in turns
    def decode(self, latents: Tensor, chunk: int = 0) -> Iterator[Tensor]:
        """The frames of a chunk that the one before has not shown, uint8 `[t, height, width, 3]`."""
        left = self._request.frames - (chunk * self._stride + _OVERLAP if chunk else 0)
        for pixels in self._pixels(latents, chunk):
            if left > 0:
                yield to_frames(pixels[:, :, :left])
            left -= pixels.shape[2]
        if chunk == self._index:
            self._ending = pixels[:, :, -_OVERLAP:]

    @torch.inference_mode()
    def preview(self, latents: Tensor) -> Iterator[Tensor]:
        """The beginning of the chunk that is being sampled."""
        for pixels in self._pixels(latents, self._index):
            yield to_frames(pixels)

    def _pixels(self, latents: Tensor, chunk: int) -> Iterator[Tensor]:
        """Pixels of a chunk without those that the chunk before has shown: its first latent frame stands for one."""
        pieces = self._autoencoder.decode_pixels(latents)
        if chunk:
            next(pieces)
        yield from pieces

    def _start(self, last: Tensor | None) -> Tensor:
        """Noise for a chunk, and its conditions; everything is drawn in diffusers' order, needed or not."""
        parts, savings = self._parts, self._parts.savings
        noise, unsure = self._noise(), self._noise()
        known = noise[:, :, :0]
        if last is not None:
            if not savings.encode_only_given_frames:
                missing = self._world.chunk_frames - last.shape[2]
                last = torch.cat([last, torch.full_like(last, -1.0).expand(-1, -1, missing, -1, -1)], dim=2)
            else:
                unsure = unsure[:, :, :1]
            known = self._autoencoder.encode(last, unsure)[:, :, :1]
        given = known.shape[2]
        mask = torch.zeros(1, 1, *self._shape[2:], device=parts.device, dtype=parts.dtype)
        mask[:, :, :given] = 1
        controls = {
            kind: control_tokens(self._world.controlnets[kind], self._encode_control(clip).to(parts.dtype), mask)
            for kind, clip in self._clips.items()
        }
        self._chunk = _Chunk(known, noise[:, :, :given] - known, mask, controls)
        return noise

    def _encode_control(self, clip: Tensor) -> Tensor:
        start, length = self._index * self._stride, self._world.chunk_frames
        part = clip[: self._request.frames][start : start + length]
        part = torch.cat([part, part[-1:].expand(length - len(part), -1, -1, -1)])
        return self._autoencoder.encode(to_pixels(part, self._parts.device), self._noise())

    def _residuals(self, x: Tensor, timesteps: Tensor, contexts: list[TextContext]) -> dict[int, Tensor]:
        chunk, world = self._chunk, self._world
        assert chunk is not None
        by_reader = dict(zip(world.networks[1:], contexts, strict=True))
        transformer: Any = self._parts.transformer
        blocks = range(0, len(transformer.transformer_blocks), transformer.config.controlnet_block_every_n)
        total: dict[int, Tensor] = {}
        for kind, control in chunk.controls.items():
            net = world.controlnets[kind]
            residuals = control_residuals(
                net,
                control,
                x,
                timesteps,
                by_reader[net],
                chunk.mask,
                adaln_per_frame=self._parts.savings.adaln_per_frame,
            )
            for block, residual in zip(blocks, residuals, strict=False):
                weighted = residual * self._weights[kind]
                total[block] = total[block] + weighted if block in total else weighted
        return total

    def _context(self, negative: bool) -> list[TextContext]:
        """The prompt as each of the world's readers reads it."""
        if negative in self._contexts:
            return self._contexts[negative]
        states = self._texts[negative].states.to(self._parts.device, self._parts.dtype)
        readers: Any = self._world.networks
        widths = [text_width(reader) for reader in readers]
        contexts = [
            read_text_context(reader, part) for reader, part in zip(readers, states.split(widths, -1), strict=True)
        ]
        if self._parts.savings.cache_cross_attention:
            self._contexts[negative] = contexts
        return contexts

    def _placed(self, x: Tensor) -> Positions | None:
        if self._positions is None and self._parts.savings.cache_positions:
            self._positions = positions_of(self._parts.transformer, x, None)
        return self._positions

    def _noise(self) -> Tensor:
        return torch.randn(self._shape, generator=self._generator).to(self._parts.device)


def _weights(world: Transfer25World, inputs: Inputs) -> dict[str, float]:
    """How strongly each control acts; weights that sum to more than 1 are scaled to sum to 1.

    Raises:
        InvalidRequestError: there are no controls, or two for one network.
    """
    if not inputs.controls:
        accepted = f"one or more of {', '.join(world.controlnets)}"
        raise InvalidRequestError(Problem("controls", "none", accepted))
    nets = [world.controlnets[kind] for kind in inputs.controls]
    if len(set(nets)) < len(nets):
        given = ", ".join(inputs.controls)
        raise InvalidRequestError(Problem("controls", given, "one control: this checkpoint has one control network"))
    weights: dict[str, float] = {control.kind: control.weight for control in inputs.request.controls}
    total = max(1.0, sum(weights.values()))
    return {kind: weights[kind] / total for kind in inputs.controls}
