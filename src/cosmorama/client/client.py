"""The client, written for asyncio; for ordinary programs the same, run on an event loop in the background."""

from __future__ import annotations

import asyncio
import atexit
import os
import uuid
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Mapping
from concurrent.futures import wait as wait_for
from contextlib import aclosing, nullcontext, suppress
from functools import cache
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Self, TypeVar, Unpack

import anyio
import httpx
from anyio.from_thread import BlockingPortal, start_blocking_portal
from httpx_sse import aconnect_sse
from tenacity import AsyncRetrying, AttemptManager

from cosmorama.client.bar import Show
from cosmorama.client.bar import progress_bar as new_bar
from cosmorama.client.protocol import (
    Clip,
    actions_of,
    attempts,
    capabilities_of,
    check_name,
    checked,
    client_arguments,
    clip_of,
    event_status,
    page_of,
    part_of,
    reaching,
    renew,
    request_with_output,
    size_of,
    status_of,
    submit_arguments,
    unreachable,
)
from cosmorama.errors import CosmoramaError, ServerUnreachableError
from cosmorama.jobs.model import JobOptions, JobStatus, State
from cosmorama.media.source import Picture
from cosmorama.request import Capabilities, GenerationRequest, Knobs, MediaSource

OnStatus = Callable[[JobStatus], None]
T = TypeVar("T")

LAST_WORD_S = 10.0
"""For how long a client that gives up tries to tell the server so."""
PATIENCE_S = 300.0
"""For how long a call to a server that is busy or restarting is made again."""
FIRST_PATIENCE_S = 5.0
"""The same of a server that has not answered at all yet: most likely its address is wrong, or nothing runs there. Of
many calls to it the first that is given up has waited for all of them."""


