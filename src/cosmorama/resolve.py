"""Checks a request against a model and fills in what it left open, before anything expensive starts."""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args

from cosmorama.errors import InvalidRequestError, Problem
from cosmorama.fitting import fitted, makes, nearest_size
from cosmorama.request import (
    CODECS,
    COMPUTED_CONTROLS,
    MAX_ACTION_NUMBERS,
    MAX_ADAPTERS,
    MAX_CONTROLS,
    MAX_INDEXES,
    MAX_SEED,
    PROMPT_MAX_CHARACTERS,
    SOLVERS,
    Action,
    ActionDomain,
    AdapterPreset,
    Capabilities,
    GenerationRequest,
    Preset,
    Range,
    ResolvedRequest,
    Size,
    Usual,
)
from cosmorama.usual import usual_of


def resolve(request: GenerationRequest, capabilities: Capabilities) -> ResolvedRequest:
    """Check a request against a model and fill in all that it left open.

    For `fit`, size and rate become the model's own and `target` what was asked for. Resolving again changes nothing.

    Raises:
        InvalidRequestError: naming every field that is wrong, its value and what is accepted.
    """
    capabilities, domain = _acting(request, capabilities)
    filled, warnings = _filled(request, capabilities, domain)
    made, unfitted = fitted(filled, capabilities) if request.fit and not capabilities.action_only else (filled, [])
    if made.target is not None and filled.target is None:
        warnings.append(_fitted_words(made))
    # A request that cannot be fitted is still the client's own: the model's sizes say nothing about it.
    skipped = _FITTED_FIELDS if unfitted else ()
    found = unfitted + [problem for problem in _problems(made, capabilities) if problem.field not in skipped]
    if request.frames is None and request.seconds is not None:
        accepted = f"as many as make 1 to {capabilities.most_frames} frames: {made.frames} at {made.fps:g} fps are not"
        found = [
            Problem("seconds", request.seconds, accepted) if problem.field == "frames" else problem for problem in found
        ]
    # Of two words about a number, the model's own say more.
    said = _NUMBERS & {"width" if problem.field == "size" else problem.field for problem in found}
    said |= {"height"} if "width" in said else set()
    if problems := [problem for problem in problems_of(request) if problem.field not in said] + found:
        raise InvalidRequestError(*problems)
    # A picture is sent along where a caption in JSON is written.
    from_text = made.mode == "text2world" or (domain is not None and not _pictured(made))
    expands = from_text or (made.mode == "image2world" and capabilities.family == "cosmos3")
    return replace(
        made,
        seed=secrets.randbelow(MAX_SEED + 1) if made.seed is None else made.seed,
        solver=made.solver or _preset(request, capabilities).solver or capabilities.default_solver,
        prompt_upsampling=expands if made.prompt_upsampling is None else made.prompt_upsampling,
        conditioning_frames=_conditioning_frames(made, capabilities),
        reuse=made.reuse or 0.0,
        vae_tiling=capabilities.defaults.vae_tiling if made.vae_tiling is None else made.vae_tiling,
        warnings=tuple(dict.fromkeys((*made.warnings, *warnings))),
    )


def _acting(request: GenerationRequest, capabilities: Capabilities) -> tuple[Capabilities, ActionDomain | None]:
    """What the model takes of requests with these actions, and their domain, where that says what it takes."""
    given = None if request.action is None else request.action.domain
    domain = next((each for each in capabilities.action_domains if each.id == given and each.ranges), None)
    if domain is None:
        return capabilities, None
    defaults = replace(capabilities.defaults, fps=domain.fps or capabilities.defaults.fps)
    sizes = domain.sizes or capabilities.sizes
    return replace(capabilities, defaults=defaults, sizes=sizes, longest=domain.longest), domain


def _pictured(request: GenerationRequest) -> bool:
    return request.image is not None or request.video is not None


def check(request: GenerationRequest) -> None:
    """Find the mistakes that need no model to be found, so that none is loaded for them.

    Raises:
        InvalidRequestError: naming every field that is wrong, its value and what is accepted.
    """
    problems = [*problems_of(request), *_missing_files(request)]
    if request.solver not in (None, *SOLVERS):
        problems.append(Problem("solver", request.solver, f"one of {_listed(SOLVERS)}"))
    if problems:
        raise InvalidRequestError(*problems)


