"""What an error of torch means: memory ran out for one request, or the process is of no more use to any.

After a sticky CUDA error (illegal access, ECC, launch failure, a device-side assert) every further call in the process
fails, and so does every request until another process has a CUDA context of its own.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator

import torch
from torch import Tensor

from cosmorama.errors import NotEnoughMemoryError, WorkerError
from cosmorama.request import ResolvedRequest

_OF_A_DEVICE = re.compile(
    r"\b(CUDA|HIP|NCCL|RCCL|cuDNN|MIOpen|cuBLAS|cuFFT|XPU)( driver)? error\b"
    r"|\b(CUDNN|CUBLAS|CUFFT|CUSPARSE|CUSOLVER|HIPBLAS)_STATUS_|device-side assert|unhandled (cuda|system) error",
    re.IGNORECASE,
)
_OF_THE_CALL = re.compile(r"_STATUS_(NOT_SUPPORTED|BAD_PARAM|INVALID_VALUE)")
"""Refused before anything ran: the device is well."""
_NO_MEMORY = re.compile(r"out of memory|allocate memory|_STATUS_ALLOC_FAILED", re.IGNORECASE)


def breaks_the_process(error: BaseException) -> bool:
    """Whether an error, or one that led to it, leaves this process's device or its group of processes unusable."""
    return any(_is_device_fault(cause) for cause in _causes(error))


def _is_device_fault(error: BaseException) -> bool:
    if _is_lack_of_memory(error):
        return False
    if isinstance(error, getattr(torch.distributed, "DistError", ())):
        return True
    text = str(error)
    if not isinstance(error, RuntimeError) or _OF_THE_CALL.search(text):
        return False
    return isinstance(error, torch.AcceleratorError) or _OF_A_DEVICE.search(text) is not None


def _is_lack_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # The CPU's allocator has no error type of its own, and neither have the libraries beside torch's allocator.
    return isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error)) is not None


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        yield cause
        seen.add(id(cause))
        cause = cause.__cause__ or cause.__context__


def explained(error: BaseException, request: ResolvedRequest) -> NotEnoughMemoryError | None:
    """What to tell whose request ran out of memory; None for any other error."""
    if not any(_is_lack_of_memory(cause) for cause in _causes(error)):
        return None
    return NotEnoughMemoryError(
        f"not enough memory for {request.frames} frames of {request.width}x{request.height}: ask for fewer frames or a "
        "smaller size"
    )


def free_memory() -> None:
    """Give back what the allocators keep. Of use only when nothing holds on to the tensors: no traceback either."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class NotFiniteError(WorkerError):
    """What a model computed is NaN or infinity: what would be shown is black or noise."""


def not_finite(what: str, request: ResolvedRequest) -> NotFiniteError:
    """Says what was not finite, and what to try."""
    tries = ["COSMORAMA_DTYPE=bfloat16 or float32 (float16 overflows in these models)"]
    if request.adapters:
        tries.append("the request without its adapters, or with smaller scales")
    if request.guidance_scale > 1:
        tries.append(f"a guidance scale below {request.guidance_scale:g}")
    tries.append("COSMORAMA_QUANTIZE=none; if it stays so, the checkpoint's weights are damaged")
    return NotFiniteError(f"{what}: not a number, or infinite. Try {'; '.join(tries)}")


def all_finite(x: Tensor) -> Tensor:
    """Whether every number of a tensor is finite, as a bool scalar on its device: nothing is waited for."""
    return torch.isfinite(x).all()
