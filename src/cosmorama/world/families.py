"""Which families there are and what they take: asked of themselves."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

from cosmorama.request import MODES, Capabilities
from cosmorama.world.cosmos.capabilities import CAPABILITIES
from cosmorama.world.cosmos3.capabilities import capabilities_of


def fullest() -> tuple[Capabilities, ...]:
    """What a checkpoint of each pipeline takes when it has every part that the family knows."""
    return tuple(capabilities for _, _, capabilities in known())


def makers() -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Modes, kinds of controls and numbers of robots that not every model has, with the families that have them."""
    found: dict[str, list[str]] = {}
    for family in fullest():
        for what in taken_by(family):
            if what not in MODES:
                found.setdefault(what, []).append(family.family)
    return tuple((what, tuple(families)) for what, families in found.items())


def taken_by(family: Capabilities) -> tuple[str, ...]:
    """All modes, kinds of controls and numbers of robots of a family."""
    return (*family.modes, *family.controls, *(str(domain.id) for domain in family.action_domains))


def known() -> Iterator[tuple[str, str, Capabilities]]:
    """Models, diffusers' pipeline, and what a checkpoint of it takes."""
    for name, (models, capabilities) in CAPABILITIES.items():
        yield models, name, capabilities
    everything = SimpleNamespace(action_gen=True, action_dim=64, num_embodiment_domains=32)
    yield "Cosmos3 Edge, Nano, Super", "Cosmos3OmniPipeline", capabilities_of("cosmos3", everything)
