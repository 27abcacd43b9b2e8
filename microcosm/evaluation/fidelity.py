"""What decoding costs: PSNR at the output size, the given picture, seconds of the default request, megabytes."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from cosmorama.local import Model
from cosmorama.request import Defaults, GenerationRequest
from cosmorama.world.microcosm.autoencoder import OUTPUT_SCALE, VideoAutoencoder
from cosmorama.world.microcosm.loader import load_component, load_microcosm
from microcosm.evaluation.continuation import moving_pixels
from microcosm.evaluation.figures import Figure
from microcosm.scenes.closeups import FIRST_HELD_OUT_SEED, Closeup, draw_closeup, wide_shots
from microcosm.scenes.simulate import draw_shot
from microcosm.training.autoencoder import psnr, to_float
from microcosm.training.decoder import decode_one

DEFAULT = GenerationRequest(prompt="A red ball rolls to the right and hits a blue cube on a green floor.", seed=1)


def held_out_closeups(count: int) -> list[Closeup]:
    """Close-ups of held-out shots."""
    return [draw_closeup(shot) for shot in islice(wide_shots(FIRST_HELD_OUT_SEED, draw_shot), count)]


@torch.inference_mode()
def measure_decoder(weights: Path, closeups: Sequence[Closeup]) -> list[Figure]:
    """PSNR of decoded frames at the output size, of moving groups of frames and of given pictures."""
    vae = load_component(VideoAutoencoder, weights / "vae")
    moving, still = decoder_psnr(vae, closeups), psnr(*_given(vae, closeups))
    plain = without_learned_parts(vae)
    linear, linear_still = decoder_psnr(plain, closeups), psnr(*_given(plain, closeups))
    figures = [
        Figure(
            f"decoder at the output size, {pixels} pixels",
            moving[pixels],
            must,
            goal,
            "dB",
            bounds={"linear and bicubic": linear[pixels]},
            note=f"{len(closeups)} frames",
        )
        for pixels, must, goal in (("all", 32, 35), ("moving", 24, 27))
    ]
    name = "first frame of image2world against the given picture"
    given = Figure(
        name, still, 30, 33, "dB", bounds={"linear and bicubic": linear_still}, note=f"{len(closeups)} pictures"
    )
    return [*figures, given]


def without_learned_parts(vae: VideoAutoencoder) -> VideoAutoencoder:
    """The same latent space with the linear decoder and bicubic enlargement."""
    plain: VideoAutoencoder = VideoAutoencoder(vae.config.channels)
    plain.load_state_dict(vae.state_dict(), strict=False)
    plain.eval()
    return plain


def decoder_psnr(vae: VideoAutoencoder, closeups: Sequence[Closeup]) -> dict[str, float]:
    """PSNR in dB over all pixels and over those that move within the latent frame's eight frames."""
    made, wanted, moves = [], [], []
    for one in closeups:
        made.append(_enlarged(vae, decode_one(vae, one)))
        wanted.append(_picture(one))
        moves.append(moving_pixels(to_float(one.small[None]))[0, 0, 0])
    mask = torch.stack(moves).repeat_interleave(OUTPUT_SCALE, 1).repeat_interleave(OUTPUT_SCALE, 2)
    shown, true = torch.stack(made), torch.stack(wanted)
    # [N, H, W, 3]: a mask over the first three picks pixels.
    moved = psnr(shown.permute(0, 2, 3, 1)[mask], true.permute(0, 2, 3, 1)[mask]) if bool(mask.any()) else float("nan")
    return {"all": psnr(shown, true), "moving": moved}


def _given(vae: VideoAutoencoder, closeups: Sequence[Closeup]) -> tuple[Tensor, Tensor]:
    """Given pictures as the first frame of a clip shows them, and as they are. The sampler leaves them untouched."""
    made = []
    for one in closeups:
        latents = vae.encode(to_float(one.large[None, None]))
        (frame,) = next(iter(vae.decode_stream(latents, *one.large.shape[:2])))
        made.append(frame.permute(2, 0, 1).float() / 127.5 - 1)
    return torch.stack(made), torch.stack([_picture(one) for one in closeups])


def _picture(one: Closeup) -> Tensor:
    """The large frame, float [3, H, W]."""
    return to_float(one.large[None, None])[0, :, 0]


def _enlarged(vae: VideoAutoencoder, small: Tensor) -> Tensor:
    """A small frame [3, h, w] at the output size as it is written: bytes, then float [3, H, W]."""
    (frame,) = vae.enlarge(small[None])
    return cast(Tensor, frame.permute(2, 0, 1).float() / 127.5 - 1)


def measure_cost(weights: Path, steps: int = Defaults().steps) -> list[Figure]:
    """Seconds of the API's default request, from request to file on all cores, and megabytes of weights."""
    model = Model(load_microcosm(weights))
    with tempfile.TemporaryDirectory() as folder:
        outcome = model.generate_file(replace(DEFAULT, steps=steps), Path(folder) / "clip.mp4")
    seconds = sum(outcome.timings.values())
    size = sum(path.stat().st_size for path in weights.rglob("*") if path.is_file()) / 1e6
    return [
        Figure("default request", seconds, 90, 45, "s", at_most=True, bounds=dict(outcome.timings)),
        Figure("weights", size, 40, 25, "MB", at_most=True),
    ]
