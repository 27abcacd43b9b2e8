"""One clip's tokens shared out to several processes: which are whose, and how a process sees those of the others.

Every process takes an equal part of the tokens of every latent frame, so what a frame has in common (its adaLN) stays
as it is. Norms, feed-forward layers and the reading of text look at one token at a time. Only self-attention looks at
others: there the keys and values of all tokens are gathered, in one exchange per block, while the queries of the
process's own tokens are computed.

The alternative, Ulysses (arXiv 2309.14509), swaps tokens for heads before attention and back after it. Between two
processes it sends exactly as many bytes, between r of them 2 / r as many, but in two exchanges that have to be waited
for, and only where r divides the number of heads. Gathering works for every number of heads and tokens, and each query
meets the same keys in the same order as in one process; its price is memory for all keys and values of one block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

_SHARING = "token_sharing"
"""The attribute of a network that says which share of the tokens is evaluated here."""


@dataclass(frozen=True, slots=True)
class Share:
    """What one process evaluates of something that all processes have, or have a part of.

    The parts are equal; where they cannot be, the last are filled up with zeros.

    Attributes:
        rank: Which process this is, from 0.
        ranks: How many there are; torch.distributed's default group.
        total: Tokens of a frame.
    """

    rank: int
    ranks: int
    total: int

    @property
    def size(self) -> int:
        """Tokens of a frame in each part."""
        return -(-self.total // self.ranks)

    def take(self, x: Tensor, dim: int) -> Tensor:
        """This process's part of `x`, whose dimension `dim` is `total` long: `size` long there."""
        start = min(self.rank * self.size, self.total)
        part = x.narrow(dim, start, min(self.size, self.total - start))
        missing = list(part.shape)
        missing[dim] = self.size - part.shape[dim]
        return part if not missing[dim] else torch.cat([part, part.new_zeros(missing)], dim)

    def join(self, x: Tensor, dim: int) -> Tensor:
        """The whole from every process's part `x`, in every process; all of them have to ask for it."""
        return self.joining(x, dim)()

    def joining(self, x: Tensor, dim: int) -> Callable[[], Tensor]:
        """Begin to `join`; what it returns waits for the end."""
        x = x.contiguous()
        parts = [torch.empty_like(x) for _ in range(self.ranks)]
        work = dist.all_gather(parts, x, async_op=True)

        def joined() -> Tensor:
            work.wait()
            return torch.cat(parts, dim).narrow(dim, 0, self.total)

        return joined


def share_tokens(network: nn.Module, sharing: tuple[int, int] | None) -> None:
    """Let a network evaluate only the share of this rank of so many from now on, together; None: all again."""
    setattr(network, _SHARING, sharing)


def share_of(network: nn.Module, tokens: int) -> Share | None:
    """The share of this process in frames of so many tokens; None if the network is evaluated by one process alone."""
    sharing: tuple[int, int] | None = getattr(network, _SHARING, None)
    return None if sharing is None else Share(*sharing, tokens)
