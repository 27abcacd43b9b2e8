"""Makes Microcosm from nothing, stage by stage: `python -m microcosm`. Each stage resumes where it was stopped."""

from __future__ import annotations

import subprocess
import sys

from microcosm.training.batches import STAGES

RECIPE = (
    "scenes.dataset",
    "training.autoencoder",
    *(
        f"training.world --stage {name} --minutes {stage.minutes} --decay-minutes {stage.decay_minutes}"
        for name, stage in STAGES.items()
    ),
    "scenes.closeups",
    "training.decoder",
    "training.export",
    "training.drive --minutes 90 --rollout 3 --decay-minutes 30",
    "training.finder --minutes 60 --decay-minutes 35",
    "training.made",
    "training.still_refiner --minutes 90 --decay-minutes 30",
    "training.details",
    "training.mover --minutes 60 --decay-minutes 40",
    "training.export --part drive --part finder --part still_refiner --part mover",
    "evaluation.probe",
    "evaluate microcosm-runs/evaluation",
)

if __name__ == "__main__":
    for step in RECIPE:
        name, *arguments = step.split()
        print(f"== microcosm.{step}", flush=True)
        subprocess.run([sys.executable, "-m", f"microcosm.{name}", *arguments], check=True)
