"""One request being sampled: windows of clips longer than the model makes at once, and what is asked of the network."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from cosmorama.engine.engine import Engine
from cosmorama.engine.outcome import Outcome
from cosmorama.engine.prepare import PreparedRequest
from cosmorama.engine.rollout import Rollout
from cosmorama.errors import CancelledError, InvalidRequestError
from cosmorama.media.read import read_video
from cosmorama.progress import Progress
from cosmorama.request import Capabilities, FrameRule, Output, ResolvedRequest, Usual
from cosmorama.resolve import resolve
from cosmorama.world.microcosm.loader import load_microcosm
from cosmorama.world.microcosm.sampling import CosmosFlowWorld
from cosmorama.world.registry import MICROCOSM
from cosmorama.world.windows import window_frames

PROMPT = "a red ball rolls to the right on a green floor"
REQUEST = ResolvedRequest(prompt=PROMPT, prompt_upsampling=False, seed=5, steps=3, width=256, height=128)
Clip = npt.NDArray[np.uint8]


def with_windows_of(frames: int, checkpoint: Path, folder: Path) -> CosmosFlowWorld:
    """A checkpoint whose model makes `frames` at once, and small ones too."""
    shutil.copytree(checkpoint, folder, dirs_exist_ok=True)
    facts = json.loads((folder / "world.json").read_text())
    facts["frames"]["max"] = frames
    facts["sizes"] += [[256, 128]]
    (folder / "world.json").write_text(json.dumps(facts))
    return load_microcosm(folder)


@pytest.fixture(scope="module")
def short_world(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> CosmosFlowWorld:
    """Makes 17 frames at once, and continues from 9."""
    return with_windows_of(17, tiny_checkpoint, tmp_path_factory.mktemp("short"))


def run(world: CosmosFlowWorld, request: ResolvedRequest) -> Rollout:
    rollout = Rollout(world, PreparedRequest(resolve(request, world.capabilities), PROMPT, None))
    while not rollout.done:
        rollout.advance()
    return rollout


def frames_of(rollout: Rollout) -> Clip:
    return np.concatenate(list(rollout.decode()))


@pytest.mark.parametrize(
    ("frames", "windows"), [(1, (1,)), (17, (17,)), (18, (17, 10)), (25, (17, 17)), (26, (17, 17, 10)), (41, (17,) * 4)]
)
def test_windows_overlap_by_what_they_continue_from(frames: int, windows: tuple[int, ...]) -> None:
    capabilities = Capabilities(model="m", frames=FrameRule(8, 17), longest=41)
    assert window_frames(frames, capabilities) == windows
    assert sum(windows) - 9 * (len(windows) - 1) == frames


def test_a_long_clip_begins_with_the_frames_of_the_short_one(short_world: CosmosFlowWorld) -> None:
    short = frames_of(run(short_world, replace(REQUEST, frames=17)))
    rollout = run(short_world, replace(REQUEST, frames=30))
    assert (rollout.clean, rollout.index) == (3, 9)
    long = frames_of(rollout)
    assert long.shape == (30, 128, 256, 3)
    assert (long[:17] == short).all()
    assert (frames_of(run(short_world, replace(REQUEST, frames=30))) == long).all()
    # Windows have noise of their own: the second and the third are not the same clip again.
    assert np.abs(long[17:21].astype(float) - long[25:29]).mean() > 1


def test_decoding_as_windows_are_sampled_gives_the_same_frames(short_world: CosmosFlowWorld) -> None:
    at_once = frames_of(run(short_world, replace(REQUEST, frames=30)))
    rollout = Rollout(
        short_world, PreparedRequest(resolve(replace(REQUEST, frames=30), short_world.capabilities), PROMPT, None)
    )
    parts: list[Clip] = []
    shown = 0
    while not rollout.done:
        rollout.advance()
        if rollout.clean > shown:
            parts += list(rollout.decode(shown))
            shown = rollout.clean
    assert (np.concatenate(parts) == at_once).all()


def test_the_number_of_frames_is_bounded_by_the_longest_clip(short_world: CosmosFlowWorld) -> None:
    assert short_world.capabilities.most_frames == 41
    with pytest.raises(InvalidRequestError, match=r"frames: 42 .* 1 to 41"):
        resolve(replace(REQUEST, frames=42), short_world.capabilities)


def test_the_engine_streams_windows_and_counts_all_their_steps(short_world: CosmosFlowWorld, tmp_path: Path) -> None:
    seen: list[Progress] = []
    outcome = generate(short_world, replace(REQUEST, frames=30, output=Output("webm")), tmp_path, seen.append)
    assert isinstance(outcome, Outcome)
    assert outcome.frames == 30
    assert outcome.counts["steps"] == 9
    assert len(read_video(outcome.path.read_bytes(), "video", width=256, height=128, fps=24, frames=99)) == 30
    denoising = [(p.step, p.total) for p in seen if p.stage == "denoise"]
    assert denoising == sorted(denoising)
    assert denoising[0] == (0, 9)
    assert denoising[-1] == (9, 9)
    # All but the last five frames were written before the last window began.
    assert [p.step for p in seen if p.stage == "decode"] == [30]


def test_a_long_clip_is_cancelled_before_its_next_step(short_world: CosmosFlowWorld, tmp_path: Path) -> None:
    seen: list[Progress] = []
    outcome = generate(short_world, replace(REQUEST, frames=30), tmp_path, seen.append, cancel_at=4)
    assert isinstance(outcome, CancelledError)
    assert max(p.step for p in seen if p.stage == "denoise") == 4
    assert not list(tmp_path.iterdir())


def generate(
    world: CosmosFlowWorld,
    request: ResolvedRequest,
    folder: Path,
    report: Callable[[Progress], None],
    *,
    cancel_at: int | None = None,
) -> object:
    """Run a request through an engine of its own."""
    engine = Engine(world, max_active=1)

    def on_progress(progress: Progress) -> None:
        report(progress)
        if progress.stage == "denoise" and progress.step == cancel_at:
            engine.cancel("job")

    try:
        engine.submit("job", request, output=folder / "clip.webm", on_progress=on_progress)
        while engine.pending:
            engine.step()
        return engine.finished()[0][1]
    finally:
        engine.close()


def test_microcosm_goes_on_where_the_window_before_ended(tmp_path: Path) -> None:
    world = with_windows_of(17, MICROCOSM.folder, tmp_path)
    clip = frames_of(run(world, replace(REQUEST, frames=25, steps=8, width=960, height=704)))[:, ::8, ::8].astype(float)
    steps = np.abs(clip[1:] - clip[:-1]).mean(axis=(1, 2, 3))
    # From frame 16, the last of the first window, to frame 17: no larger a step than the clip takes elsewhere.
    assert steps[16] <= 2 * np.delete(steps, 16).max() + 0.5


def test_reuse_asks_the_network_less_and_zero_asks_it_always(short_world: CosmosFlowWorld) -> None:
    request = replace(REQUEST, frames=9, steps=12)
    exact = run(short_world, request)
    assert exact.evaluations == 24
    assert (run(short_world, replace(request, reuse=0.0)).latents == exact.latents).all()
    saving = run(short_world, replace(request, reuse=0.5))
    assert 6 <= saving.evaluations < 24
    assert (run(short_world, replace(request, reuse=0.5)).latents == saving.latents).all()
    assert (saving.latents - exact.latents).norm() < 0.5 * exact.latents.norm()


@pytest.mark.parametrize("reuse", [-0.1, 1.5, float("nan"), True, "0.1"])
def test_reuse_is_a_number_from_zero_to_one(short_world: CosmosFlowWorld, reuse: float) -> None:
    with pytest.raises(InvalidRequestError, match=r"reuse: .* 0 to 1"):
        resolve(replace(REQUEST, frames=9, reuse=reuse), short_world.capabilities)


def test_a_model_without_reuse_takes_only_zero(short_world: CosmosFlowWorld) -> None:
    capabilities = replace(short_world.capabilities, reuse=None)
    assert resolve(replace(REQUEST, frames=9, reuse=0), capabilities).reuse == 0
    assert resolve(replace(REQUEST, frames=9, usual=Usual(reuse=0.1)), capabilities).reuse == 0
    with pytest.raises(InvalidRequestError, match="reuse"):
        resolve(replace(REQUEST, frames=9, reuse=0.1), capabilities)