class AsyncClient:
    """A Cosmorama server, for programs with an event loop: `Client` with coroutines, and the same arguments.

    Raises:
        InvalidRequestError: `server` is no address.
    """

    def __init__(
        self,
        server: str | None = None,
        *,
        api_key: str | None = None,
        patience_s: float | None = None,
        timeout_s: float = 60.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.http = httpx.AsyncClient(**client_arguments(server, api_key, timeout_s), transport=transport)
        self.patience_s, self._answered, self._missed = patience_s, False, False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections. Jobs go on."""
        await self.http.aclose()

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
        """As `Client.generate`. If the wait is given up, by cancellation say, the job is cancelled."""
        request = request_with_output(prompt, image=image, video=video, output=output, **knobs)
        job = await self.submit(request, model=model)
        try:
            await job.wait(on_status=on_status, progress_bar=progress_bar)
            return await job.clip()
        except BaseException:
            if not job.status.final:
                with anyio.move_on_after(LAST_WORD_S, shield=True), suppress(CosmoramaError):
                    await job.cancel(patience_s=0)
            raise

    async def submit(
        self, request: GenerationRequest | str, *, model: str | None = None, **options: Unpack[JobOptions]
    ) -> AsyncJobHandle:
        """As `Client.submit`."""
        request = GenerationRequest(prompt=request) if isinstance(request, str) else request
        return AsyncJobHandle(self, status_of(await self.send(**submit_arguments(request, model, options))))

    async def submit_body(self, body: Mapping[str, Any], *, idempotency_key: str | None = None) -> AsyncJobHandle:
        """Submit a body as `POST /v1/jobs` takes it, in any of its formats.

        Raises:
            CosmoramaError: as `generate`.
        """
        headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
        return AsyncJobHandle(self, status_of(await self.send("POST", "/v1/jobs", json=body, headers=headers)))

    async def job(self, job_id: str) -> AsyncJobHandle:
        """As `Client.job`."""
        return AsyncJobHandle(self, status_of(await self.send("GET", f"/v1/jobs/{job_id}")))

    async def jobs(self, *, state: State | None = None) -> AsyncGenerator[AsyncJobHandle, None]:
        """As `Client.jobs`."""
        params: dict[str, Any] = {"limit": 100} | ({} if state is None else {"state": state})
        while True:
            page, cursor = page_of(await self.send("GET", "/v1/jobs", params=params))
            for status in page:
                yield AsyncJobHandle(self, status)
            if cursor is None:
                return
            params["cursor"] = cursor

    async def capabilities(self, model: str | None = None) -> Capabilities:
        """As `Client.capabilities`."""
        params = {} if model is None else {"model": model}
        return capabilities_of(await self.send("GET", "/v1/capabilities", params=params))

    async def send(self, method: str, url: str, *, patience_s: float | None = None, **arguments: Any) -> httpx.Response:
        """The good answer to a request with the arguments of httpx; raises the error that is answered otherwise."""

        async def answered() -> httpx.Response:
            with reaching(self.http.base_url):
                response = await self.http.request(method, url, **arguments)
            self._answered = True
            return checked(response)

        try:
            return await self.attempts(patience_s)(answered)
        except ServerUnreachableError:
            self._missed = True
            raise

    def attempts(self, patience_s: float | None = None) -> AsyncRetrying:
        """The attempts at a call, as `protocol.attempts`; None: for as long as this client has patience."""

        def patience() -> float:
            given = self.patience_s if patience_s is None else patience_s
            if given is not None:
                return given
            return PATIENCE_S if self._answered else 0.0 if self._missed else FIRST_PATIENCE_S

        return attempts(self.http.base_url, patience)


class AsyncJobHandle:
    """One job on a server.

    Attributes:
        id: The job's id.
        status: As it was when the server last told of it.
    """

    def __init__(self, client: AsyncClient, status: JobStatus) -> None:
        self.id, self.status = status.id, status
        self._client, self._url = client, f"/v1/jobs/{status.id}"

    async def refresh(self) -> JobStatus:
        """As `JobHandle.refresh`."""
        self.status = status_of(await self._client.send("GET", self._url))
        return self.status

    async def events(self) -> AsyncGenerator[JobStatus, None]:
        """As `JobHandle.events`."""
        http, last = self._client.http, ""
        async for attempt in self._client.attempts():
            with attempt:
                headers = {"Last-Event-ID": last} if last else {}
                with reaching(http.base_url):
                    async with aconnect_sse(http, "GET", f"{self._url}/events", headers=headers) as source:
                        if (await _opened(source.response)).status_code == 200:
                            async for event in source.aiter_sse():
                                last = event.id or last
                                renew(attempt)
                                status = event_status(event)
                                if status is not None:
                                    self.status = status
                                    yield status
                                    if status.final:
                                        return
                # The stream ended without an end: told of it already, or the server is stopping.
                if (await self.refresh()).final:
                    yield self.status
                    return
                raise unreachable(http.base_url, None)

    async def wait(
        self, timeout_s: float | None = None, *, on_status: OnStatus | None = None, progress_bar: bool = False
    ) -> JobStatus:
        """As `JobHandle.wait`."""
        try:
            with new_bar() if progress_bar else nullcontext() as show:
                async with asyncio.timeout(timeout_s), aclosing(self.events()) as events:
                    async for status in events:
                        if show is not None:
                            show(status.stage, status.step, status.total)
                        if on_status is not None:
                            on_status(status)
        except TimeoutError:
            raise TimeoutError(f"job {self.id} is not over after {timeout_s:g} s: {self.status.state}") from None
        return self.status.raise_for_state()

    async def cancel(self, *, patience_s: float | None = None) -> JobStatus:
        """As `JobHandle.cancel`."""
        self.status = status_of(await self._client.send("POST", f"{self._url}/cancel", patience_s=patience_s))
        return self.status

    async def delete(self) -> None:
        """As `JobHandle.delete`."""
        await self._client.send("DELETE", self._url)

    async def clip(self) -> Clip:
        """As `JobHandle.clip`."""
        content = (await self._client.send("GET", f"{self._url}/content")).content
        return clip_of(self.status if self.status.result else await self.refresh(), content)

    async def actions(self) -> tuple[tuple[float, ...], ...]:
        """As `JobHandle.actions`."""
        return actions_of(await self._client.send("GET", f"{self._url}/actions"))

    async def download(self, path: str | Path, *, progress_bar: bool = False) -> Path:
        """As `JobHandle.download`."""
        path = Path(path)
        status = self.status if self.status.result else await self.refresh()
        if status.result is not None:
            check_name(path, status.result.media_type)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = part_of(path, self.id)
        with new_bar(first="downloading") if progress_bar else nullcontext() as show:
            async for attempt in self._client.attempts():
                with attempt, reaching(self._client.http.base_url):
                    await self._fetch(part, size_of(part), attempt, show)
        os.replace(part, path)
        return path

    async def _fetch(self, part: Path, have: int, attempt: AttemptManager, show: Show | None) -> None:
        """What a file, which has so many bytes, lacks of the clip."""
        size = 0 if self.status.result is None else self.status.result.bytes
        if have and have == size:
            return
        headers = {"Range": f"bytes={have}-"} if 0 < have < size else {}
        async with self._client.http.stream("GET", f"{self._url}/content", headers=headers) as response:
            goes_on = (await _opened(response)).status_code == 206
            got = have if goes_on else 0
            total = got + int(response.headers.get("Content-Length", 0))
            with part.open("ab" if goes_on else "wb") as file:
                async for chunk in response.aiter_bytes():
                    file.write(chunk)
                    renew(attempt)
                    got += len(chunk)
                    if show is not None:
                        show("download", got, total)


async def _opened(response: httpx.Response) -> httpx.Response:
    """As `checked`, of a response whose body was not read."""
    if not response.is_success:
        await response.aread()
    return checked(response)


@cache
def _portal_of(process: int) -> BlockingPortal:
    """The way to the event loop of a process; a forked one has none of its parent's threads."""
    starting = start_blocking_portal()
    portal = starting.__enter__()

    # Left to itself the interpreter would wait at its end for a thread that runs no more.
    @atexit.register
    def end() -> None:
        if os.getpid() == process:
            portal.call(portal.stop, True)
            starting.__exit__(None, None, None)

    return portal


class _Front:
    """What runs coroutines for a program that has no event loop: on one in a background thread, which all clients of
    the process share."""

    def __init__(self, portal: BlockingPortal) -> None:
        self._portal = portal

    def _run(self, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        return self._run_telling(lambda tell: call(), None)

    def _run_telling(self, call: Callable[[OnStatus | None], Coroutine[Any, Any, T]], on_status: OnStatus | None) -> T:
        """The coroutine's result. What it tells on its way reaches `on_status` in the thread of the caller."""
        told: SimpleQueue[JobStatus | None] = SimpleQueue()
        scopes: list[anyio.CancelScope] = []

        async def coroutine() -> T:
            with anyio.CancelScope() as scope:
                scopes.append(scope)
                return await call(None if on_status is None else told.put)
            raise CosmoramaError("the call was given up")

        future = self._portal.start_task_soon(coroutine)
        future.add_done_callback(lambda _: told.put(None))
        try:
            for status in iter(told.get, None):
                if on_status is not None:
                    on_status(status)
            return future.result()
        except BaseException:
            # Ctrl-C, or an error of `on_status`. What the coroutine does at its end, such as cancelling the job, is
            # waited for.
            if not future.done():
                self._portal.call(scopes[0].cancel if scopes else future.cancel)
                wait_for([future], LAST_WORD_S + 1)
            raise

    def _iterate(self, iterator: AsyncGenerator[T, None]) -> Iterator[T]:
        async def following() -> T | None:
            return await anext(iterator, None)

        try:
            while (found := self._run(following)) is not None:
                yield found
        finally:
            self._run(iterator.aclose)


class Client(_Front):
    """A Cosmorama server, for ordinary programs. Threads may share one.

    Args:
        server: Its address; None: what `COSMORAMA_SERVER` says, or port 8000 of this machine.
        api_key: Sent as a bearer token; None: what `COSMORAMA_API_KEY` says.
        patience_s: For how long a call that finds the server busy (429, 502, 503, 504), restarting or unreachable is
            repeated; None: 300, and 5 for a server that has never answered. A submission carries an idempotency key, so
            that repeating it never makes work twice. What would fail every time, such as a host that does not exist, is
            told at once.
        timeout_s: For one answer of the server to begin.
        transport: Another way to reach the server, for tests and proxies.

    Raises:
        InvalidRequestError: `server` is no address.
    """

    def __init__(
        self,
        server: str | None = None,
        *,
        api_key: str | None = None,
        patience_s: float | None = None,
        timeout_s: float = 60.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._client = AsyncClient(
            server, api_key=api_key, patience_s=patience_s, timeout_s=timeout_s, transport=transport
        )
        super().__init__(_portal_of(os.getpid()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections. Jobs go on."""
        self._run(self._client.close)

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
            prompt: May be left out with an image or a video.
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
        return self._run_telling(
            lambda tell: self._client.generate(
                prompt,
                image=image,
                video=video,
                output=output,
                model=model,
                on_status=tell,
                progress_bar=progress_bar,
                **knobs,
            ),
            on_status,
        )

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
        return JobHandle(self._run(lambda: self._client.submit(request, model=model, **options)), self._portal)

    def job(self, job_id: str) -> JobHandle:
        """A job by its id.

        Raises:
            JobNotFoundError: there is none, or it is another key's.
        """
        return JobHandle(self._run(lambda: self._client.job(job_id)), self._portal)

    def jobs(self, *, state: State | None = None) -> Iterator[JobHandle]:
        """The jobs of this key, newest first; fetched page by page as they are asked for."""
        for job in self._iterate(self._client.jobs(state=state)):
            yield JobHandle(job, self._portal)

    def capabilities(self, model: str | None = None) -> Capabilities:
        """What a model of the server takes; None: its first."""
        return self._run(lambda: self._client.capabilities(model))


class JobHandle(_Front):
    """One job on a server."""

    def __init__(self, job: AsyncJobHandle, portal: BlockingPortal) -> None:
        super().__init__(portal)
        self._job = job

    @property
    def id(self) -> str:
        """The job's id."""
        return self._job.id

    @property
    def status(self) -> JobStatus:
        """As it was when the server last told of it."""
        return self._job.status

    def refresh(self) -> JobStatus:
        """The job as it is now."""
        return self._run(self._job.refresh)

    def events(self) -> Iterator[JobStatus]:
        """Its status whenever it changes, from now to its end. Connections that break are made again."""
        return self._iterate(self._job.events())

    def wait(
        self, timeout_s: float | None = None, *, on_status: OnStatus | None = None, progress_bar: bool = False
    ) -> JobStatus:
        """Wait for its end.

        Args:
            timeout_s: For how long at most; the job goes on all the same.
            on_status: Called whenever it got further.
            progress_bar: Show one on standard error.

        Raises:
            TimeoutError: it is not over yet.
            CosmoramaError: it failed or was cancelled.
        """
        return self._run_telling(
            lambda tell: self._job.wait(timeout_s, on_status=tell, progress_bar=progress_bar), on_status
        )

    def cancel(self) -> JobStatus:
        """Stop it within one denoising step. A job that is over stays as it is."""
        return self._run(self._job.cancel)

    def delete(self) -> None:
        """Cancel it if it is not over, and remove it and its clip from the server."""
        self._run(self._job.delete)

    def clip(self) -> Clip:
        """The finished clip, in memory.

        Raises:
            JobConflictError: the job has not succeeded.
            ContentGoneError: the server keeps the clip no longer.
        """
        return self._run(self._job.clip)

    def actions(self) -> tuple[tuple[float, ...], ...]:
        """The actions `[steps][numbers]` that inverse dynamics or a policy predicted.

        Raises:
            JobConflictError: the job has not succeeded, or predicts none.
        """
        return self._run(self._job.actions)

    def download(self, path: str | Path, *, progress_bar: bool = False) -> Path:
        """The finished clip, into a file. A download that was cut off, even by the end of this process, goes on where
        it stopped; the file is there only when it is whole.

        Raises:
            InvalidRequestError: the file's name promises another format than the clip has.
            CosmoramaError: as `clip`.
        """
        return self._run(lambda: self._job.download(path, progress_bar=progress_bar))
