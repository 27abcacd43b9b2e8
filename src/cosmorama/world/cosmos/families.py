"""The Cosmos families on one transformer, as a table: what a checkpoint's pipeline is made of, and what it takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cosmorama.errors import ModelNotFoundError
from cosmorama.request import Capabilities, ControlKind, Defaults, FrameRule, Range, Size
from cosmorama.world.cosmos.levels import check_edm, check_karras, check_unipc
from cosmorama.world.cosmos.predict1 import Predict1Sampling
from cosmorama.world.cosmos.predict2 import Predict2Sampling
from cosmorama.world.cosmos.predict25 import Predict25Sampling
from cosmorama.world.cosmos.sampling import CosmosSampling, CosmosWorld
from cosmorama.world.cosmos.transfer25 import TransferSampling
from cosmorama.world.load.checkpoint import check_parts, load_module
from cosmorama.world.load.config import read_scheduler
from cosmorama.world.load.options import LoadOptions
from cosmorama.world.readers.qwen import QwenReader
from cosmorama.world.readers.t5 import T5Reader
from cosmorama.world.vae.cosmos import CosmosAutoencoder
from cosmorama.world.vae.tiles import with_tiles
from cosmorama.world.vae.wan import WanAutoencoder

_CONTROLNET = "controlnet"
_KINDS: tuple[ControlKind, ...] = ("edge", "depth", "seg", "vis")
"""Controls that Transfer2.5 was trained for."""


@dataclass(frozen=True, slots=True)
class Family:
    """What the checkpoints of one diffusers pipeline have in common.

    Attributes:
        models: Which models are published so.
        sampling: One request.
        reader: The text encoder.
        tokenizer: The video autoencoder (VAE).
        check_scheduler: Refuses a scheduler that samples otherwise than is implemented, from its config and its folder.
        capabilities: What a checkpoint takes that lacks nothing; with controls it has ControlNets.
    """

    models: str
    sampling: type[CosmosSampling]
    reader: type[T5Reader | QwenReader]
    tokenizer: type[CosmosAutoencoder | WanAutoencoder]
    check_scheduler: Callable[[Mapping[str, Any], str], None]
    capabilities: Capabilities


_PREDICT1 = Capabilities(
    model="predict1",
    family="predict1",
    modes=("text2world",),
    size_multiple=16,
    frames=FrameRule(8, 121),
    prompt_tokens=512,
    conditioning_frames=(9, 1),
    solvers=("edm_euler", "unipc", "dpmpp_2m"),
    default_solver="edm_euler",
    defaults=Defaults(),
)
_PREDICT25 = Capabilities(
    model="predict2.5",
    family="predict2.5",
    sizes=(Size(1280, 704), Size(704, 1280), Size(960, 960), Size(832, 480), Size(480, 832)),
    size_multiple=16,
    max_pixels=1280 * 720,
    frames=FrameRule(4, 93),
    fps=Range(1, 60),
    guidance_scale=Range(0, 10),
    steps=Range(1, 100),
    prompt_tokens=512,
    conditioning_frames=(5, 1),
    solvers=("unipc", "euler", "dpmpp_2m"),
    default_solver="unipc",
    defaults=Defaults(width=1280, height=704, frames=93, fps=16, steps=36, guidance_scale=7.0),
)
_PREDICT2 = replace(
    _PREDICT25,
    model="predict2",
    family="predict2",
    modes=("image2world", "video2world"),
    solvers=("euler", "unipc", "dpmpp_2m"),
    default_solver="euler",
    defaults=replace(_PREDICT25.defaults, steps=35),
)
_STILLS = (Size(1360, 768), Size(768, 1360), Size(1024, 1024), Size(960, 960), Size(1280, 704), Size(704, 1280))

FAMILIES: dict[str, Family] = {
    "CosmosTextToWorldPipeline": Family(
        "Predict1 7B, 14B", Predict1Sampling, T5Reader, CosmosAutoencoder, check_edm, _PREDICT1
    ),
    "CosmosVideoToWorldPipeline": Family(
        "Predict1 7B, 14B",
        Predict1Sampling,
        T5Reader,
        CosmosAutoencoder,
        check_edm,
        replace(_PREDICT1, modes=("image2world", "video2world")),
    ),
    "Cosmos2TextToImagePipeline": Family(
        "Predict2 2B, 14B",
        Predict2Sampling,
        T5Reader,
        WanAutoencoder,
        check_karras,
        replace(
            _PREDICT2,
            modes=("text2world",),
            sizes=_STILLS,
            max_pixels=1360 * 768,
            frames=FrameRule(4, 1),
            conditioning_frames=(1,),
            defaults=replace(_PREDICT2.defaults, width=1360, height=768, frames=1),
        ),
    ),
    "Cosmos2VideoToWorldPipeline": Family(
        "Predict2 2B, 14B", Predict2Sampling, T5Reader, WanAutoencoder, check_karras, _PREDICT2
    ),
    "Cosmos2_5_PredictBasePipeline": Family(
        "Predict2.5 2B, 14B", Predict25Sampling, QwenReader, WanAutoencoder, check_unipc, _PREDICT25
    ),
    "Cosmos2_5_TransferPipeline": Family(
        "Transfer2.5 2B",
        TransferSampling,
        QwenReader,
        WanAutoencoder,
        check_unipc,
        replace(
            _PREDICT25,
            model="transfer2.5",
            family="transfer2.5",
            modes=("transfer",),
            frames=FrameRule(1, 480),
            guidance_scale=Range(0, 7),
            conditioning_frames=(1,),
            defaults=replace(_PREDICT25.defaults, frames=480, steps=35, guidance_scale=3.0),
            controls=_KINDS,
        ),
    ),
}
"""By the diffusers pipeline that a checkpoint names."""


def load(folder: Path, options: LoadOptions, pipeline: str) -> CosmosWorld:
    """Load a checkpoint of one of these families.

    The `controlnet` of a Transfer2.5 is for one kind of control, and nothing in it says which: any kind is taken.
    Folders `controlnet_edge`, `controlnet_depth`, `controlnet_seg` and `controlnet_vis` beside it take only their own,
    and may act together.

    Raises:
        ModelNotFoundError: it is incomplete, or its scheduler is none that is supported.
    """
    from diffusers.models.controlnets.controlnet_cosmos import CosmosControlNetModel
    from diffusers.models.transformers.transformer_cosmos import CosmosTransformer3DModel

    family = FAMILIES[pipeline]
    if options.offload == "release":
        raise ModelNotFoundError(f"offload is 'release', which is for Cosmos3, not for {family.models}")
    possible = (_CONTROLNET, *(f"{_CONTROLNET}_{kind}" for kind in _KINDS)) if family.capabilities.controls else ()
    names = [name for name in possible if (folder / name).is_dir()] or list(possible[:1])
    check_parts(folder, ("transformer", "vae", "text_encoder", *names), "tokenizer", variant=options.variant)
    scheduler = read_scheduler(folder / "scheduler")
    family.check_scheduler(scheduler, str(folder / "scheduler"))
    transformer = load_module(CosmosTransformer3DModel, folder / "transformer", options)
    nets = {name: load_module(CosmosControlNetModel, folder / name, options) for name in names}
    by_kind = {kind: nets.get(f"{_CONTROLNET}_{kind}", nets.get(_CONTROLNET)) for kind in _KINDS}
    tokenizer = family.tokenizer.load(folder / "vae", options)
    frames, most = family.capabilities.frames, tokenizer.latent_frames
    if most is not None:
        frames = replace(frames, maximum=min(frames.maximum, 1 + frames.multiple * (most - 1)))
    controls = tuple(kind for kind in _KINDS if by_kind[kind] is not None)
    return CosmosWorld(
        transformer,
        tokenizer,
        family.reader.load(folder, options),
        scheduler,
        with_tiles(replace(family.capabilities, model=folder.name, frames=frames, controls=controls), options),
        family.sampling,
        controlnets={kind: net for kind, net in by_kind.items() if net is not None},
        fps_modulation=options.fps_modulation or False,
    )
