"""What Cosmos3 is told: the prompt with the facts about the clip, in the words and the chat it was trained on.

Wordings and the structured caption of the action modes are those of diffusers' `Cosmos3OmniPipeline`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

from cosmorama.request import View

_SYSTEM = {
    "image": "You are a helpful assistant who will generate images from a give prompt.",  # sic
    "video": "You are a helpful assistant who will generate videos from a give prompt.",  # sic
    "transfer": "You are a helpful assistant that generates images or videos following the user's instructions and "
    "control signals (edge maps, blur, depth, or segmentation).",
}
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
    """A prompt, followed by duration and size; a structured prompt, a JSON object, has them inside.

    diffusers writes the sentences behind an object as well. The model was trained with objects that hold these facts,
    so what the prompt says of them itself is replaced by what is true.
    """
    if (caption := _structured(prompt)) is not None:
        return json.dumps(caption | _facts(clip), ensure_ascii=False)
    text = prompt
    if clip.kind == "video":
        text = _append(text, f"The video is {clip.frames / clip.fps:.1f} seconds long and is of {clip.fps:.0f} FPS.")
    return _append(text, f"This {clip.kind} is of {clip.height}x{clip.width} resolution.")


def described_negative(prompt: str, clip: ClipFacts) -> str:
    """A negative prompt, followed by the duration and size denied; a structured one stays as it is."""
    if _structured(prompt) is not None:
        return prompt
    text = prompt
    if clip.kind == "video":
        text = _append(
            text, f"The video is not {clip.frames / clip.fps:.1f} seconds long and is not of {clip.fps:.0f} FPS."
        )
    return _append(text, f"This {clip.kind} is not of {clip.height}x{clip.width} resolution.")


_DROID_VIEWS = (
    "The top row is from the wrist-mounted camera. The bottom row contains two horizontally concatenated third-person "
    "perspective views of the scene from opposite sides, with the robot visible."
)
"""What Cosmos-Framework's policy server says besides of the picture; the policy was trained with these words."""


def described_action(prompt: str, clip: ClipFacts, view: View, *, droid: bool = False) -> str:
    """The caption, as JSON, of a clip with actions, seen from somewhere; or from DROID's three cameras."""
    description = prompt.strip()
    if description and not description.endswith((".", "!", "?")):
        description += "."
    minutes, seconds = divmod(round(clip.frames / clip.fps), 60)
    return json.dumps(
        {
            "cinematography": {"framing": f"This video {_VIEWS[view]}." + (f" {_DROID_VIEWS}" if droid else "")},
            "actions": [{"time": f"0:00-{minutes}:{seconds:02d}", "description": description}],
            **_facts(clip),
        }
    )


def _facts(clip: ClipFacts) -> dict[str, Any]:
    """Of a clip, as structured captions have them; a still has neither duration nor rate."""
    ratio = clip.width / clip.height
    aspect = min(_ASPECTS, key=lambda sides: abs(sides[0] / sides[1] - ratio))
    moving = {"duration": f"{int(clip.frames / clip.fps)}s", "fps": float(clip.fps)} if clip.kind == "video" else {}
    return moving | {
        "resolution": {"H": clip.height, "W": clip.width},
        "aspect_ratio": f"{aspect[0]},{aspect[1]}",
    }


def _structured(prompt: str) -> dict[str, Any] | None:
    """A prompt that is a JSON object; None for any other."""
    if not prompt.lstrip().startswith("{"):
        return None
    try:
        caption = json.loads(prompt)
    except (ValueError, RecursionError):
        return None
    return caption if isinstance(caption, dict) else None


def chat(tokenizer: Any, text: str, kind: Literal["image", "video", "transfer"], *, system_prompt: bool) -> str:
    """The text as one turn of the tokenizer's chat, ready to be tokenized without further special tokens."""
    turns = [{"role": "user", "content": text}]
    if system_prompt:
        turns.insert(0, {"role": "system", "content": _SYSTEM[kind]})
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, add_vision_id=False))


def _append(text: str, sentence: str) -> str:
    # diffusers takes all dots from the end and puts one there: an ellipsis would be lost.
    return f"{text}{' ' if text.endswith('.') else '. '}{sentence}" if text else sentence
