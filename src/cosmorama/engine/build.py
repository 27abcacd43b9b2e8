"""From settings to an engine: which model, how inputs are fetched and read, what has to pass."""

from __future__ import annotations

from functools import partial
from math import ceil

import torch

from cosmorama import logs
from cosmorama.engine.children import ChildLimits, Children
from cosmorama.engine.engine import Engine
from cosmorama.engine.inputs import STRUCTURED_S, preparer_of
from cosmorama.errors import ModelNotFoundError
from cosmorama.guardrails.checks import Guardrails, PromptCheck
from cosmorama.guardrails.cosmos import CosmosGuardrail
from cosmorama.guardrails.words import BlockedWords
from cosmorama.settings import Settings
from cosmorama.world.base import World
from cosmorama.world.load.runtime import use_threads
from cosmorama.world.registry import load_world


def build_engine(settings: Settings) -> Engine:
    """The engine that `settings` describe, its model loaded.

    Raises:
        ModelNotFoundError: no such model.
        GuardrailUnavailableError: a guardrail that is asked for cannot be had.
    """
    use_threads(settings.threads)
    guardrails = _guardrails(settings)
    preparer = preparer_of(settings)
    wall_s = (
        settings.url_timeout_s + settings.captioning_timeout_s + max(settings.prompt_upsampling_timeout_s, STRUCTURED_S)
    )
    children = Children(preparer, ChildLimits(wall_s=240 + ceil(wall_s)), partial(logs.configure, settings, "reader"))
    children.start()
    world = _world(settings)
    return Engine(world, preparer, guardrails, max_active=settings.max_active, children=children)


def _world(settings: Settings) -> World:
    _check_devices(settings)
    if settings.parallel == "none":
        return load_model(settings)
    from cosmorama.world.ranks.process import Follower

    followers = [
        Follower(partial(_load_to_follow, settings, rank), threads=settings.threads)
        for rank in range(1, settings.parallel_processes)
    ]
    world = load_model(settings)
    for follower in followers:
        follower.ready()
    if settings.parallel == "guidance":
        from cosmorama.world.ranks.guidance import GuidanceParallel

        return GuidanceParallel(world, followers[0])
    from cosmorama.world.ranks.sequence import SequenceParallel

    return SequenceParallel(world, followers)


def _check_devices(settings: Settings) -> None:
    """Refuse, before anything is loaded, to load a model twice onto one GPU, or onto one that is not there.

    Raises:
        ModelNotFoundError: there are fewer GPUs than processes.
    """
    gpus = torch.cuda.device_count()
    kind, _, first = settings.device.partition(":")
    processes = 1 if settings.parallel == "none" else settings.parallel_processes
    if not gpus or kind == "cpu" or int(first or 0) + processes <= gpus:
        return
    there = "and there is 1 GPU" if gpus == 1 else f"and there are {gpus} GPUs"
    if processes > 1 and not int(first or 0):
        raise ModelNotFoundError(
            f"COSMORAMA_PARALLEL={settings.parallel} needs a GPU for each of {processes} processes, {there}"
        )
    raise ModelNotFoundError(
        f"the model is to run on GPU {int(first) + processes - 1}, counted from 0, {there}: see COSMORAMA_DEVICE and "
        "COSMORAMA_REPLICAS"
    )


def _load_to_follow(settings: Settings, rank: int) -> World:
    """What the processes beside this one do first."""
    logs.configure(settings, "follower")
    return load_model(settings, rank)


def load_model(settings: Settings, rank: int = 0) -> World:
    """The model and its adapters, as settings describe them, on the GPU with number `rank` if there are so many.

    Raises:
        CosmoramaError: it cannot be had, or does not fit.
    """
    if settings.adapters:
        from cosmorama.world.load.adapters import AdaptedWorld, check_adapters

        check_adapters(settings.adapters)
    world = load_world(
        settings.model,
        dtype=None if settings.dtype == "auto" else settings.dtype,
        device=_device(settings, rank),
        offload=settings.offload,
        vae_tiling=settings.vae_tiling,
        quantize=settings.quantize,
        fps_modulation=settings.fps_modulation,
        attention=settings.attention,
        compile=settings.compile,
        variant=settings.variant,
        controls=settings.controls,
        cache=settings.cache_path,
        download=not settings.disable_model_download,
    )
    return AdaptedWorld(world, settings.adapters) if settings.adapters else world


def _device(settings: Settings, rank: int) -> str | None:
    """Where process `rank` of those that share a model has it; None: where the model's own default is."""
    kind, _, first = settings.device.partition(":")
    if kind == "cpu":
        return "cpu"
    number = int(first or 0) + rank
    return f"cuda:{number}" if number < torch.cuda.device_count() or kind == "cuda" else None


def _guardrails(settings: Settings) -> Guardrails:
    prompts: list[PromptCheck] = []
    if settings.blocked_words is not None:
        prompts.append(BlockedWords(settings.blocked_words))
    if not (settings.text_guardrail or settings.video_guardrail):
        return Guardrails(tuple(prompts))
    cosmos = CosmosGuardrail()
    if settings.text_guardrail:
        prompts.append(cosmos.check_prompt)
    return Guardrails(tuple(prompts), cosmos.check_frames if settings.video_guardrail else None)
