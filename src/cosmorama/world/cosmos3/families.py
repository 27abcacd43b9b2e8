"""Cosmos3: one model for stills, clips, continuations, and for what robots do in them.

The network is diffusers' `Cosmos3OmniTransformer`. It has no text encoder: text runs through its own understanding
half (`forward.understand`), and what generated tokens see of it is kept as the prompt's embedding. Given frames
are clean latents at the start of the clip; actions are further tokens. Noise, levels, positions and texts are those of
`Cosmos3OmniPipeline`, so the same seed gives the same clip.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cosmorama.request import Capabilities
from cosmorama.world.cosmos.levels import check_distilled, check_unipc
from cosmorama.world.cosmos3.capabilities import capabilities_of, policy_of
from cosmorama.world.cosmos3.sampling import Cosmos3Config, Cosmos3World
from cosmorama.world.cosmos3.transfer import Cosmos3TransferSampling
from cosmorama.world.cosmos3.weights import TextHalf, load_transformer
from cosmorama.world.load.checkpoint import check_parts, check_vocabulary, load_tokenizer
from cosmorama.world.load.config import check_fit, read_scheduler
from cosmorama.world.load.files import MODULAR, PIPELINE, is_distilled, read_json
from cosmorama.world.load.options import LoadOptions
from cosmorama.world.vae.tiles import with_tiles
from cosmorama.world.vae.wan import WanAutoencoder


def load(folder: Path, options: LoadOptions, pipeline: str = "") -> Cosmos3World:
    """Load a checkpoint in the layout of diffusers' `Cosmos3OmniPipeline`, or of `Cosmos3DistilledModularPipeline`.

    Raises:
        ModelNotFoundError: it is incomplete, or its scheduler is none that is supported.
    """
    check_parts(folder, ("transformer", "vae"), "text_tokenizer", variant=options.variant)
    modular = read_json(folder / MODULAR) if (folder / MODULAR).is_file() else {}
    index = (read_json(folder / PIPELINE) if (folder / PIPELINE).is_file() else {}) | modular
    scheduler = read_scheduler(folder / "scheduler")
    distilled = None
    if is_distilled(modular):
        distilled = check_distilled(scheduler, modular.get("distilled_sigmas"), str(folder))
    else:
        check_unipc(scheduler, str(folder / "scheduler"))
    transformer = load_transformer(folder / "transformer", options)
    autoencoder = WanAutoencoder.load(folder / "vae", options)
    channels, patch = autoencoder.latents_shape(1, 16, 16)[1], transformer.config.latent_patch_size
    check_fit(
        folder / "transformer",
        transformer.config,
        f"latents have {channels} channels and patches of {patch} x {patch}",
        latent_channel=channels,
        patch_latent_dim=channels * patch**2,
    )
    check_fit(folder / "vae", autoencoder.vae.config, "Cosmos3's are", scale_factor_temporal=4)
    tokenizer = load_tokenizer(folder / "text_tokenizer", chat=True)
    check_vocabulary(folder / "text_tokenizer", tokenizer, transformer.config.vocab_size)
    return Cosmos3World(
        transformer,
        autoencoder,
        tokenizer,
        Cosmos3Config(
            scheduler,
            native_levels=bool(index.get("use_native_flow_schedule", False)),
            system_prompt=bool(index.get("default_use_system_prompt", True)),
            release_text=options.offload == "release",
            distilled=distilled,
        ),
        with_tiles(_capabilities_in(folder, transformer.config, distilled), options),
        TextHalf(transformer, folder / "transformer", options),
        Cosmos3TransferSampling,
    )


def _capabilities_in(folder: Path, config: Any, distilled: tuple[float, ...] | None) -> Capabilities:
    """Nothing in a policy's files tells it from the model that it was trained from, only the name of its repository."""
    made = capabilities_of(folder.name, config, distilled)
    # The hub's cache calls it models--nvidia--Cosmos3-Nano-Policy-DROID/snapshots/REVISION.
    is_policy = any("policy-droid" in part.lower() for part in folder.absolute().parts[-3:])
    return policy_of(made) if is_policy and made.action_domains else made
