"""What Cosmos3 is told: the prompt with the facts about the clip, in the words and the chat it was trained on.

Wordings and the structured caption of the action modes are those of diffusers' `Cosmos3OmniPipeline`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

from cosmorama.request import View

_SYSTEM = "You are a helpful assistant who will generate {kind}s from a give prompt."  # sic
_VIEWS: dict[View, str] = {
    "ego_view": "is captured from a first-person perspective looking at the scene",
    "third_person_view": "is captured from a third-person perspective looking towards the agent from the front",
    "wrist_view": "is captured from a wrist-mounted camera",
    "concat_view": "contains concatenated views from multiple camera perspectives",
}
_ASPECTS = ((1, 1), (4, 3), (3, 4), (16, 9), (9, 16))


@dataclass(frozen=True, slots=True)
class ClipFacts:
    """What the text says about the clip. `frames` is the number generated, not the number asked for."""

    width: int
    height: int
    frames: int
    fps: float

    @property
    def kind(self) -> Literal["image", "video"]:
        """What the model calls it."""
        return "image" if self.frames == 1 else "video"


def described(prompt: str, clip: ClipFacts) -> str:
    """A prompt, followed by duration and size."""
    text = prompt
    if clip.kind == "video":
        text = _append(text, f"The video is {clip.frames / clip.fps:.1f} seconds long and is of {clip.fps:.0f} FPS.")
    return _append(text, f"This {clip.kind} is of {clip.height}x{clip.width} resolution.")


def described_negative(prompt: str, clip: ClipFacts) -> str:
    """A negative prompt, followed by the duration and size denied."""
    text = prompt
    if clip.kind == "video":
        text = _append(
            text, f"The video is not {clip.frames / clip.fps:.1f} seconds long and is not of {clip.fps:.0f} FPS."
        )
    return _append(text, f"This {clip.kind} is not of {clip.height}x{clip.width} resolution.")


def described_action(prompt: str, clip: ClipFacts, view: View) -> str:
    """The caption, as JSON, of a clip with actions, seen from somewhere."""
    description = prompt.strip()
    if description and not description.endswith((".", "!", "?")):
        description += "."
    duration_s = clip.frames / clip.fps
    minutes, seconds = divmod(round(duration_s), 60)
    ratio = clip.width / clip.height
    aspect = min(_ASPECTS, key=lambda sides: abs(sides[0] / sides[1] - ratio))
    return json.dumps(
        {
            "cinematography": {"framing": f"This video {_VIEWS[view]}."},
            "actions": [{"time": f"0:00-{minutes}:{seconds:02d}", "description": description}],
            "duration": f"{int(duration_s)}s",
            "fps": float(clip.fps),
            "resolution": {"H": clip.height, "W": clip.width},
            "aspect_ratio": f"{aspect[0]},{aspect[1]}",
        }
    )


def chat(tokenizer: Any, text: str, clip: ClipFacts, *, system_prompt: bool) -> str:
    """The text as one turn of the tokenizer's chat, ready to be tokenized without further special tokens."""
    turns = [{"role": "user", "content": text}]
    if system_prompt:
        turns.insert(0, {"role": "system", "content": _SYSTEM.format(kind=clip.kind)})
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, add_vision_id=False))


def _append(text: str, sentence: str) -> str:
    text = text.rstrip(".")
    return f"{text}. {sentence}" if text else sentence
