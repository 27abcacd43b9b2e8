"""Who and what is let in: keys, other pages, bodies that are too much or too slow; and what is said of requests."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin
from urllib.parse import unquote

import httpx
import pytest
import uvicorn
from pydantic import BaseModel, SecretStr, ValidationError

from cosmorama.api import app as server_module
from cosmorama.api import body as body_module
from cosmorama.api import middleware
from cosmorama.api.app import create_app
from cosmorama.api.dialects.wire import DialectBody, WireModel, parse_object
from cosmorama.api.errors import BodyError
from cosmorama.errors import InvalidRequestError
from cosmorama.settings import Settings
from tests.api.fake_app import Fake, run, serving

BODY: dict[str, Any] = {"dialect": "cosmorama", "prompt": "a red ball", "steps": 1, "frames": 9}


@pytest.mark.parametrize(
    "keys",
    ["alice:", ":", ",", " ", "", "alice: ,bob:realkey", "good,", ",good", "a:b,c:", "::", "a::", "-", "a:\u200b"],
)
def test_an_empty_key_stops_the_server_before_it_starts(keys: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COSMORAMA_API_KEYS", keys)
    with pytest.raises(ValidationError, match="key"):
        Settings()


@pytest.mark.parametrize("key", ["", " ", "alice:", ": "])
def test_an_empty_key_from_the_command_line_or_code_does_so_too(
    key: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Flags reach the settings past their validation.
    settings = Settings(state_dir=tmp_path).model_copy(update={"api_keys": (SecretStr("good"), SecretStr(key))})
    with pytest.raises(InvalidRequestError, match="api_keys"):
        create_app(settings)
    monkeypatch.setattr("cosmorama.logs.configure", lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        server_module.serve(settings)
    assert ended.value.code == server_module.STARTUP_FAILED
    assert "the server cannot start: api_keys" in caplog.text


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"database_url": "postgresql://me:secret@127.0.0.1:9/x"}, r"127.0.0.1.*refused.*COSMORAMA_DATABASE_URL"),
        ({"database_url": "sqlite:///{tmp}/text"}, r"not a database.*COSMORAMA_DATABASE_URL"),
        ({"database_url": "mysql://me:secret@127.0.0.1/x"}, "database_url: 'mysql' is not accepted"),
        ({"database_url": "sqlite:////proc/none/x"}, "/proc/none"),
        ({"artifacts": "s4://clips/worlds"}, "s4.*COSMORAMA_ARTIFACTS"),
        ({"state_dir": "{tmp}/text"}, "File exists.*text"),
    ],
    ids=["refused", "no database", "driver", "folder", "scheme", "state"],
)
def test_stores_that_cannot_be_used_are_told_of_in_a_sentence(
    settings: dict[str, str],
    said: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "text").write_text("neither a folder nor a database" * 100)
    monkeypatch.setattr("cosmorama.logs.configure", lambda *_: None)
    given = {name: value.format(tmp=tmp_path) for name, value in settings.items()}
    with pytest.raises(SystemExit) as ended:
        server_module.serve(Settings.model_validate({"role": "api", "port": 0, "state_dir": tmp_path} | given))
    assert ended.value.code == server_module.STARTUP_FAILED
    assert re.search(f"the server cannot start: .*{said}", caplog.text)
    assert "Traceback" not in caplog.text
    assert "secret" not in caplog.text


def test_keys_are_what_stands_behind_the_colon(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path, api_keys=("alice: mine ", "yours")) as server:
            for header, status in (
                ("Bearer mine", 200),
                ("Bearer yours", 200),
                ("Bearer", 401),
                ("Bearer alice", 401),
            ):
                assert (await server.client.get("/v1/jobs", headers={"Authorization": header})).status_code == status
            assert (await server.client.get("/v1/jobs")).status_code == 401

    run(test)


def test_a_key_learns_nothing_of_others_and_who_has_none_nothing_of_the_inside(tmp_path: Path) -> None:
    keys = ("alice:1", 'b"o\\b:2', "metrics:3", "4")

    async def test() -> None:
        async with serving(tmp_path, api_keys=keys) as server:

            async def counted(key: str) -> str:
                answer = await server.client.get("/metrics", headers={"Authorization": f"Bearer {key}"})
                assert "cosmorama_queue_depth" in answer.text
                return "\n".join(line for line in answer.text.splitlines() if line.startswith("cosmorama_key_requests"))

            assert [await counted(key) for key in "1234"] == [""] * 4
            for key in "12234":
                await server.client.post("/v1/jobs", json=BODY, headers={"Authorization": f"Bearer {key}"})
            assert re.findall(r"requests_total({.*?}) (\S+)", await counted("1")) == [('{key="alice"}', "1.0")]
            assert re.findall(r"requests_total({.*?}) (\S+)", await counted("2")) == [(r'{key="b\"o\\b"}', "2.0")]
            assert len(re.findall(r"requests_total{", await counted("4"))) == 1
            assert len(re.findall(r"requests_total{", await counted("3"))) == 4
            server.supervisor.ready, server.supervisor.reason = False, "the model could not be loaded: /srv/secret"
            ready = await server.client.get("/v1/health/ready")
            assert ready.status_code == 503
            assert ready.json()["message"] == "Service is not ready: the model could not be loaded"

    run(test)


def test_of_several_keys_none_may_fill_the_queue(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path, api_keys=("a:1", "b:2"), max_queue=6, max_active=2) as server:
            server.supervisor.gate.clear()

            async def submit(key: str) -> int:
                headers = {"Authorization": f"Bearer {key}"}
                return (await server.client.post("/v1/jobs", json=BODY, headers=headers)).status_code

            assert [await submit("1") for _ in range(6)] == [202] * 4 + [429] * 2
            assert [await submit("2") for _ in range(6)] == [202] * 4 + [429] * 2
            server.supervisor.gate.set()

    run(test)


def test_nobody_has_the_key_of_another(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="the same key for alice and bob"):
        create_app(Settings(state_dir=tmp_path, api_keys=("alice:one", "bob:one")))
    create_app(Settings(state_dir=tmp_path, api_keys=("alice:one", "alice:two", "alice:one")))


def test_other_pages_cannot_use_a_server_without_keys(tmp_path: Path) -> None:
    form = {"prompt": (None, "a red ball")}

    async def post(server: Fake, **headers: str) -> int:
        return (await server.client.post("/v1/videos", files=form, headers=headers)).status_code

    async def test() -> None:
        async with serving(tmp_path / "a", cors_origins=("https://studio.example",)) as server:
            here = str(server.client.base_url).rstrip("/")
            assert await post(server) == 200
            assert await post(server, Origin=here) == 200
            assert await post(server, Origin="https://studio.example") == 200
            assert await post(server, **{"Sec-Fetch-Site": "same-origin", "Origin": here}) == 200
            for origin in ("https://evil.example", "null", here.replace("http:", "http:evil."), here + "1", "http://["):
                assert await post(server, Origin=origin) == 403, origin
                assert await post(server, **{"Origin": origin, "Sec-Fetch-Site": "cross-site"}) == 403
            assert await post(server, **{"Sec-Fetch-Site": "cross-site"}) == 403
            assert await post(server, **{"Sec-Fetch-Site": "same-site"}) == 403
            job = (await server.client.post("/v1/jobs", json=BODY)).json()["id"]
            foreign = {"Origin": "https://evil.example"}
            assert (await server.client.delete(f"/v1/jobs/{job}", headers=foreign)).status_code == 403
            assert (await server.client.get(f"/v1/jobs/{job}", headers=foreign)).status_code == 200
        async with serving(tmp_path / "b", api_keys=("key",)) as server:
            assert await post(server, Origin="https://evil.example", Authorization="Bearer key") == 200

    run(test)


def test_a_server_without_keys_answers_to_local_names_only(tmp_path: Path) -> None:
    async def get(server: Fake, host: str, path: str = "/v1/jobs", **headers: str) -> int:
        return (await server.client.get(path, headers={"Host": host, **headers})).status_code

    async def test() -> None:
        async with serving(tmp_path / "a", allowed_hosts=("worlds.example.org",)) as server:
            for host in (
                "localhost",
                "localhost:8000",
                "127.0.0.1:1",
                "[::1]:8000",
                "10.1.2.3",
                "cosmorama",
                "a.local",
            ):
                assert await get(server, host) == 200, host
            assert await get(server, "Worlds.example.org:443") == 200
            for host in ("evil.example", "localhost.evil.example", "127.0.0.1.nip.io:8000", "a.local.evil.example:1"):
                assert await get(server, host) == 403, host
            assert await get(server, "evil.example", "/v1/health/live") == 200
        async with serving(tmp_path / "b", api_keys=("key",)) as server:
            assert await get(server, "worlds.example.org", Authorization="Bearer key") == 200

    run(test)


@pytest.mark.parametrize("cut", ["boundary", "in the file", "in a name"])
def test_a_form_that_is_cut_off_is_no_request(cut: str, tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path) as server:
            files = {
                "prompt": (None, "a red ball"),
                "input_reference": ("a.png", bytes(2000), "image/png"),
            }
            whole = httpx.Request("POST", "http://x", files=files)
            body, kind = whole.read(), whole.headers["content-type"]
            end = {"boundary": body.rindex(b"--", 0, len(body) - 4), "in the file": -1000, "in a name": 60}[cut]
            answer = await server.client.post("/v1/videos", content=body[:end], headers={"Content-Type": kind})
            assert answer.status_code == 400, answer.text
            assert "cut off" in answer.text
            assert (await server.client.get("/v1/jobs")).json()["data"] == []

    run(test)


@pytest.mark.parametrize(
    "body",
    [
        {**BODY, "controls": [1] * 300_000},
        {**BODY, "controls": [[]] * 21_000},
        {f"field_{i}": i for i in range(90_000)},
        {f"field_{i}": i for i in range(300)},
        {**BODY, "metadata": {"a": {str(i): i for i in range(50_000)}}},
        {**BODY, "controls": json.loads("[" * 40 + "]" * 40)},
    ],
    ids=["list", "lists", "fields", "some fields", "deep fields", "nested"],
)
@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/infer", "/v1/videos"])
def test_too_many_values_are_refused_before_they_are_believed(path: str, body: dict[str, Any], tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path) as server:
            answer = await server.client.post(path, json=body)
            assert answer.status_code in (400, 422)
            assert any(word in answer.text for word in ("values", "fields", "commas", "deeper")), answer.text

    run(test)


MANY = {f"k{i}": 1 for i in range(20_000)}


@pytest.mark.parametrize("name", ["lora", "extra_params", "video_params", "input_reference"])
@pytest.mark.parametrize("value", [MANY, {"a": [0] * 30_000}, {"a": json.loads("[" * 40 + "]" * 40)}])
def test_objects_in_the_fields_of_a_form_are_counted_like_bodies(name: str, value: Any, tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path) as server:
            form = {"prompt": (None, "a red ball"), name: (None, json.dumps(value))}
            answer = await server.client.post("/v1/videos", files=form)
            assert answer.status_code == 400
            assert answer.json()["error"]["message"].startswith(f"{name}: "), answer.text
            assert answer.json()["error"]["param"] == name
            assert any(word in answer.text for word in ("values", "fields", "deeper")), answer.text

    run(test)


def test_large_forms_and_bodies_are_read_off_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And one at a time: of all that is under way the loop waits for one piece at most."""
    threads = []

    def noted(call: Any) -> Any:
        def note(*arguments: Any) -> Any:
            threads.append(threading.current_thread())
            return call(*arguments)

        return note

    monkeypatch.setattr(body_module, "parse_object", noted(body_module.parse_object))
    monkeypatch.setattr(body_module._FormParser, "on_end", noted(body_module._FormParser.on_end))

    async def test() -> None:
        async with serving(tmp_path) as server:
            loop = threading.current_thread()
            for size, off in ((1000, False), (600_000, True)):
                threads.clear()
                picture = b"\x89PNG\r\n\x1a\n" + bytes(size)
                form = {"prompt": (None, "a"), "input_reference": ("a.png", picture, "image/png")}
                told = base64.b64encode(picture).decode()
                posts = [server.client.post("/v1/jobs", json={**BODY, "image": told}) for _ in range(3)]
                answers = await asyncio.gather(*posts, server.client.post("/v1/videos", files=form))
                assert [answer.status_code for answer in answers] == [202, 202, 202, 200]
                assert len(threads) == 4
                assert len(set(threads)) == 1
                assert (threads[0] is not loop) == off

    run(test)