def problems_of(request: GenerationRequest) -> Iterator[Problem]:
    """What is wrong with a request whatever the model."""
    if request.mode == "text2world" and not (request.prompt or "").strip():
        yield Problem("prompt", request.prompt, "a text (it may only be left out when an image or a video is given)")
    for name, text in (("prompt", request.prompt), ("negative_prompt", request.negative_prompt)):
        if text is not None and len(text) > PROMPT_MAX_CHARACTERS:
            yield Problem(name, f"{len(text)} characters", f"at most {PROMPT_MAX_CHARACTERS} characters")
    if request.image is not None and request.video is not None:
        yield Problem("video", "both image and video", "either an image or a video, not both")
    else:
        yield from _given_problems(request)
    if request.seed is not None and not (_is_int(request.seed) and 0 <= request.seed <= MAX_SEED):
        yield Problem("seed", request.seed, f"an integer from 0 to {MAX_SEED}, or null to draw one")
    counts = dict.fromkeys(("steps", "frames", "width", "height", "chunk_frames"), 1)
    for name, least in (counts | {"first_conditioning_frames": 0}).items():
        value = getattr(request, name)
        if value is not None and not (_is_int(value) and value >= least):
            yield Problem(name, value, f"an integer of at least {least}")
    if request.seconds is not None and not (_is_number(request.seconds) and 0 < request.seconds <= 3600):
        yield Problem("seconds", request.seconds, "a number above 0 and at most 3600")
    for name in ("guidance_scale", "fps", "flow_shift"):
        value = getattr(request, name)
        if value is not None and not (_is_number(value) and math.isfinite(value) and value >= 0):
            yield Problem(name, value, "a finite number of at least 0")
    interval = tuple(request.guidance_interval)
    if not (len(interval) == 2 and all(_in(end, _UNIT) for end in interval) and interval[0] <= interval[1]):
        yield Problem("guidance_interval", request.guidance_interval, "fractions of the steps, 0 <= start <= end <= 1")
    if not _in(request.guidance_rescale, _UNIT):
        yield Problem("guidance_rescale", request.guidance_rescale, "a number from 0 to 1")
    if request.control_guidance is not None and not _in(request.control_guidance, Range(0, 10)):
        yield Problem("control_guidance", request.control_guidance, "a number from 0 to 10")
    if request.conditioning_indexes is not None and not (
        request.conditioning_indexes and all(_is_int(index) and index >= 0 for index in request.conditioning_indexes)
    ):
        yield Problem("conditioning_indexes", list(request.conditioning_indexes), "numbers of latent frames, from 0 on")
    lists: tuple[tuple[str, Sequence[object], int], ...] = (
        ("controls", request.controls, MAX_CONTROLS),
        ("adapters", request.adapters, MAX_ADAPTERS),
        ("conditioning_indexes", request.conditioning_indexes or (), MAX_INDEXES),
    )
    for name, listed, most in lists:
        if len(listed) > most:
            yield Problem(name, f"{len(listed)} entries", f"at most {most} entries")
    if request.keep not in ("first", "last"):
        yield Problem("keep", request.keep, "first or last")
    rows = () if request.action is None else request.action.values or ()
    if sum(map(len, rows)) > MAX_ACTION_NUMBERS:
        yield Problem("action.values", "too many numbers", f"at most {MAX_ACTION_NUMBERS} numbers")
    elif not all(_is_number(number) and math.isfinite(number) for row in rows for number in row):
        yield Problem("action.values", "something else", "rows of finite numbers")
    for adapter in request.adapters:
        if not _in(adapter.scale, _SCALES):
            yield Problem(f"adapters.{adapter.name}.scale", adapter.scale, f"a number from {_SCALES}")
    for control in request.controls:
        if control.preset not in get_args(Preset):
            yield Problem(f"controls.{control.kind}.preset", control.preset, f"one of {_listed(get_args(Preset))}")
    kinds = [control.kind for control in request.controls]
    yield from (
        Problem("controls", kind, "every kind of control once")
        for kind in dict.fromkeys(kinds)
        if kinds.count(kind) > 1
    )
    yield from _output_problems(request)


