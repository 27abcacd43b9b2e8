"""What the Cosmos families on one transformer take, by the diffusers pipeline of their checkpoints.

Apart from what samples them: every server tells which families take what its own model does not, and few have to import
diffusers for that.
"""

from __future__ import annotations

from dataclasses import replace

from cosmorama.request import Capabilities, ControlKind, Defaults, FrameRule, Range, Size

KINDS: tuple[ControlKind, ...] = ("edge", "depth", "seg", "vis")
"""Controls that Transfer2.5 was trained for."""
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

CAPABILITIES: dict[str, tuple[str, Capabilities]] = {
    "CosmosTextToWorldPipeline": ("Predict1 7B, 14B", _PREDICT1),
    "CosmosVideoToWorldPipeline": ("Predict1 7B, 14B", replace(_PREDICT1, modes=("image2world", "video2world"))),
    "Cosmos2TextToImagePipeline": (
        "Predict2 2B, 14B",
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
    "Cosmos2VideoToWorldPipeline": ("Predict2 2B, 14B", _PREDICT2),
    "Cosmos2_5_PredictBasePipeline": ("Predict2.5 2B, 14B", _PREDICT25),
    "Cosmos2_5_TransferPipeline": (
        "Transfer2.5 2B",
        replace(
            _PREDICT25,
            model="transfer2.5",
            family="transfer2.5",
            modes=("transfer",),
            frames=FrameRule(1, 480),
            guidance_scale=Range(0, 7),
            conditioning_frames=(1,),
            defaults=replace(_PREDICT25.defaults, frames=480, steps=35, guidance_scale=3.0),
            controls=KINDS,
        ),
    ),
}
"""Which models are published so, and what a checkpoint takes that lacks nothing; with controls it has ControlNets."""


def limited(taken: Capabilities, latents: int, most: Size) -> Capabilities:
    """What of a family a checkpoint takes whose network has fewer positions, and its defaults with it.

    Args:
        taken: By the family.
        latents: Latent frames that there are positions for; a clip in chunks may have any number.
        most: The longest sides that there are positions for, in pixels.
    """
    frames, own, step = taken.frames, taken.defaults, taken.size_multiple or 1
    if not taken.controls:
        frames = replace(frames, maximum=min(frames.maximum, 1 + frames.multiple * (latents - 1)))
    sizes = tuple(size for size in taken.sizes if size.width <= most.width and size.height <= most.height)
    if not sizes:
        part = min(most.width / own.width, most.height / own.height)
        sizes = (Size(*(max(step, int(side * part) // step * step) for side in (own.width, own.height))),)
    usual = Size(own.width, own.height) if Size(own.width, own.height) in sizes else sizes[0]
    defaults = replace(own, width=usual.width, height=usual.height, frames=min(own.frames, frames.maximum))
    return replace(taken, frames=frames, sizes=sizes, max_sides=most, defaults=defaults)