def test_escapes_cost_more_than_they_may() -> None:
    for escapes in (b"\\n" * 200_000, b"\\u0041" * 200_000):
        with pytest.raises(BodyError, match="backslashes"):
            parse_object(b'{"image":"' + escapes + b'"}')
    lines = (b"A" * 76 + b"\\r\\n") * 20_000
    assert len(parse_object(b'{"prompt":"' + b"\\u4e16" * 20_000 + b'","image":"' + lines + b'"}')["image"]) > 1_000_000


def _lists(model: type[BaseModel], seen: set[Any]) -> Iterator[tuple[str, Any, Sequence[Any]]]:
    """Every list in a model, at every depth, with what limits it."""

    def inside(where: str, hint: Any, limits: Sequence[Any]) -> Iterator[tuple[str, Any, Sequence[Any]]]:
        origin, arguments = get_origin(hint), get_args(hint)
        if origin is Annotated:
            more = [each for limit in arguments[1:] for each in getattr(limit, "metadata", [limit])]
            yield from inside(where, arguments[0], [*limits, *more])
            return
        if origin in (list, tuple):
            yield where, hint, limits
        if isinstance(hint, type) and issubclass(hint, BaseModel) and hint not in seen:
            seen.add(hint)
            yield from _lists(hint, seen)
        own = limits if origin in (Union, UnionType) else []
        for argument in arguments:
            yield from inside(where, argument, own)

    for name, field in model.model_fields.items():
        yield from inside(f"{model.__name__}.{name}", field.annotation, field.metadata)


