"""The client for asyncio; `cosmorama.client.sync` is the same for ordinary programs."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, Unpack

import httpx

from cosmorama.client.bar import progress_bar as new_bar
from cosmorama.client.connection import AsyncConnection
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


class AsyncClient:
    """A Cosmorama server.

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
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        http = httpx.AsyncClient(**client_arguments(server, api_key, timeout_s), transport=transport)
        self._connection = AsyncConnection(http, patience_s)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections. Jobs go on."""
        await self._connection.http.aclose()

    async def generate(
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
        """Generate a clip and wait for it. If the wait is given up, by cancellation say, the job is cancelled.

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
        job = await self.submit(request, model=model)
        try:
            await job.wait(on_status=on_status, progress_bar=progress_bar)
            return await job.clip()
        except BaseException:
            if not job.status.final:
                with suppress(CosmoramaError):
                    await self._connection.cancel(job.id, patience_s=0)
            raise

    async def submit(
        self, request: GenerationRequest | str, *, model: str | None = None, **options: Unpack[JobOptions]
    ) -> AsyncJobHandle:
        """Submit a request, or a prompt with everything else at its default, and return at once.

        Args:
            request: What to make.
            model: One of the server's models; None: the request's own, or the server's first.
            **options: See `JobOptions`.

        Raises:
            CosmoramaError: as `generate`.
        """
        request = GenerationRequest(prompt=request) if isinstance(request, str) else request
        return AsyncJobHandle(
            self._connection, status_of(await self._connection.send(**submit_arguments(request, model, options)))
        )

    async def job(self, job_id: str) -> AsyncJobHandle:
        """A job by its id.

        Raises:
            JobNotFoundError: there is none, or it is another key's.
        """
        return AsyncJobHandle(
            self._connection, status_of(await self._connection.send(method="GET", url=f"/v1/jobs/{job_id}"))
        )

    async def jobs(self, *, state: State | None = None) -> AsyncIterator[AsyncJobHandle]:
        """The jobs of this key, newest first; fetched page by page as they are asked for."""
        params: dict[str, Any] = {"limit": 100} | ({} if state is None else {"state": state})
        while True:
            page, cursor = page_of(await self._connection.send(method="GET", url="/v1/jobs", params=params))
            for status in page:
                yield AsyncJobHandle(self._connection, status)
            if cursor is None:
                return
            params["cursor"] = cursor

    async def capabilities(self, model: str | None = None) -> Capabilities:
        """What a model of the server takes; None: its first."""
        params = {} if model is None else {"model": model}
        return capabilities_of(await self._connection.send(method="GET", url="/v1/capabilities", params=params))


class AsyncJobHandle:
    """One job on a server.

    Attributes:
        status: As it was when the server last told of it.
    """

    def __init__(self, connection: AsyncConnection, status: JobStatus) -> None:
        self.status = status
        self._connection = connection

    @property
    def id(self) -> str:
        """The job's id."""
        return self.status.id

    async def refresh(self) -> JobStatus:
        """The job as it is now."""
        self.status = status_of(await self._connection.send(method="GET", url=f"/v1/jobs/{self.id}"))
        return self.status

    async def events(self) -> AsyncIterator[JobStatus]:
        """Its status whenever it changes, from now to its end. Connections that break are made again."""
        async for status in self._connection.follow(self.id, None):
            self.status = status
            yield status

    async def wait(
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
            async for status in self._connection.follow(self.id, ends_at):
                self.status = status
                if show is not None:
                    show(status.stage, status.step, status.total)
                if on_status is not None:
                    on_status(status)
        return self.status.raise_for_state()

    async def cancel(self) -> JobStatus:
        """Stop it within one denoising step. A job that is over stays as it is."""
        self.status = await self._connection.cancel(self.id)
        return self.status

    async def delete(self) -> None:
        """Cancel it if it is not over, and remove it and its clip from the server."""
        await self._connection.send(method="DELETE", url=f"/v1/jobs/{self.id}")

    async def clip(self) -> Clip:
        """The finished clip, in memory.

        Raises:
            JobConflictError: the job has not succeeded.
            ContentGoneError: the server keeps the clip no longer.
        """
        answer = await self._connection.send(method="GET", url=f"/v1/jobs/{self.id}/content")
        return clip_of(self.status if self.status.result else await self.refresh(), answer.content)

    async def download(self, path: str | Path) -> Path:
        """The finished clip, into a file. A download that was cut off, even by the end of this process, goes on where
        it stopped; the file is there only when it is whole.

        Raises:
            CosmoramaError: as `clip`.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = part_of(path, self.id)
        await self._connection.download(self.id, part)
        os.replace(part, path)
        return path
