"""The engine: identical results whatever else is in flight, progress at every step, cancellation, isolated failures."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cosmorama.engine.engine import Engine
from cosmorama.engine.outcome import Outcome
from cosmorama.errors import CancelledError, CosmoramaError, InvalidRequestError, MediaError, WorkerError
from cosmorama.progress import Progress
from cosmorama.request import GenerationRequest
from cosmorama.world.cosmos_flow import CosmosFlowWorld

REQUEST = GenerationRequest(prompt="a red ball falls", seed=5, steps=3, frames=9, width=960, height=704)


@pytest.fixture
def engine(tiny_world: CosmosFlowWorld) -> Iterator[Engine]:
    engine = Engine(tiny_world, max_active=3)
    yield engine
    engine.close()


def run(engine: Engine) -> dict[str, Outcome | CosmoramaError]:
    results: dict[str, Outcome | CosmoramaError] = {}
    deadline = time.monotonic() + 60
    while engine.pending:
        assert time.monotonic() < deadline
        if not engine.step():
            time.sleep(0.002)
        results.update(engine.finished())
    return results


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def still(width: int, height: int, shade: int) -> bytes:
    import io

    picture = np.full((height, width, 3), shade, np.uint8)
    picture[height // 4 : height // 2, width // 4 : width // 2] = (200, 30, 30)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "png")
    return buffer.getvalue()


def test_a_request_alone_and_among_others_gives_the_same_bytes(engine: Engine, tmp_path: Path) -> None:
    engine.submit("alone", REQUEST, output=tmp_path / "alone.mp4")
    alone = run(engine)["alone"]
    assert isinstance(alone, Outcome)
    assert (alone.seed, alone.frames, alone.width, alone.height, alone.fps) == (5, 9, 960, 704, 24)

    engine.submit("other", replace(REQUEST, seed=6, steps=5), output=tmp_path / "other.mp4")
    engine.submit("again", REQUEST, output=tmp_path / "again.mp4")
    engine.submit("wide", replace(REQUEST, width=1280, solver="unipc"), output=tmp_path / "wide.mp4")
    results = run(engine)
    assert all(isinstance(result, Outcome) for result in results.values())
    assert digest(tmp_path / "again.mp4") == digest(tmp_path / "alone.mp4")
    assert digest(tmp_path / "other.mp4") != digest(tmp_path / "alone.mp4")


def test_active_requests_advance_in_turn(engine: Engine, tmp_path: Path) -> None:
    steps: list[str] = []

    def watch(name: str):
        return lambda progress: steps.append(name) if progress.stage == "denoise" and progress.step else None

    for name in ("a", "b"):
        engine.submit(name, replace(REQUEST, steps=6), output=tmp_path / f"{name}.mp4", on_progress=watch(name))
    run(engine)
    assert steps.count("a") == steps.count("b") == 6
    assert steps.index("b") < 6  # b's first step came before a's last


def test_progress_is_reported_at_every_step(engine: Engine, tmp_path: Path) -> None:
    seen: list[Progress] = []
    engine.submit("job", REQUEST, output=tmp_path / "job.mp4", on_progress=seen.append)
    run(engine)
    assert seen[0] == Progress("prepare")
    assert [p.step for p in seen if p.stage == "denoise"] == [0, 1, 2, 3]
    assert all(p.total == 3 for p in seen if p.stage == "denoise")
    assert [p.step for p in seen if p.stage == "decode"] == [1, 9]
    assert seen[-1] == Progress("done")


def test_cancel_is_honoured_before_the_next_step_and_leaves_no_file(engine: Engine, tmp_path: Path) -> None:
    seen: list[Progress] = []

    def cancel_at_two(progress: Progress) -> None:
        seen.append(progress)
        if progress == Progress("denoise", 2, 50):
            engine.cancel("job")

    engine.submit("job", replace(REQUEST, steps=50), output=tmp_path / "job.mp4", on_progress=cancel_at_two)
    assert isinstance(run(engine)["job"], CancelledError)
    assert max(p.step for p in seen if p.stage == "denoise") == 2
    assert list(tmp_path.iterdir()) == []


def test_cancel_while_frames_are_written_removes_the_half_written_file(engine: Engine, tmp_path: Path) -> None:
    def cancel_when_decoding(progress: Progress) -> None:
        if progress.stage == "decode":
            engine.cancel("job")

    engine.submit("job", REQUEST, output=tmp_path / "job.mp4", on_progress=cancel_when_decoding)
    assert isinstance(run(engine)["job"], CancelledError)
    assert list(tmp_path.iterdir()) == []


def test_a_waiting_request_can_be_cancelled(tiny_world: CosmosFlowWorld, tmp_path: Path) -> None:
    engine = Engine(tiny_world, max_active=1)
    engine.submit("first", REQUEST, output=tmp_path / "first.mp4")
    engine.submit("second", REQUEST, output=tmp_path / "second.mp4")
    engine.cancel("second")
    results = run(engine)
    assert isinstance(results["first"], Outcome)
    assert isinstance(results["second"], CancelledError)
    engine.close()


def test_a_bad_request_is_refused_at_once(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="steps"):
        engine.submit("job", replace(REQUEST, steps=0), output=tmp_path / "job.mp4")
    assert engine.pending == 0


def test_bad_media_and_a_crash_inside_hurt_only_their_own_job(
    engine: Engine, tiny_world: CosmosFlowWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    denoise = tiny_world.denoise

    def fragile(latents, sigma, text, conditioning, fps):
        if fps == 13:
            raise RuntimeError("out of memory")
        return denoise(latents, sigma, text, conditioning, fps)

    monkeypatch.setattr(tiny_world, "denoise", fragile)
    engine.submit("crash", replace(REQUEST, fps=13), output=tmp_path / "crash.mp4")
    engine.submit("media", replace(REQUEST, image=b"not an image"), output=tmp_path / "media.mp4")
    engine.submit("good", REQUEST, output=tmp_path / "good.mp4")
    results = run(engine)
    assert isinstance(results["crash"], WorkerError)
    assert "out of memory" in str(results["crash"])
    assert isinstance(results["media"], MediaError)
    assert isinstance(results["good"], Outcome)
    assert [path.name for path in tmp_path.iterdir()] == ["good.mp4"]


def test_everything_that_should_matter_changes_the_frames(engine: Engine, tmp_path: Path) -> None:
    with_image = replace(REQUEST, image=still(300, 200, 90), prompt_upsampling=False)
    variants = {
        "base": REQUEST,
        "seed": replace(REQUEST, seed=6),
        "prompt": replace(REQUEST, prompt="a blue cube falls"),
        "negative": replace(REQUEST, negative_prompt="red"),
        "guidance": replace(REQUEST, guidance_scale=3),
        "interval": replace(REQUEST, guidance_interval=(0.5, 1.0)),
        "rescale": replace(REQUEST, guidance_rescale=0.7),
        "steps": replace(REQUEST, steps=4),
        "solver": replace(REQUEST, solver="dpmpp_2m"),
        "fps": replace(REQUEST, fps=12),
        "image": with_image,
        "other image": replace(with_image, image=still(300, 200, 180)),
    }
    for name, request in variants.items():
        engine.submit(name, request, output=tmp_path / f"{name}.mp4")
    results = run(engine)
    assert {name for name, result in results.items() if not isinstance(result, Outcome)} == set()
    assert len({digest(tmp_path / f"{name}.mp4") for name in variants}) == len(variants)


def test_a_frame_count_between_the_models_own_is_trimmed_to_exactly_what_was_asked(
    engine: Engine, tmp_path: Path
) -> None:
    import av

    for frames in (1, 2, 12):
        path = tmp_path / f"{frames}.mp4"
        engine.submit("job", replace(REQUEST, frames=frames, fps=29.97), output=path)
        assert isinstance(run(engine)["job"], Outcome)
        with av.open(str(path)) as container:
            assert sum(1 for _ in container.decode(video=0)) == frames
            assert float(container.streams.video[0].average_rate) == pytest.approx(29.97, abs=0.001)