def test_every_list_of_every_wire_format_has_a_length() -> None:
    """A wrong entry costs some microseconds to be told of, and a list may have a million."""
    found = []
    for model in [*WireModel.__subclasses__(), *DialectBody.__subclasses__()]:
        for where, hint, constraints in _lists(model, set()):
            fixed = get_origin(hint) is tuple and ... not in get_args(hint)
            found.append(where)
            assert fixed or any(getattr(limit, "max_length", None) for limit in constraints), (where, hint, constraints)
    assert {"NativeBody.controls", "SheetBody.rows", "ActionParams.action"} <= set(found)


async def begin(server: Fake, headers: str, body: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Send the beginning of a request for a job."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.client.base_url.port)
    head = f"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{headers}\r\n\r\n"
    writer.write(head.encode() + body)
    return reader, writer


def test_bodies_that_are_too_slow_or_too_many_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(middleware, "BODY_IDLE_S", 0.5)
    monkeypatch.setattr(middleware, "BODY_WAIT_S", 0.2)

    async def test() -> None:
        async with serving(tmp_path, max_input_bytes=2_000_000) as server:
            for headers in ("Content-Length: 5000000000", "Content-Length: 100", "Transfer-Encoding: chunked"):
                reader, writer = await begin(server, headers, b"")
                status = (await reader.readline()).split()[1]
                assert status == (b"413" if "5000" in headers else b"408"), headers
                writer.close()
            monkeypatch.setattr(middleware, "BODY_IDLE_S", 20.0)
            large = [await begin(server, "Content-Length: 3000000", b"{") for _ in range(8)]
            refused, _ = await asyncio.wait(
                [asyncio.create_task(reader.readline()) for reader, _ in large],
                timeout=10,
                return_when=asyncio.FIRST_COMPLETED,
            )
            assert {task.result().split()[1] for task in refused} == {b"503"}
            # Small ones have nothing to do with it.
            assert (await server.client.post("/v1/jobs", json=BODY)).status_code == 202
            for _, writer in large:
                writer.close()
            async with asyncio.timeout(20):
                while True:
                    big = await server.client.post("/v1/jobs", json={**BODY, "image": "A" * 1_500_001})
                    if big.status_code != 503:
                        break
            assert big.status_code == 422  # read, and found to be no picture

    run(test)


def test_a_client_that_sends_slowly_keeps_no_other_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(middleware, "BODY_WAIT_S", 0.2)

    async def test() -> None:
        async with serving(tmp_path, max_input_bytes=2_000_000, api_keys=("alice:a", "bob:b")) as server:
            slow = "Content-Length: 3000000\r\nAuthorization: Bearer a"
            held = [await begin(server, slow, b"{") for _ in range(8)]
            waiting = [asyncio.create_task(reader.readline()) for reader, _ in held]
            while sum(task.done() for task in waiting) < 6:  # two are read, as many as one key may have
                await asyncio.sleep(0.02)
            assert {task.result().split()[1] for task in waiting if task.done()} == {b"503"}
            body = {**BODY, "image": "A" * 2_000_001}
            bob = await server.client.post("/v1/jobs", json=body, headers={"Authorization": "Bearer b"})
            assert bob.status_code == 422  # read, and found to be no picture
            for task, (_, writer) in zip(waiting, held, strict=True):
                task.cancel()
                writer.close()

    run(test)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", "/v1/jobs", "GET, POST"),
        ("PUT", "/v1/jobs/a", "DELETE, GET, PATCH"),
        ("POST", "/v1/jobs/a/content", "GET, HEAD"),
        ("GET", "/v1/infer", "POST"),
        ("PATCH", "/v1/videos", "GET, POST"),
    ],
)
def test_what_a_path_takes_is_told_whole(method: str, path: str, allowed: str, tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path) as server:
            answer = await server.client.request(method, path)
            assert (answer.status_code, answer.headers["Allow"]) == (405, allowed)
            assert answer.json()["error"]["message"] == f"{path} takes {allowed}, not {method}"

    run(test)


