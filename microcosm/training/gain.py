"""What makes the channels of given frames equally strong where something moves, and how weights carry it.

The network is trained on the given frames times this gain. Exported, it is in the weights that read them, so that
serving hands the frames over as they are.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from cosmorama.world.microcosm.autoencoder import VideoAutoencoder
from microcosm.training.autoencoder import to_float
from microcosm.training.batches import Shots

MOVING = 1.0  # a cell moves where its latents' squared distance from the last ones' standing still exceeds this


def gain_of(shots: list[Shots], vae: VideoAutoencoder) -> Tensor:
    """What makes the channels of moving cells equally strong, [C, 1, 1, 1]: one over their standard deviation.

    Where something moves, the strongest channel is 40 times as strong as the weakest: a network that reads them as they
    are hardly sees how things move.
    """
    clips = next(some.frames for some in shots if some.frames.shape[1] > 1)
    latents = vae.encode_small(to_float(np.array(clips[:64])).to(vae.mean.device))
    later = latents[:, :, 1:]
    held = torch.cat([vae.hold(frame) for frame in latents[:, :, :-1].split(1, dim=2)], dim=2)
    moving = (later - held).square().sum(1) > MOVING
    return 1 / later.transpose(0, 1)[:, moving].std(1)[:, None, None, None].clamp_min(0.05)


def fold(weight: Tensor, gain: Tensor) -> None:
    """Let the patch embedding's weights [width, (2 C + 1) * patch], trained on `gain` times the given frames, take them
    as they are.
    """
    _reading_given(weight, gain).mul_(gain.view(1, -1, 1))


@torch.no_grad()
def unfold(weight: Tensor, gain: Tensor) -> None:
    """The inverse of `fold`."""
    _reading_given(weight, gain).div_(gain.view(1, -1, 1))


def _reading_given(weight: Tensor, gain: Tensor) -> Tensor:
    """What of the weights reads the given frames, [width, C, patch]: its channels come after those of the noise."""
    channels = len(gain)
    return weight.view(len(weight), 2 * channels + 1, -1)[:, channels : 2 * channels]