def _given_problems(request: GenerationRequest) -> Iterator[Problem]:
    """What a mode needs and lacks, and what it would not look at."""
    needs, reads = _GIVEN.get(request.mode, ((), _INPUTS))
    for name in _INPUTS:
        given = getattr(request, name) not in (None, ())
        if given and name not in (*needs, *reads):
            yield Problem(name, "given", f"none: {request.mode} does not look at it")
        elif not given and name in needs:
            what = f"a domain and steps for {request.mode}" if name == "action" else f"given for {request.mode}"
            yield Problem(name, None, what)
    prompted = request.mode == "forward_dynamics" and (request.prompt or "").strip()  # there are models that can so
    if "action" in needs and not _pictured(request) and "video" not in needs and not prompted:
        or_words = ", or a prompt for a model that begins from words" if request.mode == "forward_dynamics" else ""
        yield Problem("image", None, f"given for {request.mode}{or_words}")


def _missing_files(request: GenerationRequest) -> Iterator[Problem]:
    """Of the caller's own machine: a server's clients cannot name files."""
    sources = {"image": request.image, "video": request.video}
    sources |= {f"controls.{control.kind}.source": control.source for control in request.controls}
    for name, source in sources.items():
        if isinstance(source, Path) and not source.expanduser().is_file():
            yield Problem(name, str(source), "a file that exists")


def _filled(
    request: GenerationRequest, capabilities: Capabilities, domain: ActionDomain | None
) -> tuple[ResolvedRequest, list[str]]:
    """The request with everything the model needs: as asked, else as usual on its wire, else the model's default."""
    own, usual, preset = capabilities.defaults, usual_of(request, capabilities), _preset(request, capabilities)
    ranges = {
        "guidance_scale": capabilities.guidance_scale,
        "steps": capabilities.steps,
        "fps": capabilities.fps,
        "frames": Range(1, capabilities.frames.maximum),  # a clip is continued only if that was asked for
    }
    values = {field.name: getattr(request, field.name) for field in fields(request)}
    values |= {"usual": None, "seconds": None}
    if request.mode == "transfer" and request.fps is None and usual.fps is None:
        values["source_rate"] = True
    if request.frames is None and request.action is not None:
        values["frames"] = request.action.steps + 1
    elif request.frames is None and request.output.container == "jpeg":
        values["frames"] = 1
    for name, accepted in ranges.items():
        if values[name] is None:
            wanted = getattr(preset, name, None)
            wanted = getattr(usual, name) if wanted is None else wanted
            if name == "frames" and (seconds := request.seconds or (usual.seconds if wanted is None else None)):
                wanted = _frames_of(seconds, values["fps"])
                if request.seconds is not None:
                    values[name] = wanted
                    continue
            taken = wanted is not None and wanted in accepted
            values[name] = wanted if taken else _within(getattr(own, name), accepted)
    shift = usual.flow_shift if preset.flow_shift is None else preset.flow_shift
    if request.flow_shift is None and capabilities.flow_shift is not None and shift is not None:
        values["flow_shift"] = shift if shift in capabilities.flow_shift else None
    if request.negative_prompt is None:
        usual_text = usual.negative_prompt if capabilities.negative_prompts else None
        values["negative_prompt"] = own.negative_prompt if usual_text is None else usual_text
    if request.reuse is None and usual.reuse is not None and capabilities.reuse is not None:
        values["reuse"] = usual.reuse
    values |= _size(request, usual, capabilities)
    warnings: list[str] = []
    if request.conditioning_indexes and request.mode in ("text2world", "transfer"):
        why = "chunks follow their controls" if request.mode == "transfer" else "neither a picture nor a clip is given"
        warnings.append(f"conditioning indexes were not used: {why}")
        values["conditioning_indexes"] = None
    else:
        values |= _conditions(request, capabilities)
    if request.action is not None:
        values["action"], said = _action(request.action, values["fps"], capabilities)
        warnings += said
        if domain is not None and not isinstance(request, ResolvedRequest):
            warnings += [
                f"{name} was not used: a drive is drawn frame by frame, from no noise"
                for name in ("steps", "guidance_scale", "negative_prompt")
                if getattr(request, name) is not None
            ]
    for name in ("control_guidance", "chunk_frames", "first_conditioning_frames"):
        if capabilities.control_guidance is not None and request.mode == "transfer":
            values[name] = values[name] if values[name] is not None else getattr(usual, name, None)
        elif values[name]:
            warnings.append(f"{name.replace('_', ' ')} was not used: {capabilities.model} does not take it")
            values[name] = None
    counts = capabilities.conditioning_frames
    fixed = request.mode == "transfer" and capabilities.control_guidance is None
    if fixed and request.conditioning_frames not in (None, *counts):
        warnings.append(f"conditioning frames were not used: a chunk repeats {_listed(counts)} of the one before")
        values["conditioning_frames"] = None
    if _in(values["guidance_scale"], _UNIT) and not isinstance(request, ResolvedRequest):
        of_guidance = {
            "negative prompt": request.negative_prompt and capabilities.negative_prompts,
            "guidance interval": tuple(request.guidance_interval) != (0.0, 1.0),
            "guidance rescale": request.guidance_rescale,
        }
        off = "a guidance scale of 1 or less switches guidance off"
        warnings += [f"{name} was not used: {off}" for name, asked in of_guidance.items() if asked]
    for name in capabilities.ignores:
        if values.get(name) is not None:
            warnings.append(f"{name} was not used: {capabilities.model} has its own")
            values[name] = None
    return ResolvedRequest(**values), warnings


