"""Loading media from bytes, base64, data URLs, files and, above all, URLs."""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpcore
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cosmorama.errors import MediaError
from cosmorama.media.fetch import FetchPolicy, GuardedBackend, RefusedAddressError, is_public, load_bytes, url_in

LOCAL = FetchPolicy(allow_private=True, max_bytes=1000, timeout_s=5)
Answer = Callable[[BaseHTTPRequestHandler], None]


def refused(source: str | bytes | Path, policy: FetchPolicy = LOCAL) -> MediaError:
    with pytest.raises(MediaError) as caught:
        load_bytes(source, "image", policy)
    assert caught.value.field == "image"
    return caught.value


@contextmanager
def serving(answer: Answer) -> Iterator[str]:
    """A server on the loopback interface that answers every GET with `answer`; gives its base URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with suppress(OSError):
                answer(self)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.block_on_close = False
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def body(content: bytes, status: int = 200, **headers: str) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(content)

    return answer


@given(
    st.binary(min_size=1, max_size=200), st.sampled_from(["plain", "url-safe", "wrapped", "unpadded", "data", "quoted"])
)
def test_base64_in_every_spelling(data: bytes, spelling: str) -> None:
    text = base64.b64encode(data).decode()
    spelled = {
        "plain": text,
        "url-safe": base64.urlsafe_b64encode(data).decode(),
        "wrapped": "\n".join(text[i : i + 7] for i in range(0, len(text), 7)) + "\r\n",
        "unpadded": text.rstrip("="),
        "data": f"data:video/mp4;base64,{text}",
        "quoted": "DATA:;base64," + text.replace("+", "%2B").replace("/", "%2F").replace("=", "%3D"),
    }[spelling]
    assert load_bytes(spelled, "video", FetchPolicy()) == data


@pytest.mark.parametrize(
    "text",
    [
        "", "   ", "=", "A", "AAAAA", "AA==AA", "A=AA", "AAA\x00", "AAA.", "é" * 8, "/tmp/clip.mp4", "data:", "data:,x",
        "data:image/png,AAAA", "data:image/png;base64", "data:;base64,", "data:image/png;base64,A@AA", "%zz%",
        "file:///etc/passwd", "ftp://example.com/a.png", "gopher://x", "s3://bucket/key", "javascript:alert(1)",
        "http://", "https://", "http:///a", "http://[::1", "http://a:b:c/", "http://host:99999/", "http:/one",
        "http://user:secret@example.com/a.png", "http://exa mple.com/", "http://\x00/",
    ],
)  # fmt: skip
def test_text_that_stands_for_nothing(text: str) -> None:
    assert refused(text).status == 422


def test_blanks_around_a_text_are_no_part_of_it_and_hold_up_nobody() -> None:
    for blanks in ("", " ", "\n" * 70_000):
        assert load_bytes(f"{blanks}QUJD{blanks}", "image", FetchPolicy()) == b"ABC"
    assert url_in(" \n https://example.com/a \n") == "https://example.com/a"
    begun = time.thread_time()
    with pytest.raises(MediaError, match="is empty"):
        load_bytes(" " * 50_000_000, "image", FetchPolicy())
    assert time.thread_time() - begun < 2, "each of its pieces takes a millisecond; to strip it at once, a second"


@settings(max_examples=50)
@given(st.text(max_size=60))
def test_any_text_gives_bytes_or_a_media_error(text: str) -> None:
    with suppress(MediaError):
        assert load_bytes(text, "image", FetchPolicy(allow_urls=False))


def test_bytes_are_taken_as_they_are_up_to_the_limit() -> None:
    assert load_bytes(b"x" * 1000, "image", LOCAL) == b"x" * 1000
    assert refused(b"x" * 1001).status == 413
    assert refused(base64.b64encode(b"x" * 1001).decode()).status == 413
    assert "empty" in refused(b"").message


def test_files_only_where_allowed(tmp_path: Path) -> None:
    policy = FetchPolicy(allow_files=True, max_bytes=10)
    path = tmp_path / "a.bin"
    path.write_bytes(b"0123456789")
    assert load_bytes(path, "image", policy) == b"0123456789"
    assert "not allowed" in refused(path, LOCAL).message
    path.write_bytes(b"0123456789a")
    assert refused(path, policy).status == 413
    os.mkfifo(tmp_path / "pipe")
    for odd in (tmp_path, tmp_path / "absent", tmp_path / "pipe", Path("/dev/zero"), Path("a\x00b")):
        assert refused(odd, policy).status == 422


def test_a_url_is_fetched_without_cookies_or_credentials_and_uncompressed() -> None:
    seen = {}

    def answer(handler: BaseHTTPRequestHandler) -> None:
        seen.update(handler.headers.items(), path=handler.path)
        body(b"picture")(handler)

    with serving(answer) as url:
        assert load_bytes(f" {url}/a%20b.png?x=1&y=%2F#part ", "image", LOCAL) == b"picture"
        assert seen["Host"] == url.removeprefix("http://")
    assert seen["path"] == "/a%20b.png?x=1&y=%2F"
    assert seen["Accept-Encoding"] == "identity"
    assert not {"Authorization", "Cookie"} & set(seen)


def test_urls_can_be_switched_off() -> None:
    with serving(body(b"picture")) as url:
        assert "does not fetch" in refused(url, FetchPolicy(allow_urls=False, allow_private=True)).message


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "[::ffff:127.0.0.1]", "127.1", "0"])
def test_private_hosts_are_refused_in_every_spelling(host: str) -> None:
    with serving(body(b"secret")) as url:
        port = url.rpartition(":")[2]
        message = refused(f"http://{host}:{port}/", FetchPolicy(timeout_s=5)).message
    assert "public internet" in message or "cannot be fetched" in message or "valid URL" in message


def test_the_checked_address_is_the_connected_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is public when first asked for and private afterwards must not get through."""
    asked = []
    connected = []

    def resolve(host: str, port: int, *_: object, **__: object) -> list[object]:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("8.8.8.8" if len(asked) == 1 else "127.0.0.1", port))]

    async def connect(self: object, address: str, *_: object, **__: object) -> None:
        connected.append(address)
        raise httpcore.ConnectError("refused")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(httpcore.AnyIOBackend, "connect_tcp", connect)
    refused("http://rebind.test/", FetchPolicy(timeout_s=5))
    assert (asked, connected) == (["rebind.test"], ["8.8.8.8"])


