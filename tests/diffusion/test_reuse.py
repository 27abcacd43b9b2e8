"""Step reuse: exact at zero, held where answers change slowly, never where it must not be."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from cosmorama.diffusion.guidance import Guidance
from cosmorama.diffusion.reuse import FIRST_STEPS, LAST_STEPS, MOST_IN_A_ROW, Memory, estimate
from cosmorama.diffusion.schedule import Schedule, flow_schedule, karras_sigmas

STEPS = 20
SCHEDULE = flow_schedule(STEPS, shift=3.0)
SHAPE = (1, 2, 3, 4, 4)


class Network:
    """A clean estimate that drifts by `drift` of its size per step, and a difference that drifts by `push`."""

    def __init__(self, drift: float, push: float = 0.0) -> None:
        self.drift, self.push = drift, push
        self.asked: list[tuple[int, bool]] = []

    def at(self, index: int, negative: bool) -> Tensor:
        prompt = torch.full(SHAPE, 1 + self.drift * index)
        return prompt - 0.5 * (1 + self.push * index) if negative else prompt

    def run(self, guidance: Guidance, threshold: float) -> list[Tensor]:
        """The guided estimates of all steps."""
        memory, found = Memory(), []
        for index in range(STEPS):

            def evaluate(negative: bool, index: int = index) -> Tensor:
                self.asked.append((index, negative))
                return self.at(index, negative)

            guided, memory = estimate(evaluate, guidance, SCHEDULE, index, threshold, memory)
            found.append(guided)
        return found

    def steps(self, negative: bool) -> list[int]:
        return [index for index, asked in self.asked if asked == negative]


def test_zero_evaluates_everything_and_combines_as_guidance_does() -> None:
    network, guidance = Network(0.0), Guidance(3.0, rescale=0.4)
    found = network.run(guidance, 0.0)
    assert len(network.asked) == 2 * STEPS
    for index, guided in enumerate(found):
        assert torch.equal(guided, guidance.combine(network.at(index, False), network.at(index, True)))


@pytest.mark.parametrize("guidance", [Guidance(1.0), Guidance(3.0)])
def test_a_still_estimate_is_held_for_as_long_as_allowed(guidance: Guidance) -> None:
    network = Network(0.0)
    found = network.run(guidance, 0.01)
    period = MOST_IN_A_ROW + 1
    asked = network.steps(negative=False)
    assert asked[:FIRST_STEPS] == list(range(FIRST_STEPS))
    assert asked[-LAST_STEPS:] == list(range(STEPS - LAST_STEPS, STEPS))
    assert {later - earlier for earlier, later in pairwise(asked[FIRST_STEPS - 1 : -1])} == {period}
    assert network.steps(negative=True) == ([] if guidance.weight == 1 else asked)
    assert all(torch.allclose(guided, found[0]) for guided in found)


def test_a_fast_estimate_is_never_held() -> None:
    network = Network(0.2, 0.2)
    network.run(Guidance(3.0), 0.01)
    assert len(network.asked) == 2 * STEPS


def test_a_difference_that_stands_still_spares_the_negative_prompt_alone() -> None:
    network = Network(0.2)
    guided = network.run(Guidance(2.0), 0.02)
    assert network.steps(negative=False) == list(range(STEPS))
    assert len(network.steps(negative=True)) < STEPS / 2
    for index, estimate_ in enumerate(guided):
        exact = Guidance(2.0).combine(network.at(index, False), network.at(index, True))
        assert torch.allclose(estimate_, exact, atol=1e-5)


def test_the_error_is_about_the_threshold_at_most() -> None:
    network, guidance = Network(0.01, 0.01), Guidance(2.0)
    exact = [guidance.combine(network.at(i, False), network.at(i, True)) for i in range(STEPS)]
    for threshold in (0.02, 0.05):
        found = network.run(guidance, threshold)
        errors = [float((a - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True)]
        assert 0 < max(errors) <= threshold * 1.2


def test_the_threshold_orders_the_evaluations() -> None:
    counts = []
    for threshold in (0.0, 0.005, 0.02, 0.05, 0.2):
        network = Network(0.01, 0.02)
        network.run(Guidance(3.0), threshold)
        counts.append(len(network.asked))
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] < counts[0] / 2


def test_guidance_that_begins_late_is_asked_for_when_it_begins() -> None:
    network = Network(0.0)
    network.run(Guidance(3.0, interval=(0.3, 0.8)), 0.05)
    first = network.steps(negative=True)[0]
    assert first == 6
    assert first in network.steps(negative=False)


def test_the_negative_prompt_is_asked_for_only_after_the_prompt() -> None:
    network = Network(0.004, 0.05)
    network.run(Guidance(4.0), 0.03)
    for index, negative in network.asked:
        if negative:
            assert network.asked.index((index, False)) < network.asked.index((index, True))


def test_it_does_not_depend_on_the_parametrization() -> None:
    asked: list[int] = []
    memory = Memory()
    for index in range(STEPS):

        def evaluate(negative: bool, index: int = index) -> Tensor:
            asked.append(index)
            return torch.ones(SHAPE)

        _, memory = estimate(evaluate, Guidance(1.0), Schedule(karras_sigmas(STEPS), "edm"), index, 0.01, memory)
    assert len(asked) < STEPS
