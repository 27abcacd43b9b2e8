"""From a media source (URL, data URL, base64, bytes or file) to the bytes it stands for, and connections for that.

The connections can only reach the public internet. The address that is checked is the address that is connected to: a
name is resolved once, here, so that a DNS server cannot answer with a public address for the check and a private one
for the connection.
"""

from __future__ import annotations

import asyncio
import binascii
import functools
import ipaddress
import re
import socket
import ssl
from collections.abc import AsyncIterator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpcore
import httpx

from cosmorama.errors import MediaError
from cosmorama.request import MediaSource

MAX_URL = 8192
_LABEL = "[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"(?=.{{1,254}}$){_LABEL}(\.{_LABEL})*\.?")
"""A host as the DNS can have it, in the form in which it goes over the wire."""
_BLANK = "\ufeff \t\r\n\f\v"
_ENDS = 1 << 16
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_SPECIAL_V4 = tuple(
    ipaddress.IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # shared by the customers of a provider; where some clouds keep their metadata
        "127.0.0.0/8",  # this machine
        "168.63.129.16/32",  # Azure's host agent, for its virtual machines; an ordinary address elsewhere
        "169.254.0.0/16",  # link-local; metadata of most clouds
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments; metadata of one cloud
        "192.0.2.0/24",  # documentation
        "192.31.196.0/24",  # AS112
        "192.52.193.0/24",  # multicast relays
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",  # private
        "192.175.48.0/24",  # AS112
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, broadcast
    )
)
"""IANA's registry of special-purpose IPv4 addresses, multicast, and a cloud's own. Not Python's table, which changes
from one release to the next."""
_GLOBAL_V6 = ipaddress.IPv6Network("2000::/3")
"""The only part of IPv6 that IANA has given out as global unicast."""
_SPECIAL_V6 = tuple(
    ipaddress.IPv6Network(network)
    for network in (
        "2001::/23",  # protocol assignments: Teredo, benchmarks, ORCHID, ...
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4: routed to wherever the tunnel's end is
        "2620:4f:8000::/48",  # AS112
        "3ffe::/16",  # the former 6bone
        "3fff::/20",  # documentation
    )
)


class RefusedAddressError(Exception):
    """The name leads to an address that must not be connected to."""


def is_public(address: str) -> bool:
    """Whether an IPv4 or IPv6 address (as text) belongs to the public, unicast internet.

    An IPv6 address that carries an IPv4 address, mapped or by NAT64, is judged by what it carries.

    Raises:
        ValueError: if the text is not an address.
    """
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv4Address):
        return not any(ip in network for network in _SPECIAL_V4)
    if ip.ipv4_mapped is not None:
        return is_public(str(ip.ipv4_mapped))
    if ip in _NAT64:
        return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
    return ip in _GLOBAL_V6 and not any(ip in network for network in _SPECIAL_V6)


def is_private_literal(host: str) -> bool:
    """Whether a host is localhost, or an address that is not public, in any notation that systems take."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = host if _is_address(host) else socket.inet_ntoa(socket.inet_aton(host))
    except OSError:  # a name
        return False
    return not is_public(address)


@dataclass(frozen=True, slots=True)
class GuardedBackend(httpcore.AsyncNetworkBackend):
    """A network backend that resolves, checks and connects in one place.

    TLS is started by httpcore with the name of the URL, so certificates and SNI are those of the name, not of the
    address.
    """

    allow_private: bool
    _backend: httpcore.AsyncNetworkBackend = field(default_factory=httpcore.AnyIOBackend)

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109  # httpcore's own interface
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to one of the host's addresses, provided that all of them may be connected to.

        Raises:
            RefusedAddressError: if any address of the host is not public and private ones are not allowed.
            httpcore.ConnectError: if the host does not resolve or no address answers.
        """
        addresses = await _resolved(host, port)
        if not self.allow_private and not all(is_public(address) for address in addresses):
            raise RefusedAddressError(host)
        for address in addresses[:-1]:
            try:
                return await self._backend.connect_tcp(address, port, timeout)
            except httpcore.ConnectError:
                continue
        return await self._backend.connect_tcp(addresses[-1], port, timeout)

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,  # noqa: ASYNC109  # httpcore's own interface
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        raise RefusedAddressError(path)


async def _resolved(host: str, port: int) -> list[str]:
    """The host's addresses. Left alone when the caller's time is up: no resolver can be told to stop."""
    executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="resolve")
    lookup = functools.partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    try:
        found = await asyncio.get_running_loop().run_in_executor(executor, lookup)
    except (OSError, UnicodeError) as error:
        raise httpcore.ConnectError(f"cannot resolve {host}") from error
    finally:
        executor.shutdown(wait=False)
    # A link-local IPv6 address may carry a scope (fe80::1%eth0); order is kept, duplicates are not.
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


