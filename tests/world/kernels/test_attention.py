"""The kernel of self-attention by setting: the same numbers from every backend, in every family."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cosmorama.errors import ModelNotFoundError
from cosmorama.world.kernels.attention import attend, choose_attention
from cosmorama.world.registry import load_world
from tests.world.checkpoints import save_predict
from tests.world.cosmos.test_transfer25 import clip as control_clip
from tests.world.cosmos.test_transfer25 import rollout_of
from tests.world.cosmos.transfer_checkpoints import save_transfer
from tests.world.cosmos3.test_cosmos3 import sampled
from tests.world.cosmos3_checkpoints import save_cosmos3
from tests.world.generic_checkpoints import save_wan
from tests.world.ranks.test_guidance import latents, rollout


def predict(world: Any) -> torch.Tensor:
    return latents(rollout(world))


def transfer(world: Any) -> torch.Tensor:
    world.chunk_frames = 9
    return latents(rollout_of(world, {"edge": control_clip(9)}))


def cosmos3(world: Any) -> torch.Tensor:
    return sampled(world).latents


@pytest.mark.parametrize(
    ("save", "make"),
    [
        (lambda folder: save_predict("predict2.5", folder), predict),
        (save_transfer, transfer),
        (save_cosmos3, cosmos3),
    ],
    ids=["predict2.5", "transfer2.5", "cosmos3"],
)
def test_every_backend_gives_the_same_clip(
    tmp_path: Path, save: Callable[[Path], Any], make: Callable[[Any], torch.Tensor]
) -> None:
    save(tmp_path)
    expected = make(load_world(str(tmp_path), device="cpu"))
    for backend in ("native", "_native_math"):
        torch.testing.assert_close(
            make(load_world(str(tmp_path), device="cpu", attention=backend)), expected, rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("key_heads", [4, 2])
def test_the_backend_is_really_asked(monkeypatch: pytest.MonkeyPatch, key_heads: int) -> None:
    layer = nn.Module()
    layer.to_q = nn.Identity()
    query, key, value = torch.randn(1, 5, 4, 8), torch.randn(1, 7, key_heads, 8), torch.randn(1, 7, key_heads, 8)
    expected = attend(layer, query, key, value)
    choose_attention(layer, "native")
    torch.testing.assert_close(attend(layer, query, key, value), expected)
    monkeypatch.setattr("diffusers.models.attention_dispatch.dispatch_attention_fn", lambda *_, **__: "asked")
    assert attend(layer, query, key, value) == "asked"  # type: ignore[comparison-overlap]


@pytest.mark.parametrize("save", [lambda folder: save_predict("predict2.5", folder), save_cosmos3, save_wan])
def test_what_cannot_be_is_refused_by_name(tmp_path: Path, save: Callable[[Path], Any]) -> None:
    save(tmp_path)
    with pytest.raises(ModelNotFoundError, match=r"ATTENTION is 'fast'; it must be auto or one of .*_native_cudnn"):
        load_world(str(tmp_path), device="cpu", attention="fast")
    with pytest.raises(ModelNotFoundError, match="COSMORAMA_ATTENTION=_flash_3 cannot be used here"):
        load_world(str(tmp_path), device="cpu", attention="_flash_3")