def _preset(request: GenerationRequest, capabilities: Capabilities) -> AdapterPreset:
    """That of the request's adapters; of several, the first one's that has any."""
    presets = capabilities.adapter_presets
    acting = [adapter.name for adapter in request.adapters if adapter.scale != 0 and adapter.name in presets]
    return presets[acting[0]] if acting else AdapterPreset()


def _frames_of(seconds: float, fps: float) -> int:
    """Frames of so long a clip: numbers that are refused in the end may be anything, also not a number."""
    frames = seconds * fps
    return round(min(frames, 1e9)) if frames > 1 else 1


def _action(action: Action, fps: float, capabilities: Capabilities) -> tuple[Action, list[str]]:
    """The action without what no model here acts on, and what that was."""
    unused = {
        "the actions' own rate": action.fps not in (None, fps),
        "the action space": action.space != "joint_pos",
        "the robot's state": action.state is not None and not capabilities.action_only,
    }
    said = [f"{name} was not used: {capabilities.model} does not take it" for name, given in unused.items() if given]
    if action.values and len(action.values) != action.steps:
        few = len(action.values) < action.steps
        done = "the last one was repeated" if few else f"those after the first {action.steps} were not used"
        said.append(f"{len(action.values)} actions were given for {action.steps} steps: {done}")
    if capabilities.action_only:
        return replace(action, fps=None, space="joint_pos", view="concat_view"), said
    return replace(action, fps=None, space="joint_pos", state=None), said


def robot_state(action: Action) -> tuple[float, ...]:
    """Seven joints and how far the gripper is closed, of an action's `state` under DROID's names.

    Raises:
        InvalidRequestError: they are not there, or are not finite numbers.
    """
    state = json.loads(action.state or "{}")
    observation = state.get("observation") or {}
    joints, gripper = observation.get("observation/joint_position"), observation.get("observation/gripper_position")
    values = [*(joints if isinstance(joints, list) else ()), *(gripper if isinstance(gripper, list) else (gripper,))]
    if len(values) != ROBOT_STATE or not all(_is_number(value) and math.isfinite(value) for value in values):
        accepted = "observation/joint_position with 7 finite numbers, and observation/gripper_position with one"
        raise InvalidRequestError(Problem("action.state", sorted(observation), accepted))
    return tuple(map(float, values))


def _size(request: GenerationRequest, usual: Usual, capabilities: Capabilities) -> dict[str, int]:
    """Width and height; of one side alone, the other that the model has with it."""
    own = capabilities.defaults
    if request.width is not None and request.height is not None:
        return {"width": request.width, "height": request.height}
    if request.width is None and request.height is None:
        given = usual.width is not None and usual.height is not None
        size = Size(usual.width or own.width, usual.height or own.height) if given else Size(own.width, own.height)
        if not request.fit or not given:
            size = nearest_size(capabilities, size)
        return {"width": size.width, "height": size.height}
    size = Size(request.width or own.width, request.height or own.height)
    if not makes(capabilities, size):
        fitting = [each for each in capabilities.sizes if request.width in (None, each.width)]
        fitting = [each for each in fitting if request.height in (None, each.height)]
        size = fitting[0] if fitting else size
    return {"width": size.width, "height": size.height}


