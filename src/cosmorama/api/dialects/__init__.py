"""The wire formats of `POST /v1/infer` and `POST /v1/jobs`, in the order in which a body's shape is tried against them.

1. `cosmos3`: `model_mode`, or without `video_params` a field that only it has.
2. `transfer25`: no `video_params` or width, and a control or another field that only it has.
3. `generator1`: no `video_params`, `video` or `width`, but `fps`.
4. `predict25`: no `video_params`, but `resolution` or `num_output_frames`.
5. `predict1`: every other body.

Two more are only used where a job names them: `openai`, which has its own route, and `cosmorama`, the server's own.
"""

from __future__ import annotations

from cosmorama.api.dialects import cosmos3, native, openai_videos, predict, transfer
from cosmorama.api.dialects.base import Dialect

SHAPED: tuple[Dialect, ...] = (
    cosmos3.COSMOS3,
    transfer.TRANSFER25,
    predict.GENERATOR1,
    predict.PREDICT25,
    predict.PREDICT1,
)
"""Those that `POST /v1/infer` takes."""
DIALECTS: tuple[Dialect, ...] = (*SHAPED, openai_videos.DIALECT, native.DIALECT)
"""Those that a job can be in."""
