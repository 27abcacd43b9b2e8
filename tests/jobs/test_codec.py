"""What is stored of a request is the request."""

from __future__ import annotations

import base64
import json
from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.dialects.sqlite.base import SQLiteDialect

from cosmorama.errors import InvalidRequestError, MediaError, Problem, WorkerError
from cosmorama.jobs.database import Document, RequestDocument
from cosmorama.jobs.files import place_media, restore_media, take_media
from cosmorama.jobs.model import JobError
from cosmorama.jobs.store import fingerprint
from cosmorama.media import fetch
from cosmorama.request import Action, Adapter, Container, Control, ControlKind, Output, ResolvedRequest

JPEG = b"\xff\xd8\xff"
media = st.one_of(
    st.none(),
    st.binary(max_size=40).map(JPEG.__add__),
    st.binary(max_size=40).map(lambda data: base64.b64encode(JPEG + data).decode()),
    st.just("https://example.com/a.png"),
)
numbers = st.floats(-1e6, 1e6)
DIALECT = SQLiteDialect()
requests = st.builds(
    ResolvedRequest,
    prompt=st.none() | st.text(),
    negative_prompt=st.text(),
    prompt_upsampling=st.none() | st.booleans(),
    image=media,
    video=media,
    seed=st.none() | st.integers(0, 2**32 - 1),
    guidance_scale=numbers,
    steps=st.integers(1, 100),
    fps=numbers,
    guidance_interval=st.tuples(numbers, numbers),
    output=st.builds(Output, st.sampled_from(get_args(Container)), st.none(), st.integers(1, 9)),
    controls=st.lists(st.builds(Control, st.sampled_from(get_args(ControlKind)), numbers, media), max_size=2).map(
        tuple
    ),
    action=st.none()
    | st.builds(Action, st.integers(0, 9), st.lists(st.tuples(numbers, numbers), max_size=3).map(tuple)),
    adapters=st.lists(st.builds(Adapter, st.text(max_size=5), numbers), max_size=2).map(tuple),
)


def decoded(source: object) -> object:
    return base64.b64decode(source) if isinstance(source, str) and "://" not in source else source


def pack_request(request: ResolvedRequest) -> str:
    return RequestDocument().process_bind_param(request, DIALECT)


def unpack_request(text: str) -> ResolvedRequest:
    return RequestDocument().read(text)


@given(requests)
def test_round_trip(request: ResolvedRequest) -> None:
    bare, blobs = take_media(request, max_bytes=1000)
    packed = pack_request(place_media(bare, "inputs/job_1"))
    assert json.loads(packed)["version"] == 1
    stored = unpack_request(packed)
    assert stored.mode == request.mode
    back = restore_media(stored, lambda key: blobs[key.removeprefix("inputs/job_1/")])
    for field in fields(ResolvedRequest):
        if field.name not in ("image", "video", "controls"):
            assert getattr(back, field.name) == getattr(request, field.name)
    assert (back.image, back.video) == (decoded(request.image), decoded(request.video))
    assert [c.source for c in back.controls] == [decoded(c.source) for c in request.controls]
    assert [(c.kind, c.weight) for c in back.controls] == [(c.kind, c.weight) for c in request.controls]


def test_media_is_not_in_the_document_and_is_checked() -> None:
    inline = base64.b64encode(b"\xff\xd8\xffpicture" * 80).decode()
    bare, blobs = take_media(ResolvedRequest(image=inline), max_bytes=1000)
    assert blobs == {"image": b"\xff\xd8\xffpicture" * 80}
    assert inline not in pack_request(bare)
    for bad in ("not base64!", Path("/etc/hostname")):
        with pytest.raises(MediaError):
            take_media(ResolvedRequest(image=bad), max_bytes=1000)
    with pytest.raises(MediaError) as large:
        take_media(ResolvedRequest(image=inline), max_bytes=10)
    assert large.value.status == 413
    # Random bytes are told at once, not when their turn in the queue has come.
    with pytest.raises(MediaError, match="video: is not a picture or clip"):
        take_media(ResolvedRequest(video=base64.b64encode(bytes(range(200))).decode()), max_bytes=1000)


@pytest.mark.parametrize("before", ["http://", " \ufeffhttp://", "HTTPS://", "\n\ufeffhttps://"])
def test_urls_are_checked_and_left_to_who_makes_the_clip(before: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "_fetch", None)
    bare, blobs = take_media(ResolvedRequest(image=f"{before}example.com/a.png"), 100)
    assert str(bare.image).lower().startswith("http")
    assert blobs == {}
    for bad in ("[::1", "me:secret@example.com/", "", "xn--é/", "example.com/" + "a" * fetch.MAX_URL):
        with pytest.raises(MediaError, match=r"image: .*URL"):
            take_media(ResolvedRequest(image=before + bad), 100)
    with pytest.raises(MediaError, match=r"image: .*URL"):
        take_media(ResolvedRequest(image=before.replace("//", "example.com")), 100)


def test_fingerprints_tell_requests_apart() -> None:
    def of(dialect: str = "a", blob: bytes = b"\xff\xd8\xffx", **changes: object) -> str:
        bare, blobs = take_media(ResolvedRequest(image=blob, **changes), 100)  # type: ignore[arg-type]
        return fingerprint(dialect, bare, blobs)

    assert of() == of()
    assert len({of(), of("b"), of(blob=b"\xff\xd8\xffy"), of(steps=9), of(seed=1)}) == 5


def test_a_later_version_is_refused() -> None:
    document = json.loads(pack_request(ResolvedRequest(prompt="x"))) | {"version": 2}
    with pytest.raises(ValueError, match="version 2"):
        unpack_request(json.dumps(document))


def as_stored(error: JobError) -> JobError:
    column = Document(JobError)
    stored: JobError = column.process_result_value(column.process_bind_param(error, DIALECT), DIALECT)
    return stored


@pytest.mark.parametrize(
    "error",
    [
        InvalidRequestError(Problem("steps", 99, "1 to 50"), Problem("size", "1x1", "another")),
        MediaError("image", "is too large", status=413),
        WorkerError("it died"),
    ],
)
def test_errors_come_back_as_they_were(error: InvalidRequestError | MediaError | WorkerError) -> None:
    again = as_stored(JobError.of(error)).exception()
    assert (str(again), again.status, again.kind) == (str(error), error.status, error.kind)
    if isinstance(error, InvalidRequestError):
        assert isinstance(again, InvalidRequestError)
        assert "num_steps" in str(again.renamed({"steps": "num_steps"}))