@asynccontextmanager
async def guarded(
    method: str,
    url: httpx.URL,
    headers: dict[bytes | str, bytes | str],
    *,
    content: bytes | None = None,
    allow_private: bool = False,
) -> AsyncIterator[httpcore.Response]:
    """The answer to one HTTP request, its body not read yet, over a connection that only reaches public addresses.

    Knows nothing of redirects, proxies from the environment, or time: run it under `asyncio.timeout`.

    Args:
        method, url: What to send where; http or https.
        headers: Besides Host and Connection.
        content: The body.
        allow_private: Connect to addresses that are not on the public internet too.

    Raises:
        RefusedAddressError: the host leads to an address that is not public.
        httpcore.NetworkError, httpcore.ProtocolError: the connection, or what is spoken over it, fails.
    """
    target = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
    all_headers = {"Host": url.netloc.decode("ascii"), "Connection": "close"} | headers
    backend = GuardedBackend(allow_private)
    async with (
        httpcore.AsyncConnectionPool(_tls(), max_keepalive_connections=0, network_backend=backend) as pool,
        pool.stream(method, target, headers=all_headers, content=content) as response,
    ):
        yield response


def host_of(url: httpx.URL) -> str:
    """The host for messages, as it goes over the wire: decoding names of any script may fail."""
    return url.raw_host.decode("ascii")


