"""Which addresses may be connected to."""

from __future__ import annotations

import ipaddress
import ssl

import httpcore
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosmorama.media.connect import Deadline, GuardedBackend, RefusedAddressError, is_public

NOT_PUBLIC = [
    "127.0.0.1", "127.8.8.8", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "169.254.169.254",
    "100.64.0.1", "100.100.100.200", "0.0.0.0", "0.1.2.3", "224.0.0.1", "239.255.255.250", "240.0.0.1",
    "255.255.255.255", "192.0.2.1", "198.51.100.1", "203.0.113.1", "198.18.0.1", "168.63.129.16", "::1", "::",
    "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "ff02::1", "fec0::1", "::ffff:127.0.0.1",
    "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe",
    "2002:7f00:1::", "2002:808:808::", "2001:0:1::1", "2001:db8::1",
]  # fmt: skip


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "1.1.1.1", "172.32.0.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
)
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
        GuardedBackend(Deadline.after(5), allow_private=False).connect_tcp("example.test", 80)


def test_unix_sockets_are_refused() -> None:
    with pytest.raises(RefusedAddressError):
        GuardedBackend(Deadline.after(5), allow_private=True).connect_unix_socket("/run/docker.sock")


def test_tls_is_started_with_the_name_not_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str | None] = []

    class Stream(httpcore.MockStream):
        def start_tls(
            self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
        ) -> httpcore.NetworkStream:
            started.append(server_hostname)
            return self

    class Network(httpcore.MockBackend):
        def connect_tcp(self, host: str, port: int, **_: object) -> httpcore.NetworkStream:  # type: ignore[override]
            started.append(host)
            return Stream([b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"])

    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: [(2, 1, 6, "", ("8.8.8.8", 443))])
    backend = GuardedBackend(Deadline.after(5), allow_private=False, _backend=Network([]))
    with httpcore.ConnectionPool(network_backend=backend) as pool:
        assert pool.request("GET", "https://example.test/").content == b"ok"
    assert started == ["8.8.8.8", "example.test"]
