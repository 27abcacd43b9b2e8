"""The engine: identical results whatever else is in flight, progress at every step, cancellation, isolated failures."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import threading
import time
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cosmorama.engine.engine import Engine
from cosmorama.engine.outcome import Outcome
from cosmorama.engine.prepare import PreparedRequest, Preparer
from cosmorama.errors import (
    CancelledError,
    CosmoramaError,
    InvalidRequestError,
    MediaError,
    NotEnoughMemoryError,
    StorageFullError,
    WorkerError,
)
from cosmorama.media.write import VideoWriter, read_metadata
from cosmorama.progress import Progress
from cosmorama.request import Capabilities, ResolvedRequest
from cosmorama.world.base import BrokenModelError, Inputs, ReadText, Sampling
from cosmorama.world.microcosm.sampling import CosmosFlowWorld

REQUEST = ResolvedRequest(prompt="a red ball falls", seed=5, steps=3, frames=9, width=960, height=704)


@pytest.fixture
def engine(tiny_world: CosmosFlowWorld) -> Iterator[Engine]:
    engine = Engine(tiny_world, max_active=3)
    yield engine
    engine.close()


def run(engine: Engine) -> dict[str, Outcome | CosmoramaError]:
    results: dict[str, Outcome | CosmoramaError] = {}
    deadline = time.monotonic() + 240  # only against going on for ever
    while engine.pending:
        assert time.monotonic() < deadline
        if not engine.step() and engine.pending:
            engine.wait()
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


def test_waiting_ends_with_the_inputs_or_with_a_command(tiny_world: CosmosFlowWorld, tmp_path: Path) -> None:
    told = threading.Event()

    class Slow(Preparer):
        def __call__(self, request: ResolvedRequest, capabilities: Capabilities) -> PreparedRequest:
            assert told.wait(60)
            return super().__call__(request, capabilities)

    engine = Engine(tiny_world, Slow())
    commands, commander = multiprocessing.Pipe(duplex=False)
    try:
        for name in ("a", "b"):  # the second time too
            told.clear()
            engine.submit(name, replace(REQUEST, frames=1, steps=1), output=tmp_path / f"{name}.mp4")
            assert not engine.step()
            commander.send("look here")
            engine.wait(commands)  # nothing is prepared yet
            assert commands.recv() == "look here"
            assert not engine.step()
            threading.Timer(0.05, told.set).start()
            assert isinstance(run(engine)[name], Outcome)
    finally:
        told.set()
        engine.close()


def test_short_and_urgent_work_overtakes_long_work_between_its_steps(engine: Engine, tmp_path: Path) -> None:
    steps: list[str] = []

    def watch(name: str):
        def note(progress: Progress) -> None:
            if progress.stage == "denoise" and progress.step:
                steps.append(name)
            if progress.stage == "denoise" and name == "long" and progress.step == 2:
                engine.submit(
                    "short", replace(long, steps=1), output=tmp_path / "short.mp4", on_progress=watch("short")
                )
                engine.submit(
                    "urgent", long, output=tmp_path / "urgent.mp4", on_progress=watch("urgent"), priority="high"
                )

        return note

    long = replace(REQUEST, steps=8, frames=1)
    engine.submit("long", long, output=tmp_path / "long.mp4", on_progress=watch("long"))
    results = run(engine)
    assert {type(result) for result in results.values()} == {Outcome}
    assert steps.index("urgent") < len(steps) - 1 - steps[::-1].index("long")
    assert list(results) == ["urgent", "short", "long"]


def test_a_request_beyond_the_places_is_taken_in_only_if_it_goes_first(
    tiny_world: CosmosFlowWorld, tmp_path: Path
) -> None:
    engine = Engine(tiny_world, max_active=1)
    begun: list[str] = []

    def watch(name: str):
        return lambda progress: begun.append(name) if progress.stage == "prepare" else None

    for name, priority in (("first", "normal"), ("second", "normal"), ("urgent", "high"), ("urgent too", "high")):
        path = tmp_path / f"{name}.mp4"
        engine.submit(name, REQUEST, output=path, on_progress=watch(name), priority=priority, age_s=9 - len(name))
        engine.step()
    assert begun == ["first", "urgent"]
    run(engine)
    assert begun == ["first", "urgent", "urgent too", "second"]
    engine.close()


def test_a_watched_request_shows_what_it_will_look_like(engine: Engine, tmp_path: Path) -> None:
    import io

    previews: list[bytes] = []
    for name, request in (("job", replace(REQUEST, steps=20, frames=1)), ("unwatched", replace(REQUEST, frames=1))):
        engine.submit(name, request, output=tmp_path / f"{name}.mp4", on_preview=previews.append)
    engine.watch("job", True)
    run(engine)
    assert 4 <= len(previews) <= 8
    pictures = [Image.open(io.BytesIO(preview)) for preview in previews]
    assert {picture.format for picture in pictures} == {"JPEG"}
    assert pictures[0].size == (320, 235)
    first, last = (np.asarray(pictures[i], np.float32) for i in (0, -1))
    assert first.std() > 1  # something is to be seen
    assert np.abs(first - last).mean() > 0.1  # and it changes


def test_remaining_time_is_told_once_something_was_measured(engine: Engine, tmp_path: Path) -> None:
    seen: list[Progress] = []
    engine.submit("job", REQUEST, output=tmp_path / "job.mp4", on_progress=seen.append)
    run(engine)
    steps = [progress for progress in seen if progress.stage == "denoise"]
    assert steps[0].remaining_s is None
    told = [progress.remaining_s for progress in steps[1:]]
    assert all(remaining is not None and remaining > 0 for remaining in told)
    assert seen[-1].remaining_s == 0


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
    begin = tiny_world.begin

    def fragile(inputs: Inputs, read: ReadText) -> Sampling:
        sampling = begin(inputs, read)
        if inputs.request.fps == 13:
            monkeypatch.setattr(sampling, "denoise", crash)
        return sampling

    def crash(*_: object, **__: object) -> None:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(tiny_world, "begin", fragile)
    engine.submit("crash", replace(REQUEST, fps=13), output=tmp_path / "crash.mp4")
    engine.submit("media", replace(REQUEST, image=b"not an image"), output=tmp_path / "media.mp4")
    engine.submit("good", REQUEST, output=tmp_path / "good.mp4")
    results = run(engine)
    assert isinstance(results["crash"], WorkerError)
    assert "shapes do not fit" in str(results["crash"])
    assert isinstance(results["media"], MediaError)
    assert isinstance(results["good"], Outcome)
    assert [path.name for path in tmp_path.iterdir()] == ["good.mp4"]


@pytest.mark.parametrize("stage", ["begin", "denoise", "decode"])
def test_what_runs_out_of_memory_once_is_done_again_and_gives_the_same_bytes(
    engine: Engine, tiny_world: CosmosFlowWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    engine.submit("before", REQUEST, output=tmp_path / "before.mp4")
    assert isinstance(run(engine)["before"], Outcome)
    begin, failures, alive = tiny_world.begin, iter([True, True]), []

    def fail_at(calls: int, function: Any) -> Any:
        def called(*args: object, **options: object) -> Any:
            nonlocal calls
            calls -= 1
            if calls == 0 and next(failures, False):
                tensor = torch.empty(8)
                alive.append(weakref.ref(tensor))
                raise torch.OutOfMemoryError("CUDA out of memory")
            return function(*args, **options)

        return called

    def short_of_memory(inputs: Inputs, read: ReadText) -> Sampling:
        sampling = begin(inputs, read)
        if stage == "denoise":
            monkeypatch.setattr(sampling, "denoise", fail_at(2, sampling.denoise))
        if stage == "decode":
            decode = sampling.decode

            def in_pieces(latents: torch.Tensor, chunk: int = 0) -> Iterator[torch.Tensor]:
                for number, frames in enumerate(decode(latents, chunk)):
                    if number == 1 and next(failures, False):
                        raise torch.OutOfMemoryError("CUDA out of memory")
                    yield frames

            monkeypatch.setattr(sampling, "decode", in_pieces)
        return sampling

    failing = fail_at(1, short_of_memory) if stage == "begin" else short_of_memory
    monkeypatch.setattr(tiny_world, "begin", failing)

    def freed() -> None:
        held = [tensor for tensor in alive if tensor() is not None]
        assert not held, "memory is given back while the failed step still holds its tensors"

    monkeypatch.setattr("cosmorama.engine.engine.free_memory", freed)
    next(failures)  # one failure is left

    engine.submit("again", REQUEST, output=tmp_path / "again.mp4")
    assert isinstance(run(engine)["again"], Outcome)
    assert next(failures, "none left") == "none left"
    assert digest(tmp_path / "again.mp4") == digest(tmp_path / "before.mp4")


def test_frames_are_written_while_the_next_are_decoded(
    engine: Engine, tiny_world: CosmosFlowWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.submit("before", REQUEST, output=tmp_path / "before.mp4")
    assert isinstance(run(engine)["before"], Outcome)
    begin, write, decoded = tiny_world.begin, VideoWriter.write, threading.Semaphore(0)

    def told(inputs: Inputs, read: ReadText) -> Sampling:
        sampling = begin(inputs, read)
        decode = sampling.decode

        def in_pieces(latents: torch.Tensor, chunk: int = 0) -> Iterator[torch.Tensor]:
            try:
                for frames in decode(latents, chunk):
                    decoded.release()
                    yield frames
            finally:  # nothing follows, or nothing more is wanted
                decoded.release()

        monkeypatch.setattr(sampling, "decode", in_pieces)
        return sampling

    def after_the_next(self: VideoWriter, frames: Any) -> None:
        assert decoded.acquire(timeout=60), "what follows is not decoded before this is written"
        write(self, frames)

    monkeypatch.setattr(tiny_world, "begin", told)
    monkeypatch.setattr(VideoWriter, "write", after_the_next)
    engine.submit("again", REQUEST, output=tmp_path / "again.mp4")
    while not decoded.acquire(blocking=False):  # of the first frames: so every write needs the decoding after it
        engine.step()
    assert isinstance(run(engine)["again"], Outcome)
    assert digest(tmp_path / "again.mp4") == digest(tmp_path / "before.mp4")


def test_frames_that_cannot_be_written_end_their_job_alone(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = VideoWriter.write
    failures: list[Exception] = []

    def short_once(self: VideoWriter, frames: Any) -> None:
        if failures:
            raise failures.pop()
        write(self, frames)

    monkeypatch.setattr(VideoWriter, "write", short_once)
    for failure, told in ((OSError(28, "No space left on device"), StorageFullError), (MemoryError(), CosmoramaError)):
        failures.append(failure)
        engine.submit("full", REQUEST, output=tmp_path / "full.mp4")
        assert isinstance(run(engine)["full"], told)
        assert not failures
        assert list(tmp_path.iterdir()) == []
    engine.submit("next", REQUEST, output=tmp_path / "next.mp4")
    assert isinstance(run(engine)["next"], Outcome)


def test_what_runs_out_of_memory_twice_is_told_what_to_reduce(
    engine: Engine, tiny_world: CosmosFlowWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_large(*_: object, **__: object) -> Sampling:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(tiny_world, "begin", too_large)
    engine.submit("job", REQUEST, output=tmp_path / "job.mp4")
    assert isinstance(run(engine)["job"], NotEnoughMemoryError)
    monkeypatch.undo()
    engine.submit("next", REQUEST, output=tmp_path / "next.mp4")
    assert isinstance(run(engine)["next"], Outcome)


def test_a_fault_of_the_device_ends_no_request_but_the_engine(
    engine: Engine, tiny_world: CosmosFlowWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sticky(*_: object, **__: object) -> Sampling:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(tiny_world, "begin", sticky)
    engine.submit("job", REQUEST, output=tmp_path / "job.mp4")
    with pytest.raises(BrokenModelError, match="illegal memory access"):
        run(engine)
    assert engine.finished() == []


def test_latents_that_are_not_finite_end_the_job_naming_the_step(
    engine: Engine, tiny_world: CosmosFlowWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = tiny_world.begin

    def poisoned(inputs: Inputs, read: ReadText) -> Sampling:
        sampling = begin(inputs, read)
        denoise = sampling.denoise

        def nan_at_the_second(latents: torch.Tensor, index: int, **options: bool) -> torch.Tensor:
            return denoise(latents, index, **options) * (torch.nan if index == 1 else 1)

        monkeypatch.setattr(sampling, "denoise", nan_at_the_second)
        return sampling

    monkeypatch.setattr(tiny_world, "begin", poisoned)
    engine.submit("job", REQUEST, output=tmp_path / "job.mp4")
    error = run(engine)["job"]
    assert isinstance(error, WorkerError)
    assert "step 2 of 3" in str(error)
    assert "COSMORAMA_DTYPE" in str(error)
    assert list(tmp_path.iterdir()) == []


def test_everything_that_should_matter_changes_the_frames(engine: Engine, tmp_path: Path) -> None:
    clip = replace(REQUEST, frames=2)
    still_only = replace(REQUEST, frames=1)
    with_image = replace(clip, image=still(300, 200, 90), prompt_upsampling=False)
    variants = {
        "base": still_only,
        "seed": replace(still_only, seed=6),
        "prompt": replace(still_only, prompt="a blue cube falls"),
        "negative": replace(still_only, negative_prompt="red"),
        "guidance": replace(still_only, guidance_scale=3),
        "interval": replace(still_only, guidance_interval=(0.5, 1.0)),
        "rescale": replace(still_only, guidance_rescale=0.7),
        "steps": replace(still_only, steps=4),
        "solver": replace(still_only, solver="dpmpp_2m"),
        "clip": clip,
        "fps": replace(clip, fps=12),
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


def test_the_file_says_what_it_was_made_with(engine: Engine, tmp_path: Path) -> None:
    engine.submit("job", REQUEST, output=tmp_path / "job.mp4")
    outcome = run(engine)["job"]
    assert isinstance(outcome, Outcome)
    found = read_metadata(tmp_path / "job.mp4")
    assert found["prompt"] == outcome.prompt
    told = {name: found[name] for name in ("seed", "steps", "width", "height", "frames", "fps", "mode")}
    assert told == {
        "seed": "5", "steps": "3", "width": "960", "height": "704", "frames": "9", "fps": "24", "mode": "text2world"
    }  # fmt: skip


def test_an_interrupt_while_frames_are_written_waits_for_them_and_leaves_nothing(
    tiny_world: CosmosFlowWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An encoder that is closed while another thread is in it ends the process."""
    engine, ended = Engine(tiny_world, max_active=1), threading.Event()
    write = VideoWriter.write

    def interrupted(writer: VideoWriter, frames: Any) -> None:
        time.sleep(0.3)  # meanwhile the main thread has decoded what is next, and waits
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.3)
        write(writer, frames)
        ended.set()

    monkeypatch.setattr(VideoWriter, "write", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # who runs the tests in the background ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            engine.make(REQUEST, tmp_path / "clip.mp4")
    finally:
        signal.signal(signal.SIGINT, before)
    engine.close()
    assert ended.is_set()
    assert list(tmp_path.iterdir()) == []