def _conditions(request: GenerationRequest, capabilities: Capabilities) -> dict[str, Any]:
    """Latent frames that are the first ones, as the number of frames that they are."""
    given = request.conditioning_indexes
    if not given:
        return {}
    indexes = tuple(sorted(set(given)))
    if indexes == USUAL_INDEXES:  # the most that the models take, however many frames that is for them
        return {"conditioning_indexes": None}
    frames = 1 + LATENT_FRAMES * (len(indexes) - 1)
    if indexes == tuple(range(len(indexes))) and frames in capabilities.conditioning_frames:
        return {"conditioning_indexes": None, "conditioning_frames": frames}
    return {"conditioning_indexes": indexes}


def _within(value: float, accepted: Range) -> float:
    nearest = min(max(value, accepted.low), accepted.high)
    return int(nearest) if isinstance(value, int) else nearest


def _fitted_words(made: ResolvedRequest) -> str:
    asked = made.result
    parts = []
    if (asked.width, asked.height) != (made.width, made.height):
        parts.append(f"{asked.width}x{asked.height} was made at {made.width}x{made.height} and resampled")
    if asked.fps != made.fps:
        parts.append(f"{asked.fps:g} fps was made at {made.fps:g} fps and resampled")
    return ", ".join(parts)


def _conditioning_frames(request: ResolvedRequest, capabilities: Capabilities) -> int:
    if request.mode == "transfer":  # of a chunk, from the one before it
        return 1 if request.conditioning_frames is None else request.conditioning_frames
    if request.image is not None:
        return 1
    if request.video is None:
        return 0
    if request.conditioning_frames is not None:
        return request.conditioning_frames
    # Something must be left to generate, so a short request continues from fewer frames.
    fitting = [n for n in capabilities.conditioning_frames if n < request.frames]
    return max(fitting, default=min(capabilities.conditioning_frames))


def _problems(request: ResolvedRequest, capabilities: Capabilities) -> Iterator[Problem]:
    yield from _prompt_problems(request, capabilities)
    if request.mode not in capabilities.modes:
        accepted = f"one of {_listed(capabilities.modes)} for {capabilities.model}"
        needed = [given for mode, given in _STARTS_FROM.items() if mode in capabilities.modes]
        start = f", which starts from {' or '.join(needed)}" if needed and request.mode == "text2world" else ""
        yield Problem("mode", request.mode, accepted + start + _who_has(request.mode, capabilities))
    if not _in(request.guidance_scale, capabilities.guidance_scale):
        yield Problem("guidance_scale", request.guidance_scale, _number_from(capabilities.guidance_scale))
    if not (_is_int(request.steps) and request.steps in capabilities.steps):
        yield Problem("steps", request.steps, _number_from(capabilities.steps, "an integer"))
    size = Size(request.width, request.height)
    if not makes(capabilities, size):
        owned = f"no value: the model has its own, {capabilities.sizes[0]}"
        yield Problem("size", str(size), owned if capabilities.action_only else _accepted_sizes(capabilities))
    if not (_is_int(request.frames) and 1 <= request.frames <= capabilities.most_frames):
        yield Problem("frames", request.frames, f"an integer from 1 to {capabilities.most_frames}")
    if not _in(request.fps, capabilities.fps):
        yield Problem("fps", request.fps, _number_from(capabilities.fps))
    yield from _sampling_problems(request, capabilities)
    if request.output.container == "jpeg" and request.result.frames != 1:
        yield Problem("output.container", "jpeg", "another container unless frames is 1: it holds one picture")


def _who_has(what: str, capabilities: Capabilities) -> str:
    families = [family for family in dict(capabilities.elsewhere).get(what, ()) if family != capabilities.family]
    return f"; models of the family {' or '.join(families)} take it" if families else ""


def _accepted_sizes(capabilities: Capabilities) -> str:
    listed = f"width x height, one of {_listed(capabilities.sizes)}"
    if capabilities.size_multiple is None:
        return listed
    most = capabilities.max_sides
    within = "" if most is None else f"up to {most}, "
    return (
        f"{listed}, or multiples of {capabilities.size_multiple} {within}with at most {capabilities.max_pixels} pixels"
    )


