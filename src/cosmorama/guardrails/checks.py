"""The checks of one server, as the rest of the code meets them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cosmorama.errors import FramesRefusedError, PromptRefusedError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Frames = npt.NDArray[np.uint8]
else:  # a server that only answers looks at words alone
    Frames = Any
PromptCheck = Callable[[str], str | None]
"""Takes a text; why it must not pass, to go after "the prompt", or None."""
FramesCheck = Callable[[Frames], Frames | None]
"""Takes frames, uint8 `[T, H, W, 3]`, of which it sees each alone; what may be shown of them, or None for nothing."""


def described(check: object) -> str:
    """What a check says of itself in `about`, else its name."""
    owner = getattr(check, "__self__", check)
    return str(getattr(owner, "about", None) or getattr(check, "__name__", type(check).__name__))


@dataclass(frozen=True, slots=True)
class Guardrails:
    """What has to pass. Prompts are looked at as they come and as they are used, and negative prompts as they come.

    Attributes:
        prompts: Each has to let a text pass.
        frames: Looks at everything that leaves the model, previews too.
    """

    prompts: tuple[PromptCheck, ...] = ()
    frames: FramesCheck | None = None

    def check_prompt(self, text: str, called: str = "prompt") -> None:
        """Let a text pass.

        Args:
            text: What is about to be used.
            called: What it is: `prompt`, `expanded prompt`, `description` (of a picture or clip) or `negative prompt`.

        Raises:
            PromptRefusedError: a check does not let it.
        """
        for check in self.prompts if text else ():
            if (why := check(text)) is not None:
                words = "the description of the picture or clip" if called == "description" else f"the {called}"
                raise PromptRefusedError(f"{words} {why}")

    @property
    def prompt_checks(self) -> tuple[str, ...]:
        """What each check of prompts is, with its rule or weights."""
        return tuple(map(described, self.prompts))

    @property
    def frames_check(self) -> str | None:
        """What the check of frames is."""
        return None if self.frames is None else described(self.frames)

    def passed(self, frames: Frames) -> Frames:
        """What may be shown of frames, uint8 `[T, H, W, 3]`.

        Raises:
            FramesRefusedError: nothing may.
        """
        if self.frames is None:
            return frames
        shown = self.frames(frames)
        if shown is None:
            raise FramesRefusedError("this server's guardrail does not let the frames pass; change the prompt")
        return shown
