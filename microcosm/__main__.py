"""Makes Microcosm from nothing, stage by stage: `python -m microcosm`. Each stage resumes where it was stopped."""

from __future__ import annotations

import subprocess
import sys

STAGES = (
    "scenes.dataset",
    "training.autoencoder basis",
    "training.world --stage images --minutes 40",
    "training.world --stage clips --minutes 40",
    "training.world --stage full --minutes 80",
    "training.world --stage onward --minutes 160 --decay-minutes 24",
    "training.world --stage both --minutes 104 --decay-minutes 42",
    "scenes.closeups",
    "training.decoder",
    "training.export",
    "training.drive --minutes 90 --rollout 3 --decay-minutes 30",
    "training.finder --minutes 60 --decay-minutes 35",
    "training.made",
    "training.still_refiner --minutes 90 --decay-minutes 30",
    "training.tracker --minutes 60 --decay-minutes 20",
    "training.export --part drive --part finder --part still_refiner --part tracker",
    "evaluation.probe",
    "evaluation.corridor_probe",
    "evaluate microcosm-runs/evaluation",
)

for stage in STAGES:
    name, *arguments = stage.split()
    print(f"== microcosm.{stage}", flush=True)
    subprocess.run([sys.executable, "-m", f"microcosm.{name}", *arguments], check=True)
