"""Checks a request against a model and fills in what it left open, before anything expensive starts."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from cosmorama.errors import InvalidRequestError, Problem
from cosmorama.fitting import fitted, makes, nearest_size
from cosmorama.request import (
    CODECS,
    MAX_SEED,
    Capabilities,
    GenerationRequest,
    Mode,
    Range,
    Size,
)


def resolve(request: GenerationRequest, capabilities: Capabilities) -> GenerationRequest:
    """Check a request against a model and fill in what it left open (seed, solver, upsampling, conditioning frames).

    For `fit`, size and rate become the model's own and `target` what was asked for. Resolving again changes nothing.

    Raises:
        InvalidRequestError: naming every field that is wrong, its value and what is accepted.
    """
    request = _close(request, capabilities)
    request, problems = fitted(request, capabilities) if request.fit else (request, [])
    # A request that cannot be fitted is still the client's own: the model's sizes say nothing about it.
    unfitted = _FITTED_FIELDS if problems else ()
    problems += [problem for problem in _problems(request, capabilities) if problem.field not in unfitted]
    if problems:
        raise InvalidRequestError(*problems)
    text_only = request.mode == "text2world"
    return replace(
        request,
        seed=secrets.randbelow(MAX_SEED + 1) if request.seed is None else request.seed,
        solver=request.solver or capabilities.default_solver,
        prompt_upsampling=text_only if request.prompt_upsampling is None else request.prompt_upsampling,
        conditioning_frames=_conditioning_frames(request, capabilities),
        reuse=request.reuse or 0.0,
        vae_tiling=capabilities.defaults.vae_tiling if request.vae_tiling is None else request.vae_tiling,
    )


def _close(request: GenerationRequest, capabilities: Capabilities) -> GenerationRequest:
    """The request with every field that was left open at a value that the model takes."""
    ranges = {
        "guidance_scale": capabilities.guidance_scale,
        "steps": capabilities.steps,
        "frames": Range(1, capabilities.frames.maximum),  # a clip is continued only if that was asked for
        "fps": capabilities.fps,
        "flow_shift": capabilities.flow_shift,
        "reuse": capabilities.reuse,
    }
    taken: dict[str, Any] = {}
    for name in request.left_open:
        if name == "size":
            size = nearest_size(capabilities, Size(request.width, request.height))
            taken |= {"width": size.width, "height": size.height}
            continue
        value, accepted = getattr(request, name), ranges[name]
        if accepted is None:
            taken[name] = None
        elif value is not None and value not in accepted:
            nearest = min(max(value, accepted.low), accepted.high)
            taken[name] = int(nearest) if isinstance(value, int) else nearest
    return replace(request, **taken, left_open=())


def _conditioning_frames(request: GenerationRequest, capabilities: Capabilities) -> int:
    if request.image is not None:
        return 1
    if request.video is None:
        return 0
    if request.conditioning_frames is not None:
        return request.conditioning_frames
    # Something must be left to generate, so a short request continues from fewer frames.
    fitting = [n for n in capabilities.conditioning_frames if n < request.frames]
    return max(fitting, default=min(capabilities.conditioning_frames))


def _problems(request: GenerationRequest, capabilities: Capabilities) -> Iterator[Problem]:
    yield from _prompt_problems(request, capabilities)
    if request.image is not None and request.video is not None:
        yield Problem("video", "both image and video", "either an image or a video, not both")
    elif request.mode not in capabilities.modes:
        accepted = f"one of {_listed(capabilities.modes)} for {capabilities.model}"
        yield Problem("mode", request.mode, accepted + _families_with(request.mode))
    if request.seed is not None and not (_is_int(request.seed) and 0 <= request.seed <= MAX_SEED):
        yield Problem("seed", request.seed, f"an integer from 0 to {MAX_SEED}, or null to draw one")
    if not _in(request.guidance_scale, capabilities.guidance_scale):
        yield Problem("guidance_scale", request.guidance_scale, f"a number from {capabilities.guidance_scale}")
    if not (_is_int(request.steps) and request.steps in capabilities.steps):
        yield Problem("steps", request.steps, f"an integer from {capabilities.steps}")
    size = Size(request.width, request.height)
    if not makes(capabilities, size):
        yield Problem("size", str(size), _accepted_sizes(capabilities))
    if not (_is_int(request.frames) and 1 <= request.frames <= capabilities.most_frames):
        yield Problem("frames", request.frames, f"an integer from 1 to {capabilities.most_frames}")
    if not _in(request.fps, capabilities.fps):
        yield Problem("fps", request.fps, f"a number from {capabilities.fps}")
    yield from _sampling_problems(request, capabilities)
    yield from _output_problems(request)


def _families_with(mode: Mode) -> str:
    families = _FAMILIES.get(mode, ())
    return f"; models of the family {' or '.join(families)} make {mode}" if families else ""


def _accepted_sizes(capabilities: Capabilities) -> str:
    listed = f"width x height, one of {_listed(capabilities.sizes)}"
    if capabilities.size_multiple is None:
        return listed
    return f"{listed}, or multiples of {capabilities.size_multiple} with at most {capabilities.max_pixels} pixels"


def _prompt_problems(request: GenerationRequest, capabilities: Capabilities) -> Iterator[Problem]:
    if request.mode == "text2world" and not (request.prompt or "").strip():
        yield Problem("prompt", request.prompt, "a text (it may only be left out when an image or a video is given)")
    for name, text in (("prompt", request.prompt), ("negative_prompt", request.negative_prompt)):
        words = len((text or "").split())
        if words > capabilities.prompt_words:
            yield Problem(name, f"{words} words", f"at most {capabilities.prompt_words} words")


def _sampling_problems(request: GenerationRequest, capabilities: Capabilities) -> Iterator[Problem]:
    if request.solver is not None and request.solver not in capabilities.solvers:
        yield Problem("solver", request.solver, f"one of {_listed(capabilities.solvers)}")
    start, end = request.guidance_interval
    if not (_in(start, _UNIT) and _in(end, _UNIT) and start <= end):
        yield Problem("guidance_interval", request.guidance_interval, "fractions of the steps, 0 <= start <= end <= 1")
    if not _in(request.guidance_rescale, _UNIT):
        yield Problem("guidance_rescale", request.guidance_rescale, "a number from 0 to 1")
    if request.flow_shift is not None and not (
        capabilities.flow_shift is not None and _in(request.flow_shift, capabilities.flow_shift)
    ):
        accepted = f"a number from {capabilities.flow_shift}" if capabilities.flow_shift else "no value for this model"
        yield Problem("flow_shift", request.flow_shift, accepted)
    if request.reuse is not None and not _in(request.reuse, capabilities.reuse or Range(0, 0)):
        accepted = f"a number from {capabilities.reuse}" if capabilities.reuse else "0: this model has no step reuse"
        yield Problem("reuse", request.reuse, accepted)
    tiles = (0, *capabilities.vae_tiles)
    if request.vae_tiling is not None and not (_is_int(request.vae_tiling) and request.vae_tiling in tiles):
        accepted = f"one of {_listed(tiles)}" if capabilities.vae_tiles else "0: this model has no tiles"
        yield Problem("vae_tiling", request.vae_tiling, accepted)
    yield from _input_problems(request, capabilities)
    given, counts = request.conditioning_frames, capabilities.conditioning_frames
    if given is None:
        return
    if request.mode != "video2world":
        if given != _conditioning_frames(request, capabilities):  # what `resolve` fills in may come back
            yield Problem("conditioning_frames", given, "no value unless a video is given")
    elif given not in counts or given >= max(request.frames, 2):
        yield Problem("conditioning_frames", given, f"one of {_listed(counts)}, less than frames")


def _input_problems(request: GenerationRequest, capabilities: Capabilities) -> Iterator[Problem]:
    for control in request.controls:
        if control.kind not in capabilities.controls:
            accepted = f"one of {_listed(capabilities.controls)}" if capabilities.controls else "no controls"
            yield Problem("controls", control.kind, f"{accepted} for {capabilities.model}")
        if not _in(control.weight, _UNIT):
            yield Problem(f"controls.{control.kind}.weight", control.weight, "a number from 0 to 1")
    if request.action is not None:
        domains = {domain.id: domain for domain in capabilities.action_domains}
        if request.action.domain not in domains:
            accepted = ", ".join(f"{domain.id} ({domain.name})" for domain in domains.values()) or "no actions"
            yield Problem("action.domain", request.action.domain, accepted)
    for adapter in request.adapters:
        if adapter.name not in capabilities.adapters:
            accepted = (
                f"one of {_listed(capabilities.adapters)}" if capabilities.adapters else "no adapter: none is loaded"
            )
            yield Problem("adapters", adapter.name, accepted)


def _output_problems(request: GenerationRequest) -> Iterator[Problem]:
    output = request.output
    codecs = CODECS.get(output.container)
    if codecs is None:
        yield Problem("output.container", output.container, f"one of {_listed(tuple(CODECS))}")
    elif output.codec is not None and output.codec not in codecs:
        accepted = f"one of {_listed(codecs)}" if codecs else "no codec"
        yield Problem("output.codec", output.codec, f"{accepted} in {output.container}")
    if output.container == "jpeg" and request.result.frames != 1:
        yield Problem("output.container", "jpeg", "another container unless frames is 1: it holds one picture")
    if not (_is_int(output.quality) and 1 <= output.quality <= 9):
        yield Problem("output.quality", output.quality, "an integer from 1 to 9")


_UNIT = Range(0, 1)
_FITTED_FIELDS = ("size", "frames", "fps")
_FAMILIES: dict[Mode, tuple[str, ...]] = {
    "transfer": ("transfer25", "cosmos3"),
    "forward_dynamics": ("cosmos3",),
    "inverse_dynamics": ("cosmos3",),
    "policy": ("cosmos3",),
}
"""Which families in `cosmorama.world` have models for a mode that not every model has."""


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _in(value: object, accepted: Range) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value in accepted


def _listed(values: Sequence[object]) -> str:
    return ", ".join(str(value) for value in values)
