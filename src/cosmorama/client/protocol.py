"""What the client says and understands, apart from how it waits: bodies, answers, errors, when to try again."""

from __future__ import annotations

import base64
import io
import logging
import os
import random
import socket
import ssl
import time
import uuid
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import httpx
from httpx_sse import ServerSentEvent
from pydantic import BaseModel, TypeAdapter, ValidationError
from tenacity import AsyncRetrying, AttemptManager, RetryCallState, retry_if_exception, stop_before_delay
from tenacity.wait import wait_exponential

from cosmorama.errors import (
    CosmoramaError,
    InvalidRequestError,
    JobConflictError,
    Problem,
    ServerUnreachableError,
    error_of,
)
from cosmorama.jobs.model import JobOptions, JobPage, JobStatus
from cosmorama.media.source import CONTAINERS, FILES, Picture, output_for, request_of
from cosmorama.request import INWARD, Capabilities, GenerationRequest, Knobs, MediaSource

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

log = logging.getLogger("cosmorama.client")

DEFAULT_SERVER = "http://127.0.0.1:8000"
BUSY = frozenset({429, 502, 503, 504})
"""Answers after which the same call may succeed."""
LONGEST_WAIT_S = 60.0
CONNECT_S = 10.0
"""For a connection to be made: a host that is off never answers."""
MEDIA_TYPES = {suffix: FILES[container][1] for suffix, container in CONTAINERS.items()}
"""What a file's name promises of its contents."""


@dataclass(frozen=True, slots=True)
class Clip:
    """A finished clip and what was used to make it.

    Attributes:
        data: The file's contents.
        seed: The seed that was used.
        prompt: The text that was used.
        media_type: Such as `video/mp4`.
        job: The job that made it.
    """

    data: bytes
    seed: int
    prompt: str
    media_type: str
    job: JobStatus

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the server ignored, fitted or converted of the request, in sentences."""
        return self.job.warnings

    @property
    def frames(self) -> Iterator[npt.NDArray[np.uint8]]:
        """The frames in order, each uint8 `[H, W, 3]` RGB, decoded as they are asked for.

        Raises:
            ModuleNotFoundError: PyAV or Pillow, which the extra `serve` brings, is not installed.
        """
        if self.media_type == "application/zip":
            from PIL import Image

            with zipfile.ZipFile(io.BytesIO(self.data)) as archive:
                for name in sorted(archive.namelist()):
                    with archive.open(name) as file:
                        yield _array(Image.open(file))
        elif self.media_type == "image/jpeg":
            from PIL import Image

            yield _array(Image.open(io.BytesIO(self.data)))
        elif self.media_type == FILES["safetensors"][1]:
            from safetensors.numpy import load

            yield from load(self.data)["video"]
        else:
            import av

            with av.open(io.BytesIO(self.data)) as container:
                for frame in container.decode(video=0):
                    yield frame.to_ndarray(format="rgb24")

    def save(self, path: str | Path) -> Path:
        """Write the file; folders are made where they are missing.

        Raises:
            InvalidRequestError: its name promises another format than it has.
        """
        path = Path(path)
        check_name(path, self.media_type)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.data)
        return path

    def _repr_html_(self) -> str:
        """The clip as a player, or its picture, for notebooks."""
        source = f"data:{self.media_type};base64,{base64.b64encode(self.data).decode()}"
        style = 'style="max-width: 100%"'
        if self.media_type.startswith("video/"):
            return f'<video controls autoplay loop muted {style} src="{source}"></video>'
        if self.media_type.startswith("image/"):
            return f'<img {style} src="{source}">'
        return f'<a download href="{source}">{self.media_type}, {len(self.data)} bytes</a>'


def _array(picture: Any) -> npt.NDArray[np.uint8]:
    import numpy as np

    return np.asarray(picture.convert("RGB"))


def suffix_of(status: JobStatus) -> str:
    """The end that the name of a finished job's clip should have, with its dot; empty where that is not known."""
    made = "" if status.result is None else status.result.media_type
    return next((suffix for suffix, known in MEDIA_TYPES.items() if known == made), "")


def check_name(path: Path, media_type: str) -> None:
    """Refuse a file name that promises another format; a suffix of no known format promises nothing.

    Raises:
        InvalidRequestError: see above.
    """
    promised = MEDIA_TYPES.get(path.suffix.lower())
    if promised not in (None, media_type):
        right = next((suffix for suffix, known in MEDIA_TYPES.items() if known == media_type), None)
        if right is not None:
            raise InvalidRequestError(
                Problem("output", path.name, f"a name ending in {right}: the clip is {media_type}")
            )