@pytest.mark.parametrize("number", ["٣", "1_0", "+5", "0x5", "", "²", "1e1"])
def test_numbers_in_addresses_and_headers_are_plain_ones(number: str, tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path) as server:
            for path, status in (("/v1/jobs", 422), ("/v1/videos", 400)):
                answer = await server.client.get(path, params={"limit": number})
                assert answer.status_code == status, (path, answer.text)
                assert "an integer from 1 to 100" in answer.text
            if number not in ("+5", "1e1"):  # which are numbers of seconds
                headers = {"X-Cosmorama-Deadline-S": number.encode()}
                answer = await server.client.post("/v1/jobs", json=BODY, headers=headers)  # type: ignore[arg-type]
                assert answer.status_code == 422
                assert "X-Cosmorama-Deadline-S" in answer.text

    run(test)


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("video/mp4", "video/mp4"),
        ("video/mp4;q=0", "application/json"),
        ("video/mp4; q=0.0, */*", "application/json"),
        ("VIDEO/*", "video/mp4"),
        ("video/mp4;q=0.5", "video/mp4"),
        ("video/mp4, application/json", "application/json"),
        ("application/json;q=0, video/mp4", "video/mp4"),
        ("application/json;q=0.5, video/mp4", "video/mp4"),
        ("application/json, video/mp4;q=0.9", "application/json"),
    ],
)
def test_what_a_client_does_not_want_it_does_not_get(accept: str, kind: str, tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path) as server:
            video = {"width": 960, "height": 704, "frames_count": 9}
            body = {"prompt": "a ball", "steps": 1, "video_params": video}
            answer = await server.client.post("/v1/infer", json=body, headers={"Accept": accept})
            assert (answer.status_code, answer.headers["Content-Type"]) == (200, kind)

    run(test)


