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
    "training.world --stage onward --minutes 80 --decay-minutes 24",
    "scenes.closeups",
    "training.decoder",
    "training.export --out microcosm-runs/narrow",
    "training.world --stage onward --name wide --start microcosm-runs/narrow --heads 4 --minutes 83"
    " --decay-minutes 0.1",
    "training.export --name wide --out microcosm-runs/wide",
    "training.world --stage both --name both --start microcosm-runs/wide --heads 4 --minutes 104 --decay-minutes 42",
    "training.export --name both",
    "evaluation.probe",
    "evaluation.corridor_probe",
    "evaluate microcosm-runs/evaluation",
)

for stage in STAGES:
    name, *arguments = stage.split()
    print(f"== microcosm.{stage}", flush=True)
    subprocess.run([sys.executable, "-m", f"microcosm.{name}", *arguments], check=True)
