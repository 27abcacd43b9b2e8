"""The generated tokens of a Cosmos3 shared by several processes, which are threads here: the numbers of one."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from cosmorama.world.cosmos3.families import load_transformer
from cosmorama.world.cosmos3.forward import Layout, generate, rotary_embedding, text_memory, understand
from cosmorama.world.load.options import ON_CPU
from cosmorama.world.ranks.shares import Share, share_tokens
from tests.world.cosmos3_checkpoints import save_cosmos3


class Meeting:
    """Lets threads exchange their parts as `torch.distributed` lets processes."""

    def __init__(self, ranks: int) -> None:
        self._parts: list[Tensor] = [torch.empty(0)] * ranks
        self._barrier = threading.Barrier(ranks, timeout=60)

    def joining(self, share: Share, x: Tensor, dim: int) -> Callable[[], Tensor]:
        self._parts[share.rank] = x
        self._barrier.wait()
        whole = torch.cat(self._parts, dim).narrow(dim, 0, share.total)
        self._barrier.wait()
        return lambda: whole


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = save_cosmos3(tmp_path_factory.mktemp("shared"), actions=True)
    return load_transformer(folder / "transformer", ON_CPU)


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("kind", ["clip", "with actions", "behind controls"])
def test_the_numbers_are_those_of_one_process(
    network: Any, monkeypatch: pytest.MonkeyPatch, kind: str, ranks: int
) -> None:
    frames, rows, columns = 3, 6, 5  # in patches 3 x 3: nine tokens in a frame
    latents = torch.randn(1, 8, frames, rows, columns, generator=torch.Generator().manual_seed(1))
    before = [latents.flip(2), latents + 1] if kind == "behind controls" else []
    actions = torch.randn(4, 16) if kind == "with actions" else None
    tokens = frames * 9 * (len(before) + 1) + (0 if actions is None else len(actions))
    noisy = torch.arange(tokens)[:, None] >= 9
    with torch.inference_mode():
        memory = text_memory(network, understand(network, torch.arange(7)))
        rotary = rotary_embedding(network, torch.arange(tokens).expand(3, -1))
        layout = Layout(rows, columns, rotary, noisy, None if actions is None else 2)
        expected = generate(network, memory, layout, latents, 500.0, actions, before)
    meeting = Meeting(ranks)
    monkeypatch.setattr(Share, "joining", lambda share, x, dim: meeting.joining(share, x, dim))

    def run(rank: int) -> tuple[Tensor, Tensor | None]:
        mine = copy.deepcopy(network)
        share_tokens(mine, (rank, ranks))
        with torch.inference_mode():
            return generate(mine, memory, layout, latents, 500.0, actions, before)

    with ThreadPoolExecutor(ranks) as pool:
        for velocity, drift in pool.map(run, range(ranks)):
            torch.testing.assert_close(velocity, expected[0], rtol=1e-5, atol=1e-5)
            if drift is not None and expected[1] is not None:
                torch.testing.assert_close(drift, expected[1], rtol=1e-5, atol=1e-5)