@asynccontextmanager
async def connections(app: Any) -> AsyncIterator[uvicorn.Server]:
    """The server's own connections around an application."""
    config = uvicorn.Config(app, port=0, log_config=None, http=server_module.BoundedConnection, lifespan="off")
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    yield server
    server.should_exit = True
    await task


def test_headers_that_drip_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection whose request does not become complete is closed; one whose did is not."""
    monkeypatch.setattr(server_module, "HEADERS_S", 0.5)

    async def hello(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await asyncio.sleep(1)
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
            await send({"type": "http.response.body", "body": b"hi"})

    async def test() -> None:
        async with connections(hello) as server:
            port = server.servers[0].sockets[0].getsockname()[1]
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET / HTTP/1.1\r\nHost: a\r\nX-Slow: ")
            for _ in range(4):
                writer.write(b"a")
                await asyncio.sleep(0.2)
            assert await asyncio.wait_for(reader.read(), 10) == b""
            for body in (b"Content-Length: 100\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n0\r\nX-Slow: "):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(b"DELETE / HTTP/1.1\r\nHost: a\r\n" + body)
                answered = asyncio.ensure_future(reader.read())
                for _ in range(40):  # the answer does not wait for them, and they do not go on for ever
                    writer.write(b"a")
                    if (await asyncio.wait((answered,), timeout=0.1))[0]:
                        break
                assert answered.done()
                with suppress(ConnectionResetError):
                    assert (await answered).startswith(b"HTTP/1.1 200 ")
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
                assert [(await client.get("/")).text for _ in range(2)] == ["hi", "hi"]
            # Who says nothing gives way to who comes later: of so many connections half may.
            monkeypatch.setattr("resource.getrlimit", lambda _: (12, 12))
            silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(30)]
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
                assert (await client.get("/")).text == "hi"
            assert await asyncio.wait_for(silent[0][0].read(), 0.1) == b""
            for _, writer in silent:
                writer.close()
            for wrong, why in (
                (b"GET / HTTP/1.1\r\n\r\n", "Host"),
                (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", "Host"),
                (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", "Content-Length"),
                (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\n", "illegal"),
                (b"GET / HTTP/1.1\r\nHost: a\r\nX-Long: " + b"a" * 100_000, "Receive buffer too long"),
                (b"\x16\x03\x01 a browser that means HTTPS", "illegal"),
            ):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(wrong)
                head, _, body = (await asyncio.wait_for(reader.read(), 10)).partition(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 400 "), wrong[:50]
                error = json.loads(body)["error"]
                assert (error["type"], error["code"], why in error["message"]) == (
                    "invalid_request_error",
                    400,
                    True,
                ), error

    run(test)


@pytest.mark.parametrize(("size", "pieces", "status"), [(1, 2000, 400), (300, 1000, 200), (20, 100, 200)])
def test_a_body_in_many_small_pieces_does_not_keep_the_loop(size: int, pieces: int, status: int) -> None:
    """What the system gives at once may hold forty thousand, each of which is work: the 129th is not looked behind."""

    async def counting(scope: Any, receive: Any, send: Any) -> None:
        got = 0
        while (message := await receive())["type"] == "http.request":
            got += len(message["body"])
            if not message["more_body"]:
                told = b"%d" % got
                await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"6")]})
                await send({"type": "http.response.body", "body": told.rjust(6)})
                return

    async def test() -> None:
        async with connections(counting) as server:
            reader, writer = await asyncio.open_connection(*server.servers[0].sockets[0].getsockname())
            head = b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
            writer.write(head + b"%x\r\n%s\r\n" % (size, b"x" * size) * pieces + b"0\r\n\r\n")
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 %d " % status)
            assert (b"129 pieces" in body) if status == 400 else (int(body) == size * pieces)

    run(test)


def test_who_reads_nothing_holds_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether more is to be sent or the answer is over for the server; who reads slowly is served to the end."""
    monkeypatch.setattr(server_module, "READ_S", 1.0)
    sizes = {"/large": 50_000_000, "/small": 8_000_000}
    ended = list[str]()

    async def clip(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            size = sizes[scope["path"]]
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % size)]})
            for left in range(size, 0, -1_000_000):
                await send({"type": "http.response.body", "body": bytes(1_000_000), "more_body": left > 1_000_000})
            ended.append(scope["path"])

    async def test() -> None:
        async with connections(clip) as server:
            address = server.servers[0].sockets[0].getsockname()

            async def ask(path: str) -> socket.socket:
                asking = socket.socket()
                asking.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                asking.setblocking(False)
                await asyncio.get_running_loop().sock_connect(asking, address)
                asking.send(b"GET %s HTTP/1.1\r\nHost: a\r\n\r\n" % path.encode())
                return asking

            silent = [await ask(path) for path in sizes]
            slow = await ask("/small")
            got, began = 0, time.monotonic()
            while got < sizes["/small"]:
                await asyncio.sleep(0.1 if time.monotonic() - began < 3 else 0)
                with suppress(BlockingIOError):
                    got += len(slow.recv(1 << 16))
            async with asyncio.timeout(20):
                while len(server.server_state.connections) > 1:
                    await asyncio.sleep(0.05)
            assert set(ended) == set(sizes)  # the application was told, and let go of its files
            for each in (*silent, slow):
                each.close()

    run(test)