def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(body(b"direct")) as url, serving(body(b"proxied")) as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy)
        assert load_bytes(url, "image", LOCAL) == b"direct"


def test_redirects_are_followed_up_to_the_limit() -> None:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        left = int(handler.path.strip("/"))
        (body(b"", 302, Location=f"/{left - 1}") if left else body(b"there"))(handler)

    with serving(answer) as url:
        assert load_bytes(f"{url}/3", "image", LOCAL) == b"there"
        assert "redirects more than 3" in refused(f"{url}/4").message


def test_a_redirect_loop_ends() -> None:
    with serving(body(b"", 307, Location="/")) as url:
        assert "redirects" in refused(url).message


@pytest.mark.parametrize(
    "location", ["file:///etc/passwd", "ftp://a/b", "http://u:p@127.0.0.1/", "http://[", "data:,x"]
)
def test_redirects_elsewhere_are_refused(location: str) -> None:
    with serving(body(b"", 301, Location=location)) as url:
        assert refused(url).status == 422


def test_each_redirect_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.getaddrinfo
    with serving(body(b"", 302, Location="http://inner.test/")) as url:
        # The outer server plays a public one: only the second name leads to a private address.
        monkeypatch.setattr("cosmorama.media.fetch.is_public", lambda address: address != "10.0.0.7")
        monkeypatch.setattr(
            socket,
            "getaddrinfo",
            lambda host, port, *a, **k: real("10.0.0.7" if host == "inner.test" else host, port, *a, **k),
        )
        assert "public internet" in refused(url, FetchPolicy(timeout_s=5)).message


def test_a_redirects_body_is_not_read() -> None:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        if handler.path == "/next":
            return body(b"there")(handler)
        body(b"", 302, Location="/next")(handler)
        while True:
            handler.wfile.write(b"x" * 65536)

    with serving(answer) as url:
        assert load_bytes(url, "image", LOCAL) == b"there"


@pytest.mark.parametrize("status", [204, 206, 304, 401, 404, 500])
def test_other_statuses_are_errors_that_say_so(status: int) -> None:
    with serving(body(b"", status)) as url:
        assert str(status) in refused(url).message


def test_a_declared_length_over_the_limit_is_refused_before_reading() -> None:
    with serving(body(b"", Content_Length="1001")) as url:
        assert refused(url).status == 413
    with serving(body(b"", Content_Length="9" * 5000)) as url:
        assert refused(url).status in (413, 422)


