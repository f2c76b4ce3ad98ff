"""Images behind an address: fetched only from hosts that the operator lists, never from the network that the server stands in.

A name is resolved once, every address that it has must be public, and the connection goes to the address that was checked, while
TLS asks for the name: an answer that changes between the check and the connection changes nothing. Proxies of the environment
are not used, because they would resolve the name again.
"""

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Collection

import httpx

from reins_serve.serving.config import Limits
from reins_serve.serving.http_errors import RequestError
from reins_serve.serving.images import FIELD, too_large

MAX_REDIRECTS = 3
HTTPS_PORT = 443
NAT64 = ipaddress.ip_network("64:ff9b::/96")


class NotFetched(Exception):
    """The image was not had; the client is not told why, so that nobody can feel the way around in the operator's network."""


async def fetch(address: str, hosts: Collection[str], limits: Limits) -> bytes:
    """The bytes behind `https://host/...`.

    Args:
        hosts: `host` or `host:port` of those that may be asked; a redirect too may only lead to one of them.

    Raises:
        RequestError: the host is not listed, does not give an image in time, or gives too many bytes.
    """
    url = _listed(address, hosts)
    if url is None:
        raise RequestError(
            "Images are fetched over https from the hosts that this server lists, and from no others; send the image as a file "
            "or as a data URL.",
            code="invalid_value",
            param=FIELD,
        )
    try:
        async with asyncio.timeout(limits.image_timeout_s), _client() as client:
            for _ in range(1 + MAX_REDIRECTS):
                got = await _get(client, url, limits)
                if isinstance(got, bytes):
                    return got
                url = _listed(str(got), hosts)
                if url is None:
                    raise NotFetched
            raise NotFetched
    except (NotFetched, TimeoutError, OSError, httpx.HTTPError, httpx.InvalidURL) as error:
        raise RequestError(
            "The image could not be fetched from its address.", code="invalid_value", param=FIELD
        ) from error


def public(address: str) -> bool:
    """Whether an IP address, or one that it carries inside, is out in the internet."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.teredo is not None:
            return False
        inner = ip.ipv4_mapped or ip.sixtofour
        if ip in NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return public(str(inner))
    return ip.is_global and not ip.is_multicast


def _listed(address: str, hosts: Collection[str]) -> httpx.URL | None:
    """The address, if it is one of https at a listed host, without a name or password in it."""
    try:
        url = httpx.URL(address)
    except httpx.InvalidURL:
        return None
    host = url.raw_host.decode("ascii").lower()
    port = url.port or HTTPS_PORT
    named = host if port == HTTPS_PORT else f"{host}:{port}"
    return url if url.scheme == "https" and not url.userinfo and named in hosts else None


def _client() -> httpx.AsyncClient:
    return httpx.AsyncClient(verify=ssl.create_default_context(), trust_env=False, follow_redirects=False, timeout=None)


async def _resolve(host: str, port: int) -> list[str]:
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]


async def _get(client: httpx.AsyncClient, url: httpx.URL, limits: Limits) -> bytes | httpx.URL:
    """The body of an answer, or where a redirect leads."""
    name = url.raw_host.decode("ascii")
    found = await _resolve(name, url.port or HTTPS_PORT)
    if not found or not all(map(public, found)):
        raise NotFetched
    request = client.build_request(
        "GET",
        url.copy_with(host=found[0]),
        headers={"Host": url.netloc.decode("ascii"), "Accept": "image/*", "Accept-Encoding": "identity"},
        extensions={"sni_hostname": name},
    )
    answer = await client.send(request, stream=True)
    try:
        if answer.has_redirect_location:
            return url.join(answer.headers["location"])
        if answer.status_code != 200:
            raise NotFetched
        data = bytearray()
        async for chunk in answer.aiter_raw():
            data += chunk
            if len(data) > limits.max_image_bytes:
                raise too_large(limits)
        return bytes(data)
    finally:
        await answer.aclose()