@pytest.mark.parametrize(
    ("body", "encoding", "status", "message"),
    [
        (b"\xef\xbb\xbf%s", "identity", 202, ""),
        (b"%s", "Identity", 202, ""),
        (b"%s", "gzip", 415, "Content-Encoding must be identity, not gzip"),
        (b"%s", "gzip, identity", 415, "Content-Encoding must be identity"),
        (b"{\0%s", "", 422, "not valid JSON in UTF-8; it seems to be UTF-16"),
    ],
)
def test_bodies_as_programs_encode_them(body: bytes, encoding: str, status: int, message: str, tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path) as server:
            headers = {"Content-Encoding": encoding, "Content-Type": "application/json"}
            content = body % json.dumps(BODY).encode()
            answer = await server.client.post("/v1/jobs", content=content, headers=headers)
            assert (answer.status_code, message in answer.text) == (status, True), answer.text
            if status == 415:
                form = {"files": {"prompt": (None, "a red ball")}, "headers": {"Content-Encoding": encoding}}
                assert (await server.client.post("/v1/videos", **form)).status_code == 415  # type: ignore[arg-type]

    run(test)


@pytest.mark.parametrize(
    "name",
    ["1.2.3.4:5", "Wed, 99:99:99", "http://[::1", "::ffff:1.2.3.4", "fe80::1%eth0", "::/0", "%", '"', "a:b" * 99],
)
def test_whatever_a_proxy_calls_its_client_is_one(name: str, tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path) as server:
            for _ in range(2):
                answer = await server.client.post("/v1/jobs", json=BODY, headers={"X-Forwarded-For": name})
                assert answer.status_code == 202, answer.text

    run(test)


