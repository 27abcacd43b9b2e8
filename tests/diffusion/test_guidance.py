"""Classifier-free guidance."""

from __future__ import annotations

import pytest
import torch

from cosmorama.diffusion.guidance import Guidance

COND = torch.randn(1, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
UNCOND = torch.randn(1, 2, 3, 4, 4, generator=torch.Generator().manual_seed(1))


def test_weight_extrapolates_from_the_unconditional_prediction() -> None:
    torch.testing.assert_close(Guidance(1).combine(COND, UNCOND), COND)
    torch.testing.assert_close(Guidance(0).combine(COND, UNCOND), UNCOND)
    torch.testing.assert_close(Guidance(3).combine(COND, UNCOND), UNCOND + 3 * (COND - UNCOND))


def test_full_rescale_restores_the_conditional_spread() -> None:
    guided = Guidance(8, rescale=1.0).combine(COND, UNCOND)
    assert guided.std() == pytest.approx(float(COND.std()), rel=1e-4)


def test_interval_says_where_guidance_acts() -> None:
    guidance = Guidance(7, interval=(0.2, 0.8))
    assert [guidance.acts_at(i, 10) for i in range(10)] == [False] * 2 + [True] * 6 + [False] * 2
    assert not any(Guidance(1).acts_at(i, 10) for i in range(10))
    assert not any(Guidance(7, interval=(0.5, 0.5)).acts_at(i, 10) for i in range(10))
