"""The published guardrail behind its interface, and in an engine: frames, previews, refusals."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cosmorama.engine.engine import Engine
from cosmorama.engine.outcome import Outcome
from cosmorama.errors import CosmoramaError, FramesRefusedError, GuardrailUnavailableError, PromptRefusedError
from cosmorama.guardrails.checks import Guardrails
from cosmorama.guardrails.cosmos import CosmosGuardrail
from cosmorama.media.read import read_video
from cosmorama.request import ResolvedRequest
from cosmorama.world.microcosm.sampling import CosmosFlowWorld
from tests.guardrails.stand_in import write_stand_in

REQUEST = ResolvedRequest(
    prompt="a red ball", seed=1, steps=8, frames=9, width=960, height=704, prompt_upsampling=False
)


@pytest.fixture
def cosmos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CosmosGuardrail]:
    monkeypatch.syspath_prepend(str(write_stand_in(tmp_path)))
    yield CosmosGuardrail()
    sys.modules.pop("cosmos_guardrail", None)


def finish(engine: Engine) -> Outcome | CosmoramaError:
    while engine.pending:
        if not engine.step():
            engine.wait()
    ((_, result),) = engine.finished()
    engine.close()
    return result


def test_without_the_package_there_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cosmos_guardrail", None)
    with pytest.raises(GuardrailUnavailableError, match=r"pip install '.\[guardrail\]'"):
        CosmosGuardrail()


def test_without_its_weights_there_is_a_reason(cosmos: CosmosGuardrail, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(self: object) -> None:
        raise OSError("the hub is not in reach")

    monkeypatch.setattr(sys.modules["cosmos_guardrail"].CosmosSafetyChecker, "__init__", no_network)
    with pytest.raises(GuardrailUnavailableError, match="OSError: the hub is not in reach"):
        CosmosGuardrail()


def test_clips_and_previews_are_altered(cosmos: CosmosGuardrail, tiny_world: CosmosFlowWorld, tmp_path: Path) -> None:
    engine = Engine(tiny_world, guardrails=Guardrails((cosmos.check_prompt,), cosmos.check_frames))
    previews: list[bytes] = []
    engine.submit("a", REQUEST, output=tmp_path / "clip.mp4", on_preview=previews.append)
    engine.watch("a", True)
    outcome = finish(engine)
    assert isinstance(outcome, Outcome)
    assert outcome.counts["prompts_passed"] == outcome.counts["clips_altered"] == 1
    assert outcome.timings["guardrail"] > 0
    made = read_video(
        outcome.path.read_bytes(), "video", width=960, height=704, fps=outcome.fps, frames=9, keep="first"
    )
    shown = [np.asarray(Image.open(io.BytesIO(preview))) for preview in previews]
    assert shown
    for frame in (*made, *shown):
        scale = frame.shape[1] / 960
        assert frame[: int(48 * scale), : int(48 * scale)].max() < 40
        assert frame.max() > 100


def test_frames_that_do_not_pass_leave_nothing(tiny_world: CosmosFlowWorld, tmp_path: Path) -> None:
    engine = Engine(tiny_world, guardrails=Guardrails(frames=lambda frames: None))
    previews: list[bytes] = []
    engine.submit("a", REQUEST, output=tmp_path / "clip.mp4", on_preview=previews.append)
    engine.watch("a", True)
    assert isinstance(finish(engine), FramesRefusedError)
    assert not previews
    assert not list(tmp_path.iterdir())


def test_the_text_that_is_used_has_to_pass_too(
    cosmos: CosmosGuardrail, tiny_world: CosmosFlowWorld, tmp_path: Path
) -> None:
    from cosmorama.engine.prepare import Preparer

    preparer = Preparer(upsampler=lambda prompt: f"{prompt}, forbidden")
    engine = Engine(tiny_world, preparer, Guardrails((cosmos.check_prompt,)))
    asked = ResolvedRequest(prompt="a red ball", frames=1, steps=1, width=960, height=704, prompt_upsampling=True)
    engine.submit("a", asked, output=tmp_path / "clip.mp4")
    error = finish(engine)
    assert isinstance(error, PromptRefusedError)
    assert str(error).startswith("the expanded prompt is one that this server's guardrail does not let pass")
