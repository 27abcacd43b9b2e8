"""The wire formats of `POST /v1/infer` and `POST /v1/jobs`, in the order in which a body's shape is tried against them.

1. `cosmos3`: `model_mode`, or without `video_params` a field that only it has.
2. `transfer25`: no `video_params`, and a control or another field that only it has.
3. `generator1`: no `video_params` and no `video`, but `fps`.
4. `predict25`: no `video_params`, but `resolution` or `num_output_frames`.
5. `predict1`: every other body.

Two more are only used where a job names them: `openai`, which has its own route, and `cosmorama`, the server's own.
"""

from __future__ import annotations

from cosmorama.api.dialects import cosmos3, generator1, native, openai_videos, predict1, predict25, transfer25
from cosmorama.api.dialects.base import Dialect

SHAPED: tuple[Dialect, ...] = (
    cosmos3.DIALECT,
    transfer25.DIALECT,
    generator1.DIALECT,
    predict25.DIALECT,
    predict1.DIALECT,
)
"""Those that `POST /v1/infer` takes."""
DIALECTS: tuple[Dialect, ...] = (*SHAPED, openai_videos.DIALECT, native.DIALECT)
"""Those that a job can be in."""
