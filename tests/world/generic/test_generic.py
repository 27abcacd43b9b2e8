"""Pipelines of diffusers that nothing here was written for, run through their own code, step by step."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from cosmorama.engine.embeddings import EmbeddingCache, Reader
from cosmorama.engine.engine import Engine
from cosmorama.engine.outcome import Outcome
from cosmorama.engine.prepare import PreparedRequest
from cosmorama.engine.rollout import Rollout
from cosmorama.errors import CancelledError, InvalidRequestError, ModelNotFoundError, WorkerError
from cosmorama.progress import Progress
from cosmorama.request import GenerationRequest, ResolvedRequest
from cosmorama.resolve import resolve
from cosmorama.world.generic.load import load
from cosmorama.world.generic.pipeline import FRAME_RATES, GenericWorld
from cosmorama.world.load.options import ON_CPU
from cosmorama.world.registry import load_world
from tests.world import generic_checkpoints
from tests.world.generic_checkpoints import save_ltx, save_wan

REQUEST = ResolvedRequest(
    prompt="a red ball falls",
    negative_prompt="a blue cube",
    prompt_upsampling=False,
    seed=3,
    steps=4,
    width=64,
    height=32,
    frames=9,
    fps=25,
    guidance_scale=4.0,
)


@pytest.fixture(scope="module")
def wan(tmp_path_factory: pytest.TempPathFactory) -> GenericWorld:
    return load(save_wan(tmp_path_factory.mktemp("wan") / "tiny-wan"), ON_CPU, "WanPipeline")


@pytest.fixture(scope="module")
def ltx(tmp_path_factory: pytest.TempPathFactory) -> GenericWorld:
    return load(save_ltx(tmp_path_factory.mktemp("ltx") / "tiny-ltx"), ON_CPU, "LTXPipeline")


def rollout(world: GenericWorld, **changes: Any) -> Rollout:
    request = resolve(replace(REQUEST, **changes), world.capabilities)
    return Rollout(world, PreparedRequest(request, request.prompt or "", None))


def frames(finished: Rollout) -> np.ndarray[Any, Any]:
    return np.concatenate(list(finished.decode()))


def diffusers_frames(world: GenericWorld, **changes: Any) -> np.ndarray[Any, Any]:
    world.pipeline.set_progress_bar_config(disable=True)
    clip = world.pipeline(
        prompt=REQUEST.prompt,
        width=REQUEST.width,
        output_type="np",
        **{
            "negative_prompt": REQUEST.negative_prompt,
            "num_inference_steps": REQUEST.steps,
            "guidance_scale": REQUEST.guidance_scale,
            "height": REQUEST.height,
            "num_frames": REQUEST.frames,
            "generator": torch.Generator().manual_seed(3),
            **changes,
        },
    ).frames[0]
    return np.asarray(clip * 255).round().astype(np.uint8)


@pytest.mark.parametrize("name", ["wan", "ltx"])
def test_a_clip_is_the_one_that_diffusers_makes_with_the_same_seed(name: str, request: pytest.FixtureRequest) -> None:
    world: GenericWorld = request.getfixturevalue(name)
    ours = rollout(world)
    while not ours.done:
        ours.advance()
    assert np.array_equal(frames(ours), diffusers_frames(world))
    assert np.array_equal(frames(ours), frames(ours))  # it may be asked for again
    assert not np.array_equal(frames(ours), diffusers_frames(world, generator=torch.Generator().manual_seed(4)))


@pytest.mark.parametrize(
    ("name", "rate"),
    [("allegro", 15), ("cogvideox", 8), ("hunyuan", 24), ("mochi", 30), ("wan_2_2", 16), ("wan_ti2v", 24)],
)
def test_other_pipelines_make_the_clip_that_diffusers_makes(name: str, rate: int, tmp_path: Path) -> None:
    folder = getattr(generic_checkpoints, f"save_{name}")(tmp_path / name)
    world: Any = load_world(str(folder), device="cpu")
    assert resolve(GenerationRequest(prompt="a ball"), world.capabilities).fps == rate
    step = world.capabilities.frames.multiple
    own = {} if world.capabilities.negative_prompts else {"negative_prompt": ""}
    ours = rollout(world, frames=step + 1, height=64, **own)
    while not ours.done:
        ours.advance()
    theirs = diffusers_frames(world, num_frames=step + 1, height=64)
    assert frames(ours).shape == (step + 1, 64, 64, 3)
    assert np.array_equal(frames(ours), theirs[: step + 1])  # CogVideoX makes more of an even number of latent frames


def test_every_step_is_reported(wan: GenericWorld) -> None:
    going = rollout(wan)
    seen = [going.progress] + [going.advance() for _ in range(5)]
    assert seen == [Progress("encode"), *(Progress("denoise", step, 4) for step in range(5))]
    assert going.done
    assert going.preview() is None


def test_interleaved_requests_do_not_disturb_each_other(wan: GenericWorld) -> None:
    alone = {}
    for seed in (3, 8):
        going = rollout(wan, seed=seed, steps=2 + seed % 2)
        while not going.done:
            going.advance()
        alone[seed] = frames(going)
    together = {seed: rollout(wan, seed=seed, steps=2 + seed % 2) for seed in (3, 8)}
    for _ in range(4):
        for going in together.values():
            going.advance()
    for seed, going in together.items():
        assert np.array_equal(frames(going), alone[seed])


def test_a_dropped_request_unwinds_wherever_it_is_dropped(wan: GenericWorld) -> None:
    enabled, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    going = rollout(wan)
    for _ in range(3):
        going.advance()
    call = going._sampling._run._call  # type: ignore[attr-defined]
    # The collector drops it at any allocation, so also with such a lock held, which every ending thread takes.
    with threading._active_limbo_lock:  # type: ignore[attr-defined]
        del going
    assert call.dead
    assert torch.is_grad_enabled() == enabled
    assert torch.is_inference_mode_enabled() == inference


def test_one_that_is_dropped_in_another_thread_disturbs_nothing(wan: GenericWorld) -> None:
    going = [rollout(wan)]
    going[0].advance()
    thread = threading.Thread(target=going.clear)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()
    again = rollout(wan)
    while not again.done:
        again.advance()
    assert np.array_equal(frames(again), diffusers_frames(wan))


def test_latents_that_are_not_finite_end_the_job(wan: GenericWorld, tmp_path: Path) -> None:
    hook = wan.pipeline.transformer.register_forward_hook(lambda module, given, output: (output[0] * torch.nan,))
    try:
        results = run(wan, tmp_path)
    finally:
        hook.remove()
    for result in results.values():
        assert isinstance(result, WorkerError)
        assert "step 1 of 4" in str(result)
        assert "COSMORAMA_DTYPE" in str(result)


def nothing(engine: Engine, units: int) -> None:
    pass


def run(world: Any, tmp_path: Path, after: Callable[[Engine, int], None] = nothing) -> dict[str, Any]:
    engine = Engine(world, max_active=2)
    for job, request in (("first", REQUEST), ("second", replace(REQUEST, seed=4, prompt="a blue ball"))):
        engine.submit(job, request, output=tmp_path / f"{job}.mp4")
    units, results = 0, {}
    while engine.pending:
        units += engine.step()
        after(engine, units)
        results.update(engine.finished())
    engine.close()
    return results


def test_a_cancelled_job_ends_before_its_next_step_and_the_other_goes_on(wan: GenericWorld, tmp_path: Path) -> None:
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    def cancel(engine: Engine, units: int) -> None:
        if units == 3:
            engine.cancel("first")

    hook = wan.pipeline.transformer.register_forward_pre_hook(count)
    try:
        results = run(wan, tmp_path, cancel)
    finally:
        hook.remove()
    assert isinstance(results["first"], CancelledError)
    assert isinstance(results["second"], Outcome)
    assert calls <= 2 * (4 + 3)  # both halves of the guidance, at most three steps of the cancelled one


def test_a_failure_inside_of_the_pipeline_is_its_own_jobs(wan: GenericWorld, tmp_path: Path) -> None:
    calls = 0

    def fail_once(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise RuntimeError("something inside broke")

    hook = wan.pipeline.transformer.register_forward_pre_hook(fail_once)
    try:
        results = run(wan, tmp_path)
    finally:
        hook.remove()
    failed = [result for result in results.values() if isinstance(result, WorkerError)]
    assert len(failed) == 1
    assert "something inside broke" in str(failed[0])
    assert len([result for result in results.values() if isinstance(result, Outcome)]) == 1


def test_the_pipelines_nature_is_told(wan: GenericWorld, ltx: GenericWorld) -> None:
    assert wan.capabilities.family == "generic:WanPipeline"
    assert wan.capabilities.model == "tiny-wan"
    assert wan.capabilities.modes == ("text2world",)
    assert wan.capabilities.size_multiple == 16
    assert wan.capabilities.frames.multiple == 4
    assert wan.capabilities.defaults.fps == 16
    assert wan.capabilities.default_solver == "unipc"
    assert ltx.capabilities.default_solver == "euler"
    assert (ltx.capabilities.defaults.frames, ltx.capabilities.defaults.fps) == (161, 25)


@pytest.mark.parametrize("name", ["wan", "ltx"])
def test_what_a_request_leaves_open_is_what_the_pipelines_own_call_uses(
    name: str, request: pytest.FixtureRequest
) -> None:
    world: GenericWorld = request.getfixturevalue(name)
    small = GenerationRequest(prompt=REQUEST.prompt, seed=3, steps=2, width=64, height=32, frames=9)
    ours = Rollout(world, PreparedRequest(resolve(small, world.capabilities), REQUEST.prompt or "", None))
    while not ours.done:
        ours.advance()
    own = inspect.signature(type(world.pipeline).__call__).parameters["guidance_scale"].default
    theirs = diffusers_frames(world, num_inference_steps=2, negative_prompt=None, guidance_scale=own)
    assert np.array_equal(frames(ours), theirs)


def test_every_pipeline_that_is_served_has_a_rate_of_its_own() -> None:
    named = tuple(start for starts in FRAME_RATES.values() for start in starts)
    for name in dir(diffusers):
        if not name.endswith("Pipeline") or name.startswith(("Cosmos", "Modular", "I2VGenXL")):
            continue
        takes = inspect.signature(getattr(diffusers, name).__call__).parameters
        if {"prompt", "num_frames"} <= takes.keys():
            assert {"fps", "frame_rate"} & takes.keys() or name.startswith(named), name


def test_what_a_pipelines_call_has_no_word_for_is_not_offered() -> None:
    class Bare:
        def __call__(self, prompt: str, num_frames: int = 9) -> None:
            """As LTX2's and HunyuanVideo 1.5's: guidance and what it is from are elsewhere."""

    class Distilled:
        default_height, default_width = 480, 848

        def __call__(
            self, prompt: str, negative_prompt: str | None = None, true_cfg_scale: float = 1.0, fps: int = 24
        ) -> None:
            """As HunyuanVideo's: a negative prompt is of another guidance, which is off; and Mochi's sizes."""

    bare, distilled = (GenericWorld(kind(), "x").capabilities for kind in (Bare, Distilled))
    assert (bare.negative_prompts, distilled.negative_prompts) == (False, False)
    assert (bare.guidance_scale.high, bare.defaults.guidance_scale) == (1, 1.0)
    assert (distilled.defaults.fps, str(distilled.sizes[0])) == (24, "848x480")
    asked = GenerationRequest(prompt="a ball", negative_prompt="dark", guidance_scale=7)
    with pytest.raises(InvalidRequestError) as refused:
        resolve(asked, bare)
    assert [problem.field for problem in refused.value.problems] == ["negative_prompt", "guidance_scale"]


def test_a_prompt_of_more_tokens_than_the_pipeline_reads_is_warned_of(ltx: GenericWorld) -> None:
    assert ltx.capabilities.prompt_tokens == 128
    reader = Reader(EmbeddingCache(ltx.encode_text))
    for words in (127, 128):  # and the end of the text
        request = resolve(replace(REQUEST, prompt="red " * words), ltx.capabilities)
        ltx.begin(PreparedRequest(request, request.prompt or "", None).inputs, reader)
        assert bool(reader.warnings) == (words == 128)
    assert "the first 128 were used" in reader.warnings[0]


def test_what_a_pipeline_has_no_place_for_is_refused_by_name(wan: GenericWorld, ltx: GenericWorld) -> None:
    with pytest.raises(InvalidRequestError, match="guidance_interval") as caught:
        rollout(wan, guidance_interval=(0.0, 0.5), guidance_rescale=0.5).advance()
    assert [problem.field for problem in caught.value.problems] == ["guidance_interval", "guidance_rescale"]
    with pytest.raises(InvalidRequestError, match="divisible by 32"):
        rollout(ltx, width=68).advance()


def test_what_is_no_video_pipeline_is_refused(tmp_path: Path) -> None:
    for name, why in (
        ("StableDiffusionPipeline", "does not take num_frames"),
        ("NoSuchPipeline", "no pipeline of the installed diffusers"),
        (["my_code", "Pipeline"], "no pipeline of the installed diffusers"),
        ("AutoencoderKL", "no pipeline of the installed diffusers"),
    ):
        (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": name}))
        with pytest.raises(ModelNotFoundError, match=why):
            load(tmp_path, ON_CPU, str(name))


def test_an_error_of_torch_inside_of_a_step_ends_no_process(tmp_path: Path) -> None:
    """torch walks down the machine's stack for its errors: from a paused call there must be an end to it."""
    folder = save_wan(tmp_path / "wan")
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"_class_name": "WanImageToVideoPipeline", "image_encoder": [None, None], "image_processor": [None, None]}
    del index["expand_timesteps"]
    (folder / "model_index.json").write_text(json.dumps(index))
    code = (  # the network takes 16 channels, and this pipeline gives it 36
        "import sys, cosmorama\n"
        "try:\n    cosmorama.load(sys.argv[1], device='cpu')\n"
        "except cosmorama.CosmoramaError as error:\n    print(error)"
    )
    ran = subprocess.run([sys.executable, "-c", code, str(folder)], check=True, capture_output=True, text=True)
    assert "to have 16 channels" in ran.stdout