def _prompt_problems(request: ResolvedRequest, capabilities: Capabilities) -> Iterator[Problem]:
    most = capabilities.prompt_words
    for name, text in (("prompt", request.prompt), ("negative_prompt", request.negative_prompt)):
        words = len((text or "").split())
        if most is not None and words > most:
            yield Problem(name, f"{words} words", f"at most {most} words")
    if not capabilities.negative_prompts and request.negative_prompt != capabilities.defaults.negative_prompt:
        yield Problem("negative_prompt", request.negative_prompt, f"no value: {capabilities.model} owns it")


def _sampling_problems(request: ResolvedRequest, capabilities: Capabilities) -> Iterator[Problem]:
    if request.solver is not None and request.solver not in capabilities.solvers:
        yield Problem("solver", request.solver, f"one of {_listed(capabilities.solvers)}")
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
    if request.conditioning_indexes is not None:
        latent = (capabilities.frames.next(request.frames) - 1) // LATENT_FRAMES
        if not capabilities.conditioning_indexes:
            counts = [tuple(range((n - 1) // LATENT_FRAMES + 1)) for n in capabilities.conditioning_frames]
            accepted = f"one of {_listed([list(each) for each in counts])} for {capabilities.model}"
            yield Problem("conditioning_indexes", list(request.conditioning_indexes), accepted)
        elif max(request.conditioning_indexes) > latent:
            accepted = f"indexes up to {latent}, the last latent frame of {request.frames} frames"
            yield Problem("conditioning_indexes", list(request.conditioning_indexes), accepted)
    given, accepted_counts = request.conditioning_frames, capabilities.conditioning_frames
    if request.chunk_frames is not None and request.chunk_frames > capabilities.frames.maximum:
        yield Problem("chunk_frames", request.chunk_frames, f"an integer from 1 to {capabilities.frames.maximum}")
    first, chunk = request.first_conditioning_frames, request.chunk_frames or request.frames
    if first and request.mode == "transfer" and first >= max(chunk, 2):
        yield Problem("first_conditioning_frames", first, f"less than the {chunk} frames of a chunk")
    if given is None:
        return
    if request.mode == "transfer":
        repeated = Range(0, capabilities.frames.maximum)
        if not (_is_int(given) and given in repeated):
            yield Problem("conditioning_frames", given, f"frames that a chunk repeats, an integer from {repeated}")
    elif request.mode != "video2world":
        if given != _conditioning_frames(request, capabilities):  # what `resolve` fills in may come back
            yield Problem("conditioning_frames", given, "no value unless a video is given")
    elif given not in accepted_counts or given >= max(request.frames, 2):
        yield Problem("conditioning_frames", given, f"one of {_listed(accepted_counts)}, less than frames")


def _input_problems(request: ResolvedRequest, capabilities: Capabilities) -> Iterator[Problem]:
    if request.mode == "transfer" and not request.controls and capabilities.controls:
        yield Problem("controls", "none", f"one or more of {_listed(capabilities.controls)}")
    for control in request.controls if capabilities.controls else ():  # a model without any lacks the mode, too
        if control.kind not in capabilities.controls:
            accepted = f"one of {_listed(capabilities.controls)} for {capabilities.model}"
            yield Problem("controls", control.kind, accepted + _who_has(control.kind, capabilities))
        elif control.source is None and control.kind not in COMPUTED_CONTROLS:
            computed = " and ".join(COMPUTED_CONTROLS)
            accepted = f"a control clip: {control.kind} is not computed from the video, only {computed} are"
            yield Problem(f"controls.{control.kind}.source", None, accepted)
        elif control.source is None and request.video is None:
            yield Problem(f"controls.{control.kind}.source", None, "a control clip, or a video to compute it from")
        if not _in(control.weight, _UNIT):
            yield Problem(f"controls.{control.kind}.weight", control.weight, "a number from 0 to 1")
    if request.action is not None:
        yield from _action_problems(request, request.action, capabilities)
    for adapter in request.adapters:
        if adapter.name not in capabilities.adapters:
            accepted = (
                f"one of {_listed(capabilities.adapters)}" if capabilities.adapters else "no adapter: none is loaded"
            )
            yield Problem("adapters", adapter.name, accepted)


def _action_problems(request: ResolvedRequest, action: Action, capabilities: Capabilities) -> Iterator[Problem]:
    domain = next((domain for domain in capabilities.action_domains if domain.id == action.domain), None)
    if domain is None:
        accepted = ", ".join(f"{each.name} ({each.id})" for each in capabilities.action_domains) or "no actions"
        yield Problem("action.domain", action.domain, accepted + _who_has(str(action.domain), capabilities))
        return
    multiple = 1 if domain.ranges else LATENT_FRAMES
    if not _is_int(action.steps) or action.steps < multiple or action.steps % multiple:
        yield Problem("action.steps", action.steps, f"a multiple of {multiple}")
    elif request.fps != request.result.fps and domain.ranges:
        yield Problem("fps", request.result.fps, f"a rate that {domain.name} is made at: there is an action a frame")
    elif request.frames != action.steps + 1:
        yield Problem("frames", request.frames, f"action.steps + 1 = {action.steps + 1}")
    if request.mode == "forward_dynamics":
        widths = {len(row) for row in action.values or ()}
        if widths != {domain.width}:
            accepted = f"rows of {domain.width} numbers for {domain.name}"
            yield Problem("action.values", f"rows of {sorted(widths)} numbers", accepted)
        yield from _range_problems(action, domain)
        if not domain.ranges and not _pictured(request):
            yield Problem("image", None, f"given for {request.mode}")
    elif action.values is not None:
        yield Problem("action.values", f"{len(action.values)} rows", f"none: {request.mode} answers with them")
    if capabilities.action_only:
        try:
            robot_state(action)
        except InvalidRequestError as error:
            yield from error.problems


def _range_problems(action: Action, domain: ActionDomain) -> Iterator[Problem]:
    """The first of the actions' numbers that is not accepted, where it is known which are."""
    for number, row in enumerate(action.values or ()):
        for name, value, accepted in zip(domain.numbers, row, domain.ranges, strict=False):
            if not _in(value, accepted):
                yield Problem("action.values", f"row {number}: {value}", f"{name}: a number from {accepted}")
                return


def _output_problems(request: GenerationRequest) -> Iterator[Problem]:
    output = request.output
    codecs = CODECS.get(output.container)
    if codecs is None:
        yield Problem("output.container", output.container, f"one of {_listed(tuple(CODECS))}")
    elif output.codec is not None and output.codec not in codecs:
        accepted = f"one of {_listed(codecs)}" if codecs else "no codec"
        yield Problem("output.codec", output.codec, f"{accepted} in {output.container}")
    if not (_is_int(output.quality) and 1 <= output.quality <= 9):
        yield Problem("output.quality", output.quality, "an integer from 1 to 9")


_STARTS_FROM = {"image2world": "an image", "video2world": "a video", "transfer": "a control clip"}
LATENT_FRAMES = 4
"""Frames of video in one latent frame, which is how `conditioning_indexes` counts."""
ROBOT_STATE = 8
"""Numbers of a robot's state, and of an action that is a state to reach."""
USUAL_INDEXES = (0, 1)
_NUMBERS = {"steps", "frames", "width", "height", "guidance_scale", "fps", "flow_shift"}
_UNIT = Range(0, 1)
_SCALES = Range(-100, 100)
_INPUTS = ("image", "video", "controls", "action")
_GIVEN: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "text2world": ((), ()),
    "image2world": (("image",), ()),
    "video2world": (("video",), ()),
    "transfer": ((), ("controls", "video")),  # that it lacks controls is said with the kinds there are
    "forward_dynamics": (("action",), ("image", "video")),
    "inverse_dynamics": (("action", "video"), ()),
    "policy": (("action",), ("image", "video")),
}
"""By mode: what has to be given, and what else is looked at."""
_FITTED_FIELDS = {"size", "width", "height", "frames", "fps"}


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _in(value: object, accepted: Range) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value in accepted


def _number_from(accepted: Range, kind: str = "a number") -> str:
    if accepted.low == accepted.high:
        return f"no value: the model has its own, {accepted.low:g}"
    return f"{kind} from {accepted}"


def _listed(values: Sequence[object]) -> str:
    return ", ".join(str(value) for value in values)
