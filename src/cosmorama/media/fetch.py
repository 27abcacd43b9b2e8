"""From a media source (URL, data URL, base64, bytes or file) to the bytes it stands for, and connections for that.

The connections can only reach the public internet, and only until a deadline. The address that is checked is the
address that is connected to: a name is resolved once, here, so that a DNS server cannot answer with a public address
for the check and a private one for the connection.
"""

from __future__ import annotations

import binascii
import functools
import ipaddress
import socket
import ssl
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote_to_bytes

import httpcore
import httpx

from cosmorama.errors import MediaError
from cosmorama.request import MediaSource

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


_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_URLSAFE = bytes.maketrans(b"-_", b"+/")
_HEADERS: dict[bytes | str, bytes | str] = {
    "Accept": "image/*, video/*, */*;q=0.5",
    "Accept-Encoding": "identity",
    "User-Agent": "cosmorama",
    "Connection": "close",
}


@dataclass(frozen=True)
class FetchPolicy:
    """What may be loaded on behalf of a user.

    Attributes:
        allow_urls: Fetch http and https URLs.
        allow_private: Also from private, loopback and other addresses that are not on the public internet.
        allow_files: Read local files; for sources that the operator, not a remote user, has named.
        max_bytes: Largest picture or clip, in bytes.
        timeout_s: Longest whole transfer, redirects included, in seconds.
        max_redirects: Longest chain of redirects.
    """

    allow_urls: bool = True
    allow_private: bool = False
    allow_files: bool = False
    max_bytes: int = 100_000_000
    timeout_s: float = 30
    max_redirects: int = 3


def load_bytes(source: MediaSource, field: str, policy: FetchPolicy) -> bytes:
    """The encoded picture or clip that `source` stands for: never empty, at most `policy.max_bytes` long.

    A `str` is an http(s) URL, a base64 data URL, or base64 (standard or URL-safe alphabet, white space ignored).
    `field` is the request's name for the source, used in errors.

    Raises:
        MediaError: if it is not allowed, cannot be read or fetched, is empty, or (status 413) is too large.
    """
    if isinstance(source, bytes):
        data = source
    elif isinstance(source, Path):
        data = _read_file(source, field, policy)
    else:
        data = _load_text(source.strip(), field, policy)
    if not data:
        raise MediaError(field, "is empty; send the contents of a picture or a clip")
    if len(data) > policy.max_bytes:
        raise _too_large(field, policy)
    return data


def _load_text(text: str, field: str, policy: FetchPolicy) -> bytes:
    scheme = text[:256].partition(":")[0].lower()
    if scheme in ("http", "https"):
        return _fetch(text, field, policy)
    if scheme == "data":
        header, comma, payload = text.partition(",")
        if not comma or not header.lower().endswith(";base64"):
            raise MediaError(field, "is not a base64 data URL; expected data:<type>;base64,<data>")
        return _decode_base64(payload, field, policy)
    if "://" in text[:256]:
        raise MediaError(field, "has a URL scheme that is not supported; use http, https or a base64 data URL")
    return _decode_base64(text, field, policy)


def _decode_base64(text: str, field: str, policy: FetchPolicy) -> bytes:
    try:
        encoded = text.encode("ascii")
        if b"%" in encoded:
            encoded = unquote_to_bytes(encoded)
        encoded = b"".join(encoded.split()).translate(_URLSAFE)
        if len(encoded) // 4 * 3 > policy.max_bytes + 2:
            raise _too_large(field, policy)
        # Padding is often dropped with the URL-safe alphabet.
        encoded = encoded.rstrip(b"=") + b"=" * (-len(encoded.rstrip(b"=")) % 4)
        return binascii.a2b_base64(encoded, strict_mode=True)
    except (UnicodeEncodeError, binascii.Error):
        raise MediaError(field, "is neither an http(s) URL, a data URL, nor valid base64") from None


def _read_file(path: Path, field: str, policy: FetchPolicy) -> bytes:
    if not policy.allow_files:
        raise MediaError(field, "names a local file, which is not allowed here; send its contents as base64")
    try:
        if not path.is_file():  # neither a directory nor a device or pipe, which might never end
            raise MediaError(field, f"there is no file {path}")
        with path.open("rb") as file:
            return file.read(policy.max_bytes + 1)
    except (OSError, ValueError) as error:
        raise MediaError(field, f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error


def _fetch(address: str, field: str, policy: FetchPolicy) -> bytes:
    if not policy.allow_urls:
        raise MediaError(field, "is a URL, which this server does not fetch; send the contents as base64")
    url = _parse_url(address, field)
    deadline = Deadline.after(policy.timeout_s)
    backend = GuardedBackend(deadline, policy.allow_private)
    # The pool knows nothing of proxies from the environment, which would connect without our check.
    with httpcore.ConnectionPool(_tls(), max_keepalive_connections=0, network_backend=backend) as pool:
        try:
            for _ in range(policy.max_redirects + 1):
                found = _get(pool, url, field, policy)
                if isinstance(found, bytes):
                    return found
                url = found
        except RefusedAddressError:
            raise MediaError(field, "leads to an address that is not on the public internet; send base64") from None
        except httpcore.TimeoutException:
            message = f"was not received within {policy.timeout_s:g} s; use a faster server or send base64"
            raise MediaError(field, message) from None
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.UnsupportedProtocol, OSError) as error:
            raise MediaError(field, f"cannot be fetched from {url.host}: {error or type(error).__name__}") from error
    raise MediaError(field, f"redirects more than {policy.max_redirects} times; use the final URL")


def _get(pool: httpcore.ConnectionPool, url: httpx.URL, field: str, policy: FetchPolicy) -> bytes | httpx.URL:
    """The body, or where the server says it is."""
    target = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
    headers = _HEADERS | {"Host": url.netloc.decode("ascii")}
    with pool.stream("GET", target, headers=headers) as response:
        fields = httpx.Headers(response.headers)
        if response.status in _REDIRECTS and "location" in fields:
            return _parse_url(fields["location"], field, base=url)
        if response.status != 200:
            raise MediaError(field, f"cannot be fetched: {url.host} answered with status {response.status}")
        if fields.get("content-encoding", "identity").lower() != "identity":
            # Undoing it would let a small transfer become a large one.
            raise MediaError(field, f"was sent compressed by {url.host}; serve the file as it is")
        length = fields.get("content-length", "")
        if length.isascii() and length.isdigit() and (len(length) > 18 or int(length) > policy.max_bytes):
            raise _too_large(field, policy)
        body = bytearray()
        for chunk in response.iter_stream():
            body += chunk
            if len(body) > policy.max_bytes:
                raise _too_large(field, policy)
        return bytes(body)


def _parse_url(address: str, field: str, base: httpx.URL | None = None) -> httpx.URL:
    try:
        url = httpx.URL(address) if base is None else base.join(address)
    except (httpx.InvalidURL, ValueError):
        raise MediaError(field, "is not a valid URL") from None
    if url.scheme not in ("http", "https"):
        raise MediaError(field, f"leads to a {url.scheme or 'relative'} URL; only http and https are fetched")
    if not url.host:
        raise MediaError(field, "is a URL without a host")
    if url.userinfo:
        raise MediaError(field, "is a URL with a user name or password; use one that needs none (e.g. a signed URL)")
    return url


@functools.cache
def _tls() -> ssl.SSLContext:
    return httpx.create_ssl_context()


def _too_large(field: str, policy: FetchPolicy) -> MediaError:
    return MediaError(field, f"is larger than the limit of {policy.max_bytes:,} bytes; send a smaller one", status=413)