def test_an_endless_body_without_length_is_cut_off() -> None:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.protocol_version = "HTTP/1.1"
        body(b"", Transfer_Encoding="chunked")(handler)
        while True:
            handler.wfile.write(b"100\r\n" + b"x" * 256 + b"\r\n")

    with serving(answer) as url:
        assert refused(url).status == 413


def test_chunks_within_the_limit_are_joined() -> None:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.protocol_version = "HTTP/1.1"
        body(b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n", Transfer_Encoding="chunked")(handler)

    with serving(answer) as url:
        assert load_bytes(url, "image", LOCAL) == b"abc"


def test_compressed_and_cut_off_bodies_are_refused() -> None:
    with serving(body(b"x", Content_Encoding="gzip")) as url:
        assert "compressed" in refused(url).message
    with serving(body(b"x", Content_Length="20")) as url:
        assert "cannot be fetched" in refused(url).message


@pytest.mark.parametrize("where", ["headers", "body", "silence"])
def test_a_server_that_drips_is_left_at_the_deadline(where: str) -> None:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.0 200 OK\r\n" + (b"\r\n" if where == "body" else b"X-A: "))
        for _ in range(100):
            time.sleep(0.05 if where != "silence" else 5)
            handler.wfile.write(b"x")

    started = time.monotonic()
    with serving(answer) as url:
        message = refused(url, FetchPolicy(allow_private=True, timeout_s=0.4)).message
    assert "within 0.4 s" in message
    assert time.monotonic() - started < 3


def test_slow_name_resolution_is_left_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(1.5))
    started = time.monotonic()
    assert "within" in refused("http://slow.test/", FetchPolicy(timeout_s=0.2)).message
    assert time.monotonic() - started < 1.2


def test_unreachable_and_broken_servers() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        assert "cannot be fetched" in refused(f"http://127.0.0.1:{unused.getsockname()[1]}/").message
    with serving(lambda handler: handler.wfile.write(b"SSH-2.0-OpenSSH\r\n")) as url:  # type: ignore[arg-type,return-value]
        assert "cannot be fetched" in refused(url).message
        assert "cannot be fetched" in refused(url.replace("http", "https")).message


NOT_PUBLIC = [
    "127.0.0.1", "127.8.8.8", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "169.254.169.254",
    "100.64.0.1", "100.100.100.200", "0.0.0.0", "0.1.2.3", "224.0.0.1", "239.255.255.250", "240.0.0.1",
    "255.255.255.255", "192.0.2.1", "198.51.100.1", "203.0.113.1", "198.18.0.1", "168.63.129.16", "::1", "::",
    "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "ff02::1", "fec0::1", "::ffff:127.0.0.1",
    "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe",
    "2002:7f00:1::", "2002:808:808::", "2001:0:1::1", "2001:db8::1", "192.0.0.192", "192.0.0.8", "192.0.0.10",
    "192.88.99.1", "192.31.196.1", "192.52.193.1", "192.175.48.1", "203.0.113.255", "198.19.255.255", "3fff::1",
    "3fff:fff:ffff::1", "3ffe::1", "2001:1::1", "2001:2::1", "2001:10::1", "2001:20::1", "2001:30::1", "2001:1ff::1",
    "2620:4f:8000::1", "5f00::1", "100::1", "64:ff9b:1::808:808", "64:ff9b::c000:c0", "::ffff:192.0.0.192",
    "::8.8.8.8", "::ffff:0:808:808", "4000::1", "1fff::1", "fec0::808:808",
]  # fmt: skip


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "address",
    ["8.8.8.8", "1.1.1.1", "172.32.0.1", "192.0.1.1", "192.88.98.1", "100.128.0.1", "2606:4700::1111", "2001:200::1",
     "2001:4860:4860::8888", "2a00:1450::1", "3fff:1000::1", "::ffff:8.8.8.8", "64:ff9b::808:808"],
)  # fmt: skip
def test_public(address: str) -> None:
    assert is_public(address)


@given(st.integers(0, 2**32 - 1))
def test_an_embedded_address_is_judged_like_the_plain_one(number: int) -> None:
    plain = ipaddress.IPv4Address(number)
    assert is_public(f"::ffff:{plain}") == is_public(str(plain))
    assert is_public(str(ipaddress.IPv6Address((0x64FF9B << 96) | number))) == is_public(str(plain))