@pytest.mark.parametrize("prompt", ["ш" * 5000, "a ball", "世" * 170, "x" * 1024])
def test_a_prompt_in_a_header_stays_short(prompt: str, tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path) as server:
            video = {"width": 960, "height": 704, "frames_count": 9}
            body = {"prompt": prompt, "steps": 1, "video_params": video, "prompt_upsampling": False}
            answer = await server.client.post("/v1/infer", json=body, headers={"Accept": "video/mp4"})
            assert answer.status_code == 200, answer.text
            header = answer.headers["X-Cosmorama-Prompt"]
            assert len(header) <= 1100
            said = unquote(header, errors="strict")
            assert prompt.startswith(said)
            assert said == prompt or len(header) > 900

    run(test)


def test_ids_that_no_database_takes_are_not_found(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path) as server:
            for name in ("%00", "job_%00", "a%00b", "x" * 2000, "%F0%9F%98%80", "%0A"):
                for path in ("jobs/{}", "jobs/{}/content", "jobs/{}/events", "jobs/{}/answer", "videos/{}"):
                    assert (await server.client.get("/v1/" + path.format(name))).status_code == 404
                assert (await server.client.post(f"/v1/jobs/{name}/cancel")).status_code == 404
                assert (await server.client.delete(f"/v1/jobs/{name}")).status_code == 404
                assert (await server.client.get(f"/v1/jobs?cursor={name}")).status_code == 422
                assert (await server.client.get(f"/v1/videos?after={name}")).status_code == 400

    run(test)


