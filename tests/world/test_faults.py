"""What an error means: too little memory for one request, or a device that is of no more use to any."""

from __future__ import annotations

import pytest
import torch

from cosmorama.errors import MediaError, WorkerError
from cosmorama.request import Adapter, ResolvedRequest
from cosmorama.world.faults import breaks_the_process, explained, not_finite
from cosmorama.world.vae.pixels import to_frames, to_pixels

REQUEST = ResolvedRequest(prompt="a ball", width=64, height=32, frames=9, guidance_scale=7)


def wrapped(error: BaseException) -> Exception:
    try:
        raise WorkerError("a step failed") from error
    except WorkerError as outer:
        return outer


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
        torch.AcceleratorError("CUDA error: unspecified launch failure"),
        RuntimeError("CUDA error: device-side assert triggered"),
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`"),
        RuntimeError("NCCL error in: ProcessGroupNCCL.cpp:2284, unhandled cuda error"),
        torch.distributed.DistBackendError("a peer is gone"),
        torch.distributed.DistNetworkError("connection reset"),
        wrapped(torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered")),
    ],
    ids=str,
)
def test_faults_of_a_device(error: Exception) -> None:
    assert breaks_the_process(error)
    assert explained(error, REQUEST) is None


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        torch.AcceleratorError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
        wrapped(torch.OutOfMemoryError("CUDA out of memory")),
    ],
    ids=str,
)
def test_too_little_memory(error: Exception) -> None:
    assert not breaks_the_process(error)
    told = explained(error, REQUEST)
    assert told is not None
    assert "9 frames of 64x32" in str(told)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("CUDA error"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        RuntimeError(
            "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if you passed in a non-contiguous input"
        ),
        MediaError("image", "out of memory"),
    ],
    ids=str,
)
def test_what_is_one_requests_own(error: Exception) -> None:
    assert not breaks_the_process(error)
    assert explained(error, REQUEST) is None


def test_what_is_not_finite_is_told_with_what_to_try() -> None:
    adapted = ResolvedRequest(prompt="a ball", adapters=(Adapter("style", 1.0),))
    assert "adapters" in str(not_finite("the latents after step 3 of 36", adapted))
    assert "adapters" not in str(not_finite("the latents", REQUEST))
    assert "guidance scale below 7" in str(not_finite("the latents", REQUEST))


def test_frames_survive_the_way_to_pixels_and_back_and_nan_does_not() -> None:
    frames = torch.randint(0, 256, (3, 4, 6, 3), dtype=torch.uint8)
    assert torch.equal(to_frames(to_pixels(frames)), frames)
    assert torch.equal(to_frames(to_pixels(frames).half()), frames)
    for bad in (torch.nan, torch.inf):
        pixels = to_pixels(frames)
        pixels[0, 1, 2, 3, 4] = bad
        with pytest.raises(WorkerError, match="COSMORAMA_DTYPE"):
            to_frames(pixels)


def test_bytes_travel_to_the_device_and_become_floats_there() -> None:
    frames = torch.zeros(3, 4, 6, 3, dtype=torch.uint8)
    pixels = to_pixels(frames, "meta")
    assert (pixels.device.type, pixels.dtype, tuple(pixels.shape)) == ("meta", torch.float32, (1, 3, 3, 4, 6))
