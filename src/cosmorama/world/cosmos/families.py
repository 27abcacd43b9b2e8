"""The Cosmos families on one transformer, as a table: what a checkpoint's pipeline is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cosmorama.errors import ModelNotFoundError
from cosmorama.request import Size
from cosmorama.world.cosmos.capabilities import CAPABILITIES, KINDS, limited
from cosmorama.world.cosmos.predict1 import Predict1Sampling
from cosmorama.world.cosmos.predict2 import Predict2Sampling
from cosmorama.world.cosmos.predict25 import Predict25Sampling, TransferSampling
from cosmorama.world.cosmos.sampling import CHUNK_FRAMES, CosmosSampling, CosmosWorld
from cosmorama.world.levels import check_edm, check_karras, check_unipc
from cosmorama.world.load.checkpoint import check_parts, load_module
from cosmorama.world.load.config import check_fit, read_scheduler
from cosmorama.world.load.options import LoadOptions
from cosmorama.world.readers.qwen import QwenReader
from cosmorama.world.readers.t5 import T5Reader
from cosmorama.world.vae.cosmos import CosmosAutoencoder
from cosmorama.world.vae.tiles import with_tiles
from cosmorama.world.vae.wan import WanAutoencoder

_CONTROLNET = "controlnet"


@dataclass(frozen=True, slots=True)
class Family:
    """What the checkpoints of one diffusers pipeline have in common.

    Attributes:
        sampling: One request.
        reader: The text encoder.
        tokenizer: The video autoencoder (VAE).
        check_scheduler: Refuses a scheduler that samples otherwise than is implemented, from its config and its folder.
    """

    sampling: type[CosmosSampling]
    reader: type[T5Reader | QwenReader]
    tokenizer: type[CosmosAutoencoder | WanAutoencoder]
    check_scheduler: Callable[[Mapping[str, Any], str], None]


FAMILIES: dict[str, Family] = {
    "CosmosTextToWorldPipeline": Family(Predict1Sampling, T5Reader, CosmosAutoencoder, check_edm),
    "CosmosVideoToWorldPipeline": Family(Predict1Sampling, T5Reader, CosmosAutoencoder, check_edm),
    "Cosmos2TextToImagePipeline": Family(Predict2Sampling, T5Reader, WanAutoencoder, check_karras),
    "Cosmos2VideoToWorldPipeline": Family(Predict2Sampling, T5Reader, WanAutoencoder, check_karras),
    "Cosmos2_5_PredictBasePipeline": Family(Predict25Sampling, QwenReader, WanAutoencoder, check_unipc),
    "Cosmos2_5_TransferPipeline": Family(TransferSampling, QwenReader, WanAutoencoder, check_unipc),
}
"""By the diffusers pipeline that a checkpoint names."""


def load(folder: Path, options: LoadOptions, pipeline: str) -> CosmosWorld:
    """Load a checkpoint of one of these families.

    The `controlnet` of a Transfer2.5 is for one kind of control, and nothing in it says which: any kind is taken.
    Folders `controlnet_edge`, `controlnet_depth`, `controlnet_seg` and `controlnet_vis` (NVIDIA's blur) beside it take
    only their own, and may act together.

    Raises:
        ModelNotFoundError: it is incomplete, or its scheduler is none that is supported.
    """
    from diffusers.models.controlnets.controlnet_cosmos import CosmosControlNetModel
    from diffusers.models.transformers.transformer_cosmos import CosmosTransformer3DModel

    family, (models, capabilities) = FAMILIES[pipeline], CAPABILITIES[pipeline]
    if options.offload == "release":
        raise ModelNotFoundError(f"offload is 'release', which is for Cosmos3, not for {models}")
    names = _controlnets(folder) if capabilities.controls else {}
    check_parts(folder, ("transformer", "vae", "text_encoder", *names), "tokenizer", variant=options.variant)
    scheduler = read_scheduler(folder / "scheduler")
    family.check_scheduler(scheduler, str(folder / "scheduler"))
    transformer = load_module(CosmosTransformer3DModel, folder / "transformer", options)
    alike = replace(options, dtype=options.dtype or transformer.patch_embed.proj.weight.dtype)
    nets = {name: load_module(CosmosControlNetModel, folder / name, alike) for name in names}
    own = {kind: nets[name] for name, kind in names.items()}
    by_kind = {kind: own.get(kind, own.get("")) for kind in KINDS}
    tokenizer = family.tokenizer.load(folder / "vae", options)
    latents, tall, wide = transformer.config.max_size
    scale = 64 // tokenizer.latents_shape(1, 64, 64)[3]
    latents = min(latents, tokenizer.latent_frames or latents)
    least = (capabilities.size_multiple or 1) // scale
    if latents < 1 or min(tall, wide) < least:
        raise ModelNotFoundError(
            f"{folder / 'transformer/config.json'}: max_size is {list(transformer.config.max_size)}; it must be at "
            f"least {[1, least, least]}"
        )
    limits = limited(capabilities, latents, Size(scale * wide, scale * tall))
    controls = tuple(kind for kind in KINDS if by_kind[kind] is not None)
    reader = family.reader.load(folder, options)
    _check_fit(
        folder, {"transformer": transformer, **nets}, tokenizer, reader.width, capabilities.modes != ("text2world",)
    )
    return CosmosWorld(
        transformer,
        tokenizer,
        reader,
        scheduler,
        with_tiles(replace(limits, model=folder.name, controls=controls), options),
        family.sampling,
        controlnets={kind: net for kind, net in by_kind.items() if net is not None},
        fps_modulation=options.fps_modulation or False,
        chunk_frames=min(CHUNK_FRAMES, 1 + 4 * (latents - 1)),
    )


def _controlnets(folder: Path) -> dict[str, str]:
    """The kind of control that each folder of a ControlNet is for; empty for any kind.

    Raises:
        ModelNotFoundError: there is one for no kind that is known, or two for one.
    """
    kinds = {_CONTROLNET: "", f"{_CONTROLNET}_blur": "vis"} | {f"{_CONTROLNET}_{kind}": kind for kind in KINDS}
    found = sorted(part.name for part in folder.glob(f"{_CONTROLNET}*") if part.is_dir()) or [_CONTROLNET]
    for name in found:
        if name not in kinds:
            raise ModelNotFoundError(f"{folder / name} is for no kind of control: it may be called {', '.join(kinds)}")
    if {f"{_CONTROLNET}_blur", f"{_CONTROLNET}_vis"}.issubset(found):
        raise ModelNotFoundError(f"{folder} has two ControlNets for one kind: {_CONTROLNET}_blur and {_CONTROLNET}_vis")
    return {name: kinds[name] for name in found}


def _check_fit(
    folder: Path, networks: Mapping[str, Any], tokenizer: CosmosAutoencoder | WanAutoencoder, width: int, marked: bool
) -> None:
    """Refuse networks that do not fit each other.

    Args:
        folder: Of the checkpoint.
        networks: By the names of their folders: the denoiser, then ControlNets.
        tokenizer: What makes their latents.
        width: Of the states that the text encoder gives.
        marked: Whether a channel says which latent frames are given.

    Raises:
        ModelNotFoundError: names the member of a config that another part makes wrong.
    """
    channels = tokenizer.latents_shape(1, 8, 8)[1]
    (first, denoiser), *controlnets = networks.items()
    own = denoiser.config
    hidden = own.num_attention_heads * own.attention_head_dim
    why = f"latents have {channels} channels, text states are {width} wide, tokens {hidden}, in {own.num_layers} blocks"
    needed = {first: {"in_channels": channels + marked, "out_channels": channels}}
    for name, network in controlnets:
        every, most = own.controlnet_block_every_n or 0, own.num_layers // len(network.control_blocks)
        needed[first]["controlnet_block_every_n"] = every if 0 < every <= own.num_layers else most
        needed[name] = {
            # Its two masks come behind the latents; what is left is zero.
            "in_channels": max(network.config.in_channels, channels + 2),
            "latent_channels": channels + 2,
            "model_channels": hidden,
            "attention_head_dim": hidden // network.config.num_attention_heads,
        }
    for name, network in networks.items():
        config, read = network.config, {"text_embed_dim": width}
        if config.use_crossattn_projection:
            read = {"crossattn_proj_in_channels": width, "encoder_hidden_states_channels": config.text_embed_dim}
        learned = config.extra_pos_embed_type and "learnable"
        check_fit(
            folder / name, config, why, patch_size=[1, 2, 2], extra_pos_embed_type=learned, **read, **needed[name]
        )