@given(st.ip_addresses(v=4, network="10.0.0.0/8") | st.ip_addresses(v=6, network="fc00::/7"))
def test_private_ranges_are_never_public(address: object) -> None:
    assert not is_public(str(address))


def test_one_private_address_among_public_ones_refuses_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [(2, 1, 6, "", ("8.8.8.8", 80)), (2, 1, 6, "", ("127.0.0.1", 80))]
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: answers)
    with pytest.raises(RefusedAddressError):
        asyncio.run(GuardedBackend(allow_private=False).connect_tcp("example.test", 80))


def test_unix_sockets_are_refused() -> None:
    with pytest.raises(RefusedAddressError):
        asyncio.run(GuardedBackend(allow_private=True).connect_unix_socket("/run/docker.sock"))


def test_tls_is_started_with_the_name_not_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str | None] = []

    class Stream(httpcore.AsyncMockStream):
        async def start_tls(
            self,
            ssl_context: ssl.SSLContext,
            server_hostname: str | None = None,
            timeout: float | None = None,  # noqa: ASYNC109  # httpcore's own interface
        ) -> httpcore.AsyncNetworkStream:
            started.append(server_hostname)
            return self

    class Network(httpcore.AsyncMockBackend):
        async def connect_tcp(self, host: str, port: int, *_: object) -> httpcore.AsyncNetworkStream:  # type: ignore[override]
            started.append(host)
            return Stream([b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"])

    async def get() -> bytes:
        backend = GuardedBackend(allow_private=False, _backend=Network([]))
        async with httpcore.AsyncConnectionPool(network_backend=backend) as pool:
            return (await pool.request("GET", "https://example.test/")).content

    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: [(2, 1, 6, "", ("8.8.8.8", 443))])
    assert asyncio.run(get()) == b"ok"
    assert started == ["8.8.8.8", "example.test"]


@pytest.mark.parametrize("host", ["xn--", "xn--a", "xn--ls8h.test", "xn--99999999", "-.test", "a" * 64 + ".test"])
def test_names_that_cannot_be_decoded_are_the_clients_error(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", _unknown)
    assert refused(f"http://{host}/").status == 422
    with serving(body(b"", 302, Location=f"http://{host}/")) as url:
        monkeypatch.undo()
        assert refused(url, FetchPolicy(allow_private=True, timeout_s=20)).status == 422


def test_a_name_of_emoji_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.getaddrinfo
    asked: list[object] = []

    def resolve(host: object, *rest: Any, **more: Any) -> Any:
        asked.append(host)
        return real("127.0.0.1", *rest, **more)

    with serving(body(b"there")) as url:
        monkeypatch.setattr(socket, "getaddrinfo", resolve)
        assert load_bytes(url.replace("127.0.0.1", "xn--ls8h.test"), "image", LOCAL) == b"there"
    assert asked == ["xn--ls8h.test"]


def test_what_another_service_says_is_not_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            connection.recv(65536)
            connection.sendall(b"220 secret-banner ESMTP 1.2.3\r\n")
            connection.close()

        threading.Thread(target=serve, daemon=True).start()
        message = refused(f"http://127.0.0.1:{listener.getsockname()[1]}/").message
    assert "secret" not in message
    assert "not HTTP" in message


def test_a_url_is_fetched_inside_a_running_event_loop() -> None:
    async def as_in_a_notebook(url: str) -> bytes:
        return load_bytes(url, "image", LOCAL)

    with serving(body(b"there")) as url:
        assert asyncio.run(as_in_a_notebook(url)) == b"there"


def _unknown(*_: object, **__: object) -> Any:
    raise socket.gaierror("unknown")


def test_escapes_are_undone_quickly_or_refused() -> None:
    data = bytes(range(256)) * 4
    text = base64.b64encode(data).decode()
    policy = FetchPolicy(max_bytes=50_000_000)
    for escaped in (text.replace("+", "%2B").replace("/", "%2f").replace("=", "%3D"), "\ufeff" + text, text + "\r\n"):
        assert load_bytes("data:image/png;base64," + escaped.lstrip("\ufeff"), "image", policy) == data
        assert load_bytes(escaped, "image", policy) == data
    started = time.process_time()
    assert "base64" in refused("data:image/png;base64," + "%41" * 10_000_000, policy).message
    assert time.process_time() - started < 3
