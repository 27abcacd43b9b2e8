"""Cosmos3: one model for stills, clips, continuations, and for what robots do in them.

The network is diffusers' `Cosmos3OmniTransformer`. It has no text encoder: text runs through its own understanding
half (`forward.understand`), and what generated tokens see of it is kept as the prompt's embedding. Given frames
are clean latents at the start of the clip; actions are further tokens. Noise, levels, positions and texts are those of
`Cosmos3OmniPipeline`, so the same seed gives the same clip.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers.models.transformers.transformer_cosmos3 import Cosmos3OmniTransformer
from torch import nn

from cosmorama.errors import ModelNotFoundError
from cosmorama.request import Capabilities
from cosmorama.world.cosmos3.capabilities import capabilities_of, policy_of
from cosmorama.world.cosmos3.prompt import chat
from cosmorama.world.cosmos3.sampling import VISION_START, Cosmos3Config, Cosmos3World
from cosmorama.world.levels import check_distilled, check_unipc
from cosmorama.world.load.checkpoint import (
    check_class,
    check_parts,
    check_vocabulary,
    choose_kernels,
    load_tokenizer,
    told_of,
)
from cosmorama.world.load.config import check_fit, read_scheduler
from cosmorama.world.load.files import MODULAR, PIPELINE, is_distilled
from cosmorama.world.load.names import is_quantized_matrix, read_by_text
from cosmorama.world.load.offload import TextHalf, check_offload, offload_layers
from cosmorama.world.load.options import LoadOptions
from cosmorama.world.load.read import read_json
from cosmorama.world.load.weights import Weights, assign, bounded
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
    system_prompt = _switch(folder, index, "default_use_system_prompt", usual=True)
    tokenizer = load_tokenizer(
        folder / "text_tokenizer", chat=partial(chat, kind="video", system_prompt=system_prompt), padded=False
    )
    check_vocabulary(folder / "text_tokenizer", tokenizer, transformer.config.vocab_size)
    for token in (tokenizer.eos_token or "eos_token", VISION_START):
        if token not in tokenizer.get_vocab():
            where = folder / "text_tokenizer"
            raise ModelNotFoundError(f"{where} cannot be loaded: it has no {token}, which Cosmos3's prompts end with")
    return Cosmos3World(
        transformer,
        autoencoder,
        tokenizer,
        Cosmos3Config(
            scheduler,
            native_levels=_switch(folder, index, "use_native_flow_schedule", usual=False),
            system_prompt=system_prompt,
            release_text=options.offload == "release",
            distilled=distilled,
        ),
        with_tiles(_capabilities_in(folder, transformer.config, distilled), options),
        TextHalf(transformer, folder / "transformer", options),
    )


def _switch(folder: Path, index: Mapping[str, Any], name: str, *, usual: bool) -> bool:
    """A member of a checkpoint's index that is true or false, which the word "false" is not."""
    if not isinstance(value := index.get(name, usual), bool):
        raise ModelNotFoundError(f"{folder}: {name} in its index is {value!r}; it must be true or false")
    return value


def _capabilities_in(folder: Path, config: Any, distilled: tuple[float, ...] | None) -> Capabilities:
    """Nothing in a policy's files tells it from the model that it was trained from, only the name of its repository."""
    made = capabilities_of(folder.name, config, distilled)
    # The hub's cache calls it models--nvidia--Cosmos3-Nano-Policy-DROID/snapshots/REVISION.
    is_policy = any("policy-droid" in part.lower() for part in folder.absolute().parts[-3:])
    return policy_of(made) if is_policy and made.action_domains else made


def load_transformer(folder: Path, options: LoadOptions) -> Cosmos3OmniTransformer:
    """Load a `Cosmos3OmniTransformer` from its folder, ready to evaluate; what predicts text is left where it is.

    Raises:
        ModelNotFoundError: weights are missing, are to wait where they run, or cannot be held as the options say.
    """
    check_offload(options.device, options.offload)
    weights = Weights(folder, options.variant)
    check_class(weights, Cosmos3OmniTransformer)
    from accelerate import init_empty_weights

    with told_of(folder), bounded(weights), init_empty_weights():
        model: Any = Cosmos3OmniTransformer.from_config({**weights.config, "sound_gen": False})
    del model.lm_head

    def place_of(name: str) -> torch.device | str:
        later = options.quantize != "none" and is_quantized_matrix(type(model).__name__, name, weights.shape(name))
        return "cpu" if later else _place_of(name, options)

    assign(model, weights, dtype=options.dtype or weights.dtype, place=place_of)
    model.rotary_emb.to(_place_of("rotary_emb", options))
    model.eval().requires_grad_(False)
    choose_kernels(model, options, lambda name: _place_of(name, options))
    offload_halves(model, options)
    return model


def offload_halves(model: nn.Module, options: LoadOptions, *, disk: Path | None = None) -> None:
    """Let the weights that are to wait on the CPU come layer by layer; with `disk` they wait in that folder."""
    device = torch.device(options.device)
    if options.offload == "layer":
        offload_layers(model, device, disk=disk)
    elif options.offload == "model":
        owners = dict.fromkeys(name.rpartition(".")[0] for name, _ in model.named_parameters() if read_by_text(name))
        offload_layers(nn.ModuleList(model.get_submodule(name) for name in owners), device, disk=disk)


def _place_of(name: str, options: LoadOptions) -> torch.device | str:
    """Where a weight is when it does not run."""
    waits = options.offload == "layer" or (options.offload == "model" and read_by_text(name))
    return "cpu" if waits else options.device
