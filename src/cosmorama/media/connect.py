"""Connections that can only reach the public internet, and only until a deadline.

The address that is checked is the address that is connected to: a name is resolved once, here, so that a DNS server
cannot answer with a public address for the check and a private one for the connection.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field

import httpcore

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
# Azure's host agent answers its virtual machines on this address, which is otherwise an ordinary public one.
_CLOUD_INTERNAL = frozenset({ipaddress.IPv4Address("168.63.129.16")})


class RefusedAddressError(Exception):
    """The name leads to an address that must not be connected to."""


def is_public(address: str) -> bool:
    """Whether an IPv4 or IPv6 address (as text) belongs to the public, unicast internet.

    An IPv6 address that carries an IPv4 address is judged by what it carries; 6to4 and Teredo are never public, since
    they can be routed to wherever the tunnel's end is.

    Raises:
        ValueError: if the text is not an address.
    """
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return is_public(str(ip.ipv4_mapped))
        if ip in _NAT64:
            return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
        if ip.sixtofour is not None or ip.teredo is not None or ip.is_site_local:
            return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip in _CLOUD_INTERNAL)


@dataclass(frozen=True, slots=True)
class Deadline:
    """A moment on the monotonic clock."""

    at_s: float

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        return cls(time.monotonic() + seconds)

    def remaining(self) -> float:
        """Seconds left.

        Raises:
            httpcore.TimeoutException: when there are none.
        """
        left = self.at_s - time.monotonic()
        if left <= 0:
            raise httpcore.ReadTimeout("the deadline has passed")
        return left


@dataclass(frozen=True, slots=True)
class GuardedBackend(httpcore.NetworkBackend):
    """A network backend that resolves, checks and connects in one place, and whose every operation ends by `deadline`.

    TLS is started by httpcore with the name of the URL, so certificates and SNI are those of the name, not of the
    address.
    """

    deadline: Deadline
    allow_private: bool
    _backend: httpcore.NetworkBackend = field(default_factory=httpcore.SyncBackend)

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        """Connect to one of the host's addresses, provided that all of them may be connected to.

        Raises:
            RefusedAddressError: if any address of the host is not public and private ones are not allowed.
            httpcore.ConnectError: if the host does not resolve or no address answers.
            httpcore.TimeoutException: at the deadline.
        """
        addresses = self._resolve(host, port)
        if not self.allow_private and not all(is_public(address) for address in addresses):
            raise RefusedAddressError(host)
        for address in addresses[:-1]:
            try:
                return self._connect(address, port)
            except httpcore.ConnectError:
                continue
        return self._connect(addresses[-1], port)

    def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        raise RefusedAddressError(path)

    def _connect(self, address: str, port: int) -> httpcore.NetworkStream:
        return _Stream(self._backend.connect_tcp(address, port, timeout=self.deadline.remaining()), self.deadline)

    def _resolve(self, host: str, port: int) -> list[str]:
        # getaddrinfo takes no timeout, so it runs beside us and is abandoned when it is late.
        executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="resolve")
        try:
            lookup = executor.submit(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
            found = lookup.result(timeout=self.deadline.remaining())
        except FutureTimeoutError:
            raise httpcore.ConnectTimeout("name resolution took too long") from None
        except (OSError, UnicodeError) as error:
            raise httpcore.ConnectError(f"cannot resolve {host}") from error
        finally:
            executor.shutdown(wait=False)
        # A link-local IPv6 address may carry a scope (fe80::1%eth0); order is kept, duplicates are not.
        return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class _Stream(httpcore.NetworkStream):
    """A stream that ignores per-operation timeouts: a server that drips bytes would never exceed them."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: Deadline) -> None:
        self._stream = stream
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, self._deadline.remaining())

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, self._deadline.remaining())

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _Stream(
            self._stream.start_tls(ssl_context, server_hostname, self._deadline.remaining()),
            self._deadline,
        )

    def get_extra_info(self, info: str) -> object:
        return self._stream.get_extra_info(info)
