"""NVIDIA's published guardrail for Cosmos, through the package that diffusers' pipelines use: `cosmos-guardrail`.

It asks a word list and a language model (Qwen3Guard) about prompts, and pixelates the faces that it finds (RetinaFace),
frame by frame. Its weights come from the Hugging Face hub.
"""

from __future__ import annotations

from importlib import metadata
from typing import Protocol

import torch

from cosmorama.errors import GuardrailUnavailableError
from cosmorama.guardrails.checks import Frames


class SafetyChecker(Protocol):
    """What diffusers' Cosmos pipelines take as `safety_checker`."""

    def to(self, device: str) -> object:
        """Move the networks."""
        ...

    def check_text_safety(self, prompt: str) -> bool:
        """Whether a prompt may be used."""
        ...

    def check_video_safety(self, frames: Frames) -> Frames | None:
        """Frames, uint8 `[T, H, W, 3]`, with faces pixelated; None: they may not be shown."""
        ...


class CosmosGuardrail:
    """The checks of prompts and of frames.

    Raises:
        GuardrailUnavailableError: the package or its weights cannot be had.
    """

    def __init__(self) -> None:
        try:
            from cosmos_guardrail import CosmosSafetyChecker
        except ImportError as error:
            raise GuardrailUnavailableError(
                f"text_guardrail and video_guardrail cannot import cosmos-guardrail, which "
                f"`pip install '.[guardrail]'` brings: {error}"
            ) from error
        try:
            self._checker: SafetyChecker = CosmosSafetyChecker()
        except Exception as error:  # whatever a download or a broken cache leads to
            raise GuardrailUnavailableError(
                f"the weights of text_guardrail and video_guardrail cannot be loaded: {type(error).__name__}: {error}"
            ) from error
        self.about = f"cosmos-guardrail {_version()}"
        self._checker.to("cuda" if torch.cuda.is_available() else "cpu")

    def check_prompt(self, prompt: str) -> str | None:
        """See `PromptCheck`."""
        with torch.inference_mode():
            passes = self._checker.check_text_safety(prompt)
        return None if passes else "is one that this server's guardrail does not let pass; reword it"

    def check_frames(self, frames: Frames) -> Frames | None:
        """See `FramesCheck`."""
        with torch.inference_mode():
            return self._checker.check_video_safety(frames)


def _version() -> str:
    try:
        return metadata.version("cosmos-guardrail")
    except metadata.PackageNotFoundError:
        return "of an unknown version"
