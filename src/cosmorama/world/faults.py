"""What an error of torch means: memory ran out for one request, or the process itself is of no more use."""

from __future__ import annotations

import torch

from cosmorama.errors import NotEnoughMemoryError
from cosmorama.request import ResolvedRequest


def explained(error: BaseException, request: ResolvedRequest) -> NotEnoughMemoryError | None:
    """What to tell whose request ran out of memory; None for any other error. Gives back what the allocator keeps."""
    # The CPU's allocator has no error type of its own.
    refused = isinstance(error, RuntimeError) and "allocate memory" in str(error)
    if not (refused or isinstance(error, MemoryError | torch.OutOfMemoryError)):
        return None
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return NotEnoughMemoryError(
        f"not enough memory for {request.frames} frames of {request.width}x{request.height}: ask for fewer frames or a "
        "smaller size"
    )
