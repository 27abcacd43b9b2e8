"""Which families there are, what they take, and the table of them in docs/models.md: asked of themselves.

python -m cosmorama.world.families      # that table
"""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

from cosmorama.request import CONTROL_KINDS, MODES, Capabilities
from cosmorama.world.cosmos.capabilities import CAPABILITIES

_COLUMNS = ("Family", "Diffusers pipeline", "Modes", "Frames", "Continues from", "Default", "Solvers", "Guidance")
_STILL = "a still"


def fullest() -> tuple[Capabilities, ...]:
    """What a checkpoint of each pipeline takes when it has every part that the family knows."""
    return tuple(capabilities for _, _, capabilities in _known())


def makers() -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Modes and kinds of controls that not every model has, with the families that have them."""
    found: dict[str, list[str]] = {}
    for family in fullest():
        for what in (*family.modes, *family.controls):
            if what not in MODES:
                found.setdefault(what, []).append(family.family)
    return tuple((what, tuple(families)) for what, families in found.items())


def table() -> str:
    """All families, Microcosm too, in Markdown."""
    from cosmorama.world.microcosm.loader import capabilities_of
    from cosmorama.world.registry import MICROCOSM

    rows = [("Microcosm", "(comes with Cosmorama)", capabilities_of(MICROCOSM.folder)), *_known()]
    lines = [_COLUMNS, ("---",) * len(_COLUMNS)]
    lines += [
        (
            models,
            name if name.startswith("(") else f"`{name}`",
            ", ".join(_modes(capabilities)),
            _frames(capabilities),
            " or ".join(map(str, sorted(capabilities.conditioning_frames))) if _continues(capabilities) else "",
            _default(capabilities),
            " ".join(f"`{solver}`" for solver in capabilities.solvers),
            f"{capabilities.guidance_scale.low:g} to {capabilities.guidance_scale.high:g}",
        )
        for models, name, capabilities in rows
    ]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _known() -> Iterator[tuple[str, str, Capabilities]]:
    """Models, diffusers' pipeline, and what a checkpoint of it takes."""
    from cosmorama.world.cosmos3.capabilities import capabilities_of

    for name, (models, capabilities) in CAPABILITIES.items():
        yield models, name, capabilities
    everything = SimpleNamespace(action_gen=True, action_dim=64, num_embodiment_domains=32)
    yield "Cosmos3 Edge, Nano, Super", "Cosmos3OmniPipeline", capabilities_of("cosmos3", everything)


def _modes(capabilities: Capabilities) -> Iterator[str]:
    for mode in capabilities.modes:
        if mode == "text2world" and capabilities.frames.maximum == 1:
            yield f"{mode} ({_STILL})"
        elif mode == "transfer" and capabilities.controls:
            yield f"{mode}: {', '.join(kind for kind in CONTROL_KINDS if kind in capabilities.controls)}"
        else:
            yield mode


def _frames(capabilities: Capabilities) -> str:
    rule = capabilities.frames
    if rule.maximum == 1:
        return "1"
    steps = f"{rule.multiple}k+1, " if rule.multiple > 1 else "as the control clip, "
    return f"{steps}up to {rule.maximum}"


def _continues(capabilities: Capabilities) -> bool:
    return not {"image2world", "video2world"}.isdisjoint(capabilities.modes)


def _default(capabilities: Capabilities) -> str:
    default, rule = capabilities.defaults, capabilities.frames
    parts = [f"{default.width}x{default.height}"]
    if rule.maximum > 1:
        parts += [f"{default.frames} frames"] if rule.multiple > 1 else []
        parts += [f"{default.fps:g} fps"]
    return ", ".join([*parts, f"{default.steps} steps", f"{default.guidance_scale:g}"])


if __name__ == "__main__":
    print(table(), end="")
