"""A tiny checkpoint with random weights, in the layout of Microcosm's."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch

from cosmorama.world.microcosm.autoencoder import VideoAutoencoder
from cosmorama.world.microcosm.drive_net import DriveNet
from cosmorama.world.microcosm.finder import Finder
from cosmorama.world.microcosm.layout import SLOTS, VIEW, Layout
from cosmorama.world.microcosm.mover import Mover
from cosmorama.world.microcosm.still_refiner import StillRefiner
from cosmorama.world.microcosm.text_encoder import TextEncoder
from cosmorama.world.microcosm.transformer import CosmosTransformer

CHANNELS = 4


def save_transformer(folder: Path, *, blends: bool = False) -> None:
    """Write a random denoiser into `folder`, one for `"prediction": "blend"` or for the others."""
    torch.manual_seed(0)
    CosmosTransformer(
        in_channels=(2 if blends else 1) * CHANNELS + 1,
        out_channels=CHANNELS + (1 if blends else 0),
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        mlp_ratio=2.0,
        text_embed_dim=16,
        adaln_lora_dim=8,
        max_size=(32, 40, 40),
    ).save_pretrained(folder / "transformer")


def tiny_driver() -> tuple[DriveNet, Finder]:
    """Random networks to drive with."""
    torch.manual_seed(0)
    net: DriveNet = DriveNet(widths=(8, 8, 8, 8), motion_widths=(8, 8, 8, 8), context=8, text_width=16)
    for layer in (net.motion.write, net.scene.write, net.choice.write):  # as new it moves and paints nothing
        torch.nn.init.normal_(layer.weight, std=0.05)
    return net.eval().requires_grad_(False), Finder((8, 8, 8), 8).eval().requires_grad_(False)


def tiny_still_refiner() -> StillRefiner:
    """Random networks that draw stills again, whatever they show."""
    torch.manual_seed(0)
    net: StillRefiner = StillRefiner((8, 8), (8, 8), 8, 16)
    torch.nn.init.normal_(net.paint.write.weight, std=0.05)
    said = Layout(torch.zeros(1, SLOTS, 15), VIEW[None, :, 0]).told()
    objects = said[:, : -len(VIEW)].unflatten(1, (SLOTS, -1))
    objects[..., 1:6], objects[:, 0, 1], objects[:, 1, 1] = 0, -0.6, 0.6  # of usual sizes, beside each other
    objects[..., 0], objects[:, 0, 6], objects[:, 1, 7] = 50, 50, 50  # sure of two, a ball and a cube,
    objects[:, 0, 9], objects[:, 1, 10] = 50, 50  # of two colors
    cast(torch.Tensor, net.say[-1].bias).data.copy_(torch.cat([said[0], torch.tensor([50.0])]))
    return net.eval().requires_grad_(False)


def tiny_mover() -> Mover:
    """A random network that moves objects."""
    torch.manual_seed(0)
    net: Mover = Mover(8, 16)
    for part in (net.guess, net.push):  # as new it changes no velocity
        torch.nn.init.normal_(cast(torch.nn.Linear, part[-1]).weight, std=0.1)
    return net.eval().requires_grad_(False)


def save_tiny(
    folder: Path,
    sizes: Sequence[tuple[int, int]] = ((960, 704), (704, 960), (1280, 704)),
    *,
    drives: bool = False,
) -> Path:
    """Write a complete checkpoint into `folder`; it makes clips of `sizes`, width and height in pixels."""
    save_transformer(folder)
    if drives:
        driver, finder = tiny_driver()
        driver.save_pretrained(folder / "drive")
        finder.save_pretrained(folder / "finder")
    vae = VideoAutoencoder(CHANNELS)
    torch.nn.init.orthogonal_(vae.basis.data)
    vae.scaling_factor.data.fill_(0.2)
    vae.save_pretrained(folder / "vae")
    TextEncoder(["red", "blue", "ball", "cube", "falls"], width=16, layers=1, heads=2).save_pretrained(
        folder / "text_encoder"
    )
    world = {
        "name": "tiny",
        "prediction": "velocity",
        "timestep_scale": 1.0,
        "flow_shift": 3.0,
        "frames": {"multiple": 8, "max": 121},
        "fps": [12, 40],
        "sizes": sizes,
        "conditioning_frames": [1, 9],
        "guidance_map": [[1.0, 1.0], [7.0, 3.0], [10.0, 6.0]],
    }
    (folder / "world.json").write_text(json.dumps(world))
    return folder