_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_ESCAPES = ((b"%2B", b"+"), (b"%2b", b"+"), (b"%2F", b"/"), (b"%2f", b"/"), (b"%3D", b"="), (b"%3d", b"="))
_URLSAFE = bytes.maketrans(b"-_", b"+/")
_WHITE_SPACE = b" \t\n\r\f\v"
_PIECE = 1 << 20
_TAIL = 64
"""Characters at the end that may be padding."""
_HEADERS: dict[bytes | str, bytes | str] = {
    "Accept": "image/*, video/*, */*;q=0.5",
    "Accept-Encoding": "identity",
    "User-Agent": "cosmorama",
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
    elif (address := url_in(source)) is not None:
        data = _fetch(address, field, policy)
    else:
        data = _load_text(_stripped(source), field, policy)
    if not data:
        raise MediaError(field, "is empty; send the contents of a picture or a clip")
    if len(data) > policy.max_bytes:
        raise _too_large(field, policy)
    return data


def url_in(source: MediaSource) -> str | None:
    """What would be fetched for a source; None if it is no http(s) URL."""
    head = source[:_ENDS].lstrip(_BLANK) if isinstance(source, str) else ""
    return _stripped(str(source)) if head[:6].partition(":")[0].lower() in ("http", "https") else None


def _stripped(text: str) -> str:
    """A text without the blanks at its ends. No more than `_ENDS` are looked at: while they are, nothing else runs."""
    before = len(text[:_ENDS]) - len(text[:_ENDS].lstrip(_BLANK))
    after = len(text[-_ENDS:]) - len(text[-_ENDS:].rstrip(_BLANK))
    return text[before : max(len(text) - after, before)]


def _load_text(text: str, field: str, policy: FetchPolicy) -> bytes:
    if text[:5].lower() == "data:":
        header, comma, payload = text.partition(",")
        if not comma or not header.lower().endswith(";base64"):
            raise MediaError(field, "is not a base64 data URL; expected data:<type>;base64,<data>")
        return _decode_base64(payload, field, policy)
    if "://" in text[:256]:
        raise MediaError(field, "has a URL scheme that is not supported; use http, https or a base64 data URL")
    return _decode_base64(text, field, policy)


def _decode_base64(text: str, field: str, policy: FetchPolicy) -> bytes:
    """What a base64 text stands for. In pieces: nothing else runs in the process while one of them is dealt with."""
    data, left = bytearray(), b""
    try:
        for piece in _base64_pieces(text):
            left += piece
            whole = max(len(left) - _TAIL, 0) // 4 * 4
            if b"=" in left[:whole]:
                raise binascii.Error("padding before the end")
            data += binascii.a2b_base64(left[:whole], strict_mode=True)
            left = left[whole:]
            if len(data) > policy.max_bytes:
                raise _too_large(field, policy)
        # Padding is often dropped with the URL-safe alphabet.
        left = left.rstrip(b"=")
        data += binascii.a2b_base64(left + b"=" * (-len(left) % 4), strict_mode=True)
    except (UnicodeEncodeError, binascii.Error):
        raise MediaError(field, "is neither an http(s) URL, a data URL, nor valid base64") from None
    return bytes(data)


def _base64_pieces(text: str) -> Iterator[bytes]:
    """The text in the standard alphabet, without white space and without a data URL's escapes."""
    rest = ""
    for start in range(0, len(text), _PIECE):
        piece = rest + text[start : start + _PIECE]
        # Base64 has three characters to escape; decoding any takes seconds for what is all escapes.
        cut = piece.rfind("%", len(piece) - 2) if start + _PIECE < len(text) else -1
        piece, rest = (piece, "") if cut < 0 else (piece[:cut], piece[cut:])
        encoded = piece.encode("ascii")
        if b"%" in encoded:
            for escape, plain in _ESCAPES:
                encoded = encoded.replace(escape, plain)
        yield encoded.translate(_URLSAFE, _WHITE_SPACE)


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
    # In a thread of its own: the caller may have an event loop running, as notebooks do.
    with ThreadPoolExecutor(1, thread_name_prefix="fetch") as thread:
        return thread.submit(asyncio.run, fetched(address, field, policy)).result()


async def fetched(address: str, field: str, policy: FetchPolicy) -> bytes:
    """What is at an http(s) URL: at most `policy.max_bytes`.

    Raises:
        MediaError: as `load_bytes`.
    """
    if not policy.allow_urls:
        raise MediaError(field, "is a URL, which this server does not fetch; send the contents as base64")
    url = parse_url(address, field)
    try:
        async with asyncio.timeout(policy.timeout_s):
            for _ in range(policy.max_redirects + 1):
                found = await _get(url, field, policy)
                if isinstance(found, bytes):
                    return found
                url = found
    except RefusedAddressError:
        raise MediaError(field, "leads to an address that is not on the public internet; send base64") from None
    except (TimeoutError, httpcore.TimeoutException):
        message = f"was not received within {policy.timeout_s:g} s; use a faster server or send base64"
        raise MediaError(field, message) from None
    except httpcore.ProtocolError:
        # Its words quote what came, which may be the banner of a service that is none of a client's business.
        raise MediaError(
            field, f"cannot be fetched from {host_of(url)}: its answer is not whole, or not HTTP"
        ) from None
    except (httpcore.NetworkError, httpcore.UnsupportedProtocol, OSError) as error:
        raise MediaError(
            field, f"cannot be fetched from {host_of(url)}: {str(error) or type(error).__name__}"
        ) from error
    raise MediaError(field, f"redirects more than {policy.max_redirects} times; use the final URL")


async def _get(url: httpx.URL, field: str, policy: FetchPolicy) -> bytes | httpx.URL:
    """The body, or where the server says it is."""
    async with guarded("GET", url, _HEADERS, allow_private=policy.allow_private) as response:
        fields = httpx.Headers(response.headers)
        if response.status in _REDIRECTS and "location" in fields:
            return parse_url(fields["location"], field, base=url)
        if response.status != 200:
            raise MediaError(field, f"cannot be fetched: {host_of(url)} answered with status {response.status}")
        if fields.get("content-encoding", "identity").lower() != "identity":
            # Undoing it would let a small transfer become a large one.
            raise MediaError(field, f"was sent compressed by {host_of(url)}; serve the file as it is")
        length = fields.get("content-length", "")
        if length.isascii() and length.isdigit() and (len(length) > 18 or int(length) > policy.max_bytes):
            raise _too_large(field, policy)
        body = bytearray()
        async for chunk in response.aiter_stream():
            body += chunk
            if len(body) > policy.max_bytes:
                raise _too_large(field, policy)
        return bytes(body)


def parse_url(address: str, field: str, base: httpx.URL | None = None) -> httpx.URL:
    """The http(s) URL in a text, or where it leads from another one.

    Raises:
        MediaError: it is none, or has a password, more than `MAX_URL` characters, or no host that there can be.
    """
    if len(address) > MAX_URL:
        raise MediaError(field, f"is a URL of {len(address):,} characters; at most {MAX_URL:,} are accepted")
    try:
        url = httpx.URL(address) if base is None else base.join(address)
    except (httpx.InvalidURL, ValueError):
        raise MediaError(field, "is not a valid URL") from None
    if url.scheme not in ("http", "https"):
        raise MediaError(field, f"leads to a {url.scheme or 'relative'} URL; only http and https are fetched")
    if not url.raw_host:
        raise MediaError(field, "is a URL without a host")
    host, port = host_of(url), 80 if url.port is None else url.port
    if not (_is_address(host) or _NAME.fullmatch(host)) or not 0 < port < 65536:
        raise MediaError(field, "is a URL whose host or port can be none")
    if url.userinfo:
        raise MediaError(field, "is a URL with a user name or password; use one that needs none (e.g. a signed URL)")
    return url


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


@functools.cache
def _tls() -> ssl.SSLContext:
    return httpx.create_ssl_context()


def _too_large(field: str, policy: FetchPolicy) -> MediaError:
    return MediaError(field, f"is larger than the limit of {policy.max_bytes:,} bytes; send a smaller one", status=413)
