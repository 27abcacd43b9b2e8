"""The client for ordinary programs; `cosmorama.client.aio` is the same for asyncio."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, Unpack

import httpx

from cosmorama.client.bar import progress_bar as new_bar
from cosmorama.client.connection import Connection
from cosmorama.client.protocol import (
    Clip,
    JobOptions,
    JobStatus,
    State,
    capabilities_of,
    client_arguments,
    clip_of,
    page_of,
    part_of,
    request_of,
    status_of,
    submit_arguments,
)
from cosmorama.errors import CosmoramaError
from cosmorama.media.source import Picture
from cosmorama.request import Capabilities, GenerationRequest, Knobs, MediaSource

OnStatus = Callable[[JobStatus], None]


class Client:
    """A Cosmorama server. Threads may share one.

    Args:
        server: Its address.
        api_key: Sent as a bearer token.
        patience_s: For how long a call that finds the server busy (429, 503), restarting or unreachable is repeated. A
            submission carries an idempotency key, so that repeating it never makes work twice.
        timeout_s: For one answer of the server to begin.
        transport: Another way to reach the server, for tests and proxies.
    """

    def __init__(
        self,
        server: str = "http://127.0.0.1:8000",
        *,
        api_key: str | None = None,
        patience_s: float = 300.0,
        timeout_s: float = 60.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        http = httpx.Client(**client_arguments(server, api_key, timeout_s), transport=transport)
        self._connection = Connection(http, patience_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections. Jobs go on."""
        self._connection.http.close()

    def generate(
        self,
        prompt: str | None = None,
        *,
        image: Picture | None = None,
        video: MediaSource | None = None,
        output: str | Path = "clip.mp4",
        model: str | None = None,
        on_status: OnStatus | None = None,
        progress_bar: bool = False,
        **knobs: Unpack[Knobs],
    ) -> Clip:
        """Generate a clip and wait for it. If the wait is given up, by Ctrl-C say, the job is cancelled.

        Args:
            prompt: Up to 250 words; may be left out with an image or a video.
            image: A picture to start from: path, URL, bytes, PIL image or array.
            video: A clip to continue: path, URL or bytes.
            output: Its suffix chooses the format: .mp4, .webm, .gif, .jpg, or .zip for PNG frames. Nothing is written.
            model: One of the server's models; None: its first.
            on_status: Called whenever the job got further.
            progress_bar: Show one on standard error.
            **knobs: The sampling knobs of `GenerationRequest`.

        Raises:
            CosmoramaError: the error that the server answered with, or `ServerUnreachableError`.
        """
        request = request_of(prompt, image=image, video=video, output=output, **knobs)
        job = self.submit(request, model=model)
        try:
            job.wait(on_status=on_status, progress_bar=progress_bar)
            return job.clip()
        except BaseException:
            if not job.status.final:
                with suppress(CosmoramaError):
                    self._connection.cancel(job.id, patience_s=0)
            raise

    def submit(
        self, request: GenerationRequest | str, *, model: str | None = None, **options: Unpack[JobOptions]
    ) -> JobHandle:
        """Submit a request, or a prompt with everything else at its default, and return at once.

        Args:
            request: What to make.
            model: One of the server's models; None: the request's own, or the server's first.
            **options: See `JobOptions`.

        Raises:
            CosmoramaError: as `generate`.
        """
        request = GenerationRequest(prompt=request) if isinstance(request, str) else request
        return JobHandle(
            self._connection, status_of(self._connection.send(**submit_arguments(request, model, options)))
        )

    def job(self, job_id: str) -> JobHandle:
        """A job by its id.

        Raises:
            JobNotFoundError: there is none, or it is another key's.
        """
        return JobHandle(self._connection, status_of(self._connection.send(method="GET", url=f"/v1/jobs/{job_id}")))

    def jobs(self, *, state: State | None = None) -> Iterator[JobHandle]:
        """The jobs of this key, newest first; fetched page by page as they are asked for."""
        params: dict[str, Any] = {"limit": 100} | ({} if state is None else {"state": state})
        while True:
            page, cursor = page_of(self._connection.send(method="GET", url="/v1/jobs", params=params))
            yield from (JobHandle(self._connection, status) for status in page)
            if cursor is None:
                return
            params["cursor"] = cursor

    def capabilities(self, model: str | None = None) -> Capabilities:
        """What a model of the server takes; None: its first."""
        params = {} if model is None else {"model": model}
        return capabilities_of(self._connection.send(method="GET", url="/v1/capabilities", params=params))


class JobHandle:
    """One job on a server.

    Attributes:
        status: As it was when the server last told of it.
    """

    def __init__(self, connection: Connection, status: JobStatus) -> None:
        self.status = status
        self._connection = connection

    @property
    def id(self) -> str:
        """The job's id."""
        return self.status.id

    def refresh(self) -> JobStatus:
        """The job as it is now."""
        self.status = status_of(self._connection.send(method="GET", url=f"/v1/jobs/{self.id}"))
        return self.status

    def events(self) -> Iterator[JobStatus]:
        """Its status whenever it changes, from now to its end. Connections that break are made again."""
        for status in self._connection.follow(self.id, None):
            self.status = status
            yield status

    def wait(
        self, timeout_s: float | None = None, *, on_status: OnStatus | None = None, progress_bar: bool = False
    ) -> JobStatus:
        """Wait for its end.

        Args:
            timeout_s: For how long; the job goes on all the same.
            on_status: Called whenever it got further.
            progress_bar: Show one on standard error.

        Raises:
            TimeoutError: it is not over yet.
            CosmoramaError: it failed or was cancelled.
        """
        ends_at = None if timeout_s is None else time.monotonic() + timeout_s
        with new_bar() if progress_bar else nullcontext() as show:
            for status in self._connection.follow(self.id, ends_at):
                self.status = status
                if show is not None:
                    show(status.stage, status.step, status.total)
                if on_status is not None:
                    on_status(status)
        return self.status.raise_for_state()

    def cancel(self) -> JobStatus:
        """Stop it within one denoising step. A job that is over stays as it is."""
        self.status = self._connection.cancel(self.id)
        return self.status

    def delete(self) -> None:
        """Cancel it if it is not over, and remove it and its clip from the server."""
        self._connection.send(method="DELETE", url=f"/v1/jobs/{self.id}")

    def clip(self) -> Clip:
        """The finished clip, in memory.

        Raises:
            JobConflictError: the job has not succeeded.
            ContentGoneError: the server keeps the clip no longer.
        """
        answer = self._connection.send(method="GET", url=f"/v1/jobs/{self.id}/content")
        return clip_of(self.status if self.status.result else self.refresh(), answer.content)

    def download(self, path: str | Path) -> Path:
        """The finished clip, into a file. A download that was cut off, even by the end of this process, goes on where
        it stopped; the file is there only when it is whole.

        Raises:
            CosmoramaError: as `clip`.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = part_of(path, self.id)
        self._connection.download(self.id, part)
        os.replace(part, path)
        return path