def attempts(server: httpx.URL, patience: Callable[[], float]) -> AsyncRetrying:
    """The attempts at a call, which end with the first that is answered, or with the error of the last.

    Another one is made where the server was busy or not found, and where it does not come too late. The server's
    `Retry-After` counts where it says one; otherwise the waits double from half a second on, a little longer or shorter
    by chance, so that many clients do not come back at the same moment. The first of them is told to the log.
    Patience, in seconds, is asked for anew each time: a server that has answered deserves more.
    """

    def wait_s(state: RetryCallState) -> float:
        asked: float | None = getattr(state.outcome and state.outcome.exception(), "retry_after_s", None)
        return _DOUBLING(state) * random.uniform(0.8, 1.2) if asked is None else asked

    def tell(state: RetryCallState) -> None:
        error = state.outcome and state.outcome.exception()
        why = error if isinstance(error, ServerUnreachableError) else f"{server} answers {getattr(error, 'status', 0)}"
        if state.attempt_number == 1:
            log.warning("%s: trying again for up to %g s", why, patience())

    def stop(state: RetryCallState) -> bool:
        return stop_before_delay(patience())(state)

    may = retry_if_exception(_passes)
    return AsyncRetrying(retry=may, wait=wait_s, stop=stop, before_sleep=tell, reraise=True)


_DOUBLING = wait_exponential(multiplier=0.5, max=LONGEST_WAIT_S)


def renew(attempt: AttemptManager) -> None:
    """Have patience begin anew, after a success in the middle of an attempt."""
    attempt.retry_state.start_time, attempt.retry_state.attempt_number = time.monotonic(), 1


@contextmanager
def reaching(server: httpx.URL) -> Iterator[None]:
    """Raise `ServerUnreachableError` for failures to get an answer."""
    try:
        yield
    except httpx.TransportError as error:
        raise unreachable(server, error) from error


def _passes(error: BaseException) -> bool:
    """Whether the same call may succeed later."""
    return isinstance(error, CosmoramaError) and error.status in BUSY and not _for_ever(error.__cause__)


def _for_ever(failure: BaseException | None) -> bool:
    """Whether a failure to get an answer would be the same at every attempt."""
    if isinstance(failure, (httpx.UnsupportedProtocol, httpx.LocalProtocolError)):
        return True
    cause = failure
    while cause is not None:
        if isinstance(cause, socket.gaierror) and cause.errno != socket.EAI_AGAIN:
            return True  # no such host
        if isinstance(cause, ssl.SSLError) and not isinstance(cause, (ssl.SSLEOFError, ssl.SSLZeroReturnError)):
            return isinstance(failure, httpx.ConnectError)  # a certificate that is not trusted, or no TLS there at all
        cause = cause.__cause__ or cause.__context__
    return False


def address_of(server: str | None) -> httpx.URL:
    """The address of a server as people write it: with a scheme or, for plain HTTP, without one.

    Args:
        server: None: what `COSMORAMA_SERVER` says, or a server on this machine.

    Raises:
        InvalidRequestError: it is no address.
    """
    text = (server if server is not None else os.environ.get("COSMORAMA_SERVER") or DEFAULT_SERVER).strip()
    try:
        url = httpx.URL(text if "://" in text else f"http://{text}")
    except httpx.InvalidURL:
        url = httpx.URL()
    if url.scheme not in ("http", "https") or not url.host or (url.port or 0) > 65_535:
        raise InvalidRequestError(Problem("server", text, f"an address such as {DEFAULT_SERVER}"))
    return url


def client_arguments(server: str | None, api_key: str | None, timeout_s: float) -> dict[str, Any]:
    """The arguments of an httpx client for a server."""
    headers = {"User-Agent": "cosmorama-client"}
    key = api_key if api_key is not None else os.environ.get("COSMORAMA_API_KEY")
    if key:
        headers["Authorization"] = f"Bearer {key}"
    timeout = httpx.Timeout(timeout_s, connect=min(timeout_s, CONNECT_S))
    return {"base_url": address_of(server), "headers": headers, "timeout": timeout, "follow_redirects": True}


def unreachable(server: httpx.URL, failure: Exception | None) -> ServerUnreachableError:
    """The error of a server that did not answer."""
    return ServerUnreachableError(
        f"{server} cannot be reached: {str(failure or '') or 'no answer'}; is a server running there?"
    )


def request_with_output(
    prompt: str | None,
    *,
    image: Picture | None,
    video: MediaSource | None,
    output: str | Path,
    **knobs: Unpack[Knobs],
) -> GenerationRequest:
    """The request that the arguments of `generate` describe.

    Raises:
        InvalidRequestError: `output` has a suffix that stands for no format, or as `request_of`.
    """
    return replace(request_of(prompt, image=image, video=video, **knobs), output=output_for(Path(output)))


