"""What clients of vLLM-Omni, SGLang and TensorRT-LLM send among their extra fields: a robot's actions, and controls."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from cosmorama.api.dialects.cosmos3 import CONTROLS, COSMOS3, DERIVED, MAX_ACTIONS, ActionParams, Transfer
from cosmorama.errors import InvalidRequestError, Problem
from cosmorama.media.sniff import is_clip_name

_OF_CONTROLS = {
    "control": "video",
    "control_path": "video",
    "weight": "control_weight",
    "control_weight": "control_weight",
}
"""What those servers call what is in a control, to this server's names."""

_BESIDE = ("control_hint", *_OF_CONTROLS, "preset_edge_threshold", "preset_blur_strength")
"""What may stand beside a control instead of in it."""

CONTROL = "control_reference"
"""What vLLM-Omni's clients call another one, beside it or alone: the control that `control_type` names."""


class VideoAction(ActionParams):
    """What clients of vLLM-Omni send among their extra fields for a robot's actions."""

    action_mode: Literal["forward_dynamics", "policy", "inverse_dynamics"]


class VideoTransfer(Transfer):
    """The controls among the extra fields, as clients of vLLM-Omni, SGLang and TensorRT-LLM send them."""

    max_frames: int | None = Field(None, description="As many as num_frames, with all of these clients.")

    @model_validator(mode="before")
    @classmethod
    def _as_here(cls, value: Mapping[str, Any]) -> Mapping[str, Any]:
        """Under this server's names; SGLang's clients name one control in `control_hint`, its fields beside it."""
        found = {name: each for name, each in value.items() if name not in _BESIDE}
        if (hint := value.get("control_hint")) is not None:
            found.setdefault(hint, {name: value[name] for name in _BESIDE[1:] if name in value})
        for name in CONTROLS:
            params = found.get(name)
            if isinstance(params, str):
                found[name] = {"video": params}
            elif isinstance(params, Mapping):
                own = {_OF_CONTROLS.get(key, key): each for key, each in params.items()}
                # A preset says how a control clip was made, where there is one.
                found[name] = {
                    key: own[key] for key in own if not (own.get("video") and str(key).startswith("preset_"))
                }
        return found

    def problems(self, *, has_clip: bool) -> Iterator[Problem]:
        """What is missing of them; whatever belongs to the loaded model is told later."""
        for name, params in self.given.items():
            if params.video and ":" not in params.video[:8] and is_clip_name(params.video):
                accepted = "a URL, a data URL or base64: files of this server are not read"
                yield Problem(f"{name}.video", params.video, accepted)
            elif not params.video and (name not in DERIVED or not has_clip):
                accepted = f"a clip of {name}" + (", or a clip in input_reference" if name in DERIVED else "")
                yield Problem(f"{name}.video", None, accepted)


Special = tuple[str, VideoAction | VideoTransfer]
"""What the client calls the object of extra fields that they are in, and the fields."""


def controlled(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """The body with the control beside its extra fields among them, where the other clients have it."""
    kind, control = body.get("control_type"), body.get(CONTROL)
    if kind is None and control is None:
        return body
    if not isinstance(kind, str) or kind not in CONTROLS:
        raise InvalidRequestError(Problem("control_type", kind, f"what {CONTROL} is: {', '.join(CONTROLS)}"))
    if not isinstance(control, str):
        raise InvalidRequestError(
            Problem(CONTROL, control, f"the clip of control_type {kind}: an upload, URL or base64")
        )
    rest = {name: value for name, value in body.items() if name not in ("control_type", CONTROL)}
    extra = rest.get("extra_params") or {}
    held = extra.get(kind) if isinstance(extra, Mapping) else None
    if not isinstance(extra, Mapping) or not isinstance(held, Mapping | bool | None):
        return rest  # and is told what it should be
    held = {} if isinstance(held, bool | None) else held
    if any(held.get(name) for name, own in _OF_CONTROLS.items() if own == "video"):
        raise InvalidRequestError(Problem(CONTROL, f"beside extra_params.{kind}", "one of the two"))
    return {**rest, "extra_params": {**extra, kind: {**held, "control": control}}}


def special_of(inner: Mapping[str, Any], carrier: str) -> tuple[type[VideoAction | VideoTransfer] | None, list[str]]:
    """What extra fields are a robot's actions or the controls of a transfer, and as what they are read."""
    model: type[VideoAction | VideoTransfer] | None = None
    names: Collection[str] = ()
    if (hint := inner.get("control_hint")) not in (None, *CONTROLS):
        raise InvalidRequestError(Problem(f"{carrier}.control_hint", hint, f"one of {', '.join(CONTROLS)}"))
    if "action_mode" in inner:
        model, names = VideoAction, VideoAction.model_fields
    elif hint or any(inner.get(name) not in (None, False) for name in CONTROLS):
        model, names = VideoTransfer, (*VideoTransfer.model_fields, *(_BESIDE if hint else ()))
    return model, [name for name in names if name in inner]


def chunk_of(inner: Mapping[str, Any], given: Mapping[str, Any], at: str) -> int | None:
    """How many actions there are, where SGLang's clients only say it with their rows or with the frames."""
    if isinstance(rows := inner.get("action"), list):
        steps, problem = len(rows), Problem(f"{at}.action", f"{len(rows)} rows", f"4, 8, ... or {MAX_ACTIONS} rows")
    else:
        asked = {f"{at}.{name}": inner[name] for name in ("frames", "num_frames") if name in inner}
        asked |= {name: given[name] for name in ("frames", "num_frames") if name in given}
        called, frames = asked.popitem() if asked else ("", None)
        if frames is None:
            return None
        problem = Problem(called, frames, f"one more than there are actions: 5, 9, ... or {MAX_ACTIONS + 1}")
        steps = int(str(frames)) - 1 if re.fullmatch("[0-9]{1,6}", str(frames)) else 0
    if steps % 4 or not 0 < steps <= MAX_ACTIONS:
        raise InvalidRequestError(problem)
    return steps


def names_of_transfer(inner: Mapping[str, Any], at: str) -> dict[str, str]:
    """What a client calls what belongs to controls, in the object that is called `at`."""
    names = {
        field: f"{at}.{name.partition('.')[2]}".rstrip(".")
        for field, name in COSMOS3.wire_names.items()
        if name.startswith("transfer")
    }
    names["controls=vis"] = "blur"
    names["field=transfer"] = f"{at}.{', '.join(name for name in (*CONTROLS, 'control_hint') if name in inner)}"
    for name, kind in CONTROLS.items():
        inside = isinstance(inner.get(name), Mapping)
        where, params = (f"{at}.{name}", inner[name]) if inside else (at, inner)
        names[f"{name}.video"] = f"{at}.{name}.control"
        for key in _OF_CONTROLS.keys() & params.keys():
            own = _OF_CONTROLS[key]
            names[f"{name}.{own}"] = names[f"controls.{kind}.{'source' if own == 'video' else 'weight'}"] = (
                f"{where}.{key}"
            )
    return names
