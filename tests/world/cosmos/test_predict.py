"""Every Predict family and mode, loaded as a user would, against diffusers' own pipeline with the same seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from cosmorama.engine.prepare import PreparedRequest
from cosmorama.engine.rollout import Rollout
from cosmorama.request import ResolvedRequest
from cosmorama.resolve import resolve
from cosmorama.world.registry import load_world
from cosmorama.world.vae.wan import WanAutoencoder
from tests.world.checkpoints import PIPELINES, load_pipeline, save_predict
from tests.world.reference import Made, run_pipeline

TOLERANCE = 1e-5
WIDTH, HEIGHT, STEPS, SEED = 80, 48, 4, 5
PROMPT, NEGATIVE = "a red ball rolls to the left", "ugly blurred scene"


@dataclass(frozen=True)
class Case:
    """One family in one mode."""

    kind: str
    frames: int
    given: int = 0
    fps: float = 16

    @property
    def id(self) -> str:
        return f"{self.kind} {self.frames} frames" + (f" from {self.given}" if self.given else "")


CASES = [
    Case("predict1-text2world", 17),
    Case("predict1-text2world", 1),
    Case("predict1-video2world", 17, given=1, fps=30),
    Case("predict1-video2world", 17, given=9),
    Case("predict2-text2image", 1),
    Case("predict2-video2world", 13, given=1),
    Case("predict2-video2world", 13, given=5, fps=10),
    Case("predict2.5", 9),
    Case("predict2.5", 1),
    Case("predict2.5", 13, given=1),
    Case("predict2.5", 13, given=5),
]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Any]]:
    """A checkpoint's folder and diffusers' pipeline on it, by kind."""
    made: dict[str, tuple[Path, Any]] = {}

    def get(kind: str) -> tuple[Path, Any]:
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            made[kind] = folder, save_predict(kind, folder)
        return made[kind]

    return get


def clip(frames: int) -> np.ndarray:
    """Smooth moving colors, uint8 `[T, H, W, 3]`."""
    t, y, x, c = np.ogrid[:frames, :HEIGHT, :WIDTH, :3]
    return (127.5 + 127.5 * np.sin(x / 9 + y / 7 + t / 2 + c)).astype(np.uint8)


def request_of(case: Case, world: Any, **changes: Any) -> ResolvedRequest:
    source = None if case.given == 0 else b"stands for the clip, which the tests hand over decoded"
    request = ResolvedRequest(
        prompt=PROMPT,
        negative_prompt=NEGATIVE,
        image=source if case.given == 1 else None,
        video=source if case.given > 1 else None,
        seed=SEED,
        guidance_scale=3.0,
        steps=STEPS,
        width=WIDTH,
        height=HEIGHT,
        frames=case.frames,
        fps=case.fps,
    )
    return resolve(replace(request, **changes), world.capabilities)


def rollout(case: Case, world: Any, **changes: Any) -> Rollout:
    """A request, sampled by the engine's own means."""
    request = request_of(case, world, **changes)
    made = Rollout(world, PreparedRequest(request, PROMPT, clip(case.given) if case.given else None))
    while not made.done:
        made.advance()
    return made


def reference(case: Case, pipeline: Any, *, given: np.ndarray | None = None, **changes: Any) -> Made:
    """The same request, made by diffusers."""
    arguments: dict[str, Any] = {
        "prompt": PROMPT,
        "negative_prompt": NEGATIVE,
        "height": HEIGHT,
        "width": WIDTH,
        "num_inference_steps": STEPS,
        "guidance_scale": 3.0,
    }
    frames = [Image.fromarray(frame) for frame in (clip(case.given) if given is None else given)]
    if case.given == 1:
        arguments["image"] = frames[0]
    elif case.given:
        arguments["video"] = frames
    if case.kind != "predict2-text2image":
        arguments["num_frames"] = case.frames
    if case.kind in ("predict1-text2world", "predict1-video2world", "predict2-video2world"):
        arguments["fps"] = case.fps
    return run_pipeline(pipeline, seed=SEED, **arguments | changes)


