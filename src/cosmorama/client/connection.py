"""How the clients reach the server: patiently, over as many connections as it takes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
from httpx_sse import aconnect_sse, connect_sse

from cosmorama.client.protocol import BUSY, JobStatus, Patience, checked, event_status, status_of


class Connection:
    """Calls of an ordinary program. `patience_s` is for how long a call is repeated that finds the server busy."""

    def __init__(self, http: httpx.Client, patience_s: float) -> None:
        self.http = http
        self._patience_s = patience_s

    def cancel(self, job_id: str, patience_s: float | None = None) -> JobStatus:
        """Stop a job; its status then."""
        return status_of(self.send(patience_s, method="POST", url=f"/v1/jobs/{job_id}/cancel"))

    def send(self, patience_s: float | None = None, **arguments: Any) -> httpx.Response:
        """The good answer to a request with the arguments of httpx; raises the error that is answered otherwise."""
        patience = Patience(self._patience_s if patience_s is None else patience_s)
        while True:
            response, failure = None, None
            try:
                response = self.http.request(**arguments)
            except httpx.TransportError as error:
                failure = error
            if response is not None and response.status_code not in BUSY:
                return checked(response)
            time.sleep(patience.wait_s(self.http.base_url, response, failure))

    def follow(self, job_id: str, ends_at: float | None) -> Iterator[JobStatus]:
        """What happens to a job until its end, over as many connections as it takes."""
        last, patience = "", Patience(self._patience_s)
        while True:
            response, failure = None, None
            try:
                headers = {"Last-Event-ID": last} if last else {}
                with connect_sse(
                    self.http, "GET", f"/v1/jobs/{job_id}/events", headers=headers, timeout=_timeout(self.http, ends_at)
                ) as source:
                    response = source.response
                    if response.status_code == 200:
                        for event in source.iter_sse():
                            last, patience = event.id or last, Patience(self._patience_s)
                            status = event_status(event)
                            if status is not None:
                                yield status
                                if status.final:
                                    return
                    elif not response.is_success:
                        response.read()
                        if response.status_code not in BUSY:
                            checked(response)
            except httpx.TransportError as error:
                failure = error
            if ends_at is not None and time.monotonic() >= ends_at:
                raise TimeoutError(f"job {job_id} is not over yet")
            if failure is None and response is not None and response.is_success:
                # The stream ended without an end: told of it already, or the server is stopping.
                status = status_of(self.send(method="GET", url=f"/v1/jobs/{job_id}"))
                if status.final:
                    yield status
                    return
                response = None
            time.sleep(patience.wait_s(self.http.base_url, response, failure))

    def download(self, job_id: str, part: Path) -> None:
        """The clip into `part`, going on from whatever is there."""
        patience = Patience(self._patience_s)
        while True:
            response, failure = None, None
            have = part.stat().st_size if part.exists() else 0
            try:
                headers = {"Range": f"bytes={have}-"} if have else {}
                with self.http.stream("GET", f"/v1/jobs/{job_id}/content", headers=headers) as response:
                    if response.status_code == 416 and have:
                        if response.headers.get("Content-Range") == f"bytes */{have}":
                            return
                        part.unlink()
                        continue
                    if response.is_success:
                        with part.open("ab" if response.status_code == 206 else "wb") as file:
                            for chunk in response.iter_bytes():
                                file.write(chunk)
                                patience = Patience(self._patience_s)
                        return
                    response.read()
                    if response.status_code not in BUSY:
                        checked(response)
            except httpx.TransportError as error:
                response, failure = None, error
            time.sleep(patience.wait_s(self.http.base_url, response, failure))


class AsyncConnection:
    """The same for asyncio. `patience_s` is for how long a call is repeated that finds the server busy."""

    def __init__(self, http: httpx.AsyncClient, patience_s: float) -> None:
        self.http = http
        self._patience_s = patience_s

    async def cancel(self, job_id: str, patience_s: float | None = None) -> JobStatus:
        """Stop a job; its status then."""
        return status_of(await self.send(patience_s, method="POST", url=f"/v1/jobs/{job_id}/cancel"))

    async def send(self, patience_s: float | None = None, **arguments: Any) -> httpx.Response:
        """The good answer to a request with the arguments of httpx; raises the error that is answered otherwise."""
        patience = Patience(self._patience_s if patience_s is None else patience_s)
        while True:
            response, failure = None, None
            try:
                response = await self.http.request(**arguments)
            except httpx.TransportError as error:
                failure = error
            if response is not None and response.status_code not in BUSY:
                return checked(response)
            await asyncio.sleep(patience.wait_s(self.http.base_url, response, failure))

    async def follow(self, job_id: str, ends_at: float | None) -> AsyncIterator[JobStatus]:
        """What happens to a job until its end, over as many connections as it takes."""
        last, patience = "", Patience(self._patience_s)
        while True:
            response, failure = None, None
            try:
                headers = {"Last-Event-ID": last} if last else {}
                async with aconnect_sse(
                    self.http, "GET", f"/v1/jobs/{job_id}/events", headers=headers, timeout=_timeout(self.http, ends_at)
                ) as source:
                    response = source.response
                    if response.status_code == 200:
                        async for event in source.aiter_sse():
                            last, patience = event.id or last, Patience(self._patience_s)
                            status = event_status(event)
                            if status is not None:
                                yield status
                                if status.final:
                                    return
                    elif not response.is_success:
                        await response.aread()
                        if response.status_code not in BUSY:
                            checked(response)
            except httpx.TransportError as error:
                failure = error
            if ends_at is not None and time.monotonic() >= ends_at:
                raise TimeoutError(f"job {job_id} is not over yet")
            if failure is None and response is not None and response.is_success:
                # The stream ended without an end: told of it already, or the server is stopping.
                status = status_of(await self.send(method="GET", url=f"/v1/jobs/{job_id}"))
                if status.final:
                    yield status
                    return
                response = None
            await asyncio.sleep(patience.wait_s(self.http.base_url, response, failure))

    async def download(self, job_id: str, part: Path) -> None:
        """The clip into `part`, going on from whatever is there."""
        patience = Patience(self._patience_s)
        while True:
            response, failure = None, None
            have = part.stat().st_size if part.exists() else 0
            try:
                headers = {"Range": f"bytes={have}-"} if have else {}
                async with self.http.stream("GET", f"/v1/jobs/{job_id}/content", headers=headers) as response:
                    if response.status_code == 416 and have:
                        if response.headers.get("Content-Range") == f"bytes */{have}":
                            return
                        part.unlink()
                        continue
                    if response.is_success:
                        with part.open("ab" if response.status_code == 206 else "wb") as file:
                            async for chunk in response.aiter_bytes():
                                file.write(chunk)
                                patience = Patience(self._patience_s)
                        return
                    await response.aread()
                    if response.status_code not in BUSY:
                        checked(response)
            except httpx.TransportError as error:
                response, failure = None, error
            await asyncio.sleep(patience.wait_s(self.http.base_url, response, failure))


def _timeout(http: httpx.Client | httpx.AsyncClient, ends_at: float | None) -> httpx.Timeout:
    usual = http.timeout
    if ends_at is None:
        return usual
    left_s = max(ends_at - time.monotonic(), 0.001)
    read_s = left_s if usual.read is None else min(usual.read, left_s)
    return httpx.Timeout(connect=usual.connect, read=read_s, write=usual.write, pool=usual.pool)