@pytest.mark.parametrize("url", ["http://xn--/", "http://xn--a/", "http://[::1", "http://a:99999/", "http:///", "\x00"])
def test_webhook_urls_that_no_library_can_read_are_the_clients_fault(url: str, tmp_path: Path) -> None:
    async def test() -> None:
        secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
        async with serving(tmp_path, webhook_secret=SecretStr(secret)) as server:
            answer = await server.client.post("/v1/jobs", json={**BODY, "webhook_url": url})
            # What has the shape of a host may be one; what has not is refused.
            assert answer.status_code in (202, 422), answer.text
            ok = await server.client.post("/v1/jobs", json={**BODY, "webhook_url": "http://xn--ls8h.la/"})
            assert ok.status_code == 202, ok.text

    run(test)


def test_every_request_has_an_id_and_a_line_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="cosmorama.access")

    async def test() -> None:
        async with serving(tmp_path, api_keys=("alice:key",)) as server:
            headers = {"Authorization": "Bearer key"}
            mine = await server.client.get("/v1/jobs", headers=headers | {"X-Request-Id": "my-own.1"})
            assert mine.headers["X-Request-Id"] == "my-own.1"
            other = await server.client.get("/v1/jobs", headers=headers | {"X-Request-Id": "no good"})
            assert len(other.headers["X-Request-Id"]) == 16
            assert (await server.client.get("/v1/jobs")).headers["X-Request-Id"]
            await server.client.get("/v1/health/live")

    run(test)
    lines = [record.getMessage() for record in caplog.records if record.name == "cosmorama.access"]
    assert any("GET /v1/jobs 200" in line and "key=alice id=my-own.1" in line for line in lines)
    assert any("GET /v1/jobs 401" in line for line in lines)
    assert not any("health" in line for line in lines)


def test_bugs_are_answered_counted_and_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        async with serving(tmp_path) as server:

            async def broken(*_: object, **__: object) -> None:
                raise RuntimeError("a secret of the inside")

            monkeypatch.setattr(server.jobs, "submit", broken)
            answer = await server.client.post("/v1/jobs", json=BODY)
            assert answer.status_code == 500
            assert "secret" not in answer.text
            assert answer.headers["X-Request-Id"] in answer.text
            assert 'cosmorama_answers_total{status="500"} 1.0' in (await server.client.get("/v1/metrics")).text

    run(test)
    assert "a secret of the inside" in caplog.text
