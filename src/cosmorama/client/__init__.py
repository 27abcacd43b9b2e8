"""A typed client of a Cosmorama server: `Client` and `AsyncClient`. It needs neither torch nor a model.

>>> with cosmorama.Client("http://localhost:8000") as client:
...     client.generate("a red ball rolls to the right", seed=1).save("ball.mp4")
"""

from __future__ import annotations

from cosmorama.client.client import AsyncClient, AsyncJobHandle, Client, JobHandle
from cosmorama.client.protocol import Clip
from cosmorama.jobs.model import JobStatus

__all__ = ["AsyncClient", "AsyncJobHandle", "Client", "Clip", "JobHandle", "JobStatus"]
