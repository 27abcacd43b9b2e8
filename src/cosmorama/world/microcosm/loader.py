"""From a Microcosm checkpoint folder to a world model.

The folder has diffusers' layout: `transformer/`, `vae/` and `text_encoder/`, each a `config.json` and
safetensors, and `world.json` with what sampling needs to know.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import torch

from cosmorama.request import MODES, Capabilities, FrameRule, Range, Size
from cosmorama.world.kernels.cpu import use_onednn
from cosmorama.world.load.checkpoint import told_of
from cosmorama.world.load.read import read_json
from cosmorama.world.load.weights import Weights, assign, bounded
from cosmorama.world.microcosm.autoencoder import VideoAutoencoder
from cosmorama.world.microcosm.drive_net import DriveNet
from cosmorama.world.microcosm.driving import DRIVE
from cosmorama.world.microcosm.finder import Finder
from cosmorama.world.microcosm.mover import Mover
from cosmorama.world.microcosm.sampling import CosmosFlowWorld, FlowConfig, GuidanceMap
from cosmorama.world.microcosm.still_refiner import StillRefiner
from cosmorama.world.microcosm.stored import Stored
from cosmorama.world.microcosm.text_encoder import TextEncoder
from cosmorama.world.microcosm.transformer import CosmosTransformer

S = TypeVar("S", bound=Stored)


def load_microcosm(folder: Path) -> CosmosFlowWorld:
    """Load a checkpoint in float32: half precision is only how it is stored."""
    values: dict[str, Any] = read_json(folder / "world.json")
    autoencoder = load_component(VideoAutoencoder, folder / "vae")
    text_encoder = load_component(TextEncoder, folder / "text_encoder")
    config, capabilities = _flow_config(values), capabilities_of(folder)
    transformer = load_component(CosmosTransformer, folder / "transformer")
    use_onednn(transformer)
    world = CosmosFlowWorld(transformer, autoencoder, text_encoder, config, capabilities)
    if (folder / "drive").exists():
        world.driver = load_component(DriveNet, folder / "drive"), load_component(Finder, folder / "finder")
    if (folder / "still_refiner").exists():
        world.still_refiner = load_component(StillRefiner, folder / "still_refiner")
    if (folder / "mover").exists():
        world.mover = load_component(Mover, folder / "mover")
    return world


def load_component(kind: type[S], folder: Path) -> S:
    """One part of a checkpoint: its class, its folder, in float32 and ready to evaluate."""
    with told_of(folder):
        weights = Weights(folder)
        with bounded(weights):
            model = kind.from_config(weights.config)
        assign(model, weights, dtype=torch.float32)
    return model.eval().requires_grad_(False)


def _flow_config(values: dict[str, Any]) -> FlowConfig:
    return FlowConfig(
        prediction=values["prediction"],
        timestep_scale=float(values["timestep_scale"]),
        flow_shift=float(values["flow_shift"]),
        flow_shift_onward=float(values["flow_shift_onward"]) if "flow_shift_onward" in values else None,
        guidance=_guidance(values["guidance_map"]),
        guidance_onward=_guidance(values["guidance_map_onward"]) if "guidance_map_onward" in values else None,
        noise_onward=float(values.get("noise_onward", 1)),
        still_first=values.get("still_first", False),
    )


def _guidance(points: list[list[float]]) -> GuidanceMap:
    return tuple((float(scale), float(weight)) for scale, weight in points)


def capabilities_of(folder: Path) -> Capabilities:
    """What the checkpoint in a folder takes."""
    values = read_json(folder / "world.json")
    drives = (folder / "drive").exists()
    return Capabilities(
        model=values["name"],
        modes=(*MODES, "forward_dynamics") if drives else MODES,
        action_domains=(DRIVE,) if drives else (),
        prompt_words=None,  # it reads the words that it knows, and says so where it knows none
        ignores=("flow_shift",),
        sizes=tuple(Size(width, height) for width, height in values["sizes"]),
        frames=FrameRule(values["frames"]["multiple"], values["frames"]["max"]),
        fps=Range(*values["fps"]),
        conditioning_frames=tuple(sorted(values["conditioning_frames"], reverse=True)),
        longest=values["frames"]["max"] + 3 * (values["frames"]["max"] - max(values["conditioning_frames"])),
    )