def error(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference relative to the largest value."""
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max() / theirs.abs().max())


def pixels_of(world: Any, made: Rollout) -> Tensor:
    """What the engine's frames are rounded from."""
    latents = made.latents
    if "predict1" in world.capabilities.family:
        return world.autoencoder.decode_pixels(latents / 0.5)
    return torch.cat(list(world.autoencoder.decode_pixels(latents)), dim=2)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_the_same_numbers_as_diffusers(case: Case, checkpoint: Callable[[str], tuple[Path, Any]]) -> None:
    folder, pipeline = checkpoint(case.kind)
    world = load_world(str(folder), fps_modulation=True, device="cpu")
    theirs, ours = reference(case, pipeline), rollout(case, world)
    assert error(ours.latents, theirs.latents) <= TOLERANCE
    with torch.inference_mode():
        pixels = pixels_of(world, ours)
    assert error(pixels, theirs.pixels) <= TOLERANCE
    frames = np.concatenate(list(ours.decode()))
    assert frames.shape == (case.frames, HEIGHT, WIDTH, 3)
    levels = ((theirs.pixels[0].permute(1, 2, 3, 0) / 2 + 0.5).clamp(0, 1) * 255).numpy()
    assert np.abs(frames - levels).max() < 0.51
    print(f"\n{case.id}: latents {error(ours.latents, theirs.latents):.1e}, pixels {error(pixels, theirs.pixels):.1e}")


@pytest.mark.parametrize("kind", ["predict1-video2world", "predict2-video2world", "predict2.5"])
def test_nothing_is_computed_twice_that_depends_on_the_request_alone(
    kind: str, checkpoint: Callable[[str], tuple[Path, Any]]
) -> None:
    case = Case(kind, 17, given=9) if kind.startswith("predict1") else Case(kind, 13, given=5)
    world: Any = load_world(str(checkpoint(kind)[0]), fps_modulation=True, device="cpu")
    net, block = world.transformer, world.transformer.transformer_blocks[0]
    seen: dict[str, list[torch.Size]] = {}

    def watch(name: str, module: Any) -> None:
        module.register_forward_pre_hook(lambda _, inputs: seen.setdefault(name, []).append(inputs[0].shape))

    watch("evaluations", net.proj_out)
    watch("positions", net.rope)
    watch("text", block.attn2.to_k)
    watch("modulation", block.norm1.linear_2)
    watch("encoded", world.autoencoder.vae.encoder)
    made = rollout(case, world)
    idle = 0 if kind == "predict2.5" else 1  # a step that would multiply its answer by zero is left out
    assert made.index == STEPS - idle
    assert len(seen["evaluations"]) == 2 * made.index
    assert len(seen["positions"]) == 1
    assert len(seen["text"]) == 2  # the prompt and the negative prompt
    rows = {shape[1] for shape in seen["text"]}
    assert rows == {512} if kind == "predict2.5" else max(rows) < 20  # T5's empty rows are folded into a few
    frames = made.latents.shape[2]
    assert all(shape[:-1].numel() <= frames for shape in seen["modulation"])
    assert sum(shape[2] for shape in seen["encoded"]) == case.given


@pytest.mark.parametrize("kind", PIPELINES)
def test_the_prompts_are_read(kind: str, checkpoint: Callable[[str], tuple[Path, Any]]) -> None:
    world = load_world(str(checkpoint(kind)[0]), device="cpu")
    case = next(case for case in CASES if case.kind == kind)
    usual = rollout(case, world).latents
    assert error(rollout(case, world, negative_prompt="a blue cube falls").latents, usual) > 1e-4
    assert torch.equal(rollout(case, world).latents, usual)


@pytest.mark.parametrize("kind", PIPELINES)
def test_no_guidance_at_a_scale_of_one(kind: str, checkpoint: Callable[[str], tuple[Path, Any]]) -> None:
    folder, pipeline = checkpoint(kind)
    case = next(case for case in CASES if case.kind == kind)
    made = rollout(case, load_world(str(folder), fps_modulation=True, device="cpu"), guidance_scale=1.0)
    assert error(made.latents, reference(case, pipeline, guidance_scale=1.0).latents) <= TOLERANCE


@pytest.mark.parametrize("kind", ["predict1-video2world", "predict2-video2world", "predict2.5"])
def test_requests_in_turns_do_not_touch_each_other(kind: str, checkpoint: Callable[[str], tuple[Path, Any]]) -> None:
    world = load_world(str(checkpoint(kind)[0]), device="cpu")
    case = Case(kind, 9, given=1)
    alone = [rollout(case, world, seed=seed) for seed in (1, 2)]
    turns = [
        Rollout(world, PreparedRequest(request_of(case, world, seed=seed), PROMPT, clip(case.given))) for seed in (1, 2)
    ]
    while not all(made.done for made in turns):
        for made in turns:
            made.advance()
    streams = [made.decode() for made in turns]
    for chunks in zip(*streams, *[made.decode() for made in alone], strict=True):
        assert np.array_equal(chunks[0], chunks[2])
        assert np.array_equal(chunks[1], chunks[3])
        assert not np.array_equal(chunks[0], chunks[1])


def test_wan_decodes_frame_by_frame_as_at_once(checkpoint: Callable[[str], tuple[Path, Any]]) -> None:
    folder, pipeline = checkpoint("predict2.5")
    latents = torch.randn(1, 16, 4, 6, 10)
    mean, deviation = (
        torch.tensor(values).view(1, 16, 1, 1, 1)
        for values in (pipeline.vae.config.latents_mean, pipeline.vae.config.latents_std)
    )
    loaded: Any = load_world(str(folder), device="cpu")
    for lean, autoencoder in ((True, loaded.autoencoder), (False, WanAutoencoder(pipeline.vae))):
        with torch.inference_mode():
            chunks = list(autoencoder.decode_pixels(latents))
            whole = (autoencoder if lean else pipeline).vae.decode(latents * deviation + mean).sample
        assert [chunk.shape[2] for chunk in chunks] == [1, 4, 4, 4]
        decoded = torch.cat(chunks, dim=2)
        # oneDNN may sum in another order for one frame than for four.
        assert error(decoded, whole) <= TOLERANCE if lean else torch.equal(decoded, whole)


def test_bfloat16_stays_close_to_float32(checkpoint: Callable[[str], tuple[Path, Any]]) -> None:
    for kind in ("predict1-video2world", "predict2-video2world", "predict2.5"):
        folder, _ = checkpoint(kind)
        case = Case(kind, 9, given=1)
        half = load_world(str(folder), fps_modulation=True, device="cpu", dtype="bfloat16")
        assert half.dtype == torch.bfloat16  # type: ignore[attr-defined]
        exact = rollout(case, load_world(str(folder), fps_modulation=True, device="cpu"), guidance_scale=1.0).latents
        close = rollout(case, half, guidance_scale=1.0).latents
        assert close.dtype == torch.float32
        assert float((close - exact).norm() / exact.norm()) < 0.1


@pytest.mark.parametrize("kind", PIPELINES)
def test_bfloat16_is_as_near_to_float32_as_diffusers_own(
    kind: str, checkpoint: Callable[[str], tuple[Path, Any]]
) -> None:
    folder, pipeline = checkpoint(kind)
    case = next(case for case in CASES if case.kind == kind)
    rounded = load_pipeline(kind, folder, torch.bfloat16)
    if kind.startswith("predict1"):
        rounded.vae.float()  # its pooling has no kernel for less on a CPU
    exact = reference(case, pipeline).latents
    ours, theirs = (
        rollout(case, load_world(str(folder), fps_modulation=True, device="cpu", dtype="bfloat16")).latents,
        reference(case, rounded).latents,
    )
    assert float((ours - exact).norm()) <= 1.25 * float((theirs.float() - exact).norm())


@pytest.mark.parametrize("given", [1, 5])
def test_predict2_has_no_frame_rate_in_its_positions_unless_it_is_switched_on(
    checkpoint: Callable[[str], tuple[Path, Any]], given: int
) -> None:
    folder, pipeline = checkpoint("predict2-video2world")
    case = Case("predict2-video2world", 13, given=given, fps=10)
    off, on = load_world(str(folder)), load_world(str(folder), fps_modulation=True)
    ours = rollout(case, off).latents
    assert torch.equal(rollout(case, off, fps=30).latents, ours)
    # At the rate that diffusers' positions are based on, its modulation does nothing.
    assert error(ours, reference(case, pipeline, fps=24).latents) < TOLERANCE
    assert error(rollout(case, on).latents, ours) > 100 * TOLERANCE


@pytest.mark.parametrize("kind", ["predict1-text2world", "predict1-video2world"])
def test_a_preview_of_predict1_decodes_its_beginning_alone(
    checkpoint: Callable[[str], tuple[Path, Any]], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    world: Any = load_world(str(checkpoint(kind)[0]), device="cpu")
    made = rollout(Case(kind, 33, given=1 if "video" in kind else 0), world)
    vae, decoded = world.autoencoder.vae, []
    decode = vae.decode
    monkeypatch.setattr(vae, "decode", lambda z: (decoded.append(z.shape[2]), decode(z))[1])
    frame = made.preview()
    assert decoded == [2]
    whole = np.concatenate([chunk.numpy() for chunk in made._sampling.decode(made._denoised)])
    assert frame is not None
    assert np.abs(frame.astype(int) - whole[8].astype(int)).max() <= 1
