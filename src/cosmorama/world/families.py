"""Which families make what: asked of each family's own capabilities, so that nobody keeps a list."""

from __future__ import annotations

from types import SimpleNamespace

from cosmorama.request import CONTROL_KINDS, MODES, Capabilities


def fullest() -> tuple[Capabilities, ...]:
    """What a checkpoint of each family takes when it has every part that the family knows."""
    from cosmorama.world.cosmos import predict25, transfer25
    from cosmorama.world.cosmos3 import family as cosmos3

    everything = SimpleNamespace(action_gen=True, action_dim=64, num_embodiment_domains=32)
    return (
        predict25._capabilities("predict2.5"),
        transfer25._capabilities("transfer2.5", CONTROL_KINDS),
        cosmos3.capabilities_of("cosmos3", everything),
    )


def makers() -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Modes and kinds of controls that not every model has, with the families that have them."""
    found: dict[str, list[str]] = {}
    for family in fullest():
        for what in (*family.modes, *family.controls):
            if what not in MODES:
                found.setdefault(what, []).append(family.family)
    return tuple((what, tuple(families)) for what, families in found.items())
