"""A package that stands in for `cosmos-guardrail`, whose weights are gigabytes: the same interface, simple answers.

It refuses prompts with "forbidden", frames that are all of one value, and blackens the upper left corner of all others.
"""

from __future__ import annotations

from pathlib import Path

_CODE = """
class CosmosSafetyChecker:
    def to(self, device):
        self.device = device

    def check_text_safety(self, prompt):
        return "forbidden" not in prompt

    def check_video_safety(self, frames):
        assert frames.dtype == "uint8" and frames.ndim == 4 and frames.shape[3] == 3
        if frames.min() == frames.max():
            return None
        frames = frames.copy()
        frames[:, :64, :64] = 0
        return frames
"""


def write_stand_in(folder: Path) -> Path:
    """The package in a folder that can be put on Python's path."""
    (folder / "cosmos_guardrail").mkdir(parents=True)
    (folder / "cosmos_guardrail" / "__init__.py").write_text(_CODE)
    return folder
