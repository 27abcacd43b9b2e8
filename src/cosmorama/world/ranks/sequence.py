"""One clip on several devices: each evaluates some of its tokens, with and without guidance.

All processes begin the request. At every evaluation the first sends the latents to its followers over their pipes; then
all run the same forward pass on their own tokens and exchange keys, values and the result over torch.distributed (see
`shares`), and the first goes on with the solver. Every process holds the whole model: this shortens a clip's time
and the memory that its tokens take, not that of the weights.
"""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from cosmorama.errors import CosmoramaError, ModelNotFoundError, NotEnoughMemoryError
from cosmorama.world.base import BrokenModelError, Inputs, Sampling, World
from cosmorama.world.faults import breaks_the_process, explained
from cosmorama.world.ranks.guidance import Parallel, Shared, hear, tell
from cosmorama.world.ranks.process import Apply, Do, Follower
from cosmorama.world.ranks.shares import share_tokens

EXCHANGE_TIMEOUT = timedelta(minutes=5)
"""How long one process waits for another within an evaluation: far longer than an evaluation takes."""


class SequenceParallel(Parallel):
    """A world model whose tokens are shared out to this process and its followers. One at a time in a process."""

    def __init__(self, world: World, followers: Sequence[Follower]) -> None:
        """Bring the processes together.

        Args:
            world: Of this process.
            followers: With the same model each, loaded.

        Raises:
            ModelNotFoundError: the model is of a family whose tokens cannot be shared.
            BrokenModelError: a follower is gone.
        """
        super().__init__(world, followers)
        ranks = 1 + len(followers)
        if not world.networks:
            raise ModelNotFoundError(
                f"COSMORAMA_PARALLEL=sequence: {world.capabilities.model} is of the family "
                f"{world.capabilities.family}, whose tokens cannot be shared by processes; predict1 to transfer2.5, "
                "cosmos3 and Microcosm can"
            )
        # A file and not a port: nobody else on this machine or network can meet there.
        self._meeting = tempfile.TemporaryDirectory(prefix="cosmorama-")
        place = Path(self._meeting.name) / "meeting"
        for rank, follower in enumerate(followers, 1):
            follower.send(Apply(partial(join, rank=rank, ranks=ranks, meeting=place)))
        join(world, rank=0, ranks=ranks, meeting=place)
        hear(followers)

    def close(self) -> None:
        """End the followers; the model is evaluated by this process alone again."""
        for follower in self._followers:
            follower.close()
        for network in self.world.networks:
            share_tokens(network, None)
        dist.destroy_process_group()
        self._meeting.cleanup()

    def _shared(self, sampling: Sampling, inputs: Inputs, number: int) -> Sampling:
        return _Split(sampling, inputs, self._followers, number)


class _Split(Shared):
    def denoise(self, latents: Tensor, index: int, *, negative: bool = False) -> Tensor:
        """Estimate the clean latents, all processes together.

        Raises:
            BrokenModelError: it failed, here or in a follower; `error` is what the request ends with.
        """
        arguments = {"index": index, "negative": negative}
        tell(self._followers, Do(self._number, "denoise", latents.cpu(), arguments, together=True))
        try:
            estimate = self.inner.denoise(latents, index, negative=negative)
            # With NCCL only the GPU has waited for the others so far, not this process.
            hear(self._followers)
        except Exception as error:
            raise self._broken(error) from error
        return estimate

    def _broken(self, error: Exception) -> BrokenModelError:
        """Of an evaluation that failed somewhere: whoever has not failed waits within it, on the GPU perhaps, for ever.

        So no process of the group is of use any more, and none is asked to leave it in good order.
        """
        failures: list[CosmoramaError] = [error] if isinstance(error, CosmoramaError) else []
        for follower in self._followers:
            with suppress(BrokenModelError):
                if (failure := follower.failure()) is not None:
                    failures.append(failure)
        for follower in self._followers:
            follower.close()
        told: CosmoramaError | None = explained(error, self._request)
        if told is None and failures:  # of several, some may only be that another process was gone
            told = max(failures, key=lambda failure: isinstance(failure, NotEnoughMemoryError))
        if isinstance(error, BrokenModelError) or breaks_the_process(error):
            told = told if isinstance(told, NotEnoughMemoryError) else None
        return BrokenModelError(f"an evaluation that processes share failed: {type(error).__name__}: {error}", told)


def join(world: World, *, rank: int, ranks: int, meeting: Path) -> None:
    """Become process `rank` of `ranks` that evaluate a model's networks together; returns when all are there.

    Args:
        world: The model, of a family that can (`World.networks`).
        rank: From 0, which is the one that is asked for estimates.
        ranks: How many there are.
        meeting: A file that does not exist, the same for all.
    """
    device = world.device
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device)
    else:
        for _, name in socket.if_nameindex():
            if name in ("lo", "lo0"):  # else gloo listens where the machine's name points
                os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        init_method=f"file://{meeting}",
        rank=rank,
        world_size=ranks,
        timeout=EXCHANGE_TIMEOUT,
        device_id=device if on_gpu else None,
    )
    for network in world.networks:
        share_tokens(network, (rank, ranks))
