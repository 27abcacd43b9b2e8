"""Settings of NIM for Cosmos that mean nothing here, so that an operator who brings one along is told."""

from __future__ import annotations

import logging
from collections.abc import Mapping

log = logging.getLogger(__name__)

WITHOUT_EFFECT: Mapping[str, str] = {
    "NIM_MODEL_PROFILE": "there are no prebuilt profiles; COSMORAMA_DTYPE, COSMORAMA_OFFLOAD, COSMORAMA_QUANTIZE and "
    "COSMORAMA_PARALLEL say how a model runs",
    "NIM_PERF_PROFILE": "there are no two modes of scheduling; COSMORAMA_MAX_ACTIVE says how many generations take "
    "turns",
}
"""Environment variables, and why nothing follows from them."""


def warn_of_settings_without_effect(environment: Mapping[str, str]) -> None:
    """Log a warning for every variable of `WITHOUT_EFFECT` that is set."""
    for name, why in WITHOUT_EFFECT.items():
        value = environment.get(name, "").strip()
        if value:
            log.warning("%s=%s has no effect: %s", name, value, why)