def submit_arguments(request: GenerationRequest, model: str | None, options: JobOptions) -> dict[str, Any]:
    """The arguments of an httpx request that submits a job. Local files are read and sent along."""
    body: dict[str, Any] = {"dialect": "cosmorama", **body_of(request)}
    if model is not None:
        body["model"] = model
    headers = {"Idempotency-Key": options.get("idempotency_key") or uuid.uuid4().hex}
    body |= {name: value for name, value in options.items() if name != "idempotency_key" and value is not None}
    return {"method": "POST", "url": "/v1/jobs", "json": body, "headers": headers}


def body_of(request: GenerationRequest) -> dict[str, Any]:
    """A request in the server's own wire format: what differs from the defaults, so that older servers take it too."""
    usual = GenerationRequest()
    return {
        field.name: _wire(getattr(request, field.name))
        for field in fields(request)
        if field.name not in INWARD and getattr(request, field.name) != getattr(usual, field.name, None)
    }


def _wire(value: Any) -> Any:
    if isinstance(value, (bytes, Path)):
        return media_text(value)
    if is_dataclass(value):
        return {field.name: _wire(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, (list, tuple)):
        return [_wire(item) for item in value]
    return value


def media_text(source: MediaSource) -> str:
    """A URL or base64 text as it is; contents and local files in base64.

    Raises:
        OSError: the file cannot be read.
    """
    if isinstance(source, str):
        return source
    return base64.b64encode(source if isinstance(source, bytes) else source.expanduser().read_bytes()).decode()


def status_of(response: httpx.Response) -> JobStatus:
    """A job from the answer that shows it."""
    status: JobStatus = _parsed(JobStatus, response)
    return status


def capabilities_of(response: httpx.Response) -> Capabilities:
    """A model's capabilities from the answer that shows them."""
    known = {field.name for field in fields(Capabilities)}
    try:
        return TypeAdapter(Capabilities).validate_python({k: v for k, v in response.json().items() if k in known})
    except (ValueError, AttributeError) as error:
        raise _not_understood(response) from error


def page_of(response: httpx.Response) -> tuple[list[JobStatus], str | None]:
    """Some jobs, and the cursor that continues after them."""
    page: JobPage = _parsed(JobPage, response)
    return page.data, page.next_cursor


def event_status(event: ServerSentEvent) -> JobStatus | None:
    """The job that an event shows; None for previews, and for a comment that only keeps the connection alive."""
    # httpx-sse makes an empty event of the blank line after a comment, once an id was sent.
    if event.event == "preview" or not event.data:
        return None
    return JobStatus.model_validate_json(event.data)


def clip_of(status: JobStatus, content: bytes) -> Clip:
    """The clip of a succeeded job."""
    result = status.result
    if result is None:
        raise JobConflictError(f"job {status.id} has no clip: it is {status.state}")
    return Clip(content, result.seed, result.upsampled_prompt, result.media_type, status)


def actions_of(response: httpx.Response) -> tuple[tuple[float, ...], ...]:
    """Predicted actions, from the answer that shows them."""
    actions: _Actions = _parsed(_Actions, response)
    return actions.data


class _Actions(BaseModel):
    data: tuple[tuple[float, ...], ...]


def part_of(path: Path, job_id: str) -> Path:
    """Where a download is kept until it is whole. The job's id is in it, so that no two clips are ever mixed."""
    return path.with_name(f".{path.name}.{job_id}.part")


def size_of(part: Path) -> int:
    """How much of a download is there."""
    return part.stat().st_size if part.exists() else 0


def checked(response: httpx.Response) -> httpx.Response:
    """A response whose body was read, unless it is an error.

    Raises:
        CosmoramaError: the error that the server answered with, as the class it has in `cosmorama.errors`.
    """
    if response.is_success:
        return response
    try:
        said = response.json()["error"]
        kind, message = str(said["type"]), str(said["message"])
    except (ValueError, KeyError, TypeError):  # a proxy's own page
        kind, message = "", f"{response.reason_phrase or 'an error'} from {response.url}"
    error, asked = error_of(response.status_code, kind, message), response.headers.get("Retry-After", "")
    error.retry_after_s = float(asked) if asked.isdecimal() else None
    raise error


def _parsed(model: Any, response: httpx.Response) -> Any:
    try:
        return model.model_validate_json(response.content)
    except ValidationError as error:
        raise _not_understood(response) from error


def _not_understood(response: httpx.Response) -> CosmoramaError:
    return CosmoramaError(f"the answer of {response.url} is not a Cosmorama server's")
